//! `logs`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineLogs;
use orbd_proto::types::{LeaseOperation, LogsParams};

use super::lease::{self, LeaseRequest, Terminal};
use crate::args::LeaseOptions;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;

/// `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Print the whole log
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Follow the log until Ctrl-C (runs the real orbctl)
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Prints a machine's log.
pub(super) fn logs(context: &mut Context, args: LogsArgs) -> Result<ExitCode, CliError> {
    let watch = Wait::Ours("logs", format!("logs {}", args.machine));
    let params = LogsParams {
        machine: args.machine,
        all: args.all,
    };
    let answer = context.look::<MachineLogs>(watch, &params)?;
    context.console.answer(&answer, |answer, _| answer.text.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// Follows a machine's log: runs the real tool in a session, which blocks no other job.
pub(super) fn follow(context: &mut Context, args: &LogsArgs) -> Result<ExitCode, CliError> {
    let job_flags = LeaseOptions::default().options();
    let request = LeaseRequest {
        operation: LeaseOperation::Logs,
        verb: "logs",
        machine: args.machine.clone(),
        terminal: Terminal::Its,
        done: None,
    };
    lease::carry_out(context, request, &job_flags, |name| {
        let mut words: Vec<OsString> = vec!["logs".into(), "--follow".into()];
        words.extend(args.all.then(|| "--all".into()));
        words.push(name.into());
        words
    })
}
