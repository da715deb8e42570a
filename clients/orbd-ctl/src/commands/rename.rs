//! `rename`.

use std::process::ExitCode;

use orbd_proto::methods::MachineRename;

use super::change::{self, Change};
use crate::args::Rename;
use crate::context::{Context, request};
use crate::error::CliError;

/// Renames a machine.
pub(super) fn rename(context: &mut Context, args: Rename) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let subjects = [format!("{} to {}", args.machine, args.new_name)];
    let params = request!(
        &job_flags,
        MachineRenameParams {
            machine: args.machine,
            new_name: args.new_name
        }
    );
    let change = Change {
        verb: "rename",
        done: "renamed {}",
        held: "already renamed {}",
    };
    change::carry_out::<MachineRename>(context, &change, &subjects, &[params])
}
