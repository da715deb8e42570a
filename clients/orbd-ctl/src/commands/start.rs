//! `start`.

use std::process::ExitCode;

use orbd_proto::methods::{MachineStart, MachineStartAll, OrbstackStart};

use super::change::{self, Change};
use crate::args::Start;
use crate::context::{Context, request};
use crate::error::CliError;

/// Starts the given machines, all machines, or OrbStack itself.
pub(super) fn start(context: &mut Context, args: &Start) -> Result<ExitCode, CliError> {
    let job_flags = args.job.options();
    let change = |verb| Change {
        verb,
        done: "started {}",
        held: "{} is already running",
    };
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
    use crate::args::JobArgs;
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
        let args = Start {
            machines: vec!["a".into(), "gone".into(), "b".into()],
            all: false,
            force: false,
            job: JobArgs::default(),
        };
        assert_eq!(start(&mut context, &args).unwrap(), ExitCode::from(4));
        assert_eq!(out.text(), "a is already running\nb is already running\n");
        assert_eq!(
            err.text(),
            "orbd-ctl: machine gone does not exist\nhint: `orbd-ctl list` shows the machines\n"
        );
    }
}
