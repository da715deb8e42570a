//! A command's output to one client that keeps up, compared with reading the pipe directly.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::Scale;
use super::daemon::{Daemon, request};
use super::stand_in::{EMIT, MACHINE};
use super::stats::{Bar, Table, median};

const BUFFER: usize = 256 << 10;

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let bytes: usize = scale.pick(1 << 30, 1 << 20);
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h", "jobs_keep_max=1"]);
    daemon.lines().call("machine.list", "{}");
    let ways: [(&str, &str, &str, Way, Bar); 7] = [
        ("HTTP body", "binary", PASSED, as_body, Bar::AtLeast(0.8)),
        (
            "JSON lines, binary",
            "binary",
            PASSED,
            as_lines,
            Bar::AtLeast(0.4),
        ),
        ("JSON lines, text", "text", PASSED, as_lines, Bar::AtLeast(0.4)),
        ("HTTP body, kept", "binary", KEPT, as_body, Bar::None),
        ("JSON lines, binary, kept", "binary", KEPT, as_lines, Bar::None),
        ("JSON lines, text, kept", "text", KEPT, as_lines, Bar::None),
        (
            "job.output by pieces, binary",
            "binary",
            KEPT,
            in_pieces,
            Bar::None,
        ),
    ];
    for (name, kind, kept, way, bar) in ways {
        let (mut base, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..scale.pick(5, 1) {
            let pipe = rate(bytes, || through_pipe(daemon.orbctl(), kind, bytes));
            let through = rate(bytes, || way(&daemon, kind, bytes, kept));
            base.push(pipe);
            with.push(through);
            ratios.push(through / pipe);
        }
        table.add(
            &format!("output of 1 GiB, {name}"),
            format!("{:.0} MB/s", median(&base)),
            format!("{:.0} MB/s", median(&with)),
            &ratios,
            bar,
        );
    }
    table.add(
        "  most memory of the daemon meanwhile, MB",
        String::new(),
        String::new(),
        &[f64::from(daemon.memory_kb("VmHWM")) / 1024.0],
        Bar::None,
    );
}

/// Reads a command's whole output in one way.
type Way = fn(&Daemon, &str, usize, &str);

/// Parameters of a command whose output is kept, and of one whose output is only passed through.
const KEPT: &str = "";
const PASSED: &str = ",\"pass_through\":true";

fn rate(bytes: usize, copy: impl FnOnce()) -> f64 {
    let began = Instant::now();
    copy();
    #[expect(clippy::cast_precision_loss, reason = "a number of bytes")]
    let bytes = bytes as f64;
    bytes / 1e6 / began.elapsed().as_secs_f64()
}

fn through_pipe(program: &Path, kind: &str, bytes: usize) {
    let mut child = Command::new(program)
        .args([EMIT, kind, &bytes.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut pipe = child.stdout.take().expect("piped");
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match pipe.read(&mut buffer).expect("the pipe") {
            0 => break,
            read => total += read,
        }
    }
    assert_eq!(total, bytes);
    assert!(child.wait().expect("it ran").success());
}

fn params(kind: &str, bytes: usize, more: &str) -> String {
    format!("{{\"machine\":\"{MACHINE}\",\"command\":[\"{EMIT}\",\"{kind}\",\"{bytes}\"]{more}}}")
}

/// Starts a detached command; returns its job id.
fn begin(daemon: &Daemon, kind: &str, bytes: usize, kept: &str) -> u64 {
    let params = params(kind, bytes, &format!("{kept},\"detach\":true"));
    let job = daemon.lines().call("machine.run", &params);
    job["job_id"].as_u64().expect("a job")
}

fn as_body(daemon: &Daemon, kind: &str, bytes: usize, kept: &str) {
    let job = begin(daemon, kind, bytes, kept);
    let mut stream = daemon.connect();
    write!(
        stream,
        "GET /jobs/{job}/output?stream=stdout HTTP/1.1\r\nHost: orbd\r\n\r\n"
    )
    .expect("it takes requests");
    let mut reader = BufReader::with_capacity(BUFFER, stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a header") > 0, "it hung up");
    }
    let mut total = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a chunk's length");
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's length");
        let mut left = length + 2;
        while left > 0 {
            let here = reader.fill_buf().expect("a chunk").len().min(left);
            assert!(here > 0, "it hung up");
            reader.consume(here);
            left -= here;
        }
        total += length;
        if length == 0 {
            break;
        }
    }
    assert_eq!(total, bytes);
}

fn as_lines(daemon: &Daemon, kind: &str, bytes: usize, kept: &str) {
    let mut stream = daemon.connect();
    let request = request("machine.run_follow", &params(kind, bytes, kept));
    stream.write_all(request.as_bytes()).expect("it takes requests");
    let mut reader = BufReader::with_capacity(BUFFER, stream);
    let mut line = Vec::new();
    let mut carried = 0;
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).expect("a line");
        assert!(read > 0, "it hung up");
        // Only the end is checked: what a client does with the bytes is not measured.
        if memchr::memmem::find(&line[..read.min(200)], b"\"type\":\"ended\"").is_some() {
            break;
        }
        carried += read;
    }
    let ended: Value = serde_json::from_slice(&line).expect("JSON");
    let job = &ended["params"]["result"]["job"];
    assert_eq!(job["output_bytes"].as_u64(), u64::try_from(bytes).ok(), "{ended}");
    assert!(carried > bytes);
}

fn in_pieces(daemon: &Daemon, kind: &str, bytes: usize, kept: &str) {
    let job = begin(daemon, kind, bytes, kept);
    let mut lines = daemon.lines();
    let mut offset = 0;
    loop {
        let params = format!("{{\"job_id\":{job},\"offset\":{offset},\"wait_ms\":10000}}");
        let answer = lines
            .exchange(&request("job.output", &params))
            .expect("an answer");
        let after = |key: &str| {
            let at = answer.rfind(key).expect("told") + key.len();
            answer[at..].trim_start_matches(['"', ':'])
        };
        let digits = after("next_offset");
        let end = digits.find(|c: char| !c.is_ascii_digit()).expect("more follows");
        offset = digits[..end].parse().expect("a number");
        if after("\"eof").starts_with("true") {
            break;
        }
    }
    assert_eq!(offset, bytes);
}
