//! The jobs that no lane blocks, and which of them starts next.
//!
//! Each group of jobs with a limit of its own has a fair queue. While the group has a free slot, it also takes turns with the other
//! groups of its pool, which share a wider limit:
//!
//! ```text
//! pool "execs" (128)    ◄── exec(web)  ◄── jobs in web (4)
//!                       ◄── exec(db)   ◄── jobs in db (4)
//! pool "changes" (8)    ◄── change     ◄── jobs
//!                       ◄── creation   ◄── jobs (2)
//! ```
//!
//! Both tiers need a fair queue. If only pools had one, a client could starve others that use the same machine. If only groups had
//! one, a client with jobs in a hundred machines would be served a hundred times per rotation.
//!
//! In its pool, a group uses the turns of the client whose job is first in the group. If other clients also have jobs in the group,
//! the group goes before that client's other groups, so that they do not wait for all of that client's jobs
//! ([`OrderKey`](super::fair_queue::OrderKey)).

use std::collections::BTreeMap;
#[cfg(test)]
use std::collections::BTreeSet;

use super::Seq;
use super::fair_queue::{FairQueue, SchedulingKey};
use super::limits::{Group, Limits, Pool, Reached, Slots};
use crate::job::JobId;
use crate::operation::Class;
use orbd_host::machine::MachineName;

/// Ready jobs, and the limits that some of them still wait for.
#[derive(Debug)]
pub(super) struct Ready {
    slots: Slots,
    groups: BTreeMap<Group, ReadyGroup>,
    pools: BTreeMap<Pool, FairQueue<Group>>,
    /// Forced changes: no limit but strict mode applies to them.
    urgent: BTreeMap<Seq, JobId>,
    /// Sessions: no limit applies to them.
    sessions: BTreeMap<Seq, JobId>,
}

#[derive(Debug, Default)]
struct ReadyGroup {
    jobs: FairQueue<JobId>,
    /// Its key in the fair queue of its pool; `None` while the group's limit is reached.
    in_pool: Option<SchedulingKey>,
}

impl Ready {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            slots: Slots::new(limits),
            groups: BTreeMap::new(),
            pools: BTreeMap::new(),
            urgent: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        // Strict mode uses a different pool, so remove all groups from their pools before the change and add them again after it.
        let groups: Vec<Group> = self.groups.keys().cloned().collect();
        for group in &groups {
            self.withdraw(group);
        }
        self.slots.set_limits(limits);
        for group in &groups {
            self.refresh(group);
        }
    }

    pub(super) fn insert(&mut self, group: &Group, standing: SchedulingKey, id: JobId) {
        let ready = self.groups.entry(group.clone()).or_default();
        ready.jobs.insert(standing, id);
        self.refresh(group);
    }

    pub(super) fn remove(&mut self, group: &Group, standing: SchedulingKey) {
        let removed = self
            .groups
            .get_mut(group)
            .and_then(|ready| ready.jobs.remove(standing));
        debug_assert!(removed.is_some(), "a ready job is in its group");
        self.refresh(group);
    }

    pub(super) fn insert_urgent(&mut self, seq: Seq, id: JobId) {
        self.urgent.insert(seq, id);
    }

    pub(super) fn remove_urgent(&mut self, seq: Seq) {
        self.urgent.remove(&seq);
    }

    pub(super) fn insert_session(&mut self, seq: Seq, id: JobId) {
        self.sessions.insert(seq, id);
    }

    pub(super) fn remove_session(&mut self, seq: Seq) {
        self.sessions.remove(&seq);
    }

    pub(super) fn take_session(&mut self) -> Option<JobId> {
        self.sessions.pop_first().map(|(_, id)| id)
    }

    pub(super) fn take_urgent(&mut self) -> Option<JobId> {
        if self.slots.strict_full().is_some() {
            return None;
        }
        self.urgent.pop_first().map(|(_, id)| id)
    }

    /// Removes and returns the next job for which a slot is free. The caller starts it with [`Ready::occupy`].
    pub(super) fn take_next(&mut self) -> Option<JobId> {
        let group = Pool::ALL
            .into_iter()
            .filter(|&pool| self.slots.pool_full(pool).is_none())
            .find_map(|pool| self.pools.get_mut(&pool)?.take_first())?;
        let ready = self
            .groups
            .get_mut(&group)
            .expect("a group queued in a pool has an entry");
        let id = ready
            .jobs
            .take_first()
            .expect("a group queued in a pool has a ready job");
        ready.in_pool = None;
        self.refresh(&group);
        Some(id)
    }

    /// Counts a job as running.
    pub(super) fn occupy(&mut self, class: Class, machine: Option<&MachineName>) {
        self.slots.occupy(class, machine);
        if let Some(group) = Group::of(class, machine) {
            self.refresh(&group);
        }
    }

    /// Counts a job as no longer running.
    pub(super) fn vacate(&mut self, class: Class, machine: Option<&MachineName>) {
        self.slots.vacate(class, machine);
        if let Some(group) = Group::of(class, machine) {
            self.refresh(&group);
        }
    }

    /// Returns the limit that keeps a ready job of this group waiting.
    pub(super) fn limit_on(&self, group: &Group) -> Option<Reached> {
        self.slots
            .group_full(group)
            .or_else(|| self.slots.pool_full(self.slots.pool(group)))
    }

    pub(super) fn strict_limit(&self) -> Option<Reached> {
        self.slots.strict_full()
    }

    /// Updates the group's entry in its pool after its jobs or its free slots changed.
    fn refresh(&mut self, group: &Group) {
        let Some(ready) = self.groups.get_mut(group) else {
            return;
        };
        let standing = match self.slots.group_full(group) {
            Some(_) => None,
            None => ready.jobs.standing(),
        };
        if standing != ready.in_pool {
            let pool = self.pools.entry(self.slots.pool(group)).or_default();
            match (ready.in_pool, standing) {
                (Some(before), Some(standing)) => {
                    pool.replace(before, standing, group.clone());
                }
                (None, Some(standing)) => pool.insert(standing, group.clone()),
                (Some(before), None) => {
                    pool.remove(before);
                }
                (None, None) => {}
            }
            ready.in_pool = standing;
        }
        if ready.jobs.is_empty() {
            self.groups.remove(group);
        }
    }

    fn withdraw(&mut self, group: &Group) {
        let pool = self.pools.entry(self.slots.pool(group)).or_default();
        if let Some(before) = self.groups.get_mut(group).and_then(|ready| ready.in_pool.take()) {
            pool.remove(before);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
            && self.slots.execs().is_empty()
            && self.pools.values().all(FairQueue::is_empty)
    }

    /// Panics unless the entries in the pools agree with the groups. Returns the ready jobs.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) -> BTreeSet<JobId> {
        let mut standing_in_pools = 0;
        for (group, ready) in &self.groups {
            assert!(!ready.jobs.is_empty(), "an empty group is dropped");
            let room = self.slots.group_full(group).is_none();
            let expected = room.then(|| ready.jobs.standing()).flatten();
            assert_eq!(ready.in_pool, expected, "{group:?}");
            standing_in_pools += usize::from(expected.is_some());
        }
        let in_pools: usize = self.pools.values().map(|pool| pool.iter().count()).sum();
        assert_eq!(in_pools, standing_in_pools);
        self.groups
            .values()
            .flat_map(|ready| ready.jobs.iter())
            .chain(self.urgent.values())
            .chain(self.sessions.values())
            .copied()
            .collect()
    }
}
