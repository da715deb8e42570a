//! `orbd-ctl list` as a whole process, from start to exit, compared with a program that does nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Scale;
use super::daemon::Daemon;
use super::stats::{Bar, Table, median, us};

/// A program that does nothing, to measure the start of a process.
const NOTHING: &str = "true";

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h"]);
    daemon.lines().call("machine.list", "{}");
    let socket = daemon.socket();
    let rounds = rounds(
        scale,
        || called(Path::new(NOTHING), &[], &socket),
        || called(&orbd_ctl(), &["list"], &socket),
    );
    let (base, ours) = medians(&rounds);
    let ratios: Vec<f64> = rounds.iter().map(|(base, ours)| ours / base).collect();
    let of_ours: Vec<f64> = rounds.iter().map(|(_, ours)| ours / 1e3).collect();
    let told = |us: f64| format!("{us:.0} us");
    table.add(
        "orbd-ctl list, whole process",
        told(base),
        told(ours),
        &ratios,
        Bar::AtMost(2.0),
    );
    table.add(
        "orbd-ctl list, whole process, ms",
        "-".into(),
        told(ours),
        &of_ours,
        Bar::AtMost(2.5),
    );
}

/// Path of the client to measure.
pub(crate) fn orbd_ctl() -> std::path::PathBuf {
    std::env::var_os("ORBD_BENCH_CTL")
        .unwrap_or_else(|| programs::orbd_ctl().into())
        .into()
}

/// Measures two sides alternately; returns the medians of each round, in us.
pub(crate) fn rounds(
    scale: Scale,
    mut base: impl FnMut() -> f64,
    mut ours: impl FnMut() -> f64,
) -> Vec<(f64, f64)> {
    let round = |_| {
        let pairs: Vec<(f64, f64)> = (0..scale.pick(60, 3)).map(|_| (base(), ours())).collect();
        medians(&pairs)
    };
    (0..scale.pick(15, 2)).map(round).collect()
}

/// Returns the median of each side.
pub(crate) fn medians(pairs: &[(f64, f64)]) -> (f64, f64) {
    let (base, ours): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    (median(&base), median(&ours))
}

fn called(program: &Path, words: &[&str], socket: &Path) -> f64 {
    let began = Instant::now();
    let status = Command::new(program)
        .args(words)
        .env("ORBD_SOCKET", socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("this program");
    assert!(status.success());
    us(began.elapsed())
}
