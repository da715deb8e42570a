//! What is written down, and what never is: a secret that passes through orbd in every way that there is must be in no log, however
//! much is logged, in no record and in no journal.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orbd::rpc::api::{ConfigSet, MachineRun};
use serde_json::{Value, json};

use crate::ctl_suite::{ctl, ok};
use crate::support::{World, eventually};

/// The words of which nothing may be found, each from where it went in.
struct Secrets(Vec<String>);

impl Secrets {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes the next one.
    fn word(&mut self, place: &str) -> String {
        let word = format!("hush-{}-{place}", self.0.len());
        self.0.push(word.clone());
        word
    }

    /// Says which of them are in a text, as they are or as the wire encodes bytes.
    fn found_in(&self, text: &[u8]) -> Vec<&str> {
        self.0
            .iter()
            .filter(|word| {
                let encoded = STANDARD.encode(word.as_bytes());
                // What follows may share the last characters.
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

/// Asks over HTTP, by hand.
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

/// Every file below a folder, with what is in it.
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

/// Lets secrets pass through in every way that a caller has.
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
    // As it fails: nothing of it is told in an error that is logged.
    caller.refused::<MachineRun>(
        json!({"machine": "a", "command": [secrets.word("program"), ""], "user": "a b"}),
    );
    caller.ok::<MachineRun>(json!({"machine": "a", "command": [secrets.word("unknown-program")]}));
    caller.ok::<ConfigSet>(json!({"key": "docker.node_name", "value": secrets.word("value")}));
    caller.refused::<ConfigSet>(json!({"key": "cpu", "value": secrets.word("wrong-value")}));
    // Malformed and unknown, over both ways in.
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
    // The command line, with a stream as input, and with the real tool in a place of the queue.
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
fn nothing_that_is_secret_is_written_down_however_much_is_logged() {
    let mut world = World::new()
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
    // The search finds what is there: the stand-in writes down what it was told.
    let ledger = fs::read(world.path("ledger.jsonl")).expect("a ledger");
    assert!(
        secrets.found_in(&ledger).len() > 5,
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

/// What a line must have in common with every other about a job, also where it comes from deep below.
#[test]
fn every_line_is_an_object_and_whatever_is_about_a_job_names_it_and_its_client() {
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
    // Lines are written by a thread of their own.
    let log = eventually("the end is written", || {
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
    for message in ["accepted", "started", "ended"] {
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
