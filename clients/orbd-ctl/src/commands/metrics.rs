//! `metrics`.

mod export;

use std::process::ExitCode;

use orbd_proto::methods::{MetricsCounters, MetricsHistory, MetricsSummary};
use orbd_proto::types::{MetricsHistoryParams, MetricsSummaryParams, NoParams};

use crate::args::{self, Metrics, MetricsCommand, millis};
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// Shows metrics of recorded operations.
pub(super) fn metrics(context: &mut Context, args: Metrics) -> Result<ExitCode, CliError> {
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

fn summary(context: &mut Context, args: args::MetricsSummary) -> Result<(), CliError> {
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
