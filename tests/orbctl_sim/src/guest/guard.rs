//! A process that ends a command in a machine when the client of that command is gone, however it went.
//!
//! It starts before the client enters the machine, so it sees the process ids of the host. It has none of the client's
//! streams, and a process group of its own: what ends the client does not end it.

use std::io::{PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// First word of the hidden process.
pub(crate) const GUARD_WORD: &str = "sim-guard";

/// What the client writes last when its command has ended.
const RELEASED: u8 = b'.';

/// The client's end: when it closes without a release, the guard ends the command.
pub(super) struct Guard(PipeWriter);

impl Guard {
    /// Starts a guard for a command that is yet to start.
    pub(super) fn start() -> Result<Guard> {
        let (theirs, ours) = std::io::pipe()?;
        Command::new(std::env::current_exe()?)
            .arg(GUARD_WORD)
            .env_clear()
            .env("HOME", "/")
            .current_dir("/")
            .process_group(0)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the guard of a command")?;
        Ok(Guard(ours))
    }

    /// Names the command's process group, which is to be ended.
    pub(super) fn watch(&mut self, group: Pid) -> Result<()> {
        writeln!(self.0, "{}", group.as_raw_pid()).context("tell the guard")
    }

    /// Ends the guard and leaves alone what the command has left behind.
    pub(super) fn release(mut self) {
        let _ = self.0.write_all(&[RELEASED]);
    }
}

/// The hidden process: waits until the client is gone.
pub(crate) fn guard() {
    let mut said = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    if let Some((group, "")) = said.split_once('\n')
        && let Some(group) = group.parse().ok().and_then(Pid::from_raw)
    {
        let _ = kill_process_group(group, Signal::KILL);
    }
}
