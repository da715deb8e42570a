//! Stops (suspends) this process as the default action of a signal would.

use rustix::process::{Pid, Signal, getpid, kill_process};

/// Stops this process with `signal` although it has a handler for it, and returns once it is continued. Using the same signal
/// matters: a shell reports a process stopped by Ctrl-Z differently from one stopped by SIGSTOP.
///
/// Only for a process with a single thread: with more, another thread could receive the signal.
pub fn stop_by(signal: i32) {
    let stopping = [Signal::TSTP, Signal::TTIN, Signal::TTOU]
        .into_iter()
        .find(|stopping| stopping.as_raw() == signal);
    match stopping {
        Some(stopping) => with_default(signal, || send(stopping)),
        None => send(Signal::STOP),
    }
}

fn send(signal: Signal) {
    let ourselves: Pid = getpid();
    // Cannot fail for this process itself. If it did, the process would keep running while the one that it mirrors is stopped.
    let _ = kill_process(ourselves, signal);
}

/// Calls `act` while the signal has its default disposition.
#[expect(unsafe_code, reason = "signal dispositions have no safe interface")]
fn with_default(signal: i32, act: impl FnOnce()) {
    // SAFETY: both structures are plain data for which zeroes are valid: no handler (SIG_DFL), no flags, an empty mask. They
    // outlive the calls, and the disposition that is restored is the one that the system returned.
    unsafe {
        let by_default: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, &raw const by_default, &raw mut before) == 0 {
            act();
            libc::sigaction(signal, &raw const before, std::ptr::null_mut());
        } else {
            act();
        }
    }
}
