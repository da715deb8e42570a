//! `daemon logs` and `service logs`: the daemon's own log, read from its file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::LogArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::launch;

/// Most of a log that is read for its last lines.
const TAIL_MAX: u64 = 1 << 20;

/// How often a followed log is looked at.
const FOLLOW_TICK: Duration = Duration::from_millis(250);

/// Shows the end of the daemon's log, and what is added to it.
pub(super) fn logs(context: &mut Context, args: LogArgs) -> Result<(), CliError> {
    let path = log_file()?;
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CliError::Absent {
            message: format!("orbd has no log yet: there is no {}", path.display()),
            hint:
                "it begins when orbd first runs in the background; `orbd --foreground` logs to its terminal"
                    .into(),
        },
        _ => CliError::Local {
            what: format!("cannot read {}", path.display()),
            source,
        },
    };
    let mut log = Log::open(&path).map_err(unreadable)?;
    let tail = log.tail(args.lines).map_err(unreadable)?;
    context.console.print(&tail)?;
    if !args.follow {
        return Ok(());
    }
    let interrupt = Interrupt::watch()?;
    while !interrupt.came() {
        let more = log.more().map_err(unreadable)?;
        if more.is_empty() {
            std::thread::sleep(FOLLOW_TICK);
        } else {
            context.console.print(&more)?;
        }
    }
    Err(CliError::Interrupted)
}

/// Finds the log where the configuration puts it: ours is the daemon's, unless it was started with another environment.
fn log_file() -> Result<PathBuf, CliError> {
    launch::daemon_log().ok_or_else(|| CliError::Absent {
        message: "orbd's log cannot be found: its configuration is not in order".into(),
        hint: "`orbd --check-config` says what is wrong".into(),
    })
}

/// A log file that may be rotated while it is read.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path)?,
        })
    }

    /// Returns the last lines, and stands at the end afterwards.
    fn tail(&mut self, lines: usize) -> io::Result<Vec<u8>> {
        let end = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(end.saturating_sub(TAIL_MAX)))?;
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        let from = memchr::memrchr_iter(b'\n', bytes.strip_suffix(b"\n").unwrap_or(&bytes))
            .nth(lines.saturating_sub(1))
            .map_or(0, |at| at + 1);
        Ok(if lines == 0 {
            Vec::new()
        } else {
            bytes.split_off(from)
        })
    }

    /// Returns what was added; after a rotation the rest of the old file, then the new one.
    fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.by_ref().take(TAIL_MAX).read_to_end(&mut bytes)?;
        if bytes.is_empty()
            && let Ok(named) = fs::metadata(&self.path)
            && named.ino() != self.file.metadata()?.ino()
        {
            self.file = File::open(&self.path)?;
            self.file.by_ref().take(TAIL_MAX).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_of_a_log_are_shown_and_what_follows_also_over_a_rotation() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd.log");
        fs::write(&path, "one\ntwo\nthree\n").expect("written");
        let mut log = Log::open(&path).expect("there");
        assert_eq!(log.tail(2).expect("read"), b"two\nthree\n");
        assert_eq!(log.more().expect("read"), b"");
        let mut writer = fs::OpenOptions::new().append(true).open(&path).expect("there");
        writer.write_all(b"four\n").expect("written");
        fs::rename(&path, folder.path().join("orbd.log.1")).expect("renamed");
        fs::write(&path, "five\n").expect("written");
        assert_eq!(log.more().expect("read"), b"four\n");
        assert_eq!(log.more().expect("read"), b"five\n");
    }

    #[test]
    fn a_short_log_is_shown_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd.log");
        fs::write(&path, "one\n").expect("written");
        assert_eq!(Log::open(&path).expect("there").tail(50).expect("read"), b"one\n");
        assert_eq!(Log::open(&path).expect("there").tail(0).expect("read"), b"");
    }
}
