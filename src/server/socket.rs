//! The socket, its folder and its lock.
//!
//! One daemon serves a socket, and holds a lock on a file next to it. The lock, not the socket file, shows that a daemon is alive: only the
//! holder of the lock replaces an existing socket file. At the end the daemon unlinks the socket file only if it bound it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orbd_host::config::lock_path;
use rustix::fs::{FlockOperation, flock};

/// Number of attempts to take the lock, and the pause between them.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon serves it. This is not a fault: the caller wanted a running daemon.
    #[error("another orbd already serves {}", .0.display())]
    Taken(PathBuf),
    /// The folder is accessible to others, or belongs to another user.
    #[error("folder {} must belong to you and have mode 0700; run: chmod 700 {}", .0.display(), .0.display())]
    Folder(PathBuf),
    /// The path exists and is not a socket.
    #[error("{} exists and is not a socket; move or remove it", .0.display())]
    InTheWay(PathBuf),
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    System {
        /// The attempted action.
        action: &'static str,
        /// The path that it applied to.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Why an inherited socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The descriptor is not a listening socket.
    #[error("it does not listen")]
    Listener,
    /// It listens at another path.
    #[error("it listens on {}", .0.display())]
    Elsewhere(PathBuf),
    /// There is no socket at its path.
    #[error("there is no longer a socket at its path")]
    Missing,
    /// The inherited lock is not that of the socket, or is not held.
    #[error("the lock is not that of the socket, or is not held")]
    Lock,
}

/// Maximum number of connections that wait to be accepted: as many as the system allows.
const BACKLOG: i32 = -1;

/// The bound socket. Dropping it unlinks the socket file if orbd bound it and the file is still this socket.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    /// Whether orbd bound it; otherwise it belongs to systemd.
    is_bound: bool,
    /// Held while the daemon runs. The lock file is never unlinked, because two daemons could then lock two different files.
    lock: File,
}

impl Socket {
    /// Takes the lock, creates folder and socket with their modes, and listens.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let system = |action, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| SocketError::System { action, path, source }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(system("create the folder", folder))?;
        let found = fs::metadata(folder).map_err(system("check", folder))?;
        if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(SocketError::Folder(folder.to_owned()));
        }

        let lock = Self::lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                fs::remove_file(path).map_err(system("remove the stale socket", path))?;
            }
            Ok(_) => return Err(SocketError::InTheWay(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("check", path)(error)),
        }
        // Between bind and chmod the folder's mode excludes other users.
        let listener = UnixListener::bind(path).map_err(system("listen on", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(system("set the mode of", path))?;
        listener.set_nonblocking(true).map_err(system("prepare", path))?;
        let found = fs::symlink_metadata(path).map_err(system("check", path))?;
        Ok((
            Self {
                path: path.to_owned(),
                inode: (found.dev(), found.ino()),
                is_bound: true,
                lock,
            },
            listener,
        ))
    }

    /// Takes the lock of the socket.
    fn lock(path: &Path) -> Result<File, SocketError> {
        let lock_path = lock_path(path);
        let system = |action| {
            let path = lock_path.clone();
            move |source: io::Error| SocketError::System { action, path, source }
        };
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(system("open"))?;
        if !take(&lock).map_err(system("lock"))? {
            return Err(SocketError::Taken(path.to_owned()));
        }
        Ok(lock)
    }

    /// Takes over a socket that was passed to this process, with the lock that was passed with it, or a lock of its own if there was none.
    /// The socket must be the one for `path`. Otherwise it is closed, and unlinked if an earlier instance bound it.
    pub fn inherit(
        path: &Path,
        listener: OwnedFd,
        lock: Option<OwnedFd>,
        is_bound: bool,
    ) -> Result<(Self, UnixListener), Unfit> {
        let listener = UnixListener::from(listener);
        let bound = listener.local_addr().map_err(|_| Unfit::Listener)?;
        let bound = bound.as_pathname().ok_or(Unfit::Listener)?.to_owned();
        let found = fs::symlink_metadata(&bound).map_err(|_| Unfit::Missing)?;
        if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) {
            return Err(Unfit::Missing);
        }
        let lock = match lock {
            Some(lock) => File::from(lock),
            None => Self::lock(path).map_err(|_| Unfit::Lock)?,
        };
        let socket = Self {
            path: bound,
            inode: (found.dev(), found.ino()),
            is_bound,
            lock,
        };
        if socket.path != path {
            return Err(Unfit::Elsewhere(socket.path.clone()));
        }
        // This has no effect on a listening socket, and fails for a connected one.
        rustix::net::listen(&listener, BACKLOG).map_err(|_| Unfit::Listener)?;
        let held = socket.lock.metadata().map_err(|_| Unfit::Lock)?;
        let named = fs::metadata(lock_path(path)).map_err(|_| Unfit::Lock)?;
        let is_locked = flock(&socket.lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if (named.dev(), named.ino()) != (held.dev(), held.ino()) || !is_locked {
            return Err(Unfit::Lock);
        }
        listener.set_nonblocking(true).map_err(|_| Unfit::Listener)?;
        Ok((socket, listener))
    }

    /// Returns what the next instance in this process inherits: the lock, and whether orbd bound the socket. Returns `None` if the file at
    /// the path is no longer this socket; the next instance then binds its own.
    pub fn pass_on(&self) -> Option<(OwnedFd, bool)> {
        // A duplicated descriptor holds the same lock.
        let lock = self.lock.try_clone().ok().filter(|_| self.is_in_place())?;
        Some((lock.into(), self.is_bound))
    }

    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode)
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes the lock. Returns false if another process keeps it.
///
/// A child that a killed daemon was just spawning holds all descriptors of the daemon until it executes its program. If it were mistaken
/// for a daemon, no daemon would run, because a process that finds another daemon exits. So this waits until such a child has executed.
fn take(lock: &File) -> io::Result<bool> {
    let mut tries = LOCK_TRIES;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_bound
            && self.is_in_place()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a folder")
    }

    #[test]
    fn second_daemon_is_refused_and_stale_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        drop(UnixListener::bind(&path).expect("a stale socket"));
        let (first, _listener) = Socket::bind(&path).expect("replaces the stale one");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn lock_that_is_released_soon_is_waited_for() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        drop(Socket::bind(&path).expect("bind"));
        // Like a child that has not executed its program yet, after its daemon was killed.
        let held = File::open(lock_path(&path)).expect("the lock stays");
        flock(&held, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
        let executes = std::thread::spawn(move || {
            std::thread::sleep(LOCK_PAUSE * 5);
            drop(held);
        });
        Socket::bind(&path).expect("the lock is free in a moment");
        executes.join().expect("no panic");
    }

    #[test]
    fn socket_replaced_by_another_process_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let (ours, _listener) = Socket::bind(&path).expect("bind");
        fs::remove_file(&path).expect("the socket is removed");
        let _theirs = UnixListener::bind(&path).expect("and makes another");
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn inherited_socket_and_lock_keep_serving() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let (before, listener) = Socket::bind(&path).expect("bind");
        let (lock, is_bound) = before.pass_on().expect("a copy");
        // Like exec, which discards the memory and the descriptors that are not passed on.
        std::mem::forget(before);
        let waits = std::os::unix::net::UnixStream::connect(&path).expect("nobody has accepted it yet");
        let (after, listener) =
            Socket::inherit(&path, listener.into(), Some(lock), is_bound).expect("it is ours");
        listener.accept().expect("it waited");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        drop((after, waits));
        assert!(!path.exists());
    }

    #[test]
    fn systemd_socket_is_locked_and_never_unlinked() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let passed = UnixListener::bind(&path).expect("as systemd does");
        let (socket, listener) = Socket::inherit(&path, passed.into(), None, false).expect("it fits");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        let (_, is_bound) = socket.pass_on().expect("a copy");
        assert!(!is_bound);
        drop((socket, listener));
        assert!(path.exists());
    }

    #[test]
    fn replaced_socket_is_not_passed_on() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let (ours, _listener) = Socket::bind(&path).expect("bind");
        fs::remove_file(&path).expect("the socket is removed");
        assert!(ours.pass_on().is_none());
        let _theirs = UnixListener::bind(&path).expect("and makes another");
        assert!(ours.pass_on().is_none());
    }

    #[test]
    fn unfit_descriptors_are_not_inherited() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let other = folder.path().join("other.sock");
        let file = || OwnedFd::from(File::create(folder.path().join("file")).expect("a file"));

        let passed = UnixListener::bind(&path).expect("bound");
        drop(Socket::lock(&path).expect("the file stays"));
        let unlocked = Socket::inherit(&path, passed.into(), Some(file()), false);
        assert!(matches!(unlocked, Err(Unfit::Lock)), "{unlocked:?}");

        let (before, listener) = Socket::bind(&other).expect("bind");
        let (lock, is_bound) = before.pass_on().expect("a copy");
        std::mem::forget(before);
        let moved = Socket::inherit(&path, listener.into(), Some(lock), is_bound);
        assert!(matches!(moved, Err(Unfit::Elsewhere(_))), "{moved:?}");
        assert!(!other.exists(), "nobody would answer there any more");

        let gone = UnixListener::bind(&other).expect("bound");
        fs::remove_file(&other).expect("removed");
        let missing = Socket::inherit(&other, gone.into(), None, true);
        assert!(matches!(missing, Err(Unfit::Missing)), "{missing:?}");

        let no_socket = Socket::inherit(&path, file(), None, true);
        assert!(matches!(no_socket, Err(Unfit::Listener)), "{no_socket:?}");
        let stream = std::os::unix::net::UnixStream::pair().expect("a pair").0;
        let connected = Socket::inherit(&path, stream.into(), None, true);
        assert!(matches!(connected, Err(Unfit::Listener)), "{connected:?}");
    }

    #[test]
    fn folder_accessible_to_others_is_refused_with_the_fix() {
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let error = Socket::bind(&folder.path().join("orbd.sock")).expect_err("refused");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn existing_file_is_not_removed() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        fs::write(&path, "precious").expect("write");
        assert!(matches!(Socket::bind(&path), Err(SocketError::InTheWay(_))));
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }
}
