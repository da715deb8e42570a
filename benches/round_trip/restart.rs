//! Time from kill -9 to the first answer, with a long history in the store.

use std::time::{Duration, Instant};

use orbd::clock::Moment;
use orbd::metrics::{Client, Launch, Metrics, OperationRecord, OutcomeWord, Settings};
use orbd::operation::Class;

use super::Scale;
use super::daemon::Daemon;
use super::stats::{Bar, Table, us};

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let records = scale.pick(1_000_000, 100);
    let mut daemon = Daemon::with_stand_in(&["history_max=2000000"]);
    daemon.kill();
    fill(&daemon, records);
    daemon.start_again();
    daemon.wait();
    if scale == Scale::Full {
        let summary = daemon.lines().call("metrics.summary", "{}");
        let counted: u64 = summary["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["count"].as_u64())
            .sum();
        assert!(counted >= records, "{counted} of {records} are kept: {summary}");
    }
    let mut times = Vec::new();
    for _ in 0..scale.pick(21, 2) {
        // A call to record, and a cached list to lose, as in real use.
        daemon.lines().call("machine.list", "{}");
        let began = Instant::now();
        daemon.kill();
        daemon.start_again();
        daemon.wait();
        times.push(us(began.elapsed()) / 1e3);
    }
    table.add(
        "kill -9 to the first answer, ms",
        format!("{records} records"),
        String::new(),
        &times,
        Bar::AtMost(15.0),
    );
}

/// Stores records with the daemon's own helper.
pub(crate) fn fill(daemon: &Daemon, records: u64) {
    let settings = Settings {
        folder: daemon.state().join("metrics"),
        history_max: u64::MAX,
        history_max_age: Duration::from_secs(90 * 24 * 3600),
        launch: Launch::Process {
            program: programs::orbd().into(),
            args: vec!["--metrics-store".into()],
        },
        quiet: Duration::from_secs(10),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let metrics = Metrics::start(settings);
    let now_ms = Moment::now().unix_ms();
    for n in 0..records {
        while metrics.counters().buffered > 8_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Spread over thirty days.
        metrics.record(record(n, now_ms - 30 * 24 * 3_600_000 * (records - n) / records));
    }
    runtime.block_on(async {
        // The summary is answered after everything before it.
        let _ = metrics.summary(orbd::metrics::SummaryRequest::default()).await;
        let dropped = metrics.counters().dropped;
        assert_eq!(dropped, 0);
        metrics.shutdown(Duration::from_secs(60)).await;
    });
}

fn record(n: u64, ended_ms: u64) -> OperationRecord {
    OperationRecord {
        id: n,
        operation: "run".into(),
        machine: format!("machine-{}", n % 10).parse().ok(),
        class: Class::Exec,
        client: Client {
            name: "bench".into(),
            pid: Some(1),
            uid: 0,
        },
        accepted_ms: ended_ms - 200,
        started_ms: Some(ended_ms - 150),
        ended_ms,
        wait_us: 50_000 + n % 1_000,
        run_us: 150_000 + n % 10_000,
        ending: None,
        outcome: OutcomeWord::Succeeded,
        exit_code: Some(0),
        bytes_in: 0,
        bytes_out: 120,
        joined: false,
        in_channel: false,
        changed: None,
        label: None,
    }
}
