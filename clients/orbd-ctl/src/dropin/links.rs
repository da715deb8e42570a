//! The links that install the drop-in, and the programs on PATH.
//!
//! A file that is not ours is never replaced, removed or followed. A link is ours if its target, existing or not, has our program's
//! name, whatever version created it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use orbd_host::locate::is_named_as_ours;
use rustix::fs::Access;

/// The names of the real tool.
pub(crate) const NAMES: [&str; 2] = ["orbctl", "orb"];

/// Name of this program.
const OWN_NAME: &str = "orbd-ctl";

/// Type of the file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// No file.
    Absent,
    /// One of our links, with an existing target.
    Ours,
    /// One of our links, whose target does not exist.
    Dangling,
    /// Any other file.
    Foreign,
}

/// Result of installing the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// Both links already had the right target.
    Same,
    /// A link was created or changed.
    New,
}

/// Returns the type of the file at a path.
pub(crate) fn look(path: &Path) -> Link {
    let Ok(data) = path.symlink_metadata() else {
        return Link::Absent;
    };
    let target = fs::read_link(path).unwrap_or_default();
    let names_us = target.file_name() == Some(OsStr::new(OWN_NAME));
    if !data.is_symlink() || !(names_us || is_named_as_ours(path)) {
        Link::Foreign
    } else if path.exists() {
        Link::Ours
    } else {
        Link::Dangling
    }
}

/// Creates both links in a directory. If either name is taken by a file that is not ours, creates neither.
pub(crate) fn install(folder: &Path, program: &Path) -> Result<Written, InstallError> {
    let paths = NAMES.map(|name| folder.join(name));
    if let Some(path) = paths.iter().find(|path| look(path) == Link::Foreign) {
        return Err(InstallError::Foreign(path.clone()));
    }
    // The parent may be the socket's directory, which only its owner may access.
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut written = Written::Same;
    for path in &paths {
        if fs::read_link(path).is_ok_and(|target| target == program) {
            continue;
        }
        // Replaced atomically: a concurrent call finds either the old link or the new one.
        let new = path.with_extension(format!("new-{}", std::process::id()));
        symlink(program, &new)?;
        fs::rename(&new, path)?;
        written = Written::New;
    }
    Ok(written)
}

/// Why the links were not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// A file that is not ours has this path.
    #[error("{} exists and is not a link to orbd, so it was not replaced", .0.display())]
    Foreign(PathBuf),
    /// A file operation failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Removes our links, and returns the paths of those that existed.
pub(crate) fn uninstall(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in NAMES.map(|name| folder.join(name)) {
        if matches!(look(&path), Link::Ours | Link::Dangling) {
            fs::remove_file(&path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Returns the first executable file with this name on PATH.
pub(crate) fn first_on_path(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    path.into_iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok())
}

/// Returns the line for a shell's profile that puts a directory first on PATH.
pub(crate) fn profile_line(folder: &Path, home: Option<&Path>, shell: Option<&OsStr>) -> String {
    let folder = match home.and_then(|home| folder.strip_prefix(home).ok()) {
        Some(below) => format!("$HOME/{}", below.display()),
        None => folder.display().to_string(),
    };
    let is_fish = shell.is_some_and(|shell| Path::new(shell).file_name() == Some(OsStr::new("fish")));
    if is_fish {
        format!("fish_add_path --move --prepend \"{folder}\"")
    } else {
        format!("export PATH=\"{folder}:$PATH\"")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_owned()
    }

    #[test]
    fn links_are_created_updated_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = program(&folder.path().join("1/orbd-ctl"));
        let new = program(&folder.path().join("2/orbd-ctl"));
        let bin = folder.path().join("home/bin");
        assert_eq!(install(&bin, &old).unwrap(), Written::New);
        assert_eq!(install(&bin, &old).unwrap(), Written::Same);
        assert_eq!(install(&bin, &new).unwrap(), Written::New);
        for name in NAMES {
            assert_eq!(
                bin.join(name).canonicalize().unwrap(),
                new.canonicalize().unwrap()
            );
        }
        assert_eq!(
            fs::read_dir(&bin).unwrap().count(),
            2,
            "no temporary files are left"
        );
        fs::remove_file(&new).unwrap();
        assert_eq!(look(&bin.join("orb")), Link::Dangling);
        assert_eq!(uninstall(&bin).unwrap().len(), 2);
        assert_eq!(uninstall(&bin).unwrap().len(), 0);
    }

    #[test]
    fn foreign_files_are_never_replaced_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ours = program(&folder.path().join("orbd-ctl"));
        let real = program(&folder.path().join("bin/orb"));
        let bin = folder.path().join("bin");
        assert!(matches!(install(&bin, &ours), Err(InstallError::Foreign(path)) if path == real));
        assert_eq!(look(&bin.join("orbctl")), Link::Absent, "neither link is created");
        fs::remove_file(&real).unwrap();
        symlink(folder.path().join("elsewhere"), &real).unwrap();
        assert!(
            install(&bin, &ours).is_err(),
            "a dangling foreign link is not replaced"
        );
        assert_eq!(uninstall(&bin).unwrap().len(), 0);
    }

    #[test]
    fn profile_line_matches_the_shell() {
        let check = |folder: &str, shell: &str, expected: &str| {
            let line = profile_line(
                Path::new(folder),
                Some(Path::new("/home/me")),
                Some(OsStr::new(shell)),
            );
            assert_eq!(line, expected);
        };
        check(
            "/home/me/.orbd/bin",
            "/bin/zsh",
            "export PATH=\"$HOME/.orbd/bin:$PATH\"",
        );
        check("/opt/bin", "/bin/bash", "export PATH=\"/opt/bin:$PATH\"");
        check(
            "/home/me/.orbd/bin",
            "/opt/bin/fish",
            "fish_add_path --move --prepend \"$HOME/.orbd/bin\"",
        );
    }

    #[test]
    fn the_first_executable_on_path_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let second = program(&folder.path().join("b/orb"));
        program(&folder.path().join("c/orb"));
        let dead = program(&folder.path().join("a/orb"));
        fs::set_permissions(dead, fs::Permissions::from_mode(0o644)).unwrap();
        let path = std::env::join_paths(["a", "b", "c"].map(|name| folder.path().join(name))).unwrap();
        assert_eq!(first_on_path("orb", Some(&path)), Some(second));
        assert_eq!(first_on_path("orb", None), None);
    }
}
