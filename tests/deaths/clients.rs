//! The load: clients of every kind, which keep calling whatever happens to the daemon, and record the answers.
//!
//! Each client has a machine of its own that no other client changes, so it can check at once what it reads after its
//! own change. All clients change the shared machines; answers about those are checked later against the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use orbd_client::Client;
use orbd_proto::methods::{
    LeaseAcquire, LeaseRelease, MachineClone, MachineCreate, MachineDelete, MachineInfo, MachineList,
    MachineRestart, MachineRun, MachineStart, MachineStop, Method,
};
use orbd_proto::types::{Job, MachineListAnswer, Observed};
use serde_json::{Value, json};

use crate::support::{Caller, PATIENCE, Random, World, eventually};

/// Machines that all clients change.
pub(super) const SHARED: [&str; 3] = ["a", "b", "c"];
/// Queue timeout of attached jobs. A change that a death cut short holds its lane until it is reconciled, and the load
/// must continue.
const QUEUE_TIMEOUT_MS: u64 = 500;
/// Machines that a client keeps at most before it deletes one.
const KEPT_MAX: usize = 4;

/// State shared by the clients.
pub(super) struct Load {
    is_over: AtomicBool,
    /// Number of detached changes acknowledged so far.
    promised: AtomicUsize,
    pub(super) told: Mutex<AnswerRecord>,
    socket: PathBuf,
    folder: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

/// All answers that the clients received.
#[derive(Default)]
pub(super) struct AnswerRecord {
    pub(super) promises: Vec<Promise>,
    /// Job ids, in the order in which each client received them.
    pub(super) ids: Vec<u64>,
    /// Outcomes of ended jobs by job id, in the daemon's words.
    pub(super) outcomes: BTreeMap<u64, String>,
    /// Number of answers by result.
    pub(super) answers: BTreeMap<String, usize>,
    /// Changes that may have run once without a promise: the answer was lost, or the change was attached.
    pub(super) in_doubt: BTreeMap<(&'static str, String), usize>,
    pub(super) reads: Vec<Look>,
    /// Number of reads right after a client's own change.
    pub(super) own_reads: usize,
    /// Violations that the clients found.
    pub(super) breaches: Vec<String>,
}

/// A detached change that was acknowledged: it must run although its client and the daemon die.
#[derive(Clone)]
pub(super) struct Promise {
    pub(super) id: u64,
    pub(super) verb: &'static str,
    pub(super) machine: String,
    /// The other machine whose lane it needs, such as the source of a clone.
    pub(super) source: Option<String>,
}

impl Promise {
    /// Returns whether one of its machines is in the set.
    pub(super) fn is_among(&self, machines: &BTreeSet<String>) -> bool {
        machines.contains(&self.machine) || self.source.as_ref().is_some_and(|one| machines.contains(one))
    }
}

/// Machines and their states, as one client received them.
pub(super) struct Look {
    /// Claimed time of the answer, in nanoseconds since 1970: every change that ended before must show.
    pub(super) claimed_ns: i128,
    /// Time of receipt, in nanoseconds since 1970: no change that began later can show.
    pub(super) received_ns: i128,
    pub(super) states: Vec<(String, String)>,
    /// Whether these are all machines that exist.
    pub(super) is_whole: bool,
}

impl Load {
    pub(super) fn new(world: &World) -> Self {
        let command = world.daemon_command();
        let environment = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        Self {
            is_over: AtomicBool::new(false),
            promised: AtomicUsize::new(0),
            told: Mutex::default(),
            socket: world.socket(),
            folder: world.path(""),
            environment,
        }
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Returns how many detached changes were acknowledged so far.
    pub(super) fn promised(&self) -> usize {
        self.promised.load(Ordering::Relaxed)
    }

    fn note(&self, note: impl FnOnce(&mut AnswerRecord)) {
        note(&mut self.told.lock().expect("nobody panics with it"));
    }

    fn doubt(&self, verb: &'static str, machine: &str) {
        let change = (verb, machine.to_owned());
        self.note(|told| *told.in_doubt.entry(change).or_default() += 1);
    }

    fn count(&self, answer: &str) {
        self.note(|told| *told.answers.entry(answer.to_owned()).or_default() += 1);
    }

    /// Connects as soon as a daemon accepts connections; `None` when the load is over.
    fn connect(&self) -> Option<Caller> {
        let connection = eventually("the daemon takes connections", || {
            if self.is_over() {
                return Some(None);
            }
            Client::connect(&self.socket).ok().map(Some)
        })?;
        connection.set_timeout(Some(PATIENCE)).expect("a timeout");
        Some(Caller(connection))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Checks a list that was requested after a change of a machine that no other client changes.
    fn check_own(&self, answer: &MachineListAnswer, name: &str, expected: Option<&str>) {
        let told = answer.machines.iter().find(|machine| machine.name == name);
        let told = told.map(|machine| machine.state.as_str());
        self.note(|all| {
            all.own_reads += 1;
            if told != expected {
                let breach = format!("after a change of {name} to {expected:?} its client read {told:?}");
                all.breaches.push(breach);
            }
        });
    }

    /// Records a list, with the time at which it was requested.
    fn look(&self, answer: &MachineListAnswer, asked_ns: i128) {
        let machines = answer.machines.iter();
        let states = machines
            .map(|machine| (machine.name.clone(), machine.state.clone()))
            .collect();
        self.note(|told| {
            told.reads
                .push(Look::new(&answer.observed, asked_ns, states, true));
        });
    }
}

impl Look {
    fn new(observed: &Observed, asked_ns: i128, states: Vec<(String, String)>, is_whole: bool) -> Self {
        let observed_at: jiff::Timestamp = observed.observed_at.parse().expect("a time");
        // The age is in whole milliseconds, and was measured some time after the request.
        let by_age = asked_ns - (i128::from(observed.age_ms) + 1) * 1_000_000;
        Self {
            claimed_ns: observed_at.as_nanosecond().max(by_age),
            received_ns: now_ns(),
            states,
            is_whole,
        }
    }
}

fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i128::try_from(since.as_nanos()).expect("not that late")
}

/// A client over the socket.
pub(super) struct OverSocket<'a> {
    load: &'a Load,
    random: Random,
    number: u64,
    made: usize,
    /// Machines that it was promised and has not deleted yet.
    kept: Vec<String>,
    /// The machine that only this client changes.
    own: Option<String>,
}

/// The connection was lost.
struct Lost;

type Asked<T> = Result<Result<T, String>, Lost>;

impl<'a> OverSocket<'a> {
    pub(super) fn new(load: &'a Load, number: u64, seed: u64) -> Self {
        Self {
            load,
            random: Random::new(seed.wrapping_add(number * 1_000_003)),
            number,
            made: 0,
            kept: Vec::new(),
            own: None,
        }
    }

    /// Makes calls until the load is over.
    pub(super) fn go_on(mut self) {
        while let Some(mut caller) = self.load.connect() {
            while !self.load.is_over() {
                if self.step(&mut caller).is_err() {
                    // The outcome of the last change is unknown.
                    self.kept.extend(self.own.take());
                    break;
                }
            }
        }
    }

    fn step(&mut self, caller: &mut Caller) -> Result<(), Lost> {
        let machine = SHARED[usize::try_from(self.random.below(3)).expect("small")];
        let of_machine = json!({"machine": machine, "queue_timeout_ms": QUEUE_TIMEOUT_MS});
        match self.random.below(18) {
            0..=2 => self.run(caller, machine, &["true"], false)?,
            3 => self.run(caller, machine, &["sleep", "0.03"], false)?,
            4 => self.run(caller, machine, &["sleep", "0.03"], true)?,
            5 | 6 => drop(self.change::<MachineStop>(caller, of_machine)?),
            7 => drop(self.change::<MachineStart>(caller, of_machine)?),
            8 if self.random.below(4) == 0 => drop(self.change::<MachineRestart>(caller, of_machine)?),
            8 | 9 => self.list(caller)?,
            10 => self.info(caller, machine)?,
            11 | 12 if self.kept.len() < KEPT_MAX => self.promise_a_machine(caller, machine)?,
            11..=13 => self.give_up_a_machine(caller)?,
            14 => self.lease(caller, machine)?,
            _ => self.change_its_own(caller)?,
        }
        Ok(())
    }

    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}-{}", self.number, self.made)
    }

    /// Makes a call and records the answer; the error is its kind.
    fn ask<M: Method>(&self, caller: &mut Caller, params: Value) -> Asked<M::Answer> {
        match caller.try_call::<M>(params) {
            Ok(Ok(answer)) => Ok(Ok(answer)),
            Ok(Err(error)) => {
                let data = error.data.expect("every error has data");
                self.load.count(&data.kind);
                self.load.note(|told| {
                    if let Some(id) = data.job_id {
                        // A read is shared between clients, and a lease's id is recorded already.
                        if !matches!(M::NAME, "machine.list" | "machine.info" | "lease.release") {
                            told.ids.push(id);
                        }
                        told.outcomes.insert(id, outcome_of_kind(&data.kind).to_owned());
                    }
                    if data.kind == "internal" {
                        told.breaches.push(format!("{}: {data:?}", M::NAME));
                    }
                });
                Ok(Err(data.kind))
            }
            Err(error) => {
                let is_silence = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                if is_silence {
                    let name = M::NAME;
                    self.load
                        .note(|told| told.breaches.push(format!("{name}: no answer")));
                }
                self.load.count("connection lost");
                Err(Lost)
            }
        }
    }

    fn succeeded(&self, id: u64, what: &str) {
        self.load.count(what);
        self.load.note(|told| {
            told.ids.push(id);
            told.outcomes.insert(id, "succeeded".to_owned());
        });
    }

    fn run(
        &mut self,
        caller: &mut Caller,
        machine: &str,
        command: &[&str],
        detach: bool,
    ) -> Result<(), Lost> {
        let params = json!({
            "machine": machine, "command": command, "detach": detach, "queue_timeout_ms": QUEUE_TIMEOUT_MS,
        });
        if let Ok(answer) = self.ask::<MachineRun>(caller, params)? {
            if detach {
                self.load.count("command accepted");
                self.load.note(|told| told.ids.push(answer.job_id));
            } else {
                self.succeeded(answer.job_id, "command done");
            }
        }
        Ok(())
    }

    /// Changes something and waits for the end. Returns whether the change was done.
    fn change<M>(&self, caller: &mut Caller, params: Value) -> Result<bool, Lost>
    where
        M: Method<Answer = orbd_proto::types::ChangeAnswer>,
    {
        match self.ask::<M>(caller, params)? {
            Ok(answer) => {
                let is_new = answer.changed == Some(true);
                self.succeeded(
                    answer.job_id,
                    if is_new {
                        "change done"
                    } else {
                        "change held already"
                    },
                );
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// Submits a detached change, which outlives this client and the daemon.
    fn promise<M>(
        &self,
        caller: &mut Caller,
        verb: &'static str,
        machine: &str,
        params: Value,
    ) -> Result<bool, Lost>
    where
        M: Method<Answer = orbd_proto::types::ChangeAnswer>,
    {
        let machine = machine.to_owned();
        let source = params["new_name"]
            .is_string()
            .then(|| params["machine"].as_str().expect("a name").to_owned());
        match self.ask::<M>(caller, params) {
            Ok(Ok(answer)) => {
                let id = answer.job_id;
                self.load.count("change promised");
                self.load.note(|told| {
                    told.ids.push(id);
                    told.promises.push(Promise {
                        id,
                        verb,
                        machine,
                        source,
                    });
                });
                self.load.promised.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ok(Err(_)) => Ok(false),
            Err(Lost) => {
                self.load.doubt(verb, &machine);
                Err(Lost)
            }
        }
    }

    fn promise_a_machine(&mut self, caller: &mut Caller, source: &str) -> Result<(), Lost> {
        // Kept whatever the outcome: deleting a missing machine does no harm.
        if self.random.below(4) == 0 {
            let name = self.name("copy");
            self.kept.push(name.clone());
            let params = json!({"machine": source, "new_name": name, "detach": true});
            self.promise::<MachineClone>(caller, "clone", &name, params)?;
        } else {
            let name = self.name("new");
            self.kept.push(name.clone());
            let params = json!({"name": name, "distro": "ubuntu", "detach": true});
            self.promise::<MachineCreate>(caller, "create", &name, params)?;
        }
        Ok(())
    }

    fn give_up_a_machine(&mut self, caller: &mut Caller) -> Result<(), Lost> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let chosen = usize::try_from(self.random.below(self.kept.len() as u64)).expect("an index");
        let name = self.kept[chosen].clone();
        let params = json!({"machine": name, "detach": true});
        if self.promise::<MachineDelete>(caller, "delete", &name, params)? {
            self.kept.swap_remove(chosen);
        }
        Ok(())
    }

    fn list(&mut self, caller: &mut Caller) -> Result<(), Lost> {
        // As an editor reads: mostly cached, sometimes with an age limit, sometimes fresh.
        for _ in 0..8 {
            let params = match self.random.below(12) {
                0 => json!({"max_age_ms": 0}),
                1 => json!({"max_age_ms": 20}),
                _ => json!({}),
            };
            self.list_with(caller, params)?;
        }
        Ok(())
    }

    fn list_with(&self, caller: &mut Caller, params: Value) -> Result<Option<MachineListAnswer>, Lost> {
        let asked_ns = now_ns();
        let Ok(answer) = self.ask::<MachineList>(caller, params)? else {
            return Ok(None);
        };
        self.load.look(&answer, asked_ns);
        self.load.count("list told");
        Ok(Some(answer))
    }

    fn info(&self, caller: &mut Caller, machine: &str) -> Result<(), Lost> {
        let asked_ns = now_ns();
        if let Ok(answer) = self.ask::<MachineInfo>(caller, json!({"machine": machine}))? {
            let states = vec![(machine.to_owned(), answer.machine.state)];
            let look = Look::new(&answer.observed, asked_ns, states, false);
            self.load.note(|told| told.reads.push(look));
            self.load.count("machine told");
        }
        Ok(())
    }

    /// Changes the machine of its own, and checks the next read.
    fn change_its_own(&mut self, caller: &mut Caller) -> Result<(), Lost> {
        let (name, is_new) = match self.own.clone() {
            Some(name) => (name, false),
            None => (self.name("own"), true),
        };
        self.own = Some(name.clone());
        let params = json!({"machine": name, "queue_timeout_ms": QUEUE_TIMEOUT_MS});
        let (done, expected) = match self.random.below(8) {
            _ if is_new => {
                let params =
                    json!({"name": name, "distro": "ubuntu", "queue_timeout_ms": 4 * QUEUE_TIMEOUT_MS});
                (self.change::<MachineCreate>(caller, params)?, Some("running"))
            }
            0 => {
                // This attached delete may run in addition to a promised one.
                self.load.doubt("delete", &name);
                (self.change::<MachineDelete>(caller, params)?, None)
            }
            1..=4 => (self.change::<MachineStop>(caller, params)?, Some("stopped")),
            _ => (self.change::<MachineStart>(caller, params)?, Some("running")),
        };
        if !done {
            self.own = None;
            self.kept.push(name);
            return Ok(());
        }
        if let Some(answer) = self.list_with(caller, json!({}))? {
            self.load.check_own(&answer, &name, expected);
        }
        if expected.is_none() {
            self.own = None;
        }
        Ok(())
    }

    /// Runs the real tool itself under a lease; now and then exits right after the grant.
    fn lease(&mut self, caller: &mut Caller, machine: &str) -> Result<(), Lost> {
        let archive = self.load.folder.join(format!("archive-{}", self.number));
        let mut child = self
            .load
            .command("sh")
            .args(["-c", "read go && exec \"$0\" export \"$1\" \"$2\""])
            .args([programs::orbctl_sim(), machine])
            .arg(archive)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let params = json!({
            "operation": "export", "machine": machine, "pid": child.id(), "queue_timeout_ms": QUEUE_TIMEOUT_MS,
        });
        let granted = self.ask::<LeaseAcquire>(caller, params);
        let Ok(Ok(lease)) = granted else {
            // It reads end of file and does nothing.
            drop(child.stdin.take());
            child.wait().expect("ours");
            return granted.map(drop);
        };
        self.load.count("lease granted");
        self.load.note(|told| told.ids.push(lease.job_id));
        let leaves = self.random.below(4) == 0;
        if leaves {
            *caller = match self.load.connect() {
                Some(other) => other,
                None => return Ok(()),
            };
        }
        // It still runs: it waits for this line.
        let _ = child.stdin.take().expect("piped").write_all(b"go\n");
        let status = child.wait().expect("ours");
        if leaves {
            return Ok(());
        }
        let params = json!({"job_id": lease.job_id, "exit_code": status.code()});
        if let Ok(answer) = self.ask::<LeaseRelease>(caller, params)? {
            self.note_end(&answer.job);
        }
        Ok(())
    }

    fn note_end(&self, job: &Job) {
        if let Some(outcome) = &job.outcome {
            self.load.note(|told| {
                told.outcomes.insert(job.job_id, outcome.kind.clone());
            });
        }
    }
}

/// Returns the outcome of the job that an error of this kind is about.
fn outcome_of_kind(kind: &str) -> &'static str {
    match kind {
        "outcome_unknown" => "unknown",
        "job_cancelled" => "cancelled",
        "job_interrupted" => "interrupted",
        "deadline_exceeded" => "expired",
        _ => "failed",
    }
}

/// A user with a terminal: one process for each call.
pub(super) fn type_commands(load: &Load, number: u64, seed: u64) {
    let mut random = Random::new(seed.wrapping_add(number * 7_000_003));
    let mut own: Option<String> = None;
    let mut left: Vec<String> = Vec::new();
    let mut made = 0;
    while !load.is_over() {
        let machine = SHARED[usize::try_from(random.below(3)).expect("small")];
        let code = match random.below(8) {
            0 | 1 => ctl(load, &["run", "-m", machine, "true"]).0,
            2 => {
                let archive = load.folder.join(format!("archive-{number}"));
                let archive = archive.display().to_string();
                ctl(load, &["export", "--queue-timeout=500ms", machine, &archive]).0
            }
            3 => ctl(load, &["start", "--queue-timeout=500ms", machine]).0,
            4 => list_by_command(load).0,
            5 if !left.is_empty() => {
                let code = ctl(load, &["delete", "--detach", &left[0]]).0;
                if code == Some(0) {
                    left.remove(0);
                }
                code
            }
            _ => {
                let (name, words, expected) = match own.take() {
                    None => {
                        made += 1;
                        let name = format!("typed-{number}-{made}");
                        (
                            name,
                            ["create", "--queue-timeout=2s", "ubuntu"].as_slice(),
                            "running",
                        )
                    }
                    Some(name) if random.below(2) == 0 => {
                        (name, ["stop", "--queue-timeout=500ms"].as_slice(), "stopped")
                    }
                    Some(name) => (name, ["start", "--queue-timeout=500ms"].as_slice(), "running"),
                };
                let code = ctl(load, &[words, &[&name]].concat()).0;
                if code == Some(0) {
                    if let (_, Some(answer)) = list_by_command(load) {
                        load.check_own(&answer, &name, Some(expected));
                    }
                    own = Some(name);
                } else {
                    left.push(name);
                }
                code
            }
        };
        if code == Some(3) && load.connect().is_none() {
            return;
        }
    }
}

fn list_by_command(load: &Load) -> (Option<i32>, Option<MachineListAnswer>) {
    let asked_ns = now_ns();
    let (code, stdout) = ctl(load, &["--json", "list"]);
    if code != Some(0) {
        return (code, None);
    }
    let answer: MachineListAnswer = serde_json::from_slice(&stdout).expect("the answer of the API");
    load.look(&answer, asked_ns);
    (code, Some(answer))
}

/// Calls the command line. A call that does not end is a violation.
fn ctl(load: &Load, words: &[&str]) -> (Option<i32>, Vec<u8>) {
    // A file instead of a pipe, because nothing reads before the call ends.
    let path = load.folder.join("typed");
    let stdout = std::fs::File::create(&path).expect("a file");
    let mut child = load
        .command(programs::orbd_ctl())
        .arg("--no-autostart")
        .args(words)
        .stdout(stdout)
        .spawn()
        .expect("it starts");
    let code = ended(&mut child, load, words);
    let word = code.map_or("a signal".to_owned(), |code| code.to_string());
    load.count(&format!("orbd-ctl exited with {word}"));
    (code, std::fs::read(&path).expect("what it wrote"))
}

fn ended(child: &mut Child, load: &Load, words: &[&str]) -> Option<i32> {
    let began = std::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("ours") {
            return status.code();
        }
        if began.elapsed() > PATIENCE {
            load.note(|told| told.breaches.push(format!("orbd-ctl {words:?} never ended")));
            child.kill().expect("ours");
        }
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
}
