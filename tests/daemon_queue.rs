//! Order and concurrency limits, checked against the stand-in's ledger.

use std::sync::{Arc, Barrier};

use orbd_proto::methods::{
    DaemonHello, JobGet, MachineCreate, MachineInfo, MachineList, MachineRestart, MachineRun, MachineStart,
    MachineStop,
};
use orbd_proto::types::{JobStateWord, WaitReason};
use serde_json::json;

use crate::support::{Caller, World, eventually, outcome_of};

#[test]
fn changes_of_one_machine_run_in_order_of_acceptance() {
    let world = World::new()
        .latency("restart=20,stop=20")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    caller.pause();
    let mut last = 0;
    for _ in 0..3 {
        caller.ok::<MachineRestart>(json!({"machine": "a", "detach": true}));
        caller.ok::<MachineStop>(json!({"machine": "a", "detach": true}));
        last = caller
            .ok::<MachineStart>(json!({"machine": "a", "detach": true}))
            .job_id;
    }
    caller.resume();
    assert_eq!(outcome_of(&caller.end_of(last)), ("succeeded", ""));
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    assert_eq!(ledger.order_on("a"), ["restart", "stop", "start"].repeat(3));
}

#[test]
fn changes_of_different_machines_run_in_parallel() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"hang\"")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    for machine in ["a", "b"] {
        let id = caller
            .ok::<MachineRestart>(json!({"machine": machine, "detach": true}))
            .job_id;
        caller.until_running(id);
    }
    eventually("both are there", || {
        (world.ledger().most_at_once(|one| one.command == "restart") == 2).then_some(())
    });
}

/// Starts changes at once and returns the most that ran at the same time.
fn most_together(world: &World, changes: impl FnOnce(&mut Caller) -> Vec<u64>) -> usize {
    let mut caller = world.client();
    caller.pause();
    let ids = changes(&mut caller);
    caller.resume();
    for id in ids {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    ledger.most_at_once(|one| matches!(one.command.as_str(), "restart" | "create"))
}

#[test]
fn changes_max_limits_parallel_changes() {
    let names = ["a", "b", "c", "d", "e"];
    let world = World::new()
        .set("changes_max", "3")
        .latency("restart=150")
        .machines(&names)
        .started();
    let most = most_together(&world, |caller| {
        names
            .map(|machine| {
                caller
                    .ok::<MachineRestart>(json!({"machine": machine, "detach": true}))
                    .job_id
            })
            .to_vec()
    });
    assert_eq!(most, 3);
}

#[test]
fn creates_max_limits_parallel_creates() {
    let world = World::new().latency("create=150").started();
    let most = most_together(&world, |caller| {
        ["a", "b", "c", "d"]
            .map(|name| {
                let params = json!({"name": name, "distro": "ubuntu", "detach": true});
                caller.ok::<MachineCreate>(params).job_id
            })
            .to_vec()
    });
    assert_eq!(most, 2, "the default of creates_max");
}

#[test]
fn exec_per_machine_limits_commands_and_the_next_one_reports_its_wait() {
    let world = World::new()
        .set("exec_per_machine", "2")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let gates = ["one", "two", "three"];
    let ids = gates.map(|gate| caller.run_detached("a", &["cat", &world.gate(gate)]));
    caller.until_running(ids[0]);
    caller.until_running(ids[1]);
    let elsewhere = caller.run_detached("b", &["true"]);
    assert_eq!(outcome_of(&caller.end_of(elsewhere)), ("succeeded", ""));
    let waiting = caller.job(ids[2]);
    assert_eq!(waiting.state, JobStateWord::Waiting);
    let waits_for = waiting.waiting_for.expect("it waits");
    let limit = "exec_per_machine".to_owned();
    assert_eq!(waits_for.reason, WaitReason::Limit { limit });
    for gate in gates {
        world.open_gate(gate);
    }
    for id in ids {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
}

#[test]
fn queries_max_limits_parallel_reads() {
    let names = ["a", "b", "c", "d", "e"];
    let world = World::new()
        .set("queries_max", "2")
        .latency("info=150")
        .machines(&names)
        .started();
    let calls = names.map(|machine| {
        world.background(move |caller| {
            caller.ok::<MachineInfo>(json!({"machine": machine}));
        })
    });
    for call in calls {
        call.join().expect("it is told");
    }
    assert_eq!(world.ledger().most_at_once(|one| one.command == "info"), 2);
}

#[test]
fn strict_runs_one_invocation_at_a_time_without_deadlock() {
    let world = World::new()
        .set("strict", "true")
        .latency("list=10,restart=10,run=10,start=10")
        .machines(&["a", "b"])
        .started();
    let barrier = Arc::new(Barrier::new(6));
    let calls: Vec<_> = (0..6)
        .map(|number| {
            let barrier = barrier.clone();
            world.background(move |caller| {
                let machine = ["a", "b"][number % 2];
                barrier.wait();
                match number / 2 {
                    0 => drop(caller.ok::<MachineStart>(json!({"machine": machine}))),
                    1 => drop(caller.run(machine, &["true"])),
                    _ => drop(caller.ok::<MachineList>(json!({"max_age_ms": 0}))),
                }
            })
        })
        .collect();
    for call in calls {
        call.join().expect("it is told");
    }
    let ledger = world.ledger();
    assert!(ledger.invocations.len() >= 5, "{ledger:?}");
    assert_eq!(ledger.most_at_once(|_| true), 1);
}

#[test]
fn ten_concurrent_equal_lists_start_one_invocation() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    // While the first one waits, every equal read joins it.
    caller.pause();
    let calls: Vec<_> = (0..10).map(|_| world.background(Caller::machines)).collect();
    let waiting = caller.find("list", "", JobStateWord::Waiting);
    eventually("nine join the first", || {
        (caller.job(waiting.job_id).joined_callers == 9).then_some(())
    });
    caller.resume();
    for call in calls {
        assert_eq!(call.join().expect("it is told")[0].name, "a");
    }
    assert_eq!(world.ledger().spawns("list"), 1);
}

#[test]
fn running_read_is_joined() {
    let world = World::new().latency("list=1500").machines(&["a"]).started();
    let mut caller = world.client();
    let first = world.background(Caller::machines);
    caller.find("list", "", JobStateWord::Running);
    assert_eq!(caller.machines().len(), 1);
    first.join().expect("it is told");
    assert_eq!(world.ledger().spawns("list"), 1);
}

#[test]
fn waiting_for_names_the_blocking_job_and_its_client() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut holder = world.client();
    holder.ok::<DaemonHello>(json!({"client": "holder", "protocol": 1}));
    let holding = holder.run_detached("a", &["cat", &gate]);
    holder.until_running(holding);
    let mut caller = world.client();
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = caller
        .ok::<JobGet>(json!({"job_id": waiting}))
        .job
        .waiting_for
        .expect("it waits");
    let WaitReason::Job {
        job_id,
        operation,
        machine,
        client,
        ..
    } = waits_for.reason
    else {
        panic!("{waits_for:?}");
    };
    assert_eq!((job_id, operation.as_str()), (holding, "run"));
    assert_eq!((machine.as_deref(), client.as_str()), (Some("a"), "holder"));
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn command_waits_only_for_changes_of_its_machine() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nmachine = \"a\"\nkind = \"hang\"")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let holding = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    caller.until_running(holding);
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    let data =
        caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"], "queue_timeout_ms": 50}));
    assert_eq!(
        data.waiting_for.and_then(|waiting_for| waiting_for.job_id()),
        Some(holding)
    );
}
