//! The machine list from the cache while a burst of commands starts, compared with an echo of the same bytes during the
//! same burst.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::Scale;
use super::daemon::{Daemon, request, round_trip};
use super::echo::{Echo, Kind};
use super::stand_in::MACHINE;
use super::stats::{Bar, Table, median, percentile, us};

/// Commands in one burst. All of them may run at once.
const COMMANDS: usize = 40;

const BUFFER: usize = 64 << 10;

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h", "exec_per_machine=64"]);
    let list = request("machine.list", "{}");
    let mut ours = daemon.connect();
    let mut buffer = vec![0; BUFFER];
    round_trip(&mut ours, list.as_bytes(), &mut buffer);
    let length = round_trip(&mut ours, list.as_bytes(), &mut buffer);
    let answer = buffer[..length].to_vec();
    let echo = Echo::start(daemon.folder(), "echo-burst", Kind::Threads, &answer);
    let mut theirs = echo.connect();
    let bursts = daemon.connect();
    let (mut base, mut with, mut ratios) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    for _ in 0..scale.pick(11, 2) {
        let [mut echoed, mut listed] = [Vec::new(), Vec::new()];
        for _ in 0..scale.pick(10, 1) {
            beside_a_burst(&bursts, &mut theirs, &list, &mut echoed);
            beside_a_burst(&bursts, &mut ours, &list, &mut listed);
        }
        for (at, share) in [0.5, 0.99].into_iter().enumerate() {
            let (echo, list) = (percentile(&echoed, share), percentile(&listed, share));
            base[at].push(echo);
            with[at].push(list);
            ratios[at].push(list / echo);
        }
    }
    for (at, name, bar) in [(0, "p50", Bar::None), (1, "p99", Bar::AtMost(3.0))] {
        table.add(
            &format!("cached list beside {COMMANDS} execs, {name}"),
            format!("{:.0} us", median(&base[at])),
            format!("{:.0} us", median(&with[at])),
            &ratios[at],
            bar,
        );
    }
}

/// Sends a burst of commands, and measures round trips on another connection until the last command is answered.
fn beside_a_burst(bursts: &UnixStream, measured: &mut UnixStream, list: &str, times: &mut Vec<f64>) {
    let run = request(
        "machine.run",
        &format!("{{\"machine\":\"{MACHINE}\",\"command\":[\"true\"]}}"),
    );
    let all = run.repeat(COMMANDS);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut answers = BufReader::new(bursts);
            let mut line = String::new();
            for _ in 0..COMMANDS {
                line.clear();
                answers.read_line(&mut line).expect("an answer");
                assert!(line.contains("\"exit_code\":0"), "{line}");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        (&mut &*bursts)
            .write_all(all.as_bytes())
            .expect("it takes requests");
        let mut buffer = vec![0; BUFFER];
        while !is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            round_trip(measured, list.as_bytes(), &mut buffer);
            times.push(us(began.elapsed()));
        }
    });
}
