//! An orderly stop: which jobs it ends, which it lets finish, and which the next instance takes over.

use orbd_proto::methods::{DaemonStop, MachineRestart, MachineRun, MachineStop, QueueDrain};
use orbd_proto::types::JobStateWord;
use serde_json::json;

use crate::support::{World, eventually, outcome_of};

/// Waits until no process of the daemon or of its children runs.
fn nothing_runs(world: &World) {
    eventually("nothing is left running", || {
        world.processes().is_empty().then_some(())
    });
}

#[test]
fn stop_ends_commands_cancels_attached_waiters_and_keeps_detached_jobs() {
    let mut world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let exec = world.background(|caller| {
        caller.refused::<MachineRun>(json!({"machine": "a", "command": ["sleep", "1000"]}))
    });
    caller.find("run", "a", JobStateWord::Running);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    let waiting = world.background(|caller| caller.refused::<MachineRestart>(json!({"machine": "a"})));
    caller.find("restart", "a", JobStateWord::Waiting);
    let promised = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert_eq!(caller.job(promised).state, JobStateWord::Waiting);
    world.terminate();
    assert_eq!(exec.join().expect("it is told").kind, "job_cancelled");
    let data = waiting.join().expect("it is told");
    assert_eq!(
        (data.kind.as_str(), data.phase.as_deref()),
        ("job_cancelled", Some("queued"))
    );
    assert_eq!(world.ended().code(), Some(0));
    assert!(!world.socket().exists());
    nothing_runs(&world);
    assert_eq!(world.ledger().order_on("a"), ["run"]);

    world.start();
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    assert_eq!(world.ledger().order_on("a"), ["run", "stop"]);
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    world.start();
    world.client().machines();
    assert_eq!(
        world.ledger().spawns("stop"),
        1,
        "the change is done, and only once"
    );
}

#[test]
fn stop_waits_for_a_running_change_and_refuses_new_jobs() {
    let mut world = World::new()
        .gated("[[trouble]]\ncommand = \"restart\"", "gate")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let change = world.background(|caller| caller.ok::<MachineRestart>(json!({"machine": "a"})));
    caller.find("restart", "a", JobStateWord::Running);
    let gate = world.at_gate("gate");
    caller.ok::<DaemonStop>(json!({}));
    let data = caller.refused::<MachineRun>(json!({"machine": "b", "command": ["true"]}));
    assert_eq!((data.kind.as_str(), data.retryable), ("draining", true));
    gate.open();
    assert_eq!(change.join().expect("it is told").changed, Some(true));
    assert_eq!(world.ended().code(), Some(0));
    nothing_runs(&world);
}

#[test]
fn stop_abandons_a_hanging_change_with_an_error_that_is_not_retryable() {
    let mut world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"hang\"\ntimes = 1")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    let change = world.background(|caller| caller.refused::<MachineRestart>(json!({"machine": "a"})));
    let id = caller.find("restart", "a", JobStateWord::Running).job_id;
    let pid = eventually("it is there", || Some(world.ledger().of("restart").first()?.pid));
    // The drain waits for a job that does not end, and must not report that all jobs have ended.
    let drain = world.background(|caller| caller.call::<QueueDrain>(json!({})));
    eventually("it drains", || {
        let status = caller.ok::<orbd_proto::methods::QueueStatus>(json!({}));
        status.draining.then_some(())
    });
    world.terminate();
    let data = change.join().expect("it is told");
    assert_eq!((data.kind.as_str(), data.retryable), ("outcome_unknown", false));
    let data = drain
        .join()
        .expect("it is told")
        .expect_err("refused")
        .data
        .expect("data");
    assert_eq!(data.kind, "draining");
    assert_eq!(world.ended().code(), Some(0));
    assert!(crate::support::is_alive(pid), "a stop never interrupts a change");

    world.start();
    let mut caller = world.client();
    let left = caller.job(id);
    assert_eq!(
        (left.state, left.operation.as_str()),
        (JobStateWord::Running, "restart")
    );
    assert_eq!(caller.cancel(id), "stopping");
    assert_eq!(outcome_of(&caller.end_of(id)), ("unknown", "outcome_unknown"));
    assert_eq!(
        caller.ok::<MachineRestart>(json!({"machine": "a"})).changed,
        Some(true)
    );
}
