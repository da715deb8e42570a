//! What keeps this instance from being replaced, and what an upgrade does to requests.

use crate::clock::Moment;
use crate::job::JobId;
use crate::orbctl::Orbctl;

use super::super::handle::Request;
use super::super::submission::Submission;
use super::super::views::BusyReason;
use super::State;

impl<O: Orbctl> State<O> {
    /// If the daemon is idle, refuses all new jobs from now on; returns whether it does. Nothing can be accepted between the check
    /// and the refusal. All other requests are still answered.
    pub(super) fn begin_upgrade(&mut self) -> bool {
        if self.scheduler.is_closed() || self.idle.is_upgrading() || self.busy().is_some() {
            return false;
        }
        let held = self.idle.begin_upgrade();
        self.pass(held);
        true
    }

    pub(super) fn check_idle(&mut self, now: std::time::Instant) {
        if self.idle.next_check().is_none_or(|next| next > now) {
            return;
        }
        let busy = self.busy();
        let checked = self.idle.check(now, busy.as_ref());
        if let Some(holding) = checked.holding {
            tracing::info!(holding, ?busy, "toggled the upgrade hold on new jobs");
        }
        self.pass(checked.released);
    }

    /// Returns whether to delay this submission until the upgrade is over. Forced changes are never delayed: they are for emergencies.
    pub(super) fn holds_back(&self, submission: &Submission) -> bool {
        self.is_holding() && !submission.executor.info().preempts
    }

    /// Returns whether new jobs are held back.
    pub(super) fn is_holding(&self) -> bool {
        self.idle.holds_back(self.scheduler.limits().queue_max)
    }

    /// Handles requests that were held back: accepts them, or refuses them if an upgrade has begun.
    fn pass(&mut self, held: impl IntoIterator<Item = Request>) {
        for request in held {
            self.request(request);
        }
    }

    /// Records that a client asked about a job.
    pub(super) fn asked_about(&mut self, id: JobId) {
        if let Some(entry) = self.jobs.get(id) {
            let ended = entry.ended_at().map(|ended| ended.instant);
            self.idle.asked_about(ended, Moment::now().instant);
        }
    }

    /// Returns what the next instance would not know; `None` if the daemon is idle.
    pub(super) fn busy(&self) -> Option<BusyReason> {
        if !self.scheduler.paused().is_empty() {
            return Some(BusyReason::Paused);
        }
        if !self.scheduler.draining().is_empty() {
            return Some(BusyReason::Draining);
        }
        let now = Moment::now();
        if let Some(entry) = self.jobs.needing_this_instance() {
            return Some(BusyReason::Job(entry.as_blocker(&now)));
        }
        self.idle.is_in_use(now.instant).then_some(BusyReason::Recent)
    }
}
