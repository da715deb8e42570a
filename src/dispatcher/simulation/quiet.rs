//! Quiet: what keeps a successor waiting, when it may begin, and that a daemon with no successor has no timer for it.

use super::*;

impl World {
    /// Says in a word what would be lost now.
    async fn unrest(&self) -> &'static str {
        match self.dispatcher.unrest().await {
            None => "nothing",
            Some(Unrest::Job(_)) => "job",
            Some(Unrest::Recent) => "recent",
            Some(Unrest::Paused) => "paused",
            Some(Unrest::Draining) => "draining",
            Some(Unrest::Sick) => "sick",
        }
    }

    /// Lets so much time pass that what was asked a moment ago is asked no further.
    async fn a_moment(&self) {
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    fn waits_for_quiet(&self) -> JoinHandle<Option<()>> {
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.until_quiet().await })
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_missed_while_it_runs_while_it_is_followed_and_for_a_moment() {
    let mut world = World::new();
    assert_eq!(world.unrest().await, "nothing");
    let job = world.change(restart("a")).await;
    assert_eq!(world.unrest().await, "job");
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    world.a_moment().await;
    assert_eq!(world.unrest().await, "job", "somebody still holds it");
    drop(job);
    assert_eq!(world.unrest().await, "nothing");
    let job = world.change(restart("a")).await;
    let id = job.spec.id;
    drop(job);
    world.call("restart").await.exit(0);
    world.idle().await;
    assert_eq!(world.unrest().await, "recent");
    world.a_moment().await;
    assert_eq!(world.unrest().await, "nothing");
    // Whoever asks about it may be about to fetch what it wrote.
    drop(world.dispatcher.job(id).await);
    assert_eq!(world.unrest().await, "recent");
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_for_a_job_after_its_end_is_waited_for() {
    let mut world = World::new();
    let job = world.change(restart("a")).await;
    let id = job.spec.id;
    drop(job);
    world.call("restart").await.exit(0);
    world.idle().await;
    let one = world.dispatcher.job(id).await.expect("remembered");
    let state = world.dispatcher.job(id).await.expect("remembered").state;
    world.a_moment().await;
    for held in [Box::new(one) as Box<dyn std::any::Any>, Box::new(state)] {
        assert_eq!(world.unrest().await, "job");
        drop(held);
    }
    assert_eq!(world.unrest().await, "nothing");
    // What is forgotten is nobody's to hand on, whoever holds it.
    let held = world.dispatcher.job(id).await;
    world.a_moment().await;
    assert_eq!(world.unrest().await, "job");
    tokio::time::sleep(Duration::from_secs(16 * 60)).await;
    assert_eq!(world.unrest().await, "nothing");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_pause_and_a_drain_would_be_forgotten() {
    let world = World::new();
    let pause = |verb| world.dispatcher.queue(verb, Target::Machine(name("a")));
    pause(QueueVerb::Pause).await.expect("it lives");
    assert_eq!(world.unrest().await, "paused");
    pause(QueueVerb::Resume).await.expect("it lives");
    world.a_moment().await;
    pause(QueueVerb::Drain).await.expect("it lives");
    assert_eq!(world.unrest().await, "draining");
    pause(QueueVerb::Resume).await.expect("it lives");
    world.a_moment().await;
    assert_eq!(world.unrest().await, "nothing");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_quiet_is_told_when_it_comes_and_the_stop_is_final() {
    let mut world = World::new();
    let job = world.change(restart("a")).await;
    let mut quiet = world.waits_for_quiet();
    world.a_moment().await;
    assert!(!quiet.is_finished());
    assert!(!world.dispatcher.stop_if_quiet().await, "a change runs");
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    drop(job);
    let told = tokio::time::timeout(Duration::from_secs(2), &mut quiet).await;
    assert_eq!(told.expect("soon after its end").expect("no panic"), Some(()));
    let waiting = world.change(restart("b")).await;
    assert!(
        !world.dispatcher.stop_if_quiet().await,
        "it was quiet, and is not now"
    );
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&waiting).await, CHANGED);
    drop(waiting);
    world.a_moment().await;
    assert!(world.dispatcher.stop_if_quiet().await);
    world.dispatcher.gone().await;
    let refused = world.dispatcher.submit(submission(restart("a"))).await;
    assert!(matches!(refused, Err(Rejection::Stopping)));
    world.task.await.expect("the journal comes back");
}

#[tokio::test(start_paused = true)]
async fn what_a_reload_changes_is_in_force_for_what_comes_next() {
    let mut world = World::new();
    let mut settings = settings(world.folder.path(), Limits::default());
    settings.limits.changes_max = 1;
    settings.limits.creates_max = 1;
    settings.run_timeouts.change = Duration::from_secs(5);
    world.dispatcher.adopt(settings.clone()).await;
    let (first, second) = (world.change(restart("a")).await, world.change(restart("b")).await);
    assert!(is_waiting(&second), "one at a time");
    assert_eq!(first.spec.asked.run_timeout, Some(Duration::from_secs(5)));
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
