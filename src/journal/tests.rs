//! Tests of the journal over several instances: truncated, damaged and compacted.

use std::fs::File;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::contents::{ENTRY_MAX, HEADER, MAGIC};
use super::entry::{FRAME_HEADER, checksum};
use super::*;
use crate::clock::Moment;
use crate::operation::{Access, Class, Lane};
use orbd_host::machine::MachineName;

const NOW: u64 = 1_763_650_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn open(path: &Path) -> (Journal, Recovered) {
    Journal::open(path, now()).expect("opened")
}

/// Closes the journal as SIGKILL would: nothing more is written, and the lock is released.
fn kill(journal: Journal) {
    let shared = Arc::downgrade(&journal.shared);
    drop(journal);
    while shared.strong_count() > 0 {
        std::thread::yield_now();
    }
}

fn name(text: &str) -> MachineName {
    text.parse().expect("a valid name")
}

fn accepted(job: u64) -> AcceptedJob {
    AcceptedJob {
        job: JobId(job),
        operation: vec![1, 2, 3],
        client: "deploy".into(),
        accepted_ms: NOW * 1000,
        queue_timeout: Some(Duration::from_secs(600)),
        run_timeout: None,
    }
}

fn starting(job: u64) -> Starting {
    Starting {
        job: JobId(job),
        marker: format!("orbd-{job}"),
        lanes: vec![
            (Lane::Machine(name("web")), Access::Exclusive),
            (Lane::Fleet, Access::Shared),
            (Lane::Configuration, Access::Shared),
        ],
        verb: "start".into(),
        machine: Some(name("web")),
        class: Class::Change,
        detached: true,
    }
}

fn process(pid: u32) -> Process {
    Process {
        pid,
        start_time: b"12345".to_vec(),
    }
}

/// One entry of each kind: job 1 waits, job 2 is in flight, job 3 has ended.
fn some_entries() -> Vec<Entry> {
    vec![
        Entry::Accepted(accepted(1)),
        Entry::Accepted(accepted(2)),
        Entry::Starting(starting(2)),
        Entry::Started {
            job: JobId(2),
            process: process(4711),
            owner: Some(process(4710)),
        },
        Entry::Starting(starting(3)),
        Entry::Ended { job: JobId(3) },
    ]
}

fn in_flight(job: u64) -> InFlight {
    InFlight {
        starting: starting(job),
        process: Some(process(4711)),
        owner: Some(process(4710)),
        accepted: Some(accepted(job)),
    }
}

fn written(path: &Path, entries: &[Entry]) -> Vec<u8> {
    let (journal, _) = open(path);
    for entry in entries {
        journal.append(entry).expect("written");
    }
    kill(journal);
    fs::read(path).expect("readable")
}

#[test]
fn waiting_and_in_flight_jobs_are_recovered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state/journal");
    let (journal, recovered) = open(&path);
    let first = Recovered {
        next_id: 1,
        ..Recovered::default()
    };
    assert_eq!(recovered, first, "no instance before");
    kill(journal);
    written(&path, &some_entries());
    let expected = Recovered {
        next_id: 4,
        waiting: vec![accepted(1)],
        in_flight: vec![in_flight(2)],
        ..Recovered::default()
    };
    // A job without an `Ended` entry stays in the journal for every later instance.
    for _ in 0..3 {
        let (journal, recovered) = open(&path);
        assert_eq!(recovered, expected);
        kill(journal);
    }
}

#[tokio::test]
async fn orderly_end_is_distinguished_from_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let (journal, _) = open(&path);
    let id = journal.next_id();
    journal
        .append_durable(&Entry::Accepted(accepted(id.0)))
        .expect("written")
        .await
        .expect("on disk");
    let shared = Arc::downgrade(&journal.shared);
    journal.close(Duration::from_secs(10)).await.expect("closed");
    while shared.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
    let (journal, recovered) = open(&path);
    assert!(recovered.clean);
    assert_eq!(
        (recovered.next_id, recovered.waiting.len()),
        (2, 1),
        "no id is skipped"
    );
    journal.append(&Entry::Ended { job: id }).expect("written");
    kill(journal);
    assert!(!open(&path).1.clean);
}

#[test]
fn ids_grow_across_instances_and_never_repeat() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let mut last = 0;
    for _ in 0..4 {
        let (journal, recovered) = open(&path);
        assert!(recovered.next_id > last);
        for _ in 0..ID_BLOCK + 700 {
            let JobId(id) = journal.next_id();
            assert!(id > last);
            last = id;
        }
        kill(journal);
    }
    assert!(
        last < 4 * (ID_BLOCK + 700) + 4 * 2 * ID_BLOCK,
        "a crash skips few ids"
    );
    fs::remove_file(&path).expect("removed");
    let later = now() + Duration::from_secs(3600 * 24);
    let (_, recovered) = Journal::open(&path, later).expect("opened");
    assert_eq!(recovered.next_id, 1, "no file, no instance before");
}

#[test]
fn second_instance_is_refused_while_the_first_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let (_journal, _) = open(&path);
    assert!(matches!(
        Journal::open(&path, now()),
        Err(JournalError::Locked { .. })
    ));
}

#[test]
fn truncation_at_any_byte_keeps_all_complete_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let mut ends = vec![HEADER];
    let mut bytes = Vec::new();
    for count in 1..=some_entries().len() {
        let _ = fs::remove_file(&path);
        bytes = written(&path, &some_entries()[..count]);
        ends.push(bytes.len());
    }
    for length in 0..=bytes.len() {
        fs::write(&path, &bytes[..length]).expect("written");
        let (journal, recovered) = open(&path);
        let whole = ends.iter().rposition(|end| *end <= length).unwrap_or(0);
        let end = if length < HEADER { 0 } else { ends[whole] };
        assert_eq!(recovered.torn_bytes, (length - end) as u64, "cut at {length}");
        assert_eq!(recovered.set_aside, None, "cut at {length}");
        assert_eq!(
            recovered.waiting.len(),
            [0, 1, 2, 1, 1, 1, 1][whole],
            "cut at {length}"
        );
        assert_eq!(
            recovered.in_flight.len(),
            [0, 0, 0, 1, 1, 2, 1][whole],
            "cut at {length}"
        );
        // A later entry is appended correctly and read back.
        journal.append(&Entry::Accepted(accepted(9))).expect("written");
        kill(journal);
        let (journal, recovered) = open(&path);
        assert!(recovered.waiting.contains(&accepted(9)), "cut at {length}");
        assert_eq!(recovered.torn_bytes, 0);
        kill(journal);
    }
}

#[test]
fn flipped_byte_anywhere_is_detected_and_yields_no_false_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let bytes = written(&path, &some_entries());
    let last = bytes.len() - frame(0, &StoredV1::Ended { job: 3 }).expect("short").len();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        fs::write(&path, &damaged).expect("written");
        let (journal, recovered) = open(&path);
        assert!(!recovered.clean);
        for job in recovered.waiting.iter().chain(&recovered.uncertain) {
            assert!(*job == accepted(1) || *job == accepted(2), "flipped at {at}");
        }
        for job in &recovered.in_flight {
            assert!(
                job.starting == starting(2) || job.starting == starting(3),
                "flipped at {at}"
            );
        }
        let Some(aside) = &recovered.set_aside else {
            // Only the last entry can be taken for an incomplete one.
            assert!(
                at >= last && recovered.torn_bytes == (bytes.len() - last) as u64,
                "flipped at {at}"
            );
            kill(journal);
            continue;
        };
        assert_eq!(fs::read(aside).expect("kept"), damaged, "flipped at {at}");
        fs::remove_file(aside).expect("removed");
        // Jobs from before the damage are not started again, because the lost entry may record their start. The header holds no
        // entry.
        let is_before_all = at < HEADER;
        assert_eq!(
            recovered.waiting.contains(&accepted(1)),
            is_before_all,
            "flipped at {at}"
        );
        assert_eq!(
            recovered.uncertain.is_empty(),
            at < ends_of(&bytes)[0],
            "flipped at {at}"
        );
        assert!(recovered.next_id >= NOW);
        let (waiting, uncertain) = (recovered.waiting.clone(), recovered.uncertain.clone());
        kill(journal);
        let (journal, again) = open(&path);
        assert_eq!(
            (again.waiting, again.uncertain),
            (waiting, uncertain),
            "uncertainty survives a crash"
        );
        assert_eq!(again.set_aside, None, "the repaired file is intact");
        kill(journal);
    }
}

/// Returns the end offset of each entry.
fn ends_of(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() {
        at += FRAME_HEADER + entry::length_of(&bytes[at..]).expect("a frame");
        ends.push(at);
    }
    ends
}

#[test]
fn damaged_range_of_any_size_loses_no_entry_outside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let entries: Vec<Entry> = (1..=8).map(|job| Entry::Accepted(accepted(job))).collect();
    let bytes = written(&path, &entries);
    let ends = ends_of(&bytes);
    for length in [1, 4, 20, 100, 300] {
        for from in (0..bytes.len()).step_by(3) {
            let damage = from..(from + length).min(bytes.len());
            let mut damaged = bytes.clone();
            for byte in &mut damaged[damage.clone()] {
                *byte ^= 0x5a;
            }
            fs::write(&path, &damaged).expect("written");
            let (journal, recovered) = open(&path);
            let kept: Vec<u64> = recovered
                .waiting
                .iter()
                .chain(&recovered.uncertain)
                .map(|job| job.job.0)
                .collect();
            let mut start = HEADER;
            for (job, end) in (1..).zip(&ends) {
                let is_intact = damage.end <= start || damage.start >= *end;
                assert_eq!(kept.contains(&job), is_intact, "job {job}, {damage:?} damaged");
                start = *end;
            }
            kill(journal);
            for entry in fs::read_dir(folder.path()).expect("readable") {
                fs::remove_file(entry.expect("readable").path()).expect("removed");
            }
        }
    }
}

/// Opens a journal as if the disk were full.
fn read_only(path: &Path, with: &[u8]) -> (Journal, Recovered) {
    fs::write(path, with).expect("written");
    let located = Located {
        file: Some(File::open(path).expect("readable")),
        error: Some(io::ErrorKind::StorageFull.into()),
    };
    // Simulates the result of `open_locked` on a full or read-only disk, because root could write there anyway.
    Journal::open_located(path, located, now(), GARBAGE_MAX).expect("opened")
}

#[tokio::test]
async fn unwritable_journal_refuses_detached_changes_and_catches_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let bytes = written(&path, &some_entries());
    let mut damaged = bytes.clone();
    damaged[0] ^= 1;
    for contents in [&bytes, &damaged] {
        let (journal, recovered) = read_only(&path, contents);
        assert_eq!(
            (recovered.waiting, recovered.in_flight),
            (vec![accepted(1)], vec![in_flight(2)])
        );
        assert!(journal.problem().is_some());
        journal
            .append(&Entry::Accepted(accepted(8)))
            .expect_err("it would not survive a crash");
        assert!(journal.append_durable(&Entry::Accepted(accepted(8))).is_err());
        for entry in [Entry::Starting(starting(9)), Entry::Ended { job: JobId(2) }] {
            journal.append(&entry).expect_err("not writable");
        }
        assert!(journal.is_unwritten(JobId(9)) && !journal.is_unwritten(JobId(2)));
        // The folder is in fact writable, so closing rewrites the file.
        let shared = Arc::downgrade(&journal.shared);
        journal.close(Duration::from_secs(10)).await.expect("closed");
        while shared.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        let (journal, recovered) = open(&path);
        assert!(recovered.clean && recovered.set_aside.is_none());
        assert_eq!(recovered.waiting, [accepted(1)]);
        let in_flight: Vec<JobId> = recovered.in_flight.iter().map(|job| job.starting.job).collect();
        assert_eq!(
            in_flight,
            [JobId(9)],
            "a job that ended meanwhile is not recovered as running"
        );
        kill(journal);
    }
    let aside = fs::read_dir(folder.path()).expect("readable").count() - 1;
    assert_eq!(aside, 1, "only the damaged file is kept");
}

#[test]
fn file_of_another_program_is_set_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    for text in [
        "orbd-journal 0\n\0salt....",
        "orbd-journals 2\n",
        "Dear diary, today",
    ] {
        fs::write(&path, text).expect("written");
        let (journal, recovered) = open(&path);
        let aside = recovered.set_aside.expect("set aside");
        assert_eq!(fs::read_to_string(&aside).expect("kept"), text);
        assert_eq!((recovered.next_id, recovered.clean), (NOW, false));
        kill(journal);
    }
}

#[test]
fn frame_inside_an_operation_is_not_taken_for_an_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let forged = frame(0, &StoredV1::from(&Entry::Accepted(accepted(666)))).expect("short");
    let outer = AcceptedJob {
        operation: forged,
        ..accepted(1)
    };
    let mut bytes = written(&path, &[Entry::Accepted(outer)]);
    bytes[HEADER] ^= 1;
    fs::write(&path, bytes).expect("written");
    let (_, recovered) = open(&path);
    assert_eq!((recovered.waiting, recovered.uncertain), (Vec::new(), Vec::new()));
}

#[test]
fn too_large_entry_is_refused_and_later_entries_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let (journal, _) = open(&path);
    let large = AcceptedJob {
        operation: vec![0; ENTRY_MAX],
        ..accepted(1)
    };
    assert!(matches!(
        journal.append(&Entry::Accepted(large)),
        Err(JournalError::TooLarge { .. })
    ));
    journal.append(&Entry::Accepted(accepted(2))).expect("written");
    kill(journal);
    assert_eq!(open(&path).1.waiting, [accepted(2)]);
}

/// Waits until a compaction has reduced the file to at most `most` bytes.
fn wait_for_length(path: &Path, most: u64) {
    while fs::metadata(path).expect("there").len() > most {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_live_jobs_and_entries_appended_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let (journal, _) = Journal::open_with(&path, now(), 10_000).expect("opened");
    for entry in some_entries() {
        journal.append(&entry).expect("written");
    }
    let mut waiting = vec![accepted(1)];
    for job in 1_000..3_000 {
        journal.append(&Entry::Starting(starting(job))).expect("written");
        if job % 100 == 0 {
            let kept = accepted(job + 10_000);
            journal
                .append_durable(&Entry::Accepted(kept.clone()))
                .expect("written")
                .await
                .expect("on disk");
            waiting.push(kept);
        }
        journal
            .append(&Entry::Ended { job: JobId(job) })
            .expect("written");
    }
    wait_for_length(&path, 40_000);
    let next_id = journal.next_id();
    kill(journal);
    let (journal, recovered) = open(&path);
    assert_eq!(recovered.waiting, waiting);
    assert_eq!(recovered.in_flight, [in_flight(2)]);
    assert!(recovered.next_id > next_id.0 && recovered.torn_bytes == 0 && recovered.set_aside.is_none());
    assert!(!folder.path().join("journal.new").exists());
    // The new file is locked as well.
    assert!(matches!(
        Journal::open(&path, now()),
        Err(JournalError::Locked { .. })
    ));
    drop(journal);
}

/// Until the first release the stored format may change: `ORBD_BLESS=1` then rewrites the sample. After it, never edit the
/// sample; a format that can no longer read it needs a new version.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a test is asked to rewrite its sample")]
async fn committed_sample_of_version_1_can_be_read() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/journal/v1.bin");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    if std::env::var_os("ORBD_BLESS").is_some() {
        let (journal, _) = open(&path);
        for entry in &some_entries() {
            journal.append(entry).expect("written");
        }
        for _ in 0..2 {
            journal.next_id();
        }
        journal.close(Duration::from_secs(10)).await.expect("closed");
        fs::copy(&path, &sample).expect("the sample is written");
    }
    fs::copy(&sample, &path).expect("copied");
    let (_, recovered) = open(&path);
    let expected = Recovered {
        next_id: 3,
        waiting: vec![accepted(1)],
        in_flight: vec![in_flight(2)],
        clean: true,
        ..Recovered::default()
    };
    assert_eq!(recovered, expected);
}

fn some_entry() -> impl Strategy<Value = Entry> {
    let lane = prop_oneof![
        Just(Lane::Fleet),
        Just(Lane::Configuration),
        "[a-z]{1,9}".prop_map(|text| Lane::Machine(name(&text))),
    ];
    let access = prop::sample::select(vec![Access::Shared, Access::Exclusive]);
    let lanes = prop::collection::vec((lane, access), 0..4);
    let job = (0_u64..12).prop_map(JobId);
    let timeout = || prop::option::of((0_u64..1_000_000).prop_map(Duration::from_millis));
    let accepted = (
        job.clone(),
        prop::collection::vec(any::<u8>(), 0..40),
        ".{0,9}",
        any::<u64>(),
        timeout(),
        timeout(),
    );
    let accepted = accepted.prop_map(
        |(job, operation, client, accepted_ms, queue_timeout, run_timeout)| {
            Entry::Accepted(AcceptedJob {
                job,
                operation,
                client,
                accepted_ms,
                queue_timeout,
                run_timeout,
            })
        },
    );
    let starting = (
        job.clone(),
        ".{0,9}",
        lanes,
        prop::option::of("[a-z]{1,9}"),
        any::<bool>(),
    );
    let starting = (starting, prop::sample::select(Class::ALL.to_vec())).prop_map(
        |((job, marker, lanes, machine, detached), class)| {
            Entry::Starting(Starting {
                job,
                marker,
                lanes,
                verb: "run".into(),
                machine: machine.map(|text| name(&text)),
                class,
                detached,
            })
        },
    );
    let some_process = (any::<u32>(), prop::collection::vec(any::<u8>(), 0..20))
        .prop_map(|(pid, start_time)| Process { pid, start_time });
    let started = (job.clone(), some_process.clone(), prop::option::of(some_process))
        .prop_map(|(job, process, owner)| Entry::Started { job, process, owner });
    prop_oneof![
        accepted,
        starting,
        started,
        job.prop_map(|job| Entry::Ended { job })
    ]
}

/// A plain model of the state that should be recovered.
#[derive(Default)]
struct Model(BTreeMap<JobId, Known>);

type Known = (
    Option<AcceptedJob>,
    Option<Starting>,
    Option<(Process, Option<Process>)>,
);

impl Model {
    fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Accepted(accepted) => self.0.entry(accepted.job).or_default().0 = Some(accepted.clone()),
            Entry::Starting(starting) => self.0.entry(starting.job).or_default().1 = Some(starting.clone()),
            Entry::Started { job, process, owner } => {
                if let Some(known) = self.0.get_mut(job) {
                    known.2 = Some((process.clone(), owner.clone()));
                }
            }
            Entry::Ended { job } => drop(self.0.remove(job)),
        }
    }

    fn check(&self, recovered: &Recovered) {
        let waiting = self
            .0
            .values()
            .filter(|job| job.1.is_none())
            .filter_map(|job| job.0.clone());
        assert!(recovered.waiting.iter().cloned().eq(waiting));
        let in_flight = self.0.values().filter_map(|(accepted, starting, started)| {
            let (process, owner) = started.clone().unzip();
            Some(InFlight {
                starting: starting.clone()?,
                process,
                owner: owner.flatten(),
                accepted: accepted.clone(),
            })
        });
        assert!(recovered.in_flight.iter().cloned().eq(in_flight));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn recovered_state_equals_the_model_across_instances_and_compactions(
        lives in prop::collection::vec(prop::collection::vec(some_entry(), 0..60), 1..4)
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let mut model = Model::default();
        for entries in lives {
            let (journal, recovered) = Journal::open_with(&path, now(), 300).expect("opened");
            model.check(&recovered);
            for entry in &entries {
                journal.append(entry).expect("written");
                model.take(entry);
            }
            kill(journal);
        }
        model.check(&open(&path).1);
    }
}

/// Not a test: `cargo test --release --lib journal::tests::figures -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures"]
async fn figures() {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let path = folder.path().join("journal");
    let (journal, _) = open(&path);
    let moment = || Moment::now().instant;
    let mut took = Vec::new();
    for job in 0..100_000 {
        let start = moment();
        journal.append(&Entry::Starting(starting(job))).expect("written");
        took.push(start.elapsed());
        journal
            .append(&Entry::Started {
                job: JobId(job),
                process: process(1),
                owner: None,
            })
            .expect("written");
        journal
            .append(&Entry::Ended { job: JobId(job) })
            .expect("written");
    }
    took.sort_unstable();
    println!(
        "append: p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
        took[50_000], took[99_000], took[99_900], took[99_999]
    );
    let mut durable = Vec::new();
    for job in 0..200 {
        let start = moment();
        journal
            .append_durable(&Entry::Accepted(accepted(job)))
            .expect("written")
            .await
            .expect("on disk");
        durable.push(start.elapsed());
    }
    durable.sort_unstable();
    println!("append_durable: p50 {:?}, max {:?}", durable[100], durable[199]);
    let start = moment();
    for _ in 0..1_000_000 {
        journal.next_id();
    }
    println!("next_id: {:?} each", start.elapsed() / 1_000_000);
    for job in 0..1_000 {
        journal.append(&Entry::Accepted(accepted(job))).expect("written");
    }
    kill(journal);
    let start = moment();
    let (_, recovered) = open(&path);
    println!(
        "open, {} waiting of {} bytes: {:?}",
        recovered.waiting.len(),
        fs::metadata(&path).expect("there").len(),
        start.elapsed()
    );
}

/// Returns an intact frame with this body, as a newer version would write it.
fn frame_of(salt: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.extend(salt.to_le_bytes());
    frame.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
    frame.extend(body);
    let crc = checksum(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    frame
}

#[test]
fn entry_of_a_newer_version_is_refused_and_the_file_is_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let bytes = written(&path, &some_entries());
    let salt = u32::from_le_bytes(
        bytes[MAGIC.len()..MAGIC.len() + 4]
            .try_into()
            .expect("four bytes"),
    );
    let known = postcard::to_stdvec(&StoredV1::Ended { job: 1 }).expect("encoded");
    let longer = [&known[..], b"more"].concat();
    for body in [&[99, 1, 2][..], &longer] {
        let newer = [&bytes[..], &frame_of(salt, body), b"torn"].concat();
        fs::write(&path, &newer).expect("written");
        for result in [
            Journal::open(&path, now()).map(|_| ()),
            Journal::peek(&path).map(|_| ()),
        ] {
            assert!(matches!(result, Err(JournalError::Newer { .. })), "{result:?}");
        }
        assert_eq!(fs::read(&path).expect("readable"), newer);
    }
    let later_format = [b"orbd-journal 2\n\0", &bytes[MAGIC.len()..]].concat();
    fs::write(&path, &later_format).expect("written");
    assert!(matches!(
        Journal::open(&path, now()),
        Err(JournalError::Newer { .. })
    ));
    assert_eq!(fs::read(&path).expect("readable"), later_format);
    let aside = Journal::set_aside(&path, now())
        .expect("renamed")
        .expect("there was one");
    assert_eq!(fs::read(aside).expect("readable"), later_format);
    assert_eq!(Journal::set_aside(&path, now()).expect("nothing to do"), None);
    kill(open(&path).0);
}

#[test]
fn peek_returns_what_open_would_recover_while_the_journal_is_in_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    assert_eq!(Journal::peek(&path).expect("no file"), Recovered::default());
    let (journal, _) = open(&path);
    for entry in some_entries() {
        journal.append(&entry).expect("written");
    }
    let peeked = Journal::peek(&path).expect("readable");
    assert!(
        matches!(Journal::set_aside(&path, now()), Err(JournalError::Locked { .. })),
        "a daemon uses it"
    );
    kill(journal);
    assert_eq!(peeked, open(&path).1);
}
