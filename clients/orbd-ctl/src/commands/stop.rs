//! `stop`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::{MachineStop, MachineStopAll, OrbstackStop};

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `stop`.
#[derive(Debug, Args)]
#[group(id = "targets", required = true, multiple = false, args = ["machines", "all", "orbstack"])]
pub(crate) struct StopArgs {
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub(crate) machines: Vec<String>,
    /// All machines
    #[arg(long)]
    pub(crate) all: bool,
    /// OrbStack itself, and with it all machines
    #[arg(long)]
    pub(crate) orbstack: bool,
    /// Stop running jobs and cancel waiting ones instead of queueing behind them
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Stops the given machines, all machines, or OrbStack itself.
pub(super) fn stop(context: &mut Context, args: &StopArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let force = args.force;
    let change = |verb| Change::new(verb, "stopped {}", "{} is already stopped");
    if args.all {
        let params = request!(&job_flags, ForceParams { force });
        return change::whole::<MachineStopAll>(context, &change("stop_all"), "every machine", params);
    }
    if args.orbstack {
        let params = request!(&job_flags, ForceParams { force });
        return change::whole::<OrbstackStop>(context, &change("stop_orbstack"), "OrbStack", params);
    }
    change::each::<MachineStop>(context, &change("stop"), &args.machines, |machine| {
        request!(&job_flags, MachineForceParams { machine, force })
    })
}
