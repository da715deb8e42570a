//! The dispatcher with everything real but `orbctl` and time: each invocation is a [`Call`] that the test answers, in any order,
//! and two minutes pass in no time.
//!
//! [`World::idle`] lets virtual time pass a millisecond, which happens only when every task waits: what can happen has happened.

mod health;
mod idle;
mod races;
mod traffic;
mod watching;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Moment;
use crate::job::{ClientId, Ending, Failure, JobId, Outcome, Phase, ReconcileReport, Success};
use crate::machine::MachineName;
use crate::metrics;
use crate::operation::{ExecRequest, Force, NewMachine, Operation, Query, RawQuery, Scope, Stdin};
use crate::orbctl::argv::GuestEnv;
use crate::orbctl::{Captured, Completion, Invocation, Orbctl, SpawnError};
use crate::sys::ChildIdentity;

/// What a call is answered with.
type Reply = Result<Completion, SpawnError>;

/// One invocation that waits for the test.
struct Call {
    args: Vec<String>,
    reply: oneshot::Sender<Reply>,
}

impl Call {
    fn end(self, ending: Ending, stdout: &str, stderr: &str) {
        // Whoever asked may have ended it meanwhile.
        let _ = self.reply.send(Ok(completion(ending, stdout, stderr)));
    }

    fn exit(self, code: i32) {
        self.end(Ending::Exited(code), "", "");
    }
}

fn completion(ending: Ending, stdout: &str, stderr: &str) -> Completion {
    Completion {
        ending,
        stdout: Captured::whole(stdout.as_bytes().to_vec()),
        stderr: Captured::whole(stderr.as_bytes().to_vec()),
        took: Duration::ZERO,
        bytes_in: 0,
        bytes_out: (stdout.len() + stderr.len()) as u64,
        output_cut: false,
    }
}

/// States of machines, by name.
type Inventory = Arc<Mutex<BTreeMap<String, String>>>;

/// An `orbctl` in memory.
struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    inventory: Inventory,
    /// Lists and the status are answered from here, not by the test.
    lists_itself: bool,
    lists: Mutex<usize>,
    /// What OrbStack does, in `orbctl`'s word, and how often that was asked.
    status: Mutex<(&'static str, usize)>,
    /// Another program took its place, which nobody has noticed yet.
    replaced: AtomicBool,
}

fn list_of(inventory: &Inventory) -> String {
    let inventory = inventory.lock().unwrap_or_else(PoisonError::into_inner);
    let machines: Vec<_> = inventory
        .iter()
        .enumerate()
        .map(|(number, (name, state))| {
            let last = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[number] as char;
            serde_json::json!({
                "id": format!("01M4HXHNTVZXRXR1F5PV7GC8R{last}"),
                "name": name,
                "image": {"distro": "ubuntu", "version": "noble", "arch": "arm64", "variant": "default"},
                "config": {"isolated": false, "default_username": "dev"},
                "builtin": false,
                "state": state,
            })
        })
        .collect();
    serde_json::Value::from(machines).to_string()
}

impl Orbctl for Scripted {
    fn is_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::Relaxed)
    }

    async fn run(&self, invocation: Invocation, stop: CancellationToken) -> Reply {
        let word = |arg: &OsString| arg.to_string_lossy().into_owned();
        let args: Vec<String> = invocation.call.args.iter().map(word).collect();
        if args[0] == "list" && self.lists_itself {
            *self.lists.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            return Ok(completion(Ending::Exited(0), &list_of(&self.inventory), ""));
        }
        if args[0] == "status" && self.lists_itself {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            status.1 += 1;
            let code = i32::from(status.0 != "Running");
            return Ok(completion(Ending::Exited(code), &format!("{}\n", status.0), ""));
        }
        assert_ne!(args[0], "version", "a panic, as scripted");
        let (reply, answer) = oneshot::channel();
        let limit = async {
            match invocation.run_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        self.calls.send(Call { args, reply }).expect("the test listens");
        tokio::select! {
            biased;
            answer = answer => answer.expect("every call is answered or ended"),
            () = stop.cancelled() => Ok(completion(Ending::Stopped, "", "")),
            () = limit => Ok(completion(Ending::TimedOut, "", "")),
        }
    }
}

/// A dispatcher and the other ends of what it has.
struct World {
    dispatcher: Dispatcher,
    task: JoinHandle<Journal>,
    calls: mpsc::UnboundedReceiver<Call>,
    orbctl: Arc<Scripted>,
    metrics: Metrics,
    shutdown: CancellationToken,
    folder: tempfile::TempDir,
}

impl World {
    /// Machines `a` and `b` run, and lists tell so.
    fn new() -> Self {
        Self::with(Limits::default(), true)
    }

    fn with(limits: Limits, lists_itself: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::over(folder, limits, lists_itself)
    }

    fn over(folder: tempfile::TempDir, limits: Limits, lists_itself: bool) -> Self {
        let (journal, recovered) =
            Journal::open(&folder.path().join("journal"), Moment::now().wall).expect("a journal");
        let (sender, calls) = mpsc::unbounded_channel();
        let inventory = [("a", "running"), ("b", "running")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let orbctl = Arc::new(Scripted {
            calls: sender,
            inventory: Arc::new(Mutex::new(BTreeMap::from(inventory))),
            lists_itself,
            lists: Mutex::new(0),
            status: Mutex::new(("Running", 0)),
            replaced: AtomicBool::new(false),
        });
        let metrics = Metrics::start(metrics::Settings {
            launch: metrics::Launch::Thread,
            ..metrics::Settings::new(folder.path().join("metrics")).expect("settings")
        });
        let parts = Parts {
            orbctl: orbctl.clone(),
            journal,
            recovered,
            survivors: Vec::new(),
            metrics: metrics.clone(),
        };
        let shutdown = CancellationToken::new();
        let (dispatcher, task) = start(settings(folder.path(), limits), parts, shutdown.clone());
        Self {
            dispatcher,
            task,
            calls,
            orbctl,
            metrics,
            shutdown,
            folder,
        }
    }

    /// Returns how many jobs have left a record.
    fn records(&self) -> u64 {
        self.metrics.counters().recorded
    }

    /// Lets everything happen that can.
    async fn idle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Takes the next invocation, which must be of this command.
    async fn call(&mut self, command: &str) -> Call {
        let call = self.calls.recv().await.expect("the dispatcher lives");
        assert_eq!(call.args[0], command, "{:?}", call.args);
        call
    }

    /// Checks that nothing was invoked that was not taken.
    async fn no_call(&mut self) {
        self.idle().await;
        if let Ok(call) = self.calls.try_recv() {
            panic!("invoked: {:?}", call.args);
        }
    }

    async fn submit(&self, submission: Submission) -> Job {
        self.dispatcher.submit(submission).await.expect("accepted")
    }

    async fn change(&self, operation: Operation) -> Job {
        self.submit(submission(operation)).await
    }

    fn read(&self, query: Query, max_age: Option<Duration>) -> JoinHandle<Result<ObservedAnswer, ReadError>> {
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.read(query, max_age, client(9)).await })
    }

    fn set(&self, machine: &str, state: &str) {
        let mut inventory = self
            .orbctl
            .inventory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        inventory.insert(machine.to_owned(), state.to_owned());
    }

    fn remove(&self, machine: &str) {
        let mut inventory = self
            .orbctl
            .inventory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        inventory.remove(machine);
    }

    fn lists(&self) -> usize {
        *self.orbctl.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn settings(folder: &Path, limits: Limits) -> Settings {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    Settings {
        limits,
        cache_max_age: Duration::from_secs(30),
        watch_interval: Duration::from_secs(2),
        queue_timeout: minutes(10),
        run_timeouts: RunTimeouts {
            query: Duration::from_secs(30),
            change: minutes(10),
            creation: minutes(30),
            configuration: minutes(1),
            fleet: minutes(5),
        },
        grace: Duration::from_secs(5),
        reconcile: Duration::from_secs(120),
        keep: minutes(15),
        keep_max: 100,
        keep_bytes: 2 << 20,
        spool: spool::Settings {
            dir: folder.to_owned(),
            max: 1 << 20,
            keep: spool::Keep::All,
        },
        spool_total_max: 1 << 24,
        guest_env: GuestEnv::default(),
        markers: Markers::new("simulated", folder),
    }
}

/// Holds virtual time while the disk, which answers in real time, is waited for; until this is dropped.
fn hold_time() -> std::sync::mpsc::Sender<()> {
    let (held, dropped) = std::sync::mpsc::channel();
    // Tokio's paused clock stands still while a thread of its own is busy.
    tokio::task::spawn_blocking(move || dropped.recv());
    held
}

fn client(number: u64) -> Client {
    Client {
        id: ClientId(number),
        connection: number,
        gone: CancellationToken::new(),
        name: "test".into(),
        pid: None,
        uid: 0,
    }
}

fn submission(operation: Operation) -> Submission {
    Submission {
        operation,
        client: client(1),
        executor: Executor::Daemon,
        expected_id: None,
        detached: false,
        queue_timeout: None,
        run_timeout: None,
    }
}

fn name(text: &str) -> MachineName {
    text.parse().expect("a name")
}

fn restart(machine: &str) -> Operation {
    Operation::Restart(name(machine))
}

fn exec(machine: &str) -> Operation {
    let request = ExecRequest::new(vec!["true".into()]).expect("a command");
    Operation::Exec(name(machine), request)
}

fn create(machine: &str) -> Operation {
    Operation::Create(NewMachine {
        name: name(machine),
        distro: "ubuntu".parse().expect("a distro"),
        version: None,
        arch: None,
        user: None,
        cpus: None,
        memory: None,
        disk: None,
        isolated: false,
        isolate_network: false,
        mounts: Vec::new(),
        forward_ssh_agent: false,
    })
}

async fn outcome(job: &Job) -> Outcome {
    let mut state = job.state.clone();
    match &*state
        .wait_for(JobState::is_ended)
        .await
        .expect("it ends before the dispatcher")
    {
        JobState::Ended { outcome, .. } => outcome.clone(),
        JobState::Waiting | JobState::Running { .. } => unreachable!("it has ended"),
    }
}

fn is_waiting(job: &Job) -> bool {
    matches!(*job.state.borrow(), JobState::Waiting)
}

const CHANGED: Outcome = Outcome::Succeeded(Success::Change { changed: true });
const UNCHANGED: Outcome = Outcome::Succeeded(Success::Change { changed: false });

// ---- every outcome -------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_change_succeeds_or_fails_as_orbctl_says() {
    let mut world = World::new();
    let job = world.change(restart("a")).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    let job = world.change(restart("a")).await;
    world
        .call("restart")
        .await
        .end(Ending::Exited(1), "", "no space\n");
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::OrbctlFailed { exit_code: 1, .. })
    ));
    let job = world.change(create("a")).await;
    world.call("create").await.end(
        Ending::Exited(1),
        "",
        include_str!("../orbctl/testdata/error-create-exists.stderr.txt"),
    );
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::MachineExists(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_commands_code_is_its_own() {
    let mut world = World::new();
    for code in [0, 1, 127] {
        let job = world.change(exec("a")).await;
        world.call("run").await.exit(code);
        assert_eq!(
            outcome(&job).await,
            Outcome::Succeeded(Success::Exec { exit_code: code })
        );
    }
    let job = world.change(exec("a")).await;
    world.call("run").await.end(Ending::Signalled(9), "", "");
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::OrbctlKilled { signal: 9, .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_holds_is_not_carried_out() {
    let mut world = World::new();
    let job = world.change(Operation::Start(name("a"))).await;
    assert_eq!(outcome(&job).await, UNCHANGED);
    world.no_call().await;
    let job = world.change(Operation::Stop(name("a"), Force::No)).await;
    world.call("stop").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_started_or_panics_fails_and_frees_its_lane() {
    let mut world = World::new();
    let job = world.change(restart("a")).await;
    let gone = SpawnError::NotFound { program: "/x".into() };
    let _ = world.call("restart").await.reply.send(Err(gone));
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::OrbctlUnavailable(_))
    ));
    let read = world.read(Query::Version, None).await.expect("no panic here");
    assert!(matches!(
        read,
        Err(ReadError::Ended {
            outcome: Outcome::Failed(Failure::Internal(_)),
            ..
        })
    ));
    let job = world.change(restart("a")).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_in_after_its_connection_is_gone_is_refused_unless_it_is_detached() {
    let mut world = World::new();
    let late = submission(restart("a"));
    // In this order the accept loop does it, while a handler still looks up a name.
    late.client.gone.cancel();
    world.dispatcher.on_disconnect(late.client.connection).await;
    let refused = world.dispatcher.submit(late.clone()).await;
    assert!(matches!(refused, Err(Rejection::ClientGone)));
    world.no_call().await;
    let detached = Submission {
        detached: true,
        ..late
    };
    let job = world.submit(detached).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn a_limit_ends_a_command_a_read_and_a_wait() {
    let mut world = World::with(Limits::default(), false);
    let holder = world
        .submit(Submission {
            run_timeout: Some(Duration::from_secs(90)),
            ..submission(exec("a"))
        })
        .await;
    let waiting = world
        .submit(Submission {
            queue_timeout: Some(Duration::from_secs(60)),
            ..submission(restart("a"))
        })
        .await;
    let _run = world.call("run").await;
    let began = Moment::now();
    assert_eq!(outcome(&waiting).await, Outcome::Expired(Phase::Queued));
    assert_eq!(Moment::now().instant - began.instant, Duration::from_secs(60));
    let JobState::Ended {
        holder: Some(WaitingFor::Job { id, .. }),
        ..
    } = waiting.state.borrow().clone()
    else {
        panic!("the holder is named");
    };
    assert_eq!(id, holder.spec.id);
    assert_eq!(outcome(&holder).await, Outcome::Expired(Phase::Running));
    let read = world.read(Query::List, None);
    let _list = world.call("list").await;
    assert!(matches!(
        read.await.expect("no panic"),
        Err(ReadError::Ended {
            outcome: Outcome::Expired(Phase::Running),
            ..
        })
    ));
    world.no_call().await;
}

// ---- settling ------------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_cut_change_that_holds_is_settled_at_the_first_look() {
    let mut world = World::new();
    let job = world.change(create("new")).await;
    let call = world.call("create").await;
    world.set("new", "running");
    call.end(Ending::Signalled(9), "", "");
    let Outcome::Succeeded(Success::Observed { changed, warning }) = outcome(&job).await else {
        panic!("it is done");
    };
    assert_eq!(changed, Some(true));
    assert!(
        warning.starts_with("orbctl was killed by signal 9, but machine 'new' exists"),
        "{warning}"
    );
    assert_eq!(world.lists(), 2, "one before it, one after");
}

#[tokio::test(start_paused = true)]
async fn a_cut_change_keeps_its_lane_until_it_has_come_to_rest() {
    let mut world = World::new();
    let job = world.change(create("new")).await;
    let waiting = world.change(exec("new")).await;
    let call = world.call("create").await;
    world.set("new", "creating");
    call.end(
        Ending::Exited(2),
        "",
        "panic: timed out waiting for services to start\n\ngoroutine 1 [running]:\n",
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.no_call().await;
    assert!(is_waiting(&waiting));
    world.set("new", "running");
    assert!(matches!(
        outcome(&job).await,
        Outcome::Succeeded(Success::Observed {
            changed: Some(true),
            ..
        })
    ));
    world.call("run").await.exit(0);
    assert_eq!(
        outcome(&waiting).await,
        Outcome::Succeeded(Success::Exec { exit_code: 0 })
    );
}

#[tokio::test(start_paused = true)]
async fn looks_end_after_two_minutes_with_growing_pauses_and_say_that_nothing_settled() {
    let mut world = World::new();
    let job = world.change(create("new")).await;
    world.set("new", "creating");
    world.call("create").await.end(Ending::Signalled(6), "", "");
    let began = Moment::now();
    let seen = ReconcileReport {
        stable: false,
        satisfied: Some(false),
        machine_state: Some("creating".into()),
    };
    assert_eq!(outcome(&job).await, Outcome::Unknown(seen));
    let took = Moment::now().instant - began.instant;
    assert!(
        took >= Duration::from_secs(120) && took < Duration::from_secs(126),
        "{took:?}"
    );
    assert!((20..40).contains(&world.lists()), "{} looks", world.lists());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_hold_is_settled_after_a_quiet_time() {
    let mut world = World::new();
    let job = world.change(create("new")).await;
    world.call("create").await.end(Ending::Signalled(6), "", "");
    let began = Moment::now();
    let seen = ReconcileReport {
        stable: true,
        satisfied: Some(false),
        machine_state: None,
    };
    assert_eq!(outcome(&job).await, Outcome::Unknown(seen));
    let took = Moment::now().instant - began.instant;
    assert!(
        took >= Duration::from_secs(10) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

// ---- races, in both orders -----------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn of_a_cancel_and_an_end_the_earlier_counts() {
    let mut world = World::new();
    let job = world.change(exec("a")).await;
    let call = world.call("run").await;
    call.exit(0);
    // Not yet seen by anybody, and yet it came first.
    assert_ne!(
        world.dispatcher.cancel(job.spec.id).await,
        Cancelled::NeverStarted
    );
    assert_eq!(
        outcome(&job).await,
        Outcome::Succeeded(Success::Exec { exit_code: 0 })
    );
    assert_eq!(
        world.dispatcher.cancel(job.spec.id).await,
        Cancelled::AlreadyEnded
    );

    let job = world.change(exec("a")).await;
    let call = world.call("run").await;
    assert_eq!(world.dispatcher.cancel(job.spec.id).await, Cancelled::Stopping);
    world.idle().await;
    call.exit(0);
    assert_eq!(outcome(&job).await, Outcome::Cancelled(Phase::Running));
}

/// A lease of these processes.
fn lease_of(child: u32, owner: u32) -> Executor {
    let identity = |pid| ChildIdentity {
        pid,
        started: crate::sys::process_identity(pid).expect("it runs"),
    };
    Executor::Lease(LeaseProcesses {
        child: identity(child),
        owner: identity(owner),
    })
}

/// Says what a job that has ended still does for whoever has to do with it.
async fn check_that_it_is_over(world: &World, id: JobId, expected: &Outcome) {
    let dispatcher = &world.dispatcher;
    assert_eq!(dispatcher.cancel(id).await, Cancelled::AlreadyEnded);
    assert!(dispatcher.release(id, Some(Ending::Exited(7))).await.is_none());
    assert!(dispatcher.input(id).await.is_none());
    dispatcher.end_input(id).await;
    dispatcher.on_disconnect(1).await;
    let late = dispatcher.job(id).await.expect("remembered");
    assert_eq!(outcome(&late).await, *expected);
    if let Some(spool) = &late.spool {
        assert_eq!((spool.first(), spool.end(), spool.is_ended()), (0, 0, true));
        for offset in [0, 5] {
            let next = spool.reader(offset).next(10).await;
            assert_eq!(next.expect("nothing to read"), spool::Batch::End);
        }
    }
    let view = dispatcher.view(id).await.expect("remembered");
    assert_eq!(view.output_bytes, 0);
    for state in [view.state, late.view().state] {
        assert!(matches!(state, JobState::Ended { since: Some(_), outcome, .. } if outcome == *expected));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waited_before_the_end_and_who_comes_after_it_are_told_the_same() {
    let mut world = World::new();
    let mut request = ExecRequest::new(vec!["cat".into()]).expect("a command");
    request.stdin = Stdin::Stream;
    let job = world.change(Operation::Exec(name("a"), request)).await;
    let id = job.spec.id;
    let call = world.call("run").await;
    assert!(world.dispatcher.input(id).await.is_some());
    let waiting = tokio::spawn({
        let job = job.clone();
        async move { outcome(&job).await }
    });
    world.idle().await;
    call.exit(3);
    let ended = Outcome::Succeeded(Success::Exec { exit_code: 3 });
    assert_eq!(waiting.await.expect("no panic"), ended);
    // One who looks only now has held it all the time.
    assert_eq!(outcome(&job).await, ended);
    check_that_it_is_over(&world, id, &ended).await;
    let late = world.dispatcher.job(id).await.expect("remembered");
    assert!(
        job.spool.is_some() && late.spool.is_some(),
        "one that writes nothing"
    );
    tokio::time::sleep(Duration::from_secs(16 * 60)).await;
    assert!(world.dispatcher.view(id).await.is_none(), "forgotten");
    for held in [job, late] {
        assert_eq!(outcome(&held).await, ended, "but not by whoever holds it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_never_started_is_over_for_everybody_too() {
    let mut world = World::new();
    let first = world.change(restart("a")).await;
    let second = world.change(restart("a")).await;
    let id = second.spec.id;
    assert_eq!(world.dispatcher.cancel(id).await, Cancelled::NeverStarted);
    assert_eq!(world.dispatcher.cancel(id).await, Cancelled::AlreadyEnded);
    let late = world.dispatcher.job(id).await.expect("remembered");
    for held in [&second, &late] {
        assert_eq!(outcome(held).await, Outcome::Cancelled(Phase::Queued));
    }
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&first).await, CHANGED);
    world.no_call().await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a client's own process, not an orbctl")]
async fn a_lease_is_released_once_and_not_after_its_end() {
    let world = World::new();
    let mut process = std::process::Command::new("sh")
        .args(["-c", "read go"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("a shell");
    let job = world
        .submit(Submission {
            executor: lease_of(process.id(), std::process::id()),
            ..submission(Operation::Push(name("a")))
        })
        .await;
    let mut state = job.state.clone();
    let running = state.wait_for(|state| matches!(state, JobState::Running { .. }));
    drop(running.await.expect("it starts"));
    let id = job.spec.id;
    let first = world.dispatcher.release(id, Some(Ending::Exited(0)));
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending());
    world.idle().await;
    assert!(
        world
            .dispatcher
            .release(id, Some(Ending::Exited(7)))
            .await
            .is_none(),
        "it was told"
    );
    drop(process.stdin.take());
    process.wait().expect("ours");
    let released = first.await.expect("answered once the process is gone");
    assert!(released.signalled.is_none() && !released.is_reconciling);
    let ended = outcome(&job).await;
    assert_eq!(ended, Outcome::Succeeded(Success::Lease { changed: None }));
    check_that_it_is_over(&world, id, &ended).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_deadline_and_turn_come_together_does_not_start() {
    for (waited_ms, starts) in [(60_000, false), (59_999, true)] {
        let mut world = World::new();
        let holder = world.change(exec("a")).await;
        let waiting = world
            .submit(Submission {
                queue_timeout: Some(Duration::from_secs(60)),
                ..submission(restart("a"))
            })
            .await;
        let call = world.call("run").await;
        let turn = waiting.spec.accepted.instant + Duration::from_millis(waited_ms);
        tokio::time::sleep_until(turn.into()).await;
        call.exit(0);
        outcome(&holder).await;
        if starts {
            world.call("restart").await.exit(0);
            assert_eq!(outcome(&waiting).await, CHANGED);
        } else {
            assert_eq!(outcome(&waiting).await, Outcome::Expired(Phase::Queued));
            world.no_call().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_takes_what_waits_and_its_commands_whatever_comes_first() {
    let mut world = World::new();
    let running = world.change(exec("a")).await;
    let waiting = world.change(restart("a")).await;
    let of_another = world
        .submit(Submission {
            client: client(2),
            ..submission(restart("a"))
        })
        .await;
    let call = world.call("run").await;
    world.dispatcher.on_disconnect(1).await;
    assert_eq!(outcome(&waiting).await, Outcome::Cancelled(Phase::Queued));
    assert_eq!(outcome(&running).await, Outcome::Cancelled(Phase::Running));
    call.exit(0);
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&of_another).await, CHANGED);

    // The end first, and then the client: it was done.
    let running = world.change(exec("a")).await;
    world.call("run").await.exit(0);
    world.dispatcher.on_disconnect(1).await;
    assert_eq!(
        outcome(&running).await,
        Outcome::Succeeded(Success::Exec { exit_code: 0 })
    );

    // A running change is left to finish; until then it holds its connection, which nothing that is over does.
    let holding = async |world: &World| world.dispatcher.holding_connections().await.expect("it lives");
    assert_eq!(holding(&world).await, HashSet::new());
    let change = world.change(restart("a")).await;
    let call = world.call("restart").await;
    assert_eq!(holding(&world).await, HashSet::from([1]));
    world.dispatcher.on_disconnect(1).await;
    world.idle().await;
    call.exit(0);
    assert_eq!(outcome(&change).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_commands_cancels_what_waits_and_gives_changes_ten_seconds() {
    for finishes in [true, false] {
        let mut world = World::new();
        let command = world.change(exec("a")).await;
        let _run = world.call("run").await;
        let change = world.change(restart("b")).await;
        let waiting = world.change(restart("a")).await;
        let call = world.call("restart").await;
        let began = Moment::now();
        world.shutdown.cancel();
        assert_eq!(outcome(&waiting).await, Outcome::Cancelled(Phase::Queued));
        assert_eq!(outcome(&command).await, Outcome::Cancelled(Phase::Running));
        assert!(matches!(
            world.dispatcher.submit(submission(exec("b"))).await,
            Err(Rejection::Stopping)
        ));
        if finishes {
            call.exit(0);
            assert_eq!(outcome(&change).await, CHANGED);
            world.task.await.expect("no panic");
            assert!(Moment::now().instant - began.instant < Duration::from_secs(1));
        } else {
            world.task.await.expect("no panic");
            let took = Moment::now().instant - began.instant;
            assert!(
                took >= Duration::from_secs(10) && took < Duration::from_secs(11),
                "{took:?}"
            );
            assert_eq!(outcome(&change).await, Outcome::Unknown(ReconcileReport::NOTHING));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_at_the_moment_of_an_end_answers_the_end() {
    let mut world = World::new();
    let change = world.change(restart("a")).await;
    let call = world.call("restart").await;
    call.exit(0);
    world.shutdown.cancel();
    assert_eq!(outcome(&change).await, CHANGED);
    world.task.await.expect("no panic");
}

// ---- reads ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn equal_reads_share_an_invocation_until_something_changes() {
    let mut world = World::with(Limits::default(), false);
    let first = world.read(Query::List, None);
    let call = world.call("list").await;
    let joined = world.read(Query::List, None);
    world.no_call().await;
    world
        .dispatcher
        .invalidate(Scope::Everything)
        .await
        .expect("it lives");
    let later = world.read(Query::List, None);
    let second = world.call("list").await;
    world.set("new", "running");
    second.end(Ending::Exited(0), &list_of(&world.orbctl.inventory), "");
    let seen = later.await.expect("no panic").expect("facts");
    assert_eq!(seen.value.machines().map(<[_]>::len), Some(3));
    // The older one ends last, with what was true when it began.
    call.end(Ending::Exited(0), "[]", "");
    for read in [first, joined] {
        let seen = read.await.expect("no panic").expect("facts");
        assert_eq!(seen.value.machines().map(<[_]>::len), Some(0));
    }
    let seen = world
        .read(Query::List, None)
        .await
        .expect("no panic")
        .expect("facts");
    assert_eq!(seen.value.machines().map(<[_]>::len), Some(3), "not overwritten");
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn what_another_orbctl_said_is_not_told_once_the_new_one_was_started() {
    let mut world = World::new();
    let list = async |world: &World| {
        let seen = world.read(Query::List, None).await.expect("no panic");
        seen.expect("facts");
        world.lists()
    };
    assert_eq!(list(&world).await, 1);
    world.orbctl.replaced.store(true, Ordering::Relaxed);
    assert_eq!(list(&world).await, 1, "nothing was started, so nobody looked");
    let command = world.submit(submission(exec("a"))).await;
    let call = world.call("run").await;
    // It still runs: what it was started beside is stale at once.
    assert_eq!(list(&world).await, 2);
    assert_eq!(list(&world).await, 2);
    call.exit(0);
    outcome(&command).await;
    assert_eq!(list(&world).await, 2, "an end of a command changes nothing");
    // The read that notices it began before all was made stale, so it is asked once more.
    world.orbctl.replaced.store(true, Ordering::Relaxed);
    let asked = world.read(Query::List, Some(Duration::ZERO)).await;
    asked.expect("no panic").expect("facts");
    assert_eq!(list(&world).await, 4);
    assert_eq!(list(&world).await, 4);
}

fn printed(seen: &ObservedAnswer) -> (&[u8], &[u8], Ending) {
    match &seen.value.facts {
        QueryAnswer::Raw(printed) => (&printed.stdout, &printed.stderr, printed.ending),
        other => panic!("{other:?} was not printed"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_in_orbctls_own_words_is_shared_by_equal_ones_and_by_no_others() {
    let mut world = World::with(Limits::default(), false);
    let words = |quiet| {
        Query::RawQuery(RawQuery::List {
            format: None,
            quiet,
            running: false,
        })
    };
    let first = world.read(words(true), None);
    let call = world.call("list").await;
    assert_eq!(call.args, ["list", "-q"]);
    let joined = world.read(words(true), None);
    world.no_call().await;
    let other = world.read(words(false), None);
    let typed = world.read(Query::List, None);
    let (plain, json) = (world.call("list").await, world.call("list").await);
    assert_eq!((plain.args.len(), json.args.len()), (1, 3));
    plain.end(Ending::Exited(0), "a table", "");
    json.end(Ending::Exited(0), "[]", "");
    call.end(Ending::Exited(0), "a\nb\n", "a warning");
    for read in [first, joined] {
        let seen = read.await.expect("no panic").expect("printed");
        assert_eq!(
            printed(&seen),
            (&b"a\nb\n"[..], &b"a warning"[..], Ending::Exited(0))
        );
    }
    assert_eq!(
        printed(&other.await.expect("no panic").expect("printed")).0,
        b"a table"
    );
    typed.await.expect("no panic").expect("facts");
    // Kept for whoever accepts it, until something changes.
    world
        .read(words(true), None)
        .await
        .expect("no panic")
        .expect("kept");
    world.no_call().await;
    world
        .dispatcher
        .invalidate(Scope::Machines(vec![name("a")]))
        .await
        .expect("it lives");
    let later = world.read(words(true), None);
    world.call("list").await.end(Ending::Exited(0), "b\n", "");
    assert_eq!(
        printed(&later.await.expect("no panic").expect("printed")).0,
        b"b\n"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_read_that_failed_printed_is_answered_and_not_kept() {
    let mut world = World::with(Limits::default(), false);
    let words = Query::RawQuery(RawQuery::Info {
        machine: name("gone"),
        format: None,
    });
    for _ in 0..2 {
        let read = world.read(words.clone(), None);
        let refusal = "[-32098] machine not found: 'gone'";
        world.call("info").await.end(Ending::Exited(1), "", refusal);
        let seen = read.await.expect("no panic").expect("an answer");
        assert_eq!(printed(&seen), (&b""[..], refusal.as_bytes(), Ending::Exited(1)));
    }
    let status = Query::RawQuery(RawQuery::Status);
    let read = world.read(status.clone(), None);
    world.call("status").await.end(Ending::Exited(1), "Stopped\n", "");
    read.await.expect("no panic").expect("an answer");
    // That it is stopped is no failure.
    world.read(status, None).await.expect("no panic").expect("kept");
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_known_is_gone_before_a_change_is_answered() {
    let mut world = World::new();
    world
        .read(Query::List, None)
        .await
        .expect("no panic")
        .expect("facts");
    assert!(world.dispatcher.published().machines.is_some());
    let job = world.change(restart("a")).await;
    let call = world.call("restart").await;
    assert!(world.dispatcher.published().machines.is_none(), "from its start");
    // A read between start and end is good until the end.
    world
        .read(Query::List, None)
        .await
        .expect("no panic")
        .expect("facts");
    assert!(world.dispatcher.published().machines.is_some());
    call.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    assert!(
        world.dispatcher.published().machines.is_none(),
        "and from its end"
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_that_everybody_waits_for_is_not_ended_by_one_client_going() {
    let mut world = World::with(Limits::default(), false);
    let read = world.read(Query::List, None);
    let call = world.call("list").await;
    let joined = world.read(Query::List, None);
    world.idle().await;
    world.dispatcher.on_disconnect(9).await;
    call.end(Ending::Exited(0), &list_of(&world.orbctl.inventory), "");
    for read in [read, joined] {
        assert!(read.await.expect("no panic").is_ok());
    }
}

// ---- order ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn one_at_a_time_does_not_keep_a_job_from_its_own_looks() {
    let limits = Limits {
        strict: true,
        ..Limits::default()
    };
    let mut world = World::with(limits, true);
    world.set("a", "stopped");
    let first = world.change(Operation::Start(name("a"))).await;
    let second = world.change(Operation::Start(name("b"))).await;
    let call = world.call("start").await;
    world.no_call().await;
    call.end(Ending::Signalled(9), "", "");
    world.set("a", "running");
    assert!(matches!(
        outcome(&first).await,
        Outcome::Succeeded(Success::Observed {
            changed: Some(true),
            ..
        })
    ));
    assert_eq!(outcome(&second).await, UNCHANGED);
}

#[tokio::test(start_paused = true)]
async fn force_ends_what_runs_also_while_it_only_looks_and_cancels_what_waits() {
    let mut world = World::new();
    let settling = world.change(create("new")).await;
    world.set("new", "creating");
    world.call("create").await.end(Ending::Signalled(9), "", "");
    let waiting = world.change(restart("new")).await;
    world.idle().await;
    let began = Moment::now();
    let forced = world.change(Operation::Stop(name("new"), Force::Yes)).await;
    assert_eq!(outcome(&waiting).await, Outcome::Cancelled(Phase::Queued));
    assert!(matches!(outcome(&settling).await, Outcome::Unknown(seen) if !seen.stable));
    let call = world.call("stop").await;
    assert!(Moment::now().instant - began.instant < Duration::from_secs(1));
    world.set("new", "stopped");
    call.exit(0);
    assert_eq!(outcome(&forced).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_means_another_machine_by_now_is_refused() {
    let mut world = World::new();
    let by_id = |id: &str| Submission {
        expected_id: Some(id.parse().expect("an id")),
        ..submission(restart("a"))
    };
    let job = world.submit(by_id("01M4HXHNTVZXRXR1F5PV7GC8R0")).await;
    world.call("restart").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    let job = world.submit(by_id("01M4HXHNTVZXRXR1F5PV7GC8R1")).await;
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::MachineNotFound(_))
    ));
    world.no_call().await;
    let clone = Operation::Clone {
        source: name("a"),
        copy: name("c"),
    };
    let job = world
        .submit(Submission {
            operation: clone,
            ..by_id("01M4HXHNTVZXRXR1F5PV7GC8R0")
        })
        .await;
    // It came as far as asking for the version, at which this orbctl panics.
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::Internal(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_jobs_leave_no_more_than_a_hundred_behind() {
    let mut world = World::new();
    for _ in 0..10_000 {
        let job = world.change(exec("a")).await;
        world.call("run").await.exit(0);
        outcome(&job).await;
    }
    let filter = JobFilter {
        limit: 20_000,
        ..JobFilter::default()
    };
    let (jobs, more) = world.dispatcher.list(filter).await;
    assert_eq!((jobs.len(), more), (100, false));
    // And after a while nothing at all.
    tokio::time::sleep(Duration::from_secs(16 * 60)).await;
    let (jobs, _) = world
        .dispatcher
        .list(JobFilter {
            limit: 1,
            ..JobFilter::default()
        })
        .await;
    assert_eq!(jobs.len(), 0);
}

// ---- lives ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn the_next_life_ends_what_ran_and_carries_out_once_what_was_promised() {
    let mut world = World::new();
    let running = world.change(restart("a")).await;
    let _call = world.call("restart").await;
    let held = hold_time();
    let paused = world.dispatcher.queue(QueueVerb::Pause, Target::All).await;
    assert!(paused.expect("it lives").paused);
    let promised = world
        .submit(Submission {
            detached: true,
            ..submission(create("new"))
        })
        .await;
    let (running, promised) = (running.spec.id, promised.spec.id);
    let World { task, folder, .. } = world;
    // As a crash would: nobody says goodbye.
    task.abort();
    assert!(task.await.is_err());

    let mut world = World::over(folder, Limits::default(), true);
    let adopted = world.dispatcher.job(running).await.expect("adopted");
    let job = world.dispatcher.job(promised).await.expect("queued again");
    let call = world.call("create").await;
    assert_eq!(call.args.last().map(String::as_str), Some("new"));
    call.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
    drop(held);
    // Its child is gone, but what that told OrbStack may go on: the lane is held until the inventory has come to rest.
    let seen = ReconcileReport {
        stable: true,
        satisfied: None,
        machine_state: Some("running".into()),
    };
    assert_eq!(outcome(&adopted).await, Outcome::Unknown(seen));
    let next = world.change(exec("a")).await;
    assert!(next.spec.id > promised, "ids grow over lives");
    assert!(next.spec.id != JobId(0));
    world.call("run").await.exit(0);
    outcome(&next).await;
    world.shutdown.cancel();
    world
        .task
        .await
        .expect("no panic")
        .close(Duration::from_secs(60))
        .await
        .expect("closed");
    let mut world = World::over(world.folder, Limits::default(), true);
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_life_that_adopts_many_changes_looks_after_a_few_at_a_time_and_after_forced_ones_at_once() {
    let mut world = World::new();
    let mut calls = Vec::new();
    for number in 0..6 {
        world.change(restart(&format!("m{number}"))).await;
        calls.push(world.call("restart").await);
    }
    let held = hold_time();
    let forced = Submission {
        detached: true,
        ..submission(Operation::Stop(name("a"), Force::Yes))
    };
    world.submit(forced).await;
    calls.push(world.call("stop").await);
    drop(held);
    let World { task, folder, .. } = world;
    task.abort();
    assert!(task.await.is_err());

    // All their children are gone, so all would look at once.
    let mut world = World::over(folder, Limits::default(), false);
    let mut probe_permits = Vec::new();
    for _ in 0..=Limits::default().queries_max {
        probe_permits.push(world.call("list").await);
    }
    world.no_call().await;
    // As each ends, one that had no place has its turn; whoever looked goes behind it.
    let list = list_of(&world.orbctl.inventory);
    for look in probe_permits {
        look.end(Ending::Exited(0), &list, "");
    }
    let waited = [world.call("list").await, world.call("list").await];
    world.no_call().await;
    for look in waited {
        look.end(Ending::Exited(0), &list, "");
    }
}

#[tokio::test(start_paused = true)]
async fn looks_that_find_no_place_end_with_the_others() {
    let limits = Limits {
        queries_max: 1,
        ..Limits::default()
    };
    let mut world = World::with(limits, false);
    let jobs = [world.change(restart("a")).await, world.change(restart("b")).await];
    for _ in &jobs {
        world.call("restart").await.end(Ending::Signalled(9), "", "");
    }
    let _unanswered = world.call("list").await;
    world.no_call().await;
    let began = Moment::now();
    // Nobody ever answers: each look ends at its limit, and the other one's turn comes.
    for job in &jobs {
        assert_eq!(outcome(job).await, Outcome::Unknown(ReconcileReport::NOTHING));
    }
    let took = Moment::now().instant - began.instant;
    assert!(took <= Duration::from_secs(150), "{took:?}");
}
