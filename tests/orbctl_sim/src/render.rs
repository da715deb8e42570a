//! Machines as text and as JSON, in the recorded shapes.

use std::io::IsTerminal;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::answers::{Answers, JsonForm, JsonKeys, ListDashes};
use crate::catalog;
use crate::refusal::{Outcome, Refusal};
use crate::script::{Kind, Trouble};
use crate::state::{Machine, MachineState};

/// Changes that scripted troubles and answers make to the records.
#[derive(Clone, Copy)]
pub(crate) struct Shape<'a> {
    troubles: &'a [Trouble],
    answers: Answers,
}

impl<'a> Shape<'a> {
    /// Returns the shape with these troubles and answers.
    pub(crate) fn new(troubles: &'a [Trouble], answers: Answers) -> Shape<'a> {
        Shape { troubles, answers }
    }

    /// Returns whether a record has all its keys.
    fn is_full(&self, machine: &Machine) -> bool {
        self.answers.json_keys == JsonKeys::All && self.find(Kind::MissingOptionalKeys, machine).is_none()
    }

    fn find(&self, kind: Kind, machine: &Machine) -> Option<&'a Trouble> {
        let concerns = |trouble: &&Trouble| {
            trouble.kind == kind && trouble.record.as_ref().is_none_or(|name| *name == machine.name)
        };
        self.troubles.iter().find(concerns)
    }

    /// Returns the state word as printed.
    fn state(&self, machine: &Machine) -> &'a str {
        match self.find(Kind::UnknownState, machine) {
            Some(trouble) => trouble.text.as_deref().unwrap_or("provisioning"),
            None => machine.state.word(),
        }
    }
}

/// A machine's record: an element of `list -f json`. Keys are in the recorded order; those in an `Option` are left out
/// by older versions or by a script.
#[derive(Serialize)]
pub(crate) struct Record<'a> {
    id: &'a str,
    name: &'a str,
    image: ImageRecord<'a>,
    config: ConfigRecord<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    builtin: Option<bool>,
    state: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sim_future_key: Option<u8>,
}

#[derive(Serialize)]
struct ImageRecord<'a> {
    distro: &'a str,
    version: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

#[derive(Serialize)]
struct ConfigRecord<'a> {
    isolated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolate_network: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forward_ssh_agent: Option<bool>,
    default_username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    https_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mounts: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sim_future_key: Option<[&'a str; 2]>,
}

/// The answer of `info -f json`.
#[derive(Serialize)]
pub(crate) struct Info<'a> {
    record: Record<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<Ipv6Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sim_future_key: Option<&'a str>,
}

/// Returns the record of a machine.
pub(crate) fn record<'a>(machine: &'a Machine, shape: Shape<'a>) -> Record<'a> {
    let config = &machine.config;
    let full = shape.is_full(machine);
    let unknown = shape.find(Kind::UnknownKeys, machine).is_some();
    Record {
        id: &machine.id,
        name: &machine.name,
        image: ImageRecord {
            distro: &machine.image.distro,
            version: &machine.image.version,
            arch: &machine.image.arch,
            variant: full.then_some(machine.image.variant.as_str()),
        },
        config: ConfigRecord {
            isolated: config.isolated,
            isolate_network: full.then_some(config.isolate_network),
            forward_ssh_agent: full.then_some(config.forward_ssh_agent),
            default_username: &config.default_username,
            http_port: full.then_some(config.http_port),
            https_port: full.then_some(config.https_port),
            mounts: (full && !config.mounts.is_empty()).then_some(config.mounts.as_slice()),
            cpu_limit: (full && config.cpus != 0).then_some(config.cpus),
            memory_limit_mib: (full && config.memory_mib != 0).then_some(config.memory_mib),
            disk_limit_bytes: (full && config.disk_bytes != 0).then_some(config.disk_bytes),
            sim_future_key: unknown.then_some(["not", "seen yet"]),
        },
        builtin: full.then_some(false),
        state: shape.state(machine),
        sim_future_key: unknown.then_some(1),
    }
}

/// Returns the record of a machine with its addresses and size.
pub(crate) fn info<'a>(machine: &'a Machine, shape: Shape<'a>) -> Info<'a> {
    let running = machine.state == MachineState::Running;
    Info {
        record: record(machine, shape),
        disk_size: shape.is_full(machine).then_some(machine.disk_size),
        ip4: running.then(|| catalog::ip4(machine.address)),
        ip6: running.then(|| catalog::ip6(&machine.id)),
        sim_future_key: shape.find(Kind::UnknownKeys, machine).map(|_| "x"),
    }
}

/// Returns the answer of `info` as text. Only the labels `IPv4` and `Architecture` are recorded.
pub(crate) fn info_text(machine: &Machine, shape: Shape<'_>) -> String {
    let mut lines = vec![
        ("ID", machine.id.clone()),
        ("Name", machine.name.clone()),
        ("State", shape.state(machine).to_owned()),
        ("Distro", machine.image.distro.clone()),
        ("Version", machine.image.version.clone()),
        ("Architecture", machine.image.arch.clone()),
        ("Username", machine.config.default_username.clone()),
        ("Disk size", size(machine.disk_size)),
    ];
    if machine.state == MachineState::Running {
        lines.push(("IPv4", catalog::ip4(machine.address).to_string()));
        lines.push(("IPv6", catalog::ip6(&machine.id).to_string()));
    }
    lines
        .into_iter()
        .map(|(label, value)| [label, ": ", &value, "\n"].concat())
        .collect()
}

/// Returns the table of `list`. The row of dashes was seen on terminals only.
pub(crate) fn table(machines: &[&Machine], shape: Shape<'_>) -> String {
    const TITLES: [&str; 7] = ["NAME", "STATE", "DISTRO", "VERSION", "ARCH", "SIZE", "IP"];
    let mut rows = vec![TITLES.map(str::to_owned)];
    if std::io::stdout().is_terminal() || shape.answers.list_dashes == ListDashes::Always {
        rows.push(TITLES.map(|title| "-".repeat(title.len())));
    }
    for machine in machines {
        let running = machine.state == MachineState::Running;
        let address = catalog::ip4(machine.address).to_string();
        rows.push([
            machine.name.clone(),
            shape.state(machine).to_owned(),
            machine.image.distro.clone(),
            machine.image.version.clone(),
            machine.image.arch.clone(),
            size(machine.disk_size),
            if running { address } else { String::new() },
        ]);
    }
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    for row in &rows {
        for (cell, width) in row[..6].iter().zip(widths) {
            table.push_str(cell);
            table.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        // The last column is not padded; the one before it is, even if the last is empty.
        table.push_str(&row[6]);
        table.push('\n');
    }
    table
}

/// Formats a size in decimal units with one digit, as recorded: `687.2 MB`, `5.8 GB`.
fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    let mut word = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if bytes / unit < 1000 {
            break;
        }
        unit *= 1000;
        word = next;
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
    format!("{}.{} {word}", tenths / 10, tenths % 10)
}

/// Formats JSON as the stand-in prints it; whether the real tool indents is not known.
pub(crate) fn json(value: &impl Serialize, form: JsonForm) -> Outcome<String> {
    let text = match form {
        JsonForm::Indented => serde_json::to_string_pretty(value),
        JsonForm::Compact => serde_json::to_string(value),
    };
    text.map(|text| text + "\n")
        .map_err(|error| Refusal::Whole(error.to_string()))
}
