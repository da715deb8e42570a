//! `daemon logs` and `service logs`: print and follow the daemon's log file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::args::whole;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::launch;

/// `daemon logs` and `service logs`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LogArgs {
    /// Follow the log until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 50,
        value_parser = whole::<usize>,
        allow_hyphen_values = true
    )]
    pub(crate) lines: usize,
}

/// Maximum number of bytes that are read at a time, and searched for the last lines.
const TAIL_MAX: u64 = 1 << 20;

/// Interval at which a followed log is polled.
const FOLLOW_TICK: Duration = Duration::from_millis(250);

/// Prints the last lines of the daemon's log, and with `--follow` new lines until Ctrl-C.
pub(super) fn logs(context: &mut Context, args: LogArgs) -> Result<(), CliError> {
    let path = log_file()?;
    let unreadable = |source: io::Error| {
        match source.kind() {
        io::ErrorKind::NotFound => CliError::Absent {
            message: format!("orbd has no log yet: {} does not exist", path.display()),
            hint: "orbd creates it when it first runs in the background; `orbd --foreground` logs to its terminal".into(),
        },
        _ => CliError::Local {
            what: format!("cannot read {}", path.display()),
            source,
        },
    }
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

/// Returns the path of the log. Correct if the daemon was started with the same environment as this client.
fn log_file() -> Result<PathBuf, CliError> {
    launch::daemon_log().ok_or_else(|| CliError::Absent {
        message: "cannot determine the path of orbd's log: its configuration is invalid".into(),
        hint: "`orbd --check-config` shows the error".into(),
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

    /// Returns the last lines. Afterwards the file position is at the end.
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

    /// Returns the bytes that were added. After a rotation, first returns the rest of the old file, then reads the new one.
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
    fn last_lines_and_new_lines_are_read_across_a_rotation() {
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
    fn a_short_log_is_read_completely() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd.log");
        fs::write(&path, "one\n").expect("written");
        assert_eq!(Log::open(&path).expect("there").tail(50).expect("read"), b"one\n");
        assert_eq!(Log::open(&path).expect("there").tail(0).expect("read"), b"");
    }
}
