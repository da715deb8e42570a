//! Leases: slots in the queue for processes that a client runs itself.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests act as the client that owns the process"
)]

use std::io::Write;
use std::process::{Child, Command, Stdio};

use orbd_proto::methods::{
    CacheStatus, DaemonStop, JobGet, LeaseAcquire, LeaseRelease, MachineRestart, MachineSetDefault,
    MetricsHistory, OrbstackVersion, QueueDrain,
};
use orbd_proto::types::{Job, JobStateWord, LeaseAnswer};
use serde_json::{Value, json};

use crate::support::{Caller, World, eventually, outcome_of};

/// Starts a process that waits on a pipe before it works, as a client's tool does.
fn waiting_process() -> Child {
    Command::new("sh")
        .args(["-c", "read go && exit ${go:-1}"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell")
}

/// Lets the process exit with this code, and waits for it.
fn release(process: &mut Child, exit_code: i32) {
    let mut stdin = process.stdin.take().expect("piped");
    writeln!(stdin, "{exit_code}").expect("it reads");
    drop(stdin);
    assert_eq!(process.wait().expect("ours").code(), Some(exit_code));
}

/// A lease and the process that owns it.
struct Lease {
    process: Child,
    answer: LeaseAnswer,
}

impl Lease {
    /// Acquires a lease with these parameters.
    #[track_caller]
    fn take(caller: &mut Caller, mut params: Value) -> Self {
        let process = waiting_process();
        params["pid"] = json!(process.id());
        let answer = caller.ok::<LeaseAcquire>(params);
        Self { process, answer }
    }

    fn id(&self) -> u64 {
        self.answer.job_id
    }

    /// Lets the process exit with this code, and releases the lease.
    fn give_back(mut self, caller: &mut Caller, exit_code: i32) -> Job {
        release(&mut self.process, exit_code);
        let params = json!({"job_id": self.id(), "exit_code": exit_code});
        caller.ok::<LeaseRelease>(params).job
    }

    /// Kills the process, and releases the lease with the signal.
    fn die(mut self, caller: &mut Caller) -> Job {
        self.process.kill().expect("ours");
        self.process.wait().expect("ours");
        let params = json!({"job_id": self.id(), "signal": 9});
        caller.ok::<LeaseRelease>(params).job
    }
}

/// Returns the exit code and `changed` of a job that succeeded.
fn success_of(job: &Job) -> (Option<i32>, Option<bool>) {
    let outcome = job.outcome.as_ref().expect("it has ended");
    assert_eq!(outcome.kind, "succeeded", "{outcome:?}");
    (outcome.exit_code, outcome.changed)
}

/// Operations (`!` means by force) and their subject; their class; the machine names in the answer; what a success
/// reports.
const OPERATIONS: &str = "
    push                | exec          | b   | nothing
    pull a              | exec          | a   | nothing
    run a               | exec          | a   | code
    shell               | session       | b   | code
    logs a              | session       | a   | nothing
    create n            | creation      | n   | changed
    import n            | creation      | n   | changed
    export a            | change        | a   | changed
    start a             | change        | a   | nothing
    start a b           | change        | a b | nothing
    stop! b             | change        | b   | nothing
    restart b a         | change        | b a | changed
    delete  a b         | change        | a b | changed
    rename a > n        | change        | a n | changed
    clone a > n         | change        | a n | changed
    set_default a       | change        | a   | nothing
    set_default         | change        |     | nothing
    config_set          | configuration |     | nothing
    config_reset        | configuration |     | changed
    start_all           | fleet         |     | nothing
    stop_all!           | fleet         |     | nothing
    start_orbstack      | fleet         |     | nothing
    stop_orbstack!      | fleet         |     | nothing
    update_orbstack     | fleet         |     | nothing
    reset_orbstack      | fleet         |     | changed
    other               | session       |     | nothing
";

/// Returns the parameters that the first column of [`OPERATIONS`] describes.
fn params_of(text: &str) -> Value {
    let (subject, new_name) = match text.split_once('>') {
        Some((subject, new_name)) => (subject, Some(new_name.trim())),
        None => (text, None),
    };
    let mut words = subject.split_whitespace();
    let operation = words.next().expect("an operation");
    let mut params = json!({"operation": operation.trim_end_matches('!')});
    if operation.ends_with('!') {
        params["force"] = json!(true);
    }
    match words.collect::<Vec<_>>().as_slice() {
        [] => {}
        [one] => params["machine"] = json!(one),
        several => params["machine_names"] = json!(several),
    }
    if let Some(new_name) = new_name {
        params["new_name"] = json!(new_name);
    }
    params
}

#[test]
fn every_operation_can_be_leased_and_reports_what_is_known_of_its_end() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    caller.ok::<MachineSetDefault>(json!({"machine": "b"}));
    for line in OPERATIONS.lines().filter(|line| line.contains('|')) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [operation, class, machines, success] = columns.as_slice() else {
            panic!("{line}")
        };
        let lease = Lease::take(&mut caller, params_of(operation));
        assert_eq!(lease.answer.machine_names.join(" "), *machines, "{line}");
        let ended = lease.give_back(&mut caller, 0);
        assert!(operation.starts_with(&ended.operation), "{line}");
        assert_eq!(ended.job_class, *class, "{line}");
        let expected = match *success {
            "code" => (Some(0), None),
            "changed" => (None, Some(true)),
            _ => (None, None),
        };
        assert_eq!(success_of(&ended), expected, "{line}");
    }
}

#[test]
fn nonzero_exit_is_success_for_commands_and_failure_for_changes() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    for (operation, expected) in [
        ("run", ("succeeded", "")),
        ("shell", ("succeeded", "")),
        ("logs", ("failed", "orbctl_failed")),
        ("pull", ("failed", "orbctl_failed")),
        ("stop", ("failed", "orbctl_failed")),
    ] {
        let lease = Lease::take(&mut caller, json!({"operation": operation, "machine": "a"}));
        let ended = lease.give_back(&mut caller, 7);
        assert_eq!(outcome_of(&ended), expected, "{operation}");
        if expected.0 == "succeeded" {
            assert_eq!(success_of(&ended).0, Some(7));
        }
    }
    for (operation, expected) in [
        ("run", ("failed", "orbctl_killed")),
        ("push", ("failed", "orbctl_killed")),
        ("shell", ("succeeded", "")),
        ("logs", ("succeeded", "")),
        // OrbStack's service carried out the start: the machine runs.
        ("start", ("succeeded", "")),
        ("restart", ("unknown", "outcome_unknown")),
    ] {
        let lease = Lease::take(&mut caller, json!({"operation": operation, "machine": "a"}));
        let released = lease.die(&mut caller);
        // For a change that was cut short, the answer does not wait for the reconciliation.
        let ended = caller.end_of(released.job_id);
        assert_eq!(outcome_of(&ended), expected, "{operation}");
    }
}

#[test]
fn lease_is_recorded_with_its_exit_code() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let shell = Lease::take(&mut caller, json!({"operation": "shell", "machine": "a"}));
    let id = shell.give_back(&mut caller, 3).job_id;
    let record = eventually("it is recorded", || {
        let answer = caller.ok::<MetricsHistory>(json!({"operation": "shell"}));
        answer.records.into_iter().find(|record| record.job_id == id)
    });
    assert_eq!(
        (
            record.machine.as_deref(),
            &*record.job_class,
            &*record.outcome,
            record.exit_code
        ),
        (Some("a"), "session", "succeeded", Some(3))
    );
}

#[test]
fn parameters_that_an_operation_does_not_take_are_refused_by_name() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.ok::<MachineSetDefault>(json!({"machine": null}));
    let mut process = waiting_process();
    for (mut params, field) in [
        (json!({"operation": "push"}), "machine"),
        (json!({"operation": "logs"}), "machine"),
        (json!({"operation": "restart"}), "machine"),
        (
            json!({"operation": "delete", "machine_names": ["a", "-f"]}),
            "machine_names",
        ),
        (
            json!({"operation": "stop", "machine": "a", "machine_names": ["a"]}),
            "machine_names",
        ),
        (
            json!({"operation": "start", "machine_names": vec!["a"; 257]}),
            "machine_names",
        ),
        (
            json!({"operation": "push", "machine_names": ["a"]}),
            "machine_names",
        ),
        (json!({"operation": "rename", "machine": "a"}), "new_name"),
        (
            json!({"operation": "stop", "machine": "a", "new_name": "b"}),
            "new_name",
        ),
        (
            json!({"operation": "start", "machine": "a", "force": true}),
            "force",
        ),
        (json!({"operation": "start_all", "machine": "a"}), "machine"),
        (
            json!({"operation": "delete", "machine": "a", "force": true}),
            "force",
        ),
        (json!({"operation": "run_or_change", "machine": "a"}), "machine"),
        (json!({"operation": "shell", "unknown_form": {}}), "unknown_form"),
        (
            json!({"operation": "start", "machine": "a", "unknown_form": {}}),
            "machine",
        ),
        (json!({"operation": "import", "unknown_form": {}}), "machine"),
        (
            json!({"operation": "run", "machine": "a", "unknown_form": {"whole_fleet": true}}),
            "machine",
        ),
        (
            json!({"operation": "push", "unknown_form": {"whole_fleet": true}}),
            "unknown_form.whole_fleet",
        ),
        (
            json!({"operation": "start", "unknown_form": {"operands": ["a", "-f"]}}),
            "unknown_form.operands",
        ),
        (
            json!({"operation": "start", "unknown_form": {"operands": vec!["a"; 257]}}),
            "unknown_form.operands",
        ),
        (
            json!({"operation": "shell", "machine": "a", "detach": true}),
            "detach",
        ),
    ] {
        params["pid"] = json!(process.id());
        let data = caller.refused::<LeaseAcquire>(params.clone());
        assert_eq!(data.field.as_deref(), Some(field), "{params}");
    }
    process.kill().expect("ours");
    process.wait().expect("ours");
    let jobs = caller.jobs();
    assert!(
        jobs.iter().all(|job| job.operation == "set_default"),
        "no other lease was accepted"
    );
}

#[test]
fn pid_that_cannot_own_a_lease_is_refused() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut refused = |pid: u32| {
        let params = json!({"operation": "push", "machine": "a", "pid": pid});
        let error = caller.call::<LeaseAcquire>(params).expect_err("refused");
        assert_eq!(error.data.expect("data").field.as_deref(), Some("pid"));
        error.message
    };
    assert!(refused(0).starts_with("pid: must not be 0"));
    assert!(refused(1).contains("first process"));
    assert!(refused(world.pid()).contains("orbd itself"));
    assert_eq!(refused(0x7fff_fff0), "pid: no such process");
    let mut zombie = Command::new("true").spawn().expect("it starts");
    eventually("it has ended", || {
        (!crate::support::is_alive(zombie.id())).then_some(())
    });
    assert_eq!(refused(zombie.id()), "pid: no such process");
    zombie.wait().expect("ours");
    // Only root can start another user's process.
    if rustix::process::getuid().is_root() {
        let mut other = Command::new("sleep");
        std::os::unix::process::CommandExt::uid(&mut other, 65_534);
        let mut other = other.arg("60").spawn().expect("it starts");
        eventually("it runs as that user", || {
            (refused(other.id()).ends_with("another user")).then_some(())
        });
        other.kill().expect("ours");
        other.wait().expect("ours");
    }
}

#[test]
fn session_waits_for_a_running_change_and_blocks_nothing() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let export = Lease::take(&mut caller, json!({"operation": "export", "machine": "a"}));
    let mut process = waiting_process();
    let params = json!({"operation": "shell", "machine": "a", "pid": process.id()});
    let shell = world.background(move |caller| caller.ok::<LeaseAcquire>(params).job_id);
    let waiting = caller.find("shell", "a", JobStateWord::Waiting);
    let waits_for = waiting.waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id(), Some(export.id()));
    export.give_back(&mut caller, 0);
    let shell = shell.join().expect("granted");
    assert_eq!(caller.job(shell).job_class, "session");
    // The machine can be changed while the shell is open, and a drain of everything does not wait for the shell.
    let restart = caller.ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(restart.changed, Some(true));
    caller.ok::<QueueDrain>(json!({}));
    caller.resume();
    release(&mut process, 0);
    caller.end_of(shell);
}

#[test]
fn lease_of_several_machines_holds_all_their_lanes() {
    let world = World::with_machines(&["a", "b", "c"]);
    let mut caller = world.client();
    let lease = Lease::take(
        &mut caller,
        json!({"operation": "restart", "machine_names": ["a", "b"]}),
    );
    let waiting = ["a", "b"].map(|machine| {
        let params = json!({"machine": machine, "detach": true});
        let id = caller.ok::<MachineRestart>(params).job_id;
        let waits_for = caller.job(id).waiting_for.expect("it waits");
        assert_eq!(waits_for.job_id(), Some(lease.id()));
        id
    });
    caller.ok::<MachineRestart>(json!({"machine": "c"}));
    lease.give_back(&mut caller, 0);
    for id in waiting {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
}

#[test]
fn lease_invalidates_its_cache_keys_at_its_start_and_end() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let generation = |caller: &mut Caller| caller.ok::<CacheStatus>(json!({})).generation;
    for (params, cache_key) in [
        (
            json!({"operation": "stop", "machine_names": ["a", "b"]}),
            "machine_names",
        ),
        (json!({"operation": "create", "machine": "n"}), "machine_names"),
        (json!({"operation": "config_set"}), "config"),
        (json!({"operation": "other"}), "machine_names"),
    ] {
        caller.machines();
        let before = generation(&mut caller);
        let lease = Lease::take(&mut caller, params.clone());
        let during = generation(&mut caller);
        assert!(during > before, "{params}");
        lease.give_back(&mut caller, 0);
        assert!(generation(&mut caller) > during, "{params}: {cache_key}");
    }
    // After an operation of unknown effect the version may differ as well, as after an update.
    let seen = |caller: &mut Caller| caller.ok::<OrbstackVersion>(json!({})).observed.observed_at;
    let before = seen(&mut caller);
    assert_eq!(seen(&mut caller), before);
    Lease::take(&mut caller, json!({"operation": "restart", "machine": "a"})).give_back(&mut caller, 0);
    assert_eq!(seen(&mut caller), before);
    let known = world.ledger().of("version").len();
    Lease::take(&mut caller, json!({"operation": "other"})).give_back(&mut caller, 0);
    seen(&mut caller);
    assert_eq!(world.ledger().of("version").len(), known + 1);
    // A session in a machine that is known to run invalidates nothing.
    caller.machines();
    let before = generation(&mut caller);
    Lease::take(&mut caller, json!({"operation": "shell", "machine": "a"})).give_back(&mut caller, 0);
    assert_eq!(generation(&mut caller), before);
}

#[test]
fn lease_by_id_returns_names_and_checks_them_again_before_the_grant() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let id = caller
        .machines()
        .into_iter()
        .find(|machine| machine.name == "a")
        .expect("a")
        .id;
    let lease = Lease::take(
        &mut caller,
        json!({"operation": "delete", "machine_names": [id, "b"]}),
    );
    assert_eq!(lease.answer.machine_names, ["a", "b"]);
    lease.give_back(&mut caller, 0);
    // The machine is renamed while the lease waits.
    caller.machines();
    caller.pause();
    let mut process = waiting_process();
    let params = json!({"operation": "delete", "machine_names": [id, "b"], "pid": process.id()});
    let refused = world.background(move |caller| caller.refused::<LeaseAcquire>(params));
    caller.find("delete", "", JobStateWord::Waiting);
    assert!(world.sim(&["rename", "a", "other"]).status.success());
    caller.resume();
    let data = refused.join().expect("answered");
    assert_eq!(
        (data.kind.as_str(), data.machine),
        ("machine_not_found", Some(id))
    );
    // The process was never granted the lease, and is ended so that it holds nothing.
    eventually("it is gone", || process.try_wait().expect("ours"));
}

#[test]
fn lease_of_any_class_survives_a_crash_and_can_still_be_released() {
    let mut world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let shell = Lease::take(&mut caller, json!({"operation": "shell", "machine": "a"}));
    let other = Lease::take(&mut caller, json!({"operation": "other"}));
    let push = Lease::take(&mut caller, json!({"operation": "push", "machine": "a"}));
    let several = Lease::take(
        &mut caller,
        json!({"operation": "stop", "machine_names": ["b", "c"]}),
    );
    world.kill();
    world.start();
    let mut caller = world.client();
    for (lease, operation, class) in [
        (&shell, "shell", "session"),
        (&other, "other", "session"),
        (&push, "push", "exec"),
        (&several, "stop", "change"),
    ] {
        let job = caller.job(lease.id());
        assert_eq!(
            (&*job.operation, &*job.job_class, job.state),
            (operation, class, JobStateWord::Running)
        );
    }
    // Lanes are held as before: by the push and the change, not by the sessions.
    let restart = ["a", "b"].map(|machine| {
        let params = json!({"machine": machine, "detach": true});
        caller.ok::<MachineRestart>(params).job_id
    });
    let blocker = |caller: &mut Caller, id| caller.job(id).waiting_for.expect("it waits").job_id();
    assert_eq!(blocker(&mut caller, restart[0]), Some(push.id()));
    assert_eq!(blocker(&mut caller, restart[1]), Some(several.id()));
    assert_eq!(success_of(&shell.give_back(&mut caller, 3)), (Some(3), None));
    assert_eq!(outcome_of(&push.give_back(&mut caller, 0)), ("succeeded", ""));
    assert_eq!(
        outcome_of(&several.give_back(&mut caller, 4)),
        ("failed", "orbctl_failed")
    );
    assert_eq!(success_of(&other.give_back(&mut caller, 0)), (None, None));
    for id in restart {
        assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    }
}

#[test]
fn fleet_lease_holds_all_lanes_across_a_crash() {
    let mut world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let lease = Lease::take(&mut caller, json!({"operation": "update_orbstack"}));
    world.kill();
    world.start();
    let mut caller = world.client();
    let waiting = caller.run_detached("a", &["true"]);
    let waits_for = caller.job(waiting).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id(), Some(lease.id()));
    assert!(
        waits_for.description.contains("(update_orbstack)"),
        "{waits_for:?}"
    );
    let ended = lease.give_back(&mut caller, 0);
    assert_eq!(success_of(&ended), (None, None));
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn outcome_of_an_unreleased_lease_depends_on_its_operation() {
    let world = World::with_machines(&["a", "b", "c", "d", "e"]);
    let mut other = world.client();
    let leases = [
        ("run", "a", ("interrupted", "job_interrupted")),
        ("shell", "b", ("interrupted", "job_interrupted")),
        ("push", "c", ("interrupted", "job_interrupted")),
        ("start", "d", ("succeeded", "")),
        ("restart", "e", ("unknown", "outcome_unknown")),
    ]
    .map(|(operation, machine, expected)| {
        let mut caller = world.client();
        let params = json!({"operation": operation, "machine": machine});
        (operation, Lease::take(&mut caller, params), expected)
    });
    // The connections are closed, and no owner releases its lease.
    for (operation, mut lease, expected) in leases {
        assert_eq!(other.job(lease.id()).state, JobStateWord::Running, "{operation}");
        release(&mut lease.process, 0);
        assert_eq!(outcome_of(&other.end_of(lease.id())), expected, "{operation}");
    }
}

#[test]
fn daemon_stop_neither_ends_a_session_nor_waits_for_it() {
    let mut world = World::new().set("grace", "60s").machines(&["a"]).started();
    let mut caller = world.client();
    let shell = Lease::take(&mut caller, json!({"operation": "shell", "machine": "a"}));
    caller.ok::<DaemonStop>(json!({}));
    // If anything delayed the stop, it would take a minute, longer than this test waits.
    assert!(world.ended().success());
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(shell.id()).state, JobStateWord::Running);
    assert_eq!(success_of(&shell.give_back(&mut caller, 0)), (Some(0), None));
}

#[test]
fn lease_holds_its_lane_until_its_process_ends_and_is_released() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    let params = json!({"operation": "export", "machine": "a", "pid": process.id()});
    let lease = caller.ok::<LeaseAcquire>(params);
    assert_eq!(lease.orbctl, programs::orbctl_sim());
    let mut other = world.client();
    let waiting = other
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = other.job(waiting).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id(), Some(lease.job_id));
    assert!(waits_for.description.contains("(export "), "{waits_for:?}");
    release(&mut process, 3);
    let ended = caller
        .ok::<LeaseRelease>(json!({"job_id": lease.job_id, "exit_code": 3}))
        .job;
    assert_eq!(outcome_of(&ended), ("failed", "orbctl_failed"));
    assert_eq!(outcome_of(&other.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn lease_with_exit_code_zero_succeeds() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    let lease = caller.ok::<LeaseAcquire>(json!({"operation": "push", "machine": "a", "pid": process.id()}));
    release(&mut process, 0);
    let ended = caller
        .ok::<LeaseRelease>(json!({"job_id": lease.job_id, "exit_code": 0}))
        .job;
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
}

#[test]
fn lease_stays_with_its_process_after_the_client_disconnects() {
    let world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    let lease =
        caller.ok::<LeaseAcquire>(json!({"operation": "export", "machine": "a", "pid": process.id()}));
    drop(caller);
    let mut other = world.client();
    let waiting = other
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert_eq!(other.job(lease.job_id).state, JobStateWord::Running);
    release(&mut process, 0);
    // No client is left to report how it ended.
    assert_eq!(
        outcome_of(&other.end_of(lease.job_id)),
        ("unknown", "outcome_unknown")
    );
    assert_eq!(outcome_of(&other.end_of(waiting)), ("succeeded", ""));
}

#[test]
fn disconnect_cancels_a_waiting_lease() {
    let world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    caller.pause();
    let mut wire = world.wire();
    wire.request(
        1,
        "lease.acquire",
        &json!({"operation": "push", "machine": "a", "pid": process.id()}),
    );
    let waiting = caller.find("push", "a", JobStateWord::Waiting).job_id;
    drop(wire);
    assert_eq!(
        outcome_of(&caller.end_of(waiting)),
        ("cancelled", "job_cancelled")
    );
    process.kill().expect("ours");
    process.wait().expect("ours");
}

#[test]
fn cancelling_a_lease_ends_its_process() {
    let world = World::new().set("grace", "200ms").machines(&["a"]).started();
    let mut caller = world.client();
    let mut process = Command::new("sh")
        .args(["-c", "trap '' TERM; while :; do sleep 0.05; done"])
        .spawn()
        .expect("a shell");
    let lease = caller.ok::<LeaseAcquire>(json!({"operation": "pull", "machine": "a", "pid": process.id()}));
    assert_eq!(caller.cancel(lease.job_id), "stopping");
    eventually("it is gone", || process.try_wait().expect("ours"));
    assert_eq!(caller.end_of(lease.job_id).state, JobStateWord::Ended);
}

#[test]
fn lease_survives_a_crash_of_the_daemon() {
    let mut world = World::with_machines(&["a"]);
    let mut process = waiting_process();
    let mut caller = world.client();
    let lease =
        caller.ok::<LeaseAcquire>(json!({"operation": "export", "machine": "a", "pid": process.id()}));
    world.kill();
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(lease.job_id).state, JobStateWord::Running);
    let waiting = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = caller.job(waiting).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id(), Some(lease.job_id));
    release(&mut process, 0);
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(lease.job_id)).0, "unknown");
}

#[test]
fn lease_needs_a_living_process() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let mut process = waiting_process();
    process.kill().expect("ours");
    process.wait().expect("ours");
    let data =
        caller.refused::<LeaseAcquire>(json!({"operation": "push", "machine": "a", "pid": process.id()}));
    assert_eq!(data.field.as_deref(), Some("pid"));
    let job = caller.run("a", &["true"]).job_id;
    let data = caller.refused::<LeaseRelease>(json!({"job_id": job, "exit_code": 0}));
    assert_eq!(data.field.as_deref(), Some("job_id"));
    caller.ok::<JobGet>(json!({"job_id": job}));
}

#[test]
fn connection_with_a_lease_is_not_closed_as_idle() {
    let world = World::new()
        .set("connections_max", "4")
        .set("connection_idle_max", "100ms")
        .machines(&["a"])
        .started();
    let mut owner = world.client();
    let lease = Lease::take(&mut owner, json!({"operation": "run", "machine": "a"}));
    let mut idle = world.admitted();
    let _newcomers = [(); 3].map(|()| world.subscribed());
    assert!(idle.receive().is_none());
    let ended = lease.give_back(&mut owner, 3);
    assert_eq!(success_of(&ended), (Some(3), None));
}
