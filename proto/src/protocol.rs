//! Protocol versions: a daemon and a client each speak a range of them, and agree on one.

use std::fmt;

use super::methods::{PROTOCOL_MIN, PROTOCOL_VERSION};

/// The protocol versions that a program speaks, `min..=max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolRange {
    min: u32,
    max: u32,
}

impl ProtocolRange {
    /// The versions that this build speaks.
    pub const OURS: Self = Self {
        min: PROTOCOL_MIN,
        max: PROTOCOL_VERSION,
    };

    /// Returns the range that a peer announced; `None` if it is empty. A peer that names no lowest version speaks one version.
    pub fn announced(min: Option<u32>, max: u32) -> Option<Self> {
        let min = min.unwrap_or(max);
        (min <= max).then_some(Self { min, max })
    }

    /// Returns the newest version that both speak.
    pub fn agree(self, other: Self) -> Option<u32> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }

    /// Returns whether this range includes a version.
    pub fn contains(self, version: u32) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// Returns whether every version of this range is older than every version of the other.
    pub fn is_older_than(self, other: Self) -> bool {
        self.max < other.min
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "protocol {}", self.max)
        } else {
            write!(f, "protocols {} to {}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u32, max: u32) -> ProtocolRange {
        ProtocolRange::announced(Some(min), max).expect("not empty")
    }

    #[test]
    fn peers_agree_on_the_newest_common_version_in_either_direction() {
        for (one, other, agreed) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 2), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(1, 5), range(2, 3), Some(3)),
            (range(1, 1), range(2, 3), None),
            (range(3, 4), range(1, 2), None),
        ] {
            assert_eq!(one.agree(other), agreed, "{one} and {other}");
            assert_eq!(other.agree(one), agreed, "{other} and {one}");
        }
    }

    #[test]
    fn peer_without_a_lowest_version_speaks_one_version() {
        assert_eq!(ProtocolRange::announced(None, 2), Some(range(2, 2)));
        assert_eq!(ProtocolRange::announced(Some(3), 2), None);
        assert!(range(2, 3).contains(2) && !range(2, 3).contains(1));
    }

    #[test]
    fn only_a_range_that_ends_below_the_other_is_older() {
        assert!(range(1, 1).is_older_than(range(2, 3)));
        assert!(!range(1, 2).is_older_than(range(2, 3)));
        assert!(!range(2, 3).is_older_than(range(1, 1)));
    }

    #[test]
    fn range_of_one_version_is_shown_without_a_range() {
        assert_eq!(range(2, 2).to_string(), "protocol 2");
        assert_eq!(range(1, 3).to_string(), "protocols 1 to 3");
    }
}
