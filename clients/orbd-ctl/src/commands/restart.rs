//! `restart`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::{MachineRestart, OrbstackStart, OrbstackStop};

use super::change::{self, Change};
use super::targets;
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `restart`.
#[derive(Debug, Args)]
#[group(id = "targets", required = true, multiple = false, args = ["machines", "all", "orbstack"])]
pub(crate) struct RestartArgs {
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub(crate) machines: Vec<String>,
    /// All running machines
    #[arg(long)]
    pub(crate) all: bool,
    /// OrbStack itself: stop it, and with it all machines, then start it; cannot be detached
    #[arg(long, conflicts_with = "detach")]
    pub(crate) orbstack: bool,
    /// For OrbStack itself: stop running jobs and cancel waiting ones instead of queueing behind them
    #[arg(short, long, requires = "orbstack")]
    pub(crate) force: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Restarts machines, or OrbStack itself.
pub(super) fn restart(context: &mut Context, args: &RestartArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    if args.orbstack {
        let force = args.force;
        let stop = Change::new("stop_orbstack", "stopped {}", "{} is already stopped");
        let params = request!(&job_flags, ForceParams { force });
        let code = change::whole::<OrbstackStop>(context, &stop, "OrbStack", params)?;
        // An OrbStack that hangs may not confirm a forced stop; its start still shows whether it works again.
        if code != ExitCode::SUCCESS && !force {
            return Ok(code);
        }
        // A job that waited for the stop may have started it in between.
        let start = Change::new("start_orbstack", "started {}", "{} is running again");
        let params = request!(&job_flags, ForceParams { force });
        return change::whole::<OrbstackStart>(context, &start, "OrbStack", params);
    }
    let machines = if args.all {
        targets::all(context, |machine| machine.state == "running")?
    } else {
        args.machines.clone()
    };
    if machines.is_empty() {
        context.console.eprint("no running machines to restart");
    }
    let change = Change::new("restart", "restarted {}", "{} is already running");
    change::each::<MachineRestart>(context, &change, &machines, |machine| {
        request!(&job_flags, MachineParams { machine })
    })
}
