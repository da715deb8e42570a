//! For hosts without namespaces: every machine is a directory, and these functions are never reached.
#![expect(clippy::unnecessary_wraps, reason = "the same signatures as on Linux")]

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::guest::accounts::Account;
use crate::state::{Machine, Resident};

/// Never started here.
pub(crate) const INIT_WORD: &str = "sim-init";

pub(crate) fn check() -> Result<()> {
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

pub(crate) fn resident(_pid: i32) -> Option<Resident> {
    None
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

/// Identity of another user, which a directory machine does not support.
pub(crate) struct Identity;

impl Identity {
    pub(crate) fn take(_account: &Account, _groups: &[u32]) -> Result<Identity> {
        bail!("isolated machines need Linux")
    }
}

impl Drop for Identity {
    fn drop(&mut self) {}
}
