//! To be stopped as a signal stops whoever does not listen for it.

use rustix::process::{Pid, Signal, getpid, kill_process};

/// Stops this process by this signal, although it has a handler, and returns once it is continued. A shell that waits for us says
/// of a process that was stopped by Ctrl-Z something else than of one that was stopped by SIGSTOP.
///
/// For a process of one thread: another could be the one that is told meanwhile.
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
    // It cannot fail of ourselves; if it did, we would go on running beside what is stopped, and mirror its end.
    let _ = kill_process(ourselves, signal);
}

/// Does something while a signal does what it does by default.
#[expect(unsafe_code, reason = "dispositions of signals have no safe interface")]
fn with_default(signal: i32, act: impl FnOnce()) {
    // SAFETY: both structures are plain data for which zeroes are valid: no handler (SIG_DFL), no flags, an empty mask. They live over
    // the calls, and what is put back is what the system gave.
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
