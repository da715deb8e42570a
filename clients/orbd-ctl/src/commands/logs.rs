//! `logs`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineLogs;
use orbd_proto::types::{LeaseOperation, LogsParams};

use super::lease::{self, LeaseRequest, Terminal};
use crate::args::{LeaseOptions, whole};
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
    #[arg(short, long, conflicts_with = "tail")]
    pub(crate) follow: bool,
    /// Print only the last N lines
    #[arg(short = 'n', long, value_name = "N", value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub(crate) tail: Option<usize>,
    /// Hidden: prints that a machine's log has no times, and which command has them.
    #[arg(long, hide = true, value_name = "TIME")]
    pub(crate) since: Option<String>,
}

/// Prints a machine's log.
pub(super) fn logs(context: &mut Context, args: LogsArgs) -> Result<ExitCode, CliError> {
    refuse_since(&args)?;
    let watch = Wait::Ours("logs", format!("logs {}", args.machine));
    let params = LogsParams {
        machine: args.machine,
        all: args.all,
    };
    let answer = context.look::<MachineLogs>(watch, &params)?;
    context.console.answer(&answer, |answer, _| {
        last_lines(&answer.text, args.tail).to_owned()
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the last lines of a text; all of them without a number.
fn last_lines(text: &str, lines: Option<usize>) -> &str {
    let Some(lines) = lines else { return text };
    let all = text.split_inclusive('\n').count();
    let skipped = text
        .split_inclusive('\n')
        .take(all.saturating_sub(lines))
        .map(str::len)
        .sum();
    &text[skipped..]
}

/// Returns the error for `--since`: the lines of a machine's log have no time.
fn refuse_since(args: &LogsArgs) -> Result<(), CliError> {
    match &args.since {
        None => Ok(()),
        Some(_) => Err(CliError::Usage {
            message: "the lines of a machine's log have no time, so --since cannot select any".into(),
            hint: format!(
                "use --tail N, or the machine's journal: `orbd-ctl run -m {} journalctl --since ...`",
                args.machine
            ),
        }),
    }
}

/// Follows a machine's log: runs the real tool in a session, which blocks no other job.
pub(super) fn follow(context: &mut Context, args: &LogsArgs) -> Result<ExitCode, CliError> {
    refuse_since(args)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines() {
        let check = |text, lines, expected| assert_eq!(last_lines(text, lines), expected);
        check("a\nb\nc\n", Some(2), "b\nc\n");
        check("a\nb\nc", Some(1), "c");
        check("a\nb\n", Some(5), "a\nb\n");
        check("a\nb\n", Some(0), "");
        check("", Some(1), "");
        check("a\n", None, "a\n");
    }
}
