//! `restart`.

use std::process::ExitCode;

use orbd_proto::methods::MachineRestart;

use super::change::{self, Change};
use crate::args::Names;
use crate::context::{Context, request};
use crate::error::CliError;

/// Restarts machines.
pub(super) fn restart(context: &mut Context, args: &Names) -> Result<ExitCode, CliError> {
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
