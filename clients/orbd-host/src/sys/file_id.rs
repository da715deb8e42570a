//! Identity of a file, to detect that another file has replaced it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Metadata of a file at one moment. Equal values mean the same file with unchanged contents, as far as `stat` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Number of the device that contains the file.
    pub device: u64,
    /// Number of the file on that device.
    pub inode: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of the contents: seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
}

impl FileId {
    /// Reads the metadata of the file at a path, following links. `None` if there is no regular file, as in the middle of an
    /// installation.
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

    /// Returns whether both describe the same file, even if its contents changed in between.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn replaced_files_and_moved_links_have_a_different_id() {
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
        assert_eq!(FileId::of(folder.path()), None, "a folder has no id");
    }

    #[test]
    fn written_file_is_the_same_file_with_a_different_id() {
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
