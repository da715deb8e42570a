//! A caller with a deadline: the drop-in ends when the bare tool ends, leaves the processes that the bare tool leaves, and no lane is held
//! for a process that has exited.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests call the tool as any program would, and measure how long it takes to end"
)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use orbd_proto::methods::{LeaseAcquire, LeaseRelease};
use orbd_proto::types::JobStateWord;
use rustix::process::Signal;
use serde_json::json;

use crate::ctl_suite::{ctl, said};
use crate::dropin::{Way, at_gate, end_of, kill, program};
use crate::support::{PATIENCE, World, eventually, is_alive, outcome_of, words_of};

/// A call that does not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Run,
    StartThatHangs,
    FollowLogs,
    Push,
}

const CALLS: [Call; 4] = [Call::Run, Call::StartThatHangs, Call::FollowLogs, Call::Push];

/// What the caller does to the call at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deadline {
    Send(Signal),
    CloseThePipes,
}

impl Call {
    fn words(self, deadline: Deadline) -> Vec<&'static str> {
        // A command that writes nothing does not notice a closed pipe.
        let command = match deadline {
            Deadline::Send(_) => "echo ready; exec sleep 1000",
            Deadline::CloseThePipes => "exec yes ready",
        };
        match self {
            Self::Run => vec!["orbctl", "run", "-m", "a", "sh", "-c", command],
            Self::StartThatHangs => vec!["orbctl", "start", "a"],
            Self::FollowLogs => vec!["orbctl", "logs", "-f", "a"],
            Self::Push => vec!["orbctl", "push", "-m", "a", "file"],
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Run | Self::FollowLogs)
    }

    /// Waits until the call has reached the point at which it hangs.
    fn until_under_way(self, world: &World, child: &mut Child) {
        let stdout = child.stdout.as_mut().expect("piped");
        match self {
            Self::Run | Self::FollowLogs => {
                let mut line = String::new();
                BufReader::with_capacity(1, stdout)
                    .read_line(&mut line)
                    .expect("text");
                assert_eq!(line, "ready\n", "{self:?}");
            }
            Self::StartThatHangs => eventually("the machine runs", || {
                (world.truth()[0].1 == "running").then_some(())
            }),
            Self::Push => eventually("the push hangs", || {
                (!world.ledger().of("push").is_empty()).then_some(())
            }),
        }
    }
}

/// Returns a world whose tool follows logs, and hangs in `push` and at the end of `start`.
fn world_of(call: Call) -> World {
    let world = World::new().machines(&["a"]).script(
        "[[trouble]]\ncommand = \"start\"\nkind = \"hang\"\nwhen = \"after\"\n\
         [[trouble]]\ncommand = \"push\"\nkind = \"hang\"\n",
    );
    if call == Call::StartThatHangs {
        assert!(world.sim(&["stop", "a"]).status.success());
    }
    std::fs::write(world.path("home").join("file"), "content\n").expect("a file");
    let sim = programs::orbctl_sim();
    let script = format!("[ \"$1\" = logs ] && exec yes ready\nexec {sim} \"$@\"");
    let tool = program(&world, "tool", &script);
    world
        .variable("ORBD_ORBCTL", tool.to_str().expect("text"))
        .started()
}

fn start(world: &World, way: Way, words: &[&str]) -> Child {
    let mut command = way.command(world, words);
    if way == Way::Bare {
        // The same tool that orbd uses, with the same environment.
        let mut bare = Command::new(world.path("tool"));
        bare.args(&words[1..]).env_clear();
        bare.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        bare.current_dir(world.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command = bare;
    }
    command.spawn().expect("it starts")
}

/// Lists the processes of a world apart from its daemon: their args, without the folder's path.
fn left(world: &World) -> Vec<String> {
    let folder = world.path("").display().to_string();
    let mut all: Vec<String> = world
        .processes()
        .into_iter()
        .map(|pid| words_of(pid).replace(&folder, ""))
        .filter(|words| !words.is_empty() && !words.starts_with(programs::orbd()))
        .collect();
    all.sort();
    all
}

/// How one call ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    left: Vec<String>,
    /// Time from the deadline to the exit and the end of both pipes.
    took: Duration,
}

/// Runs one call to its end. `expected` lists the processes that it must leave, if that is known.
fn play(way: Way, call: Call, deadline: Deadline, expected: Option<&[String]>) -> Ended {
    let world = world_of(call);
    let mut child = start(&world, way, &call.words(deadline));
    call.until_under_way(&world, &mut child);
    let pipes: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("piped")),
        Box::new(child.stderr.take().expect("piped")),
    ];
    let (ends, ended) = mpsc::channel();
    let began = Instant::now();
    match deadline {
        Deadline::Send(signal) => {
            for mut pipe in pipes {
                let ends = ends.clone();
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
                    let _ = ends.send(());
                });
            }
            kill(child.id(), signal);
        }
        Deadline::CloseThePipes => {
            drop(pipes);
            if !call.writes() {
                // A call that writes nothing does not notice closed pipes; in the end its caller kills it.
                assert!(is_alive(child.id()), "{way:?} {call:?}");
                kill(child.id(), Signal::KILL);
            }
        }
    }
    drop(ends);
    let status = child.wait().expect("ours");
    loop {
        match ended.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{way:?} {call:?}: the pipes are still held"),
        }
    }
    let took = began.elapsed();
    let left = match expected {
        Some(expected) => eventually(&format!("{call:?} leaves {expected:?}"), || {
            let left = left(&world);
            (left == expected).then_some(left)
        }),
        None => left(&world),
    };
    if way == Way::DropIn {
        let stopped = Way::DropIn
            .command(&world, &["orbctl", "stop", "a"])
            .output()
            .expect("it starts");
        assert!(stopped.status.success(), "{call:?}: {}", said(&stopped));
        let jobs = world.client().jobs();
        assert!(
            jobs.iter().all(|job| job.state == JobStateWord::Ended),
            "{jobs:?}"
        );
    }
    Ended {
        code: status.code(),
        signal: status.signal(),
        left,
        took,
    }
}

/// Compares the drop-in with the bare tool, for each call.
fn compare(deadline: Deadline) {
    for call in CALLS {
        let bare = play(Way::Bare, call, deadline, None);
        let ours = play(Way::DropIn, call, deadline, Some(&bare.left));
        assert_eq!(
            (ours.code, ours.signal, &ours.left),
            (bare.code, bare.signal, &bare.left),
            "{deadline:?} {call:?}"
        );
    }
}

#[test]
fn sigkill_ends_each_call_as_it_ends_the_bare_tool() {
    compare(Deadline::Send(Signal::KILL));
}

#[test]
fn sigterm_ends_each_call_as_it_ends_the_bare_tool() {
    compare(Deadline::Send(Signal::TERM));
}

#[test]
fn sigint_ends_each_call_as_it_ends_the_bare_tool() {
    compare(Deadline::Send(Signal::INT));
}

#[test]
fn closed_pipes_end_each_call_as_they_end_the_bare_tool() {
    compare(Deadline::CloseThePipes);
}

/// Not a test but a measurement:
/// `cargo test -p orbd-tests --test suite -- --ignored --nocapture --test-threads 1 deadline::figures`
#[test]
#[ignore = "measures"]
fn figures() {
    println!("from the deadline to the exit and the end of both pipes, ms, bare / drop-in, median of 5");
    for deadline in [
        Deadline::Send(Signal::KILL),
        Deadline::Send(Signal::TERM),
        Deadline::Send(Signal::INT),
        Deadline::CloseThePipes,
    ] {
        for call in CALLS {
            let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| {
                let mut took: Vec<Duration> = (0..5).map(|_| play(way, call, deadline, None).took).collect();
                took.sort();
                took[2].as_secs_f64() * 1000.0
            });
            println!("{deadline:?} {call:?}: {bare:.1} / {ours:.1}");
        }
    }
}

#[test]
fn owner_killed_before_the_grant_leaves_nothing() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let mut child = start(&world, Way::DropIn, &["orbctl", "run", "-m", "a", "true"]);
    let id = caller.find("run", "a", JobStateWord::Waiting).job_id;
    kill(child.id(), Signal::KILL);
    child.wait().expect("ours");
    assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
    eventually("its child is gone", || left(&world).is_empty().then_some(()));
    caller.resume();
    assert!(world.ledger().of("run").is_empty());
}

#[test]
fn killing_the_owner_after_the_grant_ends_the_tool() {
    let world = World::with_machines(&["a"]);
    let (mut child, tool) = at_gate(&world, Way::DropIn);
    let mut caller = world.client();
    let id = caller.find("run", "a", JobStateWord::Running).job_id;
    kill(child.id(), Signal::KILL);
    assert_eq!(end_of(&mut child).signal(), Some(Signal::KILL.as_raw()));
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
    assert!(!is_alive(tool), "the lane was free before the tool was gone");
}

#[test]
fn tool_of_an_owner_killed_while_orbd_is_down_ends_at_the_next_start() {
    let mut world = World::with_machines(&["a"]);
    let (mut child, tool) = at_gate(&world, Way::DropIn);
    let id = world.client().find("run", "a", JobStateWord::Running).job_id;
    world.kill();
    kill(child.id(), Signal::KILL);
    end_of(&mut child);
    assert!(is_alive(tool), "no daemon ran that could end it");
    world.start();
    let mut caller = world.client();
    let stop = Way::DropIn
        .command(&world, &["orbctl", "stop", "a"])
        .output()
        .expect("it starts");
    assert!(stop.status.success(), "{}", said(&stop));
    assert!(!is_alive(tool), "the lane was free before the tool was gone");
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
}

#[test]
fn next_instance_watches_an_owner_that_survived_a_crash_of_orbd() {
    let mut world = World::with_machines(&["a"]);
    let (mut child, tool) = at_gate(&world, Way::DropIn);
    let id = world.client().find("run", "a", JobStateWord::Running).job_id;
    world.kill();
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(id).state, JobStateWord::Running);
    assert!(is_alive(tool));
    kill(child.id(), Signal::KILL);
    end_of(&mut child);
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
    assert!(!is_alive(tool));
}

#[test]
fn change_whose_owner_was_killed_is_reconciled() {
    let world = world_of(Call::StartThatHangs);
    let mut child = start(&world, Way::DropIn, &["orbctl", "start", "a"]);
    Call::StartThatHangs.until_under_way(&world, &mut child);
    let mut caller = world.client();
    let id = caller.find("start", "a", JobStateWord::Running).job_id;
    kill(child.id(), Signal::KILL);
    child.wait().expect("ours");
    let ended = caller.end_of(id);
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
    let warning = ended
        .outcome
        .and_then(|outcome| outcome.warning)
        .expect("a warning");
    assert!(warning.ends_with("but machine 'a' is running"), "{warning}");
}

#[test]
fn killing_orbd_ctl_ends_its_tool() {
    let world = world_of(Call::Push);
    let file = world.path("home").join("file");
    let mut child = ctl(
        &world,
        &["push", "-m", "a", file.to_str().expect("text"), "there"],
    )
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("it starts");
    Call::Push.until_under_way(&world, &mut child);
    let tool = world.ledger().of("push")[0].pid;
    let mut caller = world.client();
    let id = caller.find("push", "a", JobStateWord::Running).job_id;
    kill(child.id(), Signal::KILL);
    // Both pipes have ended: no process holds them any more.
    child.wait_with_output().expect("ours");
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
    assert!(!is_alive(tool));
}

#[test]
fn ignored_sighup_ends_neither_the_drop_in_nor_the_tool() {
    let world = World::new().machines(&["a"]);
    let gate = world.gate("gate");
    // The stand-in passes SIGHUP on to its command even if it should ignore it, so this tool is a script.
    let tool = program(&world, "tool", &format!("exec cat {gate}"));
    let world = world
        .variable("ORBD_ORBCTL", tool.to_str().expect("text"))
        .started();
    let described = Way::DropIn.command(&world, &["orbctl"]);
    // Started as by `nohup`, in a process group of its own that gets the signal.
    let mut shell = Command::new("/bin/sh");
    let mut child = shell
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(described.get_program())
        .args(["run", "-m", "a", "true"])
        .env_clear()
        .envs(
            described
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(world.path("home"))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let held = world.at_gate("gate");
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, Signal::HUP).expect("ours");
    held.open();
    let mut printed = String::new();
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_to_string(&mut printed).expect("text");
    assert_eq!(printed, "go\n");
    assert!(child.wait().expect("ours").success());
    let job = world.client().find("run", "a", JobStateWord::Ended);
    assert_eq!(outcome_of(&job), ("succeeded", ""));
}

#[test]
fn lease_can_be_released_on_another_connection() {
    let world = World::with_machines(&["a"]);
    let mut process = Command::new("sh")
        .args(["-c", "read go; exit 4"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let params = json!({"operation": "run", "machine": "a", "pid": process.id()});
    let id = world.client().ok::<LeaseAcquire>(params).job_id;
    // That connection is closed, and this process, which owns the lease, is alive.
    let mut caller = world.client();
    assert_eq!(caller.job(id).state, JobStateWord::Running);
    assert!(is_alive(process.id()));
    drop(process.stdin.take());
    process.wait().expect("ours");
    let ended = caller
        .ok::<LeaseRelease>(json!({"job_id": id, "exit_code": 4}))
        .job;
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
    assert_eq!(ended.outcome.and_then(|outcome| outcome.exit_code), Some(4));
}

/// Returns what a call wrote to stderr, and the signal that ended it.
fn last_words(mut child: Child) -> (String, Option<i32>) {
    let mut text = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut text).expect("text");
    (text, child.wait().expect("ours").signal())
}

#[test]
fn change_ended_at_its_run_timeout_reports_that() {
    let world = world_of(Call::StartThatHangs);
    let mut world = world.set("change_timeout", "1s");
    world.terminate();
    world.ended();
    world.start();
    let child = start(&world, Way::DropIn, &["orbctl", "start", "a"]);
    let (text, signal) = last_words(child);
    let id = world.client().find("start", "a", JobStateWord::Ended).job_id;
    assert_eq!(
        text,
        format!("orbd: job {id} (start a) exceeded its run timeout and was ended\n")
    );
    assert_eq!(signal, Some(Signal::TERM.as_raw()));
}

#[test]
fn cancelled_change_reports_the_cancellation() {
    let world = world_of(Call::StartThatHangs);
    let mut child = start(&world, Way::DropIn, &["orbctl", "start", "a"]);
    Call::StartThatHangs.until_under_way(&world, &mut child);
    let mut caller = world.client();
    let id = caller.find("start", "a", JobStateWord::Running).job_id;
    caller.cancel(id);
    let (text, signal) = last_words(child);
    assert_eq!(
        text,
        format!("orbd: job {id} (start a) was cancelled while it ran\n")
    );
    assert_eq!(signal, Some(Signal::TERM.as_raw()));
}

#[test]
fn change_ended_by_force_names_the_forcing_job() {
    let world = world_of(Call::StartThatHangs);
    let mut child = start(&world, Way::DropIn, &["orbctl", "start", "a"]);
    Call::StartThatHangs.until_under_way(&world, &mut child);
    let mut caller = world.client();
    let id = caller.find("start", "a", JobStateWord::Running).job_id;
    let stop = Way::DropIn
        .command(&world, &["orbctl", "stop", "-f", "a"])
        .output()
        .expect("it starts");
    assert!(stop.status.success(), "{}", said(&stop));
    let by = caller.find("stop", "a", JobStateWord::Ended).job_id;
    let (text, signal) = last_words(child);
    let why = format!("job {id} (start a) was cancelled while it ran: preempted by job {by} (stop a)");
    assert!(text.starts_with(&format!("orbd: {why} of orbctl")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(signal, Some(Signal::TERM.as_raw()));
}

#[test]
fn orbd_ctl_reports_why_its_tool_was_ended_and_the_outcome() {
    let world = World::new()
        .machines(&["a"])
        .script("[[trouble]]\ncommand = \"export\"\nkind = \"hang\"\n")
        .started();
    let archive = world.path("a.tar.zst");
    let output = ctl(
        &world,
        &["export", "a", archive.to_str().expect("text"), "--timeout", "1s"],
    )
    .output()
    .expect("it starts");
    let text = said(&output);
    assert!(text.contains("exceeded its run timeout"), "{text}");
    assert!(text.contains("was interrupted"), "{text}");
}
