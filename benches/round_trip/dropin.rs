//! A call of `orbctl` through the drop-in, compared with the same call of the same program without it.
//!
//! There are three cases: a read that orbd answers, a command under a lease, and a call without a daemon, which costs
//! only the start of the drop-in.

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
    // The machine is known to run; otherwise each command would invalidate the list first.
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

/// Installs `orbd-ctl` under the tool's name in a folder of its own.
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
        // Without a daemon, the drop-in finds the tool as the daemon would.
        .env("ORBD_ORBCTL", orbctl)
        .stdin(Stdio::null())
        .output()
        .expect("this program");
    assert!(output.status.success());
    us(began.elapsed())
}
