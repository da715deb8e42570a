//! All jobs: those that wait or run, and the ended ones that are kept.

mod by_connection;
mod entry;
mod history;
mod watchers;

use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{Ending, JobId, Outcome, ReconcileReport};
use crate::operation::{Action, JobInfo, OutputKept, Scope, Stdin};
use crate::orbctl::{Exec, Input};
use crate::spool::{self, Spool};

use super::run_job::Task;
use super::submission::{Executor, Job, JobSpec, JobState, Release, Released, WaitingFor};
use super::views::{Cancelled, StateFilter};
use super::{RunTimeouts, Settings};
use by_connection::JobsByConnection;
use entry::{ActiveJob, JobPhase, Output};
pub(super) use entry::{EndedJob, Entry};
use history::{Dropped, History, Retention};
use watchers::EndedJobWatchers;

/// Chunks of streamed input buffered between a client and a child.
const INPUT_MAX: usize = 4;
/// Most bytes of commands, environments and inputs of unfinished jobs.
pub(super) const OPERANDS_MAX: u64 = 256 << 20;

/// All jobs.
///
/// From its acceptance to its end a job is *active*: its operands count, and the connection that it is attached to leads to it. An
/// ended job has neither, and stays until the history drops it; an ended read does not stay. A job ends once.
pub(super) struct JobTable {
    settings: JobSettings,
    jobs: BTreeMap<JobId, Entry>,
    by_connection: JobsByConnection,
    watchers: EndedJobWatchers,
    history: History,
    /// Bytes of commands, environments and inputs of active jobs.
    operands: u64,
    spools: spool::Budget,
    /// Shared empty spool of all ended jobs without output.
    nothing: Spool,
}

struct JobSettings {
    queue_timeout: Duration,
    run_timeouts: RunTimeouts,
    spool: spool::Settings,
    retention: Retention,
}

/// What a waiting job needs to start. It is given out once.
pub(super) struct StartingJob {
    pub(super) spec: Arc<JobSpec>,
    pub(super) task: Task,
    pub(super) tokens: Tokens,
}

/// Tokens of an active job.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    /// Cancelled to stop the running invocation.
    pub(super) stop: CancellationToken,
    /// Cancelled to end reconciliation too: a forced change preempts the job, or orbd stops.
    pub(super) abandon: CancellationToken,
}

/// What is known of a running job when its task has ended.
pub(super) struct EndingJob {
    pub(super) spec: Arc<JobSpec>,
    pub(super) since: Option<Moment>,
    /// Cache scope that the job invalidates at its end.
    pub(super) touches: Option<Scope>,
    /// The forced change that preempted the job, if one did.
    pub(super) preempted_by: Option<WaitingFor>,
}

impl JobTable {
    pub(super) fn new(settings: &Settings) -> Self {
        let spools = spool::Budget::new(settings.spool_total_max);
        Self {
            settings: JobSettings::of(settings),
            jobs: BTreeMap::new(),
            by_connection: JobsByConnection::default(),
            watchers: EndedJobWatchers::default(),
            history: History::default(),
            operands: 0,
            nothing: spool::nothing(&settings.spool, &spools),
            spools,
        }
    }

    /// Replaces the settings. Accepted jobs keep the limits that they were given.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.spools.set_max(settings.spool_total_max);
        self.settings = JobSettings::of(settings);
    }

    /// Returns the longest time in the queue, if the caller sets no limit.
    pub(super) fn queue_timeout(&self) -> Duration {
        self.settings.queue_timeout
    }

    /// Returns the longest run time of a read.
    pub(super) fn query_timeout(&self) -> Duration {
        self.settings.run_timeouts.query
    }

    /// Fills in the limits that a caller did not set.
    pub(super) fn set_default_limits(&self, spec: &mut JobSpec) {
        spec.queue_timeout.get_or_insert(self.settings.queue_timeout);
        if spec.run_timeout.is_none() && spec.info.has_run_limit() {
            spec.run_timeout = self.settings.run_timeouts.of(spec.info.class);
        }
    }

    /// Returns whether the operands of one more job fit into memory.
    pub(super) fn has_room_for(&self, spec: &JobSpec) -> bool {
        self.operands.saturating_add(spec.weight) <= OPERANDS_MAX
    }

    /// Adds an accepted job, which waits.
    pub(super) fn insert(&mut self, spec: &Arc<JobSpec>, executor: Executor) -> Job {
        let (live, output) = self.beginning(executor);
        let entry = Entry::new(spec.clone(), live, output);
        let job = entry.job(&mut self.watchers);
        self.add(entry);
        self.by_connection.enter(spec);
        job
    }

    /// Adds a job that runs already, and that belongs to no connection of this instance. Returns its tokens and, for a lease, the
    /// receiver of its release: the owner may reconnect to report how the child ended.
    pub(super) fn insert_running(
        &mut self,
        spec: &Arc<JobSpec>,
        since: Moment,
        touches: Option<Scope>,
    ) -> (Tokens, Option<oneshot::Receiver<Release>>) {
        let mut live = ActiveJob::new(None);
        live.state.send_replace(JobState::Running { since });
        live.touches = touches;
        let tokens = live.tokens.clone();
        let release = spec.lease.is_some().then(|| {
            let (sender, release) = oneshot::channel();
            live.release = Some(sender);
            release
        });
        // The output of a command was lost with the instance that read it.
        let output = if spec.info.is_command_of_daemon() {
            Output::Kept(self.nothing.clone())
        } else {
            Output::None
        };
        self.add(Entry::new(spec.clone(), live, output));
        (tokens, release)
    }

    fn add(&mut self, entry: Entry) {
        self.operands += entry.spec.weight;
        self.jobs.insert(entry.spec.id, entry);
    }

    /// Returns the channels, tokens and output of a new job.
    fn beginning(&self, executor: Executor) -> (ActiveJob, Output) {
        let (machine, request) = match executor {
            Executor::Daemon(Action::Query(query)) => {
                return (ActiveJob::new(Some(Task::Query(query))), Output::None);
            }
            Executor::Daemon(Action::Change(change)) => {
                return (ActiveJob::new(Some(Task::Change(change))), Output::None);
            }
            Executor::Client(_, processes) => {
                let (sender, release) = oneshot::channel();
                let mut live = ActiveJob::new(Some(Task::Lease(processes, release)));
                live.release = Some(sender);
                return (live, Output::None);
            }
            Executor::Daemon(Action::Exec(machine, request)) => (machine, request),
        };
        let mut settings = self.settings.spool.clone();
        if request.output == OutputKept::Unread {
            settings.keep = spool::Keep::Unread;
        }
        let (output, spool) = spool::spool(&settings, &self.spools);
        let (stdin, input) = match &request.stdin {
            Stdin::Empty => (Input::Empty, None),
            Stdin::Bytes(bytes) => (Input::Bytes(bytes.clone()), None),
            Stdin::Stream => {
                let (input, stream) = mpsc::channel(INPUT_MAX);
                (Input::Stream(stream), Some(input))
            }
        };
        let exec = Exec {
            machine,
            request,
            stdin,
            output,
        };
        let mut live = ActiveJob::new(Some(Task::Exec(Box::new(exec))));
        live.input = input;
        (live, Output::Kept(spool))
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Entry> {
        self.jobs.get(&id)
    }

    /// Returns all jobs, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.jobs.values()
    }

    /// Returns a handle to a job.
    pub(super) fn job(&mut self, id: JobId) -> Option<Job> {
        let entry = self.jobs.get(&id)?;
        Some(entry.job(&mut self.watchers))
    }

    fn active_mut(&mut self, id: JobId) -> Option<&mut ActiveJob> {
        self.jobs.get_mut(&id)?.live_mut()
    }

    /// Records that one more caller shares a job.
    pub(super) fn share(&mut self, id: JobId) {
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.joined += 1;
        }
    }

    /// Records that a resident channel carries out a job.
    pub(super) fn note_channel(&mut self, id: JobId) {
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.in_channel = true;
        }
    }

    /// Gives out what a waiting job needs to start. `None` if the job does not wait.
    pub(super) fn take_task(&mut self, id: JobId) -> Option<StartingJob> {
        let entry = self.jobs.get_mut(&id)?;
        let spec = entry.spec.clone();
        let live = entry.live_mut()?;
        Some(StartingJob {
            spec,
            task: live.task.take()?,
            tokens: live.tokens.clone(),
        })
    }

    /// Tells the watchers of a job that it runs. `touches` is the cache scope that it invalidates, now and at its end.
    pub(super) fn set_running(&mut self, id: JobId, since: Moment, touches: Option<Scope>) {
        if let Some(live) = self.active_mut(id) {
            live.touches = touches;
            live.state.send_replace(JobState::Running { since });
        }
    }

    /// Returns the sender of a job's streamed input; `None` if it takes none or its input is closed.
    pub(super) fn input(&self, id: JobId) -> Option<mpsc::Sender<Bytes>> {
        self.jobs.get(&id)?.live()?.input.clone()
    }

    /// Closes a job's streamed input.
    pub(super) fn close_input(&mut self, id: JobId) {
        if let Some(live) = self.active_mut(id) {
            live.input = None;
        }
    }

    /// Passes its client's release to a running lease. Drops the reply if the lease has ended or was released before.
    pub(super) fn release(&mut self, id: JobId, ending: Option<Ending>, reply: oneshot::Sender<Released>) {
        if let Some(live) = self.active_mut(id)
            && let Some(release) = live.release.take()
        {
            let preempted_by = live.preempted_by.clone();
            // If the lease has ended meanwhile, the reply is dropped, which the caller sees as "already ended".
            let _ = release.send(Release {
                ending,
                preempted_by,
                reply,
            });
        }
    }

    /// Stops the invocation of an active job. An error says why there is nothing to stop.
    pub(super) fn stop(&self, id: JobId) -> Result<(), Cancelled> {
        let entry = self.jobs.get(&id).ok_or(Cancelled::NoSuchJob)?;
        let live = entry.live().ok_or(Cancelled::AlreadyEnded)?;
        live.tokens.stop.cancel();
        Ok(())
    }

    /// Stops a running job, and its reconciliation too, because a forced change preempts it. Returns the job if it is active.
    pub(super) fn preempt(&mut self, id: JobId, by: Option<WaitingFor>) -> Option<Arc<JobSpec>> {
        let entry = self.jobs.get_mut(&id)?;
        let live = entry.live_mut()?;
        live.preempted_by = by;
        live.tokens.stop.cancel();
        live.tokens.abandon.cancel();
        Some(entry.spec.clone())
    }

    /// Takes what the end of a running job needs. `None` if the job is not active.
    pub(super) fn take_ending(&mut self, id: JobId) -> Option<EndingJob> {
        let entry = self.jobs.get_mut(&id)?;
        let spec = entry.spec.clone();
        let live = entry.live_mut()?;
        Some(EndingJob {
            spec,
            since: live.running_since(),
            touches: live.touches.take(),
            preempted_by: live.preempted_by.take(),
        })
    }

    /// Ends an active job: tells its watchers, and keeps its result and output in the history. Returns the ended state.
    pub(super) fn end(&mut self, id: JobId, over: EndedJob) -> Option<JobState> {
        let entry = self.jobs.get_mut(&id)?;
        if !entry.is_active() {
            debug_assert!(false, "job {id} ended twice");
            return None;
        }
        let (at, ended) = (over.at.instant, over.state());
        let JobPhase::ActiveJob(live) = mem::replace(&mut entry.phase, JobPhase::EndedJob(Box::new(over)))
        else {
            return None;
        };
        let channel = live.release_waiters();
        channel.send_replace(ended.clone());
        self.watchers.keep(id, channel);
        self.operands -= entry.spec.weight;
        self.by_connection.leave(&entry.spec);
        if entry.spec.info.is_read() {
            // A read's answer went to its waiters, and reads are many: the metrics record them, the job list does not.
            self.jobs.remove(&id);
            return Some(ended);
        }
        let mut kept = None;
        if let Output::Kept(spool) = &mut entry.output {
            if spool.is_nothing() {
                *spool = self.nothing.clone();
            }
            kept = Some(spool.end().min(spool::MEMORY));
        }
        self.history.push(id, kept, at);
        Some(ended)
    }

    /// Returns when the history drops its oldest job.
    pub(super) fn next_drop(&self) -> Option<Instant> {
        self.history.next_drop(&self.settings.retention)
    }

    /// Drops the ended jobs and outputs that the history no longer keeps.
    pub(super) fn drop_old(&mut self, now: Instant) {
        while let Some(dropped) = self.history.drop_next(&self.settings.retention, now) {
            match dropped {
                Dropped::Job(id) => {
                    self.jobs.remove(&id);
                }
                Dropped::Output(id) => {
                    if let Some(entry) = self.jobs.get_mut(&id) {
                        entry.output = Output::Gone(entry.output.bytes());
                    }
                }
            }
        }
    }

    /// Returns the jobs that end with a connection: its attached waiting jobs and commands. Running changes continue. So do running
    /// leases, whose owner may still release them on another connection.
    pub(super) fn ended_by_disconnect(&self, connection: u64) -> Vec<JobId> {
        let ends = |id: &JobId| {
            let entry = self.jobs.get(id);
            entry.is_some_and(Entry::ends_with_its_connection)
        };
        self.by_connection.on(connection).filter(ends).collect()
    }

    /// Returns the connections that have attached jobs.
    pub(super) fn connections(&self) -> HashSet<u64> {
        self.by_connection.connections()
    }

    /// Returns the jobs that a stop of the daemon cancels. A waiting detached change is in the journal: the next instance runs it.
    pub(super) fn ended_by_stop(&self) -> Vec<JobId> {
        let ends = |entry: &&Entry| match entry.phase() {
            StateFilter::Waiting => !entry.spec.is_durable(),
            StateFilter::Running => !entry.is_left_to_finish(),
            StateFilter::Ended => false,
        };
        self.iter().filter(ends).map(|entry| entry.spec.id).collect()
    }

    /// Ends the reconciliation of all jobs.
    pub(super) fn abandon_all(&self) {
        for live in self.iter().filter_map(Entry::live) {
            live.tokens.abandon.cancel();
        }
    }

    /// Returns whether a stop of the daemon waits for a job.
    pub(super) fn delays_a_stop(&self) -> bool {
        self.iter().any(Entry::holds_up_a_stop)
    }

    /// Returns a job that the next instance would not finish, or whose result a client has yet to read.
    pub(super) fn needing_this_instance(&self) -> Option<&Entry> {
        let mut watched = self.watchers.jobs().filter_map(|id| self.jobs.get(&id));
        let active = self.iter().find(|entry| entry.needs_this_instance());
        active.or_else(|| watched.next())
    }

    /// Forgets all jobs, and tells the watchers of the running ones that orbd did not see their ends; otherwise they would take the
    /// closed channel for a refusal and retry.
    pub(super) fn leave(&mut self, now: Moment) {
        for entry in mem::take(&mut self.jobs).into_values() {
            let JobPhase::ActiveJob(live) = entry.phase else {
                continue;
            };
            let Some(since) = live.running_since() else {
                continue;
            };
            let over = EndedJob {
                since: Some(since),
                at: now,
                outcome: unobserved_outcome(&entry.spec.info),
                holder: None,
            };
            live.release_waiters().send_replace(over.state());
        }
    }
}

impl JobSettings {
    fn of(settings: &Settings) -> Self {
        Self {
            queue_timeout: settings.queue_timeout,
            run_timeouts: settings.run_timeouts,
            spool: settings.spool.clone(),
            retention: Retention {
                time: settings.keep,
                jobs_max: settings.keep_max,
                bytes_max: settings.keep_bytes,
            },
        }
    }
}

/// Returns the outcome of a job whose end orbd did not observe.
fn unobserved_outcome(info: &JobInfo) -> Outcome {
    if info.is_change() {
        Outcome::Unknown(ReconcileReport::NOTHING)
    } else {
        Outcome::Interrupted
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dispatcher::fixture::{self, processes};
    use crate::dispatcher::simulation;
    use crate::job::Phase;
    use crate::operation::{Change, ExecRequest, Force, Query, Verb};
    use crate::scheduler::Limits;

    const CONNECTION: u64 = 5;

    fn table() -> JobTable {
        JobTable::new(&simulation::settings(Path::new("/missing"), Limits::default()))
    }

    fn change() -> Executor {
        Executor::Daemon(Action::Change(Change::Start("web".parse().expect("a name"))))
    }

    fn exec(stdin: Stdin) -> Executor {
        let mut request = ExecRequest::new(vec!["true".to_owned()]).expect("a command");
        request.stdin = stdin;
        Executor::Daemon(Action::Exec("web".parse().expect("a name"), request))
    }

    fn lease() -> Executor {
        let info = JobInfo::lease(Verb::Start, vec!["web".parse().expect("a name")], Force::No);
        Executor::Client(info, processes())
    }

    /// Adds an attached job of the connection.
    fn insert(table: &mut JobTable, id: u64, executor: Executor) -> Job {
        table.insert(&Arc::new(fixture::job(id, &executor, CONNECTION)), executor)
    }

    fn start(table: &mut JobTable, id: u64) -> StartingJob {
        let starting = table.take_task(JobId(id)).expect("the job waits");
        table.set_running(JobId(id), Moment::now(), None);
        starting
    }

    fn end(table: &mut JobTable, id: u64) -> Option<JobState> {
        let over = EndedJob {
            since: None,
            at: Moment::now(),
            outcome: Outcome::Cancelled(Phase::Queued),
            holder: None,
        };
        table.end(JobId(id), over)
    }

    #[test]
    fn operands_and_connection_count_from_acceptance_to_end() {
        let mut table = table();
        let half = exec(Stdin::Bytes(vec![0; 130 << 20].into()));
        let other = fixture::job(2, &half, CONNECTION);
        assert!(table.has_room_for(&other));
        insert(&mut table, 1, half);
        assert!(!table.has_room_for(&other));
        assert_eq!(table.connections(), HashSet::from([CONNECTION]));
        start(&mut table, 1);
        assert!(!table.has_room_for(&other), "also while it runs");
        assert!(end(&mut table, 1).is_some_and(|state| state.is_ended()));
        assert!(table.has_room_for(&other) && table.connections().is_empty());
        assert_eq!(table.get(JobId(1)).map(Entry::phase), Some(StateFilter::Ended));
    }

    #[test]
    fn task_is_given_out_once_and_the_watchers_see_each_state() {
        let mut table = table();
        let job = insert(&mut table, 1, change());
        assert!(matches!(*job.state.borrow(), JobState::Waiting));
        let starting = start(&mut table, 1);
        assert!(table.take_task(JobId(1)).is_none());
        assert!(matches!(*job.state.borrow(), JobState::Running { .. }));
        assert_eq!(table.stop(JobId(1)), Ok(()));
        assert!(starting.tokens.stop.is_cancelled() && !starting.tokens.abandon.is_cancelled());
        end(&mut table, 1);
        assert!(job.state.borrow().is_ended());
        assert_eq!(table.stop(JobId(1)), Err(Cancelled::AlreadyEnded));
        assert_eq!(table.stop(JobId(2)), Err(Cancelled::NoSuchJob));
    }

    #[test]
    fn disconnect_ends_attached_waiting_jobs_and_commands() {
        let mut table = table();
        for (id, executor) in [(1, change()), (2, change()), (3, lease()), (4, lease())] {
            insert(&mut table, id, executor);
        }
        insert(&mut table, 5, exec(Stdin::Empty));
        for running in [2, 4, 5] {
            start(&mut table, running);
        }
        let detached = JobSpec {
            detached: true,
            ..fixture::job(6, &change(), CONNECTION)
        };
        table.insert(&Arc::new(detached), change());
        assert_eq!(table.ended_by_disconnect(CONNECTION), [1, 3, 5].map(JobId));
        assert_eq!(table.ended_by_disconnect(CONNECTION + 1), []);
    }

    #[test]
    fn ended_reads_leave_and_other_jobs_stay_until_the_history_drops_them() {
        let mut table = table();
        insert(&mut table, 1, Executor::Daemon(Action::Query(Query::List)));
        insert(&mut table, 2, change());
        insert(&mut table, 3, exec(Stdin::Empty));
        for id in 1..=3 {
            end(&mut table, id);
        }
        assert!(table.get(JobId(1)).is_none());
        let late = table.job(JobId(3)).expect("the job is kept");
        assert!(late.state.borrow().is_ended() && late.spool.is_some_and(|spool| spool.is_nothing()));
        table.drop_old(Moment::now().instant);
        assert_eq!(table.iter().count(), 2);
        let drop_at = table.next_drop().expect("two jobs are kept");
        table.drop_old(drop_at + Duration::from_secs(1));
        assert_eq!(table.iter().count(), 0);
    }

    #[test]
    fn job_needs_this_instance_while_a_client_would_lose_it() {
        let mut table = table();
        let detached = JobSpec {
            detached: true,
            ..fixture::job(1, &change(), CONNECTION)
        };
        let job = table.insert(&Arc::new(detached), change());
        assert!(table.needing_this_instance().is_some(), "its client waits for it");
        drop(job);
        assert!(table.needing_this_instance().is_none(), "the journal has it");
        start(&mut table, 1);
        assert!(table.needing_this_instance().is_some(), "it runs");
        let job = table.job(JobId(1)).expect("the job is active");
        end(&mut table, 1);
        assert!(
            table.needing_this_instance().is_some(),
            "a client reads its result"
        );
        drop(job);
        assert!(table.needing_this_instance().is_none());
    }

    #[test]
    fn lease_is_released_once_and_learns_what_preempted_it() {
        let mut table = table();
        let spec = Arc::new(fixture::job(1, &lease(), CONNECTION));
        let (tokens, release) = table.insert_running(&spec, Moment::now(), Some(Scope::Everything));
        let blocker = table.get(JobId(1)).map(|entry| entry.as_blocker(&Moment::now()));
        assert!(table.preempt(JobId(1), blocker).is_some() && tokens.abandon.is_cancelled());
        let (reply, mut dropped) = oneshot::channel();
        table.release(JobId(1), None, oneshot::channel().0);
        table.release(JobId(1), None, reply);
        let released = release.expect("a lease").try_recv().expect("it was released");
        assert!(released.preempted_by.is_some());
        assert!(dropped.try_recv().is_err(), "the lease was released before");
        let ending = table.take_ending(JobId(1)).expect("the job is active");
        assert_eq!(ending.touches, Some(Scope::Everything));
        assert!(ending.since.is_some() && ending.preempted_by.is_some());
    }

    #[test]
    fn watchers_of_running_jobs_learn_that_their_end_is_unknown() {
        let mut table = table();
        let waiting = insert(&mut table, 1, change());
        let jobs = [(2, change()), (3, exec(Stdin::Empty))].map(|(id, executor)| {
            let job = insert(&mut table, id, executor);
            start(&mut table, id);
            job
        });
        table.leave(Moment::now());
        let outcomes = jobs.map(|job| match &*job.state.borrow() {
            JobState::Ended { outcome, .. } => outcome.clone(),
            other => panic!("{other:?}"),
        });
        let unknown = Outcome::Unknown(ReconcileReport::NOTHING);
        assert_eq!(outcomes, [unknown, Outcome::Interrupted]);
        assert!(waiting.state.has_changed().is_err(), "its channel is closed");
    }
}
