//! Idle detection: what keeps the daemon busy, when new work is held for an upgrade, and which requests are still answered then.

use super::*;

impl World {
    /// Returns why the daemon is busy, as one word.
    async fn busy(&self) -> &'static str {
        match self.dispatcher.busy().await {
            None => "idle",
            Some(BusyReason::Job(_)) => "job",
            Some(BusyReason::Recent) => "recent",
            Some(BusyReason::Paused) => "paused",
            Some(BusyReason::Draining) => "draining",
        }
    }

    async fn seconds(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    fn waits_for_idle(&self) -> JoinHandle<Option<()>> {
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.wait_idle().await })
    }

    fn submits(&self, submission: Submission) -> JoinHandle<Result<Job, Rejection>> {
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.submit(submission).await })
    }

    /// Runs a detached command to its end.
    async fn detached_command(&mut self) -> JobId {
        let detached = Submission {
            detached: true,
            ..submission(exec("a"))
        };
        let id = self.submit(detached).await.spec.id;
        self.call("run").await.exit(0);
        self.idle().await;
        id
    }
}

#[tokio::test(start_paused = true)]
async fn job_keeps_the_daemon_busy_while_it_runs_and_while_a_handle_is_held() {
    let mut world = World::new();
    assert_eq!(world.busy().await, "idle");
    let job = world.change(restart("a")).await;
    assert_eq!(world.busy().await, "job");
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    assert_eq!(world.busy().await, "job", "its client was not answered yet");
    drop(job);
    assert_eq!(world.busy().await, "idle");
    let id = world.detached_command().await;
    world.seconds(1.1).await;
    let one = world.dispatcher.job(id).await.expect("remembered");
    let state = world.dispatcher.job(id).await.expect("remembered").state;
    world.seconds(1.1).await;
    for held in [Box::new(one) as Box<dyn std::any::Any>, Box::new(state)] {
        assert_eq!(world.busy().await, "job");
        drop(held);
    }
    assert_eq!(world.busy().await, "idle");
    // A handle of a job that has expired from history does not count.
    let held = world.dispatcher.job(id).await;
    world.seconds(1.1).await;
    assert_eq!(world.busy().await, "job");
    world.seconds(16.0 * 60.0).await;
    assert_eq!(world.busy().await, "idle");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn ended_detached_job_keeps_the_daemon_busy_for_a_limited_time() {
    let mut world = World::new();
    let id = world.detached_command().await;
    assert_eq!(world.busy().await, "recent");
    world.seconds(1.1).await;
    assert_eq!(world.busy().await, "idle");
    drop(world.dispatcher.job(id).await);
    assert_eq!(world.busy().await, "recent");
    world.seconds(30.0).await;
    drop(world.dispatcher.job(id).await);
    assert_eq!(world.busy().await, "idle", "it polls an old job");
}

#[tokio::test(start_paused = true)]
async fn a_pause_and_a_drain_keep_the_daemon_busy() {
    let world = World::new();
    let queue = |verb| world.dispatcher.queue(verb, Target::Machine(name("a")));
    queue(QueueVerb::Pause).await.expect("it runs");
    assert_eq!(world.busy().await, "paused");
    queue(QueueVerb::Resume).await.expect("it runs");
    world.seconds(1.1).await;
    queue(QueueVerb::Drain).await.expect("it runs");
    assert_eq!(world.busy().await, "draining");
    queue(QueueVerb::Resume).await.expect("it runs");
    world.seconds(1.1).await;
    assert_eq!(world.busy().await, "idle");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_begins_at_the_first_idle_moment_and_is_final() {
    let mut world = World::new();
    let job = world.change(restart("a")).await;
    let mut idle = world.waits_for_idle();
    world.seconds(3.0).await;
    assert!(!idle.is_finished());
    assert!(!world.dispatcher.begin_upgrade().await, "a change runs");
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    drop(job);
    let found = tokio::time::timeout(Duration::from_secs(1), &mut idle).await;
    assert_eq!(found.expect("soon after its end").expect("no panic"), Some(()));
    let waiting = world.change(restart("b")).await;
    assert!(
        !world.dispatcher.begin_upgrade().await,
        "it was idle, and is not now"
    );
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&waiting).await, CHANGED);
    let id = waiting.spec.id;
    drop(waiting);
    assert!(world.dispatcher.begin_upgrade().await);
    assert!(world.dispatcher.upgrading().is_cancelled());
    let refused = world.dispatcher.submit(submission(restart("a"))).await;
    assert!(matches!(refused, Err(Rejection::Upgrading)));
    let paused = world.dispatcher.queue(QueueVerb::Pause, Target::All).await;
    assert!(matches!(paused, Err(Rejection::Upgrading)));
    assert!(world.dispatcher.view(id).await.is_some(), "all else is answered");
    world.shutdown.cancel();
    world.dispatcher.gone().await;
    let refused = world.dispatcher.submit(submission(restart("a"))).await;
    assert!(matches!(refused, Err(Rejection::Upgrading)));
    world.task.await.expect("the journal comes back");
}

#[tokio::test(start_paused = true)]
async fn new_work_is_held_back_for_five_seconds_and_then_accepted() {
    let mut world = World::new();
    let long = world.change(restart("a")).await;
    let restarting = world.call("restart").await;
    let idle = world.waits_for_idle();
    world.seconds(29.0).await;
    let before = world.change(restart("b")).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&before).await, CHANGED);
    drop(before);
    world.seconds(2.0).await;
    let held = world.submits(submission(restart("b")));
    world.seconds(3.5).await;
    assert!(!held.is_finished());
    assert_eq!(world.dispatcher.queue_view().await.waiting, 0, "not accepted");
    world.seconds(1.0).await;
    let accepted = held.await.expect("no panic").expect("accepted");
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&accepted).await, CHANGED);
    drop(accepted);
    // The job that outlasted the hold still runs, so a second hold would fail too.
    world.seconds(40.0).await;
    let passed = world.change(restart("b")).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&passed).await, CHANGED);
    drop(passed);
    assert!(!idle.is_finished());
    restarting.exit(0);
    assert_eq!(outcome(&long).await, CHANGED);
    drop(long);
    assert_eq!(idle.await.expect("no panic"), Some(()));
}

#[tokio::test(start_paused = true)]
async fn continuous_work_is_held_until_the_upgrade_and_left_to_the_next_instance() {
    let mut world = World::new();
    let idle = world.waits_for_idle();
    // Two clients whose jobs overlap: each job begins before the previous one has ended.
    let mut running = Some((world.change(exec("a")).await, world.call("run").await));
    let mut held = None;
    for _ in 0..80 {
        world.seconds(0.5).await;
        let listed = world.read(Query::List, None).await.expect("no panic");
        assert!(listed.is_ok());
        let mut next = world.submits(submission(exec("a")));
        world.idle().await;
        let accepted = next.is_finished();
        let (job, call) = running.take().expect("one runs");
        call.exit(0);
        outcome(&job).await;
        drop(job);
        if !accepted {
            held = Some(next);
            break;
        }
        let job = (&mut next).await.expect("no panic").expect("accepted");
        running = Some((job, world.call("run").await));
    }
    let held = held.expect("work is held back after half a minute");
    let read = world.read(Query::List, Some(Duration::ZERO));
    let cached = world.read(Query::List, None).await.expect("no panic");
    assert!(cached.is_ok(), "what is known is answered during a hold");
    assert_eq!(idle.await.expect("no panic"), Some(()));
    assert!(!held.is_finished() && !read.is_finished());
    assert!(world.dispatcher.begin_upgrade().await);
    assert!(matches!(held.await.expect("no panic"), Err(Rejection::Upgrading)));
    assert!(matches!(
        read.await.expect("no panic"),
        Err(ReadError::Rejected(Rejection::Upgrading))
    ));
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn force_passes_a_hold_and_a_pause_ends_it() {
    let mut world = World::new();
    let stuck = world.change(restart("a")).await;
    let _never = world.call("restart").await;
    let _idle = world.waits_for_idle();
    world.seconds(31.0).await;
    let held = world.submits(submission(restart("b")));
    world.idle().await;
    assert!(!held.is_finished());
    let forced = Change::Stop(name("a"), Force::Yes);
    let forced = world.submit(submission(forced)).await;
    world.call("stop").await.exit(0);
    assert!(matches!(
        outcome(&stuck).await,
        Outcome::Unknown(_) | Outcome::Cancelled(_)
    ));
    assert!(!is_waiting(&forced));
    let paused = world
        .dispatcher
        .queue(QueueVerb::Pause, Target::Machine(name("b")))
        .await;
    paused.expect("it runs");
    let accepted = held.await.expect("no panic").expect("accepted");
    assert!(is_waiting(&accepted), "its machine is paused");
}

#[tokio::test(start_paused = true)]
async fn reloaded_settings_apply_to_the_next_jobs() {
    let mut world = World::new();
    let mut settings = settings(world.folder.path(), Limits::default());
    settings.limits.changes_max = 1;
    settings.limits.creates_max = 1;
    settings.run_timeouts.change = Duration::from_secs(5);
    world.dispatcher.adopt(settings.clone()).await;
    let (first, second) = (world.change(restart("a")).await, world.change(restart("b")).await);
    assert!(is_waiting(&second), "one at a time");
    assert_eq!(first.spec.run_timeout, Some(Duration::from_secs(5)));
    settings.limits.changes_max = 2;
    settings.cache_max_age = Duration::from_secs(7);
    world.dispatcher.adopt(settings).await;
    for _ in 0..2 {
        world.call("restart").await.exit(0);
    }
    assert_eq!(outcome(&first).await, CHANGED);
    assert_eq!(outcome(&second).await, CHANGED);
    assert_eq!(world.dispatcher.published().cache_max_age, Duration::from_secs(7));
}
