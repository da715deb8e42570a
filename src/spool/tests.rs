//! Tests of spools.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::contents::{RECENT_MAX, UNWRITTEN_MAX};
use super::reader::Found;
use super::*;

struct Fixture {
    dir: TempDir,
    writer: Option<Writer>,
    spool: Spool,
    budget: Budget,
}

fn fixture(max: u64, budget: u64) -> Fixture {
    let dir = tempfile::tempdir().expect("a folder");
    let budget = Budget::new(budget);
    let (writer, spool) = add(&dir, max, &budget);
    Fixture {
        dir,
        writer: Some(writer),
        spool,
        budget,
    }
}

fn add(dir: &TempDir, max: u64, budget: &Budget) -> (Writer, Spool) {
    let settings = Settings {
        dir: dir.path().into(),
        max,
        keep: Keep::All,
    };
    spool(&settings, budget)
}

impl Fixture {
    async fn write(&self, stream: Stream, bytes: impl Into<Bytes>) {
        let writer = self.writer.as_ref().expect("not ended");
        writer.write(stream, bytes.into()).await;
    }

    fn end(&mut self) {
        self.writer = None;
    }

    /// Waits until no write to disk is in progress.
    async fn flushed(&self) {
        loop {
            let room = self.spool.shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !lock(&self.spool.shared.state).is_flushing {
                return;
            }
            room.await;
        }
    }
}

/// Reads to the end. Returns both streams and all gaps.
async fn read_all(mut reader: Reader, max: usize) -> (Vec<u8>, Vec<u8>, Vec<(u64, u64)>) {
    let (mut out, mut err, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    let mut position = reader.position();
    let mut at = Duration::ZERO;
    loop {
        match reader.next(max).await.expect("readable") {
            Batch::Chunks(chunks) => {
                assert!(chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() <= max);
                for chunk in chunks {
                    assert_eq!(chunk.offset, position);
                    assert!(!chunk.bytes.is_empty() && chunk.at >= at);
                    position = chunk.end();
                    at = chunk.at;
                    match chunk.stream {
                        Stream::Stdout => out.extend_from_slice(&chunk.bytes),
                        Stream::Stderr => err.extend_from_slice(&chunk.bytes),
                    }
                }
            }
            Batch::Gap { from, to } => {
                assert_eq!(from, position);
                gaps.push((from, to));
                position = to;
            }
            Batch::End => return (out, err, gaps),
        }
        assert_eq!(reader.position(), position);
    }
}

fn pattern(from: u64, length: usize) -> Vec<u8> {
    (from..).take(length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn small_output_stays_in_memory() {
    let mut fixture = fixture(1 << 30, 0);
    fixture.write(Stream::Stdout, "out\0\u{fffd}").await;
    fixture.write(Stream::Stderr, "err").await;
    fixture.end();
    let inline = fixture.spool.inline(1024).await.expect("readable");
    let expected = Inline {
        stdout: "out\0\u{fffd}".into(),
        stderr: "err".into(),
    };
    assert_eq!(inline, Some(expected));
    assert_eq!(fixture.spool.inline(8).await.expect("readable"), None);
    assert!(lock(&fixture.spool.shared.state).segments.is_empty());
    assert_eq!(fixture.budget.used(), 0);
}

#[tokio::test]
async fn ended_spool_is_readable_from_any_offset() {
    let mut fixture = fixture(1 << 30, 1 << 30);
    let all = pattern(0, 3_000_000);
    for piece in all.chunks(100_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.end();
    fixture.flushed().await;
    for from in [0, 1, 99_999, 100_000, 1_234_567, 2_999_999, 3_000_000] {
        for max in [77_777, 1 << 20] {
            let (out, err, gaps) = read_all(fixture.spool.reader(from), max).await;
            assert!(
                out == all[usize::try_from(from).expect("small")..],
                "from {from} by {max}"
            );
            assert_eq!((err.len(), gaps.len()), (0, 0));
        }
    }
    // Without readers, only what is too little for a file is in memory.
    assert!(lock(&fixture.spool.shared.state).recent_cost <= MEMORY);
}

#[tokio::test]
async fn files_are_unlinked_and_freed_with_the_last_handle() {
    let mut fixture = fixture(1 << 30, 1 << 30);
    fixture.write(Stream::Stdout, vec![7; 1_000_000]).await;
    fixture.flushed().await;
    let file = Arc::downgrade(&lock(&fixture.spool.shared.state).segments[0].file);
    assert_eq!(std::fs::read_dir(fixture.dir.path()).expect("listed").count(), 0);
    assert!(fixture.budget.used() > 900_000);
    fixture.end();
    let reader = fixture.spool.reader(0);
    drop(fixture.spool);
    assert_eq!(read_all(reader, 1 << 20).await.0.len(), 1_000_000);
    // The thread that wrote the file may keep it open for a moment.
    while fixture.budget.used() > 0 || file.strong_count() > 0 {
        tokio::task::spawn_blocking(|| ()).await.expect("no panic");
    }
}

#[tokio::test]
async fn reader_waits_for_output_and_for_the_end() {
    let mut fixture = fixture(1 << 30, 0);
    let mut reader = fixture.spool.follow(0);
    let reading = async {
        let first = reader.next(100).await.expect("readable");
        (first, reader.next(100).await.expect("readable"))
    };
    let writing = async {
        fixture.write(Stream::Stdout, "a").await;
        tokio::task::yield_now().await;
        fixture.end();
    };
    let ((first, second), ()) = tokio::join!(reading, writing);
    assert!(matches!(first, Batch::Chunks(chunks) if chunks[0].bytes == "a"));
    assert_eq!(second, Batch::End);
}

#[tokio::test]
async fn follower_that_keeps_up_never_reads_a_file() {
    let mut fixture = fixture(1 << 30, 1 << 30);
    let mut reader = fixture.spool.follow(0);
    for round in 0..200_u64 {
        fixture
            .write(Stream::Stdout, pattern(round * 50_000, 50_000))
            .await;
        let found = reader.look(1 << 20);
        let Found::Ready(Batch::Chunks(chunks)) = found else {
            panic!("not in memory in round {round}");
        };
        // In more than one chunk if the writer had to wait for the disk.
        let bytes = chunks.iter().map(|chunk| &chunk.bytes[..]).collect::<Vec<_>>();
        assert_eq!(bytes.concat(), pattern(round * 50_000, 50_000));
    }
    assert!(lock(&fixture.spool.shared.state).recent_cost <= RECENT_MAX);
    fixture.end();
}

#[tokio::test]
async fn output_in_memory_is_written_when_the_follower_leaves_or_the_job_ends() {
    for leaves in [true, false] {
        let mut fixture = fixture(1 << 30, 1 << 30);
        let mut follower = fixture.spool.follow(0);
        let all = pattern(0, 400_000);
        for piece in all.chunks(50_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
            follower.next(1 << 20).await.expect("readable");
        }
        assert!(lock(&fixture.spool.shared.state).segments.is_empty());
        if leaves {
            drop(follower);
        } else {
            fixture.end();
        }
        fixture.flushed().await;
        assert!(lock(&fixture.spool.shared.state).recent_cost <= MEMORY + 50_100);
        assert!(lock(&fixture.spool.shared.state).unflushed_cost <= MEMORY);
        fixture.end();
        assert!(read_all(fixture.spool.reader(0), 1 << 20).await.0 == all);
    }
}

#[tokio::test]
async fn oldest_output_is_dropped_at_the_limit_without_followers() {
    let mut fixture = fixture(MAX_MIN, 1 << 30);
    let all = pattern(0, 2_000_000);
    let mut late = fixture.spool.reader(0);
    for piece in all.chunks(10_000) {
        fixture.write(Stream::Stderr, piece.to_vec()).await;
    }
    fixture.end();
    let first = fixture.spool.first();
    assert!(lock(&fixture.spool.shared.state).kept <= MAX_MIN);
    assert!(fixture.budget.used() <= MAX_MIN);
    assert!(2_000_000 - first > MAX_MIN / 2, "most of the limit is used");
    let gap = Batch::Gap { from: 0, to: first };
    assert_eq!(late.next(10).await.expect("readable"), gap);
    let (_, err, gaps) = read_all(late, 1 << 20).await;
    assert!(err == all[usize::try_from(first).expect("small")..]);
    assert_eq!(gaps, []);
    assert_eq!(fixture.spool.inline(usize::MAX).await.expect("readable"), None);
}

#[tokio::test]
async fn writer_waits_at_the_limit_for_the_slowest_follower() {
    let mut fixture = fixture(MAX_MIN, 1 << 30);
    let all = pattern(0, 4_000_000);
    let (fast, slow) = (fixture.spool.follow(0), fixture.spool.follow(0));
    let slow_position = async {
        let mut slow = slow;
        let mut read = 0;
        while let Batch::Chunks(chunks) = slow.next(1000).await.expect("readable") {
            read += chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
            assert!(fixture.spool.end() <= slow.position() + MAX_MIN);
        }
        read
    };
    let writing = async {
        let writer = fixture.writer.take().expect("not ended");
        for piece in all.chunks(9_999) {
            let bytes = Bytes::copy_from_slice(piece);
            writer.write(Stream::Stdout, bytes).await;
        }
    };
    let (read, (out, _, gaps), ()) = tokio::join!(slow_position, read_all(fast, 1 << 20), writing);
    assert_eq!(read, all.len());
    assert!(out == all);
    assert_eq!(gaps, []);
}

#[tokio::test]
async fn dropping_a_follower_unblocks_the_writer() {
    let mut fixture = fixture(MAX_MIN, 1 << 30);
    let follower = fixture.spool.follow(0);
    let writer = fixture.writer.take().expect("not ended");
    let writing = tokio::spawn(async move {
        for _ in 0..100 {
            let bytes = vec![0; 10_000].into();
            writer.write(Stream::Stdout, bytes).await;
        }
    });
    // The writer stops before the limit, however long the test waits.
    loop {
        fixture.flushed().await;
        let end = fixture.spool.end();
        tokio::task::yield_now().await;
        if end > MAX_MIN / 2 && end == fixture.spool.end() {
            break;
        }
    }
    assert!(!writing.is_finished() && fixture.spool.first() == 0);
    drop(follower);
    writing.await.expect("no panic");
    assert_eq!(fixture.spool.end(), 1_000_000);
}

#[tokio::test]
async fn passed_through_output_is_never_written_to_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        dir: dir.path().join("missing"),
        max: 1 << 30,
        keep: Keep::Unread,
    };
    let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
    let mut follower = spool.follow(0);
    for round in 0..200_u64 {
        let bytes = pattern(round, 50_000);
        writer.write(Stream::Stdout, bytes.clone().into()).await;
        let read = follower.next(1 << 20).await.expect("readable");
        assert!(matches!(read, Batch::Chunks(chunks) if chunks[0].bytes == bytes));
        assert!(lock(&spool.shared.state).recent_cost < KEEP_BACK + 200_000);
    }
    assert!(!settings.dir.exists(), "it would have been created for a file");
    // A client that lost its connection reads the last part again.
    let first = spool.first();
    assert!(10_000_000 - first > KEEP_BACK - 10_000);
    let (out, _, gaps) = read_all_now(spool.reader(first), writer).await;
    assert_eq!((out.len() as u64, gaps.len()), (10_000_000 - first, 0));
}

#[tokio::test]
async fn single_bytes_pass_through_without_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        dir: dir.path().join("missing"),
        max: 1 << 30,
        keep: Keep::Unread,
    };
    let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
    let mut follower = spool.follow(0);
    for _ in 0..100_000 {
        let byte = Bytes::from_static(b"x");
        writer.write(Stream::Stdout, byte).await;
        follower.next(1).await.expect("readable");
    }
    assert!(lock(&spool.shared.state).recent_cost < 2 * KEEP_BACK);
    assert!(!settings.dir.exists(), "it would have been created for a file");
}

async fn read_all_now(reader: Reader, writer: Writer) -> (Vec<u8>, Vec<u8>, Vec<(u64, u64)>) {
    drop(writer);
    read_all(reader, 1 << 20).await
}

#[tokio::test]
async fn slow_pass_through_uses_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        dir: dir.path().into(),
        max: 1 << 30,
        keep: Keep::Unread,
    };
    let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
    let follower = spool.follow(0);
    let all = pattern(0, 5_000_000);
    for piece in all.chunks(40_000) {
        let bytes = Bytes::copy_from_slice(piece);
        writer.write(Stream::Stdout, bytes).await;
    }
    let (out, _, gaps) = read_all_now(follower, writer).await;
    assert!(out == all);
    assert_eq!(gaps, []);
}

#[tokio::test]
async fn job_without_output_leaves_an_empty_spool() {
    let mut fixture = fixture(1 << 30, 1 << 30);
    assert!(!fixture.spool.is_nothing(), "output may still arrive");
    fixture.end();
    let settings = Settings {
        dir: "missing".into(),
        max: 0,
        keep: Keep::All,
    };
    let shared = nothing(&settings, &Budget::new(0));
    for spool in [&fixture.spool, &shared] {
        assert!(spool.is_nothing());
        let inline = spool.inline(0).await.expect("readable").expect("whole");
        assert_eq!(inline, Inline::default());
        for mut reader in [spool.follow(0), spool.reader(0), spool.reader(9)] {
            assert_eq!(reader.next(1).await.expect("readable"), Batch::End);
        }
    }
    let wrote = self::fixture(1 << 30, 1 << 30);
    wrote.write(Stream::Stderr, Bytes::from_static(b"x")).await;
    let Fixture { spool, writer, .. } = wrote;
    drop(writer);
    assert!(spool.is_ended() && !spool.is_nothing());
}

#[tokio::test]
async fn budget_drops_files_of_the_oldest_ended_spool_first() {
    let mut old = fixture(1 << 30, 1_000_000);
    old.write(Stream::Stdout, vec![1; 600_000]).await;
    let (writer, newer) = add(&old.dir, 1 << 30, &old.budget);
    old.end();
    old.flushed().await;
    for _ in 0..60 {
        let bytes = vec![2; 10_000].into();
        writer.write(Stream::Stdout, bytes).await;
    }
    assert!(old.spool.first() > 0, "the old spool lost its beginning");
    assert_eq!(newer.first(), 0, "the new spool lost nothing");
    assert!(old.budget.used() <= 1_000_000);
}

#[tokio::test]
async fn job_without_followers_never_waits_for_the_budget() {
    let fixture = fixture(1 << 30, 0);
    let other = add(&fixture.dir, 1 << 30, &fixture.budget);
    fixture.write(Stream::Stdout, vec![1; 1_000_000]).await;
    let bytes = vec![1; 1_000_000].into();
    other.0.write(Stream::Stdout, bytes).await;
    for spool in [&fixture.spool, &other.1] {
        assert_eq!(spool.end(), 1_000_000);
        assert!(spool.end() - spool.first() <= MEMORY);
    }
    assert_eq!(fixture.budget.used(), 0);
}

#[tokio::test]
async fn output_in_single_bytes_is_limited_too() {
    let mut fixture = fixture(MAX_MIN, 1 << 30);
    for n in 0..300_000_u32 {
        let stream = if n % 3 == 0 {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        fixture.write(stream, Bytes::from_static(b"x")).await;
    }
    fixture.end();
    fixture.flushed().await;
    let first = fixture.spool.first();
    assert!(first > 0);
    let size: u64 = lock(&fixture.spool.shared.state)
        .segments
        .iter()
        .map(|segment| segment.file.metadata().expect("open").len())
        .sum();
    assert!(size <= MAX_MIN);
    let (out, err, _) = read_all(fixture.spool.reader(first), 50_000).await;
    assert_eq!((out.len() + err.len()) as u64, 300_000 - first);
}

/// Creates a spool whose folder cannot be created, because a file is in its place. Also returns the folder's path.
fn without_folder() -> (Fixture, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("spool");
    std::fs::write(&path, "").expect("written");
    let settings = Settings {
        dir: path.clone(),
        max: 1 << 30,
        keep: Keep::All,
    };
    let budget = Budget::new(1 << 30);
    let (writer, spool) = spool(&settings, &budget);
    let fixture = Fixture {
        dir,
        writer: Some(writer),
        spool,
        budget,
    };
    (fixture, path)
}

#[tokio::test]
async fn failed_writes_keep_the_newest_output_and_report_the_gap() {
    let (mut fixture, _) = without_folder();
    let all = pattern(0, 4 << 20);
    for piece in all.chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.flushed().await;
    let kept = lock(&fixture.spool.shared.state).unflushed_cost;
    assert!((MEMORY..=UNWRITTEN_MAX).contains(&kept), "{kept} bytes in memory");
    for (is_ended, max) in [(false, UNWRITTEN_MAX), (true, MEMORY)] {
        if is_ended {
            fixture.end();
            fixture.flushed().await;
        }
        let first = fixture.spool.first();
        let missing = all.len() as u64 - first;
        assert!((max / 2..=max).contains(&missing), "{missing} bytes are kept");
        let mut reader = fixture.spool.reader(100);
        let gap = reader.next(usize::MAX).await.expect("readable");
        assert_eq!(gap, Batch::Gap { from: 100, to: first });
        let mut rest = Vec::new();
        while reader.position() < all.len() as u64 {
            let Batch::Chunks(chunks) = reader.next(usize::MAX).await.expect("readable") else {
                panic!("a second gap");
            };
            for chunk in chunks {
                rest.extend_from_slice(&chunk.bytes);
            }
        }
        assert!(rest == all[usize::try_from(first).expect("small")..]);
    }
    assert!(
        fixture.budget.used() < MEMORY,
        "the budget beyond the free part was returned"
    );
}

#[tokio::test]
async fn writes_go_to_disk_again_when_the_folder_is_back() {
    let (mut fixture, path) = without_folder();
    let all = pattern(0, 4 << 20);
    for piece in all[..2 << 20].chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.flushed().await;
    let lost = fixture.spool.first();
    assert!(lost > 0);
    std::fs::remove_file(&path).expect("there");
    std::fs::create_dir(&path).expect("made");
    // Ends the pause.
    lock(&fixture.spool.shared.state).retry_at = Some(Moment::now().instant);
    for piece in all[2 << 20..].chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.end();
    fixture.flushed().await;
    assert_eq!(fixture.spool.first(), lost, "nothing more was lost");
    let (out, _, gaps) = read_all(fixture.spool.reader(0), 100_000).await;
    assert_eq!(gaps, [(0, lost)]);
    assert!(out == all[usize::try_from(lost).expect("small")..]);
}

#[tokio::test]
async fn output_written_before_a_failure_stays_readable_around_the_gap() {
    let mut fixture = fixture(1 << 20, 1 << 30);
    let path = fixture.dir.path().to_owned();
    let all = pattern(0, 3 << 20);
    let (before, after) = all.split_at(200_000);
    for piece in before.chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.flushed().await;
    // Segments are small here, so the next one is needed soon and cannot be created.
    std::fs::remove_dir(&path).expect("empty");
    std::fs::write(&path, "").expect("written");
    for piece in after[..150_000].chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.flushed().await;
    assert!(lock(&fixture.spool.shared.state).retry_at.is_some());
    fixture.end();
    fixture.flushed().await;
    let mut reader = fixture.spool.reader(0);
    let (mut gaps, mut bytes) = (Vec::new(), 0);
    loop {
        match reader.next(100_000).await.expect("readable") {
            Batch::Chunks(chunks) => {
                for chunk in chunks {
                    let from = usize::try_from(chunk.offset).expect("small");
                    assert!(chunk.bytes == all[from..][..chunk.bytes.len()]);
                    bytes += chunk.bytes.len() as u64;
                }
            }
            Batch::Gap { from, to } => gaps.push((from, to)),
            Batch::End => break,
        }
    }
    let [(from, to)] = gaps[..] else {
        panic!("{gaps:?}");
    };
    assert!(from >= SEGMENT_MIN && to >= 350_000 - MEMORY, "{from}..{to}");
    assert_eq!(bytes, 350_000 - (to - from));
    std::fs::remove_file(&path).expect("there");
    std::fs::create_dir(&path).expect("made");
}

#[tokio::test]
async fn deleted_folder_is_created_again() {
    let mut fixture = fixture(1 << 30, 1 << 30);
    std::fs::remove_dir(fixture.dir.path()).expect("empty");
    let all = pattern(0, 2 << 20);
    for piece in all.chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.end();
    fixture.flushed().await;
    assert_eq!(
        read_all(fixture.spool.reader(0), 100_000).await,
        (all, vec![], vec![])
    );
    let mode = std::fs::metadata(fixture.dir.path()).expect("made").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
}

#[tokio::test]
async fn follower_gets_every_byte_although_writes_fail() {
    let (mut fixture, _) = without_folder();
    let follower = tokio::spawn(read_all(fixture.spool.follow(0), 30_000));
    let all = pattern(0, 4 << 20);
    for piece in all.chunks(10_000) {
        fixture.write(Stream::Stdout, piece.to_vec()).await;
    }
    fixture.end();
    let (out, _, gaps) = follower.await.expect("no panic");
    assert_eq!(gaps, []);
    assert!(out == all);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// For any interleaving of writes and reads, the output equals the input.
    #[test]
    fn output_equals_input_for_any_writes_and_reads(
        pieces in proptest::collection::vec((any::<bool>(), 1_usize..40_000, any::<u8>()), 1..60),
        reads in proptest::collection::vec((0_u64..1_500_000, 1_usize..200_000), 1..4),
        follows in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut fixture = fixture(1 << 30, 1 << 30);
            let mut all = Vec::new();
            let follower = follows.then(|| tokio::spawn(read_all(fixture.spool.follow(0), 30_000)));
            for (is_err, length, seed) in pieces {
                let stream = if is_err { Stream::Stderr } else { Stream::Stdout };
                let bytes = pattern(u64::from(seed), length);
                all.extend(bytes.iter().map(|byte| (stream, *byte)));
                fixture.write(stream, bytes).await;
                if length % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            fixture.end();
            let expected = |from: u64, wanted: Stream| -> Vec<u8> {
                let from = usize::try_from(from).expect("small").min(all.len());
                all[from..].iter().filter(|(stream, _)| *stream == wanted).map(|(_, byte)| *byte).collect()
            };
            let check = |from: u64, found: (Vec<u8>, Vec<u8>, Vec<(u64, u64)>)| {
                assert!(found.0 == expected(from, Stream::Stdout) && found.1 == expected(from, Stream::Stderr));
                assert_eq!(found.2, []);
            };
            for (from, max) in reads {
                let from = from.min(all.len() as u64);
                check(from, read_all(fixture.spool.reader(from), max).await);
            }
            if let Some(follower) = follower {
                check(0, follower.await.expect("no panic"));
            }
            let inline = fixture.spool.inline(usize::MAX).await.expect("readable").expect("whole");
            assert!(inline.stdout == expected(0, Stream::Stdout) && inline.stderr == expected(0, Stream::Stderr));
        });
    }
}
