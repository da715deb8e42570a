//! Detects that the program file was replaced, and keeps the state of the upgrade that follows.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::Program;
use crate::sys::FileId;

/// Compares the program file with its last known identity, and notifies on a difference.
#[derive(Debug)]
pub struct BinaryWatcher {
    path: Option<PathBuf>,
    /// Identity of the file at the last check. A blocking lock, because it is held only for a comparison.
    seen: Mutex<Option<FileId>>,
    /// Whether a check found another file and [`BinaryWatcher::checked`] was not called since.
    is_checking: AtomicBool,
    changed: Notify,
}

impl BinaryWatcher {
    /// Creates a watcher for the running program. With `None`, checks do nothing.
    pub fn new(program: Option<&Program>) -> Self {
        Self {
            path: program.map(|program| program.path.clone()),
            seen: Mutex::new(program.map(|program| program.stamp)),
            is_checking: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// Checks the file with one `stat`, and notifies if it changed since the last check.
    pub fn check(&self) {
        let Some(path) = &self.path else { return };
        let now = FileId::of(path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != now {
            *seen = now;
            if now.is_some() {
                // Before the requests of the connection that caused the check are handled.
                self.is_checking.store(true, Ordering::Release);
            }
            self.changed.notify_one();
        }
    }

    /// Forgets the file's last known identity, so that the next check notifies.
    pub fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns whether a changed file was found that has not been judged yet.
    pub fn is_checking(&self) -> bool {
        self.is_checking.load(Ordering::Acquire)
    }

    /// Records that the file at the path was judged.
    pub fn checked(&self) {
        self.is_checking.store(false, Ordering::Release);
    }

    /// Waits until a check finds the file changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Phase of the upgrade to the file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The file on disk is the running binary.
    Current,
    /// The preflight of this file is running.
    Checking(FileId),
    /// This file passed its preflight and takes over when the daemon is idle.
    Pending(FileId),
    /// This file failed its preflight.
    Refused(FileId),
}

/// What the caller must do after a check of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No action is needed.
    Nothing,
    /// Run the preflight of this file.
    Check(FileId),
    /// Cancel the upgrade: the running file is back at its path.
    Withdraw,
}

/// State machine of an upgrade; see the diagram in [`crate::upgrade`].
#[derive(Debug)]
pub struct UpgradeState {
    running: FileId,
    phase: Phase,
}

impl UpgradeState {
    /// Starts in the phase `Current` with the identity of the running file.
    pub fn new(running: FileId) -> Self {
        Self {
            running,
            phase: Phase::Current,
        }
    }

    /// Updates the state with the file that is at the path now. Ignores a missing file, because it is probably being replaced.
    pub fn on_file(&mut self, found: Option<FileId>) -> Step {
        match (found, self.phase) {
            (None, _) => Step::Nothing,
            (Some(stamp), Phase::Current) if stamp == self.running => Step::Nothing,
            (Some(stamp), _) if stamp == self.running => {
                self.phase = Phase::Current;
                Step::Withdraw
            }
            (Some(stamp), Phase::Checking(known) | Phase::Pending(known) | Phase::Refused(known))
                if stamp == known =>
            {
                Step::Nothing
            }
            (Some(stamp), _) => {
                self.phase = Phase::Checking(stamp);
                Step::Check(stamp)
            }
        }
    }

    /// Updates the state with the result of the preflight that [`Step::Check`] requested.
    pub fn on_preflight(&mut self, passed: bool) {
        if let Phase::Checking(stamp) = self.phase {
            self.phase = if passed {
                Phase::Pending(stamp)
            } else {
                Phase::Refused(stamp)
            };
        }
    }

    /// Updates the state after the file of [`Step::Check`] turned out to have the contents of the running program.
    pub fn on_same_contents(&mut self) {
        if let Phase::Checking(stamp) = self.phase {
            self.running = stamp;
            self.phase = Phase::Current;
        }
    }

    /// Allows another preflight of a file that was refused or whose preflight could not run. Has no effect on a pending file.
    pub fn retry(&mut self) {
        if matches!(self.phase, Phase::Refused(_) | Phase::Checking(_)) {
            self.phase = Phase::Current;
        }
    }

    /// Returns the file that takes over when the daemon is idle.
    pub fn pending(&self) -> Option<FileId> {
        match self.phase {
            Phase::Pending(stamp) => Some(stamp),
            Phase::Current | Phase::Checking(_) | Phase::Refused(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::FutureExt;

    use super::*;

    /// Returns the id of an imaginary file.
    fn numbered(inode: u64) -> FileId {
        FileId {
            device: 1,
            inode,
            mode: 0o755,
            size: 100,
            modified: (0, 0),
        }
    }

    #[test]
    fn each_new_file_has_one_preflight() {
        let mut state = UpgradeState::new(numbered(1));
        assert_eq!(state.on_file(Some(numbered(1))), Step::Nothing);
        assert_eq!(state.on_file(None), Step::Nothing, "it is being replaced");
        assert_eq!(state.on_file(Some(numbered(2))), Step::Check(numbered(2)));
        assert_eq!(state.on_file(Some(numbered(2))), Step::Nothing);
        state.on_preflight(false);
        assert_eq!(state.on_file(Some(numbered(2))), Step::Nothing, "it was refused");
        assert_eq!(state.pending(), None);
        assert_eq!(state.on_file(Some(numbered(3))), Step::Check(numbered(3)));
        state.on_preflight(true);
        assert_eq!(state.pending(), Some(numbered(3)));
        assert_eq!(state.on_file(Some(numbered(3))), Step::Nothing);
        assert_eq!(state.on_file(None), Step::Nothing);
        assert_eq!(state.pending(), Some(numbered(3)));
    }

    #[test]
    fn the_running_file_back_at_its_path_withdraws_the_upgrade() {
        let mut state = UpgradeState::new(numbered(1));
        for passed in [true, false] {
            state.on_file(Some(numbered(2)));
            state.on_preflight(passed);
            assert_eq!(state.on_file(Some(numbered(1))), Step::Withdraw);
            assert_eq!(state.pending(), None);
        }
    }

    #[test]
    fn file_with_the_same_contents_becomes_the_running_file() {
        let mut state = UpgradeState::new(numbered(1));
        assert_eq!(state.on_file(Some(numbered(2))), Step::Check(numbered(2)));
        state.on_same_contents();
        assert_eq!(state.on_file(Some(numbered(2))), Step::Nothing);
        assert_eq!(state.pending(), None);
        assert_eq!(
            state.on_file(Some(numbered(1))),
            Step::Check(numbered(1)),
            "the first file is another one now"
        );
    }

    #[test]
    fn retry_allows_a_refused_file_another_preflight_but_not_a_pending_one() {
        let mut state = UpgradeState::new(numbered(1));
        state.on_file(Some(numbered(2)));
        state.on_preflight(false);
        state.retry();
        assert_eq!(state.on_file(Some(numbered(2))), Step::Check(numbered(2)));
        state.on_preflight(true);
        state.retry();
        assert_eq!(state.pending(), Some(numbered(2)));
    }

    #[test]
    fn a_check_notifies_once_for_each_change_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("program");
        fs::write(&path, "one").expect("written");
        let program = Program::of_file(path.clone(), Vec::new());
        let watcher = BinaryWatcher::new(Some(&program));
        let has_changed = || watcher.changed().now_or_never().is_some();
        watcher.check();
        assert!(!has_changed() && !watcher.is_checking());
        fs::write(&path, "other").expect("written");
        watcher.check();
        watcher.check();
        assert!(watcher.is_checking());
        assert!(has_changed());
        assert!(!has_changed());
        watcher.checked();
        watcher.check();
        assert!(!watcher.is_checking());
        watcher.forget();
        watcher.check();
        assert!(has_changed());
    }
}
