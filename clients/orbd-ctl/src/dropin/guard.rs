//! Waits for the tool and mirrors it: to the caller, this process behaves as the tool itself would.
//!
//! The tool is in our process group and on our terminal. It has our caller's signal dispositions, because it was started before ours
//! changed.
//!
//! - **The tool ends**: we end with the same exit code or by the same signal.
//! - **The tool stops** (Ctrl-Z, `kill -STOP`, reading the terminal in the background): we stop by the same signal, so that the shell
//!   takes back its terminal, and `fg` continues both processes.
//! - **We receive a signal**: we forward it to the tool. A terminal sends INT, QUIT, TSTP, and HUP on hang-up, to the whole process group,
//!   so the tool has already received them; they are not forwarded while our group is in the foreground, so that Ctrl-C counts once.
//!   Without a terminal or in the background no terminal sends them, so they were sent to us alone and are forwarded. TERM, USR1, USR2
//!   and CONT are always forwarded: no key sends the first three, and a second CONT is harmless.
//!
//! SIGKILL and SIGSTOP to this process cannot be forwarded.

use std::io;
use std::process::ExitCode;

use orbd_host::sys::{is_in_foreground, stop_by};
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
    /// It exited with this code.
    Exited(i32),
    /// This signal terminated it.
    Signalled(i32),
}

impl Ended {
    /// Ends this process in the same way: raises the signal, or returns the exit code.
    pub(super) fn repeat(self) -> ExitCode {
        match self {
            Self::Exited(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(REFUSED)),
            Self::Signalled(signal) => {
                // The tool has dumped its own core if it should; ours would be useless.
                let none = Rlimit {
                    current: Some(0),
                    maximum: Some(0),
                };
                let _ = setrlimit(Resource::Core, none);
                let _ = emulate_default_handler(signal);
                // Reached only if the signal could not be raised. The code is that of a shell.
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(REFUSED))
            }
        }
    }
}

/// Signal handlers that are active while the tool runs.
pub(super) struct Guard {
    signals: Signals,
}

impl Guard {
    /// Installs the signal handlers. A signal that arrives before the tool runs is forwarded once it does.
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
                // The exit status is lost: something else has reaped the child.
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
                    // A CONT that was sent to us alone is meant for the tool. The handler has seen it, too: passed on a second time,
                    // it would undo the tool's next stop.
                    pass_on(child, SIGCONT);
                    let others = self.signals.pending().filter(|signal| *signal != SIGCONT);
                    pass_on_each(child, others);
                }
            }
            // If the child has changed state since the last `waitpid`, a SIGCHLD is pending here.
            pass_on_each(child, self.signals.wait());
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

fn pass_on_each(child: Pid, signals: impl Iterator<Item = i32>) {
    for signal in signals {
        if signal != SIGCHLD && is_meant_for_us_alone(signal) {
            pass_on(child, signal);
        }
    }
}

fn pass_on(child: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // Fails if the tool has ended meanwhile.
        let _ = kill_process(child, signal);
    }
}
