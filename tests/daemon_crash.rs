//! Deaths of the daemon: children live on, and the next life must neither run beside them nor forget what was promised.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use orbd::client::Client;
use orbd::rpc::api::{
    JobGet, MachineCreate, MachineList, MachineRestart, MachineRun, MachineStart, MachineStop, QueueDrain,
};
use orbd::rpc::types::JobStateWord;
use serde_json::json;

use crate::support::{Caller, Random, World, eventually, outcome_of};

#[test]
fn a_change_that_outlived_the_daemon_holds_its_lane_until_it_is_gone() {
    let mut world = World::new()
        .latency("restart=900")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let attached = world.background(|caller| {
        caller
            .try_call::<MachineRestart>(json!({"machine": "a"}))
            .is_err()
    });
    let id = caller.find("restart", "a", JobStateWord::Running).id;
    eventually("it is there", || {
        (world.ledger().spawns("restart") == 1).then_some(())
    });
    world.kill();
    assert!(attached.join().expect("it is told"), "the connection is lost");
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(id).state, JobStateWord::Running);
    let next = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = caller.job(next).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id, Some(id));
    assert_eq!(
        caller.run("b", &["true"]).exit_code,
        Some(0),
        "other machines go on"
    );
    assert_eq!(outcome_of(&caller.end_of(next)), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(id)), ("unknown", "outcome_unknown"));
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    assert_eq!(ledger.order_on("a"), ["restart", "restart"]);
}

/// Starts a daemon whose `orbctl` talks on both streams, as the real one does, until there is a file `go`, and then some more before
/// it makes a machine; it leaves files `begun` and `made`. All else is the stand-in's.
fn talkative() -> World {
    let world = World::new();
    let program = world.path("orbctl");
    let text = format!(
        "#!/bin/sh\n\
         progress() {{ echo \"creating\"; echo \"still creating\" >&2; sleep 0.1; }}\n\
         if [ \"$1\" = create ]; then\n\
         : > '{folder}/begun'\n\
         while [ ! -e '{folder}/go' ]; do progress; done\n\
         for more in 1 2 3; do progress; done\n\
         '{sim}' \"$@\" && : > '{folder}/made'\n\
         exit\n\
         fi\n\
         exec '{sim}' \"$@\"\n",
        folder = world.path("").display(),
        sim = env!("CARGO_BIN_EXE_orbctl-sim"),
    );
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
    let program = program.display().to_string();
    world.variable("ORBD_ORBCTL", &program).started()
}

/// Starts to make a machine; returns the job.
fn making(world: &World) -> u64 {
    let mut caller = world.client();
    let params = json!({"name": "a", "distro": "ubuntu", "detach": true});
    let id = caller.ok::<MachineCreate>(params).job_id;
    caller.until_running(id);
    eventually("it is there", || world.path("begun").exists().then_some(()));
    id
}

/// Lets the change go on when its daemon is gone, and looks how it ends.
fn finishes_alone(world: &mut World, id: u64) {
    fs::write(world.path("go"), "").expect("written");
    eventually("the machine is made", || {
        world.path("made").exists().then_some(())
    });
    world.start();
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(id)), ("unknown", "outcome_unknown"));
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    assert_eq!(world.ledger().spawns("create"), 1);
}

#[test]
fn a_change_that_talks_finishes_although_the_daemon_was_killed() {
    let mut world = talkative();
    let id = making(&world);
    world.kill();
    finishes_alone(&mut world, id);
}

#[test]
fn a_change_that_talks_finishes_although_the_daemon_was_stopped_and_has_left() {
    let mut world = talkative();
    let id = making(&world);
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    finishes_alone(&mut world, id);
}

#[test]
fn a_command_that_outlived_the_daemon_is_ended_before_anything_changes_its_machine() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let id = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(id);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    world.kill();
    world.start();
    let mut caller = world.client();
    let next = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    // Its words died with the daemon that ran it, and so did whoever would read what it says: nobody opens the gate.
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
    assert_eq!(outcome_of(&caller.end_of(next)), ("succeeded", ""));
    world.ledger().assert_no_overlap();
}

#[test]
fn a_promised_change_runs_once_after_a_crash_and_one_that_was_not_promised_never() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(holding);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    let attached =
        world.background(|caller| drop(caller.try_call::<MachineRestart>(json!({"machine": "a"}))));
    caller.find("restart", "a", JobStateWord::Waiting);
    let promised = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    world.kill();
    world.start();
    attached.join().expect("no panic");
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    for _ in 0..2 {
        world.kill();
        world.start();
    }
    let mut caller = world.client();
    caller.machines();
    assert_eq!(world.ledger().order_on("a"), ["run", "stop"]);
    assert_eq!(
        caller.refused::<JobGet>(json!({"job_id": promised})).kind,
        "job_not_found"
    );
}

#[test]
fn what_outlived_the_daemon_can_be_cancelled_and_is_passed_by_force() {
    let mut world = World::new()
        .set("grace", "200ms")
        .script(
            "[[trouble]]\ncommand = \"restart\"\nkind = \"hang_hard\"\n\
             [[trouble]]\ncommand = \"run\"\nkind = \"hang_hard\"",
        )
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let change = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let command = caller.run_detached("b", &["true"]);
    eventually("both are there", || {
        (world.ledger().invocations.len() == 2).then_some(())
    });
    world.kill();
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.cancel(change), "stopping");
    assert_eq!(outcome_of(&caller.end_of(change)).0, "unknown");
    let told = caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(told.changed, Some(true));
    assert_eq!(outcome_of(&caller.end_of(command)).0, "interrupted");
    for invocation in world.ledger().invocations.iter().take(2) {
        assert!(!crate::support::is_alive(invocation.pid), "{invocation:?}");
    }
}

#[test]
fn ids_are_never_used_again() {
    let mut world = World::with_machines(&["a"]);
    let mut seen = BTreeSet::new();
    for life in 0..5 {
        let mut caller = world.client();
        for _ in 0..4 {
            let id = caller.run("a", &["true"]).job_id;
            assert!(seen.last().is_none_or(|last| *last < id), "{id} after {seen:?}");
            seen.insert(id);
        }
        if life % 2 == 0 {
            world.kill();
        } else {
            world.terminate();
            world.ended();
        }
        world.start();
    }
}

#[test]
fn what_was_known_before_a_crash_is_not_told_after_it() {
    let mut world = World::with_machines(&["a"]);
    world.client().machines();
    world.kill();
    assert!(world.sim(&["stop", "a"]).status.success());
    world.start();
    assert_eq!(world.client().state_of("a").as_deref(), Some("stopped"));
}

/// How often the daemon is killed under load.
const KILLS: usize = 15;
/// Clients that make the load.
const CLIENTS: u64 = 4;

/// What the clients of the load share.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    /// Machines whose making was promised, with the jobs' ids.
    promised: Mutex<Vec<(String, u64)>>,
    /// Ids that were told, with the number of the life that told them.
    told: Mutex<Vec<u64>>,
}

/// Makes calls until the load is over, and connects again whenever the daemon dies.
fn keep_calling(load: &Load, socket: &std::path::Path, client: u64, seed: u64) {
    let mut random = Random::new(seed.wrapping_add(client * 1_000_003));
    let mut number = 0;
    while !load.is_over.load(Ordering::Relaxed) {
        let Ok(connection) = Client::connect(socket) else {
            std::thread::yield_now();
            continue;
        };
        connection
            .set_timeout(Some(crate::support::PATIENCE))
            .expect("a timeout");
        let mut caller = Caller(connection);
        while !load.is_over.load(Ordering::Relaxed) {
            let machine = ["a", "b", "c"][usize::try_from(random.below(3)).expect("small")];
            let of_machine = json!({"machine": machine});
            let answered = match random.below(8) {
                0..=2 => {
                    let params = json!({"machine": machine, "command": ["true"]});
                    caller
                        .try_call::<MachineRun>(params)
                        .map(|answer| answer.ok().map(|run| run.job_id))
                }
                3 => caller
                    .try_call::<MachineRestart>(of_machine)
                    .map(|answer| answer.ok().map(|change| change.job_id)),
                4 => caller
                    .try_call::<MachineStop>(of_machine)
                    .map(|answer| answer.ok().map(|change| change.job_id)),
                5 => caller
                    .try_call::<MachineStart>(of_machine)
                    .map(|answer| answer.ok().map(|change| change.job_id)),
                6 => caller
                    .try_call::<MachineList>(json!({"max_age_ms": 0}))
                    .map(|_| None),
                _ => {
                    number += 1;
                    let name = format!("new-{client}-{number}");
                    let params = json!({"name": name, "distro": "ubuntu", "detach": true});
                    caller.try_call::<MachineCreate>(params).map(|answer| {
                        let id = answer.ok()?.job_id;
                        load.promised.lock().expect("no panic").push((name, id));
                        Some(id)
                    })
                }
            };
            match answered {
                Ok(Some(id)) => load.told.lock().expect("no panic").push(id),
                Ok(None) => {}
                Err(_) => break,
            }
        }
    }
}

#[test]
fn under_load_and_many_deaths_nothing_overlaps_is_lost_or_runs_twice() {
    let seed = u64::from(std::process::id()) << 16 | 0x5eed;
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let mut world = World::new()
        .latency("run=5,restart=15,stop=10,start=10,create=20,list=3")
        .machines(&["a", "b", "c"])
        .started();
    let load = Arc::new(Load::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (load, socket) = (load.clone(), world.socket());
            std::thread::spawn(move || keep_calling(&load, &socket, client, seed))
        })
        .collect();
    for _ in 0..KILLS {
        // Work is what time is measured in here.
        let enough = world.ledger().invocations.len() + 2 + usize::try_from(random.below(20)).expect("small");
        eventually("work is done", || {
            (world.ledger().invocations.len() >= enough).then_some(())
        });
        world.kill();
        world.start();
    }
    load.is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no panic");
    }
    let status = world.client().ok::<QueueDrain>(json!({}));
    assert_eq!((status.waiting, status.running), (0, 0));
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    let promised = load.promised.lock().expect("no panic");
    assert!(
        promised.len() > KILLS,
        "too few promises to tell: {}",
        promised.len()
    );
    let log = world.log();
    for (name, id) in promised.iter() {
        let times = ledger
            .of("create")
            .iter()
            .filter(|one| one.args.contains(name))
            .count();
        // A death between the note that it starts and the start itself: told as unknown, never tried again.
        let cut = format!("job_id={id} operation=\"create\" children=0");
        assert!(
            times == 1 || (times == 0 && log.contains(&cut)),
            "job {id} ({name}) ran {times} times, seed {seed}"
        );
    }
    let told = load.told.lock().expect("no panic");
    let different: BTreeSet<_> = told.iter().collect();
    assert_eq!(different.len(), told.len(), "an id was told twice, seed {seed}");
}
