//! Converts jobs: their state, durations, lanes and outcome.

use std::time::Duration;

use super::convert::{outcome_word, time, us, waiting_for};
use super::errors::outcome_error;
use crate::clock::Moment;
use crate::dispatcher::{self, JobState, JobView, WaitingFor};
use crate::job::{JobId, Outcome, Success};
use crate::operation::{Access, Footprint, JobInfo, Lane};
use orbd_host::machine::MachineName;
use orbd_proto::types;

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
            Some(outcome_out(outcome, spec.id, &spec.info, holder.as_ref())),
        ),
    };
    types::Job {
        job_id: spec.id.0,
        operation: spec.info.verb.as_str().into(),
        machine: spec.info.machine.as_ref().map(MachineName::to_string),
        job_class: spec.info.class.as_str().into(),
        client: client(&spec.client),
        label: spec.label.as_deref().map(str::to_owned),
        lanes: lanes(&spec.info.footprint),
        detached: spec.detached,
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
        in_channel: view.in_channel,
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

fn outcome_out(outcome: &Outcome, id: JobId, info: &JobInfo, holder: Option<&WaitingFor>) -> types::Outcome {
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
        other => written.error = Some(outcome_error(other, id, info, holder)),
    }
    written
}

/// State and durations of a job in the answer of a change or command. `wait_us` is `None` while the job waits.
pub(super) struct Progress {
    pub(super) state: types::JobStateWord,
    pub(super) wait_us: Option<u64>,
    pub(super) run_us: Option<u64>,
}

pub(super) fn progress(accepted: &Moment, state: &JobState) -> Progress {
    let (wait, run) = durations(accepted, state, &Moment::now());
    Progress {
        state: state_word(state),
        wait_us: (!matches!(state, JobState::Waiting)).then(|| us(wait)),
        run_us: run.map(us),
    }
}
