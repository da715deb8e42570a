//! `events`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use orbd_client::{CallError, Client, Events};
use orbd_proto::methods::EventsSubscribe;
use orbd_proto::types::{
    Event, EventDetails, EventJob, EventKind, EventState, EventsSubscribeParams, GapReason, JobListAnswer,
    Outcome,
};

use crate::args::{not_one_of, whole};
use crate::console::Console;
use crate::context::Context;
use crate::error::CliError;
use crate::layout::Look;
use crate::link::{Link, greet};
use crate::render::{self, MachineColumns};

/// `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Print events until Ctrl-C; reconnects when orbd restarts
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_hyphen_values = true)]
    pub(crate) since: Option<u64>,
    /// orbd instance that assigned the number [default: the running one]
    #[arg(long, value_name = "INSTANCE", requires = "since")]
    pub(crate) instance: Option<String>,
    /// Only these: machines, jobs, cache, orbctl, or the name of an event [default: all, without --json all but cache]
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = event_kinds)]
    pub(crate) kinds: Vec<EventKinds>,
}

/// Event kinds that one value of `--kinds` selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventKinds(pub(crate) Vec<EventKind>);

fn event_kinds(text: &str) -> Result<EventKinds, String> {
    use EventKind as K;
    let kinds = match text {
        "machines" => vec![
            K::MachinesKnown,
            K::MachineAppeared,
            K::MachineChanged,
            K::MachineGone,
            K::OrbstackChanged,
        ],
        "jobs" => vec![K::JobQueued, K::JobStarted, K::JobEnded],
        "cache" => vec![K::CacheInvalidated],
        "orbctl" => vec![K::OrbctlUnhealthy, K::OrbctlRecovered],
        // The names of the API.
        word => vec![serde_json::from_value(word.into()).map_err(|_| {
            let groups = not_one_of(word, &["machines", "jobs", "cache", "orbctl"]);
            format!("{groups}; or the name of an event, e.g. machine_gone")
        })?],
    };
    Ok(EventKinds(kinds))
}

/// Pause between two attempts to reconnect to the daemon.
const RECONNECT_PAUSE: Duration = Duration::from_millis(300);

/// Shows the current state, the events since a number, or events as they happen.
pub(super) fn events(context: &mut Context, args: &EventsArgs) -> Result<ExitCode, CliError> {
    let mut kinds: Vec<EventKind> = args.kinds.iter().flat_map(|kinds| kinds.0.clone()).collect();
    if kinds.is_empty() && !context.console.json {
        // Each job invalidates the cache twice, which would bury the other events.
        kinds = ["machines", "jobs", "orbctl"]
            .into_iter()
            .filter_map(|word| event_kinds(word).ok())
            .flat_map(|kinds| kinds.0)
            .collect();
    }
    let mut client = context.connect()?;
    if args.follow {
        return follow(context, client, args, kinds);
    }
    // The first event is the current state, whatever kinds are requested. Requesting only health events makes orbd poll nothing.
    let now = EventsSubscribeParams {
        kinds: vec![EventKind::OrbctlUnhealthy],
        ..EventsSubscribeParams::default()
    };
    let state = client.subscribe::<EventsSubscribe>(&now)?.next_event()?;
    match args.since {
        None => tell(&mut context.console, &state)?,
        Some(number) => {
            let newest = state.sequence;
            let is_ours = args.instance.as_ref().is_none_or(|id| *id == state.instance);
            if !(is_ours && number == newest) {
                until(context, args, &kinds, newest)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the events since `args.since`, up to the event `newest`.
fn until(context: &mut Context, args: &EventsArgs, kinds: &[EventKind], newest: u64) -> Result<(), CliError> {
    let params = EventsSubscribeParams {
        since: args.since,
        instance: args.instance.clone(),
        // All kinds: with a filter the event `newest` might not be sent.
        kinds: Vec::new(),
    };
    let mut client = context.connect()?;
    let mut events = client.subscribe::<EventsSubscribe>(&params)?;
    loop {
        let event = events.next_event()?;
        if kinds.is_empty() || kind_of(&event).is_none_or(|kind| kinds.contains(&kind)) {
            tell(&mut context.console, &event)?;
        }
        if event.sequence >= newest && !matches!(event.what, EventDetails::Gap { .. }) {
            return Ok(());
        }
    }
}

/// Shows events until Ctrl-C. If the connection is lost it waits for the next daemon, but does not start one.
fn follow(
    context: &mut Context,
    mut client: Client,
    args: &EventsArgs,
    kinds: Vec<EventKind>,
) -> Result<ExitCode, CliError> {
    let mut params = EventsSubscribeParams {
        since: args.since,
        instance: args.instance.clone(),
        kinds,
    };
    loop {
        let lost = match client.subscribe::<EventsSubscribe>(&params) {
            Ok(events) => listen(&mut context.console, events, &mut params)?,
            Err(CallError::Lost(source)) => CliError::Lost(source),
            Err(error) => return Err(error.into()),
        };
        context.console.eprint(&format!("{lost}; waiting for orbd"));
        client = reconnect(&context.link)?;
    }
}

/// Waits for the next instance of the daemon, without starting it.
pub(super) fn reconnect(link: &Link) -> Result<Client, CliError> {
    loop {
        std::thread::sleep(RECONNECT_PAUSE);
        match link.dial() {
            Ok(mut client) => match greet(&mut client, &link.socket) {
                Ok(_) => return Ok(client),
                Err(
                    CliError::Lost(_)
                    | CliError::Protocol {
                        is_switching: true, ..
                    },
                ) => {}
                Err(error) => return Err(error),
            },
            Err(CliError::NotRunning { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Shows events until the connection is lost, and stores the number of the last one in `params`.
fn listen(
    console: &mut Console,
    mut events: Events<'_, EventsSubscribe>,
    params: &mut EventsSubscribeParams,
) -> Result<CliError, CliError> {
    loop {
        match events.next_event() {
            Ok(event) => {
                tell(console, &event)?;
                params.since = Some(event.sequence);
                params.instance = Some(event.instance);
            }
            Err(CallError::Lost(source)) => return Ok(CliError::Lost(source)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(console: &mut Console, event: &Event) -> Result<(), CliError> {
    Ok(console.answer(event, text)?)
}

/// Column of the description, after time and number.
const WHAT_COLUMN: usize = 17;

/// Formats an event: time, number and description.
fn text(event: &Event, look: Look) -> String {
    let time = event.noticed_at.split_once('T').map_or("", |(_, time)| time);
    let time = time.split('.').next().unwrap_or_default();
    let number = event.sequence;
    match &event.what {
        EventDetails::State(state) => state_text(state, event, look),
        what => look.paragraph(
            &format!("{time}Z {number:>5}  {}\n", what_text(what)),
            WHAT_COLUMN,
        ),
    }
}

fn what_text(what: &EventDetails) -> String {
    match what {
        EventDetails::Gap {
            reason: GapReason::NotKept,
        } => "events were missed: they are no longer kept".into(),
        EventDetails::Gap {
            reason: GapReason::OtherInstance,
        } => "events were missed: orbd was restarted".into(),
        EventDetails::State(_) => "current state".into(),
        EventDetails::MachinesKnown { machines, .. } => {
            let each: Vec<String> = machines
                .iter()
                .map(|machine| format!("{} {}", machine.name, machine.state))
                .collect();
            match each.len() {
                0 => "no machines".into(),
                _ => format!("machines: {}", each.join(", ")),
            }
        }
        EventDetails::MachineAppeared { machine, .. } => {
            format!("machine {} appeared, {}", machine.name, machine.state)
        }
        EventDetails::MachineChanged {
            machine,
            renamed_from: Some(before),
            ..
        } => format!(
            "machine {before} was renamed to {}, {}",
            machine.name, machine.state
        ),
        EventDetails::MachineChanged { machine, .. } => {
            format!("machine {} is {}", machine.name, machine.state)
        }
        EventDetails::MachineGone { machine, .. } => format!("machine {} is gone", machine.name),
        EventDetails::OrbstackChanged { status, .. } => format!("OrbStack is {status}"),
        EventDetails::JobQueued { job } => format!("{} is queued", job_text(job)),
        EventDetails::JobStarted { job } => format!("{} started", job_text(job)),
        EventDetails::JobEnded { job, outcome, reason } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}"));
            format!(
                "{} {}{}",
                job_text(job),
                outcome_text(outcome),
                reason.unwrap_or_default()
            )
        }
        EventDetails::CacheInvalidated {
            scope,
            machines,
            generation,
        } => {
            let about = if machines.is_empty() {
                scope.clone()
            } else {
                machines.join(", ")
            };
            format!("cache invalidated: {about} (generation {generation})")
        }
        EventDetails::OrbctlUnhealthy { reason } => format!("orbctl unhealthy: {reason}"),
        EventDetails::OrbctlRecovered {} => "orbctl recovered".into(),
        EventDetails::Other => "unknown event; this orbd-ctl is older than orbd".into(),
    }
}

fn job_text(job: &EventJob) -> String {
    format!("{} of {}", render::event_job_name(job), job.client)
}

fn outcome_text(outcome: &Outcome) -> String {
    match (outcome.kind.as_str(), outcome.exit_code, outcome.changed) {
        ("succeeded", Some(code), _) => format!("ended with exit code {code}"),
        ("succeeded", None, Some(false)) => "had nothing to do".into(),
        (word, _, _) => word.into(),
    }
}

fn state_text(state: &EventState, event: &Event, look: Look) -> String {
    let mut text = match &state.machine_list {
        Some(list) => {
            let mut text = render::machines(list, MachineColumns::List, look);
            if list.observed.stale {
                let age = render::age_ms(list.observed.age_ms);
                let note = format!(
                    "\nmachines as of {age}, before the last change; `orbd-ctl list` shows them as they are now\n"
                );
                text.push_str(&look.paragraph(&note, 2));
            }
            text
        }
        None => "machines not known yet\n".into(),
    };
    if !state.jobs.is_empty() {
        let jobs = JobListAnswer {
            jobs: state.jobs.clone(),
            more: state.more_jobs,
        };
        text.push('\n');
        text.push_str(&render::jobs(&jobs, look));
    }
    let orbstack = state.orbstack.as_deref().unwrap_or("not known yet");
    let orbctl = state
        .unhealthy
        .as_ref()
        .map_or_else(|| "healthy".into(), |sick| format!("unhealthy: {}", sick.reason));
    let number = event.sequence;
    let last = format!(
        "\nOrbStack {orbstack}, orbctl {orbctl}, event {number} of instance {}\n",
        event.instance
    );
    text.push_str(&look.paragraph(&last, 2));
    text
}

fn kind_of(event: &Event) -> Option<EventKind> {
    Some(match event.what {
        EventDetails::Gap { .. } | EventDetails::State(_) | EventDetails::Other => return None,
        EventDetails::MachinesKnown { .. } => EventKind::MachinesKnown,
        EventDetails::MachineAppeared { .. } => EventKind::MachineAppeared,
        EventDetails::MachineChanged { .. } => EventKind::MachineChanged,
        EventDetails::MachineGone { .. } => EventKind::MachineGone,
        EventDetails::OrbstackChanged { .. } => EventKind::OrbstackChanged,
        EventDetails::JobQueued { .. } => EventKind::JobQueued,
        EventDetails::JobStarted { .. } => EventKind::JobStarted,
        EventDetails::JobEnded { .. } => EventKind::JobEnded,
        EventDetails::CacheInvalidated { .. } => EventKind::CacheInvalidated,
        EventDetails::OrbctlUnhealthy { .. } => EventKind::OrbctlUnhealthy,
        EventDetails::OrbctlRecovered {} => EventKind::OrbctlRecovered,
    })
}
