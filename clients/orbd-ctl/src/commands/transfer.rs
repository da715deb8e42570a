//! `push`, `pull`, `export` and `import`: run the real `orbctl` in this client under a lease.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orbd_proto::types::LeaseOperation;

use super::default::machine_or_default;
use super::lease::{self, LeaseRequest, Terminal};
use super::run::{self, GuestOptions, RunArgs};
use crate::args::{JobOptions, LeaseOptions, MACHINE_HELP};
use crate::context::Context;
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;

/// `push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    #[arg(short, long, value_name = "NAME", help = MACHINE_HELP)]
    pub(crate) machine: Option<String>,
    /// Guest user who writes the files, e.g. root; needs a destination, and copies files but no folders
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Files to copy, then the destination
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// `pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[arg(short, long, value_name = "NAME", help = MACHINE_HELP)]
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
pub(super) fn push(context: &mut Context, args: &PushArgs) -> Result<ExitCode, CliError> {
    if let Some(user) = &args.user {
        return push_as(context, args, user);
    }
    let (machine, done) = (args.machine.as_ref(), "copied into");
    transfer(
        context,
        machine,
        &args.paths,
        &args.limits,
        LeaseOperation::Push,
        "push",
        done,
    )
}

/// Copies files from a machine to the Mac.
pub(super) fn pull(context: &mut Context, args: &PullArgs) -> Result<ExitCode, CliError> {
    let (machine, done) = (args.machine.as_ref(), "copied from");
    transfer(
        context,
        machine,
        &args.paths,
        &args.limits,
        LeaseOperation::Pull,
        "pull",
        done,
    )
}

fn transfer(
    context: &mut Context,
    machine: Option<&String>,
    paths: &[PathBuf],
    limits: &LeaseOptions,
    operation: LeaseOperation,
    verb: &'static str,
    done: &str,
) -> Result<ExitCode, CliError> {
    let machine = machine_or_default(context, machine)?;
    let job_flags = limits.options();
    let request = LeaseRequest {
        operation,
        verb,
        done: Some(format!("{done} {machine}")),
        machine,
        terminal: Terminal::Ours,
    };
    lease::carry_out(context, request, &job_flags, |name| {
        let mut words: Vec<OsString> = vec![verb.into(), "-m".into(), name.into()];
        words.extend(paths.iter().map(|path| operand(path)));
        words
    })
}

/// Writes its input to the file `$1`, or to `$1/$2` if `$1` is a folder, with the mode `$3`. As with `orbctl push`, a relative path starts
/// in the user's home.
const WRITE_FILE: &str = r#"cd || exit
f=$1
if [ -d "$f" ]; then f="${f%/}/$2"; fi
umask 077
cat > "$f" && chmod "$3" "$f""#;

/// Copies files as a guest user. `orbctl push` has no such option, so a command in the machine writes them.
fn push_as(context: &mut Context, args: &PushArgs, user: &str) -> Result<ExitCode, CliError> {
    let usage = |message: String, hint: &str| CliError::Usage {
        message,
        hint: hint.into(),
    };
    let Some((destination, sources)) = args.paths.split_last().filter(|(_, sources)| !sources.is_empty())
    else {
        let hint = "`orbd-ctl push -m NAME -u USER FILE DESTINATION`";
        return Err(usage("--user needs a destination".into(), hint));
    };
    let destination = destination.to_str().ok_or_else(|| {
        let message = format!("the destination {} is not UTF-8", destination.display());
        usage(message, "choose another name")
    })?;
    let machine = machine_or_default(context, args.machine.as_ref())?;
    let interrupt = Interrupt::watch()?;
    for source in sources {
        let local = |error| CliError::Local {
            what: format!("cannot read {}", source.display()),
            source: error,
        };
        let file = File::open(source).map_err(local)?;
        let found = file.metadata().map_err(local)?;
        let name = source.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| found.is_file()) else {
            let message = format!("--user copies files, and {} is none", source.display());
            let hint = "copy a folder with `tar c DIR | orbd-ctl run -m NAME -u USER tar xC DESTINATION`";
            return Err(usage(message, hint));
        };
        let mode = format!("{:o}", found.permissions().mode() & 0o777);
        let command = ["sh", "-c", WRITE_FILE, "sh", destination, name, &mode];
        let write = RunArgs {
            machine: Some(machine.clone()),
            guest: GuestOptions {
                user: Some(user.into()),
                no_terminal: true,
                job: JobOptions {
                    limits: args.limits.clone(),
                    ..JobOptions::default()
                },
                ..GuestOptions::default()
            },
            command: command.map(String::from).to_vec(),
        };
        context.console.input = Some(Box::new(file));
        let code = run::carry_out(context, write, &interrupt)?;
        if code != 0 {
            context
                .console
                .eprint(&format!("{} was not copied to {machine}", source.display()));
            return Ok(ExitCode::from(exit::FAILED));
        }
    }
    if !context.console.json {
        context
            .console
            .print(format!("copied into {machine}\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
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
