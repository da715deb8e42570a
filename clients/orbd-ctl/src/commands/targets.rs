//! Which machines there are now, for `--all`, `--if-missing` and misspelt names.

use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::MachineList;
use orbd_proto::types::{Machine, ReadParams};

use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;

/// Lists the machines that `--all` stands for: those that match, except the ones that OrbStack made for its own use.
pub(super) fn all(
    context: &mut Context,
    matches: impl Fn(&Machine) -> bool,
) -> Result<Vec<String>, CliError> {
    let machines = current(context)?.into_iter();
    Ok(machines
        .filter(|machine| !machine.builtin && matches(machine))
        .map(|machine| machine.name)
        .collect())
}

/// Returns whether there is a machine with this name.
pub(super) fn exists(context: &mut Context, name: &str) -> Result<bool, CliError> {
    Ok(current(context)?.iter().any(|machine| machine.name == name))
}

/// Returns an error if the machine with this name or id does not exist. If that cannot be found out, it may exist.
pub(super) fn check_exists(context: &mut Context, machine: &str) -> Result<(), CliError> {
    match current(context) {
        Ok(machines)
            if !machines
                .iter()
                .any(|known| known.name == machine || known.id == machine) =>
        {
            Err(not_found(machine))
        }
        _ => Ok(()),
    }
}

/// Returns the error for a machine that does not exist.
pub(super) fn not_found(machine: &str) -> CliError {
    let mut data = ErrorKind::MachineNotFound.data();
    data.machine = Some(machine.to_owned());
    let message = format!("machine {machine} does not exist");
    CliError::Refused(ErrorKind::MachineNotFound.with(message, data))
}

fn current(context: &mut Context) -> Result<Vec<Machine>, CliError> {
    let now = ReadParams { max_age_ms: Some(0) };
    let answer = context.look::<MachineList>(Wait::Ours("list", "list".into()), &now)?;
    if answer.observed.stale {
        return Err(CliError::Absent {
            message: "the current list of machines is needed, and orbctl is unhealthy".into(),
            hint: "name the machines, or wait until `orbd-ctl queue` says that orbctl has recovered".into(),
        });
    }
    Ok(answer.machines)
}
