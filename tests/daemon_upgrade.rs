//! Upgrade: the program is replaced under a running daemon. Clients reconnect; nothing runs twice and no request stays
//! unanswered.
//!
//! The tests cannot build a second version. A copy of the same program with a comment at its end is another program, and the
//! next process is another instance.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests act as the client of a lease and start its process"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use orbd_proto::methods::{
    DaemonInfo, DaemonReload, JobInput, JobList, LeaseAcquire, LeaseRelease, MachineRestart, MachineRun,
    MachineStop, MetricsSummary,
};
use orbd_proto::types::{DaemonInfoAnswer, JobStateWord, LeaseAnswer, RunAnswer, Stream, Upgrade};
use serde_json::{Value, json};

use crate::support::{
    Caller, Wire, World, count_open, eventually, eventually_within, outcome_of, stdout_of, stream_of,
};

fn built() -> &'static Path {
    Path::new(programs::orbd())
}

fn info(caller: &mut Caller) -> DaemonInfoAnswer {
    caller.ok::<DaemonInfo>(json!({}))
}

/// Calls until the next instance of the daemon answers. The client reconnects by itself.
#[track_caller]
fn succeeded(caller: &mut Caller, before: &DaemonInfoAnswer) -> DaemonInfoAnswer {
    eventually("the next instance answers", || {
        let now = info(caller);
        (now.instance != before.instance).then_some(now)
    })
}

/// Connects, which makes the daemon check its binary, until the daemon reports an upgrade like this.
#[track_caller]
fn told(world: &World, wanted: impl Fn(&Upgrade) -> bool) -> Upgrade {
    eventually("the daemon reports an upgrade", || {
        info(&mut world.client())
            .upgrade
            .filter(|upgrade| wanted(upgrade))
    })
}

/// Writes a script and installs it as the daemon's program.
fn install_script(world: &World, interpreter: &Path, script: &str) {
    let path = world.path("script");
    fs::write(&path, format!("#!{}\n{script}\n", interpreter.display())).expect("written");
    world.install(&path);
}

fn sh() -> PathBuf {
    PathBuf::from("/bin/sh")
}

/// Reads until the daemon closes the connection for an upgrade; returns the answers by id, and how many requests the
/// daemon read.
#[track_caller]
fn closed(wire: &mut Wire) -> (BTreeMap<u64, Value>, u64) {
    let mut answers = BTreeMap::new();
    let mut requests_read = None;
    while let Some(message) = wire.receive() {
        assert_eq!(requests_read, None, "the last message is `daemon.closing`");
        if message["method"] == "daemon.closing" {
            requests_read = message["params"]["requests_read"].as_u64();
        } else if let Some(id) = message["id"].as_u64() {
            assert!(answers.insert(id, message).is_none(), "{id} is answered once");
        }
    }
    (answers, requests_read.expect("an upgrade says how much was read"))
}

fn post(request: &Value) -> String {
    let body = request.to_string();
    format!(
        "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request over HTTP; returns the answer, and whether the connection stays open.
fn post_call(wire: &mut Wire, method: &str, params: &Value) -> (Value, bool) {
    wire.send(post(
        &json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}),
    ));
    posted(wire)
}

fn posted(wire: &mut Wire) -> (Value, bool) {
    let head = wire.head().to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).expect("a length");
    let length = length.lines().next().and_then(|length| length.parse().ok());
    let body = wire.exactly(length.expect("a number"));
    (
        serde_json::from_slice(&body).expect("JSON"),
        !head.contains("connection: close"),
    )
}

#[test]
fn new_program_takes_over_with_the_same_pid_and_clients_reconnect() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    caller.0.hello("steadfast").expect("it is greeted");
    let before = info(&mut caller);
    let mut silent = world.wire();
    let mut used = world.wire();
    used.call(1, "daemon.info", &json!({}));
    let mut http = world.wire();
    let (answer, _) = post_call(&mut http, "daemon.info", &json!({}));
    assert_eq!(answer["result"]["instance"], before.instance, "{answer}");
    world.install(built());
    // The daemon checks its binary when a client connects. This client has sent nothing when the new program takes
    // over.
    let mut fresh = world.wire();
    let after = succeeded(&mut caller, &before);
    assert_eq!((after.pid, &after.socket), (before.pid, &before.socket));
    let path = world.path("bin/orbd").display().to_string();
    assert_eq!(
        (&before.program, &after.program),
        (&Some(path.clone()), &Some(path))
    );
    assert_eq!(after.upgrade, None);
    for (wire, read) in [(&mut silent, 0), (&mut used, 1), (&mut fresh, 0)] {
        let (answers, requests_read) = closed(wire);
        assert_eq!((answers.len(), requests_read), (0, read));
    }
    assert!(http.is_closed());
    let id = caller.run_detached("a", &["true"]);
    assert_eq!(
        caller.job(id).client.name,
        "steadfast",
        "the client sent `daemon.hello` again"
    );
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
}

#[test]
fn program_with_the_same_contents_replaces_nothing() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let before = info(&mut caller);
    for times in 1..=2 {
        world.reinstall();
        drop(world.client());
        eventually("the daemon compares the contents", || {
            let found = world.log().matches("reinstalled with the same contents").count();
            (found == times).then_some(())
        });
    }
    eventually("the check has ended", || {
        info(&mut caller).upgrade.is_none().then_some(())
    });
    assert_eq!(info(&mut caller).instance, before.instance);
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
}

#[test]
fn older_program_is_refused() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let before = info(&mut caller);
    install_script(&world, &sh(), "echo 'orbd 0.0.1 protocol 1 handoff 1'");
    let upgrade = told(&world, |upgrade| upgrade.state == "refused");
    let reason = upgrade.reason.expect("it says why");
    assert!(reason.contains("orbd 0.0.1, older than"), "{reason}");
    assert_eq!(info(&mut caller).instance, before.instance);
}

#[test]
fn daemon_whose_program_was_deleted_serves_its_clients_and_ends_after_the_last() {
    let mut world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    fs::remove_file(world.path("bin/orbd")).expect("ours");
    assert_eq!(stdout_of(&caller.run("a", &["echo", "here"])), "here\n");
    // The helper process of the metrics runs the deleted program.
    let summary = caller.ok::<MetricsSummary>(json!({}));
    assert!(!summary.rows.is_empty());
    drop(caller);
    drop(world.client());
    assert_eq!(world.ended().code(), Some(0), "{}", world.log());
    assert!(world.log().contains("the program was deleted"), "{}", world.log());
}

#[test]
fn pipelined_requests_are_answered_or_counted_as_unread() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    caller.machines();
    let before = info(&mut caller);
    let mut wire = world.wire();
    world.install(built());
    drop(world.client());
    let lines: Vec<String> = (1..=100)
        .map(|id| {
            format!(
                "{}\n",
                json!({"jsonrpc": "2.0", "id": id, "method": "machine.list", "params": {}})
            )
        })
        .collect();
    // The upgrade may happen before, during or after these writes.
    let _ = wire.stream.write_all(lines.concat().as_bytes());
    succeeded(&mut caller, &before);
    let (answers, requests_read) = closed(&mut wire);
    assert!(
        answers.values().all(|answer| answer["error"].is_null()),
        "{answers:?}"
    );
    assert!(
        answers.keys().copied().eq(1..=requests_read),
        "{requests_read}: {answers:?}"
    );
}

#[test]
fn half_a_request_counts_as_unread() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let mut wire = world.wire();
    let request = format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 7, "method": "daemon.info", "params": {}})
    );
    let (first, second) = request.split_at(request.len() / 2);
    wire.send(first);
    let mut http = world.wire();
    http.send("POST / HTTP/1.1\r\nhost: or");
    world.install(built());
    drop(world.client());
    let after = succeeded(&mut caller, &before);
    let (answers, requests_read) = closed(&mut wire);
    assert_eq!((answers.len(), requests_read), (0, 0));
    assert!(http.is_closed(), "the request was neither started nor answered");
    let mut again = world.wire();
    again.send(first);
    again.send(second);
    assert_eq!(
        again.receive().expect("an answer")["result"]["instance"],
        after.instance
    );
}

/// Runs a client in a loop without pauses. Each command has a unique arg.
fn load(world: &World, over: &Arc<AtomicBool>, run: fn(&Path, &str)) -> JoinHandle<Vec<String>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (over, socket) = (over.clone(), world.socket());
    std::thread::spawn(move || {
        let mut sent = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let unique = format!("word{}", NEXT.fetch_add(1, Ordering::Relaxed));
            run(&socket, &unique);
            sent.push(unique);
        }
        sent
    })
}

fn run_params(word: &str) -> Value {
    json!({"machine": "b", "command": ["echo", word]})
}

#[track_caller]
fn check_printed(answer: &Value, word: &str) {
    let answer: RunAnswer = serde_json::from_value(answer["result"].clone()).expect("an answer");
    assert_eq!(stdout_of(&answer), format!("{word}\n"));
}

/// Runs a command on a new connection.
fn run_with_client(socket: &Path, word: &str) {
    let answer = Caller::connect(socket).run("b", &["echo", word]);
    assert_eq!(stdout_of(&answer), format!("{word}\n"));
}

/// Runs a hundred commands at once over one connection, and sends those again that were not read.
fn run_pipelined(socket: &Path, word: &str) {
    let mut open: BTreeMap<u64, String> = (1..=100).map(|id| (id, format!("{word}-{id}"))).collect();
    while !open.is_empty() {
        let mut wire = Wire::connect(socket);
        let sent: Vec<u64> = open.keys().copied().collect();
        for (id, word) in &open {
            let request =
                json!({"jsonrpc": "2.0", "id": id, "method": "machine.run", "params": run_params(word)});
            // If the connection is closed meanwhile, its last message has the number of requests that were read.
            let _ = wire.stream.write_all(format!("{request}\n").as_bytes());
        }
        while !open.is_empty() {
            let message = wire.receive().expect("an answer, or `daemon.closing`");
            if message["method"] == "daemon.closing" {
                let read = message["params"]["requests_read"].as_u64().expect("a number");
                let read = usize::try_from(read).expect("few");
                assert!(
                    sent[..read].iter().all(|id| !open.contains_key(id)),
                    "every request that was read is answered"
                );
                break;
            }
            let id = message["id"].as_u64().expect("an id");
            check_printed(&message, &open.remove(&id).expect("answered once"));
        }
    }
}

/// Runs a command over HTTP, and retries if the daemon reports that nothing was started.
fn run_with_http(socket: &Path, word: &str) {
    loop {
        let mut wire = Wire::connect(socket);
        let (answer, _) = post_call(&mut wire, "machine.run", &run_params(word));
        if answer["error"]["data"]["kind"] != "draining" {
            return check_printed(&answer, word);
        }
    }
}

#[test]
fn busy_clients_do_not_delay_an_upgrade_forever() {
    // The daemon holds back new jobs after half a minute, so this test takes longer than that.
    let world = World::new().installed().machines(&["a", "b"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let over = Arc::new(AtomicBool::new(false));
    let loads = [run_with_client, run_with_client, run_with_http].map(|run| load(&world, &over, run));
    let pipelined = load(&world, &over, run_pipelined);
    world.install(built());
    let after = eventually_within(Duration::from_secs(90), "the next instance answers", || {
        let now = info(&mut caller);
        (now.instance != before.instance).then_some(now)
    });
    assert_eq!(after.pid, before.pid);
    over.store(true, Ordering::Relaxed);
    let mut words: Vec<String> = loads
        .into_iter()
        .flat_map(|load| load.join().expect("all was answered"))
        .collect();
    for word in pipelined.join().expect("all was answered") {
        words.extend((1..=100).map(|id| format!("{word}-{id}")));
    }
    words.sort();
    let mut ran: Vec<String> = world
        .ledger()
        .invocations
        .iter()
        .filter(|invocation| invocation.command == "run")
        .map(|invocation| invocation.args.last().expect("a word").clone())
        .collect();
    ran.sort();
    assert_eq!(ran, words, "each once");
}

#[test]
fn repeated_upgrades_leak_no_descriptors() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let count = || count_open(world.pid());
    let mut counts = Vec::new();
    for _ in 0..3 {
        let before = info(&mut caller);
        world.install(built());
        drop(world.client());
        succeeded(&mut caller, &before);
        // The connection that triggered the check may still be closing.
        let least = counts.iter().copied().min().unwrap_or(usize::MAX - 1);
        counts.push(eventually("closed connections are noticed", || {
            let now = count();
            (now <= least + 1).then_some(now)
        }));
    }
}

#[test]
fn under_load_no_call_is_lost_and_a_change_ends_in_its_own_instance() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"slow\"\nms = 4000\ntimes = 1")
        .installed()
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let change = world.background(|caller| {
        let instance = info(caller).instance;
        let changed = caller.ok::<MachineRestart>(json!({"machine": "a"})).changed;
        (changed, instance)
    });
    caller.find("restart", "a", JobStateWord::Running);
    world.install(built());
    let upgrade = told(&world, |upgrade| upgrade.state == "pending");
    assert_eq!(upgrade.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    let waits_for = upgrade.waits_for.expect("it says for what");
    assert!(waits_for.contains("restart a"), "{waits_for}");

    let over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|number| {
            let (over, socket) = (over.clone(), world.socket());
            std::thread::spawn(move || {
                let mut kept = Caller::connect(&socket);
                let mut runs = 0;
                while !over.load(Ordering::Relaxed) {
                    // Each of these panics if it is refused or not answered.
                    let mut fresh = Caller::connect(&socket);
                    fresh.machines();
                    kept.machines();
                    if number == 0 && runs < 20 {
                        let answer = kept.run("b", &["echo", "whole"]);
                        assert_eq!(stdout_of(&answer), "whole\n");
                        runs += 1;
                    }
                }
            })
        })
        .collect();
    let (changed, instance) = change.join().expect("it is told");
    assert_eq!((changed, &instance), (Some(true), &before.instance));
    let after = succeeded(&mut caller, &before);
    over.store(true, Ordering::Relaxed);
    for one in load {
        one.join().expect("nobody noticed");
    }
    assert_eq!(after.pid, before.pid);
    assert_eq!(world.ledger().spawns("restart"), 1);
    assert_eq!(world.ledger().spawns("run"), 20, "each once");
}

#[test]
fn program_that_fails_preflight_is_refused_once_and_the_old_one_serves() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    install_script(&world, &sh(), "echo 'this Mac is too old' >&2; exit 7");
    let upgrade = told(&world, |upgrade| upgrade.state == "refused");
    let reason = upgrade.reason.expect("it says why");
    assert!(reason.contains("this Mac is too old"), "{reason}");
    for _ in 0..5 {
        world.client().machines();
    }

    let half = world.path("half");
    let whole = fs::read(built()).expect("it was built");
    // A longer piece might pass: the missing part may be code that only runs after a failure.
    fs::write(&half, &whole[..whole.len() / 20]).expect("written");
    world.install(&half);
    told(&world, |upgrade| {
        upgrade.state == "refused" && upgrade.reason.as_ref() != Some(&reason)
    });
    // Lines are written a moment later: once the second warning is there, all lines about the first file are, too.
    let warnings = || world.log().matches("failed its preflight").count();
    eventually("the second warning is logged", || (warnings() > 1).then_some(()));
    assert_eq!(
        world.log().matches("this Mac is too old").count(),
        1,
        "{}",
        world.log()
    );
    install_script(&world, &sh(), "echo the configuration is valid");
    let upgrade = told(&world, |upgrade| {
        upgrade
            .reason
            .as_ref()
            .is_some_and(|reason| reason.contains("not an orbd"))
    });
    assert_eq!(upgrade.version, None);
    assert_eq!(info(&mut caller).instance, before.instance);
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
}

#[test]
fn upgrade_is_retried_after_an_invalid_configuration_is_fixed() {
    let world = World::new();
    let file = world.path("config.toml");
    fs::write(&file, "queue_max = 600\n").expect("written");
    let world = world
        .variable("ORBD_CONFIG", &file.display().to_string())
        .installed()
        .started();
    let mut caller = world.client();
    let before = info(&mut caller);
    fs::write(&file, "quue_max = 600\n").expect("written");
    world.install(built());
    let upgrade = told(&world, |upgrade| upgrade.state == "refused");
    let reason = upgrade.reason.expect("it says why");
    assert!(reason.contains("did you mean `queue_max`"), "{reason}");
    fs::write(&file, "queue_max = 700\n").expect("written");
    caller.ok::<DaemonReload>(json!({}));
    let after = succeeded(&mut caller, &before);
    assert_eq!(after.limits["queue_max"], 700);
}

#[test]
fn restoring_the_old_program_cancels_the_upgrade() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    caller.pause();
    let before = info(&mut caller);
    fs::hard_link(world.path("bin/orbd"), world.path("bin/old")).expect("a second name");
    world.install(built());
    let upgrade = told(&world, |upgrade| upgrade.state == "pending");
    let waits_for = upgrade.waits_for.expect("it says for what");
    assert!(waits_for.contains("the queue to be resumed"), "{waits_for}");
    fs::rename(world.path("bin/old"), world.path("bin/orbd")).expect("it is back");
    eventually("the upgrade is cancelled", || {
        info(&mut world.client()).upgrade.is_none().then_some(())
    });
    caller.resume();
    assert_eq!(info(&mut caller).instance, before.instance);
}

#[test]
fn lease_survives_an_upgrade_and_jobs_behind_it_run_afterwards() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let mut process = Command::new("sh")
        .args(["-c", "read go && exit ${go:-1}"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let params = json!({"operation": "push", "machine": "a", "pid": process.id()});
    let lease: LeaseAnswer = caller.ok::<LeaseAcquire>(params);
    let promised = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert_eq!(caller.job(promised).state, JobStateWord::Waiting);
    let before = info(&mut caller);
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
    let held = caller.job(promised);
    assert_eq!(held.state, JobStateWord::Waiting);
    assert_eq!(held.waiting_for.and_then(|it| it.job_id()), Some(lease.job_id));
    let mut stdin = process.stdin.take().expect("piped");
    writeln!(stdin, "0").expect("it reads");
    assert!(process.wait().expect("ours").success());
    let params = json!({"job_id": lease.job_id, "exit_code": 0});
    let released = caller.ok::<LeaseRelease>(params).job;
    assert_eq!(outcome_of(&released), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    assert_eq!(world.truth(), [("a".to_owned(), "stopped".to_owned())]);
}

#[test]
fn event_follower_reconnects_to_another_instance_and_gets_a_gap() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let mut follower = world.subscribed();
    let state = follower.until(|message| message["params"]["result"]["type"] == "state");
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
    let (_, requests_read) = closed(&mut follower);
    assert_eq!(requests_read, 2, "the subscription was one of them");
    let told = &state["params"]["result"];
    let params = json!({"since": told["sequence"], "instance": told["instance"]});
    let mut again = world.wire();
    again.call(1, "events.subscribe", &params);
    let gap = again.receive().expect("an event");
    assert_eq!(gap["params"]["result"]["type"], "gap", "{gap}");
}

#[test]
fn upgrade_does_not_interrupt_waiters_and_output_readers() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let gate = world.gate("gate");
    let id = caller.run_detached("a", &["sh", "-c", &format!("cat {gate}; echo read")]);
    world.install(built());
    told(&world, |upgrade| upgrade.state == "pending");
    let waiting = world.background(move |caller| caller.end_of(id));
    world.open_gate("gate");
    let ended = waiting.join().expect("it is told");
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
    // A client that was waiting gets time to fetch the output.
    let output = caller.output_from(id, 0, 3);
    assert_eq!(stream_of(&output, Stream::Stdout), b"go\nread\n");
    assert_eq!(info(&mut caller).instance, before.instance);
    succeeded(&mut caller, &before);
    assert!(
        caller.ok::<JobList>(json!({})).jobs.is_empty(),
        "a new instance knows no ended jobs"
    );
}

#[test]
fn failed_exec_ends_the_daemon_so_that_another_can_be_started() {
    let mut world = World::new().installed().started();
    let interpreter = world.path("interpreter");
    std::os::unix::fs::symlink("/bin/sh", &interpreter).expect("a link");
    let script = format!(
        "rm {}; echo 'orbd 9.0 protocol 1 handoff 1'",
        interpreter.display()
    );
    install_script(&world, &interpreter, &script);
    drop(world.client());
    let status = world.ended();
    assert_eq!(status.code(), Some(1), "{}", world.log());
    assert!(!world.socket().exists());
    assert!(world.log().contains("could not be executed"), "{}", world.log());
    world.install(built());
    world.start();
    world.client().machines();
}

#[test]
fn stop_during_a_pending_upgrade_stops_the_daemon() {
    let mut world = World::new().installed().started();
    let mut caller = world.client();
    caller.pause();
    world.install(built());
    told(&world, |upgrade| upgrade.state == "pending");
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    assert!(!world.socket().exists());
}

#[test]
fn streamed_input_reaches_its_command_during_a_pending_upgrade() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let params = json!({"machine": "a", "command": ["cat"], "stdin_stream": true, "detach": true});
    let id = caller.ok::<MachineRun>(params).job_id;
    let mut wire = world.wire();
    world.install(built());
    told(&world, |upgrade| upgrade.state == "pending");
    caller.ok::<JobInput>(json!({"job_id": id, "text": "one\n"}));
    let (answer, _) = post_call(
        &mut wire,
        "job.input",
        &json!({"job_id": id, "text": "two\n", "eof": true}),
    );
    assert_eq!(answer["result"]["open"], true, "{answer}");
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    let output = caller.output_from(id, 0, 1000);
    assert_eq!(stream_of(&output, Stream::Stdout), b"one\ntwo\n");
    assert_eq!(info(&mut caller).instance, before.instance);
    succeeded(&mut caller, &before);
    assert_eq!(world.ledger().spawns("run"), 1);
}

#[test]
fn upgrade_waits_for_a_running_download() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let count = 8 << 20;
    let id = caller.run_detached("a", &["sh", "-c", &format!("head -c {count} /dev/zero")]);
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    let mut download = world.wire();
    download.send(format!(
        "GET /jobs/{id}/output HTTP/1.1\r\nhost: orbd\r\nconnection: close\r\n\r\n"
    ));
    let head = download.head();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    world.install(built());
    let upgrade = eventually("the download is waited for", || {
        let upgrade = info(&mut world.client()).upgrade?;
        let waits_for = upgrade.waits_for?;
        waits_for.contains("run a").then_some(waits_for)
    });
    assert!(upgrade.contains("run a"), "{upgrade}");
    let mut body = Vec::new();
    while let Some(line) = download.line() {
        let size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
        body.extend(download.exactly(size));
        download.exactly(2);
        if size == 0 {
            break;
        }
    }
    assert_eq!(body.len(), count, "to its end");
    succeeded(&mut caller, &before);
}

#[test]
fn http_waiter_is_answered_before_the_upgrade() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let gate = world.gate("gate");
    let id = caller.run_detached("a", &["sh", "-c", &format!("cat {gate}")]);
    let mut http = world.wire();
    http.send(post(
        &json!({"jsonrpc": "2.0", "id": 1, "method": "job.wait", "params": {"job_id": id}}),
    ));
    world.install(built());
    told(&world, |upgrade| upgrade.state == "pending");
    world.open_gate("gate");
    let (answer, _) = posted(&mut http);
    assert_eq!(answer["result"]["job"]["state"], "ended", "{answer}");
    succeeded(&mut caller, &before);
    assert_eq!(world.ledger().spawns("run"), 1);
}

#[test]
fn daemon_killed_during_the_exec_leaves_a_usable_socket() {
    let mut world = World::new().installed().machines(&["a"]).started();
    let gate = world.gate("gate");
    let script = format!(
        "case \"$*\" in *--preflight) echo 'orbd 9.0 protocol 1 handoff 1' ;; *) read go < {gate} ;; esac"
    );
    install_script(&world, &sh(), &script);
    drop(world.client());
    let at_gate = world.at_gate("gate");
    // No process accepts this connection: the new program has not started to serve.
    let mut waits = world.wire();
    waits.request(1, "daemon.info", &json!({}));
    world.kill();
    drop(at_gate);
    assert!(waits.receive().is_none());
    world.install(built());
    world.start();
    world.client().machines();
}

#[test]
fn daemon_takes_over_a_socket_passed_as_by_systemd() {
    let mut world = World::new().installed();
    let listener = UnixListener::bind(world.socket()).expect("as systemd does");
    let command = world.daemon_command();
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut shell = Command::new("/bin/sh");
    // Through a shell, because `LISTEN_PID` is the number of the daemon's own process.
    shell
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 0</dev/null",
            "sh",
        ])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(environment)
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null());
    world.adopt(shell.spawn().expect("a shell"));
    drop(shell);
    world.until_it_answers();
    let mut caller = world.client();
    let before = info(&mut caller);
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    assert!(world.socket().exists(), "the socket belongs to systemd");
}
