//! Tests of the scheduling rules, one rule per test.

use std::time::{Duration, Instant};

use super::{Admission, Blocker, CancelResult, Limits, NewJob, Refusal, Scheduler, Target};
use crate::clock::Moment;
use crate::job::{ClientId, JobId};
use crate::operation::{Access, Class, Footprint, Lane};
use orbd_host::machine::MachineName;

/// A scheduler with a clock that the test advances. Jobs are numbered from 1 in the order of the calls.
struct Bench {
    scheduler: Scheduler,
    now: Instant,
    jobs: u64,
    client: ClientId,
}

fn bench(limits: Limits) -> Bench {
    Bench {
        scheduler: Scheduler::new(limits),
        now: Moment::now().instant,
        jobs: 0,
        client: ClientId(1),
    }
}

fn bench_with_defaults() -> Bench {
    bench(Limits::default())
}

fn name(machine: &str) -> MachineName {
    machine.parse().expect("a valid name")
}

fn lane(machine: &str) -> Lane {
    Lane::Machine(name(machine))
}

fn ids(numbers: &[u64]) -> Vec<JobId> {
    numbers.iter().copied().map(JobId).collect()
}

impl Bench {
    fn job(
        &mut self,
        class: Class,
        machine: &str,
        footprint: impl IntoIterator<Item = (Lane, Access)>,
    ) -> NewJob {
        self.jobs += 1;
        NewJob {
            id: JobId(self.jobs),
            client: self.client,
            class,
            footprint: Footprint::new(footprint),
            queue_deadline: None,
            preempts: false,
            machine: machine.parse().ok(),
        }
    }

    fn new_query(&mut self) -> NewJob {
        self.job(Class::Query, "", [])
    }

    fn new_exec(&mut self, machine: &str) -> NewJob {
        let lanes = [(lane(machine), Access::Shared), (Lane::Fleet, Access::Shared)];
        self.job(Class::Exec, machine, lanes)
    }

    fn new_change(&mut self, machine: &str) -> NewJob {
        let lanes = [(lane(machine), Access::Exclusive), (Lane::Fleet, Access::Shared)];
        self.job(Class::Change, machine, lanes)
    }

    fn new_creation(&mut self, machine: &str) -> NewJob {
        let lanes = [(lane(machine), Access::Exclusive), (Lane::Fleet, Access::Shared)];
        self.job(Class::Creation, machine, lanes)
    }

    fn new_rename(&mut self, from: &str, to: &str) -> NewJob {
        let machines = [from, to].map(|machine| (lane(machine), Access::Exclusive));
        let lanes = machines.into_iter().chain([(Lane::Fleet, Access::Shared)]);
        self.job(Class::Change, from, lanes)
    }

    fn new_configuration(&mut self) -> NewJob {
        let lanes = [
            (Lane::Configuration, Access::Exclusive),
            (Lane::Fleet, Access::Shared),
        ];
        self.job(Class::Configuration, "", lanes)
    }

    fn new_fleet_change(&mut self) -> NewJob {
        self.job(Class::Fleet, "", [(Lane::Fleet, Access::Exclusive)])
    }

    fn new_session(&mut self, machine: &str) -> NewJob {
        self.job(Class::Session, machine, [])
    }

    fn submit(&mut self, job: NewJob) {
        let preempts = job.preempts;
        let admission = self.scheduler.submit(job).expect("accepted");
        assert!(preempts || admission == Admission::default());
    }

    fn force(&mut self, job: NewJob) -> (Vec<u64>, Vec<u64>) {
        let job = NewJob {
            preempts: true,
            ..job
        };
        let Admission { cancelled, stop } = self.scheduler.submit(job).expect("accepted");
        let numbers = |ids: Vec<JobId>| ids.into_iter().map(|id| id.0).collect();
        (numbers(cancelled), numbers(stop))
    }

    fn query(&mut self) {
        let job = self.new_query();
        self.submit(job);
    }

    fn exec(&mut self, machine: &str) {
        let job = self.new_exec(machine);
        self.submit(job);
    }

    fn change(&mut self, machine: &str) {
        let job = self.new_change(machine);
        self.submit(job);
    }

    fn creation(&mut self, machine: &str) {
        let job = self.new_creation(machine);
        self.submit(job);
    }

    fn configuration(&mut self) {
        let job = self.new_configuration();
        self.submit(job);
    }

    fn fleet_change(&mut self) {
        let job = self.new_fleet_change();
        self.submit(job);
    }

    fn session(&mut self, machine: &str) {
        let job = self.new_session(machine);
        self.submit(job);
    }

    fn refused(&mut self, job: NewJob) -> Refusal {
        self.scheduler.submit(job).expect_err("refused")
    }

    fn start(&mut self) -> Vec<u64> {
        let started = std::iter::from_fn(|| self.scheduler.start_next(self.now))
            .map(|id| id.0)
            .collect();
        self.scheduler.check_invariants();
        started
    }

    #[track_caller]
    fn starts(&mut self, expected: &[u64]) {
        assert_eq!(self.start(), expected);
    }

    fn end(&mut self, jobs: &[u64]) {
        for id in ids(jobs) {
            self.scheduler.end(id);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    #[track_caller]
    fn blocked_by_job(&self, job: u64, other: u64, lane: Lane) {
        let id = JobId(other);
        assert_eq!(
            self.scheduler.blocker(JobId(job)),
            Some(Blocker::Job { id, lane })
        );
    }

    #[track_caller]
    fn blocked_by_limit(&self, job: u64, name: &'static str, limit: usize) {
        assert_eq!(
            self.scheduler.blocker(JobId(job)),
            Some(Blocker::Limit { name, limit })
        );
    }

    #[track_caller]
    fn blocked_by_pause(&self, job: u64, what: Target) {
        assert_eq!(self.scheduler.blocker(JobId(job)), Some(Blocker::Paused(what)));
    }
}

// Lanes.

/// Removes the expired jobs and returns their ids.
fn expired(bench: &mut Bench) -> Vec<JobId> {
    bench
        .scheduler
        .expire(bench.now)
        .into_iter()
        .map(|expired| expired.id)
        .collect()
}

#[test]
fn changes_of_one_machine_run_one_at_a_time_in_order() {
    let mut bench = bench_with_defaults();
    bench.change("web");
    bench.change("web");
    bench.change("web");
    bench.starts(&[1]);
    bench.blocked_by_job(2, 1, lane("web"));
    bench.blocked_by_job(3, 1, lane("web"));
    bench.end(&[1]);
    bench.starts(&[2]);
    bench.end(&[2]);
    bench.starts(&[3]);
}

#[test]
fn jobs_of_different_machines_overlap() {
    let mut bench = bench_with_defaults();
    bench.change("web");
    bench.change("db");
    bench.exec("mail");
    bench.starts(&[1, 2, 3]);
}

#[test]
fn commands_in_one_machine_overlap_and_a_change_waits_for_all_of_them() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.exec("web");
    bench.change("web");
    bench.starts(&[1, 2]);
    bench.end(&[2]);
    bench.starts(&[]);
    bench.blocked_by_job(3, 1, lane("web"));
    bench.end(&[1]);
    bench.starts(&[3]);
}

#[test]
fn a_command_does_not_overtake_a_waiting_change_of_its_machine() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.starts(&[1]);
    bench.change("web");
    bench.exec("web");
    bench.starts(&[]);
    bench.blocked_by_job(3, 2, lane("web"));
    bench.end(&[1]);
    bench.starts(&[2]);
    bench.end(&[2]);
    bench.starts(&[3]);
}

#[test]
fn rename_blocks_jobs_of_both_names() {
    let mut bench = bench_with_defaults();
    let rename = bench.new_rename("a", "b");
    bench.submit(rename);
    bench.exec("a");
    bench.change("b");
    bench.starts(&[1]);
    bench.blocked_by_job(2, 1, lane("a"));
    bench.blocked_by_job(3, 1, lane("b"));
    bench.end(&[1]);
    bench.starts(&[3, 2]);
}

#[test]
fn job_that_waits_in_one_lane_keeps_its_position_in_the_other() {
    let mut bench = bench_with_defaults();
    bench.exec("a");
    bench.starts(&[1]);
    let rename = bench.new_rename("a", "b");
    bench.submit(rename);
    bench.exec("b");
    bench.starts(&[]);
    bench.blocked_by_job(3, 2, lane("b"));
}

#[test]
fn a_query_never_waits_behind_a_change() {
    let mut bench = bench_with_defaults();
    bench.fleet_change();
    bench.starts(&[1]);
    bench.query();
    bench.starts(&[2]);
}

#[test]
fn fleet_change_waits_for_all_jobs_and_blocks_all_jobs() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.change("db");
    bench.configuration();
    bench.starts(&[3, 2, 1]);
    bench.fleet_change();
    bench.exec("mail");
    bench.end(&[1, 2]);
    bench.starts(&[]);
    bench.blocked_by_job(4, 3, Lane::Fleet);
    bench.blocked_by_job(5, 4, Lane::Fleet);
    bench.end(&[3]);
    bench.starts(&[4]);
    bench.end(&[4]);
    bench.starts(&[5]);
}

#[test]
fn configuration_change_blocks_no_change_of_a_machine() {
    let mut bench = bench_with_defaults();
    bench.configuration();
    bench.configuration();
    bench.change("web");
    bench.starts(&[1, 3]);
    bench.blocked_by_job(2, 1, Lane::Configuration);
}

#[test]
fn session_blocks_no_job_and_waits_only_for_a_running_change_of_its_machine() {
    let mut bench = bench_with_defaults();
    bench.session("web");
    bench.starts(&[1]);
    bench.change("web");
    bench.starts(&[2]);
    bench.session("web");
    bench.session("db");
    bench.starts(&[4]);
    bench.blocked_by_job(3, 2, lane("web"));
    // A change that only waits does not block a session.
    bench.change("web");
    bench.end(&[2]);
    bench.starts(&[3, 5]);
    assert!(!bench.scheduler.is_idle(&Target::All));
    bench.end(&[5]);
    assert!(bench.scheduler.is_idle(&Target::All), "sessions do not count");
}

#[test]
fn a_session_waits_for_a_change_of_the_fleet_too() {
    let mut bench = bench_with_defaults();
    bench.fleet_change();
    bench.starts(&[1]);
    bench.session("web");
    bench.starts(&[]);
    bench.blocked_by_job(2, 1, Lane::Fleet);
    assert_eq!(bench.scheduler.cancel(JobId(2)), CancelResult::NeverStarted);
    bench.session("web");
    bench.end(&[1]);
    bench.starts(&[3]);
}

// Limits.

#[test]
fn each_class_has_its_limit() {
    check_limit("queries_max", 4, |bench, _| bench.query());
    check_limit("exec_per_machine", 4, |bench, _| bench.exec("web"));
    check_limit("exec_max", 128, |bench, n| bench.exec(&format!("m{n}")));
    check_limit("changes_max", 8, |bench, n| bench.change(&format!("m{n}")));
    check_limit("creates_max", 2, |bench, n| bench.creation(&format!("m{n}")));
}

fn check_limit(limit_name: &'static str, limit: usize, submit: fn(&mut Bench, usize)) {
    let mut bench = bench_with_defaults();
    for n in 0..=limit {
        submit(&mut bench, n);
    }
    let last = bench.jobs;
    assert_eq!(bench.start().len(), limit, "{limit_name}");
    bench.blocked_by_limit(last, limit_name, limit);
    bench.end(&[1]);
    bench.starts(&[last]);
}

#[test]
fn creations_count_as_changes_too() {
    let mut bench = bench(Limits {
        changes_max: 2,
        ..Limits::default()
    });
    bench.creation("a");
    bench.creation("b");
    bench.change("c");
    bench.starts(&[1, 2]);
    bench.blocked_by_limit(3, "changes_max", 2);
}

#[test]
fn strict_mode_runs_one_job_at_a_time_besides_sessions() {
    let mut bench = bench(Limits {
        strict: true,
        ..Limits::default()
    });
    bench.exec("a");
    bench.query();
    bench.session("b");
    bench.change("c");
    bench.starts(&[3, 1]);
    bench.blocked_by_limit(2, "strict", 1);
    bench.end(&[1]);
    bench.starts(&[2]);
    bench.end(&[2]);
    bench.starts(&[4]);
}

#[test]
fn limits_can_change_while_jobs_wait() {
    let mut bench = bench_with_defaults();
    for _ in 0..6 {
        bench.query();
    }
    bench.starts(&[1, 2, 3, 4]);
    let strict = Limits {
        strict: true,
        ..Limits::default()
    };
    bench.scheduler.set_limits(strict);
    bench.end(&[1, 2, 3]);
    bench.starts(&[]);
    bench.end(&[4]);
    bench.starts(&[5]);
    bench.scheduler.set_limits(Limits::default());
    bench.starts(&[6]);
}

#[test]
fn full_queue_refuses_jobs_with_a_retry_time() {
    let mut bench = bench(Limits {
        queue_max: 3,
        queue_max_per_client: 2,
        ..Limits::default()
    });
    bench.fleet_change();
    bench.starts(&[1]);
    bench.exec("a");
    bench.exec("a");
    let third = bench.new_exec("a");
    assert!(matches!(
        bench.refused(third),
        Refusal::ClientQueueFull { limit: 2, retry_after } if retry_after > Duration::ZERO
    ));
    bench.client = ClientId(2);
    bench.exec("a");
    let other = bench.new_exec("a");
    assert!(matches!(
        bench.refused(other),
        Refusal::QueueFull { limit: 3, retry_after } if retry_after > Duration::ZERO
    ));
    assert_eq!(bench.scheduler.queue().collect::<Vec<_>>(), ids(&[2, 3, 5]));
}

// Fairness between clients.

#[test]
fn client_with_a_thousand_waiting_jobs_does_not_delay_a_client_with_one() {
    for spread_over_machines in [false, true] {
        let mut bench = bench(Limits {
            exec_max: 4,
            queue_max_per_client: 1000,
            ..Limits::default()
        });
        for n in 0..1000 {
            let machine = if spread_over_machines { n % 100 } else { 0 };
            bench.exec(&format!("m{machine}"));
        }
        assert_eq!(bench.start().len(), 4);
        bench.client = ClientId(2);
        bench.exec("m0");
        // The long wait of the first client's jobs gives them no precedence.
        bench.pass(Duration::from_secs(3600));
        bench.end(&[1, 2, 3, 4]);
        let started = bench.start();
        assert_eq!(started.len(), 4);
        assert!(started.contains(&1001), "{started:?}");
    }
}

#[test]
fn clients_that_share_machines_with_a_bulk_client_are_served_soon() {
    let mut bench = bench(Limits {
        exec_max: 1,
        queue_max_per_client: 1000,
        ..Limits::default()
    });
    for n in 0..1000 {
        bench.exec(&format!("m{}", n % 100));
    }
    bench.starts(&[1]);
    for client in 2..12 {
        bench.client = ClientId(client);
        bench.exec(&format!("m{}", client * 9));
    }
    let mut running = 1;
    let mut starts = 0;
    let mut others = 0;
    while others < 10 {
        bench.end(&[running]);
        running = bench.start()[0];
        starts += 1;
        others += u64::from(running > 1000);
    }
    // Each waits for one job of the bulk client in its machine, and for the other nine clients.
    assert!(starts <= 25, "{starts}");
}

#[test]
fn clients_take_turns_across_all_classes() {
    let mut bench = bench(Limits {
        strict: true,
        ..Limits::default()
    });
    for _ in 0..3 {
        bench.query();
    }
    bench.client = ClientId(2);
    for _ in 0..2 {
        bench.change("web");
    }
    bench.client = ClientId(3);
    bench.exec("db");
    let mut order = Vec::new();
    while let [started] = bench.start()[..] {
        order.push(started);
        bench.end(&[started]);
    }
    assert_eq!(order, [1, 4, 6, 2, 5, 3]);
}

#[test]
fn a_client_that_floods_the_queue_does_not_starve_another() {
    let mut bench = bench(Limits {
        queries_max: 1,
        ..Limits::default()
    });
    bench.client = ClientId(2);
    bench.query();
    bench.query();
    bench.starts(&[1]);
    bench.client = ClientId(1);
    bench.query();
    let mut running = 1;
    let mut order = Vec::new();
    while running != 3 {
        // The flooding client submits two more jobs for each one that ends.
        bench.client = ClientId(2);
        bench.query();
        bench.query();
        bench.end(&[running]);
        let [started] = bench.start()[..] else {
            panic!("one at a time")
        };
        order.push(started);
        running = started;
    }
    // The flooding client was in the rotation first, so one of its jobs runs first, and no more.
    assert_eq!(order, [2, 3]);
}

// Cancel and deadlines.

#[test]
fn cancelled_job_never_starts_and_unblocks_the_jobs_behind_it() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.starts(&[1]);
    bench.change("web");
    bench.exec("web");
    assert_eq!(bench.scheduler.cancel(JobId(2)), CancelResult::NeverStarted);
    assert_eq!(bench.scheduler.cancel(JobId(2)), CancelResult::NoSuchJob);
    bench.starts(&[3]);
    assert_eq!(bench.scheduler.cancel(JobId(1)), CancelResult::Stopping);
    assert_eq!(bench.scheduler.cancel(JobId(1)), CancelResult::Stopping);
    bench.end(&[1, 3]);
    bench.starts(&[]);
    assert_eq!(bench.scheduler.cancel(JobId(1)), CancelResult::NoSuchJob);
}

#[test]
fn cancel_waiting_of_removes_only_the_jobs_of_that_client() {
    let mut bench = bench_with_defaults();
    bench.change("web");
    bench.change("web");
    bench.client = ClientId(2);
    bench.change("web");
    bench.client = ClientId(1);
    bench.change("web");
    bench.starts(&[1]);
    assert_eq!(bench.scheduler.cancel_waiting_of(ClientId(1)), ids(&[2, 4]));
    bench.end(&[1]);
    bench.starts(&[3]);
}

#[test]
fn job_past_its_queue_deadline_never_starts() {
    let mut bench = bench_with_defaults();
    bench.change("web");
    bench.starts(&[1]);
    let deadline = bench.now + Duration::from_secs(10);
    let late = NewJob {
        queue_deadline: Some(deadline),
        ..bench.new_change("web")
    };
    bench.submit(late);
    bench.exec("web");
    assert_eq!(bench.scheduler.next_deadline(), Some(deadline));
    assert_eq!(bench.scheduler.expire(bench.now), []);
    bench.pass(Duration::from_secs(10));
    bench.end(&[1]);
    // The job expires even if `expire` was not called before `start_next`, and `expire` still returns it.
    bench.starts(&[3]);
    assert_eq!(bench.scheduler.cancel(JobId(2)), CancelResult::NoSuchJob);
    assert_eq!(bench.scheduler.next_deadline(), Some(deadline));
    assert_eq!(expired(&mut bench), ids(&[2]));
    assert_eq!(bench.scheduler.next_deadline(), None);
}

#[test]
fn started_job_has_no_queue_deadline() {
    let mut bench = bench_with_defaults();
    let job = NewJob {
        queue_deadline: Some(bench.now + Duration::from_secs(1)),
        ..bench.new_query()
    };
    bench.submit(job);
    bench.starts(&[1]);
    assert_eq!(bench.scheduler.next_deadline(), None);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.scheduler.expire(bench.now), []);
}

// Force.

#[test]
fn forced_stop_preempts_only_jobs_in_its_lanes() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.exec("db");
    bench.starts(&[1, 2]);
    bench.change("web");
    bench.exec("web");
    bench.change("db");
    let forced = bench.new_change("web");
    assert_eq!(bench.force(forced), (vec![3, 4], vec![1]));
    bench.exec("web");
    bench.starts(&[]);
    bench.blocked_by_job(6, 1, lane("web"));
    bench.blocked_by_job(7, 6, lane("web"));
    bench.end(&[1]);
    bench.starts(&[6]);
    bench.blocked_by_job(7, 6, lane("web"));
    bench.end(&[6]);
    bench.starts(&[7]);
}

#[test]
fn forced_fleet_change_preempts_all_but_queries_and_sessions() {
    let mut bench = bench_with_defaults();
    bench.query();
    bench.session("web");
    bench.exec("web");
    bench.configuration();
    bench.starts(&[2, 4, 1, 3]);
    bench.change("web");
    bench.fleet_change();
    let forced = bench.new_fleet_change();
    assert_eq!(bench.force(forced), (vec![5, 6], vec![3, 4]));
    bench.end(&[3]);
    bench.starts(&[]);
    bench.end(&[4]);
    bench.starts(&[7]);
}

#[test]
fn latest_forced_change_of_a_machine_cancels_earlier_ones() {
    let mut bench = bench_with_defaults();
    bench.change("web");
    bench.starts(&[1]);
    let first = bench.new_change("web");
    assert_eq!(bench.force(first), (vec![], vec![1]));
    let second = bench.new_change("web");
    assert_eq!(bench.force(second), (vec![2], vec![1]));
    bench.end(&[1]);
    bench.starts(&[3]);
    let third = bench.new_change("web");
    assert_eq!(bench.force(third), (vec![], vec![3]));
}

#[test]
fn forced_change_ignores_limits_but_counts_towards_them() {
    let mut bench = bench(Limits {
        changes_max: 1,
        creates_max: 1,
        queue_max: 1,
        queue_max_per_client: 1,
        ..Limits::default()
    });
    bench.creation("a");
    bench.starts(&[1]);
    bench.change("b");
    let forced = bench.new_creation("c");
    assert_eq!(bench.force(forced), (vec![], vec![]));
    bench.starts(&[3]);
    // But it counts towards the limits while it runs.
    bench.end(&[1]);
    bench.starts(&[]);
    bench.end(&[3]);
    bench.starts(&[2]);
}

#[test]
fn strict_mode_starts_a_forced_change_first_but_never_beside_a_job() {
    let mut bench = bench(Limits {
        strict: true,
        ..Limits::default()
    });
    bench.exec("a");
    bench.starts(&[1]);
    bench.query();
    let forced = bench.new_change("b");
    assert_eq!(bench.force(forced), (vec![], vec![]));
    bench.starts(&[]);
    bench.blocked_by_limit(3, "strict", 1);
    bench.end(&[1]);
    bench.starts(&[3]);
}

// Gates.

#[test]
fn paused_lane_does_not_block_other_lanes() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.scheduler.pause(Target::Lane(lane("web")));
    bench.exec("web");
    bench.exec("db");
    bench.starts(&[3]);
    bench.blocked_by_pause(1, Target::Lane(lane("web")));
    bench.scheduler.resume(&Target::Lane(lane("web")));
    bench.starts(&[1, 2]);
}

#[test]
fn a_paused_queue_starts_only_sessions_and_forced_changes() {
    let mut bench = bench_with_defaults();
    bench.query();
    bench.scheduler.pause(Target::All);
    bench.exec("web");
    bench.session("web");
    bench.starts(&[3]);
    bench.blocked_by_pause(1, Target::All);
    bench.scheduler.pause(Target::Lane(lane("db")));
    let forced = bench.new_change("db");
    assert_eq!(bench.force(forced), (vec![], vec![]));
    bench.starts(&[4]);
    bench.scheduler.resume(&Target::All);
    bench.starts(&[1, 2]);
}

#[test]
fn hold_passes_the_same_jobs_as_a_pause_and_is_independent_of_it() {
    let mut bench = bench_with_defaults();
    bench.query();
    bench.scheduler.hold();
    bench.exec("web");
    bench.session("web");
    bench.starts(&[3]);
    for job in [1, 2] {
        assert_eq!(bench.scheduler.blocker(JobId(job)), Some(Blocker::Held));
    }
    let forced = bench.new_change("db");
    assert_eq!(bench.force(forced), (vec![], vec![]));
    assert_eq!(bench.scheduler.blocker(JobId(4)), Some(Blocker::NotWaiting));
    bench.starts(&[4]);
    bench.scheduler.pause(Target::All);
    bench.scheduler.release();
    bench.starts(&[]);
    bench.scheduler.resume(&Target::All);
    bench.starts(&[1, 2]);
}

#[test]
fn close_passes_the_same_jobs_as_a_pause_and_is_not_undone() {
    let mut bench = bench_with_defaults();
    bench.scheduler.close();
    bench.change("web");
    bench.starts(&[]);
    bench.blocked_by_pause(1, Target::All);
    bench.scheduler.resume(&Target::All);
    bench.scheduler.release();
    bench.starts(&[]);
    assert!(bench.scheduler.is_closed() && bench.scheduler.paused().is_empty());
    let forced = NewJob {
        preempts: true,
        ..bench.new_change("db")
    };
    bench.submit(forced);
    bench.starts(&[2]);
}

#[test]
fn targets_are_listed_once_and_in_order_of_request() {
    let mut bench = bench_with_defaults();
    let [web, db] = ["web", "db"].map(|name| Target::Lane(lane(name)));
    for target in [&web, &Target::All, &db, &web] {
        bench.scheduler.pause(target.clone());
        bench.scheduler.drain(target.clone());
    }
    assert_eq!(bench.scheduler.paused(), [web.clone(), Target::All, db.clone()]);
    bench.scheduler.resume(&Target::All);
    assert_eq!(bench.scheduler.paused(), [web.clone(), db.clone()]);
    bench.scheduler.undrain(&web);
    assert_eq!(bench.scheduler.draining(), [Target::All, db]);
}

#[test]
fn pause_of_an_idle_lane_stays_in_force() {
    let mut bench = bench_with_defaults();
    let web = Target::Lane(lane("web"));
    bench.scheduler.pause(web.clone());
    bench.change("web");
    assert_eq!(bench.scheduler.cancel(JobId(1)), CancelResult::NeverStarted);
    assert!(bench.scheduler.paused().contains(&web) && bench.scheduler.is_idle(&web));
    bench.change("web");
    bench.starts(&[]);
    bench.scheduler.resume(&web);
    bench.starts(&[2]);
}

#[test]
fn drained_lane_refuses_new_jobs_and_becomes_idle() {
    let mut bench = bench_with_defaults();
    let web = Target::Lane(lane("web"));
    bench.exec("web");
    bench.starts(&[1]);
    bench.change("web");
    bench.scheduler.drain(web.clone());
    for preempts in [false, true] {
        let job = NewJob {
            preempts,
            ..bench.new_exec("web")
        };
        assert_eq!(bench.refused(job), Refusal::Draining { what: web.clone() });
    }
    bench.exec("db");
    bench.query();
    bench.end(&[1]);
    bench.starts(&[2, 6, 5]);
    assert!(!bench.scheduler.is_idle(&web));
    bench.end(&[2]);
    assert!(bench.scheduler.is_idle(&web) && !bench.scheduler.is_idle(&Target::All));
    bench.scheduler.undrain(&web);
    bench.exec("web");
    bench.starts(&[7]);
}

#[test]
fn a_drained_queue_refuses_everything() {
    let mut bench = bench_with_defaults();
    bench.scheduler.drain(Target::All);
    for new in [
        Bench::new_query,
        Bench::new_configuration,
        Bench::new_fleet_change,
        |bench: &mut Bench| bench.new_session("web"),
    ] {
        let job = new(&mut bench);
        assert_eq!(bench.refused(job), Refusal::Draining { what: Target::All });
    }
}

// Recovery.

#[test]
fn child_of_the_previous_instance_holds_its_lanes_until_it_ends() {
    let mut bench = bench_with_defaults();
    let orphan = bench.new_change("web");
    bench.scheduler.restore_running(orphan);
    bench.exec("web");
    bench.change("db");
    bench.starts(&[3]);
    bench.blocked_by_job(2, 1, lane("web"));
    bench.end(&[1]);
    bench.starts(&[2]);
}

#[test]
fn restored_job_takes_its_lanes_before_jobs_that_have_not_started() {
    let mut bench = bench_with_defaults();
    bench.exec("web");
    bench.exec("web");
    bench.exec("db");
    let orphan = bench.new_change("web");
    bench.scheduler.restore_running(orphan);
    bench.starts(&[3]);
    bench.blocked_by_job(1, 4, lane("web"));
    bench.end(&[4]);
    bench.starts(&[1, 2]);
}

#[test]
fn restored_job_counts_in_strict_mode() {
    let mut bench = bench(Limits {
        strict: true,
        ..Limits::default()
    });
    let orphan = bench.new_exec("web");
    bench.scheduler.restore_running(orphan);
    bench.query();
    bench.starts(&[]);
    bench.end(&[1]);
    bench.starts(&[2]);
}

#[test]
fn idle_scheduler_keeps_no_state() {
    let mut bench = bench_with_defaults();
    for n in 0..100 {
        bench.client = ClientId(n);
        bench.exec(&format!("m{n}"));
        bench.session(&format!("m{n}"));
    }
    for started in bench.start() {
        bench.end(&[started]);
    }
    assert!(bench.scheduler.remembers_nothing());
}

/// A small version of `benches/scheduler.rs`.
#[test]
fn long_queue_runs_to_completion() {
    const JOBS: u64 = 5_000;
    let mut bench = bench(Limits {
        queue_max: 5_000,
        queue_max_per_client: 5_000,
        ..Limits::default()
    });
    for n in 0..JOBS {
        bench.client = ClientId(n % 7);
        let job = match n % 50 {
            0 => bench.new_change(&format!("m{}", n % 20)),
            _ => bench.new_exec(&format!("m{}", n % 20)),
        };
        bench.submit(job);
    }
    let mut ended = 0;
    while !bench.scheduler.is_idle(&Target::All) {
        while bench.scheduler.start_next(bench.now).is_some() {}
        let running = bench.scheduler.running_jobs().next().expect("something runs");
        bench.end(&[running.0]);
        ended += 1;
    }
    assert_eq!(ended, JOBS);
    assert!(bench.scheduler.remembers_nothing());
}
