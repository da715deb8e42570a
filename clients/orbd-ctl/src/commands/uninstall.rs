//! `uninstall`: removes everything that orbd has put on this machine, except its programs, which their package manager removes.
//!
//! In the directories of orbd only files with orbd's names are removed. A directory goes with its last file, so a file of the user's
//! in one of them stays and is named.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orbd_host::config::{Config, Environment as ConfigEnvironment, Flags, UserDirs, file_in_use, lock_path};
use orbd_host::last_program;
use orbd_proto::methods::DaemonInfo;
use orbd_proto::types::NoParams;
use serde::Serialize;

use crate::context::Context;
use crate::daemon_binary;
use crate::dropin::links;
use crate::error::{CliError, exit};
use crate::installation::Installation;
use crate::layout::Look;
use crate::link::Link;
use crate::service::{ManagerName, Service};

/// `uninstall`.
#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Answer of `uninstall --json`.
#[derive(Debug, Serialize)]
struct Report {
    /// What was removed.
    removed: Vec<Item>,
    /// What was not removed, and why.
    left: Vec<Left>,
}

/// Something to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Item {
    /// What it is, such as `service`.
    what: &'static str,
    path: PathBuf,
}

/// Something that stays.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Left {
    path: PathBuf,
    /// Why it stays, or how to remove it.
    reason: String,
}

/// What orbd has put on this machine.
struct Plan {
    service: Option<Service>,
    /// The drop-in's links. A file of the user's with one of their names is none.
    dropin: Vec<Item>,
    locations: Locations,
    files: Vec<Item>,
    /// Directories that are removed if they are empty afterwards, the inner ones first.
    folders: Vec<PathBuf>,
    programs: Vec<PathBuf>,
    service_copy: PathBuf,
}

/// Where orbd keeps its files.
struct Locations {
    socket: PathBuf,
    config_file: PathBuf,
    log_dir: PathBuf,
    state_dir: PathBuf,
}

impl Locations {
    /// Returns the files of orbd that exist.
    fn files(&self) -> Vec<Item> {
        let socket = &self.socket;
        let mut files = existing("socket", [lock_path(socket), socket.with_extension("err")]);
        // `--socket` may name any file by mistake.
        if socket
            .symlink_metadata()
            .is_ok_and(|data| data.file_type().is_socket())
        {
            files.extend(existing("socket", [socket.clone()]));
        }
        files.extend(existing("configuration", [self.config_file.clone()]));
        files.extend(entries("log", &self.log_dir, &["orbd.log"]));
        files.extend(entries(
            "state",
            &self.state_dir,
            &["journal", "metrics", "spool", "service", last_program::FILE_NAME],
        ));
        files
    }
}

/// Removes orbd from this machine, after a confirmation.
pub(super) fn uninstall(context: &mut Context, args: &UninstallArgs) -> Result<ExitCode, CliError> {
    let mut plan = Plan::of(&context.link)?;
    let items = plan.items();
    if items.is_empty() {
        let left = plan.programs_left();
        let removed = Vec::new();
        context.console.answer(&Report { removed, left }, show)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !is_confirmed(context, &items)? {
        context.console.eprint("nothing removed");
        return Ok(ExitCode::from(exit::FAILED));
    }
    stop(context, &plan)?;
    // The daemon writes its last records when it stops.
    plan.files = plan.locations.files();
    let items = plan.items();
    let mut report = Report {
        removed: Vec::new(),
        left: Vec::new(),
    };
    for item in items {
        match remove(&item.path) {
            Ok(()) => report.removed.push(item),
            Err(error) => report.left.push(Left {
                path: item.path,
                reason: format!("cannot be removed: {error}"),
            }),
        }
    }
    let is_complete = report.left.is_empty();
    report.left.extend(plan.remove_folders());
    report.left.extend(plan.programs_left());
    context.console.answer(&report, show)?;
    Ok(ExitCode::from(if is_complete { 0 } else { exit::FAILED }))
}

/// Shows what would be removed and asks. Without a terminal there is no answer, so that is an error.
fn is_confirmed(context: &mut Context, items: &[Item]) -> Result<bool, CliError> {
    let list: String = items.iter().map(line).collect();
    let console = &mut context.console;
    write!(
        console.err,
        "this stops orbd and removes:\n{list}machines and OrbStack itself are not touched\n"
    )?;
    if !console.can_ask {
        return Err(CliError::Usage {
            message: "nothing removed: without a terminal there is no one to ask".into(),
            hint: "`orbd-ctl uninstall --yes` removes it without a question".into(),
        });
    }
    write!(console.err, "remove all of it? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Stops the daemon in order and waits until it has exited: running changes end first.
fn stop(context: &mut Context, plan: &Plan) -> Result<(), CliError> {
    if let Some(service) = &plan.service {
        service.remove()?;
    }
    super::daemon::stop_quietly(context)
}

impl Plan {
    fn of(link: &Link) -> Result<Self, CliError> {
        let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process()).map_err(|error| {
            CliError::Local {
                what: "orbd's configuration is invalid, so its directories are unknown; correct or remove the file".into(),
                source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
            }
        })?;
        let places = UserDirs::of_this_user().map_err(|error| CliError::Local {
            what: "cannot determine the directories of this user".into(),
            source: io::Error::other(error.to_string()),
        })?;
        let service = Service::of(link, ManagerName::of_this_system())?;
        let service_copy = config.service_program_path();
        let programs = programs(link, &service, &service_copy);
        let service = service.is_installed().then_some(service);
        let dropin_folder = super::dropin::usual_folder(link);
        let dropin = dropin_folder
            .iter()
            .flat_map(|folder| links::NAMES.map(|name| folder.join(name)));
        let dropin =
            dropin.filter(|path| matches!(links::look(path), links::Link::Ours | links::Link::Dangling));
        let dropin = existing("drop-in", dropin);
        let locations = Locations {
            socket: link.socket.clone(),
            config_file: file_in_use(&places, &Flags::default(), &ConfigEnvironment::of_process()),
            log_dir: config.log_folder(),
            state_dir: config.state_dir.clone(),
        };
        let usual_folder = link.environment.home.as_ref().map(|home| home.join(".orbd"));
        let socket_folder = link.socket.parent().map(Path::to_owned);
        let folders = dropin_folder
            .into_iter()
            .chain([config.log_folder(), config.state_dir, places.config])
            .chain(socket_folder.filter(|folder| folder.ends_with(".orbd")))
            .chain(usual_folder)
            .collect();
        Ok(Self {
            service,
            dropin,
            files: locations.files(),
            locations,
            folders,
            programs,
            service_copy,
        })
    }

    /// Returns everything that will be removed.
    fn items(&self) -> Vec<Item> {
        let service = self.service.iter().map(|service| Item {
            what: "service",
            path: service.file.clone(),
        });
        let files = self.dropin.iter().chain(&self.files).cloned();
        service.chain(files).collect()
    }

    /// Removes empty directories, and returns the others with the files in them.
    fn remove_folders(&self) -> Vec<Left> {
        let mut left: Vec<Left> = Vec::new();
        for folder in &self.folders {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    left.retain(|other| other.path != *folder);
                    left.push(Left {
                        path: folder.clone(),
                        reason: "it has files that are not orbd's".into(),
                    });
                }
                // It did not exist, or was removed.
                _ => left.retain(|other| other.path != *folder),
            }
        }
        left
    }

    /// Returns the programs with the command that removes them.
    fn programs_left(&self) -> Vec<Left> {
        let mut groups: Vec<(Installation, Vec<PathBuf>)> = Vec::new();
        for program in &self.programs {
            let installation = Installation::of(program, Some(&self.service_copy));
            if installation == Installation::ServiceCopy {
                continue;
            }
            match groups.iter_mut().find(|(other, _)| *other == installation) {
                Some((_, programs)) => programs.push(program.clone()),
                None => groups.push((installation, vec![program.clone()])),
            }
        }
        let left = |(installation, programs): (Installation, Vec<PathBuf>)| {
            let removal = installation.removal(&programs);
            programs.into_iter().map(move |path| Left {
                path,
                reason: format!("`{removal}` removes it"),
            })
        };
        groups.into_iter().flat_map(left).collect()
    }
}

/// Returns the programs of orbd that are known here: this one, the daemon's, and those that run or are installed as a service.
fn programs(link: &Link, service: &Service, service_copy: &Path) -> Vec<PathBuf> {
    let running = link
        .side_connection()
        .and_then(|mut client| client.call::<DaemonInfo>(&NoParams {}).ok()?.program);
    let mut found: Vec<PathBuf> = daemon_binary::find(&link.environment)
        .into_iter()
        .chain(std::env::current_exe())
        .chain(running.map(PathBuf::from))
        .chain(service.program())
        .filter(|path| path != service_copy && path.is_file())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn existing(what: &'static str, paths: impl IntoIterator<Item = PathBuf>) -> Vec<Item> {
    let paths = paths.into_iter().filter(|path| path.symlink_metadata().is_ok());
    paths.map(|path| Item { what, path }).collect()
}

/// Returns the entries of a directory whose names are one of these, or begin with one and a dot: `journal.set-aside-1` belongs to `journal`.
fn entries(what: &'static str, folder: &Path, names: &[&str]) -> Vec<Item> {
    let is_ours = |name: &OsStr| {
        let name = name.to_string_lossy();
        names.iter().any(|ours| {
            let rest = name.strip_prefix(ours);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let found = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = found
        .filter(|entry| is_ours(&entry.file_name()))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    existing(what, paths)
}

/// Removes a file, a link, or a directory with all that is in it. Something that is gone already is no error.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn line(item: &Item) -> String {
    format!("  {:<13}  {}\n", item.what, item.path.display())
}

fn show(report: &Report, _: Look) -> String {
    let mut text = if report.removed.is_empty() {
        "nothing to remove\n".to_owned()
    } else {
        let lines: String = report.removed.iter().map(line).collect();
        format!("removed:\n{lines}")
    };
    if !report.left.is_empty() {
        text.push_str("left:\n");
    }
    for left in &report.left {
        text.extend(["  ", &left.path.display().to_string(), ": ", &left.reason, "\n"]);
    }
    if report.removed.iter().any(|item| item.what == "drop-in") {
        text.push_str(
            "if you put the drop-in's directory on PATH in your shell's profile, remove that line\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_with_orbds_names_belong_to_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "journal",
            "journal.set-aside-17",
            "journalist",
            "notes",
            "metrics",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = entries("state", folder.path(), &["journal", "metrics"]);
        let names: Vec<_> = found
            .iter()
            .map(|item| item.path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["journal", "journal.set-aside-17", "metrics"]);
        assert!(entries("state", &folder.path().join("missing"), &["journal"]).is_empty());
    }

    #[test]
    fn link_is_removed_and_its_target_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::create_dir_all(target.join("below")).unwrap();
        let link = folder.path().join("spool");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        remove(&link).unwrap();
        assert!(target.join("below").exists() && link.symlink_metadata().is_err());
        remove(&target).unwrap();
        remove(&target).unwrap();
        assert!(!target.exists());
    }
}
