//! `dropin`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use orbd::rpc::api::DaemonInfo;
use orbd::rpc::types::NoParams;
use serde::Serialize;

use crate::args::{DropinCommand, DropinVerb};
use crate::context::Context;
use crate::dropin::links::{self, InstallError, Link, Written};
use crate::dropin::real_tool;
use crate::environment::variable;
use crate::error::{CliError, exit};
use crate::link;
use crate::service::program;

/// What `--json` says of the drop-in.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Where its links are, or would be.
    folder: PathBuf,
    /// Both links are there and lead to a program.
    installed: bool,
    /// Whoever calls either name gets the drop-in.
    first: bool,
    names: Vec<Named>,
    /// The real tool behind it.
    orbctl: Option<PathBuf>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// orbd answers; while it does not, the drop-in runs the real tool directly.
    answers: bool,
    /// What a shell's profile has to say so that it is first.
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

/// One name of the tool.
#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
    /// What runs when it is called.
    runs: Option<PathBuf>,
    /// That is the drop-in.
    is_drop_in: bool,
    /// Our link is there and leads nowhere.
    is_dangling: bool,
}

/// Installs, removes and shows the drop-in.
pub(super) fn dropin(context: &mut Context, args: &DropinVerb) -> Result<ExitCode, CliError> {
    let folder = folder(&context.link, args.dir.as_deref())?;
    match args.command {
        DropinCommand::Install => {
            let written = install(&context.link, &folder)?;
            let report = examine(&context.link, &folder);
            let lead = match written {
                Written::New => format!("orbctl and orb in {} are orbd's drop-in now", folder.display()),
                Written::Same => format!(
                    "orbctl and orb in {} are orbd's drop-in already",
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
                what: format!("cannot take the links in {} away", folder.display()),
                source,
            })?;
            let report = examine(&context.link, &folder);
            context.console.answer(&report, |_, _| {
                if removed.is_empty() {
                    format!("there is no drop-in in {}\n", folder.display())
                } else {
                    "the drop-in is gone; shells that run may still look for it: `hash -r`\n".into()
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
        what: "cannot find out where this program is".into(),
        source,
    })?;
    let program = program::stable(&own, link.environment.path.as_deref());
    links::install(folder, &program).map_err(|error| match error {
        InstallError::Foreign(_) => CliError::Usage {
            message: error.to_string(),
            hint: "give another folder with --dir, and put it first on PATH".into(),
        },
        InstallError::System(source) => CliError::Local {
            what: format!("cannot make the links in {}", folder.display()),
            source,
        },
    })
}

/// Returns the folder of the links: the one that was given, else `~/.orbd/bin`.
fn folder(link: &link::Link, given: Option<&Path>) -> Result<PathBuf, CliError> {
    match given {
        Some(folder) => std::path::absolute(folder).map_err(|source| CliError::Local {
            what: format!("{} cannot be made absolute", folder.display()),
            source,
        }),
        None => usual_folder(link).ok_or_else(|| CliError::Usage {
            message: "HOME is not set, so there is no place for the links".into(),
            hint: "set HOME or give --dir".into(),
        }),
    }
}

/// Returns the folder of the links where none was given.
pub(super) fn usual_folder(link: &link::Link) -> Option<PathBuf> {
    link.environment.home.as_ref().map(|home| home.join(".orbd/bin"))
}

/// Looks at the links in a folder, at PATH, at the real tool and at the daemon. Changes and starts nothing.
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
    /// Says whether our links are there and of no use, and what mends it.
    pub(super) fn shadow(&self) -> Option<(String, String)> {
        if self.names.iter().any(|name| name.is_dangling) {
            return Some((
                format!(
                    "the links in {} lead to a program that is gone",
                    self.folder.display()
                ),
                "`orbd-ctl dropin install` makes them anew, `orbd-ctl dropin uninstall` takes them away"
                    .into(),
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
                "it is installed in {}, but {}",
                self.folder.display(),
                others.join(" and ")
            ),
            format!("end your shell's profile, after OrbStack's own line, with: {profile}"),
        ))
    }

    /// Says that calls come through, where they do.
    pub(super) fn good(&self) -> Option<String> {
        self.first.then(|| {
            format!(
                "calls of orbctl and orb come through it, in {}",
                self.folder.display()
            )
        })
    }

    fn advice(&self) -> Option<String> {
        let profile = self.profile.as_ref()?;
        Some(format!(
            "the folder is not first on PATH; end your shell's profile, after OrbStack's own line, with:\n\n    {profile}\n\n"
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
            (None, why) => format!("nothing: {}", why.as_deref().unwrap_or("unknown")),
        };
        let orbd = if self.answers {
            "answers"
        } else {
            "does not answer; until it does, the drop-in runs the real tool directly"
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
            .chain([format!("behind   {behind}\n"), format!("orbd     {orbd}\n")])
            .chain(self.advice())
            .collect()
    }
}
