//! Deaths of the daemon under load. The suite has a few dozen, `make soak` a thousand.
//!
//! ```text
//! clients: sockets, orbd-ctl, leases ──calls──► orbd ──► orbctl-sim ──► ledger
//!      │ their answers                           ▲                        │
//!      ▼                                         │ kills, restarts        ▼
//!   verdict ◄──────────────────────────────── operator: reads the ledger, asks for jobs
//! ```
//!
//! The operator picks the moment of each death by an event: an invocation begins, or a detached change is acknowledged
//! (a promise). It starts the daemon again and asks at once for each promise that is not known to be kept. In the end,
//! no runs may have overlapped, no promised change may be lost or have run twice, no job id may have been used twice,
//! and no answer may have been older than it claimed.
#![expect(
    clippy::disallowed_methods,
    reason = "this test reads the clock, starts clients, and takes the number of cycles from the environment"
)]

mod clients;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orbd_proto::methods::{JobGet, JobList, MachineStop, MetricsHistory, QueueDrain};
use orbd_proto::types::{Job, JobStateWord};
use serde_json::json;

use clients::{Load, OverSocket, Promise, SHARED, type_commands};
use verdict::Index;

use crate::support::{Caller, Ledger, Random, World, eventually};

/// Number of clients over the socket.
const CLIENTS: u64 = 4;
/// Promises that are asked for at most after each restart.
const ASKED_MAX: usize = 32;

/// When the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// After some more work of any kind.
    AtWork,
    /// When a change has just begun.
    ChangeBegun,
    /// When a promise was just given.
    PromiseGiven,
    /// Before the daemon answers its first client.
    Starting,
    /// During an orderly stop.
    Stopping,
    /// The daemon is not killed but stops in order.
    InOrder,
}

impl Phase {
    fn any(random: &mut Random) -> Self {
        match random.below(16) {
            0..6 => Self::AtWork,
            6..9 => Self::ChangeBegun,
            9..12 => Self::PromiseGiven,
            12 => Self::Starting,
            13 | 14 => Self::Stopping,
            _ => Self::InOrder,
        }
    }
}

/// Returns the number of cycles: `ORBD_SOAK_CYCLES`, or `usual` without it.
pub(crate) fn cycles_or(usual: usize) -> usize {
    std::env::var("ORBD_SOAK_CYCLES").map_or(usual, |cycles| cycles.parse().expect("a number of cycles"))
}

/// Results of a run.
pub(crate) struct Figures {
    seed: u64,
    cycles: usize,
    deaths: BTreeMap<Phase, usize>,
    answers: BTreeMap<String, usize>,
    ids: usize,
    invocations: usize,
    commands: BTreeMap<String, usize>,
    killed: usize,
    overlaps: Vec<String>,
    kept: verdict::Kept,
    promises: usize,
    freshness: verdict::Freshness,
    own_reads: usize,
    records: usize,
    restarts: Vec<Duration>,
    breaches: Vec<String>,
    took: Duration,
}

/// Kills the daemon `cycles` times under load, and checks the results.
pub(crate) fn run(cycles: usize, seed: u64) -> Figures {
    let began = Instant::now();
    let world = World::new()
        .set("grace", "500ms")
        .variable("ORBD_LOG_LEVEL", "info")
        .latency("run=3,restart=8,stop=6,start=6,create=12,clone=10,delete=6,export=8,list=2,info=2")
        .machines(&SHARED)
        .started();
    let load = Arc::new(Load::new(&world));
    let clients: Vec<_> = (0..=CLIENTS)
        .map(|number| {
            let load = load.clone();
            std::thread::spawn(move || match number {
                CLIENTS => type_commands(&load, number, seed),
                _ => OverSocket::new(&load, number, seed).go_on(),
            })
        })
        .collect();
    let mut operator = Operator::new(world, load.clone(), seed);
    for _ in 0..cycles {
        operator.cycle();
    }
    load.end();
    for client in clients {
        client.join().expect("a client goes on whatever happens");
    }
    operator.finalize(cycles, began)
}

/// Kills and restarts the daemon, and asks for promised changes.
struct Operator {
    world: World,
    load: Arc<Load>,
    random: Random,
    seed: u64,
    ledger: Ledger,
    index: Index,
    deaths: BTreeMap<Phase, usize>,
    restarts: Vec<Duration>,
    /// Promises taken over from the clients, and those of them that are not known to have ended.
    promises: Vec<Promise>,
    open: Vec<Promise>,
    /// Jobs that were already running when the last instance started, with their machines.
    adopted: BTreeMap<u64, Option<String>>,
    /// Machines that were stopped by force.
    forced: BTreeSet<String>,
    breaches: Vec<String>,
}

impl Operator {
    fn new(world: World, load: Arc<Load>, seed: u64) -> Self {
        Self {
            ledger: world.ledger(),
            world,
            load,
            random: Random::new(seed),
            seed,
            index: Index::default(),
            deaths: BTreeMap::new(),
            restarts: Vec::new(),
            promises: Vec::new(),
            open: Vec::new(),
            adopted: BTreeMap::new(),
            forced: BTreeSet::new(),
            breaches: Vec::new(),
        }
    }

    /// Ends one instance and starts the next.
    fn cycle(&mut self) {
        let phase = Phase::any(&mut self.random);
        *self.deaths.entry(phase).or_default() += 1;
        // A random delay, so that the kill may happen at any point.
        let moment = Duration::from_micros(self.random.below(12_000));
        self.until_some_work_is_done();
        match phase {
            Phase::AtWork => self.world.kill(),
            Phase::ChangeBegun => {
                self.until_a_change_begins();
                self.world.kill();
            }
            Phase::PromiseGiven => {
                let before = self.load.promised();
                eventually("something is promised", || {
                    (self.load.promised() > before).then_some(())
                });
                self.world.kill();
            }
            Phase::Starting => {
                self.world.kill();
                self.world.launch();
                std::thread::sleep(moment);
                self.world.kill();
            }
            Phase::Stopping => {
                self.world.terminate();
                std::thread::sleep(moment);
                self.world.kill();
            }
            Phase::InOrder => {
                self.world.terminate();
                let status = self.world.ended();
                if !status.success() {
                    self.breaches.push(format!("an orderly stop ended with {status}"));
                }
            }
        }
        let began = Instant::now();
        self.world.start();
        self.restarts.push(began.elapsed());
        let mut caller = self.world.client();
        self.ask_for_promises(&mut caller);
        self.free_what_stays(&mut caller);
    }

    fn until_some_work_is_done(&mut self) {
        self.ledger.read_on();
        let enough = self.ledger.lines() + 4 + usize::try_from(self.random.below(80)).expect("small");
        let ledger = &mut self.ledger;
        eventually("work is done", || {
            ledger.read_on();
            (ledger.lines() >= enough).then_some(())
        });
    }

    fn until_a_change_begins(&mut self) {
        let before = self.ledger.invocations.len();
        let ledger = &mut self.ledger;
        eventually("a change begins", || {
            ledger.read_on();
            let mut new = ledger.invocations[before..].iter();
            new.any(|one| one.is_change() && one.end.is_none()).then_some(())
        });
    }

    fn take_over_promises(&mut self) {
        let new = {
            let told = self.load.told.lock().expect("no panic");
            told.promises[self.promises.len()..].to_vec()
        };
        self.open.extend(new.iter().cloned());
        self.promises.extend(new);
    }

    /// Asks for the jobs of promises; the answers must agree with the ledger.
    fn ask_for_promises(&mut self, caller: &mut Caller) {
        self.take_over_promises();
        // The oldest promises have survived the most instances.
        let rest = self.open.split_off(self.open.len().min(ASKED_MAX));
        for promise in std::mem::replace(&mut self.open, rest) {
            self.look_at_the_ledger();
            let (before, _) = self.index.runs(&self.ledger, &promise);
            let told = caller.call::<JobGet>(json!({"job_id": promise.id}));
            let Ok(job) = told.map(|answer| answer.job) else {
                // The job has ended and is no longer kept: the verdict counts how often it ran.
                continue;
            };
            if job.operation != promise.verb || job.machine.as_deref() != Some(&promise.machine) {
                self.breaches.push(format!(
                    "job {} was {} {} and is reported as {job:?}",
                    promise.id, promise.verb, promise.machine
                ));
            }
            match job.state {
                // Two clients may have been promised the same delete; any other change is promised once.
                JobStateWord::Waiting if before > 0 && promise.verb != "delete" => {
                    let id = promise.id;
                    self.breaches
                        .push(format!("job {id} ran, but waits to run again"));
                }
                JobStateWord::Waiting | JobStateWord::Running => self.open.push(promise),
                JobStateWord::Ended => self.check_end(&promise, &job),
            }
        }
    }

    /// Checks the reported end of a job against the ledger.
    fn check_end(&mut self, promise: &Promise, job: &Job) {
        self.look_at_the_ledger();
        let (times, done) = self.index.runs(&self.ledger, promise);
        let outcome = job.outcome.as_ref().map_or("", |outcome| outcome.kind.as_str());
        let is_true = match outcome {
            "succeeded" => done > 0,
            "failed" => times > 0,
            "unknown" => true,
            "cancelled" => promise.is_among(&self.forced),
            _ => false,
        };
        if !is_true {
            self.breaches.push(format!(
                "job {} ({} {}) is reported as {outcome}, but ran {times} times, {done} of them with success",
                promise.id, promise.verb, promise.machine
            ));
        }
    }

    fn look_at_the_ledger(&mut self) {
        self.ledger.read_on();
        self.index.read_on(&self.ledger);
    }

    /// Stops by force the machines of jobs that two instances found running. A change that was cut short before it did
    /// anything is reconciled for ten seconds, and no instance here lives that long.
    fn free_what_stays(&mut self, caller: &mut Caller) {
        let params = json!({"state": JobStateWord::Running, "limit": 1000});
        let running = caller.ok::<JobList>(params).jobs;
        let before = std::mem::take(&mut self.adopted);
        for job in running {
            if let (true, Some(machine)) = (before.contains_key(&job.job_id), &job.machine) {
                self.forced.insert(machine.clone());
                caller.ok::<MachineStop>(json!({"machine": machine, "force": true, "detach": true}));
            }
            self.adopted.insert(job.job_id, job.machine);
        }
    }

    fn finalize(mut self, cycles: usize, began: Instant) -> Figures {
        let mut caller = self.world.client();
        let status = caller.ok::<QueueDrain>(json!({}));
        if (status.waiting, status.running) != (0, 0) {
            self.breaches
                .push(format!("jobs are left after the drain: {status:?}"));
        }
        self.ask_for_promises(&mut caller);
        while !self.open.is_empty() && self.breaches.is_empty() {
            self.ask_for_promises(&mut caller);
        }
        self.look_at_the_ledger();
        let mut told = std::mem::take(&mut *self.load.told.lock().expect("no panic"));
        let records = compare_metrics(&mut caller, &told.outcomes, &mut self.breaches);
        let different: BTreeSet<_> = told.ids.iter().collect();
        if different.len() != told.ids.len() {
            self.breaches.push("a job id was used twice".to_owned());
        }
        self.breaches.append(&mut told.breaches);
        let mut commands: BTreeMap<String, usize> = BTreeMap::new();
        for invocation in &self.ledger.invocations {
            *commands.entry(invocation.command.clone()).or_default() += 1;
        }
        let overlaps = self.ledger.overlaps();
        Figures {
            seed: self.seed,
            cycles,
            answers: told.answers,
            ids: told.ids.len(),
            invocations: self.ledger.invocations.len(),
            commands,
            killed: self
                .ledger
                .invocations
                .iter()
                .filter(|one| one.end.is_none())
                .count(),
            overlaps: overlaps.iter().map(|pair| format!("{pair:?}")).collect(),
            kept: verdict::promises(
                &self.ledger,
                &self.index,
                &self.promises,
                &told.in_doubt,
                &self.forced,
                &self.world.log(),
            ),
            promises: self.promises.len(),
            freshness: verdict::freshness(&self.ledger, &SHARED, &told.reads),
            own_reads: told.own_reads,
            records,
            deaths: self.deaths,
            restarts: self.restarts,
            breaches: self.breaches,
            took: began.elapsed(),
        }
    }
}

/// Compares records with the outcomes that clients received; returns how many could be compared. A death may lose the
/// last five seconds of records, so missing records are no violation.
fn compare_metrics(caller: &mut Caller, told: &BTreeMap<u64, String>, breaches: &mut Vec<String>) -> usize {
    let mut seen = BTreeSet::new();
    let mut compared = 0;
    let mut cursor = None;
    loop {
        let answer = caller.ok::<MetricsHistory>(json!({"limit": 1000, "cursor": cursor}));
        for record in answer.records {
            if !seen.insert(record.job_id) {
                breaches.push(format!("job {} is recorded twice", record.job_id));
            }
            if let Some(outcome) = told.get(&record.job_id) {
                compared += 1;
                if *outcome != record.outcome {
                    breaches.push(format!(
                        "job {} was reported as {outcome} and recorded as {}",
                        record.job_id, record.outcome
                    ));
                }
            }
        }
        cursor = answer.cursor;
        if cursor.is_none() {
            return compared;
        }
    }
}

impl Figures {
    /// Fails if there was a violation.
    #[track_caller]
    pub(crate) fn assert_nothing_broke(&self) {
        let found = [
            &self.breaches,
            &self.overlaps,
            &self.kept.lost,
            &self.kept.twice,
            &self.freshness.breaches,
        ];
        let first: Vec<_> = found.iter().flat_map(|found| found.iter().take(5)).collect();
        assert!(first.is_empty(), "{self}\n{first:#?}");
        assert!(self.promises >= self.cycles, "too few promises to judge\n{self}");
        assert!(self.own_reads > 0 && self.freshness.checked > 0, "{self}");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut restarts = self.restarts.clone();
        restarts.sort_unstable();
        let at = |percent: usize| restarts[(restarts.len() - 1) * percent / 100];
        writeln!(
            f,
            "seed {}, {} cycles in {:.1?}",
            self.seed, self.cycles, self.took
        )?;
        writeln!(f, "deaths            {:?}", self.deaths)?;
        writeln!(f, "answers           {:?}", self.answers)?;
        writeln!(f, "job ids           {}, each used once", self.ids)?;
        writeln!(
            f,
            "invocations       {} {:?}, {} of them killed",
            self.invocations, self.commands, self.killed
        )?;
        writeln!(f, "overlaps          {}", self.overlaps.len())?;
        writeln!(
            f,
            "promises          {}: {} ran once, {} reported as cut before their start, {} cancelled by force, {} lost, {} ran twice",
            self.promises,
            self.kept.once,
            self.kept.cut_before_the_start,
            self.kept.forced_away,
            self.kept.lost.len(),
            self.kept.twice.len()
        )?;
        writeln!(
            f,
            "freshness         {} states checked, {} during a change, {} older than claimed; {} reads after a client's own change",
            self.freshness.checked,
            self.freshness.in_motion,
            self.freshness.breaches.len(),
            self.own_reads
        )?;
        writeln!(
            f,
            "metrics           {} records compared with the clients' answers",
            self.records
        )?;
        write!(
            f,
            "restart to answer p50 {:.1?}, p99 {:.1?}, slowest {:.1?}; other violations {}",
            at(50),
            at(99),
            at(100),
            self.breaches.len()
        )
    }
}
