//! Builds one validated [`Config`] from flags, environment variables, a TOML file and defaults, in this order of precedence.
//!
//! `keys` defines every key and `value` the types of values. An error names the key, where it was set, and which values are valid.
//!
//! Only this module reads the process's environment for configuration. It does so once, into an [`Environment`]; tests build their own.

mod keys;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use keys::{Config, Difference, KEYS, Key, Reloaded, find_key};
pub use value::{Bytes, LogFormat, MachineNames, log_filter};

use value::RawValue;

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

    /// Returns the path of the copy of the program that a service runs if the installed program may not stay at its path.
    pub fn service_program_path(&self) -> PathBuf {
        self.state_dir.join("service").join("orbd")
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
