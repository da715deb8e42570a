//! Leases for command lines that the client cannot interpret completely: which machines the command may touch.
//!
//! The client sends the arguments that may be names. The daemon compares them with the inventory, which only it has. If the inventory
//! cannot be read, every argument counts as a name; an unneeded lane causes no delay unless another job uses it.

use super::raw_read;
use crate::dispatcher::Read;
use crate::operation::{Force, JobInfo, MachineRef, Verb};
use crate::server::call::{Call, Resolved};
use crate::server::convert::{self, force, parse};
use orbd_host::machine::{Machine, MachineName, OrbstackStatus};
use orbd_proto::errors::invalid;
use orbd_proto::types::{self, ErrorObject, LeaseOperation, LeaseParams};

/// Maximum number of arguments that may be names.
const OPERANDS_MAX: usize = 256;

/// How the arguments of a command become lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A change of existing machines.
    Change,
    /// A change that creates a machine, so its name is not in the inventory yet.
    Making,
    /// A change that creates the machine in `machine`.
    Import,
    /// A command in a machine.
    Command,
    /// A command in the default machine, or a change of existing machines.
    CommandOrChange,
    /// An unknown verb.
    Other,
}

/// Returns verb and kind of an operation; `None` if `unknown_form` is not accepted for it.
fn kind(operation: LeaseOperation) -> Option<(Verb, Kind)> {
    use LeaseOperation as L;
    Some(match operation {
        L::Create => (Verb::Create, Kind::Making),
        L::Rename => (Verb::Rename, Kind::Making),
        L::Clone => (Verb::Clone, Kind::Making),
        L::Import => (Verb::Import, Kind::Import),
        L::Start => (Verb::Start, Kind::Change),
        L::Stop => (Verb::Stop, Kind::Change),
        L::Restart => (Verb::Restart, Kind::Change),
        L::Delete => (Verb::Delete, Kind::Change),
        L::Export => (Verb::Export, Kind::Change),
        L::SetDefault => (Verb::SetDefault, Kind::Change),
        L::Run => (Verb::Run, Kind::Command),
        L::Push => (Verb::Push, Kind::Command),
        L::Pull => (Verb::Pull, Kind::Command),
        L::RunOrChange => (Verb::Other, Kind::CommandOrChange),
        L::Other => (Verb::Other, Kind::Other),
        _ => return None,
    })
}

/// Returns whether the operation accepts `unknown_form`.
pub(super) fn is_taken_by(operation: LeaseOperation) -> bool {
    kind(operation).is_some()
}

/// Returns the job and the machines that the command may touch.
pub(super) async fn subject(
    call: &Call,
    params: &LeaseParams,
    form: &types::UnknownForm,
) -> Result<(JobInfo, Vec<Resolved>), ErrorObject> {
    let Some((verb, kind)) = kind(params.operation) else {
        return Err(invalid("unknown_form", "not accepted by this operation"));
    };
    let takes_fleet = kind != Kind::Command;
    let takes_machine = matches!(kind, Kind::Import | Kind::Command | Kind::Other) && !form.whole_fleet;
    raw_read::only_what_belongs(
        "operation with unknown_form",
        [
            ("machine", params.machine.is_some(), takes_machine),
            ("machine_names", !params.machine_names.is_empty(), false),
            ("new_name", params.new_name.is_some(), false),
            ("unknown_form.whole_fleet", form.whole_fleet, takes_fleet),
        ],
    )?;
    if form.operands.len() > OPERANDS_MAX {
        return Err(invalid(
            "unknown_form.operands",
            format!("must have at most {OPERANDS_MAX} entries"),
        ));
    }
    if form.whole_fleet {
        let info = JobInfo::unknown_change(verb, &[], force(params.force));
        return Ok((info, Vec::new()));
    }
    let mut found = match &params.machine {
        Some(text) if kind == Kind::Import => vec![new(parse("machine", text)?)],
        Some(text) => vec![call.resolve("machine", text).await?],
        None if kind == Kind::Import => return Err(invalid("machine", "required by this operation")),
        None => Vec::new(),
    };
    let default = match kind {
        Kind::CommandOrChange => default_machine(call).await?,
        // An unknown flag before the command may or may not have a value. If it has none, the next argument is already the command, a later
        // flag with a machine's name belongs to that command, and `orbctl` uses the default machine.
        Kind::Command if verb == Verb::Run || found.is_empty() => default_machine(call).await?,
        _ => None,
    };
    let operands = existing(call, kind, &form.operands).await?;
    let names = |machines: &[Resolved]| -> Vec<MachineName> {
        machines.iter().map(|machine| machine.name.clone()).collect()
    };
    let info = match kind {
        Kind::Change | Kind::Making | Kind::Import | Kind::Other => {
            found.extend(operands);
            if kind == Kind::Other && found.is_empty() {
                return Ok((JobInfo::lease(Verb::Other, Vec::new(), Force::No), found));
            }
            JobInfo::unknown_change(verb, &names(&found), force(params.force))
        }
        Kind::Command => {
            found.extend(default.map(new));
            found.extend(operands);
            if found.is_empty() {
                return Err(invalid("machine", "required: there is no default machine"));
            }
            JobInfo::unknown_command(verb, &names(&found), &[])
        }
        Kind::CommandOrChange => {
            found.extend(operands);
            JobInfo::unknown_command(verb, default.as_slice(), &names(&found))
        }
    };
    Ok((info, found))
}

fn new(name: MachineName) -> Resolved {
    Resolved { name, id: None }
}

async fn default_machine(call: &Call) -> Result<Option<MachineName>, ErrorObject> {
    call.read(Read::default_machine(), Some(0), |name, _| name.clone())
        .await
}

/// Returns the machines that the operands name, without duplicates. For a command that creates a machine, operands that are not in the
/// inventory are included.
async fn existing(call: &Call, kind: Kind, operands: &[String]) -> Result<Vec<Resolved>, ErrorObject> {
    let mut references = Vec::with_capacity(operands.len());
    for operand in operands {
        references.push(convert::machine_ref("unknown_form.operands", operand)?);
    }
    let is_id = |reference: &MachineRef| matches!(reference, MachineRef::IdOrName(..));
    let needs_inventory = if kind == Kind::Making {
        references.iter().any(is_id)
    } else {
        !references.is_empty()
    };
    let inventory = if needs_inventory {
        inventory(call, kind).await
    } else {
        None
    };
    let mut found: Vec<Resolved> = Vec::with_capacity(references.len());
    for reference in references {
        let (id, name) = match reference {
            MachineRef::Name(name) => (None, name),
            MachineRef::IdOrName(id, name) => (Some(id), name),
        };
        let resolved = match &inventory {
            Some(machines) if machines.iter().all(|machine| machine.name != name) => {
                let by_id = machines.iter().find(|machine| Some(&machine.id) == id.as_ref());
                match by_id {
                    Some(machine) => Some(Resolved {
                        name: machine.name.clone(),
                        id,
                    }),
                    None => (kind == Kind::Making).then(|| new(name)),
                }
            }
            _ => Some(new(name)),
        };
        if let Some(resolved) = resolved
            && found.iter().all(|other| other.name != resolved.name)
        {
            found.push(resolved);
        }
    }
    Ok(found)
}

/// Reads the inventory, from the cache if it is fresh; `None` if it cannot be read. An unknown verb may be one that leaves OrbStack
/// stopped, so for it the inventory is only read if OrbStack is running.
async fn inventory(call: &Call, kind: Kind) -> Option<Vec<Machine>> {
    if kind == Kind::Other {
        let is_running = |status: &OrbstackStatus, _| *status == OrbstackStatus::Running;
        if !call.read(Read::status(), None, is_running).await.ok()? {
            return None;
        }
    }
    call.read(Read::list(), None, |machines, _| machines.clone())
        .await
        .ok()
}
