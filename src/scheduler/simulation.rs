//! Random traffic, compared with a plain model.
//!
//! The model keeps one vector of jobs in order of acceptance and computes everything by scanning it, so that each rule is a line
//! that is easy to verify. It does not predict which of several jobs starts, only which ones may; `fair_queue` has a model of its
//! own for that. After each step, the scheduler and the model must agree on:
//!
//! - which jobs are accepted, refused, cancelled or expired, and which jobs a forced change cancels or stops;
//! - whether a job that starts may start: order of the lanes, limits, strict mode, pauses, deadlines;
//! - if no job starts, that none may: no slot stays free while a job could use it;
//! - which jobs wait, which run, and why a job waits.
//!
//! A seed repeats a run exactly: `ORBD_TEST_SEED=7 cargo test --lib simulation`.

use std::time::{Duration, Instant};

use super::{Admission, Blocker, CancelResult, Limits, NewJob, Refusal, Scheduler, Target};
use crate::clock::Moment;
use crate::job::{ClientId, JobId};
use crate::operation::{Access, Class, Footprint, Lane};

/// Number of steps of each of the four simulations.
const STEPS: u64 = 260_000;

const MACHINES: usize = 5;
const CONFIGURATION: usize = MACHINES;
const FLEET: usize = MACHINES + 1;
const LANES: usize = MACHINES + 2;
const CLIENTS: u64 = 5;

#[test]
fn scheduler_with_low_limits_agrees_with_its_model() {
    let limits = Limits {
        queries_max: 2,
        exec_per_machine: 2,
        exec_max: 4,
        changes_max: 3,
        creates_max: 1,
        queue_max: 24,
        queue_max_per_client: 10,
        strict: false,
    };
    simulate(1, limits);
}

#[test]
fn a_strict_scheduler_agrees_with_its_model() {
    let limits = Limits {
        strict: true,
        queue_max: 16,
        ..Limits::default()
    };
    simulate(2, limits);
}

#[test]
fn scheduler_with_default_limits_agrees_with_its_model() {
    simulate(3, Limits::default());
}

#[test]
fn a_scheduler_with_one_slot_of_each_kind_agrees_with_its_model() {
    let limits = Limits {
        queries_max: 1,
        exec_per_machine: 1,
        exec_max: 2,
        changes_max: 1,
        creates_max: 1,
        ..Limits::default()
    };
    simulate(4, limits);
}

/// Splitmix64: short, and produces the same numbers on every platform.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("less than a usize")
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the seed to repeat a run is read from the environment"
)]
pub(crate) fn seed_or(default: u64) -> u64 {
    std::env::var("ORBD_TEST_SEED").map_or(default, |seed| seed.parse().expect("a seed is a number"))
}

/// Prints how to repeat a failed run.
pub(crate) struct Repeat {
    pub(crate) seed: u64,
    pub(crate) step: u64,
}

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed at step {}; ORBD_TEST_SEED={} repeats it",
                self.step, self.seed
            );
        }
    }
}

/// A set of lanes, one bit each.
type LaneSet = u16;

const fn bit(lane: usize) -> LaneSet {
    1 << lane
}

struct ModelJob {
    job: NewJob,
    machine: Option<usize>,
    shared: LaneSet,
    exclusive: LaneSet,
    running: bool,
}

impl ModelJob {
    fn conflicts_with(&self, other: &Self) -> bool {
        self.exclusive & (other.shared | other.exclusive) != 0 || self.shared & other.exclusive != 0
    }

    fn lanes(&self) -> LaneSet {
        self.shared | self.exclusive
    }

    fn is_session(&self) -> bool {
        self.job.class == Class::Session
    }

    /// Returns the lanes in which a running change blocks this session: its machine's and the fleet's.
    fn watched(&self) -> LaneSet {
        self.machine.map_or(0, |machine| bit(machine) | bit(FLEET))
    }
}

struct Model {
    /// Waiting and running jobs, in order of acceptance.
    jobs: Vec<ModelJob>,
    limits: Limits,
    paused: bool,
    paused_lanes: LaneSet,
    draining: bool,
    draining_lanes: LaneSet,
    /// Jobs that `start_next` found past their deadline and that `expire` has not returned yet.
    overdue: Vec<JobId>,
}

impl Model {
    fn running(&self) -> impl Iterator<Item = &ModelJob> {
        self.jobs.iter().filter(|job| job.running)
    }

    fn waiting(&self) -> impl Iterator<Item = &ModelJob> {
        self.jobs.iter().filter(|job| !job.running)
    }

    fn count(&self, matches: impl Fn(&ModelJob) -> bool) -> usize {
        self.running().filter(|job| matches(job)).count()
    }

    /// Returns the limit that blocks a job without conflicts.
    fn limit(&self, job: &ModelJob) -> Option<(&'static str, usize)> {
        let Limits { strict, .. } = self.limits;
        let class = job.job.class;
        let of = |class: Class| move |other: &ModelJob| other.job.class == class;
        let changes = |other: &ModelJob| matches!(other.job.class, Class::Change | Class::Creation);
        let beside = |other: &ModelJob| other.job.class == Class::Exec && other.machine == job.machine;
        let strict_limit = (
            "strict",
            if strict { 1 } else { usize::MAX },
            self.count(|job| !job.is_session()),
        );
        let mut limits = Vec::new();
        if !job.job.preempts {
            if class == Class::Exec {
                limits.push((
                    "exec_per_machine",
                    self.limits.exec_per_machine,
                    self.count(beside),
                ));
            }
            if class == Class::Creation {
                limits.push(("creates_max", self.limits.creates_max, self.count(of(class))));
            }
            // In strict mode the limits of pools do not apply.
            match class {
                _ if strict => {}
                Class::Query => limits.push(("queries_max", self.limits.queries_max, self.count(of(class)))),
                Class::Exec => limits.push(("exec_max", self.limits.exec_max, self.count(of(class)))),
                Class::Change | Class::Creation => {
                    limits.push(("changes_max", self.limits.changes_max, self.count(changes)));
                }
                Class::Configuration | Class::Fleet | Class::Session => {}
            }
        }
        limits.push(strict_limit);
        limits
            .into_iter()
            .find(|&(_, limit, running)| running >= limit)
            .map(|(name, limit, _)| (name, limit))
    }

    /// Returns the indexes of all jobs that may start.
    fn startable(&self, now: Instant) -> Vec<usize> {
        let (mut shared, mut exclusive) = (0, 0);
        for job in self.running() {
            shared |= job.shared;
            exclusive |= job.exclusive;
        }
        let (held_shared, held_exclusive) = (shared, exclusive);
        let mut startable = Vec::new();
        for (place, job) in self.jobs.iter().enumerate().filter(|(_, job)| !job.running) {
            let meets = |shared: LaneSet, exclusive: LaneSet| {
                job.exclusive & (shared | exclusive) != 0 || job.shared & exclusive != 0
            };
            let may_start = if job.job.queue_deadline.is_some_and(|at| at <= now) {
                false
            } else if job.is_session() {
                job.watched() & held_exclusive == 0
            } else if job.job.preempts {
                !meets(held_shared, held_exclusive) && self.limit(job).is_none()
            } else {
                // At this point these are the lanes of all running jobs and of all waiting jobs before this one.
                let paused = self.paused || job.lanes() & self.paused_lanes != 0;
                !meets(shared, exclusive) && !paused && self.limit(job).is_none()
            };
            if may_start {
                startable.push(place);
            }
            shared |= job.shared;
            exclusive |= job.exclusive;
        }
        startable
    }

    fn conflicts(&self, with: &ModelJob, running: bool) -> Vec<JobId> {
        self.jobs
            .iter()
            .filter(|job| job.running == running && job.conflicts_with(with))
            .map(|job| job.job.id)
            .collect()
    }

    fn place(&self, id: JobId) -> Option<usize> {
        self.jobs.iter().position(|job| job.job.id == id)
    }

    fn remove(&mut self, ids: &[JobId]) {
        self.jobs.retain(|job| !ids.contains(&job.job.id));
    }

    fn take_overdue(&mut self, now: Instant) {
        let overdue = |job: &ModelJob| !job.running && job.job.queue_deadline.is_some_and(|at| at <= now);
        let ids: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|job| overdue(job))
            .map(|job| job.job.id)
            .collect();
        self.remove(&ids);
        self.overdue.extend(ids);
    }

    fn blocker(&self, place: usize) -> Blocker {
        let job = &self.jobs[place];
        if job.running {
            return Blocker::NotWaiting;
        }
        let lanes_in_order = |set: LaneSet| (0..LANES).filter(move |&lane| set & bit(lane) != 0);
        if job.is_session() {
            let watched = [job.machine, Some(FLEET)].into_iter().flatten();
            let holder = watched
                .filter(|&lane| job.watched() & bit(lane) != 0)
                .find_map(|lane| {
                    let holder = self.running().find(|other| other.exclusive & bit(lane) != 0)?;
                    Some(Blocker::Job {
                        id: holder.job.id,
                        lane: lane_of(lane),
                    })
                });
            return holder.unwrap_or(Blocker::NotWaiting);
        }
        if !job.job.preempts && self.paused {
            return Blocker::Paused(Target::All);
        }
        let paused = job
            .job
            .footprint
            .lanes()
            .iter()
            .map(|(lane, _)| lane)
            .find(|lane| lanes_in_order(self.paused_lanes).any(|paused| lane_of(paused) == **lane));
        if let Some(lane) = paused.filter(|_| !job.job.preempts) {
            return Blocker::Paused(Target::Lane(lane.clone()));
        }
        let blocks = |(at, other): &(usize, &ModelJob)| {
            (other.running || (*at < place && !job.job.preempts)) && other.conflicts_with(job)
        };
        if let Some((_, other)) = self.jobs.iter().enumerate().find(blocks) {
            let meet = (job.exclusive & other.lanes()) | (job.shared & other.exclusive);
            let lanes = job.job.footprint.lanes().iter().map(|(lane, _)| lane);
            let lane = lanes
                .clone()
                .find(|lane| lanes_in_order(meet).any(|met| lane_of(met) == **lane))
                .expect("they meet in a lane");
            return Blocker::Job {
                id: other.job.id,
                lane: lane.clone(),
            };
        }
        match self.limit(job) {
            Some((name, limit)) => Blocker::Limit { name, limit },
            None => Blocker::NotWaiting,
        }
    }
}

fn lane_of(lane: usize) -> Lane {
    match lane {
        FLEET => Lane::Fleet,
        CONFIGURATION => Lane::Configuration,
        machine => Lane::Machine(format!("m{machine}").parse().expect("a valid name")),
    }
}

struct Simulation {
    scheduler: Scheduler,
    model: Model,
    random: Random,
    lanes: [Lane; LANES],
    jobs: u64,
    now: Instant,
    started: u64,
}

fn simulate(default_seed: u64, limits: Limits) {
    let seed = seed_or(default_seed);
    let mut repeat = Repeat { seed, step: 0 };
    let mut simulation = Simulation {
        scheduler: Scheduler::new(limits.clone()),
        model: Model {
            jobs: Vec::new(),
            limits,
            paused: false,
            paused_lanes: 0,
            draining: false,
            draining_lanes: 0,
            overdue: Vec::new(),
        },
        random: Random(seed),
        lanes: std::array::from_fn(lane_of),
        jobs: 0,
        now: Moment::now().instant,
        started: 0,
    };
    for step in 0..STEPS {
        repeat.step = step;
        simulation.step();
        if step % 16 == 0 {
            simulation.compare();
        }
        if step % 128 == 0 {
            simulation.scheduler.check_invariants();
        }
    }
    simulation.open_gates_and_finish();
    println!(
        "{STEPS} steps, {} jobs, {} starts; ORBD_TEST_SEED={seed} repeats them",
        simulation.jobs, simulation.started
    );
    assert!(
        simulation.started > STEPS / 10,
        "the traffic was too thin to prove anything"
    );
}

impl Simulation {
    fn step(&mut self) {
        // The load rises and falls, so that queues fill and empty.
        let pressure = 20 + (self.jobs / 400 % 4) * 8;
        match self.random.below(100) {
            n if n < pressure => self.submit(),
            n if n < 70 => self.end(),
            70..76 => self.cancel(),
            76 => self.cancel_client(),
            77..80 => self.expire(),
            80..86 => self.pass_time(),
            86..90 => self.pause_or_resume(),
            90 if self.random.one_in(4) => self.drain_or_undrain(),
            91 if self.random.one_in(4) => self.restore_running(),
            92 if self.random.one_in(50) => self.change_limits(),
            93..96 => self.explain(),
            _ => {}
        }
        match self.random.below(8) {
            0 => {}
            1 => {
                self.start_one();
            }
            _ => while self.start_one() {},
        }
    }

    fn new_job(&mut self) -> ModelJob {
        self.jobs += 1;
        let machine = self.random.index(MACHINES);
        let other = self.random.index(MACHINES);
        let one = bit(machine);
        let fleet = bit(FLEET);
        let (class, machine, shared, exclusive) = match self.random.below(20) {
            0..3 => (Class::Query, None, 0, 0),
            3..10 => (Class::Exec, Some(machine), one | fleet, 0),
            10..13 => (Class::Change, Some(machine), fleet, one),
            13 => (Class::Change, Some(machine), fleet, one | bit(other)),
            14 => (Class::Change, Some(machine), fleet, one | bit(CONFIGURATION)),
            15 | 16 => (Class::Creation, Some(machine), fleet, one),
            17 => (Class::Configuration, None, fleet, bit(CONFIGURATION)),
            18 if self.random.one_in(2) => (Class::Fleet, None, 0, fleet),
            _ => (Class::Session, self.random.one_in(4).then_some(machine), 0, 0),
        };
        let preempts = matches!(class, Class::Change | Class::Fleet) && self.random.one_in(6);
        let expires = self.random.one_in(3);
        let deadline = self.now + Duration::from_millis(self.random.below(200));
        let access = |set: LaneSet, access: Access| {
            let lanes = (0..LANES).filter(move |&lane| set & bit(lane) != 0);
            lanes.map(move |lane| (lane, access))
        };
        let footprint = access(shared, Access::Shared)
            .chain(access(exclusive, Access::Exclusive))
            .map(|(lane, access)| (self.lanes[lane].clone(), access));
        ModelJob {
            job: NewJob {
                id: JobId(self.jobs),
                client: ClientId(self.random.below(CLIENTS)),
                class,
                footprint: Footprint::new(footprint),
                queue_deadline: expires.then_some(deadline),
                preempts,
                machine: machine.map(|machine| match &self.lanes[machine] {
                    Lane::Machine(name) => name.clone(),
                    lane => unreachable!("{lane} is no machine"),
                }),
            },
            machine,
            shared,
            exclusive,
            running: false,
        }
    }

    fn submit(&mut self) {
        let job = self.new_job();
        let client = job.job.client;
        let forced = job.job.preempts;
        let waiting = self.model.waiting().count();
        let of_client = self
            .model
            .waiting()
            .filter(|other| other.job.client == client)
            .count();
        let result = self.scheduler.submit(job.job.clone());
        if self.model.draining || job.lanes() & self.model.draining_lanes != 0 {
            assert!(matches!(result, Err(Refusal::Draining { .. })), "{result:?}");
        } else if !forced && waiting >= self.model.limits.queue_max {
            assert!(matches!(result, Err(Refusal::QueueFull { .. })), "{result:?}");
        } else if !forced && of_client >= self.model.limits.queue_max_per_client {
            assert!(
                matches!(result, Err(Refusal::ClientQueueFull { .. })),
                "{result:?}"
            );
        } else {
            let mut expected = Admission::default();
            if forced {
                expected.cancelled = self.model.conflicts(&job, false);
                expected.stop = self.model.conflicts(&job, true);
            }
            assert_eq!(result.as_ref(), Ok(&expected));
            self.model.remove(&expected.cancelled);
            self.model.jobs.push(job);
        }
    }

    fn start_one(&mut self) -> bool {
        let started = self.scheduler.start_next(self.now);
        self.model.take_overdue(self.now);
        let startable = self.model.startable(self.now);
        let Some(id) = started else {
            let left: Vec<JobId> = startable
                .iter()
                .map(|&place| self.model.jobs[place].job.id)
                .collect();
            assert_eq!(left, [], "they could start and do not");
            return false;
        };
        let place = self.model.place(id).expect("it waits");
        assert!(startable.contains(&place), "job {id} starts and may not");
        self.model.jobs[place].running = true;
        self.started += 1;
        true
    }

    fn random_job(&mut self, running: bool) -> Option<JobId> {
        let of_state = || self.model.jobs.iter().filter(|job| job.running == running);
        let count = of_state().count();
        let chosen = (count > 0).then(|| self.random.index(count))?;
        of_state().nth(chosen).map(|job| job.job.id)
    }

    fn end(&mut self) {
        if let Some(id) = self.random_job(true) {
            self.scheduler.end(id);
            self.model.remove(&[id]);
        }
    }

    fn cancel(&mut self) {
        let unknown = JobId(self.random.below(self.jobs + 2));
        let known = match self.random.below(3) {
            0 => self.random_job(false),
            1 => self.random_job(true),
            _ => None,
        };
        let id = known.unwrap_or(unknown);
        let expected = match self.model.place(id).map(|place| self.model.jobs[place].running) {
            Some(false) => CancelResult::NeverStarted,
            Some(true) => CancelResult::Stopping,
            None => CancelResult::NoSuchJob,
        };
        assert_eq!(self.scheduler.cancel(id), expected);
        if expected == CancelResult::NeverStarted {
            self.model.remove(&[id]);
        }
    }

    fn cancel_client(&mut self) {
        let client = ClientId(self.random.below(CLIENTS * 4));
        let waiting = self.model.waiting().filter(|job| job.job.client == client);
        let expected: Vec<JobId> = waiting.map(|job| job.job.id).collect();
        assert_eq!(self.scheduler.cancel_waiting_of(client), expected);
        self.model.remove(&expected);
    }

    fn expire(&mut self) {
        let expired = self.scheduler.expire(self.now);
        let mut expired: Vec<JobId> = expired.into_iter().map(|expired| expired.id).collect();
        self.model.take_overdue(self.now);
        let mut expected = std::mem::take(&mut self.model.overdue);
        expired.sort_unstable();
        expected.sort_unstable();
        assert_eq!(expired, expected);
    }

    fn pass_time(&mut self) {
        // Occasionally longer than any deadline.
        let ms = if self.random.one_in(50) {
            40_000
        } else {
            self.random.below(100)
        };
        self.now += Duration::from_millis(ms);
    }

    fn pause_or_resume(&mut self) {
        // Resume more often than pause, or few jobs would start.
        let pause = self.random.one_in(8);
        if self.random.one_in(4) {
            self.model.paused = pause;
            self.pause(pause, Target::All);
        } else {
            let lane = self.random.index(LANES);
            self.model.paused_lanes &= !bit(lane);
            self.model.paused_lanes |= if pause { bit(lane) } else { 0 };
            self.pause(pause, Target::Lane(self.lanes[lane].clone()));
        }
    }

    fn pause(&mut self, pause: bool, what: Target) {
        if pause {
            self.scheduler.pause(what);
        } else {
            self.scheduler.resume(&what);
        }
    }

    fn drain_or_undrain(&mut self) {
        let drain = self.random.one_in(8);
        let what = if self.random.one_in(4) {
            self.model.draining = drain;
            Target::All
        } else {
            let lane = self.random.index(LANES);
            self.model.draining_lanes &= !bit(lane);
            self.model.draining_lanes |= if drain { bit(lane) } else { 0 };
            Target::Lane(self.lanes[lane].clone())
        };
        if drain {
            self.scheduler.drain(what);
        } else {
            self.scheduler.undrain(&what);
        }
    }

    fn restore_running(&mut self) {
        let mut job = self.new_job();
        job.running = true;
        self.scheduler.restore_running(job.job.clone());
        self.model.jobs.push(job);
    }

    fn change_limits(&mut self) {
        let mut up_to = |max: u64| 1 + self.random.index(usize::try_from(max).expect("small"));
        let limits = Limits {
            queries_max: up_to(4),
            exec_per_machine: up_to(4),
            exec_max: up_to(8),
            changes_max: up_to(6),
            creates_max: up_to(3),
            queue_max: 8 + up_to(24),
            queue_max_per_client: 4 + up_to(12),
            strict: self.model.limits.strict ^ self.random.one_in(4),
        };
        self.model.limits = limits.clone();
        self.scheduler.set_limits(limits);
    }

    fn explain(&mut self) {
        let running = self.random.one_in(8);
        let Some(id) = self.random_job(running) else {
            return;
        };
        let place = self.model.place(id).expect("it is known");
        assert_eq!(
            self.scheduler.blocker(id),
            Some(self.model.blocker(place)),
            "job {id}"
        );
    }

    fn compare(&self) {
        let ids = |running: bool| -> Vec<JobId> {
            let of_state = self.model.jobs.iter().filter(|job| job.running == running);
            of_state.map(|job| job.job.id).collect()
        };
        assert_eq!(self.scheduler.queue().collect::<Vec<_>>(), ids(false));
        assert_eq!(self.scheduler.running_jobs().collect::<Vec<_>>(), ids(true));
        for class in [Class::Query, Class::Exec, Class::Creation, Class::Session] {
            let of_class = |job: &&ModelJob| job.job.class == class;
            assert_eq!(
                self.scheduler.waiting().of(class),
                self.model.waiting().filter(of_class).count()
            );
            assert_eq!(
                self.scheduler.running().of(class),
                self.model.running().filter(of_class).count()
            );
        }
        let deadlines = self.model.waiting().filter_map(|job| job.job.queue_deadline);
        if self.model.overdue.is_empty() {
            assert_eq!(self.scheduler.next_deadline(), deadlines.min());
        } else {
            assert!(self.scheduler.next_deadline() <= Some(self.now));
        }
        for (lane, name) in self.lanes.iter().enumerate() {
            let idle = self.model.jobs.iter().all(|job| job.lanes() & bit(lane) == 0);
            assert_eq!(
                self.scheduler.is_idle(&Target::Lane(name.clone())),
                idle,
                "{name}"
            );
        }
    }

    /// Opens all gates and checks that every accepted job starts and that no state is left afterwards.
    fn open_gates_and_finish(&mut self) {
        for lane in self.lanes.clone() {
            self.scheduler.resume(&Target::Lane(lane));
        }
        self.scheduler.resume(&Target::All);
        self.model.paused = false;
        self.model.paused_lanes = 0;
        while !self.model.jobs.is_empty() {
            while self.start_one() {}
            let running: Vec<JobId> = self.model.running().map(|job| job.job.id).collect();
            assert_ne!(running, [], "something waits and nothing runs");
            for id in running {
                self.scheduler.end(id);
                self.model.remove(&[id]);
            }
        }
        self.expire();
        self.compare();
        self.scheduler.check_invariants();
        assert!(self.scheduler.remembers_nothing());
    }
}
