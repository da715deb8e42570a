//! Finds `orbctl` once, as an absolute path, and detects when its file is replaced.
//!
//! The environment is passed in. Symbolic links in the path are not resolved: an upgrade changes the target of a link, and the
//! path of the link stays valid. If `orbctl` was not found, the search is repeated on the next use. Once found, only the file at
//! the stored path is checked.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::sys::FileId;

/// The program's name. Never `orb`, which runs unknown subcommands as commands in a machine.
const NAME: &str = "orbctl";

/// Names of orbd's own programs. The drop-in is a link to one of them, of any version or copy of orbd.
const OURS: [&str; 2] = ["orbd-ctl", "orbd"];

/// Folders in which Homebrew and the app install `orbctl`.
const USUAL: [&str; 3] = [
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/Applications/OrbStack.app/Contents/MacOS/bin",
];

/// What to search for `orbctl`.
#[derive(Debug, Clone, Default)]
pub struct Search<'a> {
    /// Path from the configuration. If set, nothing else is searched: an invalid path is reported, not worked around.
    pub configured: Option<&'a Path>,
    /// `PATH` from the daemon's own environment.
    pub path: Option<&'a OsStr>,
    /// The user's home, for `~/.orbstack/bin`.
    pub home: Option<&'a Path>,
    /// Paths of orbd's own programs. A candidate that is the same file as one of them, or a link to a program with one of our
    /// names, is the drop-in, which would call orbd again; it is skipped.
    pub ours: &'a [PathBuf],
}

/// Why `orbctl` was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// No candidate exists.
    #[error(
        "orbctl not found in PATH, ~/.orbstack/bin, Homebrew's folders or the app; is OrbStack installed?"
    )]
    NotFound,
    /// All candidates are drop-ins. Contains the path of the first.
    #[error("the only orbctl found, {}, is orbd's own drop-in; is OrbStack installed?", .0.display())]
    OnlyOurs(PathBuf),
    /// The configured path is not absolute.
    #[error("configured orbctl path {} is not absolute", .0.display())]
    NotAbsolute(PathBuf),
    /// The configured path does not exist or is not a file that may be executed.
    #[error("configured orbctl {} does not exist or cannot be executed", .0.display())]
    NotExecutable(PathBuf),
    /// The configured path is one of our own programs.
    #[error("configured orbctl {} is orbd's own drop-in", .0.display())]
    Ours(PathBuf),
}

/// A found `orbctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    path: PathBuf,
    /// The file last seen at `path`; `None` if the path was taken without a check and no file was there.
    stamp: Option<FileId>,
}

impl Located {
    /// Returns the absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reports, once per replacement, whether another file is now at the path. Returns `false` while no file is there: during an
    /// installation the new file is about to appear. Costs one system call.
    fn is_replaced(&mut self) -> bool {
        let Some(now) = FileId::of(&self.path) else {
            return false;
        };
        self.stamp.replace(now).is_some_and(|before| before != now)
    }
}

/// The location of `orbctl`, kept for the lifetime of the daemon.
#[derive(Debug)]
pub struct OrbctlLocator {
    configured: Option<PathBuf>,
    path: Option<OsString>,
    home: Option<PathBuf>,
    ours: Vec<PathBuf>,
    found: Result<Located, LocateError>,
}

impl OrbctlLocator {
    /// Searches for `orbctl`, and stores the search so that it can be repeated.
    pub fn new(search: &Search<'_>) -> Self {
        Self {
            configured: search.configured.map(Path::to_owned),
            path: search.path.map(OsStr::to_owned),
            home: search.home.map(Path::to_owned),
            ours: search.ours.to_vec(),
            found: locate(search),
        }
    }

    /// Uses a path without checking it.
    pub fn at(path: PathBuf) -> Self {
        let stamp = FileId::of(&path);
        Self {
            configured: Some(path.clone()),
            path: None,
            home: None,
            ours: Vec::new(),
            found: Ok(Located { path, stamp }),
        }
    }

    /// Returns the path, or why `orbctl` was not found.
    pub fn path(&self) -> Result<&Path, &LocateError> {
        self.found.as_ref().map(Located::path)
    }

    /// Repeats the search if `orbctl` was not found. Returns whether this call found it.
    pub fn rediscovered(&mut self) -> bool {
        if self.found.is_ok() {
            return false;
        }
        self.found = locate(&Search {
            configured: self.configured.as_deref(),
            path: self.path.as_deref(),
            home: self.home.as_deref(),
            ours: &self.ours,
        });
        self.found.is_ok()
    }

    /// Reports whether the file at the path has been replaced since the previous call.
    pub fn is_replaced(&mut self) -> bool {
        self.found.as_mut().is_ok_and(Located::is_replaced)
    }
}

/// Searches for `orbctl`: the configured path if there is one; otherwise `PATH`, `~/.orbstack/bin`, the folders of Homebrew, the
/// app.
pub fn locate(search: &Search<'_>) -> Result<Located, LocateError> {
    let ours: Vec<FileId> = search.ours.iter().filter_map(|path| FileId::of(path)).collect();
    let is_ours = |path: &Path, stamp: &FileId| {
        ours.iter().any(|own| own.is_same_file(stamp)) || is_named_as_ours(path)
    };
    if let Some(path) = search.configured {
        if !path.is_absolute() {
            return Err(LocateError::NotAbsolute(path.into()));
        }
        return match executable(path) {
            None => Err(LocateError::NotExecutable(path.into())),
            Some(stamp) if is_ours(path, &stamp) => Err(LocateError::Ours(path.into())),
            Some(stamp) => Ok(Located {
                path: path.into(),
                stamp: Some(stamp),
            }),
        };
    }
    let on_path = search.path.into_iter().flat_map(std::env::split_paths);
    let at_home = search.home.map(|home| home.join(".orbstack/bin"));
    let mut passed_over = None;
    on_path
        .chain(at_home)
        .chain(USUAL.map(PathBuf::from))
        // An empty or relative entry of PATH is relative to the working directory, which is arbitrary for a daemon.
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(NAME))
        .find_map(|path| {
            let stamp = executable(&path)?;
            if is_ours(&path, &stamp) {
                passed_over.get_or_insert(path);
                return None;
            }
            let stamp = Some(stamp);
            Some(Located { path, stamp })
        })
        .ok_or_else(|| passed_over.map_or(LocateError::NotFound, LocateError::OnlyOurs))
}

/// Returns whether a path, after following links, is a program with one of our names.
pub fn is_named_as_ours(path: &Path) -> bool {
    let target = path.canonicalize();
    target.is_ok_and(|target| {
        target
            .file_name()
            .is_some_and(|name| OURS.iter().any(|ours| name == *ours))
    })
}

fn executable(path: &Path) -> Option<FileId> {
    rustix::fs::access(path, Access::EXEC_OK).ok()?;
    FileId::of(path)
}

/// Returns the folders in which OrbStack, Homebrew and the system install programs, in search order.
pub fn search_folders(home: &Path) -> Vec<PathBuf> {
    let system = [
        "/opt/homebrew/bin",
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
    ];
    let own = home.join(".orbstack/bin");
    std::iter::once(own).chain(system.map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A folder whose subfolders each hold an `orbctl`.
    struct Folders(tempfile::TempDir);

    impl Folders {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a folder"))
        }

        fn add(&self, dir: &str) -> PathBuf {
            let path = self.0.path().join(dir).join(NAME);
            std::fs::create_dir_all(path.parent().expect("in a folder")).expect("made");
            std::fs::write(&path, dir).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
            path
        }

        fn path(&self, dirs: &[&str]) -> OsString {
            std::env::join_paths(dirs.iter().map(|dir| self.0.path().join(dir))).expect("no colons")
        }
    }

    #[test]
    fn path_is_searched_before_the_home() {
        let folders = Folders::new();
        let (second, at_home) = (folders.add("b"), folders.add("home/.orbstack/bin"));
        let home = folders.0.path().join("home");
        let path = folders.path(&["a", "b"]);
        let mut search = Search {
            path: Some(&path),
            home: Some(&home),
            ..Search::default()
        };
        assert_eq!(locate(&search).expect("found").path(), second);
        search.path = Some(OsStr::new("::.:bin"));
        assert_eq!(locate(&search).expect("found").path(), at_home);
    }

    #[test]
    fn files_that_cannot_be_executed_are_skipped() {
        let folders = Folders::new();
        let (first, second) = (folders.add("a"), folders.add("b"));
        std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o644)).expect("set");
        std::fs::create_dir_all(folders.0.path().join("c").join(NAME)).expect("made");
        let path = folders.path(&["c", "a", "b"]);
        let search = Search {
            path: Some(&path),
            ..Search::default()
        };
        assert_eq!(locate(&search).expect("found").path(), second);
    }

    #[test]
    fn own_drop_in_is_skipped() {
        let folders = Folders::new();
        let (ours, real) = (folders.add("ours"), folders.add("real"));
        std::fs::create_dir_all(folders.0.path().join("link")).expect("made");
        symlink(&ours, folders.0.path().join("link").join(NAME)).expect("linked");
        let path = folders.path(&["link", "ours", "real"]);
        let search = Search {
            path: Some(&path),
            ours: std::slice::from_ref(&ours),
            ..Search::default()
        };
        assert_eq!(locate(&search).expect("found").path(), real);
    }

    #[test]
    fn drop_in_of_another_version_is_skipped() {
        let folders = Folders::new();
        let version = folders.add("version");
        let other = version.with_file_name("orbd-ctl");
        std::fs::rename(&version, &other).expect("moved");
        std::fs::create_dir_all(folders.0.path().join("link")).expect("made");
        let link = folders.0.path().join("link").join(NAME);
        symlink(&other, &link).expect("linked");
        let path = folders.path(&["link"]);
        let search = Search {
            path: Some(&path),
            ..Search::default()
        };
        assert_eq!(locate(&search), Err(LocateError::OnlyOurs(link)));
        let real = folders.add("real");
        let path = folders.path(&["link", "real"]);
        let search = Search {
            path: Some(&path),
            ..Search::default()
        };
        assert_eq!(locate(&search).expect("found").path(), real);
    }

    #[test]
    fn configured_path_is_used_or_rejected_without_a_search() {
        let folders = Folders::new();
        let (configured, other) = (folders.add("a"), folders.add("b"));
        let path = folders.path(&["b"]);
        let check = |configured: &Path, ours: &[PathBuf]| {
            let search = Search {
                configured: Some(configured),
                path: Some(&path),
                ours,
                ..Search::default()
            };
            locate(&search).map(|located| located.path().to_owned())
        };
        assert_eq!(check(&configured, &[]), Ok(configured.clone()));
        let missing = folders.0.path().join("missing");
        assert_eq!(
            check(&missing, &[]),
            Err(LocateError::NotExecutable(missing.clone()))
        );
        assert_eq!(
            check(Path::new("a/orbctl"), &[]),
            Err(LocateError::NotAbsolute("a/orbctl".into()))
        );
        assert_eq!(
            check(&other, std::slice::from_ref(&other)),
            Err(LocateError::Ours(other.clone()))
        );
    }

    #[test]
    fn replaced_file_is_detected_once() {
        let folders = Folders::new();
        let path = folders.add("a");
        let mut locator = OrbctlLocator::new(&Search {
            configured: Some(&path),
            ..Search::default()
        });
        assert!(!locator.is_replaced());
        std::fs::rename(folders.add("b"), &path).expect("moved");
        assert!(locator.is_replaced());
        assert!(!locator.is_replaced(), "reported once");
        let aside = path.with_file_name("aside");
        std::fs::rename(&path, &aside).expect("moved");
        assert!(!locator.is_replaced(), "the new file is about to appear");
        std::fs::rename(&aside, &path).expect("moved");
        assert!(!locator.is_replaced(), "the same file is back");
        std::fs::remove_file(&path).expect("removed");
        folders.add("a");
        std::fs::write(&path, "longer than before").expect("written");
        assert!(locator.is_replaced());
        assert_eq!(locator.path(), Ok(path.as_path()));
    }

    #[test]
    fn orbctl_installed_later_is_found() {
        let folders = Folders::new();
        let path = folders.0.path().join("a").join(NAME);
        let mut locator = OrbctlLocator::new(&Search {
            configured: Some(&path),
            ..Search::default()
        });
        assert!(!locator.rediscovered());
        assert!(!locator.is_replaced());
        assert_eq!(locator.path(), Err(&LocateError::NotExecutable(path.clone())));
        folders.add("a");
        assert!(locator.rediscovered());
        assert!(!locator.rediscovered(), "reported once");
        assert!(!locator.is_replaced(), "no file was there before");
        assert_eq!(locator.path(), Ok(path.as_path()));
    }
}
