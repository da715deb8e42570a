//! Text output: tables, durations, sizes, colours. Pure functions of the API's types.

mod daemon;
mod jobs;
mod machines;
mod metrics;

use std::borrow::Cow;
use std::time::Duration;

use comfy_table::{Cell, Color};
pub(crate) use daemon::{cache, daemon, reload, upgrade};
pub(crate) use jobs::{event_job_name, job, job_name, job_names, jobs, queue, waiting_for, why};
pub(crate) use machines::{MachineColumns, MachineDetails, config, info, machines};
pub(crate) use metrics::{counters, history, metrics};
use orbd_proto::types::Observed;

use crate::layout::Look;

/// Success, or a running job or machine.
pub(crate) const GOOD: Color = Color::Green;

/// Failure.
pub(crate) const BAD: Color = Color::Red;

/// Hints, warnings and waiting jobs.
pub(crate) const HINT: Color = Color::Yellow;

/// Stopped machines and ended jobs.
pub(super) const QUIET: Color = Color::DarkGrey;

/// Colours a text if the stream supports colours.
pub(crate) fn paint(look: Look, style: Color, text: &str) -> String {
    let code = match style {
        Color::Green => 32,
        Color::Red => 31,
        Color::Yellow => 33,
        _ => 90,
    };
    if look.colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Escapes control characters, so that a name that OrbStack reports cannot control the terminal.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        let escape = |character: char| -> String {
            if character.is_control() {
                character.escape_default().collect()
            } else {
                character.into()
            }
        };
        Cow::Owned(text.chars().map(escape).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns a table cell with a text of the daemon.
pub(super) fn cell(text: &str) -> Cell {
    Cell::new(plain(text))
}

/// Formats a duration, e.g. `850 us`, `1.2 ms` or `34 s`; at most six characters below a hundred days.
pub(crate) fn duration_us(us: u64) -> String {
    const MS: u64 = 1000;
    const S: u64 = 1000 * MS;
    const MIN: u64 = 60 * S;
    const H: u64 = 60 * MIN;
    let tenths = |unit: u64, name: &str| {
        let tenths = us.saturating_add(unit / 20) / (unit / 10);
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    };
    let whole = |unit: u64, name: &str| format!("{} {name}", us.saturating_add(unit / 2) / unit);
    match us {
        0 => "0".into(),
        _ if us < MS => format!("{us} us"),
        _ if us < 9_950 => tenths(MS, "ms"),
        _ if us < 999_500 => whole(MS, "ms"),
        _ if us < 9_950_000 => tenths(S, "s"),
        _ if us < 2 * MIN => whole(S, "s"),
        _ if us < 2 * H => whole(MIN, "min"),
        _ if us < 48 * H => whole(H, "h"),
        _ => whole(24 * H, "d"),
    }
}

/// Formats a [`Duration`].
pub(crate) fn duration(duration: Duration) -> String {
    duration_us(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// Formats an age, e.g. `3 s ago`.
pub(crate) fn age_ms(ms: u64) -> String {
    format!("{} ago", duration_us(ms.saturating_mul(1000).max(1000)))
}

/// Formats a number of bytes as `orbctl` does: decimal units, one digit after the point, e.g. `687.2 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut unit = 1000;
    for name in ["kB", "MB", "GB", "TB", "PB"] {
        if count < unit * 1000 || name == "PB" {
            if count < 1000 {
                return format!("{count} B");
            }
            let tenths = u128::from(count) * 10 / u128::from(unit);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
        unit *= 1000;
    }
    format!("{count} B")
}

/// Returns a note that an answer is stale, and why; `None` if it is fresh.
pub(crate) fn staleness(observed: &Observed) -> Option<String> {
    observed.stale.then(|| {
        let why = observed
            .stale_reason
            .as_deref()
            .unwrap_or("orbctl is unavailable");
        format!(
            "this answer is from {} and may be out of date: {why}",
            age_ms(observed.age_ms)
        )
    })
}

#[cfg(test)]
mod tests {
    use orbd_proto::types::{
        Distribution, ErrorObject, JobListAnswer, JobStateWord, MachineListAnswer, MetricsRow,
        MetricsSummaryAnswer, Outcome, WindowResolution,
    };

    use super::metrics::window;
    use super::*;
    use crate::fake;

    const COLOURS: Look = Look {
        colour: true,
        width: None,
    };

    #[test]
    fn durations_are_short_and_rounded() {
        let check = |us: u64, expected: &str| assert_eq!(duration_us(us), expected, "{us}");
        check(0, "0");
        check(850, "850 us");
        check(1234, "1.2 ms");
        check(9_949, "9.9 ms");
        check(9_950, "10 ms");
        check(123_456, "123 ms");
        check(999_499, "999 ms");
        check(999_500, "1.0 s");
        check(34_000_000, "34 s");
        check(119_000_000, "119 s");
        check(720_000_000, "12 min");
        check(7_200_000_000, "2 h");
        check(u64::MAX, "213503982 d");
        assert_eq!(age_ms(0), "1.0 ms ago");
        assert_eq!(age_ms(3000), "3.0 s ago");
    }

    #[test]
    fn sizes_are_formatted_as_orbctl_formats_them() {
        let check = |count: u64, expected: &str| assert_eq!(bytes(count), expected, "{count}");
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(687_200_000, "687.2 MB");
        check(5_800_000_000, "5.8 GB");
        check(u64::MAX, "18446.7 PB");
    }

    #[test]
    fn columns_are_two_spaces_apart_without_trailing_spaces() {
        let answer = MachineListAnswer {
            machines: vec![
                fake::machine("web", "running"),
                fake::machine("database", "stopped"),
            ],
            observed: fake::observed(),
        };
        let details = MachineDetails::default();
        let machines = |look| machines(&answer, MachineColumns::Details(&details), look);
        assert_eq!(
            machines(Look::default()),
            "\
NAME      STATE    DISTRO  VERSION  ARCH   SIZE  IP  DEFAULT
web       running  ubuntu  noble    arm64  -     -
database  stopped  ubuntu  noble    arm64  -     -
"
        );
        assert!(machines(COLOURS).contains('\x1b'));
    }

    #[test]
    fn control_characters_are_escaped_in_tables() {
        let answer = MachineListAnswer {
            machines: vec![fake::machine("web", "odd\x1b[31m\nstate")],
            observed: fake::observed(),
        };
        let table = machines(&answer, MachineColumns::List, Look::default());
        assert!(table.contains("odd\\u{1b}[31m\\nstate"), "{table}");
    }

    #[test]
    fn job_table_shows_what_a_job_waits_for_or_its_outcome() {
        let mut waiting = fake::job(13, "start", JobStateWord::Waiting);
        waiting.waiting_for = Some(fake::waiting_for_create());
        let mut ran = fake::job(9, "run", JobStateWord::Ended);
        ran.run_us = Some(1234);
        ran.outcome = Some(fake::succeeded(Some(3)));
        let mut failed = fake::job(10, "delete", JobStateWord::Ended);
        failed.outcome = Some(Outcome {
            kind: "failed".into(),
            exit_code: None,
            changed: None,
            warning: None,
            error: Some(ErrorObject {
                code: 2001,
                message: "machine web does not exist".into(),
                data: None,
            }),
        });
        let answer = JobListAnswer {
            jobs: vec![ran, failed, waiting],
            more: false,
        };
        assert_eq!(
            jobs(&answer, Look::default()),
            "\
ID  STATE    OPERATION  MACHINE  CLIENT     WAIT     RUN  DETAIL
 9  ended    run        web      pyinfra  1.2 ms  1.2 ms  exit 3
10  failed   delete     web      pyinfra  1.2 ms       -  machine web does not exist
13  waiting  start      web      pyinfra  1.2 ms       -  for job 12 (create web) of pyinfra
"
        );
    }

    #[test]
    fn metrics_table_fits_in_80_columns() {
        let distribution = |us: u64| Distribution {
            min_us: us,
            p50_us: us,
            p90_us: us * 10,
            p99_us: us * 100,
            max_us: us * 100,
        };
        let row = |operation: &str, errors| MetricsRow {
            operation: Some(operation.into()),
            machine: None,
            other_machines: false,
            count: 12345,
            errors,
            error_rate: 0.0,
            wait: distribution(123),
            run: distribution(150_000),
        };
        let mut answer = MetricsSummaryAnswer {
            since: None,
            until: "2026-11-30T03:26:40.000Z".into(),
            resolution: WindowResolution::Record,
            rows: vec![row("config_reset", 0), row("run", 7)],
        };
        let text = metrics(&answer, None, Look::default());
        assert_eq!(
            text,
            "all recorded operations
                            WAIT                    RUN
OPERATION     COUNT  ERR     p50     p90    p99     p50    p90   p99   max
config_reset  12345    0  123 us  1.2 ms  12 ms  150 ms  1.5 s  15 s  15 s
run           12345    7  123 us  1.2 ms  12 ms  150 ms  1.5 s  15 s  15 s
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        answer.rows[0].machine = Some("web".into());
        answer.rows[1].other_machines = true;
        let text = metrics(&answer, None, Look::default());
        assert!(text.contains("config_reset  web       12345"), "{text}");
        assert!(text.contains("run           (others)  12345"), "{text}");
    }

    #[test]
    fn metrics_header_shows_the_window_that_the_answer_covers() {
        let answer = |resolution| MetricsSummaryAnswer {
            since: Some("2026-11-30T03:00:00.000Z".into()),
            until: "2026-11-30T03:26:40.000Z".into(),
            resolution,
            rows: Vec::new(),
        };
        let asked = Some(Duration::from_secs(120));
        let check = |resolution, expected| assert_eq!(window(&answer(resolution), asked), expected);
        check(WindowResolution::Record, "last 2 min\n");
        check(
            WindowResolution::Hour,
            "last 27 min, since 11-30 03:00:00Z, instead of the last 2 min: older records are kept only as hourly sums\n",
        );
        check(
            WindowResolution::Day,
            "last 27 min, since 11-30 03:00:00Z, instead of the last 2 min: older records are kept only as daily sums\n",
        );
    }
}
