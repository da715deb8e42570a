//! An export of a long history: its speed, and its memory in the daemon and in the client.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Scale;
use super::daemon::Daemon;
use super::restart::fill;
use super::stats::{Bar, Table};

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let few = exported(1_000);
    let many = exported(scale.pick(100_000, 1_001));
    table.add(
        "export, records/s",
        format!("{} records", many.records),
        String::new(),
        &[many.per_second],
        Bar::None,
    );
    for (what, few, many) in [
        ("export, growth of the daemon, MB", few.daemon_mb, many.daemon_mb),
        (
            "export, most memory of the client, MB",
            few.client_mb,
            many.client_mb,
        ),
    ] {
        table.add(
            what,
            format!("1,000 records: {few:.1}"),
            format!("100,000 records: {many:.1}"),
            &[many - few],
            Bar::AtMost(2.0),
        );
    }
}

struct Exported {
    records: u64,
    per_second: f64,
    daemon_mb: f64,
    client_mb: f64,
}

fn exported(records: u64) -> Exported {
    let mut daemon = Daemon::with_stand_in(&[]);
    daemon.kill();
    fill(&daemon, records);
    daemon.start_again();
    daemon.wait();
    let before = daemon.memory_kb("VmHWM");
    let began = Instant::now();
    let mut client = Command::new(super::start::orbd_ctl())
        .args(["metrics", "export"])
        .env("ORBD_SOCKET", daemon.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("orbd-ctl");
    let pid = client.id();
    let mut lines = BufReader::new(client.stdout.take().expect("piped"));
    let (mut line, mut counted, mut client_mb) = (Vec::new(), 0, 0.0);
    while lines.read_until(b'\n', &mut line).expect("it writes") > 0 {
        line.clear();
        counted += 1;
        // The peak can only be read while the process runs.
        if counted % 100 == 0 {
            client_mb = super::daemon::memory_kb(pid, "VmHWM").map_or(client_mb, |kb| f64::from(kb) / 1024.0);
        }
    }
    assert!(client.wait().expect("it ends").success());
    assert_eq!(counted, records, "every record is a line");
    Exported {
        records,
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        per_second: records as f64 / began.elapsed().as_secs_f64(),
        daemon_mb: f64::from(daemon.memory_kb("VmHWM") - before) / 1024.0,
        client_mb,
    }
}
