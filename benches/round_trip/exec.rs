//! A command that ends at once: through orbd, compared with starting the same program directly.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Scale;
use super::daemon::{Daemon, Lines, Pinned, request};
use super::stand_in::MACHINE;
use super::stats::{Bar, Table, median, us};

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let pin = Pinned::to_one();
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h"]);
    added(scale, table, &daemon, "pinned", Bar::AtMost(0.3));
    drop(pin);
    if scale == Scale::Full {
        let daemon = Daemon::with_stand_in(&["cache_max_age=1h"]);
        added(scale, table, &daemon, "unpinned", Bar::None);
    }
}

fn added(scale: Scale, table: &mut Table, daemon: &Daemon, how: &str, bar: Bar) {
    let mut lines = daemon.lines();
    // The machine is known to run; otherwise each command would invalidate the list first.
    lines.call("machine.list", "{}");
    let run = request(
        "machine.run",
        &format!("{{\"machine\":\"{MACHINE}\",\"command\":[\"true\"]}}"),
    );
    let answer = lines.exchange(&run).expect("an answer");
    assert!(answer.contains("\"exit_code\":0"), "{answer}");
    let (mut base, mut with, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.pick(15, 2) {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..scale.pick(60, 3) {
            direct.push(spawned(daemon.orbctl()));
            through.push(called(&mut lines, &run));
        }
        let (direct, through) = (median(&direct), median(&through));
        base.push(direct);
        with.push(through);
        differences.push((through - direct) / 1e3);
    }
    table.add(
        &format!("exec that ends at once, {how}, p50, ms added"),
        format!("{:.0} us", median(&base)),
        format!("{:.0} us", median(&with)),
        &differences,
        bar,
    );
}

/// Starts the program as orbd does, with pipes that are read to their ends.
fn spawned(program: &Path) -> f64 {
    let began = Instant::now();
    let output = Command::new(program)
        .args([
            "run",
            "-m",
            MACHINE,
            "sh",
            "-c",
            "cd 2>/dev/null || cd /; exec \"$@\"",
            "orbd",
            "true",
        ])
        .stdin(Stdio::null())
        .output()
        .expect("this program");
    assert!(output.status.success());
    us(began.elapsed())
}

fn called(lines: &mut Lines, run: &str) -> f64 {
    let began = Instant::now();
    lines.exchange(run).expect("an answer");
    us(began.elapsed())
}
