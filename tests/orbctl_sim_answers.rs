//! Tests of the answers that the stand-in can give to open questions about the real tool, and of a `run` that dies.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, test_kill_process};

use crate::orbctl_sim_suite::{Sim, eventually, signal, text};
use crate::support::has_program;

/// A stand-in with one machine, which gives these answers.
fn box_with(answers: &str) -> Sim {
    let sim = Sim::new().with("ORBCTL_SIM_ANSWERS", answers);
    sim.ok(&["create", "ubuntu", "box"]);
    sim
}

/// A running command with its streams.
struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(sim: &Sim, script: &str) -> Running {
        let mut child = sim
            .command(&["run", "-m", "box", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        Running {
            stdin: child.stdin.take().expect("a pipe"),
            stdout: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line
    }

    /// Reads the line with the command's own process id.
    fn pid(&mut self) -> Pid {
        Pid::from_raw(self.line().trim().parse().expect("a pid")).expect("a pid")
    }

    /// Waits until the client has ended; returns the signal that ended it and the rest of its output.
    fn ended_by(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it ends");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("the end");
        (status.signal(), rest)
    }
}

#[test]
fn an_unknown_question_or_answer_is_refused_with_what_there_is() {
    let sim = Sim::new();
    for (answers, line) in [
        ("run-stdn=at-end", "'run-stdn' is no question; there are "),
        (
            "run-stdin=late",
            "run-stdin takes at-once, chunks, at-end, not 'late'",
        ),
        (
            "box:run-stdin=late",
            "run-stdin takes at-once, chunks, at-end, not 'late'",
        ),
        ("run-stdin", "'run-stdin' is not [MACHINE:]QUESTION=ANSWER"),
    ] {
        let mut list = sim.command(&["list"]);
        let output = list
            .env("ORBCTL_SIM_ANSWERS", answers)
            .output()
            .expect("it starts");
        let stderr = text(&output.stderr);
        let expected = format!("orbctl-sim: ORBCTL_SIM_ANSWERS: {line}");
        assert!(stderr.starts_with(&expected), "{answers}: {stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn every_question_is_in_the_manual() {
    let manual = std::fs::read_to_string(programs::root().join("docs/orbctl-sim.md")).expect("the manual");
    for line in Sim::new().ok(&["sim-answers"]).lines() {
        let (question, answers) = line.split_once('=').expect("a question with its answers");
        let row = manual
            .lines()
            .find(|row| row.starts_with(&format!("| `{question}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/orbctl-sim.md does not have `{question}`"));
        for answer in answers.split('|') {
            assert!(
                row.contains(&format!("`{answer}`")),
                "`{question}` lacks `{answer}`: {row}"
            );
        }
    }
}

const REFUSED: i32 = 1;

/// An answer, a command, its exit code and stdout, and what its stderr begins with.
type Row = (
    &'static str,
    &'static [&'static str],
    i32,
    &'static str,
    &'static str,
);

/// Commands for a stopped machine `box`, which differ by answer.
const ROWS: &[Row] = &[
    (
        "run-dashes=refused",
        &["run", "--", "echo", "x"],
        REFUSED,
        "",
        "Error: unknown flag --",
    ),
    ("run-dashes=accepted", &["run", "--", "echo", "x"], 0, "x\n", ""),
    (
        "run-dashes=accepted",
        &["run", "echo", "--", "x"],
        0,
        "-- x\n",
        "",
    ),
    (
        "leading-flags=accepted",
        &["-m", "box", "run", "echo", "x"],
        0,
        "x\n",
        "",
    ),
    (
        "leading-flags=refused",
        &["-m", "box", "run", "echo", "x"],
        REFUSED,
        "",
        "Error: unknown flag -m",
    ),
    ("empty-list=brackets", &["list", "-rf", "json"], 0, "[]\n", ""),
    ("empty-list=null", &["list", "-rf", "json"], 0, "null\n", ""),
    ("empty-list=nothing", &["list", "-rf", "json"], 0, "", ""),
    ("banner=stderr", &["default"], 0, "box\n", "\n\u{256d}"),
    (
        "unknown-machine=plain",
        &["start", "x"],
        REFUSED,
        "",
        "[-32098] machine not found: 'x'",
    ),
    (
        "unknown-machine=prefixed",
        &["start", "x"],
        REFUSED,
        "",
        "[-32098] start 'x': machine not found: 'x'",
    ),
    (
        "unknown-machine=prefixed",
        &["info", "x"],
        REFUSED,
        "",
        "[-32098] machine not found: 'x'",
    ),
    (
        "unknown-machine=prefixed",
        &["clone", "x", "y"],
        REFUSED,
        "",
        "[-32098] clone 'x': machine not found: 'x'",
    ),
    ("change-output=stdout", &["start", "box"], 0, "start: done\n", ""),
    ("change-output=stderr", &["start", "box"], 0, "", "start: done\n"),
    ("stop-stopped=succeeds", &["stop", "box"], 0, "", ""),
    (
        "stop-stopped=refused",
        &["stop", "box"],
        REFUSED,
        "",
        "[-32098] stop 'box': machine is not running",
    ),
    ("config-get=value", &["config", "get", "cpu"], 0, "11\n", ""),
    ("config-get=pair", &["config", "get", "cpu"], 0, "cpu: 11\n", ""),
    (
        "logs-follow=unknown",
        &["logs", "--follow", "box"],
        REFUSED,
        "",
        "Error: unknown flag: --follow",
    ),
    (
        "shutdown-verb=unknown",
        &["shutdown"],
        REFUSED,
        "",
        "Error: unknown command \"shutdown\"",
    ),
    (
        "remove-verb=unknown",
        &["rm", "-f", "box"],
        REFUSED,
        "",
        "Error: unknown command \"rm\"",
    ),
    (
        "delete-question=refused",
        &["delete", "box"],
        REFUSED,
        "",
        "[-32098] delete needs a terminal",
    ),
    ("delete-question=skipped", &["delete", "box"], 0, "", ""),
];

#[test]
fn commands_differ_by_answer_as_the_manual_says() {
    for (answer, words, code, stdout, stderr) in ROWS {
        let sim = Sim::new();
        sim.ok(&["create", "ubuntu", "box"]);
        sim.ok(&["stop", "box"]);
        let mut command = sim.command(words);
        let output = command
            .env("ORBCTL_SIM_ANSWERS", answer)
            .output()
            .expect("it starts");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(
            (output.status.code(), out.as_str()),
            (Some(*code), *stdout),
            "{answer}: {err}"
        );
        assert!(
            err.starts_with(stderr) && (err.is_empty() == stderr.is_empty()),
            "{answer}: {err}"
        );
    }
}

#[test]
fn answers_change_lists_and_what_wakes_orbstack() {
    let ask = |sim: &Sim, answer: &str, words: &[&str]| {
        let output = sim.command(words).env("ORBCTL_SIM_ANSWERS", answer).output();
        output.expect("it starts")
    };
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let list = ["list", "-f", "json"];
    let compact = text(&ask(&sim, "json-form=compact", &list).stdout);
    assert_eq!(compact.lines().count(), 1);
    let full = text(&sim.run(&list).stdout);
    assert!(full.contains("isolate_network") && full.lines().count() > 1);
    assert!(!text(&ask(&sim, "json-keys=few", &list).stdout).contains("isolate_network"));
    assert!(text(&ask(&sim, "list-dashes=always", &["list"]).stdout).contains("\n----  "));
    let all = text(&ask(&sim, "config-get=everything", &["config", "get", "cpu"]).stdout);
    assert!(all.lines().count() > 10 && all.contains("cpu: 11\n"));
    let banner = text(&ask(&sim, "banner=stdout", &list).stdout);
    assert!(banner.starts_with("\n\u{256d}") && banner.ends_with(&full));

    sim.ok(&["stop"]);
    let status = || text(&sim.run(&["status"]).stdout);
    assert!(text(&ask(&sim, "list-stopped=answers", &list).stdout).contains("\"state\": \"stopped\""));
    let refused = ask(&sim, "list-stopped=refuses", &list);
    assert_eq!(
        (refused.status.code(), status().as_str()),
        (Some(1), "Stopped\n"),
        "{refused:?}"
    );
    assert!(ask(&sim, "list-stopped=wakes", &list).status.success());
    assert_eq!(status(), "Running\n");
    sim.ok(&["default", "none"]);
    assert_eq!(
        text(&ask(&sim, "default-none=word", &["default"]).stdout),
        "none\n"
    );
    assert_eq!(text(&ask(&sim, "default-none=nothing", &["default"]).stdout), "");
    assert!(
        ask(&sim, "remove-verb=delete", &["rm", "-f", "box"])
            .status
            .success()
    );
    assert_eq!(sim.ok(&["list", "-q"]), "");
}

#[test]
fn status_of_a_starting_orbstack_can_succeed() {
    let sim = Sim::new();
    sim.lay(&serde_json::json!({"service": "starting", "default": null, "config": {}, "machines": []}));
    for (answer, code) in [("status-starting=fails", 1), ("status-starting=succeeds", 0)] {
        let mut command = sim.command(&["status"]);
        let output = command
            .env("ORBCTL_SIM_ANSWERS", answer)
            .output()
            .expect("it starts");
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(code), "Starting\n")
        );
    }
}

#[test]
fn a_stop_can_return_before_the_machine_has_stopped() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,stop=60000");
    sim.ok(&["create", "ubuntu", "box"]);
    let early = |words: &[&str]| {
        let output = sim
            .command(words)
            .env("ORBCTL_SIM_ANSWERS", "stop-returns=early")
            .output();
        output.expect("it starts").status.success()
    };
    assert!(early(&["stop", "box"]));
    assert!(!early(&["stop", "nosuch"]));
    sim.shows("box", "stopping");
    // The clean-up would wait for the worker.
    let worker = sim.events("work_start").pop().expect("the stop")["pid"]
        .as_i64()
        .expect("a pid");
    let worker = Pid::from_raw(worker.try_into().expect("a pid")).expect("a pid");
    rustix::process::kill_process(worker, Signal::KILL).expect("it works");
}

#[test]
fn the_folder_and_the_environment_of_a_command_can_be_left_out() {
    let sim = Sim::new().with("A", "1").with("ORBENV", "A");
    sim.ok(&["create", "ubuntu", "box"]);
    let home = sim.path("home");
    let output = |answers: &str| {
        let mut command = sim.command(&["run", "sh", "-c", "echo \"$A $PWD\""]);
        let command = command.current_dir(&home).env("ORBCTL_SIM_ANSWERS", answers);
        text(&command.output().expect("it starts").stdout)
    };
    assert_eq!(output(""), format!("1 {}\n", home.display()));
    assert_eq!(output("orbenv=ignored"), format!(" {}\n", home.display()));
    let elsewhere = output("run-folder=home");
    assert!(elsewhere.starts_with("1 ") && elsewhere.ends_with("/home\n") && elsewhere.contains("machines"));
}

#[test]
fn the_login_shell_can_be_chosen_for_each_machine() {
    let sim = Sim::new().with(
        "ORBCTL_SIM_ANSWERS",
        "run-shell=account,bash:run-shell=bash,zsh:run-shell=zsh,fish:run-shell=fish,dash:run-shell=dash,\
         busybox:run-shell=busybox",
    );
    for (shell, refusal) in [
        ("bash", "-bash: line 1: nosuch: command not found\n"),
        ("zsh", "zsh:1: command not found: nosuch\n"),
        ("fish", "fish: Unknown command: nosuch\n"),
        ("dash", "dash: 1: nosuch: not found\n"),
        ("busybox", "sh: nosuch: not found\n"),
    ] {
        if !has_program(shell, shell) {
            continue;
        }
        sim.ok(&["create", "ubuntu", shell]);
        let run = |words: &[&str]| sim.run(&[&["run", "-m", shell], words].concat());
        let output = run(&["nosuch"]);
        assert_eq!(output.status.code(), Some(127));
        let stderr = text(&output.stderr);
        assert!(stderr.starts_with(refusal), "{shell}: {stderr}");
        let own = if shell == "busybox" { "sh" } else { shell };
        let output = run(&["sh", "-c", "echo $SHELL"]);
        assert!(text(&output.stdout).trim().ends_with(own), "{output:?}");
        let words = [
            "sh",
            "-c",
            "printf '[%s]' \"$@\"",
            "sh",
            "a b",
            "it's",
            "x!y",
            "$HOME *",
            "",
            "a\nb",
        ];
        let output = run(&words);
        assert_eq!(
            text(&output.stdout),
            "[a b][it's][x!y][$HOME *][][a\nb]",
            "{shell}: {output:?}"
        );
    }
}

#[test]
fn fish_halves_backslashes_in_quotes_as_fish_does() {
    if !has_program("fish", "fish") {
        return;
    }
    let sim = box_with("run-shell=fish");
    assert_eq!(sim.ok(&["run", "printf", "%s", r"a\\b"]), r"a\b");
}

#[test]
fn the_profile_of_a_machine_is_read_by_choice() {
    for shell in ["bash", "dash", "zsh"] {
        if !has_program(shell, shell) {
            continue;
        }
        let sim = box_with(&format!("run-shell={shell},run-profile=read"));
        let profile = if shell == "zsh" { ".zprofile" } else { ".profile" };
        let script = format!("echo 'echo noise; MARK=seen; export MARK' >{profile}");
        sim.ok(&["run", "sh", "-c", &script]);
        assert_eq!(
            sim.ok(&["run", "sh", "-c", "echo $MARK"]),
            "noise\nseen\n",
            "{shell}"
        );
    }
}

#[test]
fn the_sh_of_a_machine_can_be_chosen() {
    for shell in ["dash", "bash", "busybox"] {
        if !has_program(shell, shell) {
            continue;
        }
        let sim = box_with(&format!("sh={shell}"));
        let program = sim.ok(&["run", "sh", "-c", "readlink /proc/$$/exe; :"]);
        assert!(program.trim().ends_with(shell), "{shell}: {program}");
    }
}

#[test]
fn the_sh_of_an_isolated_machine_can_be_chosen() {
    let Some(sim) = Sim::isolated() else { return };
    if !has_program("busybox", "busybox") {
        return;
    }
    let sim = sim.with(
        "ORBCTL_SIM_ANSWERS",
        "box:sh=busybox,box:run-shell=account,box:run-profile=read",
    );
    sim.ok(&["create", "ubuntu", "box"]);
    sim.ok(&["create", "ubuntu", "other"]);
    let program = |machine| sim.ok(&["run", "-m", machine, "/bin/sh", "-c", "readlink /proc/$$/exe; :"]);
    assert!(program("box").trim().ends_with("busybox"));
    assert!(!program("other").trim().ends_with("busybox"));
}

#[test]
fn stdin_can_be_kept_back_until_it_ends() {
    // A correct client forwards nothing however long this waits, so the limit cannot make the test fail.
    let script = "timeout 0.2 head -n 1; echo over; cat";
    let sim = box_with("run-stdin=at-end");
    let mut run = Running::start(&sim, script);
    run.stdin.write_all(b"late\n").expect("it reads");
    assert_eq!(run.line(), "over\n");
    let Running {
        mut child,
        stdin,
        mut stdout,
    } = run;
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "late\n");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn streams_in_chunks_arrive_whole_and_in_order() {
    let sim = box_with("run-stdin=chunks,run-output=chunks");
    let mut run = Running::start(&sim, "cat");
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    let (mut stdin, sent) = (run.stdin, bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let mut received = Vec::new();
    run.stdout.read_to_end(&mut received).expect("the end");
    writer.join().expect("no panic").expect("all written");
    assert!(run.child.wait().expect("it ends").success());
    assert_eq!(received, bytes);
}

#[test]
fn a_terminated_client_can_leave_its_command_or_take_it_along() {
    for (answers, lives) in [
        ("run-signals=client-only", true),
        ("run-signals=client-only,run-lost=killed", false),
    ] {
        let sim = box_with(answers);
        let mut run = Running::start(&sim, "echo $$; exec sleep 1000");
        let pid = run.pid();
        signal(&run.child, Signal::TERM);
        assert_eq!(run.ended_by(), (Some(Signal::TERM.as_raw()), String::new()));
        if lives {
            test_kill_process(pid).expect("the command lives");
            rustix::process::kill_process(pid, Signal::KILL).expect("it lives");
        } else {
            eventually("the command is gone", || test_kill_process(pid).is_err());
        }
    }
}

#[test]
fn a_killed_client_can_take_its_command_along() {
    let sim = box_with("run-lost=killed");
    let mut run = Running::start(&sim, "sleep 1000 & echo $!; wait");
    let pid = run.pid();
    signal(&run.child, Signal::KILL);
    assert_eq!(run.ended_by(), (Some(9), String::new()));
    eventually("the command's child is gone", || test_kill_process(pid).is_err());
}

#[test]
fn a_command_that_has_ended_is_not_followed_by_its_guard() {
    let sim = box_with("run-lost=killed");
    let pid = sim.ok(&["run", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
    let pid = Pid::from_raw(pid.trim().parse().expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("what a command left behind lives");
}

#[test]
fn a_client_can_ignore_signals() {
    let sim = box_with("run-signals=ignored");
    let mut run = Running::start(&sim, "echo ready; cat");
    assert_eq!(
        run.line(),
        "ready
"
    );
    for ignored in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(&run.child, ignored);
    }
    run.stdin
        .write_all(
            b"still here
",
        )
        .expect("it reads");
    assert_eq!(
        run.line(),
        "still here
"
    );
    signal(&run.child, Signal::KILL);
    assert_eq!(run.ended_by().0, Some(9));
}

#[test]
fn a_client_can_wait_for_processes_that_hold_its_streams() {
    let sim = box_with("run-children=awaited");
    let output = sim.ok(&["run", "sh", "-c", "(sleep 0.1; echo late) & echo first"]);
    assert_eq!(output, "first\nlate\n");
    // A signal still ends a client that waits in vain.
    let mut run = Running::start(&sim, "sleep 1000 & echo $!");
    let pid = run.pid();
    let ended = sim.path("state/machines");
    eventually("the command has ended", || {
        let machines = std::fs::read_dir(&ended).expect("a folder").flatten();
        let mut notes = machines.map(|machine| machine.path().join("commands"));
        !cfg!(target_os = "linux")
            || notes.all(|notes| notes.read_dir().is_ok_and(|mut notes| notes.next().is_none()))
    });
    signal(&run.child, Signal::TERM);
    assert_eq!(run.ended_by(), (None, String::new()));
    eventually("the signal reached it", || test_kill_process(pid).is_err());
}

#[test]
fn a_run_can_die_after_so_many_bytes_of_a_stream() {
    let rule = "[[trouble]]\ncommand = \"run\"\nkind = \"run_dies\"\nbytes = 5\n";
    for (options, signal, code) in [("", Some(9), None), ("exit = 3\n", None, Some(3))] {
        let sim = Sim::new().script(&format!("{rule}{options}"));
        sim.ok(&["create", "ubuntu", "box"]);
        let output = sim.run(&["run", "echo", "0123456789"]);
        assert_eq!(text(&output.stdout), "01234");
        assert_eq!((output.status.signal(), output.status.code()), (signal, code));
        assert!(sim.run(&["run", "true"]).status.success(), "nothing is written");
    }
    let sim = Sim::new().script(&format!("{rule}stream = \"stdin\"\n"));
    sim.ok(&["create", "ubuntu", "box"]);
    let mut run = Running::start(&sim, "echo ready; cat >heard; echo >ended");
    assert_eq!(run.line(), "ready\n");
    run.stdin.write_all(b"0123456789").expect("it reads");
    assert_eq!(run.ended_by(), (Some(9), String::new()));
    let mut heard = String::new();
    eventually("the command saw the end of its input", || {
        let machines = std::fs::read_dir(sim.path("state/machines"))
            .expect("a folder")
            .flatten();
        let home = machines
            .map(|machine| machine.path().join("home"))
            .next()
            .expect("a machine");
        let is_over = home.join("ended").exists();
        heard = std::fs::read_to_string(home.join("heard")).unwrap_or_default();
        is_over
    });
    assert_eq!(heard, "01234");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a test makes a named pipe with `mkfifo`"
)]
fn a_run_can_die_when_a_test_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("die");
    // With the program, because rustix has this call for Linux only.
    let made = std::process::Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&pipe)
        .status();
    assert!(made.expect("this program").success());
    let rule = "[[trouble]]\ncommand = \"run\"\nkind = \"run_dies\"";
    let sim = Sim::new().script(&format!("{rule}\ntext = \"{}\"\nnth = 1\n", pipe.display()));
    sim.ok(&["create", "ubuntu", "box"]);
    let mut run = Running::start(&sim, "echo ready; exec sleep 1000");
    assert_eq!(run.line(), "ready\n");
    std::fs::write(&pipe, "now\n").expect("it reads");
    assert_eq!(run.ended_by(), (Some(9), String::new()));
    // `stop` ends what the command of the dead client left.
    sim.ok(&["stop", "box"]);
}
