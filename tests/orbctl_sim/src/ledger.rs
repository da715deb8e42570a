//! The ledger: a JSON line for everything that began and ended, so that a test can prove order, overlap and the number
//! of spawns.
//!
//! Each line is one `write` to a descriptor opened with `O_APPEND`, so lines of parallel invocations never mix, and
//! their order in the file is the order in which they were written. A killed invocation leaves a `start` without an
//! `end`.
//!
//! The descriptor is opened before anything else: a `run` moves into the machine's mount namespace, where the ledger's
//! path refers to another file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::refusal::Outcome;
use crate::reply::Reply;

/// The ledger, for the lines of one invocation.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    id: String,
}

/// Format of every line; keys that do not apply are left out.
#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    /// `<pid>-<monotonic ns>` of the invocation: equal in all its lines.
    id: &'a str,
    pid: u32,
    realtime_ns: i128,
    monotonic_ns: i128,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<bool>,
}

impl Ledger {
    /// Opens the ledger and writes the `start` line.
    pub(crate) fn begin(
        path: &Path,
        words: &[OsString],
        command: &str,
        machine: Option<&str>,
    ) -> Outcome<Ledger> {
        let id = format!("{}-{}", std::process::id(), nanoseconds(ClockId::Monotonic));
        let ledger = Ledger::join(path, id)?;
        let args = words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        ledger.write(&Line {
            parent: Some(std::os::unix::process::parent_id()),
            command: Some(command),
            machine,
            args: Some(args),
            ..ledger.line("start")
        });
        Ok(ledger)
    }

    /// Opens the ledger for another process of an invocation that has already begun.
    pub(crate) fn join(path: &Path, id: String) -> Outcome<Ledger> {
        let open = || OpenOptions::new().create(true).append(true).open(path);
        let file = open().or_else(|error| match path.parent() {
            Some(folder) => fs::create_dir_all(folder).and_then(|()| open()),
            None => Err(error),
        })?;
        Ok(Ledger { file, id })
    }

    /// Returns the id of this invocation, for its worker.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Writes the `end` line and returns the reply.
    pub(crate) fn end(&self, reply: Reply) -> Reply {
        self.write(&Line {
            exit: Some(reply.exit),
            ..self.line("end")
        });
        reply
    }

    /// Records that the service began to change `machine`; no other change works on it now.
    pub(crate) fn work_start(&self, command: &str, machine: &str) {
        self.write(&Line {
            command: Some(command),
            machine: Some(machine),
            ..self.line("work_start")
        });
    }

    /// Records that the service finished with `machine`, and whether it did what was requested.
    pub(crate) fn work_end(&self, command: &str, machine: &str, done: bool) {
        self.write(&Line {
            command: Some(command),
            machine: Some(machine),
            done: Some(done),
            ..self.line("work_end")
        });
    }

    fn line<'a>(&'a self, event: &'a str) -> Line<'a> {
        Line {
            event,
            id: &self.id,
            pid: std::process::id(),
            realtime_ns: nanoseconds(ClockId::Realtime),
            monotonic_ns: nanoseconds(ClockId::Monotonic),
            parent: None,
            command: None,
            machine: None,
            args: None,
            exit: None,
            done: None,
        }
    }

    fn write(&self, line: &Line<'_>) {
        let Ok(mut bytes) = serde_json::to_vec(line) else {
            return;
        };
        bytes.push(b'\n');
        // A full disk must not change what the invocation answers; the test will miss the line.
        let _ = (&self.file).write_all(&bytes);
    }
}

fn nanoseconds(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}
