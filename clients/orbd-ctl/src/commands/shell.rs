//! `shell`, and `run` with `--terminal`, `--shell` or `--path`: run the real `orbctl` under a lease, with our terminal or streams,
//! directory and environment. With the terminal it is a session, which blocks no other job; without, it is queued like other commands.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use orbd_host::caller_env::{CallerEnv, EnvName, ORBENV};
use orbd_host::config::{Config, Environment, Flags};
use orbd_host::run_command::{self, Call, GuestEnv, Start};
use orbd_proto::types::LeaseOperation;

use super::default::machine_or_default;
use super::lease::{self, Place, Terminal};
use super::run::{NOT_FOUND, RunArgs, hint_at_machine, takes_terminal};
use crate::args::{LeaseOptions, duration};
use crate::context::Context;
use crate::environment::variable;
use crate::error::CliError;

/// `shell`.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
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

/// Opens a shell in a machine.
pub(super) fn shell(context: &mut Context, args: &ShellArgs) -> ExitCode {
    let guest = Guest {
        user: args.user.as_deref(),
        workdir: args.workdir.as_deref(),
        ..Guest::default()
    };
    let machine = args.machine.as_ref().or(args.named_machine.as_ref());
    let limits = LeaseOptions {
        queue_timeout: args.queue_timeout,
        timeout: None,
    };
    let ended = attach(context, machine, &limits, Terminal::Its, &guest);
    code(context, ended)
}

/// Runs a command that needs a terminal, or an option that only the real tool implements.
pub(super) fn run(context: &mut Context, args: &RunArgs, env: BTreeMap<String, String>) -> ExitCode {
    let variables = match Variables::of(env) {
        Ok(variables) => variables,
        Err(error) => {
            error.tell(&mut context.console);
            return ExitCode::from(error.exit_of_run());
        }
    };
    let guest = Guest {
        user: args.user.as_deref(),
        workdir: args.workdir.as_deref(),
        login_shell: args.login_shell,
        translate_paths: args.translate_paths,
        env: variables.env,
        caller_env: variables.caller_env,
        passed_by: variables.guest_env,
        command: &args.command,
    };
    let limits = LeaseOptions {
        queue_timeout: args.job.queue_timeout,
        timeout: args.job.timeout,
    };
    let terminal = if args.terminal || takes_terminal(args, context) {
        Terminal::Its
    } else {
        Terminal::Ours
    };
    let ended = attach(context, args.machine.as_ref(), &limits, terminal, &guest);
    if ended
        .as_ref()
        .is_ok_and(|ended| *ended == ExitCode::from(NOT_FOUND))
        && let Some(first) = args.command.first()
    {
        hint_at_machine(&context.link, &mut context.console, first);
    }
    code(context, ended)
}

/// Variables for a command, and how they are passed to it.
#[derive(Default)]
struct Variables {
    env: Vec<(EnvName, String)>,
    caller_env: CallerEnv,
    guest_env: GuestEnv,
}

impl Variables {
    /// Checks the names, and determines how the variables are passed to the guest. Without variables from `-e`, the real tool reads
    /// our environment itself.
    fn of(env: BTreeMap<String, String>) -> Result<Self, CliError> {
        if env.is_empty() {
            return Ok(Self::default());
        }
        let usage = |message: String| CliError::Usage {
            message,
            hint: "`orbd-ctl help run` describes -e".into(),
        };
        let named = |(name, value): (String, String)| match name.parse::<EnvName>() {
            Ok(name) => Ok((name, value)),
            Err(error) => Err(usage(format!("-e {name}: {error}"))),
        };
        let caller_env = CallerEnv::collect(|name| variable(name).filter(|_| name == ORBENV));
        // An invalid configuration is reported by the daemon.
        let config = Config::load(&Flags::default(), &Environment::of_process()).ok();
        Ok(Self {
            env: env.into_iter().map(named).collect::<Result<_, _>>()?,
            caller_env: caller_env.map_err(|error| usage(error.to_string()))?,
            guest_env: config.map_or_else(GuestEnv::default, |config| config.guest_env),
        })
    }
}

/// The program to run in the machine, and its options.
#[derive(Default)]
struct Guest<'a> {
    user: Option<&'a str>,
    workdir: Option<&'a str>,
    login_shell: bool,
    translate_paths: bool,
    env: Vec<(EnvName, String)>,
    /// Our own `ORBENV`, to which the names of `env` are added.
    caller_env: CallerEnv,
    passed_by: GuestEnv,
    /// Program and arguments; empty for a shell.
    command: &'a [String],
}

fn attach(
    context: &mut Context,
    machine: Option<&String>,
    limits: &LeaseOptions,
    terminal: Terminal,
    guest: &Guest<'_>,
) -> Result<ExitCode, CliError> {
    let (operation, verb) = match terminal {
        Terminal::Its => (LeaseOperation::Shell, "shell"),
        Terminal::Ours => (LeaseOperation::Run, "run"),
    };
    let place = Place {
        operation,
        verb,
        machine: machine_or_default(context, machine)?,
        terminal,
        done: None,
    };
    let job_flags = limits.options();
    lease::carry_out(context, place, &job_flags, |machine| call(guest, machine))
}

/// Prints an error and returns its exit code. As with `run`, small codes are reserved for the guest's command.
fn code(context: &mut Context, ended: Result<ExitCode, CliError>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        error.tell(&mut context.console);
        ExitCode::from(error.exit_of_run())
    })
}

/// Returns the arguments and additional variables of the real tool, which inherits our environment.
fn call(guest: &Guest<'_>, machine: &str) -> Call {
    let command = run_command::Run {
        machine,
        user: guest.user,
        start: guest.workdir.map_or(Start::LikeOrbctl, Start::Workdir),
        login_shell: guest.login_shell,
        translate_paths: guest.translate_paths,
        env: &guest.env,
        caller_env: &guest.caller_env,
        command: guest.command,
    };
    run_command::run(&command, guest.passed_by)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_tool_gets_options_as_arguments_and_values_as_variables() {
        let check = |guest: &Guest<'_>, expected: &str| {
            let call = call(guest, "web");
            assert_eq!(call.args.join(" ".as_ref()), expected);
            call.env
        };
        assert!(check(&Guest::default(), "run -m web").is_empty());
        let command = ["top", "-d", "1"].map(String::from);
        let mut guest = Guest {
            user: Some("root"),
            workdir: Some("/srv"),
            login_shell: true,
            translate_paths: true,
            command: &command,
            ..Guest::default()
        };
        assert!(check(&guest, "run -m web -u root -w /srv -s -p top -d 1").is_empty());
        guest.env = vec![("A".parse().expect("a name"), "secret".into())];
        let env = call(&guest, "web").env;
        assert_eq!(
            env,
            [
                ("ORBD_E0".into(), "secret".into()),
                ("ORBENV".into(), "ORBD_E0".into())
            ]
        );
        assert!(!call(&guest, "web").args.iter().any(|word| word == "secret"));
    }
}
