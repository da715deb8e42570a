//! A call of `orbctl` through the drop-in, against the same call of the same program without it.
//!
//! Three ways through it: a read that orbd answers, a command in a place of the queue, and the way past a daemon that does not run,
//! which is the start of the drop-in and of nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Scale;
use super::daemon::Daemon;
use super::stand_in::MACHINE;
use super::start;
use super::stats::{Bar, Table, us};

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let daemon = Daemon::with_stand_in(&["cache_max_age=1h"]);
    // A machine that is known to run: otherwise each command makes the list stale first.
    daemon.lines().call("machine.list", "{}");
    let dropin = install(daemon.folder());
    let nobody = daemon.folder().join("nobody");
    let calls: [(&str, &[&str], PathBuf, Bar); 3] = [
        (
            "drop-in, list, ms added",
            &["list"],
            daemon.socket(),
            Bar::AtMost(2.0),
        ),
        (
            "drop-in, run, ms added",
            &["run", "-m", MACHINE, "true"],
            daemon.socket(),
            Bar::AtMost(2.0),
        ),
        ("drop-in, no daemon, ms added", &["list"], nobody, Bar::None),
    ];
    for (what, words, socket, bar) in calls {
        let rounds = start::rounds(
            scale,
            || called(daemon.orbctl(), words, &socket, daemon.orbctl()),
            || called(&dropin, words, &socket, daemon.orbctl()),
        );
        let (base, with) = start::medians(&rounds);
        let differences: Vec<f64> = rounds.iter().map(|(base, with)| (with - base) / 1e3).collect();
        table.add(
            what,
            format!("{base:.0} us"),
            format!("{with:.0} us"),
            &differences,
            bar,
        );
    }
}

/// Gives `orbd-ctl` the tool's name in a folder of its own.
fn install(folder: &Path) -> PathBuf {
    let folder = folder.join("dropin");
    std::fs::create_dir(&folder).expect("a folder");
    let path = folder.join("orbctl");
    std::os::unix::fs::symlink(start::orbd_ctl(), &path).expect("a link");
    path
}

fn called(program: &Path, words: &[&str], socket: &Path, orbctl: &Path) -> f64 {
    let began = Instant::now();
    let output = Command::new(program)
        .args(words)
        .env("ORBD_SOCKET", socket)
        // Where nobody listens the drop-in finds the tool as the daemon would.
        .env("ORBD_ORBCTL", orbctl)
        .stdin(Stdio::null())
        .output()
        .expect("this program");
    assert!(output.status.success());
    us(began.elapsed())
}
