//! Upgrade: detects that the program file was replaced, checks the new one, and executes it in place of this process.
//!
//! ```text
//!            the program file was replaced           preflight passes        the daemon is idle
//! current ─────────────────────────────► checking ───────────────► pending ───────────────► executed, same pid
//!    ▲ ▲                                     │ it fails               │
//!    │ └── the old file is back ─────────────┼────────────────────────┘
//!    │                                       ▼
//!    └────── a reload, or another file ── refused
//! ```
//!
//! Only the file at the start path can take over: no request names a program. A file with the same contents is not an upgrade, and an older
//! version is refused.
//!
//! [`UpgradeState`] holds this state machine, [`BinaryWatcher`] detects a changed file, [`preflight`] runs the new program as a child
//! process, and [`Handoff`] contains the descriptors that one instance passes to the next. A check is one `stat` whenever a client
//! connects, and once an hour; there is no file watcher, so an idle daemon does almost nothing. This module has no access to jobs: the dispatcher
//! decides when the daemon is idle.

mod binary_watcher;
mod handoff;
mod preflight;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use binary_watcher::{BinaryWatcher, Step, UpgradeState};
pub use handoff::{Handoff, HandoffError, HandoffSlots, ReceivedHandoff, execute};
pub use preflight::{PreflightError, greeting, preflight};

use crate::sys::FileId;

/// The program that this process runs.
#[derive(Debug, Clone)]
pub struct Program {
    /// Path that the program was started from, with symbolic links unresolved: an upgrade may change the target of a link.
    pub path: PathBuf,
    /// Identity of the file that was executed.
    pub stamp: FileId,
    /// Arguments, including `argv[0]`.
    pub words: Vec<OsString>,
    /// The executed file, open for reading. Its contents stay readable after the file was replaced or deleted.
    pub file: Arc<File>,
}

/// Number of bytes that are compared at a time.
const CHUNK: usize = 64 << 10;

impl Program {
    /// Returns the program of this process; `None` if its path or file cannot be determined. Then upgrades are not detected until the
    /// daemon is restarted.
    pub fn of_this_process() -> Option<Self> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let own = std::env::current_exe().ok();
        // On Linux this always leads to the executed file, even if the file was renamed or deleted.
        let executed = Path::new("/proc/self/exe");
        let stamp = if cfg!(target_os = "linux") {
            FileId::of(executed)
        } else {
            own.as_deref().and_then(FileId::of)
        }?;
        let named = words.first().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = place(named, own.as_ref(), stamp)?;
        let file = if cfg!(target_os = "linux") {
            File::open(executed)
        } else {
            File::open(&path)
        };
        Some(Self {
            path,
            stamp,
            words,
            file: Arc::new(file.ok()?),
        })
    }

    /// Returns whether the file now at the path has the contents of the running program. Reads both files.
    pub fn has_same_contents(&self) -> io::Result<bool> {
        let other = File::open(&self.path)?;
        let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut offset = 0;
        loop {
            let length = read_chunk(&self.file, &mut ours, offset)?;
            if read_chunk(&other, &mut theirs, offset)? != length || ours[..length] != theirs[..length] {
                return Ok(false);
            }
            if length < CHUNK {
                return Ok(true);
            }
            offset += length as u64;
        }
    }

    /// Returns the program in a file, as if it had been started from there.
    #[cfg(test)]
    pub(crate) fn of_file(path: PathBuf, words: Vec<OsString>) -> Self {
        Self {
            stamp: FileId::of(&path).expect("there"),
            file: Arc::new(File::open(&path).expect("readable")),
            path,
            words,
        }
    }
}

/// Fills the buffer from this offset; returns less than its length only at the end of the file.
fn read_chunk(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Returns the path at which an upgrade will appear: `argv[0]` (`named`) if it leads to the running file, else the path that the system
/// reports (`own`). If neither leads to the running file, the file was replaced during startup; then fall back to `argv[0]`.
fn place(named: Option<PathBuf>, own: Option<&PathBuf>, executed: FileId) -> Option<PathBuf> {
    let is_it = |path: &Path| FileId::of(path) == Some(executed);
    let found = named.iter().chain(own).find(|path| is_it(path)).cloned();
    found.or(named)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn contents_are_compared_with_the_executed_file_even_after_it_was_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd");
        let original = vec![7; CHUNK + 1];
        fs::write(&path, &original).expect("written");
        let program = Program::of_file(path.clone(), Vec::new());
        let install = |contents: &[u8]| {
            fs::write(folder.path().join("new"), contents).expect("written");
            fs::rename(folder.path().join("new"), &path).expect("renamed");
        };
        install(&original);
        assert!(program.has_same_contents().expect("readable"));
        for other in [
            &original[..CHUNK],
            &[&original[..], b"x"].concat(),
            &vec![8; CHUNK + 1],
            &[],
        ] {
            install(other);
            assert!(!program.has_same_contents().expect("readable"), "{}", other.len());
        }
        fs::remove_file(&path).expect("ours");
        assert!(program.has_same_contents().is_err());
    }

    #[test]
    fn upgrade_is_expected_at_the_path_that_the_program_was_started_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| Some(folder.path().join(name));
        fs::write(folder.path().join("orbd"), "one").expect("written");
        std::os::unix::fs::symlink("orbd", folder.path().join("link")).expect("a link");
        let executed = FileId::of(&folder.path().join("orbd")).expect("there");
        assert_eq!(
            place(path("link"), path("orbd").as_ref(), executed),
            path("link"),
            "links are kept"
        );
        assert_eq!(
            place(path("other"), path("orbd").as_ref(), executed),
            path("orbd")
        );
        assert_eq!(place(None, path("orbd").as_ref(), executed), path("orbd"));
        fs::write(folder.path().join("new"), "two").expect("written");
        fs::rename(folder.path().join("new"), folder.path().join("orbd")).expect("renamed");
        assert_eq!(
            place(path("link"), path("orbd (deleted)").as_ref(), executed),
            path("link"),
            "replaced during startup"
        );
        assert_eq!(place(None, path("orbd (deleted)").as_ref(), executed), None);
    }
}
