//! `delete`.

use std::io::{self, Write as _};
use std::process::ExitCode;

use orbd::rpc::api::MachineDelete;

use super::change::{self, Change};
use crate::args::Delete;
use crate::console::Console;
use crate::context::{Context, request};
use crate::trouble::{Trouble, exit};

/// Destroys machines. A person at a terminal is asked first.
pub(super) fn delete(context: &mut Context, args: &Delete) -> Result<ExitCode, Trouble> {
    if context.console.can_ask && !args.yes && !is_meant(&mut context.console, &args.machines)? {
        context.console.say("nothing was deleted");
        return Ok(ExitCode::from(exit::FAILED));
    }
    let wishes = args.job.options();
    let change = Change {
        verb: "delete",
        done: "deleted",
        held: "is not there",
    };
    change::each::<MachineDelete>(context, &change, &args.machines, |machine| {
        request!(&wishes, MachineParams { machine })
    })
}

fn is_meant(console: &mut Console, machines: &[String]) -> Result<bool, Trouble> {
    write!(
        console.err,
        "Delete {} with everything on {}? [y/N] ",
        machines.join(", "),
        if machines.len() == 1 { "it" } else { "them" }
    )?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
