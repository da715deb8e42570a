//! Handoff: one instance of the daemon passes the listening socket and the lock to the next one in the same process. It uses the
//! convention of systemd socket activation: `LISTEN_FDS` is the number of descriptors, which begin at 3; `LISTEN_FDNAMES` contains their
//! names; `LISTEN_PID` is the process that they are for. So a daemon that systemd starts with a socket takes it over the same way.
//!
//! The variables are not trusted. [`ReceivedHandoff::receive`] accepts only open descriptors, and [`crate::server::socket`] checks that they
//! are the expected socket and lock.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use rustix::io::{dup2, fcntl_dupfd_cloexec};

use super::Program;
use crate::sys;

/// Version of the handoff. A program with another version fails its preflight, so it is never executed.
pub(super) const HANDOFF_VERSION: u32 = 1;

/// Number of the first passed descriptor, by convention.
const FIRST: RawFd = 3;
/// Maximum number of descriptors that are accepted.
const COUNT_MAX: RawFd = 16;
/// Name of a socket that orbd bound itself and unlinks when it stops. A socket of any other name belongs to the process that passed it.
const BOUND: &str = "orbd-bound";
/// Name of the lock file's descriptor.
const LOCK: &str = "orbd-lock";

/// Descriptors that this instance passes to the next one.
#[derive(Debug)]
pub struct Handoff {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The lock file, which stays locked.
    pub lock: OwnedFd,
    /// Whether orbd bound the socket itself, so that it must unlink it when it stops.
    pub is_bound: bool,
}

/// Descriptors that were passed to this process.
#[derive(Debug)]
pub struct ReceivedHandoff {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The locked lock file; `None` if systemd passed the socket.
    pub lock: Option<OwnedFd>,
    /// Whether an earlier instance of orbd bound the socket, so that this one must unlink it when it stops.
    pub is_bound: bool,
}

/// Why the descriptors that the variables announce could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// `LISTEN_FDS` is not a number or is out of range.
    #[error("LISTEN_FDS must be a number from 1 to {COUNT_MAX}, not {0:?}")]
    Count(String),
    /// An announced descriptor is not open.
    #[error("LISTEN_FDS announces descriptor {0}, which is not open")]
    Descriptor(RawFd),
    /// None of the descriptors is a socket, by their names.
    #[error("LISTEN_FDNAMES contains no socket: {0:?}")]
    NoSocket(String),
}

/// The two descriptor numbers that the convention requires, 3 and 4. They stay reserved for the lifetime of the process, so that no other
/// descriptor has these numbers when the handoff moves the socket and the lock there.
#[derive(Debug)]
pub struct HandoffSlots([OwnedFd; 2]);

impl HandoffSlots {
    /// Reserves the numbers. Must be called at startup, after [`ReceivedHandoff::receive`] and before the process opens anything.
    pub fn reserve() -> io::Result<Self> {
        Ok(Self([sys::reserve(FIRST)?, sys::reserve(FIRST + 1)?]))
    }
}

/// Executes the program in place of this process. Without a handoff, the program binds its own socket. Returns only on failure.
pub fn execute(program: &Program, handoff: Option<&Handoff>, slots: HandoffSlots) -> io::Error {
    #[expect(
        clippy::disallowed_methods,
        reason = "this executes the new orbd binary, not orbctl"
    )]
    let mut command = std::process::Command::new(&program.path);
    if let Some(name) = program.words.first() {
        command.arg0(name);
    }
    command.args(program.words.iter().skip(1));
    let HandoffSlots([mut first, mut second]) = slots;
    if let Some(handoff) = handoff {
        for (from, to) in [(&handoff.listener, &mut first), (&handoff.lock, &mut second)] {
            // `dup2` clears close-on-exec on the copy, so the next program inherits it.
            if let Err(error) = dup2(from.as_fd(), to) {
                return error.into();
            }
        }
        let socket = if handoff.is_bound { BOUND } else { "socket" };
        command
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", format!("{socket}:{LOCK}"));
    }
    command.exec()
}

impl ReceivedHandoff {
    /// Takes the descriptors that were passed to this process, and removes the variables from the environment. `None` if no descriptors
    /// were passed to this process. Must be called before the process starts a thread or opens anything.
    pub fn receive() -> Result<Option<Self>, HandoffError> {
        let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| {
            let value = sys::take_variable(name)?;
            Some(value.to_string_lossy().into_owned())
        });
        // The descriptors were meant for a parent process that did not remove the variables.
        if pid.is_none_or(|pid| pid != std::process::id().to_string()) {
            return Ok(None);
        }
        let Some(count) = count else { return Ok(None) };
        // Duplicate the descriptors to higher numbers, because the numbers from `FIRST` on are reserved for the next handoff.
        let inherited = |number| fcntl_dupfd_cloexec(sys::inherited(number)?, FIRST + COUNT_MAX).ok();
        Self::open(&count, &names.unwrap_or_default(), inherited).map(Some)
    }

    fn open(
        count: &str,
        names: &str,
        mut inherited: impl FnMut(RawFd) -> Option<OwnedFd>,
    ) -> Result<Self, HandoffError> {
        let number = count
            .parse()
            .ok()
            .filter(|number| (1..=COUNT_MAX).contains(number));
        let number: RawFd = number.ok_or_else(|| HandoffError::Count(count.to_owned()))?;
        let mut listener = None;
        let mut lock = None;
        let mut each = names.split(':');
        for number in FIRST..FIRST + number {
            // Takes ownership also of unneeded descriptors, so that they are closed.
            let descriptor = inherited(number).ok_or(HandoffError::Descriptor(number))?;
            match each.next().unwrap_or_default() {
                LOCK => lock = Some(descriptor),
                name if listener.is_none() => listener = Some((descriptor, name == BOUND)),
                _ => {}
            }
        }
        let (listener, is_bound) = listener.ok_or_else(|| HandoffError::NoSocket(names.to_owned()))?;
        Ok(Self {
            listener,
            lock,
            is_bound,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(count: &str, names: &str) -> Result<(bool, bool), HandoffError> {
        // Descriptors 3, 4 and 5 are open.
        let open = |number: RawFd| {
            let (descriptor, _) = rustix::pipe::pipe().expect("a pipe");
            (number < FIRST + 3).then_some(descriptor)
        };
        ReceivedHandoff::open(count, names, open).map(|received| (received.lock.is_some(), received.is_bound))
    }

    #[test]
    fn handoff_of_an_earlier_instance_and_socket_of_systemd_are_received() {
        assert!(matches!(open("2", "orbd-bound:orbd-lock"), Ok((true, true))));
        assert!(matches!(open("2", "socket:orbd-lock"), Ok((true, false))));
        for names in ["orbd.socket", "", "unknown"] {
            assert!(matches!(open("1", names), Ok((false, false))), "{names:?}");
        }
        assert!(matches!(open("3", "one:two:three"), Ok((false, false))));
    }

    #[test]
    fn incomplete_handoff_is_refused() {
        for count in ["", "0", "-1", "17", "two"] {
            let refused = open(count, "orbd-bound:orbd-lock");
            assert!(matches!(refused, Err(HandoffError::Count(_))), "{count:?}");
        }
        assert!(matches!(open("4", ""), Err(HandoffError::Descriptor(6))));
        assert!(matches!(open("1", LOCK), Err(HandoffError::NoSocket(_))));
    }
}
