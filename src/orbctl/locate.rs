//! Finds `orbctl` once, to an absolute path, and notices when it is another one.
//!
//! The environment is passed in. The path is kept as it was found, links and all: an upgrade moves what a link points to, and the
//! link stays right. Who is nowhere is looked for again; who was found is not, and only the file at its path is looked at.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::sys::FileId;

/// The program's name. Never `orb`, which runs words that it does not know as commands in a machine.
const NAME: &str = "orbctl";

/// Our own programs. The drop-in is a link to one of them, whichever version or copy of us it belongs to.
const OURS: [&str; 2] = ["orbd-ctl", "orbd"];

/// Where Homebrew and the app put it.
const USUAL: [&str; 3] = [
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/Applications/OrbStack.app/Contents/MacOS/bin",
];

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Search<'a> {
    /// The path from the configuration. If there is one, nothing else is looked at: a wrong path is told, not worked around.
    pub configured: Option<&'a Path>,
    /// `PATH` as the daemon was given it.
    pub path: Option<&'a OsStr>,
    /// The user's home.
    pub home: Option<&'a Path>,
    /// Our own programs. A candidate that is one of them, or a link to a program with one of our names, is a drop-in, which would
    /// call us, and is passed over.
    pub ours: &'a [PathBuf],
}

/// Why there is no `orbctl`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// Nowhere.
    #[error("orbctl is in none of the places where it is looked for; is OrbStack installed?")]
    NotFound,
    /// Nowhere, but for a drop-in.
    #[error("the only orbctl that was found, {}, is orbd's own drop-in; is OrbStack installed?", .0.display())]
    OnlyOurs(PathBuf),
    /// The configured path is not absolute.
    #[error("the configured orbctl {} is not an absolute path", .0.display())]
    NotAbsolute(PathBuf),
    /// The configured path is not a program that we may execute.
    #[error("the configured orbctl {} is not there or cannot be executed", .0.display())]
    NotExecutable(PathBuf),
    /// The configured path is one of our own programs.
    #[error("the configured orbctl {} is orbd's own drop-in", .0.display())]
    Ours(PathBuf),
}

/// An `orbctl` that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    path: PathBuf,
    /// The file that was last seen there; none was where a path was taken as it is.
    stamp: Option<FileId>,
}

impl Located {
    /// Returns its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether another file has taken its place, and says so once for each. One that is gone says nothing: in the middle of
    /// an installation another is about to come. Costs one system call.
    fn is_replaced(&mut self) -> bool {
        let Some(now) = FileId::of(&self.path) else {
            return false;
        };
        self.stamp.replace(now).is_some_and(|before| before != now)
    }
}

/// Where `orbctl` is, for as long as a daemon lives.
#[derive(Debug)]
pub struct OrbctlLocator {
    configured: Option<PathBuf>,
    path: Option<OsString>,
    home: Option<PathBuf>,
    ours: Vec<PathBuf>,
    found: Result<Located, LocateError>,
}

impl OrbctlLocator {
    /// Looks for it, and remembers where to look again.
    pub fn new(search: &Search<'_>) -> Self {
        Self {
            configured: search.configured.map(Path::to_owned),
            path: search.path.map(OsStr::to_owned),
            home: search.home.map(Path::to_owned),
            ours: search.ours.to_vec(),
            found: locate(search),
        }
    }

    /// Takes a path as it is, whatever is there.
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

    /// Returns its path, or why there is none.
    pub fn path(&self) -> Result<&Path, &LocateError> {
        self.found.as_ref().map(Located::path)
    }

    /// Looks again where it was nowhere. Says whether it was found only now.
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

    /// Looks whether the file at its path is another one than when this was last asked.
    pub fn is_replaced(&mut self) -> bool {
        self.found.as_mut().is_ok_and(Located::is_replaced)
    }
}

/// Finds `orbctl`: where the configuration says, on `PATH`, in `~/.orbstack/bin`, where Homebrew links it, in the app.
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
        // An empty or relative entry of PATH means the current folder, which for a daemon is nobody's choice.
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

/// Says whether a path leads to a program with one of our names.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Some folders, each with an `orbctl`.
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
    fn the_first_on_the_path_is_found_then_the_one_at_home() {
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
    fn what_cannot_be_executed_is_passed_over() {
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
    fn our_own_drop_in_is_passed_over() {
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
    fn a_drop_in_of_another_version_of_ours_is_passed_over() {
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
    fn a_configured_path_is_right_or_wrong() {
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
    fn a_file_that_took_its_place_is_noticed() {
        let folders = Folders::new();
        let path = folders.add("a");
        let mut locator = OrbctlLocator::new(&Search {
            configured: Some(&path),
            ..Search::default()
        });
        assert!(!locator.is_replaced());
        std::fs::rename(folders.add("b"), &path).expect("moved");
        assert!(locator.is_replaced());
        assert!(!locator.is_replaced(), "it is told once");
        let aside = path.with_file_name("aside");
        std::fs::rename(&path, &aside).expect("moved");
        assert!(!locator.is_replaced(), "another is about to come");
        std::fs::rename(&aside, &path).expect("moved");
        assert!(!locator.is_replaced(), "it is back");
        std::fs::remove_file(&path).expect("removed");
        folders.add("a");
        std::fs::write(&path, "longer than before").expect("written");
        assert!(locator.is_replaced());
        assert_eq!(locator.path(), Ok(path.as_path()));
    }

    #[test]
    fn one_that_was_nowhere_is_found_when_it_is_there() {
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
        assert!(!locator.rediscovered(), "it is told once");
        assert!(!locator.is_replaced(), "nothing was there before");
        assert_eq!(locator.path(), Ok(path.as_path()));
    }
}
