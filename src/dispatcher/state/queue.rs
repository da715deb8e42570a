//! Pause, resume and drain of the queue or of one machine's lane.

use tokio::sync::oneshot;

use crate::operation::{Lane, Scope};
use crate::orbctl::Orbctl;
use crate::scheduler;
use orbd_host::machine::MachineName;

use super::super::submission::Target;
use super::super::views::{QueueVerb, QueueView};
use super::State;

impl<O: Orbctl> State<O> {
    pub(super) fn queue(&mut self, verb: QueueVerb, target: &Target, reply: oneshot::Sender<QueueView>) {
        let lane = lane_target(target);
        tracing::info!(?verb, ?target, "queue command");
        if verb != QueueVerb::Resume {
            // The queue is held back so that something else can use the machine.
            self.runner.close_channels(scope_of(target), || {});
        }
        match verb {
            QueueVerb::Pause => self.scheduler.pause(lane),
            QueueVerb::Resume => {
                self.scheduler.resume(&lane);
                self.scheduler.undrain(&lane);
                self.idle.touch(crate::clock::Moment::now().instant);
            }
            QueueVerb::Drain => {
                self.scheduler.drain(lane.clone());
                self.drains.wait(lane, reply);
                return;
            }
        }
        let _ = reply.send(self.queue_view());
    }

    pub(super) fn answer_drains(&mut self) {
        let is_idle = |target: &scheduler::Target| self.scheduler.is_idle(target);
        for reply in self.drains.take_complete(is_idle) {
            let _ = reply.send(self.queue_view());
        }
    }

    pub(super) fn queue_view(&self) -> QueueView {
        let (paused, draining) = (self.scheduler.paused(), self.scheduler.draining());
        QueueView {
            waiting: self.scheduler.waiting().total(),
            running: self.scheduler.running().total(),
            queue_max: self.scheduler.limits().queue_max,
            paused: paused.contains(&scheduler::Target::All),
            paused_machines: machines(paused),
            draining: self.scheduler.is_closed() || draining.contains(&scheduler::Target::All),
            draining_machines: machines(draining),
            outage: self.outage(),
        }
    }
}

fn scope_of(target: &Target) -> Scope {
    match target {
        Target::All => Scope::Everything,
        Target::Machine(name) => Scope::Machines(vec![name.clone()]),
    }
}

fn lane_target(target: &Target) -> scheduler::Target {
    match target {
        Target::All => scheduler::Target::All,
        Target::Machine(name) => scheduler::Target::Lane(Lane::Machine(name.clone())),
    }
}

fn machines(targets: &[scheduler::Target]) -> Vec<MachineName> {
    let machine = |target: &scheduler::Target| match target {
        scheduler::Target::Lane(Lane::Machine(name)) => Some(name.clone()),
        _ => None,
    };
    targets.iter().filter_map(machine).collect()
}
