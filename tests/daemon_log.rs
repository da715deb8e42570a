//! Logs and secrets. A secret that passes through orbd in every possible way must appear in no log, at any log level,
//! and in no record and no journal.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orbd_proto::methods::{ConfigSet, MachineRun};
use serde_json::{Value, json};

use crate::ctl_suite::{ctl, ok};
use crate::support::{World, eventually};

/// Words that must not be found; each names the way it was passed in.
struct Secrets(Vec<String>);

impl Secrets {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns a new secret word.
    fn word(&mut self, place: &str) -> String {
        let word = format!("hush-{}-{place}", self.0.len());
        self.0.push(word.clone());
        word
    }

    /// Returns the secrets that a text contains, plain or in the wire's base64.
    fn found_in(&self, text: &[u8]) -> Vec<&str> {
        self.0
            .iter()
            .filter(|word| {
                let encoded = STANDARD.encode(word.as_bytes());
                // The last base64 characters depend on the bytes that follow.
                let encoded = encoded.trim_end_matches('=');
                let encoded = &encoded[..encoded.len() - 1];
                [word.as_bytes(), encoded.as_bytes()]
                    .iter()
                    .any(|needle| memchr::memmem::find(text, needle).is_some())
            })
            .map(String::as_str)
            .collect()
    }

    #[track_caller]
    fn are_not_in(&self, what: &str, text: &[u8]) {
        let found = self.found_in(text);
        assert!(found.is_empty(), "{what} has {found:?}");
    }
}

/// Sends a POST request by hand; returns the answer.
fn post(socket: &Path, body: &Value) -> String {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    let body = body.to_string();
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// Returns every file below a folder, with its content.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(text) = fs::read(&path) {
            found.push((path.display().to_string(), text));
        }
    }
    found
}

/// Passes secrets in every way that a caller has.
fn confide(world: &World) -> Secrets {
    let mut secrets = Secrets::new();
    let mut caller = world.client();
    let run = json!({
        "machine": "a",
        "command": ["sh", "-c", "cat >/dev/null; exit 3", secrets.word("argument")],
        "env": {"TOKEN": secrets.word("environment")},
        "stdin_text": secrets.word("input"),
    });
    caller.ok::<MachineRun>(run);
    let bytes = STANDARD.encode(secrets.word("bytes"));
    caller.ok::<MachineRun>(json!({"machine": "a", "command": ["cat"], "stdin_base64": bytes}));
    // A command that fails: the logged error must not contain its args.
    caller.refused::<MachineRun>(
        json!({"machine": "a", "command": [secrets.word("program"), ""], "user": "a b"}),
    );
    caller.ok::<MachineRun>(json!({"machine": "a", "command": [secrets.word("unknown-program")]}));
    caller.ok::<ConfigSet>(json!({"key": "docker.node_name", "value": secrets.word("value")}));
    caller.refused::<ConfigSet>(json!({"key": "cpu", "value": secrets.word("wrong-value")}));
    // Malformed and unknown requests, over both framings.
    let mut wire = world.wire();
    wire.exchange(&format!("{{\"method\": \"{}\"", secrets.word("half-a-line")));
    let surplus = json!({"machine": "a", "command": ["true"], "surplus": secrets.word("surplus")});
    wire.call(1, "machine.run", &surplus);
    let answer = post(
        &world.socket(),
        &json!({"jsonrpc": "2.0", "id": 1, "method": "machine.run",
                "params": {"machine": "a", "command": ["true", secrets.word("http")], "env": {"K": secrets.word("http-environment")}}}),
    );
    assert!(answer.contains("\"exit_code\":0"), "{answer}");
    let answer = post(
        &world.socket(),
        &json!({"jsonrpc": "2.0", "id": 2, "method": "machine.run", "params": [secrets.word("by-position")]}),
    );
    assert!(answer.contains("\"error\""), "{answer}");
    // The command line, with streamed stdin, and with the real tool under a lease.
    let argument = secrets.word("typed");
    let environment = format!("TOKEN={}", secrets.word("typed-environment"));
    let mut child = ctl(
        world,
        &[
            "run",
            "-m",
            "a",
            "-e",
            &environment,
            "sh",
            "-c",
            "cat >/dev/null",
            &argument,
        ],
    )
    .stdin(Stdio::piped())
    .spawn()
    .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(secrets.word("streamed").as_bytes())
        .expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("ours").success());
    let leased = secrets.word("leased");
    ok(
        world,
        &["run", "-m", "a", "-s", "-e", &environment, "true", &leased],
    );
    secrets
}

#[test]
fn no_secret_is_logged_or_stored_at_any_log_level() {
    // A secret that passes through a channel is not in the stand-in's ledger.
    for (exec_channel, passed_to_orbctl) in [("off", 6), ("auto", 1)] {
        no_secret_is_logged_or_stored(exec_channel, passed_to_orbctl);
    }
}

fn no_secret_is_logged_or_stored(exec_channel: &str, passed_to_orbctl: usize) {
    let mut world = World::new()
        .variable("ORBD_EXEC_CHANNEL", exec_channel)
        .set("log_level", "trace")
        .set("log_format", "json")
        .machines(&["a"])
        .started();
    let secrets = confide(&world);
    for format in ["json-lines", "csv", "prometheus"] {
        let text = ok(&world, &["metrics", "export", "--format", format]);
        assert!(!text.is_empty(), "{format}");
        secrets.are_not_in(format, text.as_bytes());
    }
    world.terminate();
    assert!(world.ended().success());
    let log = world.log();
    assert!(log.lines().count() > 20, "{log}");
    // A check of the search itself: the stand-in's ledger does contain the secrets.
    let ledger = fs::read(world.path("ledger.jsonl")).expect("a ledger");
    assert!(
        secrets.found_in(&ledger).len() >= passed_to_orbctl,
        "{:?}",
        secrets.found_in(&ledger)
    );
    for line in log.lines() {
        let found = secrets.found_in(line.as_bytes());
        assert!(found.is_empty(), "{found:?} in {line}");
    }
    for (name, text) in files(&world.path("state")) {
        secrets.are_not_in(&name, &text);
    }
}

/// Lines about a job name the job and its client, however deep in the code they are logged.
#[test]
fn every_log_line_is_json_and_job_lines_name_the_job_and_its_client() {
    let world = World::new()
        .set("log_level", "debug")
        .set("log_format", "json")
        .machines(&["a"])
        .started();
    ok(&world, &["run", "-m", "a", "true"]);
    ok(&world, &["restart", "a"]);
    let mut caller = world.client();
    caller.pause();
    let waiting = ok(&world, &["restart", "--detach", "a"]);
    caller.cancel(waiting.trim().parse().expect("an id"));
    caller.resume();
    // A separate thread writes the lines.
    let log = eventually("the last line is written", || {
        let log = world.log();
        let is_whole = log.ends_with('\n') && log.contains("\"cancelled\"");
        is_whole.then_some(log)
    });
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let first = &lines[0];
    for field in ["version", "orbctl", "socket", "config_file"] {
        assert!(
            first[field].is_string(),
            "{field} is not in the first line: {first}"
        );
    }
    let about_jobs: Vec<&Value> = lines.iter().filter(|line| line["job_id"].is_u64()).collect();
    for message in ["job accepted", "job started", "job ended"] {
        assert!(
            about_jobs.iter().any(|line| line["message"] == message),
            "{message}: {log}"
        );
    }
    for line in about_jobs {
        for field in ["client", "operation"] {
            assert!(line[field].is_string(), "{field} is not in {line}");
        }
    }
}
