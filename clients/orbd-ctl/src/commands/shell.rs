//! `shell`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::attach::{Guest, attach, code};
use super::lease::Terminal;
use crate::args::{LeaseOptions, MACHINE_HELP, duration};
use crate::context::Context;

/// `shell`.
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    #[arg(value_name = "NAME", help = MACHINE_HELP)]
    pub(crate) machine: Option<String>,
    /// The same as NAME, with orbctl's flag
    #[arg(
        short = 'm',
        long = "machine",
        value_name = "NAME",
        conflicts_with = "machine"
    )]
    pub(crate) named_machine: Option<String>,
    /// Guest user [default: the machine's default user]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Guest directory [default: the one that corresponds to the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Give up if the job has not started after TIME, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) queue_timeout: Option<Duration>,
}

/// Opens a shell in a machine.
pub(super) fn shell(context: &mut Context, args: &ShellArgs) -> ExitCode {
    let guest = Guest {
        user: args.user.as_deref(),
        workdir: args.workdir.as_deref(),
        ..Guest::default()
    };
    let machine = args.machine.as_ref().or(args.named_machine.as_ref());
    let limits = LeaseOptions {
        queue_timeout: args.queue_timeout,
        timeout: None,
        label: None,
    };
    let ended = attach(context, machine, &limits, Terminal::Its, &guest);
    code(context, ended)
}
