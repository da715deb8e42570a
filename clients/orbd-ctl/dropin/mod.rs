//! The drop-in: this program under the real tool's names, `orbctl` and `orb`, first on PATH.
//!
//! ```text
//! words ── plan ──┬─ help ───────────────────────────────► becomes the real tool
//!                 ├─ read, no terminal ── lease.read ──► prints what orbd was told, or what an equal read was
//!                 └─ all else ─────────── lease.acquire ─► the child becomes the real tool; we wait as it would
//! no daemon ─────────────────────────────────────────────► becomes the real tool
//! ```
//!
//! Whoever calls must not notice: the same bytes, exit code and signals, because it is the real tool that runs, in the caller's
//! directory, environment and terminal, in the place that the daemon gave it. [`words`] says what is touched, [`find`] where the tool
//! is, [`carry_out`] asks and waits, [`child`] becomes the tool, [`guard`] is us while it runs; [`links`] make us be called. `docs/dropin.md` tells what
//! differs all the same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::args::duration;
use crate::environment::variable;
use crate::waiting_child::Tool;
use find::{Finder, NoTool};
pub(crate) use words::InvokedAs;

mod carry_out;
mod child;
mod find;
mod guard;
pub(crate) mod links;
mod words;

/// One call of the tool.
struct Invocation {
    called: InvokedAs,
    /// `argv[0]`, which the tool finds as its own name.
    name: OsString,
    arguments: Vec<OsString>,
    finder: Finder,
}

impl Invocation {
    /// Returns what a process of ours becomes.
    fn tool(&self, program: &Path, variables: Vec<(OsString, OsString)>) -> Tool {
        let visited = (OsString::from(find::VISITED), self.finder.visited());
        Tool {
            program: program.into(),
            name: self.name.clone(),
            variables: [visited].into_iter().chain(variables).collect(),
            arguments: self.arguments.clone(),
        }
    }

    /// Becomes the real tool, without a place. Returns only when that cannot be.
    fn pass_through(&self, settings: &Settings) -> ExitCode {
        let program = match self.finder.located(self.called, &settings.environment) {
            Ok(program) => program,
            Err(missing) => return refuse(&missing.to_string(), exit_of(&missing)),
        };
        let error = self.tool(&program, Vec::new()).become_it();
        refuse(
            &format!("cannot run {}: {error}", program.display()),
            NOT_EXECUTABLE,
        )
    }
}

/// What a shell answers where there is no such program.
const NOT_FOUND: u8 = 127;
/// What a shell answers where it cannot be run.
const NOT_EXECUTABLE: u8 = 126;

fn exit_of(missing: &NoTool) -> u8 {
    match missing {
        NoTool::Nowhere(_) => NOT_FOUND,
        NoTool::Ours(_) => REFUSED,
    }
}

/// What we answer where orbd refuses: a code that the tool itself does not have.
const REFUSED: u8 = crate::error::exit::RUN_FAILED;

/// Says why the tool did not run, in one line.
#[expect(
    clippy::print_stderr,
    reason = "the one thing that the drop-in says of its own"
)]
fn refuse(why: &str, code: u8) -> ExitCode {
    eprintln!("orbd: {}", why.trim_end());
    ExitCode::from(code)
}

/// How the caller wants us to be.
struct Settings {
    environment: crate::environment::Environment,
    /// Do not run the tool without orbd.
    strict: bool,
    /// Say what is waited for.
    verbose: bool,
    /// Oldest answer to accept; none but one that was begun since the call where zero.
    max_age: Duration,
    /// The place that a process above us holds, if one does: the number of its job.
    above: Option<u64>,
}

impl Settings {
    fn read() -> Self {
        let is_on = |name: &str| {
            variable(name).is_some_and(|value| {
                !["", "0", "no", "off", "false"]
                    .iter()
                    .any(|no| value.eq_ignore_ascii_case(no))
            })
        };
        let text = |name: &str| variable(name)?.into_string().ok();
        Self {
            environment: crate::environment::Environment::read(),
            strict: is_on("ORBD_STRICT"),
            verbose: is_on("ORBD_VERBOSE"),
            // What makes no sense must not make an answer old.
            max_age: text("ORBD_MAX_AGE")
                .and_then(|text| duration(&text).ok())
                .unwrap_or_default(),
            above: text(orbd::sys::MARKER).and_then(|marker| job_of(&marker)),
        }
    }
}

/// Returns the real tool that a call would run: the one that the daemon names, else the one that is found without it.
pub(crate) fn real_tool(
    named: Option<&Path>,
    environment: &crate::environment::Environment,
) -> Result<PathBuf, String> {
    let finder = Finder::of_process();
    let found = match named {
        Some(named) => finder.named(InvokedAs::Orbctl, named),
        None => finder.located(InvokedAs::Orbctl, environment),
    };
    found.map_err(|why| why.to_string())
}

/// Finds the job in a marker: `INSTANCE:JOB:...`.
fn job_of(marker: &str) -> Option<u64> {
    marker.split(':').nth(1)?.parse().ok()
}

/// Says whether we are called as the tool, and by which of its names.
pub(crate) fn called_as(words: &[OsString]) -> Option<InvokedAs> {
    find::called_as(words.first()?)
}

/// Carries out a call of the tool.
pub(crate) fn main(called: InvokedAs, mut words: Vec<OsString>) -> ExitCode {
    let began = crate::console::now();
    let name = words.remove(0);
    let invocation = Invocation {
        called,
        name,
        arguments: words,
        finder: Finder::of_process(),
    };
    carry_out::carry_out(&invocation, &Settings::read(), began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_names_its_job() {
        assert_eq!(job_of("01J:42:9f1c22ab:client:change:start:web:web!,*"), Some(42));
        for odd in ["", "42", "01J:", "01J:x", "01J:-1"] {
            assert_eq!(job_of(odd), None, "{odd}");
        }
    }
}
