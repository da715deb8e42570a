//! `cp`: `push` or `pull`, with the machine in front of its path as in docker.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orbd_host::machine::MachineName;

use super::transfer::{self, PullArgs, PushArgs};
use crate::args::LeaseOptions;
use crate::context::Context;
use crate::error::CliError;

/// `cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Files or folders to copy, then the destination; NAME:PATH is a path in a machine
    #[arg(value_name = "PATH", required = true, num_args = 2..)]
    pub(crate) paths: Vec<PathBuf>,
    /// Accepted as in scp; folders are always copied with their contents
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Guest user who writes the files; only for files that are copied into a machine
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    #[command(flatten)]
    pub(crate) limits: LeaseOptions,
}

/// The direction of a copy and its paths, without the machine's name.
#[derive(Debug, PartialEq, Eq)]
enum Copy {
    Into { machine: String, paths: Vec<PathBuf> },
    From { machine: String, paths: Vec<PathBuf> },
}

/// Copies files into or from a machine.
pub(super) fn cp(context: &mut Context, args: CpArgs) -> Result<ExitCode, CliError> {
    let CpArgs {
        paths,
        user,
        limits,
        recursive: _,
    } = args;
    match direction(&paths)? {
        Copy::Into { machine, paths } => {
            let machine = Some(machine);
            transfer::push(
                context,
                &PushArgs {
                    machine,
                    user,
                    paths,
                    limits,
                },
            )
        }
        Copy::From { .. } if user.is_some() => Err(usage(
            "--user applies to files that are copied into a machine",
            "remove it, or read the file as that user: `orbd-ctl run -m NAME -u USER cat PATH > FILE`",
        )),
        Copy::From { machine, paths } => {
            let machine = Some(machine);
            transfer::pull(
                context,
                &PullArgs {
                    machine,
                    paths,
                    limits,
                },
            )
        }
    }
}

/// Determines the direction: the machine is named either by the destination or by all sources.
fn direction(paths: &[PathBuf]) -> Result<Copy, CliError> {
    let Some((destination, sources)) = paths.split_last() else {
        return Err(usage("no paths given", "orbd-ctl cp SOURCE DESTINATION"));
    };
    let remote: Vec<(&str, &Path)> = sources.iter().filter_map(|path| in_machine(path)).collect();
    match (in_machine(destination), &remote[..]) {
        (Some(_), [_, ..]) => Err(usage(
            "cp does not copy from machine to machine",
            "copy to the Mac first, or use a pipe: `orbd-ctl run -m A tar c DIR | orbd-ctl run -m B tar x`",
        )),
        (None, []) => Err(usage(
            "no path names a machine",
            "write NAME:PATH for the path in the machine, e.g. `orbd-ctl cp web:/etc/hosts .`",
        )),
        (Some((machine, path)), []) => {
            let mut paths = sources.to_vec();
            // Without a destination, `orbctl push` takes a single argument as the source and copies it into the guest user's home.
            match (path.as_os_str().is_empty(), sources) {
                (false, _) => paths.push(path.into()),
                (true, [_]) => {}
                (true, _) => paths.push(".".into()),
            }
            Ok(Copy::Into {
                machine: machine.into(),
                paths,
            })
        }
        (None, [(machine, _), ..]) => {
            if remote.len() < sources.len() || remote.iter().any(|(other, _)| other != machine) {
                return Err(usage(
                    "all sources must be in the same machine",
                    "copy from each machine with a command of its own",
                ));
            }
            if let Some((machine, _)) = remote.iter().find(|(_, path)| path.as_os_str().is_empty()) {
                return Err(usage(
                    format!("'{machine}:' names no file"),
                    format!("write {machine}:PATH; a relative path starts in the guest user's home"),
                ));
            }
            let mut paths: Vec<PathBuf> = remote.iter().map(|(_, path)| path.into()).collect();
            paths.push(destination.clone());
            Ok(Copy::From {
                machine: (*machine).into(),
                paths,
            })
        }
    }
}

/// Splits `NAME:PATH`. `None` for a path on the Mac: one without a colon, or with a slash before the first, such as `./a:b`.
fn in_machine(path: &Path) -> Option<(&str, &Path)> {
    let bytes = path.as_os_str().as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&bytes[..colon]).ok()?;
    name.parse::<MachineName>().ok()?;
    let path = &bytes[colon + 1..];
    // orbctl starts relative paths in the guest user's home, and takes a tilde literally.
    let path = match path {
        b"~" => b".",
        _ => path.strip_prefix(b"~/").unwrap_or(path),
    };
    Some((name, Path::new(OsStr::from_bytes(path))))
}

fn usage(message: impl Into<String>, hint: impl Into<String>) -> CliError {
    CliError::Usage {
        message: message.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction_of(line: &str) -> Result<Copy, String> {
        let paths: Vec<PathBuf> = line.split(' ').map(PathBuf::from).collect();
        direction(&paths).map_err(|error| error.to_string())
    }

    #[test]
    fn the_side_with_a_machine_name_decides_the_direction() {
        let into = |line: &str, machine: &str, paths: &[&str]| {
            let (machine, paths) = (machine.into(), paths.iter().map(Into::into).collect());
            assert_eq!(direction_of(line), Ok(Copy::Into { machine, paths }), "{line}");
        };
        let from = |line: &str, machine: &str, paths: &[&str]| {
            let (machine, paths) = (machine.into(), paths.iter().map(Into::into).collect());
            assert_eq!(direction_of(line), Ok(Copy::From { machine, paths }), "{line}");
        };
        into("a web:/tmp/b", "web", &["a", "/tmp/b"]);
        into("a web:", "web", &["a"]);
        into("a b web:", "web", &["a", "b", "."]);
        into("a web:~/b", "web", &["a", "b"]);
        into("./a:b web:c", "web", &["./a:b", "c"]);
        from("web:/x .", "web", &["/x", "."]);
        from("web:~ out", "web", &[".", "out"]);
        from("web:/x web:/y out/", "web", &["/x", "/y", "out/"]);
        from("web:/a:b .", "web", &["/a:b", "."]);
        from("web:/x /srv/a:b", "web", &["/x", "/srv/a:b"]);
    }

    #[test]
    fn copies_without_one_machine_are_refused() {
        let check = |line: &str, expected: &str| {
            let error = direction_of(line).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("a b", "no path names a machine");
        check("web:/x db:/y", "from machine to machine");
        check("web:/x db:/y .", "in the same machine");
        check("web:/x y .", "in the same machine");
        check("web: .", "names no file");
    }
}
