//! Events and polls: passes what happens to the subscribers, and asks what a due poll has to ask.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cache::CacheKey;
use crate::clock::Moment;
use crate::events::Event;
use crate::job::ClientId;
use crate::operation::{Query, Scope};
use crate::orbctl::Orbctl;
use crate::scheduler::Target;
use orbd_host::machine::{Machine, MachineName, MachineState};

use super::super::answer::{ObservedAnswer, by_name};
use super::super::submission::{Client, JobSpec};
use super::super::views::{Snapshot, Subscriber};
use super::State;

/// Most jobs in a snapshot.
const SNAPSHOT_JOBS_MAX: usize = 10_000;

impl<O: Orbctl> State<O> {
    pub(super) fn note(&mut self, event: Event) {
        self.watch.note(event, Moment::now());
    }

    pub(super) fn subscribe(&mut self, wants_polls: bool) -> Subscriber {
        let now = Moment::now();
        let list = self.reads.cache().get(&CacheKey::Machines);
        let age = list.map(|seen| now.age_of(&seen.observed_at));
        self.watch.subscribe(wants_polls, age, now.instant)
    }

    /// Returns a snapshot of the state at the number of the last event.
    pub(super) fn snapshot(&self) -> Snapshot {
        let active = self
            .jobs
            .iter()
            .filter(|entry| entry.is_active())
            .filter(|entry| !entry.spec.info.is_read());
        let mut jobs: Vec<_> = active
            .take(SNAPSHOT_JOBS_MAX + 1)
            .map(|entry| self.view(entry))
            .collect();
        let more_jobs = jobs.len() > SNAPSHOT_JOBS_MAX;
        jobs.truncate(SNAPSHOT_JOBS_MAX);
        Snapshot {
            sequence: self.watch.last_event(),
            at: Moment::now(),
            machines: self.watch.machines().cloned(),
            machines_stale: self.reads.cache().get(&CacheKey::Machines).is_none(),
            status: self.watch.status().cloned(),
            jobs,
            more_jobs,
            outage: self.outage(),
        }
    }

    /// Closes the channels of machines that no longer run, or are others of the same name, in a list that was just observed.
    pub(super) fn close_channels_of_gone(&self, seen: &ObservedAnswer) {
        let machines = |answer: &ObservedAnswer| answer.value.machines().unwrap_or_default().to_vec();
        let Some(before) = self.watch.machines().map(machines) else {
            // Which machines the open channels lead to is not known.
            self.runner.close_channels(Scope::Everything, || {});
            return;
        };
        let now = machines(seen);
        let is_same = |old: &Machine| {
            by_name(&now, &old.name).is_some_and(|new| new.id == old.id && new.state == MachineState::Running)
        };
        let gone: Vec<MachineName> = before
            .iter()
            .filter(|old| old.state == MachineState::Running && !is_same(old))
            .map(|old| old.name.clone())
            .collect();
        if !gone.is_empty() {
            self.runner.close_channels(Scope::Machines(gone), || {});
        }
    }

    pub(super) fn poll_now(&mut self) {
        self.watch.poll_now(Moment::now().instant);
    }

    /// Returns when the next poll is due; `None` if none is wanted, one is running, or the queue would not accept or start it.
    pub(super) fn next_poll(&self) -> Option<Instant> {
        let may_poll = !self.scheduler.is_closed()
            && !self.idle.is_upgrading()
            && !self.idle.is_holding()
            && ![self.scheduler.draining(), self.scheduler.paused()]
                .iter()
                .any(|targets| targets.contains(&Target::All));
        self.watch.next_poll().filter(|_| may_poll)
    }

    /// Begins the poll that is due. During an outage, health probes take its place, and a due poll counts as demand for them.
    pub(super) fn poll_if_due(&mut self, now: Instant) {
        if self.next_poll().is_none_or(|next| next > now) {
            return;
        }
        if self.health.problem().is_some() {
            self.health.note_demand(now);
            self.watch.poll_failed(Moment::now().instant);
        } else {
            self.poll(&Query::Status);
        }
    }

    pub(super) fn poll(&mut self, query: &Query) {
        // The reply goes unused, because the end of the job reports the result. Other callers may join the read.
        let (reply, _) = oneshot::channel();
        let read = self.ask(query, Duration::ZERO, &ourselves(), reply);
        self.watch.poll_begun(read, Moment::now().instant);
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
