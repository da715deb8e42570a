//! Polling for subscribers: when the dispatcher polls, how often, and which events the polls produce.

use super::*;
use crate::cache::Source;
use crate::events::Event;

impl World {
    async fn watch(&self) -> Subscriber {
        self.dispatcher.subscribe(true).await.expect("it lives")
    }

    fn orbstack(&self, word: &'static str) {
        let mut status = self.orbctl.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.0 = word;
    }

    fn statuses(&self) -> usize {
        self.orbctl
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
    }

    /// Waits until this many milliseconds have passed since `began`, and until all tasks are waiting.
    async fn until(&self, began: Moment, ms: u64) {
        tokio::time::sleep_until((began.instant + Duration::from_millis(ms)).into()).await;
        self.idle().await;
    }
}

/// Returns the events after a number, each as a short text.
fn since(subscriber: &Subscriber, number: u64) -> Vec<String> {
    let events = subscriber.events.borrow().since(number, 1000).expect("no gap");
    events
        .iter()
        .map(|told| match &told.event {
            Event::MachinesKnown { machines, .. } => format!("{} machines", machines.len()),
            Event::MachineAppeared { machine, .. } => format!("{} appeared", machine.name),
            Event::MachineChanged { machine, .. } => format!("{} {}", machine.name, machine.state.as_str()),
            Event::MachineGone { machine, .. } => format!("{} gone", machine.name),
            Event::OrbstackChanged { status, .. } => format!("orbstack {}", status.as_str()),
            Event::JobQueued(job) => format!("{} queued", job.verb),
            Event::JobStarted(job) => format!("{} started", job.verb),
            Event::JobEnded(job, _) => format!("{} ended", job.verb),
            Event::CacheInvalidated { .. } => "stale".to_owned(),
            Event::OrbctlUnhealthy { reason } => format!("unhealthy: {reason}"),
            Event::OrbctlRecovered => "recovered".to_owned(),
        })
        .collect()
}

fn last(subscriber: &Subscriber) -> u64 {
    subscriber.events.borrow().last()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn no_polls_without_subscribers() {
    let world = World::new();
    tokio::time::sleep(HOUR).await;
    // A subscriber to job events alone causes no polls.
    let of_jobs = world.dispatcher.subscribe(false).await.expect("it lives");
    tokio::time::sleep(HOUR).await;
    assert_eq!((world.statuses(), world.lists()), (0, 0));
    let (one, other) = (world.watch().await, world.watch().await);
    world.idle().await;
    assert_eq!(
        (world.statuses(), world.lists()),
        (1, 1),
        "the first is told at once"
    );
    assert_eq!(since(&of_jobs, 0), ["orbstack running", "2 machines"]);
    drop(one);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.lists(), 2, "one is left");
    drop(other);
    tokio::time::sleep(HOUR).await;
    assert_eq!((world.statuses(), world.lists()), (2, 2), "nobody is left");
}

#[tokio::test(start_paused = true)]
async fn poll_interval_grows_while_nothing_changes_and_resets_on_a_change() {
    let world = World::new();
    let subscriber = world.watch().await;
    let began = Moment::now();
    for (ms, lists) in [
        (100, 1),
        (2_100, 2),
        (5_900, 2),
        (6_100, 3),
        (13_900, 3),
        (14_100, 4),
        (24_100, 5),
        (34_100, 6),
    ] {
        world.until(began, ms).await;
        assert_eq!(world.lists(), lists, "after {ms} ms");
    }
    let number = last(&subscriber);
    world.set("a", "stopped");
    world.set("c", "creating");
    world.until(began, 44_100).await;
    assert_eq!(since(&subscriber, number), ["a stopped", "c appeared"]);
    world.remove("c");
    world.until(began, 46_200).await;
    assert_eq!(since(&subscriber, number + 2), ["c gone"]);
    assert_eq!(world.lists(), 8);
    let published = world.dispatcher.published().machines.clone().expect("a list");
    assert_eq!(published.source, Source::Poll);
}

#[tokio::test(start_paused = true)]
async fn stopped_orbstack_is_not_polled_for_its_machines() {
    let world = World::new();
    world.orbstack("Stopped");
    let subscriber = world.watch().await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.lists(), 0);
    assert_eq!(since(&subscriber, 0), ["orbstack stopped"]);
    assert!(
        (350..=370).contains(&world.statuses()),
        "{} polls",
        world.statuses()
    );
    world.orbstack("Running");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(since(&subscriber, 1), ["orbstack running", "2 machines"]);
}

#[tokio::test(start_paused = true)]
async fn read_of_a_caller_counts_as_a_poll() {
    let world = World::new();
    let _subscriber = world.watch().await;
    let began = Moment::now();
    world.until(began, 1_500).await;
    let fresh = world.read(Query::List, Some(Duration::ZERO)).await;
    assert!(fresh.expect("no panic").is_ok());
    world.until(began, 3_400).await;
    assert_eq!((world.statuses(), world.lists()), (1, 2), "the pause begins anew");
    world.until(began, 3_600).await;
    assert_eq!((world.statuses(), world.lists()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn fresh_cached_list_is_not_polled_again_for_the_first_subscriber() {
    let world = World::new();
    let known = world.read(Query::List, None).await;
    assert!(known.expect("no panic").is_ok());
    let began = Moment::now();
    world.until(began, 500).await;
    let _subscriber = world.watch().await;
    world.until(began, 1_900).await;
    assert_eq!(world.lists(), 1);
    world.until(began, 2_100).await;
    assert_eq!(world.lists(), 2);
}

#[tokio::test(start_paused = true)]
async fn effect_of_a_change_is_published_when_it_ends() {
    let mut world = World::new();
    let subscriber = world.watch().await;
    world.idle().await;
    let number = last(&subscriber);
    let job = world.change(Change::Stop(name("a"), Force::No)).await;
    let call = world.call("stop").await;
    world.set("a", "stopped");
    let began = Moment::now();
    call.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    world.until(began, 10).await;
    let told = since(&subscriber, number);
    assert_eq!(
        told,
        [
            "stop queued",
            "stale",
            "stop started",
            "stale",
            "stop ended",
            "a stopped"
        ]
    );
    let numbers: Vec<u64> = {
        let ring = subscriber.events.borrow();
        let events = ring.since(0, 1000).expect("no gap");
        events.iter().map(|told| told.sequence).collect()
    };
    assert_eq!(numbers, (1..=last(&subscriber)).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn failed_polls_back_off() {
    let mut world = World::with(Limits::default(), false);
    let _subscriber = world.watch().await;
    let began = Moment::now();
    let mut probe_permits = 0;
    loop {
        let call = world.call("status").await;
        if Moment::now().instant - began.instant > Duration::from_secs(60) {
            break;
        }
        probe_permits += 1;
        call.end(
            Ending::Exited(2),
            "",
            "panic: timed out\n\ngoroutine 1 [running]:\n",
        );
    }
    assert!(
        (5..=9).contains(&probe_permits),
        "{probe_permits} polls in a minute"
    );
}

#[tokio::test(start_paused = true)]
async fn any_number_of_changes_during_a_poll_cause_one_more_poll() {
    let mut world = World::with(Limits::default(), false);
    let subscriber = world.watch().await;
    let status = world.call("status").await;
    for _ in 0..5 {
        world
            .dispatcher
            .invalidate(Scope::Everything)
            .await
            .expect("it lives");
    }
    world.no_call().await;
    status.end(Ending::Exited(0), "Running\n", "");
    let list = world.call("list").await;
    list.end(Ending::Exited(0), &list_of(&world.orbctl.inventory), "");
    world.idle().await;
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    let list = world.call("list").await;
    list.end(Ending::Exited(0), &list_of(&world.orbctl.inventory), "");
    world.no_call().await;
    let told = since(&subscriber, 0);
    assert_eq!(
        told[told.len() - 2..],
        ["2 machines", "orbstack running"],
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn polls_do_not_pile_up_in_a_paused_or_draining_queue() {
    let world = World::new();
    let _subscriber = world.watch().await;
    world.idle().await;
    for verb in [QueueVerb::Pause, QueueVerb::Drain] {
        let probe_permits = world.statuses();
        let view = world.dispatcher.queue(verb, Target::All).await;
        assert_eq!(view.expect("it lives").waiting, 0);
        tokio::time::sleep(HOUR).await;
        let view = world.dispatcher.queue_view().await;
        assert_eq!((world.statuses(), view.waiting), (probe_permits, 0));
        let view = world.dispatcher.queue(QueueVerb::Resume, Target::All).await;
        assert!(view.is_ok());
        world.idle().await;
        assert_eq!(world.statuses(), probe_permits + 1, "the one that was due");
    }
}

#[tokio::test(start_paused = true)]
async fn snapshot_contains_unfinished_jobs_and_the_last_event_number() {
    let mut world = World::new();
    let subscriber = world.watch().await;
    world.idle().await;
    let running = world.change(restart("a")).await;
    let waiting = world.change(restart("a")).await;
    let call = world.call("restart").await;
    let all = world.dispatcher.snapshot().await.expect("it lives");
    assert_eq!(all.sequence, last(&subscriber));
    let ids: Vec<JobId> = all.jobs.iter().map(|job| job.spec.id).collect();
    assert_eq!(ids, [running.spec.id, waiting.spec.id]);
    assert!(
        all.machines.is_some() && all.machines_stale,
        "known, and may have changed"
    );
    assert!(all.outage.is_none());
    call.exit(0);
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&waiting).await, CHANGED);
    world.idle().await;
    let all = world.dispatcher.snapshot().await.expect("it lives");
    assert!(all.jobs.is_empty() && !all.machines_stale);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_event_stream() {
    let world = World::new();
    let mut subscriber = world.watch().await;
    world.idle().await;
    subscriber.events.borrow_and_update();
    world.shutdown.cancel();
    while subscriber.events.changed().await.is_ok() {}
    world.task.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn poll_that_found_nothing_new_leaves_no_record() {
    let world = World::new();
    let _subscriber = world.watch().await;
    world.idle().await;
    assert_eq!(world.records(), 2, "the first status and the first list");
    tokio::time::sleep(HOUR).await;
    assert!(world.lists() > 300, "{} polls", world.lists());
    assert_eq!(world.records(), 2);
    world.set("a", "stopped");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.records(), 3, "the list that showed the change");
    world.orbstack("Stopped");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.records(), 4, "the status that showed the change");
}

#[tokio::test(start_paused = true)]
async fn failing_polls_are_recorded_when_the_failure_begins_and_ends() {
    let mut world = World::with(Limits::default(), false);
    let _subscriber = world.watch().await;
    let mut recorded = Vec::new();
    for round in 0..6 {
        world.call("status").await.end(Ending::Exited(0), "Running\n", "");
        let list = world.call("list").await;
        if (2..5).contains(&round) {
            list.end(Ending::Exited(1), "", "something unheard of\n");
        } else {
            list.end(Ending::Exited(0), &list_of(&world.orbctl.inventory), "");
        }
        world.idle().await;
        recorded.push(world.records());
    }
    assert_eq!(recorded, [2, 2, 3, 3, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn poll_that_a_client_shares_is_recorded() {
    let limits = Limits {
        queries_max: 1,
        ..Limits::default()
    };
    let mut world = World::with(limits, false);
    let _subscriber = world.watch().await;
    let list = list_of(&world.orbctl.inventory);
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    world.call("list").await.end(Ending::Exited(0), &list, "");
    // A client joins a poll, because the cached answer is older than it accepts.
    let status = world.call("status").await;
    let read = world.read(Query::Status, Some(Duration::from_secs(1)));
    world.idle().await;
    let before = world.records();
    status.end(Ending::Exited(0), "Running\n", "");
    assert!(read.await.expect("no panic").is_ok());
    world.call("list").await.end(Ending::Exited(0), &list, "");
    world.idle().await;
    assert_eq!(world.records(), before + 1, "the status and not the list");
    // A poll joins a client's read that is queued.
    let other = world.read(Query::ConfigShow, None);
    let running = world.call("config").await;
    let read = world.read(Query::Status, Some(Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = world.records();
    running.end(Ending::Exited(0), "cpu: 8\n", "");
    assert!(other.await.expect("no panic").is_ok());
    world.call("status").await.end(Ending::Exited(0), "Running\n", "");
    assert!(read.await.expect("no panic").is_ok());
    // The poll continues with the result of the client's read.
    world.call("list").await.end(Ending::Exited(0), &list, "");
    world.idle().await;
    assert_eq!(world.records(), before + 2, "the client's two reads");
}
