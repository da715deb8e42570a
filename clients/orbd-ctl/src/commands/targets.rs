//! Which machines there are now, for `--all` and `--if-missing`.

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
