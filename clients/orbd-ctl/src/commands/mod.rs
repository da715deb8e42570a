//! One module per verb. Each builds a request from the arguments, makes the call, and prints the answer.

mod api;
mod attach;
mod cache;
mod cancel;
mod change;
mod clone;
mod completions;
mod config;
mod cp;
mod create;
mod daemon;
mod daemon_config;
mod daemon_log;
mod default;
mod delete;
mod doctor;
mod dropin;
mod events;
mod folder;
mod follow;
mod info;
mod job;
mod jobs;
mod lease;
mod list;
mod logs;
mod metrics;
mod queue;
mod rename;
mod restart;
mod run;
mod run_each;
mod service;
mod shell;
mod ssh;
mod start;
mod status;
mod stop;
mod targets;
mod transfer;
mod uninstall;
mod version;
mod watch;

use std::process::ExitCode;

pub(crate) use api::method_names;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
pub(crate) use create::DISTROS;
pub(crate) use info::InfoArgs;
pub(crate) use list::{ListArgs, ListFormat};

use crate::args::Nothing;
use crate::context::Context;
use crate::error::CliError;
use api::ApiArgs;
use cache::CacheArgs;
use cancel::CancelArgs;
use clone::CloneArgs;
use completions::CompletionsArgs;
use completions::ManArgs;
use config::ConfigArgs;
use cp::CpArgs;
use create::CreateArgs;
use daemon::DaemonArgs;
use default::DefaultArgs;
use delete::DeleteArgs;
use dropin::DropinArgs;
use events::EventsArgs;
use job::JobArgs;
use jobs::JobsArgs;
use logs::LogsArgs;
use metrics::MetricsArgs;
use queue::QueueArgs;
use rename::RenameArgs;
use restart::RestartArgs;
use run::ExecArgs;
use run::RunOnArgs;
use service::ServiceArgs;
use shell::ShellArgs;
use start::StartArgs;
use status::StatusArgs;
use stop::StopArgs;
use transfer::ExportArgs;
use transfer::ImportArgs;
use transfer::PullArgs;
use transfer::PushArgs;
use uninstall::UninstallArgs;
use version::VersionArgs;

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
            pub(crate) fn verb(word: &str) -> Option<clap::Command> {
                $({
                    const ALIASES: &[&str] = &[$($alias),*];
                    if word == $name || ALIASES.contains(&word) {
                        fn help(command: clap::Command) -> clap::Command {
                            command.about($about.trim()).after_help($examples)
                        }
                        let verb = help(clap::Command::new($name))
                            .visible_aliases(ALIASES.iter().copied())
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
    List(ListArgs) "list" ["ls"] "Examples:
  orbd-ctl list
  orbd-ctl list -o wide                  also user, IPv6 address and id
  orbd-ctl list --watch                  again whenever something changes
  orbd-ctl list --running --quiet        names only, one per line
  orbd-ctl list --max-age 0              ask orbctl, bypass the cache";
    /// Show one machine with its addresses and size
    Info(InfoArgs) "info" [] "Examples:
  orbd-ctl info web
  orbd-ctl info web --json | jq -r .ip4";
    /// Create a machine and boot it
    Create(CreateArgs) "create" ["add", "new"] "Examples:
  orbd-ctl create ubuntu                 the latest Ubuntu, named ubuntu
  orbd-ctl create debian:bookworm db --cpus 2 --memory 4G
  orbd-ctl create ubuntu:noble box --isolated --mount /Users/me/src:/src
  orbd-ctl create ubuntu:noble web --user-data cloud-init.yaml
  orbd-ctl create --if-missing ubuntu ci  in scripts that run again
  name=$(orbd-ctl create -q ubuntu:noble)
  orbd-ctl create --list                 distributions";
    /// Start machines; without a name, start OrbStack itself
    Start(StartArgs) "start" [] "Examples:
  orbd-ctl start web db                  both in parallel
  orbd-ctl start --all
  orbd-ctl start --detach web            print the job id and return";
    /// Stop machines
    Stop(StopArgs) "stop" [] "Examples:
  orbd-ctl stop web
  orbd-ctl stop --force web              stop its jobs, do not wait for them
  orbd-ctl stop --all                    all machines
  orbd-ctl stop --orbstack               OrbStack itself";
    /// Restart machines, or OrbStack itself
    Restart(RestartArgs) "restart" [] "Examples:
  orbd-ctl restart web db
  orbd-ctl restart --all                 all running machines
  orbd-ctl restart --orbstack            OrbStack itself";
    /// Delete machines and everything on them
    Delete(DeleteArgs) "delete" ["rm"] "Examples:
  orbd-ctl delete scratch                on a terminal, asks first
  orbd-ctl delete --yes one two          do not ask, for scripts
  orbd-ctl delete --yes --ignore-missing scratch
  orbd-ctl delete --all                  every machine";
    /// Rename a machine
    Rename(RenameArgs) "rename" [] "Examples:
  orbd-ctl rename web web-old";
    /// Clone a machine; the clone is not started
    Clone(CloneArgs) "clone" [] "Examples:
  orbd-ctl clone web web-2 && orbd-ctl start web-2";
    /// Show, set or clear the default machine
    Default(DefaultArgs) "default" [] "Examples:
  orbd-ctl default                       print its name
  orbd-ctl default web
  orbd-ctl default none                  clear it";
    /// Run a command in a machine
    Run(RunOnArgs) "run" [] "Works like `orbctl run`: the command starts in the directory that corresponds to the current one. On a terminal \
the command gets the terminal; otherwise its output is streamed unmodified, and input is forwarded if it is a pipe or a file. The exit \
code is the command's. Options of orbd-ctl come before the command; everything from the command's name on is passed to it.

Examples:
  orbd-ctl run uname -a                          in the default machine
  orbd-ctl run -m web -u root -w /srv ls -la
  orbd-ctl run -m web -s 'cd app && make'        through the login shell
  orbd-ctl run -m web sh -c 'echo $HOME; exit 3' exits with 3
  gzip -dc dump.gz | orbd-ctl run -m db psql     input from a pipe
  orbd-ctl run -m web -e MODE=test --timeout 5m make check
  orbd-ctl run -m web --detach make world        print the job id and return
  orbd-ctl run -m web -m db uptime               in both at the same time
  orbd-ctl run --all cat /etc/os-release         in all running machines";
    /// Run a command in a machine, whose name comes first
    Exec(ExecArgs) "exec" [] "The same as `run -m NAME`, for fingers that type `docker exec`.

Examples:
  orbd-ctl exec web ls -la
  orbd-ctl exec -u root web apt-get update
  orbd-ctl exec -it web bash";
    /// Open a shell in a machine
    Shell(ShellArgs) "shell" ["sh"] "Runs the real orbctl with your terminal, directory and environment. orbd records the session, and starts \
it when no change of the machine is running. An open session blocks nothing: the machine can be stopped meanwhile.

Examples:
  orbd-ctl shell                                 in the default machine
  orbd-ctl shell web
  orbd-ctl shell web -u root
  orbd-ctl run -m web htop                       a command instead of a shell";
    /// Copy files between the Mac and a machine
    Cp(CpArgs) "cp" [] "The same as `push` or `pull`. NAME:PATH is a path in a machine; without a leading slash it starts in the guest \
user's home. A name on the Mac with a colon in it needs a slash before the colon: ./a:b.

Examples:
  orbd-ctl cp web:/var/log/syslog .
  orbd-ctl cp site.tar.gz web:               into the guest user's home
  orbd-ctl cp a.conf b.conf web:/tmp/
  orbd-ctl cp -u root hosts web:/etc/hosts";
    /// Copy files from the Mac into a machine
    Push(PushArgs) "push" [] "Examples:
  orbd-ctl push -m web site.tar.gz               into the guest user's home
  orbd-ctl push -m web a.conf b.conf /tmp/
  orbd-ctl push -m web -u root a.conf /etc/";
    /// Copy files from a machine to the Mac
    Pull(PullArgs) "pull" [] "Examples:
  orbd-ctl pull -m web /var/log/syslog
  orbd-ctl pull -m web notes.txt report.txt ./out/";
    /// Export a machine to an archive
    Export(ExportArgs) "export" [] "Examples:
  orbd-ctl export web web.tar.zst";
    /// Create a machine from an archive
    Import(ImportArgs) "import" [] "Examples:
  orbd-ctl import -n web-copy web.tar.zst";
    /// Show a machine's log
    Logs(LogsArgs) "logs" [] "Examples:
  orbd-ctl logs web
  orbd-ctl logs --all --tail 50 web
  orbd-ctl logs --follow web             until Ctrl-C";
    /// Show how to connect to machines over SSH
    Ssh(Nothing) "ssh" [] "Examples:
  orbd-ctl ssh";
    /// Show and change OrbStack's configuration
    Config(ConfigArgs) "config" [] "Examples:
  orbd-ctl config show
  orbd-ctl config get machine.web.username
  orbd-ctl config set memory_mib 8192
  orbd-ctl config add machine.web.mounts /Users/me/src:/src
  orbd-ctl config reset --yes            do not ask, for scripts";
    /// Show whether OrbStack is running, without starting it; exits with 1 if it is not
    Status(StatusArgs) "status" [] "Examples:
  orbd-ctl status
  orbd-ctl status --max-age 0 && echo running";
    /// Show the versions of orbctl, orbd and orbd-ctl
    Version(VersionArgs) "version" [] "Examples:
  orbd-ctl version
  orbd-ctl version --max-age 0           ask orbctl now";
    /// List waiting and running jobs, and what they wait for
    Jobs(JobsArgs) "jobs" ["ps"] "Examples:
  orbd-ctl jobs
  orbd-ctl jobs --all -n 20              include ended jobs
  orbd-ctl jobs --state failed -m web
  orbd-ctl jobs --watch                  as they start and end
  orbd-ctl jobs -q --client pyinfra      ids only";
    /// Show a job, explain why it waits, wait for it, or print its output
    Job(JobArgs) "job" [] "Examples:
  orbd-ctl job show 12
  orbd-ctl job why 12                    what blocks it, and what blocks that
  orbd-ctl job wait 12 --timeout 30s
  orbd-ctl job output --follow 12        from the first byte until it ends";
    /// Cancel jobs: waiting jobs do not start, running jobs are stopped
    Cancel(CancelArgs) "cancel" [] "Examples:
  orbd-ctl cancel 12 13
  orbd-ctl cancel -m web                 all jobs of a machine";
    /// Show, pause, resume or drain the queue
    Queue(QueueArgs) "queue" [] "Examples:
  orbd-ctl queue
  orbd-ctl queue pause web               start no more jobs on web
  orbd-ctl queue resume web
  orbd-ctl queue drain                   refuse new work, return when done";
    /// Show the current state, or events of machines, jobs, the cache and orbctl
    Events(EventsArgs) "events" [] "Examples:
  orbd-ctl events                        the current state
  orbd-ctl events --follow --kinds machines,job_ended
  orbd-ctl events --since 41             events after number 41";
    /// Show or invalidate orbd's cache
    Cache(CacheArgs) "cache" [] "Examples:
  orbd-ctl cache
  orbd-ctl cache invalidate              the next reads ask orbctl";
    /// Call a method of orbd's API and print its result as JSON
    Api(ApiArgs) "api" [] "The methods and their parameters are in proto/openrpc.json. A subscription prints one line for each event.

Examples:
  orbd-ctl api                           list the methods
  orbd-ctl api machine.info '{\"machine\": \"web\"}' | jq -r .ip4
  orbd-ctl api events.subscribe '{\"kinds\": [\"job_ended\"]}'";
    /// Show wait and run times of operations
    Metrics(MetricsArgs) "metrics" [] "Examples:
  orbd-ctl metrics --window 1h --by machine
  orbd-ctl metrics history --outcome failed
  orbd-ctl metrics export --since 1d --format csv -o orbd.csv
  orbd-ctl metrics counters";
    /// Start, stop and inspect orbd itself
    Daemon(DaemonArgs) "daemon" [] "Examples:
  orbd-ctl daemon start                  does nothing if it is running
  orbd-ctl daemon status                 exits with 3 if it is not running
  orbd-ctl daemon restart                restart now; upgrades wait for idle
  orbd-ctl daemon config show            every key, its value and source
  orbd-ctl daemon reload                 apply an edited configuration file
  orbd-ctl daemon logs --follow          follow orbd's log";
    /// Run orbd as a service: launchd on macOS, systemd on Linux
    Service(ServiceArgs) "service" [] "Examples:
  orbd-ctl service install               start now and at each login
  orbd-ctl service install --print       print the file, change nothing
  orbd-ctl service status
  orbd-ctl service logs --follow";
    /// Route calls of orbctl and orb through orbd, for programs that call them by name
    Dropin(DropinArgs) "dropin" [] "Examples:
  orbd-ctl dropin install                orbctl and orb in ~/.orbd/bin
  orbd-ctl dropin status                 which programs are called
  orbd-ctl dropin uninstall";
    /// Check the installation and print a fix for each problem; starts and changes nothing, exits with 1 on an error
    Doctor(Nothing) "doctor" [] "Examples:
  orbd-ctl doctor
  orbd-ctl doctor --json | jq -r '.checks[] | select(.status == \"error\") | .fix'";
    /// Stop orbd and remove its service, drop-in, socket, state, logs and configuration; asks first, leaves the programs
    Uninstall(UninstallArgs) "uninstall" [] "Shows what it removes. Machines and OrbStack are not touched. The programs orbd and orbd-ctl stay: the \
output names the command that removes them.

Examples:
  orbd-ctl uninstall                     shows what goes, then asks
  orbd-ctl uninstall --yes               for scripts
  orbd-ctl uninstall </dev/null          show it, remove nothing (exit 2)";
    /// Print shell completions, which include machine names and job ids
    Completions(CompletionsArgs) "completions" ["completion"] "Examples:
  echo 'source <(orbd-ctl completions bash)' >> ~/.bashrc
  orbd-ctl completions zsh > \"${fpath[1]}/_orbd-ctl\"
  orbd-ctl completions fish > ~/.config/fish/completions/orbd-ctl.fish";
    /// Print the manual page, or write the pages of all commands
    Man(ManArgs) "man" [] "Examples:
  orbd-ctl man | man -l -
  orbd-ctl man --to /usr/local/share/man/man1";
}

/// Runs a command. `grammar` builds the definitions of all commands, for the manual.
pub(crate) fn carry_out(
    context: &mut Context,
    command: Command,
    grammar: fn() -> clap::Command,
) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::list(context, &args),
        Command::Info(args) => info::info(context, args),
        Command::Create(args) => create::create(context, args),
        Command::Start(args) => start::start(context, &args),
        Command::Stop(args) => stop::stop(context, &args),
        Command::Restart(args) => restart::restart(context, &args),
        Command::Delete(args) => delete::delete(context, &args),
        Command::Rename(args) => rename::rename(context, args),
        Command::Clone(args) => clone::clone(context, args),
        Command::Default(args) => default::default(context, args),
        Command::Run(args) => Ok(run::run_on(context, args)),
        Command::Exec(args) => Ok(run::exec(context, args)),
        Command::Shell(args) => Ok(shell::shell(context, &args)),
        Command::Cp(args) => cp::cp(context, args),
        Command::Push(args) => transfer::push(context, &args),
        Command::Pull(args) => transfer::pull(context, &args),
        Command::Export(args) => transfer::export(context, &args),
        Command::Import(args) => transfer::import(context, &args),
        Command::Logs(args) if args.follow => logs::follow(context, &args),
        Command::Logs(args) => logs::logs(context, args),
        Command::Ssh(_) => ssh::ssh(context),
        Command::Config(args) => config::config(context, args.command),
        Command::Status(args) => status::status(context, &args),
        Command::Version(args) => version::version(context, &args),
        Command::Jobs(args) => jobs::jobs(context, &args),
        Command::Job(args) => job::job(context, &args.command),
        Command::Cancel(args) => cancel::cancel(context, &args),
        Command::Queue(args) => queue::queue(context, args.command),
        Command::Events(args) => events::events(context, &args),
        Command::Cache(args) => cache::cache(context, args.command),
        Command::Api(args) => api::api(context, &args),
        Command::Metrics(args) => metrics::metrics(context, args),
        Command::Daemon(args) => daemon::daemon(context, args.command),
        Command::Service(args) => service::service(context, &args),
        Command::Dropin(args) => dropin::dropin(context, &args),
        Command::Doctor(_) => doctor::doctor(context),
        Command::Uninstall(args) => uninstall::uninstall(context, &args),
        Command::Completions(args) => completions::completions(context, &args),
        Command::Man(args) => completions::man(context, &args, grammar()),
    }
}
