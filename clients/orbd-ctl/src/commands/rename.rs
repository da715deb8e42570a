//! `rename`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineRename;

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `rename`.
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// Current name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// New name
    #[arg(value_name = "NEW")]
    pub(crate) new_name: String,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Renames a machine.
pub(super) fn rename(context: &mut Context, args: RenameArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let new_name = args.new_name.clone();
    let subjects = [format!("{} to {}", args.machine, args.new_name)];
    let params = request!(
        &job_flags,
        MachineRenameParams {
            machine: args.machine,
            new_name: args.new_name
        }
    );
    let change = Change::new("rename", "renamed {}", "already renamed {}");
    change::carry_out_explained::<MachineRename>(context, &change, &subjects, &[params], &|error| {
        change::explain_new_name(&new_name, error)
    })
}
