//! `metrics export`: streams the records, so memory use does not depend on their number.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use orbd_client::download::{Download, DownloadError};
use orbd_proto::errors::ErrorKind;
use orbd_proto::export::{ExportFormat, ExportQuery};

use super::{Since, outcome, since};
use crate::args::millis;
use crate::context::Context;
use crate::error::CliError;
use crate::interrupt::Interrupt;

/// `metrics export`.
#[derive(Debug, Args)]
pub(crate) struct MetricsExportArgs {
    /// Export format
    #[arg(long, value_enum, default_value_t = ExportWord::JsonLines)]
    pub(crate) format: ExportWord,
    /// Write to FILE, which is replaced only once the export is complete [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Only operations that ended since TIME: a duration ago, e.g. 10m, or a time, e.g. 2026-11-30T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    pub(crate) since: Option<Since>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only clients with this name, e.g. pyinfra
    #[arg(long, value_name = "CLIENT")]
    pub(crate) client: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
}

/// Values of `metrics export --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportWord {
    /// One JSON object per line
    JsonLines,
    /// Comma-separated values with a header
    Csv,
    /// Prometheus text format: counters and percentiles; filters do not apply
    Prometheus,
}

impl From<ExportWord> for ExportFormat {
    fn from(word: ExportWord) -> Self {
        match word {
            ExportWord::JsonLines => Self::JsonLines,
            ExportWord::Csv => Self::Csv,
            ExportWord::Prometheus => Self::Prometheus,
        }
    }
}

/// Maximum time without data from orbd. orbd's own timeout for its store is shorter.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Size of the copy buffer in bytes.
const PIECE: usize = 64 << 10;

/// Exports recorded operations to a file or to standard output.
pub(super) fn export(context: &mut Context, args: MetricsExportArgs) -> Result<(), CliError> {
    let query = ExportQuery {
        format: args.format.into(),
        since: args.since.map(since_time),
        operation: args.operation,
        machine: args.machine,
        client: args.client,
        outcome: args.outcome,
    };
    // Opened before the request, so that an unwritable file is reported at once.
    let mut target = args.output.as_deref().map(Target::open).transpose()?;
    let interrupt = target.as_ref().map(|_| Interrupt::watch()).transpose()?;
    // Starts the daemon if necessary, and compares protocol versions.
    drop(context.connect()?);
    let mut body =
        Download::get(&context.link.socket, &query.target(), SILENCE_MAX).map_err(|error| match error {
            DownloadError::Refused { status, message } => refused(status, message),
            DownloadError::Lost(source) => CliError::Lost(source),
        })?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = body.read(&mut piece).map_err(broken_off)?;
        if interrupt.as_ref().is_some_and(Interrupt::came) {
            return Err(CliError::Interrupted);
        }
        match &mut target {
            _ if read == 0 => break,
            Some(target) => target.write(&piece[..read])?,
            None => context.console.print(&piece[..read])?,
        }
    }
    match target {
        Some(target) => target.finish(),
        None => Ok(()),
    }
}

fn since_time(since: Since) -> String {
    let ms = match since {
        Since::At(ms) => ms,
        Since::Ago(ago) => {
            let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
            now.saturating_sub(millis(ago))
        }
    };
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

fn refused(status: u16, message: String) -> CliError {
    let kind = match status {
        // This orbd does not have the endpoint.
        404 => ErrorKind::MethodNotFound,
        400..500 => ErrorKind::InvalidParams,
        503 => ErrorKind::StoreUnavailable,
        _ => ErrorKind::Internal,
    };
    CliError::Refused(kind.error(message))
}

fn broken_off(source: io::Error) -> CliError {
    CliError::Local {
        what: "export incomplete; run it again".into(),
        source,
    }
}

/// Output file of an export. A regular file is written to a temporary file, which replaces it at the end. If the value is dropped
/// before that, the temporary file is removed.
struct Target {
    /// Path as given by the user, for messages.
    name: PathBuf,
    file: File,
    /// Paths of the temporary file and of the file that it replaces; `None` if `file` is written directly.
    beside: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn open(name: &Path) -> Result<Self, CliError> {
        Self::try_open(name).map_err(|error| CliError::Usage {
            message: format!("cannot write {}: {error}", name.display()),
            hint: "name another file with `-o FILE`, or omit `-o` to write to standard output".into(),
        })
    }

    fn try_open(name: &Path) -> io::Result<Self> {
        // A symbolic link is kept; its target is replaced.
        let (place, found) = match fs::canonicalize(name) {
            Ok(place) => {
                let found = fs::metadata(&place)?;
                (place, Some(found))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (name.to_owned(), None),
            Err(error) => return Err(error),
        };
        if found.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = name.to_owned();
        if found.as_ref().is_some_and(|found| !found.is_file()) {
            // A pipe or a device must be written to, not replaced.
            let file = OpenOptions::new().write(true).open(&place)?;
            return Ok(Self {
                name,
                file,
                beside: None,
            });
        }
        let mut written = OsString::from(".");
        written.push(place.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        written.push(format!(".{}.part", std::process::id()));
        let written = place.with_file_name(written);
        let file = OpenOptions::new().write(true).create_new(true).open(&written)?;
        let target = Self {
            name,
            file,
            beside: Some((written, place)),
        };
        if let Some(found) = found {
            target.file.set_permissions(found.permissions())?;
        }
        Ok(target)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.file
            .write_all(bytes)
            .map_err(|source| cannot_write(&self.name, source))
    }

    fn finish(mut self) -> Result<(), CliError> {
        if let Some((written, place)) = &self.beside {
            fs::rename(written, place).map_err(|source| cannot_write(&self.name, source))?;
            self.beside = None;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((written, _)) = &self.beside {
            let _ = fs::remove_file(written);
        }
    }
}

fn cannot_write(name: &Path, source: io::Error) -> CliError {
    CliError::Local {
        what: format!("cannot write {}", name.display()),
        source,
    }
}
