//! Machines and their configuration.

use std::collections::HashMap;
use std::fmt::Write as _;

use comfy_table::Color;
use orbd_proto::types::{ConfigAnswer, MachineConfig, MachineInfoAnswer, MachineListAnswer};

use super::{GOOD, HINT, QUIET, bytes, cell, paint};
use crate::layout::Look;

fn state_colour(state: &str) -> Color {
    match state {
        "running" => GOOD,
        "stopped" => QUIET,
        _ => HINT,
    }
}

/// What a table of machines shows in addition to the list. A machine without details has `-` in their columns.
#[derive(Debug, Default)]
pub(crate) struct MachineDetails {
    /// Name of the default machine; `None` if there is none, or if it is not known.
    pub(crate) default: Option<String>,
    /// Addresses and size by the machine's name.
    pub(crate) infos: HashMap<String, MachineInfoAnswer>,
}

/// Columns of a table of machines.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MachineColumns<'a> {
    /// What the list itself contains.
    List,
    /// The columns of `orbctl list`, and the default machine.
    Details(&'a MachineDetails),
    /// Also user, IPv6 address and id.
    Wide(&'a MachineDetails),
}

/// Formats a list of machines as a table.
pub(crate) fn machines(answer: &MachineListAnswer, columns: MachineColumns<'_>, look: Look) -> String {
    let mut header = vec!["NAME", "STATE", "DISTRO", "VERSION", "ARCH"];
    let (details, wide) = match columns {
        MachineColumns::List => (None, false),
        MachineColumns::Details(details) => (Some(details), false),
        MachineColumns::Wide(details) => (Some(details), true),
    };
    if details.is_some() {
        header.extend(["SIZE", "IP", "DEFAULT"]);
    }
    if wide {
        header.extend(["USER", "IPV6", "ID"]);
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    look.table(
        &header,
        &[],
        &[0],
        answer.machines.iter().map(|machine| {
            let info = details.and_then(|details| details.infos.get(&machine.name));
            let mut row = vec![
                cell(&machine.name),
                cell(&machine.state).fg(state_colour(&machine.state)),
                cell(&machine.image.distro),
                cell(&machine.image.version),
                cell(&machine.image.arch),
            ];
            if let Some(details) = details {
                let is_default = details.default.as_ref() == Some(&machine.name);
                row.extend([
                    cell(&or_dash(info.and_then(|info| info.disk_size).map(bytes))),
                    cell(&or_dash(info.and_then(|info| info.ip4.clone()))),
                    cell(if is_default { "*" } else { "" }),
                ]);
            }
            if wide {
                row.extend([
                    cell(&or_dash(machine.config.default_username.clone())),
                    cell(&or_dash(info.and_then(|info| info.ip6.clone()))),
                    cell(&machine.id),
                ]);
            }
            row
        }),
    )
}

/// Formats the details of one machine.
pub(crate) fn info(answer: &MachineInfoAnswer, look: Look) -> String {
    let machine = &answer.machine;
    let mut lines = vec![
        ("name", machine.name.clone()),
        ("id", machine.id.clone()),
        ("state", paint(look, state_colour(&machine.state), &machine.state)),
        (
            "image",
            format!(
                "{} {} {}",
                machine.image.distro, machine.image.version, machine.image.arch
            ),
        ),
    ];
    let mut known = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    known("ip4", answer.ip4.clone());
    known("ip6", answer.ip6.clone());
    known("size", answer.disk_size.map(bytes));
    let MachineConfig {
        default_username,
        isolated,
        isolate_network,
        forward_ssh_agent,
        http_port,
        https_port,
        cpu_limit,
        memory_limit_mib,
        disk_limit_bytes,
    } = &machine.config;
    let yes = |flag: &Option<bool>| flag.filter(|flag| *flag).map(|_| "yes".to_owned());
    known("user", default_username.clone());
    known("isolated", yes(isolated));
    known("network isolated", yes(isolate_network));
    known("ssh agent", yes(forward_ssh_agent));
    // 0 means no port, as 0 means no limit below.
    let port = |port: &Option<u16>| port.filter(|port| *port > 0).map(|port| port.to_string());
    known("http port", port(http_port));
    known("https port", port(https_port));
    known(
        "cpus",
        cpu_limit
            .filter(|limit| *limit > 0)
            .map(|limit| limit.to_string()),
    );
    known(
        "memory",
        memory_limit_mib
            .filter(|limit| *limit > 0)
            .map(|limit| format!("{limit} MiB")),
    );
    known(
        "disk limit",
        disk_limit_bytes.filter(|limit| *limit > 0).map(bytes),
    );
    look.pairs(lines)
}

/// Formats OrbStack's configuration as `orbctl` prints it.
pub(crate) fn config(answer: &ConfigAnswer, _look: Look) -> String {
    answer
        .values
        .iter()
        .fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key}: {value}");
            text
        })
}
