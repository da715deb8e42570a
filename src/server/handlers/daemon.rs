//! `daemon.*`: the daemon itself.

use crate::clock::Moment;
use crate::dispatcher::BusyReason;
use crate::server::context::Upgrade;
use crate::server::convert::{self, ms, time, waiting_for};
use crate::server::registry::Registry;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{
    DaemonHello, DaemonInfo, DaemonReload, DaemonStop, PROTOCOL_MIN, PROTOCOL_VERSION,
};
use orbd_proto::protocol::ProtocolRange;
use orbd_proto::types::{self, ChannelsOff, DaemonInfoAnswer, Done, HelloAnswer};

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
        let theirs = ProtocolRange::announced(params.protocol_min, params.protocol)
            .ok_or_else(|| invalid("protocol_min", "must not exceed `protocol`"))?;
        let protocol = agree(name, theirs, ProtocolRange::OURS)
            .map_err(|text| ErrorKind::ProtocolMismatch.error(text))?;
        call.connection.set_name(name);
        Ok(HelloAnswer {
            protocol,
            version: VERSION.into(),
            instance: call.server.info.instance.clone(),
        })
    });
    registry.method::<DaemonInfo, _, _>(async |call, _params| {
        let info = &call.server.info;
        let queue = call.server.dispatcher.queue_view().await;
        let upgrade = call.server.upgrade.borrow().clone();
        let upgrade = match upgrade {
            _ if call.server.binary_watcher.is_checking() => Some(being_checked()),
            Some(upgrade) => {
                let busy = call.server.dispatcher.busy().await;
                Some(upgrade_answer(&upgrade, busy.as_ref()))
            }
            None => None,
        };
        let in_force = call.server.in_force.borrow().clone();
        let path = |path: &std::path::Path| path.display().to_string();
        let (channels, no_channels) = (call.server.channels)();
        Ok(DaemonInfoAnswer {
            version: VERSION.into(),
            protocol: PROTOCOL_VERSION,
            protocol_min: PROTOCOL_MIN,
            instance: info.instance.clone(),
            pid: std::process::id(),
            started_at: time(info.started.wall),
            uptime_ms: ms(Moment::now().age_of(&info.started)),
            program: info.program.as_deref().map(path),
            socket: path(&info.socket),
            orbctl: (call.server.orbctl)().as_deref().map(path),
            config_file: in_force.config_file.as_deref().map(path),
            state_dir: path(&info.state_dir),
            limits: in_force.limits,
            strict: in_force.strict,
            unhealthy: queue.outage.as_ref().map(convert::outage),
            upgrade,
            channels,
            channels_off: in_force
                .channels_off
                .map(|message| ChannelsOff {
                    cause: "configured".into(),
                    message: message.into(),
                })
                .or(no_channels),
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

/// Returns the protocol version for a connection of client `name`, or the message if there is no common one.
fn agree(name: &str, theirs: ProtocolRange, ours: ProtocolRange) -> Result<u32, String> {
    theirs.agree(ours).ok_or_else(|| {
        let fix = if ours.is_older_than(theirs) {
            "orbd is older: upgrade it; `orbd-ctl doctor` names the command"
        } else {
            "the client is older: upgrade it"
        };
        format!("client '{name}' speaks {theirs}, but orbd {VERSION} speaks {ours}; {fix}")
    })
}

/// Returns the answer for a new binary whose preflight has not ended.
fn being_checked() -> types::Upgrade {
    types::Upgrade {
        state: "checking".into(),
        noticed_at: time(Moment::now().wall),
        version: None,
        waits_for: Some("its preflight".into()),
        reason: None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_other_versions_get_a_common_protocol_or_both_ranges_and_the_fix() {
        let range = |min, max| ProtocolRange::announced(Some(min), max).expect("not empty");
        let check = |theirs, expected: Result<u32, &str>| {
            let agreed = agree("deploy", theirs, range(2, 3));
            let expected = expected.map_err(|text| text.replace("VERSION", VERSION));
            assert_eq!(agreed, expected);
        };
        check(range(1, 2), Ok(2));
        check(range(3, 9), Ok(3));
        check(
            range(1, 1),
            Err(
                "client 'deploy' speaks protocol 1, but orbd VERSION speaks protocols 2 to 3; the client is older: upgrade it",
            ),
        );
        check(
            range(4, 5),
            Err(
                "client 'deploy' speaks protocols 4 to 5, but orbd VERSION speaks protocols 2 to 3; orbd is older: upgrade it; \
                 `orbd-ctl doctor` names the command",
            ),
        );
    }
}
