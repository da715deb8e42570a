//! Us, while the tool runs: whoever watches us sees what he would see of the tool.
//!
//! The tool is in our process group, on our terminal, and has our caller's dispositions of signals: it was started before ours changed.
//!
//! - **It ends**: so do we, with its code or by its signal.
//! - **It stops** (Ctrl-Z, `kill -STOP`, reading the terminal from the background): so do we, by the same signal, so that a shell takes
//!   its terminal back and `fg` continues us both.
//! - **We are sent a signal**: the tool gets it too. What the keys of a terminal send (INT, QUIT, TSTP, and HUP when it goes away) is
//!   sent to the whole group, so the tool has it already; while our group is in the foreground of its terminal these are not passed
//!   on, and Ctrl-C counts once. Without a terminal or in the background no key sends them, so they were meant for us alone and are.
//!   TERM, USR1, USR2 and CONT are passed on always: the first three have no key, and to be continued twice is no harm.
//!
//! What nobody can pass on is SIGKILL and SIGSTOP to us alone.

use std::io;
use std::process::ExitCode;

use orbd::sys::{is_in_foreground, stop_by};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, kill_process, setrlimit, waitpid,
};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::REFUSED;

/// How the tool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl Ended {
    /// Ends us in the same way: by a signal at once, with a code by returning it.
    pub(super) fn repeat(self) -> ExitCode {
        match self {
            Self::Exited(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(REFUSED)),
            Self::Signalled(signal) => {
                // The tool has left its core already, if it was to; ours would be of no use.
                let none = Rlimit {
                    current: Some(0),
                    maximum: Some(0),
                };
                let _ = setrlimit(Resource::Core, none);
                let _ = emulate_default_handler(signal);
                // One that nobody has a name for: as shells tell it.
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(REFUSED))
            }
        }
    }
}

/// Listens for signals.
pub(super) struct Guard {
    signals: Signals,
}

impl Guard {
    /// Begins to listen. Until the tool runs nothing is lost: what comes is passed on then.
    pub(super) fn begin() -> io::Result<Self> {
        Ok(Self {
            signals: Signals::new([
                SIGCHLD, SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT,
            ])?,
        })
    }

    /// Waits until the child has ended.
    pub(super) fn watch(mut self, child: Pid) -> Ended {
        loop {
            while let Some(status) = match look(child) {
                Ok(status) => status,
                // Somebody else took our child's end; how it was nobody will say.
                Err(_) => return Ended::Exited(i32::from(REFUSED)),
            } {
                if let Some(code) = status.exit_status() {
                    return Ended::Exited(code);
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ended::Signalled(signal);
                }
                if let Some(signal) = status.stopping_signal() {
                    stop_by(signal);
                    // Whoever continued us alone meant the tool.
                    pass_on(child, SIGCONT);
                }
            }
            // A child that ended since we looked has left its signal here.
            for signal in self.signals.wait() {
                if signal != SIGCHLD && is_meant_for_us_alone(signal) {
                    pass_on(child, signal);
                }
            }
        }
    }
}

fn look(child: Pid) -> rustix::io::Result<Option<WaitStatus>> {
    loop {
        match waitpid(Some(child), WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?.map(|(_, status)| status)),
        }
    }
}

fn is_meant_for_us_alone(signal: i32) -> bool {
    let has_a_key = matches!(signal, SIGINT | SIGQUIT | SIGTSTP | SIGHUP);
    !(has_a_key && is_in_foreground())
}

fn pass_on(child: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // It may have ended by now.
        let _ = kill_process(child, signal);
    }
}
