//! Subscriptions: sends events to subscribers, and schedules polls of OrbStack while a subscriber wants them.
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

use tokio::sync::watch;

use crate::clock::Moment;
use crate::events::{Backoff, Difference, Event, EventLog, JobFacts, SequencedEvent, differences};
use crate::job::{JobId, Outcome};
use crate::operation::Query;
use orbd_host::machine::OrbstackStatus;

use super::answer::{ObservedAnswer, QueryAnswer};
use super::submission::{JobSpec, JobState};
use super::views::Subscriber;

/// Number of events kept for subscribers that lag or reconnect.
const EVENTS_KEPT: usize = 1024;

/// Subscribers, the state that they were last sent, and the poll schedule.
///
/// A subscriber that applies every event to what it knew before knows exactly `machines` and `status`: both change only together
/// with the event that reports the change.
pub(super) struct Watch {
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

impl Watch {
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

    /// Returns the machines as last sent to subscribers; `None` before the first observation.
    pub(super) fn machines(&self) -> Option<&ObservedAnswer> {
        self.machines.as_ref()
    }

    /// Returns OrbStack's status as last sent to subscribers; `None` before the first observation.
    pub(super) fn status(&self) -> Option<&OrbstackStatus> {
        self.status.as_ref()
    }

    /// Sends an event to all subscribers. Every event goes through here.
    pub(super) fn note(&mut self, event: Event, now: Moment) {
        self.events
            .send_modify(|log| log.push(|sequence| Arc::new(SequencedEvent::new(sequence, now, event))));
    }

    /// Sends the event for a job's new state, unless the job is a read.
    pub(super) fn note_job(&mut self, spec: &JobSpec, state: &JobState, now: Moment) {
        if spec.info.is_read() {
            return;
        }
        let facts = JobFacts {
            id: spec.id,
            verb: spec.info.verb.as_str(),
            machine: spec.info.machine.clone(),
            client: spec.client.name.clone(),
            label: spec.label.clone(),
        };
        let event = match state {
            JobState::Waiting => Event::JobQueued(facts),
            JobState::Running { .. } => Event::JobStarted(facts),
            JobState::Ended { outcome, .. } => Event::JobEnded(facts, outcome.clone()),
        };
        self.note(event, now);
    }

    /// Adds a subscriber. The first that wants polls starts them: at once, or a pause after the cached list, which is `list_age` old.
    pub(super) fn subscribe(
        &mut self,
        wants_polls: bool,
        list_age: Option<Duration>,
        now: Instant,
    ) -> Subscriber {
        if wants_polls && !self.is_wanted() {
            self.backoff.reset();
            let rest = |age| self.backoff.pause().saturating_sub(age);
            self.next = Some(now + list_age.map_or(Duration::ZERO, rest));
        }
        Subscriber {
            events: self.events.subscribe(),
            _wanted: wants_polls.then(|| self.wanted.clone()),
        }
    }

    /// Sets the shortest pause between polls. A new value applies to the poll that is scheduled too.
    pub(super) fn set_interval(&mut self, interval: Duration, now: Instant) {
        if self.backoff.shortest() != interval {
            self.backoff = Backoff::new(interval);
            self.next = self.next.map(|_| now + interval);
        }
    }

    /// Shortens the pauses again: something was invalidated, so more changes may follow.
    pub(super) fn reset_backoff(&mut self, now: Instant) {
        self.backoff.reset();
        let soon = now + self.backoff.pause();
        self.next = self.next.map(|next| next.min(soon));
    }

    /// Polls as soon as possible, because something has changed that a poll would show.
    pub(super) fn poll_now(&mut self, now: Instant) {
        if self.poll.is_some() {
            self.again = true;
        } else {
            self.next = Some(now);
        }
    }

    /// Returns when the next poll is due; `None` if none is wanted or one is running.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        self.next.filter(|_| self.poll.is_none() && self.is_wanted())
    }

    /// Records the read that a due poll waits for; `None` if the read was refused or held back, which ends the poll.
    pub(super) fn poll_begun(&mut self, read: Option<JobId>, now: Instant) {
        self.poll = read;
        if read.is_none() {
            self.poll_failed(now);
        }
    }

    /// Schedules the next poll after one that observed nothing.
    pub(super) fn poll_failed(&mut self, now: Instant) {
        self.backoff.slow_down();
        self.poll_ended(now);
    }

    /// Continues the poll that waited for this read, if one did. Returns the query to ask next; `None` if the poll is over.
    #[must_use]
    pub(super) fn on_read_end(
        &mut self,
        id: JobId,
        answer: Option<&QueryAnswer>,
        may_continue: bool,
        now: Instant,
    ) -> Option<Query> {
        if !self.is_poll(id) {
            return None;
        }
        self.poll = None;
        match answer {
            // `list` would start OrbStack if it did not run.
            Some(QueryAnswer::Status(OrbstackStatus::Running)) if may_continue && self.is_wanted() => {
                return Some(Query::List);
            }
            // The events have been sent, and the pause has been adjusted.
            Some(QueryAnswer::Machines(_)) => self.poll_ended(now),
            _ => self.poll_failed(now),
        }
        None
    }

    /// Records the outcome of a poll that no client shared. Returns whether it changed from success to failure or back.
    pub(super) fn on_poll_outcome(&mut self, query: Query, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Succeeded(_) => self.failing.remove(&query),
            Outcome::Cancelled(_) => false,
            _ => self.failing.insert(query),
        }
    }

    /// Returns whether a job is the read of the running poll.
    pub(super) fn is_poll(&self, id: JobId) -> bool {
        self.poll == Some(id)
    }

    /// Sends events for what is new in a list that was just cached, whichever read observed it.
    pub(super) fn on_machines(&mut self, seen: ObservedAnswer, is_poll: bool, now: Moment) {
        let news = news(self.machines.as_ref(), &seen);
        if !news.is_empty() {
            self.backoff.reset();
        } else if is_poll {
            self.backoff.slow_down();
        }
        self.machines = Some(seen);
        for event in news {
            self.note(event, now);
        }
        // A caller's read observed what a poll would have observed.
        self.pause_from(now.instant);
    }

    /// Sends OrbStack's status, which was just cached, if it is new, whichever read observed it.
    pub(super) fn on_status(&mut self, seen: &ObservedAnswer, now: Moment) {
        let QueryAnswer::Status(status) = &seen.value.answer else {
            return;
        };
        if self.status.as_ref() == Some(status) {
            return;
        }
        self.status = Some(status.clone());
        self.backoff.reset();
        let event = Event::OrbstackChanged {
            status: status.clone(),
            generation: seen.generation,
        };
        self.note(event, now);
    }

    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.wanted) > 1
    }

    fn poll_ended(&mut self, now: Instant) {
        if std::mem::take(&mut self.again) {
            self.next = Some(now);
        } else {
            self.pause_from(now);
        }
    }

    fn pause_from(&mut self, now: Instant) {
        self.next = Some(now + self.backoff.pause());
    }
}

/// Returns the events that turn the machines as last sent into a newer list.
fn news(before: Option<&ObservedAnswer>, seen: &ObservedAnswer) -> Vec<Event> {
    let generation = seen.generation;
    let now = seen.value.machines().unwrap_or_default();
    let Some(before) = before else {
        return vec![Event::MachinesKnown {
            machines: now.to_vec(),
            generation,
        }];
    };
    differences(before.value.machines().unwrap_or_default(), now)
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
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::fixture::{machine, seen};
    use crate::job::{Phase, Success};

    const SECOND: Duration = Duration::from_secs(1);

    fn running() -> QueryAnswer {
        QueryAnswer::Status(OrbstackStatus::Running)
    }

    /// A watch with one subscriber that wants polls, the subscriber, and the time when the first poll is due.
    fn watched() -> (Watch, Subscriber, Instant) {
        let mut watch = Watch::new(SECOND);
        let now = Moment::now().instant;
        let subscriber = watch.subscribe(true, None, now);
        assert_eq!(watch.next_poll(), Some(now));
        (watch, subscriber, now)
    }

    #[test]
    fn polls_are_due_only_while_a_subscriber_wants_them() {
        let mut watch = Watch::new(SECOND);
        let now = Moment::now().instant;
        let without = watch.subscribe(false, None, now);
        watch.poll_now(now);
        assert_eq!(watch.next_poll(), None);
        let with = watch.subscribe(true, Some(SECOND / 4), now);
        assert_eq!(
            watch.next_poll(),
            Some(now + SECOND * 3 / 4),
            "after a recent list"
        );
        drop(with);
        assert_eq!(watch.next_poll(), None);
        drop(without);
    }

    #[test]
    fn poll_asks_for_the_list_only_while_orbstack_runs() {
        let (mut watch, _subscriber, now) = watched();
        let (status, list) = (JobId(1), JobId(2));
        watch.poll_begun(Some(status), now);
        assert_eq!(watch.next_poll(), None, "one poll at a time");
        assert_eq!(
            watch.on_read_end(list, Some(&running()), true, now),
            None,
            "not this poll's read"
        );
        assert_eq!(
            watch.on_read_end(status, Some(&running()), true, now),
            Some(Query::List)
        );
        watch.poll_begun(Some(list), now);
        watch.on_machines(seen(QueryAnswer::Machines(Vec::new())), true, Moment::now());
        let machines = QueryAnswer::Machines(Vec::new());
        assert_eq!(watch.on_read_end(list, Some(&machines), true, now), None);
        assert_eq!(watch.next_poll(), Some(now + SECOND));

        watch.poll_begun(Some(status), now);
        let stopped = QueryAnswer::Status(OrbstackStatus::Stopped);
        assert_eq!(watch.on_read_end(status, Some(&stopped), true, now), None);
        assert_eq!(watch.next_poll(), Some(now + 2 * SECOND), "the pause grows");
    }

    #[test]
    fn requests_during_a_poll_are_merged_into_one_that_follows() {
        let (mut watch, _subscriber, now) = watched();
        watch.poll_begun(Some(JobId(1)), now);
        watch.poll_now(now);
        watch.poll_now(now);
        assert_eq!(watch.next_poll(), None);
        assert_eq!(watch.on_read_end(JobId(1), None, true, now), None);
        assert_eq!(watch.next_poll(), Some(now));
        watch.poll_begun(None, now);
        assert!(
            watch.next_poll().is_some_and(|next| next > now),
            "only one follows"
        );
    }

    #[test]
    fn invalidation_and_a_new_interval_bring_the_next_poll_forward() {
        let (mut watch, _subscriber, now) = watched();
        for _ in 0..3 {
            watch.poll_failed(now);
        }
        assert_eq!(watch.next_poll(), Some(now + 8 * SECOND));
        watch.reset_backoff(now);
        assert_eq!(watch.next_poll(), Some(now + SECOND));
        watch.set_interval(SECOND, now + SECOND);
        assert_eq!(watch.next_poll(), Some(now + SECOND), "the interval is not new");
        watch.set_interval(SECOND / 2, now);
        assert_eq!(watch.next_poll(), Some(now + SECOND / 2));
    }

    #[test]
    fn known_machines_and_status_change_only_with_their_events() {
        let (mut watch, subscriber, _) = watched();
        let now = Moment::now();
        let web = || vec![machine("web")];
        for (machines, events) in [(Vec::new(), 1), (web(), 2), (web(), 2), (Vec::new(), 3)] {
            watch.on_machines(seen(QueryAnswer::Machines(machines.clone())), false, now);
            let known = watch.machines().and_then(|seen| seen.value.machines());
            assert_eq!(known, Some(&*machines));
            assert_eq!(watch.last_event(), events);
        }
        for _ in 0..2 {
            watch.on_status(&seen(running()), now);
            assert_eq!(watch.status(), Some(&OrbstackStatus::Running));
            assert_eq!(watch.last_event(), 4);
        }
        assert_eq!(subscriber.events.borrow().last(), 4);
    }

    #[test]
    fn poll_outcome_matters_when_it_turns() {
        let mut watch = Watch::new(SECOND);
        let failed = Outcome::Interrupted;
        let succeeded = Outcome::Succeeded(Success::Read);
        let cancelled = Outcome::Cancelled(Phase::Queued);
        let turns = [
            (&succeeded, false),
            (&failed, true),
            (&failed, false),
            (&cancelled, false),
            (&succeeded, true),
        ];
        for (outcome, turn) in turns {
            assert_eq!(watch.on_poll_outcome(Query::List, outcome), turn, "{outcome:?}");
        }
    }
}
