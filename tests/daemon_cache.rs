//! The cache: which answers come from it, and what invalidates them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use orbd_proto::methods::{
    CacheInvalidate, CacheStatus, ConfigShow, MachineClone, MachineCreate, MachineDelete, MachineInfo,
    MachineList, MachineRename, MachineRestart, MachineRun, MachineStart, MachineStop, OrbstackStop,
    OrbstackVersion, QueueStatus,
};
use orbd_proto::types::JobStateWord;
use serde_json::json;

use crate::support::{Caller, World};

#[test]
fn cached_list_starts_no_orbctl_and_reports_its_age() {
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
fn max_age_zero_runs_orbctl_each_time() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    for _ in 0..3 {
        caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    }
    assert_eq!(world.ledger().spawns("list"), 3);
}

#[test]
fn configuration_has_the_keys_of_a_machine_as_soon_as_it_is_created() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    assert!(
        !caller
            .ok::<ConfigShow>(json!({}))
            .values
            .contains_key("machine.b.cpu")
    );
    caller.ok::<MachineCreate>(json!({"name": "b", "distro": "ubuntu"}));
    assert!(
        caller
            .ok::<ConfigShow>(json!({}))
            .values
            .contains_key("machine.b.cpu")
    );
}

#[test]
fn caller_cannot_exceed_cache_max_age() {
    let world = World::new().set("cache_max_age", "0s").machines(&["a"]).started();
    let mut caller = world.client();
    for _ in 0..2 {
        caller.ok::<MachineList>(json!({"max_age_ms": 3_600_000}));
    }
    assert_eq!(world.ledger().spawns("list"), 2);
}

#[test]
fn invalidated_answers_are_read_again() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    for machine in ["a", "b"] {
        caller.ok::<MachineInfo>(json!({"machine": machine}));
    }
    caller.machines();
    // A change that the daemon does not see.
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
fn reads_after_a_change_see_its_effect() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    // Before each change the list is cached, and the reads do not limit the age of their answers.
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
fn command_in_a_stopped_machine_invalidates_the_list() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.ok::<MachineStop>(json!({"machine": "a"}));
    assert_eq!(caller.state_of("a").as_deref(), Some("stopped"));
    caller.run("a", &["true"]);
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    // The machine is known to run now, so commands no longer invalidate the list.
    let spawns = world.ledger().spawns("list");
    caller.run("a", &["true"]);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), spawns);
}

#[test]
fn slow_read_from_before_a_change_does_not_hide_it() {
    let world = World::new()
        .gated(
            "[[trouble]]\ncommand = \"list\"\nwhen = \"after\"\nnth = 1",
            "gate",
        )
        .machines(&["a"])
        .started();
    let slow = world.background(|caller| caller.machines().len());
    let mut caller = world.client();
    let reading = caller.find("list", "", JobStateWord::Running);
    let gate = world.at_gate("gate");
    caller.ok::<MachineCreate>(json!({"name": "b", "distro": "ubuntu"}));
    assert_eq!(
        caller.machines().len(),
        2,
        "the newer read does not join the older one"
    );
    assert_eq!(
        caller.ok::<QueueStatus>(json!({})).running,
        1,
        "job {} still runs",
        reading.job_id
    );
    gate.open();
    assert_eq!(slow.join().expect("no panic"), 1, "the list as of its start");
    assert_eq!(caller.machines().len(), 2);
    // Two reads by clients, and the read with which the create records the state before it.
    assert_eq!(world.ledger().spawns("list"), 3, "the newer answer was kept");
}

#[test]
fn already_satisfied_change_is_not_executed() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let told = caller.ok::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(told.changed, Some(false));
    // A cached list does not count: it is older than the request.
    assert!(world.sim(&["stop", "a"]).status.success());
    let told = caller.ok::<MachineStart>(json!({"machine": "a"}));
    assert_eq!(told.changed, Some(true));
    assert_eq!(world.ledger().spawns("start"), 1);
}

/// An answer names the read that it comes from, whether it is fresh or cached.
#[test]
fn answers_name_the_read_that_they_come_from() {
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

/// Writes a program that is the stand-in except for the version that it prints.
fn stand_in_of(world: &World, name: &str, version: &str) -> PathBuf {
    let program = world.path(name);
    let text = format!(
        "#!/bin/sh\n\
         [ \"$1\" = version ] && echo 'Version: {version} (1)' && exit\n\
         exec '{sim}' \"$@\"\n",
        sim = programs::orbctl_sim(),
    );
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
    program
}

#[test]
fn orbctl_upgrade_invalidates_answers_of_the_old_version() {
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
    // As during an installation: cached answers are still served, and calls that need orbctl fail.
    fs::remove_file(&place).expect("there");
    caller.machines();
    let failed = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
    assert_eq!(failed.kind, "orbctl_unavailable");
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1);
    lead_to(&old);
    caller.run("a", &["true"]);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1, "the old version is back");
    lead_to(&new);
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1, "no orbctl was started since");
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
        .filter(|line| line.contains("orbctl was replaced"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&value), "{lines:?}");
}
