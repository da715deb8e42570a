//! What tells one file from another that took its place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file as it was when it was looked at: equal stamps mean the same file with the same contents, as far as one look can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    modified: (i64, i64),
}

impl FileId {
    /// Looks at the file that a path leads to, links followed. `None` when there is none, as in the middle of an installation.
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        found.is_file().then(|| Self {
            device: found.dev(),
            inode: found.ino(),
            mode: found.mode(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }

    /// Says whether both are one file, whatever was written into it between the looks.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Makes the stamp of a file that is nowhere, for tests of what follows from one.
    #[cfg(test)]
    pub(crate) fn numbered(inode: u64) -> Self {
        Self {
            device: 1,
            inode,
            mode: 0o755,
            size: 100,
            modified: (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_replaced_file_has_another_stamp_and_a_link_that_moves_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "same").expect("written");
        fs::write(path("two"), "same").expect("written");
        symlink(path("one"), path("link")).expect("a link");
        let before = FileId::of(&path("link"));
        assert_eq!(before, FileId::of(&path("one")));
        fs::remove_file(path("link")).expect("there");
        assert_eq!(FileId::of(&path("link")), None);
        symlink(path("two"), path("link")).expect("a link");
        assert_ne!(FileId::of(&path("link")), before);
        fs::rename(path("two"), path("one")).expect("renamed");
        assert_ne!(FileId::of(&path("one")), before);
        assert_eq!(FileId::of(folder.path()), None, "a folder is no program");
    }

    #[test]
    fn a_file_that_is_written_to_is_the_same_file_with_another_stamp() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let stamp = |name: &str| FileId::of(&path(name)).expect("there");
        fs::write(path("one"), "short").expect("written");
        fs::hard_link(path("one"), path("name")).expect("linked");
        let before = stamp("one");
        assert_eq!(before, stamp("name"));
        fs::write(path("one"), "longer than that").expect("written");
        assert_ne!(before, stamp("name"));
        assert!(before.is_same_file(&stamp("name")));
        fs::write(path("other"), "short").expect("written");
        assert!(!before.is_same_file(&stamp("other")));
    }
}
