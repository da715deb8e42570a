//! Changes as the journal stores them: a versioned format of its own, so that the types in memory can change.

use serde::{Deserialize, Serialize};

use crate::journal::{Process, Starting};
use crate::operation::{Change, Footprint, Force, JobInfo, NewMachine};
use crate::sys::{ChildIdentity, StartTime};
use orbd_host::machine::MachineId;

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
    ConfigAdd { key: String, value: String },
    ConfigRemove { key: String, value: String },
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
pub(super) fn encode(change: &Change, expected_id: Option<&MachineId>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let stored = (store(change), expected_id.map(MachineId::as_str));
    // Writing to a vector returns no error.
    bytes.extend(postcard::to_stdvec(&stored).unwrap_or_default());
    bytes
}

/// Decodes a change; `None` for anything that this version does not understand.
pub(super) fn decode(bytes: &[u8]) -> Option<(Change, Option<MachineId>)> {
    let (version, rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let (stored, expected_id): (Stored, Option<String>) = postcard::from_bytes(rest).ok()?;
    Some((restore(stored)?, parsed(expected_id)?))
}

/// Returns what a start entry says about its job: enough to hold its lanes and to reconcile it.
pub(super) fn info(starting: &Starting) -> JobInfo {
    JobInfo::restored(
        // A client's process runs a lease, so its start entry has no marker.
        starting.marker.is_empty(),
        &starting.verb,
        starting.machine.as_ref(),
        starting.class,
        Footprint::new(starting.lanes.iter().cloned()),
    )
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

fn store(change: &Change) -> Stored {
    let forced = |force: &Force| *force == Force::Yes;
    match change {
        Change::Create(new) => Stored::Create(Box::new(StoredMachine {
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
        Change::Start(name) => Stored::Start {
            machine: name.to_string(),
        },
        Change::Stop(name, force) => Stored::Stop {
            machine: name.to_string(),
            force: forced(force),
        },
        Change::Restart(name) => Stored::Restart {
            machine: name.to_string(),
        },
        Change::Delete(name) => Stored::Delete {
            machine: name.to_string(),
        },
        Change::Rename { from, to } => Stored::Rename {
            from: from.to_string(),
            to: to.to_string(),
        },
        Change::Clone { source, copy } => Stored::Clone {
            source: source.to_string(),
            copy: copy.to_string(),
        },
        Change::Export(name, file) => Stored::Export {
            machine: name.to_string(),
            file: file.to_string_lossy().into_owned(),
        },
        Change::Import(name, file) => Stored::Import {
            machine: name.to_string(),
            file: file.to_string_lossy().into_owned(),
        },
        Change::SetDefault(name) => Stored::SetDefault {
            machine: name.as_ref().map(ToString::to_string),
        },
        Change::ConfigSet { key, value } => Stored::ConfigSet {
            key: key.to_string(),
            value: value.to_string(),
        },
        Change::ConfigAdd { key, value } => Stored::ConfigAdd {
            key: key.to_string(),
            value: value.to_string(),
        },
        Change::ConfigRemove { key, value } => Stored::ConfigRemove {
            key: key.to_string(),
            value: value.to_string(),
        },
        Change::ConfigReset => Stored::ConfigReset,
        Change::StartOrbstack(force) => Stored::StartOrbstack { force: forced(force) },
        Change::StopOrbstack(force) => Stored::StopOrbstack { force: forced(force) },
        Change::StartAll => Stored::StartAll,
        Change::StopAll(force) => Stored::StopAll { force: forced(force) },
    }
}

fn restore(stored: Stored) -> Option<Change> {
    let forced = |force: bool| if force { Force::Yes } else { Force::No };
    Some(match stored {
        Stored::Create(new) => Change::Create(NewMachine {
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
        Stored::Start { machine } => Change::Start(machine.parse().ok()?),
        Stored::Stop { machine, force } => Change::Stop(machine.parse().ok()?, forced(force)),
        Stored::Restart { machine } => Change::Restart(machine.parse().ok()?),
        Stored::Delete { machine } => Change::Delete(machine.parse().ok()?),
        Stored::Rename { from, to } => Change::Rename {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        },
        Stored::Clone { source, copy } => Change::Clone {
            source: source.parse().ok()?,
            copy: copy.parse().ok()?,
        },
        Stored::Export { machine, file } => Change::Export(machine.parse().ok()?, file.into()),
        Stored::Import { machine, file } => Change::Import(machine.parse().ok()?, file.into()),
        Stored::SetDefault { machine } => Change::SetDefault(parsed(machine)?),
        Stored::ConfigSet { key, value } => Change::ConfigSet {
            key: key.parse().ok()?,
            value: value.into(),
        },
        Stored::ConfigAdd { key, value } => Change::ConfigAdd {
            key: key.parse().ok()?,
            value: value.into(),
        },
        Stored::ConfigRemove { key, value } => Change::ConfigRemove {
            key: key.parse().ok()?,
            value: value.into(),
        },
        Stored::ConfigReset => Change::ConfigReset,
        Stored::StartOrbstack { force } => Change::StartOrbstack(forced(force)),
        Stored::StopOrbstack { force } => Change::StopOrbstack(forced(force)),
        Stored::StartAll => Change::StartAll,
        Stored::StopAll { force } => Change::StopAll(forced(force)),
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
    use super::*;
    use crate::dispatcher::understands;
    use crate::job::JobId;
    use crate::journal::{AcceptedJob, Recovered};

    #[test]
    fn accepted_change_that_only_a_newer_version_knows_is_not_understood() {
        let accepted = |operation: Vec<u8>| AcceptedJob {
            job: JobId(1),
            operation,
            client: "deploy".into(),
            accepted_ms: 0,
            queue_timeout: None,
            run_timeout: None,
        };
        let known = encode(&Change::ConfigReset, None);
        let later_format = [&[VERSION + 1], &known[1..]].concat();
        for (operation, expected) in [(known, true), (vec![VERSION, 99], false), (later_format, false)] {
            let waiting = Recovered {
                waiting: vec![accepted(operation.clone())],
                ..Recovered::default()
            };
            let uncertain = Recovered {
                uncertain: vec![accepted(operation.clone())],
                ..Recovered::default()
            };
            for recovered in [waiting, uncertain] {
                assert_eq!(understands(&recovered), expected, "{operation:?}");
            }
        }
        assert!(understands(&Recovered::default()));
    }
}
