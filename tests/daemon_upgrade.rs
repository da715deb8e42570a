//! Upgrade: the program is replaced under a daemon that runs, and nobody who uses it notices.
//!
//! No second version can be built here. Another copy of the same program is another file, and another life has another instance.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests are the client of a lease, whose process it is"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use orbd::rpc::api::{
    DaemonInfo, DaemonReload, JobList, MachineRestart, MachineStop, SessionLease, SessionRelease,
};
use orbd::rpc::types::{DaemonInfoAnswer, JobStateWord, LeaseAnswer, Upgrade};
use serde_json::json;

use crate::support::{Caller, World, count_open, eventually, outcome_of, stdout_of};

fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_orbd"))
}

fn info(caller: &mut Caller) -> DaemonInfoAnswer {
    caller.ok::<DaemonInfo>(json!({}))
}

/// Asks until another life of the daemon answers, on the connection that there is.
#[track_caller]
fn succeeded(caller: &mut Caller, before: &DaemonInfoAnswer) -> DaemonInfoAnswer {
    eventually("another life answers", || {
        let now = info(caller);
        (now.instance != before.instance).then_some(now)
    })
}

/// Connects, which is when the daemon looks, until it tells of an upgrade like this.
#[track_caller]
fn told(world: &World, wanted: impl Fn(&Upgrade) -> bool) -> Upgrade {
    eventually("the daemon tells of an upgrade", || {
        info(&mut world.client())
            .upgrade
            .filter(|upgrade| wanted(upgrade))
    })
}

/// Writes a program of these lines, and puts it where the daemon was started from.
fn install_script(world: &World, interpreter: &Path, script: &str) {
    let path = world.path("script");
    fs::write(&path, format!("#!{}\n{script}\n", interpreter.display())).expect("written");
    world.install(&path);
}

fn sh() -> PathBuf {
    PathBuf::from("/bin/sh")
}

#[test]
fn a_replaced_program_takes_over_with_the_same_pid_and_the_connections_that_there_are() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    caller.0.hello("steadfast").expect("it is greeted");
    let before = info(&mut caller);
    let mut silent = world.wire();
    world.install(built());
    // A connection is when it looks, and this one has said nothing when the other program takes over.
    let mut fresh = world.wire();
    let after = succeeded(&mut caller, &before);
    assert_eq!((after.pid, &after.socket), (before.pid, &before.socket));
    assert_eq!(after.upgrade, None);
    for wire in [&mut silent, &mut fresh] {
        let answer = wire.call(1, "daemon.info", &json!({}));
        assert_eq!(answer["result"]["instance"], after.instance, "{answer}");
    }
    let id = caller.run_detached("a", &["true"]);
    assert_eq!(caller.job(id).client.name, "steadfast", "it is known by its name");
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
}

#[test]
fn one_upgrade_after_the_other_leaves_nothing_behind() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let count = || count_open(world.pid());
    let mut counts = Vec::new();
    for _ in 0..3 {
        let before = info(&mut caller);
        world.install(built());
        drop(world.client());
        succeeded(&mut caller, &before);
        // The connection that was only there to be noticed may still be on its way out.
        let least = counts.iter().copied().min().unwrap_or(usize::MAX - 1);
        counts.push(eventually("what is gone is closed", || {
            let now = count();
            (now <= least + 1).then_some(now)
        }));
    }
}

#[test]
fn under_load_nothing_is_lost_and_a_change_ends_where_it_began() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"slow\"\nms = 1200\ntimes = 1")
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
                    // Each of these panics when it is refused or cut off.
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
fn a_program_that_does_not_prove_itself_leaves_the_old_one_serving_and_is_told_once() {
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
    // What is missing of a longer piece may be what is only read when something fails.
    fs::write(&half, &whole[..whole.len() / 20]).expect("written");
    world.install(&half);
    told(&world, |upgrade| {
        upgrade.state == "refused" && upgrade.reason.as_ref() != Some(&reason)
    });
    // Lines come a moment after what they tell of: once the second warning is there, so is all of the first file's.
    let warnings = || world.log().matches("does not prove itself").count();
    eventually("the second is warned of", || (warnings() > 1).then_some(()));
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
            .is_some_and(|reason| reason.contains("no orbd"))
    });
    assert_eq!(upgrade.version, None);
    assert_eq!(info(&mut caller).instance, before.instance);
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
}

#[test]
fn a_configuration_that_the_new_program_refuses_is_mended_and_looked_at_again() {
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
fn the_old_program_that_comes_back_takes_back_the_upgrade() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    caller.pause();
    let before = info(&mut caller);
    fs::hard_link(world.path("bin/orbd"), world.path("bin/old")).expect("a second name");
    world.install(built());
    let upgrade = told(&world, |upgrade| upgrade.state == "pending");
    let waits_for = upgrade.waits_for.expect("it says for what");
    assert!(waits_for.contains("a pause of the queue"), "{waits_for}");
    fs::rename(world.path("bin/old"), world.path("bin/orbd")).expect("it is back");
    eventually("it is taken back", || {
        info(&mut world.client()).upgrade.is_none().then_some(())
    });
    caller.resume();
    assert_eq!(info(&mut caller).instance, before.instance);
}

#[test]
fn a_lease_runs_on_over_an_upgrade_and_what_waits_behind_it_is_done_after_it() {
    let world = World::new().installed().machines(&["a"]).started();
    let mut caller = world.client();
    let mut process = Command::new("sh")
        .args(["-c", "read go && exit ${go:-1}"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let params = json!({"operation": "push", "machine": "a", "pid": process.id()});
    let lease: LeaseAnswer = caller.ok::<SessionLease>(params);
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
    assert_eq!(held.waiting_for.and_then(|it| it.job_id), Some(lease.job_id));
    let mut stdin = process.stdin.take().expect("piped");
    writeln!(stdin, "0").expect("it reads");
    assert!(process.wait().expect("ours").success());
    let params = json!({"job_id": lease.job_id, "exit_code": 0});
    let released = caller.ok::<SessionRelease>(params).job;
    assert_eq!(outcome_of(&released), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    assert_eq!(world.truth(), [("a".to_owned(), "stopped".to_owned())]);
}

#[test]
fn a_follower_of_events_comes_back_to_another_instance() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    let before = info(&mut caller);
    let mut follower = world.subscribed();
    let state = follower.until(|message| message["params"]["result"]["type"] == "state");
    world.install(built());
    drop(world.client());
    succeeded(&mut caller, &before);
    while follower.receive().is_some() {}
    let told = &state["params"]["result"];
    let params = json!({"since": told["sequence"], "instance": told["instance"]});
    let mut again = world.wire();
    again.call(1, "events.subscribe", &params);
    let gap = again.receive().expect("an event");
    assert_eq!(gap["params"]["result"]["type"], "gap", "{gap}");
}

#[test]
fn whoever_waits_for_a_job_or_reads_what_it_wrote_is_not_interrupted() {
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
    // Whoever was told is given the time to fetch it.
    let output = caller.output_from(id, 0, 3);
    assert_eq!(
        crate::support::stream_of(&output, orbd::rpc::types::Stream::Stdout),
        b"go\nread\n"
    );
    assert_eq!(info(&mut caller).instance, before.instance);
    succeeded(&mut caller, &before);
    assert!(
        caller.ok::<JobList>(json!({})).jobs.is_empty(),
        "a new life knows no ended jobs"
    );
}

#[test]
fn a_program_that_cannot_be_executed_ends_the_daemon_so_that_another_is_started() {
    let mut world = World::new().installed().started();
    let interpreter = world.path("interpreter");
    std::os::unix::fs::symlink("/bin/sh", &interpreter).expect("a link");
    let script = format!(
        "rm {}; echo 'orbd 9.0 protocol 1 heirloom 1'",
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
fn a_stop_that_comes_while_an_upgrade_is_pending_is_a_stop() {
    let mut world = World::new().installed().started();
    let mut caller = world.client();
    caller.pause();
    world.install(built());
    told(&world, |upgrade| upgrade.state == "pending");
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    assert!(!world.socket().exists());
}
