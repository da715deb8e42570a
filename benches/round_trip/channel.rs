//! Commands through a resident channel: compared with starting a shell, and with an `orbctl run` for each command.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Scale;
use super::daemon::{Daemon, Lines, request};
use super::stand_in::{MACHINE, slow_down};
use super::stats::{Bar, Table, median, us};

/// Milliseconds that each `orbctl` takes.
const LATENCY_MS: u64 = 150;
/// A channel is closed after so many commands.
const ROUND: usize = 200;

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h", "jobs_keep_max=1"]);
    slow_down(daemon.folder(), scale.pick(LATENCY_MS, 25));
    let mut lines = daemon.lines();
    // The daemon learns that `orbctl` is slow, and that the machine runs.
    lines.call("machine.list", "{}");
    open_channel(scale, table, &mut lines);
    opening(scale, table, &mut lines);
    output(scale, table, &daemon);
}

/// Returns the request of a command: `channel` is `open` or `off`.
fn run(command: &str, channel: &str) -> String {
    request(
        "machine.run",
        &format!("{{\"machine\":\"{MACHINE}\",\"command\":[{command}],\"channel\":\"{channel}\"}}"),
    )
}

fn called(lines: &mut Lines, run: &str) -> f64 {
    let began = Instant::now();
    let answer = lines.exchange(run).expect("an answer");
    assert!(answer.contains("\"exit_code\":0"), "{answer}");
    us(began.elapsed())
}

fn spawned() -> f64 {
    let began = Instant::now();
    let output = Command::new("sh")
        .args(["-c", "true"])
        .stdin(Stdio::null())
        .output();
    assert!(output.expect("a shell").status.success());
    us(began.elapsed())
}

/// A command through a channel that is open, beside the start of a shell.
fn open_channel(scale: Scale, table: &mut Table, lines: &mut Lines) {
    let run = run(r#""sh","-c","true""#, "open");
    called(lines, &run);
    let (mut base, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(9, 1) {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..scale.pick(ROUND, 3) {
            direct.push(spawned());
            through.push(called(lines, &run));
        }
        let (direct, through) = (median(&direct), median(&through));
        base.push(direct);
        with.push(through);
        ratios.push(through / direct);
    }
    table.add(
        "sh -c true through an open channel, p50, against a spawn",
        format!("{:.0} us", median(&base)),
        format!("{:.0} us", median(&with)),
        &ratios,
        // 3.5 ms where a spawn takes 0.75 ms.
        Bar::AtMost(4.67),
    );
}

/// A command that opens a channel, beside one without.
fn opening(scale: Scale, table: &mut Table, lines: &mut Lines) {
    let [alone, opens] = ["off", "open"].map(|channel| run(r#""true""#, channel));
    let (mut base, mut with, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(15, 1) {
        let direct = called(lines, &alone);
        lines.call("cache.invalidate", &format!("{{\"machine\":\"{MACHINE}\"}}"));
        lines.call("machine.list", "{}");
        let through = called(lines, &opens);
        base.push(direct);
        with.push(through);
        differences.push((through - direct) / 1e3);
    }
    table.add(
        "a command that opens a channel, ms added to an orbctl run",
        format!("{:.1} ms", median(&base) / 1e3),
        format!("{:.1} ms", median(&with) / 1e3),
        &differences,
        Bar::AtMost(10.0),
    );
}

/// 1 GiB of output through a channel, beside an `orbctl run`.
fn output(scale: Scale, table: &mut Table, daemon: &Daemon) {
    let bytes: usize = scale.pick(1 << 30, 1 << 20);
    let (mut base, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(5, 1) {
        let [alone, through] = ["off", "open"].map(|channel| followed(daemon, bytes, channel));
        base.push(alone);
        with.push(through);
        ratios.push(through / alone);
    }
    table.add(
        "output of 1 GiB through a channel, against an orbctl run",
        format!("{:.0} MB/s", median(&base)),
        format!("{:.0} MB/s", median(&with)),
        &ratios,
        Bar::AtLeast(0.5),
    );
}

/// Follows a command with that much output; returns MB/s, without the time of an `orbctl`.
fn followed(daemon: &Daemon, bytes: usize, channel: &str) -> f64 {
    let params = format!(
        "{{\"machine\":\"{MACHINE}\",\"command\":[\"head\",\"-c\",\"{bytes}\",\"/dev/zero\"],\"pass_through\":true,\"channel\":\"{channel}\"}}"
    );
    let mut stream = daemon.connect();
    stream
        .write_all(request("machine.run_follow", &params).as_bytes())
        .expect("it takes requests");
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let (mut line, mut began, mut carried) = (Vec::new(), None, 0);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).expect("a line");
        assert!(read > 0, "it hung up");
        let beginning = &line[..read.min(200)];
        if memchr::memmem::find(beginning, b"\"type\":\"output\"").is_some() {
            began.get_or_insert_with(Instant::now);
            carried += read;
        } else if memchr::memmem::find(beginning, b"\"type\":\"ended\"").is_some() {
            break;
        }
    }
    assert!(carried >= bytes, "{carried}");
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes")]
    let bytes = bytes as f64;
    bytes / 1e6 / began.expect("there was output").elapsed().as_secs_f64()
}
