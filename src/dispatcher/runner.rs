//! The tasks of running jobs, and what they report.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::job::{Failure, JobId, Outcome};
use crate::journal::JournalError;
use crate::operation::Scope;
use crate::orbctl::Orbctl;
use orbd_host::error_chain::error_chain;

use super::about_job;
use super::jobs::Tokens;
use super::run_job::{JobResult, Note, RunSettings, Work};
use super::submission::{Job, JobSpec};
use super::views::Rejection;
use super::{Markers, Settings};

/// Capacity of the channel for notes. A job waits while it is full.
const NOTES_MAX: usize = 64;

/// The tasks of running jobs.
///
/// Each job is reported as ended once, after its notes, also if its task panics.
pub(super) struct Runner<O> {
    orbctl: Arc<O>,
    settings: RunSettings,
    markers: Markers,
    /// Permits for probes after a cut, shared by all jobs.
    probe_permits: Arc<Semaphore>,
    /// Number of permits in all.
    probes_max: usize,
    tasks: JoinSet<(JobId, JobResult)>,
    notes: mpsc::Sender<(JobId, Note)>,
    inbox: mpsc::Receiver<(JobId, Note)>,
}

/// What a task reports.
pub(super) enum Report {
    /// An event of a job.
    Note(JobId, Note),
    /// The end of a job.
    Ended(JobId, JobResult),
}

impl<O> Runner<O> {
    pub(super) fn new(orbctl: Arc<O>, settings: &Settings) -> Self {
        let (notes, inbox) = mpsc::channel(NOTES_MAX);
        Self {
            orbctl,
            settings: RunSettings::of(settings),
            markers: settings.markers.clone(),
            probe_permits: Arc::new(Semaphore::new(settings.probes_max())),
            probes_max: settings.probes_max(),
            tasks: JoinSet::new(),
            notes,
            inbox,
        }
    }

    /// Replaces the settings. They apply to jobs that start later; running jobs also keep the permits of the old semaphore.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.settings = RunSettings::of(settings);
        self.markers = settings.markers.clone();
        if self.probes_max != settings.probes_max() {
            self.probes_max = settings.probes_max();
            self.probe_permits = Arc::new(Semaphore::new(self.probes_max));
        }
    }

    /// Returns the time between SIGTERM and SIGKILL.
    pub(super) fn grace(&self) -> Duration {
        self.settings.grace
    }

    /// Returns the marker of a job's process.
    pub(super) fn marker(&self, spec: &JobSpec) -> String {
        self.markers.of(spec)
    }

    /// Returns what a job needs to run, whatever it does.
    pub(super) fn work(&self, spec: &Arc<JobSpec>, tokens: Tokens, marker: String) -> Work<O> {
        Work {
            spec: spec.clone(),
            orbctl: self.orbctl.clone(),
            settings: self.settings.clone(),
            stop: tokens.stop,
            abandon: tokens.abandon,
            probe_permits: self.probe_permits.clone(),
            marker,
            notes: self.notes.clone(),
        }
    }

    /// Runs a job in its own task.
    pub(super) fn spawn(&mut self, spec: &JobSpec, work: impl Future<Output = JobResult> + Send + 'static) {
        let id = spec.id;
        let work = work.instrument(about_job::span(spec));
        self.tasks.spawn(async move {
            // A panic here is a bug in orbd. It must end only this job.
            let finished = AssertUnwindSafe(work).catch_unwind().await;
            let broken = || JobResult::new(Outcome::Failed(Failure::Internal("job task panicked".into())));
            (id, finished.unwrap_or_else(|_| broken()))
        });
    }

    /// Closes the channels that a change of this scope would disturb, then calls `closed`. Returns at once.
    pub(super) fn close_channels(&self, scope: Scope, closed: impl FnOnce() + Send + 'static)
    where
        O: Orbctl,
    {
        let orbctl = self.orbctl.clone();
        tokio::spawn(async move {
            orbctl.close_channels(&scope).await;
            closed();
        });
    }

    /// Acknowledges an accepted job once its journal entry would survive a power loss. If that fails, reports it instead. If the
    /// dispatcher has ended by then, the caller gets no reply.
    pub(super) fn acknowledge(
        &self,
        accepted: Job,
        written: impl Future<Output = Result<(), JournalError>> + Send + 'static,
        reply: oneshot::Sender<Result<Job, Rejection>>,
    ) {
        let notes = self.notes.clone();
        tokio::spawn(async move {
            match written.await {
                Ok(()) => {
                    let _ = reply.send(Ok(accepted));
                }
                Err(error) => {
                    let (id, cause) = (accepted.spec.id, error_chain(&error).into());
                    let _ = notes
                        .send((id, Note::NotDurable(Box::new(accepted), cause, reply)))
                        .await;
                }
            }
        });
    }

    /// Waits for the next report. Cancel-safe.
    pub(super) async fn next(&mut self) -> Report {
        loop {
            tokio::select! {
                biased;
                // Never closed, because `notes` is a sender of it.
                Some((id, note)) = self.inbox.recv() => return Report::Note(id, note),
                Some(ended) = self.tasks.join_next() => match ended {
                    Ok((id, finished)) => return Report::Ended(id, finished),
                    Err(error) => tracing::error!(%error, "job task was lost"),
                },
            }
        }
    }

    /// Returns the number of running jobs.
    pub(super) fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Closes every channel, so that the next instance of orbd finds no process of them.
    pub(super) async fn close_all_channels(&self)
    where
        O: Orbctl,
    {
        self.orbctl.close_channels(&Scope::Everything).await;
    }

    /// Lets the jobs that still run continue without orbd. They report nothing more.
    pub(super) fn leave(&mut self) {
        self.tasks.detach_all();
    }
}
