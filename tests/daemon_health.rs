//! An unhealthy `orbctl`: what callers get meanwhile, which operations pass, and that orbd recovers without
//! intervention.

use orbd_proto::methods::{
    CacheInvalidate, DaemonInfo, JobGet, MachineCreate, MachineInfo, MachineList, MachineRestart, MachineRun,
    MachineSsh, MachineStart, MachineStop, OrbstackStart,
};
use orbd_proto::types::{JobStateWord, WaitReason};
use serde_json::{Value, json};

use crate::support::{Caller, World, eventually, outcome_of};

const HANGS: &str = "[[trouble]]\nkind = \"hang\"";
const PANICS: &str = "[[trouble]]\nkind = \"panic\"";
const MACHINE_HANGS: &str = "[[trouble]]\nkind = \"hang\"\nmachine = \"a\"\ncommand = [\"run\", \"info\"]";

/// Starts a daemon with a query timeout of a second, over a stand-in without trouble so far, and lists its two
/// machines.
fn world() -> World {
    let world = World::new()
        .set("query_timeout", "1s")
        .set("grace", "200ms")
        .script("")
        .machines(&["a", "b"])
        .started();
    assert_eq!(world.client().machines().len(), 2);
    world
}

/// Scripts trouble for every command, and waits until orbd notices.
fn make_unhealthy(world: &World, script: &str) -> Caller {
    world.rescript(script);
    let mut caller = world.client();
    let answer = caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    assert!(answer.observed.stale, "{answer:?}");
    caller
}

/// Waits for the recovery without sending anything that could cause it, then checks that everything works.
fn assert_healthy(caller: &mut Caller) {
    caller.until_healthy();
    let answer = caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    assert_eq!((answer.observed.stale, answer.machines.len()), (false, 2));
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
}

#[test]
fn lists_are_served_stale_with_the_reason_and_recovery_is_automatic() {
    for (script, reason) in [
        (HANGS, "orbctl list did not answer within its time limit"),
        (
            PANICS,
            "orbctl reported: panic: timed out waiting for services to start",
        ),
    ] {
        let world = world();
        let mut caller = make_unhealthy(&world, script);
        // The same after the list was invalidated.
        caller.ok::<CacheInvalidate>(json!({}));
        let answer = caller.ok::<MachineList>(json!({}));
        assert_eq!(answer.machines.len(), 2);
        assert!(answer.observed.stale);
        assert_eq!(
            answer.observed.stale_reason.as_deref(),
            Some(&*format!("orbctl is unhealthy: {reason}"))
        );
        assert_eq!(caller.outage().expect("an outage").reason, reason);
        assert_eq!(
            caller
                .ok::<DaemonInfo>(json!({}))
                .unhealthy
                .expect("an outage")
                .reason,
            reason
        );
        world.rescript("");
        assert_healthy(&mut caller);
        world.ledger().assert_no_overlap();
    }
}

#[test]
fn change_that_detects_the_outage_gets_a_retry_time() {
    let world = world();
    world.rescript(PANICS);
    let data = world.client().refused::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(
        (data.kind.as_str(), data.retry_after_ms),
        ("orbctl_unhealthy", Some(1000))
    );
    assert!(data.job_id.is_some(), "the job was accepted: {data:?}");
}

#[test]
fn unforced_operations_fail_fast_with_a_reason_and_a_retry_time() {
    let world = world();
    let mut caller = make_unhealthy(&world, HANGS);
    let refused = |error: Box<orbd_proto::types::ErrorObject>| {
        assert!(
            error.message.contains("orbctl list did not answer"),
            "{}",
            error.message
        );
        let data = error.data.expect("every error has data");
        assert_eq!((data.kind.as_str(), data.retryable), ("orbctl_unhealthy", true));
        assert!(
            (1..=30_000).contains(&data.retry_after_ms.expect("it says when")),
            "{data:?}"
        );
    };
    refused(
        caller
            .call::<MachineRestart>(json!({"machine": "a"}))
            .expect_err("refused"),
    );
    let detached = json!({"name": "new", "distro": "ubuntu", "detach": true});
    refused(caller.call::<MachineCreate>(detached).expect_err("refused"));
    refused(
        caller
            .call::<MachineRun>(json!({"machine": "a", "command": ["true"]}))
            .expect_err("refused"),
    );
    refused(caller.call::<OrbstackStart>(json!({})).expect_err("refused"));
    // Reads without a cached answer, and reads whose answer cannot be marked stale.
    refused(
        caller
            .call::<MachineInfo>(json!({"machine": "a"}))
            .expect_err("refused"),
    );
    refused(caller.call::<MachineSsh>(json!({})).expect_err("refused"));
    for command in ["restart", "create", "run", "start", "ssh"] {
        assert_eq!(world.ledger().spawns(command), 0, "{command}");
    }
    world.rescript("");
    assert_healthy(&mut caller);
}

#[test]
fn forced_stop_passes_an_open_circuit_and_its_success_closes_it() {
    let world = world();
    let script =
        "[[trouble]]\nkind = \"hang\"\ncommand = [\"list\", \"status\", \"info\", \"restart\", \"run\"]";
    let mut caller = make_unhealthy(&world, script);
    caller.refused::<MachineStop>(json!({"machine": "b"}));
    let answer = caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(answer.changed, Some(true));
    let stopped = ("b".to_owned(), "stopped".to_owned());
    assert!(world.truth().contains(&stopped), "{:?}", world.truth());
    assert!(
        caller.outage().is_none(),
        "the service has just carried out a change"
    );
    world.rescript("");
    assert_healthy(&mut caller);
}

#[test]
fn force_ends_a_change_caught_by_the_outage() {
    let world = world();
    let script = "[[trouble]]\nkind = \"hang\"\ncommand = [\"list\", \"status\", \"restart\"]";
    world.rescript(script);
    let caught = world
        .client()
        .ok::<MachineRestart>(json!({"machine": "b", "detach": true}));
    world.client().until_running(caught.job_id);
    let mut caller = make_unhealthy(&world, script);
    caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(
        outcome_of(&caller.end_of(caught.job_id)),
        ("unknown", "outcome_unknown")
    );
    world.rescript("");
    assert_healthy(&mut caller);
}

#[test]
fn jobs_accepted_before_the_outage_wait_for_the_recovery() {
    let world = world();
    let gate = world.gate("gate");
    let mut caller = world.client();
    let running = caller.run_detached("a", &["cat", &gate]);
    let command = world.at_gate("gate");
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let mut caller = make_unhealthy(&world, PANICS);
    // A job that was running when the outage began continues. The job behind it waits for the recovery.
    command.open();
    assert_eq!(outcome_of(&caller.end_of(running)), ("succeeded", ""));
    let job = caller.ok::<JobGet>(json!({"job_id": waiting})).job;
    assert_eq!(job.state, JobStateWord::Waiting);
    let waits = job.waiting_for.expect("it says for what");
    let WaitReason::Unhealthy { reason } = waits.reason else {
        panic!("{waits:?}");
    };
    assert!(reason.contains("timed out waiting for services"));
    world.rescript("");
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
    assert_healthy(&mut caller);
}

#[test]
fn one_hanging_machine_does_not_open_the_circuit() {
    let world = world();
    world.rescript(MACHINE_HANGS);
    let command = world.background(|caller| {
        caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"], "run_timeout_ms": 500}))
    });
    let details = world.background(|caller| caller.refused::<MachineInfo>(json!({"machine": "a"})));
    let mut caller = world.client();
    for _ in 0..3 {
        assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
        caller.ok::<MachineRestart>(json!({"machine": "b"}));
        assert!(!caller.ok::<MachineList>(json!({"max_age_ms": 0})).observed.stale);
    }
    assert_eq!(command.join().expect("it is told").kind, "deadline_exceeded");
    assert_eq!(details.join().expect("it is told").kind, "deadline_exceeded");
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    assert!(caller.outage().is_none());
    assert!(!world.log().contains("orbctl is unhealthy"));
}

#[test]
fn single_and_batched_calls_get_the_same_stale_answer() {
    let world = world();
    let mut caller = make_unhealthy(&world, HANGS);
    caller.ok::<CacheInvalidate>(json!({}));
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"machine.list"}"#;
    let alone = world.wire().exchange(request);
    let batch = world.wire().exchange(&format!("[{request}]"));
    assert_eq!(without_age(&alone), without_age(&batch[0]));
    assert_eq!(alone["result"]["stale"], true);
    let mark = alone["result"]["stale_reason"].as_str().expect("a reason");
    assert!(mark.contains("orbctl"), "{mark}");
}

fn without_age(answer: &Value) -> Value {
    let mut answer = answer.clone();
    answer["result"]["age_ms"] = Value::Null;
    answer
}

#[test]
fn one_probe_runs_at_a_time() {
    let world = world();
    let script = "[[trouble]]\nkind = \"slow\"\nms = 200\ncommand = \"status\"\n\
                  [[trouble]]\nkind = \"panic\"\ncommand = \"list\"";
    let mut caller = make_unhealthy(&world, script);
    let before = world.ledger().spawns("list");
    eventually("a second probe ends", || {
        for _ in 0..20 {
            caller.ok::<MachineList>(json!({"max_age_ms": 0}));
            caller.refused::<MachineRestart>(json!({"machine": "a"}));
        }
        (world.ledger().spawns("list") == before + 2).then_some(())
    });
    assert_eq!(world.ledger().most_at_once(|_| true), 1);
    assert_eq!(world.ledger().spawns("restart"), 0);
}
