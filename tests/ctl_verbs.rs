//! The command line verb by verb: messages for bad input, orbctl's own flags, and Ctrl-C.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Child;

use orbd_proto::types::JobStateWord;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::ctl_suite::{call, ctl, ok, said, until_it_says};
use crate::support::{World, eventually, outcome_of};

/// Args, exit code, and texts that stderr must contain: the field or flag, and the fix if the message has one.
type Case = (&'static [&'static str], i32, &'static [&'static str]);

/// Mistakes that the command line itself detects.
const TYPED_WRONG: &[Case] = &[
    (&["frobnicate"], 2, &["frobnicate", "--help"]),
    (&["info"], 2, &["NAME"]),
    (&["list", "surplus"], 2, &["surplus"]),
    (&["list", "-f", "xml"], 2, &["--format", "text, json"]),
    (&["list", "--max-age", "-1"], 2, &["--max-age", "e.g. 500ms, 30s"]),
    (&["list", "--max-age", ""], 2, &["--max-age", "e.g. 500ms, 30s"]),
    (
        &["create", "ubuntu", "z", "--cpus", "-1"],
        2,
        &["--cpus", "whole number"],
    ),
    (
        &["create", "ubuntu", "z", "--cpus", "99999999999"],
        2,
        &["--cpus", "too large"],
    ),
    (
        &["create", "ubuntu", "z", "-p", "-d"],
        2,
        &["--set-password", "--detach"],
    ),
    (
        &["create", "ubuntu", "z", "-c", "f", "-d"],
        2,
        &["--user-data", "--detach"],
    ),
    (&["start", "a", "--all"], 2, &["--all"]),
    (&["stop"], 2, &["--orbstack"]),
    (&["stop", "a", "--all"], 2, &["--all"]),
    (&["delete"], 2, &["NAME"]),
    (&["rename", "a"], 2, &["NEW"]),
    (&["run", "-m", "a"], 2, &["COMMAND"]),
    (
        &["run", "-m", "a", "--timeout", "-5s", "ls"],
        2,
        &["--timeout", "e.g. 500ms, 30s"],
    ),
    (&["run", "-m", "a", "-td", "ls"], 2, &["--terminal", "--detach"]),
    (&["run", "-m", "a", "-sd", "ls"], 2, &["--shell", "--detach"]),
    (&["shell", "a", "-m", "b"], 2, &["NAME", "--machine"]),
    (&["push", "-m", "a"], 2, &["PATH"]),
    (&["import", "x"], 2, &["--name"]),
    (&["config", "set", "cpu"], 2, &["VALUE"]),
    (
        &["jobs", "--state", "gone"],
        2,
        &["--state", "waiting, running, ended"],
    ),
    (&["jobs", "-n", "-1"], 2, &["--limit", "whole number"]),
    (
        &["job", "show", "a"],
        2,
        &["ID", "expected a job id", "orbd-ctl jobs --all"],
    ),
    (&["job", "show", "-1"], 2, &["ID", "expected a job id"]),
    (
        &["job", "show", "01M8HBQ5HXJ5NCJCRBB1GPQAJY"],
        2,
        &["ID", "expected a job id"],
    ),
    (
        &["job", "wait", "1", "--timeout", "-1"],
        2,
        &["--timeout", "e.g. 500ms"],
    ),
    (
        &["job", "output", "1", "--from", "-1"],
        2,
        &["--from", "whole number"],
    ),
    (&["cancel", "a"], 2, &["ID", "expected a job id"]),
    (
        &["events", "--kinds", "x"],
        2,
        &["--kinds", "machines, jobs, cache or orbctl"],
    ),
    (&["events", "--instance", "x"], 2, &["--since"]),
    (
        &["metrics", "--window", "soon"],
        2,
        &["--window", "e.g. 500ms, 30s"],
    ),
    (
        &["metrics", "--by", "colour"],
        2,
        &["--by", "operation, machine or both"],
    ),
    (
        &["metrics", "history", "--outcome", "x"],
        2,
        &["--outcome", "succeeded, failed", "interrupted or unknown"],
    ),
    (
        &["metrics", "history", "--outcome", "faild"],
        2,
        &["did you mean 'failed'?"],
    ),
    (
        &["events", "--kinds", "machins"],
        2,
        &["did you mean 'machines'?"],
    ),
    (&["list", "--runing"], 2, &["did you mean '--running'?"]),
    (&["strat", "a"], 2, &["'start'"]),
    (&["job", "shwo", "1"], 2, &["'show'"]),
    (
        &["metrics", "export", "--format", "xml"],
        2,
        &["--format", "json-lines, csv, prometheus"],
    ),
    (
        &["metrics", "export", "--since", "yesterday"],
        2,
        &["--since", "e.g. 10m", "2026-11-30T08:00:00Z"],
    ),
    (&["completions", "tcsh"], 2, &["SHELL", "bash, zsh, fish"]),
    (&["daemon", "logs", "-n", "few"], 2, &["--lines", "whole number"]),
];

/// Mistakes that only the daemon or the real tool detects.
const MEANT_WRONG: &[Case] = &[
    (&["info", ""], 2, &["machine", "empty"]),
    (&["info", "--", "-x"], 2, &["machine", "cannot start with '-'"]),
    (
        &["info", "a\tb\u{1b}[31m"],
        2,
        &["machine", "letters, digits", "\\u{1b}"],
    ),
    (
        &["info", "nobody"],
        4,
        &["nobody does not exist", "orbd-ctl list"],
    ),
    (&["start", "nobody"], 4, &["nobody does not exist"]),
    (&["create", "ubuntu", ""], 2, &["name", "empty"]),
    (&["create", "ubuntu:"], 2, &["version"]),
    (
        &["create", "ubuntu", "a"],
        4,
        &["already exists", "orbd-ctl delete a"],
    ),
    (
        &["create", "ubuntu", "z", "--cpus", "0"],
        2,
        &["--cpus", "at least 1"],
    ),
    (
        &["create", "ubuntu", "z", "--memory", "lots"],
        2,
        &["--memory", "K, M, G or T"],
    ),
    (
        &["create", "ubuntu", "z", "--memory", "-4G"],
        2,
        &["--memory", "K, M, G or T"],
    ),
    (
        &["create", "ubuntu", "z", "--arch", "sparc"],
        2,
        &["--arch", "arm64 or amd64"],
    ),
    (
        &["create", "ubuntu", "z", "--mount", ""],
        2,
        &["--mount", "SRC:DEST"],
    ),
    (
        &["create", "ubuntu", "z", "--user", "a b"],
        2,
        &["--user", "no blanks"],
    ),
    (
        &["create", "ubunto", "z"],
        2,
        &["unknown distro", "did you mean 'ubuntu'?", "create --list"],
    ),
    (
        &["create", "ubuntu", "a_b"],
        2,
        &["invalid machine name", "letters, digits, '-' and '.'"],
    ),
    (&["rename", "a", "a_b"], 2, &["letters, digits, '-' and '.'"]),
    (&["rename", "a", ""], 2, &["the new name", "empty"]),
    (&["rename", "a", "b"], 4, &["already exists"]),
    (&["clone", "nobody", "c"], 4, &["nobody does not exist"]),
    (&["default", "nobody"], 4, &["nobody does not exist"]),
    (&["run", "ls"], 125, &["no default machine", "-m NAME"]),
    (&["run", "-m", "", "ls"], 125, &["machine", "empty"]),
    (&["run", "-m", "a", ""], 125, &["command", "empty"]),
    (
        &["run", "-m", "a", "--", "-x"],
        125,
        &["command", "start with '-'"],
    ),
    (
        &["run", "-m", "a", "--user=-x", "ls"],
        125,
        &["--user", "no leading '-'"],
    ),
    (&["run", "-m", "a", "-w", "", "ls"], 125, &["--workdir"]),
    (&["run", "-m", "a", "-e", "", "ls"], 125, &["-e", "KEY=VALUE"]),
    (
        &["run", "-m", "a", "-e", "NOT_THERE", "ls"],
        125,
        &["NOT_THERE", "-e NOT_THERE=VALUE"],
    ),
    (
        &["run", "-m", "a", "-e", "A B=x", "ls"],
        125,
        &["--env", "letters, digits"],
    ),
    (
        &["run", "-m", "a", "--timeout", "9999999d", "ls"],
        125,
        &["--timeout", "at most a year"],
    ),
    (
        &["restart", "a", "--queue-timeout", "9999999d"],
        2,
        &["--queue-timeout", "at most a year"],
    ),
    (&["logs", "nobody"], 4, &["nobody does not exist"]),
    (&["config", "get", ""], 2, &["key", "letters, digits"]),
    (
        &["config", "get", "no.such.key"],
        4,
        &["not set", "orbd-ctl config show"],
    ),
    (
        &["config", "get", "memory_mb"],
        4,
        &["not set", "did you mean 'memory_mib'?"],
    ),
    (
        &["config", "set", "memory_mb", "1"],
        2,
        &["no key 'memory_mb'", "did you mean 'memory_mib'?"],
    ),
    (
        &["config", "add", "machine.c.mounts", "/a:/b"],
        2,
        &["no key 'machine.c.mounts'", "did you mean 'machine."],
    ),
    (
        &["config", "remove", "machine.c.mounts", "/a:/b"],
        2,
        &["no key 'machine.c.mounts'", "did you mean 'machine."],
    ),
    (
        &["config", "set", "zzzzzz", "1"],
        2,
        &["no key 'zzzzzz'", "hint: `orbd-ctl config show` lists"],
    ),
    (&["jobs", "-n", "0"], 2, &["-n", "1 to 10000"]),
    (&["jobs", "-m", ""], 2, &["machine", "empty"]),
    (
        &["job", "show", "18446744073709551615"],
        4,
        &["not found", "orbd-ctl jobs --all"],
    ),
    (&["job", "why", "999"], 4, &["job 999 not found"]),
    (&["cancel", "999"], 4, &["job 999 not found"]),
    (&["start", "aa"], 4, &["does not exist", "did you mean 'a'?"]),
    (
        &["push", "-m", "aa", "f"],
        4,
        &["does not exist", "did you mean 'a'?"],
    ),
    (&["pull", "-m", "aa", "f"], 4, &["did you mean 'a'?"]),
    (&["cp", "aa:f", "."], 4, &["did you mean 'a'?"]),
    (&["export", "aa", "f"], 4, &["did you mean 'a'?"]),
    (&["logs", "-f", "aa"], 4, &["did you mean 'a'?"]),
    (&["shell", "aa"], 125, &["did you mean 'a'?"]),
    (&["exec", "aa", "ls"], 125, &["did you mean 'a'?"]),
    (&["run", "-s", "-m", "aa", "ls"], 125, &["did you mean 'a'?"]),
    (&["queue", "pause", ""], 2, &["machine", "empty"]),
    (
        &["queue", "pause", "aa"],
        4,
        &["does not exist", "did you mean 'a'?"],
    ),
    (&["queue", "drain", "nobody"], 4, &["does not exist"]),
    (&["queue", "resume", "nobody"], 4, &["does not exist"]),
    (&["metrics", "history", "-n", "99999"], 2, &["-n", "1 to 1000"]),
    (
        &["metrics", "history", "--cursor", "x"],
        2,
        &["--cursor", "earlier page"],
    ),
    (
        &["metrics", "export", "--machine=-x"],
        2,
        &["machine", "cannot start with '-'"],
    ),
    (
        &["metrics", "export", "--format", "prometheus", "--client", "x"],
        2,
        &["prometheus takes no filter"],
    ),
    (&["import", "-n", "", "f"], 2, &["empty"]),
    (&["import", "-n", "z", "not-there"], 1, &["not-there"]),
    (&["man", "--to", "/dev/null/x"], 1, &["/dev/null/x"]),
];

#[track_caller]
fn check(world: &World, (words, code, parts): &Case) {
    let output = call(world, words);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(*code), "{words:?}: {told}");
    for part in *parts {
        assert!(told.contains(part), "{words:?}: {part:?} is not in {told}");
    }
    assert!(
        !told.contains('\u{1b}'),
        "{words:?}: not escaped for the terminal: {told:?}"
    );
    assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
}

#[test]
fn syntax_errors_are_reported_with_a_hint_and_start_no_daemon() {
    let world = World::new();
    for case in TYPED_WRONG {
        check(&world, case);
    }
    assert!(world.processes().is_empty(), "no call started a daemon");
}

#[test]
fn refused_operations_are_reported_with_their_exit_code() {
    let world = World::with_machines(&["a", "b"]);
    ok(&world, &["default", "none"]);
    for case in MEANT_WRONG {
        check(&world, case);
    }
    // With `--json` a program gets the same error, with the same exit code.
    for (words, code, _) in MEANT_WRONG.iter().filter(|(words, ..)| words[0] == "info") {
        let output = call(&world, &[&["--json"], *words].concat());
        assert_eq!(output.status.code(), Some(*code), "{words:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(answer["error"]["data"]["kind"].is_string(), "{answer}");
    }
    assert_eq!(world.truth().len(), 2, "no call changed anything");
    // Cache invalidation of an unknown machine is carried out, because the cache may be what is wrong, and then reported.
    let output = call(&world, &["cache", "invalidate", "nobody"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    ok(&world, &["queue", "pause", "--force", "nobody"]);
    let queue = ok(&world, &["queue", "resume", "nobody"]);
    assert!(!queue.contains("nobody"), "{queue}");
}

#[test]
fn too_long_names_and_paths_are_refused_before_any_request() {
    let world = World::with_machines(&["a"]);
    let long = "x".repeat(300);
    for words in [["info", &long], ["start", &long], ["logs", &long]] {
        let output = call(&world, &words);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("at most 253 bytes"), "{}", said(&output));
    }
    let output = call(&world, &["--socket", &long, "list"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("--socket") && said(&output).contains("103"),
        "{}",
        said(&output)
    );
}

#[test]
fn flags_of_orbctl_verbs_work_as_in_orbctl() {
    let world = World::with_machines(&["a"]);
    let object = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
    let list = object(ok(&world, &["list", "-f", "json"]));
    assert_eq!(list["machines"][0]["name"], "a");
    assert_eq!(
        object(ok(&world, &["info", "-f", "json", "a"]))["machine"]["name"],
        "a"
    );
    assert!(ok(&world, &["list", "--format", "text"]).starts_with("NAME"));
    // Flags that only the real tool supports run it here, under a lease.
    assert_eq!(ok(&world, &["run", "-m", "a", "-s", "-p", "echo", "hi"]), "hi\n");
    let output = call(&world, &["run", "-m", "a", "-s", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    ok(&world, &["create", "-p", "ubuntu", "b"]);
    let ledger = world.ledger();
    let told = |command: &str| ledger.of(command)[0].args.join(" ");
    assert_eq!(told("run"), "run -m a -s -p echo hi");
    assert_eq!(told("create"), "create -p ubuntu b");
    let jobs = world.client().jobs();
    let leased = jobs
        .iter()
        .find(|job| job.operation == "run")
        .expect("it was a job");
    assert_eq!(
        (leased.job_class.as_str(), outcome_of(leased)),
        ("exec", ("succeeded", ""))
    );
    let output = ctl(&world, &["shell", "-m", "a"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn config_add_and_remove_change_a_list() {
    let world = World::with_machines(&["a"]);
    let key = "machine.a.mounts";
    let mounts = || ok(&world, &["config", "get", key]);
    let before = mounts();
    let said = ok(&world, &["config", "add", key, "/Users/me/src:/src"]);
    assert!(
        said.starts_with("added /Users/me/src:/src to machine.a.mounts"),
        "{said}"
    );
    assert!(mounts().contains("/Users/me/src:/src"), "{}", mounts());
    let said = ok(&world, &["config", "remove", key, "/Users/me/src:/src"]);
    assert!(
        said.starts_with("removed /Users/me/src:/src from machine.a.mounts"),
        "{said}"
    );
    assert_eq!(mounts(), before);
    let output = call(&world, &["config", "add", "no.such.key", "x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("has no key 'no.such.key'"),
        "{}",
        self::said(&output)
    );
}

#[test]
fn leased_calls_report_their_end_and_accept_a_timeout() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"export\"\nkind = \"hang\"\ntimes = 1")
        .machines(&["a"])
        .started();
    let output = call(&world, &["export", "--timeout", "50ms", "a", "late.tar"]);
    assert_eq!(
        output.status.code(),
        Some(7),
        "the outcome is unknown, because part of the file may exist: {}",
        said(&output)
    );
    let told = ok(&world, &["export", "a", "a.tar"]);
    assert!(told.starts_with("exported a to a.tar (took "), "{told}");
    let told = ok(&world, &["push", "-m", "a", "a.tar"]);
    assert!(told.starts_with("copied into a (took "), "{told}");
}

#[test]
fn job_why_follows_the_chain_of_blocking_jobs() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(holding);
    let id = |text: String| -> u64 { text.trim().parse().expect("an id") };
    let second = id(ok(&world, &["clone", "--detach", "a", "c"]));
    let third = id(ok(&world, &["start", "--detach", "c"]));
    let told = ok(&world, &["job", "why", &third.to_string()]);
    let lines: Vec<&str> = told.lines().collect();
    let waits = |line: &str, job: u64, other: u64| {
        line.starts_with(&format!("job {job} (")) && line.contains(&format!("is waiting for job {other} ("))
    };
    assert_eq!(lines.len(), 3, "{told}");
    assert!(waits(lines[0], third, second), "{told}");
    assert!(waits(lines[1], second, holding), "{told}");
    assert!(
        lines[2].starts_with(&format!("job {holding} (run a)")) && lines[2].contains("nothing blocks it"),
        "{told}"
    );
    let chain: Value =
        serde_json::from_str(&ok(&world, &["--json", "job", "why", &third.to_string()])).expect("JSON");
    let ids: Vec<u64> = chain["jobs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|job| job["job_id"].as_u64())
        .collect();
    assert_eq!(ids, [third, second, holding]);
    world.open_gate("gate");
    caller.end_of(third);
    let told = ok(&world, &["job", "why", &third.to_string()]);
    assert!(told.contains("has ended"), "{told}");
}

#[test]
fn job_output_can_start_at_any_byte() {
    let world = World::with_machines(&["a"]);
    let id = world
        .client()
        .run("a", &["printf", "0123456789"])
        .job_id
        .to_string();
    for flag in ["--from", "--offset"] {
        assert_eq!(ok(&world, &["job", "output", flag, "4", &id]), "456789");
        assert_eq!(
            ok(&world, &["job", "output", "--follow", flag, "4", &id]),
            "456789"
        );
    }
}

#[test]
fn daemon_logs_prints_the_daemons_log() {
    let world = World::new().machines(&["a"]);
    let output = call(&world, &["daemon", "logs"]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert!(said(&output).contains("no log yet"), "{}", said(&output));
    ok(&world, &["daemon", "start"]);
    let first = eventually("it logs", || {
        let text = ok(&world, &["daemon", "logs", "-n", "100"]);
        text.lines().next().map(str::to_owned)
    });
    assert!(first.contains("version="), "{first}");
    let last = ok(&world, &["service", "logs", "-n", "1"]);
    assert_eq!(last.lines().count(), 1, "{last}");
    ok(&world, &["daemon", "stop"]);
}

// ---- Ctrl-C --------------------------------------------------------------------------------------------------------------------

/// Starts a call in a process group of its own, so that signals reach it alone.
fn begun(world: &World, words: &[&str]) -> Child {
    ctl(world, words).process_group(0).spawn().expect("it starts")
}

fn press(child: &Child) {
    kill_process(Pid::from_child(child), Signal::INT).expect("it runs");
}

#[test]
fn ctrl_c_cancels_a_waiting_change_and_keeps_a_running_one() {
    let world = World::with_machines(&["a", "b"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(holding);
    let change = begun(&world, &["restart", "a"]);
    let waiting = caller.find("restart", "a", JobStateWord::Waiting).job_id;
    press(&change);
    let output = change.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(
        said(&output).contains(&format!("job {waiting} (restart a) cancelled before it started")),
        "{}",
        said(&output)
    );
    assert_eq!(
        outcome_of(&caller.end_of(waiting)),
        ("cancelled", "job_cancelled")
    );
    world.open_gate("gate");
}

#[test]
fn ctrl_c_during_a_change_reports_that_it_continues() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"hang\"\ntimes = 1")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    let change = begun(&world, &["restart", "a"]);
    let running = caller.find("restart", "a", JobStateWord::Running).job_id;
    eventually("the tool runs", || {
        world.ledger().of("restart").first().map(|_| ())
    });
    press(&change);
    let output = change.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let told = said(&output);
    assert!(
        told.contains(&format!(
            "job {running} (restart a) has started and keeps running"
        )) && told.contains(&format!("orbd-ctl job wait {running}")),
        "{told}"
    );
    assert_eq!(caller.job(running).state, JobStateWord::Running);
}

#[test]
fn ctrl_c_cancels_a_command_and_a_second_one_exits_at_once() {
    let world = World::new().set("grace", "100ms").machines(&["a"]).started();
    let mut caller = world.client();
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let mut run = begun(&world, &["run", "-m", "a", "sh", "-c", stubborn]);
    let mut ready = [0; 6];
    run.stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut ready)
        .expect("it runs");
    let id = caller.find("run", "a", JobStateWord::Running).job_id;
    press(&run);
    let _rest = until_it_says(
        &mut run,
        &format!("cancelling job {id}; press Ctrl-C again to exit at once"),
    );
    press(&run);
    let output = run.wait_with_output().expect("ours");
    assert_eq!(output.status.code(), Some(130));
    // The connection is closed, so orbd ends the command, by force if needed.
    assert_ne!(outcome_of(&caller.end_of(id)).0, "succeeded");
}
