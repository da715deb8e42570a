//! Options that several commands share, and the parsers of their values.

use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use orbd_host::nearest::nearest;

/// Options of every command.
#[derive(Debug, Args, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON, one object per line, in the format of the API
    #[arg(long, global = true)]
    pub(crate) json: bool,
    // The help is an attribute, not a doc comment: clap would print the markup that rustdoc needs.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help = "Daemon socket [default: $ORBD_SOCKET, else ~/.orbd/orbd.sock]"
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Fail instead of starting the daemon if it is not running
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

/// Help of the option that names a machine. A constant, because a doc comment would need markup that clap prints.
pub(crate) const MACHINE_HELP: &str = "Name or id [default: $ORBD_MACHINE, else the default machine]";

/// Help of the option of `run`, which may name several machines.
pub(crate) const MACHINES_HELP: &str =
    "Name or id; may be repeated [default: $ORBD_MACHINE, else the default machine]";

/// Options of every command that creates a job.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct JobOptions {
    /// Print the job id and return; the job keeps running
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// Options of every command that runs the real `orbctl` in this client under a lease. `orbctl` ends with the client, so these commands
/// cannot be detached.
#[derive(Debug, Args, Default, Clone)]
pub(crate) struct LeaseOptions {
    /// Give up if the job has not started after TIME, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
    /// Stop the job after it has run for TIME
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) timeout: Option<Duration>,
    /// Text that job lists, events and records show with the job
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
}

/// Output format, with the flag that `orbctl` has.
#[derive(Debug, Args, Default)]
pub(crate) struct FormatArgs {
    /// Output format; json is the same as --json
    #[arg(short, long, value_name = "FORM", value_enum)]
    pub(crate) format: Option<Format>,
}

/// Values of `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Human-readable text
    Text,
    /// JSON
    Json,
}

/// Maximum age of a cached answer.
#[derive(Debug, Args, Default)]
pub(crate) struct AgeArgs {
    /// Maximum age of a cached answer, e.g. 500ms or 10s; 0 asks orbctl now
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) max_age: Option<Duration>,
}

impl AgeArgs {
    /// Returns the maximum age as a request parameter.
    pub(crate) fn max_age_ms(&self) -> Option<u64> {
        self.max_age.map(millis)
    }
}

/// Converts a duration to milliseconds, the unit of request parameters.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A verb without arguments.
#[derive(Debug, Args)]
pub(crate) struct Nothing {}

/// Parses a whole number. The standard library's error messages name Rust types, so they are replaced.
pub(crate) fn whole<N: FromStr<Err = ParseIntError>>(text: &str) -> Result<N, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "number too large".into(),
        _ => "expected a whole number, 0 or greater".into(),
    })
}

/// Returns the message for a word that is not one of a closed set: the words, and the nearest one.
pub(crate) fn not_one_of(text: &str, words: &[&str]) -> String {
    let list = match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    };
    let near = nearest(text, words.iter().copied())
        .map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
    format!("expected {list}{near}")
}

/// Parses a job id.
pub(crate) fn job_id(text: &str) -> Result<u64, String> {
    whole(text).map_err(|_| "expected a job id, a number; `orbd-ctl jobs --all` lists them".into())
}

/// Parses a duration such as `500ms`, `30s`, `5m`, `1h30m` or `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "expected a number with ms, s, m, h or d, e.g. 500ms, 30s or 1h30m";
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(SHAPE)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: u64 = number.parse().map_err(|_| SHAPE)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(SHAPE.into()),
        };
        let part = number.checked_mul(unit_ms).ok_or("duration too long")?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or("duration too long")?;
        rest = tail;
    }
    if text.is_empty() {
        Err(SHAPE.into())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(millis), expected, "{text:?}");
        };
        check("0", Some(0));
        check("30", Some(30_000));
        check("500ms", Some(500));
        check("1h30m", Some(5_400_000));
        check("7d", Some(604_800_000));
        check("", None);
        check("s", None);
        check("5x", None);
        check("-1s", None);
        check("1.5s", None);
        check("99999999999999999999s", None);
        check("18446744073709551615d", None);
    }
}
