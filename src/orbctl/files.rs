//! Output of a child that is to outlive us: two files without names in place of two pipes.
//!
//! A pipe breaks when its reader dies, and a program that is written in Go, as `orbctl` is, dies with it at its next line of progress.
//! A file stays for as long as the child holds it, and is gone with the last descriptor, whoever ends first and however.
//!
//! **Unbounded.** Nothing holds a writer back, and the system offers a limit only through code that would run between fork and exec.
//! Changes write lines of progress; one that wrote without end would fill the disk until its time limit, and what it filled is free
//! again when it is gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{Captured, OPENING_MAX, TAIL_MAX};
use crate::spool;

/// Where the streams of one child go.
#[derive(Debug)]
pub(super) struct Files {
    out: File,
    err: File,
}

impl Files {
    /// Makes them in a folder. On a blocking thread, like all that touches a disk here: one that stands still must not hold the
    /// few threads that answer everybody else.
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

    /// Returns descriptors for the child: its stdout and its stderr.
    pub(super) fn for_child(&self) -> io::Result<(Stdio, Stdio)> {
        Ok((self.out.try_clone()?.into(), self.err.try_clone()?.into()))
    }

    /// Reads the beginning of stdout and the end of stderr, at most `max` bytes each, and lets go of both; freeing a large file
    /// blocks, too. Whoever still holds them may go on writing.
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

/// Makes a new file ready for a child, or says that it is of no use.
fn ready(file: File) -> io::Result<File> {
    // On a full disk a file can still be made, and then why a change failed would be lost: better learn it now.
    file.write_all_at(&[0; TAIL_MAX], 0)?;
    file.set_len(0)?;
    // A script in `orbctl`'s place may open `/dev/stderr` anew, which starts at the beginning.
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
    Ok(file)
}

/// Reads what is kept of a stream, from where `start` says for its length.
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

/// Reads so many bytes, or fewer: whoever holds the file may have cut it meanwhile.
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
    async fn they_have_no_names_and_are_nobody_elses() {
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
    async fn the_beginning_of_one_and_the_end_of_the_other_are_read() {
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
    fn one_that_takes_nothing_is_of_no_use() {
        let full = File::options().write(true).open("/dev/full").expect("a device");
        assert_eq!(ready(full).expect_err("full").kind(), io::ErrorKind::StorageFull);
    }
}
