//! Order of orbd's own versions, as Semantic Versioning defines it.

use std::cmp::Ordering;

/// Returns whether `version` is an older release than `other`; `false` if one of them is not a version.
pub fn is_older(version: &str, other: &str) -> bool {
    let order = Release::parse(version).zip(Release::parse(other));
    order.is_some_and(|(version, other)| version.cmp(&other) == Ordering::Less)
}

/// A parsed version. The build metadata after `+` has no order.
#[derive(PartialEq, Eq)]
struct Release<'a> {
    numbers: [u64; 3],
    pre_release: Option<&'a str>,
}

impl<'a> Release<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.split('+').next()?;
        let (core, pre_release) = match text.split_once('-') {
            Some((core, pre_release)) => (core, Some(pre_release)),
            None => (text, None),
        };
        let mut parts = core.split('.').map(|part| part.parse().ok());
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(Self { numbers, pre_release })
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let pre_release = match (self.pre_release, other.pre_release) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(ours), Some(theirs)) => ours.split('.').map(Part::of).cmp(theirs.split('.').map(Part::of)),
        };
        self.numbers.cmp(&other.numbers).then(pre_release)
    }
}

/// A part of a pre-release. Numbers come before words.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Number(u64),
    Word(&'a str),
}

impl<'a> Part<'a> {
    fn of(text: &'a str) -> Self {
        text.parse().map_or(Self::Word(text), Self::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_semantic_versioning_says() {
        let ordered = [
            "0.1.0-alpha",
            "0.1.0-alpha.1",
            "0.1.0-rc.2",
            "0.1.0-rc.10",
            "0.1.0",
            "0.1.1",
            "0.2.0",
            "0.10.0",
            "1.0.0",
        ];
        for (at, version) in ordered.iter().enumerate() {
            for (other_at, other) in ordered.iter().enumerate() {
                assert_eq!(is_older(version, other), at < other_at, "{version} and {other}");
            }
        }
        assert!(!is_older("0.1.0+a", "0.1.0+b"), "build metadata has no order");
    }

    #[test]
    fn text_that_is_not_a_version_is_neither_older_nor_newer() {
        for text in ["", "1.2", "1.2.3.4", "new", "1.x.0"] {
            assert!(!is_older(text, "9.9.9") && !is_older("0.0.1", text), "{text:?}");
        }
    }
}
