//! `run`: runs a command in a machine, with its output, input and exit code as if it ran locally.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use orbd_client::Client;
use orbd_host::caller_env::CallerEnv;
use orbd_proto::methods::{JobInput, MachineInfo, MachineList, MachineRun, MachineRunFollow};
use orbd_proto::types::{JobInputParams, JobStateWord, MachineInfoParams, ReadParams};

use super::attach::{Guest, Variables, attach, code};
use super::default::machine_or_default;
use super::folder;
use super::follow::{self, FollowedJob, Sink};
use super::lease::Terminal;
use super::run_each::run_each;
use super::targets;
use crate::args::{JobOptions, MACHINES_HELP};
use crate::console::Console;
use crate::context::{Context, request};
use crate::environment::variable;
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;
use crate::link::Link;
use crate::progress::{Progress, Wait};

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunOnArgs {
    #[arg(short, long = "machine", value_name = "NAME", help = MACHINES_HELP)]
    pub(crate) machines: Vec<String>,
    /// Run it on all running machines
    #[arg(long, conflicts_with = "machines")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) guest: GuestOptions,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// A command to run in one machine.
#[derive(Debug)]
pub(super) struct RunArgs {
    /// Name or id; `None` for `$ORBD_MACHINE` or the default machine.
    pub(super) machine: Option<String>,
    pub(super) guest: GuestOptions,
    /// Program and arguments.
    pub(super) command: Vec<String>,
}

/// `exec`: `run` with the machine as the first word, as in docker.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) guest: GuestOptions,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

/// Options of `run` and `exec`.
#[derive(Debug, Args, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is an independent command-line flag"
)]
pub(crate) struct GuestOptions {
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
    /// Fail if the machine is not running, instead of starting it
    #[arg(long)]
    pub(crate) if_running: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Exit code with which a shell reports that a command was not found.
const NOT_FOUND: u8 = 127;

/// Maximum number of input bytes in one message: 64 KiB as base64.
const INPUT_PIECE: usize = 48 << 10;

/// Runs a command in one machine, or in several at the same time.
pub(super) fn run_on(context: &mut Context, args: RunOnArgs) -> ExitCode {
    let RunOnArgs {
        mut machines,
        all,
        guest,
        command,
    } = args;
    let one = |machine| RunArgs {
        machine,
        guest,
        command,
    };
    if !all && machines.len() < 2 {
        return run(context, one(machines.pop()));
    }
    let ended = if all {
        targets::all(context, |machine| machine.state == "running")
    } else {
        Ok(machines)
    };
    let ended = ended.and_then(|machines| {
        if machines.is_empty() {
            context.console.eprint("no running machines");
        }
        run_each(context, &one(None), &machines)
    });
    code(context, ended)
}

/// Runs a command. Errors of the client itself have codes from 124 up, because the small ones are the command's.
pub(super) fn run(context: &mut Context, args: RunArgs) -> ExitCode {
    if args.guest.if_running
        && let Err(error) = check_running(context, args.machine.as_ref())
    {
        return code(context, Err(error));
    }
    let ended = if args.guest.terminal
        || args.guest.login_shell
        || args.guest.translate_paths
        || takes_terminal(&args, context)
    {
        environment(&args.guest.env).and_then(|env| run_attached(context, &args, env))
    } else {
        Interrupt::watch()
            .map_err(CliError::from)
            .and_then(|interrupt| carry_out(context, args, &interrupt))
            .map(ExitCode::from)
    };
    code(context, ended)
}

/// Runs a command in the machine that is its first argument.
pub(super) fn exec(context: &mut Context, args: ExecArgs) -> ExitCode {
    let ExecArgs {
        machine,
        guest,
        command,
    } = args;
    let machine = Some(machine);
    run(
        context,
        RunArgs {
            machine,
            guest,
            command,
        },
    )
}

/// Returns an error if the machine is not running. `orbctl run` would start it.
fn check_running(context: &mut Context, named: Option<&String>) -> Result<(), CliError> {
    let machine = machine_or_default(context, named)?;
    let params = MachineInfoParams {
        machine: machine.clone(),
        max_age_ms: Some(0),
    };
    let info = context.look::<MachineInfo>(Wait::Ours("info", format!("info {machine}")), &params)?;
    match info.machine.state.as_str() {
        "running" => Ok(()),
        state => Err(CliError::Absent {
            message: format!("machine {machine} is {state}, and --if-running is given"),
            hint: format!(
                "`orbd-ctl start {machine}` starts it; without --if-running, running a command starts it too"
            ),
        }),
    }
}

/// Runs a command that needs a terminal, or an option that only the real tool implements.
fn run_attached(
    context: &mut Context,
    args: &RunArgs,
    env: BTreeMap<String, String>,
) -> Result<ExitCode, CliError> {
    let variables = Variables::of(env)?;
    let guest = Guest {
        user: args.guest.user.as_deref(),
        workdir: args.guest.workdir.as_deref(),
        login_shell: args.guest.login_shell,
        translate_paths: args.guest.translate_paths,
        env: variables.env,
        caller_env: variables.caller_env,
        passed_by: variables.guest_env,
        command: &args.command,
    };
    let terminal = if args.guest.terminal || takes_terminal(args, context) {
        Terminal::Its
    } else {
        Terminal::Ours
    };
    let ended = attach(
        context,
        args.machine.as_ref(),
        &args.guest.job.limits,
        terminal,
        &guest,
    )?;
    if ended == ExitCode::from(NOT_FOUND)
        && let Some(first) = args.command.first()
    {
        hint_at_machine(&context.link, &mut context.console, first);
    }
    Ok(ended)
}

/// Returns whether the command gets the terminal without `-t`, as with `orbctl run`. It does not with options that need the daemon to
/// run the command.
fn takes_terminal(args: &RunArgs, context: &Context) -> bool {
    let needs_daemon =
        args.guest.job.detach || args.guest.job.limits.timeout.is_some() || context.console.json;
    context.console.is_interactive && !args.guest.no_terminal && !args.guest.no_input && !needs_daemon
}

pub(super) fn carry_out(context: &mut Context, args: RunArgs, interrupt: &Interrupt) -> Result<u8, CliError> {
    let machine = machine_or_default(context, args.machine.as_ref())?;
    let job_flags = args.guest.job.options();
    let input = if args.guest.no_input || job_flags.detach {
        None
    } else {
        let typed = || {
            args.guest
                .interactive
                .then(|| Box::new(io::stdin()) as Box<dyn Read + Send>)
        };
        context.console.input.take().or_else(typed)
    };
    let first = args.command.first().cloned();
    let what = format!("run in {machine}");
    let params = request!(
        &job_flags,
        RunParams {
            machine,
            command: args.command,
            user: args.guest.user,
            try_workdir: if args.guest.workdir.is_none() {
                folder::in_guest()
            } else {
                None
            },
            workdir: args.guest.workdir,
            env: environment(&args.guest.env)?,
            caller_env: caller_env()?,
            stdin_text: None,
            stdin_base64: None,
            stdin_stream: input.is_some(),
            pass_through: false,
            channel: None,
        }
    );
    if job_flags.detach {
        let answer = context.ask::<MachineRun>(Wait::Ours("run", what), &params)?;
        context
            .console
            .answer(&answer, |answer, _| format!("{}\n", answer.job_id))?;
        return Ok(0);
    }
    let mut client = context.connect()?;
    let mut progress = Progress::new(&context.link, Wait::Ours("run", what));
    let mut events = client.subscribe::<MachineRunFollow>(&params)?;
    let mut sink = if context.console.json {
        Sink::answer()
    } else {
        Sink::Streams
    };
    let link = &context.link;
    let mut input = input;
    let mut on_start = |job_id| {
        if let Some(input) = input.take() {
            // Uses a second connection: the first one is busy with output, and a command that reads slowly must not delay that.
            let mut client = link.dial()?;
            crate::link::greet(&mut client, &link.socket)?;
            std::thread::spawn(move || feed(input, &mut client, job_id));
        }
        Ok(())
    };
    let FollowedJob { job, lost } = follow::follow(
        &mut events,
        0,
        &mut sink,
        interrupt,
        &mut progress,
        &mut context.console,
        &mut on_start,
    )?;
    let code = follow::exit_of(&job)?;
    if let Sink::Answer(mut answer) = sink {
        answer.job_id = job.job_id;
        answer.state = JobStateWord::Ended;
        answer.exit_code = job.outcome.as_ref().and_then(|outcome| outcome.exit_code);
        answer.output_bytes = answer.output_bytes.max(job.output_bytes);
        answer.wait_us = Some(job.wait_us);
        answer.run_us = job.run_us;
        context.console.answer(&answer, |_, _| String::new())?;
    }
    if code == NOT_FOUND
        && let Some(first) = first
    {
        hint_at_machine(&context.link, &mut context.console, &first);
    }
    // The command's own failure takes precedence. Its success must not suggest that the output is complete.
    Ok(if code == 0 && lost { exit::RUN_FAILED } else { code })
}

/// Prints how to name a machine if the command that was not found is the name of one.
fn hint_at_machine(link: &Link, console: &mut Console, word: &str) {
    let params = ReadParams::default();
    let listed = link
        .side_connection()
        .and_then(|mut client| client.call::<MachineList>(&params).ok());
    if listed.is_some_and(|list| list.machines.iter().any(|machine| machine.name == word)) {
        console.eprint(&format!(
            "'{word}' is a machine; to run a command in it: `orbd-ctl run -m {word} COMMAND`"
        ));
    }
}

/// Forwards our input until it ends or the command no longer reads it. Runs on a thread that is not joined: this client exits when the
/// command ends.
fn feed(mut input: Box<dyn Read + Send>, client: &mut Client, job_id: u64) {
    let mut piece = vec![0; INPUT_PIECE];
    loop {
        let read = match input.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The command sees a read error as the end of its input.
            Err(_) => 0,
            Ok(read) => read,
        };
        let params = JobInputParams {
            job_id,
            text: None,
            base64: (read > 0).then(|| STANDARD.encode(&piece[..read])),
            eof: read == 0,
        };
        match client.call::<JobInput>(&params) {
            Ok(answer) if answer.open && read > 0 => {}
            // All input was sent, the command has closed its input, or it has ended.
            _ => return,
        }
    }
}

/// Collects the variables that `orbctl` would pass to the guest from our environment.
fn caller_env() -> Result<BTreeMap<String, String>, CliError> {
    let collected = CallerEnv::collect(variable).map_err(|error| CliError::Usage {
        message: error.to_string(),
        hint: "unset it, or remove it from ORBENV".into(),
    })?;
    Ok(collected.variables().clone())
}

/// Parses the values of `-e`: `KEY=VALUE`, or `KEY` for its value in our own environment.
fn environment(words: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut environment = BTreeMap::new();
    for word in words {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => match variable(word).map(std::ffi::OsString::into_string) {
                Some(Ok(value)) => (word.as_str(), value),
                Some(Err(_)) => {
                    return Err(CliError::Usage {
                        message: format!("the value of {word} in the environment is not UTF-8"),
                        hint: "pass it through a file or the command's input".into(),
                    });
                }
                None if word.is_empty() => {
                    return Err(CliError::Usage {
                        message: "-e: the name of the variable is empty".into(),
                        hint: "use -e KEY=VALUE, or -e KEY to copy it from the environment".into(),
                    });
                }
                None => {
                    return Err(CliError::Usage {
                        message: format!("-e {word}: the variable is not set in the environment"),
                        hint: format!("set it, or use -e {word}=VALUE"),
                    });
                }
            },
        };
        environment.insert(key.to_owned(), value);
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::sync::mpsc;

    use orbd_proto::errors::ErrorKind;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{self, Fake, Peer};

    fn args(command: &[&str]) -> RunArgs {
        RunArgs {
            machine: Some("web".into()),
            guest: GuestOptions {
                no_terminal: true,
                ..GuestOptions::default()
            },
            command: command.iter().map(|&word| word.into()).collect(),
        }
    }

    fn ended(exit_code: i32) -> Value {
        let mut job = fake::job(12, "run", JobStateWord::Ended);
        job.outcome = Some(fake::succeeded(Some(exit_code)));
        job.run_us = Some(77);
        json!({"type": "ended", "job": job})
    }

    fn method(request: &Value) -> &str {
        request["method"].as_str().unwrap()
    }

    fn begin(peer: &mut Peer, request: &Value) {
        peer.answer(request, json!(1));
        peer.event(json!({"type": "accepted", "job_id": 12}));
        peer.event(json!({"type": "started"}));
    }

    fn output(stream: &str, offset: u64, bytes: &[u8]) -> Value {
        let mut event = json!({"type": "output", "stream": stream, "offset": offset, "at_us": 5});
        match std::str::from_utf8(bytes) {
            Ok(text) => event["text"] = json!(text),
            Err(_) => event["base64"] = json!(STANDARD.encode(bytes)),
        }
        event
    }

    #[test]
    fn output_bytes_streams_and_exit_code_are_passed_through() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let bytes = every_byte.clone();
        let fake = Fake::new(move |peer, request| {
            begin(peer, request);
            peer.event(output("stdout", 0, b"no end of line"));
            peer.event(output("stderr", 14, "h\u{e9}\n".as_bytes()));
            peer.event(output("stdout", 18, &bytes));
            peer.event(ended(3));
        });
        let (mut context, out, err) = fake.context();
        let code = carry_out(&mut context, args(&["x"]), &Interrupt::default()).unwrap();
        assert_eq!(code, 3);
        assert_eq!(out.bytes(), [b"no end of line".as_slice(), &every_byte].concat());
        assert_eq!(err.text(), "h\u{e9}\n");
        // The environment and the directory are those of the test process.
        let mut params = fake.asked()[0]["params"].clone();
        params.as_object_mut().unwrap().remove("caller_env");
        params.as_object_mut().unwrap().remove("try_workdir");
        assert_eq!(params, json!({"machine": "web", "command": ["x"]}));
    }

    #[test]
    fn input_is_sent_in_pieces_over_a_second_connection() {
        let (sender, receiver) = mpsc::channel::<Value>();
        let receiver = std::sync::Mutex::new(receiver);
        let fake = Fake::new(move |peer, request| {
            if method(request) == "machine.run_follow" {
                begin(peer, request);
                let mut got = Vec::new();
                let receiver = receiver.lock().unwrap();
                loop {
                    let piece = receiver.recv().unwrap();
                    if let Some(base64) = piece["base64"].as_str() {
                        got.extend(STANDARD.decode(base64).unwrap());
                    }
                    if piece["eof"] == true {
                        break;
                    }
                }
                peer.event(output("stdout", 0, &got));
                peer.event(ended(0));
            } else {
                sender.send(request["params"].clone()).unwrap();
                peer.answer(request, json!({"open": true}));
            }
        });
        let (mut context, out, _) = fake.context();
        let mut bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        bytes.push(0xff);
        context.console.input = Some(Box::new(Cursor::new(bytes.clone())));
        let code = carry_out(&mut context, args(&["cat"]), &Interrupt::default()).unwrap();
        assert_eq!(code, 0);
        assert!(out.bytes() == bytes);
        assert_eq!(fake.asked()[0]["params"]["stdin_stream"], true);
        let pieces = fake.asked().len() - 1;
        assert_eq!(pieces, bytes.len().div_ceil(INPUT_PIECE) + 1);
    }

    #[test]
    fn lost_output_is_reported_and_is_not_a_success() {
        let run = |exit_code: i32, gap: bool| {
            let fake = Fake::new(move |peer, request| {
                begin(peer, request);
                peer.event(output("stdout", 0, b"begin"));
                if gap {
                    peer.event(json!({"type": "gap", "offset": 5, "next_offset": 10}));
                    peer.event(output("stdout", 10, b"end\n"));
                }
                let mut event = ended(exit_code);
                event["job"]["output_bytes"] = json!(14);
                peer.event(event);
            });
            let (mut context, out, err) = fake.context();
            let code = carry_out(&mut context, args(&["x"]), &Interrupt::default()).unwrap();
            (code, out.text(), err.text())
        };
        let (code, out, err) = run(0, true);
        assert_eq!((code, out.as_str()), (125, "beginend\n"));
        assert!(
            err.contains("5 bytes of output are lost, from byte 5 on"),
            "{err}"
        );
        // There is no event for output that the daemon could not read back.
        let (code, out, err) = run(0, false);
        assert_eq!((code, out.as_str()), (125, "begin"));
        assert!(
            err.contains("9 bytes of output are lost, from byte 5 on"),
            "{err}"
        );
        assert_eq!(run(3, true).0, 3);
    }

    #[test]
    fn with_json_the_answer_has_the_format_of_machine_run() {
        let fake = Fake::new(|peer, request| {
            begin(peer, request);
            peer.event(output("stdout", 0, b"hi\n"));
            peer.event(ended(3));
        });
        let (mut context, out, _) = fake.context();
        context.console.json = true;
        assert_eq!(
            carry_out(&mut context, args(&["x"]), &Interrupt::default()).unwrap(),
            3
        );
        let answer: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(
            answer,
            json!({"job_id": 12, "state": "ended", "exit_code": 3,
                   "output": [{"stream": "stdout", "offset": 0, "at_us": 5, "text": "hi\n"}],
                   "next_offset": 3, "output_bytes": 3, "wait_us": 1234, "run_us": 77})
        );
    }

    #[test]
    fn a_run_that_did_not_start_exits_with_125() {
        let fake = Fake::new(|peer, request| {
            peer.refuse(
                request,
                ErrorKind::MachineNotFound.error("machine web does not exist"),
            );
        });
        let (mut context, out, err) = fake.context();
        let error = carry_out(&mut context, args(&["x"]), &Interrupt::default()).expect_err("refused");
        assert_eq!(error.exit_of_run(), 125);
        error.tell(&mut context.console);
        assert_eq!(out.text(), "");
        assert_eq!(
            err.text(),
            "orbd-ctl: machine web does not exist\nhint: `orbd-ctl list` shows the machines\n"
        );
    }

    #[test]
    fn ctrl_c_cancels_the_job_and_waits_for_its_end() {
        struct Pressing(Interrupt);
        impl Write for Pressing {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.press();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, receiver) = mpsc::channel::<()>();
        let receiver = std::sync::Mutex::new(receiver);
        let fake = Fake::new(move |peer, request| {
            if method(request) == "job.cancel" {
                peer.answer(request, json!({"result": "stopping"}));
                sender.send(()).unwrap();
            } else {
                begin(peer, request);
                peer.event(output("stdout", 0, b"y\n"));
                receiver.lock().unwrap().recv().unwrap();
                let mut job = fake::job(12, "run", JobStateWord::Ended);
                job.outcome = Some(fake::succeeded(Some(143)));
                peer.event(json!({"type": "ended", "job": job}));
            }
        });
        let (mut context, _, err) = fake.context();
        let interrupt = Interrupt::default();
        // Presses Ctrl-C at the first output: by then the client knows the job id, which it needs to cancel the job.
        context.console.out = Box::new(Pressing(interrupt.clone()));
        let error = carry_out(&mut context, args(&["x"]), &interrupt).expect_err("interrupted");
        assert_eq!(error.exit_of_run(), 130);
        assert_eq!(
            err.text(),
            "orbd-ctl: cancelling job 12; press Ctrl-C again to exit at once\norbd-ctl: job 12 has ended\n"
        );
    }

    #[test]
    fn closing_our_output_cancels_the_command() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let fake = Fake::new(|peer, request| {
            if method(request) == "job.cancel" {
                peer.answer(request, json!({"result": "stopping"}));
            } else {
                begin(peer, request);
                peer.event(output("stdout", 0, b"y\n"));
            }
        });
        let (mut context, _, err) = fake.context();
        context.console.out = Box::new(Closed);
        let error = carry_out(&mut context, args(&["yes"]), &Interrupt::default()).expect_err("broken pipe");
        error.tell(&mut context.console);
        assert_eq!(error.exit_of_run(), 141);
        assert_eq!(err.text(), "");
        assert_eq!(fake.asked()[1]["method"], "job.cancel");
    }

    #[test]
    fn variables_are_set_explicitly_or_copied_from_the_environment() {
        let words = |words: &[&str]| environment(&words.iter().map(|&word| word.into()).collect::<Vec<_>>());
        let given = words(&["A=1", "B=x=y", "C="]).unwrap();
        assert_eq!(
            given.into_iter().collect::<Vec<_>>(),
            [
                ("A".to_owned(), "1".to_owned()),
                ("B".to_owned(), "x=y".to_owned()),
                ("C".to_owned(), String::new()),
            ]
        );
        assert!(words(&["PATH"]).unwrap().contains_key("PATH"));
        assert_eq!(words(&["ORBD_NO_SUCH_VARIABLE"]).expect_err("unset").exit(), 2);
    }
}
