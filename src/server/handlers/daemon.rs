//! `daemon.*`: the daemon itself.

use crate::clock::Moment;
use crate::dispatcher::BusyReason;
use crate::server::context::Upgrade;
use crate::server::convert::{self, ms, time, waiting_for};
use crate::server::registry::Registry;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{DaemonHello, DaemonInfo, DaemonReload, DaemonStop, PROTOCOL_VERSION};
use orbd_proto::types::{self, DaemonInfoAnswer, Done, HelloAnswer};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Maximum length of a client name, in bytes.
const CLIENT_NAME_MAX: usize = 64;

pub(super) fn register(registry: &mut Registry) {
    registry.method::<DaemonHello, _, _>(async |call, params| {
        let name = &params.client;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > CLIENT_NAME_MAX || !name.chars().all(plain) {
            return Err(invalid(
                "client",
                format!("must be 1 to {CLIENT_NAME_MAX} letters, digits, '-', '_' or '.'"),
            ));
        }
        if params.protocol != PROTOCOL_VERSION {
            let fix = if params.protocol > PROTOCOL_VERSION {
                "orbd is older: install the new version, then run `orbd-ctl daemon restart`"
            } else {
                "the client is older: update it to a version that matches this orbd"
            };
            let text = format!(
                "client '{name}' speaks protocol {}, but orbd {VERSION} speaks protocol {PROTOCOL_VERSION}; {fix}",
                params.protocol
            );
            return Err(ErrorKind::ProtocolMismatch.error(text));
        }
        call.connection.set_name(name);
        Ok(HelloAnswer {
            protocol: PROTOCOL_VERSION,
            version: VERSION.into(),
            instance: call.server.info.instance.clone(),
        })
    });
    registry.method::<DaemonInfo, _, _>(async |call, _params| {
        let info = &call.server.info;
        let queue = call.server.dispatcher.queue_view().await;
        let upgrade = call.server.upgrade.borrow().clone();
        let upgrade = match upgrade {
            Some(upgrade) => {
                let busy = call.server.dispatcher.busy().await;
                Some(upgrade_answer(&upgrade, busy.as_ref()))
            }
            None => None,
        };
        let in_force = call.server.in_force.borrow().clone();
        let path = |path: &std::path::Path| path.display().to_string();
        Ok(DaemonInfoAnswer {
            version: VERSION.into(),
            protocol: PROTOCOL_VERSION,
            instance: info.instance.clone(),
            pid: std::process::id(),
            started_at: time(info.started.wall),
            uptime_ms: ms(Moment::now().age_of(&info.started)),
            socket: path(&info.socket),
            orbctl: (call.server.orbctl)().as_deref().map(path),
            config_file: in_force.config_file.as_deref().map(path),
            state_dir: path(&info.state_dir),
            limits: in_force.limits,
            strict: in_force.strict,
            unhealthy: queue.outage.as_ref().map(convert::outage),
            upgrade,
        })
    });
    registry.method::<DaemonReload, _, _>(async |call, _params| {
        tracing::info!(client = %call.connection.name(), "reload requested");
        (call.server.reload)()
            .await
            .map_err(|problem| ErrorKind::ConfigInvalid.error(problem))
    });
    registry.method::<DaemonStop, _, _>(async |call, _params| {
        tracing::info!(client = %call.connection.name(), "stop requested");
        call.server.stop.cancel();
        Ok(Done {})
    });
}

/// Converts a pending or refused upgrade. `busy` says why the daemon is not idle.
fn upgrade_answer(upgrade: &Upgrade, busy: Option<&BusyReason>) -> types::Upgrade {
    let (version, reason) = match &upgrade.preflight {
        Ok(version) => (Some(version.clone()), None),
        Err(reason) => (None, Some(reason.clone())),
    };
    types::Upgrade {
        state: if reason.is_none() { "pending" } else { "refused" }.into(),
        noticed_at: time(upgrade.noticed.wall),
        waits_for: version.as_ref().map(|_| match busy {
            Some(BusyReason::Job(job)) => waiting_for(job).description,
            Some(BusyReason::Paused) => "the queue to be resumed, as an upgrade would end the pause".into(),
            Some(BusyReason::Draining) => "the end of the drain, as an upgrade would cancel it".into(),
            Some(BusyReason::Recent) | None => "an idle moment".into(),
        }),
        version,
        reason,
    }
}
