//! Leases: places in the queue that a client's own process uses.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests are the client whose process it is"
)]

use std::io::Write;
use std::process::{Child, Command, Stdio};

use orbd::rpc::api::{JobGet, MachineRestart, SessionLease, SessionRelease};
use orbd::rpc::types::JobStateWord;
use serde_json::json;

use crate::support::{World, eventually, outcome_of};

/// A process that waits on a pipe before it does its work, as a client's does.
fn waiting_process() -> Child {
    Command::new("sh")
        .args(["-c", "read go && exit ${go:-1}"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell")
}

/// Lets the process go on, and waits for it.
fn let_go(process: &mut Child, exit_code: i32) {
    let mut stdin = process.stdin.take().expect("piped");
    writeln!(stdin, "{exit_code}").expect("it reads");
    drop(stdin);
    assert_eq!(process.wait().expect("ours").code(), Some(exit_code));
}

#[test]
fn a_lease_holds_its_lane_until_its_process_is_gone_and_tells_how_it_ended() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    let params = json!({"operation": "export", "machine": "a", "pid": process.id()});
    let lease = caller.ok::<SessionLease>(params);
    assert_eq!(lease.orbctl, env!("CARGO_BIN_EXE_orbctl-sim"));
    let mut other = world.client();
    let waiting = other
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = other.job(waiting).waiting_for.expect("it waits");
    assert_eq!(
        (waits_for.job_id, waits_for.operation.as_deref()),
        (Some(lease.job_id), Some("export"))
    );
    let_go(&mut process, 3);
    let ended = caller
        .ok::<SessionRelease>(json!({"job_id": lease.job_id, "exit_code": 3}))
        .job;
    assert_eq!(outcome_of(&ended), ("failed", "orbctl_failed"));
    assert_eq!(outcome_of(&other.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn a_lease_that_succeeded_is_a_success() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    let lease = caller.ok::<SessionLease>(json!({"operation": "push", "machine": "a", "pid": process.id()}));
    let_go(&mut process, 0);
    let ended = caller
        .ok::<SessionRelease>(json!({"job_id": lease.job_id, "exit_code": 0}))
        .job;
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
}

#[test]
fn a_client_that_hangs_up_leaves_its_place_to_its_process() {
    let world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    let lease =
        caller.ok::<SessionLease>(json!({"operation": "export", "machine": "a", "pid": process.id()}));
    drop(caller);
    let mut other = world.client();
    let waiting = other
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert_eq!(other.job(lease.job_id).state, JobStateWord::Running);
    let_go(&mut process, 0);
    // Nobody is left to say how it ended.
    assert_eq!(
        outcome_of(&other.end_of(lease.job_id)),
        ("unknown", "outcome_unknown")
    );
    assert_eq!(outcome_of(&other.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn a_client_that_hangs_up_while_it_waits_for_a_lease_never_gets_it() {
    let world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    caller.pause();
    let mut wire = world.wire();
    wire.request(
        1,
        "session.lease",
        &json!({"operation": "push", "machine": "a", "pid": process.id()}),
    );
    let waiting = caller.find("push", "a", JobStateWord::Waiting).id;
    drop(wire);
    assert_eq!(
        outcome_of(&caller.end_of(waiting)),
        ("cancelled", "job_cancelled")
    );
    process.kill().expect("ours");
    process.wait().expect("ours");
}

#[test]
fn a_lease_that_is_cancelled_ends_its_process() {
    let world = World::new().set("grace", "200ms").machines(&["a"]).started();
    let mut caller = world.client();
    let mut process = Command::new("sh")
        .args(["-c", "trap '' TERM; while :; do sleep 0.05; done"])
        .spawn()
        .expect("a shell");
    let lease = caller.ok::<SessionLease>(json!({"operation": "pull", "machine": "a", "pid": process.id()}));
    assert_eq!(caller.cancel(lease.job_id), "stopping");
    eventually("it is gone", || process.try_wait().expect("ours"));
    assert_eq!(caller.end_of(lease.job_id).state, JobStateWord::Ended);
}

#[test]
fn a_lease_outlives_a_crash_of_the_daemon() {
    let mut world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    let lease =
        caller.ok::<SessionLease>(json!({"operation": "export", "machine": "a", "pid": process.id()}));
    world.kill();
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(lease.job_id).state, JobStateWord::Running);
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = caller.job(waiting).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id, Some(lease.job_id));
    let_go(&mut process, 0);
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(lease.job_id)).0, "unknown");
}

#[test]
fn a_lease_needs_a_process_that_is_there() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    process.kill().expect("ours");
    process.wait().expect("ours");
    let data =
        caller.refused::<SessionLease>(json!({"operation": "push", "machine": "a", "pid": process.id()}));
    assert_eq!(data.field.as_deref(), Some("pid"));
    let job = caller.run("a", &["true"]).job_id;
    let data = caller.refused::<SessionRelease>(json!({"job_id": job, "exit_code": 0}));
    assert_eq!(data.field.as_deref(), Some("job_id"));
    caller.ok::<JobGet>(json!({"job_id": job}));
}
