//! Upgrade: notices that the program file was replaced, checks the new one, and executes it in place of this process.
//!
//! ```text
//!            the file at the start path changed      preflight passes        the daemon is idle
//! current ─────────────────────────────► checking ───────────────► pending ───────────────► executed, same pid
//!    ▲ ▲                                     │ it fails               │
//!    │ └── the old file is back ─────────────┼────────────────────────┘
//!    │                                       ▼
//!    └────── a reload, or another file ── refused
//! ```
//!
//! [`UpgradeState`] decides, [`BinaryWatcher`] looks, [`preflight`] runs the new program as a child, [`Handoff`] is what one instance
//! passes to the next. A look costs one `stat` when a client connects: no timer and no file watcher, so an idle daemon does nothing.
//! Nothing here knows jobs: the dispatcher decides when the daemon is idle.

mod binary_watcher;
mod handoff;
mod preflight;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use binary_watcher::{BinaryWatcher, Step, UpgradeState};
pub use handoff::{Handoff, HandoffError, HandoffSlots, ReceivedHandoff, execute};
pub use preflight::{PreflightError, greeting, preflight};

use crate::sys::FileId;

/// The program that runs.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it was started from, links kept: an upgrade may be a link that leads elsewhere.
    pub path: PathBuf,
    /// The file that was executed.
    pub stamp: FileId,
    /// Its arguments, its own name first.
    pub words: Vec<OsString>,
}

impl Program {
    /// Finds out what runs. `None` if that is not certain: then no upgrade is noticed until the daemon is restarted.
    pub fn of_this_process() -> Option<Self> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let own = std::env::current_exe().ok();
        // On Linux the file that was executed, even if it has another name by now.
        let executed = Path::new("/proc/self/exe");
        let stamp = if cfg!(target_os = "linux") {
            FileId::of(executed)
        } else {
            own.as_deref().and_then(FileId::of)
        }?;
        let named = words.first().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = place(named, own.as_ref(), stamp)?;
        Some(Self { path, stamp, words })
    }
}

/// Finds the path at which another program would appear: the one that was started, if the running file is there, else the system's path of
/// the running file. If neither path leads to the running file, it was replaced during start-up; fall back to the first argument.
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
    fn a_program_is_looked_for_where_it_was_started_from() {
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
            "replaced since"
        );
        assert_eq!(place(None, path("orbd (deleted)").as_ref(), executed), None);
    }
}
