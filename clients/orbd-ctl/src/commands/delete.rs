//! `delete`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::MachineDelete;

use super::change::{self, Change};
use super::targets;
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::{CliError, exit};

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) machines: Vec<String>,
    /// All machines
    #[arg(long)]
    pub(crate) all: bool,
    /// Succeed if a machine does not exist
    #[arg(long)]
    pub(crate) ignore_missing: bool,
    /// Do not ask for confirmation
    #[arg(
        short,
        long,
        visible_short_alias = 'f',
        visible_alias = "force",
        overrides_with = "yes"
    )]
    pub(crate) yes: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Deletes machines. On a terminal, asks for confirmation first; elsewhere, `--yes` is required.
pub(super) fn delete(context: &mut Context, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    let machines = if args.all {
        targets::all(context, |_| true)?
    } else {
        args.machines.clone()
    };
    if machines.is_empty() {
        context.console.eprint("no machines to delete");
        return Ok(ExitCode::SUCCESS);
    }
    let names = machines.join(" ");
    let question = format!(
        "delete {} and everything on {}?",
        machines.join(", "),
        if machines.len() == 1 { "it" } else { "them" }
    );
    if !args.yes
        && !context
            .console
            .confirm(&question, &format!("orbd-ctl delete --yes {names}"))?
    {
        context.console.eprint("nothing deleted");
        return Ok(ExitCode::from(exit::FAILED));
    }
    let job_flags = args.job.options();
    let change = Change {
        tolerated: args.ignore_missing.then_some(ErrorKind::MachineNotFound),
        ..Change::new("delete", "deleted {}", "{} does not exist")
    };
    change::each::<MachineDelete>(context, &change, &machines, |machine| {
        request!(&job_flags, MachineParams { machine })
    })
}
