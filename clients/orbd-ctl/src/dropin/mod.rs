//! The drop-in: this program, installed first on PATH under the real tool's names `orbctl` and `orb`.
//!
//! ```text
//! args ── plan ──┬─ help ──────────────────────────────► execs the real tool
//!                ├─ read, no terminal ── lease.read ───► prints the output that orbd read, or shared
//!                └─ anything else ────── lease.acquire ► the child execs the real tool; we wait for it
//! no daemon ───────────────────────────────────────────► execs the real tool
//! ```
//!
//! The caller sees the same bytes, exit code and signals as without the drop-in, because the real tool runs in the caller's directory,
//! environment and terminal, under a lease. [`plan`] classifies the arguments, [`find`] finds the tool, [`carry_out`] calls the daemon,
//! [`crate::lease_child`] execs the tool, [`guard`] waits for it and forwards signals, and [`links`] installs the drop-in. `docs/scripts.md` lists the
//! remaining differences.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::args::duration;
use crate::environment::variable;
use crate::lease_child::{NOT_EXECUTABLE, Tool};
use find::{Finder, NoTool};
pub(crate) use plan::InvokedAs;

mod carry_out;
mod find;
mod flags;
mod guard;
pub(crate) mod links;
mod plan;

/// One invocation of the tool.
struct Invocation {
    called: InvokedAs,
    /// `argv[0]`, which is passed on to the tool.
    name: OsString,
    arguments: Vec<OsString>,
    finder: Finder,
}

impl Invocation {
    /// Returns the tool to exec.
    fn tool(&self, program: &Path, variables: Vec<(OsString, OsString)>) -> Tool {
        let visited = (OsString::from(find::VISITED), self.finder.visited());
        Tool {
            program: program.into(),
            name: self.name.clone(),
            variables: [visited].into_iter().chain(variables).collect(),
            arguments: self.arguments.clone(),
        }
    }

    /// Execs the real tool without a lease. Returns only if that fails.
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

/// Exit code of a shell if a program does not exist.
const NOT_FOUND: u8 = 127;

fn exit_of(missing: &NoTool) -> u8 {
    match missing {
        NoTool::Nowhere(_) => NOT_FOUND,
        NoTool::Ours(_) => REFUSED,
    }
}

/// Exit code if orbd refuses the call. The tool itself does not use it.
const REFUSED: u8 = crate::error::exit::RUN_FAILED;

/// Prints one line with the reason why the tool did not run, and returns the exit code.
#[expect(clippy::print_stderr, reason = "the drop-in itself prints only this")]
fn refuse(why: &str, code: u8) -> ExitCode {
    eprintln!("orbd: {}", why.trim_end());
    ExitCode::from(code)
}

/// Settings from the caller's environment.
struct Settings {
    environment: crate::environment::Environment,
    /// `ORBD_STRICT`: do not run the tool without orbd.
    strict: bool,
    /// `ORBD_VERBOSE`: print progress messages.
    verbose: bool,
    /// `ORBD_MAX_AGE`: maximum age of a cached answer. With zero, only a read that started after this call is shared.
    max_age: Duration,
    /// Id of the job that an ancestor process runs in, from its marker; `None` outside a job.
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
            // An invalid value counts as zero, so that it cannot cause stale answers.
            max_age: text("ORBD_MAX_AGE")
                .and_then(|text| duration(&text).ok())
                .unwrap_or_default(),
            above: text(orbd_host::sys::MARKER).and_then(|marker| job_of(&marker)),
        }
    }
}

/// Returns the real tool that a call would run: the one that the daemon reports, or the one that is found without it.
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

/// Parses the job id in a marker of the form `INSTANCE:JOB:...`.
fn job_of(marker: &str) -> Option<u64> {
    marker.split(':').nth(1)?.parse().ok()
}

/// Returns by which of the real tool's names this program was invoked; `None` for any other name.
pub(crate) fn called_as(words: &[OsString]) -> Option<InvokedAs> {
    find::called_as(words.first()?)
}

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
    fn the_job_id_is_parsed_from_a_marker() {
        assert_eq!(job_of("01J:42:9f1c22ab:client:change:start:web:web!,*"), Some(42));
        for odd in ["", "42", "01J:", "01J:x", "01J:-1"] {
            assert_eq!(job_of(odd), None, "{odd}");
        }
    }
}
