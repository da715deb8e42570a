//! Between the wire's types and the words: parsing on the way in, naming the field that is wrong; plain copying on the way out.

mod events;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use bytes::Bytes;

use super::errors::{ErrorKind, invalid};
use super::line_notifications::BASE64;
use super::server::Upgrade;
use super::types;
use crate::clock::{Moment, unix_ms};
use crate::dispatcher::{
    self, BusyReason, JobSpec, JobState, JobView, ObservedAnswer, OutageView, RawOutput, ReadError,
    Rejection, Released, WaitingFor,
};
use crate::job::{Ending, Failure, JobId, Outcome, Phase, Success};
use crate::machine::{Machine, MachineInfo, MachineName, MachineState};
use crate::operation::{
    Access, CallerEnv, ExecRequest, Footprint, Force, Format, Lane, LogScope, MachineRef, NewMachine,
    Operation, OutputKept, RawQuery, Stdin,
};
use crate::spool;

pub(super) use events::{event, event_gap, event_kind, event_state};

type Refusal = types::ErrorObject;

/// Longest timeout accepted on the wire: a year. Larger numbers are mistakes, and would overflow clocks.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parses a field of a type that knows its own rules.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, Refusal>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error| invalid(field, format!("{error} (got {text:?})")))
}

fn parse_optional<T>(field: &str, text: Option<&String>) -> Result<Option<T>, Refusal>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.map(|text| parse(field, text)).transpose()
}

/// Parses a machine as a caller names it.
pub(super) fn machine_ref(field: &str, text: &str) -> Result<MachineRef, Refusal> {
    parse(field, text)
}

/// Parses a duration in milliseconds.
pub(super) fn timeout(field: &str, ms: Option<u64>) -> Result<Option<Duration>, Refusal> {
    match ms.map(Duration::from_millis) {
        Some(limit) if limit > TIMEOUT_MAX => Err(invalid(field, "is at most a year")),
        limit => Ok(limit),
    }
}

/// Parses a flag.
pub(super) fn force(force: bool) -> Force {
    if force { Force::Yes } else { Force::No }
}

/// Parses a machine to be made.
pub(super) fn new_machine(params: &types::MachineCreateParams) -> Result<NewMachine, Refusal> {
    if params.cpus == Some(0) {
        return Err(invalid("cpus", "is at least 1"));
    }
    Ok(NewMachine {
        name: parse("name", &params.name)?,
        distro: parse("distro", &params.distro)?,
        version: parse_optional("version", params.version.as_ref())?,
        arch: parse_optional("arch", params.arch.as_ref())?,
        user: parse_optional("user", params.user.as_ref())?,
        cpus: params.cpus,
        memory: parse_optional("memory", params.memory.as_ref())?,
        disk: parse_optional("disk", params.disk.as_ref())?,
        isolated: params.isolated,
        isolate_network: params.isolate_network,
        mounts: params
            .mounts
            .iter()
            .map(|mount| parse("mounts", mount))
            .collect::<Result<_, _>>()?,
        forward_ssh_agent: params.forward_ssh_agent,
    })
}

/// Parses a command to run.
pub(super) fn exec_request(params: types::RunParams) -> Result<ExecRequest, Refusal> {
    let stdin = match (params.stdin_text, params.stdin_base64, params.stdin_stream) {
        (None, None, false) => Stdin::Empty,
        (Some(text), None, false) => Stdin::Bytes(Bytes::from(text)),
        (None, Some(base64), false) => Stdin::Bytes(bytes_of("stdin_base64", &base64)?),
        (None, None, true) => Stdin::Stream,
        _ => {
            return Err(invalid(
                "stdin_text",
                "give at most one of stdin_text, stdin_base64 and stdin_stream",
            ));
        }
    };
    let mut request = ExecRequest::new(params.command).map_err(|error| invalid("command", error))?;
    request.user = parse_optional("user", params.user.as_ref())?;
    if params.workdir.is_some() && params.try_workdir.is_some() {
        return Err(invalid("try_workdir", "cannot be given together with workdir"));
    }
    request.workdir = guest_folder("workdir", params.workdir)?;
    request.try_workdir = guest_folder("try_workdir", params.try_workdir)?;
    for (name, value) in params.env {
        if value.contains('\0') {
            return Err(invalid("env", format!("the value of {name} contains a NUL byte")));
        }
        request.env.push((parse("env", &name)?, value));
    }
    request.caller_env = CallerEnv::new(params.caller_env).map_err(|error| invalid("caller_env", error))?;
    request.stdin = stdin;
    if params.pass_through {
        request.output = OutputKept::Unread;
    }
    Ok(request)
}

fn guest_folder(field: &str, folder: Option<String>) -> Result<Option<String>, Refusal> {
    match folder {
        Some(folder) if folder.is_empty() || folder.contains('\0') => {
            Err(invalid(field, "is a folder in the machine"))
        }
        folder => Ok(folder),
    }
}

/// Parses bytes given as text or base64.
pub(super) fn bytes_of(field: &str, base64: &str) -> Result<Bytes, Refusal> {
    BASE64
        .decode(base64)
        .map(Bytes::from)
        .map_err(|error| invalid(field, format!("not base64: {error}")))
}

/// Writes a time.
pub(super) fn time(wall: SystemTime) -> String {
    time_ms(unix_ms(wall))
}

/// Writes a time given in milliseconds since 1970.
pub(super) fn time_ms(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .to_string()
}

/// Writes a duration in milliseconds.
pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Writes when and how facts were seen.
pub(super) fn observed(seen: &ObservedAnswer, now: &Moment) -> types::Observed {
    types::Observed {
        generation: seen.generation.get(),
        observed_at: time(seen.observed_at.wall),
        source: seen.source.as_str().into(),
        stale: seen.stale.is_some(),
        stale_reason: seen
            .stale
            .as_ref()
            .map(|problem| format!("orbctl is sick: {problem}")),
        age_ms: ms(now.age_of(&seen.observed_at)),
    }
}

/// Writes what ails `orbctl`.
pub(super) fn outage(view: &OutageView) -> types::Outage {
    types::Outage {
        since: time(view.since.wall),
        reason: view.problem.to_string(),
        retry_after_ms: ms(view.retry_after),
    }
}

/// Writes that another program lies on disk, and what it waits for.
pub(super) fn upgrade(upgrade: &Upgrade, busy: Option<&BusyReason>) -> types::Upgrade {
    let (version, reason) = match &upgrade.preflight {
        Ok(version) => (Some(version.clone()), None),
        Err(reason) => (None, Some(reason.clone())),
    };
    types::Upgrade {
        state: if reason.is_none() { "pending" } else { "refused" }.into(),
        noticed_at: time(upgrade.noticed.wall),
        waits_for: version.as_ref().map(|_| match busy {
            Some(BusyReason::Job(job)) => waiting_for(job).description,
            Some(BusyReason::Paused) => "a pause of the queue, which a new daemon would not know of".into(),
            Some(BusyReason::Draining) => "a drain of the queue, which a new daemon would not know of".into(),
            Some(BusyReason::Recent) | None => "a moment without jobs".into(),
        }),
        version,
        reason,
    }
}

/// Writes a machine.
pub(super) fn machine(machine: &Machine) -> types::Machine {
    types::Machine {
        id: machine.id.to_string(),
        name: machine.name.to_string(),
        state: machine.state.as_str().into(),
        image: types::Image {
            distro: machine.image.distro.clone(),
            version: machine.image.version.clone(),
            arch: machine.image.arch.clone(),
            variant: machine.image.variant.clone(),
        },
        config: types::MachineConfig {
            default_username: machine.config.default_username.clone(),
            isolated: machine.config.isolated,
            isolate_network: machine.config.isolate_network,
            forward_ssh_agent: machine.config.forward_ssh_agent,
            http_port: machine.config.http_port,
            https_port: machine.config.https_port,
            cpu_limit: machine.config.cpu_limit,
            memory_limit_mib: machine.config.memory_limit_mib,
            disk_limit_bytes: machine.config.disk_limit_bytes,
        },
        builtin: machine.builtin,
    }
}

/// Writes a machine's details.
pub(super) fn info(info: &MachineInfo, observed: types::Observed) -> types::MachineInfoAnswer {
    types::MachineInfoAnswer {
        machine: machine(&info.machine),
        disk_size: info.disk_size,
        ip4: info.ip4.map(|ip| ip.to_string()),
        ip6: info.ip6.map(|ip| ip.to_string()),
        observed,
    }
}

/// Refuses by name the first parameter that is given to what does not take it. Of each it is told whether it is given and whether
/// it is taken.
pub(super) fn only_what_belongs<'a>(
    to: &str,
    parameters: impl IntoIterator<Item = (&'a str, bool, bool)>,
) -> Result<(), Refusal> {
    for (field, is_given, is_taken) in parameters {
        if is_given && !is_taken {
            return Err(invalid(field, format!("does not belong to this {to}")));
        }
    }
    Ok(())
}

/// Parses a read in `orbctl`'s own words. A field that does not belong to its command is refused by name.
pub(super) fn raw_query(read: &types::RawRead) -> Result<RawQuery, Refusal> {
    use types::ReadCommand as R;
    let command = read.command;
    let takes_machine = matches!(command, R::Info | R::Logs);
    let takes_format = matches!(command, R::List | R::Info);
    only_what_belongs(
        "command",
        [
            ("read.machine", read.machine.is_some(), takes_machine),
            ("read.key", read.key.is_some(), command == R::ConfigGet),
            ("read.format", read.format.is_some(), takes_format),
            ("read.quiet", read.quiet, command == R::List),
            ("read.running", read.running, command == R::List),
            ("read.all", read.all, command == R::Logs),
        ],
    )?;
    let format = read.format.map(|format| match format {
        types::ReadFormat::Text => Format::Text,
        types::ReadFormat::Json => Format::Json,
    });
    let machine = || -> Result<MachineName, Refusal> {
        let missing = || invalid("read.machine", "is missing");
        parse("read.machine", read.machine.as_ref().ok_or_else(missing)?)
    };
    Ok(match command {
        R::List => RawQuery::List {
            format,
            quiet: read.quiet,
            running: read.running,
        },
        R::Info => RawQuery::Info {
            machine: machine()?,
            format,
        },
        R::Status => RawQuery::Status,
        R::Version => RawQuery::Version,
        R::ConfigShow => RawQuery::ConfigShow,
        R::ConfigGet => {
            let missing = || invalid("read.key", "is missing");
            RawQuery::ConfigGet(parse("read.key", read.key.as_ref().ok_or_else(missing)?)?)
        }
        R::Default => RawQuery::Default,
        R::Ssh => RawQuery::Ssh,
        R::Logs => {
            let scope = if read.all {
                LogScope::All
            } else {
                LogScope::Default
            };
            RawQuery::Logs(machine()?, scope)
        }
    })
}

/// Writes what was printed and how the tool ended.
pub(super) fn raw_output(printed: &RawOutput, observed: types::Observed) -> types::RawOutputAnswer {
    let bytes = |bytes: &Bytes| {
        let (text, base64) = text_or_base64(bytes);
        types::Printed { text, base64 }
    };
    let (exit_code, signal) = match printed.ending {
        Ending::Exited(code) => (Some(code), None),
        Ending::Signalled(signal) => (None, Some(signal)),
        // Nothing is answered for these.
        Ending::TimedOut | Ending::Stopped => (None, None),
    };
    types::RawOutputAnswer {
        stdout: bytes(&printed.stdout),
        stderr: bytes(&printed.stderr),
        exit_code,
        signal,
        observed,
    }
}

/// Writes a piece of output.
pub(super) fn chunk(chunk: &spool::Chunk) -> types::Chunk {
    let (text, base64) = text_or_base64(&chunk.bytes);
    chunk_with(chunk, text, base64)
}

/// Writes bytes as text where they are UTF-8, else as base64.
fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

/// Writes a chunk of output whose bytes somebody else wrote.
pub(super) fn chunk_with(chunk: &spool::Chunk, text: Option<String>, base64: Option<String>) -> types::Chunk {
    let stream = match chunk.stream {
        spool::Stream::Stdout => types::Stream::Stdout,
        spool::Stream::Stderr => types::Stream::Stderr,
    };
    types::Chunk {
        stream,
        offset: chunk.offset,
        at_us: us(chunk.at),
        text,
        base64,
    }
}

/// Writes why a job waits.
pub(super) fn waiting_for(waiting: &WaitingFor) -> types::WaitingFor {
    let empty = types::WaitingFor {
        kind: String::new(),
        description: String::new(),
        job_id: None,
        operation: None,
        machine: None,
        client: None,
        age_ms: None,
        limit: None,
        reason: None,
    };
    match waiting {
        WaitingFor::Job {
            id,
            verb,
            machine,
            client,
            age,
        } => {
            let target = machine
                .as_ref()
                .map(|name| format!(" {name}"))
                .unwrap_or_default();
            types::WaitingFor {
                kind: "job".into(),
                description: format!(
                    "job {id} ({verb}{target}) of {client}, accepted {} s ago",
                    age.as_secs()
                ),
                job_id: Some(id.0),
                operation: Some((*verb).into()),
                machine: machine.as_ref().map(MachineName::to_string),
                client: Some(client.to_string()),
                age_ms: Some(ms(*age)),
                ..empty
            }
        }
        WaitingFor::Limit(limit) => types::WaitingFor {
            kind: "limit".into(),
            description: format!("the limit {limit}"),
            limit: Some((*limit).into()),
            ..empty
        },
        WaitingFor::Paused => types::WaitingFor {
            kind: "paused".into(),
            description: "a pause of the queue".into(),
            ..empty
        },
        WaitingFor::Unhealthy(problem) => types::WaitingFor {
            kind: "unhealthy".into(),
            description: format!("orbctl, which is unhealthy: {problem}"),
            reason: Some(problem.to_string()),
            ..empty
        },
    }
}

fn state_word(state: &JobState) -> types::JobStateWord {
    match state {
        JobState::Waiting => types::JobStateWord::Waiting,
        JobState::Running { .. } => types::JobStateWord::Running,
        JobState::Ended { .. } => types::JobStateWord::Ended,
    }
}

/// Durations of a job so far: waiting and running.
fn durations(accepted: &Moment, state: &JobState, now: &Moment) -> (Duration, Option<Duration>) {
    let between = |from: &Moment, to: &Moment| to.instant.saturating_duration_since(from.instant);
    match state {
        JobState::Waiting => (between(accepted, now), None),
        JobState::Running { since } => (between(accepted, since), Some(between(since, now))),
        JobState::Ended {
            since: Some(since),
            at,
            ..
        } => (between(accepted, since), Some(between(since, at))),
        JobState::Ended { since: None, at, .. } => (between(accepted, at), None),
    }
}

/// Writes a job.
pub(super) fn job(view: &JobView) -> types::Job {
    let now = Moment::now();
    let spec = &view.spec;
    let (wait, run) = durations(&spec.accepted, &view.state, &now);
    let (started, ended, outcome) = match &view.state {
        JobState::Waiting => (None, None, None),
        JobState::Running { since } => (Some(since), None, None),
        JobState::Ended {
            since,
            at,
            outcome,
            holder,
        } => (
            since.as_ref(),
            Some(at),
            Some(outcome_out(
                outcome,
                spec.id,
                &spec.asked.operation,
                holder.as_ref(),
            )),
        ),
    };
    types::Job {
        job_id: spec.id.0,
        operation: spec.asked.operation.verb().into(),
        machine: spec.asked.operation.machine().map(MachineName::to_string),
        job_class: spec.asked.operation.class().as_str().into(),
        client: client(&spec.asked.client),
        lanes: lanes(&spec.asked.operation.footprint()),
        detached: spec.asked.detached,
        state: state_word(&view.state),
        accepted_at: time(spec.accepted.wall),
        started_at: started.map(|moment| time(moment.wall)),
        ended_at: ended.map(|moment| time(moment.wall)),
        wait_us: us(wait),
        run_us: run.map(us),
        waiting_for: view.waiting_for.as_ref().map(waiting_for),
        outcome,
        output_bytes: view.output_bytes,
        joined_callers: view.joined,
        not_durable: view.is_unwritten,
    }
}

/// Lists the lanes of a footprint: machines by name, then the configuration, then the fleet.
fn lanes(footprint: &Footprint) -> Vec<types::JobLane> {
    let mut lanes: Vec<types::JobLane> = footprint
        .lanes()
        .iter()
        .map(|(lane, access)| {
            let (kind, machine) = match lane {
                Lane::Machine(name) => (types::LaneKind::Machine, Some(name.to_string())),
                Lane::Configuration => (types::LaneKind::Configuration, None),
                Lane::Fleet => (types::LaneKind::Fleet, None),
            };
            types::JobLane {
                kind,
                machine,
                exclusive: *access == Access::Exclusive,
            }
        })
        .collect();
    lanes.sort();
    lanes
}

fn client(client: &dispatcher::Client) -> types::Client {
    types::Client {
        name: client.name.to_string(),
        pid: client.pid,
        uid: client.uid,
    }
}

/// Returns the stable word of an outcome.
pub(super) fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Cancelled(_) => "cancelled",
        Outcome::Expired(_) => "expired",
        Outcome::Interrupted => "interrupted",
        Outcome::Unknown(_) => "unknown",
    }
}

fn outcome_out(
    outcome: &Outcome,
    id: JobId,
    operation: &Operation,
    holder: Option<&WaitingFor>,
) -> types::Outcome {
    let mut written = types::Outcome {
        kind: outcome_word(outcome).into(),
        exit_code: None,
        changed: None,
        warning: None,
        error: None,
    };
    match outcome {
        Outcome::Succeeded(Success::Read) => {}
        Outcome::Succeeded(Success::Exec { exit_code }) => written.exit_code = Some(*exit_code),
        Outcome::Succeeded(Success::Change { changed }) => written.changed = Some(*changed),
        Outcome::Succeeded(Success::Lease { changed }) => written.changed = *changed,
        Outcome::Succeeded(Success::Observed { changed, warning }) => {
            written.changed = *changed;
            written.warning = Some(warning.to_string());
        }
        other => written.error = Some(outcome_error(other, id, operation, holder)),
    }
    written
}

/// Where a job is, as every answer of its caller's tells it: waiting is told once it is over.
struct Progress {
    state: types::JobStateWord,
    wait_us: Option<u64>,
    run_us: Option<u64>,
}

fn progress(accepted: &Moment, state: &JobState) -> Progress {
    let (wait, run) = durations(accepted, state, &Moment::now());
    Progress {
        state: state_word(state),
        wait_us: (!matches!(state, JobState::Waiting)).then(|| us(wait)),
        run_us: run.map(us),
    }
}

/// Answers a change: when it ended, or where it is.
pub(super) fn change_answer(id: JobId, accepted: &Moment, state: &JobState) -> types::ChangeAnswer {
    let (changed, warning) = match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Change { changed }),
            ..
        } => (Some(*changed), None),
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Observed { changed, warning }),
            ..
        } => (*changed, Some(warning.to_string())),
        _ => (None, None),
    };
    let Progress {
        state,
        wait_us,
        run_us,
    } = progress(accepted, state);
    types::ChangeAnswer {
        job_id: id.0,
        state,
        changed,
        warning,
        wait_us,
        run_us,
    }
}

/// Answers a command: when it ended, or where it is; its output is filled in by the caller.
pub(super) fn run_answer(id: JobId, accepted: &Moment, state: &JobState) -> types::RunAnswer {
    let exit_code = match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Exec { exit_code }),
            ..
        } => Some(*exit_code),
        _ => None,
    };
    let Progress {
        state,
        wait_us,
        run_us,
    } = progress(accepted, state);
    types::RunAnswer {
        job_id: id.0,
        state,
        exit_code,
        output: Vec::new(),
        next_offset: 0,
        output_bytes: 0,
        wait_us,
        run_us,
    }
}

/// When the next instance answers: it starts within milliseconds, and connections wait for it.
const UPGRADE_RETRY_AFTER_MS: u64 = 100;

/// Writes why something was not accepted.
pub(super) fn rejection(rejection: &Rejection) -> Refusal {
    match rejection {
        Rejection::QueueFull { retry_after, .. }
        | Rejection::ClientQueueFull { retry_after, .. }
        | Rejection::OperandsFull { retry_after, .. } => {
            let mut data = ErrorKind::QueueFull.data();
            data.retry_after_ms = Some(ms(*retry_after));
            ErrorKind::QueueFull.with(rejection.to_string(), data)
        }
        Rejection::Unhealthy(outage) => {
            let retry_after_ms = ms(outage.retry_after);
            let text = format!("{rejection}; orbd keeps looking: come back in {retry_after_ms} ms, or force");
            let mut data = ErrorKind::OrbctlUnhealthy.data();
            data.retry_after_ms = Some(retry_after_ms);
            ErrorKind::OrbctlUnhealthy.with(text, data)
        }
        Rejection::ClientGone => {
            let mut data = ErrorKind::JobCancelled.data();
            data.phase = Some("queued".into());
            ErrorKind::JobCancelled.with(rejection.to_string(), data)
        }
        Rejection::Draining { .. } | Rejection::Stopping => ErrorKind::Draining.error(rejection.to_string()),
        Rejection::Upgrading => {
            let mut data = ErrorKind::Draining.data();
            data.retry_after_ms = Some(UPGRADE_RETRY_AFTER_MS);
            ErrorKind::Draining.with(rejection.to_string(), data)
        }
        Rejection::Journal(_) => ErrorKind::JournalUnavailable.error(rejection.to_string()),
    }
}

/// Writes why a read gave nothing.
pub(super) fn read_error(error: &ReadError, operation: &Operation) -> Refusal {
    match error {
        ReadError::Rejected(refused) => rejection(refused),
        ReadError::Ended { id, outcome, holder } => outcome_error(outcome, *id, operation, holder.as_ref()),
    }
}

/// When to come back after a job met a sick `orbctl`: that was noticed just then, and the first probe follows within a second.
/// Who comes too early is refused and told more exactly.
const SICK_RETRY_AFTER_MS: u64 = 1000;

/// Logs a fault of our own under a number that the caller is told.
pub(super) fn internal(what: &str) -> Refusal {
    let incident = format!("{:x}", unix_ms(Moment::now().wall));
    tracing::error!(incident, what, "internal error");
    let mut data = ErrorKind::Internal.data();
    data.incident = Some(incident.clone());
    ErrorKind::Internal.with(
        format!("orbd failed; its log says more under incident {incident}"),
        data,
    )
}

/// Writes why orbd signalled the process of a lease, if it did.
pub(super) fn signalled(released: &Released, spec: &JobSpec) -> Option<Refusal> {
    let holder = released.preempted_by.as_ref();
    let outcome = released.signalled.as_ref()?;
    Some(outcome_error(outcome, spec.id, &spec.asked.operation, holder))
}

/// Writes the error that an outcome is to whoever waited for it. Success is not one.
pub(super) fn outcome_error(
    outcome: &Outcome,
    id: JobId,
    operation: &Operation,
    holder_seen: Option<&WaitingFor>,
) -> Refusal {
    let what = match operation.machine() {
        Some(machine) => format!("{} {machine}", operation.verb()),
        None => operation.verb().to_owned(),
    };
    let start = |kind: ErrorKind| {
        let mut data = kind.data();
        data.job_id = Some(id.0);
        data.machine = operation.machine().map(MachineName::to_string);
        data
    };
    let phase_word = |phase: &Phase| match phase {
        Phase::Queued => "queued".to_owned(),
        Phase::Running => "running".to_owned(),
    };
    match outcome {
        Outcome::Succeeded(_) => internal("a success was taken for an error"),
        Outcome::Failed(failure) => failure_error(failure, &what, start),
        Outcome::Cancelled(phase) => {
            let mut data = start(ErrorKind::JobCancelled);
            data.phase = Some(phase_word(phase));
            let mut text = match phase {
                Phase::Queued => format!("job {id} ({what}) was cancelled before it started"),
                Phase::Running => format!("job {id} ({what}) was cancelled while it ran"),
            };
            if let Some(force) = holder_seen {
                let holder = waiting_for(force);
                text = format!("{text}, by force of {}", holder.description);
                data.waiting_for = Some(holder);
            }
            ErrorKind::JobCancelled.with(text, data)
        }
        Outcome::Expired(phase) => {
            let mut data = start(ErrorKind::DeadlineExceeded);
            data.phase = Some(phase_word(phase));
            let text = match (phase, holder_seen) {
                (Phase::Queued, Some(waiting)) => {
                    let holder = waiting_for(waiting);
                    let text = format!("job {id} ({what}) gave up waiting for {}", holder.description);
                    data.waiting_for = Some(holder);
                    text
                }
                (Phase::Queued, None) => format!("job {id} ({what}) waited longer than its queue timeout"),
                (Phase::Running, _) => {
                    format!("job {id} ({what}) ran longer than its run timeout and was ended")
                }
            };
            ErrorKind::DeadlineExceeded.with(text, data)
        }
        Outcome::Interrupted => ErrorKind::JobInterrupted.with(
            format!("job {id} ({what}) ended unseen: its orbd or its client died"),
            start(ErrorKind::JobInterrupted),
        ),
        Outcome::Unknown(sighting) => {
            let mut data = start(ErrorKind::OutcomeUnknown);
            let seen = match (sighting.satisfied, sighting.stable) {
                (Some(true), _) => "what it was to do now holds, but may have held before",
                (Some(false), true) => "what it was to do does not hold",
                (Some(false), false) => "it may still be under way",
                (None, _) => "what came of it could not be seen",
            };
            data.observed = Some(types::ReconcileReport {
                stable: sighting.stable,
                satisfied: sighting.satisfied,
                machine_state: sighting.machine_state.as_deref().map(str::to_owned),
            });
            let text = format!("job {id} ({what}) was cut short: {seen}; look before you try again");
            ErrorKind::OutcomeUnknown.with(text, data)
        }
    }
}

fn failure_error(failure: &Failure, what: &str, start: impl Fn(ErrorKind) -> types::ErrorData) -> Refusal {
    let text = failure.to_string();
    match failure {
        Failure::MachineNotFound(name) => {
            let mut data = start(ErrorKind::MachineNotFound);
            data.machine = Some(name.to_string());
            ErrorKind::MachineNotFound.with(text, data)
        }
        Failure::MachineExists(name) => {
            let mut data = start(ErrorKind::MachineExists);
            data.machine = Some(name.to_string());
            ErrorKind::MachineExists.with(text, data)
        }
        Failure::MachineWrongState { machine, state } => {
            let mut data = start(ErrorKind::MachineWrongState);
            data.machine = Some(machine.to_string());
            // A machine that is on its way to another state will arrive there.
            data.retryable = matches!(MachineState::from_word(state), MachineState::Busy(_));
            data.machine_state = Some(state.to_string());
            ErrorKind::MachineWrongState.with(text, data)
        }
        Failure::NoLogs { machine, .. } => {
            let mut data = start(ErrorKind::MachineWrongState);
            data.machine = Some(machine.to_string());
            ErrorKind::MachineWrongState.with(text, data)
        }
        Failure::ConfigKeyNotFound(_) => {
            let mut data = start(ErrorKind::InvalidParams);
            data.field = Some("key".into());
            ErrorKind::InvalidParams.with(text, data)
        }
        Failure::OrbctlUnavailable(_) => {
            ErrorKind::OrbctlUnavailable.with(text, start(ErrorKind::OrbctlUnavailable))
        }
        Failure::OrbctlFailed {
            exit_code,
            stderr_tail,
        } => {
            let mut data = start(ErrorKind::OrbctlFailed);
            data.exit_code = Some(*exit_code);
            data.stderr_tail = Some(stderr_tail.to_string());
            let tail = stderr_tail.trim();
            let text = if tail.is_empty() {
                format!("{what}: orbctl failed with exit code {exit_code} and said nothing")
            } else {
                format!("{what}: orbctl failed with exit code {exit_code}: {tail}")
            };
            ErrorKind::OrbctlFailed.with(text, data)
        }
        Failure::OrbctlKilled { signal, stderr_tail } => {
            let mut data = start(ErrorKind::OrbctlKilled);
            data.signal = Some(*signal);
            data.stderr_tail = Some(stderr_tail.to_string());
            ErrorKind::OrbctlKilled.with(format!("{what}: {text}"), data)
        }
        Failure::OrbctlUnhealthy(_) => {
            let mut data = start(ErrorKind::OrbctlUnhealthy);
            data.retry_after_ms = Some(SICK_RETRY_AFTER_MS);
            ErrorKind::OrbctlUnhealthy.with(format!("{what}: {text}"), data)
        }
        Failure::OrbctlOutputUnreadable(_) => ErrorKind::OrbctlOutputUnreadable.with(
            format!("{what}: {text}"),
            start(ErrorKind::OrbctlOutputUnreadable),
        ),
        Failure::JournalUnavailable(_) => {
            ErrorKind::JournalUnavailable.with(text, start(ErrorKind::JournalUnavailable))
        }
        Failure::Internal(cause) => internal(&format!("{what}: {cause}")),
    }
}

/// Writes keys and values.
pub(super) fn config(values: &[(String, String)]) -> BTreeMap<String, String> {
    values.iter().cloned().collect()
}
