//! Where there are no namespaces: every machine is a directory, and these are never reached.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::guest::Isolation;
use crate::state::{Machine, Resident};

/// Never started here.
pub(crate) const INIT_WORD: &str = "sim-init";

pub(crate) fn check(_isolation: Isolation) -> Result<()> {
    bail!("isolated machines need Linux")
}

pub(crate) fn other_place(_folder: &Path) -> Result<Option<PathBuf>> {
    Ok(None)
}

pub(crate) fn prepare(_folder: &Path, _machine: &Machine) -> Result<()> {
    bail!("isolated machines need Linux")
}

pub(crate) fn boot(_folder: &Path, _home: &Path, _machine: &Machine) -> Result<Resident> {
    bail!("isolated machines need Linux")
}

pub(crate) fn halt(_resident: Resident) -> Result<()> {
    Ok(())
}

pub(crate) fn is_alive(_resident: Resident) -> bool {
    false
}

pub(crate) fn enter(_resident: Resident) -> Result<()> {
    bail!("isolated machines need Linux")
}

pub(crate) fn init() -> Result<()> {
    bail!("isolated machines need Linux")
}
