//! Snapshots for clients: jobs, why they wait, and the cache.

use crate::clock::Moment;
use crate::operation::Lane;
use crate::orbctl::Orbctl;
use crate::scheduler::{self, Blocker};

use super::super::jobs::Entry;
use super::super::submission::{JobState, JobView, Target, WaitingFor};
use super::super::views::{CacheView, JobFilter, KeptView};
use super::State;

impl<O: Orbctl> State<O> {
    pub(super) fn view(&self, entry: &Entry) -> JobView {
        let state = entry.state();
        let waiting_for = match state {
            JobState::Waiting => self
                .scheduler
                .blocker(entry.spec.id)
                .and_then(|blocker| self.waiting_for(&blocker)),
            JobState::Running { .. } | JobState::Ended { .. } => None,
        };
        JobView {
            spec: entry.spec.clone(),
            state,
            waiting_for,
            output_bytes: entry.output_bytes(),
            joined: entry.joined,
            in_channel: entry.in_channel,
            is_unwritten: self.journal.is_unwritten(entry.spec.id),
        }
    }

    pub(super) fn waiting_for(&self, blocker: &Blocker) -> Option<WaitingFor> {
        match blocker {
            Blocker::Job { id, .. } => self.jobs.get(*id).map(|entry| entry.as_blocker(&Moment::now())),
            Blocker::Limit { name, .. } => Some(WaitingFor::Limit(name)),
            Blocker::Paused(scheduler::Target::Lane(Lane::Machine(name))) => {
                Some(WaitingFor::Paused(Target::Machine(name.clone())))
            }
            // Only the whole queue and lanes of machines can be paused.
            Blocker::Paused(_) => Some(WaitingFor::Paused(Target::All)),
            Blocker::Held => Some(WaitingFor::Unhealthy(self.health.problem()?.clone())),
            Blocker::NotWaiting => None,
        }
    }

    pub(super) fn list(&self, filter: &JobFilter) -> (Vec<JobView>, bool) {
        let wanted = |entry: &&Entry| {
            filter.state.is_none_or(|only| only == entry.phase())
                && filter
                    .machine
                    .as_ref()
                    .is_none_or(|only| entry.spec.info.machine.as_ref() == Some(only))
                && filter
                    .verb
                    .as_ref()
                    .is_none_or(|only| entry.spec.info.verb.as_str() == only)
        };
        let mut newest = self.jobs.iter().rev().filter(wanted);
        let mut jobs: Vec<JobView> = newest
            .by_ref()
            .take(filter.limit)
            .map(|entry| self.view(entry))
            .collect();
        let more = newest.next().is_some();
        jobs.reverse();
        (jobs, more)
    }

    pub(super) fn cache_view(&self) -> CacheView {
        let now = Moment::now();
        let cache = self.reads.cache();
        let entries = cache
            .entries()
            .map(|(cache_key, seen, valid)| KeptView {
                cache_key: cache_key.clone(),
                generation: seen.generation,
                age: now.age_of(&seen.observed_at),
                valid,
            })
            .collect();
        CacheView {
            generation: cache.generation(),
            entries,
        }
    }
}
