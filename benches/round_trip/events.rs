//! How long it takes until a thousand subscribers have one change.
//!
//! Each has a connection of its own. The time is from when the change is sent, or answered, until the last subscriber
//! has read its line; one thread reads them all, one after the other. The comparison is a process that writes the same
//! bytes to as many connections when one of them sends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::Scale;
use super::daemon::{Daemon, request};
use super::echo::{Echo, Kind};
use super::stats::{Bar, Table, median, us};

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let subscribers = scale.pick(1_000, 20);
    let rounds = scale.pick(30, 2);
    allow_many_files();
    let settings = [
        "connections_max=2048",
        "connections_max_per_process=2048",
        "watch_interval=1h",
    ];
    let daemon = Daemon::with_machines(1, &settings);
    let mut lines = daemon.lines();

    // The bytes of one event.
    let mut one = subscribe(&daemon, 1, "cache_invalidated");
    lines.call("cache.invalidate", "{}");
    let event = read_line(&mut one[0]);
    drop(one);

    let echo = Echo::start(daemon.folder(), "fan-out", Kind::FanOut, event.as_bytes());
    let mut speaker = echo.connect();
    let mut listeners: Vec<_> = (0..subscribers).map(|_| BufReader::new(echo.connect())).collect();
    let mut watchers = subscribe(&daemon, subscribers, "cache_invalidated");
    let (mut ours, mut base, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let began = Instant::now();
        speaker.write_all(b"x").expect("it reads");
        hear(&mut listeners);
        let fanned = us(began.elapsed()) / 1000.0;
        let began = Instant::now();
        lines.call("cache.invalidate", "{}");
        hear(&mut watchers);
        let told = us(began.elapsed()) / 1000.0;
        // The first round waits for connections that are still being accepted.
        if round > 0 {
            base.push(fanned);
            ours.push(told);
            ratios.push(told / fanned);
        }
    }
    let what = |text: &str| format!("{text}, {subscribers} subscribers");
    let ms = |values: &[f64]| format!("{:.2} ms", median(values));
    table.add(
        &what("events: all told, ms"),
        ms(&base),
        ms(&ours),
        &ours,
        Bar::AtMost(50.0),
    );
    table.add(
        &what("events: all told, ratio"),
        ms(&base),
        ms(&ours),
        &ratios,
        Bar::None,
    );
    drop((listeners, watchers));

    // A change of a machine: from its answer, through the poll that follows, to the last subscriber.
    let mut watchers = subscribe(&daemon, subscribers, "machine_changed");
    lines.call("machine.list", "{}");
    let mut seen = Vec::new();
    for round in 0..rounds {
        let method = if round % 2 == 0 {
            "machine.stop"
        } else {
            "machine.start"
        };
        lines.call(method, "{\"machine\":\"machine-0\"}");
        let began = Instant::now();
        hear(&mut watchers);
        seen.push(us(began.elapsed()) / 1000.0);
    }
    table.add(
        &what("events: machine changed, look and all told, ms"),
        String::new(),
        ms(&seen),
        &seen,
        Bar::AtMost(50.0),
    );
}

/// Connects this many subscribers, each of which has received the state.
fn subscribe(daemon: &Daemon, count: usize, kind: &str) -> Vec<BufReader<UnixStream>> {
    let wish = request("events.subscribe", &format!("{{\"kinds\":[\"{kind}\"]}}"));
    let mut watchers: Vec<_> = (0..count).map(|_| BufReader::new(daemon.connect())).collect();
    for watcher in &mut watchers {
        watcher.get_mut().write_all(wish.as_bytes()).expect("it reads");
    }
    for watcher in &mut watchers {
        assert!(read_line(watcher).contains("\"result\":"), "an answer");
        assert!(read_line(watcher).contains("\"type\":\"state\""), "the state");
    }
    watchers
}

/// Waits until each connection has received a line.
fn hear(streams: &mut [BufReader<UnixStream>]) {
    for stream in streams {
        read_line(stream);
    }
}

fn read_line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line");
    line
}

/// Raises the limit of open files for this process and what it starts.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If the limit cannot be raised, a failing connection reports that.
    let _ = setrlimit(Resource::Nofile, limit);
}
