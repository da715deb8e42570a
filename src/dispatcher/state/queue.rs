//! Pause, resume and drain of the queue or of one machine's lane.

use tokio::sync::oneshot;

use crate::orbctl::Orbctl;
use crate::scheduler;

use super::super::handle::{QueueVerb, QueueView, Target};
use super::State;

impl<O: Orbctl> State<O> {
    pub(super) fn queue(&mut self, verb: QueueVerb, target: &Target, reply: oneshot::Sender<QueueView>) {
        let lane = lane_target(target);
        tracing::info!(?verb, ?target, "queue command");
        match verb {
            QueueVerb::Pause => {
                self.scheduler.pause(lane);
                remember(&mut self.paused, target);
            }
            QueueVerb::Resume => {
                self.scheduler.resume(lane.clone());
                self.scheduler.undrain(lane);
                self.paused.retain(|other| other != target);
                self.draining.retain(|other| other != target);
                self.idle.touch(crate::clock::Moment::now().instant);
            }
            QueueVerb::Drain => {
                self.scheduler.drain(lane.clone());
                remember(&mut self.draining, target);
                self.drains.push((lane, reply));
                return;
            }
        }
        let _ = reply.send(self.queue_view());
    }

    pub(super) fn answer_drains(&mut self) {
        if self.drains.is_empty() {
            return;
        }
        let (done, waiting): (Vec<_>, Vec<_>) = self
            .drains
            .drain(..)
            .partition(|(target, reply)| reply.is_closed() || self.scheduler.is_idle(target));
        self.drains = waiting;
        for (_, reply) in done {
            let _ = reply.send(self.queue_view());
        }
    }

    pub(super) fn queue_view(&self) -> QueueView {
        let machines = |targets: &[Target]| {
            targets
                .iter()
                .filter_map(|target| match target {
                    Target::All => None,
                    Target::Machine(name) => Some(name.clone()),
                })
                .collect()
        };
        QueueView {
            waiting: self.scheduler.waiting().total(),
            running: self.scheduler.running().total(),
            queue_max: self.scheduler.limits().queue_max,
            paused: self.paused.contains(&Target::All),
            paused_machines: machines(&self.paused),
            draining: self.stopping || self.draining.contains(&Target::All),
            draining_machines: machines(&self.draining),
            outage: self.outage(),
        }
    }
}

fn lane_target(target: &Target) -> scheduler::Target {
    match target {
        Target::All => scheduler::Target::All,
        Target::Machine(name) => scheduler::Target::Lane(crate::operation::Lane::Machine(name.clone())),
    }
}

fn remember(targets: &mut Vec<Target>, target: &Target) {
    if !targets.contains(target) {
        targets.push(target.clone());
    }
}
