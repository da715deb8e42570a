//! The daemon, its cache, reloads and upgrades.

use std::fmt::Write as _;

use comfy_table::Cell;
use orbd_proto::types::{CacheStatusAnswer, Channel, DaemonInfoAnswer, ReloadAnswer, Upgrade};

use super::{BAD, GOOD, HINT, QUIET, age_ms, bytes, duration_us, paint};
use crate::layout::Look;

/// Formats the state of the cache.
pub(crate) fn cache(answer: &CacheStatusAnswer, look: Look) -> String {
    let asked = answer.hits + answer.misses;
    let share = if asked == 0 {
        String::new()
    } else {
        format!(" ({} %)", u128::from(answer.hits) * 100 / u128::from(asked))
    };
    let mut text = look.pairs([
        ("generation", answer.generation.to_string()),
        ("hits", format!("{}{share}", answer.hits)),
        ("misses", answer.misses.to_string()),
    ]);
    if !answer.entries.is_empty() {
        text.push('\n');
        text.push_str(&look.table(
            &["KEY", "MACHINE", "GENERATION", "SEEN", "VALID"],
            &[2],
            &[1],
            answer.entries.iter().map(|entry| {
                vec![
                    Cell::new(&entry.key),
                    Cell::new(entry.machine.as_deref().unwrap_or("-")),
                    Cell::new(entry.generation),
                    Cell::new(age_ms(entry.age_ms)),
                    if entry.valid {
                        Cell::new("yes").fg(GOOD)
                    } else {
                        Cell::new("no").fg(QUIET)
                    },
                ]
            }),
        ));
    }
    text
}

/// Formats a limit in the unit that the suffix of its name indicates.
fn bound(name: &str, limit: u64) -> String {
    if name.ends_with("_ms") {
        duration_us(limit.saturating_mul(1000))
    } else if name.ends_with("_bytes") {
        bytes(limit)
    } else {
        limit.to_string()
    }
}

/// Describes a resident channel, or why there is none.
fn channel(channel: &Channel) -> (String, String) {
    let name = match &channel.user {
        Some(user) => format!("{user}@{}", channel.machine),
        None => channel.machine.clone(),
    };
    let mut about = channel.state.clone();
    if let (Some(age), Some(commands)) = (channel.age_ms, channel.commands) {
        let age = duration_us(age.saturating_mul(1000));
        let _ = write!(about, ", {commands} commands in {age}");
    }
    if let Some(problem) = &channel.problem {
        let _ = write!(about, ": {problem}");
    }
    (name, about)
}

/// Formats the answer of `daemon.info`.
pub(crate) fn daemon(answer: &DaemonInfoAnswer, look: Look) -> String {
    let nothing = || "none".to_owned();
    let mut text = format!(
        "{}, pid {}, up {}\n",
        paint(look, GOOD, &format!("orbd {} is running", answer.version)),
        answer.pid,
        duration_us(answer.uptime_ms.saturating_mul(1000))
    );
    let mut lines = vec![
        (
            "program",
            answer.program.clone().unwrap_or_else(|| "unknown".into()),
        ),
        ("since", answer.started_at.clone()),
        ("socket", answer.socket.clone()),
        (
            "orbctl",
            answer.orbctl.clone().unwrap_or_else(|| {
                paint(
                    look,
                    BAD,
                    "not found; install OrbStack, or set `orbctl` in the configuration",
                )
            }),
        ),
        ("config", answer.config_file.clone().unwrap_or_else(nothing)),
        ("state", answer.state_dir.clone()),
        (
            "protocol",
            if answer.protocol_min == answer.protocol {
                answer.protocol.to_string()
            } else {
                format!("{} to {}", answer.protocol_min, answer.protocol)
            },
        ),
    ];
    if let Some(upgrade) = &answer.upgrade {
        lines.push(("upgrade", self::upgrade(upgrade)));
    }
    if answer.strict {
        lines.push(("order", "strict: one invocation at a time".into()));
    }
    if let Some(off) = &answer.channels_off {
        lines.push(("channels", format!("none: {}", off.message)));
    }
    text.push_str(&look.pairs(lines));
    if !answer.channels.is_empty() {
        text.push_str("channels\n");
        let listed: Vec<(String, String)> = answer.channels.iter().map(channel).collect();
        let listed = look.pairs(listed.iter().map(|(name, about)| (name.as_str(), about.clone())));
        text.extend(listed.lines().map(|line| format!("  {line}\n")));
    }
    let limits = look.pairs(
        answer
            .limits
            .iter()
            .map(|(name, limit)| (name.as_str(), bound(name, *limit))),
    );
    if !limits.is_empty() {
        text.push_str("limits\n");
    }
    text.extend(limits.lines().map(|line| format!("  {line}\n")));
    text
}

/// Formats the result of a reload.
pub(crate) fn reload(answer: &ReloadAnswer, look: Look) -> String {
    let shown = |value: &Option<String>| value.as_deref().unwrap_or("not set").to_owned();
    let mut text = String::new();
    for key in &answer.applied {
        let (from, to) = (shown(&key.old_value), shown(&key.new_value));
        let label = paint(look, GOOD, "applied");
        let _ = writeln!(text, "{label} {}: {from} -> {to}", key.key);
    }
    for key in &answer.needs_restart {
        let (running, configured) = (shown(&key.running), shown(&key.configured));
        let label = paint(look, HINT, "needs `orbd-ctl daemon restart`");
        let _ = writeln!(
            text,
            "{label} {}: now {running}, {configured} after the restart",
            key.key
        );
    }
    if text.is_empty() {
        let file = answer.config_file.as_ref().map_or_else(
            || "no configuration file".to_owned(),
            |file| format!("read {file}"),
        );
        text = format!("{file}; no changes\n");
    }
    text
}

/// Formats a pending upgrade: what it waits for, or why it was refused.
pub(crate) fn upgrade(upgrade: &Upgrade) -> String {
    match (&upgrade.reason, &upgrade.version, &upgrade.waits_for) {
        (Some(reason), ..) => format!("refused: {reason}; `orbd-ctl daemon reload` tries again"),
        (None, version, waits_for) => format!(
            "{} is installed and starts when orbd is idle; waiting for {}; `orbd-ctl daemon restart` does not wait",
            version
                .as_ref()
                .map_or_else(|| "a new binary".into(), |version| format!("orbd {version}")),
            waits_for.as_deref().unwrap_or("running jobs")
        ),
    }
}
