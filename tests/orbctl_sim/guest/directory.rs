//! Machines that are plain directories: for hosts without namespaces, and for fast tests.
//!
//! There is no fence here. Commands run on the host as the caller, so everything that pretends to
//! be another user is refused, above all root.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

/// Stands first on PATH in a directory machine.
const SUDO: &str = "#!/bin/sh
echo \"sudo: orbctl-sim: this machine is a plain directory without isolation; running as root is refused\" >&2
exit 1
";

/// Makes the files of a directory machine.
pub(crate) fn prepare(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("home"))?;
    fs::create_dir_all(folder.join("bin"))?;
    for name in ["sudo", "su", "doas"] {
        let path = folder.join("bin").join(name);
        fs::write(&path, SUDO.replace("sudo:", &format!("{name}:")))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}
