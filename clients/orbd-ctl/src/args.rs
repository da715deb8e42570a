//! The command line: verbs, flags and their help texts.
//!
//! All parsing of arguments is in this file. Verbs and flags that `orbctl` has too have the same names here. Those that only
//! orbd-ctl has (`--detach`, `--timeout`, `jobs`, `cancel` and so on) do not clash with any of `orbctl`'s.

use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::completions::ShellName;
use crate::service::ManagerName;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use orbd_proto::export::ExportFormat;
use orbd_proto::types::{EventKind, GroupBy, JobStateWord};

/// Manage OrbStack machines through orbd, which queues, joins, caches and records every orbctl call
#[derive(Debug, Parser)]
#[command(
    name = "orbd-ctl",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = WIDTH_MAX,
    after_help = "Examples:
  orbd-ctl list                          list machines, cached while fresh
  orbd-ctl create ubuntu:noble web       create and boot a machine
  orbd-ctl run -m web uname -a           run a command, keep its exit code
  orbd-ctl jobs                          waiting and running jobs
  orbd-ctl list --json                   JSON output

`orbd-ctl help COMMAND` shows examples for each command; `orbd-ctl --help` also lists exit codes \
and environment variables.",
    after_long_help = AFTER_LONG_HELP
)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// The verb.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Maximum width of help texts, in columns.
const WIDTH_MAX: usize = 100;

impl Cli {
    /// Parses the command line.
    ///
    /// If the first argument is a verb, as is usual, only that verb's clap command is built: building all of them took a quarter
    /// of the instructions of a `list`. Usage errors and `--help` show only the verb's own text in that case anyway.
    pub(crate) fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        let verb = words.get(1).and_then(|word| Command::verb(word.to_str()?));
        let Some(verb) = verb else {
            return Self::try_parse_from(words)
                .map(Self::settled)
                .map_err(unknown_option);
        };
        let matches = Global::augment_args(clap::Command::new("orbd-ctl").max_term_width(WIDTH_MAX))
            .subcommand(verb)
            .try_get_matches_from(words)
            .map_err(unknown_option)?;
        Self::from_arg_matches(&matches).map(Self::settled)
    }

    /// Treats `--format json`, which `orbctl` has on some verbs, as `--json`.
    fn settled(mut self) -> Self {
        if let Command::List(List { form, .. }) | Command::Info(Info { form, .. }) = &self.command {
            self.global.json |= form.format == Some(Format::Json);
        }
        self
    }
}

/// Shortens clap's message for an unknown option to one line with the nearest known option.
fn unknown_option(error: clap::Error) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let Some(option) = text(ContextKind::InvalidArg)
        .filter(|option| error.kind() == ErrorKind::UnknownArgument && option.starts_with('-'))
    else {
        return error;
    };
    let nearest =
        text(ContextKind::SuggestedArg).map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => format!("\n\n{usage}"),
        _ => String::new(),
    };
    clap::Error::raw(
        ErrorKind::UnknownArgument,
        format!("unknown option '{option}'{nearest}{usage}\n"),
    )
}

const AFTER_LONG_HELP: &str = "Examples:
  orbd-ctl list                          list machines, cached while fresh
  orbd-ctl create ubuntu:noble web       create and boot a machine
  orbd-ctl run -m web uname -a           run a command, keep its exit code
  tar c . | orbd-ctl run -m web tar xC /srv
  orbd-ctl start --detach web            print the job id and return
  orbd-ctl jobs                          waiting and running jobs
  orbd-ctl cancel 12                     cancel a waiting or running job
  orbd-ctl metrics --window 1h           wait and run times
  orbd-ctl list --json | jq -r '.machines[].name'

Exit codes:
    0  success
    1  the operation failed (`status`: OrbStack is not running)
    2  the command line, or a value in it, is invalid
    3  orbd is unreachable, or speaks another protocol
    4  the named object does not exist, already exists, or has the wrong state
    5  the queue refused it, orbctl is unhealthy, or a time limit expired
    6  another client cancelled the job, or orbd died while it ran
    7  a change was interrupted and may have taken effect: check before retrying
  130  interrupted by Ctrl-C
  141  the reader of the output closed it (SIGPIPE)
  `run`, `job output --follow` and `job wait` exit with the command's own code. `run` exits with 124 when \
`--timeout` expired, and with 125 when the command could not be run, or succeeded but some of its output was \
lost. `push`, `pull`, `export` and `import` exit with orbctl's code.

Environment:
  ORBD_SOCKET     socket of the daemon [default: ~/.orbd/orbd.sock]
  ORBD_AUTOSTART  0 = do not start the daemon on demand
  NO_COLOR        not empty = no colours

With --json every command prints one JSON object per line to stdout, in the format of proto/openrpc.json; a \
failure is {\"error\": {\"code\", \"message\", \"data\"}}. Messages always go to stderr.";

/// Options of every command.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON, one object per line, in the format of the API
    #[arg(long, global = true)]
    pub(crate) json: bool,
    // The help is an attribute, not a doc comment: clap would print the markup that rustdoc needs.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "Daemon socket [default: $ORBD_SOCKET, else ~/.orbd/orbd.sock]"
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Fail instead of starting the daemon if it is not running
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

/// Options of every command that creates a job.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct JobArgs {
    /// Print the job id and return; the job keeps running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give up if the job has not started after TIME, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
    /// Stop the job after it has run for TIME
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
}

/// Options of every command that runs the real `orbctl` in this client under a lease. `orbctl` ends with the client, so these commands
/// cannot be detached.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct LeaseArgs {
    /// Give up if the job has not started after TIME, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
    /// Stop the job after it has run for TIME
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
}

/// Output format, with the flag that `orbctl` has.
#[derive(Debug, Args, Default)]
pub(crate) struct FormatArgs {
    /// Output format; json is the same as --json
    #[arg(short, long, value_name = "FORM", value_enum)]
    pub(crate) format: Option<Format>,
}

/// Values of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable text
    Text,
    /// JSON
    Json,
}

/// Maximum age of a cached answer.
#[derive(Debug, Args, Default)]
pub(crate) struct AgeArgs {
    /// Maximum age of a cached answer, e.g. 500ms or 10s; 0 asks orbctl now
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) max_age: Option<Duration>,
}

impl AgeArgs {
    /// Returns the maximum age as a request parameter.
    pub(crate) fn max_age_ms(&self) -> Option<u64> {
        self.max_age.map(millis)
    }
}

/// Converts a duration to milliseconds, the unit of request parameters.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Defines the verbs. Each has a help text, an argument type, a name, aliases and examples.
///
/// This replaces `derive(Subcommand)`, which builds the arguments of every verb at every start; that took longer than everything
/// else that `list` does. This macro builds only the arguments of the verb that was typed.
macro_rules! verbs {
    ($(#[doc = $about:literal] $variant:ident($args:ident) $name:literal [$($alias:literal),*] $examples:literal;)*) => {
        /// The verbs with their arguments.
        #[derive(Debug)]
        pub(crate) enum Command {
            $(#[doc = $about] $variant($args),)*
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => $args::from_arg_matches(matches).map(Self::$variant),)*
                    _ => Err(clap::Error::new(ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Command {
            /// Builds the clap command of the verb with this name or alias.
            fn verb(word: &str) -> Option<clap::Command> {
                $({
                    const ALIASES: &[&str] = &[$($alias),*];
                    if word == $name || ALIASES.contains(&word) {
                        fn help(command: clap::Command) -> clap::Command {
                            command.about($about.trim()).after_help($examples)
                        }
                        let verb = help(clap::Command::new($name))
                            .visible_aliases(ALIASES.iter().copied())
                            .hide($name == "lease-exec")
                            // Set again, because `augment_args` replaces the help with the doc comment of the argument type.
                            .defer(|command| help($args::augment_args(command)));
                        return Some(verb);
                    }
                })*
                None
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command.subcommands([$($name),*].into_iter().filter_map(Self::verb))
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }
    };
}

verbs! {
    /// List machines
    List(List) "list" ["ls"] "Examples:
  orbd-ctl list
  orbd-ctl list --running --quiet        names only, one per line
  orbd-ctl list --max-age 0              ask orbctl, bypass the cache";
    /// Show one machine with its addresses and size
    Info(Info) "info" [] "Examples:
  orbd-ctl info web
  orbd-ctl info web --json | jq -r .ip4";
    /// Create a machine and boot it
    Create(Create) "create" ["add", "new"] "Examples:
  orbd-ctl create ubuntu                 the latest Ubuntu, named ubuntu
  orbd-ctl create debian:bookworm db --cpus 2 --memory 4G
  orbd-ctl create ubuntu:noble box --isolated --mount /Users/me/src:/src
  orbd-ctl create ubuntu:noble web --user-data cloud-init.yaml";
    /// Start machines; without a name, start OrbStack itself
    Start(Start) "start" [] "Examples:
  orbd-ctl start web db                  both in parallel
  orbd-ctl start --all
  orbd-ctl start --detach web            print the job id and return";
    /// Stop machines
    Stop(Stop) "stop" [] "Examples:
  orbd-ctl stop web
  orbd-ctl stop --force web              stop its jobs, do not wait for them
  orbd-ctl stop --all                    all machines
  orbd-ctl stop --orbstack               OrbStack itself";
    /// Restart machines
    Restart(Names) "restart" [] "Examples:
  orbd-ctl restart web db";
    /// Delete machines and everything on them
    Delete(Delete) "delete" ["rm"] "Examples:
  orbd-ctl delete scratch                on a terminal, asks first
  orbd-ctl delete --yes one two          do not ask";
    /// Rename a machine
    Rename(Rename) "rename" [] "Examples:
  orbd-ctl rename web web-old";
    /// Clone a machine; the clone is not started
    Clone(CloneMachine) "clone" [] "Examples:
  orbd-ctl clone web web-2 && orbd-ctl start web-2";
    /// Show, set or clear the default machine
    Default(DefaultMachine) "default" [] "Examples:
  orbd-ctl default                       print its name
  orbd-ctl default web
  orbd-ctl default none                  clear it";
    /// Run a command in a machine
    Run(Run) "run" [] "Works like `orbctl run`: the command starts in the directory that corresponds to the current one. On a terminal \
the command gets the terminal; otherwise its output is streamed unmodified, and input is forwarded if it is a pipe or a file. The exit \
code is the command's. Options of orbd-ctl come before the command; everything from the command's name on is passed to it.

Examples:
  orbd-ctl run uname -a                          in the default machine
  orbd-ctl run -m web -u root -w /srv ls -la
  orbd-ctl run -m web -s 'cd app && make'        through the login shell
  orbd-ctl run -m web sh -c 'echo $HOME; exit 3' exits with 3
  gzip -dc dump.gz | orbd-ctl run -m db psql     input from a pipe
  orbd-ctl run -m web -e MODE=test --timeout 5m make check
  orbd-ctl run -m web --detach make world        print the job id and return";
    /// Open a shell in a machine
    Shell(Shell) "shell" ["sh"] "Runs the real orbctl with your terminal, directory and environment. orbd records the session, and starts \
it when no change of the machine is running. An open session blocks nothing: the machine can be stopped meanwhile.

Examples:
  orbd-ctl shell                                 in the default machine
  orbd-ctl shell web
  orbd-ctl shell web -u root
  orbd-ctl run -m web htop                       a command instead of a shell";
    /// Copy files from the Mac into a machine
    Push(Transfer) "push" [] "Examples:
  orbd-ctl push -m web site.tar.gz               into the guest user's home
  orbd-ctl push -m web a.conf b.conf /tmp/";
    /// Copy files from a machine to the Mac
    Pull(Transfer) "pull" [] "Examples:
  orbd-ctl pull -m web /var/log/syslog
  orbd-ctl pull -m web notes.txt report.txt ./out/";
    /// Export a machine to an archive
    Export(Export) "export" [] "Examples:
  orbd-ctl export web web.tar.zst";
    /// Create a machine from an archive
    Import(Import) "import" [] "Examples:
  orbd-ctl import -n web-copy web.tar.zst";
    /// Show a machine's log
    Logs(Logs) "logs" [] "Examples:
  orbd-ctl logs web
  orbd-ctl logs --all web | tail -50
  orbd-ctl logs --follow web             until Ctrl-C";
    /// Show how to connect to machines over SSH
    Ssh(Nothing) "ssh" [] "Examples:
  orbd-ctl ssh";
    /// Show and change OrbStack's configuration
    Config(Config) "config" [] "Examples:
  orbd-ctl config show
  orbd-ctl config get machine.web.username
  orbd-ctl config set memory_mib 8192";
    /// Show whether OrbStack is running, without starting it; exits with 1 if it is not
    Status(Status) "status" [] "Examples:
  orbd-ctl status
  orbd-ctl status --max-age 0 && echo running";
    /// Show the versions of orbctl, orbd and orbd-ctl
    Version(Version) "version" [] "Examples:
  orbd-ctl version
  orbd-ctl version --max-age 0           ask orbctl now";
    /// List waiting and running jobs, and what they wait for
    Jobs(Jobs) "jobs" ["ps"] "Examples:
  orbd-ctl jobs
  orbd-ctl jobs --all -n 20              include ended jobs
  orbd-ctl jobs --state waiting -m web";
    /// Show a job, explain why it waits, wait for it, or print its output
    Job(Job) "job" [] "Examples:
  orbd-ctl job show 12
  orbd-ctl job why 12                    what blocks it, and what blocks that
  orbd-ctl job wait 12 --timeout 30s
  orbd-ctl job output --follow 12        from the first byte until it ends";
    /// Cancel jobs: waiting jobs do not start, running jobs are stopped
    Cancel(Cancel) "cancel" [] "Examples:
  orbd-ctl cancel 12 13";
    /// Show, pause, resume or drain the queue
    Queue(Queue) "queue" [] "Examples:
  orbd-ctl queue
  orbd-ctl queue pause web               start no more jobs on web
  orbd-ctl queue resume web
  orbd-ctl queue drain                   refuse new work, return when done";
    /// Show the current state, or events of machines, jobs, the cache and orbctl
    Events(Events) "events" [] "Examples:
  orbd-ctl events                        the current state
  orbd-ctl events --follow --kinds machines,job_ended
  orbd-ctl events --since 41             events after number 41";
    /// Show or invalidate orbd's cache
    Cache(Cache) "cache" [] "Examples:
  orbd-ctl cache
  orbd-ctl cache invalidate              the next reads ask orbctl";
    /// Show wait and run times of operations
    Metrics(Metrics) "metrics" [] "Examples:
  orbd-ctl metrics --window 1h --by machine
  orbd-ctl metrics history --outcome failed
  orbd-ctl metrics export --since 1d --format csv -o orbd.csv
  orbd-ctl metrics counters";
    /// Start, stop and inspect orbd itself
    Daemon(Daemon) "daemon" [] "Examples:
  orbd-ctl daemon start                  does nothing if it is running
  orbd-ctl daemon status                 exits with 3 if it is not running
  orbd-ctl daemon restart                restart now; upgrades wait for idle
  orbd-ctl daemon config show            every key, its value and source
  orbd-ctl daemon reload                 apply an edited configuration file
  orbd-ctl daemon logs --follow          follow orbd's log";
    /// Run orbd as a service: launchd on macOS, systemd on Linux
    Service(ServiceVerb) "service" [] "Examples:
  orbd-ctl service install               start now and at each login
  orbd-ctl service install --print       print the file, change nothing
  orbd-ctl service status
  orbd-ctl service logs --follow";
    /// Route calls of orbctl and orb through orbd, for programs that call them by name
    Dropin(DropinVerb) "dropin" [] "Examples:
  orbd-ctl dropin install                orbctl and orb in ~/.orbd/bin
  orbd-ctl dropin status                 which programs are called
  orbd-ctl dropin uninstall";
    /// Check the installation and print a fix for each problem; starts and changes nothing, exits with 1 on an error
    Doctor(Nothing) "doctor" [] "Examples:
  orbd-ctl doctor
  orbd-ctl doctor --json | jq -r '.checks[] | select(.status == \"error\") | .fix'";
    /// Print shell completions, which include machine names and job ids
    Completions(Completions) "completions" ["completion"] "Examples:
  echo 'source <(orbd-ctl completions bash)' >> ~/.bashrc
  orbd-ctl completions zsh > \"${fpath[1]}/_orbd-ctl\"
  orbd-ctl completions fish > ~/.config/fish/completions/orbd-ctl.fish";
    /// Print the manual page, or write the pages of all commands
    Man(Man) "man" [] "Examples:
  orbd-ctl man | man -l -
  orbd-ctl man --to /usr/local/share/man/man1";
}

/// A verb without arguments.
#[derive(Debug, Args)]
pub(crate) struct Nothing {}

/// `list`.
#[derive(Debug, Args, Default)]
pub(crate) struct List {
    /// Print names only, one per line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only running machines
    #[arg(short, long)]
    pub(crate) running: bool,
    /// Output format.
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Output format.
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `create`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is an independent command-line flag"
)]
pub(crate) struct Create {
    /// Distribution and version, e.g. ubuntu or ubuntu:noble
    #[arg(value_name = "DISTRO[:VERSION]")]
    pub(crate) image: String,
    /// Name of the new machine [default: the distribution's name]
    pub(crate) name: Option<String>,
    /// arm64 or amd64 [default: the Mac's]
    #[arg(short, long)]
    pub(crate) arch: Option<String>,
    /// Default user [default: the Mac user's name]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Ask for the default user's password on this terminal (runs the real orbctl)
    #[arg(short = 'p', long, conflicts_with = "detach")]
    pub(crate) set_password: bool,
    /// CPU limit (OrbStack 2.2)
    #[arg(long, value_name = "N", value_parser = whole::<u32>, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory limit, e.g. 4G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Disk limit, e.g. 40G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) disk: Option<String>,
    /// No access to the Mac (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolated: bool,
    /// No access to the Mac's network (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolate_network: bool,
    /// Shared directory of an isolated machine; may be repeated (OrbStack 2.1)
    #[arg(long = "mount", value_name = "SRC[:DEST]")]
    pub(crate) mounts: Vec<String>,
    /// Forward the Mac's SSH agent (OrbStack 2.1)
    #[arg(long)]
    pub(crate) forward_ssh_agent: bool,
    /// Cloud-init user data (runs the real orbctl)
    #[arg(short = 'c', long, value_name = "FILE", conflicts_with = "detach")]
    pub(crate) user_data: Option<PathBuf>,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Names or ids; none for OrbStack itself
    #[arg(value_name = "NAME", conflicts_with = "all")]
    pub(crate) machines: Vec<String>,
    /// All machines
    #[arg(long)]
    pub(crate) all: bool,
    /// For OrbStack itself: stop running jobs and cancel waiting ones instead of queueing behind them
    #[arg(short, long, conflicts_with_all = ["machines", "all"])]
    pub(crate) force: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `stop`.
#[derive(Debug, Args)]
#[group(id = "targets", required = true, multiple = false, args = ["machines", "all", "orbstack"])]
pub(crate) struct Stop {
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub(crate) machines: Vec<String>,
    /// All machines
    #[arg(long)]
    pub(crate) all: bool,
    /// OrbStack itself, and with it all machines
    #[arg(long)]
    pub(crate) orbstack: bool,
    /// Stop running jobs and cancel waiting ones instead of queueing behind them
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `restart`.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) machines: Vec<String>,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) machines: Vec<String>,
    /// Do not ask for confirmation
    #[arg(
        short,
        long,
        visible_short_alias = 'f',
        visible_alias = "force",
        overrides_with = "yes"
    )]
    pub(crate) yes: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `rename`.
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Current name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// New name
    #[arg(value_name = "NEW")]
    pub(crate) new_name: String,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `clone`.
#[derive(Debug, Args)]
pub(crate) struct CloneMachine {
    /// Name or id of the machine to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) machine: String,
    /// Name of the copy
    #[arg(value_name = "NEW")]
    pub(crate) new_name: String,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `default`.
#[derive(Debug, Args)]
pub(crate) struct DefaultMachine {
    /// New default machine; `none` clears it; without it, the current one is printed
    #[arg(value_name = "NAME|none")]
    pub(crate) machine: Option<String>,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `run`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is an independent command-line flag"
)]
pub(crate) struct Run {
    /// Name or id [default: the default machine]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Guest user [default: the machine's default user]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Guest directory [default: the one that corresponds to the current directory if the machine has it, else the guest user's home]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Set KEY to VALUE, or to its value in the current environment; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Give the command no input, e.g. inside a loop that reads from standard input
    #[arg(short, long)]
    pub(crate) no_input: bool,
    /// Forward what is typed, even if the output is not a terminal
    #[arg(short, long, conflicts_with_all = ["no_input", "detach"])]
    pub(crate) interactive: bool,
    /// Give the command this terminal, as `shell` does [default: if input and output are a terminal]
    #[arg(short, long, visible_alias = "tty", conflicts_with_all = ["no_input", "detach", "timeout"])]
    pub(crate) terminal: bool,
    /// Never give the command this terminal
    #[arg(long, conflicts_with = "terminal")]
    pub(crate) no_terminal: bool,
    /// Run it in the guest user's login shell (runs the real orbctl)
    #[arg(short = 's', long = "shell", conflicts_with_all = ["no_input", "detach"])]
    pub(crate) login_shell: bool,
    /// Translate Mac paths in its arguments (runs the real orbctl)
    #[arg(short = 'p', long = "path", conflicts_with_all = ["no_input", "detach"])]
    pub(crate) translate_paths: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// `shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// Name or id [default: the default machine]
    #[arg(value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// The same as NAME, with orbctl's flag
    #[arg(
        short = 'm',
        long = "machine",
        value_name = "NAME",
        conflicts_with = "machine"
    )]
    pub(crate) named_machine: Option<String>,
    /// Guest user [default: the machine's default user]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Guest directory [default: the one that corresponds to the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Give up if the job has not started after TIME, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
}

/// `push` and `pull`.
#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Name or id [default: the default machine]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Files to copy, then the destination
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Time limits.
    #[command(flatten)]
    pub(crate) limits: LeaseArgs,
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Archive to write, e.g. web.tar.zst
    pub(crate) file: PathBuf,
    /// Time limits.
    #[command(flatten)]
    pub(crate) limits: LeaseArgs,
}

/// `import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Name of the new machine
    #[arg(short, long, value_name = "NEW")]
    pub(crate) name: String,
    /// Archive to read
    pub(crate) file: PathBuf,
    /// Time limits.
    #[command(flatten)]
    pub(crate) limits: LeaseArgs,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Print the whole log
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Follow the log until Ctrl-C (runs the real orbctl)
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `config`.
#[derive(Debug, Args)]
pub(crate) struct Config {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show all keys
    Show(Status),
    /// Show one key; exits with 4 if it is not set
    Get {
        /// Key, e.g. machine.web.username
        key: String,
        /// Maximum age of the answer.
        #[command(flatten)]
        age: AgeArgs,
    },
    /// Set one key
    Set {
        /// Key, e.g. machine.web.username
        key: String,
        /// Value
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Options of the job.
        #[command(flatten)]
        job: JobArgs,
    },
    /// Hidden: prints that only `daemon config` has this subcommand.
    #[command(hide = true)]
    Path,
    /// Hidden: prints that only `daemon config` has this subcommand.
    #[command(hide = true)]
    Check,
    /// Reset all keys to their defaults
    Reset {
        /// Options of the job.
        #[command(flatten)]
        job: JobArgs,
    },
}

/// `status` and `config show`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `version`.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `jobs`.
#[derive(Debug, Args)]
pub(crate) struct Jobs {
    /// Include ended jobs
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only jobs in this state: waiting, running or ended
    #[arg(long, value_name = "STATE", value_parser = job_state, conflicts_with = "all")]
    pub(crate) state: Option<JobStateWord>,
    /// Only jobs of this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only jobs of this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Show at most N jobs, the newest [default: 100]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub(crate) limit: Option<usize>,
}

/// `job`.
#[derive(Debug, Args)]
pub(crate) struct Job {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

/// `job ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job
    Show {
        /// Job id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
    },
    /// Show what a job waits for, what that job waits for, and so on
    Why {
        /// Job id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
    },
    /// Wait until a job has ended; exits with the job's exit code
    Wait {
        /// Job id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
        /// Give up after TIME, with exit code 5; the job keeps running
        #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
        timeout: Option<Duration>,
    },
    /// Print a job's output, its stdout to stdout and its stderr to stderr
    Output {
        /// Job id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
        /// Follow the output until the job ends, then exit with its exit code
        #[arg(short, long)]
        follow: bool,
        /// Offset of the first byte, counted over both streams
        #[arg(
            long = "from",
            visible_alias = "offset",
            value_name = "BYTE",
            default_value_t = 0,
            value_parser = whole::<u64>,
            allow_hyphen_values = true
        )]
        offset: u64,
    },
}

/// `cancel`.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Job ids
    #[arg(value_name = "ID", required = true, value_parser = job_id, allow_hyphen_values = true)]
    pub(crate) ids: Vec<u64>,
}

/// `queue`.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    /// The subcommand; `None` is `status`.
    #[command(subcommand)]
    pub(crate) command: Option<QueueCommand>,
}

/// `queue ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Show how many jobs wait and run, and what is paused
    Status,
    /// Stop starting jobs; waiting jobs keep waiting
    Pause(QueueTarget),
    /// End a pause or a drain
    Resume(QueueTarget),
    /// Refuse new jobs and wait until all accepted jobs have ended
    Drain(QueueTarget),
}

/// Target of a pause, resume or drain.
#[derive(Debug, Args)]
pub(crate) struct QueueTarget {
    /// Only this machine [default: the whole queue]
    #[arg(value_name = "NAME")]
    pub(crate) machine: Option<String>,
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Print events until Ctrl-C; reconnects when orbd restarts
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_hyphen_values = true)]
    pub(crate) since: Option<u64>,
    /// orbd instance that assigned the number [default: the running one]
    #[arg(long, value_name = "INSTANCE", requires = "since")]
    pub(crate) instance: Option<String>,
    /// Only these: machines, jobs, cache, orbctl, or the name of an event
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kinds)]
    pub(crate) kinds: Vec<EventKinds>,
}

/// Event kinds that one value of `--kinds` selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventKinds(pub(crate) Vec<EventKind>);

/// `cache`.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    /// The subcommand; `None` is `status`.
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

/// `cache ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show the cached answers and their age
    Status,
    /// Invalidate cached answers, so that the next reads ask orbctl
    #[command(visible_alias = "clear")]
    Invalidate {
        /// Only answers about this machine [default: all answers]
        #[arg(value_name = "NAME")]
        machine: Option<String>,
    },
}

/// `metrics`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Metrics {
    /// The subcommand; `None` is `summary`.
    #[command(subcommand)]
    pub(crate) command: Option<MetricsCommand>,
    /// Options of `summary`, accepted without the subcommand too.
    #[command(flatten)]
    pub(crate) summary: MetricsSummary,
}

/// `metrics ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Show counts, errors, and percentiles of wait and run times
    Summary(MetricsSummary),
    /// Show recorded operations, newest first
    History(MetricsHistory),
    /// Export all recorded operations, oldest first
    Export(MetricsExport),
    /// Show counters since orbd started: cache hits, joins, refusals and others
    Counters,
}

/// `metrics summary`.
#[derive(Debug, Args, Default)]
pub(crate) struct MetricsSummary {
    /// Only the last TIME, e.g. 1h or 7d [default: all records]
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) window: Option<Duration>,
    /// One row per operation, machine, or both
    #[arg(long, value_name = "WHAT", value_parser = group_by)]
    pub(crate) by: Option<GroupBy>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
}

/// `metrics history`.
#[derive(Debug, Args)]
pub(crate) struct MetricsHistory {
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
    /// Show at most N records
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = whole::<usize>,
        allow_hyphen_values = true
    )]
    pub(crate) limit: usize,
    /// Continue after the previous page, which prints this cursor
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

/// `metrics export`.
#[derive(Debug, Args)]
pub(crate) struct MetricsExport {
    /// Export format
    #[arg(long, value_enum, default_value_t = ExportWord::JsonLines)]
    pub(crate) format: ExportWord,
    /// Write to FILE, which is replaced only once the export is complete [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Only operations that ended since TIME: a duration ago, e.g. 10m, or a time, e.g. 2026-11-30T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    pub(crate) since: Option<Since>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only clients with this name, e.g. pyinfra
    #[arg(long, value_name = "CLIENT")]
    pub(crate) client: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
}

/// Start of a time window that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// A duration before now.
    Ago(Duration),
    /// Unix time in milliseconds.
    At(u64),
}

/// Values of `metrics export --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportWord {
    /// One JSON object per line
    JsonLines,
    /// Comma-separated values with a header
    Csv,
    /// Prometheus text format: counters and percentiles; filters do not apply
    Prometheus,
}

impl From<ExportWord> for ExportFormat {
    fn from(word: ExportWord) -> Self {
        match word {
            ExportWord::JsonLines => Self::JsonLines,
            ExportWord::Csv => Self::Csv,
            ExportWord::Prometheus => Self::Prometheus,
        }
    }
}

/// `daemon`.
#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: DaemonCommand,
}

/// `daemon ...`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Start orbd and wait until it answers; does nothing if it is running
    Start {
        /// Fail if `autostart` or `ORBD_AUTOSTART` is off, as starting the daemon on demand does
        #[arg(long, hide = true)]
        on_demand: bool,
    },
    /// Stop orbd gracefully and wait until it has exited; running changes may finish
    Stop,
    /// Stop orbd and start it again
    Restart,
    /// Show orbd's version, its limits and the path of orbctl; exits with 3 if orbd is not running
    Status,
    /// Show the last lines of orbd's log file
    Logs(LogArgs),
    /// Reload orbd's configuration, and show which keys took effect and which need a restart
    Reload,
    /// Show orbd's own configuration (`orbd-ctl config` is OrbStack's)
    #[command(
        subcommand,
        after_help = "Examples:
  orbd-ctl daemon config path            path of the configuration file
  orbd-ctl daemon config show            every key, its value and source
  orbd-ctl daemon config check           exits with 1 if the file is invalid

To change a key, edit the file and run `orbd-ctl daemon reload`. A variable ORBD_<KEY> overrides the file. `orbd --sample-config` explains every key."
    )]
    Config(OwnConfigCommand),
}

/// `daemon logs` and `service logs`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LogArgs {
    /// Follow the log until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = whole::<usize>,
        allow_hyphen_values = true
    )]
    pub(crate) lines: usize,
}

/// `daemon config ...`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum OwnConfigCommand {
    /// Print the path of the configuration file, even if it does not exist
    Path,
    /// Show every key, its value, and the source of the value
    Show,
    /// Validate a configuration file; exits with 1 if it is invalid
    Check {
        /// File to check instead of the one that orbd reads
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// `service`.
#[derive(Debug, Args)]
pub(crate) struct ServiceVerb {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: ServiceCommand,
    /// Service manager [default: the system's own]
    #[arg(long, global = true, value_enum, hide = true)]
    pub(crate) manager: Option<ManagerName>,
}

/// `service ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write the service file and start orbd, now and at each login; updates an outdated file
    Install {
        /// Print the file and change nothing
        #[arg(long)]
        print: bool,
    },
    /// Stop orbd and remove the service file
    Uninstall,
    /// Start the service and wait until it answers
    Start,
    /// Stop the service gracefully; it stays stopped until the next login or use
    Stop,
    /// Stop the service gracefully and start it again
    Restart,
    /// Show whether the service is installed, loaded and running; exits with 3 if it is not running
    Status,
    /// Show the last lines of orbd's log file, as `daemon logs` does
    Logs(LogArgs),
}

/// `dropin`.
#[derive(Debug, Args)]
pub(crate) struct DropinVerb {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: DropinCommand,
    /// Directory of the links, which must come first on PATH [default: ~/.orbd/bin]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// `dropin ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DropinCommand {
    /// Link orbctl and orb to this program; never replaces a file that is not orbd's
    Install,
    /// Remove the links
    Uninstall,
    /// Show which orbctl and orb come first on PATH; exits with 1 if calls do not go through orbd
    Status,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell to complete for
    #[arg(value_enum)]
    pub(crate) shell: ShellName,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
}

fn job_state(text: &str) -> Result<JobStateWord, String> {
    match text {
        "waiting" => Ok(JobStateWord::Waiting),
        "running" => Ok(JobStateWord::Running),
        "ended" => Ok(JobStateWord::Ended),
        _ => Err("expected waiting, running or ended".into()),
    }
}

fn event_kinds(text: &str) -> Result<EventKinds, String> {
    use EventKind as K;
    let kinds = match text {
        "machines" => vec![
            K::MachinesKnown,
            K::MachineAppeared,
            K::MachineChanged,
            K::MachineGone,
            K::OrbstackChanged,
        ],
        "jobs" => vec![K::JobQueued, K::JobStarted, K::JobEnded],
        "cache" => vec![K::CacheInvalidated],
        "orbctl" => vec![K::OrbctlUnhealthy, K::OrbctlRecovered],
        // The names of the API.
        word => vec![serde_json::from_value(word.into()).map_err(|_| {
            "expected machines, jobs, cache, orbctl, or the name of an event, e.g. machine_gone".to_owned()
        })?],
    };
    Ok(EventKinds(kinds))
}

fn group_by(text: &str) -> Result<GroupBy, String> {
    match text {
        "operation" => Ok(GroupBy::Operation),
        "machine" => Ok(GroupBy::Machine),
        "both" => Ok(GroupBy::Both),
        _ => Err("expected operation, machine or both".into()),
    }
}

fn outcome(text: &str) -> Result<String, String> {
    match text {
        "succeeded" | "failed" | "cancelled" | "expired" | "interrupted" | "unknown" => Ok(text.to_owned()),
        _ => Err("expected succeeded, failed, cancelled, expired, interrupted or unknown".into()),
    }
}

/// Parses a whole number. The standard library's error messages name Rust types, so they are replaced.
fn whole<N: FromStr<Err = ParseIntError>>(text: &str) -> Result<N, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "number too large".into(),
        _ => "expected a whole number, 0 or greater".into(),
    })
}

/// Parses a job id.
fn job_id(text: &str) -> Result<u64, String> {
    whole(text).map_err(|_| "expected a job id, a number; `orbd-ctl jobs --all` lists them".into())
}

/// Parses a duration ago or an RFC 3339 time.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .map(Since::At)
        .ok_or_else(|| {
            "expected a duration, e.g. 10m, or a time with a zone, e.g. 2026-11-30T08:00:00Z".into()
        })
}

/// Parses a duration such as `500ms`, `30s`, `5m`, `1h30m` or `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "expected a number with ms, s, m, h or d, e.g. 500ms, 30s or 1h30m";
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(SHAPE)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: u64 = number.parse().map_err(|_| SHAPE)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(SHAPE.into()),
        };
        let part = number.checked_mul(unit_ms).ok_or("duration too long")?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or("duration too long")?;
        rest = tail;
    }
    if text.is_empty() {
        Err(SHAPE.into())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    fn parse(line: &str) -> Cli {
        read(line).expect(line)
    }

    fn refused(line: &str) -> String {
        let error = read(line).map(|_| ()).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn clap_accepts_the_command_definitions() {
        Cli::command().debug_assert();
    }

    /// Help must fit in 80 columns. clap wraps prose; lines in columns, which clap does not wrap, must be short enough.
    #[test]
    fn every_verb_has_examples_that_fit_in_80_columns() {
        fn check(command: &clap::Command, depth: usize) {
            let name = command.get_name();
            let texts = [command.get_after_help(), command.get_after_long_help()];
            let texts: Vec<String> = texts.into_iter().flatten().map(ToString::to_string).collect();
            for line in texts.iter().flat_map(|text| text.lines()) {
                let laid_out = line.starts_with("  ") && !line.starts_with("  `");
                assert!(!laid_out || line.chars().count() <= 80, "{name}: {line}");
            }
            if depth == 1 && !command.is_hide_set() && name != "help" {
                assert!(texts.iter().any(|text| text.contains("Examples:\n")), "{name}");
            }
            for verb in command.get_subcommands() {
                check(verb, depth + 1);
            }
        }
        let mut grammar = Cli::command();
        grammar.build();
        check(&grammar, 0);
    }

    #[test]
    fn building_one_verb_gives_the_same_result_as_building_all() {
        let mut verbs = 0;
        for verb in Cli::command().get_subcommands() {
            for name in std::iter::once(verb.get_name()).chain(verb.get_visible_aliases()) {
                for rest in [
                    "-h",
                    "--help",
                    "--version",
                    "--nope",
                    "--json=x",
                    "x --nope y z",
                    "help",
                    "config",
                ] {
                    let line = format!("orbd-ctl {name} {rest}");
                    let alone = read(&line).map_err(|error| error.to_string());
                    let among = Cli::try_parse_from(line.split(' ')).map_err(unknown_option);
                    let among = among.map_err(|error| error.to_string());
                    assert_eq!(format!("{alone:?}"), format!("{among:?}"), "{line}");
                }
                verbs += 1;
            }
        }
        assert!(verbs > 28, "{verbs}");
    }

    #[test]
    fn run_passes_everything_after_the_command_name_to_the_command() {
        let check = |line: &str, machine: Option<&str>, json: bool, command: &[&str]| {
            let cli = parse(line);
            let Command::Run(run) = cli.command else {
                panic!("{line}")
            };
            assert_eq!(run.machine.as_deref(), machine, "{line}");
            assert_eq!(cli.global.json, json, "{line}");
            assert_eq!(run.command, command, "{line}");
        };
        check("orbd-ctl run ls -la", None, false, &["ls", "-la"]);
        check(
            "orbd-ctl run -m web ls --json -m x",
            Some("web"),
            false,
            &["ls", "--json", "-m", "x"],
        );
        check("orbd-ctl run --json -m web ls", Some("web"), true, &["ls"]);
        check(
            "orbd-ctl run -m web -- ls --help",
            Some("web"),
            false,
            &["ls", "--help"],
        );
        check(
            "orbd-ctl run git log -- a.txt",
            None,
            false,
            &["git", "log", "--", "a.txt"],
        );
        check("orbd-ctl run -u root -w /srv id", None, false, &["id"]);
    }

    #[test]
    fn run_without_a_command_and_unknown_verbs_are_usage_errors() {
        assert!(refused("orbd-ctl run -m web").contains("COMMAND"));
        assert!(refused("orbd-ctl frobnicate").contains("frobnicate"));
    }

    #[test]
    fn stop_without_a_target_is_refused() {
        assert!(refused("orbd-ctl stop").contains("--orbstack"));
        refused("orbd-ctl stop web --all");
        let Command::Stop(stop) = parse("orbd-ctl stop -f a b").command else {
            panic!("stop")
        };
        assert_eq!((stop.machines.len(), stop.force, stop.all), (2, true, false));
        assert!(
            matches!(parse("orbd-ctl start").command, Command::Start(start) if start.machines.is_empty())
        );
    }

    #[test]
    fn global_options_go_before_and_after_the_verb() {
        assert!(parse("orbd-ctl --json list").global.json);
        assert!(parse("orbd-ctl list --json").global.json);
        assert!(parse("orbd-ctl metrics history --json -n 3").global.json);
    }

    #[test]
    fn metrics_without_a_subcommand_is_summary() {
        let Command::Metrics(metrics) = parse("orbd-ctl metrics --window 1h --by both").command else {
            panic!("metrics")
        };
        assert!(metrics.command.is_none());
        assert_eq!(metrics.summary.window, Some(Duration::from_secs(3600)));
        assert_eq!(metrics.summary.by, Some(GroupBy::Both));
    }

    #[test]
    fn since_is_a_duration_ago_or_a_time_with_a_zone() {
        assert_eq!(since("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(Since::At(1000)));
        assert_eq!(since("1970-01-01T02:00:01+02:00"), Ok(Since::At(1000)));
        for text in [
            "",
            "yesterday",
            "-5m",
            "2026-11-30",
            "2026-11-30T08:00:00",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(since(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_are_numbers_with_units() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(millis), expected, "{text:?}");
        };
        check("0", Some(0));
        check("30", Some(30_000));
        check("500ms", Some(500));
        check("1h30m", Some(5_400_000));
        check("7d", Some(604_800_000));
        check("", None);
        check("s", None);
        check("5x", None);
        check("-1s", None);
        check("1.5s", None);
        check("99999999999999999999s", None);
        check("18446744073709551615d", None);
    }
}
