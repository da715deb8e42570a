//! `default`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::{MachineDefault, MachineSetDefault};
use orbd_proto::types::ReadParams;

use super::change::{self, Change};
use crate::args::{AgeArgs, JobOptions};
use crate::context::{Context, request};
use crate::error::CliError;
use crate::progress::Wait;

/// `default`.
#[derive(Debug, Args)]
pub(crate) struct DefaultArgs {
    /// New default machine; `none` clears it; without it, the current one is printed
    #[arg(value_name = "NAME|none")]
    pub(crate) machine: Option<String>,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Shows, sets or clears the default machine.
pub(super) fn default(context: &mut Context, args: DefaultArgs) -> Result<ExitCode, CliError> {
    let Some(name) = args.machine else {
        let params = ReadParams {
            max_age_ms: args.age.max_age_ms(),
        };
        let answer = context.look::<MachineDefault>(Wait::Ours("default", "default".into()), &params)?;
        context.console.answer(&answer, |answer, _| {
            answer
                .machine
                .as_ref()
                .map_or_else(String::new, |name| format!("{name}\n"))
        })?;
        if answer.machine.is_none() {
            context
                .console
                .eprint("no default machine set; `orbd-ctl default NAME` sets one");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let job_flags = args.job.options();
    let (machine, subject, done) = match name.as_str() {
        "none" => (None, "the default machine".to_owned(), "default machine cleared"),
        _ => (Some(name.clone()), name, "{} is the default machine"),
    };
    let params = request!(&job_flags, SetDefaultParams { machine });
    let change = Change::new("set_default", done, done);
    change::carry_out::<MachineSetDefault>(context, &change, &[subject], &[params])
}

/// Returns the given machine, else `$ORBD_MACHINE`, else the default machine.
pub(super) fn machine_or_default(context: &mut Context, named: Option<&String>) -> Result<String, CliError> {
    if let Some(name) = named.or(context.link.environment.machine.as_ref()) {
        return Ok(name.clone());
    }
    let watch = Wait::Ours("default", "the default machine".into());
    let answer = context.look::<MachineDefault>(watch, &ReadParams::default())?;
    answer.machine.ok_or_else(|| CliError::Absent {
        message: "no machine given, and no default machine set".into(),
        hint: "name a machine with -m NAME or ORBD_MACHINE, or set the default with `orbd-ctl default NAME`"
            .into(),
    })
}
