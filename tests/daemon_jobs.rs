//! Jobs: cancellation, timeouts, disconnected clients, force, pauses and drains.

use orbd_proto::methods::{
    JobGet, JobWait, MachineList, MachineRestart, MachineRun, MachineStart, MachineStop, OrbstackStop,
    QueueDrain, QueuePause, QueueResume, QueueStatus,
};
use orbd_proto::types::{JobStateWord, WaitReason};
use serde_json::json;

use crate::support::{World, eventually, is_alive, outcome_of, stdout_of};

/// Changes of machine `a` hang until they are ended.
const HANGING: &str =
    "[[trouble]]\ncommand = \"restart\"\nmachine = \"a\"\nkind = \"hang\"\nwhen = \"before\"";

/// Returns the parameters of a command that writes its process id to a file and then keeps running.
fn staying(caller: &mut crate::support::Caller, detach: bool) -> serde_json::Value {
    let _ = caller;
    json!({"machine": "a", "command": ["sh", "-c", "echo $$ > pid; exec sleep 1000"], "detach": detach})
}

/// Waits for the process id that [`staying`] writes, and returns it.
fn stayer(world: &World) -> u32 {
    eventually("the command says its process id", || {
        let found = world.sim(&["run", "-m", "a", "cat", "pid"]);
        String::from_utf8_lossy(&found.stdout).trim().parse().ok()
    })
}

#[test]
fn cancelled_waiting_job_never_starts() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let attached = world.background(|caller| caller.refused::<MachineRestart>(json!({"machine": "a"})));
    let job = caller.find("restart", "a", JobStateWord::Waiting);
    assert_eq!(caller.cancel(job.job_id), "never_started");
    let data = attached.join().expect("no panic");
    assert_eq!(
        (data.kind.as_str(), data.phase.as_deref(), data.job_id),
        ("job_cancelled", Some("queued"), Some(job.job_id))
    );
    assert_eq!(caller.cancel(job.job_id), "already_ended");
    caller.resume();
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
    assert_eq!(world.ledger().spawns("restart"), 0);
}

#[test]
fn cancelling_a_running_command_ends_its_processes() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let params = staying(&mut caller, true);
    let id = caller.ok::<MachineRun>(params).job_id;
    let pid = stayer(&world);
    assert_eq!(caller.cancel(id), "stopping");
    assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
    eventually("the command is gone", || (!is_alive(pid)).then_some(()));
}

#[test]
fn command_that_ignores_sigterm_is_killed_after_the_grace() {
    let world = World::new()
        .set("grace", "200ms")
        .script("[[trouble]]\ncommand = \"run\"\nkind = \"hang_hard\"")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    let id = caller.run_detached("a", &["true"]);
    caller.until_running(id);
    let pid = eventually("it is there", || Some(world.ledger().of("run").first()?.pid));
    caller.cancel(id);
    let ended = caller.end_of(id);
    assert_eq!(outcome_of(&ended), ("cancelled", "job_cancelled"));
    assert!(!is_alive(pid));
}

#[test]
fn change_cancelled_while_running_ends_unknown_with_an_observation() {
    let world = World::new().script(HANGING).machines(&["a"]).started();
    let mut caller = world.client();
    let id = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    caller.until_running(id);
    eventually("it is there", || {
        (world.ledger().spawns("restart") == 1).then_some(())
    });
    assert_eq!(caller.cancel(id), "stopping");
    let ended = caller.end_of(id);
    assert_eq!(outcome_of(&ended), ("unknown", "outcome_unknown"));
    let error = ended.outcome.expect("it has ended").error.expect("an error");
    let seen = error.data.expect("data").observed.expect("looks");
    assert!(seen.stable, "{seen:?}");
    assert_eq!(seen.machine_state.as_deref(), Some("running"));
}

#[test]
fn queue_timeout_names_the_blocking_job() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    let data = caller.refused::<MachineRestart>(json!({"machine": "a", "queue_timeout_ms": 100}));
    assert_eq!(
        (data.kind.as_str(), data.phase.as_deref(), data.retryable),
        ("deadline_exceeded", Some("queued"), false)
    );
    let holder = data.waiting_for.expect("a holder");
    assert_eq!(holder.job_id(), Some(holding));
    assert!(holder.description.contains("run a"), "{}", holder.description);
    assert_eq!(world.ledger().spawns("restart"), 0);
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(holding)), ("succeeded", ""));
}

#[test]
fn run_timeout_ends_a_command() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let data = caller
        .refused::<MachineRun>(json!({"machine": "a", "command": ["sleep", "1000"], "run_timeout_ms": 100}));
    assert_eq!(
        (data.kind.as_str(), data.phase.as_deref()),
        ("deadline_exceeded", Some("running"))
    );
}

#[test]
fn disconnect_cancels_the_clients_waiting_jobs_and_commands() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let mut wire = world.wire();
    let params = staying(&mut caller, false);
    wire.request(1, "machine.run", &params);
    let pid = stayer(&world);
    let running = caller.find("run", "a", JobStateWord::Running).job_id;
    wire.request(2, "machine.restart", &json!({"machine": "a"}));
    let waiting = caller.find("restart", "a", JobStateWord::Waiting).job_id;
    wire.request(3, "machine.stop", &json!({"machine": "a", "detach": true}));
    let detached = caller.find("stop", "a", JobStateWord::Waiting).job_id;
    drop(wire);
    assert_eq!(
        outcome_of(&caller.end_of(waiting)),
        ("cancelled", "job_cancelled")
    );
    assert_eq!(
        outcome_of(&caller.end_of(running)),
        ("cancelled", "job_cancelled")
    );
    assert_eq!(outcome_of(&caller.end_of(detached)), ("succeeded", ""));
    eventually("the command is gone", || (!is_alive(pid)).then_some(()));
    assert_eq!(world.ledger().spawns("restart"), 0);
}

#[test]
fn disconnect_is_noticed_behind_unread_answers() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.machines();
    let mut wire = world.wire();
    let params = staying(&mut caller, false);
    wire.request(1, "machine.run", &params);
    stayer(&world);
    let running = caller.find("run", "a", JobStateWord::Running).job_id;
    // Until the daemon stops reading, because this client reads no answers.
    wire.stream.set_nonblocking(true).expect("a mode");
    let list = b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"machine.list\"}\n".repeat(1000);
    while std::io::Write::write(&mut wire.stream, &list).is_ok() {}
    drop(wire);
    assert_eq!(
        outcome_of(&caller.end_of(running)),
        ("cancelled", "job_cancelled")
    );
}

#[test]
fn half_closed_client_still_gets_its_answers() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut wire = world.wire();
    wire.request(
        1,
        "machine.run",
        &json!({"machine": "a", "command": ["cat", gate]}),
    );
    wire.request(2, "machine.restart", &json!({"machine": "a"}));
    wire.half_close();
    let mut caller = world.client();
    caller.find("run", "a", JobStateWord::Running);
    caller.find("restart", "a", JobStateWord::Waiting);
    world.open_gate("gate");
    let answer = wire.receive().expect("an answer");
    assert_eq!(
        (&answer["id"], &answer["result"]["exit_code"]),
        (&json!(1), &json!(0))
    );
    let answer = wire.receive().expect("an answer");
    assert_eq!(
        (&answer["id"], &answer["result"]["changed"]),
        (&json!(2), &json!(true))
    );
    assert!(
        wire.receive().is_none(),
        "the connection is closed after the answers"
    );
}

#[test]
fn running_change_finishes_after_its_client_disconnects() {
    let world = World::new()
        .gated("[[trouble]]\ncommand = \"restart\"", "gate")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    let mut wire = world.wire();
    wire.request(1, "machine.restart", &json!({"machine": "a"}));
    let id = caller.find("restart", "a", JobStateWord::Running).job_id;
    wire.request(2, "machine.stop", &json!({"machine": "a"}));
    let waiting = caller.find("stop", "a", JobStateWord::Waiting).job_id;
    drop(wire);
    // Its waiting job is cancelled when the disconnect has been noticed.
    caller.end_of(waiting);
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
}

#[test]
fn detached_command_outlives_its_client() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let id = world.client().run_detached("a", &["cat", &gate]);
    let mut caller = world.client();
    caller.until_running(id);
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    assert_eq!(caller.output_from(id, 0, 100).len(), 1);
}

#[test]
fn forced_stop_ends_running_jobs_and_cancels_waiting_ones() {
    let world = World::new()
        .set("grace", "300ms")
        .script("[[trouble]]\ncommand = \"run\"\nmachine = \"a\"\nkind = \"hang_hard\"\ntimes = 1")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let hanging = caller.run_detached("a", &["true"]);
    caller.until_running(hanging);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let elsewhere_gate = world.gate("gate");
    let elsewhere = caller.run_detached("b", &["cat", &elsewhere_gate]);
    let told = caller.ok::<MachineStop>(json!({"machine": "a", "force": true}));
    assert_eq!(told.changed, Some(true));
    for lost in [hanging, waiting] {
        let job = caller.end_of(lost);
        assert_eq!(outcome_of(&job), ("cancelled", "job_cancelled"));
        let error = job.outcome.and_then(|outcome| outcome.error).expect("an error");
        // A job that lost to force names the forcing job.
        let holder = error.data.and_then(|data| data.waiting_for).expect("a holder");
        assert_eq!(holder.job_id(), Some(told.job_id));
        assert!(error.message.contains("preempted by job"), "{}", error.message);
    }
    assert_eq!(caller.job(elsewhere).state, JobStateWord::Running);
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(elsewhere)), ("succeeded", ""));
    assert_eq!(world.ledger().spawns("restart"), 0);
}

#[test]
fn forced_stop_ends_a_hanging_change_and_passes_a_pause() {
    let world = World::new().script(HANGING).machines(&["a"]).started();
    let mut caller = world.client();
    let hanging = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    eventually("it is there", || {
        (world.ledger().spawns("restart") == 1).then_some(())
    });
    caller.pause();
    assert_eq!(
        caller
            .ok::<MachineStop>(json!({"machine": "a", "force": true}))
            .changed,
        Some(true)
    );
    assert_eq!(outcome_of(&caller.end_of(hanging)).0, "unknown");
    assert_eq!(world.truth(), [("a".into(), "stopped".into())]);
}

#[test]
fn forced_stop_of_orbstack_ends_all_jobs() {
    let world = World::with_machines(&["a", "b"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let ids = ["a", "b"].map(|machine| caller.run_detached(machine, &["cat", &gate]));
    for id in ids {
        caller.until_running(id);
    }
    caller.ok::<OrbstackStop>(json!({"force": true}));
    for id in ids {
        assert_eq!(outcome_of(&caller.end_of(id)).0, "cancelled");
    }
}

#[test]
fn paused_queue_starts_nothing_until_it_is_resumed() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let status = caller.ok::<QueuePause>(json!({}));
    assert!(status.paused);
    let id = caller.run_detached("a", &["true"]);
    let waits_for = caller.job(id).waiting_for.expect("it waits");
    assert_eq!(waits_for.reason, WaitReason::Paused { machine: None });
    // Behind a paused machine the reason names the machine, which is what has to be resumed.
    caller.ok::<QueueResume>(json!({}));
    caller.end_of(id);
    caller.ok::<QueuePause>(json!({"machine": "a"}));
    let id = caller.run_detached("a", &["true"]);
    let waits_for = caller.job(id).waiting_for.expect("it waits");
    let machine = Some("a".to_owned());
    assert_eq!(waits_for.reason, WaitReason::Paused { machine });
    caller.ok::<QueueResume>(json!({"machine": "a"}));
    caller.end_of(id);
    caller.ok::<QueuePause>(json!({}));
    let id = caller.run_detached("a", &["true"]);
    let status = caller.ok::<QueueStatus>(json!({}));
    assert_eq!((status.waiting, status.running), (1, 0));
    assert!(!caller.ok::<QueueResume>(json!({})).paused);
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
}

#[test]
fn paused_machine_does_not_block_others() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let status = caller.ok::<QueuePause>(json!({"machine": "a"}));
    assert_eq!(
        (status.paused, status.paused_machines),
        (false, vec!["a".to_owned()])
    );
    let held = caller.run_detached("a", &["true"]);
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    assert_eq!(caller.machines().len(), 2, "reads take no lane");
    assert_eq!(caller.job(held).state, JobStateWord::Waiting);
    caller.ok::<QueueResume>(json!({"machine": "a"}));
    assert_eq!(outcome_of(&caller.end_of(held)), ("succeeded", ""));
}

#[test]
fn drain_refuses_new_jobs_and_returns_when_accepted_ones_have_ended() {
    let world = World::with_machines(&["a", "b"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let running = caller.run_detached("a", &["cat", &gate]);
    let waiting = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    let drain = world.background(|caller| caller.ok::<QueueDrain>(json!({})));
    eventually("it drains", || {
        caller.ok::<QueueStatus>(json!({})).draining.then_some(())
    });
    let data = caller.refused::<MachineRun>(json!({"machine": "b", "command": ["true"]}));
    assert_eq!((data.kind.as_str(), data.retryable), ("draining", true));
    assert!(!drain.is_finished());
    world.open_gate("gate");
    let status = drain.join().expect("no panic");
    assert_eq!((status.waiting, status.running, status.draining), (0, 0, true));
    for id in [running, waiting] {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
    caller.resume();
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
}

#[test]
fn drain_of_one_machine_does_not_affect_others() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let status = caller.ok::<QueueDrain>(json!({"machine": "a"}));
    assert_eq!(
        (status.draining, status.draining_machines),
        (false, vec!["a".to_owned()])
    );
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!(data.kind, "draining");
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    caller.ok::<QueueResume>(json!({"machine": "a"}));
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
}

#[test]
fn full_queue_gives_retry_after_and_keeps_accepted_jobs() {
    let world = World::new()
        .set("queue_max", "3")
        .set("queue_max_per_client", "3")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    caller.machines();
    caller.pause();
    let ids = [(); 3].map(|()| caller.run_detached("a", &["true"]));
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!((data.kind.as_str(), data.retryable), ("queue_full", true));
    assert!(data.retry_after_ms.is_some_and(|ms| ms >= 100), "{data:?}");
    assert_eq!(caller.machines().len(), 1, "cached answers are still served");
    caller.resume();
    for id in ids {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
}

#[test]
fn job_wait_with_a_timeout_returns_the_current_job() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let id = caller.run_detached("a", &["true"]);
    let job = caller.ok::<JobWait>(json!({"job_id": id, "timeout_ms": 20})).job;
    assert_eq!(job.state, JobStateWord::Waiting);
    let data = caller.refused::<JobWait>(json!({"job_id": id + 1_000_000}));
    assert_eq!(data.kind, "job_not_found");
}

#[test]
fn only_the_newest_ended_jobs_are_kept() {
    let world = World::new().set("jobs_keep_max", "5").machines(&["a"]).started();
    let mut caller = world.client();
    let ids: Vec<u64> = (0..8).map(|_| caller.run("a", &["true"]).job_id).collect();
    assert_eq!(
        caller.jobs().iter().map(|job| job.job_id).collect::<Vec<_>>(),
        ids[3..]
    );
    let data = caller.refused::<JobGet>(json!({"job_id": ids[0]}));
    assert_eq!(data.kind, "job_not_found");
}

#[test]
fn waiters_and_followers_get_the_end_of_a_job_that_is_not_kept() {
    let world = World::new().set("jobs_keep_max", "0").machines(&["a"]).started();
    let mut caller = world.client();
    assert_eq!(stdout_of(&caller.run("a", &["echo", "x"])), "x\n");
    let gate = world.gate("gate");
    let id = caller.run_detached("a", &["cat", &gate]);
    let mut wire = world.wire();
    wire.request(1, "job.wait", &json!({"job_id": id}));
    wire.request(2, "job.follow", &json!({"job_id": id}));
    // Requests of one connection are started in order.
    wire.request(3, "job.get", &json!({"job_id": id}));
    wire.until(|message| message["id"] == 3);
    world.open_gate("gate");
    let (mut waited, mut followed) = (None, None);
    while waited.is_none() || followed.is_none() {
        let message = wire.receive().expect("both get an answer");
        if message["id"] == 1 {
            waited = Some(message["result"]["job"].clone());
        } else if message["params"]["result"]["type"] == "ended" {
            followed = Some(message["params"]["result"]["job"].clone());
        }
    }
    for job in [waited, followed] {
        let job = job.expect("it was told");
        assert_eq!(
            (&job["job_id"], &job["outcome"]["kind"]),
            (&json!(id), &json!("succeeded"))
        );
    }
    assert_eq!(
        caller.refused::<JobGet>(json!({"job_id": id})).kind,
        "job_not_found"
    );
}

#[test]
fn machine_id_keeps_naming_the_same_machine() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let id = caller.ok::<MachineList>(json!({})).machines[0].id.clone();
    assert_eq!(caller.run(&id, &["true"]).exit_code, Some(0));
    caller.ok::<MachineStop>(json!({"machine": id}));
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    // While a job for this id waits, another machine takes the name.
    caller.pause();
    let waiting = caller
        .ok::<MachineStart>(json!({"machine": id, "detach": true}))
        .job_id;
    assert!(world.sim(&["rename", "a", "b"]).status.success());
    assert!(world.sim(&["create", "ubuntu", "a"]).status.success());
    assert!(world.sim(&["stop", "a"]).status.success());
    caller.resume();
    assert_eq!(
        outcome_of(&caller.end_of(waiting)),
        ("failed", "machine_not_found")
    );
    assert_eq!(world.ledger().spawns("start"), 0);
}
