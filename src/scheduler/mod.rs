//! Which job starts next.
//!
//! The scheduler knows footprints, classes and limits. It does not know what operations do, runs nothing, reads no clock and
//! does no I/O: its caller tells it what happens and when, and asks what may start. The dispatcher owns the only one.
//!
//! ```text
//!                    ┌────────────── waiting ──────────────┐
//!  submit ──────────►│ in line in its lanes                │
//!    │               │    │ clear in all of them           │
//!    ▼               │    ▼                                │
//!  Refusal           │ ready: takes turns for a free place │──start_next──► running ──end──► forgotten
//!                    └──────────────────┬──────────────────┘                  ▲
//!                       cancel, expire, a forced change                     adopt
//!                                       ▼
//!                                   forgotten
//! ```
//!
//! The rules, and where they live:
//!
//! - `lanes`: first come, first served among jobs that conflict, so nobody starves. A forced change waits for holders alone.
//! - `limits`: how many run at once, by class, by machine, or one at a time.
//! - `ready` and `fair_queue`: among ready jobs, clients in rotation.
//! - `admission`: how many may wait, and what a refused caller is told.
//! - `gates`: pause and drain.  `blocker`: why a job waits.
//!
//! Every operation takes O(log n) amortised with n waiting jobs, times the few lanes of a footprint; forced changes and
//! pauses take that for each job they touch.

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
use crate::machine::MachineName;
use crate::operation::{Class, Footprint};
use admission::ThroughputEstimate;
use fair_queue::{OrderKey, SchedulingKey};
use gates::Gates;
use lanes::{Lanes, LockMode, Unblocked};
use limits::Group;
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
    /// Waiting jobs that give up at some moment.
    deadlines: BTreeSet<(Instant, JobId)>,
    /// Jobs that `start_next` found past their deadline and took out; the next `expire` reports them.
    overdue: Vec<(Instant, Expired)>,
    throughput: ThroughputEstimate,
    next_seq: Seq,
}

/// A job's place in the order of acceptance.
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
    /// In line in its lanes; clear in all but so many. At zero it is ready.
    Waiting { behind: usize },
    /// Holds its lanes.
    Running,
}

/// A job that gave up waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Its id.
    pub id: JobId,
    /// What it waited for at that moment.
    pub blocker: Blocker,
}

/// What became of a job that was to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelResult {
    /// It was waiting and is gone; it never starts.
    NeverStarted,
    /// It runs. The caller stops it, if it has not yet, and says so with [`Scheduler::end`].
    Stopping,
    /// It is not known, or over.
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
    /// Makes a scheduler without jobs.
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

    /// Puts other limits in force. What runs or waits beyond a lowered limit stays; nothing joins it until there is room.
    pub fn set_limits(&mut self, limits: Limits) {
        self.ready.set_limits(limits);
    }

    /// Queues a job, or refuses it. A forced change is refused only by a drain, never by the length of the queue.
    ///
    /// The id must not be one of a job that waits or runs.
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

    /// Queues a job that an earlier life of the daemon accepted. No limit turns it away, and it cancels nothing.
    pub fn readmit(&mut self, job: NewJob) {
        self.queue_up(job);
    }

    /// Takes note of a job that runs already: a child of the daemon's previous life. It counts in the limits and holds its
    /// lanes, beside whoever is there, until [`Scheduler::end`].
    pub fn restore_running(&mut self, job: NewJob) {
        let id = job.id;
        let job = Job::new(job, self.take_seq(), State::Running);
        let blocked = self.lanes.restore_running(&job.footprint, job.seq, id);
        self.running.insert(job.seq, id);
        self.ready.occupy(job.class, job.machine.as_ref());
        self.insert_job(id, job);
        self.block(blocked);
    }

    /// Starts the job whose turn it is. The caller calls it until nothing is returned, after each event.
    pub fn start_next(&mut self, now: Instant) -> Option<JobId> {
        self.set_overdue_aside(now);
        let id = self
            .next_session()
            .or_else(|| self.ready.take_urgent())
            .or_else(|| {
                let open = !self.gates.paused && !self.gates.held;
                open.then(|| self.ready.take_next()).flatten()
            })?;
        self.start(id, now);
        Some(id)
    }

    /// Takes note that a running job is over: its lanes and its place are free.
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

    /// Takes a waiting job out of the queue, or says that it runs.
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

    /// Takes all waiting jobs of a client out of the queue and returns them in order of acceptance. To spare some (detached
    /// ones outlive their client), choose from [`Scheduler::waiting_of`] and cancel one by one.
    pub fn cancel_waiting_of(&mut self, client: ClientId) -> Vec<JobId> {
        let ids: Vec<JobId> = self.waiting_of(client).collect();
        for &id in &ids {
            self.withdraw(id);
        }
        ids
    }

    /// Takes waiting jobs whose queue deadline has come out of the queue and returns them.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired> {
        self.set_overdue_aside(now);
        self.overdue.drain(..).map(|(_, expired)| expired).collect()
    }

    /// Returns when [`Scheduler::expire`] has something to do.
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

    /// Returns how many jobs wait.
    pub fn waiting(&self) -> Counts {
        self.waiting
    }

    /// Returns how many jobs run.
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
                // Its turn comes once in a rotation of all that wait.
                retry_after: self.throughput.time_for(self.clients.len()),
            });
        }
        Ok(())
    }

    /// Cancels what waits in the way of a forced change, and finds what runs there.
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
        let job = self.jobs.get_mut(&id).expect("a ready job is known");
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

    /// Takes a waiting job out of everything.
    fn withdraw(&mut self, id: JobId) {
        self.leave_queue(id);
        if self.jobs[&id].state == (State::Waiting { behind: 0 }) {
            self.make_unready(id);
        }
        let job = self.jobs.remove(&id).expect("a waiting job is known");
        let freed = self.lanes.leave(&job.footprint, job.manner, job.seq);
        self.settle(freed);
    }

    /// Takes a job out of the books that are kept of waiting jobs.
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

    /// Takes jobs past their deadline out of the queue, so that nothing starts late even if `start_next` is called first.
    fn set_overdue_aside(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            // Asked while it still stands in line: afterwards nothing is in its way.
            let blocker = self.blocker(id).unwrap_or(Blocker::NotWaiting);
            self.withdraw(id);
            self.overdue.push((at, Expired { id, blocker }));
        }
    }

    /// Passes on that jobs became clear in lanes, or sessions free.
    fn settle(&mut self, freed: Unblocked) {
        for id in freed.runnable {
            let job = self.jobs.get_mut(&id).expect("a job in line is known");
            let State::Waiting { behind } = &mut job.state else {
                unreachable!("a job in line waits");
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

    /// Passes on that jobs are no longer clear in lanes.
    fn block(&mut self, blocked: Vec<JobId>) {
        for id in blocked {
            if self.jobs[&id].state == (State::Waiting { behind: 0 }) {
                self.make_unready(id);
            }
            let job = self.jobs.get_mut(&id).expect("a job in line is known");
            let State::Waiting { behind } = &mut job.state else {
                unreachable!("a job in line waits");
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

    /// Takes a session that may start. One that finds a change running in its machine waits until that is over.
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

    /// Panics unless all books agree with each other.
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
