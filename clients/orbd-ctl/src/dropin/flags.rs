//! Parses the arguments of the real tool into flags and operands.

use std::ffi::{OsStr, OsString};

use orbd_host::machine::MachineName;
use orbd_proto::types::ReadFormat;

/// A known flag: its long name, its letter, and whether it takes a value.
pub(super) type Flag = (&'static str, Option<char>, bool);

/// Maximum number of names in a request.
pub(super) const NAMES_MAX: usize = 256;

/// Returns the word if it is a valid name or id of a machine.
pub(super) fn name(word: &str) -> Option<String> {
    word.parse::<MachineName>().ok().map(|name| name.to_string())
}

/// Allowed positions of flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Anywhere before `--`.
    Mixed,
    /// Before the first operand. After an unknown flag, anywhere: the next argument may be the flag's value.
    FlagsFirst,
}

/// Arguments parsed into flags and operands.
#[derive(Default)]
pub(super) struct ParsedFlags {
    pub(super) flags: Vec<(&'static str, String)>,
    /// Operands that are valid UTF-8.
    pub(super) rest: Vec<String>,
    /// Number of operands, including those that are not UTF-8.
    pub(super) rest_count: usize,
    /// Values of unknown flags.
    pub(super) values: Vec<String>,
    /// A flag is unknown, or lacks its value.
    pub(super) is_unknown: bool,
    /// The last argument is a known flag without its value.
    pub(super) lacks_value: bool,
    /// An unknown flag may select all machines.
    pub(super) may_mean_all: bool,
}

impl ParsedFlags {
    /// Parses arguments with flags in any position.
    pub(super) fn mixed(words: &[OsString], known: &[Flag]) -> Self {
        Self::sort(words, known, Order::Mixed)
    }

    /// As [`Self::mixed`]; `None` if anything is unknown.
    pub(super) fn known(words: &[OsString], known: &[Flag]) -> Option<Self> {
        Some(Self::mixed(words, known)).filter(Self::is_known)
    }

    pub(super) fn sort(words: &[OsString], known: &[Flag], order: Order) -> Self {
        let mut sorted = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let text = word.to_str();
            if word.as_encoded_bytes().first() != Some(&b'-') || word == "-" {
                sorted.add(word);
                if order == Order::FlagsFirst && !sorted.is_unknown {
                    break;
                }
            } else if word == "--" {
                words.by_ref().for_each(|word| sorted.add(word));
            } else if let Some(long) = text.and_then(|text| text.strip_prefix("--")) {
                sorted.long(long, known, &mut words);
            } else if let Some(letters) = text.and_then(|text| text.strip_prefix('-')) {
                sorted.letters(letters, known, &mut words);
            } else {
                sorted.is_unknown = true;
            }
        }
        sorted
    }

    /// Parses a long flag.
    fn long<'a>(&mut self, long: &str, known: &[Flag], words: &mut impl Iterator<Item = &'a OsString>) {
        let (long, inline) = match long.split_once('=') {
            Some((long, value)) => (long, Some(value.to_owned())),
            None => (long, None),
        };
        let Some((flag, _, takes_value)) = known.iter().find(|(flag, ..)| *flag == long) else {
            self.is_unknown = true;
            self.may_mean_all |= long.starts_with("all");
            self.values.extend(inline);
            return;
        };
        match (takes_value, inline) {
            (_, Some(value)) => self.flags.push((flag, value)),
            (true, None) => self.take_value(flag, words),
            (false, None) => self.flags.push((flag, "true".to_owned())),
        }
    }

    /// Parses short flags in one argument; the value of the last one may follow it directly.
    fn letters<'a>(
        &mut self,
        mut letters: &str,
        known: &[Flag],
        words: &mut impl Iterator<Item = &'a OsString>,
    ) {
        while let Some(letter) = letters.chars().next() {
            let behind = &letters[letter.len_utf8()..];
            let Some((flag, _, takes_value)) = known.iter().find(|(_, known, _)| *known == Some(letter))
            else {
                self.is_unknown = true;
                self.may_mean_all |= letters.contains('a');
                self.values
                    .push(behind.strip_prefix('=').unwrap_or(behind).to_owned());
                return;
            };
            if *takes_value {
                match behind.strip_prefix('=').unwrap_or(behind) {
                    "" => self.take_value(flag, words),
                    value => self.flags.push((flag, value.to_owned())),
                }
                return;
            }
            self.flags.push((flag, "true".to_owned()));
            letters = behind;
        }
    }

    fn take_value<'a>(&mut self, flag: &'static str, words: &mut impl Iterator<Item = &'a OsString>) {
        if let Some(value) = words.next() {
            self.flags.push((flag, value.to_string_lossy().into_owned()));
        } else {
            self.is_unknown = true;
            self.lacks_value = true;
        }
    }

    fn add(&mut self, word: &OsStr) {
        self.rest_count += 1;
        self.rest.extend(word.to_str().map(str::to_owned));
    }

    /// Adds flags before the verb, which it is not known to accept. Machines that they name may be affected.
    pub(super) fn add_leading(&mut self, leading: &[OsString], known: &[Flag]) {
        if leading.is_empty() {
            return;
        }
        let leading = Self::mixed(leading, known);
        self.is_unknown = true;
        self.may_mean_all |= leading.may_mean_all;
        self.values
            .extend(leading.flags.into_iter().map(|(_, value)| value));
        self.values.extend(leading.rest);
        self.values.extend(leading.values);
    }

    /// Returns whether all flags are known and all operands are UTF-8.
    pub(super) fn is_known(&self) -> bool {
        !self.is_unknown && self.rest.len() == self.rest_count
    }

    /// Returns the distinct arguments that may name a machine, at most one more than a request may have.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.rest.iter().chain(&self.values).filter_map(|word| name(word)) {
            if names.len() > NAMES_MAX {
                break;
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        let mut given = self.flags.iter().rev();
        given
            .find(|(known, _)| *known == flag)
            .map(|(_, value)| value.as_str())
    }

    /// Returns whether a boolean flag is set.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.value(flag)
            .is_some_and(|value| !["false", "0", "f", "F", "FALSE", "False"].contains(&value))
    }

    pub(super) fn none(&self) -> Option<()> {
        (self.rest_count == 0).then_some(())
    }

    /// Returns the machine if there is exactly one operand and it is a valid name.
    pub(super) fn machine(&self) -> Option<String> {
        match self.rest.as_slice() {
            [only] => name(only),
            _ => None,
        }
    }

    /// Returns the value of `--format`, which may be absent; `None` if the value is unknown.
    #[expect(
        clippy::option_option,
        reason = "an absent value is valid, an unknown one is not"
    )]
    pub(super) fn format(&self) -> Option<Option<ReadFormat>> {
        match self.value("format") {
            None => Some(None),
            Some("json") => Some(Some(ReadFormat::Json)),
            Some("text") => Some(Some(ReadFormat::Text)),
            Some(_) => None,
        }
    }
}
