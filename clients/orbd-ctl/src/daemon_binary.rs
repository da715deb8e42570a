//! Finds the daemon's program, and asks a program for its version.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::environment::Environment;
use crate::error::CliError;

/// Finds `orbd`: next to this program, next to the target of its link, or on PATH.
pub(crate) fn find(environment: &Environment) -> Result<PathBuf, CliError> {
    let ours = env::current_exe().ok();
    let real = ours.as_ref().and_then(|path| path.canonicalize().ok());
    let on_path = environment.path.iter().flat_map(|path| env::split_paths(path));
    [ours, real]
        .into_iter()
        .flatten()
        .filter_map(|path| path.parent().map(Path::to_owned))
        .chain(on_path.filter(|directory| directory.is_absolute()))
        .map(|directory| directory.join("orbd"))
        .find(|path| path.is_file())
        .ok_or_else(|| CliError::NotStarted {
            reason: "orbd not found next to orbd-ctl or on PATH".into(),
            hint: "install both together: with `uv tool install orbd`, `cargo install` or from the release archive".into(),
        })
}

/// Runs a program of the daemon with `--version` and returns the version.
#[expect(clippy::disallowed_methods, reason = "runs the daemon's program, not orbctl")]
pub(crate) fn version_of(program: &Path) -> Result<String, CliError> {
    let failed = |reason: String| CliError::NotStarted {
        reason,
        hint: "install orbd again, or run `orbd-ctl doctor`".into(),
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("cannot run {}: {error}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        ["orbd", version] if output.status.success() => Ok(version.to_owned()),
        _ => Err(failed(format!("{} is not an orbd", program.display()))),
    }
}
