//! Which program last served a state directory. The daemon records it there; a program that cannot read the journal names it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "last-program";

/// The program that last served a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastProgram {
    /// Version of the program.
    pub version: String,
    /// Path that it was started from.
    pub path: PathBuf,
}

impl LastProgram {
    /// Reads the record; `None` if there is none that can be read.
    pub fn read(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(state_dir.join(FILE_NAME)).ok()?;
        // The path comes last, because it may contain any byte.
        let (version, path) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n')?);
        Some(Self {
            version: String::from_utf8(version.to_vec()).ok()?,
            path: OsStr::from_bytes(&path[1..]).into(),
        })
    }

    /// Writes the record, unless it is there already.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        if Self::read(state_dir).as_ref() == Some(self) {
            return Ok(());
        }
        let bytes = [self.version.as_bytes(), b"\n", self.path.as_os_str().as_bytes()].concat();
        let new = state_dir.join(format!("{FILE_NAME}.new"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all(&bytes)?;
        fs::rename(new, state_dir.join(FILE_NAME))
    }
}

impl fmt::Display for LastProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "orbd {} at {}", self.version, self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(LastProgram::read(folder.path()), None);
        for path in [OsStr::new("/opt/a b/orbd"), OsStr::from_bytes(b"/x\n\xff/orbd")] {
            let written = LastProgram {
                version: "0.2.0".into(),
                path: path.into(),
            };
            for _ in 0..2 {
                written.write(folder.path()).expect("written");
                assert_eq!(LastProgram::read(folder.path()).as_ref(), Some(&written));
            }
        }
        fs::write(folder.path().join(FILE_NAME), "no line end").expect("written");
        assert_eq!(LastProgram::read(folder.path()), None);
    }
}
