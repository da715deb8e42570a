//! One valid [`Config`] from flags, environment, a TOML file and defaults, in this order of precedence.
//!
//! Every key is one line of the table at the bottom: name, type, default, bounds and what it means. The struct, the parser, the
//! environment names (`ORBD_` and the key in capitals), the check for misspelt keys and the documented sample all come from it.
//! An error names the key, where it was set, and what would be right.
//!
//! The environment is read here and nowhere else, once, into an [`Environment`] that tests fill themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::logging::LogFormat;
use crate::orbctl::argv::GuestEnv;

/// The longest path of a Unix socket, in bytes: what macOS has room for, less the final NUL.
pub const SOCKET_PATH_MAX: usize = 103;

/// The longest configuration file that is read.
const FILE_MAX: u64 = 1 << 20;

/// The variable that names the configuration file.
const FILE_VARIABLE: &str = "ORBD_CONFIG";

/// The environment as it was when the process started.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads the process's environment. Variables that are not Unicode are left out.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Returns a variable that is set and not empty.
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

/// Where this user's files lie on this platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDirs {
    /// The user's home.
    pub home: PathBuf,
    /// Where the configuration file is looked for.
    pub config: PathBuf,
    /// Where journal, metrics, spools and logs go.
    pub state: PathBuf,
}

impl UserDirs {
    /// Finds them: under `~/Library/Application Support/dev.orbd.orbd` on a Mac, where XDG says on Linux.
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

/// Values given on the command line, by key, and the file if one was named there.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The configuration file to read instead of the usual one.
    pub file: Option<PathBuf>,
    /// Keys and their values, as text.
    pub values: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file, at this line.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// The command line.
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

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The user has no home directory.
    #[error("the home directory is not known: set HOME")]
    NoHome,
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// There is no such key.
    #[error("{origin}: there is no key `{key}`{}", nearest.map_or_else(String::new, |near| format!("; did you mean `{near}`?")))]
    UnknownKey {
        /// Where it was set.
        origin: Origin,
        /// The key.
        key: String,
        /// The key that it looks like.
        nearest: Option<&'static str>,
    },
    /// A value does not fit its key.
    #[error("{origin}: `{key}` {problem}")]
    BadValue {
        /// Where it was set.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What would be right.
        problem: String,
    },
}

/// A type of value that a key can have.
trait Value: Sized + PartialEq {
    /// Reads it from the file.
    fn from_toml(value: &toml::Value) -> Result<Self, String>;
    /// Reads it from the environment or a flag.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Writes it as TOML.
    fn to_toml(&self) -> String;
    /// Writes it as [`Value::from_text`] reads it; `None` where nothing is set.
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
            return Err("must be a path".into());
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

/// An optional value has no default; the sample shows what would be found.
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

/// Checks a value against the bounds of its key.
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

/// One key as errors, the sample and `config check` know it.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
}

impl Key {
    /// Returns the environment variable that sets it, if one does.
    pub fn variable(&self) -> Option<String> {
        // `ORBD_STRICT` is the drop-in's. Whoever sets that for all his programs must not slow the daemon that one of them starts.
        (self.name != "strict").then(|| format!("ORBD_{}", self.name.to_ascii_uppercase()))
    }

    /// Says whether it is read only when orbd starts, so that a reload does not change it.
    pub fn needs_restart(&self) -> bool {
        AT_START.contains(&self.name)
    }
}

/// Keys that are read once, when orbd starts: what is opened, bound or started by then cannot be changed under those who use it.
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

/// What a process reads its configuration from, again whenever it is asked to.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Where the user's files lie.
    pub places: UserDirs,
    /// The command line.
    pub flags: Flags,
    /// The environment as it was at the start.
    pub environment: Environment,
}

impl Sources {
    /// Reads the configuration.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load_for(&self.places, &self.flags, &self.environment)
    }
}

/// A key that has one value here and another there; `None` where nothing is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: &'static str,
    /// Its value before.
    pub from: Option<String>,
    /// Its value now.
    pub to: Option<String>,
}

/// What a reload comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Keys that have their new values.
    pub applied: Vec<Difference>,
    /// Keys that keep their old values until orbd is restarted.
    pub needs_restart: Vec<Difference>,
}

/// A value as one of the sources gives it.
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
        /// Everything that can be configured. Fields are the keys of the file; every value was checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)+
            origins: BTreeMap<&'static str, Origin>,
            file: Option<PathBuf>,
        }

        /// Every key, in the order of the sample.
        pub const KEYS: &[Key] = &[$(Key { name: stringify!($name), help: concat!($($doc, "\n"),+) },)+];

        impl Config {
            /// Returns the defaults for a user whose files lie there.
            pub fn defaults(places: &UserDirs) -> Self {
                // Each default may use where this user's files lie.
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

            /// Returns every key's value as TOML, in the order of the sample.
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.to_toml()),)+]
            }

            /// Returns every key's value as a flag or a variable would give it, in the order of the sample; `None` where nothing
            /// is set.
            pub fn texts(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name.to_text()),)+]
            }

            /// Takes over what can be changed while orbd runs, and says what was and what was not.
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
    /// Reads the configuration of this process.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        Self::load_for(&UserDirs::of_this_user()?, flags, environment)
    }

    /// Reads the configuration of a user whose files lie at `places`.
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

    /// Returns the file that was read, if there was one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns where a key's value came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Returns a documented file with every key at its default.
    pub fn sample(places: &UserDirs) -> String {
        let mut text = String::from(
            "# orbd's configuration. Every key is shown with its default; remove the # to change it.\n\
             # Durations are in d, h, m, s and ms, sizes in B, KiB, MiB, GiB and TiB.\n\
             # An environment variable ORBD_<KEY> goes before this file, a flag before both.\n\
             # `orbd-ctl daemon reload` makes a running orbd read this file again; where a restart is needed that is said.\n",
        );
        for (key, (name, value)) in KEYS.iter().zip(Self::defaults(places).values()) {
            text.push('\n');
            for line in key.help.lines() {
                let _ = writeln!(text, "# {}", line.trim());
            }
            if key.needs_restart() {
                text.push_str("# A change needs a restart.\n");
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

    /// Checks what concerns more than one value or more than a number, and completes paths.
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
                "has {length} bytes, and the path of a Unix socket has at most {SOCKET_PATH_MAX}: choose a shorter one"
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
        crate::logging::check_level(&self.log_level).map_err(|problem| self.bad("log_level", problem))
    }

    fn bad(&self, key: &'static str, problem: String) -> ConfigError {
        ConfigError::BadValue {
            origin: self.origin(key),
            key,
            problem,
        }
    }

    /// Returns where the journal is.
    pub fn journal_path(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    /// Returns the folder of the metrics.
    pub fn metrics_dir(&self) -> PathBuf {
        self.state_dir.join("metrics")
    }

    /// Returns the folder of spooled output.
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// Returns the folder of the logs.
    pub fn log_folder(&self) -> PathBuf {
        self.log_dir.clone().unwrap_or_else(|| self.state_dir.join("log"))
    }

    /// Returns how the metrics are kept.
    pub fn metrics(&self) -> io::Result<crate::metrics::Settings> {
        let mut settings = crate::metrics::Settings::new(self.metrics_dir())?;
        settings.history_max = self.history_max;
        settings.history_max_age = self.history_max_age;
        Ok(settings)
    }

    /// Returns how logs are written.
    pub fn logging(&self, to: crate::logging::Destination) -> crate::logging::Settings {
        crate::logging::Settings {
            level: self.log_level.clone(),
            format: self.log_format,
            to,
            folder: self.log_folder(),
            files_max: self.log_max_files,
            file_size_max: self.log_max_size.0,
            file_age_max: self.log_max_age,
        }
    }
}

/// Returns the file that is read, whether or not it is there: the named one, else the usual one.
pub fn file_in_use(places: &UserDirs, flags: &Flags, environment: &Environment) -> PathBuf {
    named_file(flags, environment).unwrap_or_else(|| default_file(places))
}

fn named_file(flags: &Flags, environment: &Environment) -> Option<PathBuf> {
    flags
        .file
        .clone()
        .or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from))
}

/// Returns the file's path and text. A file that was named must be there; the usual one need not.
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
            return Err(io::Error::other(format!("it is longer than {FILE_MAX} bytes")));
        }
        std::fs::read_to_string(&path)
    };
    match read() {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Unreadable { path, source }),
    }
}

/// Returns where the configuration is looked for when nobody names a file.
pub fn default_file(places: &UserDirs) -> PathBuf {
    places.config.join("config.toml")
}

/// Finds a key by its name; else says which one looks like it.
pub fn find_key(name: &str) -> Result<&'static Key, Option<&'static str>> {
    KEYS.iter()
        .find(|key| key.name == name)
        .ok_or_else(|| nearest(name, KEYS.iter().map(|key| key.name)))
}

/// Returns the known name that a misspelt one is close to.
fn nearest(key: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    known
        .map(|name| (distance(&key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .map(|(_, name)| name)
}

/// Counts the characters to insert, remove or replace on the way from one text to the other.
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
    /// The socket that clients connect to. At most 103 bytes.
    socket: PathBuf = |places| places.home.join(".orbd/orbd.sock");
    /// Where orbctl is. Looked for on PATH and in the usual places when not set.
    orbctl: Option<PathBuf> = |_| None;
    /// Where journal, metrics and spooled output go.
    state_dir: PathBuf = |places| places.state.clone();
    /// Allow running as root.
    allow_root: bool = |_| false;

    /// One invocation at a time, of all kinds but sessions. No variable sets this: `ORBD_STRICT` is the drop-in's.
    strict: bool = |_| false;
    /// At most so many reads run at once.
    queries_max: usize = |_| 4, 1 => 64;
    /// At most so many commands and file transfers run at once in one machine.
    exec_per_machine: usize = |_| 4, 1 => 256;
    /// At most so many commands and file transfers run at once in all.
    exec_max: usize = |_| 128, 1 => 4096;
    /// At most so many changes of machines run at once.
    changes_max: usize = |_| 8, 1 => 256;
    /// At most so many of them create or import a machine.
    creates_max: usize = |_| 2, 1 => 64;
    /// At most so many jobs wait; more are refused.
    queue_max: usize = |_| 1024, 1 => 1_000_000;
    /// At most so many jobs of one client wait; more are refused.
    queue_max_per_client: usize = |_| 512, 1 => 1_000_000;
    /// How long a job may wait, unless its caller says otherwise.
    queue_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// How long a read may run.
    query_timeout: Duration = |_| seconds(30), seconds(1) => hours(1);
    /// How long a change of a machine may run.
    change_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// How long creating or importing a machine may run.
    create_timeout: Duration = |_| minutes(30), seconds(1) => days(1);
    /// How long a change of OrbStack as a whole may run.
    fleet_timeout: Duration = |_| minutes(5), seconds(1) => days(1);
    /// How long a change of settings may run.
    config_timeout: Duration = |_| minutes(1), seconds(1) => hours(1);
    /// How long a child has between being asked to end and being killed.
    grace: Duration = |_| seconds(10), Duration::from_millis(100) => minutes(10);

    /// How the variables of a command reach the guest: "orbenv" passes the values in the environment of that one orbctl, under names
    /// that its ORBENV lists; "argv" passes them as arguments, which every user of this computer can read.
    guest_env: GuestEnv = |_| GuestEnv::Orbenv;

    /// The oldest observation that anybody is answered with.
    cache_max_age: Duration = |_| seconds(30), Duration::ZERO => days(1);
    /// How soon orbd looks again while somebody is subscribed to events of machines. While nothing changes the pauses grow
    /// to ten seconds; without a subscriber there are no looks.
    watch_interval: Duration = |_| seconds(2), Duration::from_millis(100) => hours(1);

    /// At most so much output of one job is kept.
    spool_max: Bytes = |_| Bytes(1 << 30), Bytes(1 << 16) => Bytes(1 << 40);
    /// At most so much output of all jobs is kept.
    spool_total_max: Bytes = |_| Bytes(4 << 30), Bytes(1 << 16) => Bytes(1 << 43);
    /// How long ended jobs and their output are kept.
    jobs_keep: Duration = |_| minutes(15), seconds(1) => days(30);
    /// At most so many ended jobs are kept. With 0 only those who already wait for a job or follow it are told its end.
    jobs_keep_max: usize = |_| 1000, 0 => 1_000_000;

    /// At most so many records of operations are kept.
    history_max: u64 = |_| 100_000, 0 => 10_000_000;
    /// How long records of operations are kept. Sums per hour and day are kept for longer.
    history_max_age: Duration = |_| days(90), minutes(1) => days(3660);

    /// At most this many connections are open at once. One in 64 of them, at most 8, is kept for `daemon.*` calls.
    connections_max: usize = |_| 512, 1 => 65_536;
    /// At most this many connections of one process are open at once.
    connections_max_per_process: usize = |_| 128, 1 => 65_536;
    /// When as many connections are open as may be and one more comes, the connection that has been idle for longest, and for at
    /// least this long, is closed for it. A connection without a call, subscription, job or lease is idle. One that never sent a
    /// request, or whose process has more than 16, is not protected: a second is enough. While there is room none is closed.
    connection_idle_max: Duration = |_| minutes(1), Duration::from_millis(100) => days(30);
    /// At most so many requests of one connection are answered at once.
    requests_max: usize = |_| 128, 1 => 65_536;
    /// At most so many requests are sent in one batch.
    batch_max: usize = |_| 100, 1 => 10_000;
    /// At most this many bytes of one connection are held: requests that are read or handled, input that a command has not taken,
    /// unread answers. Beyond it no more is read, and what cannot wait is refused. One request of `frame_max` always fits.
    connection_bytes_max: Bytes = |_| Bytes(8 << 20), Bytes(1 << 16) => Bytes(1 << 34);
    /// The same of all connections together, beside 96 KiB that each has for itself.
    bytes_max: Bytes = |_| Bytes(64 << 20), Bytes(1 << 16) => Bytes(1 << 36);
    /// The longest request.
    frame_max: Bytes = |_| Bytes(4 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// How long a client may take to send a request that it has begun, and until its first one. An HTTP connection on which no
    /// request begins for this long is closed.
    request_timeout: Duration = |_| seconds(30), Duration::from_millis(100) => hours(1);

    /// Whether clients start orbd when it does not run. `ORBD_AUTOSTART=0` does the same for one client.
    autostart: bool = |_| true;

    /// How much is logged: error, warn, info, debug or trace, also per module as in `info,orbd::rpc=debug`.
    log_level: String = |_| "info".into();
    /// How logs look: "text" or "json".
    log_format: LogFormat = |_| LogFormat::Text;
    /// Where logs go when running in the background. `log` in `state_dir` when not set.
    log_dir: Option<PathBuf> = |_| None;
    /// At most so many log files are kept.
    log_max_files: usize = |_| 5, 1 => 1000;
    /// A log file is closed and the next begun at this size.
    log_max_size: Bytes = |_| Bytes(10 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// A log file is closed and the next begun at this age.
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
    fn without_anything_set_the_defaults_hold() {
        let config = load(None, &[], &[]).expect("valid");
        assert_eq!(config, Config::defaults(&places()));
        assert_eq!(config.socket, Path::new("/home/u/.orbd/orbd.sock"));
        assert_eq!(config.origin("socket"), Origin::Default);
    }

    #[test]
    fn the_sample_with_every_key_switched_on_equals_the_defaults() {
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
            "all but the two that have no default"
        );
        let config = load(Some(&on), &[], &[]).expect("valid");
        assert_eq!(config.values(), Config::defaults(&places()).values());
        let untouched = load(Some(&sample), &[], &[]).expect("valid");
        assert_eq!(untouched.values(), Config::defaults(&places()).values());
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
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
    fn what_the_drop_in_is_told_makes_no_daemon_strict() {
        let config = load(None, &[("ORBD_STRICT", "1")], &[]).expect("valid");
        assert!(!config.strict);
    }

    #[test]
    fn the_file_can_be_named_by_the_environment_and_must_then_exist() {
        let named = load(None, &[("ORBD_CONFIG", "/nowhere/x.toml")], &[]);
        assert_eq!(named, Err("cannot read the configuration /nowhere/x.toml".into()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        check_error(
            "strict = true\nquue_max = 5\n",
            "/etc/config.toml:2: there is no key `quue_max`; did you mean `queue_max`?",
        );
        check_error("colour = 1", "/etc/config.toml:1: there is no key `colour`");
        let flag = load(None, &[], &[("log-level", "debug")]);
        assert_eq!(
            flag,
            Err("--log-level: there is no key `log-level`; did you mean `log_level`?".into())
        );
    }

    #[test]
    fn an_error_names_the_place_the_key_and_what_would_be_right() {
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
    fn a_socket_path_that_no_socket_can_have_is_refused() {
        let fits = format!("/{}", "s".repeat(SOCKET_PATH_MAX - 1));
        assert!(load(None, &[("ORBD_SOCKET", &fits)], &[]).is_ok());
        let long = format!("{fits}s");
        assert_eq!(
            load(None, &[("ORBD_SOCKET", &long)], &[]).expect_err("refused"),
            "$ORBD_SOCKET: `socket` has 104 bytes, and the path of a Unix socket has at most 103: choose a shorter one"
        );
    }

    #[test]
    fn a_tilde_is_the_home_of_the_user() {
        let config = load(Some("socket = \"~/o.sock\""), &[], &[]).expect("valid");
        assert_eq!(config.socket, Path::new("/home/u/o.sock"));
    }

    #[test]
    fn what_is_read_once_is_a_key_and_is_told_in_the_sample() {
        for name in AT_START {
            assert!(KEYS.iter().any(|key| key.name == name), "{name}");
        }
        let sample = Config::sample(&places());
        assert_eq!(
            sample.matches("# A change needs a restart.\n").count(),
            AT_START.len()
        );
        assert!(sample.contains("# A change needs a restart.\n#frame_max = "));
    }

    #[test]
    fn a_running_configuration_takes_over_what_it_can_and_says_what_it_cannot() {
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
        assert_eq!(running.frame_max, Bytes(4 << 20), "what was opened stays");
    }

    #[test]
    fn every_value_reads_back_as_it_is_told() {
        for (key, text) in Config::defaults(&places()).texts() {
            if let Some(text) = text {
                load(None, &[], &[(key, &text)]).expect(key);
            }
        }
    }

    #[test]
    fn durations_and_sizes_survive_being_written() {
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
}
