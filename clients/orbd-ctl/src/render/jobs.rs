//! Jobs, what they wait for, and the queue.

use std::fmt::Write as _;

use comfy_table::{Cell, Color};
use orbd_proto::types::{
    EventJob, Job, JobListAnswer, JobStateWord, Outcome, QueueStatusAnswer, WaitReason, WaitingFor,
};

use super::{BAD, GOOD, HINT, QUIET, age_ms, bytes, cell, duration_us, paint, plain};
use crate::layout::Look;

/// Formats a job's name, e.g. `job 12 (create web)` or `job 12 (create web, "Prepare")`.
pub(crate) fn job_name(job: &Job) -> String {
    name(
        job.job_id,
        &job.operation,
        job.machine.as_deref(),
        job.label.as_deref(),
    )
}

/// The same of a job in an event.
pub(crate) fn event_job_name(job: &EventJob) -> String {
    name(
        job.job_id,
        &job.operation,
        job.machine.as_deref(),
        job.label.as_deref(),
    )
}

fn name(id: u64, operation: &str, machine: Option<&str>, label: Option<&str>) -> String {
    let machine = machine.map_or_else(String::new, |machine| format!(" {machine}"));
    let label = label.map_or_else(String::new, |label| format!(", \"{}\"", plain(label)));
    format!("job {id} ({operation}{machine}{label})")
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
    let what = match (&job.waiting_for, &job.outcome) {
        (Some(reason), _) if job.state == JobStateWord::Waiting => format!("for {}", waiting_for(reason).0),
        (_, Some(ended)) => outcome(ended),
        _ if job.detached => "detached".into(),
        _ => String::new(),
    };
    match &job.label {
        Some(label) if what.is_empty() => format!("\"{label}\""),
        Some(label) => format!("\"{label}\": {what}"),
        None => what,
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
                cell(&state).fg(style),
                cell(&job.operation),
                cell(job.machine.as_deref().unwrap_or("-")),
                cell(&job.client.name),
                Cell::new(duration_us(job.wait_us)),
                Cell::new(job.run_us.map_or_else(|| "-".into(), duration_us)),
                cell(&detail(job)),
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
    known("label", job.label.clone());
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
    known("channel", job.in_channel.then(|| "yes".into()));
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
