//! The scheduler: decides which job starts next.
//!
//! The scheduler knows footprints, classes and limits. It does not know what operations do, runs nothing, reads no clock and does
//! no I/O: its caller reports what happens and when, and asks which job may start. The dispatcher owns the only instance.
//!
//! ```text
//!                    ┌────────────── waiting ──────────────┐
//!  submit ──────────►│ queued in its lanes                 │
//!    │               │    │ runnable in all of them        │
//!    ▼               │    ▼                                │
//!  Refusal           │ ready: fair queue for a free slot   │──start_next──► running ──end──► forgotten
//!                    └──────────────────┬──────────────────┘                  ▲
//!                       cancel, expire, a forced change                restore_running
//!                                       ▼
//!                                   forgotten
//! ```
//!
//! The rules, and the modules that implement them:
//!
//! - `lanes`: first come, first served among conflicting jobs, so no job starves. A forced change waits only for running jobs.
//! - `limits`: how many jobs run at once, by class, by machine, or one at a time.
//! - `ready` and `fair_queue`: among ready jobs, clients take turns.
//! - `admission`: how many jobs may wait, and what a refused caller receives.
//! - `gates`: pause, hold, close and drain.
//! - `blocker`: why a job waits.
//!
//! With n waiting jobs, every operation takes amortised O(log n) for each lane of the job's footprint. Forced changes and pauses
//! take that for each job that they affect.

mod admission;
mod blocker;
mod fair_queue;
mod gates;
mod lanes;
mod limits;
mod ready;
#[cfg(test)]
mod rules;
#[cfg(test)]
pub(crate) mod simulation;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

pub use admission::{Admission, NewJob, Refusal};
pub use blocker::Blocker;
pub use gates::Target;
pub use limits::{Counts, Limits};

use crate::job::{ClientId, JobId};
use crate::operation::{Class, Footprint};
use admission::ThroughputEstimate;
use fair_queue::{OrderKey, SchedulingKey};
use gates::Gates;
use lanes::{Lanes, LockMode, Unblocked};
use limits::Group;
use orbd_host::machine::MachineName;
use ready::Ready;

/// Decides which job starts next. See the [module](self) for the rules.
#[derive(Debug)]
pub struct Scheduler {
    jobs: HashMap<JobId, Job>,
    lanes: Lanes,
    ready: Ready,
    gates: Gates,
    /// Waiting jobs in order of acceptance.
    queue: BTreeMap<Seq, JobId>,
    waiting: Counts,
    /// Running jobs in order of acceptance.
    running: BTreeMap<Seq, JobId>,
    /// Waiting jobs of each client that has any.
    clients: HashMap<ClientId, BTreeMap<Seq, JobId>>,
    /// Queue deadlines of waiting jobs.
    deadlines: BTreeSet<(Instant, JobId)>,
    /// Jobs that `start_next` removed because their deadline had passed. The next `expire` returns them.
    overdue: Vec<(Instant, Expired)>,
    throughput: ThroughputEstimate,
    next_seq: Seq,
}

/// A job's position in the order of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Seq(u64);

impl Seq {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[derive(Debug)]
struct Job {
    seq: Seq,
    client: ClientId,
    class: Class,
    footprint: Footprint,
    queue_deadline: Option<Instant>,
    manner: LockMode,
    machine: Option<MachineName>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Queued in its lanes. `behind` is the number of lanes in which it is not runnable; at zero it is ready.
    Waiting { behind: usize },
    /// Holds its lanes.
    Running,
}

/// A waiting job whose queue deadline passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Id of the job.
    pub id: JobId,
    /// What it was waiting for when it expired.
    pub blocker: Blocker,
}

/// The result of cancelling a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelResult {
    /// It was waiting and has been removed; it never starts.
    NeverStarted,
    /// It is running. The caller must stop it if it has not yet, and then call [`Scheduler::end`].
    Stopping,
    /// It is unknown or has ended.
    NoSuchJob,
}

impl Job {
    fn new(job: NewJob, seq: Seq, state: State) -> Self {
        Self {
            seq,
            client: job.client,
            class: job.class,
            footprint: job.footprint,
            queue_deadline: job.queue_deadline,
            manner: if job.preempts {
                LockMode::Preempting
            } else {
                LockMode::Fifo
            },
            machine: job.machine,
            state,
        }
    }

    fn is_session(&self) -> bool {
        self.class == Class::Session
    }

    fn group(&self) -> Option<Group> {
        Group::of(self.class, self.machine.as_ref())
    }

    fn standing(&self) -> SchedulingKey {
        SchedulingKey {
            client: self.client,
            rank: OrderKey {
                alone: true,
                seq: self.seq,
            },
        }
    }
}

impl Scheduler {
    /// Creates a scheduler without jobs.
    pub fn new(limits: Limits) -> Self {
        Self {
            jobs: HashMap::new(),
            lanes: Lanes::default(),
            ready: Ready::new(limits),
            gates: Gates::default(),
            queue: BTreeMap::new(),
            waiting: Counts::default(),
            running: BTreeMap::new(),
            clients: HashMap::new(),
            deadlines: BTreeSet::new(),
            overdue: Vec::new(),
            throughput: ThroughputEstimate::new(),
            next_seq: Seq::default(),
        }
    }

    /// Returns the limits in force.
    pub fn limits(&self) -> &Limits {
        self.ready.slots().limits()
    }

    /// Replaces the limits. Jobs above a lowered limit stay; no further job is admitted or started until the count is below the
    /// limit.
    pub fn set_limits(&mut self, limits: Limits) {
        self.ready.set_limits(limits);
    }

    /// Queues a job, or refuses it. A forced change is refused only by a drain, never because the queue is full.
    ///
    /// The id must differ from those of all waiting and running jobs.
    pub fn submit(&mut self, job: NewJob) -> Result<Admission, Refusal> {
        self.admit(&job)?;
        let admission = if job.preempts {
            self.clear_the_way(&job.footprint)
        } else {
            Admission::default()
        };
        self.queue_up(job);
        Ok(admission)
    }

    /// Queues a job that an earlier instance of the daemon accepted. No limit applies, and it cancels nothing.
    pub fn readmit(&mut self, job: NewJob) {
        self.queue_up(job);
    }

    /// Adds a job that is already running: a child process of the daemon's previous instance. It counts towards the limits and
    /// holds its lanes, together with any current holders, until [`Scheduler::end`].
    pub fn restore_running(&mut self, job: NewJob) {
        let id = job.id;
        let job = Job::new(job, self.take_seq(), State::Running);
        let blocked = self.lanes.restore_running(&job.footprint, job.seq, id);
        self.running.insert(job.seq, id);
        self.ready.occupy(job.class, job.machine.as_ref());
        self.insert_job(id, job);
        self.block(blocked);
    }

    /// Starts the next job. After each event, call this until it returns `None`.
    pub fn start_next(&mut self, now: Instant) -> Option<JobId> {
        self.set_overdue_aside(now);
        let id = self
            .next_session()
            .or_else(|| self.ready.take_urgent())
            .or_else(|| {
                let open = !self.gates.is_shut();
                open.then(|| self.ready.take_next()).flatten()
            })?;
        self.start(id, now);
        Some(id)
    }

    /// Records the end of a running job, and frees its lanes and its slot.
    pub fn end(&mut self, id: JobId) {
        let runs = self.jobs.get(&id).is_some_and(|job| job.state == State::Running);
        debug_assert!(runs, "job {id} ends, but does not run");
        if !runs {
            return;
        }
        let job = self.jobs.remove(&id).expect("it was just looked up");
        self.running.remove(&job.seq);
        self.ready.vacate(job.class, job.machine.as_ref());
        let freed = self.lanes.release(&job.footprint, job.seq);
        self.settle(freed);
    }

    /// Removes a waiting job from the queue. For a running job, returns [`CancelResult::Stopping`].
    pub fn cancel(&mut self, id: JobId) -> CancelResult {
        match self.jobs.get(&id).map(|job| job.state) {
            Some(State::Waiting { .. }) => {
                self.withdraw(id);
                CancelResult::NeverStarted
            }
            Some(State::Running) => CancelResult::Stopping,
            None => CancelResult::NoSuchJob,
        }
    }

    /// Removes all waiting jobs of a client and returns them in order of acceptance. To keep some of them, such as detached jobs,
    /// select from [`Scheduler::waiting_of`] and cancel the others one by one.
    pub fn cancel_waiting_of(&mut self, client: ClientId) -> Vec<JobId> {
        let ids: Vec<JobId> = self.waiting_of(client).collect();
        for &id in &ids {
            self.withdraw(id);
        }
        ids
    }

    /// Removes and returns the waiting jobs whose queue deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired> {
        self.set_overdue_aside(now);
        self.overdue.drain(..).map(|(_, expired)| expired).collect()
    }

    /// Returns when [`Scheduler::expire`] must be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let overdue = self.overdue.first().map(|(at, _)| *at);
        overdue.or_else(|| self.deadlines.first().map(|(at, _)| *at))
    }

    /// Returns the waiting jobs in order of acceptance.
    pub fn queue(&self) -> impl ExactSizeIterator<Item = JobId> {
        self.queue.values().copied()
    }

    /// Returns the waiting jobs of a client in order of acceptance.
    pub fn waiting_of(&self, client: ClientId) -> impl Iterator<Item = JobId> {
        self.clients
            .get(&client)
            .into_iter()
            .flat_map(BTreeMap::values)
            .copied()
    }

    /// Returns the running jobs in order of acceptance.
    pub fn running_jobs(&self) -> impl ExactSizeIterator<Item = JobId> {
        self.running.values().copied()
    }

    /// Returns the number of waiting jobs.
    pub fn waiting(&self) -> Counts {
        self.waiting
    }

    /// Returns the number of running jobs.
    pub fn running(&self) -> Counts {
        self.ready.slots().running()
    }

    fn admit(&self, job: &NewJob) -> Result<(), Refusal> {
        if let Some(what) = self.gates.refuses(&job.footprint) {
            return Err(Refusal::Draining { what });
        }
        if job.preempts {
            return Ok(());
        }
        let Limits {
            queue_max,
            queue_max_per_client,
            ..
        } = *self.limits();
        if self.queue.len() >= queue_max {
            return Err(Refusal::QueueFull {
                limit: queue_max,
                retry_after: self.throughput.time_for(1),
            });
        }
        if self.clients.get(&job.client).map_or(0, BTreeMap::len) >= queue_max_per_client {
            return Err(Refusal::ClientQueueFull {
                limit: queue_max_per_client,
                // The fair queue serves each waiting client once per rotation.
                retry_after: self.throughput.time_for(self.clients.len()),
            });
        }
        Ok(())
    }

    /// Cancels the waiting jobs that conflict with a forced change, and finds the running ones.
    fn clear_the_way(&mut self, footprint: &Footprint) -> Admission {
        let cancelled = self.lanes.conflicts_waiting(footprint).into_values().collect();
        for &id in &cancelled {
            self.withdraw(id);
        }
        Admission {
            cancelled,
            stop: self.lanes.conflicts_held(footprint).into_values().collect(),
        }
    }

    fn queue_up(&mut self, job: NewJob) {
        let id = job.id;
        let behind = job.footprint.lanes().len();
        let job = Job::new(job, self.take_seq(), State::Waiting { behind });
        self.queue.insert(job.seq, id);
        self.waiting.add(job.class);
        self.clients.entry(job.client).or_default().insert(job.seq, id);
        self.deadlines.extend(job.queue_deadline.map(|at| (at, id)));
        let freed = self.lanes.join(&job.footprint, job.manner, job.seq, id);
        self.insert_job(id, job);
        if behind == 0 {
            self.make_ready(id);
        }
        self.settle(freed);
    }

    fn insert_job(&mut self, id: JobId, job: Job) {
        let before = self.jobs.insert(id, job);
        assert!(before.is_none(), "job {id} is known already");
    }

    fn take_seq(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        seq
    }

    fn start(&mut self, id: JobId, now: Instant) {
        self.leave_queue(id);
        let job = self.jobs.get_mut(&id).expect("a ready job is in the table");
        assert_eq!(
            job.state,
            State::Waiting { behind: 0 },
            "job {id} starts before it is ready"
        );
        job.state = State::Running;
        self.running.insert(job.seq, id);
        self.lanes.take(&job.footprint, job.manner, job.seq, id);
        self.ready.occupy(job.class, job.machine.as_ref());
        self.throughput.started(now, !self.queue.is_empty());
    }

    /// Removes a waiting job.
    fn withdraw(&mut self, id: JobId) {
        self.leave_queue(id);
        if self.jobs[&id].state == (State::Waiting { behind: 0 }) {
            self.make_unready(id);
        }
        let job = self.jobs.remove(&id).expect("a waiting job is in the table");
        let freed = self.lanes.leave(&job.footprint, job.manner, job.seq);
        self.settle(freed);
    }

    /// Removes a job from the collections of waiting jobs.
    fn leave_queue(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        self.queue.remove(&job.seq);
        self.waiting.subtract(job.class);
        if let Some(at) = job.queue_deadline {
            self.deadlines.remove(&(at, id));
        }
        if let Some(jobs) = self.clients.get_mut(&job.client) {
            jobs.remove(&job.seq);
            if jobs.is_empty() {
                self.clients.remove(&job.client);
            }
        }
    }

    /// Removes the jobs whose deadline has passed, so that none starts late even if `start_next` is called before `expire`.
    fn set_overdue_aside(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            // Determine this before the job leaves its lanes: afterwards it has no blocker.
            let blocker = self.blocker(id).unwrap_or(Blocker::NotWaiting);
            self.withdraw(id);
            self.overdue.push((at, Expired { id, blocker }));
        }
    }

    /// Handles jobs that became runnable in lanes, and sessions that no longer wait for a change.
    fn settle(&mut self, freed: Unblocked) {
        for id in freed.runnable {
            let job = self.jobs.get_mut(&id).expect("a queued job is in the table");
            let State::Waiting { behind } = &mut job.state else {
                unreachable!("a queued job is in state Waiting");
            };
            *behind -= 1;
            if *behind == 0 {
                self.make_ready(id);
            }
        }
        for id in freed.session_waiters {
            self.make_ready(id);
        }
    }

    /// Handles jobs that are no longer runnable in lanes.
    fn block(&mut self, blocked: Vec<JobId>) {
        for id in blocked {
            if self.jobs[&id].state == (State::Waiting { behind: 0 }) {
                self.make_unready(id);
            }
            let job = self.jobs.get_mut(&id).expect("a queued job is in the table");
            let State::Waiting { behind } = &mut job.state else {
                unreachable!("a queued job is in state Waiting");
            };
            *behind += 1;
        }
    }

    fn make_ready(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        match (job.group(), job.manner) {
            (None, _) => self.ready.insert_session(job.seq, id),
            (_, LockMode::Preempting) => self.ready.insert_urgent(job.seq, id),
            (Some(group), LockMode::Fifo) => {
                self.ready.insert(&group, job.standing(), id);
            }
        }
    }

    fn make_unready(&mut self, id: JobId) {
        let job = &self.jobs[&id];
        match (job.group(), job.manner) {
            (None, _) => {
                self.ready.remove_session(job.seq);
                if let Some(machine) = &job.machine {
                    self.lanes.forget_guest(machine, job.seq);
                }
            }
            (_, LockMode::Preempting) => self.ready.remove_urgent(job.seq),
            (Some(group), LockMode::Fifo) => self.ready.remove(&group, job.standing()),
        }
    }

    /// Returns the next session that may start. A session that finds a change running in its machine waits until that change has
    /// ended.
    fn next_session(&mut self) -> Option<JobId> {
        while let Some(id) = self.ready.take_session() {
            let job = &self.jobs[&id];
            let waits = job
                .machine
                .as_ref()
                .is_some_and(|machine| self.lanes.wait_for_change(machine, job.seq, id));
            if !waits {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
impl Scheduler {
    fn remembers_nothing(&self) -> bool {
        self.jobs.is_empty() && self.clients.is_empty() && self.lanes.is_empty() && self.ready.is_empty()
    }

    /// Panics unless all collections agree with each other.
    fn check_invariants(&self) {
        let waits = |job: &Job| matches!(job.state, State::Waiting { .. });
        assert_eq!(self.jobs.len(), self.queue.len() + self.running.len());
        assert_eq!(self.queue.len(), self.waiting.total());
        assert_eq!(self.running.len(), self.running().total());
        assert_eq!(
            self.queue.len(),
            self.clients.values().map(BTreeMap::len).sum::<usize>()
        );
        assert!(self.clients.values().all(|jobs| !jobs.is_empty()));
        for target in &self.gates.paused {
            assert!(
                !matches!(target, Target::Lane(lane) if !self.lanes.is_paused(lane)),
                "{target}"
            );
        }
        let in_groups = self.ready.check_invariants();
        let in_lanes = self.lanes.check_invariants();
        let mut execs = HashMap::new();
        for (&id, job) in &self.jobs {
            let book = if waits(job) { &self.queue } else { &self.running };
            assert_eq!(book.get(&job.seq), Some(&id));
            if job.state == State::Running && job.class == Class::Exec {
                *execs.entry(job.machine.clone()).or_default() += 1;
            }
            let ready = in_groups.contains(&id) || in_lanes.session_waiters.contains(&id);
            assert_eq!(ready, job.state == State::Waiting { behind: 0 }, "job {id}");
            if let State::Waiting { behind } = job.state {
                let lanes = job.footprint.lanes();
                let runnable = in_lanes.runnable.get(&id).copied().unwrap_or_default();
                assert_eq!(behind, lanes.len() - runnable, "job {id}");
                assert_eq!(
                    in_lanes.waiting.get(&id).copied().unwrap_or_default(),
                    lanes.len()
                );
            }
        }
        assert_eq!(&execs, self.ready.slots().execs());
    }
}
