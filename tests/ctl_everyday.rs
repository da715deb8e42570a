//! Everyday shortcuts of the command line: forms that users of docker, scp, kubectl and gh type.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::ctl_suite::{call, ctl, ok, said, succeeded};
use crate::support::{World, eventually, outcome_of};

#[test]
fn exec_is_run_with_the_machine_first() {
    let world = World::with_machines(&["a", "b"]);
    assert_eq!(ok(&world, &["exec", "a", "echo", "-n", "--json"]), "--json");
    let output = call(&world, &["exec", "b", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    let output = call(&world, &["exec", "--detatch", "a", "echo"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("did you mean '--detach'?"),
        "{}",
        said(&output)
    );
}

#[test]
fn orbd_machine_names_the_machine_of_commands_that_name_none() {
    let world = World::with_machines(&["a", "b"]);
    let name_of = |words: &[&str], machine: &str| {
        let output = ctl(&world, words).env("ORBD_MACHINE", machine).output();
        succeeded(words, output.expect("it starts"));
        let jobs = world.client().jobs();
        jobs.last()
            .and_then(|job| job.machine.clone())
            .expect("a job of a machine")
    };
    assert_eq!(name_of(&["run", "true"], "b"), "b");
    assert_eq!(name_of(&["run", "-m", "a", "true"], "b"), "a");
    fs::write(world.path("home/file"), "text").expect("a file");
    assert_eq!(name_of(&["push", "file"], "b"), "b");
}

#[test]
fn run_if_running_does_not_start_a_machine() {
    let world = World::with_machines(&["a"]);
    assert_eq!(
        ok(&world, &["run", "--if-running", "-m", "a", "echo", "up"]),
        "up\n"
    );
    world.sim(&["stop", "a"]);
    let output = call(&world, &["run", "--if-running", "-m", "a", "echo", "up"]);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(
        said(&output).contains("machine a is stopped"),
        "{}",
        said(&output)
    );
    assert_eq!(world.truth(), [("a".into(), "stopped".into())]);
}

#[test]
fn cp_copies_in_both_directions() {
    let world = World::with_machines(&["a"]);
    let read = |name: &str| fs::read_to_string(world.path(name)).expect("a file");
    fs::write(world.path("home/one"), "1").expect("a file");
    fs::write(world.path("home/two"), "2").expect("a file");
    ok(&world, &["cp", "one", "two", "a:"]);
    assert_eq!(
        ok(
            &world,
            &["run", "-m", "a", "-w", "/", "sh", "-c", "cd; cat one two"]
        ),
        "12"
    );
    ok(&world, &["cp", "a:two", "back"]);
    assert_eq!(read("home/back"), "2");
    for (words, part) in [
        (["cp", "one", "two"], "no path names a machine"),
        (["cp", "a:one", "b:two"], "from machine to machine"),
    ] {
        let output = call(&world, &words);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(part), "{}", said(&output));
    }
}

#[test]
fn push_with_a_user_writes_the_file_as_that_user() {
    let world = World::with_machines(&["a"]);
    fs::write(world.path("home/one"), "text").expect("a file");
    let info = ok(&world, &["info", "a", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let user = info["machine"]["config"]["default_username"]
        .as_str()
        .expect("a user");
    ok(&world, &["push", "-m", "a", "-u", user, "one", "copy"]);
    assert_eq!(
        ok(&world, &["run", "-m", "a", "-w", "/", "sh", "-c", "cd; cat copy"]),
        "text"
    );
    let output = call(&world, &["push", "-m", "a", "-u", user, ".", "copy"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("copies files"), "{}", said(&output));
    let output = call(&world, &["push", "-m", "a", "-u", user, "one", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("was not copied"), "{}", said(&output));
}

#[test]
fn list_shows_size_address_and_the_default_machine() {
    let world = World::with_machines(&["a", "b"]);
    ok(&world, &["default", "b"]);
    world.sim(&["stop", "a"]);
    let list = ok(&world, &["list", "--max-age", "0"]);
    let lines: Vec<&str> = list.lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0])[5..], ["SIZE", "IP", "DEFAULT"], "{list}");
    let info = ok(&world, &["info", "b", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let address = info["ip4"].as_str().expect("an address");
    assert_eq!(words(lines[2])[7..], [address, "*"], "{list}");
    assert_eq!(words(lines[1])[1], "stopped", "{list}");
    assert_eq!(
        words(lines[1])[7..],
        ["-"],
        "a stopped machine has no address: {list}"
    );
    let wide = ok(&world, &["list", "-o", "wide"]);
    assert!(
        wide.contains(info["machine"]["id"].as_str().expect("an id")),
        "{wide}"
    );
}

#[test]
fn list_watch_prints_the_list_again_after_a_change() {
    let world = World::with_machines(&["a"]);
    let mut watch = ctl(&world, &["list", "--watch", "-q", "-r"])
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "a");
    ok(&world, &["create", "ubuntu", "b"]);
    assert_eq!(lines.next().expect("a line").expect("text"), "a");
    assert_eq!(lines.next().expect("a line").expect("text"), "b");
    watch.kill().expect("it runs");
    watch.wait().expect("ours");
}

#[test]
fn jobs_are_filtered_by_outcome_and_client() {
    let world = World::with_machines(&["a"]);
    call(&world, &["start", "nobody"]);
    ok(&world, &["stop", "a"]);
    let failed = ok(&world, &["jobs", "--state", "failed", "-q"]);
    let succeeded = ok(&world, &["jobs", "--state", "succeeded", "-q"]);
    let all = ok(&world, &["jobs", "--all", "-q", "--client", "orbd-ctl"]);
    assert_eq!((failed.lines().count(), succeeded.lines().count()), (1, 1));
    assert_eq!(all, format!("{failed}{succeeded}"));
    assert_eq!(ok(&world, &["jobs", "--all", "-q", "--client", "pyinfra"]), "");
    let output = call(&world, &["jobs", "--state", "faild"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("'failed'"), "{}", said(&output));
}

#[test]
fn events_mark_a_list_that_is_older_than_the_last_change() {
    let world = World::with_machines(&["a", "b"]);
    ok(&world, &["list"]);
    assert!(!ok(&world, &["events"]).contains("before the last change"));
    ok(&world, &["delete", "--yes", "b"]);
    assert!(ok(&world, &["events"]).contains("before the last change"));
    assert!(!ok(&world, &["events", "--since", "1"]).contains("cache invalidated"));
    assert!(ok(&world, &["events", "--since", "1", "--kinds", "cache"]).contains("cache invalidated"));
}

#[test]
fn destructive_verbs_need_yes_without_a_terminal() {
    let world = World::with_machines(&["a"]);
    for words in [&["delete", "a"][..], &["delete", "--all"], &["config", "reset"]] {
        let output = call(&world, words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", said(&output));
        assert!(said(&output).contains("--yes"), "{words:?}: {}", said(&output));
    }
    assert_eq!(world.truth().len(), 1);
    let jobs = world.client().jobs();
    assert!(
        jobs.iter().all(|job| job.job_class == "query"),
        "no change was queued: {jobs:?}"
    );
    ok(&world, &["config", "reset", "--yes"]);
}

#[test]
fn all_stands_for_every_machine() {
    let world = World::with_machines(&["a", "b", "c"]);
    world.sim(&["stop", "b"]);
    let restarted = ok(&world, &["restart", "--all", "--json"]);
    assert_eq!(restarted.lines().count(), 2, "only those that run: {restarted}");
    assert_eq!(
        ok(&world, &["delete", "--all", "--yes", "--json"])
            .lines()
            .count(),
        3
    );
    assert!(world.truth().is_empty());
    let output = call(&world, &["restart"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[test]
fn restart_of_orbstack_stops_and_starts_it() {
    let world = World::with_machines(&["a"]);
    ok(&world, &["restart", "--orbstack"]);
    let operations: Vec<String> = world
        .client()
        .jobs()
        .into_iter()
        .map(|job| job.operation)
        .collect();
    assert_eq!(operations, ["stop_orbstack", "start_orbstack"]);
    assert_eq!(ok(&world, &["status", "--max-age", "0"]), "running\n");
}

#[test]
fn create_and_delete_can_be_repeated_by_scripts() {
    let world = World::with_machines(&[]);
    assert_eq!(ok(&world, &["create", "-q", "ubuntu"]), "ubuntu\n");
    assert_eq!(
        ok(&world, &["create", "-q", "--if-missing", "ubuntu"]),
        "ubuntu\n"
    );
    assert_eq!(
        ok(&world, &["create", "--if-missing", "-p", "ubuntu"]),
        "ubuntu already exists\n"
    );
    assert_eq!(
        ok(&world, &["create", "--if-missing", "--json", "ubuntu"]),
        "{\"changed\":false}\n"
    );
    assert_eq!(call(&world, &["create", "ubuntu"]).status.code(), Some(4));
    ok(&world, &["delete", "--yes", "ubuntu"]);
    assert_eq!(
        call(&world, &["delete", "--yes", "ubuntu"]).status.code(),
        Some(4)
    );
    let gone = ok(&world, &["delete", "--yes", "--ignore-missing", "ubuntu"]);
    assert_eq!(gone, "ubuntu does not exist\n");
    assert!(
        ok(&world, &["create", "--list"])
            .lines()
            .any(|distro| distro == "ubuntu")
    );
}

#[test]
fn cancel_of_a_machine_cancels_its_jobs_only() {
    let world = World::with_machines(&["a", "b"]);
    let mut caller = world.client();
    let running = caller.run_detached("a", &["sleep", "600"]);
    caller.until_running(running);
    let other = caller.run_detached("b", &["sleep", "600"]);
    ok(&world, &["stop", "--detach", "a"]);
    let cancelled = ok(&world, &["cancel", "-m", "a"]);
    assert_eq!(cancelled.lines().count(), 2, "{cancelled}");
    assert_eq!(outcome_of(&caller.end_of(running)).0, "cancelled");
    caller.until_running(other);
    ok(&world, &["cancel", "--all"]);
    assert_eq!(outcome_of(&caller.end_of(other)).0, "cancelled");
    assert_eq!(call(&world, &["cancel"]).status.code(), Some(2));
    // Options may follow the ids.
    let line = ok(&world, &["cancel", &other.to_string(), "--json"]);
    assert_eq!(line, "{\"result\":\"already_ended\"}\n");
}

#[test]
fn logs_tail_prints_the_last_lines() {
    let world = World::with_machines(&["a"]);
    let all = ok(&world, &["logs", "a"]);
    let last = all.lines().last().expect("a line");
    assert_eq!(ok(&world, &["logs", "a", "-n", "1"]).trim_end(), last);
    let output = call(&world, &["logs", "a", "--since", "1h"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("journalctl"), "{}", said(&output));
}

#[test]
fn api_calls_methods_and_follows_subscriptions() {
    let world = World::with_machines(&["a"]);
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect("JSON") };
    let info = json(&ok(&world, &["api", "machine.info", r#"{"machine": "a"}"#]));
    assert_eq!(info["machine"]["name"], "a");
    let run = r#"{"machine": "a", "command": ["echo", "hi"]}"#;
    let events = ok(&world, &["api", "machine.run_follow", run]);
    let last = json(events.lines().last().expect("an event"));
    assert_eq!(last["job"]["outcome"]["exit_code"], 0, "{events}");
    let methods = ok(&world, &["api"]);
    assert!(
        methods.contains("machine.list ") && methods.contains("Lists all machines."),
        "{methods}"
    );
    let mut from_input = ctl(&world, &["api", "job.get", "-"]);
    let mut child = from_input.stdin(Stdio::piped()).spawn().expect("it starts");
    let id = last["job"]["job_id"].to_string();
    let text = format!("{{\"job_id\": {id}}}");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(text.as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("ours");
    assert_eq!(json(&succeeded(&["api"], output))["job"]["operation"], "run");
    for (words, code, part) in [
        (["api", "machine.lst", "{}"], 2, "did you mean 'machine.list'?"),
        (["api", "machine.list", "[]"], 2, "not a JSON object"),
        (["api", "machine.list", "{"], 2, "not a JSON object"),
        (["api", "machine.list", r#"{"nope": 1}"#], 2, "nope"),
        (
            ["api", "machine.info", r#"{"machine": "aa"}"#],
            4,
            "did you mean 'a'?",
        ),
    ] {
        let output = call(&world, &words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(part), "{words:?}: {}", said(&output));
    }
}

#[test]
fn label_of_a_job_is_shown_in_jobs_events_and_records() {
    let world = World::with_machines(&["a"]);
    ok(&world, &["run", "-m", "a", "--label", "Check it", "true"]);
    fs::write(world.path("home/file"), "text").expect("a file");
    ok(&world, &["push", "-m", "a", "--label", "Copy it", "file"]);
    let jobs = ok(&world, &["jobs", "--all"]);
    assert!(
        jobs.contains("\"Check it\": done") && jobs.contains("\"Copy it\": done"),
        "{jobs}"
    );
    let id = ok(&world, &["jobs", "--all", "-q"])
        .lines()
        .next()
        .expect("a job")
        .to_owned();
    let why = ok(&world, &["job", "why", &id]);
    assert!(why.contains("(run a, \"Check it\")"), "{why}");
    let events = ok(&world, &["events", "--since", "1"]);
    assert!(
        events.contains("(run a, \"Check it\") of orbd-ctl started"),
        "{events}"
    );
    eventually("the record is stored", || {
        let history = ok(&world, &["metrics", "history"]);
        history.contains("Copy it").then_some(())
    });
    let csv = ok(&world, &["metrics", "export", "--format", "csv"]);
    assert!(csv.lines().next().expect("a header").ends_with(",label"), "{csv}");
    assert!(csv.contains(",Check it\r\n"), "{csv}");
    for label in ["", "a\tb", &"x".repeat(129)] {
        let output = call(&world, &["start", "a", "--label", label]);
        assert_eq!(output.status.code(), Some(2), "{label:?}: {}", said(&output));
        assert!(said(&output).contains("--label"), "{label:?}: {}", said(&output));
    }
}

#[test]
fn run_on_several_machines_prefixes_output_and_returns_the_first_failure() {
    let world = World::with_machines(&["a", "b", "c"]);
    world.sim(&["stop", "c"]);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let out = ok(
        &world,
        &["run", "--all", "-w", "/", "sh", "-c", "echo one; echo two"],
    );
    assert_eq!(sorted(&out), ["a: one", "a: two", "b: one", "b: two"]);
    assert_eq!(world.truth()[2], ("c".into(), "stopped".into()));
    let output = call(
        &world,
        &[
            "run",
            "-m",
            "a",
            "-m",
            "nobody",
            "-m",
            "b",
            "--label=x",
            "--",
            "echo",
            "-n",
            "hi",
        ],
    );
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert_eq!(
        sorted(&String::from_utf8_lossy(&output.stdout)),
        ["a: hi", "b: hi"]
    );
    assert!(
        said(&output).contains("nobody: orbd-ctl: machine nobody does not exist"),
        "{}",
        said(&output)
    );
    let labelled = ok(&world, &["jobs", "--all", "-m", "a"]);
    assert!(labelled.contains("\"x\": done"), "{labelled}");
    let ids = ok(&world, &["run", "-m", "a", "-m", "b", "--detach", "true"]);
    assert!(
        ids.lines().count() == 2 && ids.lines().all(|id| id.parse::<u64>().is_ok()),
        "{ids}"
    );
    let output = call(&world, &["run", "-m", "a", "-m", "b", "-t", "true"]);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    let output = call(&world, &["run", "-m", "a", "--all", "true"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
