//! Races: each ordered pair of events that can happen to a job, for each kind of job, one after the other and at the same time.
//!
//! [`Expected`] is a small state machine that defines the allowed outcomes. All kinds of job go through a pair of events together,
//! each on a machine of its own and with a client of its own. Afterwards another client submits a command for each machine: it must
//! wait exactly as long as the job holds its lane. At the end, the journal may contain only jobs that were left running and jobs
//! that were accepted but not started.
#![expect(
    clippy::disallowed_methods,
    reason = "the test is the client that starts the process of a lease"
)]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::sys;

/// An event that can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The job is cancelled by request.
    Cancel,
    /// Its limit expires: the queue limit if it waits, the run limit if it runs.
    Deadline,
    /// If it waits, the job that it waits for ends; if it runs, it ends by itself.
    End,
    /// Its client disconnects.
    Gone,
    /// For a lease: its owner is killed. The loss of its connection is a separate event.
    OwnerKilled,
    /// The daemon is requested to shut down.
    Stop,
}

const EVENTS: [Event; 6] = [
    Event::Cancel,
    Event::Deadline,
    Event::End,
    Event::Gone,
    Event::OwnerKilled,
    Event::Stop,
];

/// The timing of the second event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spacing {
    /// All effects of the first event have happened before the second.
    Apart,
    /// No effect of the first event has happened.
    Together,
}

/// A kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent of each other, and all combinations are wanted"
)]
struct Kind {
    is_change: bool,
    is_lease: bool,
    is_detached: bool,
    waits: bool,
}

impl Kind {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for waits in [false, true] {
            for is_change in [false, true] {
                for (is_lease, is_detached) in [(false, false), (false, true), (true, false)] {
                    all.push(Self {
                        is_change,
                        is_lease,
                        is_detached,
                        waits,
                    });
                }
            }
        }
        all
    }

    /// Returns what orbd runs, unless it is a lease.
    fn action(self, machine: &str) -> Action {
        if self.is_change {
            restart(machine)
        } else {
            exec(machine)
        }
    }

    /// Returns what a client runs under a lease.
    fn leased(self) -> Verb {
        if self.is_change { Verb::Export } else { Verb::Push }
    }

    fn is_promised(self) -> bool {
        self.is_change && self.is_detached
    }
}

/// The outcome of a job, as far as the race determines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Succeeded,
    NeverStarted,
    Cancelled,
    ExpiredQueued,
    ExpiredRunning,
    Unknown,
    /// A command that was left running.
    Interrupted,
    /// Not ended: the next instance runs it.
    Promised,
}

fn word(outcome: &Outcome) -> Word {
    match outcome {
        Outcome::Succeeded(_) => Word::Succeeded,
        Outcome::Cancelled(Phase::Queued) => Word::NeverStarted,
        Outcome::Cancelled(Phase::Running) => Word::Cancelled,
        Outcome::Expired(Phase::Queued) => Word::ExpiredQueued,
        Outcome::Expired(Phase::Running) => Word::ExpiredRunning,
        Outcome::Unknown(_) => Word::Unknown,
        Outcome::Interrupted => Word::Interrupted,
        Outcome::Failed(failure) => panic!("nothing fails here: {failure}"),
    }
}

/// The state of a job in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    Running,
    Over(Word),
}

#[derive(Debug, Clone, Copy)]
struct Expected {
    kind: Kind,
    place: Place,
    /// After the stop no job starts, and ten seconds later the jobs that still run are left running.
    is_stopping: bool,
    /// The job is a lease, and its owner was killed.
    is_orphan: bool,
}

impl Expected {
    fn of(kind: Kind, events: [Event; 2]) -> Word {
        let place = if kind.waits {
            Place::Waiting
        } else {
            Place::Running
        };
        let mut expected = Self {
            kind,
            place,
            is_stopping: false,
            is_orphan: false,
        };
        for event in events {
            expected.place = expected.after(event);
            expected.is_stopping |= event == Event::Stop;
            expected.is_orphan |= event == Event::OwnerKilled && kind.is_lease;
        }
        // If the job has not ended yet, the job that it waits for ends, and then it ends by itself.
        while let Place::Waiting | Place::Running = expected.place {
            if expected.place == Place::Waiting && expected.is_stopping {
                return Word::Promised;
            }
            expected.place = expected.after(Event::End);
        }
        match expected.place {
            Place::Over(word) => word,
            Place::Waiting | Place::Running => unreachable!("it is over"),
        }
    }

    #[expect(
        clippy::match_same_arms,
        reason = "a line for each rule, in the order of the contract"
    )]
    fn after(self, event: Event) -> Place {
        let Kind {
            is_change,
            is_lease,
            is_detached,
            waits,
        } = self.kind;
        let cut = |command: Word| Place::Over(if is_change { Word::Unknown } else { command });
        match (self.place, event) {
            (Place::Over(_), _) => self.place,
            (Place::Waiting, Event::Cancel) => Place::Over(Word::NeverStarted),
            // The daemon has exited long before the deadline.
            (Place::Waiting, Event::Deadline) if self.is_stopping => Place::Waiting,
            (Place::Waiting, Event::Deadline) => Place::Over(Word::ExpiredQueued),
            (Place::Waiting, Event::End) if self.is_stopping => Place::Waiting,
            // The lease ends as soon as it starts.
            (Place::Waiting, Event::End) if self.is_orphan => cut(Word::Interrupted),
            (Place::Waiting, Event::End) => Place::Running,
            (Place::Waiting, Event::OwnerKilled) => Place::Waiting,
            (Place::Waiting, Event::Gone) if is_detached => Place::Waiting,
            (Place::Waiting, Event::Stop) if self.kind.is_promised() => Place::Waiting,
            (Place::Waiting, Event::Gone | Event::Stop) => Place::Over(Word::NeverStarted),
            (Place::Running, Event::Cancel) => cut(Word::Cancelled),
            (Place::Running, Event::Deadline) if self.is_stopping => cut(Word::Interrupted),
            // It started in time, and it has no run limit.
            (Place::Running, Event::Deadline) if waits => Place::Running,
            (Place::Running, Event::Deadline) => cut(Word::ExpiredRunning),
            (Place::Running, Event::End) => Place::Over(Word::Succeeded),
            (Place::Running, Event::OwnerKilled) if is_lease => cut(Word::Interrupted),
            (Place::Running, Event::OwnerKilled) => Place::Running,
            // A change is left to finish, and a lease is left to its processes.
            (Place::Running, Event::Gone | Event::Stop) if is_change || is_lease => Place::Running,
            (Place::Running, Event::Gone) if is_detached => Place::Running,
            (Place::Running, Event::Gone | Event::Stop) => Place::Over(Word::Cancelled),
        }
    }
}

/// A job on its machine, with the handles that the test needs.
struct Runner {
    kind: Kind,
    number: u64,
    machine: String,
    holder: Option<Job>,
    job: Job,
    /// The child process of a lease, until the test ends it.
    process: Option<Child>,
    /// The owner of a lease.
    owner: Option<Child>,
    stranger: Option<Job>,
}

/// Queue limit or run limit of each job, if a deadline is among the events.
const LIMIT: Duration = Duration::from_secs(60);

struct Race {
    world: World,
    runners: Vec<Runner>,
    /// Invocations that wait for the test's answer, by machine.
    calls: BTreeMap<String, Vec<Call>>,
    /// Number of changes invoked on each machine.
    changes: BTreeMap<String, usize>,
    deadline: tokio::time::Instant,
}

impl Race {
    /// Submits a job of each kind. Some run; the others wait for a change of another client.
    async fn new(has_deadline: bool) -> Self {
        let limits = Limits {
            changes_max: 64,
            ..Limits::default()
        };
        let mut race = Self {
            world: World::with(limits, true),
            runners: Vec::new(),
            calls: BTreeMap::new(),
            changes: BTreeMap::new(),
            deadline: tokio::time::Instant::now() + LIMIT,
        };
        // Accepted detached changes are written to disk, which takes real time.
        let held = hold_time();
        for (number, kind) in (1..).zip(Kind::all()) {
            let machine = format!("m{number}");
            race.world.set(&machine, "running");
            let holder = if kind.waits {
                let of_another = Submission {
                    client: client(100 + number),
                    ..submission(restart(&machine))
                };
                let holder = race.world.submit(of_another).await;
                race.next_call().await;
                Some(holder)
            } else {
                None
            };
            let process = kind.is_lease.then(waiting_process);
            let owner = kind.is_lease.then(waiting_process);
            let executor = match (&process, &owner) {
                (Some(child), Some(owner)) => lease_of(kind.leased(), &machine, child.id(), owner.id()),
                _ => Executor::Daemon(kind.action(&machine)),
            };
            let limit = has_deadline.then_some(LIMIT);
            let job = race
                .world
                .submit(Submission {
                    client: client(number),
                    executor,
                    detached: kind.is_detached,
                    queue_timeout: limit.filter(|_| kind.waits),
                    run_timeout: limit.filter(|_| !kind.waits),
                    ..submission(kind.action(&machine))
                })
                .await;
            if !kind.waits && !kind.is_lease {
                race.next_call().await;
            }
            race.runners.push(Runner {
                kind,
                number,
                machine,
                holder,
                job,
                process,
                owner,
                stranger: None,
            });
        }
        drop(held);
        race
    }

    /// Takes the next invocation, of any command.
    async fn next_call(&mut self) {
        let call = self.world.calls.recv().await.expect("the dispatcher lives");
        self.keep(call);
    }

    fn keep(&mut self, call: Call) {
        let machine = call
            .args
            .iter()
            .find(|word| word.starts_with('m') && word[1..].parse::<u64>().is_ok());
        let machine = machine.expect("each is about a machine").clone();
        if call.args[0] == "restart" {
            *self.changes.entry(machine.clone()).or_default() += 1;
        }
        self.calls.entry(machine).or_default().push(call);
    }

    /// Waits until no task can proceed without the disk, a process or a deadline.
    async fn idle(&mut self) {
        self.world.idle().await;
        while let Ok(call) = self.world.calls.try_recv() {
            self.keep(call);
        }
    }

    /// Waits until each accepted detached change that may start has been invoked or has ended. Its start is first written to disk,
    /// in real time.
    async fn let_promises_start(&mut self) {
        let held = hold_time();
        for at in 0..self.runners.len() {
            let Runner {
                kind, machine, job, ..
            } = &self.runners[at];
            if !kind.is_promised() || !kind.waits || !matches!(*job.state.borrow(), JobState::Running { .. })
            {
                continue;
            }
            let (machine, mut state) = (machine.clone(), job.state.clone());
            // The first change is the one that it waited for.
            while self.changes.get(&machine) != Some(&2) && !state.borrow_and_update().is_ended() {
                tokio::select! {
                    call = self.world.calls.recv() => self.keep(call.expect("the dispatcher lives")),
                    _ = state.changed() => {}
                }
            }
        }
        drop(held);
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::Deadline => tokio::time::sleep_until(self.deadline).await,
            Event::Stop => self.world.shutdown.cancel(),
            Event::Cancel => {
                for runner in &self.runners {
                    self.world.dispatcher.cancel(runner.job.spec.id).await;
                }
            }
            Event::Gone => {
                for runner in &self.runners {
                    self.world.dispatcher.on_disconnect(runner.number).await;
                }
            }
            Event::OwnerKilled => self.kill_owners(),
            Event::End => self.end_all().await,
        }
    }

    /// Kills the owners of leases.
    fn kill_owners(&mut self) {
        for runner in &mut self.runners {
            if let Some(mut owner) = runner.owner.take() {
                owner.kill().expect("ours");
                owner.wait().expect("ours");
            }
        }
    }

    /// Waits, in real time, for a running child process to end after its owner was killed.
    async fn let_orphans_end(&mut self) {
        let held = hold_time();
        for runner in self.runners.iter().filter(|runner| runner.kind.is_lease) {
            let mut state = runner.job.state.clone();
            if runner.owner.is_none() && matches!(*state.borrow(), JobState::Running { .. }) {
                // The dispatcher keeps running; interrupted changes are reconciled in virtual time.
                let child = runner.process.as_ref().map(Child::id);
                while child.is_some_and(is_running) && !state.borrow_and_update().is_ended() {
                    tokio::task::yield_now().await;
                }
            }
        }
        drop(held);
    }

    /// Ends the jobs that waiting jobs wait for, and the running jobs.
    async fn end_all(&mut self) {
        for at in 0..self.runners.len() {
            let runner = &mut self.runners[at];
            for call in self.calls.remove(&runner.machine).unwrap_or_default() {
                call.exit(0);
            }
            let is_granted = runner.holder.take().is_none();
            if is_granted && let Some(mut process) = runner.process.take() {
                drop(process.stdin.take());
                let status = process.wait().expect("ours");
                // The exit code that a shell reports for a process killed by SIGTERM.
                let exit_code = status.code().unwrap_or(143);
                if runner.owner.is_none() {
                    // No owner is left to release the lease.
                    continue;
                }
                let id = runner.job.spec.id;
                self.world
                    .dispatcher
                    .release(id, Some(Ending::Exited(exit_code)))
                    .await;
            }
        }
    }
}

/// Returns whether a process runs; a zombie does not count.
fn is_running(pid: u32) -> bool {
    sys::process_identity(pid).is_some_and(|started| sys::is_alive(&ChildIdentity { pid, started }))
}

/// Starts a process that waits for the end of its input, like one that waits for its lease.
fn waiting_process() -> Child {
    Command::new("sh")
        .args(["-c", "read go; exit 0"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell")
}

/// Runs one pair of events and checks the outcomes.
async fn race(first: Event, second: Event, spacing: Spacing) {
    let has_deadline = [first, second].contains(&Event::Deadline);
    let stops = [first, second].contains(&Event::Stop);
    let mut race = Race::new(has_deadline).await;
    if spacing == Spacing::Together && has_deadline {
        tokio::time::sleep_until(race.deadline).await;
    }
    race.happens(first).await;
    if spacing == Spacing::Apart {
        race.idle().await;
        race.let_orphans_end().await;
        race.let_promises_start().await;
    }
    race.happens(second).await;
    race.idle().await;
    race.let_orphans_end().await;
    race.idle().await;
    race.let_promises_start().await;

    // Another client submits a command for each machine.
    for at in 0..race.runners.len() {
        let of_a_stranger = Submission {
            client: client(1000),
            ..submission(exec(&race.runners[at].machine))
        };
        match race.world.dispatcher.submit(of_a_stranger).await {
            Ok(stranger) => race.runners[at].stranger = Some(stranger),
            Err(rejection) => assert!(stops && matches!(rejection, Rejection::Stopping), "{rejection}"),
        }
    }
    race.idle().await;
    for Runner {
        kind,
        job,
        holder,
        stranger,
        ..
    } in &race.runners
    {
        let satisfied = |job: &Job| matches!(*job.state.borrow(), JobState::Running { .. });
        let is_held = holder.as_ref().is_some_and(satisfied)
            // Commands share their machine, so only a change blocks the other client.
            || (!job.state.borrow().is_ended() && kind.is_change);
        if let Some(stranger) = stranger {
            assert_eq!(
                is_waiting(stranger),
                is_held,
                "{first:?}, {second:?}, {spacing:?}: {kind:?} {:?}",
                *job.state.borrow()
            );
        }
    }
    let told: Vec<Option<Outcome>> = race.runners.iter().map(|runner| ended(&runner.job)).collect();

    // The remaining jobs continue: first those that are waited for, then those that waited.
    for _ in 0..3 {
        race.end_all().await;
        race.idle().await;
        if !stops {
            race.let_promises_start().await;
        }
    }
    for (at, told) in told.into_iter().enumerate() {
        let Runner { kind, job, .. } = &race.runners[at];
        let (kind, job) = (*kind, job.clone());
        let what = || format!("{first:?}, {second:?}, {spacing:?}: {kind:?}");
        let in_order = Expected::of(kind, [first, second]);
        let allowed = match spacing {
            Spacing::Apart => vec![in_order],
            Spacing::Together => vec![in_order, Expected::of(kind, [second, first])],
        };
        let came = if allowed.contains(&Word::Promised) {
            ended(&job).map_or(Word::Promised, |outcome| word(&outcome))
        } else {
            word(&outcome(&job).await)
        };
        // A lease's process that is being stopped may still report success, and that report counts.
        let has_last_word = kind.is_lease && [first, second].contains(&Event::End);
        // A change that is stopped after it was scheduled but before its invocation has not begun.
        let has_not_begun = kind.waits && spacing == Spacing::Together && allowed.contains(&Word::Unknown);
        assert!(
            allowed.contains(&came)
                || (has_last_word && came == Word::Succeeded)
                || (has_not_begun && came == Word::Cancelled),
            "{}: {came:?}, not {allowed:?}",
            what()
        );
        if let Some(told) = told {
            assert_eq!(ended(&job), Some(told), "{}: it ended twice", what());
        }
        let Some(stranger) = race.runners[at].stranger.clone() else {
            continue;
        };
        while ended(&stranger).is_none() {
            race.idle().await;
            race.end_all().await;
        }
        let done = Outcome::Succeeded(Success::Exec { exit_code: 0 });
        assert_eq!(
            outcome(&stranger).await,
            done,
            "{}: the machine is free again",
            what()
        );
    }
    check_journal(race, [first, second], spacing).await;
}

/// Shuts down, and compares the journal with the jobs that are still to be run.
async fn check_journal(race: Race, events: [Event; 2], spacing: Spacing) {
    let Race { world, runners, .. } = race;
    world.shutdown.cancel();
    let journal = world.task.await.expect("no panic");
    journal.close(LIMIT).await.expect("closed");
    let path = world.folder.path().join("journal");
    let (_, recovered) = Journal::open(&path, Moment::now().wall).expect("the journal");
    let id = |runner: &Runner| runner.job.spec.id;
    let promised: Vec<JobId> = runners
        .iter()
        .filter(|runner| is_waiting(&runner.job))
        .map(id)
        .collect();
    let waiting: Vec<JobId> = recovered.waiting.iter().map(|job| job.job).collect();
    assert_eq!(waiting, promised, "{events:?}");
    // Only jobs that run for longer than the shutdown waits are left running.
    let is_left = |runner: &&Runner| {
        events == [Event::Stop, Event::Deadline]
            && matches!(
                Expected::of(runner.kind, events),
                Word::Unknown | Word::Interrupted
            )
    };
    let left: Vec<JobId> = runners.iter().filter(is_left).map(id).collect();
    // The holders belong to other clients.
    let ours = |job: &JobId| runners.iter().any(|runner| id(runner) == *job);
    let in_flight = recovered.in_flight.iter().map(|found| found.starting.job);
    let in_flight: Vec<JobId> = in_flight.filter(ours).collect();
    match spacing {
        Spacing::Apart => assert_eq!(in_flight, left, "{events:?}"),
        Spacing::Together => assert!(in_flight.iter().all(|job| left.contains(job)), "{events:?}"),
    }
}

fn ended(job: &Job) -> Option<Outcome> {
    match &*job.state.borrow() {
        JobState::Ended { outcome, .. } => Some(outcome.clone()),
        JobState::Waiting | JobState::Running { .. } => None,
    }
}

/// Runs all pairs that begin with this event.
async fn races_that_begin_with(first: Event) {
    for second in EVENTS.into_iter().filter(|second| *second != first) {
        for spacing in [Spacing::Apart, Spacing::Together] {
            race(first, second, spacing).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_a_cancel() {
    races_that_begin_with(Event::Cancel).await;
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_a_deadline() {
    races_that_begin_with(Event::Deadline).await;
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_an_end() {
    races_that_begin_with(Event::End).await;
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_a_disconnect() {
    races_that_begin_with(Event::Gone).await;
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_a_killed_owner() {
    races_that_begin_with(Event::OwnerKilled).await;
}

#[tokio::test(start_paused = true)]
async fn races_that_begin_with_a_shutdown() {
    races_that_begin_with(Event::Stop).await;
}
