//! Resident channels as the rest of the daemon sees them: what is counted, what `daemon.info` lists, and what a crash leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use orbd_proto::types::{Channel, ChannelsOff};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Counter, Metrics};
use crate::orbctl::{ChannelEvent, ChannelState, ChannelView, Observer, Unused, orphan_gone};
use crate::sys::ChildIdentity;

/// Counts what channels do.
pub(super) struct ChannelObserver {
    pub(super) metrics: Metrics,
    /// Number of open connections.
    pub(super) connections: Arc<AtomicUsize>,
}

impl Observer for ChannelObserver {
    fn on(&self, event: ChannelEvent) {
        self.metrics.count(match event {
            ChannelEvent::Opened => Counter::ChannelsOpened,
            ChannelEvent::OpenFailed => Counter::ChannelsFailed,
            ChannelEvent::Reused => {
                self.metrics.count(Counter::SpawnsSaved);
                Counter::ChannelCommands
            }
            ChannelEvent::Declined => Counter::ChannelsDeclined,
            ChannelEvent::Broken => Counter::ChannelsBroken,
            ChannelEvent::MayHaveRun => Counter::ChannelsUnknown,
        });
    }

    fn has_clients(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > 0
    }
}

/// Ends the channels that a crash of the previous instance left, before a job can take their lanes. They end by themselves, because
/// their input has ended; only a command that ignores SIGTERM takes the whole grace.
pub(super) async fn end_channels(processes: Vec<ChildIdentity>, grace: Duration) {
    if processes.is_empty() {
        return;
    }
    tracing::warn!(
        channels = processes.len(),
        "waiting for the end of channels that the previous instance left open"
    );
    let stop = CancellationToken::new();
    stop.cancel();
    join_all(
        processes
            .into_iter()
            .map(|process| orphan_gone(process, &stop, grace)),
    )
    .await;
}

/// Returns why there are no channels as `daemon.info` says it.
pub(super) fn off(unused: &Unused) -> ChannelsOff {
    ChannelsOff {
        cause: match unused {
            Unused::Fast(_) => "unnecessary",
            Unused::Unsuitable(_) => "unsuitable",
        }
        .into(),
        message: unused.to_string(),
    }
}

/// Returns a channel as `daemon.info` lists it.
pub(super) fn listed(view: &ChannelView) -> Channel {
    let (state, open) = match view.state {
        ChannelState::Closed => ("closed", None),
        ChannelState::Opening => ("opening", None),
        ChannelState::Open {
            age,
            commands,
            is_busy,
        } => (if is_busy { "busy" } else { "idle" }, Some((age, commands))),
    };
    Channel {
        machine: view.machine.to_string(),
        user: view.user.as_ref().map(|user| user.as_str().to_owned()),
        state: state.into(),
        age_ms: open.map(|(age, _)| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        commands: open.map(|(_, commands)| commands),
        problem: view.problem.clone(),
    }
}
