//! The lanes, and who is in them: jobs that hold them and jobs that wait in line, in order of acceptance.
//!
//! A waiting job is *clear* in a lane when no earlier job that conflicts with it there waits or holds:
//!
//! ```text
//! held: S S      waiting: S S S │ X S S X      the clear ones are always a front part of the line;
//!                               └ frontier     the frontier moves back only for a pause or an adopted job
//! ```
//!
//! Once clear, a job stays clear until it starts, because whoever comes later stands behind it. So the frontier passes each
//! job once, and a job that is clear in all its lanes can start at any moment without asking again.
//!
//! Forced changes stand in a line of their own. Whatever waited in their way was cancelled, so they wait for holders alone;
//! those who come later wait for them as for anybody.
//!
//! Sessions are guests: in no line and in nobody's way, they only wait until no change runs.

use std::collections::{BTreeMap, HashMap};

use super::Seq;
use crate::job::JobId;
use crate::machine::MachineName;
use crate::operation::{Access, Footprint, Lane};

/// How a job waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockMode {
    /// First come, first served.
    Fifo,
    /// Forced: waits for holders alone.
    Preempting,
}

/// All lanes that somebody is in or that are paused. Others take no memory.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Lane, LaneState>,
}

/// What a step forward in some lanes set free.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unblocked {
    /// Jobs that became clear, once for each lane.
    pub(super) runnable: Vec<JobId>,
    /// Sessions for which the change they waited for is over.
    pub(super) session_waiters: Vec<JobId>,
}

impl Lanes {
    /// Puts a job in line in each of its lanes and returns what is clear, which may be itself.
    pub(super) fn join(&mut self, footprint: &Footprint, manner: LockMode, seq: Seq, id: JobId) -> Unblocked {
        let mut freed = Unblocked::default();
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.entry(lane.clone()).or_default();
            state.line_mut(manner).jobs.insert(seq, id, *access);
            state.advance(&mut freed);
        }
        freed
    }

    /// Takes a waiting job out of line.
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

    /// Lets a waiting job that is clear in all its lanes take them.
    pub(super) fn take(&mut self, footprint: &Footprint, manner: LockMode, seq: Seq, id: JobId) {
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.get_mut(lane).expect("a waiting job keeps its lanes");
            assert!(
                state.is_clear(manner, seq, *access),
                "job {id} starts in {lane} out of turn"
            );
            state.line_mut(manner).jobs.remove(seq);
            state.held.insert(seq, id, *access);
            // Nobody is set free: who conflicts with the job in line conflicts with it as holder.
        }
    }

    /// Makes a job hold lanes without having waited, whoever else is there. Returns the waiting jobs that are no longer clear,
    /// once for each lane.
    pub(super) fn restore_running(&mut self, footprint: &Footprint, seq: Seq, id: JobId) -> Vec<JobId> {
        let mut blocked = Vec::new();
        for (lane, access) in footprint.lanes() {
            let state = self.lanes.entry(lane.clone()).or_default();
            state.held.insert(seq, id, *access);
            blocked.extend(state.step_back());
        }
        blocked
    }

    /// Frees the lanes of a job that held them.
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

    /// Pauses a lane: jobs in turn are not clear in it. Returns those that were.
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

    /// Says whether nobody holds the lane or waits in it.
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

    /// Returns the earliest job that keeps this waiting one from being clear, and in which lane.
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

    /// Returns the change that runs in a machine, or in all of them.
    pub(super) fn running_change(&self, machine: &MachineName) -> Option<(JobId, Lane)> {
        [Lane::Machine(machine.clone()), Lane::Fleet]
            .into_iter()
            .find_map(|lane| {
                let (_, id) = self.lanes.get(&lane)?.held.first_conflict(Access::Shared)?;
                Some((id, lane))
            })
    }

    /// Makes a session wait for the end of the change that runs in its machine. Says whether there is one.
    pub(super) fn wait_for_change(&mut self, machine: &MachineName, seq: Seq, id: JobId) -> bool {
        let change = self.running_change(machine);
        if let Some((_, lane)) = &change {
            let state = self.lanes.get_mut(lane).expect("a held lane is kept");
            state.session_waiters.insert(seq, id);
        }
        change.is_some()
    }

    /// Makes a session wait no longer.
    pub(super) fn forget_guest(&mut self, machine: &MachineName, seq: Seq) {
        for lane in [Lane::Machine(machine.clone()), Lane::Fleet] {
            if let Some(state) = self.lanes.get_mut(&lane) {
                state.session_waiters.remove(&seq);
            }
        }
    }

    /// Applies a change to a lane that is kept, and drops it if it is idle after that.
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

/// Jobs that wait, of which those before the frontier are clear.
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

    /// Returns those that cannot be in the lane beside a job with this access.
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

    /// Returns the earliest job that keeps a waiting one from being clear. A pause may do so too.
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

    /// Moves the frontiers over all that are clear now.
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

    /// Moves the frontiers back to where they belong after somebody who did not wait took the lane, or after a pause. Returns
    /// the jobs that are no longer clear.
    fn step_back(&mut self) -> Vec<JobId> {
        let mut blocked = Vec::new();
        for manner in [LockMode::Preempting, LockMode::Fifo] {
            // The line is clear up to some job, so it is enough to look at the clear ones from their start.
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

/// What the lanes hold, counted the slow way.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Census {
    /// In how many lanes each job waits.
    pub(super) waiting: HashMap<JobId, usize>,
    /// In how many of them it is clear.
    pub(super) runnable: HashMap<JobId, usize>,
    pub(super) session_waiters: std::collections::HashSet<JobId>,
}

#[cfg(test)]
impl Lanes {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Panics unless each frontier is where the rule puts it and no lane is kept for nothing.
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
