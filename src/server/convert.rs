//! Conversions between wire types and internal types that several groups of methods share. Parsing names the invalid field.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::{Moment, unix_ms};
use crate::dispatcher::{ObservedAnswer, OutageView, Target, WaitingFor};
use crate::job::Outcome;
use crate::operation::{Force, MachineRef};
use orbd_host::machine::{Machine, MachineName};
use orbd_proto::errors::invalid;
use orbd_proto::types::{self, ErrorObject};

/// Longest timeout accepted on the wire. A larger number is a mistake and could overflow the clock.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Parses a field into a type that validates itself.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, ErrorObject>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error| invalid(field, format!("{error} (got {text:?})")))
}

pub(super) fn parse_optional<T>(field: &str, text: Option<&String>) -> Result<Option<T>, ErrorObject>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.map(|text| parse(field, text)).transpose()
}

/// Parses a machine's name or id.
pub(super) fn machine_ref(field: &str, text: &str) -> Result<MachineRef, ErrorObject> {
    parse(field, text)
}

/// Converts a timeout in milliseconds and checks its limit.
pub(super) fn timeout(field: &str, ms: Option<u64>) -> Result<Option<Duration>, ErrorObject> {
    match ms.map(Duration::from_millis) {
        Some(limit) if limit > TIMEOUT_MAX => Err(invalid(field, "must be at most a year")),
        limit => Ok(limit),
    }
}

/// Longest label of a job, in bytes.
const LABEL_MAX: usize = 128;

/// Checks a job's label, which clients print as it is.
pub(super) fn label(label: Option<String>) -> Result<Option<Arc<str>>, ErrorObject> {
    match label {
        Some(label) if label.len() > LABEL_MAX => {
            Err(invalid("label", format!("must have at most {LABEL_MAX} bytes")))
        }
        Some(label) if label.trim().is_empty() => Err(invalid("label", "must not be empty")),
        Some(label) if label.contains(char::is_control) => {
            Err(invalid("label", "must not contain control characters"))
        }
        label => Ok(label.map(Arc::from)),
    }
}

/// Converts the flag `force`.
pub(super) fn force(force: bool) -> Force {
    if force { Force::Yes } else { Force::No }
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

pub(super) fn us(duration: Duration) -> u64 {
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
