//! Random traffic over several instances of the daemon, and the invariants that must always hold.
//!
//! After each step, once every task is waiting:
//!
//! - no two invocations run on the same machine, unless both are commands;
//! - a job that was cancelled or expired while it waited is never invoked, and an outcome, once reported, does not change;
//! - a read of a machine without a running change returns its true state.
//!
//! After a crash, a later instance runs each accepted detached job once. At the end every job has ended and the journal is empty.
//! `ORBD_TEST_SEED=7 cargo test --lib traffic` repeats a run, except for the times at which the journal is written to disk, which
//! takes real time.

use std::collections::{BTreeSet, HashMap};

use super::*;
use crate::scheduler::simulation::{Random, Repeat, seed_or};

const STEPS: u64 = 24_000;
/// Number of steps between two crashes.
const LIFE: u64 = 2_000;
const MACHINES: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: usize = 5;

/// A job as its client sees it.
struct Asked {
    job: Job,
    is_change: bool,
    told: Option<Outcome>,
}

struct Traffic {
    world: World,
    random: Random,
    submission: Vec<Asked>,
    calls: Vec<Call>,
    /// Accepted detached creates, by machine, with the number of times that each was invoked.
    promised: HashMap<String, usize>,
    /// Machines whose create was cancelled, or was running at a crash.
    released: BTreeSet<String>,
    made: u64,
    is_paused: bool,
    ended: u64,
    invoked: u64,
    reads: u64,
}

impl Traffic {
    fn new(seed: u64) -> Self {
        let mut traffic = Self {
            world: World::with(limits(), true),
            random: Random(seed),
            submission: Vec::new(),
            calls: Vec::new(),
            promised: HashMap::new(),
            released: BTreeSet::new(),
            made: 0,
            is_paused: false,
            ended: 0,
            invoked: 0,
            reads: 0,
        };
        traffic.populate();
        traffic
    }

    fn populate(&mut self) {
        for machine in MACHINES {
            self.world.set(machine, "running");
        }
    }

    async fn step(&mut self) {
        match self.random.below(100) {
            0..34 => self.submit().await,
            34..70 => self.answer(),
            70..76 => self.cancel().await,
            76..78 => {
                let connection = self.random.below(CLIENTS as u64);
                self.world.dispatcher.on_disconnect(connection).await;
            }
            78..84 => {
                let ms = if self.random.one_in(20) {
                    self.random.below(90_000)
                } else {
                    self.random.below(3_000)
                };
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            84..87 => self.pause_or_resume().await,
            87 if self.random.one_in(4) => self.promise().await,
            88..96 => self.read().await,
            _ => {}
        }
        self.world.idle().await;
        self.check();
    }

    async fn submit(&mut self) {
        let machine = MACHINES[self.random.index(MACHINES.len())];
        let (operation, is_change) = match self.random.below(16) {
            0..8 => (exec(machine), false),
            8..10 => (restart(machine), true),
            10..12 => (Change::Start(name(machine)).into(), true),
            12..15 => (Change::Stop(name(machine), Force::No).into(), true),
            _ => (Change::Stop(name(machine), Force::Yes).into(), true),
        };
        let limit = |random: &mut Random| {
            let ms = 1 + random.below(20_000);
            random.one_in(3).then(|| Duration::from_millis(ms))
        };
        let number = self.random.below(CLIENTS as u64);
        let submission = Submission {
            client: client(number),
            // A detached change is written to the journal, which takes real time; see `promise`.
            detached: !is_change && self.random.one_in(4),
            queue_timeout: limit(&mut self.random),
            run_timeout: limit(&mut self.random),
            ..submission(operation)
        };
        if let Ok(job) = self.world.dispatcher.submit(submission).await {
            self.submission.push(Asked {
                job,
                is_change,
                told: None,
            });
        }
    }

    /// Submits a detached create, which survives a crash, of a machine that no other job uses.
    async fn promise(&mut self) {
        self.made += 1;
        let machine = format!("new{}", self.made);
        let held = hold_time();
        let job = self
            .world
            .submit(Submission {
                client: client(77),
                detached: true,
                ..submission(create(&machine))
            })
            .await;
        self.promised.insert(machine, 0);
        // Its start may be being written to disk, which also takes real time.
        let mut state = job.state.clone();
        while matches!(*state.borrow_and_update(), JobState::Running { .. }) {
            tokio::select! {
                call = self.world.calls.recv() => {
                    self.keep(call.expect("the dispatcher lives"));
                    break;
                }
                _ = state.changed() => {}
            }
        }
        drop(held);
        self.submission.push(Asked {
            job,
            is_change: true,
            told: None,
        });
    }

    /// Ends an invocation with success or failure. Its effect takes place before the dispatcher learns of the end.
    fn answer(&mut self) {
        self.calls.retain(|call| !call.reply.is_closed());
        if self.calls.is_empty() {
            return;
        }
        let chosen = self.random.index(self.calls.len());
        let call = self.calls.swap_remove(chosen);
        let machine = machine_of(&call.args);
        let ending = match self.random.below(12) {
            0 => Ending::Exited(1),
            1 => Ending::Signalled(9),
            _ => Ending::Exited(0),
        };
        let did_it = ending == Ending::Exited(0) || (ending == Ending::Signalled(9) && self.random.one_in(2));
        if did_it {
            let state = if call.args[0] == "stop" {
                "stopped"
            } else {
                "running"
            };
            self.world.set(&machine, state);
            if machine.starts_with("new") {
                // No job uses it again; remove it to keep the list short.
                self.world.remove(&machine);
            }
        }
        call.end(ending, "", "");
    }

    async fn cancel(&mut self) {
        let recent = self.submission.len().min(40);
        if recent > 0 {
            let chosen = self.submission.len() - 1 - self.random.index(recent);
            let submission = &self.submission[chosen].job;
            let info = &submission.spec.info;
            if let (Verb::Create, Some(name)) = (info.verb, &info.machine) {
                self.released.insert(name.to_string());
            }
            self.world.dispatcher.cancel(submission.spec.id).await;
        }
    }

    async fn pause_or_resume(&mut self) {
        self.is_paused = !self.is_paused && self.random.one_in(3);
        let verb = if self.is_paused {
            QueueVerb::Pause
        } else {
            QueueVerb::Resume
        };
        self.world
            .dispatcher
            .queue(verb, Target::All)
            .await
            .expect("it lives");
    }

    /// Reads the list, mostly from the cache, and compares machines without a running change with their true state.
    async fn read(&mut self) {
        let max_age = self.random.one_in(3).then_some(Duration::ZERO);
        let read = self.world.dispatcher.read(Query::List, max_age, client(9));
        // A paused queue blocks reads too, so do not wait for the answer.
        let Ok(Ok(seen)) = tokio::time::timeout(Duration::from_millis(1), read).await else {
            return;
        };
        self.reads += 1;
        let moves = |machine: &str| {
            self.submission.iter().rev().take(400).any(|submission| {
                matches!(*submission.job.state.borrow(), JobState::Running { .. })
                    && submission.job.spec.info.machine.as_ref().map(MachineName::as_str) == Some(machine)
            })
        };
        let truth = self
            .world
            .orbctl
            .inventory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for machine in seen.value.machines().expect("a list") {
            let name = machine.name.as_str();
            if MACHINES.contains(&name) && !moves(name) {
                assert_eq!(
                    Some(machine.state.as_str()),
                    truth.get(name).map(String::as_str),
                    "{name}"
                );
            }
        }
    }

    fn keep(&mut self, call: Call) {
        let machine = machine_of(&call.args);
        self.invoked += 1;
        self.calls.retain(|call| !call.reply.is_closed());
        for other in &self.calls {
            let both_are_commands = other.args[0] == "run" && call.args[0] == "run";
            assert!(
                machine_of(&other.args) != machine || both_are_commands,
                "together: {:?} and {:?}",
                other.args,
                call.args
            );
        }
        if let Some(times) = self.promised.get_mut(&machine) {
            *times += 1;
            assert_eq!(*times, 1, "{machine} is made twice");
        }
        self.calls.push(call);
    }

    fn check(&mut self) {
        while let Ok(call) = self.world.calls.try_recv() {
            self.keep(call);
        }
        for submission in self.submission.iter_mut().rev().take(400) {
            let JobState::Ended { outcome, since, .. } = &*submission.job.state.borrow() else {
                continue;
            };
            if let Some(told) = &submission.told {
                assert_eq!(told, outcome, "an end stays");
                continue;
            }
            self.ended += 1;
            let is_queued = matches!(
                outcome,
                Outcome::Cancelled(Phase::Queued) | Outcome::Expired(Phase::Queued)
            );
            assert_eq!(is_queued, since.is_none(), "{outcome:?}");
            let is_of_commands = matches!(outcome, Outcome::Interrupted | Outcome::Expired(Phase::Running));
            assert!(
                !submission.is_change || !is_of_commands,
                "a change is never called that: {outcome:?}"
            );
            submission.told = Some(outcome.clone());
        }
    }

    /// Simulates a crash, and starts the next instance with the same journal.
    async fn crash(&mut self) {
        let World { task, folder, .. } = std::mem::replace(&mut self.world, World::with(limits(), true));
        task.abort();
        assert!(task.await.is_err());
        // Journalled as started but possibly never invoked: the next instance cannot know, and does not run it again.
        for submission in &self.submission {
            let info = &submission.job.spec.info;
            if let (Verb::Create, Some(name), JobState::Running { .. }) =
                (info.verb, &info.machine, &*submission.job.state.borrow())
            {
                self.released.insert(name.to_string());
            }
        }
        self.world = World::over(folder, limits(), true);
        self.submission.clear();
        self.calls.clear();
        self.is_paused = false;
        self.populate();
        // Accepted jobs start in order, and each start is written to disk first.
        for _ in 0..self.promised.len() {
            self.let_it_reach_the_disk().await;
        }
        self.check();
    }

    async fn let_it_reach_the_disk(&mut self) {
        let held = hold_time();
        let stable = Duration::from_millis(2);
        let pause = tokio::task::spawn_blocking(move || std::thread::park_timeout(stable));
        pause.await.expect("no panic");
        drop(held);
        self.world.idle().await;
    }

    /// Answers all invocations until no job is left.
    async fn finish(mut self) -> Self {
        self.world
            .dispatcher
            .queue(QueueVerb::Resume, Target::All)
            .await
            .expect("it lives");
        loop {
            self.world.idle().await;
            self.check();
            for call in std::mem::take(&mut self.calls) {
                call.exit(0);
            }
            let view = self.world.dispatcher.queue_view().await;
            if (view.waiting, view.running) == (0, 0) {
                return self;
            }
            self.let_it_reach_the_disk().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn limits() -> Limits {
    Limits {
        exec_per_machine: 2,
        changes_max: 3,
        queue_max: 60,
        queue_max_per_client: 20,
        ..Limits::default()
    }
}

fn machine_of(args: &[String]) -> String {
    let is_machine = |word: &&String| MACHINES.contains(&word.as_str()) || word.starts_with("new");
    args.iter()
        .find(is_machine)
        .expect("each is about a machine")
        .clone()
}

#[tokio::test(start_paused = true)]
async fn random_traffic_never_violates_an_invariant() {
    let seed = seed_or(0x7aff);
    let mut repeat = Repeat { seed, step: 0 };
    let mut traffic = Traffic::new(seed);
    for step in 0..STEPS {
        repeat.step = step;
        traffic.step().await;
        if step % LIFE == LIFE - 1 {
            traffic.crash().await;
        }
    }
    let traffic = traffic.finish().await;
    for (machine, times) in &traffic.promised {
        assert!(
            *times == 1 || traffic.released.contains(machine),
            "{machine} was made {times} times"
        );
    }
    println!(
        "{STEPS} steps, {} invocations, {} ends, {} reads, {} promises; ORBD_TEST_SEED={seed} repeats them",
        traffic.invoked,
        traffic.ended,
        traffic.reads,
        traffic.promised.len()
    );
    assert!(traffic.ended > STEPS / 10 && traffic.reads > STEPS / 100);
    let World {
        task,
        folder,
        shutdown,
        ..
    } = traffic.world;
    shutdown.cancel();
    let journal = task.await.expect("no panic");
    journal.close(Duration::from_secs(60)).await.expect("closed");
    let path = folder.path().join("journal");
    let (_, recovered) = Journal::open(&path, Moment::now().wall).expect("the journal");
    assert!(recovered.waiting.is_empty() && recovered.in_flight.is_empty());
}
