//! The command line: the options of every command, the verb, and the help text.
//!
//! Verbs and flags that `orbctl` has too have the same names here. Those that only orbd-ctl has (`--detach`, `--timeout`, `jobs`, `cancel`
//! and so on) do not clash with any of `orbctl`'s.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args as _, FromArgMatches as _, Parser};

use crate::args::{Format, Global};
use crate::commands::{Command, InfoArgs, ListArgs, ListFormat};

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
        self.global.json |= match &self.command {
            Command::List(ListArgs { format, .. }) => *format == Some(ListFormat::Json),
            Command::Info(InfoArgs { form, .. }) => form.format == Some(Format::Json),
            _ => false,
        };
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
  ORBD_MACHINE    machine of commands that name none [default: the default one]
  ORBD_AUTOSTART  0 = do not start the daemon on demand
  NO_COLOR        not empty = no colours

With --json every command prints one JSON object per line to stdout, in the format of proto/openrpc.json; a \
failure is {\"error\": {\"code\", \"message\", \"data\"}}. Messages always go to stderr.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use orbd_proto::types::GroupBy;
    use std::time::Duration;

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
            assert_eq!(run.machines.first().map(String::as_str), machine, "{line}");
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
}
