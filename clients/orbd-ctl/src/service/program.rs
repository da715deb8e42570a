//! Chooses a path of a program that stays valid after an upgrade, for service files and the drop-in's links.
//!
//! A package manager installs each version into its own directory and updates a link. A service file that names the directory
//! starts the old version, or fails once it has been removed; one that names the link starts the new version. A virtual environment may
//! be deleted or created again at any time: a service in one runs a copy of the program, unless a link outside leads to it.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::environment::Environment;
use crate::error::CliError;
use crate::installation::{INSTALL_FOR_GOOD, Installation};

/// Name of the directory in which Homebrew keeps versions.
const CELLAR: &str = "Cellar";

/// The program of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceProgram {
    /// This path lasts.
    Stable(PathBuf),
    /// The program at `source` may disappear, so the service runs a copy.
    Copy {
        /// The installed program.
        source: PathBuf,
    },
}

impl ServiceProgram {
    /// Returns the path of the installed program.
    pub(crate) fn into_path(self) -> PathBuf {
        match self {
            Self::Stable(path) | Self::Copy { source: path } => path,
        }
    }
}

/// Chooses the program of a service. `copy` is the path of the service's copy. Fails for a program in a cache or a temporary directory.
pub(crate) fn for_service(
    found: &Path,
    environment: &Environment,
    copy: &Path,
) -> Result<ServiceProgram, CliError> {
    let program = stable(found, environment);
    match Installation::of(&program, Some(copy)) {
        Installation::Temporary => Err(temporary(&program, "a service")),
        installation if installation.is_environment() && !is_link_from_outside(&program) => {
            Ok(ServiceProgram::Copy { source: program })
        }
        _ => Ok(ServiceProgram::Stable(program)),
    }
}

/// Returns the error for a program in a cache or a temporary directory. `user` is what would need it to last.
pub(crate) fn temporary(program: &Path, user: &str) -> CliError {
    CliError::Usage {
        message: format!(
            "{} is in a cache or a temporary directory, which may be deleted at any time, so {user} cannot use it",
            program.display()
        ),
        hint: INSTALL_FOR_GOOD.into(),
    }
}

/// Returns a stable path of the program. For one in a Homebrew version directory: Homebrew's link or a link on PATH. For one in a virtual
/// environment: a link in `~/.local/bin` or on PATH. Otherwise, and without such a link, the absolute path itself.
pub(crate) fn stable(program: &Path, environment: &Environment) -> PathBuf {
    let program = std::path::absolute(program).unwrap_or_else(|_| program.to_owned());
    let Ok(real) = program.canonicalize() else {
        return program;
    };
    let in_cellar_now = in_cellar(&program);
    let in_environment = Installation::of(&program, None).is_environment() && !is_link_from_outside(&program);
    if !in_cellar_now && !in_environment {
        return program;
    }
    let name = program.file_name().unwrap_or_default();
    let linked = homebrew_link(&real, name).filter(|_| in_cellar_now);
    let local = environment.home.iter().map(|home| home.join(".local/bin"));
    let on_path = environment.path.iter().flat_map(std::env::split_paths);
    linked
        .into_iter()
        .chain(
            local
                .chain(on_path)
                .filter(|folder| folder.is_absolute())
                .map(|folder| folder.join(name)),
        )
        .find(|path| {
            let leads_there = path.canonicalize().is_ok_and(|other| other == real);
            leads_there && !in_cellar(path) && (in_cellar_now || is_link_from_outside(path))
        })
        .unwrap_or(program)
}

/// Returns whether the path leads to a file in another directory, so that it outlasts the environment of that file.
fn is_link_from_outside(path: &Path) -> bool {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    let real = path.canonicalize().ok();
    match (folder, real.as_deref().and_then(Path::parent)) {
        (Some(folder), Some(real)) => folder != real,
        _ => false,
    }
}

fn in_cellar(path: &Path) -> bool {
    path.components()
        .any(|part| part == Component::Normal(OsStr::new(CELLAR)))
}

/// Returns `PREFIX/opt/FORMULA/bin/NAME` for `PREFIX/Cellar/FORMULA/VERSION/bin/NAME`.
fn homebrew_link(real: &Path, name: &OsStr) -> Option<PathBuf> {
    let parts: Vec<Component<'_>> = real.components().collect();
    let cellar = parts
        .iter()
        .position(|part| *part == Component::Normal(OsStr::new(CELLAR)))?;
    let formula = parts.get(cellar + 1)?;
    let prefix: PathBuf = parts[..cellar].iter().collect();
    Some(prefix.join("opt").join(formula).join("bin").join(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn homebrew() -> (tempfile::TempDir, PathBuf) {
        let prefix = tempfile::tempdir().expect("a folder");
        let versioned = prefix.path().join("Cellar/orbd/0.1.0/bin");
        fs::create_dir_all(&versioned).expect("made");
        fs::write(versioned.join("orbd"), "").expect("written");
        (prefix, versioned.join("orbd"))
    }

    #[test]
    fn a_program_in_the_cellar_is_named_by_homebrews_link() {
        let (prefix, versioned) = homebrew();
        let without_links = Environment::default();
        assert_eq!(
            stable(&versioned, &without_links),
            versioned,
            "there is no link yet"
        );
        fs::create_dir(prefix.path().join("opt")).expect("made");
        symlink("../Cellar/orbd/0.1.0", prefix.path().join("opt/orbd")).expect("linked");
        assert_eq!(
            stable(&versioned, &without_links),
            prefix.path().join("opt/orbd/bin/orbd")
        );
    }

    #[test]
    fn a_program_in_the_cellar_is_named_by_a_link_on_path() {
        let (prefix, versioned) = homebrew();
        let bin = prefix.path().join("bin");
        fs::create_dir(&bin).expect("made");
        fs::write(prefix.path().join("orbd"), "another one").expect("written");
        symlink(&versioned, bin.join("orbd")).expect("linked");
        let path = std::env::join_paths([prefix.path(), &bin]).expect("a path");
        let environment = Environment {
            path: Some(path),
            ..Environment::default()
        };
        assert_eq!(stable(&versioned, &environment), bin.join("orbd"));
    }

    #[test]
    fn any_other_program_keeps_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().join("orbd-0.1.0");
        fs::write(&real, "").expect("written");
        let link = folder.path().join("orbd");
        symlink(&real, &link).expect("linked");
        assert_eq!(stable(&link, &Environment::default()), link);
    }
}
