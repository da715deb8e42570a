//! Whether the program file was replaced, and what follows from that.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::Program;
use crate::sys::FileId;

/// Compares the program file with what was last seen of it, and notifies when it differs.
#[derive(Debug)]
pub struct BinaryWatcher {
    path: Option<PathBuf>,
    /// A plain lock, held for a comparison.
    seen: Mutex<Option<FileId>>,
    changed: Notify,
}

impl BinaryWatcher {
    /// Begins with the file that runs. Without one, no check notifies.
    pub fn new(program: Option<&Program>) -> Self {
        Self {
            path: program.map(|program| program.path.clone()),
            seen: Mutex::new(program.map(|program| program.stamp)),
            changed: Notify::new(),
        }
    }

    /// Compares: one `stat`.
    pub fn check(&self) {
        let Some(path) = &self.path else { return };
        let now = FileId::of(path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != now {
            *seen = now;
            self.changed.notify_one();
        }
    }

    /// Forgets what was seen: the next check notifies.
    pub fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until a check finds the file changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// What is known of the file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is the one that runs.
    Current,
    /// Its preflight is under way.
    Checking(FileId),
    /// It passed, and takes over when the daemon is idle.
    Pending(FileId),
    /// It did not pass.
    Refused(FileId),
}

/// What to do after the file was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Run the preflight of this file.
    Check(FileId),
    /// The file that runs is back: nothing takes over.
    Withdraw,
}

/// Decides what to do about the file on disk.
#[derive(Debug)]
pub struct UpgradeState {
    running: FileId,
    phase: Phase,
}

impl UpgradeState {
    /// Begins with the file that runs.
    pub fn new(running: FileId) -> Self {
        Self {
            running,
            phase: Phase::Current,
        }
    }

    /// Takes in what is at the path now. A missing file means nothing: it is being replaced.
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

    /// Takes in the result of the preflight that [`Step::Check`] asked for.
    pub fn on_preflight(&mut self, passed: bool) {
        if let Phase::Checking(stamp) = self.phase {
            self.phase = if passed {
                Phase::Pending(stamp)
            } else {
                Phase::Refused(stamp)
            };
        }
    }

    /// Lets a file that was refused, or could not be tried, have another preflight.
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

    #[test]
    fn each_new_file_has_one_preflight() {
        let mut state = UpgradeState::new(FileId::numbered(1));
        assert_eq!(state.on_file(Some(FileId::numbered(1))), Step::Nothing);
        assert_eq!(state.on_file(None), Step::Nothing, "it is being replaced");
        assert_eq!(
            state.on_file(Some(FileId::numbered(2))),
            Step::Check(FileId::numbered(2))
        );
        assert_eq!(state.on_file(Some(FileId::numbered(2))), Step::Nothing);
        state.on_preflight(false);
        assert_eq!(
            state.on_file(Some(FileId::numbered(2))),
            Step::Nothing,
            "it was refused"
        );
        assert_eq!(state.pending(), None);
        assert_eq!(
            state.on_file(Some(FileId::numbered(3))),
            Step::Check(FileId::numbered(3))
        );
        state.on_preflight(true);
        assert_eq!(state.pending(), Some(FileId::numbered(3)));
        assert_eq!(state.on_file(Some(FileId::numbered(3))), Step::Nothing);
        assert_eq!(state.on_file(None), Step::Nothing);
        assert_eq!(state.pending(), Some(FileId::numbered(3)));
    }

    #[test]
    fn the_running_file_back_at_its_path_withdraws_the_upgrade() {
        let mut state = UpgradeState::new(FileId::numbered(1));
        for passed in [true, false] {
            state.on_file(Some(FileId::numbered(2)));
            state.on_preflight(passed);
            assert_eq!(state.on_file(Some(FileId::numbered(1))), Step::Withdraw);
            assert_eq!(state.pending(), None);
        }
    }

    #[test]
    fn retry_allows_a_refused_file_another_preflight_but_not_a_pending_one() {
        let mut state = UpgradeState::new(FileId::numbered(1));
        state.on_file(Some(FileId::numbered(2)));
        state.on_preflight(false);
        state.retry();
        assert_eq!(
            state.on_file(Some(FileId::numbered(2))),
            Step::Check(FileId::numbered(2))
        );
        state.on_preflight(true);
        state.retry();
        assert_eq!(state.pending(), Some(FileId::numbered(2)));
    }

    #[test]
    fn a_check_notifies_once_for_each_change_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("program");
        fs::write(&path, "one").expect("written");
        let program = Program {
            stamp: FileId::of(&path).expect("there"),
            path: path.clone(),
            words: Vec::new(),
        };
        let watcher = BinaryWatcher::new(Some(&program));
        let has_changed = || watcher.changed().now_or_never().is_some();
        watcher.check();
        assert!(!has_changed());
        fs::write(&path, "other").expect("written");
        watcher.check();
        watcher.check();
        assert!(has_changed());
        assert!(!has_changed());
        watcher.forget();
        watcher.check();
        assert!(has_changed());
    }
}
