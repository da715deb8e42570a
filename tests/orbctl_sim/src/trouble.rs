//! Plays the troubles of a script around a command.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::reply::Reply;
use crate::script::{Ending, Kind, Trouble, When};

/// Plays troubles that happen before the command does anything. A reply means that the command never runs.
pub(crate) fn before(troubles: &[Trouble]) -> Option<Reply> {
    let mut due = troubles.iter().filter(|trouble| trouble.when == When::Before);
    due.find_map(ending)
}

/// Plays troubles that happen when the command's work is done, and spoils its reply.
pub(crate) fn after(troubles: &[Trouble], reply: Reply) -> Reply {
    let mut reply = reply;
    for trouble in troubles {
        if trouble.when == When::After
            && let Some(other) = ending(trouble)
        {
            reply = other;
        }
        match trouble.kind {
            Kind::Banner => {
                let mut stderr = BANNER.as_bytes().to_vec();
                stderr.extend(&reply.stderr);
                reply.stderr = stderr;
            }
            Kind::ListHalf => reply.stdout.truncate(reply.stdout.len() / 2),
            Kind::Starting => {
                reply.stdout = b"Starting\n".to_vec();
                reply.exit = trouble.exit.unwrap_or(1);
            }
            Kind::Grandchild => leave_grandchild(trouble.ms.unwrap_or(1000)),
            _ => {}
        }
    }
    reply
}

/// Plays a trouble that delays or ends the invocation.
fn ending(trouble: &Trouble) -> Option<Reply> {
    match trouble.kind {
        Kind::Slow => {
            thread::sleep(Duration::from_millis(trouble.ms.unwrap_or(1000)));
            None
        }
        Kind::Gate => wait_at_gate(trouble.text.as_deref().unwrap_or_default()),
        Kind::Hang => hang(),
        Kind::HangHard => hang_hard(),
        Kind::Killed => kill_self(),
        Kind::Panic => {
            let text = trouble
                .text
                .as_deref()
                .unwrap_or("timed out waiting for services to start");
            Some(Reply {
                exit: trouble.exit.unwrap_or(2),
                ..go_panic(text)
            })
        }
        Kind::Garbage => {
            let text = trouble
                .text
                .as_deref()
                .unwrap_or("\u{1}\u{2}{[%% <not what was asked> \n");
            Some(Reply {
                exit: trouble.exit.unwrap_or(0),
                ..Reply::text(text)
            })
        }
        Kind::Fail => {
            let text = trouble.text.as_deref().unwrap_or("[-32098] scripted failure");
            Some(Reply::failure(trouble.exit.unwrap_or(1), format!("{text}\n")))
        }
        _ => None,
    }
}

/// Waits until a line has been written into this named pipe, or its writer has closed it.
pub(crate) fn wait_at_gate(pipe: &str) -> Option<Reply> {
    let read = File::open(pipe).and_then(|pipe| BufReader::new(pipe).read_line(&mut String::new()));
    let text = |error| format!("script: cannot read the gate '{pipe}': {error}\n");
    read.err().map(|error| Reply::failure(1, text(error)))
}

/// Ends or blocks this client after the service has taken over its work.
pub(crate) fn die(how: Ending) -> ! {
    match how {
        Ending::Hang => hang(),
        Ending::Killed => kill_self(),
    }
}

/// Never returns; any signal ends it.
fn hang() -> ! {
    loop {
        thread::park();
    }
}

/// Never returns, and only SIGKILL ends it.
fn hang_hard() -> ! {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        // A handler stays installed when its listener is dropped, so the signal has no effect.
        let _guard = runtime.enter();
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ] {
            drop(signal(kind));
        }
        hang()
    }
    hang()
}

fn kill_self() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    hang()
}

/// Leaves a process behind that keeps our stdout and stderr open.
fn leave_grandchild(ms: u64) {
    let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
    let _ = Command::new("sleep").arg(seconds).stdin(Stdio::null()).spawn();
}

/// Returns a reply like that of a crashing Go program.
pub(crate) fn go_panic(text: &str) -> Reply {
    Reply::failure(
        2,
        format!("panic: {text}\n\ngoroutine 1 [running]:\nmain.main()\n\t/orbctl-sim/main.go:1 +0x2a\n"),
    )
}

/// Returns what `delete ID` does on 2.2.3.
pub(crate) fn nil_pointer() -> Reply {
    Reply::failure(
        2,
        "panic: runtime error: invalid memory address or nil pointer dereference\n\
         [signal SIGSEGV: segmentation violation code=0x2 addr=0x0 pc=0x0]\n\n\
         goroutine 1 [running]:\nmain.delete()\n\t/orbctl-sim/delete.go:1 +0x1c\n",
    )
}

/// The box that announces an update, in our own words.
pub(crate) const BANNER: &str = "
╭──────────────────────────────────────────╮
│  An update is waiting: 2.2.3 -> 2.2.4    │
│  (orbctl-sim: scripted, nothing to get)  │
╰──────────────────────────────────────────╯

";
