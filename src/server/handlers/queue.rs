//! `queue.*`: pausing, resuming and draining.

use crate::dispatcher::{QueueVerb, QueueView, Target};
use crate::server::context::Server;
use crate::server::convert::{self, parse};
use crate::server::errors;
use crate::server::registry::Registry;
use orbd_proto::methods::{QueueDrain, QueuePause, QueueResume, QueueStatus};
use orbd_proto::types::{ErrorObject, QueueStatusAnswer, QueueTargetParams};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<QueueStatus, _, _>(async |call, _params| {
        Ok(answer(&call.server.dispatcher.queue_view().await))
    });
    registry.method::<QueuePause, _, _>(async |call, params| {
        change(&call.server, QueueVerb::Pause, &params).await
    });
    registry.method::<QueueResume, _, _>(async |call, params| {
        change(&call.server, QueueVerb::Resume, &params).await
    });
    registry.method::<QueueDrain, _, _>(async |call, params| {
        change(&call.server, QueueVerb::Drain, &params).await
    });
}

async fn change(
    server: &Server,
    verb: QueueVerb,
    params: &QueueTargetParams,
) -> Result<QueueStatusAnswer, ErrorObject> {
    let view = server.dispatcher.queue(verb, target(params)?).await;
    view.map(|view| answer(&view))
        .map_err(|rejection| errors::rejection(&rejection))
}

fn target(params: &QueueTargetParams) -> Result<Target, ErrorObject> {
    params.machine.as_ref().map_or(Ok(Target::All), |machine| {
        parse("machine", machine).map(Target::Machine)
    })
}

fn answer(view: &QueueView) -> QueueStatusAnswer {
    let names = |names: &[orbd_host::machine::MachineName]| names.iter().map(ToString::to_string).collect();
    QueueStatusAnswer {
        waiting: view.waiting,
        running: view.running,
        queue_max: view.queue_max,
        paused: view.paused,
        paused_machines: names(&view.paused_machines),
        draining: view.draining,
        draining_machines: names(&view.draining_machines),
        unhealthy: view.outage.as_ref().map(convert::outage),
    }
}
