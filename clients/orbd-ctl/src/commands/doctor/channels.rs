//! Checks the resident channels.

use orbd_proto::types::DaemonInfoAnswer;

use super::Check;

/// Checks whether commands can share an `orbctl run`.
pub(super) fn channels(info: &DaemonInfoAnswer) -> Check {
    const ABOUT: &str = "channels";
    const EFFECT: &str = "each command costs an orbctl run";
    if let Some(off) = &info.channels_off {
        let message = format!("none: {}", off.message);
        return if off.cause == "unsuitable" {
            let fix = "update OrbStack, or run `orbd-ctl cache invalidate` to try again";
            Check::warn(ABOUT, format!("{message}; {EFFECT}"), fix)
        } else {
            Check::ok(ABOUT, message)
        };
    }
    let problems: Vec<String> = info
        .channels
        .iter()
        .filter(|channel| channel.state == "closed")
        .filter_map(|channel| Some(format!("{}: {}", channel.machine, channel.problem.as_ref()?)))
        .collect();
    if problems.is_empty() {
        return Check::ok(ABOUT, format!("{} open", info.channels.len()));
    }
    Check::warn(
        ABOUT,
        format!("{}; {EFFECT} there", problems.join("; ")),
        "orbd tries again once the machine was restarted; `exec_channel_except` leaves a machine out",
    )
}
