//! The socket: its folder, its lock, its peers.
//!
//! One daemon per socket, held by a lock on a file beside it. The lock, not the socket file, says who is alive: whoever holds it
//! may replace a socket file that is there, and nobody else does. At the end only the socket file that we made is unlinked.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often and how long a lock is waited for that somebody has.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon serves it. Not a fault: whoever wanted a daemon has one.
    #[error("another orbd serves {}", .0.display())]
    Taken(PathBuf),
    /// The folder lets others in, or is not ours.
    #[error("{} must be a folder of yours with mode 0700; mend it with: chmod 700 {}", .0.display(), .0.display())]
    Folder(PathBuf),
    /// Something that is not a socket stands in the way.
    #[error("{} is in the way and is not a socket; move it elsewhere", .0.display())]
    InTheWay(PathBuf),
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why what an earlier life left cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It does not listen.
    #[error("it does not listen")]
    Listener,
    /// It listens at another path.
    #[error("it listens on {}", .0.display())]
    Elsewhere(PathBuf),
    /// The file at the path is not its own.
    #[error("the socket file is not its own any more")]
    Replaced,
    /// The lock is not that of the socket, or not held.
    #[error("the lock is not the one beside the socket")]
    Lock,
}

/// Connections that wait to be accepted: as many as the system allows.
const BACKLOG: i32 = -1;

/// The bound socket. Dropping it unlinks the socket file, if it is still ours.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    inode: (u64, u64),
    /// Held for as long as we live; the file stays, because unlinking it would let two daemons lock two files.
    lock: File,
}

impl Socket {
    /// Takes the lock, makes folder and socket with their modes, and listens.
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
            .map_err(system("make the folder", folder))?;
        let found = fs::metadata(folder).map_err(system("look at", folder))?;
        if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(SocketError::Folder(folder.to_owned()));
        }

        let lock_path = lock_path(path);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(system("open", &lock_path))?;
        if !take(&lock).map_err(system("lock", &lock_path))? {
            return Err(SocketError::Taken(path.to_owned()));
        }

        match fs::symlink_metadata(path) {
            Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                fs::remove_file(path).map_err(system("remove the stale socket", path))?;
            }
            Ok(_) => return Err(SocketError::InTheWay(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("look at", path)(error)),
        }
        // The folder keeps others out between bind and chmod.
        let listener = UnixListener::bind(path).map_err(system("listen on", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(system("set the mode of", path))?;
        listener.set_nonblocking(true).map_err(system("prepare", path))?;
        let found = fs::symlink_metadata(path).map_err(system("look at", path))?;
        Ok((
            Self {
                path: path.to_owned(),
                inode: (found.dev(), found.ino()),
                lock,
            },
            listener,
        ))
    }

    /// Takes over what an earlier life of this process bound and locked, if it is what this path needs. Otherwise it is closed, and
    /// the socket that it had elsewhere is removed.
    pub fn inherit(
        path: &Path,
        listener: OwnedFd,
        lock: OwnedFd,
        inode: (u64, u64),
    ) -> Result<(Self, UnixListener), Unfit> {
        let listener = UnixListener::from(listener);
        let bound = listener.local_addr().map_err(|_| Unfit::Listener)?;
        let bound = bound.as_pathname().ok_or(Unfit::Listener)?.to_owned();
        // Dropped, it removes that file if it is still its own.
        let socket = Self {
            path: bound,
            inode,
            lock: File::from(lock),
        };
        if socket.path != path {
            return Err(Unfit::Elsewhere(socket.path.clone()));
        }
        // On one that listens this changes nothing; on one that does not, or is connected, it fails.
        rustix::net::listen(&listener, BACKLOG).map_err(|_| Unfit::Listener)?;
        let is_ours = |file: &fs::Metadata, (device, inode)| file.dev() == device && file.ino() == inode;
        if !fs::symlink_metadata(path).is_ok_and(|found| is_ours(&found, inode)) {
            return Err(Unfit::Replaced);
        }
        let held = socket.lock.metadata().map_err(|_| Unfit::Lock)?;
        let named = fs::metadata(lock_path(path)).map_err(|_| Unfit::Lock)?;
        let is_locked = flock(&socket.lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !is_ours(&named, (held.dev(), held.ino())) || !is_locked {
            return Err(Unfit::Lock);
        }
        listener.set_nonblocking(true).map_err(|_| Unfit::Listener)?;
        Ok((socket, listener))
    }

    /// Returns what the next life of this process needs to go on serving: the lock, and device and inode of the socket file.
    pub fn bequeath(&self) -> io::Result<(OwnedFd, (u64, u64))> {
        // A copy of the descriptor is the same lock.
        Ok((self.lock.try_clone()?.into(), self.inode))
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes the lock; false when somebody keeps it.
///
/// A child that a killed daemon was just spawning holds all that the daemon held, until it executes its program. To take that
/// for a daemon would leave none: whoever finds another one exits content. So who keeps it is waited out.
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
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket file stays behind");
        }
    }
}

/// Returns the lock's place beside the socket.
pub fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
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
    fn a_second_daemon_is_refused_and_a_stale_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        drop(UnixListener::bind(&path).expect("a stale socket"));
        let (first, _listener) = Socket::bind(&path).expect("replaces the stale one");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_that_is_given_back_soon_is_waited_for() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        drop(Socket::bind(&path).expect("bind"));
        // As a child does that has not executed its program yet, after its daemon was killed.
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
    fn a_socket_that_somebody_else_made_meanwhile_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let (ours, _listener) = Socket::bind(&path).expect("bind");
        fs::remove_file(&path).expect("somebody removes it");
        let _theirs = UnixListener::bind(&path).expect("and makes another");
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn what_an_earlier_life_left_is_taken_over_and_serves_on() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let (before, listener) = Socket::bind(&path).expect("bind");
        let (lock, inode) = before.bequeath().expect("a copy");
        // As the exec does: its memory is gone, and what is not left with it.
        std::mem::forget(before);
        let waits = std::os::unix::net::UnixStream::connect(&path).expect("nobody has accepted it yet");
        let (after, listener) = Socket::inherit(&path, listener.into(), lock, inode).expect("it is ours");
        listener.accept().expect("it waited");
        assert!(matches!(Socket::bind(&path), Err(SocketError::Taken(_))));
        drop((after, waits));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_is_not_taken_over() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        let other = folder.path().join("other.sock");
        let (before, listener) = Socket::bind(&other).expect("bind");
        let left = || {
            let (lock, inode) = before.bequeath().expect("a copy");
            (OwnedFd::from(listener.try_clone().expect("a copy")), lock, inode)
        };
        let (listener, lock, (device, inode)) = left();
        let replaced = Socket::inherit(&other, listener, lock, (device, inode + 1));
        assert!(matches!(replaced, Err(Unfit::Replaced)), "{replaced:?}");
        assert!(other.exists(), "it is somebody else's");

        let (listener, _, inode) = left();
        let elsewhere = File::create(folder.path().join("file")).expect("a file");
        let unlocked = Socket::inherit(&other, listener, elsewhere.into(), inode);
        assert!(matches!(unlocked, Err(Unfit::Lock)), "{unlocked:?}");

        let (before, listener) = {
            drop(before);
            Socket::bind(&other).expect("bind")
        };
        let (lock, inode) = before.bequeath().expect("a copy");
        std::mem::forget(before);
        let moved = Socket::inherit(&path, listener.into(), lock, inode);
        assert!(matches!(moved, Err(Unfit::Elsewhere(_))), "{moved:?}");
        assert!(!other.exists(), "nobody would answer there any more");

        let file = || OwnedFd::from(File::create(folder.path().join("file")).expect("a file"));
        let no_socket = Socket::inherit(&path, file(), file(), (1, 1));
        assert!(matches!(no_socket, Err(Unfit::Listener)), "{no_socket:?}");
        let stream = std::os::unix::net::UnixStream::pair().expect("a pair").0;
        let connected = Socket::inherit(&path, stream.into(), file(), (1, 1));
        assert!(matches!(connected, Err(Unfit::Listener)), "{connected:?}");
    }

    #[test]
    fn a_folder_that_lets_others_in_is_refused_with_the_mend() {
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let error = Socket::bind(&folder.path().join("orbd.sock")).expect_err("refused");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let folder = folder();
        let path = folder.path().join("orbd.sock");
        fs::write(&path, "precious").expect("write");
        assert!(matches!(Socket::bind(&path), Err(SocketError::InTheWay(_))));
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }
}
