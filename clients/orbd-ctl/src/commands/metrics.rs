//! `metrics`.

mod export;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use orbd_proto::methods::{MetricsCounters, MetricsHistory, MetricsSummary};
use orbd_proto::types::{GroupBy, MetricsHistoryParams, MetricsSummaryParams, NoParams};

use crate::args::{duration, millis, not_one_of, whole};
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;
use export::MetricsExportArgs;

/// `metrics`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct MetricsArgs {
    /// The subcommand; `None` is `summary`.
    #[command(subcommand)]
    pub(crate) command: Option<MetricsCommand>,
    /// Options of `summary`, accepted without the subcommand too.
    #[command(flatten)]
    pub(crate) summary: SummaryArgs,
}

/// `metrics ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Show counts, errors, and percentiles of wait and run times
    Summary(SummaryArgs),
    /// Show recorded operations, newest first
    History(HistoryArgs),
    /// Export all recorded operations, oldest first
    Export(MetricsExportArgs),
    /// Show counters since orbd started: cache hits, joins, refusals and others
    Counters,
}

/// `metrics summary`.
#[derive(Debug, Args, Default)]
pub(crate) struct SummaryArgs {
    /// Only the last TIME, e.g. 1h or 7d [default: all records]
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) window: Option<Duration>,
    /// One row per operation, machine, or both
    #[arg(long, value_name = "WHAT", value_parser = group_by)]
    pub(crate) by: Option<GroupBy>,
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
}

/// `metrics history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Only this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only this outcome: succeeded, failed, cancelled, expired, interrupted or unknown
    #[arg(long, value_name = "OUTCOME", value_parser = outcome)]
    pub(crate) outcome: Option<String>,
    /// Show at most N records
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 20,
        value_parser = whole::<usize>,
        allow_hyphen_values = true
    )]
    pub(crate) limit: usize,
    /// Continue after the previous page, which prints this cursor
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

/// Start of a time window that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// A duration before now.
    Ago(Duration),
    /// Unix time in milliseconds.
    At(u64),
}

fn group_by(text: &str) -> Result<GroupBy, String> {
    match text {
        "operation" => Ok(GroupBy::Operation),
        "machine" => Ok(GroupBy::Machine),
        "both" => Ok(GroupBy::Both),
        _ => Err(not_one_of(text, &["operation", "machine", "both"])),
    }
}

fn outcome(text: &str) -> Result<String, String> {
    const OUTCOMES: [&str; 6] = [
        "succeeded",
        "failed",
        "cancelled",
        "expired",
        "interrupted",
        "unknown",
    ];
    if OUTCOMES.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(not_one_of(text, &OUTCOMES))
    }
}

/// Parses a duration ago or an RFC 3339 time.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let time = text.parse::<jiff::Timestamp>().ok();
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        .map(Since::At)
        .ok_or_else(|| {
            "expected a duration, e.g. 10m, or a time with a zone, e.g. 2026-11-30T08:00:00Z".into()
        })
}

/// Shows metrics of recorded operations.
pub(super) fn metrics(context: &mut Context, args: MetricsArgs) -> Result<ExitCode, CliError> {
    let watch = Wait::Ours("metrics", "metrics".into());
    match args.command.unwrap_or(MetricsCommand::Summary(args.summary)) {
        MetricsCommand::Summary(args) => summary(context, args)?,
        MetricsCommand::History(args) => {
            let params = MetricsHistoryParams {
                operation: args.operation,
                machine: args.machine,
                outcome: args.outcome,
                limit: Some(args.limit),
                cursor: args.cursor,
            };
            let answer = context.look::<MetricsHistory>(watch, &params)?;
            context.console.answer(&answer, render::history)?;
            if let (Some(cursor), false) = (&answer.cursor, context.console.json) {
                context.console.eprint(&format!(
                    "there are more records; `--cursor {cursor}` shows the next page"
                ));
            }
        }
        MetricsCommand::Export(args) => export::export(context, args)?,
        MetricsCommand::Counters => {
            let answer = context.look::<MetricsCounters>(watch, &NoParams {})?;
            context.console.answer(&answer, render::counters)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(context: &mut Context, args: SummaryArgs) -> Result<(), CliError> {
    let window = args.window;
    let params = MetricsSummaryParams {
        window_ms: window.map(millis),
        operation: args.operation,
        machine: args.machine,
        group_by: args.by,
    };
    let answer = context.look::<MetricsSummary>(Wait::Ours("metrics", "metrics".into()), &params)?;
    context
        .console
        .answer(&answer, |answer, look| render::metrics(answer, window, look))?;
    if answer.rows.is_empty() {
        context.console.eprint("no records in this window");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_ago_or_a_time_with_a_zone() {
        assert_eq!(since("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(Since::At(1000)));
        assert_eq!(since("1970-01-01T02:00:01+02:00"), Ok(Since::At(1000)));
        for text in [
            "",
            "yesterday",
            "-5m",
            "2026-11-30",
            "2026-11-30T08:00:00",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(since(text).is_err(), "{text:?}");
        }
    }
}
