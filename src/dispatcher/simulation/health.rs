//! The dispatcher while `orbctl` is unhealthy: what it answers, which operations pass, and how it detects the recovery.

use super::*;
use crate::job::HealthProblem;

const PANIC: &str = "panic: timed out waiting for services to start\n\ngoroutine 1 [running]:\n";
const SECOND: Duration = Duration::from_secs(1);

fn notes_inbox() -> HealthProblem {
    HealthProblem::Reported("panic: timed out waiting for services to start".into())
}

impl World {
    /// Creates a world in which the test answers lists and the list is cached.
    async fn that_knows() -> Self {
        let mut world = Self::with(Limits::default(), false);
        let read = world.read(Query::List, None);
        world.answer_list().await;
        read.await.expect("no panic").expect("facts");
        world
    }

    /// Creates the same world, with a service that has just reported that it does not work.
    async fn that_is_sick() -> Self {
        let mut world = Self::that_knows().await;
        world.fall_sick().await;
        world
    }

    async fn fall_sick(&mut self) {
        let read = self.read(Query::ConfigShow, Some(Duration::ZERO));
        self.call("config").await.end(Ending::Exited(2), "", PANIC);
        assert!(read.await.expect("no panic").is_err(), "nothing is known of it");
        assert!(self.is_unhealthy().await);
    }

    async fn answer_list(&mut self) {
        let list = list_of(&self.orbctl.inventory);
        self.call("list").await.end(Ending::Exited(0), &list, "");
    }

    async fn is_unhealthy(&self) -> bool {
        self.dispatcher.queue_view().await.outage.is_some()
    }

    async fn told(&self, query: Query, max_age: Option<Duration>) -> Result<ObservedAnswer, ReadError> {
        self.read(query, max_age).await.expect("no panic")
    }

    async fn refusal(&self, submission: Submission) -> OutageView {
        match self.dispatcher.submit(submission).await {
            Err(Rejection::Unhealthy(outage)) => outage,
            other => panic!("not refused for that: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unhealthy_orbctl_serves_stale_reads_with_a_reason_and_refuses_changes() {
    let mut world = World::that_is_sick().await;
    // Both for any accepted age and although the list is also stale.
    let _ = world.dispatcher.invalidate(Scope::Everything).await;
    for max_age in [None, Some(Duration::ZERO)] {
        let seen = world.told(Query::List, max_age).await.expect("what was known");
        assert_eq!(seen.value.machines().map(<[_]>::len), Some(2));
        assert_eq!(seen.stale, Some(notes_inbox()));
    }
    for operation in [
        restart("a"),
        exec("a"),
        create("new").into(),
        Change::StartOrbstack(Force::No).into(),
    ] {
        let outage = world.refusal(submission(operation)).await;
        assert_eq!(outage.problem, notes_inbox());
        assert!(outage.retry_after <= SECOND, "{outage:?}");
    }
    let detached = Submission {
        detached: true,
        ..submission(restart("a"))
    };
    world.refusal(detached).await;
    let lease = Submission {
        executor: lease_of(Verb::Push, "a", std::process::id(), std::process::id()),
        ..submission(exec("a"))
    };
    world.refusal(lease).await;
    world.no_call().await;
}

/// What `orbctl` prints if the VM starts only after its timeout.
const STARTS_LATER: &str = "start VM: timed out waiting for VM to start\n";

/// Answers each poll with a running OrbStack until the job has ended. The first `broken` lists fail like those of a broken service.
async fn look_until_ended(world: &mut World, job: &Job, mut broken: usize) -> Outcome {
    let list = list_of(&world.orbctl.inventory);
    loop {
        let call = tokio::select! {
            biased;
            call = world.calls.recv() => call.expect("the dispatcher lives"),
            ended = outcome(job) => return ended,
        };
        match call.args[0].as_str() {
            "status" => call.end(Ending::Exited(0), "Running\n", ""),
            "list" if broken > 0 => {
                broken -= 1;
                call.end(Ending::Exited(2), "", PANIC);
            }
            "list" => call.end(Ending::Exited(0), &list, ""),
            other => panic!("{other} is no poll"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn start_of_orbstack_that_times_out_but_takes_effect_succeeds() {
    let mut world = World::that_knows().await;
    let job = world.change(Change::StartOrbstack(Force::No)).await;
    world.call("status").await.end(Ending::Exited(1), "Stopped\n", "");
    world.call("start").await.end(Ending::Exited(1), "", STARTS_LATER);
    let began = Moment::now().instant;
    let Outcome::Succeeded(Success::Observed { changed, warning }) =
        look_until_ended(&mut world, &job, 0).await
    else {
        panic!("it runs");
    };
    assert_eq!(changed, Some(true));
    assert!(
        warning.contains("timed out waiting for VM to start, but"),
        "{warning}"
    );
    assert!(!world.is_unhealthy().await);
    assert_eq!(Moment::now().instant, began, "nothing was waited for");
}

#[tokio::test(start_paused = true)]
async fn start_of_orbstack_needs_a_working_service_not_only_a_running_status() {
    let mut world = World::that_knows().await;
    let job = world.change(Change::StartOrbstack(Force::No)).await;
    world.call("status").await.end(Ending::Exited(1), "Stopped\n", "");
    world.call("start").await.end(Ending::Exited(1), "", STARTS_LATER);
    let began = Moment::now().instant;
    let ended = look_until_ended(&mut world, &job, 2).await;
    assert!(
        matches!(ended, Outcome::Succeeded(Success::Observed { .. })),
        "{ended:?}"
    );
    assert!(Moment::now().instant > began, "the first look did not do");
    assert!(!world.is_unhealthy().await);
}

#[tokio::test(start_paused = true)]
async fn successful_poll_closes_the_circuit_at_once() {
    let mut world = World::that_is_sick().await;
    let began = Moment::now().instant;
    let job = world.change(Change::StartOrbstack(Force::Yes)).await;
    world.call("start").await.end(Ending::Exited(1), "", STARTS_LATER);
    let ended = look_until_ended(&mut world, &job, 0).await;
    assert!(
        matches!(ended, Outcome::Succeeded(Success::Observed { changed: None, .. })),
        "{ended:?}"
    );
    assert!(!world.is_unhealthy().await);
    let read = world.read(Query::List, None);
    let list = list_of(&world.orbctl.inventory);
    world.call("list").await.end(Ending::Exited(0), &list, "");
    let seen = read.await.expect("no panic").expect("the list was read");
    assert!(seen.stale.is_none());
    assert_eq!(Moment::now().instant, began, "before any probe");
}

#[tokio::test(start_paused = true)]
async fn read_without_a_cached_answer_or_a_stale_mark_is_refused() {
    let mut world = World::that_is_sick().await;
    let printed = Query::RawQuery(RawQuery::Status);
    for query in [Query::Info(name("a")), Query::Ssh, Query::Version, printed] {
        let Err(ReadError::Rejected(Rejection::Unhealthy(outage))) = world.told(query, None).await else {
            panic!("it cannot be told");
        };
        assert_eq!(outage.problem, notes_inbox());
    }
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn fresh_answer_is_served_without_a_stale_mark() {
    let world = World::that_is_sick().await;
    let seen = world.told(Query::List, None).await.expect("known");
    assert_eq!(seen.stale, None);
    tokio::time::sleep(SECOND * 31).await;
    let seen = world.told(Query::List, None).await.expect("known");
    assert!(seen.stale.is_some(), "too old for anybody");
}

#[tokio::test(start_paused = true)]
async fn read_that_opens_the_circuit_gets_the_stale_answer_and_so_do_joined_reads() {
    let mut world = World::that_knows().await;
    tokio::time::sleep(SECOND * 10).await;
    let read = world.read(Query::List, Some(Duration::ZERO));
    let call = world.call("list").await;
    let joined = world.read(Query::List, Some(SECOND * 9));
    world.no_call().await;
    let other = world.read(Query::Default, None);
    let hanging = world.call("default").await;
    call.end(Ending::Exited(2), "", PANIC);
    for read in [read, joined] {
        let seen = read.await.expect("no panic").expect("what was known");
        assert_eq!(seen.stale, Some(notes_inbox()));
    }
    // A read without a cached answer may still succeed.
    hanging.end(Ending::Exited(0), "a\n", "");
    assert!(other.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_reads_fail_when_the_circuit_opens() {
    let limits = Limits {
        queries_max: 1,
        ..Limits::default()
    };
    let mut world = World::with(limits, false);
    let blocked = world.read(Query::List, None);
    let call = world.call("list").await;
    let waiting = world.read(Query::Status, None);
    world.idle().await;
    call.end(Ending::Exited(2), "", PANIC);
    assert!(blocked.await.expect("no panic").is_err());
    assert!(matches!(
        waiting.await.expect("no panic"),
        Err(ReadError::Ended {
            outcome: Outcome::Failed(Failure::OrbctlUnhealthy(_)),
            ..
        })
    ));
}

#[tokio::test(start_paused = true)]
async fn probes_run_one_at_a_time_with_backoff_until_one_succeeds() {
    let mut world = World::that_is_sick().await;
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        let began = Moment::now();
        let status = world.call("status").await;
        let waited = Moment::now().instant - began.instant;
        assert!(
            waited <= SECOND * pause && waited + SECOND > SECOND * pause,
            "{pause}: {waited:?}"
        );
        world.no_call().await;
        status.end(Ending::Exited(0), "Running\n", "");
        let list = world.call("list").await;
        if pause == 8 {
            // The list blocks, so the probe ends at its limit.
            tokio::time::sleep(SECOND * 29).await;
            world.no_call().await;
            let _held = list;
            tokio::time::sleep(SECOND).await;
        } else {
            list.end(Ending::Exited(2), "", PANIC);
        }
        assert!(world.is_unhealthy().await);
        world.refusal(submission(exec("a"))).await;
    }
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    world.set("new", "running");
    world.answer_list().await;
    world.idle().await;
    assert!(!world.is_unhealthy().await);
    // The result of the probe is cached.
    let seen = world.told(Query::List, None).await.expect("known");
    assert_eq!(
        (seen.value.machines().map(<[_]>::len), seen.stale),
        (Some(3), None)
    );
    let job = world.change(exec("a")).await;
    world.call("run").await.exit(0);
    assert_eq!(
        outcome(&job).await,
        Outcome::Succeeded(Success::Exec { exit_code: 0 })
    );
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn probe_does_not_start_a_stopped_orbstack() {
    let mut world = World::that_is_sick().await;
    world.call("status").await.end(Ending::Exited(1), "Stopped\n", "");
    world.no_call().await;
    assert!(!world.is_unhealthy().await, "the next call starts it");
}

#[tokio::test(start_paused = true)]
async fn probes_stop_without_requests_and_resume_with_the_next_request() {
    let mut world = World::that_is_sick().await;
    let mut probes = 0;
    let began = Moment::now();
    while Moment::now().instant - began.instant < SECOND * 3600 {
        tokio::select! {
            biased;
            call = world.calls.recv() => {
                call.expect("the dispatcher lives").end(Ending::Exited(2), "", PANIC);
                probes += 1;
            }
            () = tokio::time::sleep(SECOND * 60) => {}
        }
    }
    assert!((20..30).contains(&probes), "{probes}");
    world.refusal(submission(exec("a"))).await;
    world.call("status").await.end(Ending::Exited(1), "Stopped\n", "");
}

#[tokio::test(start_paused = true)]
async fn accepted_jobs_wait_for_the_recovery_and_report_that_reason() {
    let mut world = World::that_knows().await;
    let running = world.change(exec("a")).await;
    let run = world.call("run").await;
    let next = world.change(restart("a")).await;
    let impatient = world
        .submit(Submission {
            queue_timeout: Some(SECOND / 2),
            ..submission(restart("a"))
        })
        .await;
    world.fall_sick().await;
    // The running job continues, but the job behind it does not start when it ends.
    run.exit(7);
    assert_eq!(
        outcome(&running).await,
        Outcome::Succeeded(Success::Exec { exit_code: 7 })
    );
    world.no_call().await;
    let view = world.dispatcher.view(next.spec.id).await.expect("known");
    assert!(matches!(view.waiting_for, Some(WaitingFor::Unhealthy(problem)) if problem == notes_inbox()));
    assert_eq!(outcome(&impatient).await, Outcome::Expired(Phase::Queued));
    let JobState::Ended { holder, .. } = impatient.state.borrow().clone() else {
        panic!("it ended");
    };
    assert!(matches!(holder, Some(WaitingFor::Unhealthy(_))), "{holder:?}");
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    world.answer_list().await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&next).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn forced_operations_pass_and_a_success_closes_the_circuit() {
    let mut world = World::that_is_sick().await;
    let stop = world.change(Change::Stop(name("a"), Force::Yes)).await;
    world.call("stop").await.end(Ending::Exited(2), "", PANIC);
    // It polls for its effect, and fails like every other read.
    world.call("list").await.end(Ending::Exited(2), "", PANIC);
    assert!(world.is_unhealthy().await);
    let start = world.change(Change::StartOrbstack(Force::Yes)).await;
    assert!(matches!(outcome(&stop).await, Outcome::Unknown(seen) if !seen.stable));
    world.call("start").await.exit(0);
    assert_eq!(outcome(&start).await, CHANGED);
    assert!(!world.is_unhealthy().await);
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn forced_operation_by_id_is_refused_because_the_id_cannot_be_checked() {
    let mut world = World::that_is_sick().await;
    let by_id = Submission {
        expected_id: Some("01M4HXHNTVZXRXR1F5PV7GC8R0".parse().expect("an id")),
        ..submission(Change::Stop(name("a"), Force::Yes))
    };
    world.refusal(by_id).await;
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn change_whose_check_opens_the_circuit_is_not_started() {
    let mut world = World::that_knows().await;
    let job = world.change(Change::Stop(name("a"), Force::No)).await;
    world.call("list").await.end(Ending::Exited(2), "", PANIC);
    assert_eq!(
        outcome(&job).await,
        Outcome::Failed(Failure::OrbctlUnhealthy(notes_inbox()))
    );
    assert!(world.is_unhealthy().await);
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn reconciliation_polls_continue_and_the_first_success_closes_the_circuit() {
    let mut world = World::that_knows().await;
    let job = world.change(restart("a")).await;
    world.call("restart").await.end(Ending::Exited(2), "", PANIC);
    for _ in 0..2 {
        world.call("list").await.end(Ending::Exited(2), "", PANIC);
        world.refusal(submission(exec("b"))).await;
    }
    world.answer_list().await;
    world.idle().await;
    assert!(!world.is_unhealthy().await);
    let exec = world.change(exec("b")).await;
    world.call("run").await.exit(0);
    outcome(&exec).await;
    // The change itself is not stable yet.
    assert!(!job.state.borrow().is_ended());
}

#[tokio::test(start_paused = true)]
async fn later_commands_that_succeed_outweigh_a_blocked_read() {
    let mut world = World::that_knows().await;
    let read = world.read(Query::List, Some(Duration::ZERO));
    let _hangs = world.call("list").await;
    tokio::time::sleep(SECOND).await;
    let job = world.change(exec("a")).await;
    world.call("run").await.exit(0);
    outcome(&job).await;
    let read = read.await.expect("no panic");
    assert!(matches!(
        read,
        Err(ReadError::Ended {
            outcome: Outcome::Expired(Phase::Running),
            ..
        })
    ));
    assert!(!world.is_unhealthy().await);
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn blocked_read_alone_opens_the_circuit() {
    let mut world = World::that_knows().await;
    let read = world.read(Query::List, Some(Duration::ZERO));
    let _hangs = world.call("list").await;
    let seen = read.await.expect("no panic").expect("what was known");
    assert_eq!(seen.stale, Some(HealthProblem::Blocked { verb: "list" }));
    world.refusal(submission(exec("a"))).await;
}

#[tokio::test(start_paused = true)]
async fn unresponsive_machine_does_not_open_the_circuit() {
    let mut world = World::that_knows().await;
    let read = world.read(Query::Info(name("a")), None);
    let _hangs = world.call("info").await;
    let command = world
        .submit(Submission {
            run_timeout: Some(SECOND),
            ..submission(exec("a"))
        })
        .await;
    let _runs = world.call("run").await;
    assert_eq!(outcome(&command).await, Outcome::Expired(Phase::Running));
    assert!(read.await.expect("no panic").is_err());
    // A probe runs, and other operations continue meanwhile.
    let status = world.call("status").await;
    let job = world.change(exec("b")).await;
    world.call("run").await.exit(1);
    outcome(&job).await;
    status.end(Ending::Exited(0), "Running\n", "");
    world.answer_list().await;
    world.idle().await;
    assert!(!world.is_unhealthy().await);
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn error_text_that_a_guest_may_have_printed_only_triggers_a_probe() {
    let mut world = World::that_knows().await;
    for n in 0..5 {
        let job = world.change(exec("a")).await;
        world.call("run").await.end(Ending::Exited(2), "", PANIC);
        assert!(matches!(
            outcome(&job).await,
            Outcome::Failed(Failure::OrbctlFailed { .. })
        ));
        if n == 0 {
            world.call("status").await.end(Ending::Exited(0), "Running\n", "");
            world.answer_list().await;
        }
        // This holds however often it is repeated.
        world.no_call().await;
        assert!(!world.is_unhealthy().await);
    }
}

#[tokio::test(start_paused = true)]
async fn no_read_joins_one_that_blocked_during_the_outage() {
    let mut world = World::that_knows().await;
    let caught = world.read(Query::Default, None);
    let _hangs = world.call("default").await;
    world.fall_sick().await;
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    world.answer_list().await;
    world.idle().await;
    let fresh = world.read(Query::Default, None);
    world.call("default").await.end(Ending::Exited(0), "a\n", "");
    assert!(fresh.await.expect("no panic").is_ok());
    // When the blocked read times out at last, its signal is ignored.
    assert!(caught.await.expect("no panic").is_err());
    assert!(!world.is_unhealthy().await);
}

#[tokio::test(start_paused = true)]
async fn in_strict_mode_a_probe_waits_for_the_running_job_and_force_passes_the_probe() {
    let limits = Limits {
        strict: true,
        ..Limits::default()
    };
    let mut world = World::with(limits, false);
    let read = world.read(Query::List, None);
    world.call("list").await.end(Ending::Exited(2), "", PANIC);
    assert!(read.await.expect("no panic").is_err());
    let forced = world.change(Change::Stop(name("a"), Force::Yes)).await;
    let stop = world.call("stop").await;
    tokio::time::sleep(SECOND * 60).await;
    world.no_call().await;
    stop.end(Ending::Exited(1), "", "no\n");
    outcome(&forced).await;
    let _hangs = world.call("status").await;
    world.idle().await;
    let forced = world.change(Change::Stop(name("a"), Force::Yes)).await;
    world.call("stop").await.exit(0);
    assert_eq!(outcome(&forced).await, CHANGED);
    assert!(!world.is_unhealthy().await);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_probe() {
    let mut world = World::that_is_sick().await;
    let _hangs = world.call("status").await;
    let began = Moment::now();
    world.shutdown.cancel();
    world.task.await.expect("no panic");
    assert!(Moment::now().instant - began.instant < SECOND);
}

#[tokio::test(start_paused = true)]
async fn probe_is_recorded_only_when_orbctl_has_recovered() {
    let mut world = World::that_knows().await;
    let _subscriber = world.dispatcher.subscribe(true).await.expect("it lives");
    world.fall_sick().await;
    let recorded = world.records();
    for _ in 0..5 {
        world.call("status").await.end(Ending::Exited(0), "Running\n", "");
        world.call("list").await.end(Ending::Exited(2), "", PANIC);
    }
    world.idle().await;
    assert_eq!(world.records(), recorded);
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    world.answer_list().await;
    world.idle().await;
    assert!(!world.is_unhealthy().await);
    assert_eq!(world.records(), recorded + 1);
}
