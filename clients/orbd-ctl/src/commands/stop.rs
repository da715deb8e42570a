//! `stop`.

use std::process::ExitCode;

use orbd_proto::methods::{MachineStop, MachineStopAll, OrbstackStop};

use super::change::{self, Change};
use crate::args::Stop;
use crate::context::{Context, request};
use crate::error::CliError;

/// Stops the given machines, all machines, or OrbStack itself.
pub(super) fn stop(context: &mut Context, args: &Stop) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let force = args.force;
    let change = |verb| Change {
        verb,
        done: "stopped {}",
        held: "{} is already stopped",
    };
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
