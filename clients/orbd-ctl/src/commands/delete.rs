//! `delete`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use orbd_proto::methods::MachineDelete;

use super::change::{self, Change};
use crate::args::Delete;
use crate::console::Console;
use crate::context::{Context, request};
use crate::error::{CliError, exit};

/// Deletes machines. On a terminal, asks for confirmation first.
pub(super) fn delete(context: &mut Context, args: &Delete) -> Result<ExitCode, CliError> {
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
