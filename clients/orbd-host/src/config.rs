//! Builds one validated [`Config`] from flags, environment variables, a TOML file and defaults, in this order of precedence.
//!
//! The `keys!` table near the end of this file defines every key: name, type, default, bounds and description. The macro generates the
//! struct, the parser, the environment variable names (`ORBD_` and the key in capitals), the check for misspelt keys and the documented
//! sample from it. An error names the key, where it was set, and which values are valid.
//!
//! Only this module reads the process's environment for configuration. It does so once, into an [`Environment`]; tests build their own.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::run_command::GuestEnv;

/// The longest path of a Unix socket, in bytes: the size of `sun_path` on macOS (104) minus the final NUL.
pub const SOCKET_PATH_MAX: usize = 103;

/// How long a stop waits for running changes, unless the grace is longer, before it leaves them running.
pub const LEAVE_CHANGES_AFTER: Duration = Duration::from_secs(10);

/// The largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The environment variable with the path of the configuration file.
const FILE_VARIABLE: &str = "ORBD_CONFIG";

/// A copy of the process's environment variables, taken when it started.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads the process's environment. Skips variables whose name or value is not valid Unicode.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Returns the value of a variable; `None` if it is unset or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// Directories for this user's files on this platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDirs {
    /// The user's home directory.
    pub home: PathBuf,
    /// Directory that contains the configuration file.
    pub config: PathBuf,
    /// Directory for the journal, metrics, spooled output and logs.
    pub state: PathBuf,
}

impl UserDirs {
    /// Returns the platform's defaults: below `~/Library/Application Support/dev.orbd.orbd` on macOS, the XDG directories on Linux.
    pub fn of_this_user() -> Result<Self, ConfigError> {
        let base = directories::BaseDirs::new().ok_or(ConfigError::NoHome)?;
        let ours = directories::ProjectDirs::from("dev", "orbd", "orbd").ok_or(ConfigError::NoHome)?;
        Ok(Self {
            home: base.home_dir().to_owned(),
            config: ours.config_dir().to_owned(),
            state: ours
                .state_dir()
                .unwrap_or_else(|| ours.data_local_dir())
                .to_owned(),
        })
    }
}

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Configuration file to read instead of the default one.
    pub file: Option<PathBuf>,
    /// Pairs of key and value, in the order given; a later one wins.
    pub values: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A line of the configuration file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// The environment variable of this name.
    Variable(String),
    /// A flag on the command line that set this key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// Why the configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The user's home directory could not be determined.
    #[error("home directory unknown; set HOME")]
    NoHome,
    /// The file could not be read.
    #[error("cannot read the configuration {path}")]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// Path of the file.
        path: PathBuf,
        /// The parser's message, with the position of the error.
        message: String,
    },
    /// A key that does not exist was set.
    #[error("{origin}: unknown key `{key}`{}", nearest.map_or_else(String::new, |near| format!("; did you mean `{near}`?")))]
    UnknownKey {
        /// Where the key was set.
        origin: Origin,
        /// The key as written.
        key: String,
        /// The existing key with the most similar name; `None` if none is similar.
        nearest: Option<&'static str>,
    },
    /// The value of a key is invalid.
    #[error("{origin}: `{key}` {problem}")]
    BadValue {
        /// Where the value was set.
        origin: Origin,
        /// Name of the key.
        key: &'static str,
        /// What is wrong and what is valid, as the predicate of a sentence: "must be ...".
        problem: String,
    },
}

/// A type that a key's value can have.
trait Value: Sized + PartialEq {
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

impl Value for LogFormat {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value
            .as_str()
            .ok_or_else(|| wrong_type("\"text\" or \"json\"", value))
            .and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("must be \"text\" or \"json\", not {text:?}")),
        }
    }
    fn to_toml(&self) -> String {
        match self {
            Self::Text => "\"text\"".into(),
            Self::Json => "\"json\"".into(),
        }
    }
}

impl Value for GuestEnv {
    fn from_toml(value: &toml::Value) -> Result<Self, String> {
        value
            .as_str()
            .ok_or_else(|| wrong_type("\"orbenv\" or \"argv\"", value))
            .and_then(Self::from_text)
    }
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "orbenv" => Ok(Self::Orbenv),
            "argv" => Ok(Self::Argv),
            _ => Err(format!("must be \"orbenv\" or \"argv\", not {text:?}")),
        }
    }
    fn to_toml(&self) -> String {
        match self {
            Self::Orbenv => "\"orbenv\"".into(),
            Self::Argv => "\"argv\"".into(),
        }
    }
}

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
fn check_bounds<T: Value + PartialOrd>(value: &T, least: &T, most: &T) -> Result<(), String> {
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

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const fn minutes(minutes: u64) -> Duration {
    seconds(minutes * 60)
}
const fn hours(hours: u64) -> Duration {
    minutes(hours * 60)
}
const fn days(days: u64) -> Duration {
    hours(days * 24)
}

/// Name and description of a configuration key.
#[derive(Debug)]
pub struct Key {
    /// Name in the configuration file.
    pub name: &'static str,
    /// Description, as the sample prints it; may have several lines.
    pub help: &'static str,
}

impl Key {
    /// Returns the name of the environment variable that sets this key; `None` for `strict`, which no variable sets.
    pub fn variable(&self) -> Option<String> {
        // `ORBD_STRICT` belongs to the drop-in. A user who exports it must not slow down a daemon that is started from that shell.
        (self.name != "strict").then(|| format!("ORBD_{}", self.name.to_ascii_uppercase()))
    }

    /// Returns whether a change of this key takes effect only after a restart of orbd.
    pub fn needs_restart(&self) -> bool {
        AT_START.contains(&self.name)
    }
}

/// Keys that are read only at startup: they configure resources that are opened, bound or started then and cannot change while in use.
const AT_START: [&str; 17] = [
    "socket",
    "orbctl",
    "state_dir",
    "allow_root",
    "history_max",
    "history_max_age",
    "requests_max",
    "batch_max",
    "connection_bytes_max",
    "bytes_max",
    "frame_max",
    "request_timeout",
    "log_format",
    "log_dir",
    "log_max_files",
    "log_max_size",
    "log_max_age",
];

/// The inputs from which the configuration is loaded, at startup and on each reload.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The user's directories.
    pub places: UserDirs,
    /// Settings from the command line.
    pub flags: Flags,
    /// The environment at startup.
    pub environment: Environment,
}

impl Sources {
    /// Loads and validates the configuration.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load_for(&self.places, &self.flags, &self.environment)
    }
}

/// A key whose value differs between two configurations. A value is `None` if an optional key is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the key.
    pub key: &'static str,
    /// Value in the running configuration.
    pub from: Option<String>,
    /// Value in the newly loaded configuration.
    pub to: Option<String>,
}

/// Result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Keys whose new values are in force.
    pub applied: Vec<Difference>,
    /// Keys that keep their old values until orbd restarts.
    pub needs_restart: Vec<Difference>,
}

/// A value as found in the file (TOML) or in a variable or flag (text).
enum RawValue<'a> {
    Toml(&'a toml::Value),
    Text(&'a str),
}

impl RawValue<'_> {
    fn read<T: Value>(&self) -> Result<T, String> {
        match self {
            Self::Toml(value) => T::from_toml(value),
            Self::Text(text) => T::from_text(text),
        }
    }
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr $(, $least:expr => $most:expr)?;)+) => {
        /// The validated configuration. Each field is a key of the configuration file.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)+
            origins: BTreeMap<&'static str, Origin>,
            file: Option<PathBuf>,
        }

        /// All keys, in the order of the sample.
        pub const KEYS: &[Key] = &[$(Key { name: stringify!($name), help: concat!($($doc, "\n"),+) },)+];

        impl Config {
            /// Returns the default configuration of a user with these directories.
            pub fn defaults(places: &UserDirs) -> Self {
                // A default is a closure because some defaults depend on the user's directories.
                $(let $name = { let make: fn(&UserDirs) -> $type = $default; make(places) };)+
                Self { $($name,)+ origins: BTreeMap::new(), file: None }
            }

            fn set(&mut self, key: &str, given: &RawValue<'_>, origin: Origin) -> Result<(), ConfigError> {
                match key {
                    $(stringify!($name) => {
                        let key = stringify!($name);
                        let bad = |problem| ConfigError::BadValue { origin: origin.clone(), key, problem };
                        let value: $type = given.read().map_err(bad)?;
                        $(check_bounds::<$type>(&value, &$least, &$most).map_err(bad)?;)?
                        self.$name = value;
                        self.origins.insert(key, origin);
                        Ok(())
                    })+
                    _ => Err(ConfigError::UnknownKey {
                        origin,
                        key: key.to_owned(),
                        nearest: nearest(key, KEYS.iter().map(|key| key.name)),
                    }),
                }
            }

            /// Returns each key and its value as TOML, in the order of the sample.
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.to_toml()),)+]
            }

            /// Returns each key and its value as text that a flag or variable accepts, in the order of the sample; `None` for an
            /// optional key that is not set.
            pub fn texts(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name.to_text()),)+]
            }

            /// Applies the keys of `configured` that can change while orbd runs. Returns which keys were applied and which need a restart.
            pub fn adopt(&mut self, configured: Self) -> Reloaded {
                let mut reloaded = Reloaded::default();
                $(if self.$name != configured.$name {
                    let key = stringify!($name);
                    let difference = Difference { key, from: self.$name.to_text(), to: configured.$name.to_text() };
                    if AT_START.contains(&key) {
                        reloaded.needs_restart.push(difference);
                    } else {
                        self.$name = configured.$name;
                        reloaded.applied.push(difference);
                    }
                })+
                self.origins = configured.origins;
                self.file = configured.file;
                reloaded
            }
        }
    };
}

impl Config {
    /// Loads the configuration with the platform's default directories.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        Self::load_for(&UserDirs::of_this_user()?, flags, environment)
    }

    /// Loads the configuration of a user with the directories `places`.
    pub fn load_for(
        places: &UserDirs,
        flags: &Flags,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::defaults(places);
        if let Some((path, text)) = read_file(places, flags, environment)? {
            config.apply_file(&path, &text)?;
            config.file = Some(path);
        }
        for key in KEYS {
            if let Some(variable) = key.variable()
                && let Some(text) = environment.get(&variable)
            {
                config.set(key.name, &RawValue::Text(text), Origin::Variable(variable))?;
            }
        }
        for (key, text) in &flags.values {
            config.set(key, &RawValue::Text(text), Origin::Flag(key.clone()))?;
        }
        config.check(places)?;
        Ok(config)
    }

    /// Returns the configuration file that was read; `None` if there is none.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns where the value of a key was set.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Returns a configuration file that documents every key; each is commented out and shows its default.
    pub fn sample(places: &UserDirs) -> String {
        let mut text = String::from(
            "# orbd's configuration. Every key is shown with its default; remove the # to change it.\n\
             # Durations use the units d, h, m, s and ms; sizes use B, KiB, MiB, GiB and TiB.\n\
             # An environment variable ORBD_<KEY> overrides this file; a flag overrides both.\n\
             # `orbd-ctl daemon reload` applies changes to a running orbd, except those of keys marked \"Requires a restart\".\n",
        );
        for (key, (name, value)) in KEYS.iter().zip(Self::defaults(places).values()) {
            text.push('\n');
            for line in key.help.lines() {
                let _ = writeln!(text, "# {}", line.trim());
            }
            if key.needs_restart() {
                text.push_str("# Requires a restart.\n");
            }
            let _ = writeln!(text, "#{name} = {value}");
        }
        text
    }

    fn apply_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>> = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax {
                path: path.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        for (key, value) in &table {
            let line = 1 + text[..key.span().start.min(text.len())].matches('\n').count();
            let origin = Origin::File {
                path: path.to_owned(),
                line,
            };
            self.set(key.get_ref(), &RawValue::Toml(value.get_ref()), origin)?;
        }
        Ok(())
    }

    /// Expands and checks paths, checks constraints between keys, and checks the log level.
    fn check(&mut self, places: &UserDirs) -> Result<(), ConfigError> {
        let origins = &self.origins;
        for (key, path) in [
            ("socket", Some(&mut self.socket)),
            ("state_dir", Some(&mut self.state_dir)),
            ("log_dir", self.log_dir.as_mut()),
            ("orbctl", self.orbctl.as_mut()),
        ] {
            let Some(path) = path else { continue };
            if let Ok(rest) = path.strip_prefix("~") {
                *path = places.home.join(rest);
            }
            if !path.is_absolute() {
                return Err(ConfigError::BadValue {
                    origin: origins.get(key).cloned().unwrap_or(Origin::Default),
                    key,
                    problem: format!("must be an absolute path, but is {}", path.display()),
                });
            }
        }
        let length = self.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let problem = format!(
                "is {length} bytes long, but a Unix socket path can have at most {SOCKET_PATH_MAX}; choose a shorter path"
            );
            return Err(self.bad("socket", problem));
        }
        let too_many = |key: &str, other: &str| {
            format!("cannot be more than `{other}`; lower `{key}` or raise `{other}`")
        };
        if self.creates_max > self.changes_max {
            return Err(self.bad("creates_max", too_many("creates_max", "changes_max")));
        }
        if self.exec_per_machine > self.exec_max {
            return Err(self.bad("exec_per_machine", too_many("exec_per_machine", "exec_max")));
        }
        if self.queue_max_per_client > self.queue_max {
            return Err(self.bad(
                "queue_max_per_client",
                too_many("queue_max_per_client", "queue_max"),
            ));
        }
        if self.spool_max > self.spool_total_max {
            return Err(self.bad("spool_max", too_many("spool_max", "spool_total_max")));
        }
        log_filter(&self.log_level)
            .map(drop)
            .map_err(|problem| self.bad("log_level", problem))
    }

    fn bad(&self, key: &'static str, problem: String) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin(key),
            key,
            problem,
        }
    }

    /// Returns the path of the journal.
    pub fn journal_path(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    /// Returns the directory of the metrics stores.
    pub fn metrics_dir(&self) -> PathBuf {
        self.state_dir.join("metrics")
    }

    /// Returns the directory of spooled output.
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// Returns the directory of the log files.
    pub fn log_folder(&self) -> PathBuf {
        self.log_dir.clone().unwrap_or_else(|| self.state_dir.join("log"))
    }
}

/// Returns the path of the lock file, which is next to the socket.
pub fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
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

/// Returns the path of the configuration file, whether or not the file exists: the named one, else the default one.
pub fn file_in_use(places: &UserDirs, flags: &Flags, environment: &Environment) -> PathBuf {
    named_file(flags, environment).unwrap_or_else(|| default_file(places))
}

fn named_file(flags: &Flags, environment: &Environment) -> Option<PathBuf> {
    flags
        .file
        .clone()
        .or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from))
}

/// Returns the file's path and text; `None` if the default file does not exist. A file named by flag or variable must exist.
fn read_file(
    places: &UserDirs,
    flags: &Flags,
    environment: &Environment,
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let named = named_file(flags, environment);
    let path = named.clone().unwrap_or_else(|| default_file(places));
    let read = || -> io::Result<String> {
        let metadata = std::fs::metadata(&path)?;
        if metadata.len() > FILE_MAX {
            return Err(io::Error::other(format!(
                "the file is larger than {FILE_MAX} bytes"
            )));
        }
        std::fs::read_to_string(&path)
    };
    match read() {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path, source }),
    }
}

/// Returns the path of the configuration file that is read if no flag or variable names one.
pub fn default_file(places: &UserDirs) -> PathBuf {
    places.config.join("config.toml")
}

/// Finds a key by name. The error is the existing key with the most similar name, if one is similar.
pub fn find_key(name: &str) -> Result<&'static Key, Option<&'static str>> {
    KEYS.iter()
        .find(|key| key.name == name)
        .ok_or_else(|| nearest(name, KEYS.iter().map(|key| key.name)))
}

/// Returns the known name closest to a misspelt one; `None` if none is close enough to be the likely intention.
fn nearest(key: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    known
        .map(|name| (distance(&key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .map(|(_, name)| name)
}

/// Returns the Levenshtein distance: how many characters to insert, remove or replace to turn one text into the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (at, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

keys! {
    /// Path of the socket that clients connect to, at most 103 bytes.
    socket: PathBuf = |places| places.home.join(".orbd/orbd.sock");
    /// Path of orbctl. If not set, orbd searches PATH and the usual install locations.
    orbctl: Option<PathBuf> = |_| None;
    /// Directory for the journal, metrics and spooled output.
    state_dir: PathBuf = |places| places.state.clone();
    /// Allow orbd to run as root.
    allow_root: bool = |_| false;

    /// Run one orbctl invocation at a time; sessions are exempt. No environment variable sets this key: `ORBD_STRICT` belongs to
    /// the drop-in.
    strict: bool = |_| false;
    /// Maximum number of reads that run at once.
    queries_max: usize = |_| 4, 1 => 64;
    /// Maximum number of commands and file transfers that run at once in one machine.
    exec_per_machine: usize = |_| 4, 1 => 256;
    /// Maximum number of commands and file transfers that run at once in all machines together.
    exec_max: usize = |_| 128, 1 => 4096;
    /// Maximum number of machine changes that run at once.
    changes_max: usize = |_| 8, 1 => 256;
    /// Maximum number of machine changes that create or import a machine and run at once.
    creates_max: usize = |_| 2, 1 => 64;
    /// Maximum number of queued jobs; further jobs are refused.
    queue_max: usize = |_| 1024, 1 => 1_000_000;
    /// Maximum number of queued jobs per client; further jobs are refused.
    queue_max_per_client: usize = |_| 512, 1 => 1_000_000;
    /// Time limit for a job's wait in the queue, unless its caller sets another.
    queue_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// Time limit for a read.
    query_timeout: Duration = |_| seconds(30), seconds(1) => hours(1);
    /// Time limit for a machine change.
    change_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// Time limit for creating or importing a machine.
    create_timeout: Duration = |_| minutes(30), seconds(1) => days(1);
    /// Time limit for an operation that affects all of OrbStack, such as starting or stopping it.
    fleet_timeout: Duration = |_| minutes(5), seconds(1) => days(1);
    /// Time limit for a change of OrbStack's settings.
    config_timeout: Duration = |_| minutes(1), seconds(1) => hours(1);
    /// Time between SIGTERM and SIGKILL when orbd ends a child process.
    grace: Duration = |_| seconds(10), Duration::from_millis(100) => minutes(10);

    /// How environment variables of a command are passed to the guest. "orbenv" passes the values in orbctl's environment and lists
    /// their names in ORBENV. "argv" passes them as arguments, which every user of this computer can read.
    guest_env: GuestEnv = |_| GuestEnv::Orbenv;

    /// Maximum age of a cached state that orbd returns. If the cached state is older, orbd runs orbctl to read it again.
    cache_max_age: Duration = |_| seconds(30), Duration::ZERO => days(1);
    /// Interval at which orbd polls OrbStack while a client subscribes to machine events. It grows to ten seconds while nothing
    /// changes. Without a subscriber, orbd does not poll.
    watch_interval: Duration = |_| seconds(2), Duration::from_millis(100) => hours(1);

    /// Maximum output kept per job.
    spool_max: Bytes = |_| Bytes(1 << 30), Bytes(1 << 16) => Bytes(1 << 40);
    /// Maximum output kept for all jobs together.
    spool_total_max: Bytes = |_| Bytes(4 << 30), Bytes(1 << 16) => Bytes(1 << 43);
    /// How long ended jobs and their output are kept.
    jobs_keep: Duration = |_| minutes(15), seconds(1) => days(30);
    /// Maximum number of ended jobs kept. With 0, only clients that already wait for a job or follow it receive its result.
    jobs_keep_max: usize = |_| 1000, 0 => 1_000_000;

    /// Maximum number of operation records kept.
    history_max: u64 = |_| 100_000, 0 => 10_000_000;
    /// How long operation records are kept. Hourly totals are kept for 90 days, daily totals for five years.
    history_max_age: Duration = |_| days(90), minutes(1) => days(3660);

    /// Maximum number of open connections. One in 64 of them, at most 8, is reserved for `daemon.*` calls.
    connections_max: usize = |_| 512, 1 => 65_536;
    /// Maximum number of open connections per client process.
    connections_max_per_process: usize = |_| 128, 1 => 65_536;
    /// At a connection limit, orbd makes room for a new connection: it closes the one that has been idle for longest, if that is at
    /// least this long. A connection without a call, subscription, job or lease is idle. One second is enough for a connection that
    /// never sent a request or whose process has more than 16 connections. Below the limits, orbd closes no idle connection.
    connection_idle_max: Duration = |_| minutes(1), Duration::from_millis(100) => days(30);
    /// Maximum number of requests per connection that are handled at once.
    requests_max: usize = |_| 128, 1 => 65_536;
    /// Maximum number of requests in one batch.
    batch_max: usize = |_| 100, 1 => 10_000;
    /// Maximum memory held per connection: requests being read or handled, input that a command has not read yet, and answers that
    /// the client has not read yet. At the limit, orbd stops reading from the connection and refuses requests that cannot wait. One
    /// request of `frame_max` always fits.
    connection_bytes_max: Bytes = |_| Bytes(8 << 20), Bytes(1 << 16) => Bytes(1 << 34);
    /// The same limit for all connections together. Each connection's first 96 KiB do not count.
    bytes_max: Bytes = |_| Bytes(64 << 20), Bytes(1 << 16) => Bytes(1 << 36);
    /// Maximum size of a request.
    frame_max: Bytes = |_| Bytes(4 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// Time limit for a client to complete a request that it has begun, and to begin its first one. An HTTP connection on which no
    /// request begins for this long is closed.
    request_timeout: Duration = |_| seconds(30), Duration::from_millis(100) => hours(1);

    /// Whether clients start orbd if it is not running. `ORBD_AUTOSTART=0` turns this off for one client.
    autostart: bool = |_| true;

    /// Log level: error, warn, info, debug or trace. A module can have its own level, as in `info,orbd::server=debug`.
    log_level: String = |_| "info".into();
    /// Log format: "text" or "json".
    log_format: LogFormat = |_| LogFormat::Text;
    /// Directory for log files when orbd runs in the background. If not set, `log` in `state_dir`.
    log_dir: Option<PathBuf> = |_| None;
    /// Maximum number of log files kept, including the current one.
    log_max_files: usize = |_| 5, 1 => 1000;
    /// Size at which a log file is rotated.
    log_max_size: Bytes = |_| Bytes(10 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// Age at which a log file is rotated.
    log_max_age: Duration = |_| days(1), minutes(1) => days(365);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> UserDirs {
        UserDirs {
            home: "/home/u".into(),
            config: "/nowhere/config".into(),
            state: "/home/u/.local/state/orbd".into(),
        }
    }

    fn load(
        file: Option<&str>,
        variables: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("written");
        }
        let flags = Flags {
            file: file.map(|_| path),
            values: flags
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        };
        let environment = variables.iter().copied().collect();
        Config::load_for(&places(), &flags, &environment).map_err(|error| {
            error
                .to_string()
                .replace(&*folder.path().to_string_lossy(), "/etc")
        })
    }

    fn check_error(file: &str, expected: &str) {
        assert_eq!(load(Some(file), &[], &[]).expect_err(file), expected);
    }

    #[test]
    fn defaults_apply_if_nothing_is_set() {
        let config = load(None, &[], &[]).expect("valid");
        assert_eq!(config, Config::defaults(&places()));
        assert_eq!(config.socket, Path::new("/home/u/.orbd/orbd.sock"));
        assert_eq!(config.origin("socket"), Origin::Default);
    }

    #[test]
    fn sample_with_every_key_uncommented_equals_the_defaults() {
        let sample = Config::sample(&places());
        let on: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' ') && !line.ends_with("\"\""))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(
            on.lines().count(),
            KEYS.len() - 2,
            "all keys but the two without a default"
        );
        let config = load(Some(&on), &[], &[]).expect("valid");
        assert_eq!(config.values(), Config::defaults(&places()).values());
        let untouched = load(Some(&sample), &[], &[]).expect("valid");
        assert_eq!(untouched.values(), Config::defaults(&places()).values());
    }

    #[test]
    fn flags_override_the_environment_which_overrides_the_file() {
        let file = "queue_max = 2000\ngrace = \"1s\"\nallow_root = true\n";
        let variables = [("ORBD_GRACE", "2s"), ("ORBD_ALLOW_ROOT", "off")];
        let config = load(Some(file), &variables, &[("allow_root", "true")]).expect("valid");
        assert_eq!(
            (config.queue_max, config.grace, config.allow_root),
            (2000, seconds(2), true)
        );
        assert!(matches!(config.origin("queue_max"), Origin::File { line: 1, .. }));
        assert_eq!(config.origin("grace"), Origin::Variable("ORBD_GRACE".into()));
        assert_eq!(config.origin("allow_root"), Origin::Flag("allow_root".into()));
    }

    #[test]
    fn orbd_strict_in_the_environment_does_not_set_strict() {
        let config = load(None, &[("ORBD_STRICT", "1")], &[]).expect("valid");
        assert!(!config.strict);
    }

    #[test]
    fn file_named_by_the_environment_must_exist() {
        let named = load(None, &[("ORBD_CONFIG", "/nowhere/x.toml")], &[]);
        assert_eq!(named, Err("cannot read the configuration /nowhere/x.toml".into()));
    }

    #[test]
    fn unknown_key_is_refused_with_the_nearest_known_key() {
        check_error(
            "strict = true\nquue_max = 5\n",
            "/etc/config.toml:2: unknown key `quue_max`; did you mean `queue_max`?",
        );
        check_error("colour = 1", "/etc/config.toml:1: unknown key `colour`");
        let flag = load(None, &[], &[("log-level", "debug")]);
        assert_eq!(
            flag,
            Err("--log-level: unknown key `log-level`; did you mean `log_level`?".into())
        );
    }

    #[test]
    fn bad_value_error_names_the_origin_the_key_and_valid_values() {
        check_error(
            "\n\ngrace = 10",
            "/etc/config.toml:3: `grace` must be a duration in quotes like \"30s\", not integer",
        );
        check_error(
            "grace = \"10 parsecs\"",
            "/etc/config.toml:1: `grace` must be a duration like \"30s\" or \"1h30m\", in d, h, m, s or ms, not \"10 parsecs\"",
        );
        check_error(
            "queue_max = 0",
            "/etc/config.toml:1: `queue_max` must be between 1 and 1000000, but is 0",
        );
        check_error(
            "queue_max = -1",
            "/etc/config.toml:1: `queue_max` cannot be negative, but is -1",
        );
        check_error(
            "strict = \"yes\"",
            "/etc/config.toml:1: `strict` must be true or false, not string",
        );
        check_error(
            "creates_max = 9",
            "/etc/config.toml:1: `creates_max` cannot be more than `changes_max`; lower `creates_max` or raise `changes_max`",
        );
        check_error(
            "orbctl = \"orbctl\"",
            "/etc/config.toml:1: `orbctl` must be an absolute path, but is orbctl",
        );
        check_error(
            "frame_max = \"16 parsecs\"",
            "/etc/config.toml:1: `frame_max` must be a size like \"64MiB\", in B, KiB, MiB, GiB or TiB, not \"16 parsecs\"",
        );
        let variable = load(None, &[("ORBD_LOG_FORMAT", "xml")], &[]);
        assert_eq!(
            variable,
            Err("$ORBD_LOG_FORMAT: `log_format` must be \"text\" or \"json\", not \"xml\"".into())
        );
        let level = load(None, &[("ORBD_LOG_LEVEL", "orbd=loud")], &[]).expect_err("refused");
        assert!(level.starts_with("$ORBD_LOG_LEVEL: `log_level` "), "{level}");
        let syntax = load(Some("strict = tru"), &[], &[]).expect_err("refused");
        assert!(
            syntax.starts_with("/etc/config.toml is not valid TOML: "),
            "{syntax}"
        );
        let twice = load(Some("strict = true\nstrict = false"), &[], &[]).expect_err("refused");
        assert!(twice.contains("duplicate key"), "{twice}");
    }

    #[test]
    fn socket_path_longer_than_103_bytes_is_refused() {
        let fits = format!("/{}", "s".repeat(SOCKET_PATH_MAX - 1));
        assert!(load(None, &[("ORBD_SOCKET", &fits)], &[]).is_ok());
        let long = format!("{fits}s");
        assert_eq!(
            load(None, &[("ORBD_SOCKET", &long)], &[]).expect_err("refused"),
            "$ORBD_SOCKET: `socket` is 104 bytes long, but a Unix socket path can have at most 103; choose a shorter path"
        );
    }

    #[test]
    fn tilde_expands_to_the_home_directory() {
        let config = load(Some("socket = \"~/o.sock\""), &[], &[]).expect("valid");
        assert_eq!(config.socket, Path::new("/home/u/o.sock"));
    }

    #[test]
    fn sample_marks_every_key_that_requires_a_restart() {
        for name in AT_START {
            assert!(KEYS.iter().any(|key| key.name == name), "{name}");
        }
        let sample = Config::sample(&places());
        assert_eq!(sample.matches("# Requires a restart.\n").count(), AT_START.len());
        assert!(sample.contains("# Requires a restart.\n#frame_max = "));
    }

    #[test]
    fn adopt_applies_keys_that_can_change_and_reports_those_that_need_a_restart() {
        let mut running = load(Some("grace = \"1s\"\nlog_dir = \"/l\""), &[], &[]).expect("valid");
        let configured = load(
            Some("queue_max = 9\nqueue_max_per_client = 9\nframe_max = 8192"),
            &[],
            &[],
        );
        let reloaded = running.adopt(configured.expect("valid"));
        let told = |differences: &[Difference]| -> Vec<String> {
            let told = differences
                .iter()
                .map(|it| format!("{} {:?} {:?}", it.key, it.from, it.to));
            told.collect()
        };
        assert_eq!(
            told(&reloaded.applied),
            [
                "queue_max Some(\"1024\") Some(\"9\")",
                "queue_max_per_client Some(\"512\") Some(\"9\")",
                "grace Some(\"1s\") Some(\"10s\")"
            ]
        );
        assert_eq!(
            told(&reloaded.needs_restart),
            [
                "frame_max Some(\"4MiB\") Some(\"8KiB\")",
                "log_dir Some(\"/l\") None"
            ]
        );
        assert_eq!((running.queue_max, running.grace), (9, seconds(10)));
        assert_eq!(running.frame_max, Bytes(4 << 20), "unchanged until a restart");
    }

    #[test]
    fn every_default_reads_back_from_its_text_form() {
        for (key, text) in Config::defaults(&places()).texts() {
            if let Some(text) = text {
                load(None, &[], &[(key, &text)]).expect(key);
            }
        }
    }

    #[test]
    fn durations_and_sizes_read_back_as_written() {
        for ms in [0, 1, 999, 1_000, 61_001, 5_400_000, 7_776_000_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(
                Duration::from_text(duration.to_toml().trim_matches('"')),
                Ok(duration)
            );
        }
        for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 30, (1 << 40) + 1] {
            assert_eq!(
                Bytes::from_text(Bytes(bytes).to_toml().trim_matches('"')),
                Ok(Bytes(bytes))
            );
        }
        assert_eq!(Duration::from_text("1h 30m"), Ok(minutes(90)));
        assert_eq!(Bytes::from_text("64 mib"), Ok(Bytes(64 << 20)));
        for wrong in ["", "5", "s", "-1s", "99999999999999999999d", "1.5h"] {
            assert!(Duration::from_text(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "MiB", "-1", "99999999999TiB", "1.5GiB"] {
            assert!(Bytes::from_text(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_default_is_within_its_bounds() {
        let defaults = Config::defaults(&places());
        for (key, value) in defaults.values() {
            if value != "\"\"" {
                let file = format!("{key} = {value}\n");
                assert!(load(Some(&file), &[], &[]).is_ok(), "{file}");
            }
        }
    }

    #[test]
    fn invalid_log_level_is_refused_and_quoted() {
        assert!(log_filter("info,orbd::rpc=debug").is_ok());
        assert!(log_filter("orbd=loud").is_err_and(|problem| problem.contains("\"orbd=loud\"")));
    }
}
