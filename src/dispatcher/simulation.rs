//! Tests of the dispatcher with a simulated `orbctl` and virtual time; everything else is real. Each invocation is a [`Call`] that
//! the test answers, in any order, and two minutes of virtual time pass at once.
//!
//! [`World::idle`] advances virtual time by a millisecond, which tokio does only when every task is waiting, so all tasks have then
//! run as far as they can.

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
use crate::metrics;
use crate::operation::{
    Action, Change, ExecRequest, Force, JobInfo, NewMachine, Query, RawQuery, Scope, Stdin, Verb,
};
use crate::orbctl::{Captured, Completion, Invocation, Runner, SpawnError};
use crate::sys::ChildIdentity;
use orbd_host::machine::MachineName;
use orbd_host::run_command::GuestEnv;

/// The answer to a call.
type Reply = Result<Completion, SpawnError>;

/// One invocation of `orbctl` that waits for the test's answer.
struct Call {
    args: Vec<String>,
    reply: oneshot::Sender<Reply>,
}

impl Call {
    fn end(self, ending: Ending, stdout: &str, stderr: &str) {
        // The dispatcher may have stopped the call meanwhile.
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
    /// Answer lists and the status from this struct, not through the test.
    lists_itself: bool,
    lists: Mutex<usize>,
    /// The status of OrbStack as `orbctl` prints it, and the number of times it was read.
    status: Mutex<(&'static str, usize)>,
    /// Whether the binary was replaced; reset once this is reported.
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

impl Runner for Scripted {
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

/// A dispatcher with simulated surroundings.
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
    /// Creates a world in which machines `a` and `b` run and lists are answered automatically.
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
        let (dispatcher, task) = start(&settings(folder.path(), limits), parts, shutdown.clone());
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

    /// Returns the number of jobs recorded in the metrics.
    fn records(&self) -> u64 {
        self.metrics.counters().recorded
    }

    /// Waits until every task is waiting.
    async fn idle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Takes the next invocation, which must have this command.
    async fn call(&mut self, command: &str) -> Call {
        let call = self.calls.recv().await.expect("the dispatcher lives");
        assert_eq!(call.args[0], command, "{:?}", call.args);
        call
    }

    /// Checks that there is no invocation that the test has not taken.
    async fn no_call(&mut self) {
        self.idle().await;
        if let Ok(call) = self.calls.try_recv() {
            panic!("invoked: {:?}", call.args);
        }
    }

    async fn submit(&self, submission: Submission) -> Job {
        self.dispatcher.submit(submission).await.expect("accepted")
    }

    async fn change(&self, action: impl Into<Action>) -> Job {
        self.submit(submission(action)).await
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

pub(super) fn settings(folder: &Path, limits: Limits) -> Settings {
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
        channels: ChannelRules::default(),
        markers: Markers::new("simulated", folder),
    }
}

/// Stops virtual time until the result is dropped, while the test waits for the disk, which responds in real time.
fn hold_time() -> std::sync::mpsc::Sender<()> {
    let (held, dropped) = std::sync::mpsc::channel();
    // Tokio's paused clock does not advance while a blocking task runs.
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

fn submission(action: impl Into<Action>) -> Submission {
    Submission {
        executor: Executor::Daemon(action.into()),
        client: client(1),
        expected_id: None,
        detached: false,
        queue_timeout: None,
        run_timeout: None,
        label: None,
    }
}

fn name(text: &str) -> MachineName {
    text.parse().expect("a name")
}

fn restart(machine: &str) -> Action {
    Change::Restart(name(machine)).into()
}

fn exec(machine: &str) -> Action {
    let request = ExecRequest::new(vec!["true".into()]).expect("a command");
    Action::Exec(name(machine), request)
}

fn create(machine: &str) -> Change {
    Change::Create(NewMachine::new(
        name(machine),
        "ubuntu".parse().expect("a distro"),
    ))
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
async fn change_succeeds_or_fails_as_orbctl_reports() {
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
async fn exit_code_of_a_command_is_its_result() {
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
async fn change_whose_result_already_holds_is_skipped() {
    let mut world = World::new();
    let job = world.change(Change::Start(name("a"))).await;
    assert_eq!(outcome(&job).await, UNCHANGED);
    world.no_call().await;
    let job = world.change(Change::Stop(name("a"), Force::No)).await;
    world.call("stop").await.exit(0);
    assert_eq!(outcome(&job).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn spawn_error_or_panic_fails_the_job_and_frees_its_lane() {
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
async fn submit_after_disconnect_is_refused_unless_detached() {
    let mut world = World::new();
    let late = submission(restart("a"));
    // The accept loop does this in the same order, while a handler still resolves a name.
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
async fn timeouts_end_a_command_a_read_and_a_waiting_job() {
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

// ---- reconciliation ------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn interrupted_change_that_took_effect_is_reconciled_at_the_first_poll() {
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
async fn interrupted_change_keeps_its_lane_until_the_state_is_stable() {
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
async fn reconciliation_polls_with_backoff_and_gives_up_after_two_minutes() {
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
    assert!((20..40).contains(&world.lists()), "{} polls", world.lists());
}

#[tokio::test(start_paused = true)]
async fn interrupted_change_without_effect_is_stable_after_ten_seconds() {
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
async fn earlier_of_a_cancel_and_an_end_counts() {
    let mut world = World::new();
    let job = world.change(exec("a")).await;
    let call = world.call("run").await;
    call.exit(0);
    // The end came first, although the dispatcher has not handled it yet.
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

/// Returns a lease of these processes on this machine.
fn lease_of(verb: Verb, machine: &str, child: u32, owner: u32) -> Executor {
    let identity = |pid| ChildIdentity {
        pid,
        started: crate::sys::process_identity(pid).expect("it runs"),
    };
    let info = JobInfo::lease(verb, vec![name(machine)], Force::No);
    let processes = LeaseProcesses {
        child: identity(child),
        owner: identity(owner),
    };
    Executor::Client(info, processes)
}

/// Checks how each request behaves for a job that has ended.
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
async fn outcome_is_the_same_for_waiters_and_for_late_callers() {
    let mut world = World::new();
    let mut request = ExecRequest::new(vec!["cat".into()]).expect("a command");
    request.stdin = Stdin::Stream;
    let job = world.change(Action::Exec(name("a"), request)).await;
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
    // A handle taken before the end, read after it.
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
async fn job_cancelled_in_the_queue_has_ended_for_all_handles() {
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
async fn lease_is_released_once_and_not_after_its_end() {
    let world = World::new();
    let mut process = std::process::Command::new("sh")
        .args(["-c", "read go"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("a shell");
    let job = world
        .submit(Submission {
            executor: lease_of(Verb::Push, "a", process.id(), std::process::id()),
            ..submission(exec("a"))
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
async fn job_that_becomes_runnable_at_its_deadline_does_not_start() {
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
async fn disconnect_cancels_waiting_jobs_and_commands_but_not_changes() {
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

    // The command ends before its client disconnects, so it has succeeded.
    let running = world.change(exec("a")).await;
    world.call("run").await.exit(0);
    world.dispatcher.on_disconnect(1).await;
    assert_eq!(
        outcome(&running).await,
        Outcome::Succeeded(Success::Exec { exit_code: 0 })
    );

    // A running change is left to finish. Until then it holds its connection; ended jobs hold none.
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
async fn shutdown_stops_commands_and_waiting_jobs_and_gives_changes_ten_seconds() {
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
async fn shutdown_at_the_end_of_a_job_still_reports_its_outcome() {
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
    // The older read ends last, with the state at the time it began.
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
async fn answers_of_a_replaced_orbctl_are_stale_once_the_new_one_has_started() {
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
    // It still runs, but its start has already made all cached data stale.
    assert_eq!(list(&world).await, 2);
    assert_eq!(list(&world).await, 2);
    call.exit(0);
    outcome(&command).await;
    assert_eq!(list(&world).await, 2, "an end of a command changes nothing");
    // The read that detects the replacement began before the invalidation, so it is repeated once.
    world.orbctl.replaced.store(true, Ordering::Relaxed);
    let submission = world.read(Query::List, Some(Duration::ZERO)).await;
    submission.expect("no panic").expect("facts");
    assert_eq!(list(&world).await, 4);
    assert_eq!(list(&world).await, 4);
}

fn printed(seen: &ObservedAnswer) -> (&[u8], &[u8], Ending) {
    match &seen.value.answer {
        QueryAnswer::Raw(printed) => (&printed.stdout, &printed.stderr, printed.ending),
        other => panic!("{other:?} was not printed"),
    }
}

#[tokio::test(start_paused = true)]
async fn raw_read_is_shared_only_by_equal_reads() {
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
    // Cached until something changes.
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
async fn output_of_a_failed_raw_read_is_returned_but_not_cached() {
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
    // A stopped OrbStack is not a failed read.
    world.read(status, None).await.expect("no panic").expect("kept");
    world.no_call().await;
}

#[tokio::test(start_paused = true)]
async fn cache_is_invalidated_before_a_change_is_acknowledged() {
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
    // A read that runs during the change is cached until the change ends.
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
async fn shared_read_survives_the_disconnect_of_one_client() {
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
async fn strict_mode_does_not_block_the_polls_of_the_running_job() {
    let limits = Limits {
        strict: true,
        ..Limits::default()
    };
    let mut world = World::with(limits, true);
    world.set("a", "stopped");
    let first = world.change(Change::Start(name("a"))).await;
    let second = world.change(Change::Start(name("b"))).await;
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
async fn force_stops_a_reconciling_job_and_cancels_waiting_jobs() {
    let mut world = World::new();
    let reconciliation = world.change(create("new")).await;
    world.set("new", "creating");
    world.call("create").await.end(Ending::Signalled(9), "", "");
    let waiting = world.change(restart("new")).await;
    world.idle().await;
    let began = Moment::now();
    let forced = world.change(Change::Stop(name("new"), Force::Yes)).await;
    assert_eq!(outcome(&waiting).await, Outcome::Cancelled(Phase::Queued));
    assert!(matches!(outcome(&reconciliation).await, Outcome::Unknown(seen) if !seen.stable));
    let call = world.call("stop").await;
    assert!(Moment::now().instant - began.instant < Duration::from_secs(1));
    world.set("new", "stopped");
    call.exit(0);
    assert_eq!(outcome(&forced).await, CHANGED);
}

#[tokio::test(start_paused = true)]
async fn id_of_a_replaced_machine_is_rejected() {
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
    let clone = Change::Clone {
        source: name("a"),
        copy: name("c"),
    };
    let job = world
        .submit(Submission {
            executor: Executor::Daemon(clone.into()),
            ..by_id("01M4HXHNTVZXRXR1F5PV7GC8R0")
        })
        .await;
    // It got past the id check to the version query, which panics in the simulated `orbctl`.
    assert!(matches!(
        outcome(&job).await,
        Outcome::Failed(Failure::Internal(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn history_keeps_at_most_a_hundred_of_ten_thousand_jobs() {
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
    // After the retention time none is left.
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

// ---- restarts ------------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn next_instance_reconciles_running_jobs_and_runs_accepted_jobs_once() {
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
    // Like a crash: no orderly shutdown.
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
    // Its child process is gone, but OrbStack may still be carrying out the request: the lane is held until the inventory is
    // stable.
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
async fn restored_changes_poll_a_few_at_a_time_and_forced_ones_at_once() {
    let mut world = World::new();
    let mut calls = Vec::new();
    for number in 0..6 {
        world.change(restart(&format!("m{number}"))).await;
        calls.push(world.call("restart").await);
    }
    let held = hold_time();
    let forced = Submission {
        detached: true,
        ..submission(Change::Stop(name("a"), Force::Yes))
    };
    world.submit(forced).await;
    calls.push(world.call("stop").await);
    drop(held);
    let World { task, folder, .. } = world;
    task.abort();
    assert!(task.await.is_err());

    // All their child processes are gone, so all jobs want to poll at once.
    let mut world = World::over(folder, Limits::default(), false);
    let mut probe_permits = Vec::new();
    for _ in 0..=Limits::default().queries_max {
        probe_permits.push(world.call("list").await);
    }
    world.no_call().await;
    // When a poll ends, a job that had no permit gets one; the job that just polled queues behind it.
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
async fn polls_without_a_permit_end_in_time() {
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
    // No poll is answered: each ends at its limit, and the other job gets the permit.
    for job in &jobs {
        assert_eq!(outcome(job).await, Outcome::Unknown(ReconcileReport::NOTHING));
    }
    let took = Moment::now().instant - began.instant;
    assert!(took <= Duration::from_secs(150), "{took:?}");
}
