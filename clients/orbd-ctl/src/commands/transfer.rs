//! `push`, `pull`, `export` and `import`: run the real `orbctl` in this client under a lease.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orbd_proto::types::LeaseOperation;

use super::default::machine_or_default;
use super::lease::{self, LeaseRequest, Terminal};
use crate::args::LeaseOptions;
use crate::context::Context;
use crate::error::CliError;

/// `push` and `pull`.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// Name or id [default: the default machine]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Files to copy, then the destination
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    /// Archive to write, e.g. web.tar.zst
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Name of the new machine
    #[arg(short, long, value_name = "NEW")]
    pub(crate) name: String,
    /// Archive to read
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// Copies files from the Mac into a machine.
pub(super) fn push(context: &mut Context, args: &TransferArgs) -> Result<ExitCode, CliError> {
    transfer(context, args, LeaseOperation::Push, "push", "copied into")
}

/// Copies files from a machine to the Mac.
pub(super) fn pull(context: &mut Context, args: &TransferArgs) -> Result<ExitCode, CliError> {
    transfer(context, args, LeaseOperation::Pull, "pull", "copied from")
}

fn transfer(
    context: &mut Context,
    args: &TransferArgs,
    operation: LeaseOperation,
    verb: &'static str,
    done: &str,
) -> Result<ExitCode, CliError> {
    let machine = machine_or_default(context, args.machine.as_ref())?;
    let job_flags = args.limits.options();
    let request = LeaseRequest {
        operation,
        verb,
        done: Some(format!("{done} {machine}")),
        machine,
        terminal: Terminal::Ours,
    };
    lease::carry_out(context, request, &job_flags, |name| {
        let mut words: Vec<OsString> = vec![verb.into(), "-m".into(), name.into()];
        words.extend(args.paths.iter().map(|path| operand(path)));
        words
    })
}

/// Exports a machine to an archive.
pub(super) fn export(context: &mut Context, args: &ExportArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.limits.options();
    let request = LeaseRequest {
        operation: LeaseOperation::Export,
        verb: "export",
        machine: args.machine.clone(),
        terminal: Terminal::Ours,
        done: Some(format!("exported {} to {}", args.machine, args.file.display())),
    };
    lease::carry_out(context, request, &job_flags, |name| {
        vec!["export".into(), name.into(), operand(&args.file)]
    })
}

/// Creates a machine from an archive.
pub(super) fn import(context: &mut Context, args: &ImportArgs) -> Result<ExitCode, CliError> {
    let job_flags = args.limits.options();
    let request = LeaseRequest {
        operation: LeaseOperation::Import,
        verb: "import",
        machine: args.name.clone(),
        terminal: Terminal::Ours,
        done: Some(format!("imported {}", args.name)),
    };
    lease::carry_out(context, request, &job_flags, |name| {
        vec!["import".into(), "-n".into(), name.into(), operand(&args.file)]
    })
}

/// Prefixes a path that begins with `-` with `./`, so that `orbctl` does not parse it as a flag.
pub(super) fn operand(path: &Path) -> OsString {
    if path.as_os_str().as_bytes().starts_with(b"-") {
        Path::new(".").join(path).into()
    } else {
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_never_becomes_a_flag() {
        assert_eq!(operand(Path::new("-f")), "./-f");
        assert_eq!(operand(Path::new("a b")), "a b");
    }
}
