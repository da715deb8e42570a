//! `dropin`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use orbd_proto::methods::DaemonInfo;
use orbd_proto::types::NoParams;
use serde::Serialize;

use crate::context::Context;
use crate::dropin::links::{self, InstallError, Link, Written};
use crate::dropin::real_tool;
use crate::environment::variable;
use crate::error::{CliError, exit};
use crate::installation::{Installation, is_temporary};
use crate::link;
use crate::service::program;

/// `dropin`.
#[derive(Debug, Args)]
pub(crate) struct DropinArgs {
    #[command(subcommand)]
    pub(crate) command: DropinCommand,
    /// Directory of the links, which must come first on PATH [default: ~/.orbd/bin]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// `dropin ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum DropinCommand {
    /// Link orbctl and orb to this program; never replaces a file that is not orbd's
    Install,
    /// Remove the links
    Uninstall,
    /// Show which orbctl and orb come first on PATH; exits with 1 if calls do not go through orbd
    Status,
}

/// State of the drop-in, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Directory of the links, which may not exist.
    folder: PathBuf,
    /// Both links exist and point to a program.
    installed: bool,
    /// Both names resolve to the drop-in on PATH.
    first: bool,
    names: Vec<Named>,
    /// The real tool that the drop-in calls.
    orbctl: Option<PathBuf>,
    /// Why the real tool was not found.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// orbd answers. If it does not, the drop-in runs the real tool directly.
    answers: bool,
    /// Line for a shell profile that puts the directory first on PATH; `None` if it is first or not installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

/// One name of the tool.
#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
    /// First program with this name on PATH.
    runs: Option<PathBuf>,
    /// `runs` is the drop-in.
    is_drop_in: bool,
    /// Our link exists, but its target does not.
    is_dangling: bool,
}

/// Installs, removes and shows the drop-in.
pub(super) fn dropin(context: &mut Context, args: &DropinArgs) -> Result<ExitCode, CliError> {
    let folder = folder(&context.link, args.dir.as_deref())?;
    match args.command {
        DropinCommand::Install => {
            let written = install(&context.link, &folder)?;
            let report = examine(&context.link, &folder);
            let lead = match written {
                Written::New => format!("installed the drop-in as orbctl and orb in {}", folder.display()),
                Written::Same => format!(
                    "the drop-in is already installed as orbctl and orb in {}",
                    folder.display()
                ),
            };
            context.console.answer(&report, |report, _| {
                let mut text = format!("{lead}\n");
                text.extend(report.advice());
                text
            })?;
            Ok(ExitCode::SUCCESS)
        }
        DropinCommand::Uninstall => {
            let removed = links::uninstall(&folder).map_err(|source| CliError::Local {
                what: format!("cannot remove the links in {}", folder.display()),
                source,
            })?;
            let report = examine(&context.link, &folder);
            context.console.answer(&report, |_, _| {
                if removed.is_empty() {
                    format!("no drop-in installed in {}\n", folder.display())
                } else {
                    "removed the drop-in; running shells may have cached its path: run `hash -r` there\n"
                        .into()
                }
            })?;
            Ok(ExitCode::SUCCESS)
        }
        DropinCommand::Status => {
            let report = examine(&context.link, &folder);
            let works = report.first && report.orbctl.is_some();
            context.console.answer(&report, |report, _| report.show())?;
            Ok(ExitCode::from(if works { 0 } else { exit::FAILED }))
        }
    }
}

fn install(link: &link::Link, folder: &Path) -> Result<Written, CliError> {
    let own = std::env::current_exe().map_err(|source| CliError::Local {
        what: "cannot determine the path of this program".into(),
        source,
    })?;
    let program = program::stable(&own, &link.environment);
    // Links that are deleted with the program do no harm.
    if Installation::of(&program, None) == Installation::Temporary && !is_temporary(folder) {
        return Err(program::temporary(&program, "the drop-in"));
    }
    links::install(folder, &program).map_err(|error| match error {
        InstallError::Foreign(_) => CliError::Usage {
            message: error.to_string(),
            hint: "choose another directory with --dir, and put it first on PATH".into(),
        },
        InstallError::System(source) => CliError::Local {
            what: format!("cannot create the links in {}", folder.display()),
            source,
        },
    })
}

/// Returns the directory of the links: `--dir`, or `~/.orbd/bin`.
fn folder(link: &link::Link, given: Option<&Path>) -> Result<PathBuf, CliError> {
    match given {
        Some(folder) => std::path::absolute(folder).map_err(|source| CliError::Local {
            what: format!("cannot make {} absolute", folder.display()),
            source,
        }),
        None => usual_folder(link).ok_or_else(|| CliError::Usage {
            message: "HOME is not set, so the directory of the links is unknown".into(),
            hint: "set HOME, or name a directory with --dir".into(),
        }),
    }
}

/// Returns the default directory of the links; `None` if `$HOME` is not set.
pub(super) fn usual_folder(link: &link::Link) -> Option<PathBuf> {
    link.environment.home.as_ref().map(|home| home.join(".orbd/bin"))
}

/// Inspects the links in a directory, PATH, the real tool and the daemon. Changes and starts nothing.
pub(super) fn examine(link: &link::Link, folder: &Path) -> Report {
    let path = link.environment.path.as_deref();
    let names: Vec<Named> = links::NAMES
        .into_iter()
        .map(|name| {
            let runs = links::first_on_path(name, path);
            Named {
                name,
                is_drop_in: runs
                    .as_deref()
                    .is_some_and(|path| links::look(path) == Link::Ours),
                is_dangling: links::look(&folder.join(name)) == Link::Dangling,
                runs,
            }
        })
        .collect();
    let installed = links::NAMES
        .iter()
        .all(|name| links::look(&folder.join(name)) == Link::Ours);
    let first = names.iter().all(|name| name.is_drop_in);
    let told = link
        .side_connection()
        .map(|mut client| client.call::<DaemonInfo>(&NoParams {}).ok());
    let of_daemon = told
        .as_ref()
        .and_then(|info| Some(PathBuf::from(info.as_ref()?.orbctl.clone()?)));
    let (orbctl, why) = match real_tool(of_daemon.as_deref(), &link.environment) {
        Ok(orbctl) => (Some(orbctl), None),
        Err(why) => (None, Some(why)),
    };
    let shell = variable("SHELL");
    Report {
        profile: (installed && !first)
            .then(|| links::profile_line(folder, link.environment.home.as_deref(), shell.as_deref())),
        folder: folder.to_owned(),
        installed,
        first,
        names,
        orbctl,
        why,
        answers: told.is_some(),
    }
}

impl Report {
    /// Returns a problem and its fix if the drop-in is installed but not effective.
    pub(super) fn shadow(&self) -> Option<(String, String)> {
        if self.names.iter().any(|name| name.is_dangling) {
            return Some((
                format!(
                    "the links in {} point to a program that no longer exists",
                    self.folder.display()
                ),
                "`orbd-ctl dropin install` recreates them, `orbd-ctl dropin uninstall` removes them".into(),
            ));
        }
        let profile = self.profile.as_ref()?;
        let others: Vec<String> = self
            .names
            .iter()
            .filter(|name| !name.is_drop_in)
            .map(|name| match &name.runs {
                Some(path) => format!("{} comes first", path.display()),
                None => format!("no {} is on PATH", name.name),
            })
            .collect();
        Some((
            format!(
                "installed in {}, but {}",
                self.folder.display(),
                others.join(" and ")
            ),
            format!("add this line to your shell's profile, after OrbStack's own line: {profile}"),
        ))
    }

    /// Returns the message for a drop-in that is effective; `None` if it is not.
    pub(super) fn good(&self) -> Option<String> {
        self.first.then(|| {
            format!(
                "calls of orbctl and orb go through it, in {}",
                self.folder.display()
            )
        })
    }

    fn advice(&self) -> Option<String> {
        let profile = self.profile.as_ref()?;
        Some(format!(
            "the directory is not first on PATH; add this line to your shell's profile, after OrbStack's own line:\n\n    {profile}\n\n"
        ))
    }

    fn show(&self) -> String {
        let state = if self.installed {
            "installed"
        } else {
            "not installed"
        };
        let behind = match (&self.orbctl, &self.why) {
            (Some(orbctl), _) => orbctl.display().to_string(),
            (None, why) => format!("not found: {}", why.as_deref().unwrap_or("unknown")),
        };
        let orbd = if self.answers {
            "answers"
        } else {
            "does not answer; the drop-in runs the real tool directly"
        };
        let names = self.names.iter().map(|name| {
            let runs = match &name.runs {
                Some(path) if name.is_drop_in => format!("{}, the drop-in", path.display()),
                Some(path) => format!("{}, not the drop-in", path.display()),
                None => "not on PATH".into(),
            };
            format!("{:<7}  {runs}\n", name.name)
        });
        [format!("drop-in  {}, {state}\n", self.folder.display())]
            .into_iter()
            .chain(names)
            .chain([format!("real     {behind}\n"), format!("orbd     {orbd}\n")])
            .chain(self.advice())
            .collect()
    }
}
