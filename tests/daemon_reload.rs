//! Reload: what a running daemon takes over from its configuration, what it does not, and what a mistake in it costs.

use std::fs;

use orbd::rpc::api::{DaemonInfo, DaemonReload, MachineList};
use orbd::rpc::types::{JobStateWord, ReloadAnswer};
use serde_json::json;

use crate::support::{Caller, World, eventually, outcome_of};

/// Describes a world whose daemon reads this file.
fn configured(text: &str) -> World {
    let world = World::new();
    let file = world.path("config.toml").display().to_string();
    rewrite(&world, text);
    world.variable("ORBD_CONFIG", &file)
}

fn rewrite(world: &World, text: &str) {
    fs::write(world.path("config.toml"), text).expect("written");
}

fn reload(caller: &mut Caller) -> ReloadAnswer {
    caller.ok::<DaemonReload>(json!({}))
}

fn limit(caller: &mut Caller, name: &str) -> u64 {
    caller.ok::<DaemonInfo>(json!({})).limits[name]
}

/// Asks the daemon to reload as `kill -HUP` does.
fn hang_up(world: &World) {
    let pid = i32::try_from(world.pid()).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is ours");
}

#[test]
fn what_can_change_does_and_what_cannot_is_told() {
    let world = configured("grace = \"1s\"\n").started();
    let mut caller = world.client();
    let file = world.path("config.toml").display().to_string();
    rewrite(
        &world,
        "grace = \"2s\"\nframe_max = \"8MiB\"\nconnections_max = 7\n",
    );
    let answer = serde_json::to_value(reload(&mut caller)).expect("JSON");
    let expected = json!({
        "config_file": file,
        "applied": [
            {"key": "grace", "old_value": "1s", "new_value": "2s"},
            {"key": "connections_max", "old_value": "512", "new_value": "7"},
        ],
        "needs_restart": [{"key": "frame_max", "running": "4MiB", "configured": "8MiB"}],
    });
    assert_eq!(answer, expected);
    assert_eq!(limit(&mut caller, "grace_ms"), 2000);
    assert_eq!(limit(&mut caller, "frame_max_bytes"), 4 << 20, "what is in force");
    let again = reload(&mut caller);
    assert_eq!(again.applied, [], "it is in force already");
    assert_eq!(again.needs_restart.len(), 1, "and this is not, still");
}

#[test]
fn a_mistake_changes_nothing_and_is_told_with_its_place() {
    let world = configured("queue_max = 600\n").started();
    let mut caller = world.client();
    rewrite(&world, "queue_max = 700\n\nquue_timeout = \"1s\"\n");
    let error = caller.call::<DaemonReload>(json!({})).expect_err("refused");
    assert_eq!(error.data.expect("data").kind, "config_invalid");
    let expected = format!(
        "{}:3: there is no key `quue_timeout`; did you mean `queue_timeout`?",
        world.path("config.toml").display()
    );
    assert_eq!(error.message, expected);
    fs::remove_file(world.path("config.toml")).expect("there");
    let error = caller.call::<DaemonReload>(json!({})).expect_err("refused");
    assert!(
        error.message.contains("cannot read the configuration"),
        "{error:?}"
    );
    assert_eq!(limit(&mut caller, "queue_max"), 600);
    caller.machines();
}

#[test]
fn a_hang_up_reloads_and_what_the_command_line_says_stays() {
    let world = configured("queue_timeout = \"1m\"\ncache_max_age = \"30s\"\n")
        .set("cache_max_age", "20s")
        .started();
    let mut caller = world.client();
    rewrite(&world, "queue_timeout = \"2m\"\ncache_max_age = \"10s\"\n");
    hang_up(&world);
    eventually("it is in force", || {
        (limit(&mut caller, "queue_timeout_ms") == 120_000).then_some(())
    });
    assert_eq!(limit(&mut caller, "cache_max_age_ms"), 20_000);
    rewrite(&world, "queue_timeout = soon\n");
    hang_up(&world);
    eventually("the log says what is wrong", || {
        world
            .log()
            .contains("the configuration is not valid")
            .then_some(())
    });
    assert_eq!(limit(&mut caller, "queue_timeout_ms"), 120_000);
}

#[test]
fn a_raised_limit_starts_what_waits_and_a_lowered_one_ends_nothing() {
    let world = configured("exec_per_machine = 1\n").machines(&["a"]).started();
    let mut caller = world.client();
    let gates = ["one", "two", "three"].map(|name| world.gate(name));
    let [first, second, third] = gates
        .each_ref()
        .map(|gate| caller.run_detached("a", &["cat", gate]));
    caller.until_running(first);
    assert_eq!(caller.job(second).state, JobStateWord::Waiting);
    rewrite(&world, "exec_per_machine = 2\n");
    reload(&mut caller);
    caller.until_running(second);
    rewrite(&world, "exec_per_machine = 1\n");
    reload(&mut caller);
    world.open_gate("one");
    assert_eq!(outcome_of(&caller.end_of(first)), ("succeeded", ""));
    assert_eq!(caller.job(second).state, JobStateWord::Running);
    assert_eq!(
        caller.job(third).state,
        JobStateWord::Waiting,
        "one runs, and one may"
    );
    world.open_gate("two");
    world.open_gate("three");
    assert_eq!(outcome_of(&caller.end_of(third)), ("succeeded", ""));
}

#[test]
fn how_old_an_answer_may_be_is_in_force_for_the_hottest_read_too() {
    let world = configured("cache_max_age = \"1d\"\n").machines(&["a"]).started();
    let mut caller = world.client();
    caller.machines();
    caller.machines();
    assert_eq!(world.ledger().spawns("list"), 1);
    rewrite(&world, "cache_max_age = \"0s\"\n");
    reload(&mut caller);
    caller.ok::<MachineList>(json!({}));
    assert_eq!(world.ledger().spawns("list"), 2);
}

#[test]
fn connections_beyond_a_lowered_number_stay_and_no_more_come() {
    let world = configured("connections_max = 3\nconnection_idle_max = \"1h\"\n").started();
    let mut first = world.client();
    let mut second = world.client();
    second.ok::<DaemonInfo>(json!({}));
    rewrite(&world, "connections_max = 1\nconnection_idle_max = \"1h\"\n");
    reload(&mut first);
    second.ok::<DaemonInfo>(json!({}));
    let mut third = world.wire();
    let refusal = third.receive().expect("it is told");
    assert_eq!(
        refusal["error"]["data"]["kind"], "too_many_connections",
        "{refusal}"
    );
    rewrite(&world, "connections_max = 4\nconnection_idle_max = \"1h\"\n");
    reload(&mut first);
    world.client().ok::<DaemonInfo>(json!({}));
}

#[test]
fn the_log_level_changes_without_a_restart() {
    let world = configured("log_level = \"warn\"\n");
    let mut command = world.daemon_command();
    command.env_remove("ORBD_LOG_LEVEL");
    let mut daemon = command.spawn().expect("it starts");
    let mut caller = eventually("it listens", || world.socket().exists().then(|| world.client()));
    reload(&mut caller);
    rewrite(&world, "log_level = \"info\"\n");
    reload(&mut caller);
    reload(&mut caller);
    let asked = || world.log().matches("asked to reload").count();
    eventually("the log says more", || (asked() > 0).then_some(()));
    assert_eq!(asked(), 1, "the first two were asked for while it said less");
    daemon.kill().expect("ours");
    daemon.wait().expect("ours");
}
