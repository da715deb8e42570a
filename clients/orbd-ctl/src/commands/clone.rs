//! `clone`.

use std::process::ExitCode;

use orbd_proto::methods::MachineClone;

use super::change::{self, Change};
use crate::args::CloneMachine;
use crate::context::{Context, request};
use crate::error::CliError;

/// Clones a machine.
pub(super) fn clone(context: &mut Context, args: CloneMachine) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let subjects = [format!("{} to {}", args.machine, args.new_name)];
    let params = request!(
        &job_flags,
        MachineCloneParams {
            machine: args.machine,
            new_name: args.new_name
        }
    );
    let change = Change {
        verb: "clone",
        done: "cloned {}",
        held: "already cloned {}",
    };
    change::carry_out::<MachineClone>(context, &change, &subjects, &[params])
}
