//! The real tool, and how not to take another drop-in for it.
//!
//! A drop-in is a link to `orbd-ctl`, so the name of what it leads to tells it, whichever version it is of. A copy under another name
//! does not show it. Therefore each of us writes itself into [`VISITED`] before it runs anything, and runs nothing that is in there:
//! two copies pass a call on once and then say what is wrong, instead of calling each other for ever.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use orbd::config::{Config, Environment as ConfigEnvironment, Flags};
use orbd::orbctl::locate::{LocateError, Search, is_named_as_ours, locate};
use orbd::sys::FileId;

use super::words::InvokedAs;
use crate::environment::{Environment, variable};

/// The variable that holds the drop-ins that a call has passed, as PATH holds folders.
pub(super) const VISITED: &str = "ORBD_DROPIN";

/// Most of them that are remembered.
const VISITED_MAX: usize = 16;

/// Where the real tool is to be looked for, and what it is not.
pub(super) struct Finder {
    own: Option<PathBuf>,
    visited: Vec<PathBuf>,
}

/// Why there is no real tool.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTool {
    /// It is nowhere, or what is there is ours.
    #[error(transparent)]
    Nowhere(#[from] LocateError),
    /// The daemon named one of us.
    #[error("{} is orbd's own drop-in, not the real orbctl; set `orbctl` in orbd's configuration", .0.display())]
    Ours(PathBuf),
}

impl Finder {
    /// Reads what the call has passed.
    pub(super) fn of_process() -> Self {
        let visited = variable(VISITED).unwrap_or_default();
        Self {
            own: std::env::current_exe().ok(),
            visited: std::env::split_paths(&visited)
                .filter(|path| path.is_absolute())
                .take(VISITED_MAX)
                .collect(),
        }
    }

    /// Returns the value of [`VISITED`] for whom we run.
    pub(super) fn visited(&self) -> OsString {
        let own = self.own.iter().filter(|own| !self.visited.contains(own));
        std::env::join_paths(own.chain(&self.visited)).unwrap_or_default()
    }

    /// Checks the tool that the daemon named, and returns the one of the name under which we were called.
    pub(super) fn named(&self, called: InvokedAs, orbctl: &Path) -> Result<PathBuf, NoTool> {
        if self.is_ours(orbctl) {
            return Err(NoTool::Ours(orbctl.to_owned()));
        }
        Ok(self.of_name(called, orbctl))
    }

    /// Looks for the tool as the daemon would: in its configuration, on PATH and where it usually is.
    pub(super) fn located(&self, called: InvokedAs, environment: &Environment) -> Result<PathBuf, NoTool> {
        // Where the configuration is not in order the daemon says so; here it is as if it said nothing.
        let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process());
        let configured = config.ok().and_then(|config| config.orbctl);
        let ours: Vec<PathBuf> = self.own.iter().chain(&self.visited).cloned().collect();
        let located = locate(&Search {
            configured: configured.as_deref(),
            path: environment.path.as_deref(),
            home: environment.home.as_deref(),
            ours: &ours,
        })?;
        Ok(self.of_name(called, located.path()))
    }

    /// Returns `orb` beside `orbctl`, where that is wanted and there. They are one program, so that `orbctl` called `orb` will do.
    fn of_name(&self, called: InvokedAs, orbctl: &Path) -> PathBuf {
        let beside = |path: &Path| path.with_file_name("orb");
        let is_tool = |path: &PathBuf| {
            rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
                && path.is_file()
                && !self.is_ours(path)
        };
        let orb = match called {
            InvokedAs::Orbctl => None,
            InvokedAs::Orb => Some(beside(orbctl)).filter(is_tool).or_else(|| {
                let target = orbctl.canonicalize().ok()?;
                Some(beside(&target)).filter(is_tool)
            }),
        };
        orb.unwrap_or_else(|| orbctl.to_owned())
    }

    fn is_ours(&self, path: &Path) -> bool {
        let is_one_of_us = |found: FileId| {
            let mut ours = self.own.iter().chain(&self.visited);
            ours.any(|own| FileId::of(own).is_some_and(|own| own.is_same_file(&found)))
        };
        is_named_as_ours(path) || FileId::of(path).is_some_and(is_one_of_us)
    }
}

/// Says under which of its names the real tool is called, if it is.
pub(super) fn called_as(argv0: &OsStr) -> Option<InvokedAs> {
    match Path::new(argv0).file_name()?.to_str()? {
        "orbctl" => Some(InvokedAs::Orbctl),
        "orb" => Some(InvokedAs::Orb),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn program(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, name).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn two_names_are_the_tools_and_no_others() {
        let check = |name: &str, expected| assert_eq!(called_as(OsStr::new(name)), expected, "{name}");
        check("orbctl", Some(InvokedAs::Orbctl));
        check("/home/me/.orbd/bin/orb", Some(InvokedAs::Orb));
        for other in ["", "orbd-ctl", "/bin/orbd-ctl", "orbctl-sim", "-orb", "orbctl/.."] {
            check(other, None);
        }
    }

    #[test]
    fn orb_is_found_beside_orbctl_and_orbctl_stands_in_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let finder = Finder {
            own: Some(program(folder.path(), "own")),
            visited: Vec::new(),
        };
        let orbctl = program(folder.path(), "app/orbctl");
        let check = |orbctl: &Path, expected: &Path| {
            assert_eq!(finder.named(InvokedAs::Orb, orbctl).unwrap(), expected);
            assert_eq!(finder.named(InvokedAs::Orbctl, orbctl).unwrap(), orbctl);
        };
        check(&orbctl, &orbctl);
        let orb = program(folder.path(), "app/orb");
        check(&orbctl, &orb);
        let link = folder.path().join("orbctl");
        symlink(&orbctl, &link).unwrap();
        check(&link, &orb.canonicalize().unwrap());
        // The drop-in's own link is no tool.
        symlink(folder.path().join("own"), folder.path().join("orb")).unwrap();
        check(&link, &orb.canonicalize().unwrap());
    }

    #[test]
    fn what_a_call_has_passed_is_not_run_again() {
        let folder = tempfile::tempdir().unwrap();
        let (own, copy) = (
            program(folder.path(), "a/orbctl"),
            program(folder.path(), "b/orbctl"),
        );
        let finder = Finder {
            own: Some(own.clone()),
            visited: vec![copy.clone()],
        };
        for ours in [&own, &copy] {
            assert!(
                finder.named(InvokedAs::Orbctl, ours).is_err(),
                "{}",
                ours.display()
            );
        }
        let passed = std::env::split_paths(&finder.visited()).collect::<Vec<_>>();
        assert_eq!(passed, [own, copy]);
    }
}
