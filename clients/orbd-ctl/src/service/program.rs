//! Chooses a path of a program that stays valid after an upgrade, for service files and the drop-in's links.
//!
//! A package manager installs each version into its own directory and updates a link. A service file that names the directory
//! starts the old version, or fails once it has been removed; one that names the link starts the new version.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Name of the directory in which Homebrew keeps versions.
const CELLAR: &str = "Cellar";

/// Returns a stable path of the program: for one in a Homebrew version directory, Homebrew's link or a link on PATH; otherwise the
/// absolute path itself.
pub(crate) fn stable(program: &Path, path: Option<&OsStr>) -> PathBuf {
    let program = std::path::absolute(program).unwrap_or_else(|_| program.to_owned());
    let Ok(real) = program.canonicalize() else {
        return program;
    };
    if !in_cellar(&program) {
        return program;
    }
    let name = program.file_name().unwrap_or_default();
    let linked = homebrew_link(&real, name);
    let on_path = path
        .into_iter()
        .flat_map(std::env::split_paths)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name));
    linked
        .into_iter()
        .chain(on_path)
        .find(|path| !in_cellar(path) && path.canonicalize().is_ok_and(|other| other == real))
        .unwrap_or(program)
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
        assert_eq!(stable(&versioned, None), versioned, "there is no link yet");
        fs::create_dir(prefix.path().join("opt")).expect("made");
        symlink("../Cellar/orbd/0.1.0", prefix.path().join("opt/orbd")).expect("linked");
        assert_eq!(stable(&versioned, None), prefix.path().join("opt/orbd/bin/orbd"));
    }

    #[test]
    fn a_program_in_the_cellar_is_named_by_a_link_on_path() {
        let (prefix, versioned) = homebrew();
        let bin = prefix.path().join("bin");
        fs::create_dir(&bin).expect("made");
        fs::write(prefix.path().join("orbd"), "another one").expect("written");
        symlink(&versioned, bin.join("orbd")).expect("linked");
        let path = std::env::join_paths([prefix.path(), &bin]).expect("a path");
        assert_eq!(stable(&versioned, Some(&path)), bin.join("orbd"));
    }

    #[test]
    fn any_other_program_keeps_its_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().join("orbd-0.1.0");
        fs::write(&real, "").expect("written");
        let link = folder.path().join("orbd");
        symlink(&real, &link).expect("linked");
        assert_eq!(stable(&link, None), link);
    }
}
