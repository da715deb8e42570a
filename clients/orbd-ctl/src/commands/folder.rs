//! The guest directory in which `run` starts: the one that corresponds to our current directory, as with `orbctl run`.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::environment::variable;

/// Mount point of the Mac's file system in a machine.
const MAC_FILES: &str = "/mnt/mac";

/// Returns the guest path of our current directory, for a machine that mounts the Mac's files; `None` if the path is unknown or not
/// UTF-8.
///
/// A directory below the home directory has the same path in the guest. Any other is below `/mnt/mac`: a guest directory with the same
/// path, such as `/etc`, is a different one.
pub(super) fn in_guest() -> Option<String> {
    let home = variable("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute());
    corresponding(&current(variable("PWD"))?, home.as_deref())
}

/// Returns the current directory: `$PWD`, which may contain symbolic links, if it is valid, otherwise the resolved path.
fn current(pwd: Option<OsString>) -> Option<PathBuf> {
    let real = std::env::current_dir().ok();
    let identity = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    let named = pwd.map(PathBuf::from).filter(|named| {
        let is_here = identity(named).is_some_and(|found| Some(found) == identity(Path::new(".")));
        named.is_absolute() && is_here
    });
    named.or(real)
}

fn corresponding(folder: &Path, home: Option<&Path>) -> Option<String> {
    let is_shared = home.is_some_and(|home| folder.starts_with(home));
    let folder = folder.to_str()?;
    Some(if is_shared {
        folder.to_owned()
    } else {
        format!("{MAC_FILES}{folder}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_below_home_keep_their_path() {
        let check = |folder: &str, expected: &str| {
            let found = corresponding(Path::new(folder), Some(Path::new("/Users/u")));
            assert_eq!(found.as_deref(), Some(expected));
        };
        check("/Users/u/src/app", "/Users/u/src/app");
        check("/Users/u", "/Users/u");
        check("/Users/u2", "/mnt/mac/Users/u2");
        check("/etc", "/mnt/mac/etc");
        assert_eq!(
            corresponding(Path::new("/x"), None).as_deref(),
            Some("/mnt/mac/x")
        );
    }

    #[test]
    fn pwd_is_ignored_if_it_is_another_directory() {
        let here = std::env::current_dir().expect("a folder");
        assert_eq!(current(Some("/".into())), Some(here.clone()));
        assert_eq!(current(Some(".".into())), Some(here.clone()));
        assert_eq!(current(None), Some(here.clone()));
        assert_eq!(current(Some(here.clone().into())), Some(here));
    }
}
