//! `config show|get|set|add|remove|reset`: settings of OrbStack and of each machine.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::Sim;
use crate::answers::ConfigGet;
use crate::args::Program;
use crate::commands::Command;
use crate::grammar::CONFIG;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::state::{Inventory, Machine, MachineConfig};

/// A parsed `config` command.
pub(crate) enum ConfigCommand {
    Show,
    Get {
        key: String,
    },
    Set {
        key: String,
        value: String,
    },
    /// Adds to the list of a key.
    Add {
        key: String,
        value: String,
    },
    /// Removes from the list of a key.
    Remove {
        key: String,
        value: String,
    },
    /// Resets a key, or all settings without one.
    Reset {
        key: Option<String>,
    },
}

/// Keys of OrbStack itself, with their defaults; the values are plausible, not recorded.
const DEFAULTS: &[(&str, &str)] = &[
    ("app.start_at_login", "true"),
    ("cpu", "11"),
    ("data_allow_backup", "false"),
    ("docker.expose_ports_to_lan", "true"),
    ("docker.node_name", "orbstack"),
    ("docker.set_context", "true"),
    ("k8s.enable", "false"),
    ("k8s.expose_services", "false"),
    ("machines.expose_ports_to_lan", "true"),
    ("machines.forward_ports", "true"),
    ("memory_mib", "16384"),
    ("mount_hide_shared", "false"),
    ("network.https", "true"),
    ("network.subnet4", "192.168.138.0/23"),
    ("network_bridge", "true"),
    ("network_proxy", "auto"),
    ("power.pause_in_sleep", "true"),
    ("rosetta", "true"),
    ("setup.use_admin", "true"),
    ("ssh.expose_port", "false"),
];

/// The keys of each machine, as on 2.2.3.
const MACHINE_KEYS: [&str; 10] = [
    "username",
    "isolated",
    "isolate_network",
    "forward_ssh_agent",
    "mounts",
    "cpu",
    "memory_mib",
    "disk_bytes",
    "http_port",
    "https_port",
];

/// Parses the arguments of `config`.
pub(crate) fn parse(program: Program, words: &[OsString]) -> Outcome<Command> {
    let Some((name, words)) = words.split_first() else {
        return Ok(Command::Help(usage(program)));
    };
    let name = name.to_string_lossy();
    if matches!(&*name, "-h" | "--help") {
        return Ok(Command::Help(usage(program)));
    }
    let full = format!("config {name}");
    let Some(syntax) = CONFIG.iter().find(|syntax| syntax.name() == full) else {
        let program_name = program.name();
        return Err(Refusal::Usage(format!(
            "Error: unknown command \"{name}\" for \"{program_name} config\"\n{}",
            usage(program)
        )));
    };
    let words = syntax.read(program, words)?;
    if words.has("help") {
        return Ok(Command::Help(syntax.usage(program)));
    }
    let mut operands = words.operands().into_iter();
    let mut next = || operands.next().unwrap_or_default();
    Ok(Command::Config(match &*name {
        "show" => ConfigCommand::Show,
        "get" => ConfigCommand::Get { key: next() },
        "set" => ConfigCommand::Set {
            key: next(),
            value: next(),
        },
        "add" => ConfigCommand::Add {
            key: next(),
            value: next(),
        },
        "remove" => ConfigCommand::Remove {
            key: next(),
            value: next(),
        },
        _ => ConfigCommand::Reset { key: operands.next() },
    }))
}

fn usage(program: Program) -> String {
    let commands = CONFIG.iter().map(|syntax| ["\n  ", syntax.name()].concat());
    format!(
        "Usage:\n  {} config [command]\n\nAvailable Commands:{}",
        program.name(),
        commands.collect::<String>()
    )
}

impl ConfigCommand {
    /// Returns the machine whose setting is meant.
    pub(crate) fn machine(&self) -> Option<String> {
        match self {
            ConfigCommand::Show => None,
            ConfigCommand::Get { key }
            | ConfigCommand::Set { key, .. }
            | ConfigCommand::Add { key, .. }
            | ConfigCommand::Remove { key, .. } => split(key),
            ConfigCommand::Reset { key } => key.as_deref().and_then(split),
        }
        .map(|(machine, _)| machine.to_owned())
    }
}

/// Executes a `config` command.
pub(crate) fn execute(sim: &Sim<'_>, command: &ConfigCommand) -> Outcome<Reply> {
    sim.settings.latency.pass("config");
    match command {
        ConfigCommand::Show => Ok(Reply::text(
            all(&sim.store.read()?)
                .into_iter()
                .map(|(key, value)| [&key, ": ", &value, "\n"].concat())
                .collect::<String>(),
        )),
        ConfigCommand::Get { key } => {
            let all = all(&sim.store.read()?);
            let pair = |key: &str, value: &str| [key, ": ", value, "\n"].concat();
            let value = all.get(key).ok_or_else(unknown)?;
            Ok(Reply::text(match sim.settings.answers.everywhere().config_get {
                ConfigGet::Value => value.clone() + "\n",
                ConfigGet::Pair => pair(key, value),
                ConfigGet::Everything => all.iter().map(|(key, value)| pair(key, value)).collect(),
            }))
        }
        ConfigCommand::Set { key, value } => sim.store.change(|inventory| {
            set(inventory, key, Some(value))?;
            Ok(Reply::silent())
        }),
        ConfigCommand::Add { key, value } => sim.store.change(|inventory| {
            mounts(inventory, key)?.push(value.clone());
            Ok(Reply::silent())
        }),
        ConfigCommand::Remove { key, value } => sim.store.change(|inventory| {
            let mounts = mounts(inventory, key)?;
            let at = mounts.iter().position(|mount| mount == value);
            mounts.remove(at.ok_or_else(|| invalid(key, value))?);
            Ok(Reply::silent())
        }),
        ConfigCommand::Reset { key: Some(key) } => sim.store.change(|inventory| {
            set(inventory, key, None)?;
            Ok(Reply::silent())
        }),
        ConfigCommand::Reset { key: None } => sim.store.change(|inventory| {
            inventory.config.clear();
            Ok(Reply::silent())
        }),
    }
}

/// Returns every key with its value.
fn all(inventory: &Inventory) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = DEFAULTS
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    all.extend(inventory.config.clone());
    for machine in &inventory.machines {
        for key in MACHINE_KEYS {
            all.insert(
                format!("machine.{}.{key}", machine.name),
                machine_value(machine, key),
            );
        }
    }
    all
}

fn set(inventory: &mut Inventory, key: &str, value: Option<&str>) -> Outcome<()> {
    if let Some((name, field)) = split(key) {
        let machine = inventory.machines.iter_mut().find(|machine| machine.name == name);
        let machine = machine.ok_or_else(unknown)?;
        return set_machine(machine, field, value).ok_or_else(|| match value {
            Some(value) if MACHINE_KEYS.contains(&field) => invalid(key, value),
            _ => unknown(),
        });
    }
    let (_, default) = DEFAULTS
        .iter()
        .find(|(known, _)| *known == key)
        .ok_or_else(unknown)?;
    match value {
        None => {
            inventory.config.remove(key);
        }
        Some(value) => {
            let fits = match *default {
                "true" | "false" => value.parse::<bool>().is_ok(),
                number if number.parse::<u64>().is_ok() => value.parse::<u64>().is_ok(),
                _ => true,
            };
            if !fits {
                return Err(invalid(key, value));
            }
            inventory.config.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(())
}

/// Returns the list of a key; a machine's `mounts` is the only key with a list.
fn mounts<'a>(inventory: &'a mut Inventory, key: &str) -> Outcome<&'a mut Vec<String>> {
    let machine = split(key)
        .filter(|(_, field)| *field == "mounts")
        .and_then(|(name, _)| inventory.machines.iter_mut().find(|machine| machine.name == name));
    let machine = machine.ok_or_else(unknown)?;
    Ok(&mut machine.config.mounts)
}

/// Splits `machine.NAME.KEY`. A name may contain dots, a machine's key contains none.
fn split(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix("machine.")?.rsplit_once('.')
}

fn machine_value(machine: &Machine, key: &str) -> String {
    let config = &machine.config;
    match key {
        "username" => config.default_username.clone(),
        "isolated" => config.isolated.to_string(),
        "isolate_network" => config.isolate_network.to_string(),
        "forward_ssh_agent" => config.forward_ssh_agent.to_string(),
        "mounts" => config.mounts.join(","),
        "cpu" => config.cpus.to_string(),
        "memory_mib" => config.memory_mib.to_string(),
        "disk_bytes" => config.disk_bytes.to_string(),
        "http_port" => config.http_port.to_string(),
        "https_port" => config.https_port.to_string(),
        _ => String::new(),
    }
}

/// Sets a machine's key, or resets it to its default. Returns `None` if the key or the value is invalid.
fn set_machine(machine: &mut Machine, key: &str, value: Option<&str>) -> Option<()> {
    fn parsed<T: std::str::FromStr + Default>(value: Option<&str>) -> Option<T> {
        value.map_or(Some(T::default()), |value| value.parse().ok())
    }
    let config: &mut MachineConfig = &mut machine.config;
    match key {
        // Without a value the name stays: the stand-in does not keep the user with which the machine was made.
        "username" => {
            if let Some(value) = value {
                value.clone_into(&mut config.default_username);
            }
        }
        "isolated" => config.isolated = parsed(value)?,
        "isolate_network" => config.isolate_network = parsed(value)?,
        "forward_ssh_agent" => config.forward_ssh_agent = parsed(value)?,
        "mounts" => {
            let mounts = value
                .unwrap_or_default()
                .split(',')
                .filter(|mount| !mount.is_empty());
            config.mounts = mounts.map(str::to_owned).collect();
        }
        "cpu" => config.cpus = parsed(value)?,
        "memory_mib" => config.memory_mib = parsed(value)?,
        "disk_bytes" => config.disk_bytes = parsed(value)?,
        "http_port" => config.http_port = parsed(value)?,
        "https_port" => config.https_port = parsed(value)?,
        _ => return None,
    }
    Some(())
}

/// Recorded (gh#1337); the key is not named.
fn unknown() -> Refusal {
    Refusal::Whole("key not found".to_owned())
}

fn invalid(key: &str, value: &str) -> Refusal {
    Refusal::Whole(format!("invalid value for '{key}': '{value}'"))
}
