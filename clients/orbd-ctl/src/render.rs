//! Text output: tables, durations, sizes, colours. Pure functions of the API's types.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, Color};
use orbd_proto::types::{
    CacheStatusAnswer, ConfigAnswer, CountersAnswer, DaemonInfoAnswer, Job, JobListAnswer, JobStateWord,
    MachineConfig, MachineInfoAnswer, MachineListAnswer, MetricsHistoryAnswer, MetricsSummaryAnswer,
    Observed, Outcome, QueueStatusAnswer, ReloadAnswer, Upgrade, WaitReason, WaitingFor, WindowResolution,
};

use crate::layout::Look;

/// Success, or a running job or machine.
pub(crate) const GOOD: Color = Color::Green;
/// Failure.
pub(crate) const BAD: Color = Color::Red;
/// Hints, warnings and waiting jobs.
pub(crate) const HINT: Color = Color::Yellow;
/// Stopped machines and ended jobs.
const QUIET: Color = Color::DarkGrey;

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

fn state_colour(state: &str) -> Color {
    match state {
        "running" => GOOD,
        "stopped" => QUIET,
        _ => HINT,
    }
}

/// Formats a list of machines as a table.
pub(crate) fn machines(answer: &MachineListAnswer, look: Look) -> String {
    look.table(
        &["NAME", "STATE", "DISTRO", "VERSION", "ARCH"],
        &[],
        &[0],
        answer.machines.iter().map(|machine| {
            vec![
                Cell::new(&machine.name),
                Cell::new(&machine.state).fg(state_colour(&machine.state)),
                Cell::new(&machine.image.distro),
                Cell::new(&machine.image.version),
                Cell::new(&machine.image.arch),
            ]
        }),
    )
}

/// Formats the details of one machine.
pub(crate) fn info(answer: &MachineInfoAnswer, look: Look) -> String {
    let machine = &answer.machine;
    let mut lines = vec![
        ("name", machine.name.clone()),
        ("id", machine.id.clone()),
        ("state", paint(look, state_colour(&machine.state), &machine.state)),
        (
            "image",
            format!(
                "{} {} {}",
                machine.image.distro, machine.image.version, machine.image.arch
            ),
        ),
    ];
    let mut known = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    known("ip4", answer.ip4.clone());
    known("ip6", answer.ip6.clone());
    known("size", answer.disk_size.map(bytes));
    let MachineConfig {
        default_username,
        isolated,
        isolate_network,
        forward_ssh_agent,
        http_port,
        https_port,
        cpu_limit,
        memory_limit_mib,
        disk_limit_bytes,
    } = &machine.config;
    let yes = |flag: &Option<bool>| flag.filter(|flag| *flag).map(|_| "yes".to_owned());
    known("user", default_username.clone());
    known("isolated", yes(isolated));
    known("network isolated", yes(isolate_network));
    known("ssh agent", yes(forward_ssh_agent));
    // 0 means no port, as 0 means no limit below.
    let port = |port: &Option<u16>| port.filter(|port| *port > 0).map(|port| port.to_string());
    known("http port", port(http_port));
    known("https port", port(https_port));
    known(
        "cpus",
        cpu_limit
            .filter(|limit| *limit > 0)
            .map(|limit| limit.to_string()),
    );
    known(
        "memory",
        memory_limit_mib
            .filter(|limit| *limit > 0)
            .map(|limit| format!("{limit} MiB")),
    );
    known(
        "disk limit",
        disk_limit_bytes.filter(|limit| *limit > 0).map(bytes),
    );
    look.pairs(lines)
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

/// Formats a job's name, e.g. `job 12 (create web)`.
pub(crate) fn job_name(job: &Job) -> String {
    match &job.machine {
        Some(machine) => format!("job {} ({} {machine})", job.job_id, job.operation),
        None => format!("job {} ({})", job.job_id, job.operation),
    }
}

/// Formats the names of the first few jobs and the number of the others; `None` if there are no jobs.
pub(crate) fn job_names(jobs: &[Job]) -> Option<String> {
    const NAMED_MAX: usize = 3;
    let named: Vec<String> = jobs.iter().take(NAMED_MAX).map(job_name).collect();
    let more = match jobs.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!named.is_empty()).then(|| format!("{}{more}", named.join(", ")))
}

/// Formats what a job waits for. Returns the constant part and the age, which changes all the time.
pub(crate) fn waiting_for(waiting_for: &WaitingFor) -> (String, String) {
    let name = match &waiting_for.reason {
        WaitReason::Job {
            job_id,
            operation,
            machine,
            client,
            age_ms: age,
        } => {
            let machine = machine
                .as_ref()
                .map_or_else(String::new, |machine| format!(" {machine}"));
            let name = format!("job {job_id} ({operation}{machine}) of {client}");
            return (name, format!(", accepted {}", age_ms(*age)));
        }
        WaitReason::Limit { limit } => format!("a free slot: {limit} reached"),
        WaitReason::Paused {
            machine: Some(machine),
        } => {
            format!("{machine} to be resumed (`orbd-ctl queue resume {machine}`)")
        }
        WaitReason::Paused { machine: None } => "the queue to be resumed (`orbd-ctl queue resume`)".into(),
        WaitReason::Unhealthy { reason } => format!("orbctl to recover ({reason})"),
        // The daemon is newer and describes it.
        WaitReason::Other => waiting_for.description.clone(),
    };
    (name, String::new())
}

/// Truncates a long message and appends an ellipsis; `--json` has the whole message.
fn beginning(message: &str) -> String {
    const LENGTH_MAX: usize = 200;
    match message.char_indices().nth(LENGTH_MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// Formats the outcome of a job.
fn outcome(outcome: &Outcome) -> String {
    if let Some(warning) = &outcome.warning {
        return beginning(warning);
    }
    match (&outcome.error, outcome.exit_code, outcome.changed) {
        (Some(error), ..) => beginning(error.message.lines().next().unwrap_or_default()),
        (None, Some(0), _) if outcome.kind == "succeeded" => "done".into(),
        (None, Some(code), _) => format!("exit {code}"),
        (None, None, Some(false)) => "nothing to do".into(),
        (None, None, _) if outcome.kind == "succeeded" => "done".into(),
        _ => outcome.kind.clone(),
    }
}

/// Returns the word and the colour for a job's state; for a failed job the word is the outcome.
fn job_state(job: &Job) -> (String, Color) {
    match (job.state, &job.outcome) {
        (JobStateWord::Waiting, _) => ("waiting".into(), HINT),
        (JobStateWord::Running, _) => ("running".into(), GOOD),
        (JobStateWord::Ended, Some(outcome)) if outcome.kind == "succeeded" => ("ended".into(), QUIET),
        (JobStateWord::Ended, Some(outcome)) => (outcome.kind.clone(), BAD),
        (JobStateWord::Ended, None) => ("ended".into(), QUIET),
    }
}

fn detail(job: &Job) -> String {
    match (&job.waiting_for, &job.outcome) {
        (Some(reason), _) if job.state == JobStateWord::Waiting => format!("for {}", waiting_for(reason).0),
        (_, Some(ended)) => outcome(ended),
        _ if job.detached => "detached".into(),
        _ => String::new(),
    }
}

/// Formats a list of jobs as a table.
pub(crate) fn jobs(answer: &JobListAnswer, look: Look) -> String {
    look.table(
        &[
            "ID",
            "STATE",
            "OPERATION",
            "MACHINE",
            "CLIENT",
            "WAIT",
            "RUN",
            "DETAIL",
        ],
        &[0, 5, 6],
        &[3, 4, 7],
        answer.jobs.iter().map(|job| {
            let (state, style) = job_state(job);
            vec![
                Cell::new(job.job_id),
                Cell::new(state).fg(style),
                Cell::new(&job.operation),
                Cell::new(job.machine.as_deref().unwrap_or("-")),
                Cell::new(&job.client.name),
                Cell::new(duration_us(job.wait_us)),
                Cell::new(job.run_us.map_or_else(|| "-".into(), duration_us)),
                Cell::new(detail(job)),
            ]
        }),
    )
}

/// Formats the details of one job.
pub(crate) fn job(job: &Job, look: Look) -> String {
    let (state, style) = job_state(job);
    let client = match job.client.pid {
        Some(pid) => format!("{} (pid {pid})", job.client.name),
        None => job.client.name.clone(),
    };
    let mut lines = vec![
        ("job", job.job_id.to_string()),
        ("state", paint(look, style, &state)),
        ("operation", job.operation.clone()),
    ];
    let mut known = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    known("machine", job.machine.clone());
    known("class", Some(job.job_class.clone()));
    known("client", Some(client));
    known("detached", job.detached.then(|| "yes".into()));
    known(
        "durable",
        job.not_durable
            .then(|| "no: cannot write the journal; free disk space".into()),
    );
    known("accepted", Some(job.accepted_at.clone()));
    known("started", job.started_at.clone());
    known("ended", job.ended_at.clone());
    known("waited", Some(duration_us(job.wait_us)));
    known("ran", job.run_us.map(duration_us));
    if job.state == JobStateWord::Waiting {
        known(
            "waits for",
            job.waiting_for.as_ref().map(|reason| {
                let (name, age) = waiting_for(reason);
                name + &age
            }),
        );
    }
    known("outcome", job.outcome.as_ref().map(outcome));
    known("output", (job.output_bytes > 0).then(|| bytes(job.output_bytes)));
    known(
        "joined",
        (job.joined_callers > 0).then(|| format!("{} other callers", job.joined_callers)),
    );
    look.pairs(lines)
}

/// Formats a chain of waiting jobs, one sentence for each job.
pub(crate) fn why(jobs: &[Job], look: Look) -> String {
    let text = jobs.iter().fold(String::new(), |mut text, job| {
        let name = job_name(job);
        let (state, style) = job_state(job);
        let state = paint(look, style, &state);
        let _ = match (job.state, &job.waiting_for, &job.outcome) {
            (JobStateWord::Waiting, Some(reason), _) => {
                let (reason, age) = waiting_for(reason);
                writeln!(text, "{name} of {} is {state} for {reason}{age}", job.client.name)
            }
            (JobStateWord::Ended, _, Some(ended)) => writeln!(
                text,
                "{name} of {} has ended: {state}, {}",
                job.client.name,
                outcome(ended)
            ),
            (_, _, _) => {
                let for_so_long = job
                    .run_us
                    .map_or_else(String::new, |us| format!(" for {}", duration_us(us)));
                writeln!(
                    text,
                    "{name} of {} is {state}{for_so_long}; nothing blocks it",
                    job.client.name
                )
            }
        };
        text
    });
    look.paragraph(&text, 2)
}

/// Formats the state of the queue.
pub(crate) fn queue(answer: &QueueStatusAnswer, look: Look) -> String {
    let state = match (answer.draining, answer.paused) {
        (false, false) if answer.unhealthy.is_some() => {
            "circuit open: only forced operations start while orbctl is unhealthy"
        }
        (true, _) => "draining: new jobs are refused (`orbd-ctl queue resume` ends the drain)",
        (false, true) => "paused: no jobs start (`orbd-ctl queue resume` ends the pause)",
        (false, false) => "open",
    };
    let mut lines = vec![
        ("queue", state.to_owned()),
        ("running", answer.running.to_string()),
        (
            "waiting",
            format!("{} of at most {}", answer.waiting, answer.queue_max),
        ),
    ];
    let mut names = |name, machines: &[String]| {
        if !machines.is_empty() {
            lines.push((name, machines.join(", ")));
        }
    };
    names("paused", &answer.paused_machines);
    names("draining", &answer.draining_machines);
    if let Some(sick) = &answer.unhealthy {
        lines.push((
            "orbctl",
            format!("unhealthy since {}: {}", sick.since, sick.reason),
        ));
    }
    look.pairs(lines)
}

/// Formats the state of the cache.
pub(crate) fn cache(answer: &CacheStatusAnswer, look: Look) -> String {
    let asked = answer.hits + answer.misses;
    let share = if asked == 0 {
        String::new()
    } else {
        format!(" ({} %)", u128::from(answer.hits) * 100 / u128::from(asked))
    };
    let mut text = look.pairs([
        ("generation", answer.generation.to_string()),
        ("hits", format!("{}{share}", answer.hits)),
        ("misses", answer.misses.to_string()),
    ]);
    if !answer.entries.is_empty() {
        text.push('\n');
        text.push_str(&look.table(
            &["KEY", "MACHINE", "GENERATION", "SEEN", "VALID"],
            &[2],
            &[1],
            answer.entries.iter().map(|entry| {
                vec![
                    Cell::new(&entry.key),
                    Cell::new(entry.machine.as_deref().unwrap_or("-")),
                    Cell::new(entry.generation),
                    Cell::new(age_ms(entry.age_ms)),
                    if entry.valid {
                        Cell::new("yes").fg(GOOD)
                    } else {
                        Cell::new("no").fg(QUIET)
                    },
                ]
            }),
        ));
    }
    text
}

/// Formats a metrics summary: the window that it covers, then counts and percentiles. If the terminal is too narrow, omits the p90
/// columns and prints a note.
pub(crate) fn metrics(answer: &MetricsSummaryAnswer, asked: Option<Duration>, look: Look) -> String {
    let anywhere = Look { width: None, ..look };
    let window = look.paragraph(&window(answer, asked), 0);
    let whole = percentiles(answer, anywhere, true);
    if look.fits(&whole) {
        return window + &whole;
    }
    let note = "p90 columns omitted: the terminal is too narrow; --json has them\n";
    window + &percentiles(answer, look, false) + &look.paragraph(note, 0)
}

/// Formats the window that a summary covers, and why it is longer than the requested one.
fn window(answer: &MetricsSummaryAnswer, asked: Option<Duration>) -> String {
    let (Some(since), Some(asked)) = (&answer.since, asked) else {
        return "all recorded operations\n".into();
    };
    let asked = duration(asked);
    let sums = match answer.resolution {
        WindowResolution::Record => return format!("last {asked}\n"),
        WindowResolution::Hour => "hourly",
        WindowResolution::Day => "daily",
    };
    format!(
        "last {}, since {}, instead of the last {asked}: older records are kept only as {sums} sums\n",
        between(since, &answer.until),
        short_time(since)
    )
}

/// Formats the time between two RFC 3339 timestamps.
fn between(earlier: &str, later: &str) -> String {
    let parsed = |text: &str| text.parse::<jiff::Timestamp>().ok();
    match (parsed(earlier), parsed(later)) {
        (Some(earlier), Some(later)) => duration(later.duration_since(earlier).unsigned_abs()),
        _ => "unknown time".into(),
    }
}

fn percentiles(answer: &MetricsSummaryAnswer, look: Look, with_p90: bool) -> String {
    let by_operation = answer.rows.iter().any(|row| row.operation.is_some()) || answer.rows.is_empty();
    let by_machine = answer
        .rows
        .iter()
        .any(|row| row.machine.is_some() || row.other_machines);
    let p90 = |name| with_p90.then_some(name);
    let header: Vec<&str> = [
        by_operation.then_some("\nOPERATION"),
        by_machine.then_some("\nMACHINE"),
        Some("\nCOUNT"),
        Some("\nERR"),
        Some("WAIT\np50"),
        p90("\np90"),
        Some("\np99"),
        Some("RUN\np50"),
        p90("\np90"),
        Some("\np99"),
        Some("\nmax"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let names = usize::from(by_operation) + usize::from(by_machine);
    let right: Vec<usize> = (names..header.len()).collect();
    let wide: Vec<usize> = (0..names).collect();
    let rows = answer.rows.iter().map(|row| {
        let name = |name: &Option<String>| Cell::new(name.as_deref().unwrap_or("-"));
        let machine = || {
            if row.other_machines {
                // Parentheses are not allowed in a machine's name, so this cannot be one.
                return Cell::new("(others)");
            }
            name(&row.machine)
        };
        let time = |us: u64| Some(Cell::new(duration_us(us)));
        [
            by_operation.then(|| name(&row.operation)),
            by_machine.then(machine),
            Some(Cell::new(row.count)),
            Some(match row.errors {
                0 => Cell::new(0),
                errors => Cell::new(errors).fg(BAD),
            }),
            time(row.wait.p50_us),
            time(row.wait.p90_us).filter(|_| with_p90),
            time(row.wait.p99_us),
            time(row.run.p50_us),
            time(row.run.p90_us).filter(|_| with_p90),
            time(row.run.p99_us),
            time(row.run.max_us),
        ]
        .into_iter()
        .flatten()
        .collect()
    });
    look.table(&header, &right, &wide, rows)
}

/// Formats recorded operations as a table.
pub(crate) fn history(answer: &MetricsHistoryAnswer, look: Look) -> String {
    look.table(
        &[
            "JOB",
            "ENDED",
            "OPERATION",
            "MACHINE",
            "CLIENT",
            "WAIT",
            "RUN",
            "OUTCOME",
        ],
        &[0, 5, 6],
        &[3, 4, 7],
        answer.records.iter().map(|record| {
            let outcome = match (record.outcome.as_str(), record.exit_code) {
                ("succeeded", None | Some(0)) => Cell::new("succeeded"),
                ("succeeded", Some(code)) => Cell::new(format!("exit {code}")).fg(HINT),
                (outcome, _) => Cell::new(outcome).fg(BAD),
            };
            vec![
                Cell::new(record.job_id),
                Cell::new(short_time(&record.ended_at)),
                Cell::new(&record.operation),
                Cell::new(record.machine.as_deref().unwrap_or("-")),
                Cell::new(&record.client.name),
                Cell::new(duration_us(record.wait_us)),
                Cell::new(duration_us(record.run_us)),
                outcome,
            ]
        }),
    )
}

/// Shortens `2026-11-20T16:04:05.123Z` to `11-20 16:04:05Z`, still in UTC.
fn short_time(rfc3339: &str) -> String {
    match (rfc3339.get(5..10), rfc3339.get(11..19)) {
        (Some(date), Some(time)) => format!("{date} {time}Z"),
        _ => rfc3339.to_owned(),
    }
}

/// Formats counters and the state of the metrics store.
pub(crate) fn counters(answer: &CountersAnswer, look: Look) -> String {
    let mut text = look.pairs(
        answer
            .counters
            .iter()
            .map(|(name, count)| (name.as_str(), count.to_string())),
    );
    let _ = writeln!(text, "metrics store: {}", answer.store);
    text
}

/// Formats OrbStack's configuration as `orbctl` prints it.
pub(crate) fn config(answer: &ConfigAnswer, _look: Look) -> String {
    answer
        .values
        .iter()
        .fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key}: {value}");
            text
        })
}

/// Formats a limit in the unit that the suffix of its name indicates.
fn bound(name: &str, limit: u64) -> String {
    if name.ends_with("_ms") {
        duration_us(limit.saturating_mul(1000))
    } else if name.ends_with("_bytes") {
        bytes(limit)
    } else {
        limit.to_string()
    }
}

/// Formats the answer of `daemon.info`.
pub(crate) fn daemon(answer: &DaemonInfoAnswer, look: Look) -> String {
    let nothing = || "none".to_owned();
    let mut text = format!(
        "{}, pid {}, up {}\n",
        paint(look, GOOD, &format!("orbd {} is running", answer.version)),
        answer.pid,
        duration_us(answer.uptime_ms.saturating_mul(1000))
    );
    let mut lines = vec![
        ("socket", answer.socket.clone()),
        (
            "orbctl",
            answer.orbctl.clone().unwrap_or_else(|| {
                paint(
                    look,
                    BAD,
                    "not found; install OrbStack, or set `orbctl` in the configuration",
                )
            }),
        ),
        ("config", answer.config_file.clone().unwrap_or_else(nothing)),
        ("state", answer.state_dir.clone()),
        ("protocol", answer.protocol.to_string()),
    ];
    if let Some(upgrade) = &answer.upgrade {
        lines.push(("upgrade", self::upgrade(upgrade)));
    }
    if answer.strict {
        lines.push(("order", "strict: one invocation at a time".into()));
    }
    text.push_str(&look.pairs(lines));
    let limits = look.pairs(
        answer
            .limits
            .iter()
            .map(|(name, limit)| (name.as_str(), bound(name, *limit))),
    );
    if !limits.is_empty() {
        text.push_str("limits\n");
    }
    text.extend(limits.lines().map(|line| format!("  {line}\n")));
    text
}

/// Formats the result of a reload.
pub(crate) fn reload(answer: &ReloadAnswer, look: Look) -> String {
    let shown = |value: &Option<String>| value.as_deref().unwrap_or("not set").to_owned();
    let mut text = String::new();
    for key in &answer.applied {
        let (from, to) = (shown(&key.old_value), shown(&key.new_value));
        let label = paint(look, GOOD, "applied");
        let _ = writeln!(text, "{label} {}: {from} -> {to}", key.key);
    }
    for key in &answer.needs_restart {
        let (running, configured) = (shown(&key.running), shown(&key.configured));
        let label = paint(look, HINT, "needs `orbd-ctl daemon restart`");
        let _ = writeln!(
            text,
            "{label} {}: now {running}, {configured} after the restart",
            key.key
        );
    }
    if text.is_empty() {
        let file = answer.config_file.as_ref().map_or_else(
            || "no configuration file".to_owned(),
            |file| format!("read {file}"),
        );
        text = format!("{file}; no changes\n");
    }
    text
}

/// Formats a pending upgrade: what it waits for, or why it was refused.
pub(crate) fn upgrade(upgrade: &Upgrade) -> String {
    match (&upgrade.reason, &upgrade.version, &upgrade.waits_for) {
        (Some(reason), ..) => format!(
            "refused: {reason}; `orbd-ctl daemon reload` tries again, `orbd-ctl daemon restart` starts it anyway"
        ),
        (None, version, waits_for) => format!(
            "{} is installed and starts when orbd is idle; waiting for {}; `orbd-ctl daemon restart` does not wait",
            version
                .as_ref()
                .map_or_else(|| "a new binary".into(), |version| format!("orbd {version}")),
            waits_for.as_deref().unwrap_or("running jobs")
        ),
    }
}

#[cfg(test)]
mod tests {
    use orbd_proto::types::{Distribution, ErrorObject, MetricsRow};

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
        assert_eq!(
            machines(&answer, Look::default()),
            "\
NAME      STATE    DISTRO  VERSION  ARCH
web       running  ubuntu  noble    arm64
database  stopped  ubuntu  noble    arm64
"
        );
        assert!(machines(&answer, COLOURS).contains('\x1b'));
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
