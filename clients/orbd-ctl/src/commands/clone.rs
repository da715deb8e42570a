//! `clone`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineClone;

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `clone`.
#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// Name or id of the machine to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) machine: String,
    /// Name of the copy
    #[arg(value_name = "NEW")]
    pub(crate) new_name: String,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Clones a machine.
pub(super) fn clone(context: &mut Context, args: CloneArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let new_name = args.new_name.clone();
    let subjects = [format!("{} to {}", args.machine, args.new_name)];
    let params = request!(
        &job_flags,
        MachineCloneParams {
            machine: args.machine,
            new_name: args.new_name
        }
    );
    let change = Change::new("clone", "cloned {}", "already cloned {}");
    change::carry_out_explained::<MachineClone>(context, &change, &subjects, &[params], &|error| {
        change::explain_new_name(&new_name, error)
    })
}
