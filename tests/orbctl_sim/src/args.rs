//! The flag parser: which flags a command accepts, and how its arguments are split by them.
//!
//! Error texts and the shape of the usage block are those recorded from the real tool (gh#556, gh#2122, gh#2202); texts
//! that were not recorded are those of the flag library that prints such blocks.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use crate::refusal::{Outcome, Refusal};

/// A flag that a command accepts. A flag known by its letter alone has no long form.
#[derive(Clone, Copy, Debug)]
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

/// Accepted by every command.
const HELP: Flag = switch("help", Some(b'h'));

/// Where flags may appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere among the operands; `--` ends the flags.
    Mixed,
    /// Before the first operand, from which on nothing is a flag; `--` is refused. This is the rule of `run`.
    FlagsFirst,
    /// The same, and `--` before the first operand is accepted.
    FlagsThenDashes,
}

/// The name by which the program was called. `orb` runs unknown commands in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Orb,
    Orbctl,
}

impl Program {
    /// Returns the name as messages print it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Orb => "orb",
            Program::Orbctl => "orbctl",
        }
    }
}

/// Names, operands and flags of one command.
#[derive(Debug)]
pub(crate) struct Syntax {
    /// The name, then its aliases.
    pub(crate) names: &'static [&'static str],
    /// The operands as the usage line shows them.
    pub(crate) operands: &'static str,
    /// The minimum and maximum number of operands.
    pub(crate) count: (usize, usize),
    pub(crate) flags: &'static [Flag],
    pub(crate) order: Order,
}

/// Arguments split into flags and operands.
#[derive(Debug, Default)]
pub(crate) struct Words {
    flags: Vec<(&'static str, OsString)>,
    pub(crate) rest: Vec<OsString>,
}

impl Syntax {
    /// Returns the name that messages use for the command.
    pub(crate) fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// Splits `words` and checks the number of operands. With `-h` that number is not checked.
    pub(crate) fn read(&self, program: Program, words: &[OsString]) -> Outcome<Words> {
        let words = self.split(program, words)?;
        let given = words.rest.len();
        let (least, most) = self.count;
        if words.has("help") || (least..=most).contains(&given) {
            return Ok(words);
        }
        Err(self.refuse(
            program,
            &match (least, most) {
                (0, 0) => {
                    let first = words.rest.first().map(|word| word.to_string_lossy());
                    let (first, program, name) = (first.unwrap_or_default(), program.name(), self.name());
                    format!("unknown command \"{first}\" for \"{program} {name}\"")
                }
                (least, most) if least == most => format!("accepts {least} arg(s), received {given}"),
                (0, most) => format!("accepts at most {most} arg(s), received {given}"),
                (least, usize::MAX) => format!("requires at least {least} arg(s), only received {given}"),
                (least, most) => format!("accepts between {least} and {most} arg(s), received {given}"),
            },
        ))
    }

    /// Returns a usage error of this command.
    pub(crate) fn refuse(&self, program: Program, error: &str) -> Refusal {
        Refusal::Usage(format!("Error: {error}\n{}", self.usage(program)))
    }

    /// Returns the usage block: what `-h` prints, and what follows a usage error.
    pub(crate) fn usage(&self, program: Program) -> String {
        let mut text = format!("Usage:\n  {} {} [flags]", program.name(), self.name());
        if !self.operands.is_empty() {
            text.push(' ');
            text.push_str(self.operands);
        }
        if let Some((_, aliases)) = self.names.split_first()
            && !aliases.is_empty()
        {
            let _ = write!(text, "\n\nAliases:\n  {}", self.names.join(", "));
        }
        text.push_str("\n\nFlags:");
        for flag in self.flags {
            let value = if flag.takes_value { " string" } else { "" };
            let _ = match (flag.short.map(char::from), flag.long) {
                (Some(short), "") => write!(text, "\n  -{short}{value}"),
                (Some(short), long) => write!(text, "\n  -{short}, --{long}{value}"),
                (None, long) => write!(text, "\n      --{long}{value}"),
            };
        }
        let _ = write!(text, "\n  -h, --help   help for {}", self.name());
        text
    }

    fn flag(&self, is_it: impl Fn(&&Flag) -> bool) -> Option<&Flag> {
        self.flags.iter().chain([&HELP]).find(is_it)
    }

    /// Splits `words` by the flags that the command accepts.
    pub(crate) fn split(&self, program: Program, words: &[OsString]) -> Outcome<Words> {
        let refuse = |error: String| self.refuse(program, &error);
        let first_only = self.order != Order::Mixed;
        let unknown = |word: &OsStr, of_library: String| {
            refuse(if first_only {
                format!("unknown flag {}", word.to_string_lossy())
            } else {
                of_library
            })
        };
        let mut sorted = Words::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                if self.order == Order::FlagsFirst {
                    return Err(refuse("unknown flag --".to_owned()));
                }
                sorted.rest.extend(words.cloned());
                break;
            } else if let Some(long) = bytes.strip_prefix(b"--") {
                let (name, inline) = match long.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]))),
                    None => (long, None),
                };
                let shown = String::from_utf8_lossy(name);
                let flag = self.flag(|flag| !name.is_empty() && flag.long.as_bytes() == name);
                let flag = flag.ok_or_else(|| unknown(word, format!("unknown flag: --{shown}")))?;
                let value = match (flag.takes_value, inline) {
                    (_, Some(inline)) => inline.to_owned(),
                    (true, None) => {
                        let value = words.next();
                        value
                            .ok_or_else(|| refuse(format!("flag needs an argument: --{shown}")))?
                            .clone()
                    }
                    (false, None) => OsString::from("true"),
                };
                sorted.flags.push((flag.long, value));
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                let mut letters = &bytes[1..];
                while let Some((letter, behind)) = letters.split_first() {
                    let shown = || format!("'{}' in {}", char::from(*letter), word.to_string_lossy());
                    let flag = self.flag(|flag| flag.short == Some(*letter));
                    let flag =
                        flag.ok_or_else(|| unknown(word, format!("unknown shorthand flag: {}", shown())))?;
                    let value = if !flag.takes_value {
                        letters = behind;
                        OsString::from("true")
                    } else if behind.is_empty() {
                        letters = behind;
                        let value = words.next();
                        value
                            .ok_or_else(|| refuse(format!("flag needs an argument: {}", shown())))?
                            .clone()
                    } else {
                        letters = &[];
                        OsStr::from_bytes(behind).to_owned()
                    };
                    sorted.flags.push((flag.long, value));
                }
            } else if first_only {
                sorted.rest.push(word.clone());
                sorted.rest.extend(words.cloned());
                break;
            } else {
                sorted.rest.push(word.clone());
            }
        }
        Ok(sorted)
    }
}

impl Words {
    /// Returns whether the switch is on.
    pub(crate) fn has(&self, long: &str) -> bool {
        self.last(long).is_some_and(|value| value != "false")
    }

    /// Returns the last value given for a flag, as text.
    pub(crate) fn text(&self, long: &str) -> Option<String> {
        self.last(long).map(|value| value.to_string_lossy().into_owned())
    }

    /// Returns all values given for a flag, as text.
    pub(crate) fn texts(&self, long: &str) -> Vec<String> {
        let given = self.flags.iter().filter(|(name, _)| *name == long);
        given
            .map(|(_, value)| value.to_string_lossy().into_owned())
            .collect()
    }

    /// Returns the operands, as text.
    pub(crate) fn operands(&self) -> Vec<String> {
        self.rest
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    /// Returns the operand at an index that the syntax guarantees.
    pub(crate) fn operand(&self, at: usize) -> String {
        self.operands().into_iter().nth(at).unwrap_or_default()
    }

    fn last(&self, long: &str) -> Option<&OsString> {
        self.flags
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value)
    }
}
