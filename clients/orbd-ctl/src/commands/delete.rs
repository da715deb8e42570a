//! `delete`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineDelete;

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::console::Console;
use crate::context::{Context, request};
use crate::error::{CliError, exit};

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) machines: Vec<String>,
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

/// Deletes machines. On a terminal, asks for confirmation first.
pub(super) fn delete(context: &mut Context, args: &DeleteArgs) -> Result<ExitCode, CliError> {
    if context.console.can_ask && !args.yes && !is_meant(&mut context.console, &args.machines)? {
        context.console.eprint("nothing deleted");
        return Ok(ExitCode::from(exit::FAILED));
    }
    let job_flags = args.job.options();
    let change = Change {
        verb: "delete",
        done: "deleted {}",
        held: "{} does not exist",
    };
    change::each::<MachineDelete>(context, &change, &args.machines, |machine| {
        request!(&job_flags, MachineParams { machine })
    })
}

fn is_meant(console: &mut Console, machines: &[String]) -> Result<bool, CliError> {
    write!(
        console.err,
        "delete {} and everything on {}? [y/N] ",
        machines.join(", "),
        if machines.len() == 1 { "it" } else { "them" }
    )?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
