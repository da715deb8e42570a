//! The machine list from the cache, compared with a raw echo of the same bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::Scale;
use super::daemon::{Daemon, Pinned, answer_length, http_request, request, round_trip};
use super::echo::{Echo, Kind};
use super::stats::{Bar, Table, median, percentile, us};

/// Cached answers must not become too old during the measurement.
const SETTINGS: [&str; 1] = ["cache_max_age=1h"];

/// Machines in the list, for an answer of about two kilobytes.
const MACHINES: usize = 10;

const BUFFER: usize = 64 << 10;

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let machines = scale.pick(MACHINES, 2);
    {
        let pin = Pinned::to_one();
        let daemon = Daemon::with_machines(machines, &SETTINGS);
        for framing in [Framing::Lines, Framing::Http] {
            one_connection(scale, table, &daemon, framing);
        }
        drop(pin);
    }
    let daemon = Daemon::with_machines(machines, &SETTINGS);
    for framing in [Framing::Lines, Framing::Http] {
        for connections in [8, 64] {
            many_connections(scale, table, &daemon, framing, connections);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Lines,
    Http,
}

impl Framing {
    fn request(self) -> String {
        match self {
            Self::Lines => request("machine.list", "{}"),
            Self::Http => http_request("machine.list", "{}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Lines => "JSON lines",
            Self::Http => "HTTP",
        }
    }

    /// Only the fastest framing has a target.
    fn bar(self, bar: Bar) -> Bar {
        match self {
            Self::Lines => bar,
            Self::Http => Bar::None,
        }
    }
}

/// Returns one answer, and makes sure that later ones come from the cache.
fn sample(daemon: &Daemon, request: &str) -> Vec<u8> {
    let mut stream = daemon.connect();
    let mut buffer = vec![0; BUFFER];
    round_trip(&mut stream, request.as_bytes(), &mut buffer);
    let length = round_trip(&mut stream, request.as_bytes(), &mut buffer);
    let answer = buffer[..length].to_vec();
    assert!(
        memchr::memmem::find(&answer, b"\"name\":\"machine-0\"").is_some(),
        "not a list: {}",
        String::from_utf8_lossy(&answer)
    );
    answer
}

fn one_connection(scale: Scale, table: &mut Table, daemon: &Daemon, framing: Framing) {
    let request = framing.request();
    let answer = sample(daemon, &request);
    let name = format!("echo-1-{framing:?}");
    let echo = Echo::start(daemon.folder(), &name, Kind::Threads, &answer);
    let (mut theirs, mut ours) = (echo.connect(), daemon.connect());
    let (mut base, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(21, 2) {
        let requests = scale.pick(4_000, 20);
        let echo_p50 = p50_of(&mut theirs, &request, requests);
        let p50 = p50_of(&mut ours, &request, requests);
        base.push(echo_p50);
        with.push(p50);
        ratios.push(p50 / echo_p50);
    }
    table.add(
        &format!("cached list, {}, 1 connection, p50", framing.name()),
        format!("{:.1} us", median(&base)),
        format!("{:.1} us", median(&with)),
        &ratios,
        framing.bar(Bar::AtMost(1.6)),
    );
}

fn p50_of(stream: &mut UnixStream, request: &str, requests: usize) -> f64 {
    let mut buffer = vec![0; BUFFER];
    let times: Vec<f64> = (0..requests)
        .map(|_| {
            let began = Instant::now();
            round_trip(stream, request.as_bytes(), &mut buffer);
            us(began.elapsed())
        })
        .collect();
    median(&times)
}

fn many_connections(scale: Scale, table: &mut Table, daemon: &Daemon, framing: Framing, connections: usize) {
    let request = framing.request();
    let answer = sample(daemon, &request);
    let echoes = [Kind::Threads, Kind::Poll].map(|kind| {
        let name = format!("echo-{connections}-{framing:?}-{kind:?}");
        Echo::start(daemon.folder(), &name, kind, &answer)
    });
    let mut loads = [
        Load::new((0..connections).map(|_| echoes[0].connect())),
        Load::new((0..connections).map(|_| echoes[1].connect())),
        Load::new((0..connections).map(|_| daemon.connect())),
    ];
    let mut rounds: Vec<[Served; 3]> = Vec::new();
    for _ in 0..scale.pick(11, 2) {
        let span = Duration::from_millis(scale.pick(300, 5));
        let [threads, by_poll, ours] = &mut loads;
        rounds.push([threads, by_poll, ours].map(|load| load.run(request.as_bytes(), span)));
    }
    // orbd is compared with the server that is faster overall, not with the faster one of each round.
    let rate = |side: usize| median(&column(&rounds, |round| round[side].per_second));
    let best = usize::from(rate(1) > rate(0));
    let kind = ["threads", "poll"][best];
    table.add(
        &format!("cached list, {}, {connections} connections, 1/s", framing.name()),
        format!("{:.0} {kind}", rate(best)),
        format!("{:.0}", rate(2)),
        &column(&rounds, |round| round[2].per_second / round[best].per_second),
        framing.bar(Bar::AtLeast(0.55)),
    );
    if connections == 64 {
        let p99 = |side: usize| median(&column(&rounds, |round| round[side].p99));
        table.add(
            &format!("cached list, {}, 64 connections, p99", framing.name()),
            format!("{:.0} us", p99(best)),
            format!("{:.0} us", p99(2)),
            &column(&rounds, |round| round[2].p99 / round[best].p99),
            framing.bar(Bar::AtMost(2.0)),
        );
    }
}

fn column(rounds: &[[Served; 3]], of: impl Fn(&[Served; 3]) -> f64) -> Vec<f64> {
    rounds.iter().map(of).collect()
}

/// Throughput and latency of one round.
#[derive(Debug, Clone, Copy)]
struct Served {
    per_second: f64,
    p99: f64,
}

/// Keeps one request in flight on each of many connections, from one thread.
struct Load {
    connections: Vec<Loaded>,
}

struct Loaded {
    stream: UnixStream,
    buffer: Vec<u8>,
    filled: usize,
    sent: Option<Instant>,
}

impl Load {
    fn new(streams: impl Iterator<Item = UnixStream>) -> Self {
        let connections = streams.map(|stream| Loaded {
            stream,
            buffer: vec![0; BUFFER],
            filled: 0,
            sent: None,
        });
        Self {
            connections: connections.collect(),
        }
    }

    fn run(&mut self, request: &[u8], span: Duration) -> Served {
        let began = Instant::now();
        for connection in &mut self.connections {
            connection.send(request);
        }
        let mut times = Vec::new();
        let mut waiting = self.connections.len();
        while waiting > 0 {
            let mut ready: Vec<PollFd<'_>> = self
                .connections
                .iter()
                .map(|connection| PollFd::new(&connection.stream, PollFlags::IN))
                .collect();
            poll(&mut ready, None).expect("poll");
            let is_ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (connection, is_ready) in self.connections.iter_mut().zip(is_ready) {
                if !is_ready {
                    continue;
                }
                if let Some(took) = connection.receive() {
                    times.push(us(took));
                    if began.elapsed() < span {
                        connection.send(request);
                    } else {
                        waiting -= 1;
                    }
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
        Served {
            per_second,
            p99: percentile(&times, 0.99),
        }
    }
}

impl Loaded {
    fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("it takes requests");
        self.sent = Some(Instant::now());
    }

    /// Reads once; returns the latency of the answer if this read completed it.
    fn receive(&mut self) -> Option<Duration> {
        let read = self
            .stream
            .read(&mut self.buffer[self.filled..])
            .expect("it answers");
        assert!(read > 0, "it hung up");
        self.filled += read;
        answer_length(&self.buffer[..self.filled])?;
        self.filled = 0;
        self.sent.take().map(|sent| sent.elapsed())
    }
}
