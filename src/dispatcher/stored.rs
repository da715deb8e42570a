//! Operations as the journal stores them: a versioned format of its own, so that the types in memory can change.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{ClientId, JobId};
use crate::journal::{Process, Starting};
use crate::machine::MachineId;
use crate::operation::{
    BatchVerb, Class, ClientAction, ExecRequest, Footprint, Force, FormVerb, Lane, LogScope, NewMachine,
    Operation, RawQuery, UnknownForm,
};
use crate::sys::{ChildIdentity, StartTime};

use super::handle::{Client, Executor, JobSpec, Submission};

/// Version of the format below. A new meaning needs a new variant; an existing variant never changes its meaning.
const VERSION: u8 = 1;

/// A change on disk. Commands are not stored: their arguments, input and environment may hold secrets.
#[derive(Debug, Serialize, Deserialize)]
enum Stored {
    Create(Box<StoredMachine>),
    Start { machine: String },
    Stop { machine: String, force: bool },
    Restart { machine: String },
    Delete { machine: String },
    Rename { from: String, to: String },
    Clone { source: String, copy: String },
    Export { machine: String, file: String },
    Import { machine: String, file: String },
    SetDefault { machine: Option<String> },
    ConfigSet { key: String, value: String },
    ConfigReset,
    StartOrbstack { force: bool },
    StopOrbstack { force: bool },
    StartAll,
    StopAll { force: bool },
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredMachine {
    name: String,
    distro: String,
    version: Option<String>,
    arch: Option<String>,
    user: Option<String>,
    cpus: Option<u32>,
    memory: Option<String>,
    disk: Option<String>,
    isolated: bool,
    isolate_network: bool,
    mounts: Vec<String>,
    forward_ssh_agent: bool,
}

/// Encodes a change together with the id by which the client named its machine; the id is compared again before the change starts.
/// Empty for operations that are not stored.
pub(super) fn encode(operation: &Operation, expected_id: Option<&MachineId>) -> Vec<u8> {
    let Some(stored) = store(operation) else {
        return Vec::new();
    };
    let mut bytes = vec![VERSION];
    // Writing to a vector returns no error.
    bytes.extend(postcard::to_stdvec(&(stored, expected_id.map(MachineId::as_str))).unwrap_or_default());
    bytes
}

/// Decodes a change; `None` for anything that this version does not understand.
pub(super) fn decode(bytes: &[u8]) -> Option<(Operation, Option<MachineId>)> {
    let (version, rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let (stored, expected_id): (Stored, Option<String>) = postcard::from_bytes(rest).ok()?;
    Some((restore(stored)?, parsed(expected_id)?))
}

/// Returns whether the job is a lease: a client's process runs it, so the start entry has no marker.
pub(super) fn is_lease(starting: &Starting) -> bool {
    starting.marker.is_empty()
}

/// Rebuilds from a start entry what is known about an operation: enough for its lanes, its verb and its machine. The result is never
/// run.
pub(super) fn outline(starting: &Starting) -> Option<Operation> {
    if !is_lease(starting) {
        return known_outline(starting);
    }
    let known = leased_outline(starting).map(Operation::ClientAction);
    let known = known.or_else(|| known_outline(starting));
    let lanes = Footprint::new(starting.lanes.iter().cloned());
    // A form that was not fully parsed may hold more lanes than its verb implies. The journal's list of lanes is authoritative.
    Some(match known {
        Some(operation) if operation.footprint() == lanes => operation,
        _ => Operation::ClientAction(ClientAction::UnknownForm(UnknownForm::restored(
            FormVerb::named(&starting.verb),
            starting.machine.clone(),
            lanes,
        ))),
    })
}

/// Like [`outline`], for an operation that its verb and machine determine.
fn known_outline(starting: &Starting) -> Option<Operation> {
    let machine = || starting.machine.clone();
    let other = || {
        let mut machines = starting.lanes.iter().filter_map(|(lane, _)| match lane {
            Lane::Machine(name) => Some(name),
            Lane::Fleet | Lane::Configuration => None,
        });
        machines
            .find(|name| Some(*name) != starting.machine.as_ref())
            .cloned()
    };
    Some(match starting.verb.as_str() {
        "run" => Operation::Exec(machine()?, ExecRequest::new(vec!["forgotten".into()]).ok()?),
        "push" => Operation::Push(machine()?),
        "pull" => Operation::Pull(machine()?),
        "create" => Operation::Create(NewMachine {
            name: machine()?,
            distro: "forgotten".parse().ok()?,
            version: None,
            arch: None,
            user: None,
            cpus: None,
            memory: None,
            disk: None,
            isolated: false,
            isolate_network: false,
            mounts: Vec::new(),
            forward_ssh_agent: false,
        }),
        "start" => Operation::Start(machine()?),
        "stop" => Operation::Stop(machine()?, Force::No),
        "restart" => Operation::Restart(machine()?),
        "delete" => Operation::Delete(machine()?),
        "rename" => Operation::Rename {
            from: machine()?,
            to: other()?,
        },
        "clone" => Operation::Clone {
            copy: machine()?,
            source: other()?,
        },
        "export" => Operation::Export(machine()?, PathBuf::new()),
        "import" => Operation::Import(machine()?, PathBuf::new()),
        "set_default" => Operation::SetDefault(machine()),
        "config_set" => Operation::ConfigSet {
            key: "forgotten".parse().ok()?,
            value: "".into(),
        },
        "config_reset" => Operation::ConfigReset,
        "start_orbstack" => Operation::StartOrbstack(Force::No),
        "stop_orbstack" => Operation::StopOrbstack(Force::No),
        "start_all" => Operation::StartAll,
        "stop_all" => Operation::StopAll(Force::No),
        _ => return None,
    })
}

/// Like [`outline`], for operations that only clients run. Whether it was forced is unknown but irrelevant: it has already started.
fn leased_outline(starting: &Starting) -> Option<ClientAction> {
    let machine = || starting.machine.clone();
    let several = |each| {
        let machines = starting.lanes.iter().filter_map(|(lane, _)| match lane {
            Lane::Machine(name) => Some(name.clone()),
            Lane::Fleet | Lane::Configuration => None,
        });
        // For a single machine it is an ordinary operation, not a batch.
        let is_several = starting.machine.is_none();
        is_several.then(|| ClientAction::Batch(each, machines.collect()))
    };
    match starting.verb.as_str() {
        "run" => Some(ClientAction::Run(machine()?)),
        "shell" => Some(ClientAction::Shell(machine()?)),
        "logs" if starting.machine.is_some() => machine().map(ClientAction::Logs),
        "create" => Some(ClientAction::Create(machine()?)),
        "config_set" => Some(ClientAction::ConfigSet),
        "start" => several(BatchVerb::Start),
        "stop" => several(BatchVerb::Stop(Force::No)),
        "restart" => several(BatchVerb::Restart),
        "delete" => several(BatchVerb::Delete),
        "restart_all" => Some(ClientAction::RestartAll),
        "restart_orbstack" => Some(ClientAction::RestartOrbstack),
        "update_orbstack" => Some(ClientAction::UpdateOrbstack),
        "reset_orbstack" => Some(ClientAction::ResetOrbstack),
        "other" => Some(ClientAction::Other),
        verb if starting.class == Class::Session => read_outline(verb).map(ClientAction::Read),
        _ => None,
    }
}

/// Like [`outline`], for a read whose output `orbctl` prints directly to the client.
fn read_outline(verb: &str) -> Option<RawQuery> {
    Some(match verb {
        "list" => RawQuery::List {
            format: None,
            quiet: false,
            running: false,
        },
        "info" => RawQuery::Info {
            machine: "forgotten".parse().ok()?,
            format: None,
        },
        "status" => RawQuery::Status,
        "version" => RawQuery::Version,
        "config_show" => RawQuery::ConfigShow,
        "default" => RawQuery::Default,
        "ssh" => RawQuery::Ssh,
        "logs" => RawQuery::Logs("forgotten".parse().ok()?, LogScope::Default),
        _ => return None,
    })
}

/// Encodes the identity of a process.
pub(super) fn process(child: &ChildIdentity) -> Process {
    let mut start_time = child.started.at.to_le_bytes().to_vec();
    start_time.extend(child.started.boot.to_le_bytes());
    Process {
        pid: child.pid,
        start_time,
    }
}

/// Decodes the identity of a process; `None` if it is malformed.
pub(super) fn identity(process: &Process) -> Option<ChildIdentity> {
    let (at, boot) = process.start_time.split_first_chunk::<8>()?;
    let started = StartTime {
        at: u64::from_le_bytes(*at),
        boot: u128::from_le_bytes(boot.try_into().ok()?),
    };
    Some(ChildIdentity {
        pid: process.pid,
        started,
    })
}

/// Returns the job of an operation that an earlier instance accepted.
pub(super) fn revived(id: JobId, operation: Operation, client: &str, detached: bool, now: Moment) -> JobSpec {
    let client = Client {
        // No client of this instance has this id, so the job competes with none of them in the fair queue.
        id: ClientId(u64::MAX),
        connection: u64::MAX,
        gone: CancellationToken::new(),
        name: client.into(),
        pid: None,
        uid: rustix::process::getuid().as_raw(),
    };
    JobSpec {
        id,
        accepted: now,
        submission: Submission {
            operation,
            client,
            executor: Executor::Daemon,
            expected_id: None,
            detached,
            queue_timeout: None,
            run_timeout: None,
        },
    }
}

fn store(operation: &Operation) -> Option<Stored> {
    let forced = |force: &Force| *force == Force::Yes;
    Some(match operation {
        Operation::Query(_)
        | Operation::Exec(..)
        | Operation::Push(_)
        | Operation::Pull(_)
        | Operation::ClientAction(_) => return None,
        Operation::Create(new) => Stored::Create(Box::new(StoredMachine {
            name: new.name.to_string(),
            distro: new.distro.to_string(),
            version: new.version.as_ref().map(ToString::to_string),
            arch: new.arch.map(|arch| arch.as_str().to_owned()),
            user: new.user.as_ref().map(ToString::to_string),
            cpus: new.cpus,
            memory: new.memory.as_ref().map(ToString::to_string),
            disk: new.disk.as_ref().map(ToString::to_string),
            isolated: new.isolated,
            isolate_network: new.isolate_network,
            mounts: new.mounts.iter().map(ToString::to_string).collect(),
            forward_ssh_agent: new.forward_ssh_agent,
        })),
        Operation::Start(name) => Stored::Start {
            machine: name.to_string(),
        },
        Operation::Stop(name, force) => Stored::Stop {
            machine: name.to_string(),
            force: forced(force),
        },
        Operation::Restart(name) => Stored::Restart {
            machine: name.to_string(),
        },
        Operation::Delete(name) => Stored::Delete {
            machine: name.to_string(),
        },
        Operation::Rename { from, to } => Stored::Rename {
            from: from.to_string(),
            to: to.to_string(),
        },
        Operation::Clone { source, copy } => Stored::Clone {
            source: source.to_string(),
            copy: copy.to_string(),
        },
        Operation::Export(name, file) => Stored::Export {
            machine: name.to_string(),
            file: file.to_string_lossy().into_owned(),
        },
        Operation::Import(name, file) => Stored::Import {
            machine: name.to_string(),
            file: file.to_string_lossy().into_owned(),
        },
        Operation::SetDefault(name) => Stored::SetDefault {
            machine: name.as_ref().map(ToString::to_string),
        },
        Operation::ConfigSet { key, value } => Stored::ConfigSet {
            key: key.to_string(),
            value: value.to_string(),
        },
        Operation::ConfigReset => Stored::ConfigReset,
        Operation::StartOrbstack(force) => Stored::StartOrbstack { force: forced(force) },
        Operation::StopOrbstack(force) => Stored::StopOrbstack { force: forced(force) },
        Operation::StartAll => Stored::StartAll,
        Operation::StopAll(force) => Stored::StopAll { force: forced(force) },
    })
}

fn restore(stored: Stored) -> Option<Operation> {
    let forced = |force: bool| if force { Force::Yes } else { Force::No };
    Some(match stored {
        Stored::Create(new) => Operation::Create(NewMachine {
            name: new.name.parse().ok()?,
            distro: new.distro.parse().ok()?,
            version: parsed(new.version)?,
            arch: parsed(new.arch)?,
            user: parsed(new.user)?,
            cpus: new.cpus,
            memory: parsed(new.memory)?,
            disk: parsed(new.disk)?,
            isolated: new.isolated,
            isolate_network: new.isolate_network,
            mounts: new
                .mounts
                .iter()
                .map(|mount| mount.parse().ok())
                .collect::<Option<_>>()?,
            forward_ssh_agent: new.forward_ssh_agent,
        }),
        Stored::Start { machine } => Operation::Start(machine.parse().ok()?),
        Stored::Stop { machine, force } => Operation::Stop(machine.parse().ok()?, forced(force)),
        Stored::Restart { machine } => Operation::Restart(machine.parse().ok()?),
        Stored::Delete { machine } => Operation::Delete(machine.parse().ok()?),
        Stored::Rename { from, to } => Operation::Rename {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        },
        Stored::Clone { source, copy } => Operation::Clone {
            source: source.parse().ok()?,
            copy: copy.parse().ok()?,
        },
        Stored::Export { machine, file } => Operation::Export(machine.parse().ok()?, file.into()),
        Stored::Import { machine, file } => Operation::Import(machine.parse().ok()?, file.into()),
        Stored::SetDefault { machine } => Operation::SetDefault(parsed(machine)?),
        Stored::ConfigSet { key, value } => Operation::ConfigSet {
            key: key.parse().ok()?,
            value: value.into(),
        },
        Stored::ConfigReset => Operation::ConfigReset,
        Stored::StartOrbstack { force } => Operation::StartOrbstack(forced(force)),
        Stored::StopOrbstack { force } => Operation::StopOrbstack(forced(force)),
        Stored::StartAll => Operation::StartAll,
        Stored::StopAll { force } => Operation::StopAll(forced(force)),
    })
}

/// Parses an optional field: an absent field is valid, a malformed one is not.
#[expect(
    clippy::option_option,
    reason = "the outer option is \"could be parsed\", the inner one \"is present\"; callers use only `?`"
)]
fn parsed<T: std::str::FromStr>(text: Option<String>) -> Option<Option<T>> {
    match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::MachineName;
    use crate::operation::Access;

    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    /// Returns the start entry of a lease.
    fn starting(operation: &Operation) -> Starting {
        Starting {
            job: JobId(1),
            marker: String::new(),
            lanes: operation.footprint().lanes().to_vec(),
            verb: operation.verb().to_owned(),
            machine: operation.machine().cloned(),
            class: operation.class(),
            detached: false,
        }
    }

    #[test]
    fn lease_holds_the_same_lanes_after_a_crash() {
        let several = |each| ClientAction::Batch(each, vec![name("a"), name("b")]);
        let change = |verb, machines: &[&str]| {
            let machines = machines.iter().copied().map(name).collect();
            ClientAction::UnknownForm(UnknownForm::change(verb, machines, Force::No))
        };
        let command = |verb| {
            ClientAction::UnknownForm(UnknownForm::command(
                verb,
                vec![name("a"), name("b")],
                vec![name("c")],
            ))
        };
        let leased = [
            ClientAction::Run(name("a")),
            ClientAction::Shell(name("a")),
            ClientAction::Logs(name("a")),
            ClientAction::Create(name("a")),
            ClientAction::ConfigSet,
            several(BatchVerb::Start),
            several(BatchVerb::Stop(Force::No)),
            several(BatchVerb::Restart),
            several(BatchVerb::Delete),
            ClientAction::RestartAll,
            ClientAction::RestartOrbstack,
            ClientAction::UpdateOrbstack,
            ClientAction::ResetOrbstack,
            ClientAction::Read(RawQuery::Logs(name("a"), LogScope::All)),
            ClientAction::Other,
            change(FormVerb::Delete, &[]),
            change(FormVerb::Delete, &["a", "b"]),
            change(FormVerb::Create, &["a", "b"]),
            change(FormVerb::Clone, &["a", "b", "c"]),
            change(FormVerb::Rename, &["a"]),
            change(FormVerb::SetDefault, &["a", "b"]),
            change(FormVerb::Import, &[]),
            change(FormVerb::Other, &["a"]),
            command(FormVerb::Run),
            command(FormVerb::Push),
            command(FormVerb::Other),
        ];
        let others = [
            Operation::Push(name("a")),
            Operation::Delete(name("a")),
            Operation::Rename {
                from: name("a"),
                to: name("b"),
            },
            Operation::SetDefault(Some(name("a"))),
            Operation::ConfigReset,
            Operation::StopOrbstack(Force::No),
            Operation::StopAll(Force::No),
        ];
        for operation in leased.into_iter().map(Operation::ClientAction).chain(others) {
            let outline = outline(&starting(&operation)).expect("an outline");
            assert_eq!(
                (outline.verb(), outline.class(), outline.footprint()),
                (operation.verb(), operation.class(), operation.footprint()),
            );
        }
    }

    #[test]
    fn unknown_verb_still_holds_its_lanes() {
        let mut starting = starting(&Operation::ClientAction(ClientAction::Run(name("a"))));
        starting.verb = "suspend".into();
        starting.lanes = vec![(Lane::Machine(name("a")), Access::Exclusive)];
        let outline = outline(&starting).expect("an outline");
        assert_eq!(outline.footprint().lanes(), starting.lanes);
    }
}
