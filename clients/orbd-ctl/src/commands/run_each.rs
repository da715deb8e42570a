//! `run` on several machines: one `orbd-ctl run` for each, at the same time, with the machine's name before each line of output.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Sender};

use super::run::{GuestOptions, RunArgs};
use crate::context::Context;
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;

/// Machines on which the command runs at once; the others follow.
const AT_ONCE: usize = 32;

/// A line of output of one machine.
struct Line {
    /// Index of the machine.
    of: usize,
    is_error: bool,
    bytes: Vec<u8>,
}

/// Runs the command on each machine. Returns the first exit code that is not 0, in the order of the machines.
pub(super) fn run_each(
    context: &mut Context,
    args: &RunArgs,
    machines: &[String],
) -> Result<ExitCode, CliError> {
    let guest = &args.guest;
    if guest.interactive || guest.terminal {
        return Err(CliError::Usage {
            message: "several machines cannot share one input or terminal".into(),
            hint: "name one machine, or leave out -i and -t".into(),
        });
    }
    // Starts the daemon once, before its clients do. Ctrl-C reaches them too: each cancels its job, and this one waits for them.
    context.connect()?;
    let _interrupt = Interrupt::watch()?;
    let is_plain = context.console.json || guest.job.detach;
    let mut code = 0;
    for machines in machines.chunks(AT_ONCE) {
        let (sender, lines) = mpsc::channel();
        let mut children = Vec::new();
        for (of, machine) in machines.iter().enumerate() {
            children.push(start(context, args, machine, of, &sender)?);
        }
        drop(sender);
        for line in lines {
            let mut bytes = Vec::new();
            if !is_plain {
                bytes.extend([machines[line.of].as_bytes(), b": "].concat());
            }
            bytes.extend(line.bytes);
            if !bytes.ends_with(b"\n") {
                bytes.push(b'\n');
            }
            if line.is_error {
                let _ = context.console.err.write_all(&bytes);
            } else {
                context.console.print(&bytes)?;
            }
        }
        for mut child in children {
            let status = child.wait().map_err(|source| local("wait for", source))?;
            let ended = status.code().and_then(|code| u8::try_from(code).ok());
            if code == 0 {
                code = ended.unwrap_or(exit::RUN_FAILED);
            }
        }
    }
    Ok(ExitCode::from(code))
}

/// Starts the command on one machine, and two threads that read its output.
fn start(
    context: &Context,
    args: &RunArgs,
    machine: &str,
    of: usize,
    lines: &Sender<Line>,
) -> Result<Child, CliError> {
    let program = std::env::current_exe().map_err(|source| local("find", source))?;
    let mut child = command(program.into_os_string())
        .args(words(context, args, machine))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| local("start", source))?;
    if let Some(output) = child.stdout.take() {
        read(output, of, false, lines.clone());
    }
    if let Some(errors) = child.stderr.take() {
        read(errors, of, true, lines.clone());
    }
    Ok(child)
}

#[expect(
    clippy::disallowed_methods,
    reason = "starts this program itself, in the client"
)]
fn command(program: OsString) -> Command {
    Command::new(program)
}

/// Sends each line of a stream, on a thread of its own.
fn read(stream: impl Read + Send + 'static, of: usize, is_error: bool, lines: Sender<Line>) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        loop {
            let mut bytes = Vec::new();
            let line = |bytes| Line { of, is_error, bytes };
            match stream.read_until(b'\n', &mut bytes) {
                Ok(read) if read > 0 && lines.send(line(bytes)).is_ok() => {}
                _ => return,
            }
        }
    });
}

/// Returns the arguments of `orbd-ctl run` on one machine.
fn words(context: &Context, args: &RunArgs, machine: &str) -> Vec<OsString> {
    let GuestOptions {
        user,
        workdir,
        env,
        login_shell,
        translate_paths,
        if_running,
        job,
        no_input: _,
        interactive: _,
        terminal: _,
        no_terminal: _,
    } = &args.guest;
    let mut words: Vec<OsString> = vec!["--socket".into(), context.link.socket.clone().into()];
    let switches = [
        ("--json", context.console.json),
        ("--no-autostart", !context.link.autostart),
    ];
    let ours = [
        ("--shell", *login_shell),
        ("--path", *translate_paths),
        ("--if-running", *if_running),
        ("--detach", job.detach),
        // Both conflict with `-n`, and have no input here anyway.
        ("--no-input", !(*login_shell || *translate_paths || job.detach)),
    ];
    let on = |switches: &[(&'static str, bool)]| -> Vec<OsString> {
        let on = switches.iter().filter(|(_, on)| *on);
        on.map(|(flag, _)| (*flag).into()).collect()
    };
    words.extend(on(&switches));
    words.extend(["run".into(), "-m".into(), machine.into(), "--no-terminal".into()]);
    words.extend(on(&ours));
    let millis = |limit: &Option<std::time::Duration>| limit.map(|limit| format!("{}ms", limit.as_millis()));
    let values = [
        ("--user", user.clone()),
        ("--workdir", workdir.clone()),
        ("--queue-timeout", millis(&job.limits.queue_timeout)),
        ("--timeout", millis(&job.limits.timeout)),
        ("--label", job.limits.label.clone()),
    ];
    for (flag, value) in values {
        words.extend(value.map(|value| format!("{flag}={value}").into()));
    }
    words.extend(env.iter().map(|variable| format!("--env={variable}").into()));
    words.push("--".into());
    words.extend(args.command.iter().map(OsString::from));
    words
}

fn local(verb: &str, source: std::io::Error) -> CliError {
    CliError::Local {
        what: format!("cannot {verb} orbd-ctl for one of the machines"),
        source,
    }
}
