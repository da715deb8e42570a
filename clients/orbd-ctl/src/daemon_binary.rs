//! Finds the daemon's program.

use std::env;
use std::path::{Path, PathBuf};

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
            hint: "install both together, with `cargo install` or from the release archive".into(),
        })
}
