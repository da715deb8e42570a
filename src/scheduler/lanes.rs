//! The lanes, and the jobs in them: running jobs that hold a lane, and waiting jobs, in order of acceptance.
//!
//! A waiting job is *runnable* in a lane if no earlier job that conflicts with it there is waiting or running:
//!
//! ```text
//! held: S S      waiting: S S S │ X S S X      the runnable jobs are always a prefix of the queue;
//!                               └ frontier     the frontier moves back only for a pause or a restored job
//! ```
//!
//! A runnable job stays runnable until it starts, because later jobs queue behind it. So the frontier passes each job once, and a
//! job that is runnable in all its lanes can start at any time without another check.
//!
//! Forced changes have a queue of their own. The jobs that waited ahead of them were cancelled, so they wait only for running jobs.
//! Later jobs wait for them as for any other job.
//!
//! Sessions are in no queue and block no job. They only wait while a change of their machine runs.

use std::collections::{BTreeMap, HashMap};

use super::Seq;
use crate::job::JobId;
use crate::operation::{Access, Footprint, Lane};
use orbd_host::machine::MachineName;

/// How a job waits for its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockMode {
    /// Ordinary job: first come, first served.
    Fifo,
    /// Forced change: waits only for running jobs.
    Preempting,
}

/// All lanes that contain jobs or are paused. Other lanes use no memory.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Lane, LaneState>,
}

/// The jobs that a change in some lanes unblocked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unblocked {
    /// Jobs that became runnable, once for each lane.
    pub(super) runnable: Vec<JobId>,
    /// Sessions whose blocking change has ended.
    pub(super) session_waiters: Vec<JobId>,
}

impl Lanes {
    /// Queues a job in each of its lanes. Returns the jobs that became runnable, possibly including this one.
    pub(super) fn join(&mut self, footprint: &Footprint, manner: LockMode, seq: Seq, id: JobId) -> Unblocked {
        let mut freed = Unblocked::default();
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.entry(lane.clone()).or_default();
            state.line_mut(manner).jobs.insert(seq, id, *access);
            state.advance(&mut freed);
        }
        freed
    }

    /// Removes a waiting job from its lanes.
    pub(super) fn leave(&mut self, footprint: &Footprint, manner: LockMode, seq: Seq) -> Unblocked {
        let mut freed = Unblocked::default();
        for (lane, _) in footprint.lanes() {
            self.change(lane, |state| {
                let left = state.line_mut(manner).jobs.remove(seq);
                debug_assert!(left, "a waiting job stands in each of its lanes");
                state.advance(&mut freed);
            });
        }
        freed
    }

    /// Makes a waiting job that is runnable in all its lanes hold them.
    pub(super) fn take(&mut self, footprint: &Footprint, manner: LockMode, seq: Seq, id: JobId) {
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.get_mut(lane).expect("a waiting job's lane exists");
            assert!(
                state.is_clear(manner, seq, *access),
                "job {id} starts in {lane} out of turn"
            );
            state.line_mut(manner).jobs.remove(seq);
            state.held.insert(seq, id, *access);
            // This unblocks no job: a job that conflicted with it while it waited conflicts with it while it runs.
        }
    }

    /// Makes a job hold its lanes without having waited, whatever other jobs hold them. Returns the waiting jobs that are no longer
    /// runnable, once for each lane.
    pub(super) fn restore_running(&mut self, footprint: &Footprint, seq: Seq, id: JobId) -> Vec<JobId> {
        let mut blocked = Vec::new();
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.entry(lane.clone()).or_default();
            state.held.insert(seq, id, *access);
            blocked.extend(state.step_back());
        }
        blocked
    }

    /// Releases the lanes of a running job.
    pub(super) fn release(&mut self, footprint: &Footprint, seq: Seq) -> Unblocked {
        let mut freed = Unblocked::default();
        for (lane, _) in footprint.lanes() {
            self.change(lane, |state| {
                let held = state.held.remove(seq);
                debug_assert!(held, "a running job holds each of its lanes");
                state.advance(&mut freed);
            });
        }
        freed
    }

    /// Pauses a lane: ordinary jobs are not runnable in it. Returns those that were.
    pub(super) fn pause(&mut self, lane: &Lane) -> Vec<JobId> {
        let state = self.lanes.entry(lane.clone()).or_default();
        state.paused = true;
        state.step_back()
    }

    pub(super) fn resume(&mut self, lane: &Lane) -> Unblocked {
        let mut freed = Unblocked::default();
        self.change(lane, |state| {
            state.paused = false;
            state.advance(&mut freed);
        });
        freed
    }

    pub(super) fn is_paused(&self, lane: &Lane) -> bool {
        self.lanes.get(lane).is_some_and(|state| state.paused)
    }

    /// Returns whether no job holds the lane or waits in it.
    pub(super) fn is_idle(&self, lane: &Lane) -> bool {
        self.lanes.get(lane).is_none_or(LaneState::is_idle)
    }

    /// Returns the waiting jobs that conflict with a footprint, in order of acceptance.
    pub(super) fn conflicts_waiting(&self, footprint: &Footprint) -> BTreeMap<Seq, JobId> {
        self.conflicts(footprint, |state, access| {
            let in_turn = state.in_turn.jobs.conflicting(access).iter();
            in_turn.chain(state.urgent.jobs.conflicting(access))
        })
    }

    /// Returns the running jobs that conflict with a footprint, in order of acceptance.
    pub(super) fn conflicts_held(&self, footprint: &Footprint) -> BTreeMap<Seq, JobId> {
        self.conflicts(footprint, |state, access| state.held.conflicting(access).iter())
    }

    fn conflicts<'a, I>(
        &'a self,
        footprint: &Footprint,
        jobs: impl Fn(&'a LaneState, Access) -> I,
    ) -> BTreeMap<Seq, JobId>
    where
        I: Iterator<Item = (&'a Seq, &'a JobId)>,
    {
        footprint
            .lanes()
            .iter()
            .filter_map(|(lane, access)| Some(jobs(self.lanes.get(lane)?, *access)))
            .flatten()
            .map(|(&seq, &id)| (seq, id))
            .collect()
    }

    /// Returns the earliest job that blocks this waiting job, and the lane in which they conflict.
    pub(super) fn blocker(&self, footprint: &Footprint, manner: LockMode, seq: Seq) -> Option<(JobId, Lane)> {
        footprint
            .lanes()
            .iter()
            .filter_map(|(lane, access)| {
                let (at, id) = self.lanes.get(lane)?.blocker(manner, seq, *access)?;
                Some((at, id, lane))
            })
            .min_by_key(|(at, ..)| *at)
            .map(|(_, id, lane)| (id, lane.clone()))
    }

    /// Returns the change that runs in a machine or in the fleet.
    pub(super) fn running_change(&self, machine: &MachineName) -> Option<(JobId, Lane)> {
        [Lane::Machine(machine.clone()), Lane::Fleet]
            .into_iter()
            .find_map(|lane| {
                let (_, id) = self.lanes.get(&lane)?.held.first_conflict(Access::Shared)?;
                Some((id, lane))
            })
    }

    /// Makes a session wait for the end of the change that runs in its machine. Returns whether there is such a change.
    pub(super) fn wait_for_change(&mut self, machine: &MachineName, seq: Seq, id: JobId) -> bool {
        let change = self.running_change(machine);
        if let Some((_, lane)) = &change {
            let state = self.lanes.get_mut(lane).expect("a held lane exists");
            state.session_waiters.insert(seq, id);
        }
        change.is_some()
    }

    /// Removes a waiting session.
    pub(super) fn forget_guest(&mut self, machine: &MachineName, seq: Seq) {
        for lane in [Lane::Machine(machine.clone()), Lane::Fleet] {
            if let Some(state) = self.lanes.get_mut(&lane) {
                state.session_waiters.remove(&seq);
            }
        }
    }

    /// Updates a lane, and drops it if it is then idle and not paused.
    fn change(&mut self, lane: &Lane, change: impl FnOnce(&mut LaneState)) {
        if let Some(state) = self.lanes.get_mut(lane) {
            change(state);
            if state.is_idle() && !state.paused {
                self.lanes.remove(lane);
            }
        }
    }
}

#[derive(Debug, Default)]
struct LaneState {
    held: Jobs,
    in_turn: Line,
    urgent: Line,
    session_waiters: BTreeMap<Seq, JobId>,
    paused: bool,
}

/// Waiting jobs; those before the frontier are runnable.
#[derive(Debug, Default)]
struct Line {
    jobs: Jobs,
    frontier: Seq,
}

/// Jobs in order of acceptance, with quick access to the exclusive ones.
#[derive(Debug, Default)]
struct Jobs {
    all: BTreeMap<Seq, JobId>,
    exclusive: BTreeMap<Seq, JobId>,
}

impl Jobs {
    fn insert(&mut self, seq: Seq, id: JobId, access: Access) {
        self.all.insert(seq, id);
        if access == Access::Exclusive {
            self.exclusive.insert(seq, id);
        }
    }

    fn remove(&mut self, seq: Seq) -> bool {
        self.exclusive.remove(&seq);
        self.all.remove(&seq).is_some()
    }

    fn access(&self, seq: Seq) -> Access {
        if self.exclusive.contains_key(&seq) {
            Access::Exclusive
        } else {
            Access::Shared
        }
    }

    /// Returns the jobs that cannot share the lane with a job of this access.
    fn conflicting(&self, access: Access) -> &BTreeMap<Seq, JobId> {
        match access {
            Access::Exclusive => &self.all,
            Access::Shared => &self.exclusive,
        }
    }

    fn first_conflict(&self, access: Access) -> Option<(Seq, JobId)> {
        let (&seq, &id) = self.conflicting(access).first_key_value()?;
        Some((seq, id))
    }

    fn first_conflict_before(&self, seq: Seq, access: Access) -> Option<(Seq, JobId)> {
        self.first_conflict(access).filter(|&(at, _)| at < seq)
    }
}

impl LaneState {
    fn line_mut(&mut self, manner: LockMode) -> &mut Line {
        match manner {
            LockMode::Fifo => &mut self.in_turn,
            LockMode::Preempting => &mut self.urgent,
        }
    }

    /// Returns the earliest job that blocks a waiting job. A pause, which this ignores, may block it too.
    fn blocker(&self, manner: LockMode, seq: Seq, access: Access) -> Option<(Seq, JobId)> {
        let holder = self.held.first_conflict(access);
        let ahead = match manner {
            LockMode::Fifo => [
                self.in_turn.jobs.first_conflict_before(seq, access),
                self.urgent.jobs.first_conflict_before(seq, access),
            ],
            LockMode::Preempting => [None, None],
        };
        ahead.into_iter().chain([holder]).flatten().min()
    }

    fn is_clear(&self, manner: LockMode, seq: Seq, access: Access) -> bool {
        let paused = self.paused && manner == LockMode::Fifo;
        !paused && self.blocker(manner, seq, access).is_none()
    }

    /// Moves the frontiers past all jobs that are runnable now.
    fn advance(&mut self, freed: &mut Unblocked) {
        for manner in [LockMode::Preempting, LockMode::Fifo] {
            loop {
                let line = self.line_mut(manner);
                let Some((&seq, &id)) = line.jobs.all.range(line.frontier..).next() else {
                    break;
                };
                let access = line.jobs.access(seq);
                if !self.is_clear(manner, seq, access) {
                    break;
                }
                self.line_mut(manner).frontier = seq.next();
                freed.runnable.push(id);
            }
        }
        if self.held.exclusive.is_empty() {
            freed
                .session_waiters
                .extend(std::mem::take(&mut self.session_waiters).into_values());
        }
    }

    /// Moves the frontiers back after a pause, or after a restored job took the lane. Returns the jobs that are no longer runnable.
    fn step_back(&mut self) -> Vec<JobId> {
        let mut blocked = Vec::new();
        for manner in [LockMode::Preempting, LockMode::Fifo] {
            // The runnable jobs are a prefix of the queue, so only the jobs before the old frontier need a check.
            let line = self.line_mut(manner);
            let runnable: Vec<(Seq, JobId)> = line
                .jobs
                .all
                .range(..line.frontier)
                .map(|(&seq, &id)| (seq, id))
                .collect();
            let still = runnable
                .iter()
                .take_while(|&&(seq, _)| {
                    let access = self.line_mut(manner).jobs.access(seq);
                    self.is_clear(manner, seq, access)
                })
                .count();
            if let Some(&(first_blocked, _)) = runnable.get(still) {
                self.line_mut(manner).frontier = first_blocked;
            }
            blocked.extend(runnable[still..].iter().map(|&(_, id)| id));
        }
        blocked
    }

    fn is_idle(&self) -> bool {
        self.held.all.is_empty() && self.in_turn.jobs.all.is_empty() && self.urgent.jobs.all.is_empty()
    }
}

/// The state of the lanes, computed by a full scan.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Number of lanes in which each job waits.
    pub(super) waiting: HashMap<JobId, usize>,
    /// Number of those lanes in which it is runnable.
    pub(super) runnable: HashMap<JobId, usize>,
    pub(super) session_waiters: std::collections::HashSet<JobId>,
}

#[cfg(test)]
impl Lanes {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Panics unless each frontier is correct and no lane is kept without need.
    pub(super) fn check_invariants(&self) -> Census {
        let mut census = Census::default();
        for (lane, state) in &self.lanes {
            assert!(state.paused || !state.is_idle(), "{lane} is kept for nothing");
            assert!(state.session_waiters.is_empty() || !state.held.exclusive.is_empty());
            census.session_waiters.extend(state.session_waiters.values());
            for (manner, line) in [
                (LockMode::Preempting, &state.urgent),
                (LockMode::Fifo, &state.in_turn),
            ] {
                for (&seq, &id) in &line.jobs.all {
                    let runnable = state.is_clear(manner, seq, line.jobs.access(seq));
                    assert_eq!(runnable, seq < line.frontier, "job {id} in {lane}");
                    *census.waiting.entry(id).or_default() += 1;
                    *census.runnable.entry(id).or_default() += usize::from(runnable);
                }
            }
        }
        census
    }
}
