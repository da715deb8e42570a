//! Machines and their configuration.

use std::fmt::Write as _;

use comfy_table::{Cell, Color};
use orbd_proto::types::{ConfigAnswer, MachineConfig, MachineInfoAnswer, MachineListAnswer};

use super::{GOOD, HINT, QUIET, bytes, paint};
use crate::layout::Look;

fn state_colour(state: &str) -> Color {
    match state {
        "running" => GOOD,
        "stopped" => QUIET,
        _ => HINT,
    }
}

/// Formats a list of machines as a table.
pub(crate) fn machines(answer: &MachineListAnswer, look: Look) -> String {
    look.table(
        &["NAME", "STATE", "DISTRO", "VERSION", "ARCH"],
        &[],
        &[0],
        answer.machines.iter().map(|machine| {
            vec![
                Cell::new(&machine.name),
                Cell::new(&machine.state).fg(state_colour(&machine.state)),
                Cell::new(&machine.image.distro),
                Cell::new(&machine.image.version),
                Cell::new(&machine.image.arch),
            ]
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
