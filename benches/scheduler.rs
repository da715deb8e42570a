//! What one job costs the scheduler while many others wait: the time must hardly grow with their number.
//!
//! `cargo bench --bench scheduler`. The test suite runs the same with few jobs.

use std::time::{Duration, Instant};

use divan::Bencher;
use orbd::clock::Moment;
use orbd::job::{ClientId, JobId};
use orbd::operation::{Access, Class, Footprint, Lane};
use orbd::scheduler::{CancelResult, Limits, NewJob, Scheduler, Target};

fn main() {
    divan::main();
}

const WAITING: [u64; 4] = [10, 1_000, 100_000, 1_000_000];

/// How the waiting jobs are distributed.
struct Crowd {
    machines: u64,
    clients: u64,
}

/// A scheduler in which many commands wait, all of them for the fleet lane as well, and a machine `idle` is free.
struct Busy {
    scheduler: Scheduler,
    now: Instant,
    jobs: u64,
}

impl Busy {
    fn new(waiting: u64, crowd: &Crowd) -> Self {
        let limits = Limits {
            queue_max: usize::MAX,
            queue_max_per_client: usize::MAX,
            ..Limits::default()
        };
        let mut busy = Self {
            scheduler: Scheduler::new(limits),
            now: Moment::now().instant,
            jobs: 0,
        };
        for n in 0..waiting {
            let machine = format!("m{}", n % crowd.machines);
            busy.submit(&machine, Class::Exec, Access::Shared, n % crowd.clients);
        }
        // Start as many as the limits allow; the bench ends and starts one at a time.
        while busy.scheduler.start_next(busy.now).is_some() {}
        busy
    }

    fn submit(&mut self, machine: &str, class: Class, access: Access, client: u64) -> JobId {
        self.jobs += 1;
        self.now += Duration::from_micros(10);
        let id = JobId(self.jobs);
        let machine: orbd_host::machine::MachineName = machine.parse().expect("a valid name");
        let lanes = [
            (Lane::Machine(machine.clone()), access),
            (Lane::Fleet, Access::Shared),
        ];
        let job = NewJob {
            id,
            client: ClientId(client),
            class,
            footprint: Footprint::new(lanes),
            queue_deadline: Some(self.now + Duration::from_secs(600)),
            preempts: false,
            machine: Some(machine),
        };
        let admission = self.scheduler.submit(job).expect("there is room");
        assert!(admission.cancelled.is_empty());
        id
    }

    /// Submits, starts and ends a change of a machine that no other job needs.
    fn pass_through(&mut self) {
        let id = self.submit("idle", Class::Change, Access::Exclusive, u64::MAX);
        assert_eq!(self.scheduler.start_next(self.now), Some(id));
        self.scheduler.end(id);
    }

    /// Ends one command, starts the next one, and submits another at the end of the queue.
    fn take_turns(&mut self) {
        self.end_one();
        let client = self.jobs % 3;
        self.submit("m0", Class::Exec, Access::Shared, client);
        while self.scheduler.start_next(self.now).is_some() {}
    }

    fn end_one(&mut self) {
        let running = self.scheduler.running_jobs().next().expect("some run");
        self.scheduler.end(running);
    }

    /// Submits a command to the longest queue and cancels it.
    fn change_of_mind(&mut self) {
        let id = self.submit("m0", Class::Exec, Access::Shared, 0);
        assert_eq!(self.scheduler.cancel(id), CancelResult::NeverStarted);
    }
}

const SPREAD: Crowd = Crowd {
    machines: 100,
    clients: 10,
};

#[divan::bench(args = WAITING)]
fn submit_start_end(bencher: Bencher, waiting: u64) {
    let mut busy = Busy::new(waiting, &SPREAD);
    bencher.bench_local(|| busy.pass_through());
}

#[divan::bench(args = WAITING)]
fn end_and_start_the_next_of_many_machines(bencher: Bencher, waiting: u64) {
    let mut busy = Busy::new(waiting, &SPREAD);
    bencher.bench_local(|| busy.take_turns());
}

#[divan::bench(args = WAITING)]
fn end_and_start_the_next_in_one_machine(bencher: Bencher, waiting: u64) {
    let crowd = Crowd {
        machines: 1,
        clients: 3,
    };
    let mut busy = Busy::new(waiting, &crowd);
    bencher.bench_local(|| busy.take_turns());
}

#[divan::bench(args = WAITING)]
fn end_and_start_the_next_of_as_many_clients(bencher: Bencher, waiting: u64) {
    let crowd = Crowd {
        machines: 1,
        clients: u64::MAX,
    };
    let mut busy = Busy::new(waiting, &crowd);
    bencher.bench_local(|| busy.take_turns());
}

#[divan::bench(args = WAITING)]
fn submit_and_cancel(bencher: Bencher, waiting: u64) {
    let mut busy = Busy::new(waiting, &SPREAD);
    bencher.bench_local(|| busy.change_of_mind());
}

/// Runs this many jobs from submission to end; divide the time by their number.
#[divan::bench(args = [10, 1_000, 100_000], sample_count = 3)]
fn whole_queue(bencher: Bencher, jobs: u64) {
    bencher.bench_local(|| {
        let mut busy = Busy::new(jobs, &SPREAD);
        while !busy.scheduler.is_idle(&Target::All) {
            busy.end_one();
            while busy.scheduler.start_next(busy.now).is_some() {}
        }
    });
}
