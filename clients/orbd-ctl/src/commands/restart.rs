//! `restart`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineRestart;

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) machines: Vec<String>,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Restarts machines.
pub(super) fn restart(context: &mut Context, args: &RestartArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let change = Change {
        verb: "restart",
        done: "restarted {}",
        held: "{} is already running",
    };
    change::each::<MachineRestart>(context, &change, &args.machines, |machine| {
        request!(&job_flags, MachineParams { machine })
    })
}
