//! Types of configuration values, and how they are written in the file, in a variable and in a flag.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::machine::MachineName;
use crate::run_command::{ExecChannel, GuestEnv};

/// A type that a key's value can have.
pub(super) trait Value: Sized + PartialEq {
    /// Parses a value from the configuration file. The error continues a sentence that begins with the key: "must be ...".
    fn from_toml(value: &toml::Value) -> Result<Self, String>;
    /// Parses a value from an environment variable or a flag.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Formats the value as TOML.
    fn to_toml(&self) -> String;
    /// Formats the value so that [`Value::from_text`] reads it back; `None` for an optional value that is not set.
    fn to_text(&self) -> Option<String> {
        Some(self.to_toml().trim_matches('"').to_owned())
    }
}

fn wrong_type(expected: &str, value: &toml::Value) -> String {
    format!("must be {expected}, not {}", value.type_str())
}

impl Value for bool {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| wrong_type("true or false", value))
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(format!("must be true or false, not {text:?}")),
        }
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Value for u64 {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        let number = value
            .as_integer()
            .ok_or_else(|| wrong_type("a whole number", value))?;
        Self::try_from(number).map_err(|_| format!("cannot be negative, but is {number}"))
    }
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("must be a whole number, not {text:?}"))
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Value for usize {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        Self::try_from(u64::from_toml(value)?).map_err(|_| "is too large".to_owned())
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Self::try_from(u64::from_text(text)?).map_err(|_| "is too large".to_owned())
    }
    fn to_toml(&self) -> String {
        self.to_string()
    }
}

/// A number of bytes, as in `64KiB`, `1GiB` or `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Value for Bytes {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(_) => u64::from_toml(value).map(Self),
            toml::Value::String(text) => Self::from_text(text),
            other => Err(wrong_type("a size like \"64MiB\" or a number of bytes", other)),
        }
    }
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be a size like \"64MiB\", in B, KiB, MiB, GiB or TiB, not {text:?}");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let unit = text[digits.len()..].trim();
        let shift = match unit {
            "" => 0,
            unit => {
                BYTE_UNITS
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                    .ok_or_else(wrong)?
                    .1
            }
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| "is too large".to_owned())
    }
    fn to_toml(&self) -> String {
        let (unit, shift) = BYTE_UNITS
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or(&("B", 0));
        format!("\"{}{unit}\"", self.0 >> shift)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_toml().trim_matches('"'))
    }
}

const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Value for Duration {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => Self::from_text(text),
            other => Err(wrong_type("a duration in quotes like \"30s\"", other)),
        }
    }
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("must be a duration like \"30s\" or \"1h30m\", in d, h, m, s or ms, not {text:?}");
        let mut rest = text.trim();
        let mut sum = 0_u64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, ms) = DURATION_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?;
            let part = number
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(*ms))
                .ok_or_else(wrong)?;
            sum = sum.checked_add(part).ok_or_else(wrong)?;
            rest = tail.trim_start();
        }
        Ok(Self::from_millis(sum))
    }
    fn to_toml(&self) -> String {
        let mut ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let mut text = String::new();
        for (unit, size) in DURATION_UNITS {
            if ms >= size {
                let _ = write!(text, "{}{unit}", ms / size);
                ms %= size;
            }
        }
        if text.is_empty() {
            text.push_str("0s");
        }
        format!("\"{text}\"")
    }
}

impl Value for String {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| wrong_type("text in quotes", value))
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn to_toml(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
    fn to_text(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for PathBuf {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value
            .as_str()
            .ok_or_else(|| wrong_type("a path in quotes", value))
            .and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        if text.contains('\0') || text.is_empty() {
            return Err("must be a non-empty path without NUL bytes".into());
        }
        Ok(text.into())
    }
    fn to_toml(&self) -> String {
        self.to_string_lossy().into_owned().to_toml()
    }
    fn to_text(&self) -> Option<String> {
        Some(self.to_string_lossy().into_owned())
    }
}

/// Names of machines, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineNames(pub BTreeSet<MachineName>);

impl MachineNames {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let parse = |name: &str| {
            name.parse()
                .map_err(|error| format!("must be names of machines, not {name:?}: {error}"))
        };
        names.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Value for MachineNames {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        let wrong = || wrong_type("a list of machine names in quotes", value);
        let items = value.as_array().ok_or_else(wrong)?;
        let names: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
        Self::of(names.ok_or_else(wrong)?.into_iter())
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Self::of(text.split(',').map(str::trim).filter(|name| !name.is_empty()))
    }
    fn to_toml(&self) -> String {
        let names = self.0.iter().map(|name| name.as_str().into()).collect();
        toml::Value::Array(names).to_string()
    }
    fn to_text(&self) -> Option<String> {
        let names: Vec<&str> = self.0.iter().map(MachineName::as_str).collect();
        Some(names.join(","))
    }
}

/// Makes an enumeration a value that is one of two words.
macro_rules! two_words {
    ($type:ty: $one:literal $one_is:path, $other:literal $other_is:path) => {
        impl Value for $type {
            fn from_toml(value: &toml::Value) -> Result<Self, String> {
                value
                    .as_str()
                    .ok_or_else(|| wrong_type(concat!("\"", $one, "\" or \"", $other, "\""), value))
                    .and_then(Self::from_text)
            }
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $one => Ok($one_is),
                    $other => Ok($other_is),
                    _ => Err(format!(
                        concat!("must be \"", $one, "\" or \"", $other, "\", not {:?}"),
                        text
                    )),
                }
            }
            fn to_toml(&self) -> String {
                match self {
                    $one_is => concat!("\"", $one, "\"").into(),
                    $other_is => concat!("\"", $other, "\"").into(),
                }
            }
        }
    };
}

two_words!(LogFormat: "text" LogFormat::Text, "json" LogFormat::Json);
two_words!(GuestEnv: "orbenv" GuestEnv::Orbenv, "argv" GuestEnv::Argv);
two_words!(ExecChannel: "auto" ExecChannel::Auto, "off" ExecChannel::Off);

/// An optional value has no default; the sample shows it as `""`.
impl<T: Value> Value for Option<T> {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        T::from_toml(value).map(Some)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }
    fn to_toml(&self) -> String {
        self.as_ref().map_or_else(|| "\"\"".into(), T::to_toml)
    }
    fn to_text(&self) -> Option<String> {
        self.as_ref().and_then(T::to_text)
    }
}

/// Checks that a value is within the inclusive bounds of its key.
pub(super) fn check_bounds<T: Value + PartialOrd>(value: &T, least: &T, most: &T) -> Result<(), String> {
    if value < least || value > most {
        return Err(format!(
            "must be between {} and {}, but is {}",
            least.to_toml(),
            most.to_toml(),
            value.to_toml()
        ));
    }
    Ok(())
}

/// A value as found in the file (TOML) or in a variable or flag (text).
pub(super) enum RawValue<'a> {
    Toml(&'a toml::Value),
    Text(&'a str),
}

impl RawValue<'_> {
    pub(super) fn read<T: Value>(&self) -> Result<T, String> {
        match self {
            Self::Toml(value) => T::from_toml(value),
            Self::Text(text) => T::from_text(text),
        }
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Parses a log level in the syntax of `tracing`'s `EnvFilter`. The error continues the sentence "the log level ...".
pub fn log_filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(level).map_err(|_| {
        format!("must be error, warn, info, debug or trace, optionally per module, not {level:?}")
    })
}
