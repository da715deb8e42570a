//! Watching: what is told to subscribers, and the looks that nobody asked for.
//!
//! ```text
//!             somebody watches                       running
//! no timer ----------------------> due at `next` --> status ---------> list --> what differs is told
//!    ^                                ^                | stopped, failed  |
//!    +-- nobody watches any more      +--- pause ------+------------------+
//! ```
//!
//! While nobody watches there is neither a look nor a timer. A look that finds nothing new leaves no record. At most one look runs; a wish that comes meanwhile is remembered, and
//! more of them are one. A look that fails is followed by a pause like any other. The pause grows while nothing changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::CacheKey;
use crate::clock::Moment;
use crate::events::{Backoff, Difference, Event, EventLog, JobFacts, SequencedEvent, differences};
use crate::job::{ClientId, JobId, Outcome};
use crate::machine::OrbstackStatus;
use crate::operation::{Operation, Query};
use crate::orbctl::Orbctl;

use super::super::answer::{ObservedAnswer, QueryAnswer};
use super::super::handle::{Client, JobSpec, JobState, Snapshot, Subscriber, Target};
use super::State;

/// Events that are kept for readers who stay behind or come back.
const EVENTS_KEPT: usize = 1024;
/// Most jobs that an overview tells.
const OVERVIEW_JOBS_MAX: usize = 10_000;

/// What is known of watchers, and what they were told.
pub(super) struct Watching {
    /// The only channel to subscribers: each holds a receiver and the number of the last event that it was told.
    events: watch::Sender<EventLog<Arc<SequencedEvent>>>,
    /// Held by each subscriber who wants what looks find.
    wanted: Arc<()>,
    /// The machines as they were told.
    machines: Option<ObservedAnswer>,
    /// OrbStack's status as it was told.
    status: Option<OrbstackStatus>,
    backoff: Backoff,
    /// When to look next, if somebody watches.
    next: Option<Instant>,
    /// The read that the look in progress waits for.
    look: Option<JobId>,
    /// Something changed while a look was in progress, which may not have seen it.
    again: bool,
    /// Reads that failed when they were last polled.
    failing: BTreeSet<Query>,
}

impl Watching {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            events: watch::Sender::new(EventLog::new(EVENTS_KEPT)),
            wanted: Arc::new(()),
            machines: None,
            status: None,
            backoff: Backoff::new(interval),
            next: None,
            look: None,
            again: false,
            failing: BTreeSet::new(),
        }
    }

    /// Returns the number of the last event.
    pub(super) fn last_event(&self) -> u64 {
        self.events.borrow().last()
    }

    /// Notes how a poll ended, and returns whether that is new: it failed after one that did not, or the reverse.
    pub(super) fn note_poll(&mut self, query: Query, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Succeeded(_) => self.failing.remove(&query),
            Outcome::Cancelled(_) => false,
            _ => self.failing.insert(query),
        }
    }

    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.wanted) > 1
    }

    /// Says whether a job is a look that nobody asked for.
    pub(super) fn is_look(&self, id: JobId) -> bool {
        self.look == Some(id)
    }

    fn pause_from(&mut self, now: Instant) {
        self.next = Some(now + self.backoff.pause());
    }
}

impl<O: Orbctl> State<O> {
    /// Tells an event to everybody who is subscribed. The one way to do so.
    pub(super) fn note(&mut self, event: Event) {
        let now = Moment::now();
        self.watching
            .events
            .send_modify(|ring| ring.push(|sequence| Arc::new(SequencedEvent::new(sequence, now, event))));
    }

    /// Tells of a job, unless it is a read.
    pub(super) fn note_job(&mut self, spec: &JobSpec, state: &JobState) {
        if matches!(spec.asked.operation, Operation::Query(_)) {
            return;
        }
        let facts = JobFacts {
            id: spec.id,
            verb: spec.asked.operation.verb(),
            machine: spec.asked.operation.machine().cloned(),
            client: spec.asked.client.name.clone(),
        };
        self.note(match state {
            JobState::Waiting => Event::JobQueued(facts),
            JobState::Running { .. } => Event::JobStarted(facts),
            JobState::Ended { outcome, .. } => Event::JobEnded(facts, outcome.clone()),
        });
    }

    pub(super) fn subscribe(&mut self, wants_looks: bool, reply: oneshot::Sender<Subscriber>) {
        let is_first = wants_looks && !self.watching.is_wanted();
        let subscriber = Subscriber {
            events: self.watching.events.subscribe(),
            _wanted: wants_looks.then(|| self.watching.wanted.clone()),
        };
        if is_first {
            let now = Moment::now();
            self.watching.backoff.reset();
            let known = self
                .cache
                .fresh(&CacheKey::Machines, &now, self.watching.backoff.pause());
            let age = known.map(|seen| now.age_of(&seen.observed_at));
            let pause = age.map_or(Duration::ZERO, |age| {
                self.watching.backoff.pause().saturating_sub(age)
            });
            self.watching.next = Some(now.instant + pause);
        }
        let _ = reply.send(subscriber);
    }

    /// Describes everything as it is, at the number of the last event.
    pub(super) fn snapshot(&self) -> Snapshot {
        let active = self
            .jobs
            .values()
            .filter(|entry| entry.live().is_some())
            .filter(|entry| !matches!(entry.spec.asked.operation, Operation::Query(_)));
        let mut jobs: Vec<_> = active
            .take(OVERVIEW_JOBS_MAX + 1)
            .map(|entry| self.view(entry))
            .collect();
        let more_jobs = jobs.len() > OVERVIEW_JOBS_MAX;
        jobs.truncate(OVERVIEW_JOBS_MAX);
        Snapshot {
            sequence: self.watching.last_event(),
            at: Moment::now(),
            machines: self.watching.machines.clone(),
            machines_stale: self.cache.get(&CacheKey::Machines).is_none(),
            status: self.watching.status.clone(),
            jobs,
            more_jobs,
            sick: self.outage(),
        }
    }

    /// Waits otherwise between looks from now on.
    pub(super) fn set_watch_interval(&mut self, interval: Duration) {
        self.watching.backoff.set_shortest(interval);
        let soon = Moment::now().instant + interval;
        self.watching.next = self.watching.next.map(|_| soon);
    }

    /// Something was made stale, so more may follow: the pauses are short again.
    pub(super) fn reset(&mut self) {
        self.watching.backoff.reset();
        let soon = Moment::now().instant + self.watching.backoff.pause();
        self.watching.next = self.watching.next.map(|next| next.min(soon));
    }

    /// Something has changed that a look would show: whoever watches need not wait for it.
    pub(super) fn look_now(&mut self) {
        if self.watching.look.is_some() {
            self.watching.again = true;
        } else {
            self.watching.next = Some(Moment::now().instant);
        }
    }

    /// Returns when to look next: never while nobody watches, a look is in progress, or none would be taken.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let may_look = self.watching.look.is_none()
            && self.watching.is_wanted()
            && !self.stopping
            && !self.is_upgrading()
            && !self.idle.is_holding()
            && ![&self.draining, &self.paused]
                .iter()
                .any(|targets| targets.contains(&Target::All));
        self.watching.next.filter(|_| may_look)
    }

    /// Begins the look that is due. While `orbctl` is sick its probes are what looks, and they go on while somebody watches.
    pub(super) fn look_if_due(&mut self, now: Instant) {
        if self.next_look().is_none_or(|next| next > now) {
            return;
        }
        if self.circuit_breaker.outage().is_some() {
            self.circuit_breaker.asked(now);
            self.watching.backoff.slow_down();
            self.look_ended();
        } else {
            self.look(&Query::Status);
        }
    }

    fn look(&mut self, query: &Query) {
        // Whoever may join shares it; we are told by the end of the job.
        let (reply, _) = oneshot::channel();
        self.watching.look = self.ask(query, Duration::ZERO, &ourselves(), reply);
        if self.watching.look.is_none() {
            self.watching.backoff.slow_down();
            self.look_ended();
        }
    }

    /// A read is over: goes on with the look that waited for it, if one did.
    pub(super) fn looked(&mut self, id: JobId, facts: Option<&QueryAnswer>) {
        if !self.watching.is_look(id) {
            return;
        }
        self.watching.look = None;
        match facts {
            // Asking for the list would wake OrbStack if it did not run.
            Some(QueryAnswer::Status(OrbstackStatus::Running))
                if self.watching.is_wanted() && !self.stopping && !self.idle.is_holding() =>
            {
                self.look(&Query::List);
            }
            // What it saw has been told, and has set the pace.
            Some(QueryAnswer::Machines(_)) => self.look_ended(),
            _ => {
                self.watching.backoff.slow_down();
                self.look_ended();
            }
        }
    }

    fn look_ended(&mut self) {
        let now = Moment::now().instant;
        if std::mem::take(&mut self.watching.again) {
            self.watching.next = Some(now);
        } else {
            self.watching.pause_from(now);
        }
    }

    /// Tells what is new in a list that has just been kept, whoever asked for it.
    pub(super) fn learned_machines(&mut self, is_look: bool) {
        let Some(seen) = self.cache.get(&CacheKey::Machines).cloned() else {
            return;
        };
        let generation = seen.generation;
        let now = seen.value.machines().unwrap_or_default();
        let news: Vec<Event> = match &self.watching.machines {
            None => vec![Event::MachinesKnown {
                machines: now.to_vec(),
                generation,
            }],
            Some(before) => differences(before.value.machines().unwrap_or_default(), now)
                .into_iter()
                .map(|difference| match difference {
                    Difference::Appeared(machine) => Event::MachineAppeared { machine, generation },
                    Difference::Changed {
                        machine,
                        renamed_from,
                    } => Event::MachineChanged {
                        machine,
                        renamed_from,
                        generation,
                    },
                    Difference::Gone(machine) => Event::MachineGone { machine, generation },
                })
                .collect(),
        };
        if !news.is_empty() {
            self.watching.backoff.reset();
        } else if is_look {
            self.watching.backoff.slow_down();
        }
        self.watching.machines = Some((&seen).into());
        for event in news {
            self.note(event);
        }
        // A caller's read saw what a look would have seen.
        self.watching.pause_from(Moment::now().instant);
    }

    /// Tells OrbStack's status when it is new, whoever asked for it.
    pub(super) fn learned_status(&mut self) {
        let Some(seen) = self.cache.get(&CacheKey::Status) else {
            return;
        };
        let QueryAnswer::Status(status) = &seen.value.facts else {
            return;
        };
        if self.watching.status.as_ref() == Some(status) {
            return;
        }
        let (status, generation) = (status.clone(), seen.generation);
        self.watching.status = Some(status.clone());
        self.watching.backoff.reset();
        self.note(Event::OrbstackChanged { status, generation });
    }
}

/// No client that connects has this id.
const OURSELVES: ClientId = ClientId(u64::MAX - 1);

/// Returns whether the daemon itself asked for a job.
pub(super) fn is_ourselves(spec: &JobSpec) -> bool {
    spec.asked.client.id == OURSELVES
}

/// The client of looks: the daemon itself. It shares turns with no other, and its connection never goes away.
fn ourselves() -> Client {
    Client {
        id: OURSELVES,
        connection: u64::MAX,
        name: "orbd".into(),
        pid: Some(std::process::id()),
        uid: rustix::process::getuid().as_raw(),
        gone: CancellationToken::new(),
    }
}
