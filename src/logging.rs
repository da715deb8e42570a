//! Log output: to files that rotate by size and age, or to stderr; as text or JSON.
//!
//! A bounded buffer passes lines to a writer thread, so a slow disk does not block other threads. Lines are dropped while the buffer is
//! full. Dropping the [`Guard`] writes the buffered lines: keep it until the end of `main`, and end the process by returning from `main`.

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

use orbd_host::config::{LogFormat, log_filter};

use crate::clock::Moment;

/// Maximum number of buffered lines. The appender's default would cost 4 MB.
const BUFFERED_LINES_MAX: usize = 4_096;

/// Name of the current log file.
const FILE_NAME: &str = "orbd.log";

/// Settings of the log output.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Log filter in the syntax of `tracing`'s `EnvFilter`.
    pub level: String,
    /// Format of the lines.
    pub format: LogFormat,
    /// Where to write the lines.
    pub to: Destination,
    /// Directory of the log files.
    pub folder: PathBuf,
    /// Maximum number of files, including the current one.
    pub files_max: usize,
    /// Maximum size of a file, in bytes. A longer line gets a file of its own.
    pub file_size_max: u64,
    /// Age at which a file is rotated.
    pub file_age_max: Duration,
}

/// Destination of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Stderr, when orbd runs in the foreground.
    Stderr,
    /// Rotating files, when orbd runs in the background.
    Files,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The log level is invalid. The text continues the sentence: "must be ...".
    #[error("the log level {0}")]
    Level(String),
    /// The log directory or file could not be created or opened.
    #[error("cannot write logs to {path}")]
    Files {
        /// The log directory.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// [`init`] was called before in this process.
    #[error("logging is already set up")]
    Twice,
}

/// Keeps logging alive; dropping it writes the buffered lines and ends logging.
#[must_use = "dropping it ends logging"]
#[derive(Debug)]
pub struct Guard {
    _worker: WorkerGuard,
    errors: ErrorCounter,
    level: Level,
}

/// Changes the log level while the process runs.
#[derive(Clone)]
pub struct Level(Arc<SetFilter>);

type SetFilter = dyn Fn(EnvFilter) -> bool + Send + Sync;

impl Level {
    /// Sets the log level. Returns false and keeps the current level if `level` is invalid.
    pub fn set(&self, level: &str) -> bool {
        log_filter(level).is_ok_and(|filter| (self.0)(filter))
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Level")
    }
}

impl Guard {
    /// Returns a handle that changes the log level.
    pub fn level(&self) -> Level {
        self.level.clone()
    }

    /// Returns how many lines were dropped because the buffer was full.
    pub fn dropped_lines(&self) -> usize {
        self.errors.dropped_lines()
    }
}

/// Sets up logging for the process. Can be called once.
pub fn init(settings: &Settings) -> Result<Guard, LoggingError> {
    let filter = log_filter(&settings.level).map_err(LoggingError::Level)?;
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
    // `tracing` caches the filter's decision per callsite, also for a reloadable filter, so there is no lookup per line.
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

/// Returns whether a line comes from orbd's own code. Lines of libraries are never written, whatever the level: they may contain whole
/// requests, and with them secrets.
fn is_ours(about: &Metadata<'_>) -> bool {
    let target = about.target();
    target == "orbd" || target.starts_with("orbd::")
}

/// Writes one error line synchronously, after the [`Guard`] was dropped: for a process that failed to execute the new program.
pub fn last_words(settings: &Settings, text: &str) {
    let writer: Box<dyn Write + Send> = match settings.to {
        Destination::Stderr => Box::new(io::stderr()),
        Destination::Files => match Rotating::open(settings) {
            Ok(rotating) => Box::new(rotating),
            // `main` prints the error to stderr as well.
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

/// A log file that is rotated by size and age.
///
/// `orbd.log` is the current file. Rotated files are `orbd.log.1` (the newest), `orbd.log.2` and so on.
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
            // If the file system does not record the creation time, the file's age counts from now.
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
            // If rotation fails, for example on a full disk, the line still goes to the current file.
            let _ = self.rotate(now);
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        // Removes the oldest file, and the ones after it if `files_max` was lowered.
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

    /// Returns the names and contents of the files, the newest first.
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
    fn file_at_the_size_limit_is_rotated_and_only_the_newest_are_kept() {
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
    fn files_max_of_one_keeps_only_the_current_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = rotating(folder.path(), 1, 8);
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).expect("written");
        }
        check(folder.path(), &[("orbd.log", "three\n")]);
    }

    #[test]
    fn file_at_the_age_limit_is_rotated() {
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
    fn restart_continues_the_current_file_and_a_lower_files_max_removes_more() {
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
}
