//! Finds the real tool, and avoids running another drop-in instead.
//!
//! A drop-in is a link to `orbd-ctl`, so the name of the link's target identifies it, whatever its version. A copy under another name
//! cannot be recognised that way. Therefore each drop-in adds its own path to [`VISITED`] before it runs a program, and does not run a
//! program that is listed there: two copies forward a call once and then report an error, instead of calling each other forever.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use orbd_host::config::{Config, Environment as ConfigEnvironment, Flags};
use orbd_host::locate::{LocateError, Search, is_named_as_ours, locate};
use orbd_host::sys::FileId;

use super::plan::InvokedAs;
use crate::environment::{Environment, variable};

/// Environment variable that lists the drop-ins that a call has passed through, separated as in PATH.
pub(super) const VISITED: &str = "ORBD_DROPIN";

/// Maximum number of entries of [`VISITED`] that are kept.
const VISITED_MAX: usize = 16;

/// Finds the real tool. Rejects this program and the drop-ins that the call has passed through.
pub(super) struct Finder {
    own: Option<PathBuf>,
    visited: Vec<PathBuf>,
}

/// Why the real tool was not found.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTool {
    /// The search found no tool.
    #[error(transparent)]
    Nowhere(#[from] LocateError),
    /// The path that the daemon reported is a drop-in.
    #[error("{} is orbd's own drop-in, not the real orbctl; set `orbctl` in orbd's configuration", .0.display())]
    Ours(PathBuf),
}

impl Finder {
    /// Reads [`VISITED`] and the path of this program.
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

    /// Returns the value of [`VISITED`] for the program that we run.
    pub(super) fn visited(&self) -> OsString {
        let own = self.own.iter().filter(|own| !self.visited.contains(own));
        std::env::join_paths(own.chain(&self.visited)).unwrap_or_default()
    }

    /// Checks the tool that the daemon reported, and returns the program for the name by which we were invoked.
    pub(super) fn named(&self, called: InvokedAs, orbctl: &Path) -> Result<PathBuf, NoTool> {
        if self.is_ours(orbctl) {
            return Err(NoTool::Ours(orbctl.to_owned()));
        }
        Ok(self.of_name(called, orbctl))
    }

    /// Searches for the tool as the daemon would: in its configuration, on PATH and in the default locations.
    pub(super) fn located(&self, called: InvokedAs, environment: &Environment) -> Result<PathBuf, NoTool> {
        // The daemon reports an invalid configuration; here it is ignored.
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

    /// Returns the program for the name by which we were invoked: for `orb`, the `orb` next to `orbctl` if it exists. Otherwise returns
    /// `orbctl`, which is the same program and behaves as `orb` if invoked by that name.
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

/// Returns by which of the real tool's names this program was invoked; `None` for any other name.
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
    fn only_orbctl_and_orb_are_names_of_the_tool() {
        let check = |name: &str, expected| assert_eq!(called_as(OsStr::new(name)), expected, "{name}");
        check("orbctl", Some(InvokedAs::Orbctl));
        check("/home/me/.orbd/bin/orb", Some(InvokedAs::Orb));
        for other in ["", "orbd-ctl", "/bin/orbd-ctl", "orbctl-sim", "-orb", "orbctl/.."] {
            check(other, None);
        }
    }

    #[test]
    fn orb_is_found_next_to_orbctl_with_orbctl_as_fallback() {
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
        // The drop-in's own link is not the tool.
        symlink(folder.path().join("own"), folder.path().join("orb")).unwrap();
        check(&link, &orb.canonicalize().unwrap());
    }

    #[test]
    fn drop_ins_that_a_call_passed_through_are_not_run_again() {
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
