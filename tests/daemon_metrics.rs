//! Metrics: what is recorded and how it is read back, with a real daemon, its real helper and the real command line.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use orbd::clock::Moment;
use orbd::metrics::{Client, Launch, Metrics, OperationRecord, OutcomeWord, Settings, SummaryRequest};
use orbd::operation::Class;
use orbd_client::download::{Download, DownloadError};
use orbd_proto::methods::{
    MachineList, MachineRun, MachineStart, MetricsCounters, MetricsHistory, OrbstackStatus,
};
use serde_json::{Value, json};

use crate::ctl_suite::{call, ok, said};
use crate::support::{PATIENCE, World, children_of, eventually, words_of};

/// Returns a record of a command that ended at this time.
fn record(id: u64, ended_ms: u64) -> OperationRecord {
    OperationRecord {
        id,
        operation: "run".into(),
        machine: "web".parse().ok(),
        class: Class::Exec,
        client: Client {
            name: "seed".into(),
            pid: Some(1),
            uid: 0,
        },
        accepted_ms: ended_ms - 20,
        started_ms: Some(ended_ms - 10),
        ended_ms,
        wait_us: 10_000,
        run_us: 10_000,
        ending: None,
        outcome: OutcomeWord::Succeeded,
        exit_code: Some(0),
        bytes_in: 0,
        bytes_out: 5,
        joined: false,
        in_channel: false,
        changed: None,
        label: None,
    }
}

/// Stores records for a world before its daemon starts. The store keeps at most `history_max` records.
fn seed(world: &World, history_max: u64, records: impl IntoIterator<Item = OperationRecord>) {
    let metrics = Metrics::start(Settings {
        folder: world.path("state/metrics"),
        history_max,
        history_max_age: Duration::from_secs(24 * 3600),
        launch: Launch::Process {
            program: programs::orbd().into(),
            args: vec!["--metrics-store".into()],
        },
        quiet: PATIENCE,
    });
    for record in records {
        metrics.record(record);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        // The summary is answered after everything before it is stored.
        let stored = metrics.summary(SummaryRequest::default()).await;
        stored.expect("the store answers");
        assert_eq!(metrics.counters().dropped, 0);
        metrics.shutdown(PATIENCE).await;
    });
}

fn now_ms() -> u64 {
    Moment::now().unix_ms()
}

/// Returns the ids in an export as JSON lines.
fn ids(lines: &str) -> Vec<u64> {
    let id = |line: &str| {
        let record: Value = serde_json::from_str(line).expect("an object a line");
        record["job_id"].as_u64().expect("an id")
    };
    lines.lines().map(id).collect()
}

#[test]
fn export_writes_every_record_once_in_each_format() {
    const RECORDS: u64 = 2_500;
    let world = World::new();
    let now = now_ms();
    seed(
        &world,
        100_000,
        (0..RECORDS).map(|id| record(id, now - RECORDS + id)),
    );
    let world = world.started();
    let lines = ok(&world, &["metrics", "export"]);
    assert_eq!(ids(&lines), (0..RECORDS).collect::<Vec<_>>());
    let csv = ok(&world, &["metrics", "export", "--format", "csv"]);
    assert!(
        csv.starts_with("job_id,operation,machine,job_class,client,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count() as u64, RECORDS + 1);
    let page = ok(&world, &["metrics", "export", "--format", "prometheus"]);
    let counted = format!("orbd_operations_total{{operation=\"run\",machine=\"web\"}} {RECORDS}\n");
    assert!(page.contains(&counted), "{page}");
    // An existing file is replaced in one step, and no temporary file is left.
    let home = world.path("home");
    fs::write(home.join("all.jsonl"), "old").expect("a file");
    assert_eq!(ok(&world, &["metrics", "export", "-o", "all.jsonl"]), "");
    assert_eq!(fs::read_to_string(home.join("all.jsonl")).expect("a file"), lines);
    let names: Vec<_> = fs::read_dir(&home)
        .expect("a folder")
        .map(|entry| entry.expect("one").file_name())
        .collect();
    assert!(
        !names.iter().any(|name| name.to_string_lossy().contains("part")),
        "{names:?}"
    );
}

#[test]
fn export_filters_by_time_machine_client_operation_and_outcome() {
    let world = World::new();
    let now = now_ms();
    let records = (0..1_000).map(|id| {
        // One record per second; the last one ended just now.
        let mut record = record(id, now - (999 - id) * 1_000);
        if id % 10 == 0 {
            record.machine = "db".parse().ok();
            record.outcome = OutcomeWord::Failed;
        }
        if id % 4 == 0 {
            record.client.name = "pyinfra".into();
            record.operation = "push".into();
        }
        record
    });
    seed(&world, 100_000, records);
    let world = world.started();
    let exported = |words: &[&str]| ids(&ok(&world, &[["metrics", "export"].as_slice(), words].concat()));
    let every = |step: usize, from: u64| (from..1_000).step_by(step).collect::<Vec<_>>();
    assert_eq!(exported(&["--machine", "db"]), every(10, 0));
    assert_eq!(exported(&["--outcome", "failed"]), every(10, 0));
    assert_eq!(exported(&["--client", "pyinfra"]), every(4, 0));
    assert_eq!(exported(&["--operation", "push"]), every(4, 0));
    assert_eq!(exported(&["--client", "pyinfra", "-m", "db"]), every(20, 0));
    assert!(exported(&["--client", "nobody"]).is_empty());
    let second = now - 499 * 1_000;
    let since = jiff::Timestamp::from_millisecond(i64::try_from(second).expect("small")).expect("a time");
    assert_eq!(exported(&["--since", &since.to_string()]), every(1, 500));
    let ago = exported(&["--since", "500s"]);
    assert!((400..=500).contains(&ago.len()), "{}", ago.len());
    assert!(exported(&["--since", "0"]).is_empty());
    assert_eq!(exported(&["--since", "1h", "--machine", "db"]), every(10, 0));
}

#[test]
fn failed_export_says_what_to_do_and_leaves_files_as_they_were() {
    let world = World::new();
    // The store can be neither opened nor created.
    fs::create_dir_all(world.path("state")).expect("a folder");
    fs::write(world.path("state/metrics"), "").expect("a file");
    let world = world.started();
    let home = world.path("home");
    fs::write(home.join("kept"), "as it was").expect("a file");
    for file in ["kept", "new"] {
        let output = call(&world, &["metrics", "export", "-o", file]);
        assert_ne!(output.status.code(), Some(0));
        assert!(
            said(&output).contains("the metrics store is unavailable"),
            "{}",
            said(&output)
        );
    }
    assert_eq!(
        fs::read_to_string(home.join("kept")).expect("a file"),
        "as it was"
    );
    let names: BTreeSet<_> = fs::read_dir(&home)
        .expect("a folder")
        .map(|entry| entry.expect("one").file_name())
        .collect();
    assert_eq!(names, BTreeSet::from(["kept".into()]));
    for (file, why) in [
        (".", "directory"),
        ("not/there", "entity not found"),
        ("kept/x", "directory"),
    ] {
        let output = call(&world, &["metrics", "export", "-o", file]);
        assert_eq!(output.status.code(), Some(2), "{file}");
        let told = said(&output);
        assert!(
            told.contains(&format!("cannot write {file}: ")) && told.contains("hint: name another file"),
            "{why}: {told}"
        );
    }
    // A target that is not a regular file is written to, not replaced.
    let output = call(
        &world,
        &["metrics", "export", "--format", "prometheus", "-o", "/dev/null"],
    );
    assert!(output.status.success(), "{}", said(&output));
    assert!(!fs::metadata("/dev/null").expect("it is there").is_file());
}

#[test]
fn export_over_http_refuses_an_invalid_query_with_one_sentence() {
    let world = World::new().started();
    let refused = |target: &str| match Download::get(&world.socket(), target, PATIENCE) {
        Err(DownloadError::Refused { status, message }) => (status, message),
        other => panic!("{target}: {other:?}"),
    };
    for (query, expected) in [
        ("format=xml", "format: 'xml' is not json_lines, csv or prometheus"),
        (
            "since=soon",
            "since: 'soon' is not a time such as 2026-11-30T08:00:00Z",
        ),
        (
            "format=prometheus&client=x",
            "format: prometheus takes no filter; give json_lines or csv",
        ),
        (
            "colour=red",
            "unknown parameter 'colour'; give format, since, operation, machine, client or outcome",
        ),
    ] {
        assert_eq!(
            refused(&format!("/metrics/export?{query}")),
            (400, expected.to_owned())
        );
    }
}

#[test]
fn summary_names_the_window_that_it_covers() {
    let world = World::new().set("history_max", "100");
    let now = now_ms();
    let mut records = (0..500).map(|id| record(id, now - (499 - id) * 100));
    // Records beyond the limit are removed when the next one is stored.
    seed(&world, 100, records.by_ref().take(499));
    seed(&world, 100, records);
    let world = world.started();
    let table = ok(&world, &["metrics", "--window", "1s"]);
    assert_eq!(table.lines().next(), Some("last 1.0 s"), "{table}");
    let table = ok(&world, &["metrics"]);
    assert_eq!(table.lines().next(), Some("all recorded operations"), "{table}");
    // Only the last ten seconds are kept as records, so the answer covers whole hours and reports that.
    let summary = ok(&world, &["metrics", "--window", "2m", "--json"]);
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["resolution"], "hour");
    let since = summary["since"].as_str().expect("a time");
    assert!(since.ends_with(":00:00.000Z"), "{since}");
    let count: u64 = summary["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["count"].as_u64())
        .sum();
    let table = ok(&world, &["metrics", "--window", "2m"]);
    let first = table.lines().next().expect("a line");
    assert!(
        first.starts_with("last ") && first.contains(":00:00Z, instead of the last 2 min: "),
        "{table}"
    );
    // The window may reach into the previous hour.
    assert!(count >= 500, "{summary}");
}

#[test]
fn spawns_are_counted_exactly_however_fast_children_end() {
    let world = World::with_machines(&["a"]);
    let runs: Vec<_> = (0..4)
        .map(|_| {
            world.background(|caller| {
                for _ in 0..50 {
                    caller.ok::<MachineRun>(json!({"machine": "a", "command": ["true"]}));
                }
            })
        })
        .collect();
    for run in runs {
        run.join().expect("no panic");
    }
    let mut caller = world.client();
    caller.ok::<MachineList>(json!({"max_age_ms": 0}));
    // The machine runs already, so this only reads its state.
    caller.ok::<MachineStart>(json!({"machine": "a"}));
    let counted = caller.ok::<MetricsCounters>(json!({})).counters["spawns"];
    assert_eq!(counted, world.ledger().invocations.len() as u64);
}

/// Returns the metrics helpers of a world's daemon.
fn helpers(world: &World) -> Vec<u32> {
    // The helper's environment is empty, so it is found by its parent.
    let mut all = children_of(world.pid());
    all.retain(|pid| words_of(*pid).contains("--metrics-store"));
    all
}

/// Returns the files of the stores, with their lengths and modification times.
fn store_files(world: &World) -> BTreeSet<(PathBuf, u64, SystemTime)> {
    let mut found = BTreeSet::new();
    let mut folders = vec![world.path("state/metrics")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("it is there");
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert((entry.path(), metadata.len(), metadata.modified().expect("a time")));
            }
        }
    }
    found
}

#[test]
fn polls_that_find_nothing_new_leave_no_record_and_start_no_helper() {
    let world = World::new()
        .set("watch_interval", "100ms")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    caller.ok::<OrbstackStatus>(json!({}));
    caller.ok::<MachineList>(json!({}));
    eventually("the helper has started and exited", || {
        let is_stored = caller.ok::<MetricsCounters>(json!({})).store == "closed";
        (is_stored && helpers(&world).is_empty() && world.path("state/metrics/store-1").exists())
            .then_some(())
    });
    let records = |caller: &mut crate::support::Caller| caller.ok::<MetricsCounters>(json!({})).counters["records_accepted"];
    let recorded = records(&mut caller);
    let stored = store_files(&world);
    let polled = world.ledger().spawns("list");
    let mut subscriber = world.subscribed();
    // The interval doubles after each poll: the last one comes three seconds after the first.
    eventually("six polls", || {
        assert!(helpers(&world).is_empty());
        (world.ledger().spawns("list") >= polled + 6).then_some(())
    });
    assert_eq!(records(&mut caller), recorded);
    assert_eq!(store_files(&world), stored);
    // A poll that finds a change is recorded once.
    assert!(world.sim(&["stop", "a"]).status.success());
    loop {
        let event = subscriber.receive().expect("an event");
        if event["params"]["result"]["type"] == "machine_changed" {
            break;
        }
    }
    eventually("the poll is recorded", || {
        (records(&mut caller) > recorded).then_some(())
    });
    assert_eq!(records(&mut caller), recorded + 1);
    let history = caller.ok::<MetricsHistory>(json!({"limit": 1})).records;
    assert_eq!(
        (history[0].operation.as_str(), history[0].client.name.as_str()),
        ("list", "orbd")
    );
}
