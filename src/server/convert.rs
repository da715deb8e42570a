//! Converts between wire types and internal types. Parsing names the invalid field; writing copies.

mod events;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use bytes::Bytes;

use super::context::Upgrade;
use super::line_notifications::BASE64;
use crate::clock::{Moment, unix_ms};
use crate::dispatcher::{
    self, BusyReason, JobSpec, JobState, JobView, ObservedAnswer, OutageView, RawOutput, ReadError,
    Rejection, Released, Target, WaitingFor,
};
use crate::job::{Ending, Failure, JobId, Outcome, Phase, Success};
use crate::machine::{Machine, MachineInfo, MachineName, MachineState};
use crate::operation::{
    Access, CallerEnv, ExecRequest, Footprint, Force, Format, Lane, LogScope, MachineRef, NewMachine,
    Operation, OutputKept, RawQuery, Stdin,
};
use crate::spool;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::types;

pub(super) use events::{event, event_gap, event_kind, event_state};

type Refusal = types::ErrorObject;

/// Longest timeout accepted on the wire. A larger number is a mistake and could overflow the clock.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parses a field into a type that validates itself.
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

/// Parses a machine's name or id.
pub(super) fn machine_ref(field: &str, text: &str) -> Result<MachineRef, Refusal> {
    parse(field, text)
}

/// Converts a timeout in milliseconds and checks its limit.
pub(super) fn timeout(field: &str, ms: Option<u64>) -> Result<Option<Duration>, Refusal> {
    match ms.map(Duration::from_millis) {
        Some(limit) if limit > TIMEOUT_MAX => Err(invalid(field, "must be at most a year")),
        limit => Ok(limit),
    }
}

/// Converts the flag `force`.
pub(super) fn force(force: bool) -> Force {
    if force { Force::Yes } else { Force::No }
}

/// Parses the parameters of a machine to create.
pub(super) fn new_machine(params: &types::MachineCreateParams) -> Result<NewMachine, Refusal> {
    if params.cpus == Some(0) {
        return Err(invalid("cpus", "must be at least 1"));
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
            Err(invalid(field, "must be a directory in the machine"))
        }
        folder => Ok(folder),
    }
}

/// Decodes base64.
pub(super) fn bytes_of(field: &str, base64: &str) -> Result<Bytes, Refusal> {
    BASE64
        .decode(base64)
        .map(Bytes::from)
        .map_err(|error| invalid(field, format!("invalid base64: {error}")))
}

/// Formats a time as RFC 3339 in UTC with milliseconds.
pub(super) fn time(wall: SystemTime) -> String {
    time_ms(unix_ms(wall))
}

/// Formats a time given in milliseconds since 1970.
pub(super) fn time_ms(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .to_string()
}

/// Converts a duration to milliseconds.
pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Returns when and how an answer was read.
pub(super) fn observed(seen: &ObservedAnswer, now: &Moment) -> types::Observed {
    types::Observed {
        generation: seen.generation.get(),
        observed_at: time(seen.observed_at.wall),
        source: seen.source.as_str().into(),
        stale: seen.stale.is_some(),
        stale_reason: seen
            .stale
            .as_ref()
            .map(|problem| format!("orbctl is unhealthy: {problem}")),
        age_ms: ms(now.age_of(&seen.observed_at)),
    }
}

/// Converts an outage of `orbctl`.
pub(super) fn outage(view: &OutageView) -> types::Outage {
    types::Outage {
        since: time(view.since.wall),
        reason: view.problem.to_string(),
        retry_after_ms: ms(view.retry_after),
    }
}

/// Converts a pending or refused upgrade. `busy` says why the daemon is not idle.
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
            Some(BusyReason::Paused) => "the queue to be resumed, as an upgrade would end the pause".into(),
            Some(BusyReason::Draining) => "the end of the drain, as an upgrade would cancel it".into(),
            Some(BusyReason::Recent) | None => "an idle moment".into(),
        }),
        version,
        reason,
    }
}

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

/// Converts the details of a machine.
pub(super) fn info(info: &MachineInfo, observed: types::Observed) -> types::MachineInfoAnswer {
    types::MachineInfoAnswer {
        machine: machine(&info.machine),
        disk_size: info.disk_size,
        ip4: info.ip4.map(|ip| ip.to_string()),
        ip6: info.ip6.map(|ip| ip.to_string()),
        observed,
    }
}

/// Rejects the first parameter that was supplied but is not accepted by `to`. Each item has the parameter's name, whether it was supplied,
/// and whether it is accepted.
pub(super) fn only_what_belongs<'a>(
    to: &str,
    parameters: impl IntoIterator<Item = (&'a str, bool, bool)>,
) -> Result<(), Refusal> {
    for (field, is_given, is_taken) in parameters {
        if is_given && !is_taken {
            return Err(invalid(field, format!("not accepted by this {to}")));
        }
    }
    Ok(())
}

/// Parses a read command of `orbctl`. Rejects a field that the command does not accept.
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
        let missing = || invalid("read.machine", "required by this command");
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
            let missing = || invalid("read.key", "required by this command");
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

/// Converts the output of `orbctl` and how it ended.
pub(super) fn raw_output(printed: &RawOutput, observed: types::Observed) -> types::RawOutputAnswer {
    let bytes = |bytes: &Bytes| {
        let (text, base64) = text_or_base64(bytes);
        types::RawStream { text, base64 }
    };
    let (exit_code, signal) = match printed.ending {
        Ending::Exited(code) => (Some(code), None),
        Ending::Signalled(signal) => (None, Some(signal)),
        // A read that ended this way fails with an error instead.
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

/// Converts a piece of output.
pub(super) fn chunk(chunk: &spool::Chunk) -> types::Chunk {
    let (text, base64) = text_or_base64(&chunk.bytes);
    chunk_with(chunk, text, base64)
}

/// Encodes bytes as text if they are UTF-8, else as base64.
fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

/// Converts a piece of output whose bytes the caller has encoded.
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

/// Converts what a job waits for.
pub(super) fn waiting_for(waiting: &WaitingFor) -> types::WaitingFor {
    let (description, reason) = match waiting {
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
            let description = format!(
                "job {id} ({verb}{target}) of {client}, accepted {} s ago",
                age.as_secs()
            );
            let reason = types::WaitReason::Job {
                job_id: id.0,
                operation: (*verb).into(),
                machine: machine.as_ref().map(MachineName::to_string),
                client: client.to_string(),
                age_ms: ms(*age),
            };
            (description, reason)
        }
        WaitingFor::Limit(limit) => (
            format!("a free slot (limit {limit})"),
            types::WaitReason::Limit {
                limit: (*limit).into(),
            },
        ),
        WaitingFor::Paused(Target::All) => (
            "the queue to be resumed".into(),
            types::WaitReason::Paused { machine: None },
        ),
        WaitingFor::Paused(Target::Machine(name)) => (
            format!("the lane of {name} to be resumed"),
            types::WaitReason::Paused {
                machine: Some(name.to_string()),
            },
        ),
        WaitingFor::Unhealthy(problem) => (
            format!("orbctl to recover ({problem})"),
            types::WaitReason::Unhealthy {
                reason: problem.to_string(),
            },
        ),
    };
    types::WaitingFor { description, reason }
}

fn state_word(state: &JobState) -> types::JobStateWord {
    match state {
        JobState::Waiting => types::JobStateWord::Waiting,
        JobState::Running { .. } => types::JobStateWord::Running,
        JobState::Ended { .. } => types::JobStateWord::Ended,
    }
}

/// Returns how long a job has waited and, once it has started, how long it has run.
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
                &spec.submission.operation,
                holder.as_ref(),
            )),
        ),
    };
    types::Job {
        job_id: spec.id.0,
        operation: spec.submission.operation.verb().into(),
        machine: spec.submission.operation.machine().map(MachineName::to_string),
        job_class: spec.submission.operation.class().as_str().into(),
        client: client(&spec.submission.client),
        lanes: lanes(&spec.submission.operation.footprint()),
        detached: spec.submission.detached,
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

/// Returns the name of an outcome on the wire.
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

/// State and durations of a job in the answer of a change or command. `wait_us` is `None` while the job waits.
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

/// Builds the answer of a change from the job's current state.
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

/// Builds the answer of a command from the job's current state. The caller adds the output.
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

/// Retry delay during an upgrade: the next instance starts within milliseconds, and new connections wait for it.
const UPGRADE_RETRY_AFTER_MS: u64 = 100;

/// Converts a rejection to an error.
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
            let text = format!("{rejection}; try again in {retry_after_ms} ms, or use force");
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

/// Converts the error of a read.
pub(super) fn read_error(error: &ReadError, operation: &Operation) -> Refusal {
    match error {
        ReadError::Rejected(refused) => rejection(refused),
        ReadError::Ended { id, outcome, holder } => outcome_error(outcome, *id, operation, holder.as_ref()),
    }
}

/// Retry delay after a job failed because `orbctl` is unhealthy: the first probe starts within a second. An earlier retry is refused with a
/// more precise delay.
const UNHEALTHY_RETRY_AFTER_MS: u64 = 1000;

/// Logs a bug in orbd and returns an error with the incident number of the log line.
pub(super) fn internal(what: &str) -> Refusal {
    let incident = format!("{:x}", unix_ms(Moment::now().wall));
    tracing::error!(incident, what, "internal error");
    let mut data = ErrorKind::Internal.data();
    data.incident = Some(incident.clone());
    ErrorKind::Internal.with(
        format!("internal error in orbd; see incident {incident} in its log"),
        data,
    )
}

/// Returns the error that says why orbd signalled the child of a lease; `None` if it did not.
pub(super) fn signalled(released: &Released, spec: &JobSpec) -> Option<Refusal> {
    let holder = released.preempted_by.as_ref();
    let outcome = released.signalled.as_ref()?;
    Some(outcome_error(
        outcome,
        spec.id,
        &spec.submission.operation,
        holder,
    ))
}

/// Returns the error for an outcome other than success. `holder_seen` is what the job waited for, or the job that preempted it.
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
        Outcome::Succeeded(_) => internal("a successful outcome was treated as an error"),
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
                text = format!("{text}: preempted by {}", holder.description);
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
                    let text = format!(
                        "job {id} ({what}) exceeded its queue timeout while waiting for {}",
                        holder.description
                    );
                    data.waiting_for = Some(holder);
                    text
                }
                (Phase::Queued, None) => format!("job {id} ({what}) exceeded its queue timeout"),
                (Phase::Running, _) => {
                    format!("job {id} ({what}) exceeded its run timeout and was ended")
                }
            };
            ErrorKind::DeadlineExceeded.with(text, data)
        }
        Outcome::Interrupted => ErrorKind::JobInterrupted.with(
            format!("job {id} ({what}) was interrupted: orbd or the client exited while it ran"),
            start(ErrorKind::JobInterrupted),
        ),
        Outcome::Unknown(sighting) => {
            let mut data = start(ErrorKind::OutcomeUnknown);
            let seen = match (sighting.satisfied, sighting.stable) {
                (Some(true), _) => "the requested state was observed, but may have existed before",
                (Some(false), true) => "the requested state was not observed",
                (Some(false), false) => "it may still be under way",
                (None, _) => "its result could not be determined",
            };
            data.observed = Some(types::ReconcileReport {
                stable: sighting.stable,
                satisfied: sighting.satisfied,
                machine_state: sighting.machine_state.as_deref().map(str::to_owned),
            });
            let text = format!("job {id} ({what}) was interrupted: {seen}; check before you try again");
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
            // A machine that is changing state will soon be in another one.
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
                format!("{what}: orbctl failed with exit code {exit_code} and no error output")
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
            data.retry_after_ms = Some(UNHEALTHY_RETRY_AFTER_MS);
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

/// Converts configuration keys and values.
pub(super) fn config(values: &[(String, String)]) -> BTreeMap<String, String> {
    values.iter().cloned().collect()
}
