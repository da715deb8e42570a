//! A misbehaving `orbctl`: each trouble has its outcome within its time limit, and other machines are not affected.

use orbd_proto::methods::{
    DaemonInfo, MachineCreate, MachineInfo, MachineList, MachineRestart, MachineRun, MachineStop,
    OrbstackStatus, OrbstackVersion,
};
use orbd_proto::types::{ErrorData, JobStateWord, Stream};
use serde_json::json;

use crate::support::{Caller, World, outcome_of, stream_of};

/// Starts a daemon over the machines `a` and `b`, whose stand-in plays one trouble at this command.
fn trouble(command: &str, rest: &str) -> World {
    World::new()
        .set("grace", "200ms")
        .script(&format!("[[trouble]]\ncommand = \"{command}\"\n{rest}"))
        .machines(&["a", "b"])
        .started()
}

fn restart_a(caller: &mut Caller) -> ErrorData {
    caller.refused::<MachineRestart>(json!({"machine": "a", "run_timeout_ms": 300}))
}

/// Checks that a trouble with `a` left nothing behind.
fn assert_healthy(world: &World) {
    let mut caller = world.client();
    caller.until_healthy();
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    assert_eq!(caller.run("a", &["true"]).exit_code, Some(0));
    assert_eq!(
        caller.ok::<MachineList>(json!({"max_age_ms": 0})).machines.len(),
        2
    );
    world.ledger().assert_no_overlap();
}

#[test]
fn hanging_change_is_ended_at_its_timeout_with_an_unknown_outcome() {
    for kind in ["hang", "hang_hard"] {
        let world = trouble("restart", &format!("kind = \"{kind}\"\nmachine = \"a\""));
        let mut caller = world.client();
        let hanging = world.background(restart_a);
        assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
        caller.ok::<MachineRestart>(json!({"machine": "b"}));
        let data = hanging.join().expect("it is told");
        assert_eq!(data.kind, "outcome_unknown");
        let seen = data.observed.expect("looks");
        assert_eq!(
            (seen.stable, seen.machine_state.as_deref()),
            (true, Some("running"))
        );
        assert_healthy(&world);
    }
}

#[test]
fn hanging_read_is_ended_at_its_timeout() {
    let world = World::new()
        .set("query_timeout", "1s")
        .set("grace", "200ms")
        .script("[[trouble]]\ncommand = \"list\"\nkind = \"hang\"\ntimes = 1")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let hanging = world.background(|caller| caller.refused::<MachineList>(json!({})));
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    let data = hanging.join().expect("it is told");
    assert_eq!(
        (data.kind.as_str(), data.phase.as_deref()),
        ("deadline_exceeded", Some("running"))
    );
    assert_healthy(&world);
}

#[test]
fn panicking_change_has_an_unknown_outcome() {
    let world = trouble("restart", "kind = \"panic\"\nmachine = \"a\"");
    assert_eq!(restart_a(&mut world.client()).kind, "outcome_unknown");
    assert_healthy(&world);
}

#[test]
fn panicking_read_fails_and_is_not_cached() {
    let world = trouble("list", "kind = \"panic\"\ntimes = 1");
    let mut caller = world.client();
    let data = caller.refused::<MachineList>(json!({}));
    assert!(
        matches!(data.kind.as_str(), "orbctl_failed" | "orbctl_unavailable"),
        "{data:?}"
    );
    assert_healthy(&world);
}

#[test]
fn unreadable_orbctl_output_is_reported_as_such() {
    for (command, kind) in [("list", "garbage"), ("list", "list_half")] {
        let world = trouble(command, &format!("kind = \"{kind}\"\ntimes = 1"));
        let data = world.client().refused::<MachineList>(json!({}));
        assert_eq!(data.kind, "orbctl_output_unreadable");
        assert_healthy(&world);
    }
    let world = trouble("info", "kind = \"garbage\"\ntimes = 1");
    let data = world.client().refused::<MachineInfo>(json!({"machine": "a"}));
    assert_eq!(data.kind, "orbctl_output_unreadable");
    assert_healthy(&world);
}

#[test]
fn killed_read_reports_the_signal() {
    let world = trouble("list", "kind = \"killed\"\ntimes = 1");
    let data = world.client().refused::<MachineList>(json!({}));
    assert_eq!((data.kind.as_str(), data.signal), ("orbctl_killed", Some(9)));
    assert_healthy(&world);
}

#[test]
fn killed_command_reports_the_signal() {
    let world = trouble("run", "kind = \"killed\"\nmachine = \"a\"\ntimes = 1");
    let params = json!({"machine": "a", "command": ["true"]});
    let data = world.client().refused::<MachineRun>(params);
    assert_eq!((data.kind.as_str(), data.signal), ("orbctl_killed", Some(9)));
    assert_healthy(&world);
}

#[test]
fn refused_change_fails_with_orbctls_message() {
    let world = trouble(
        "restart",
        "kind = \"fail\"\ntext = \"no space left on the Mac\"\nexit = 7",
    );
    let data = world.client().refused::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!((data.kind.as_str(), data.exit_code), ("orbctl_failed", Some(7)));
    assert!(data.stderr_tail.expect("a tail").contains("no space left"));
    assert_healthy(&world);
}

#[test]
fn create_whose_orbctl_died_succeeds_with_a_warning_once_its_machine_runs() {
    for ending in ["killed", "hang"] {
        let world = trouble(
            "create",
            &format!("kind = \"made_though_client_died\"\nending = \"{ending}\""),
        );
        let mut caller = world.client();
        let params = json!({"name": "new", "distro": "ubuntu", "run_timeout_ms": 500});
        let made = caller.ok::<MachineCreate>(params);
        assert_eq!(made.changed, Some(true));
        let warning = made.warning.expect("it was cut short");
        assert!(
            warning.contains("machine 'new' exists and is running"),
            "{warning}"
        );
        assert_eq!(caller.state_of("new").as_deref(), Some("running"));
        assert_eq!(world.ledger().spawns("create"), 1, "the create is not repeated");
    }
}

#[test]
fn create_whose_orbctl_died_holds_its_lane_until_it_is_reconciled() {
    // The service keeps working for a while after its client died.
    let world = World::new()
        .latency("create=900")
        .script("[[trouble]]\ncommand = \"create\"\nkind = \"made_though_client_died\"\nending = \"killed\"")
        .started();
    let mut caller = world.client();
    let params = json!({"name": "new", "distro": "ubuntu", "detach": true});
    let making = caller.ok::<MachineCreate>(params).job_id;
    let using = caller.run_detached("new", &["true"]);
    let ended = caller.end_of(making);
    assert_eq!(outcome_of(&ended), ("succeeded", ""));
    assert!(ended.outcome.expect("ended").warning.is_some());
    assert_eq!(outcome_of(&caller.end_of(using)), ("succeeded", ""));
    assert_eq!(world.truth(), [("new".to_owned(), "running".to_owned())]);
}

#[test]
fn create_that_is_cut_short_is_unknown_if_a_machine_of_that_name_was_there_before() {
    let world = trouble("create", "kind = \"killed\"");
    let params = json!({"name": "a", "distro": "ubuntu"});
    let data = world.client().refused::<MachineCreate>(params);
    assert_eq!(data.kind, "outcome_unknown");
    assert_eq!(data.observed.expect("looks").satisfied, Some(true));
    assert_healthy(&world);
}

#[test]
fn command_that_orbctl_did_not_run_is_not_reported_as_the_guests_exit_code() {
    let text = "start VM: timed out waiting for VM to start";
    let world = trouble(
        "run",
        &format!("kind = \"fail\"\ntext = \"{text}\"\nexit = 1\ntimes = 1"),
    );
    let mut caller = world.client();
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!((data.kind.as_str(), data.exit_code), ("orbctl_failed", Some(1)));
    assert_eq!(data.stderr_tail.as_deref(), Some(text));
    // The failure is a suspect signal at most, so the next command is not refused.
    assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
    // A known ambiguity: a guest that prints exactly this text, and nothing else, is taken for orbctl.
    let script = format!("echo '{text}' >&2; exit 1");
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["sh", "-c", script]}));
    assert_eq!((data.kind.as_str(), data.exit_code), ("orbctl_failed", Some(1)));
    let script = format!("echo '{text}' >&2; echo more; exit 1");
    assert_eq!(caller.run("a", &["sh", "-c", &script]).exit_code, Some(1));
    assert_healthy(&world);
}

#[test]
fn machine_in_transition_is_reported_with_its_state_and_as_retryable() {
    let text = "[-32098] cannot transition from creating to deleting";
    let world = trouble(
        "restart",
        &format!("kind = \"fail\"\ntext = \"{text}\"\nexit = 1\ntimes = 1"),
    );
    let data = world.client().refused::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(
        (data.kind.as_str(), data.retryable),
        ("machine_wrong_state", true)
    );
    assert_eq!(
        (data.machine.as_deref(), data.machine_state.as_deref()),
        (Some("a"), Some("creating"))
    );
    assert_healthy(&world);
}

/// Each trouble affects a change of `a` after three seconds; meanwhile a change and a command of `b` finish.
#[test]
fn trouble_with_one_machine_does_not_delay_others() {
    let troubles = [
        ("hang", "outcome_unknown"),
        ("hang_hard", "outcome_unknown"),
        ("panic", "outcome_unknown"),
        ("killed", "outcome_unknown"),
        ("fail", "orbctl_failed"),
        ("garbage", ""),
        ("slow", ""),
    ];
    std::thread::scope(|scope| {
        for (kind, expected) in troubles {
            scope.spawn(move || {
                let world = World::new().set("grace", "200ms");
                let gate = world.gate("gate");
                let world = world
                    .script(&format!(
                        "[[trouble]]\ncommand = \"restart\"\nkind = \"gate\"\ntext = \"{gate}\"\nmachine = \"a\"\n\
                         [[trouble]]\ncommand = \"restart\"\nkind = \"{kind}\"\nms = 1\nmachine = \"a\""
                    ))
                    .machines(&["a", "b"])
                    .started();
                let mut caller = world.client();
                let restarted = world.background(|caller| {
                    caller.call::<MachineRestart>(json!({"machine": "a", "run_timeout_ms": 6000}))
                });
                let id = caller.find("restart", "a", JobStateWord::Running).job_id;
                let at_gate = world.at_gate("gate");
                caller.ok::<MachineRestart>(json!({"machine": "b"}));
                assert_eq!(caller.run("b", &["true"]).exit_code, Some(0));
                assert_eq!(caller.job(id).state, JobStateWord::Running, "{kind}");
                at_gate.open();
                let told = match restarted.join().expect("it is told") {
                    Ok(_) => String::new(),
                    Err(error) => error.data.expect("every error has data").kind,
                };
                assert_eq!(told, expected, "{kind}");
                assert_healthy(&world);
            });
        }
    });
}

#[test]
fn slow_orbctl_is_waited_for() {
    let world = trouble("restart", "kind = \"slow\"\nms = 400");
    let mut caller = world.client();
    assert_eq!(
        caller.ok::<MachineRestart>(json!({"machine": "a"})).changed,
        Some(true)
    );
    assert_healthy(&world);
}

#[test]
fn update_banner_does_not_affect_answers() {
    let world = World::new()
        .script("[[trouble]]\nkind = \"banner\"")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(
        caller.ok::<MachineInfo>(json!({"machine": "a"})).machine.name,
        "a"
    );
    assert!(!caller.ok::<OrbstackVersion>(json!({})).version.is_empty());
    assert_eq!(caller.ok::<OrbstackStatus>(json!({})).status, "running");
    assert_healthy(&world);
}

#[test]
fn unknown_and_missing_keys_in_a_list_are_accepted() {
    for kind in ["unknown_keys", "missing_optional_keys"] {
        let world = World::new()
            .script(&format!(
                "[[trouble]]\nkind = \"{kind}\"\ncommand = [\"list\", \"info\"]"
            ))
            .machines(&["a", "b"])
            .started();
        let mut caller = world.client();
        assert_eq!(caller.state_of("a").as_deref(), Some("running"));
        assert_eq!(
            caller.ok::<MachineInfo>(json!({"machine": "a"})).machine.name,
            "a"
        );
        assert_healthy(&world);
    }
}

#[test]
fn unknown_machine_state_is_passed_on() {
    let world = World::new()
        .script(
            "[[trouble]]\ncommand = \"list\"\nkind = \"unknown_state\"\ntext = \"melting\"\nrecord = \"a\"",
        )
        .machines(&["a", "b"])
        .started();
    assert_eq!(world.client().state_of("a").as_deref(), Some("melting"));
}

#[test]
fn process_that_keeps_the_output_open_does_not_delay_the_job() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"list\"\nkind = \"grandchild\"\nms = 20000")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    assert_eq!(caller.machines().len(), 2);
    // The usual case: a command in a machine leaves a process behind.
    let answer = caller.run("a", &["sh", "-c", "sleep 20 & echo done"]);
    assert_eq!(answer.exit_code, Some(0));
    assert_eq!(stream_of(&answer.output, Stream::Stdout), b"done\n");
    assert!(answer.run_us.is_some_and(|us| us < 10_000_000), "{answer:?}");
}

#[test]
fn missing_machines_and_taken_names_are_reported_as_such() {
    let world = trouble("update", "kind = \"fail\"");
    let mut caller = world.client();
    let data = caller.refused::<MachineStop>(json!({"machine": "nobody"}));
    assert_eq!(
        (data.kind.as_str(), data.machine.as_deref()),
        ("machine_not_found", Some("nobody"))
    );
    let data = caller.refused::<MachineInfo>(json!({"machine": "nobody"}));
    assert_eq!(data.kind, "machine_not_found");
    let data = caller.refused::<MachineCreate>(json!({"name": "a", "distro": "ubuntu"}));
    assert_eq!(
        (data.kind.as_str(), data.machine.as_deref()),
        ("machine_exists", Some("a"))
    );
    assert_healthy(&world);
}

#[test]
fn missing_orbctl_is_reported_and_found_once_it_exists() {
    let world = World::new().machines(&["a", "b"]);
    let place = world.path("orbctl");
    let world = world
        .variable("ORBD_ORBCTL", &place.display().to_string())
        .started();
    let mut caller = world.client();
    assert_eq!(caller.ok::<DaemonInfo>(json!({})).orbctl, None);
    let data = caller.refused::<MachineList>(json!({}));
    assert_eq!(data.kind, "orbctl_unavailable");
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!(data.kind, "orbctl_unavailable");
    std::os::unix::fs::symlink(programs::orbctl_sim(), &place).expect("a link");
    assert_eq!(caller.machines().len(), 2, "the next call searches again");
    assert_eq!(
        caller.ok::<DaemonInfo>(json!({})).orbctl,
        Some(place.display().to_string())
    );
    assert_healthy(&world);
}
