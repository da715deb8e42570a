//! Leases of calls in a form that the client does not know in full: which machines the call may touch.
//!
//! The client sends the words that may be names; the inventory, which only the daemon knows, says which are. If the inventory cannot
//! be read, every word counts as a name: a lane that nothing uses delays nothing.

use super::{Resolved, read};
use crate::dispatcher::QueryAnswer;
use crate::machine::{Machine, MachineName, OrbstackStatus};
use crate::operation::{ClientAction, FormVerb, MachineRef, Operation, Query, UnknownForm};
use crate::rpc::convert::{self, force, parse};
use crate::rpc::errors::invalid;
use crate::rpc::server::{Caller, Server};
use crate::rpc::types::{self, ErrorObject, LeaseOperation, LeaseParams};

/// Most words that may be names, in one call.
const OPERANDS_MAX: usize = 256;

/// How the words of a form become lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A change of machines that exist.
    Change,
    /// A change that makes a machine: its name is not in the inventory.
    Making,
    /// A change that makes the machine that `machine` names.
    Import,
    /// A command in a machine.
    Command,
    /// A command in the default machine, or a change of machines that exist.
    CommandOrChange,
    /// A verb that is not known.
    Other,
}

/// Returns what is known of an operation in a form that is not known in full; `None` where every form of it is known.
fn kind(operation: LeaseOperation) -> Option<(FormVerb, Kind)> {
    use LeaseOperation as L;
    Some(match operation {
        L::Create => (FormVerb::Create, Kind::Making),
        L::Rename => (FormVerb::Rename, Kind::Making),
        L::Clone => (FormVerb::Clone, Kind::Making),
        L::Import => (FormVerb::Import, Kind::Import),
        L::Start => (FormVerb::Start, Kind::Change),
        L::Stop => (FormVerb::Stop, Kind::Change),
        L::Restart => (FormVerb::Restart, Kind::Change),
        L::Delete => (FormVerb::Delete, Kind::Change),
        L::Export => (FormVerb::Export, Kind::Change),
        L::SetDefault => (FormVerb::SetDefault, Kind::Change),
        L::Run => (FormVerb::Run, Kind::Command),
        L::Push => (FormVerb::Push, Kind::Command),
        L::Pull => (FormVerb::Pull, Kind::Command),
        L::RunOrChange => (FormVerb::Other, Kind::CommandOrChange),
        L::Other => (FormVerb::Other, Kind::Other),
        _ => return None,
    })
}

/// Whether an operation may come in a form that is not known in full.
pub(super) fn is_taken_by(operation: LeaseOperation) -> bool {
    kind(operation).is_some()
}

/// Returns what such a call may touch, and the machines of it.
pub(super) async fn subject(
    server: &Server,
    caller: &Caller,
    params: &LeaseParams,
    form: &types::UnknownForm,
) -> Result<(Operation, Vec<Resolved>), ErrorObject> {
    let Some((verb, kind)) = kind(params.operation) else {
        return Err(invalid("unknown_form", "does not belong to this operation"));
    };
    let takes_fleet = kind != Kind::Command;
    let takes_machine = matches!(kind, Kind::Import | Kind::Command | Kind::Other) && !form.whole_fleet;
    convert::only_what_belongs(
        "unknown_form",
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
            format!("are at most {OPERANDS_MAX}"),
        ));
    }
    if form.whole_fleet {
        let form = UnknownForm::change(verb, Vec::new(), force(params.force));
        return Ok((
            Operation::ClientAction(ClientAction::UnknownForm(form)),
            Vec::new(),
        ));
    }
    let mut found = match &params.machine {
        Some(text) if kind == Kind::Import => vec![new(parse("machine", text)?)],
        Some(text) => vec![super::resolve(server, caller, "machine", text).await?],
        None if kind == Kind::Import => return Err(invalid("machine", "is missing")),
        None => Vec::new(),
    };
    let default = match kind {
        Kind::CommandOrChange => default_machine(server, caller).await?,
        // An unknown flag before the command may have a value, or the next word may be the command already: then the machine that a
        // later flag names is the command's affair, and the default one is meant.
        Kind::Command if verb == FormVerb::Run || found.is_empty() => default_machine(server, caller).await?,
        _ => None,
    };
    let operands = existing(server, caller, kind, &form.operands).await?;
    let names = |machines: &[Resolved]| -> Vec<MachineName> {
        machines.iter().map(|machine| machine.name.clone()).collect()
    };
    let form = match kind {
        Kind::Change | Kind::Making | Kind::Import | Kind::Other => {
            found.extend(operands);
            if kind == Kind::Other && found.is_empty() {
                return Ok((Operation::ClientAction(ClientAction::Other), found));
            }
            UnknownForm::change(verb, names(&found), force(params.force))
        }
        Kind::Command => {
            found.extend(default.map(new));
            found.extend(operands);
            if found.is_empty() {
                return Err(invalid("machine", "is missing, and there is no default machine"));
            }
            UnknownForm::command(verb, names(&found), Vec::new())
        }
        Kind::CommandOrChange => {
            found.extend(operands);
            UnknownForm::command(verb, default.into_iter().collect(), names(&found))
        }
    };
    Ok((Operation::ClientAction(ClientAction::UnknownForm(form)), found))
}

/// A machine by its name alone.
fn new(name: MachineName) -> Resolved {
    Resolved { name, id: None }
}

async fn default_machine(server: &Server, caller: &Caller) -> Result<Option<MachineName>, ErrorObject> {
    let seen = read(server, caller, Query::Default, Some(0)).await?;
    match &seen.value.facts {
        QueryAnswer::Default(name) => Ok(name.clone()),
        _ => Err(convert::internal("the default machine is of another kind")),
    }
}

/// Returns the machines that the operands name, once each: those of the inventory, and for a form that makes a machine all others too.
async fn existing(
    server: &Server,
    caller: &Caller,
    kind: Kind,
    operands: &[String],
) -> Result<Vec<Resolved>, ErrorObject> {
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
        inventory(server, caller, kind).await
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

/// Reads the inventory, from the cache where it is fresh; `None` if it cannot be read. A verb that is not known may be one that leaves
/// OrbStack stopped, so nothing starts OrbStack for it.
async fn inventory(server: &Server, caller: &Caller, kind: Kind) -> Option<Vec<Machine>> {
    if kind == Kind::Other {
        let seen = read(server, caller, Query::Status, None).await.ok()?;
        if !matches!(&seen.value.facts, QueryAnswer::Status(OrbstackStatus::Running)) {
            return None;
        }
    }
    let seen = read(server, caller, Query::List, None).await.ok()?;
    Some(seen.value.machines()?.to_vec())
}
