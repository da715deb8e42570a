//! What is known, and when it stops being told.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use orbd::rpc::api::{
    CacheInvalidate, CacheStatus, MachineClone, MachineCreate, MachineDelete, MachineInfo, MachineList,
    MachineRename, MachineRestart, MachineRun, MachineStart, MachineStop, OrbstackStop, OrbstackVersion,
    QueueStatus,
};
use orbd::rpc::types::JobStateWord;
use serde_json::json;

use crate::support::{Caller, World};

#[test]
fn a_list_that_is_known_costs_no_invocation_and_tells_its_age() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let first = caller.ok::<MachineList>(json!({}));
    for _ in 0..100 {
        let again = caller.ok::<MachineList>(json!({}));
        assert_eq!(again.machines, first.machines);
        assert_eq!(again.observed.generation, first.observed.generation);
        assert_eq!(again.observed.observed_at, first.observed.observed_at);
    }
    assert_eq!(world.ledger().spawns("list"), 1);
}

#[test]
fn max_age_zero_asks_each_time() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    for _ in 0..3 {
        caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    }
    assert_eq!(world.ledger().spawns("list"), 3);
}

#[test]
fn a_caller_cannot_stretch_cache_max_age() {
    let world = World::new().set("cache_max_age", "0s").machines(&["a"]).started();
    let mut caller = world.client();
    for _ in 0..2 {
        caller.ok::<MachineList>(json!({"max_age_ms": 3_600_000}));
    }
    assert_eq!(world.ledger().spawns("list"), 2);
}

#[test]
fn what_is_invalidated_is_asked_for_again() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    for machine in ["a", "b"] {
        caller.ok::<MachineInfo>(json!({"machine": machine}));
    }
    caller.machines();
    // Behind the daemon's back.
    assert!(world.sim(&["stop", "a"]).status.success());
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    let before = caller.ok::<CacheStatus>(json!({})).generation;
    let after = caller.ok::<CacheInvalidate>(json!({"machine": "a"})).generation;
    assert!(after > before);
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    caller.ok::<MachineInfo>(json!({"machine": "b"}));
    assert_eq!(world.ledger().spawns("info"), 2, "b was not invalidated");
    let told = caller.ok::<MachineInfo>(json!({"machine": "a"}));
    assert_eq!(told.machine.state, "stopped");
    caller.ok::<CacheInvalidate>(json!({}));
    caller.ok::<MachineInfo>(json!({"machine": "b"}));
    assert_eq!(world.ledger().spawns("info"), 4);
}

#[test]
fn whoever_reads_after_a_change_reads_what_is_true_after_it() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    // Each change finds a list that is known, and nobody says how old an answer may be.
    caller.machines();
    caller.ok::<MachineStop>(json!({"machine": "a"}));
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    caller.ok::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    caller.ok::<MachineCreate>(json!({"name": "b", "distro": "ubuntu"}));
    assert_eq!(caller.state_of("b").as_deref(), Some("running"));
    caller.ok::<MachineRename>(json!({"machine": "b", "new_name": "c"}));
    assert_eq!(caller.state_of("b"), None);
    assert_eq!(caller.state_of("c").as_deref(), Some("running"));
    caller.ok::<MachineClone>(json!({"machine": "c", "new_name": "d"}));
    assert_eq!(caller.state_of("d").as_deref(), Some("stopped"));
    caller.ok::<MachineDelete>(json!({"machine": "c"}));
    assert_eq!(caller.state_of("c"), None);
    caller.ok::<OrbstackStop>(json!({}));
    let truth = world.truth();
    let told: Vec<_> = caller
        .machines()
        .into_iter()
        .map(|machine| (machine.name, machine.state))
        .collect();
    assert_eq!(told, truth);
}

#[test]
fn a_command_may_start_its_machine_so_the_list_is_asked_for_again() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.ok::<MachineStop>(json!({"machine": "a"}));
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    caller.run("a", &["true"]);
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    // Now that it is seen running, commands leave what is known alone.
    let spawns = world.ledger().spawns("list");
    caller.run("a", &["true"]);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), spawns);
}

#[test]
fn a_slow_read_that_began_before_a_change_does_not_hide_it() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"list\"\nkind = \"slow\"\nms = 700\nwhen = \"after\"\nnth = [1]")
        .machines(&["a"])
        .started();
    let slow = world.background(|caller| caller.machines().len());
    let mut caller = world.client();
    let reading = caller.find("list", "", JobStateWord::Running);
    caller.ok::<MachineCreate>(json!({"name": "b", "distro": "ubuntu"}));
    assert_eq!(caller.machines().len(), 2, "it does not join the older read");
    assert_eq!(
        caller.ok::<QueueStatus>(json!({})).running,
        1,
        "job {} is still at it",
        reading.job_id
    );
    assert_eq!(slow.join().expect("it is told"), 1, "what it saw when it began");
    assert_eq!(caller.machines().len(), 2);
    // Two reads, and the look of the create at what was there before it.
    assert_eq!(world.ledger().spawns("list"), 3, "the newer answer was kept");
}

#[test]
fn a_change_that_already_holds_is_not_carried_out() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let told = caller.ok::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(told.changed, Some(false));
    // A known list does not count: it is older than the wish.
    assert!(world.sim(&["stop", "a"]).status.success());
    let told = caller.ok::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(told.changed, Some(true));
    assert_eq!(world.ledger().spawns("start"), 1);
}

/// Whether an answer is new or remembered, it says which read told it.
#[test]
fn an_answer_says_which_read_told_it() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    for (method, params, source) in [
        ("machine.list", json!({}), "list"),
        ("machine.info", json!({"machine": "a"}), "info"),
        ("orbstack.status", json!({}), "status"),
        ("orbstack.version", json!({}), "version"),
        ("config.show", json!({}), "config_show"),
        ("machine.default", json!({}), "default"),
    ] {
        for id in 0..2 {
            let answer = wire.call(id, method, &params);
            assert_eq!(answer["result"]["source"], source, "{method}: {answer}");
        }
    }
}

/// Makes a program that is the stand-in but for the version that it says.
fn stand_in_of(world: &World, name: &str, version: &str) -> PathBuf {
    let program = world.path(name);
    let text = format!(
        "#!/bin/sh\n\
         [ \"$1\" = version ] && echo 'Version: {version} (1)' && exit\n\
         exec '{sim}' \"$@\"\n",
        sim = env!("CARGO_BIN_EXE_orbctl-sim"),
    );
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
    program
}

#[test]
fn after_an_upgrade_of_orbctl_nothing_is_told_that_the_old_one_said() {
    let world = World::new().machines(&["a"]);
    let place = world.path("orbctl");
    let next = world.path("next");
    let lead_to = |program: &Path| {
        symlink(program, &next).expect("a link");
        fs::rename(&next, &place).expect("moved");
    };
    let (old, new) = (
        stand_in_of(&world, "old", "8.0.0"),
        stand_in_of(&world, "new", "9.0.0"),
    );
    lead_to(&old);
    let value = place.display().to_string();
    let world = world.variable("ORBD_ORBCTL", &value).started();
    let mut caller = world.client();
    let version = |caller: &mut Caller| caller.ok::<OrbstackVersion>(json!({})).version;
    caller.machines();
    assert_eq!(version(&mut caller), "8.0.0");
    // As in the middle of an installation: what is known is told, and what must be started fails as it would.
    fs::remove_file(&place).expect("there");
    caller.machines();
    let failed = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!(failed.kind, "orbctl_unavailable");
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1);
    lead_to(&old);
    caller.run("a", &["true"]);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1, "it is the old one again");
    lead_to(&new);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1, "nothing was started since");
    let before = caller.ok::<CacheStatus>(json!({})).generation;
    caller.run("a", &["true"]);
    assert!(caller.ok::<CacheStatus>(json!({})).generation > before);
    caller.machines();
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 2);
    assert_eq!(version(&mut caller), "9.0.0");
    let log = world.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("another program"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&value), "{lines:?}");
}
