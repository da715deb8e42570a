//! The vocabulary of machines: names, ids, states, and the data that `orbctl` reports about each.
//!
//! Everything here is plain data. The edges of the program (`server::convert`, `orbctl::output`) parse text into these types. A
//! [`MachineName`] can never become a flag on a command line, because a name with a leading `-` cannot be built.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// The longest machine name accepted, in bytes. `orbctl`'s own limit is unknown; this is the limit of a DNS name.
pub const MACHINE_NAME_MAX: usize = 253;

/// A machine's name: letters, digits, `-`, `.` and `_`, not starting with `-`.
///
/// ```
/// use orbd_host::machine::MachineName;
/// assert!("24.04ubuntu".parse::<MachineName>().is_ok());
/// assert!("--all".parse::<MachineName>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(Arc<str>);

impl MachineName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a machine name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a machine name cannot be empty")]
    Empty,
    /// The text is longer than [`MACHINE_NAME_MAX`] bytes.
    #[error("a machine name can have at most {MACHINE_NAME_MAX} bytes")]
    TooLong,
    /// The text starts with a hyphen, which `orbctl` would parse as a flag.
    #[error("a machine name cannot start with '-'")]
    LeadingHyphen,
    /// The text has a character that is not allowed in a machine name.
    #[error("a machine name can contain only letters, digits, '-', '.' and '_', not {0:?}")]
    Character(char),
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MACHINE_NAME_MAX {
            return Err(NameError::TooLong);
        }
        if text.starts_with('-') {
            return Err(NameError::LeadingHyphen);
        }
        match text
            .chars()
            .find(|c| !(c.is_alphanumeric() || matches!(c, '-' | '.' | '_')))
        {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A machine's id: a ULID, stable over rename, stop and start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(Arc<str>);

impl MachineId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a ULID of 26 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine id is a ULID of 26 digits and upper-case letters")]
pub struct IdError;

impl FromStr for MachineId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let crockford =
            |b: u8| b.is_ascii_digit() || (b.is_ascii_uppercase() && !matches!(b, b'I' | b'L' | b'O' | b'U'));
        if text.len() == 26 && text.bytes().all(crockford) {
            Ok(Self(text.into()))
        } else {
            Err(IdError)
        }
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The state of a machine, as reported by `orbctl`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MachineState {
    /// The machine is up.
    Running,
    /// The machine is down.
    Stopped,
    /// Any other state (`creating`, `starting`, `provisioning`): the machine is in transition.
    Busy(Arc<str>),
}

impl MachineState {
    /// Parses the state as `orbctl` prints it.
    pub fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "stopped" => Self::Stopped,
            other => Self::Busy(other.into()),
        }
    }

    /// Returns the state as `orbctl` prints it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Busy(word) => word,
        }
    }
}

/// The system image that a machine was created from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Distribution, as in `ubuntu`.
    pub distro: String,
    /// Version or codename, as in `noble`.
    pub version: String,
    /// Architecture, `arm64` or `amd64`.
    pub arch: String,
    /// Image variant, `default` in every recorded sample.
    pub variant: Option<String>,
}

/// A machine's settings. A field is `None` if the installed OrbStack version does not report it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MachineConfig {
    /// The user that commands run as by default.
    pub default_username: Option<String>,
    /// Whether the machine is isolated from the Mac (2.1 and later).
    pub isolated: Option<bool>,
    /// Whether it has no access to the Mac's network (2.1 and later).
    pub isolate_network: Option<bool>,
    /// Whether the Mac's SSH agent is forwarded (2.1 and later).
    pub forward_ssh_agent: Option<bool>,
    /// Port of the HTTP proxy domain (2.2 and later).
    pub http_port: Option<u16>,
    /// Port of the HTTPS proxy domain (2.2 and later).
    pub https_port: Option<u16>,
    /// Processor limit (2.2 and later).
    pub cpu_limit: Option<u64>,
    /// Memory limit in MiB (2.2 and later).
    pub memory_limit_mib: Option<u64>,
    /// Disk limit in bytes (2.2 and later).
    pub disk_limit_bytes: Option<u64>,
}

/// One machine as reported by `orbctl list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Id; does not change when the machine is renamed.
    pub id: MachineId,
    /// Name. Lanes are keyed by it.
    pub name: MachineName,
    /// State at the time of the read.
    pub state: MachineState,
    /// Image that it was created from.
    pub image: Image,
    /// Its settings.
    pub config: MachineConfig,
    /// Whether OrbStack created it for its own use.
    pub builtin: bool,
}

/// One machine as reported by `orbctl info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// The data that `orbctl list` reports too.
    pub machine: Machine,
    /// Size on disk in bytes.
    pub disk_size: Option<u64>,
    /// IPv4 address; `None` while the machine is stopped.
    pub ip4: Option<Ipv4Addr>,
    /// IPv6 address; `None` while the machine is stopped.
    pub ip6: Option<Ipv6Addr>,
}

/// Status of OrbStack itself, as reported by `orbctl status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrbstackStatus {
    /// `Running`, exit 0.
    Running,
    /// `Stopped`, exit 1.
    Stopped,
    /// `Starting`, or a status that orbd does not know.
    Other(Arc<str>),
}

impl OrbstackStatus {
    /// Returns the lower-case status used on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Other(word) => word,
        }
    }
}

/// The version of the installed `orbctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrbctlVersion {
    /// Dotted version, as in `2.2.3`.
    pub version: String,
    /// The build number in parentheses: major·1 000 000 + minor·10 000 + patch·100.
    pub build: Option<u64>,
    /// Commit; `None` if not printed.
    pub commit: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &Result<&str, NameError>) {
        let parsed = text.parse::<MachineName>();
        assert_eq!(
            &parsed.as_ref().map(MachineName::as_str).map_err(Clone::clone),
            expected,
            "{text:?}"
        );
    }

    #[test]
    fn name_that_could_become_a_flag_or_a_path_is_rejected() {
        check("web", &Ok("web"));
        check("24.04ubuntu", &Ok("24.04ubuntu"));
        check("", &Err(NameError::Empty));
        check("-a", &Err(NameError::LeadingHyphen));
        check("a b", &Err(NameError::Character(' ')));
        check("a/b", &Err(NameError::Character('/')));
        check("a\0", &Err(NameError::Character('\0')));
        check(&"x".repeat(254), &Err(NameError::TooLong));
    }

    #[test]
    fn only_a_ulid_parses_as_a_machine_id() {
        assert!("01M4HXHNTVZXRXR1F5PV7GC8R7".parse::<MachineId>().is_ok());
        assert!("01m4hxhntvzxrxr1f5pv7gc8r7".parse::<MachineId>().is_err());
        assert!("web".parse::<MachineId>().is_err());
    }
}
