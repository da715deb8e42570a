//! Output files for a child that must outlive orbd: two unlinked files instead of two pipes.
//!
//! When the reader of a pipe exits, the next write raises SIGPIPE, and a Go program such as `orbctl` dies at its next line of
//! progress. A file stays until the last process closes it, in whatever order the processes end, and then its space is freed.
//!
//! **No size limit.** Nothing slows a writer down, and a limit could only be set by code that runs between fork and exec. Changes
//! only print progress lines. One that wrote without end would fill the disk until its time limit; the space is freed when it
//! ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{Captured, OPENING_MAX, TAIL_MAX};
use crate::spool;

/// The output files of one child.
#[derive(Debug)]
pub(super) struct Files {
    out: File,
    err: File,
}

impl Files {
    /// Creates both files in `dir`. Runs on a blocking thread, like all disk access here: a disk that does not respond must not
    /// block the few threads of the runtime.
    pub(super) async fn make(dir: PathBuf) -> io::Result<Self> {
        blocking(move || {
            let make = || spool::nameless_file(&dir).and_then(ready);
            Ok(Self {
                out: make()?,
                err: make()?,
            })
        })
        .await
    }

    /// Returns the descriptors for the child's stdout and stderr.
    pub(super) fn for_child(&self) -> io::Result<(Stdio, Stdio)> {
        Ok((self.out.try_clone()?.into(), self.err.try_clone()?.into()))
    }

    /// Reads the beginning of stdout and the end of stderr, at most `max` bytes each, and closes both files, also on a blocking
    /// thread, because freeing a large file blocks. Other processes that have them open can keep writing.
    pub(super) async fn read(self, max: usize) -> io::Result<(Captured, Captured)> {
        blocking(move || {
            let out = captured(&self.out, |_| 0, max)?;
            let err = captured(&self.err, |total| total.saturating_sub(max as u64), max)?;
            Ok((out, err))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Prepares a new file for a child. Fails if it cannot be written.
fn ready(file: File) -> io::Result<File> {
    // On a full disk a file can still be created, but the child's error message could not be written to it. Detect this now, so
    // that pipes are used instead.
    file.write_all_at(&[0; TAIL_MAX], 0)?;
    file.set_len(0)?;
    // A script in place of `orbctl` may reopen `/dev/stderr`, which would otherwise write from the beginning of the file.
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
    Ok(file)
}

/// Reads the retained part of a stream. `start` returns its first offset for a given total length.
fn captured(file: &File, start: impl Fn(u64) -> u64, max: usize) -> io::Result<Captured> {
    let total = file.metadata()?.len();
    let part = |start: u64, max: usize| {
        let length = usize::try_from(total - start).unwrap_or(max).min(max);
        read_at(file, start, length)
    };
    Ok(Captured {
        bytes: part(start(total), max)?.into(),
        opening: part(0, OPENING_MAX)?.into(),
        total,
    })
}

/// Reads `length` bytes, or fewer if another process has truncated the file meanwhile.
fn read_at(file: &File, start: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn files_are_unlinked_private_and_close_on_exec() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = Files::make(dir.path().into()).await.expect("made");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
        for file in [&files.out, &files.err] {
            let metadata = file.metadata().expect("open");
            assert_eq!(
                (metadata.nlink(), metadata.mode() & 0o777, metadata.len()),
                (0, 0o600, 0)
            );
            let flags = rustix::io::fcntl_getfd(file).expect("open");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[tokio::test]
    async fn reading_returns_the_beginning_of_stdout_and_the_end_of_stderr() {
        let dir = tempfile::tempdir().expect("a folder");
        for length in [0, 1, 9, 10, 11, 600, 5000] {
            let all: Vec<u8> = (0..=250).cycle().take(length).collect();
            let files = Files::make(dir.path().into()).await.expect("made");
            (&files.out).write_all(&all).expect("written");
            (&files.err).write_all(&all).expect("written");
            let (out, err) = files.read(10).await.expect("read");
            let kept = length.min(10);
            assert_eq!(
                (&out.bytes[..], &err.bytes[..]),
                (&all[..kept], &all[length - kept..])
            );
            for one in [out, err] {
                assert_eq!(one.total, length as u64);
                assert_eq!(&one.opening[..], &all[..length.min(OPENING_MAX)]);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn file_on_a_full_disk_is_rejected() {
        let full = File::options().write(true).open("/dev/full").expect("a device");
        assert_eq!(ready(full).expect_err("full").kind(), io::ErrorKind::StorageFull);
    }
}
