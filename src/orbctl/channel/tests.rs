//! Channels with a shell script in place of `orbctl`, and this system in place of a machine.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests kill processes with `kill`, and need PATH"
)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use orbd_host::locate::OrbctlLocator;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::operation::ExecRequest;
use crate::orbctl::GRACE;
use crate::orbctl::supervise::DRAIN_LIMIT;
use crate::spool::{self, Batch, Budget, Keep, Settings, Spool, Stream};

/// Channels, the folder of everything that they use, and a log with a line for each start of `orbctl`.
struct World {
    dir: tempfile::TempDir,
    channels: Channels,
}

/// How a command ended, with its whole output.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    result: Result<i32, String>,
    stdout: Bytes,
    stderr: Bytes,
}

struct Unobserved;

impl Observer for Unobserved {
    fn on(&self, _event: ChannelEvent) {}

    fn has_clients(&self) -> bool {
        true
    }
}

impl World {
    /// Every start of `orbctl` takes 30 ms, so that a channel is worth opening.
    fn new() -> Self {
        Self::with("sleep 0.03")
    }

    /// `before` runs before the command of each `orbctl run`.
    fn with(before: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("a folder");
        let script = format!(
            "#!/bin/sh\necho $$ >>'{log}'\nexport HOME='{home}'\nshift 3\n[ \"$1\" != -u ] || shift 2\n{before}\n\
             exec 9>&2 2>/dev/null\n( exec \"$@\" 2>&9 9>&- )\nexit $?\n",
            log = dir.path().join("starts").display(),
            home = home.display(),
        );
        let program = dir.path().join("orbctl");
        fs::write(&program, script).expect("a file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
        let path = std::env::var_os("PATH").expect("a path");
        let installed = Installed::new(
            OrbctlLocator::at(program),
            dir.path().into(),
            [("PATH".into(), path)],
        );
        Self {
            channels: Channels::new(Arc::new(installed), Arc::new(Unobserved)),
            dir,
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Returns the pids of all `orbctl`s, in the order of their starts.
    fn starts(&self) -> Vec<u32> {
        let log = fs::read_to_string(self.dir.path().join("starts")).unwrap_or_default();
        log.lines().map(|pid| pid.parse().expect("a pid")).collect()
    }

    fn exec(&self, command: &[&str]) -> (Exec, Spool) {
        let settings = Settings {
            dir: self.dir.path().into(),
            max: 1 << 30,
            keep: Keep::All,
        };
        let (output, spool) = spool::spool(&settings, &Budget::new(1 << 30));
        let words = command.iter().copied().map(String::from).collect();
        let exec = Exec {
            machine: "web".parse().expect("valid"),
            request: ExecRequest::new(words).expect("valid"),
            stdin: Input::Empty,
            output,
        };
        (exec, spool)
    }

    async fn run_exec(&self, exec: Exec, spool: Spool, stop: &CancellationToken) -> Ran {
        let run = self.channels.exec(exec, GuestEnv::Orbenv, options(stop));
        let (result, (stdout, stderr)) = tokio::join!(run, read(spool));
        Ran {
            result: result.result.map_err(|error| format!("{error:?}")),
            stdout,
            stderr,
        }
    }

    async fn run(&self, command: &[&str]) -> Ran {
        let (exec, spool) = self.exec(command);
        self.run_exec(exec, spool, &CancellationToken::new()).await
    }

    async fn sh(&self, script: &str) -> Ran {
        self.run(&["sh", "-c", script]).await
    }

    async fn with_input(&self, script: &str, input: Bytes) -> Ran {
        let (mut exec, spool) = self.exec(&["sh", "-c", script]);
        exec.stdin = Input::Bytes(input);
        self.run_exec(exec, spool, &CancellationToken::new()).await
    }

    /// Runs commands until a channel is open, and returns the pid of its `orbctl`.
    async fn opened(&self) -> u32 {
        for _ in 0..2 {
            assert_eq!(self.run(&["true"]).await.result, Ok(0));
        }
        let starts = self.starts();
        assert_eq!(starts.len(), 2, "the second command opened a channel");
        assert_eq!(self.run(&["true"]).await.result, Ok(0));
        assert_eq!(self.starts(), starts, "the third command used it");
        starts[1]
    }
}

fn options(stop: &CancellationToken) -> RunOptions {
    RunOptions {
        stop: stop.clone(),
        run_timeout: None,
        grace: GRACE,
        marker: String::new(),
        started: None,
    }
}

fn signal(signal: &str, pid: u32) {
    let sent = std::process::Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(sent.expect("a program").success());
}

async fn read(spool: Spool) -> (Bytes, Bytes) {
    let mut reader = spool.follow(0);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match reader.next(1 << 20).await.expect("readable") {
            Batch::Chunks(chunks) => {
                for chunk in chunks {
                    let bytes = match chunk.stream {
                        Stream::Stdout => &mut stdout,
                        Stream::Stderr => &mut stderr,
                    };
                    bytes.extend_from_slice(&chunk.bytes);
                }
            }
            Batch::Gap { .. } => panic!("output is missing"),
            Batch::End => return (stdout.into(), stderr.into()),
        }
    }
}

fn ran(exit_code: i32, stdout: impl Into<Bytes>, stderr: impl Into<Bytes>) -> Ran {
    Ran {
        result: Ok(exit_code),
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Every command runs once as an `orbctl run` and once through a channel, in equal folders.
#[tokio::test]
async fn commands_behave_as_in_an_orbctl_run_of_their_own() {
    let commands: &[&[&str]] = &[
        &["true"],
        &["false"],
        &["sh", "-c", "exit 255"],
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
        &["nosuch-program"],
        &["/nonexistent/program", "x"],
        &["/"],
        &["sh", "-c", "kill -TERM $$"],
        &["sh", "-c", "kill -KILL $$"],
        &["sh", "-c", "kill -SEGV $$"],
        &["sh", "-c", "trap '' INT; echo ignored"],
        &["cat"],
        &["sh", "-c", "pwd; echo \"$PWD|$OLDPWD|$HOME|$SHLVL|$0|$#\""],
        &["sh", "-c", "ls /proc/self/fd | wc -l"],
        &[
            "sh",
            "-c",
            "for f in /proc/self/fd/*; do [ -e $f ] && echo ${f##*/}; done",
        ],
        &["sh", "-c", "env | grep -v ^_= | sort"],
        &["sh", "-c", "ulimit -a; umask"],
        &["sh", "-c", "echo \"$-\"; trap"],
        &[
            "printf",
            "%s|",
            "a b",
            "it's",
            "\"$x\"",
            "`y`",
            "\\",
            "!",
            "*",
            "\t",
            "line\nend",
            "é",
            "",
            "-n",
        ],
        &["printf", "\\036 \\0 \\377"],
        &["sh", "-c", "printf 'no line end'"],
        &["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"],
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done",
        ],
        &[
            "sh",
            "-c",
            "setsid sh -c 'sleep .05; echo LATE' >/dev/null & echo first",
        ],
        &["sh", "-c", "(sleep .05; echo late) & echo first"],
        &["sh", "-c", "exec >&-; echo lost; exit 4"],
        &["sh", "-c", "exec <&-; cat; echo $?"],
        &["sh", "-c", "echo x >file; cat file; rm file"],
        &["type", "cd"],
        &["cd", "/"],
        &["echo", "x", "&&", "false"],
        &["sh", "-c", "read line; echo \"got $line $?\""],
        &["sh", "-c", "tty; test -t 0; echo $?"],
    ];
    let (once, through) = (World::with(""), World::new());
    let pid = through.opened().await;
    for command in commands {
        let mut expected = once.run(command).await;
        let mut seen = through.run(command).await;
        // The folders have different names.
        for (world, ran) in [(&once, &mut expected), (&through, &mut seen)] {
            for stream in [&mut ran.stdout, &mut ran.stderr] {
                let text =
                    String::from_utf8_lossy(stream).replace(&world.dir.path().display().to_string(), "DIR");
                if std::str::from_utf8(stream).is_ok() {
                    *stream = text.into();
                }
            }
        }
        assert_eq!(seen, expected, "{command:?}");
        assert_eq!(
            through.starts().last(),
            Some(&pid),
            "{command:?} did not run through the channel"
        );
    }
}

#[tokio::test]
async fn input_and_output_pass_unchanged() {
    let world = World::new();
    let pid = world.opened().await;
    let all: Vec<u8> = (0..=255).cycle().take(frame::INPUT_MAX).collect();
    for length in [0, 1, 2, 255, 256, 300, 1_000, 3_000, 65_536, frame::INPUT_MAX] {
        let input = Bytes::copy_from_slice(&all[..length]);
        assert_eq!(world.with_input("cat", input.clone()).await, ran(0, input, ""));
    }
    let input = Bytes::from(vec![b'x'; frame::INPUT_MAX]);
    assert_eq!(
        world.with_input("exit 3", input).await,
        ran(3, "", ""),
        "it reads no input"
    );
    let long = "it's a long\nword ".repeat(3_000);
    assert_eq!(world.run(&["printf", "%s", &long]).await, ran(0, long, ""));
    let many = world.sh("head -c 50000000 /dev/zero").await;
    assert_eq!((many.result, many.stdout.len()), (Ok(0), 50_000_000));
    assert_eq!(
        world.starts().last(),
        Some(&pid),
        "everything ran through the channel"
    );
}

#[tokio::test]
async fn larger_commands_and_inputs_run_as_an_orbctl_run() {
    let world = World::new();
    world.opened().await;
    let long = "x".repeat(frame::COMMAND_MAX);
    assert_eq!(world.run(&["printf", "%s", &long]).await.result, Ok(0));
    let input = Bytes::from(vec![b'x'; frame::INPUT_MAX + 1]);
    assert_eq!(world.with_input("wc -c", input).await, ran(0, "262145\n", ""));
    assert_eq!(world.starts().len(), 4);
}

#[tokio::test]
async fn a_busy_channel_delays_no_command() {
    let world = World::new();
    let pid = world.opened().await;
    let (exec, spool) = world.exec(&["sh", "-c", "while [ ! -e go ]; do sleep .01; done; echo went"]);
    let stop = CancellationToken::new();
    let waiting = world.run_exec(exec, spool, &stop);
    let beside = async {
        let other = world.sh("touch go; echo beside").await;
        assert_eq!(other, ran(0, "beside\n", ""));
    };
    let (waited, ()) = tokio::join!(waiting, beside);
    assert_eq!(waited, ran(0, "went\n", ""));
    assert_ne!(world.starts().last(), Some(&pid));
}

/// Runs a script that prints a line, and cancels it then.
async fn cancelled(world: &World, script: &str, grace: Duration) -> Ran {
    let (exec, spool) = world.exec(&["sh", "-c", script]);
    let stop = CancellationToken::new();
    let options = RunOptions {
        stop: stop.clone(),
        run_timeout: None,
        grace,
        marker: String::new(),
        started: None,
    };
    let run = world.channels.exec(exec, GuestEnv::Orbenv, options);
    let reading = async {
        assert!(matches!(spool.follow(0).next(1024).await, Ok(Batch::Chunks(_))));
        stop.cancel();
        read(spool).await
    };
    // A shell prints to stderr that a signal ended its child.
    let (result, (stdout, _)) = tokio::join!(run, reading);
    Ran {
        result: result.result.map_err(|error| format!("{error:?}")),
        stdout,
        stderr: Bytes::new(),
    }
}

#[tokio::test]
async fn a_cancelled_command_ends_and_the_channel_serves_the_next() {
    let world = World::new();
    let pid = world.opened().await;
    let stopped = |stdout: &'static str| Ran {
        result: Err("Stopped".to_owned()),
        stdout: stdout.into(),
        stderr: Bytes::new(),
    };
    let polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    assert_eq!(cancelled(&world, polite, GRACE).await, stopped("ready\nbye\n"));
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
    assert_eq!(
        cancelled(&world, stubborn, Duration::from_millis(50)).await,
        stopped("ready\n")
    );
    let group = "(trap '' TERM; while :; do sleep 0.01; done) & trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    assert_eq!(cancelled(&world, group, GRACE).await, stopped("ready\n"));
    assert_eq!(world.sh("echo next").await, ran(0, "next\n", ""));
    assert_eq!(world.starts().last(), Some(&pid));
}

#[tokio::test]
async fn output_of_a_background_process_is_in_no_other_command() {
    let world = World::new();
    let pid = world.opened().await;
    let first = world
        // Ends at the latest with the folder.
        .sh("(while [ ! -e go ] && [ -e ../orbctl ]; do sleep .01; done; echo LATE) & echo first")
        .await;
    assert_eq!(first, ran(0, "first\n", ""));
    assert_eq!(world.sh("touch go; echo second").await, ran(0, "second\n", ""));
    assert_ne!(world.starts().last(), Some(&pid), "the first channel was closed");
}

#[tokio::test]
async fn a_command_that_may_have_run_is_not_run_again() {
    let ledger = "echo run >>ledger; echo ready; while :; do sleep 0.01; done";
    for victim in ["orbctl", "loop"] {
        let world = World::new();
        let pid = world.opened().await;
        let (exec, spool) = world.exec(&["sh", "-c", ledger]);
        let stop = CancellationToken::new();
        let run = world.channels.exec(exec, GuestEnv::Orbenv, options(&stop));
        let killing = async {
            assert!(matches!(spool.follow(0).next(1024).await, Ok(Batch::Chunks(_))));
            // The script replaces itself with the shell that is the loop, so both have one pid; its session is another one.
            let signal = if victim == "orbctl" { "-KILL" } else { "-TERM" };
            self::signal(signal, pid);
            read(spool).await
        };
        let (result, _) = tokio::join!(run, killing);
        let error = result.result.expect_err("it is unknown how it ended");
        assert!(
            matches!(error, CallError::Failed(Failure::ChannelBroken { .. })),
            "{victim}: {error:?}"
        );
        assert_eq!(
            world.run(&["cat", "ledger"]).await,
            ran(0, "run\n", ""),
            "{victim}"
        );
    }
}

#[tokio::test]
async fn a_change_closes_the_channels_of_its_machines() {
    let world = World::new();
    let scope = |name: &str| Scope::Machines(vec![name.parse().expect("valid")]);
    let pid = world.opened().await;
    world.channels.close_channels(&scope("other")).await;
    assert_eq!(world.run(&["true"]).await.result, Ok(0));
    assert_eq!(world.starts().last(), Some(&pid));
    world.channels.close_channels(&scope("web")).await;
    assert!(!is_alive(pid));
    assert_eq!(world.run(&["true"]).await.result, Ok(0));
    let second = world.starts()[2];
    world.channels.close_channels(&Scope::Everything).await;
    assert!(!is_alive(second));
}

#[tokio::test]
async fn a_changed_guest_environment_is_noticed() {
    let world = World::new();
    let pid = world.opened().await;
    fs::write(world.home().join(".profile"), "export X=1\n").expect("a file");
    assert_eq!(world.sh("echo still").await, ran(0, "still\n", ""));
    assert!(!is_alive(pid));
    let starts = world.starts();
    assert_eq!(starts.len(), 3, "the declined command opened a new channel");
    assert_eq!(world.sh("echo more").await, ran(0, "more\n", ""));
    assert_eq!(world.starts(), starts, "which serves the next");
}

#[tokio::test]
async fn a_process_that_a_command_leaves_behind_goes_on() {
    let world = World::new();
    world.opened().await;
    for script in ["sleep 100 & echo $!", "sleep 100 2>/dev/null & echo $!"] {
        let left = world.sh(script).await;
        assert_eq!(left.result, Ok(0), "{script}");
        let pid = String::from_utf8_lossy(&left.stdout)
            .trim()
            .parse()
            .expect("a pid");
        world.channels.close_channels(&Scope::Everything).await;
        assert!(is_alive(pid), "{script}");
        signal("-KILL", pid);
    }
}

/// Returns the processes that copy the output of a channel. Here they belong to the group of its `orbctl`.
fn relays(orbctl: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let is_relay = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let group = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(2));
        stat.contains("(cat)") && group == Some(&orbctl.to_string())
    };
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_relay)
        .collect()
}

#[tokio::test]
async fn output_that_arrives_late_is_not_lost() {
    let world = World::new();
    let orbctl = world.opened().await;
    let command = world.sh("while [ ! -e go ]; do sleep 0.01; done; echo important; touch done");
    let delaying = async {
        let stopped = loop {
            match relays(orbctl).as_slice() {
                [one, other] => break [*one, *other],
                _ => tokio::task::yield_now().await,
            }
        };
        for pid in stopped {
            signal("-STOP", pid);
        }
        fs::write(world.home().join("go"), "").expect("a file");
        while !world.home().join("done").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Longer than a silent stream is read after the end of a command.
        tokio::time::sleep(DRAIN_LIMIT * 2).await;
        for pid in stopped {
            signal("-CONT", pid);
        }
    };
    let (ended, ()) = tokio::join!(command, delaying);
    assert_eq!(ended, ran(0, "important\n", ""));
}

#[tokio::test]
async fn the_limit_of_a_command_includes_the_opening_of_its_channel() {
    let world = World::with("sleep 1");
    assert_eq!(world.sh("true").await.result, Ok(0));
    let (exec, spool) = world.exec(&["sh", "-c", "echo >>ran"]);
    let options = RunOptions {
        run_timeout: Some(Duration::from_millis(100)),
        ..options(&CancellationToken::new())
    };
    let run = world.channels.exec(exec, GuestEnv::Orbenv, options);
    let (result, _) = tokio::join!(run, read(spool));
    assert!(matches!(result.result, Err(CallError::TimedOut)), "{result:?}");
    assert_eq!(world.starts().len(), 2, "no other orbctl was started");
    assert!(!world.home().join("ran").exists());
}

#[tokio::test]
async fn an_orbctl_that_changes_bytes_gets_no_channels() {
    let altering = "[ \"$IN\" ] || { IN=1 sh \"$0\" run -m web \"$@\" | LC_ALL=C sed -u 's/\\xff/x/'; exit; }; sleep 0.03";
    let world = World::with(altering);
    for _ in 0..3 {
        assert_eq!(world.sh("echo plain").await, ran(0, "plain\n", ""));
    }
    let view = world.channels.view();
    assert_eq!(
        view[0].problem.as_deref(),
        Some("input and output do not pass unchanged")
    );
    assert_eq!(world.starts().len(), 2 * 4, "one attempt to open a channel");
}

#[tokio::test]
async fn a_dead_channel_is_replaced() {
    let world = World::new();
    let pid = world.opened().await;
    signal("-KILL", pid);
    assert_eq!(world.sh("echo alive").await, ran(0, "alive\n", ""));
    assert_eq!(world.sh("echo alive").await, ran(0, "alive\n", ""));
}

#[tokio::test]
async fn machines_without_what_a_channel_needs_run_everything_as_orbctl_run() {
    for (before, why) in [
        ("sleep 0.03; echo profile noise", "it writes to stdout"),
        (
            "sleep 0.03; mkdir -p bin; ln -sf \"$(command -v sh)\" bin/sh; PATH=$PWD/bin",
            "it has no programs",
        ),
        ("sleep 0.03; exec </dev/null", "it reads no input"),
    ] {
        let world = World::with(before);
        for _ in 0..4 {
            let ran = world.run(&["/bin/echo", "x"]).await;
            assert_eq!(ran.result, Ok(0), "{why}");
            assert!(ran.stdout.ends_with(b"x\n"), "{why}");
        }
        assert!(world.starts().len() > 4, "{why}: a channel was tried");
    }
}

#[tokio::test]
async fn variables_arrive_and_stay_with_their_command() {
    let world = World::new();
    world.opened().await;
    let (mut exec, spool) = world.exec(&["sh", "-c", "echo \"$TOKEN\"; env | grep -c ORBD_E"]);
    exec.request.env = vec![("TOKEN".parse().expect("valid"), "it's\nsecret".to_owned())];
    let ran_with = world.run_exec(exec, spool, &CancellationToken::new()).await;
    assert_eq!(ran_with, ran(1, "it's\nsecret\n0\n", ""));
    assert_eq!(world.sh("echo \"[$TOKEN]\"").await, ran(0, "[]\n", ""));
}

#[tokio::test]
async fn commands_of_many_kinds_never_mix() {
    let world = World::new();
    world.opened().await;
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for number in 0..300u32 {
        let code = number % 5;
        let script = format!("echo out{number}; echo err{number} >&2; exit {code}");
        let expected = ran(
            i32::try_from(code).expect("small"),
            format!("out{number}\n"),
            format!("err{number}\n"),
        );
        assert_eq!(world.sh(&script).await, expected);
        *seen.entry(code).or_default() += 1;
    }
    assert_eq!(world.starts().len(), 2, "all through one channel");
    assert_eq!(seen.len(), 5);
}
