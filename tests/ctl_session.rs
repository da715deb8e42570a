//! The command line when it runs the real tool itself: the caller's files, terminal and Ctrl-C.
//!
//! Terminals are real ones made by `script`; tests type by writing to its stdin.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the command line as a shell would"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use orbd_proto::types::{Job, JobStateWord};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::ctl_suite::{call, ctl, said};
use crate::support::{PATIENCE, World, eventually, is_alive, outcome_of};

/// A call of the command line on a terminal of its own.
pub(crate) struct OnTerminal {
    script: Child,
    keys: ChildStdin,
    screen: mpsc::Receiver<String>,
}

impl OnTerminal {
    pub(crate) fn start(world: &World, words: &[&str]) -> Self {
        Self::start_program(world, &ctl(world, words))
    }

    /// Starts another program, with the environment that its description has.
    pub(crate) fn start_program(world: &World, inner: &Command) -> Self {
        let mut command = Command::new("script");
        let line = std::iter::once(inner.get_program())
            .chain(inner.get_args())
            .map(|word| format!("'{}'", word.to_str().expect("text").replace('\'', r"'\''")))
            .collect::<Vec<_>>()
            .join(" ");
        // Without `exec`, Ctrl-C would end the shell in between although the program survives it.
        let line = format!("exec {line}");
        let mut script = command
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .env_clear()
            .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("SHELL", "/bin/sh")
            .current_dir(world.path("home"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("util-linux has `script`");
        let keys = script.stdin.take().expect("piped");
        let mut lines = BufReader::new(script.stdout.take().expect("piped"));
        let (shown, screen) = mpsc::channel();
        // Read by a thread, so that a terminal that shows nothing more cannot block the test for ever.
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                if shown.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        Self { script, keys, screen }
    }

    pub(crate) fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
        self.keys.flush().expect("it reads");
    }

    /// Reads the screen until a line ends with `wanted`.
    #[track_caller]
    pub(crate) fn until_it_shows(&mut self, wanted: &str) {
        let mut all = String::new();
        loop {
            let Ok(line) = self.screen.recv_timeout(PATIENCE) else {
                panic!("{wanted:?} did not appear in: {all}");
            };
            all.push_str(&line);
            if line.trim_end().ends_with(wanted) {
                return;
            }
        }
    }

    /// Waits for the program's end; returns the exit code and the rest of the screen.
    pub(crate) fn ends(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        loop {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(line) => rest.push_str(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the program did not end; it showed: {rest}"),
            }
        }
        drop(self.keys);
        (self.script.wait().expect("ours").code(), rest)
    }
}

/// Waits until a lease of this operation has ended, and returns its job.
fn ended(world: &World, operation: &str) -> Job {
    world.client().find(operation, "a", JobStateWord::Ended)
}

#[test]
fn shell_has_the_callers_terminal_and_returns_its_exit_code() {
    let world = World::with_machines(&["a"]);
    let mut shell = OnTerminal::start(&world, &["shell", "a"]);
    let id = world.client().find("shell", "a", JobStateWord::Running).job_id;
    shell.types("test -t 0 && test -t 1 && echo on a $((40 + 2)) terminal\n");
    shell.until_it_shows("on a 42 terminal");
    shell.types("exit 9\n");
    let (code, rest) = shell.ends();
    assert_eq!(code, Some(9), "{rest}");
    let job = world.client().job(id);
    assert_eq!(
        (&*job.job_class, outcome_of(&job)),
        ("session", ("succeeded", ""))
    );
    assert_eq!(job.outcome.expect("it ended").exit_code, Some(9));
    // The tool itself ran, and only once.
    let ledger = world.ledger();
    assert_eq!(ledger.of("run").len(), 1);
}

#[test]
fn command_with_a_terminal_is_a_session() {
    let world = World::with_machines(&["a"]);
    let words = [
        "run",
        "-t",
        "-m",
        "a",
        "-e",
        "A=42",
        "sh",
        "-c",
        "test -t 1 && echo it is $A; exit 3",
    ];
    let (code, shown) = OnTerminal::start(&world, &words).ends();
    assert_eq!(code, Some(3), "{shown}");
    assert!(shown.contains("it is 42"), "{shown}");
    assert_eq!(ended(&world, "shell").job_class, "session");
}

#[test]
fn ctrl_c_reaches_the_guest_program_each_time_and_keeps_the_lease() {
    let world = World::with_machines(&["a"]);
    let trap = "trap 'echo ouch' INT; echo ready; until read line; do :; done; exit 4";
    let mut run = OnTerminal::start(&world, &["run", "-t", "-m", "a", "sh", "-c", trap]);
    run.until_it_shows("ready");
    for _ in 0..3 {
        run.types("\u{3}");
        run.until_it_shows("ouch");
        let job = world.client().find("shell", "a", JobStateWord::Running);
        assert!(job.outcome.is_none(), "it still holds the lease");
    }
    run.types("enough\n");
    let (code, rest) = run.ends();
    assert_eq!(code, Some(4), "{rest}");
    assert!(!rest.contains("interrupted"), "{rest}");
    assert_eq!(outcome_of(&ended(&world, "shell")), ("succeeded", ""));
}

#[test]
fn logs_are_followed_until_ctrl_c() {
    let world = World::with_machines(&["a"]);
    let mut logs = OnTerminal::start(&world, &["logs", "--follow", "a"]);
    logs.until_it_shows("a: booted");
    let job = world.client().find("logs", "a", JobStateWord::Running);
    assert_eq!(job.job_class, "session");
    // Following blocks nothing, and new lines appear.
    let output = call(&world, &["restart", "a"]);
    assert!(output.status.success(), "{}", said(&output));
    logs.until_it_shows("a: booted");
    logs.types("\u{3}");
    let (code, rest) = logs.ends();
    assert_eq!(code, Some(130), "{rest}");
    let outcome = ended(&world, "logs").outcome.expect("it ended");
    assert_eq!((&*outcome.kind, outcome.exit_code), ("succeeded", Some(130)));
}

#[test]
fn user_data_is_read_by_the_callers_own_process() {
    let world = World::with_machines(&[]);
    fs::write(world.path("home/init.yaml"), "#cloud-config\n").expect("written");
    let output = call(&world, &["create", "ubuntu", "a", "--user-data", "init.yaml"]);
    assert!(output.status.success(), "{}", said(&output));
    let job = ended(&world, "create");
    assert_eq!(
        (&*job.job_class, outcome_of(&job)),
        ("creation", ("succeeded", ""))
    );
    assert_eq!(world.truth(), [("a".into(), "running".into())]);
    let output = call(&world, &["create", "ubuntu", "b", "-c", "nothing-there"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

/// Starts a call in a process group of its own, as a shell with job control does.
fn in_own_group(world: &World, words: &[&str]) -> Child {
    ctl(world, words).process_group(0).spawn().expect("it starts")
}

/// Signals the whole process group, as the terminal does at Ctrl-C.
fn press_ctrl_c(child: &Child) {
    kill_process_group(Pid::from_child(child), Signal::INT).expect("it runs");
}

#[test]
fn ctrl_c_cancels_a_waiting_lease() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let push = in_own_group(&world, &["push", "-m", "a", "x"]);
    let id = caller.find("push", "a", JobStateWord::Waiting).job_id;
    press_ctrl_c(&push);
    let output = push.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
    caller.resume();
    assert!(world.ledger().of("push").is_empty());
}

#[test]
fn lease_cancelled_while_waiting_never_runs_the_tool() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let export = ctl(&world, &["export", "a", "a.tar"]).spawn().expect("it starts");
    let id = caller.find("export", "a", JobStateWord::Waiting).job_id;
    assert_eq!(caller.cancel(id), "never_started");
    let output = export.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    caller.resume();
    assert!(world.ledger().of("export").is_empty());
    assert!(!world.path("home/a.tar").exists());
}

/// Starts a push that hangs in the real tool; returns it with its job id.
fn hanging_push() -> (World, Child, u64) {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"push\"\nkind = \"hang\"\ntimes = 1")
        .machines(&["a"])
        .started();
    let push = in_own_group(&world, &["push", "-m", "a", "x"]);
    eventually("it began", || world.ledger().of("push").first().map(|_| ()));
    let id = world.client().find("push", "a", JobStateWord::Running).job_id;
    (world, push, id)
}

#[test]
fn ctrl_c_ends_the_running_tool_and_is_reported() {
    let (world, push, id) = hanging_push();
    press_ctrl_c(&push);
    let output = push.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(
        said(&output).contains("orbctl was interrupted"),
        "{}",
        said(&output)
    );
    let job = world.client().end_of(id);
    assert_eq!(outcome_of(&job), ("failed", "orbctl_killed"));
}

#[test]
fn second_ctrl_c_exits_at_once_and_orbd_ends_the_tool() {
    let (world, mut push, id) = hanging_push();
    let tool = world.ledger().of("push")[0].pid;
    // Only orbd-ctl gets the signal, as if the tool did not end at Ctrl-C.
    let us = Pid::from_child(&push);
    kill_process(us, Signal::INT).expect("it runs");
    let left: ExitStatus = eventually("orbd-ctl exits", || {
        // The first signal may still be pending, and two pending signals of a kind are delivered as one.
        let _ = kill_process(us, Signal::INT);
        push.try_wait().expect("ours")
    });
    assert_eq!((left.code(), left.signal()), (Some(130), None));
    assert_eq!(
        outcome_of(&world.client().end_of(id)),
        ("interrupted", "job_interrupted")
    );
    assert!(!is_alive(tool));
}
