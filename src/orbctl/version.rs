//! Versions of `orbctl` and the features that each has.

use std::fmt;
use std::str::FromStr;

use crate::job::Failure;
use crate::operation::{Change, NewMachine};
use orbd_host::machine::OrbctlVersion;

/// The oldest version that the parsers and arguments of this module were checked against.
pub const MINIMUM: Version = Version::new(1, 9, 0);

/// A version of OrbStack, ordered by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Creates a version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version; expected numbers with dots, as in 2.2.3")]
pub struct VersionError;

impl FromStr for Version {
    type Err = VersionError;

    /// Parses one to three numbers; a suffix such as `-rc1` is ignored.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let mut parts = text.splitn(3, '.');
        let mut number = |is_required: bool| {
            let part = parts.next().unwrap_or_default();
            let digits = part
                .find(|c: char| !c.is_ascii_digit())
                .map_or(part, |end| &part[..end]);
            match digits {
                "" if !is_required => Ok(0),
                digits => digits.parse().map_err(|_| VersionError),
            }
        };
        Ok(Self::new(number(true)?, number(false)?, number(false)?))
    }
}

/// A feature that only newer versions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `clone`, `export`, `import`.
    Copies,
    /// Isolated machines: `--isolated`, `--isolate-network`, `--mount`, `--forward-ssh-agent`.
    Isolation,
    /// Resource limits of a machine: `--cpus`, `--memory`, `--disk`.
    Limits,
}

impl Feature {
    /// Returns the first version that has the feature.
    pub const fn since(self) -> Version {
        match self {
            Self::Copies => Version::new(2, 0, 0),
            Self::Isolation => Version::new(2, 1, 0),
            Self::Limits => Version::new(2, 2, 0),
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Copies => "clone, export and import",
            Self::Isolation => "isolated machines",
            Self::Limits => "resource limits of machines",
        }
    }
}

/// The installed version is too old.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The version is older than [`MINIMUM`].
    #[error("OrbStack {installed} is not supported; install {MINIMUM} or later")]
    TooOld {
        /// The installed version.
        installed: Version,
    },
    /// The version lacks a feature that the operation needs.
    #[error("{} need OrbStack {} or later; {installed} is installed", .feature.what(), .feature.since())]
    Lacks {
        /// The missing feature.
        feature: Feature,
        /// The installed version.
        installed: Version,
    },
    /// The reported version could not be parsed.
    #[error("cannot parse {0:?} as a version of OrbStack")]
    Unknown(String),
}

impl From<Unsupported> for Failure {
    fn from(unsupported: Unsupported) -> Self {
        Self::OrbctlUnavailable(unsupported.to_string().into())
    }
}

/// Checks the version that `orbctl version` reported against [`MINIMUM`].
pub fn supported(installed: &OrbctlVersion) -> Result<Version, Unsupported> {
    let version: Version = installed
        .version
        .parse()
        .map_err(|_| Unsupported::Unknown(installed.version.clone()))?;
    if version < MINIMUM {
        return Err(Unsupported::TooOld { installed: version });
    }
    Ok(version)
}

/// Checks whether the installed version has the feature that a change needs.
pub fn check(change: &Change, installed: Version) -> Result<(), Unsupported> {
    match feature(change) {
        Some(feature) if installed < feature.since() => Err(Unsupported::Lacks { feature, installed }),
        _ => Ok(()),
    }
}

/// Returns the newest feature that a change needs; `None` if every supported version can carry it out.
pub fn feature(change: &Change) -> Option<Feature> {
    match change {
        Change::Clone { .. } | Change::Export(..) | Change::Import(..) => Some(Feature::Copies),
        Change::Create(NewMachine {
            cpus,
            memory,
            disk,
            isolated,
            isolate_network,
            mounts,
            forward_ssh_agent,
            ..
        }) => {
            if cpus.is_some() || memory.is_some() || disk.is_some() {
                Some(Feature::Limits)
            } else if *isolated || *isolate_network || *forward_ssh_agent || !mounts.is_empty() {
                Some(Feature::Isolation)
            } else {
                None
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(version: &str) -> OrbctlVersion {
        OrbctlVersion {
            version: version.into(),
            build: None,
            commit: None,
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let check = |text: &str, expected: Option<Version>| assert_eq!(text.parse().ok(), expected, "{text}");
        check("2.2.3", Some(Version::new(2, 2, 3)));
        check("2.10", Some(Version::new(2, 10, 0)));
        check("3", Some(Version::new(3, 0, 0)));
        check("2.3.0-rc1", Some(Version::new(2, 3, 0)));
        check("2.3.0.1", Some(Version::new(2, 3, 0)));
        check("", None);
        check("v2", None);
        check("99999999999.0", None);
        assert!(Version::new(2, 10, 0) > Version::new(2, 9, 9));
    }

    #[test]
    fn old_and_unknown_versions_are_not_supported() {
        assert_eq!(supported(&installed("1.9.2")), Ok(Version::new(1, 9, 2)));
        assert_eq!(supported(&installed("9.0.0")), Ok(Version::new(9, 0, 0)));
        assert!(matches!(
            supported(&installed("1.8.9")),
            Err(Unsupported::TooOld { .. })
        ));
        assert!(matches!(
            supported(&installed("dev")),
            Err(Unsupported::Unknown(_))
        ));
    }

    #[test]
    fn operation_that_needs_a_newer_version_is_refused() {
        let clone = Change::Clone {
            source: "a".parse().expect("valid"),
            copy: "b".parse().expect("valid"),
        };
        assert_eq!(check(&clone, Version::new(2, 0, 0)), Ok(()));
        let lacks = check(&clone, Version::new(1, 9, 2)).expect_err("too old");
        assert_eq!(
            lacks.to_string(),
            "clone, export and import need OrbStack 2.0.0 or later; 1.9.2 is installed"
        );
        let mut new = NewMachine::new("a".parse().expect("valid"), "ubuntu".parse().expect("valid"));
        assert_eq!(check(&Change::Create(new.clone()), MINIMUM), Ok(()));
        new.isolated = true;
        assert!(check(&Change::Create(new.clone()), Version::new(2, 0, 9)).is_err());
        assert!(check(&Change::Create(new.clone()), Version::new(2, 1, 0)).is_ok());
        new.cpus = Some(2);
        assert!(check(&Change::Create(new), Version::new(2, 1, 0)).is_err());
    }
}
