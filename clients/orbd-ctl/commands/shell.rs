//! `shell`, and `run` with `--terminal`, `--shell` or `--path`: the real `orbctl` with our terminal or streams, directory and
//! environment, recorded by orbd. What has the terminal is a session and in nobody's way; what has not is a command like others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use orbd::rpc::types::LeaseOperation;

use super::default::machine_or_default;
use super::lease::{self, Place, Terminal};
use crate::args::{LeaseArgs, Run, Shell};
use crate::context::Context;
use crate::trouble::Trouble;

/// Opens a shell in a machine.
pub(super) fn shell(context: &mut Context, args: &Shell) -> ExitCode {
    let guest = Guest {
        user: args.user.as_deref(),
        workdir: args.workdir.as_deref(),
        ..Guest::default()
    };
    let machine = args.machine.as_ref().or(args.named_machine.as_ref());
    let limits = LeaseArgs {
        queue_timeout: args.queue_timeout,
        timeout: None,
    };
    let ended = attach(context, machine, &limits, Terminal::Its, &guest);
    code(context, ended)
}

/// Runs a command that wants a terminal, or something that only the real tool can do.
pub(super) fn run(context: &mut Context, args: &Run, env: BTreeMap<String, String>) -> ExitCode {
    let guest = Guest {
        user: args.user.as_deref(),
        workdir: args.workdir.as_deref(),
        login_shell: args.login_shell,
        translate_paths: args.translate_paths,
        env,
        command: &args.command,
    };
    let limits = LeaseArgs {
        queue_timeout: args.job.queue_timeout,
        timeout: args.job.timeout,
    };
    let terminal = if args.terminal {
        Terminal::Its
    } else {
        Terminal::Ours
    };
    let ended = attach(context, args.machine.as_ref(), &limits, terminal, &guest);
    code(context, ended)
}

/// What is to run in the machine.
#[derive(Default)]
struct Guest<'a> {
    user: Option<&'a str>,
    workdir: Option<&'a str>,
    login_shell: bool,
    translate_paths: bool,
    env: BTreeMap<String, String>,
    /// Empty: a shell.
    command: &'a [String],
}

fn attach(
    context: &mut Context,
    machine: Option<&String>,
    limits: &LeaseArgs,
    terminal: Terminal,
    guest: &Guest<'_>,
) -> Result<ExitCode, Trouble> {
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
    let wishes = limits.options();
    lease::carry_out(context, place, &wishes, |machine| words(guest, machine))
}

/// As with `run`, the small codes belong to what runs there.
fn code(context: &mut Context, ended: Result<ExitCode, Trouble>) -> ExitCode {
    ended.unwrap_or_else(|trouble| {
        trouble.tell(&mut context.console);
        ExitCode::from(trouble.exit_of_run())
    })
}

/// Returns what the real tool is told.
fn words(guest: &Guest<'_>, machine: &str) -> Vec<OsString> {
    let mut words = vec!["run".to_owned(), "-m".into(), machine.into()];
    for (flag, value) in [("-u", guest.user), ("-w", guest.workdir)] {
        if let Some(value) = value {
            words.extend([flag.into(), value.into()]);
        }
    }
    for (flag, on) in [("-s", guest.login_shell), ("-p", guest.translate_paths)] {
        words.extend(on.then(|| flag.into()));
    }
    if !guest.env.is_empty() {
        words.push("env".into());
        words.extend(guest.env.iter().map(|(key, value)| format!("{key}={value}")));
    }
    words.extend(guest.command.iter().cloned());
    words.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_tool_is_told_what_was_typed() {
        let check = |guest: &Guest<'_>, expected: &str| {
            assert_eq!(words(guest, "web").join(" ".as_ref()), expected);
        };
        check(&Guest::default(), "run -m web");
        let command = ["top", "-d", "1"].map(String::from);
        let guest = Guest {
            user: Some("root"),
            workdir: Some("/srv"),
            login_shell: true,
            translate_paths: true,
            env: BTreeMap::from([("A".into(), "1".into())]),
            command: &command,
        };
        check(&guest, "run -m web -u root -w /srv -s -p env A=1 top -d 1");
    }
}
