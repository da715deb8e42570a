//! `orbd-ctl events` against a real daemon.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout};

use serde_json::{Value, json};

use crate::ctl_suite::{call, ctl, ok, said};
use crate::support::World;

/// A running `orbd-ctl events --follow`, killed when dropped.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn new(world: &World, kinds: &str) -> Self {
        let mut child = ctl(world, &["events", "--follow", "--json", "--kinds", kinds])
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, lines }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have exited early; then the test has failed as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_prints_the_state_or_the_events_since_a_sequence_number() {
    let world = World::with_machines(&["a"]);
    ok(&world, &["list"]);
    ok(&world, &["run", "-m", "a", "true"]);
    let text = ok(&world, &["events"]);
    assert!(text.contains("a ") && text.contains("of instance"), "{text}");
    let state: Value = serde_json::from_str(&ok(&world, &["events", "--json"])).expect("JSON");
    assert_eq!(state["type"], "state");
    assert_eq!(
        world.ledger().spawns("status"),
        0,
        "reading the cached state runs no orbctl"
    );

    let lines = ok(&world, &["events", "--since", "0", "--json", "--kinds", "jobs"]);
    let kinds: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["type"].clone())
        .collect();
    assert_eq!(kinds, ["job_queued", "job_started", "job_ended"]);
    let text = ok(
        &world,
        &["events", "--since", "0", "--kinds", "job_ended,machines"],
    );
    assert!(text.contains("machines: a running"), "{text}");
    assert!(
        text.contains("(run a) of orbd-ctl ended with exit code 0"),
        "{text}"
    );

    let wrong = call(&world, &["events", "--kinds", "weather"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
}

#[test]
fn follower_reconnects_to_the_next_daemon_and_never_starts_one() {
    let mut world = World::with_machines(&["a"]);
    let mut follower = Follower::new(&world, "jobs");
    assert_eq!(follower.next()["type"], "state");
    ok(&world, &["run", "-m", "a", "true"]);
    let first = follower.next();
    assert_eq!(
        (&first["type"], &first["job"]["client"]),
        (&json!("job_queued"), &json!("orbd-ctl"))
    );
    for kind in ["job_started", "job_ended"] {
        assert_eq!(follower.next()["type"], kind);
    }
    world.terminate();
    world.ended();
    assert!(
        UnixStream::connect(world.socket()).is_err(),
        "the follower starts no daemon"
    );
    world.start();
    let gap = follower.next();
    assert_eq!(
        (&gap["type"], &gap["reason"]),
        (&json!("gap"), &json!("other_instance"))
    );
    let state = follower.next();
    assert_eq!((&state["type"], &state["sequence"]), (&json!("state"), &json!(0)));
    assert_ne!(state["instance"], first["instance"]);
    ok(&world, &["run", "-m", "a", "true"]);
    assert_eq!(follower.next()["type"], "job_queued");
}
