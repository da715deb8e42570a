//! The grammar of the command line: what can be typed, and the help that teaches it.
//!
//! Words become types here and nowhere else. The verbs and flags mirror `orbctl`'s where it has them; what is ours alone
//! (`--detach`, `--timeout`, `jobs`, `cancel` and so on) has no namesake there.

use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::completions::ShellName;
use crate::service::ManagerName;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use orbd::rpc::export::ExportFormat;
use orbd::rpc::types::{EventKind, GroupBy, JobStateWord};

/// Drives OrbStack's machines through orbd, which queues, joins, caches and records every orbctl call
#[derive(Debug, Parser)]
#[command(
    name = "orbd-ctl",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = WIDTH_MAX,
    after_help = "Examples:
  orbd-ctl list                          the machines, from memory while fresh
  orbd-ctl create ubuntu:noble web       make a machine and boot it
  orbd-ctl run -m web uname -a           a command, with its own exit code
  orbd-ctl jobs                          what waits and runs, and for what
  orbd-ctl list --json                   the same for programs

`orbd-ctl help COMMAND` has examples for each command; `orbd-ctl --help` also lists exit codes \
and environment.",
    after_long_help = AFTER_LONG_HELP
)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Widest help, in columns.
const WIDTH_MAX: usize = 100;

impl Cli {
    /// Reads the command line.
    ///
    /// Where it begins with a verb, as nearly always, no other verb is built: that was a quarter of all instructions of a
    /// `list`. What is said of mistakes and with `--help` is then the verb's own anyway.
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

    /// `--format json`, which `orbctl` has on some verbs, is our `--json`.
    fn settled(mut self) -> Self {
        if let Command::List(List { form, .. }) | Command::Info(Info { form, .. }) = &self.command {
            self.global.json |= form.format == Some(Format::Json);
        }
        self
    }
}

/// Says of an unknown option which one is like it, in one line.
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
  orbd-ctl list                          the machines, from memory while fresh
  orbd-ctl create ubuntu:noble web       make a machine and boot it
  orbd-ctl run -m web uname -a           a command, with its own exit code
  tar c . | orbd-ctl run -m web tar xC /srv
  orbd-ctl start --detach web            answer at once with the job's id
  orbd-ctl jobs                          what waits and runs, and for what
  orbd-ctl cancel 12                     end a job, or keep it from starting
  orbd-ctl metrics --window 1h           how long calls waited and ran
  orbd-ctl list --json | jq -r '.machines[].name'

Exit codes:
    0  done
    1  it was tried and failed (`status`: OrbStack is not running)
    2  the command line, or a value in it, is wrong
    3  orbd cannot be reached, or speaks another protocol
    4  what was named does not exist, exists already, or is in the wrong state
    5  the queue refused it, orbctl is sick, or a time limit passed
    6  the job was cancelled by somebody else, or orbd died under it
    7  a change was cut short and may have taken effect: look first
  130  interrupted by Ctrl-C
  141  whoever read our output went away
  `run`, `job output --follow` and `job wait` pass on the command's own exit code. `run` says 124 when \
`--timeout` passed and 125 when the command could not be run, or ended well and some of its output was \
lost. `push`, `pull`, `export` and `import` pass on orbctl's.

Environment:
  ORBD_SOCKET     socket of the daemon; ~/.orbd/orbd.sock where unset
  ORBD_AUTOSTART  0 = do not start the daemon on demand
  NO_COLOR        not empty = no colours

With --json every command writes one JSON object a line to stdout, in the shapes of proto/openrpc.json; a \
failure is {\"error\": {\"code\", \"message\", \"data\"}}. Messages for people always go to stderr.";

/// What every command takes.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Options everywhere")]
pub(crate) struct Global {
    /// Answer as JSON, one object a line, in the shapes of the API
    #[arg(long, global = true)]
    pub(crate) json: bool,
    // Its help is an attribute: rustdoc's marks would show on a terminal.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "Socket of the daemon [default: $ORBD_SOCKET, else ~/.orbd/orbd.sock]"
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Fail instead of starting the daemon when it does not run
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

/// What every command that makes a job takes.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct JobArgs {
    /// Answer at once with the job's id; the job goes on without you
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give up when it has not started after TIME, as in 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
    /// End it when it has run for TIME
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
}

/// What every command takes that runs the real `orbctl` here, in a place of the queue. It ends with us, so none is detached.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct LeaseArgs {
    /// Give up when it has not started after TIME, as in 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
    /// End it when it has run for TIME
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
}

/// How answers look, as `orbctl` says it.
#[derive(Debug, Args, Default)]
pub(crate) struct FormatArgs {
    /// Form of the answer; json is the same as --json
    #[arg(short, long, value_name = "FORM", value_enum)]
    pub(crate) format: Option<Format>,
}

/// A form, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// How old an answer may be.
#[derive(Debug, Args, Default)]
pub(crate) struct AgeArgs {
    /// Oldest answer to accept, as in 500ms or 10s; 0 asks orbctl now
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) max_age: Option<Duration>,
}

impl AgeArgs {
    /// Returns it as the wire has it.
    pub(crate) fn max_age_ms(&self) -> Option<u64> {
        self.max_age.map(millis)
    }
}

/// Returns a duration as the wire has it.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Makes the verbs: for each its help, what it takes, its name, other names and examples.
///
/// By hand instead of by `derive(Subcommand)`, because that builds the arguments of every verb at every start, which took
/// longer than all else that `list` does; here only those of the verb that was typed are built.
macro_rules! verbs {
    ($(#[doc = $about:literal] $variant:ident($args:ident) $name:literal [$($alias:literal),*] $examples:literal;)*) => {
        /// Every verb.
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
            /// Builds the verb with this name.
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
                            // Said again, because the arguments bring a description of their own.
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
  orbd-ctl list --running --quiet        names only, one a line
  orbd-ctl list --max-age 0              ask orbctl now instead of memory";
    /// Show one machine with its addresses and size
    Info(Info) "info" [] "Examples:
  orbd-ctl info web
  orbd-ctl info web --json | jq -r .ip4";
    /// Make a machine and boot it
    Create(Create) "create" ["add", "new"] "Examples:
  orbd-ctl create ubuntu                 the newest Ubuntu, named ubuntu
  orbd-ctl create debian:bookworm db --cpus 2 --memory 4G
  orbd-ctl create ubuntu:noble box --isolated --mount /Users/me/src:/src
  orbd-ctl create ubuntu:noble web --user-data cloud-init.yaml";
    /// Boot machines; without a name, start OrbStack itself
    Start(Start) "start" [] "Examples:
  orbd-ctl start web db                  both at once
  orbd-ctl start --all
  orbd-ctl start --detach web            prints the job's id and returns";
    /// Shut machines down
    Stop(Stop) "stop" [] "Examples:
  orbd-ctl stop web
  orbd-ctl stop --force web              end what runs there, do not wait
  orbd-ctl stop --all                    every machine
  orbd-ctl stop --orbstack               OrbStack itself";
    /// Shut machines down and boot them
    Restart(Names) "restart" [] "Examples:
  orbd-ctl restart web db";
    /// Destroy machines with everything on them
    Delete(Delete) "delete" ["rm"] "Examples:
  orbd-ctl delete scratch                asks first on a terminal
  orbd-ctl delete --yes one two          waits its turn like every change";
    /// Give a machine another name
    Rename(Rename) "rename" [] "Examples:
  orbd-ctl rename web web-old";
    /// Copy a machine; the copy is stopped
    Clone(CloneMachine) "clone" [] "Examples:
  orbd-ctl clone web web-2 && orbd-ctl start web-2";
    /// Show, set or clear the default machine
    Default(DefaultMachine) "default" [] "Examples:
  orbd-ctl default                       prints its name
  orbd-ctl default web
  orbd-ctl default none                  clears it";
    /// Run a command in a machine
    Run(Run) "run" [] "Works as `orbctl run`: the command starts in the directory that corresponds to ours, and on a terminal it has the \
terminal. Elsewhere output streams as it comes, byte for byte, and input is passed on when it is a pipe or a file. The exit code is the \
command's. Options for orbd-ctl come before the command; from its first word on everything is the command's.

Examples:
  orbd-ctl run uname -a                          in the default machine
  orbd-ctl run -m web -u root -w /srv ls -la
  orbd-ctl run -m web -s 'cd app && make'        through the login shell
  orbd-ctl run -m web sh -c 'echo $HOME; exit 3' exits with 3
  gzip -dc dump.gz | orbd-ctl run -m db psql     input from a pipe
  orbd-ctl run -m web -e MODE=test --timeout 5m make check
  orbd-ctl run -m web --detach make world        prints the job's id";
    /// Open a shell in a machine
    Shell(Shell) "shell" ["sh"] "The real orbctl runs here, with your terminal, directory and environment; orbd records it and starts it when \
no change of the machine runs. It is in nobody's way: a machine may be stopped while a shell is open in it.

Examples:
  orbd-ctl shell                                 in the default machine
  orbd-ctl shell web
  orbd-ctl shell web -u root
  orbd-ctl run -m web htop                       a command instead of a shell";
    /// Copy files of the Mac into a machine
    Push(Transfer) "push" [] "Examples:
  orbd-ctl push -m web site.tar.gz               into the guest user's home
  orbd-ctl push -m web a.conf b.conf /tmp/";
    /// Copy files out of a machine to the Mac
    Pull(Transfer) "pull" [] "Examples:
  orbd-ctl pull -m web /var/log/syslog
  orbd-ctl pull -m web notes.txt report.txt ./out/";
    /// Write a machine to an archive
    Export(Export) "export" [] "Examples:
  orbd-ctl export web web.tar.zst";
    /// Make a machine of an archive
    Import(Import) "import" [] "Examples:
  orbd-ctl import -n web-copy web.tar.zst";
    /// Show a machine's log
    Logs(Logs) "logs" [] "Examples:
  orbd-ctl logs web
  orbd-ctl logs --all web | tail -50
  orbd-ctl logs --follow web             until Ctrl-C";
    /// Show how to reach machines over SSH
    Ssh(Nothing) "ssh" [] "Examples:
  orbd-ctl ssh";
    /// Show and change OrbStack's configuration
    Config(Config) "config" [] "Examples:
  orbd-ctl config show
  orbd-ctl config get machine.web.username
  orbd-ctl config set memory_mib 8192";
    /// Say whether OrbStack runs, without waking it; exits with 1 when it does not
    Status(Status) "status" [] "Examples:
  orbd-ctl status
  orbd-ctl status --max-age 0 && echo it runs";
    /// Show the versions of orbctl, orbd and orbd-ctl
    Version(Version) "version" [] "Examples:
  orbd-ctl version
  orbd-ctl version --max-age 0           ask orbctl now";
    /// List jobs that wait or run, and what they wait for
    Jobs(Jobs) "jobs" ["ps"] "Examples:
  orbd-ctl jobs
  orbd-ctl jobs --all -n 20              the ended ones too
  orbd-ctl jobs --state waiting -m web";
    /// Show one job, why it waits, wait for it, or read what it wrote
    Job(Job) "job" [] "Examples:
  orbd-ctl job show 12
  orbd-ctl job why 12                    what is in its way, and in that one's
  orbd-ctl job wait 12 --timeout 30s
  orbd-ctl job output --follow 12        from its first byte until it ends";
    /// Cancel jobs: a waiting one never starts, a running one is stopped
    Cancel(Cancel) "cancel" [] "Examples:
  orbd-ctl cancel 12 13";
    /// Show, pause, resume or drain the queue
    Queue(Queue) "queue" [] "Examples:
  orbd-ctl queue
  orbd-ctl queue pause web               nothing more starts on web
  orbd-ctl queue resume web
  orbd-ctl queue drain                   refuse new work, return when done";
    /// Show what happens to machines, jobs and orbctl
    Events(Events) "events" [] "Examples:
  orbd-ctl events                        everything as it is
  orbd-ctl events --follow --kinds machines,job_ended
  orbd-ctl events --since 41             what came after event 41";
    /// Show or forget what orbd remembers
    Cache(Cache) "cache" [] "Examples:
  orbd-ctl cache
  orbd-ctl cache invalidate              the next reads ask orbctl";
    /// Show how long calls waited and ran
    Metrics(Metrics) "metrics" [] "Examples:
  orbd-ctl metrics --window 1h --by machine
  orbd-ctl metrics history --outcome failed
  orbd-ctl metrics export --since 1d --format csv -o orbd.csv
  orbd-ctl metrics counters";
    /// Start, stop and inspect orbd itself
    Daemon(Daemon) "daemon" [] "Examples:
  orbd-ctl daemon start                  does nothing when it runs already
  orbd-ctl daemon status                 exits with 3 when it does not run
  orbd-ctl daemon restart                does not wait as an upgrade does
  orbd-ctl daemon config show            every key, and what set it
  orbd-ctl daemon reload                 after the file was changed by hand
  orbd-ctl daemon logs --follow          what orbd does, as it does it";
    /// Keep orbd running as a service: launchd on a Mac, systemd on Linux
    Service(ServiceVerb) "service" [] "Examples:
  orbd-ctl service install               now and at each login
  orbd-ctl service install --print       show the file, and do nothing
  orbd-ctl service status
  orbd-ctl service logs --follow";
    /// Put orbd before the real orbctl, for every program that calls it by name
    Dropin(DropinVerb) "dropin" [] "Examples:
  orbd-ctl dropin install                orbctl and orb in ~/.orbd/bin
  orbd-ctl dropin status                 what is called, and what is behind it
  orbd-ctl dropin uninstall";
    /// Find what is wrong with orbd, orbctl or OrbStack, and say what mends it; exits with 1 when something is
    Doctor(Nothing) "doctor" [] "Examples:
  orbd-ctl doctor
  orbd-ctl doctor --json | jq -r '.checks[] | select(.status == \"error\") | .fix'";
    /// Print the completions of a shell, names of machines and ids of jobs among them
    Completions(Completions) "completions" ["completion"] "Examples:
  echo 'source <(orbd-ctl completions bash)' >> ~/.bashrc
  orbd-ctl completions zsh > \"${fpath[1]}/_orbd-ctl\"
  orbd-ctl completions fish > ~/.config/fish/completions/orbd-ctl.fish";
    /// Print the manual page, or write those of all commands
    Man(Man) "man" [] "Examples:
  orbd-ctl man | man -l -
  orbd-ctl man --to /usr/local/share/man/man1";
}

/// A verb that takes nothing.
#[derive(Debug, Args)]
pub(crate) struct Nothing {}

/// `list`.
#[derive(Debug, Args, Default)]
pub(crate) struct List {
    /// Names only, one a line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only machines that run
    #[arg(short, long)]
    pub(crate) running: bool,
    /// How it looks.
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// How old it may be.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// How it looks.
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// How old it may be.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `create`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch on the command line"
)]
pub(crate) struct Create {
    /// Distribution and version, as in ubuntu or ubuntu:noble
    #[arg(value_name = "DISTRO[:VERSION]")]
    pub(crate) image: String,
    /// Name of the new machine [default: the distribution's]
    pub(crate) name: Option<String>,
    /// arm64 or amd64 [default: the Mac's]
    #[arg(short, long)]
    pub(crate) arch: Option<String>,
    /// Default user [default: the Mac user's name]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Ask for the default user's password; the real orbctl does, on this terminal
    #[arg(short = 'p', long, conflicts_with = "detach")]
    pub(crate) set_password: bool,
    /// Processor limit (OrbStack 2.2)
    #[arg(long, value_name = "N", value_parser = whole::<u32>, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory limit, as in 4G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Disk limit, as in 40G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) disk: Option<String>,
    /// No access to the Mac (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolated: bool,
    /// No access to the Mac's network (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolate_network: bool,
    /// Shared folder of an isolated machine; may be repeated (OrbStack 2.1)
    #[arg(long = "mount", value_name = "SRC[:DEST]")]
    pub(crate) mounts: Vec<String>,
    /// Forward the Mac's SSH agent (OrbStack 2.1)
    #[arg(long)]
    pub(crate) forward_ssh_agent: bool,
    /// Cloud-init user data; the real orbctl reads it, from here
    #[arg(short = 'c', long, value_name = "FILE", conflicts_with = "detach")]
    pub(crate) user_data: Option<PathBuf>,
    /// What every job has.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Names or ids; none for OrbStack itself
    #[arg(value_name = "NAME", conflicts_with = "all")]
    pub(crate) machines: Vec<String>,
    /// Every machine
    #[arg(long)]
    pub(crate) all: bool,
    /// For OrbStack itself: end what runs and cancel what waits, instead of queueing behind it
    #[arg(short, long, conflicts_with_all = ["machines", "all"])]
    pub(crate) force: bool,
    /// What every job has.
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
    /// Every machine
    #[arg(long)]
    pub(crate) all: bool,
    /// OrbStack itself and with it every machine
    #[arg(long)]
    pub(crate) orbstack: bool,
    /// End what runs there and cancel what waits, instead of queueing behind it
    #[arg(short, long)]
    pub(crate) force: bool,
    /// What every job has.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `restart`.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) machines: Vec<String>,
    /// What every job has.
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
    /// What every job has.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `rename`.
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Name or id now
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Name then
    #[arg(value_name = "NEW")]
    pub(crate) new_name: String,
    /// What every job has.
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
    /// What every job has.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `default`.
#[derive(Debug, Args)]
pub(crate) struct DefaultMachine {
    /// New default; `none` clears it; prints it where absent
    #[arg(value_name = "NAME|none")]
    pub(crate) machine: Option<String>,
    /// How old it may be.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
    /// What every job has.
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `run`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch on the command line"
)]
pub(crate) struct Run {
    /// Name or id [default: the default machine]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Guest user [default: the machine's]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Guest directory [default: the one that corresponds to ours, where the machine has it, else the guest user's home]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Set KEY, or take it from our own environment; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Give the command no input: for use inside a loop that reads its own
    #[arg(short, long)]
    pub(crate) no_input: bool,
    /// Pass on what is typed, even if the output is not on the terminal
    #[arg(short, long, conflicts_with_all = ["no_input", "detach"])]
    pub(crate) interactive: bool,
    /// Give the command our terminal, as `shell` does [default: where input and output are a terminal]
    #[arg(short, long, visible_alias = "tty", conflicts_with_all = ["no_input", "detach", "timeout"])]
    pub(crate) terminal: bool,
    /// Never give the command our terminal
    #[arg(long, conflicts_with = "terminal")]
    pub(crate) no_terminal: bool,
    /// Run it in the guest user's login shell; the real orbctl does, from here
    #[arg(short = 's', long = "shell", conflicts_with_all = ["no_input", "detach"])]
    pub(crate) login_shell: bool,
    /// Translate paths of the Mac in its arguments; the real orbctl does, from here
    #[arg(short = 'p', long = "path", conflicts_with_all = ["no_input", "detach"])]
    pub(crate) translate_paths: bool,
    /// What every job has.
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
    /// The same, as orbctl has it
    #[arg(
        short = 'm',
        long = "machine",
        value_name = "NAME",
        conflicts_with = "machine"
    )]
    pub(crate) named_machine: Option<String>,
    /// Guest user [default: the machine's]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Guest directory [default: the one that corresponds to ours]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Give up when it has not started after TIME, as in 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
}

/// `push` and `pull`.
#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Name or id [default: the default machine]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// What to copy, and last where to
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Its limits.
    #[command(flatten)]
    pub(crate) limits: LeaseArgs,
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Archive to write, as in web.tar.zst
    pub(crate) file: PathBuf,
    /// Its limits.
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
    /// Its limits.
    #[command(flatten)]
    pub(crate) limits: LeaseArgs,
}

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Everything that is kept
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Go on as it grows; the real orbctl does it, from here
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `config`.
#[derive(Debug, Args)]
pub(crate) struct Config {
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every key
    Show(Status),
    /// Show one key; exits with 4 when it is not set
    Get {
        /// Key, as in machine.web.username
        key: String,
        /// How old it may be.
        #[command(flatten)]
        age: AgeArgs,
    },
    /// Set one key
    Set {
        /// Key, as in machine.web.username
        key: String,
        /// Value
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// What every job has.
        #[command(flatten)]
        job: JobArgs,
    },
    /// Of orbd's own configuration alone.
    #[command(hide = true)]
    Path,
    /// Of orbd's own configuration alone.
    #[command(hide = true)]
    Check,
    /// Put everything back to its defaults
    Reset {
        /// What every job has.
        #[command(flatten)]
        job: JobArgs,
    },
}

/// `status` and `config show`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// How old it may be.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `version`.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// How old it may be.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// `jobs`.
#[derive(Debug, Args)]
pub(crate) struct Jobs {
    /// The ended ones too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only jobs in this state: waiting, running or ended
    #[arg(long, value_name = "STATE", value_parser = job_state, conflicts_with = "all")]
    pub(crate) state: Option<JobStateWord>,
    /// Only jobs about this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only jobs with this verb
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// At most so many, the newest [default: 100]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub(crate) limit: Option<usize>,
}

/// `job`.
#[derive(Debug, Args)]
pub(crate) struct Job {
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

/// `job ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show one job
    Show {
        /// The job's id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
    },
    /// Say what a job waits for, what that waits for, and so on
    Why {
        /// The job's id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
    },
    /// Wait for a job's end; exits as the job ended
    Wait {
        /// The job's id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
        /// Give up after TIME, with exit code 5; the job goes on
        #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
        timeout: Option<Duration>,
    },
    /// Write what a job wrote, each stream to its own
    Output {
        /// The job's id
        #[arg(value_parser = job_id, allow_hyphen_values = true)]
        id: u64,
        /// Go on until the job ends, then exit as it did
        #[arg(short, long)]
        follow: bool,
        /// First byte wanted, counted over both streams
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
    /// Ids of the jobs
    #[arg(value_name = "ID", required = true, value_parser = job_id, allow_hyphen_values = true)]
    pub(crate) ids: Vec<u64>,
}

/// `queue`.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    /// What to do with it; shows it where absent.
    #[command(subcommand)]
    pub(crate) command: Option<QueueCommand>,
}

/// `queue ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Show how much waits and runs, and what is paused
    Status,
    /// Start nothing more; what waits stays waiting
    Pause(QueueTarget),
    /// End a pause or a drain
    Resume(QueueTarget),
    /// Refuse new work and wait until everything accepted has ended
    Drain(QueueTarget),
}

/// What a pause, resume or drain is about.
#[derive(Debug, Args)]
pub(crate) struct QueueTarget {
    /// Only this machine [default: the whole queue]
    #[arg(value_name = "NAME")]
    pub(crate) machine: Option<String>,
}

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on telling, also over a restart of orbd, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what came after the event with this number
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_hyphen_values = true)]
    pub(crate) since: Option<u64>,
    /// Instance of orbd that gave this number; the one that runs where absent
    #[arg(long, value_name = "INSTANCE", requires = "since")]
    pub(crate) instance: Option<String>,
    /// Only these: machines, jobs, cache, orbctl, or one event's own name
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kinds)]
    pub(crate) kinds: Vec<EventKinds>,
}

/// Events that one word stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventKinds(pub(crate) Vec<EventKind>);

/// `cache`.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    /// What to do with it; shows it where absent.
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

/// `cache ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show what is remembered and how old it is
    Status,
    /// Forget it, so that the next reads ask orbctl
    #[command(visible_alias = "clear")]
    Invalidate {
        /// Only what is known of this machine [default: everything]
        #[arg(value_name = "NAME")]
        machine: Option<String>,
    },
}

/// `metrics`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Metrics {
    /// Which; the summary where absent.
    #[command(subcommand)]
    pub(crate) command: Option<MetricsCommand>,
    /// The summary's own.
    #[command(flatten)]
    pub(crate) summary: MetricsSummary,
}

/// `metrics ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Counts, errors and percentiles of waiting and running
    Summary(MetricsSummary),
    /// Recorded operations, newest first
    History(MetricsHistory),
    /// Write every recorded operation, oldest first, for other programs
    Export(MetricsExport),
    /// Cache hits, joins, refusals and the like since the daemon's start
    Counters,
}

/// `metrics summary`.
#[derive(Debug, Args, Default)]
pub(crate) struct MetricsSummary {
    /// Only the last TIME, as in 1h or 7d [default: everything kept]
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) window: Option<Duration>,
    /// A row for each operation, machine, or both
    #[arg(long, value_name = "WHAT", value_parser = group_by)]
    pub(crate) by: Option<GroupBy>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this verb
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
}

/// `metrics history`.
#[derive(Debug, Args)]
pub(crate) struct MetricsHistory {
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this verb
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
    /// At most so many
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = whole::<usize>,
        allow_hyphen_values = true
    )]
    pub(crate) limit: usize,
    /// Go on where the answer before ended
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

/// `metrics export`.
#[derive(Debug, Args)]
pub(crate) struct MetricsExport {
    /// Form
    #[arg(long, value_enum, default_value_t = ExportWord::JsonLines)]
    pub(crate) format: ExportWord,
    /// Write to FILE, which is replaced only when the export is complete [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Only operations that ended since then: a duration ago, as in 10m, or a time, as in 2026-11-30T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    pub(crate) since: Option<Since>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only clients of this name, as in pyinfra
    #[arg(long, value_name = "CLIENT")]
    pub(crate) client: Option<String>,
    /// Only this verb
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
}

/// The beginning of a stretch of time that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long ago.
    Ago(Duration),
    /// Milliseconds since 1970.
    At(u64),
}

/// Form of an export, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportWord {
    /// One JSON object a line
    JsonLines,
    /// Comma-separated values with a header
    Csv,
    /// Prometheus' text format: counters and percentiles, which no filter selects
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
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) command: DaemonCommand,
}

/// `daemon ...`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Start orbd and wait until it answers; does nothing when it runs
    Start {
        /// Not where the configuration or the environment keeps clients from starting it: nobody asked for it by name
        #[arg(long, hide = true)]
        on_demand: bool,
    },
    /// Stop orbd in order and wait until it is gone: changes that run are left to finish
    Stop,
    /// Stop orbd and start it again
    Restart,
    /// Show version, limits and where orbctl is; exits with 3 when orbd does not run
    Status,
    /// Show the last lines of orbd's own log, as the file has them
    Logs(LogArgs),
    /// Make orbd read its configuration again, and show what is in force and what needs a restart
    Reload,
    /// Show orbd's own configuration (`orbd-ctl config` is OrbStack's)
    #[command(
        subcommand,
        after_help = "Examples:
  orbd-ctl daemon config path            where the file is, or would be
  orbd-ctl daemon config show            every key, and what set it
  orbd-ctl daemon config check           exits with 1 when it is wrong

To change a key, edit the file and run `orbd-ctl daemon reload`. A variable ORBD_<KEY> goes before the file. `orbd --sample-config` explains every key."
    )]
    Config(OwnConfigCommand),
}

/// `daemon logs` and `service logs`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LogArgs {
    /// Go on with what is written from now on, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many lines
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
    /// Show where the file is, or would be
    Path,
    /// Show every key, its value, and where that comes from
    Show,
    /// Say whether a file is in order; exits with 1 when it is not
    Check {
        /// File to look at instead of the one that orbd reads
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// `service`.
#[derive(Debug, Args)]
pub(crate) struct ServiceVerb {
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) command: ServiceCommand,
    /// Which manager to talk to [default: the system's own]
    #[arg(long, global = true, value_enum, hide = true)]
    pub(crate) manager: Option<ManagerName>,
}

/// `service ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write the service's file and start orbd, now and at each login; brings an old file up to date
    Install {
        /// Print the file instead, and do nothing
        #[arg(long)]
        print: bool,
    },
    /// Stop orbd and take the service's file away
    Uninstall,
    /// Start the service and wait until it answers
    Start,
    /// Stop the service in order; it stays stopped until the next login or use
    Stop,
    /// Stop the service in order and start it again
    Restart,
    /// Show whether it is installed, loaded and running; exits with 3 when it does not run
    Status,
    /// Show the last lines of orbd's own log, as `daemon logs` does
    Logs(LogArgs),
}

/// `dropin`.
#[derive(Debug, Args)]
pub(crate) struct DropinVerb {
    /// What to do with it.
    #[command(subcommand)]
    pub(crate) command: DropinCommand,
    /// Folder of the links, which has to come first on PATH [default: ~/.orbd/bin]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// `dropin ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DropinCommand {
    /// Link orbctl and orb to this program; a file that is not orbd's is never replaced
    Install,
    /// Take the links away
    Uninstall,
    /// Show what orbctl and orb are on PATH; exits with 1 when calls do not come through orbd
    Status,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: ShellName,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
}

fn job_state(text: &str) -> Result<JobStateWord, String> {
    match text {
        "waiting" => Ok(JobStateWord::Waiting),
        "running" => Ok(JobStateWord::Running),
        "ended" => Ok(JobStateWord::Ended),
        _ => Err("waiting, running or ended".into()),
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
        // The wire's own words.
        word => vec![serde_json::from_value(word.into()).map_err(|_| {
            "machines, jobs, cache, orbctl, or the name of an event as in machine_gone".to_owned()
        })?],
    };
    Ok(EventKinds(kinds))
}

fn group_by(text: &str) -> Result<GroupBy, String> {
    match text {
        "operation" => Ok(GroupBy::Operation),
        "machine" => Ok(GroupBy::Machine),
        "both" => Ok(GroupBy::Both),
        _ => Err("operation, machine or both".into()),
    }
}

fn outcome(text: &str) -> Result<String, String> {
    match text {
        "succeeded" | "failed" | "cancelled" | "expired" | "interrupted" | "unknown" => Ok(text.to_owned()),
        _ => Err("succeeded, failed, cancelled, expired, interrupted or unknown".into()),
    }
}

/// Reads a whole number. The standard library's own words are about its types.
fn whole<N: FromStr<Err = ParseIntError>>(text: &str) -> Result<N, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "it is too large".into(),
        _ => "a whole number, from 0 on".into(),
    })
}

/// Reads the id of a job.
fn job_id(text: &str) -> Result<u64, String> {
    whole(text).map_err(|_| "the id of a job is a number, as in 12; `orbd-ctl jobs --all` lists them".into())
}

/// Reads a duration ago or an RFC 3339 time.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .map(Since::At)
        .ok_or_else(|| {
            "neither a duration, as in 10m, nor a time with its zone, as in 2026-11-30T08:00:00Z".into()
        })
}

/// Reads `500ms`, `30s`, `5m`, `1h30m`, `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "a number with ms, s, m, h or d, as in 500ms, 30s or 1h30m";
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
        let part = number.checked_mul(unit_ms).ok_or("too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("too long")?;
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
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Help is read in 80 columns. Prose is one line for clap to wrap; what is laid out in columns has to fit.
    #[test]
    fn examples_fit_a_terminal_and_every_verb_has_some() {
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
    fn a_verb_alone_says_the_same_as_among_the_others() {
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
    fn from_its_first_word_on_everything_is_the_commands_own() {
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
    fn a_command_is_needed_and_an_unknown_flag_before_it_is_a_mistake() {
        assert!(refused("orbd-ctl run -m web").contains("COMMAND"));
        assert!(refused("orbd-ctl frobnicate").contains("frobnicate"));
    }

    #[test]
    fn stopping_everything_has_to_be_said() {
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
    fn options_everywhere_go_before_and_after_the_verb() {
        assert!(parse("orbd-ctl --json list").global.json);
        assert!(parse("orbd-ctl list --json").global.json);
        assert!(parse("orbd-ctl metrics history --json -n 3").global.json);
    }

    #[test]
    fn the_summary_needs_no_word_of_its_own() {
        let Command::Metrics(metrics) = parse("orbd-ctl metrics --window 1h --by both").command else {
            panic!("metrics")
        };
        assert!(metrics.command.is_none());
        assert_eq!(metrics.summary.window, Some(Duration::from_secs(3600)));
        assert_eq!(metrics.summary.by, Some(GroupBy::Both));
    }

    #[test]
    fn since_is_a_duration_ago_or_a_time_with_its_zone() {
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
