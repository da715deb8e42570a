//! Runs `orbctl run` itself in this client, under a lease, with our terminal or streams, directory and environment. With the terminal it is
//! a session, which blocks no other job; without, it is queued like other commands.

use std::collections::BTreeMap;
use std::process::ExitCode;

use orbd_host::caller_env::{CallerEnv, EnvName, ORBENV};
use orbd_host::config::{Config, Environment, Flags};
use orbd_host::run_command::{self, Call, GuestEnv, Start};
use orbd_proto::types::LeaseOperation;

use super::default::machine_or_default;
use super::lease::{self, LeaseRequest, Terminal};
use crate::args::LeaseOptions;
use crate::context::Context;
use crate::environment::variable;
use crate::error::CliError;

/// Variables for a command, and how they are passed to it.
#[derive(Default)]
pub(super) struct Variables {
    pub(super) env: Vec<(EnvName, String)>,
    pub(super) caller_env: CallerEnv,
    pub(super) guest_env: GuestEnv,
}

impl Variables {
    /// Checks the names, and determines how the variables are passed to the guest. Without variables from `-e`, the real tool reads
    /// our environment itself.
    pub(super) fn of(env: BTreeMap<String, String>) -> Result<Self, CliError> {
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
pub(super) struct Guest<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) workdir: Option<&'a str>,
    pub(super) login_shell: bool,
    pub(super) translate_paths: bool,
    pub(super) env: Vec<(EnvName, String)>,
    /// Our own `ORBENV`, to which the names of `env` are added.
    pub(super) caller_env: CallerEnv,
    pub(super) passed_by: GuestEnv,
    /// Program and arguments; empty for a shell.
    pub(super) command: &'a [String],
}

/// Runs `orbctl run` in this client. `Terminal::Its` makes it a session.
pub(super) fn attach(
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
    let request = LeaseRequest {
        operation,
        verb,
        machine: machine_or_default(context, machine)?,
        terminal,
        done: None,
    };
    let job_flags = limits.options();
    lease::carry_out(context, request, &job_flags, |machine| call(guest, machine))
}

/// Prints an error and returns its exit code. As with `run`, small codes are reserved for the guest's command.
pub(super) fn code(context: &mut Context, ended: Result<ExitCode, CliError>) -> ExitCode {
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
