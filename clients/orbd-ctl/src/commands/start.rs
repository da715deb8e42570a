//! `start`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::{MachineStart, MachineStartAll, OrbstackStart};

use super::change::{self, Change};
use crate::args::JobOptions;
use crate::context::{Context, request};
use crate::error::CliError;

/// `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Names or ids; none for OrbStack itself
    #[arg(value_name = "NAME", conflicts_with = "all")]
    pub(crate) machines: Vec<String>,
    /// All machines
    #[arg(long)]
    pub(crate) all: bool,
    /// For OrbStack itself: stop running jobs and cancel waiting ones instead of queueing behind them
    #[arg(short, long, conflicts_with_all = ["machines", "all"])]
    pub(crate) force: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Starts the given machines, all machines, or OrbStack itself.
pub(super) fn start(context: &mut Context, args: &StartArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let change = |verb| Change::new(verb, "started {}", "{} is already running");
    if args.all {
        let params = request!(&job_flags, ChangeParams {});
        return change::whole::<MachineStartAll>(context, &change("start_all"), "every machine", params);
    }
    if args.machines.is_empty() {
        let params = request!(&job_flags, ForceParams { force: args.force });
        return change::whole::<OrbstackStart>(context, &change("start_orbstack"), "OrbStack", params);
    }
    change::each::<MachineStart>(context, &change("start"), &args.machines, |machine| {
        request!(&job_flags, MachineParams { machine })
    })
}

#[cfg(test)]
mod tests {
    use orbd_proto::errors::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::args::JobOptions;
    use crate::fake::Fake;

    #[test]
    fn results_are_printed_in_order_and_the_first_failure_sets_the_exit_code() {
        let fake = Fake::new(|peer, request| match request["params"]["machine"].as_str() {
            Some("gone") => peer.refuse(
                request,
                ErrorKind::MachineNotFound.error("machine gone does not exist"),
            ),
            _ => peer.answer(request, json!({"job_id": 1, "state": "ended", "changed": false})),
        });
        let (mut context, out, err) = fake.context();
        let args = StartArgs {
            machines: vec!["a".into(), "gone".into(), "b".into()],
            all: false,
            force: false,
            job: JobOptions::default(),
        };
        assert_eq!(start(&mut context, &args).unwrap(), ExitCode::from(4));
        assert_eq!(out.text(), "a is already running\nb is already running\n");
        assert_eq!(
            err.text(),
            "orbd-ctl: machine gone does not exist\nhint: `orbd-ctl list` shows the machines\n"
        );
    }
}
