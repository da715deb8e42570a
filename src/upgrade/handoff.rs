//! What one instance of the daemon passes to the next in the same process: the listening socket and the lock, by the convention of
//! systemd's socket activation. `LISTEN_FDS` descriptors begin at 3, `LISTEN_FDNAMES` names them, and they are meant for the process
//! `LISTEN_PID` alone. So a daemon that systemd starts with a socket takes it over the same way.
//!
//! The variables may come from anywhere. [`ReceivedHandoff::receive`] takes only numbers that are open; whether they are the right socket
//! and the right lock is checked by [`crate::rpc::socket`].

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use rustix::io::{dup2, fcntl_dupfd_cloexec};

use super::Program;
use crate::sys;

/// Version of the handoff. A program that does not know it does not pass the preflight, so it is never executed.
pub(super) const HANDOFF_VERSION: u32 = 1;

/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// Most descriptors that are accepted.
const COUNT_MAX: RawFd = 16;
/// Name of a socket that orbd bound itself, and unlinks at its end. One of another name belongs to whoever passed it.
const BOUND: &str = "orbd-bound";
/// Name of the lock beside it.
const LOCK: &str = "orbd-lock";

/// What the next instance gets.
#[derive(Debug)]
pub struct Handoff {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The locked file beside it.
    pub lock: OwnedFd,
    /// Whether orbd bound the socket itself.
    pub is_bound: bool,
}

/// What this process got.
#[derive(Debug)]
pub struct ReceivedHandoff {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The locked file beside it; absent if systemd passed the socket.
    pub lock: Option<OwnedFd>,
    /// Whether an earlier instance bound the socket.
    pub is_bound: bool,
}

/// Why nothing was received, though the variables announced something.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The count is not a number, or too many.
    #[error("LISTEN_FDS is not a number from 1 to {COUNT_MAX}: {0:?}")]
    Count(String),
    /// A number is not open.
    #[error("LISTEN_FDS announces descriptor {0}, which is not open")]
    Descriptor(RawFd),
    /// There is no socket among them.
    #[error("LISTEN_FDNAMES names no socket: {0:?}")]
    NoSocket(String),
}

/// The two descriptor numbers that the convention asks for. They are taken from the start of the process to its end, so that nothing
/// else in it uses them when the handoff puts socket and lock there.
#[derive(Debug)]
pub struct HandoffSlots([OwnedFd; 2]);

impl HandoffSlots {
    /// Takes the numbers. Called when the process starts, after [`ReceivedHandoff::receive`] and before anything is opened.
    pub fn reserve() -> io::Result<Self> {
        Ok(Self([sys::reserve(FIRST)?, sys::reserve(FIRST + 1)?]))
    }
}

/// Executes the program in place of this process; without a handoff it binds its own socket. Returns only if that fails.
pub fn execute(program: &Program, handoff: Option<&Handoff>, slots: HandoffSlots) -> io::Error {
    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's own next instance is executed, which is no orbctl"
    )]
    let mut command = std::process::Command::new(&program.path);
    if let Some(name) = program.words.first() {
        command.arg0(name);
    }
    command.args(program.words.iter().skip(1));
    let HandoffSlots([mut first, mut second]) = slots;
    if let Some(handoff) = handoff {
        for (from, to) in [(&handoff.listener, &mut first), (&handoff.lock, &mut second)] {
            // The copy has no close-on-exec mark.
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
    /// Takes over what was passed to this process, and takes the variables out of the environment. Called before any thread is started
    /// and before anything is opened.
    pub fn receive() -> Result<Option<Self>, HandoffError> {
        let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(|name| {
            let value = sys::take_variable(name)?;
            Some(value.to_string_lossy().into_owned())
        });
        // Else it was meant for another process, which did not take the variables away.
        if pid.is_none_or(|pid| pid != std::process::id().to_string()) {
            return Ok(None);
        }
        let Some(count) = count else { return Ok(None) };
        // Moved away: the numbers are for the next handoff.
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
            // All are owned, also those that nobody needs: else they would stay open.
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
        // Three descriptors are open.
        let open = |number: RawFd| {
            let (descriptor, _) = rustix::pipe::pipe().expect("a pipe");
            (number < FIRST + 3).then_some(descriptor)
        };
        ReceivedHandoff::open(count, names, open).map(|received| (received.lock.is_some(), received.is_bound))
    }

    #[test]
    fn an_earlier_instance_passes_socket_and_lock_and_systemd_a_socket() {
        assert!(matches!(open("2", "orbd-bound:orbd-lock"), Ok((true, true))));
        assert!(matches!(open("2", "socket:orbd-lock"), Ok((true, false))));
        for names in ["orbd.socket", "", "unknown"] {
            assert!(matches!(open("1", names), Ok((false, false))), "{names:?}");
        }
        assert!(matches!(open("3", "one:two:three"), Ok((false, false))));
    }

    #[test]
    fn a_handoff_that_is_incomplete_is_refused() {
        for count in ["", "0", "-1", "17", "two"] {
            let refused = open(count, "orbd-bound:orbd-lock");
            assert!(matches!(refused, Err(HandoffError::Count(_))), "{count:?}");
        }
        assert!(matches!(open("4", ""), Err(HandoffError::Descriptor(6))));
        assert!(matches!(open("1", LOCK), Err(HandoffError::NoSocket(_))));
    }
}
