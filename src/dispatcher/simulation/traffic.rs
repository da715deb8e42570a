//! Random traffic: everything at once, over several lives, and what must hold whatever comes.
//!
//! After each step what can happen has happened, and then
//!
//! - no two invocations are on a machine together, unless both are commands;
//! - a job that was cancelled or expired while it waited is never invoked, and an end, once told, stays;
//! - whoever reads a machine of which no change runs reads what is true.
//!
//! At the end of a life by a crash, what was promised runs once in a later one; at the very end everything has ended and the
//! journal remembers nothing. `ORBD_TEST_SEED=7 cargo test --lib traffic` repeats a run, but for the moments at which promises reach
//! the disk: that takes real time.

use std::collections::{BTreeSet, HashMap};

use super::*;
use crate::scheduler::simulation::{Random, Repeat, seed_or};

const STEPS: u64 = 24_000;
/// Steps of one life.
const LIFE: u64 = 2_000;
const MACHINES: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: usize = 5;

/// A job as whoever asked for it sees it.
struct Asked {
    job: Job,
    is_change: bool,
    told: Option<Outcome>,
}

struct Traffic {
    world: World,
    random: Random,
    asked: Vec<Asked>,
    calls: Vec<Call>,
    /// Promised creates, by the machine that each makes, with how often it was invoked.
    promised: HashMap<String, usize>,
    /// Those that were cancelled, or that ran at a crash.
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
            asked: Vec::new(),
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
            10..12 => (Operation::Start(name(machine)), true),
            12..15 => (Operation::Stop(name(machine), Force::No), true),
            _ => (Operation::Stop(name(machine), Force::Yes), true),
        };
        let limit = |random: &mut Random| {
            let ms = 1 + random.below(20_000);
            random.one_in(3).then(|| Duration::from_millis(ms))
        };
        let number = self.random.below(CLIENTS as u64);
        let asked = Submission {
            client: client(number),
            // A detached change is promised, which reaches the disk; see below.
            detached: !is_change && self.random.one_in(4),
            queue_timeout: limit(&mut self.random),
            run_timeout: limit(&mut self.random),
            ..submission(operation)
        };
        if let Ok(job) = self.world.dispatcher.submit(asked).await {
            self.asked.push(Asked {
                job,
                is_change,
                told: None,
            });
        }
    }

    /// A promise, which outlives this life, of a machine that nothing else is about.
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
        // Its start may be on its way to the disk: that, too, takes real time.
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
        self.asked.push(Asked {
            job,
            is_change: true,
            told: None,
        });
    }

    /// Ends an invocation, well or badly; what it did is true before anybody hears of it.
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
                // Nobody looks at it again, and the list is to stay short.
                self.world.remove(&machine);
            }
        }
        call.end(ending, "", "");
    }

    async fn cancel(&mut self) {
        let recent = self.asked.len().min(40);
        if recent > 0 {
            let chosen = self.asked.len() - 1 - self.random.index(recent);
            let asked = &self.asked[chosen].job;
            if let Operation::Create(new) = &asked.spec.asked.operation {
                self.released.insert(new.name.to_string());
            }
            self.world.dispatcher.cancel(asked.spec.id).await;
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

    /// Reads the list, mostly from memory, and compares what stands still with what is true.
    async fn read(&mut self) {
        let max_age = self.random.one_in(3).then_some(Duration::ZERO);
        let read = self.world.dispatcher.read(Query::List, max_age, client(9));
        // A paused queue holds reads too, and to wait for them would be to wait for ever.
        let Ok(Ok(seen)) = tokio::time::timeout(Duration::from_millis(1), read).await else {
            return;
        };
        self.reads += 1;
        let moves = |machine: &str| {
            self.asked.iter().rev().take(400).any(|asked| {
                matches!(*asked.job.state.borrow(), JobState::Running { .. })
                    && asked.job.spec.asked.operation.machine().map(MachineName::as_str) == Some(machine)
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
        for asked in self.asked.iter_mut().rev().take(400) {
            let JobState::Ended { outcome, since, .. } = &*asked.job.state.borrow() else {
                continue;
            };
            if let Some(told) = &asked.told {
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
                !asked.is_change || !is_of_commands,
                "a change is never called that: {outcome:?}"
            );
            asked.told = Some(outcome.clone());
        }
    }

    /// Crashes, and begins the next life over the same journal.
    async fn crash(&mut self) {
        let World { task, folder, .. } = std::mem::replace(&mut self.world, World::with(limits(), true));
        task.abort();
        assert!(task.await.is_err());
        // Noted as started and never invoked: the next life cannot know, and does not try.
        for asked in &self.asked {
            if let (Operation::Create(new), JobState::Running { .. }) =
                (&asked.job.spec.asked.operation, &*asked.job.state.borrow())
            {
                self.released.insert(new.name.to_string());
            }
        }
        self.world = World::over(folder, limits(), true);
        self.asked.clear();
        self.calls.clear();
        self.is_paused = false;
        self.populate();
        // What is promised starts in its turn, each start by way of the disk.
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

    /// Answers everything until nothing is left.
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
async fn whatever_comes_in_whatever_order_what_must_hold_holds() {
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
