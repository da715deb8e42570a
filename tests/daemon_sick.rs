//! An `orbctl` that is sick, whatever it is asked: who is told what meanwhile, what passes, and that all is well again by itself.

use orbd::rpc::api::{
    CacheInvalidate, DaemonInfo, JobGet, MachineCreate, MachineInfo, MachineList, MachineRestart, MachineRun,
    MachineSsh, MachineStart, MachineStop, OrbstackStart,
};
use orbd::rpc::types::JobStateWord;
use serde_json::{Value, json};

use crate::support::{Caller, World, eventually, outcome_of};

const HANGS: &str = "[[trouble]]\nkind = \"hang\"";
const PANICS: &str = "[[trouble]]\nkind = \"panic\"";
const MACHINE_HANGS: &str = "[[trouble]]\nkind = \"hang\"\nmachine = \"a\"\ncommand = [\"run\", \"info\"]";

/// A daemon that has seen two machines and gives reads a second, over a stand-in without trouble so far.
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

/// Lets trouble come over everything and waits until it is noticed.
fn fall_sick(world: &World, script: &str) -> Caller {
    world.rescript(script);
    let mut caller = world.client();
    let answer = caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    assert!(answer.observed.stale, "{answer:?}");
    caller
}

/// Checks that all works, without asking for anything that would make it so.
fn all_is_well(caller: &mut Caller) {
    caller.until_well();
    let answer = caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    assert_eq!((answer.observed.stale, answer.machines.len()), (false, 2));
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
}

#[test]
fn lists_are_told_as_last_known_with_the_reason_and_all_is_well_again_by_itself() {
    for (script, reason) in [
        (HANGS, "orbctl list gave no answer within its time limit"),
        (
            PANICS,
            "orbctl said: panic: timed out waiting for services to start",
        ),
    ] {
        let world = world();
        let mut caller = fall_sick(&world, script);
        // Also of what was made stale since.
        caller.ok::<CacheInvalidate>(json!({}));
        let answer = caller.ok::<MachineList>(json!({}));
        assert_eq!(answer.machines.len(), 2);
        assert!(answer.observed.stale);
        assert_eq!(
            answer.observed.stale_reason.as_deref(),
            Some(&*format!("orbctl is sick: {reason}"))
        );
        assert_eq!(caller.outage().expect("sick").reason, reason);
        assert_eq!(
            caller.ok::<DaemonInfo>(json!({})).unhealthy.expect("sick").reason,
            reason
        );
        world.rescript("");
        all_is_well(&mut caller);
        world.ledger().assert_no_overlap();
    }
}

#[test]
fn a_change_whose_own_look_finds_orbctl_sick_is_told_when_to_come_back() {
    let world = world();
    world.rescript(PANICS);
    let data = world.client().refused::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(
        (data.kind.as_str(), data.retry_after_ms),
        ("orbctl_unhealthy", Some(1000))
    );
    assert!(data.job_id.is_some(), "it was accepted: {data:?}");
}

#[test]
fn what_is_not_forced_is_refused_at_once_in_words_and_with_when_to_come_back() {
    let world = world();
    let mut caller = fall_sick(&world, HANGS);
    let refused = |error: Box<orbd::rpc::types::ErrorObject>| {
        assert!(
            error.message.contains("orbctl list gave no answer"),
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
    // Reads of what nothing is known of, or whose answer cannot carry the mark.
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
    all_is_well(&mut caller);
}

#[test]
fn a_forced_stop_gets_through_and_shows_that_the_service_works() {
    let world = world();
    let script =
        "[[trouble]]\nkind = \"hang\"\ncommand = [\"list\", \"status\", \"info\", \"restart\", \"run\"]";
    let mut caller = fall_sick(&world, script);
    caller.refused::<MachineStop>(json!({"machine": "b"}));
    let answer = caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(answer.changed, Some(true));
    let stopped = ("b".to_owned(), "stopped".to_owned());
    assert!(world.truth().contains(&stopped), "{:?}", world.truth());
    assert!(caller.outage().is_none(), "the service has just worked");
    world.rescript("");
    all_is_well(&mut caller);
}

#[test]
fn force_ends_a_change_that_the_illness_caught() {
    let world = world();
    let script = "[[trouble]]\nkind = \"hang\"\ncommand = [\"list\", \"status\", \"restart\"]";
    world.rescript(script);
    let caught = world
        .client()
        .ok::<MachineRestart>(json!({"machine": "b", "detach": true}));
    world.client().until_running(caught.job_id);
    let mut caller = fall_sick(&world, script);
    caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(
        outcome_of(&caller.end_of(caught.job_id)),
        ("unknown", "outcome_unknown")
    );
    world.rescript("");
    all_is_well(&mut caller);
}

#[test]
fn what_was_accepted_before_waits_for_the_recovery_and_says_so() {
    let world = world();
    let gate = world.gate("gate");
    let mut caller = world.client();
    let running = caller.run_detached("a", &["cat", &gate]);
    let command = world.at_gate("gate");
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let mut caller = fall_sick(&world, PANICS);
    // What the illness found running is left alone, and what it lets start waits.
    command.open();
    assert_eq!(outcome_of(&caller.end_of(running)), ("succeeded", ""));
    let job = caller.ok::<JobGet>(json!({"job_id": waiting})).job;
    assert_eq!(job.state, JobStateWord::Waiting);
    let waits = job.waiting_for.expect("it says for what");
    assert_eq!(waits.kind, "unhealthy");
    assert!(
        waits
            .reason
            .expect("why")
            .contains("timed out waiting for services")
    );
    world.rescript("");
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
    all_is_well(&mut caller);
}

#[test]
fn one_machine_that_hangs_is_no_illness() {
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
    assert!(!world.log().contains("orbctl is sick"));
}

#[test]
fn every_way_to_ask_is_answered_the_same() {
    let world = world();
    let mut caller = fall_sick(&world, HANGS);
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
fn one_probe_runs_at_a_time_however_many_ask() {
    let world = world();
    let script = "[[trouble]]\nkind = \"slow\"\nms = 200\ncommand = \"status\"\n\
                  [[trouble]]\nkind = \"panic\"\ncommand = \"list\"";
    let mut caller = fall_sick(&world, script);
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
