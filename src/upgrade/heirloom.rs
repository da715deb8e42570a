//! What the old process leaves the new one: the listener, the lock and connections that are at rest, by their numbers, in one
//! environment variable.
//!
//! A descriptor's number is worth nothing by itself, and the variable may have come from anywhere. So whoever takes one over
//! ([`Heirloom::receive`]) looks at each: a number that is not open, or is one of the standard streams, spoils the whole; what the
//! descriptors are is for [`crate::rpc::socket`] to check, who knows what they should be.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use super::Program;
use crate::sys;

/// The environment variable that carries it.
pub const VARIABLE: &str = "ORBD_HEIRLOOM";

/// The form of the variable. A program that does not know it binds its socket anew, and would find the lock held by itself: it is
/// never executed, because it cannot prove itself.
pub(super) const FORM: u32 = 1;

/// At most so many connections are left: their numbers and names must fit into one environment variable (128 KiB on Linux). The
/// rest are closed.
const CONNECTIONS_MAX: usize = 1000;

/// What is left to the next life of the daemon.
#[derive(Debug)]
pub struct Heirloom<Fd = OwnedFd> {
    /// The listening socket.
    pub listener: Fd,
    /// The locked file beside it.
    pub lock: Fd,
    /// Device and inode of the socket file.
    pub inode: (u64, u64),
    /// The protocol that the clients of these connections were told.
    pub protocol: u32,
    /// Connections at rest, each with the name that its client gave itself.
    pub connections: Vec<(Fd, String)>,
}

/// What was received.
pub type Inherited = Heirloom<OwnedFd>;

/// Why there is no heirloom, though there seemed to be one.
#[derive(Debug, thiserror::Error)]
pub enum HeirloomError {
    /// It does not read as one.
    #[error("{VARIABLE} is not what an earlier life of orbd writes: {0:?}")]
    Form(String),
    /// A number names no open descriptor, or the same twice.
    #[error("{VARIABLE} names descriptor {0}, which cannot be taken over")]
    Descriptor(RawFd),
}

impl Heirloom<OwnedFd> {
    /// Executes the program in place of this process, which leaves it this. Returns only when that fails.
    pub fn execute(self, program: &Program) -> io::Error {
        let mut left = self;
        left.connections.truncate(CONNECTIONS_MAX);
        for descriptor in left.descriptors() {
            let kept = fcntl_getfd(descriptor)
                .and_then(|flags| fcntl_setfd(descriptor, flags.difference(FdFlags::CLOEXEC)));
            if let Err(error) = kept {
                return error.into();
            }
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the daemon's own next life is executed, which is no orbctl"
        )]
        let mut command = std::process::Command::new(&program.path);
        if let Some(name) = program.words.first() {
            command.arg0(name);
        }
        command
            .args(program.words.iter().skip(1))
            .env(VARIABLE, left.to_string())
            .exec()
    }

    /// Takes over what an earlier life left, and takes the variable out of the environment. Called before any thread is started.
    pub fn receive() -> Result<Option<Self>, HeirloomError> {
        sys::take_variable(VARIABLE).map_or(Ok(None), |text| Self::open(&text).map(Some))
    }

    fn open(text: &OsStr) -> Result<Self, HeirloomError> {
        let numbers = text
            .to_str()
            .and_then(Heirloom::<RawFd>::parse)
            .ok_or_else(|| HeirloomError::Form(text.to_string_lossy().into_owned()))?;
        let mut taken = BTreeSet::new();
        let mut own = |number: RawFd| {
            // Twice the same would be closed twice.
            let is_new = number > 2 && taken.insert(number);
            let descriptor = is_new.then(|| sys::inherited(number)).flatten();
            descriptor.ok_or(HeirloomError::Descriptor(number))
        };
        Ok(Heirloom {
            listener: own(numbers.listener)?,
            lock: own(numbers.lock)?,
            inode: numbers.inode,
            protocol: numbers.protocol,
            connections: numbers
                .connections
                .into_iter()
                .map(|(number, name)| own(number).map(|descriptor| (descriptor, name)))
                .collect::<Result<_, _>>()?,
        })
    }

    fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        let connections = self.connections.iter().map(|(descriptor, _)| descriptor);
        [&self.listener, &self.lock].into_iter().chain(connections)
    }
}

impl std::fmt::Display for Heirloom<OwnedFd> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = format!(
            "{FORM} listener={} lock={} inode={}:{} protocol={}",
            self.listener.as_fd().as_raw_fd(),
            self.lock.as_fd().as_raw_fd(),
            self.inode.0,
            self.inode.1,
            self.protocol,
        );
        for (descriptor, name) in &self.connections {
            // A name has neither blanks nor colons: `daemon.hello` sees to that.
            let _ = write!(text, " {}:{name}", descriptor.as_raw_fd());
        }
        f.write_str(&text)
    }
}

impl Heirloom<RawFd> {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut field = |name: &str| words.next()?.strip_prefix(name);
        if field("")? != FORM.to_string() {
            return None;
        }
        let listener = field("listener=")?.parse().ok()?;
        let lock = field("lock=")?.parse().ok()?;
        let (device, inode) = field("inode=")?.split_once(':')?;
        let inode = (device.parse().ok()?, inode.parse().ok()?);
        let protocol = field("protocol=")?.parse().ok()?;
        let connections = words
            .map(|word| {
                let (number, name) = word.split_once(':')?;
                Some((number.parse().ok()?, name.to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self {
            listener,
            lock,
            inode,
            protocol,
            connections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_back() {
        let (one, other) = rustix::pipe::pipe().expect("a pipe");
        let more = one.try_clone().expect("a copy");
        let left = Heirloom {
            listener: one,
            lock: other,
            inode: (5, 77),
            protocol: 1,
            connections: vec![(more, "pyinfra".to_owned())],
        };
        let read = Heirloom::<RawFd>::parse(&left.to_string()).expect("it is one");
        assert_eq!(read.listener, left.listener.as_raw_fd());
        assert_eq!(read.lock, left.lock.as_raw_fd());
        assert_eq!((read.inode, read.protocol), ((5, 77), 1));
        assert_eq!(
            read.connections,
            [(left.connections[0].0.as_raw_fd(), "pyinfra".to_owned())]
        );
    }

    #[test]
    fn what_no_life_of_ours_wrote_is_refused() {
        for text in [
            "",
            "1",
            "2 listener=5 lock=6 inode=1:2 protocol=1",
            "1 listener=x lock=6 inode=1:2 protocol=1",
            "1 listener=5 lock=6 inode=1 protocol=1",
            "1 listener=5 lock=6 inode=1:2 protocol=1 7",
            "1 lock=6 listener=5 inode=1:2 protocol=1",
        ] {
            assert!(Heirloom::<RawFd>::parse(text).is_none(), "{text:?}");
        }
        // Never open here, and never ours.
        for text in [
            "1 listener=999999 lock=999998 inode=1:2 protocol=1",
            "1 listener=0 lock=1 inode=1:2 protocol=1",
        ] {
            let refused = Heirloom::open(OsStr::new(text));
            assert!(matches!(refused, Err(HeirloomError::Descriptor(_))), "{text:?}");
        }
    }
}
