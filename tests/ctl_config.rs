//! `orbd-ctl daemon config` and `daemon reload`: orbd's own configuration, from the command line.

use std::fs;

use serde_json::Value;

use crate::ctl_suite::{call, ok, said};
use crate::support::World;

/// Returns a world whose daemon and command line read a `config.toml` with this text; with `None` the file does not
/// exist.
fn configured(text: Option<&str>) -> World {
    let world = World::new();
    let file = world.path("config.toml");
    // A file named by `ORBD_CONFIG` must exist when the daemon starts.
    if let Some(text) = text {
        fs::write(&file, text).expect("written");
    }
    world.variable("ORBD_CONFIG", &file.display().to_string())
}

fn json_of(world: &World, words: &[&str]) -> Value {
    serde_json::from_str(&ok(world, words)).expect("JSON")
}

#[test]
fn config_show_names_the_source_of_each_value() {
    let world = configured(Some("\ngrace = \"1s\"\n")).variable("ORBD_QUEUE_MAX", "700");
    let shown = ok(&world, &["daemon", "config", "show"]);
    let line = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).expect(key);
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let path = world.path("config.toml").display().to_string();
    assert_eq!(line("grace "), format!("grace 1s {path}:2"));
    assert_eq!(line("queue_max "), "queue_max 700 $ORBD_QUEUE_MAX");
    assert_eq!(line("changes_max"), "changes_max 8 default");
    assert_eq!(line("log_dir"), "log_dir - default");
    let json = json_of(&world, &["daemon", "config", "show", "--json"]);
    assert_eq!(json["config_file"], path);
    let keys = json["keys"].as_array().expect("a list");
    let of = |name: &str| keys.iter().find(|key| key["key"] == name).expect("a key").clone();
    assert_eq!(of("grace")["from"], "file");
    assert_eq!(of("grace")["needs_restart"], false);
    assert_eq!(of("frame_max")["needs_restart"], true);
    assert_eq!(of("log_dir")["value"], Value::Null);
    assert_eq!(ok(&world, &["daemon", "config", "path"]), format!("{path}\n"));
}

#[test]
fn config_check_reports_by_exit_code_whether_the_file_is_valid() {
    let world = configured(Some("grace = \"1s\"\n"));
    let path = world.path("config.toml").display().to_string();
    assert_eq!(
        ok(&world, &["daemon", "config", "check"]),
        format!("{path} is valid\n")
    );
    let other = world.path("other.toml").display().to_string();
    fs::write(&other, "strict = 1\n").expect("written");
    let output = call(&world, &["daemon", "config", "check", "--file", &other]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        told,
        format!("{other}:1: `strict` must be true or false, not integer\n")
    );
    let output = call(
        &world,
        &["daemon", "config", "check", "--file", "/missing/x.toml"],
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn reload_prints_applied_keys_and_keys_that_need_a_restart() {
    let world = configured(Some("grace = \"1s\"\n")).started();
    let path = world.path("config.toml").display().to_string();
    let told = ok(&world, &["daemon", "reload"]);
    assert_eq!(told, format!("read {path}; no changes\n"));
    fs::write(&path, "grace = \"2s\"\nlog_max_files = 3\n").expect("written");
    let told = ok(&world, &["daemon", "reload"]);
    assert_eq!(
        told,
        "applied grace: 1s -> 2s\n\
         needs `orbd-ctl daemon restart` log_max_files: now 5, 3 after the restart\n"
    );
    fs::write(&path, "grace = 2\n").expect("written");
    let output = call(&world, &["daemon", "reload"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains(":1: `grace` must be a duration"),
        "{}",
        said(&output)
    );
}

#[test]
fn config_verbs_for_orbstack_point_to_those_for_orbd() {
    let world = configured(None);
    for verb in ["path", "check"] {
        let output = call(&world, &["config", verb]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            said(&output).contains(&format!("orbd-ctl daemon config {verb}")),
            "{}",
            said(&output)
        );
    }
    let output = call(&world, &["daemon", "reload"]);
    assert_eq!(output.status.code(), Some(3), "reload starts no daemon");
}

#[test]
fn status_and_doctor_show_a_pending_upgrade_and_what_it_waits_for() {
    let world = World::new().installed().started();
    let mut caller = world.client();
    caller.pause();
    world.install(std::path::Path::new(programs::orbd()));
    let status = crate::support::eventually("status shows the upgrade", || {
        let status = ok(&world, &["daemon", "status"]);
        status
            .contains("starts when orbd is idle; waiting for the queue to be resumed")
            .then_some(status)
    });
    assert!(
        status.contains("`orbd-ctl daemon restart` does not wait"),
        "{status}"
    );
    let found = call(&world, &["doctor"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("waiting for the queue to be resumed"), "{found}");
    // doctor does not ask orbctl while the queue is paused: the question would wait for the end of the pause.
    assert!(found.contains("not checked: the queue is paused"), "{found}");
}
