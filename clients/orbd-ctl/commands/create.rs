//! `create`.

use std::process::ExitCode;

use orbd::rpc::api::MachineCreate;

use super::change::{self, Change};
use crate::args::Create;
use crate::context::{Context, request};
use crate::trouble::Trouble;

/// Makes a machine.
pub(super) fn create(context: &mut Context, args: Create) -> Result<ExitCode, Trouble> {
    let wishes = context.wishes(&args.job);
    let (distro, version) = match args.image.split_once(':') {
        Some((distro, version)) => (distro.to_owned(), Some(version.to_owned())),
        None => (args.image, None),
    };
    let name = args.name.unwrap_or_else(|| distro.clone());
    let subjects = [name.clone()];
    let params = request!(
        &wishes,
        MachineCreateParams {
            name,
            distro,
            version,
            arch: args.arch,
            user: args.user,
            cpus: args.cpus,
            memory: args.memory,
            disk: args.disk,
            isolated: args.isolated,
            isolate_network: args.isolate_network,
            mounts: args.mounts,
            forward_ssh_agent: args.forward_ssh_agent,
        }
    );
    let change = Change {
        verb: "create",
        done: "created",
        held: "is there already",
    };
    change::carry_out::<MachineCreate>(context, &change, &subjects, &[params])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::fake::Fake;

    #[test]
    fn a_machine_is_named_after_its_distribution_unless_told() {
        let check = |line: &str, expected: serde_json::Value| {
            let fake = Fake::new(|peer, request| {
                peer.answer(
                    request,
                    json!({"job_id": 1, "state": "ended", "changed": true, "run_us": 5_000_000}),
                );
            });
            let (mut context, out, _) = fake.context();
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Create(args) = cli.command else {
                panic!("{line}")
            };
            assert_eq!(create(&mut context, args).unwrap(), ExitCode::SUCCESS);
            assert_eq!(fake.asked()[0]["params"], expected);
            assert!(out.text().ends_with(" created (took 5.0 s)\n"));
        };
        check(
            "orbd-ctl create ubuntu",
            json!({"name": "ubuntu", "distro": "ubuntu"}),
        );
        check(
            "orbd-ctl create -a amd64 debian:12 db --cpus 2 --mount /a:/b --queue-timeout 5m",
            json!({"name": "db", "distro": "debian", "version": "12", "arch": "amd64", "cpus": 2,
                   "mounts": ["/a:/b"], "queue_timeout_ms": 300_000}),
        );
    }
}
