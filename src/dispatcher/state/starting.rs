//! Starts of jobs: invalidates the cache and writes the journal before a child may exist.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, CacheKey};
use crate::clock::Moment;
use crate::job::JobId;
use crate::journal::{Entry as JournalEntry, Starting};
use crate::metrics::Counter;
use crate::operation::{Effect, Scope};
use crate::orbctl::Orbctl;
use crate::sys::ChildIdentity;
use orbd_host::machine::{MachineName, MachineState};

use super::super::answer::{CachedAnswer, by_name};
use super::super::jobs::StartingJob;
use super::super::run_job::{Durable, Task, run_job};
use super::super::stored;
use super::super::submission::{JobSpec, JobState};
use super::State;
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    pub(super) fn start_ready(&mut self) {
        // Once an upgrade has begun, every waiting job is in the journal: the next instance starts it.
        while !self.idle.is_upgrading()
            && let Some(id) = self.scheduler.start_next(Moment::now().instant)
        {
            self.start(id);
        }
    }

    fn start(&mut self, id: JobId) {
        let now = Moment::now();
        let Some(StartingJob { spec, task, tokens }) = self.jobs.take_task(id) else {
            debug_assert!(false, "job {id} started, but is not waiting");
            self.scheduler.end(id);
            return;
        };
        let touches = match &spec.info.effect {
            Effect::Changes(scope) => Some(scope.clone()),
            Effect::MayStart(machines) => may_start(machines, self.reads.cache(), &now, self.reads.max_age()),
            Effect::Reads => None,
        };
        let marker = if spec.info.is_lease {
            String::new()
        } else {
            self.runner.marker(&spec)
        };
        let mut durable = None;
        if let Task::Query(query) = &task {
            self.reads.start(query, id, self.watch.is_poll(id), &now);
        } else {
            durable = self.journal_start(&spec, &marker);
        }
        if let Some(scope) = &touches {
            self.touch(&spec.info, scope);
        }
        // Last, because a watcher may act on the new state at once, as a lease's owner does. By then the next instance must be able
        // to find the job in the journal.
        self.watch.note_job(&spec, &JobState::Running { since: now }, now);
        self.jobs.set_running(id, now, touches);
        about_job!(debug, spec, "job started");
        let work = self.runner.work(&spec, tokens, marker);
        self.runner.spawn(&spec, run_job(work, task, durable));
    }

    /// Records in the journal that a child may exist from now on. Without the entry, the next instance could run another job in the
    /// same lanes at the same time. For a durable job, returns a future that the child must wait for, so that a power loss cannot
    /// make the job run twice.
    fn journal_start(&self, spec: &JobSpec, marker: &str) -> Option<Durable> {
        let entry = JournalEntry::Starting(Starting {
            job: spec.id,
            marker: marker.to_owned(),
            lanes: spec.info.footprint.lanes().to_vec(),
            verb: spec.info.verb.as_str().to_owned(),
            machine: spec.info.machine.clone(),
            class: spec.info.class,
            detached: spec.detached,
        });
        let durable = spec.is_durable().then(|| -> Durable {
            match self.journal.append_durable(&entry) {
                Ok(written) => Box::pin(written),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        });
        if durable.is_none() {
            self.journal_append(&entry);
        }
        if let Some(processes) = spec.lease {
            // orbd's own children are counted when they are spawned.
            self.metrics.count(Counter::Spawns);
            self.child_started(spec.id, processes.child, Some(processes.owner));
        }
        durable
    }

    /// Records a child in the journal. For a lease also records the owner, so that the next instance can end the child when the owner
    /// exits.
    pub(super) fn child_started(&self, id: JobId, child: ChildIdentity, owner: Option<ChildIdentity>) {
        let needed = self.jobs.get(id).is_some_and(|entry| !entry.spec.info.is_read());
        if needed {
            self.journal_append(&JournalEntry::Started {
                job: id,
                process: stored::process(&child),
                owner: owner.as_ref().map(stored::process),
            });
        }
    }

    /// Writes an entry to the journal if possible. If it fails, work continues, because refusing a stop or a delete on a full disk
    /// would make things worse; the journal logs the failure and marks the job.
    pub(super) fn journal_append(&self, entry: &JournalEntry) {
        let _ = self.journal.append(entry);
    }
}

/// Returns what a command invalidates: those of its machines that were not recently observed running, because the command may start
/// them. `None` if there are none.
fn may_start(
    machines: &[MachineName],
    cache: &Cache<Arc<CachedAnswer>>,
    now: &Moment,
    max_age: Duration,
) -> Option<Scope> {
    let seen = cache.fresh(&CacheKey::Machines, now, max_age);
    let is_running = |name: &&MachineName| {
        seen.and_then(|seen| by_name(seen.value.machines()?, name))
            .is_some_and(|machine| machine.state == MachineState::Running)
    };
    let stale: Vec<MachineName> = machines
        .iter()
        .filter(|name| !is_running(name))
        .cloned()
        .collect();
    (!stale.is_empty()).then_some(Scope::Machines(stale))
}
