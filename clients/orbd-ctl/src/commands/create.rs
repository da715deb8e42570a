//! `create`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use orbd_host::nearest::nearest;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::MachineCreate;
use orbd_proto::types::LeaseOperation;
use serde::Serialize;

use super::change::{self, Change};
use super::lease::{self, LeaseRequest, Terminal};
use super::targets;
use super::transfer::operand;
use crate::args::{JobOptions, whole};
use crate::context::{Context, request};
use crate::error::CliError;

/// `create`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is an independent command-line flag"
)]
pub(crate) struct CreateArgs {
    /// Distribution and version, e.g. ubuntu or ubuntu:noble
    #[arg(value_name = "DISTRO[:VERSION]", required_unless_present = "list")]
    pub(crate) image: Option<String>,
    /// Name of the new machine [default: the distribution's name]
    pub(crate) name: Option<String>,
    /// arm64 or amd64 [default: the Mac's]
    #[arg(short, long)]
    pub(crate) arch: Option<String>,
    /// Default user [default: the Mac user's name]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Ask for the default user's password on this terminal (runs the real orbctl)
    #[arg(short = 'p', long, conflicts_with = "detach")]
    pub(crate) set_password: bool,
    /// CPU limit (OrbStack 2.2)
    #[arg(long, value_name = "N", value_parser = whole::<u32>, allow_hyphen_values = true)]
    pub(crate) cpus: Option<u32>,
    /// Memory limit, e.g. 4G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Disk limit, e.g. 40G (OrbStack 2.2)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) disk: Option<String>,
    /// No access to the Mac (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolated: bool,
    /// No access to the Mac's network (OrbStack 2.1)
    #[arg(long)]
    pub(crate) isolate_network: bool,
    /// Shared directory of an isolated machine; may be repeated (OrbStack 2.1)
    #[arg(long = "mount", value_name = "SRC[:DEST]")]
    pub(crate) mounts: Vec<String>,
    /// Forward the Mac's SSH agent (OrbStack 2.1)
    #[arg(long)]
    pub(crate) forward_ssh_agent: bool,
    /// Cloud-init user data (runs the real orbctl)
    #[arg(short = 'c', long, value_name = "FILE", conflicts_with = "detach")]
    pub(crate) user_data: Option<PathBuf>,
    /// Succeed if a machine with this name exists, whatever its image, and leave it as it is
    #[arg(long)]
    pub(crate) if_missing: bool,
    /// Print only the name of the new machine
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// List distributions and create nothing
    #[arg(long, conflicts_with = "image")]
    pub(crate) list: bool,
    /// Options of the job.
    #[command(flatten)]
    pub(crate) job: JobOptions,
}

/// Distributions of OrbStack 1.9.2, from a public recording of `orbctl create --help`. Later versions may have more, so others are
/// passed to `orbctl` too.
pub(crate) const DISTROS: [&str; 16] = [
    "alma",
    "alpine",
    "arch",
    "centos",
    "debian",
    "devuan",
    "fedora",
    "gentoo",
    "kali",
    "nixos",
    "openeuler",
    "opensuse",
    "oracle",
    "rocky",
    "ubuntu",
    "void",
];

/// Answer of `create --list --json`.
#[derive(Serialize)]
struct Distros {
    distros: [&'static str; DISTROS.len()],
}

/// Creates a machine.
pub(super) fn create(context: &mut Context, args: CreateArgs) -> Result<ExitCode, CliError> {
    let Some(image) = args.image.clone().filter(|_| !args.list) else {
        let answer = Distros { distros: DISTROS };
        context
            .console
            .answer(&answer, |answer, _| answer.distros.join("\n") + "\n")?;
        return Ok(ExitCode::SUCCESS);
    };
    let job_flags = args.job.options();
    let (distro, version) = match image.split_once(':') {
        Some((distro, version)) => (distro.to_owned(), Some(version.to_owned())),
        None => (image.clone(), None),
    };
    let name = args.name.clone().unwrap_or_else(|| distro.clone());
    let change = Change {
        tolerated: args.if_missing.then_some(ErrorKind::MachineExists),
        quiet: args.quiet,
        ..Change::new("create", "created {}", "{} already exists")
    };
    if args.user_data.is_some() || args.set_password {
        if args.if_missing && targets::exists(context, &name)? {
            change::print_unchanged(context, &change, &name)?;
            return Ok(ExitCode::SUCCESS);
        }
        let is_plain = args.quiet && !context.console.json;
        let request = LeaseRequest {
            operation: LeaseOperation::Create,
            verb: "create",
            machine: name.clone(),
            terminal: Terminal::Ours,
            done: (!is_plain).then(|| format!("created {name}")),
        };
        let code = lease::carry_out(context, request, &job_flags, |name| words(&args, &image, name))?;
        if is_plain && code == ExitCode::SUCCESS {
            context.console.print(format!("{name}\n").as_bytes())?;
        }
        return Ok(code);
    }
    let subjects = [name.clone()];
    let params = request!(
        &job_flags,
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
    let distro = params.distro.clone();
    change::carry_out_explained::<MachineCreate>(context, &change, &subjects, &[params], &|error| {
        change::explain_new_name(&subjects[0], explain_distro(&distro, error))
    })
}

/// Adds the nearest distribution to the error if the distribution is the probable reason.
fn explain_distro(distro: &str, error: CliError) -> CliError {
    if DISTROS.contains(&distro) || error.kind() != Some(ErrorKind::OrbctlFailed) {
        return error;
    }
    let near = nearest(distro, DISTROS.into_iter())
        .map_or_else(String::new, |near| format!("did you mean '{near}'? "));
    CliError::Usage {
        message: error.to_string(),
        hint: format!("{near}`orbd-ctl create --list` shows the distributions"),
    }
}

/// Returns the real tool's arguments. It runs in this client if it has to read a file or prompt on the terminal.
fn words(args: &CreateArgs, image: &str, name: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["create".into()];
    if let Some(file) = &args.user_data {
        words.extend(["-c".into(), operand(file)]);
    }
    words.extend(args.set_password.then(|| "-p".into()));
    let cpus = args.cpus.map(|cpus| cpus.to_string());
    let values = [
        ("-a", &args.arch),
        ("-u", &args.user),
        ("--cpus", &cpus),
        ("--memory", &args.memory),
        ("--disk", &args.disk),
    ];
    for (flag, value) in values {
        if let Some(value) = value {
            words.extend([flag.into(), value.into()]);
        }
    }
    for mount in &args.mounts {
        words.extend(["--mount".into(), mount.into()]);
    }
    let switches = [
        ("--isolated", args.isolated),
        ("--isolate-network", args.isolate_network),
        ("--forward-ssh-agent", args.forward_ssh_agent),
    ];
    words.extend(
        switches
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(flag, _)| flag.into()),
    );
    words.extend([image.into(), name.into()]);
    words
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::cli::Cli;
    use crate::commands::Command;
    use crate::fake::Fake;

    #[test]
    fn with_user_data_the_real_tool_gets_all_options() {
        let line =
            "orbd-ctl create -p -a amd64 debian:12 db --cpus 2 --isolated --mount /a:/b --user-data=-x.yaml";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Create(args) = cli.command else {
            panic!("{line}")
        };
        let expected = "create -c ./-x.yaml -p -a amd64 --cpus 2 --mount /a:/b --isolated debian:12 db";
        assert_eq!(words(&args, "debian:12", "db").join(" ".as_ref()), expected);
    }

    #[test]
    fn the_distribution_is_the_default_name() {
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
            assert!(out.text().starts_with("created ") && out.text().ends_with(" (took 5.0 s)\n"));
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
