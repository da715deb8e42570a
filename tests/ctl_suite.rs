//! The command line with a real daemon: how the daemon is started and stopped, and the behaviour that scripts rely on.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the command line as a shell would"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use orbd_proto::methods::{DaemonInfo, DaemonStop};
use orbd_proto::types::JobStateWord;
use serde_json::{Value, json};

use crate::support::{Random, World, eventually, is_alive, outcome_of, words_of};

/// Returns a call of the command line with the daemon's environment, so that a daemon it starts is configured like the
/// world's.
pub(crate) fn ctl(world: &World, words: &[&str]) -> Command {
    let mut command = Command::new(programs::orbd_ctl());
    command
        .args(words)
        .env_clear()
        .envs(
            world
                .daemon_command()
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(world.path("home"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a call to its end.
pub(crate) fn call(world: &World, words: &[&str]) -> Output {
    ctl(world, words).output().expect("it starts")
}

/// Runs a call that must succeed; returns its stdout.
#[track_caller]
pub(crate) fn ok(world: &World, words: &[&str]) -> String {
    succeeded(words, call(world, words))
}

#[track_caller]
pub(crate) fn succeeded(words: &[&str], output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Returns what a call wrote to stderr.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lists the daemon processes of a world, without their helpers.
fn daemons(world: &World) -> Vec<u32> {
    let is_daemon = |pid: &u32| {
        let words = words_of(*pid);
        let mut words = words.split(' ');
        words.next() == Some(programs::orbd()) && words.all(|word| word != "--metrics-store")
    };
    world.processes().into_iter().filter(is_daemon).collect()
}

/// A world in which a restart of `a` runs until [`Held::release`].
struct Held {
    world: World,
    change: Child,
    job: u64,
    orbctl: u32,
}

impl Held {
    fn new() -> Self {
        let world = World::new()
            .script("[[trouble]]\ncommand = \"restart\"\nkind = \"hang\"\ntimes = 1")
            .machines(&["a"])
            .started();
        let change = ctl(&world, &["restart", "a"]).spawn().expect("it starts");
        let job = world.client().find("restart", "a", JobStateWord::Running).job_id;
        let orbctl = eventually("it is there", || Some(world.ledger().of("restart").first()?.pid));
        Self {
            world,
            change,
            job,
            orbctl,
        }
    }

    /// Kills the change's orbctl. The change was cut short, and its caller gets that answer.
    fn release(&self) {
        let pid = i32::try_from(self.orbctl).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    }

    /// Waits for the change's caller; returns its exit code.
    fn exit_of_change(self) -> (World, Option<i32>) {
        let output = self.change.wait_with_output().expect("ours");
        (self.world, output.status.code())
    }
}

/// Returns whether the socket refuses connections.
fn is_refused(socket: &Path) -> bool {
    UnixStream::connect(socket).is_err()
}

/// Reads a call's stderr until it contains `wanted`.
#[track_caller]
pub(crate) fn until_it_says(child: &mut Child, wanted: &str) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut all = String::new();
    while !all.contains(wanted) {
        let read = lines.read_line(&mut all).expect("text");
        assert_ne!(read, 0, "{wanted:?} is not in: {all}");
    }
    lines
}

#[test]
fn ten_calls_at_once_start_one_daemon() {
    let world = World::new().machines(&["a"]);
    let calls: Vec<Child> = (0..10)
        .map(|_| ctl(&world, &["list", "--quiet"]).spawn().expect("it starts"))
        .collect();
    for child in calls {
        let output = child.wait_with_output().expect("ours");
        assert_eq!(succeeded(&["list"], output), "a\n");
    }
    // Daemons that found the lock held may still be exiting.
    eventually("one daemon is left", || {
        (daemons(&world).len() == 1).then_some(())
    });
    let pid = world.client().ok::<DaemonInfo>(json!({})).pid;
    assert_eq!(daemons(&world), [pid]);
}

#[test]
fn stop_waits_for_the_daemon_to_exit_and_reports_what_it_waits_for() {
    let held = Held::new();
    let pid = held.world.pid();
    let mut stop = ctl(&held.world, &["daemon", "stop"]).spawn().expect("it starts");
    let _rest = until_it_says(&mut stop, &format!("still running: job {} (restart a)", held.job));
    // A second `stop` can no longer connect, and must not report that no daemon runs.
    let mut second = ctl(&held.world, &["daemon", "stop"]).spawn().expect("it starts");
    let _rest = until_it_says(&mut second, "waiting for orbd to stop");
    assert!(is_alive(pid) && is_refused(&held.world.socket()));
    assert!(stop.try_wait().expect("ours").is_none());
    held.release();
    let answer = stop.wait_with_output().expect("ours").stdout;
    assert_eq!(
        String::from_utf8(answer).expect("text"),
        format!("orbd stopped (pid {pid})\n")
    );
    assert!(!is_alive(pid));
    assert_eq!(second.wait_with_output().expect("ours").stdout, b"orbd stopped\n");
    let (world, code) = held.exit_of_change();
    assert_eq!(code, Some(7), "it may have taken effect");
    assert_eq!(ok(&world, &["daemon", "stop"]), "orbd is not running\n");
}

#[test]
fn restart_during_a_change_starts_a_new_daemon() {
    let held = Held::new();
    let pid = held.world.pid();
    let mut restart = ctl(&held.world, &["daemon", "restart"])
        .spawn()
        .expect("it starts");
    let _rest = until_it_says(&mut restart, "still running");
    held.release();
    let output = restart.wait_with_output().expect("ours");
    let answer = succeeded(&["daemon", "restart"], output);
    assert!(answer.starts_with("orbd started (pid "), "{answer}");
    let (world, _) = held.exit_of_change();
    let info = world.client().ok::<DaemonInfo>(json!({}));
    assert_ne!(info.pid, pid);
    assert_eq!(daemons(&world), [info.pid]);
}

#[test]
fn calls_during_a_stop_wait_for_the_next_daemon() {
    let held = Held::new();
    held.world.client().ok::<DaemonStop>(json!({}));
    eventually("the socket refuses connections", || {
        is_refused(&held.world.socket()).then_some(())
    });
    let mut calls: Vec<Child> = (0..3)
        .map(|_| ctl(&held.world, &["list", "--quiet"]).spawn().expect("it starts"))
        .collect();
    let _rests: Vec<_> = calls
        .iter_mut()
        .map(|child| until_it_says(child, "waiting for another orbd"))
        .collect();
    held.release();
    for child in calls {
        let output = child.wait_with_output().expect("ours");
        assert_eq!(succeeded(&["list"], output), "a\n");
    }
    let (world, _) = held.exit_of_change();
    eventually("one daemon is left", || {
        (daemons(&world).len() == 1).then_some(())
    });
}

#[test]
fn run_passes_stdin_and_stdout_byte_for_byte() {
    let world = World::with_machines(&["a"]);
    let bytes = Random::new(7).bytes(1 << 20);
    let mut child = ctl(&world, &["run", "-m", "a", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let typed = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&typed).expect("it reads"));
    let output = child.wait_with_output().expect("ours");
    writer.join().expect("written");
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""));
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn run_exits_with_the_commands_exit_code() {
    let world = World::with_machines(&["a"]);
    for code in [0, 1, 2, 3, 7, 77, 124, 125, 126, 127, 128, 130, 143, 254, 255] {
        let output = call(
            &world,
            &["run", "-m", "a", "sh", "-c", &format!("echo e >&2; exit {code}")],
        );
        assert_eq!(
            (output.status.code(), said(&output).as_str()),
            (Some(code), "e\n")
        );
    }
}

#[test]
fn missing_machines_jobs_and_files_have_their_exit_codes() {
    let world = World::with_machines(&["a"]);
    for (words, code) in [
        (["info", "no"].as_slice(), 4),
        (&["start", "no"], 4),
        (&["restart", "a", "no"], 4),
        (&["delete", "--yes", "no"], 4),
        (&["job", "show", "999"], 4),
        (&["run", "-m", "no", "true"], 125),
        (&["push", "-m", "no", "x"], 4),
        (&["export", "no", "x"], 4),
        // The exit code of the real tool.
        (&["push", "-m", "a", "no-such-file"], 1),
    ] {
        let output = call(&world, words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert_ne!(said(&output), "", "{words:?}");
    }
    let output = ctl(&world, &["--no-autostart", "--socket", "nowhere.sock", "list"])
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn push_pull_export_and_import_work_through_leases() {
    let world = World::with_machines(&["a"]);
    let bytes = Random::new(8).bytes(100_000);
    fs::write(world.path("home/there.bin"), &bytes).expect("written");
    ok(&world, &["push", "-m", "a", "there.bin", "copy.bin"]);
    ok(&world, &["pull", "-m", "a", "copy.bin", "back.bin"]);
    assert!(fs::read(world.path("home/back.bin")).expect("pulled") == bytes);
    ok(&world, &["export", "a", "a.tar"]);
    ok(&world, &["import", "-n", "b", "a.tar"]);
    assert_eq!(ok(&world, &["list", "--quiet", "--max-age", "0"]), "a\nb\n");
    let output = call(&world, &["run", "-m", "b", "sh", "-c", "cat ~/copy.bin"]);
    assert!(output.stdout == bytes, "{}", said(&output));
    let mut caller = world.client();
    for operation in ["push", "pull", "export", "import"] {
        let job = caller
            .jobs()
            .into_iter()
            .find(|job| job.operation == operation)
            .expect("it was a job");
        assert_eq!(outcome_of(&job), ("succeeded", ""), "{operation}");
    }
    // The exit code of the real tool is passed on.
    let output = call(&world, &["push", "-m", "a", "nothing-there"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn every_reading_verb_prints_json() {
    let world = World::with_machines(&["a"]);
    let id = world.client().run("a", &["echo", "hi"]).job_id.to_string();
    ok(&world, &["default", "a"]);
    for words in [
        ["list"].as_slice(),
        &["info", "a"],
        &["default"],
        &["logs", "a"],
        &["ssh"],
        &["config", "show"],
        &["config", "get", "memory_mib"],
        &["status"],
        &["version"],
        &["jobs"],
        &["jobs", "--all"],
        &["job", "show", &id],
        &["job", "wait", &id],
        &["job", "output", &id],
        &["job", "output", "--follow", &id],
        &["queue"],
        &["cache"],
        &["metrics"],
        &["metrics", "history"],
        &["metrics", "counters"],
        &["daemon", "status"],
    ] {
        let words = [&["--json"], words].concat();
        let answer = ok(&world, &words);
        assert!(answer.ends_with('\n'), "{words:?}: {answer:?}");
        for line in answer.lines() {
            let object: Value = serde_json::from_str(line).expect("JSON");
            assert!(object.is_object(), "{words:?}: {line}");
        }
    }
    let output = call(&world, &["--json", "info", "no"]);
    let object: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["error"]["data"]["kind"], "machine_not_found");
}

#[test]
fn jobs_shows_what_each_waiting_job_waits_for() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = ok(&world, &["run", "-m", "a", "--detach", "cat", &gate]);
    let holding = id_of(&holding);
    caller.until_running(holding);
    let waiting = id_of(&ok(&world, &["restart", "--detach", "a"]));
    let jobs = ok(&world, &["jobs"]);
    let line = |id: u64| {
        let beginning = id.to_string();
        let line = jobs
            .lines()
            .find(|line| line.split_whitespace().next() == Some(beginning.as_str()));
        line.unwrap_or_else(|| panic!("no job {id} in\n{jobs}"))
    };
    assert!(line(holding).contains("running"), "{jobs}");
    assert!(
        line(waiting).contains(&format!("job {holding} (run a)")),
        "{jobs}"
    );
    world.open_gate("gate");
    assert_eq!(outcome_of(&caller.end_of(waiting)), ("succeeded", ""));
    assert_eq!(ok(&world, &["jobs"]), "");
}

fn id_of(answer: &str) -> u64 {
    answer.trim().parse().expect("an id")
}

#[test]
fn job_output_fails_if_some_output_was_dropped() {
    let world = World::new().set("spool_max", "64KiB").machines(&["a"]).started();
    let mut caller = world.client();
    let id = caller.run_detached(
        "a",
        &["dd", "if=/dev/zero", "bs=65536", "count=64", "status=none"],
    );
    caller.end_of(id);
    for words in [["job", "output"].as_slice(), &["job", "output", "--follow"]] {
        let id = id.to_string();
        let words = [words, &[id.as_str()]].concat();
        let output = call(&world, &words);
        assert!(
            said(&output).contains("are lost, from byte 0 on"),
            "{}",
            said(&output)
        );
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(!output.stdout.is_empty(), "the end was kept");
    }
}

/// Returns the completions that a shell gets for a line whose last word is being typed.
fn completed(world: &World, words: &[&str]) -> Vec<String> {
    let words: Vec<&str> = ["--", "orbd-ctl"].iter().chain(words).copied().collect();
    let output = ctl(world, &words)
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 2).to_string())
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_IFS", "\n")
        .output()
        .expect("it starts");
    let text = succeeded(&words, output);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn completion_offers_verbs_machines_and_jobs_and_starts_no_daemon() {
    let mut world = World::new().machines(&["web", "db"]);
    assert_eq!(completed(&world, &["inf"]), ["info"]);
    assert_eq!(
        completed(&world, &["info", ""])
            .iter()
            .filter(|word| !word.starts_with('-'))
            .count(),
        0
    );
    assert_eq!(daemons(&world), [0; 0]);
    world.start();
    assert_eq!(completed(&world, &["info", "w"]), ["web"]);
    assert_eq!(completed(&world, &["run", "--machine", "d"]), ["db"]);
    let job = world.client().run("web", &["true"]).job_id.to_string();
    assert!(completed(&world, &["job", "show", ""]).contains(&job));
}

/// A real bash reads the completion script and gets its completions from orbd-ctl.
#[test]
fn bash_completes_with_the_generated_script() {
    let world = World::with_machines(&["web"]);
    let script = "source <(orbd-ctl completions bash)
        COMP_WORDS=(orbd-ctl info w) COMP_CWORD=2 COMP_TYPE=9 COMP_LINE='orbd-ctl info w' COMP_POINT=15
        $(complete -p orbd-ctl | sed 's/.*-F \\([^ ]*\\).*/\\1/') orbd-ctl w info
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let bin = Path::new(programs::orbd_ctl()).parent().expect("a folder");
    let mut command = Command::new("bash");
    for (name, value) in ctl(&world, &[]).get_envs() {
        command.env(name, value.expect("set"));
    }
    let output = command
        .args(["-c", script])
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .output()
        .expect("bash");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "web",
        "{output:?}"
    );
}

#[test]
fn doctor_reports_each_problem_with_its_fix() {
    let mut world = World::new();
    let levels = |world: &World| -> Vec<(String, String)> {
        let output = call(world, &["doctor", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = answer["checks"].as_array().expect("a list").clone();
        let bad = findings.iter().any(|finding| finding["status"] == "error");
        assert_eq!(output.status.code(), Some(i32::from(bad)), "{answer}");
        for finding in &findings {
            assert_eq!(
                finding["status"] == "ok",
                finding.get("fix").is_none(),
                "{finding}"
            );
        }
        let text = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
        findings
            .iter()
            .map(|finding| (text(finding, "name"), text(finding, "status")))
            .collect()
    };
    let level = |world: &World, about: &str| {
        let found = levels(world).into_iter().find(|(name, _)| name == about);
        found.map(|(_, level)| level).unwrap_or_default()
    };
    assert_eq!(
        level(&world, "orbd"),
        "warn",
        "no daemon runs, and doctor starts none"
    );
    assert_eq!(daemons(&world), [0; 0]);
    world.start();
    for (about, level) in levels(&world) {
        assert_eq!(level, "ok", "{about}");
    }
    call(&world, &["queue", "pause"]);
    assert_eq!(level(&world, "queue"), "warn");
    call(&world, &["queue", "resume"]);
    call(&world, &["stop", "--orbstack"]);
    assert_eq!(level(&world, "OrbStack"), "warn");
    assert_eq!(level(&world, "queue"), "ok");
    world.kill();
    assert_eq!(level(&world, "orbd"), "warn", "a crash left the socket behind");
    let config = world.path("home/.config/orbd");
    fs::create_dir_all(&config).expect("a folder");
    fs::write(config.join("config.toml"), "qeueu_max = 5\n").expect("written");
    assert_eq!(level(&world, "configuration"), "error");
}

// ---- an unhealthy orbctl -------------------------------------------------------------------------------------------------------

#[test]
fn stale_answers_are_noted_on_stderr_and_refusals_have_their_exit_code() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"list\"\nkind = \"panic\"\nskip = 1")
        .machines(&["a"])
        .started();
    ok(&world, &["list"]);
    let output = call(&world, &["list", "--quiet", "--max-age", "0"]);
    let note = said(&output);
    assert_eq!(succeeded(&["list"], output), "a\n");
    assert!(
        note.contains("may be out of date: orbctl is unhealthy") && note.lines().count() == 1,
        "{note}"
    );
    let json: Value = serde_json::from_str(&ok(&world, &["--json", "list", "--max-age", "0"])).expect("JSON");
    assert_eq!(json["stale"], true);
    let output = call(&world, &["restart", "a"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(
        said(&output).contains("orbctl is unhealthy and was not called"),
        "{}",
        said(&output)
    );
    let queue = ok(&world, &["queue"]);
    assert!(queue.contains("unhealthy since"), "{queue}");
}
