//! A small flag reader: long and short flags, values after a blank, `=` or directly behind a
//! short flag, short switches in one word. Nothing here knows a command.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::refusal::{Outcome, Refusal};

/// A flag that a command knows.
#[derive(Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<u8>,
    pub(crate) takes_value: bool,
}

/// A flag without a value.
pub(crate) const fn switch(long: &'static str, short: Option<u8>) -> Flag {
    Flag {
        long,
        short,
        takes_value: false,
    }
}

/// A flag with a value.
pub(crate) const fn value(long: &'static str, short: Option<u8>) -> Flag {
    Flag {
        long,
        short,
        takes_value: true,
    }
}

/// Where flags may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere among the other words; `--` ends them.
    Mixed,
    /// Before the first other word, from which on everything is left as it is; `--` is refused.
    /// This is the rule of `run`.
    FlagsFirst,
}

/// Words sorted into flags and the rest.
#[derive(Default)]
pub(crate) struct Words {
    flags: Vec<(&'static str, OsString)>,
    pub(crate) rest: Vec<OsString>,
}

impl Words {
    /// Sorts `words` by the flags that `command` knows.
    pub(crate) fn sort(command: &str, words: &[OsString], known: &[Flag], order: Order) -> Outcome<Words> {
        let mut sorted = Words::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                if order == Order::FlagsFirst {
                    return Err(Refusal::usage(format!("{command}: '--' is not accepted here")));
                }
                sorted.rest.extend(words.cloned());
                break;
            } else if let Some(long) = bytes.strip_prefix(b"--") {
                let (name, inline) = match long.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]))),
                    None => (long, None),
                };
                let flag = known.iter().find(|flag| flag.long.as_bytes() == name);
                let flag = flag.ok_or_else(|| unknown(command, word))?;
                let value = match (flag.takes_value, inline) {
                    (_, Some(inline)) => inline.to_owned(),
                    (true, None) => words.next().ok_or_else(|| missing(command, word))?.clone(),
                    (false, None) => OsString::from("true"),
                };
                sorted.flags.push((flag.long, value));
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                let mut letters = &bytes[1..];
                while let Some((letter, behind)) = letters.split_first() {
                    let flag = known.iter().find(|flag| flag.short == Some(*letter));
                    let flag = flag.ok_or_else(|| unknown(command, word))?;
                    let value = if !flag.takes_value {
                        letters = behind;
                        OsString::from("true")
                    } else if behind.is_empty() {
                        letters = behind;
                        words.next().ok_or_else(|| missing(command, word))?.clone()
                    } else {
                        letters = &[];
                        OsStr::from_bytes(behind).to_owned()
                    };
                    sorted.flags.push((flag.long, value));
                }
            } else if order == Order::FlagsFirst {
                sorted.rest.push(word.clone());
                sorted.rest.extend(words.cloned());
                break;
            } else {
                sorted.rest.push(word.clone());
            }
        }
        Ok(sorted)
    }

    /// Whether the switch is on.
    pub(crate) fn has(&self, long: &str) -> bool {
        self.last(long).is_some_and(|value| value != "false")
    }

    /// The last value given for a flag, as text.
    pub(crate) fn text(&self, long: &str) -> Option<String> {
        self.last(long).map(|value| value.to_string_lossy().into_owned())
    }

    /// All values given for a flag, as text.
    pub(crate) fn texts(&self, long: &str) -> Vec<String> {
        let given = self.flags.iter().filter(|(name, _)| *name == long);
        given
            .map(|(_, value)| value.to_string_lossy().into_owned())
            .collect()
    }

    /// The words that are no flags, as text, if their number is right.
    pub(crate) fn rest_between(&self, command: &str, least: usize, most: usize) -> Outcome<Vec<String>> {
        if self.rest.len() < least || self.rest.len() > most {
            let wanted = if least == most {
                format!("{least}")
            } else if most == usize::MAX {
                format!("at least {least}")
            } else {
                format!("{least} to {most}")
            };
            let given = self.rest.len();
            return Err(Refusal::usage(format!(
                "{command}: takes {wanted} words, got {given}"
            )));
        }
        Ok(self
            .rest
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect())
    }

    fn last(&self, long: &str) -> Option<&OsString> {
        self.flags
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value)
    }
}

fn unknown(command: &str, word: &OsStr) -> Refusal {
    Refusal::usage(format!("{command}: unknown flag '{}'", word.to_string_lossy()))
}

fn missing(command: &str, word: &OsStr) -> Refusal {
    Refusal::usage(format!("{command}: '{}' needs a value", word.to_string_lossy()))
}
