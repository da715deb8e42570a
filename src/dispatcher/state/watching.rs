//! Subscriptions: sends events to subscribers, and polls OrbStack for changes while a subscriber wants that.
//!
//! ```text
//!             first subscriber                        running
//! no timer ----------------------> due at `next` --> status ---------> list --> events for the differences
//!    ^                                ^                | stopped, failed  |
//!    +-- no subscriber left           +--- pause ------+------------------+
//! ```
//!
//! Without a subscriber that wants polls there is neither a poll nor a timer. At most one poll runs at a time. Requests to poll that
//! arrive meanwhile are merged into one poll, which follows. A pause follows each poll, also a failed one, and grows while nothing
//! changes. A poll that finds nothing new leaves no record.

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
use crate::operation::Query;
use crate::orbctl::Orbctl;
use crate::scheduler::Target;

use super::super::answer::{ObservedAnswer, QueryAnswer};
use super::super::handle::{Client, JobSpec, JobState, Snapshot, Subscriber};
use super::State;

/// Number of events kept for subscribers that lag or reconnect.
const EVENTS_KEPT: usize = 1024;
/// Most jobs in a snapshot.
const SNAPSHOT_JOBS_MAX: usize = 10_000;

/// Subscribers, the state that they were last sent, and the poll schedule.
pub(super) struct Watching {
    /// The channel to all subscribers. Each has a receiver and remembers the number of the last event that it read.
    events: watch::Sender<EventLog<Arc<SequencedEvent>>>,
    /// Cloned into each subscriber that wants polls; the reference count shows whether there is one.
    wanted: Arc<()>,
    /// The machines as last sent to subscribers.
    machines: Option<ObservedAnswer>,
    /// OrbStack's status as last sent to subscribers.
    status: Option<OrbstackStatus>,
    backoff: Backoff,
    /// When the next poll is due, if a subscriber wants polls.
    next: Option<Instant>,
    /// The read that the running poll waits for.
    poll: Option<JobId>,
    /// Whether something changed during the running poll, which may have missed it.
    again: bool,
    /// Queries whose last poll failed.
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
            poll: None,
            again: false,
            failing: BTreeSet::new(),
        }
    }

    /// Returns the number of the last event.
    pub(super) fn last_event(&self) -> u64 {
        self.events.borrow().last()
    }

    /// Records the result of a poll. Returns whether it changed from success to failure or back.
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

    /// Returns whether a job is the read of the running poll.
    pub(super) fn is_poll(&self, id: JobId) -> bool {
        self.poll == Some(id)
    }

    fn pause_from(&mut self, now: Instant) {
        self.next = Some(now + self.backoff.pause());
    }
}

impl<O: Orbctl> State<O> {
    /// Sends an event to all subscribers. Every event goes through here.
    pub(super) fn note(&mut self, event: Event) {
        let now = Moment::now();
        self.watching
            .events
            .send_modify(|ring| ring.push(|sequence| Arc::new(SequencedEvent::new(sequence, now, event))));
    }

    /// Sends the event for a job's new state, unless the job is a read.
    pub(super) fn note_job(&mut self, spec: &JobSpec, state: &JobState) {
        if spec.info.is_read() {
            return;
        }
        let answer = JobFacts {
            id: spec.id,
            verb: spec.info.verb.as_str(),
            machine: spec.info.machine.clone(),
            client: spec.client.name.clone(),
        };
        self.note(match state {
            JobState::Waiting => Event::JobQueued(answer),
            JobState::Running { .. } => Event::JobStarted(answer),
            JobState::Ended { outcome, .. } => Event::JobEnded(answer, outcome.clone()),
        });
    }

    pub(super) fn subscribe(&mut self, wants_polls: bool, reply: oneshot::Sender<Subscriber>) {
        let is_first = wants_polls && !self.watching.is_wanted();
        let subscriber = Subscriber {
            events: self.watching.events.subscribe(),
            _wanted: wants_polls.then(|| self.watching.wanted.clone()),
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

    /// Returns a snapshot of the state at the number of the last event.
    pub(super) fn snapshot(&self) -> Snapshot {
        let active = self
            .jobs
            .values()
            .filter(|entry| entry.live().is_some())
            .filter(|entry| !entry.spec.info.is_read());
        let mut jobs: Vec<_> = active
            .take(SNAPSHOT_JOBS_MAX + 1)
            .map(|entry| self.view(entry))
            .collect();
        let more_jobs = jobs.len() > SNAPSHOT_JOBS_MAX;
        jobs.truncate(SNAPSHOT_JOBS_MAX);
        Snapshot {
            sequence: self.watching.last_event(),
            at: Moment::now(),
            machines: self.watching.machines.clone(),
            machines_stale: self.cache.get(&CacheKey::Machines).is_none(),
            status: self.watching.status.clone(),
            jobs,
            more_jobs,
            outage: self.outage(),
        }
    }

    /// Sets the shortest pause between polls.
    pub(super) fn set_watch_interval(&mut self, interval: Duration) {
        self.watching.backoff.set_shortest(interval);
        let soon = Moment::now().instant + interval;
        self.watching.next = self.watching.next.map(|_| soon);
    }

    /// Shortens the pauses again: something was invalidated, so more changes may follow.
    pub(super) fn reset(&mut self) {
        self.watching.backoff.reset();
        let soon = Moment::now().instant + self.watching.backoff.pause();
        self.watching.next = self.watching.next.map(|next| next.min(soon));
    }

    /// Polls as soon as possible, because something has changed that a poll would show.
    pub(super) fn poll_now(&mut self) {
        if self.watching.poll.is_some() {
            self.watching.again = true;
        } else {
            self.watching.next = Some(Moment::now().instant);
        }
    }

    /// Returns when the next poll is due; `None` if none is wanted, one is running, or the queue would not accept or start it.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        let may_look = self.watching.poll.is_none()
            && self.watching.is_wanted()
            && !self.scheduler.is_closed()
            && !self.is_upgrading()
            && !self.idle.is_holding()
            && ![self.scheduler.draining(), self.scheduler.paused()]
                .iter()
                .any(|targets| targets.contains(&Target::All));
        self.watching.next.filter(|_| may_look)
    }

    /// Begins the poll that is due. During an outage, health probes take its place, and a due poll counts as demand for them.
    pub(super) fn poll_if_due(&mut self, now: Instant) {
        if self.next_poll().is_none_or(|next| next > now) {
            return;
        }
        if self.circuit_breaker.outage().is_some() {
            self.circuit_breaker.note_demand(now);
            self.watching.backoff.slow_down();
            self.poll_ended();
        } else {
            self.poll(&Query::Status);
        }
    }

    fn poll(&mut self, query: &Query) {
        // The reply goes unused, because the end of the job reports the result. Other callers may join the read.
        let (reply, _) = oneshot::channel();
        self.watching.poll = self.ask(query, Duration::ZERO, &ourselves(), reply);
        if self.watching.poll.is_none() {
            self.watching.backoff.slow_down();
            self.poll_ended();
        }
    }

    /// Continues the poll that waited for this read, if one did.
    pub(super) fn looked(&mut self, id: JobId, answer: Option<&QueryAnswer>) {
        if !self.watching.is_poll(id) {
            return;
        }
        self.watching.poll = None;
        match answer {
            // `list` would start OrbStack if it did not run.
            Some(QueryAnswer::Status(OrbstackStatus::Running))
                if self.watching.is_wanted() && !self.scheduler.is_closed() && !self.idle.is_holding() =>
            {
                self.poll(&Query::List);
            }
            // The events have been sent, and the pause has been adjusted.
            Some(QueryAnswer::Machines(_)) => self.poll_ended(),
            _ => {
                self.watching.backoff.slow_down();
                self.poll_ended();
            }
        }
    }

    fn poll_ended(&mut self) {
        let now = Moment::now().instant;
        if std::mem::take(&mut self.watching.again) {
            self.watching.next = Some(now);
        } else {
            self.watching.pause_from(now);
        }
    }

    /// Sends events for what is new in a list that was just cached, whichever read observed it.
    pub(super) fn learned_machines(&mut self, is_poll: bool) {
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
        } else if is_poll {
            self.watching.backoff.slow_down();
        }
        self.watching.machines = Some((&seen).into());
        for event in news {
            self.note(event);
        }
        // A caller's read observed what a poll would have observed.
        self.watching.pause_from(Moment::now().instant);
    }

    /// Sends OrbStack's status if it is new, whichever read observed it.
    pub(super) fn learned_status(&mut self) {
        let Some(seen) = self.cache.get(&CacheKey::Status) else {
            return;
        };
        let QueryAnswer::Status(status) = &seen.value.answer else {
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

/// Client id of the daemon itself. No connected client has it.
const OURSELVES: ClientId = ClientId(u64::MAX - 1);

/// Returns whether the daemon itself submitted a job.
pub(super) fn is_ourselves(spec: &JobSpec) -> bool {
    spec.client.id == OURSELVES
}

/// Returns the client of polls: the daemon itself. It has its own share in the fair queue, and its connection never closes.
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
