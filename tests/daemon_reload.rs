//! Reload: which changed keys a running daemon applies, which need a restart, and what an invalid file causes.

use std::fs;

use orbd_proto::methods::{DaemonInfo, DaemonReload, MachineList};
use orbd_proto::types::{JobStateWord, ReloadAnswer};
use serde_json::json;

use crate::support::{Caller, World, eventually, outcome_of};

/// Returns a world whose daemon reads a `config.toml` with this text.
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

/// Makes the daemon reload with SIGHUP, as `kill -HUP` does.
fn hang_up(world: &World) {
    let pid = i32::try_from(world.pid()).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is ours");
}

#[test]
fn reload_applies_what_it_can_and_lists_keys_that_need_a_restart() {
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
    assert_eq!(
        limit(&mut caller, "frame_max_bytes"),
        4 << 20,
        "the values in force"
    );
    let again = reload(&mut caller);
    assert_eq!(again.applied, [], "applied by the first reload");
    assert_eq!(again.needs_restart.len(), 1, "still needs a restart");
}

#[test]
fn invalid_file_changes_nothing_and_is_reported_with_its_line() {
    let world = configured("queue_max = 600\n").started();
    let mut caller = world.client();
    rewrite(&world, "queue_max = 700\n\nquue_timeout = \"1s\"\n");
    let error = caller.call::<DaemonReload>(json!({})).expect_err("refused");
    assert_eq!(error.data.expect("data").kind, "config_invalid");
    let expected = format!(
        "{}:3: unknown key `quue_timeout`; did you mean `queue_timeout`?",
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
fn sighup_reloads_and_command_line_values_keep_precedence() {
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
            .contains("invalid configuration; nothing was changed")
            .then_some(())
    });
    assert_eq!(limit(&mut caller, "queue_timeout_ms"), 120_000);
}

#[test]
fn raised_limit_starts_waiting_jobs_and_lowered_one_ends_none() {
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
        "one runs, and the limit is one"
    );
    world.open_gate("two");
    world.open_gate("three");
    assert_eq!(outcome_of(&caller.end_of(third)), ("succeeded", ""));
}

#[test]
fn reloaded_cache_max_age_applies_to_the_fastest_read_too() {
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
fn lowered_connections_max_keeps_connections_and_refuses_new_ones() {
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
fn log_level_changes_without_a_restart() {
    let world = configured("log_level = \"warn\"\n");
    let mut command = world.daemon_command();
    command.env_remove("ORBD_LOG_LEVEL");
    let mut daemon = command.spawn().expect("it starts");
    let mut caller = eventually("it listens", || world.socket().exists().then(|| world.client()));
    reload(&mut caller);
    rewrite(&world, "log_level = \"info\"\n");
    reload(&mut caller);
    reload(&mut caller);
    let asked = || world.log().matches("reload requested").count();
    eventually("the log says more", || (asked() > 0).then_some(()));
    assert_eq!(
        asked(),
        1,
        "the first two reloads were logged at a level that is not shown"
    );
    daemon.kill().expect("ours");
    daemon.wait().expect("ours");
}
