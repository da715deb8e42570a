//! Where log lines go: files that rotate by size and age, or stderr; text or JSON.
//!
//! Lines pass through a bounded buffer to a thread of their own, so a slow disk delays nobody; what does not fit is
//! dropped. The [`Guard`] writes what is left when it is dropped: keep it to the end of `main`, and end by returning.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::Metadata;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::clock::Moment;

/// At most so many lines wait to be written. The appender's own default costs 4 MB.
const BUFFERED_LINES_MAX: usize = 4_096;

/// The file that is written to.
const FILE_NAME: &str = "orbd.log";

/// How logs are written.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is logged, as `tracing` filters it.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
    /// Where they go.
    pub to: Destination,
    /// The folder of log files.
    pub folder: PathBuf,
    /// At most so many files, with the one that is written to.
    pub files_max: usize,
    /// At most so many bytes in one file; a line that is longer has a file to itself.
    pub file_size_max: u64,
    /// At most so old a file is written to.
    pub file_age_max: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To stderr: in the foreground.
    Stderr,
    /// To files: in the background.
    Files,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("the log level {0}")]
    Level(String),
    /// The files cannot be written.
    #[error("cannot write logs to {path}")]
    Files {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process logs already.
    #[error("logging was set up before")]
    Twice,
}

/// Writes what is left when dropped.
#[must_use = "dropping it ends logging"]
#[derive(Debug)]
pub struct Guard {
    _worker: WorkerGuard,
    errors: ErrorCounter,
    level: Level,
}

/// Changes what is logged while the process runs.
#[derive(Clone)]
pub struct Level(Arc<SetFilter>);

type SetFilter = dyn Fn(EnvFilter) -> bool + Send + Sync;

impl Level {
    /// Logs at this level from now on. Returns false when it is not one, and goes on as before.
    pub fn set(&self, level: &str) -> bool {
        filter(level).is_ok_and(|filter| (self.0)(filter))
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Level")
    }
}

impl Guard {
    /// Returns what changes the level.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Returns how many lines did not fit into the buffer.
    pub fn dropped_lines(&self) -> usize {
        self.errors.dropped_lines()
    }
}

/// Sets up logging for the whole process.
pub fn init(settings: &Settings) -> Result<Guard, LoggingError> {
    let filter = filter(&settings.level).map_err(LoggingError::Level)?;
    let (writer, worker) = match settings.to {
        Destination::Stderr => non_blocking(io::stderr()),
        Destination::Files => {
            let rotating = Rotating::open(settings).map_err(|source| LoggingError::Files {
                path: settings.folder.clone(),
                source,
            })?;
            non_blocking(rotating)
        }
    };
    let errors = writer.error_counter();
    let lines = tracing_subscriber::fmt::layer()
        .with_span_events(FmtSpan::NONE)
        .with_ansi(settings.to == Destination::Stderr && io::stderr().is_terminal())
        .with_writer(writer);
    // The filter decides once for each place in the code, also when it can be exchanged: nothing is looked up per line.
    let (filter, handle) = reload::Layer::new(filter);
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_filter(filter_fn(is_ours)))
        .try_init()
        .map_err(|_| LoggingError::Twice)?;
    let level: Arc<SetFilter> = Arc::new(move |filter| handle.reload(filter).is_ok());
    Ok(Guard {
        level: Level(level),
        _worker: worker,
        errors,
    })
}

/// Says whether a line is of our own making. Others are never written, whatever the level says: what the libraries tell of their
/// work may be whole requests, and with them what nobody is to read.
fn is_ours(about: &Metadata<'_>) -> bool {
    let target = about.target();
    target == "orbd" || target.starts_with("orbd::")
}

/// Writes one line once the [`Guard`] is gone, by itself and at once: for a process whose program could not be replaced.
pub fn last_words(settings: &Settings, text: &str) {
    let writer: Box<dyn Write + Send> = match settings.to {
        Destination::Stderr => Box::new(io::stderr()),
        Destination::Files => match Rotating::open(settings) {
            Ok(rotating) => Box::new(rotating),
            // Whoever reads stderr is told as well.
            Err(_) => return,
        },
    };
    let builder = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(writer));
    let say = || tracing::error!("{text}");
    match settings.format {
        LogFormat::Text => tracing::subscriber::with_default(builder.finish(), say),
        LogFormat::Json => {
            tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), say);
        }
    }
}

fn non_blocking(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(BUFFERED_LINES_MAX)
        .thread_name("log")
        .finish(writer)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|_| format!("must be error, warn, info, debug or trace, also per module, not {level:?}"))
}

/// Says what is wrong with a level.
pub(crate) fn check_level(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

/// A log file that is closed and renamed when it is too long or too old, the last few of which are kept.
///
/// `orbd.log` is written to; closed ones are `orbd.log.1`, the newest, and up.
struct Rotating {
    folder: PathBuf,
    files_max: usize,
    size_max: u64,
    age_max: Duration,
    file: File,
    size: u64,
    begun: SystemTime,
}

impl Rotating {
    fn open(settings: &Settings) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&settings.folder)?;
        let path = settings.folder.join(FILE_NAME);
        let file = open_file(&path)?;
        let metadata = file.metadata()?;
        let now = Moment::now().wall;
        Ok(Self {
            folder: settings.folder.clone(),
            files_max: settings.files_max.max(1),
            size_max: settings.file_size_max,
            age_max: settings.file_age_max,
            file,
            size: metadata.len(),
            // Where the file system does not tell, its age counts from now.
            begun: if metadata.len() > 0 {
                metadata.created().unwrap_or(now)
            } else {
                now
            },
        })
    }

    fn numbered(&self, number: usize) -> PathBuf {
        match number {
            0 => self.folder.join(FILE_NAME),
            number => self.folder.join(format!("{FILE_NAME}.{number}")),
        }
    }

    fn write_at(&mut self, line: &[u8], now: SystemTime) -> io::Result<usize> {
        let too_long = self.size > 0 && self.size + line.len() as u64 > self.size_max;
        let too_old = self.size > 0
            && now
                .duration_since(self.begun)
                .is_ok_and(|age| age >= self.age_max);
        if too_long || too_old {
            // A disk that takes no new name still takes the line.
            let _ = self.rotate(now);
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        // The bound may have been lowered: everything from the last allowed number on goes.
        let mut number = self.files_max.saturating_sub(1).max(1);
        while fs::remove_file(self.numbered(number)).is_ok() {
            number += 1;
        }
        if self.files_max == 1 {
            fs::remove_file(self.numbered(0))?;
        }
        for number in (0..self.files_max - 1).rev() {
            match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open_file(&self.numbered(0))?;
        self.size = 0;
        self.begun = now;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_at(line, Moment::now().wall)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotating(folder: &Path, files_max: usize, file_size_max: u64) -> Rotating {
        Rotating::open(&Settings {
            level: "info".into(),
            format: LogFormat::Text,
            to: Destination::Files,
            folder: folder.to_owned(),
            files_max,
            file_size_max,
            file_age_max: Duration::from_secs(3600),
        })
        .expect("opened")
    }

    /// Lists the files with their contents, the newest first.
    fn files(folder: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(folder)
            .expect("readable")
            .map(|entry| {
                let entry = entry.expect("readable");
                let text = fs::read_to_string(entry.path()).expect("readable");
                (entry.file_name().into_string().expect("unicode"), text)
            })
            .collect();
        all.sort();
        all
    }

    fn check(folder: &Path, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, text)| ((*name).into(), (*text).into()))
            .collect();
        assert_eq!(files(folder), expected);
    }

    #[test]
    fn a_file_that_would_get_too_long_is_closed_and_only_the_last_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = rotating(folder.path(), 3, 8);
        for line in [
            "one\n",
            "two\n",
            "three\n",
            "four\n",
            "a very long line\n",
            "six\n",
        ] {
            log.write_all(line.as_bytes()).expect("written");
        }
        check(
            folder.path(),
            &[
                ("orbd.log", "six\n"),
                ("orbd.log.1", "a very long line\n"),
                ("orbd.log.2", "four\n"),
            ],
        );
    }

    #[test]
    fn one_file_is_a_bound_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = rotating(folder.path(), 1, 8);
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).expect("written");
        }
        check(folder.path(), &[("orbd.log", "three\n")]);
    }

    #[test]
    fn a_file_that_is_too_old_is_closed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = rotating(folder.path(), 3, 1000);
        let now = Moment::now().wall;
        log.write_at(b"one\n", now).expect("written");
        log.write_at(b"two\n", now + Duration::from_secs(3500))
            .expect("written");
        log.write_at(b"three\n", now + Duration::from_secs(3700))
            .expect("written");
        check(
            folder.path(),
            &[("orbd.log", "three\n"), ("orbd.log.1", "one\ntwo\n")],
        );
    }

    #[test]
    fn a_restart_goes_on_with_the_same_file_and_a_lower_bound_removes_more() {
        let folder = tempfile::tempdir().expect("a folder");
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            rotating(folder.path(), 10, 4)
                .write_all(line.as_bytes())
                .expect("written");
        }
        assert_eq!(files(folder.path()).len(), 4);
        rotating(folder.path(), 2, 4)
            .write_all(b"five\n")
            .expect("written");
        check(folder.path(), &[("orbd.log", "five\n"), ("orbd.log.1", "four\n")]);
    }

    #[test]
    fn a_level_is_checked_with_a_reason() {
        assert_eq!(check_level("info,orbd::rpc=debug"), Ok(()));
        assert!(check_level("orbd=loud").is_err_and(|problem| problem.contains("\"orbd=loud\"")));
    }
}
