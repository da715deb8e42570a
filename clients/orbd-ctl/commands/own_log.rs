//! `daemon logs` and `service logs`: the daemon's own log, read from its file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::args::LogArgs;
use crate::context::Context;
use crate::interrupt::Interrupt;
use crate::launch;
use crate::trouble::Trouble;

/// Most of a log that is read for its last lines.
const TAIL_MAX: u64 = 1 << 20;

/// How often a followed log is looked at.
const FOLLOW_TICK: Duration = Duration::from_millis(250);

/// Shows the end of the daemon's log, and what is added to it.
pub(super) fn logs(context: &mut Context, args: LogArgs) -> Result<(), Trouble> {
    let path = log_file()?;
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Trouble::Absent {
            message: format!("orbd has no log yet: there is no {}", path.display()),
            hint:
                "it begins when orbd first runs in the background; `orbd --foreground` logs to its terminal"
                    .into(),
        },
        _ => Trouble::Local {
            what: format!("cannot read {}", path.display()),
            source,
        },
    };
    let mut log = Log::open(&path).map_err(unreadable)?;
    let mut shown = Shown::new(context.console.json);
    let tail = log.tail(args.lines).map_err(unreadable)?;
    context.console.print(&shown.of(tail))?;
    if !args.follow {
        return Ok(());
    }
    let interrupt = Interrupt::watch()?;
    while !interrupt.came() {
        let more = log.more().map_err(unreadable)?;
        if more.is_empty() {
            std::thread::sleep(FOLLOW_TICK);
        } else {
            context.console.print(&shown.of(more))?;
        }
    }
    Err(Trouble::Interrupted)
}

/// How a log is shown: as it is; or one object a line, whether it was written as JSON (`log_format`) or as text.
enum Shown {
    AsItIs,
    /// With a line whose end has not been written yet.
    Objects(Vec<u8>),
}

/// A line that was written as text.
#[derive(Serialize)]
struct Text<'a> {
    text: &'a str,
}

impl Shown {
    fn new(as_json: bool) -> Self {
        if as_json {
            Self::Objects(Vec::new())
        } else {
            Self::AsItIs
        }
    }

    /// Returns what to show of what was read. A line without an end is shown with its end.
    fn of(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Self::Objects(begun) = self else { return bytes };
        begun.extend(bytes);
        let whole = memchr::memrchr(b'\n', begun).map_or(0, |at| at + 1);
        let rest = begun.split_off(whole);
        let lines = std::mem::replace(begun, rest);
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .flat_map(|line| object(&String::from_utf8_lossy(line)))
            .collect()
    }
}

/// Writes a line of a log as an object, which it may be already.
fn object(line: &str) -> Vec<u8> {
    let is_object = serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok() && line.starts_with('{');
    let mut object = if is_object {
        line.into()
    } else {
        // A text can always be written.
        serde_json::to_vec(&Text { text: line }).unwrap_or_default()
    };
    object.push(b'\n');
    object
}

/// Finds the log where the configuration puts it: ours is the daemon's, unless it was started with another environment.
fn log_file() -> Result<PathBuf, Trouble> {
    launch::own_log().ok_or_else(|| Trouble::Absent {
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
    fn as_json_a_log_is_one_object_a_line_however_it_was_written() {
        let mut shown = Shown::new(true);
        let mut of = |bytes: &[u8]| String::from_utf8(shown.of(bytes.to_vec())).expect("text");
        assert_eq!(
            of(b"a \"word\"\n{\"level\":\"INFO\"}\n{begun"),
            "{\"text\":\"a \\\"word\\\"\"}\n{\"level\":\"INFO\"}\n"
        );
        assert_eq!(of(b""), "");
        assert_eq!(of(b" and\n1\n"), "{\"text\":\"{begun and\"}\n{\"text\":\"1\"}\n");
        assert_eq!(Shown::new(false).of(b"as it".to_vec()), b"as it");
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
