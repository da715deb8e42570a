//! Segments: unlinked files that hold the older part of the output.

use std::fs::{DirBuilder, File};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::chunk::{Chunk, FRAME, Stream};

/// Maximum number of chunks in one batch for a reader.
pub(super) const BATCH_CHUNKS_MAX: usize = 1024;

/// Distance in bytes between the marked frame positions of a segment.
pub(super) const MARK_EVERY: u64 = 256 * 1024;

/// An unlinked file that holds frames: length, stream, time, bytes.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    /// Offset of its first byte.
    pub(super) start: u64,
    /// Offset after its last byte.
    pub(super) end: u64,
    /// Size of the file, including frame headers.
    pub(super) size: u64,
    /// Positions of some frames, in order, to start a search from. A segment with a frame has at least one.
    pub(super) marks: Vec<Mark>,
}

/// The start of a frame: offset in the output and position in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) offset: u64,
    pub(super) position: u64,
}

/// Closes files on a blocking thread, if there is a runtime. Closing the last descriptor of an unlinked file frees its pages and
/// blocks, which takes milliseconds for a large file.
pub(super) fn discard(segments: impl IntoIterator<Item = Segment>) {
    let files: Vec<Arc<File>> = segments.into_iter().map(|segment| segment.file).collect();
    if files.is_empty() {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(files));
    }
}

/// Creates a file and unlinks it, so that it is freed with its last descriptor even if orbd is killed.
pub(crate) fn nameless_file(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("spool-{}-{number}", std::process::id()));
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            // Left by an instance that was killed between the two calls above.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // The folder was deleted while orbd was running.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Writes chunks at `position`, the end of a segment. On an error the file is truncated to that position.
pub(super) fn write_frames(mut file: &File, position: u64, chunks: &[Chunk]) -> io::Result<()> {
    file.seek(SeekFrom::Start(position))?;
    append_frames(file, chunks).inspect_err(|_| {
        // Only frees the blocks: data beyond the segment's recorded size is never read.
        let _ = file.set_len(position);
    })
}

pub(super) fn append_frames(mut file: &File, chunks: &[Chunk]) -> io::Result<()> {
    let heads: Vec<[u8; 16]> = chunks.iter().map(head).collect();
    let mut slices: Vec<IoSlice<'_>> = chunks
        .iter()
        .zip(&heads)
        .flat_map(|(chunk, head)| [IoSlice::new(head), IoSlice::new(&chunk.bytes)])
        .collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn head(chunk: &Chunk) -> [u8; 16] {
    let length = u32::try_from(chunk.bytes.len()).expect("at most CHUNK_MAX");
    let micros = u64::try_from(chunk.at.as_micros()).unwrap_or(u64::MAX);
    let mut head = [0; 16];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = u8::from(chunk.stream == Stream::Stderr);
    head[8..].copy_from_slice(&micros.to_le_bytes());
    head
}

/// Reads frames starting at `mark`. Returns at most `max` bytes starting at offset `from`, and the frame in which the next read
/// begins.
pub(super) fn read_frames(
    file: &File,
    mut mark: Mark,
    size: u64,
    from: u64,
    max: usize,
) -> io::Result<(Vec<Chunk>, Mark)> {
    let mut chunks = Vec::new();
    let mut left = max;
    // The part of the file that was read, starting at position `begin`.
    let mut block = Bytes::new();
    let mut begin = 0;
    let usual = max.clamp(64 * 1024, 1024 * 1024) as u64;
    while left > 0 && mark.position < size && chunks.len() < BATCH_CHUNKS_MAX {
        let wants = |length: u64| -> Option<std::ops::Range<usize>> {
            let start = usize::try_from(mark.position.checked_sub(begin)?).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            (end <= block.len()).then_some(start..end)
        };
        let head = wants(FRAME).map(|range| parse_head(&block[range]));
        let whole = head.and_then(|(_, _, length)| wants(FRAME + length));
        let (Some((stream, at, length)), Some(range)) = (head, whole) else {
            let need = head.map_or(FRAME, |(_, _, length)| FRAME + length);
            let want = usual.max(need).min(size - mark.position);
            if want < need {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut buffer = BytesMut::zeroed(usize::try_from(want).expect("at most a chunk or a megabyte"));
            file.read_exact_at(&mut buffer, mark.position)?;
            block = buffer.freeze();
            begin = mark.position;
            continue;
        };
        let frame = Chunk {
            stream,
            at,
            offset: mark.offset,
            bytes: block.slice(range).slice(usize::try_from(FRAME).expect("small")..),
        };
        if frame.end() > from {
            let part = frame.part(from.max(frame.offset), left);
            left -= part.bytes.len();
            let is_whole = part.end() == frame.end();
            chunks.push(part);
            if !is_whole {
                break;
            }
        }
        mark = Mark {
            offset: mark.offset + length,
            position: mark.position + FRAME + length,
        };
    }
    Ok((chunks, mark))
}

fn parse_head(head: &[u8]) -> (Stream, Duration, u64) {
    let number = |range: std::ops::Range<usize>| {
        head[range]
            .iter()
            .rev()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let stream = if head[4] == 0 {
        Stream::Stdout
    } else {
        Stream::Stderr
    };
    (stream, Duration::from_micros(number(8..16)), number(0..4))
}
