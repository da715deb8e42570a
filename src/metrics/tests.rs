//! Tests of the metrics through their public interface, with a real sled in a real helper process. The helper runs this test binary.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use proptest::prelude::*;

use super::handle::BUFFER_MAX;
use super::helper::{Misbehaviour, Request};
use super::record::tests::sample;
use super::rollup::{Cell, Rows};
use super::store::{Bounds, Database, Limit, Trouble};
use super::*;
use crate::clock::Moment;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// Start of a day, so that hour and day boundaries are at multiples of `HOUR` and `DAY` after it.
const START: u64 = 20_000 * DAY;
/// Environment variable with the directory for `a_daemon_that_records_until_killed`.
const FOLDER: &str = "ORBD_TEST_METRICS";

/// Not a test: the entry point of the helper process that the other tests start.
#[test]
#[ignore = "the helper process of the other tests"]
fn helper_process() {
    serve_store().expect("served");
}

fn this_test_binary(test: &str) -> Launch {
    Launch::Process {
        program: std::env::current_exe().expect("known"),
        args: ["--ignored", "--exact", test].map(OsString::from).to_vec(),
    }
}

fn settings(folder: &Path) -> Settings {
    Settings {
        folder: folder.join("metrics"),
        history_max: 100_000,
        history_max_age: Duration::from_secs(90 * 24 * 3600),
        launch: this_test_binary("metrics::tests::helper_process"),
        quiet: Duration::from_secs(60),
    }
}

fn now_ms() -> u64 {
    Moment::now().unix_ms()
}

/// Returns a record with this time of end.
fn ended(id: u64, ended_ms: u64) -> OperationRecord {
    OperationRecord {
        accepted_ms: ended_ms.saturating_sub(1_250),
        started_ms: Some(ended_ms.saturating_sub(1_230)),
        ended_ms,
        ..sample(id)
    }
}

fn database(folder: &Path, records_max: u64) -> Database {
    let bounds = Bounds {
        records_max,
        age_max_ms: 90 * DAY,
    };
    Database::open(folder, bounds, None, START).expect("opened")
}

fn apply(database: &mut Database, records: &[OperationRecord], now_ms: u64) {
    let stored: Vec<_> = records.iter().map(OperationRecord::encode).collect();
    database
        .apply(database.next_seq(), &stored, now_ms)
        .expect("applied");
}

fn no_limit() -> Limit {
    Limit::new(Duration::from_secs(600))
}

async fn count(metrics: &Metrics) -> u64 {
    let request = SummaryRequest {
        group_by: GroupBy::Nothing,
        ..SummaryRequest::default()
    };
    let summary = metrics.summary(request).await.expect("an answer");
    summary.rows.first().map_or(0, |row| row.counts.count)
}

/// Creates a store with some records and closes it, so that the test can work on its files.
async fn filled_store(folder: &Path, records: u64) {
    let metrics = Metrics::start(settings(folder));
    for id in 0..records {
        metrics.record(ended(id, now_ms()));
    }
    assert_eq!(count(&metrics).await, records);
    metrics.shutdown(Duration::from_secs(20)).await;
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder.join("metrics"))
        .expect("readable")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn query_includes_everything_recorded_before_it_even_across_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    filled_store(folder.path(), 10).await;
    assert_eq!(names(folder.path()), ["store-1", "store-1.count"]);
    let metrics = Metrics::start(settings(folder.path()));
    metrics.record(ended(10, now_ms()));
    assert_eq!(count(&metrics).await, 11);
    let counters = metrics.counters();
    assert_eq!(
        (counters.recorded, counters.dropped, counters.buffered),
        (1, 0, 0)
    );
    assert_eq!(counters.store, StoreState::Open);
}

#[tokio::test]
async fn history_pages_in_both_directions_and_filters() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    for id in 0..25 {
        let mut record = ended(id, START + id / 3);
        if id % 5 == 0 {
            record.machine = Some("db".parse().expect("valid"));
            record.outcome = OutcomeWord::Failed;
        }
        metrics.record(record);
    }
    for order in [Order::NewestFirst, Order::OldestFirst] {
        let mut ids = Vec::new();
        let mut request = HistoryRequest {
            limit: 10,
            order,
            ..HistoryRequest::default()
        };
        loop {
            let page = metrics.history(request.clone()).await.expect("a page");
            ids.extend(page.records.iter().map(|(_, record)| record.id));
            let Some(next) = page.next else { break };
            let next = Some(next.to_string().parse().expect("a cursor survives being text"));
            match order {
                Order::NewestFirst => request.before = next,
                Order::OldestFirst => request.after = next,
            }
        }
        let mut expected: Vec<u64> = (0..25).collect();
        if order == Order::NewestFirst {
            expected.reverse();
        }
        assert_eq!(ids, expected);
    }
    let filters = [
        HistoryFilter {
            machine: Some("db".into()),
            ..HistoryFilter::default()
        },
        HistoryFilter {
            outcome: Some(OutcomeWord::Failed),
            ..HistoryFilter::default()
        },
        HistoryFilter {
            since_ms: Some(START + 7),
            until_ms: Some(START + 8),
            ..HistoryFilter::default()
        },
        HistoryFilter {
            client: Some("nobody".into()),
            ..HistoryFilter::default()
        },
    ];
    for (filter, expected) in filters.into_iter().zip([5, 5, 3, 0]) {
        let request = HistoryRequest {
            filter,
            ..HistoryRequest::default()
        };
        assert_eq!(
            metrics.history(request).await.expect("a page").records.len(),
            expected
        );
    }
}

#[tokio::test]
async fn exports_hold_every_record_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    for id in 0..2_500 {
        metrics.record(ended(id, now_ms()));
    }
    metrics.count(Counter::Joins);
    let lines = exported(&metrics, RecordFormat::JsonLines, HistoryFilter::default()).await;
    let ids: Vec<u64> = lines
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            record["job_id"].as_u64().expect("a number")
        })
        .collect();
    assert_eq!(ids, (0..2_500).collect::<Vec<_>>());
    let csv = exported(&metrics, RecordFormat::Csv, HistoryFilter::default()).await;
    assert_eq!(csv.lines().count(), 2_501);
    let page = metrics.prometheus_page().await;
    assert!(page.contains("\norbd_joins_total 1\n"), "{page}");
    assert!(
        page.contains("orbd_operations_total{operation=\"start\",machine=\"web\"} 2500\n"),
        "{page}"
    );
}

async fn exported(metrics: &Metrics, format: RecordFormat, filter: HistoryFilter) -> String {
    let mut export = metrics.export(format, filter);
    let mut text = String::new();
    while let Some(chunk) = export.next_chunk().await.expect("exported") {
        text.push_str(&chunk);
    }
    text
}

#[tokio::test]
async fn export_holds_only_records_that_match_every_filter() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    for id in 0..1_000 {
        let mut record = ended(id, START + id);
        if id % 10 == 0 {
            record.machine = Some("db".parse().expect("valid"));
        }
        if id % 4 == 0 {
            record.client.name = "pyinfra".into();
        }
        metrics.record(record);
    }
    let filter = HistoryFilter {
        since_ms: Some(START + 500),
        machine: Some("db".into()),
        client: Some("pyinfra".into()),
        ..HistoryFilter::default()
    };
    let lines = exported(&metrics, RecordFormat::JsonLines, filter).await;
    let ids: Vec<u64> = lines
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            record["job_id"].as_u64().expect("a number")
        })
        .collect();
    assert_eq!(ids, (500..1_000).step_by(20).collect::<Vec<_>>());
    let none = HistoryFilter {
        machine: Some("none".into()),
        ..HistoryFilter::default()
    };
    let csv = exported(&metrics, RecordFormat::Csv, none).await;
    assert_eq!(csv.lines().count(), 1, "the header alone: {csv}");
}

#[tokio::test]
async fn idle_store_is_closed_and_reopened_on_demand() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(Settings {
        quiet: Duration::from_millis(50),
        ..settings(folder.path())
    });
    assert_eq!(metrics.counters().store, StoreState::Closed);
    metrics.record(ended(1, now_ms()));
    assert_eq!(count(&metrics).await, 1);
    // The store is closed only after the flush, 2.5 s after the batch.
    while metrics.counters().store != StoreState::Closed {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(names(folder.path()), ["store-1", "store-1.count"]);
    assert_eq!(count(&metrics).await, 1);
}

async fn misbehave(metrics: &Metrics, how: Misbehaviour) -> StoreError {
    metrics.ask(Request::Misbehave(how)).await.expect_err("no answer")
}

#[tokio::test]
async fn helper_that_panics_or_aborts_is_replaced_without_losing_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    metrics.record(ended(1, now_ms()));
    assert_eq!(count(&metrics).await, 1);
    for how in [Misbehaviour::Panic, Misbehaviour::Abort] {
        let error = misbehave(&metrics, how).await;
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(matches!(metrics.counters().store, StoreState::Failed { .. }));
        metrics.record(ended(2, now_ms()));
        count(&metrics).await;
        assert_eq!(metrics.counters().store, StoreState::Open);
    }
    assert_eq!(
        metrics.counters().set_aside,
        None,
        "a dead helper does not count as a damaged store"
    );
    assert_eq!(metrics.counters().dropped, 0);
}

#[tokio::test]
async fn records_wait_while_the_store_hangs_and_surplus_ones_are_counted_as_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    assert_eq!(count(&metrics).await, 0);
    let hanging = tokio::spawn({
        let metrics = metrics.clone();
        async move { misbehave(&metrics, Misbehaviour::Hang).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = Moment::now().instant;
    let most = BUFFER_MAX as u64;
    for id in 0..most + 100 {
        metrics.record(ended(id, START + id));
    }
    let counters = metrics.counters();
    assert_eq!((counters.buffered, counters.dropped), (most, 100));
    assert!(
        before.elapsed() < Duration::from_secs(2),
        "recording does not wait for the store"
    );
    assert_eq!(hanging.await.expect("no panic"), StoreError::TimedOut);
    // The hanging helper was killed; the next one stores the waiting records.
    while metrics.counters().buffered > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(count(&metrics).await, most);
    assert_eq!(metrics.counters().dropped, 100);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_hanging_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::start(settings(folder.path()));
    assert_eq!(count(&metrics).await, 0);
    let other = metrics.clone();
    tokio::spawn(async move { misbehave(&other, Misbehaviour::Hang).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = Moment::now().instant;
    metrics.clone().shutdown(Duration::from_millis(200)).await;
    assert!(before.elapsed() < Duration::from_secs(2));
    metrics.record(ended(1, now_ms()));
    assert!(matches!(
        metrics.summary(SummaryRequest::default()).await,
        Err(StoreError::Closed | StoreError::TimedOut)
    ));
}

#[tokio::test]
async fn store_is_not_set_aside_if_the_helper_cannot_be_started() {
    let folder = tempfile::tempdir().expect("a folder");
    filled_store(folder.path(), 3).await;
    for program in ["/missing/orbd", "/bin/false"] {
        let metrics = Metrics::start(Settings {
            launch: Launch::Process {
                program: program.into(),
                args: Vec::new(),
            },
            ..settings(folder.path())
        });
        metrics.record(ended(4, now_ms()));
        let answer = metrics.summary(SummaryRequest::default()).await;
        assert!(
            matches!(answer, Err(StoreError::Unavailable { .. })),
            "{answer:?}"
        );
        assert!(matches!(metrics.counters().store, StoreState::Failed { .. }));
        assert_eq!(metrics.counters().buffered, 1);
    }
    assert!(
        names(folder.path())
            .iter()
            .all(|name| !name.contains("set-aside"))
    );
    let metrics = Metrics::start(settings(folder.path()));
    assert_eq!(count(&metrics).await, 3);
}

/// Fills a store, damages its files with `damage`, and checks that it is set aside and that a new one works. `unclean` marks the store as
/// not closed in order.
async fn check_set_aside(unclean: bool, damage: fn(&Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    filled_store(folder.path(), 2_000).await;
    let store = folder.path().join("metrics/store-1");
    damage(&store);
    if unclean {
        fs::write(store.with_extension("in-use"), b"").expect("marked");
    }
    let metrics = Metrics::start(settings(folder.path()));
    metrics.record(ended(1, now_ms()));
    assert_eq!(count(&metrics).await, 1);
    let counters = metrics.counters();
    let aside = counters.set_aside.expect("it was set aside");
    assert!(aside.is_dir() && aside != store);
    assert_eq!((counters.dropped, counters.store), (0, StoreState::Open));
}

#[tokio::test]
async fn store_with_a_flipped_bit_is_set_aside() {
    check_set_aside(true, |store| {
        let path = store.join("db");
        let mut bytes = fs::read(&path).expect("readable");
        // In the middle of the used part of the file.
        let at = bytes.iter().rposition(|byte| *byte != 0).expect("not empty") / 2;
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).expect("written");
    })
    .await;
}

#[tokio::test]
async fn truncated_store_is_set_aside() {
    check_set_aside(true, |store| {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(store.join("db"))
            .expect("opened");
        let length = file.metadata().expect("known").len();
        file.set_len(length / 3).expect("cut");
    })
    .await;
}

#[tokio::test]
async fn store_that_lost_all_its_files_is_set_aside() {
    check_set_aside(false, |store| {
        fs::remove_dir_all(store).expect("removed");
        fs::create_dir(store).expect("made");
    })
    .await;
}

#[tokio::test]
async fn second_process_uses_another_store_while_the_first_is_locked() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = Metrics::start(settings(folder.path()));
    first.record(ended(1, now_ms()));
    assert_eq!(count(&first).await, 1);
    let second = Metrics::start(settings(folder.path()));
    for id in 0..3 {
        second.record(ended(id, now_ms()));
    }
    assert_eq!(count(&second).await, 3);
    assert_eq!(count(&first).await, 1);
    assert_eq!(
        second.counters().store_folder,
        Some(folder.path().join("metrics/store-2"))
    );
    assert_eq!(second.counters().set_aside, None);
    first.shutdown(Duration::from_secs(20)).await;
    second.shutdown(Duration::from_secs(20)).await;
    // When no store is locked, the newest is used and the older one still exists.
    let third = Metrics::start(settings(folder.path()));
    assert_eq!(count(&third).await, 3);
    assert!(names(folder.path()).contains(&"store-1".to_owned()));
}

#[tokio::test]
async fn only_the_newest_damaged_stores_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    for _ in 0..5 {
        filled_store(folder.path(), 1).await;
        let newest = names(folder.path())
            .into_iter()
            .rfind(|name| folder.path().join("metrics").join(name).is_dir() && !name.contains("aside"))
            .expect("a store");
        fs::write(folder.path().join("metrics").join(newest).join("db"), b"not sled").expect("written");
    }
    filled_store(folder.path(), 1).await;
    let aside = names(folder.path())
        .iter()
        .filter(|name| name.contains("set-aside"))
        .count();
    assert_eq!(aside, 3);
}

/// Not a test: the process that the next test kills. It writes the id of each record to stderr.
#[test]
#[ignore = "the child process of the next test"]
fn a_daemon_that_records_until_killed() {
    #[expect(
        clippy::disallowed_methods,
        reason = "set by the test that starts this process"
    )]
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let metrics = Metrics::start(settings(Path::new(&folder)));
    for id in 0.. {
        metrics.record(ended(id, now_ms()));
        std::io::stderr()
            .write_all(format!("{id}\n").as_bytes())
            .expect("written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn killed_daemon_loses_at_most_the_last_five_seconds() {
    let folder = tempfile::tempdir().expect("a folder");
    let Launch::Process { program, args } =
        this_test_binary("metrics::tests::a_daemon_that_records_until_killed")
    else {
        unreachable!()
    };
    #[expect(clippy::disallowed_methods, reason = "this runs the test binary, not orbctl")]
    let mut daemon = std::process::Command::new(program)
        .args(args)
        .env(FOLDER, folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut output = daemon.stderr.take().expect("piped");
    let life = Duration::from_secs(6);
    tokio::time::sleep(life).await;
    daemon.kill().expect("killed");
    daemon.wait().expect("gone");
    let mut ids = String::new();
    output.read_to_string(&mut ids).expect("read");
    let recorded: u64 = ids.lines().filter(|line| line.parse::<u64>().is_ok()).count() as u64;
    let metrics = Metrics::start(settings(folder.path()));
    let page = metrics
        .history(HistoryRequest {
            limit: HISTORY_PAGE_MAX,
            order: Order::OldestFirst,
            ..HistoryRequest::default()
        })
        .await
        .expect("a page");
    let kept = page.records.len() as u64;
    assert!(
        page.records.iter().map(|(_, record)| record.id).eq(0..kept),
        "no record is missing in between"
    );
    assert!(kept > 0 && recorded > 0, "{kept} of {recorded}");
    let lost = life * u32::try_from(recorded - kept).expect("few") / u32::try_from(recorded).expect("few");
    assert!(
        lost < Duration::from_secs(5),
        "{kept} of {recorded}: the last {lost:?} are lost"
    );
    assert_eq!(metrics.counters().set_aside, None);
}

#[test]
fn batch_whose_answer_was_lost_is_not_added_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = database(folder.path(), 1_000);
    let stored: Vec<_> = (0..10).map(|id| ended(id, START).encode()).collect();
    database.apply(0, &stored[..6], START).expect("applied");
    database.apply(0, &stored, START).expect("applied");
    let summary = database
        .summary(&SummaryRequest::default(), START, no_limit())
        .expect("summed up");
    assert_eq!(summary.rows[0].counts.count, 10);
    assert_eq!(database.next_seq(), 10);
    database.verify().expect("whole");
}

#[test]
fn size_of_the_store_stays_bounded_while_records_rotate() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = 1_000;
    let mut database = database(folder.path(), kept);
    let size = |folder: &Path| -> u64 {
        fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("readable").metadata().expect("known").len())
            .sum()
    };
    let mut sizes = Vec::new();
    for round in 0..30_u64 {
        let at = START + round * HOUR;
        let records: Vec<_> = (0..1_000).map(|id| ended(round * 1_000 + id, at + id)).collect();
        apply(&mut database, &records, at);
        database.flush().expect("flushed");
        sizes.push(size(folder.path()));
    }
    let page = database
        .history(
            &HistoryRequest {
                limit: 100_000,
                ..HistoryRequest::default()
            },
            no_limit(),
        )
        .expect("a page");
    assert_eq!(page.records.len() as u64, kept);
    database.verify().expect("the metadata is right");
    let summary = database
        .summary(&SummaryRequest::default(), START + 40 * HOUR, no_limit())
        .expect("summed up");
    assert_eq!(
        summary.rows[0].counts.count, 30_000,
        "the sums outlive the records"
    );
    assert!(*sizes.last().expect("some") <= 24 << 20, "{sizes:?}");
    // sled allocates segments of 512 KiB, and its threads free them with a delay. A store that kept everything would grow by twelve
    // segments between the two measurements.
    let most = |sizes: &[u64]| sizes.iter().copied().max().expect("some");
    assert!(
        most(&sizes[15..]) <= most(&sizes[10..15]) + 3 * (512 << 10),
        "it does not grow: {sizes:?}"
    );
}

#[test]
fn records_and_cells_are_removed_when_they_are_too_old() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = database(folder.path(), 1_000);
    apply(
        &mut database,
        &[ended(1, START), ended(2, START + 50 * DAY)],
        START + 50 * DAY,
    );
    let now = START + 100 * DAY;
    apply(&mut database, &[ended(3, now)], now);
    let page = database
        .history(&HistoryRequest::default(), no_limit())
        .expect("a page");
    let ids: Vec<u64> = page
        .records
        .iter()
        .map(|(_, stored)| OperationRecord::decode(stored).expect("readable").id)
        .collect();
    assert_eq!(ids, [3, 2]);
    // The hourly cell of the first record is gone too, so the window is widened to the whole day.
    let request = SummaryRequest {
        since_ms: START + 1,
        until_ms: START + 2,
        ..SummaryRequest::default()
    };
    let summary = database.summary(&request, now, no_limit()).expect("summed up");
    assert_eq!((summary.since_ms, summary.until_ms), (START, START + DAY));
    assert_eq!(summary.resolution, WindowResolution::Day);
    assert_eq!(summary.rows[0].counts.count, 1);
    // Six years later the daily cell is gone as well; the totals of all time still include it.
    let late = START + 6 * 366 * DAY;
    apply(&mut database, &[ended(4, late)], late);
    let summary = database
        .summary(&SummaryRequest::default(), late, no_limit())
        .expect("summed up");
    assert_eq!(summary.rows[0].counts.count, 1);
    assert_eq!(database.totals(no_limit()).expect("summed up")[0].counts.count, 4);
    database.verify().expect("whole");
}

#[test]
fn folding_of_short_lived_machines_into_one_series_loses_no_count() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = database(folder.path(), 10);
    let on = |id: u64, at: u64| {
        let mut record = ended(id, at);
        record.machine = Some(format!("ci-{id}").parse().expect("valid"));
        record
    };
    let crowd: Vec<_> = (0..400).map(|id| on(id, START)).collect();
    apply(&mut database, &crowd, START);
    let check = |database: &Database, named: usize, other: u64| {
        let rows = database.totals(no_limit()).expect("summed up");
        let is_other = |row: &&SummaryRow| row.machine == MachineLabel::Other;
        assert_eq!(rows.iter().filter(|row| !is_other(row)).count(), named);
        assert_eq!(
            rows.iter().find(is_other).map_or(0, |row| row.counts.count),
            other
        );
    };
    check(&database, SERIES_MAX, 400 - SERIES_MAX as u64);
    // A new name can replace a name only if that was not seen for a week.
    apply(&mut database, &[on(500, START + DAY)], START + DAY);
    check(&database, SERIES_MAX, 401 - SERIES_MAX as u64);
    let later: Vec<_> = (600..610).map(|id| on(id, START + 9 * DAY)).collect();
    apply(&mut database, &later, START + 9 * DAY);
    check(&database, SERIES_MAX, 411 - SERIES_MAX as u64);
    let rows = database.totals(no_limit()).expect("summed up");
    assert!(
        rows.iter()
            .any(|row| row.machine == MachineLabel::Named("ci-609".into()))
    );
    assert_eq!(rows.iter().map(|row| row.counts.count).sum::<u64>(), 411);
    // A name that the same batch folds and adds again is counted once.
    let mut back: Vec<_> = (700..990).map(|id| on(id, START + 20 * DAY)).collect();
    back.push(on(0, START + 20 * DAY));
    apply(&mut database, &back, START + 20 * DAY);
    let rows = database.totals(no_limit()).expect("summed up");
    assert_eq!(rows.iter().map(|row| row.counts.count).sum::<u64>(), 702);
}

#[test]
fn query_ends_at_its_time_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut database = database(folder.path(), 10_000);
    let records: Vec<_> = (0..3_000).map(|id| ended(id, START + HOUR / 2 + id)).collect();
    apply(&mut database, &records, START);
    let request = SummaryRequest {
        since_ms: START + 1,
        until_ms: START + HOUR - 1,
        ..SummaryRequest::default()
    };
    let answer = database.summary(&request, START + DAY, Limit::new(Duration::ZERO));
    assert_eq!(answer, Err(Trouble::TimedOut));
    // A page at its time limit has the cursor at which to continue.
    let request = HistoryRequest {
        filter: HistoryFilter {
            operation: Some("nothing".into()),
            ..HistoryFilter::default()
        },
        ..HistoryRequest::default()
    };
    let page = database
        .history(&request, Limit::new(Duration::ZERO))
        .expect("a page");
    assert!(page.records.is_empty() && page.next.is_some());
}

fn brute_force(records: &[OperationRecord], request: &SummaryRequest) -> Vec<SummaryRow> {
    let mut rows = Rows::new(request.group_by);
    for record in records {
        let series = Series::of(record);
        if request.matches(&series) && (request.since_ms..request.until_ms).contains(&record.ended_ms) {
            rows.cell(&series).add(record);
        }
    }
    rows.finish()
}

/// The tests below apply their records and query within this time, which is long enough for days, spans and their edges.
const SOME: u64 = 75 * DAY;

fn some_record() -> impl Strategy<Value = OperationRecord> {
    let times = (
        START..START + 4 * DAY,
        0_u64..5_000_000,
        prop::option::of(0_u64..900_000_000),
    );
    let machine = prop::option::of(prop::sample::select(vec!["web", "db", "cache"]));
    let verb = prop::sample::select(vec!["run", "start", "list"]);
    let outcome = prop::sample::select(OutcomeWord::ALL.to_vec());
    (times, machine, verb, outcome, any::<bool>()).prop_map(
        |((at, wait_us, run_us), machine, verb, outcome, joined)| OperationRecord {
            operation: verb.into(),
            machine: machine.map(|name| name.parse().expect("valid")),
            started_ms: run_us.map(|_| at),
            wait_us,
            run_us: run_us.unwrap_or(0),
            outcome,
            joined,
            ..ended(1, at)
        },
    )
}

fn some_request() -> impl Strategy<Value = SummaryRequest> {
    let edge = || {
        prop_oneof![
            START..START + 4 * DAY,
            (0..100_u64).prop_map(|hour| START + hour * HOUR)
        ]
    };
    let group_by = prop::sample::select(vec![
        GroupBy::Nothing,
        GroupBy::Operation,
        GroupBy::Machine,
        GroupBy::OperationAndMachine,
    ]);
    let filter = prop::option::of(Just("web".to_owned()));
    let verb = prop::option::of(Just("run".to_owned()));
    (edge(), edge(), group_by, filter, verb).prop_map(|(one, other, group_by, machine, operation)| {
        SummaryRequest {
            since_ms: one.min(other),
            until_ms: one.max(other),
            operation,
            machine,
            group_by,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn summary_equals_the_sum_of_the_records(
        records in prop::collection::vec(some_record(), 1..300),
        requests in prop::collection::vec(some_request(), 1..12),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = database(folder.path(), 1_000);
        for (at, batch) in (1..).zip(records.chunks(70)) {
            // Batches arrive late, some of them for days and spans whose cells are already computed.
            apply(&mut database, batch, START + at * SOME / 5);
        }
        for request in requests {
            let mut found = database.summary(&request, START + SOME + DAY, no_limit()).expect("summed up");
            prop_assert_eq!((found.since_ms, found.until_ms), (request.since_ms, request.until_ms));
            prop_assert_eq!(found.resolution, WindowResolution::Record);
            let mut expected = brute_force(&records, &request);
            let order = |row: &SummaryRow| (row.operation.clone(), row.machine.clone());
            found.rows.sort_by_key(order);
            expected.sort_by_key(order);
            prop_assert_eq!(found.rows, expected);
        }
    }

    #[test]
    fn summary_after_rotation_covers_the_window_and_equals_the_records_it_covers(
        mut records in prop::collection::vec(some_record(), 50..200),
        requests in prop::collection::vec(some_request(), 1..12),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = database(folder.path(), 20);
        records.sort_by_key(|record| record.ended_ms);
        for batch in records.chunks(30) {
            apply(&mut database, batch, batch[batch.len() - 1].ended_ms);
        }
        database.verify().expect("whole");
        for request in requests {
            let mut found = database.summary(&request, START + SOME + DAY, no_limit()).expect("summed up");
            prop_assert!(found.since_ms <= request.since_ms && found.until_ms >= request.until_ms);
            prop_assert!(request.since_ms - found.since_ms < HOUR && found.until_ms - request.until_ms < HOUR);
            let is_widened = (found.since_ms, found.until_ms) != (request.since_ms, request.until_ms);
            prop_assert_eq!(found.resolution != WindowResolution::Record, is_widened);
            let covered = SummaryRequest { since_ms: found.since_ms, until_ms: found.until_ms, ..request };
            let mut expected = brute_force(&records, &covered);
            let order = |row: &SummaryRow| (row.operation.clone(), row.machine.clone());
            found.rows.sort_by_key(order);
            expected.sort_by_key(order);
            prop_assert_eq!(found.rows, expected);
        }
    }
}

/// Not a test: measures the figures for `docs`. `cargo test --release --lib metrics::tests::figures -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    let folder = tempfile::tempdir().expect("a folder");
    let took = |what: &str, since: Instant| println!("{what}: {:?}", since.elapsed());
    let now = || Moment::now().instant;

    let start = now();
    let mut store = database(&folder.path().join("a"), 100_000);
    took("open, empty", start);
    let machines: Vec<orbd_host::machine::MachineName> = (0..10)
        .map(|n| format!("web-{n}").parse().expect("valid"))
        .collect();
    let verbs = ["run", "start", "stop", "info", "list", "push", "pull", "create"];
    let record = |id: u64, at: u64| {
        let mut record = ended(id, at);
        record.machine = Some(machines[usize::try_from(id % 10).expect("small")].clone());
        record.operation = verbs[usize::try_from(id / 10 % 8).expect("small")].into();
        record.run_us = (id * 7_919 + 1) % 3_000_000;
        record.wait_us = (id * 104_729) % 50_000;
        record
    };
    // A busy year with 80 series: 365 days with 8 hours of records each.
    let start = now();
    let mut id = 0;
    for day in 0..365_u64 {
        for hour in 9..17_u64 {
            let at = START + day * DAY + hour * HOUR;
            let records: Vec<_> = (0..137).map(|n| record(id + n, at + n * 1_000)).collect();
            apply(&mut store, &records, at + HOUR);
            id += 137;
        }
    }
    took(&format!("a year, {id} records in 2920 batches"), start);
    let start = now();
    store.flush().expect("flushed");
    took("flush", start);
    let end = START + 365 * DAY;
    for (what, since) in [("day", end - DAY), ("month", end - 30 * DAY), ("year", START)] {
        let start = now();
        let request = SummaryRequest {
            since_ms: since + 1,
            until_ms: end,
            ..SummaryRequest::default()
        };
        let summary = store.summary(&request, end, no_limit()).expect("summed up");
        took(
            &format!("summary of a {what}, {} rows", summary.rows.len()),
            start,
        );
    }
    let start = now();
    store
        .history(&HistoryRequest::default(), no_limit())
        .expect("a page");
    took("a page of 100", start);
    drop(store);
    let start = now();
    let store = database(&folder.path().join("a"), 100_000);
    took("open, 100,000 records and a year of cells", start);
    let start = now();
    store.verify().expect("whole");
    took("verify", start);

    let mut store = database(&folder.path().join("b"), 5_000);
    let start = now();
    for round in 0..200_u64 {
        let records: Vec<_> = (0..1_000)
            .map(|n| record(round * 1_000 + n, START + round * 60_000 + n))
            .collect();
        apply(&mut store, &records, START + round * 60_000);
        store.flush().expect("flushed");
    }
    took("200,000 records rotated through 5,000", start);
    let size: u64 = fs::read_dir(folder.path().join("b"))
        .expect("readable")
        .map(|entry| entry.expect("readable").metadata().expect("known").len())
        .sum();
    println!("on disk: {} KiB", size >> 10);

    let metrics = Metrics::start(settings(&folder.path().join("c")));
    let start = now();
    for id in 0..10_000 {
        metrics.record(record(id, START));
    }
    println!("record: {:?} each", start.elapsed() / 10_000);
    let mut cell = Cell::default();
    for id in 0..10 {
        cell.add(&record(id * 10, START));
    }
    println!(
        "a cell of 10: {} bytes; a record: {} bytes",
        cell.encode().len(),
        record(1, START).encode().len()
    );
}
