//! Upgrade: that the program on disk is another one than the one that runs, whether it is any good, and how it takes over.
//!
//! ```text
//!            a look sees another file            it proves itself        the daemon is quiet
//! current ───────────────────────────► proving ───────────────► pending ───────────────► executed, same pid
//!    ▲ ▲                                  │ it does not            │
//!    │ └── the old file is back ──────────┼────────────────────────┘
//!    │                                    ▼
//!    └─── a reload, or another file ── refused
//! ```
//!
//! [`Watch`] decides, [`Glance`] looks, [`prove`] tries the new program, [`Heirloom`] is what the old process leaves the new one.
//! Looking costs one `stat` when a client connects: no timer and no watcher, so an idle daemon does nothing. Nothing here knows
//! jobs: when the daemon is quiet is the dispatcher's to say.

mod heirloom;
mod prove;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

pub use heirloom::{Heirloom, HeirloomError, Inherited, VARIABLE};
pub use prove::{Unproven, greeting, prove};

use crate::sys::FileStamp;

/// The program that runs.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it was started from, links kept: an upgrade may be a link that leads elsewhere.
    pub path: PathBuf,
    /// The file that was executed.
    pub stamp: FileStamp,
    /// Its words, its own name first.
    pub words: Vec<OsString>,
}

impl Program {
    /// Finds out what runs. `None` where that cannot be told for certain: then no upgrade is noticed, which a restart mends.
    pub fn of_this_process() -> Option<Self> {
        let words: Vec<OsString> = std::env::args_os().collect();
        let own = std::env::current_exe().ok();
        // On Linux the file that was executed, wherever it is by now.
        let executed = Path::new("/proc/self/exe");
        let stamp = if cfg!(target_os = "linux") {
            FileStamp::of(executed)
        } else {
            own.as_deref().and_then(FileStamp::of)
        }?;
        let named = words.first().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = place(named, own.as_ref(), stamp)?;
        Some(Self { path, stamp, words })
    }
}

/// Finds the path at which another program would appear: by preference the one that was started, where that is what runs. Where neither
/// is, it was replaced since a moment ago, and is where it was said to be.
fn place(named: Option<PathBuf>, own: Option<&PathBuf>, executed: FileStamp) -> Option<PathBuf> {
    let is_it = |path: &Path| FileStamp::of(path) == Some(executed);
    let found = named.iter().chain(own).find(|path| is_it(path)).cloned();
    found.or(named)
}

/// Looks at the program file, and tells whoever waits when it looks other than before.
#[derive(Debug)]
pub struct Glance {
    path: Option<PathBuf>,
    /// A plain lock, held for a comparison.
    seen: Mutex<Option<FileStamp>>,
    differs: Notify,
}

impl Glance {
    /// Begins with the file that runs. Without one, looks show nothing.
    pub fn new(program: Option<&Program>) -> Self {
        Self {
            path: program.map(|program| program.path.clone()),
            seen: Mutex::new(program.map(|program| program.stamp)),
            differs: Notify::new(),
        }
    }

    /// Looks.
    pub fn look(&self) {
        let Some(path) = &self.path else { return };
        let now = FileStamp::of(path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != now {
            *seen = now;
            self.differs.notify_one();
        }
    }

    /// Forgets what was seen: the next look tells.
    pub fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until a look shows something else.
    pub async fn differs(&self) {
        self.differs.notified().await;
    }
}

/// What is thought of the file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is the one that runs.
    Current,
    /// It is being tried.
    Proving(FileStamp),
    /// It is good, and takes over when the daemon is quiet.
    Pending(FileStamp),
    /// It is no good.
    Refused(FileStamp),
}

/// What follows from a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// The file is to prove itself.
    Prove(FileStamp),
    /// The file that runs is back: nothing takes over.
    Withdraw,
}

/// Decides what to do about the file on disk.
#[derive(Debug)]
pub struct Watch {
    running: FileStamp,
    phase: Phase,
}

impl Watch {
    /// Begins with the file that runs.
    pub fn new(running: FileStamp) -> Self {
        Self {
            running,
            phase: Phase::Current,
        }
    }

    /// Takes in a look. A file that is gone says nothing: another is about to come.
    pub fn saw(&mut self, seen: Option<FileStamp>) -> Step {
        match (seen, self.phase) {
            (None, _) => Step::Nothing,
            (Some(stamp), Phase::Current) if stamp == self.running => Step::Nothing,
            (Some(stamp), _) if stamp == self.running => {
                self.phase = Phase::Current;
                Step::Withdraw
            }
            (Some(stamp), Phase::Proving(known) | Phase::Pending(known) | Phase::Refused(known))
                if stamp == known =>
            {
                Step::Nothing
            }
            (Some(stamp), _) => {
                self.phase = Phase::Proving(stamp);
                Step::Prove(stamp)
            }
        }
    }

    /// Takes in what came of the proof that [`Step::Prove`] asked for.
    pub fn proved(&mut self, is_good: bool) {
        if let Phase::Proving(stamp) = self.phase {
            self.phase = if is_good {
                Phase::Pending(stamp)
            } else {
                Phase::Refused(stamp)
            };
        }
    }

    /// Lets a file prove itself again that was refused, or could not be tried.
    pub fn try_again(&mut self) {
        if matches!(self.phase, Phase::Refused(_) | Phase::Proving(_)) {
            self.phase = Phase::Current;
        }
    }

    /// Returns the file that takes over when the daemon is quiet.
    pub fn pending(&self) -> Option<FileStamp> {
        match self.phase {
            Phase::Pending(stamp) => Some(stamp),
            Phase::Current | Phase::Proving(_) | Phase::Refused(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_new_file_proves_itself_once() {
        let mut watch = Watch::new(FileStamp::numbered(1));
        assert_eq!(watch.saw(Some(FileStamp::numbered(1))), Step::Nothing);
        assert_eq!(watch.saw(None), Step::Nothing, "it is being replaced");
        assert_eq!(
            watch.saw(Some(FileStamp::numbered(2))),
            Step::Prove(FileStamp::numbered(2))
        );
        assert_eq!(watch.saw(Some(FileStamp::numbered(2))), Step::Nothing);
        watch.proved(false);
        assert_eq!(
            watch.saw(Some(FileStamp::numbered(2))),
            Step::Nothing,
            "it was refused"
        );
        assert_eq!(watch.pending(), None);
        assert_eq!(
            watch.saw(Some(FileStamp::numbered(3))),
            Step::Prove(FileStamp::numbered(3))
        );
        watch.proved(true);
        assert_eq!(watch.pending(), Some(FileStamp::numbered(3)));
        assert_eq!(watch.saw(Some(FileStamp::numbered(3))), Step::Nothing);
        assert_eq!(watch.saw(None), Step::Nothing);
        assert_eq!(watch.pending(), Some(FileStamp::numbered(3)));
    }

    #[test]
    fn the_old_file_that_comes_back_takes_back_the_upgrade() {
        let mut watch = Watch::new(FileStamp::numbered(1));
        for is_good in [true, false] {
            watch.saw(Some(FileStamp::numbered(2)));
            watch.proved(is_good);
            assert_eq!(watch.saw(Some(FileStamp::numbered(1))), Step::Withdraw);
            assert_eq!(watch.pending(), None);
        }
    }

    #[test]
    fn a_file_that_was_refused_is_tried_again_on_request_and_a_good_one_is_not() {
        let mut watch = Watch::new(FileStamp::numbered(1));
        watch.saw(Some(FileStamp::numbered(2)));
        watch.proved(false);
        watch.try_again();
        assert_eq!(
            watch.saw(Some(FileStamp::numbered(2))),
            Step::Prove(FileStamp::numbered(2))
        );
        watch.proved(true);
        watch.try_again();
        assert_eq!(watch.pending(), Some(FileStamp::numbered(2)));
    }

    #[test]
    fn a_program_is_looked_for_where_it_was_started_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| Some(folder.path().join(name));
        fs::write(folder.path().join("orbd"), "one").expect("written");
        std::os::unix::fs::symlink("orbd", folder.path().join("link")).expect("a link");
        let executed = FileStamp::of(&folder.path().join("orbd")).expect("there");
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

    #[test]
    fn a_glance_tells_once_for_each_new_sight() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("program");
        fs::write(&path, "one").expect("written");
        let program = Program {
            stamp: FileStamp::of(&path).expect("there"),
            path: path.clone(),
            words: Vec::new(),
        };
        let glance = Glance::new(Some(&program));
        let told = || has_news(&glance);
        glance.look();
        assert!(!told());
        fs::write(&path, "other").expect("written");
        glance.look();
        glance.look();
        assert!(told());
        assert!(!told());
        glance.forget();
        glance.look();
        assert!(told());
    }

    /// Says whether the glance has something to tell.
    fn has_news(glance: &Glance) -> bool {
        use futures_util::FutureExt;
        glance.differs().now_or_never().is_some()
    }
}
