//! The environment variables, read once.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::answers::Chosen;
use crate::refusal::{Outcome, Refusal};

/// Settings of this invocation, from the environment.
#[derive(Debug)]
pub(crate) struct Settings {
    /// `HOME`: the home folder on the host.
    pub(crate) user_home: PathBuf,
    /// `ORBCTL_SIM_HOME`: the state directory.
    pub(crate) home: PathBuf,
    /// `ORBCTL_SIM_LEDGER`: the ledger of all invocations.
    pub(crate) ledger: PathBuf,
    /// `ORBCTL_SIM_SCRIPT`: the script of troubles.
    pub(crate) script: Option<PathBuf>,
    /// `ORBCTL_SIM_LATENCY`: how long each command takes.
    pub(crate) latency: Latency,
    /// `ORBCTL_SIM_ISOLATION`: how a new machine is isolated.
    pub(crate) isolation: Wanted,
    /// `ORBCTL_SIM_ANSWERS`: answers to open questions about the real tool.
    pub(crate) answers: Chosen,
}

/// The requested isolation, before it is known what this host supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The best that this host supports.
    Auto,
    /// Namespaces and an overlay of the host's root, as root.
    Root,
    /// The same through a user namespace, which is refused: see `guest::settle`.
    UserNamespace,
    /// A plain directory.
    Directory,
}

impl Settings {
    /// Reads the environment. `main` has checked that HOME is set.
    pub(crate) fn from_environment() -> Outcome<Settings> {
        let user_home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
        let path = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = path("ORBCTL_SIM_HOME").unwrap_or_else(|| user_home.join(".orbctl-sim"));
        // A relative state directory would depend on the caller's folder.
        let home = std::path::absolute(home)?;
        let latency = env::var("ORBCTL_SIM_LATENCY")
            .or_else(|_| env::var("ORBCTL_SIM_LATENCY_MS"))
            .unwrap_or_default();
        Ok(Settings {
            user_home,
            ledger: path("ORBCTL_SIM_LEDGER").unwrap_or_else(|| home.join("ledger.jsonl")),
            script: path("ORBCTL_SIM_SCRIPT"),
            latency: Latency::parse(&latency)?,
            isolation: isolation(&env::var("ORBCTL_SIM_ISOLATION").unwrap_or_default())?,
            answers: Chosen::parse(&env::var("ORBCTL_SIM_ANSWERS").unwrap_or_default())?,
            home,
        })
    }
}

fn isolation(word: &str) -> Outcome<Wanted> {
    match word {
        "" | "auto" => Ok(Wanted::Auto),
        "root" => Ok(Wanted::Root),
        "userns" => Ok(Wanted::UserNamespace),
        "dir" => Ok(Wanted::Directory),
        _ => Err(Refusal::own(format!(
            "ORBCTL_SIM_ISOLATION is '{word}'; it takes auto, root, userns or dir"
        ))),
    }
}

/// Milliseconds that each command takes by default: about a tenth of what users of the real tool measured, so that the
/// proportions stay and a demo stays short.
const DEFAULT_LATENCY: &[(&str, u64)] = &[
    ("list", 10),
    ("info", 10),
    ("status", 5),
    ("version", 5),
    ("default", 5),
    ("ssh", 5),
    ("logs", 10),
    ("config", 8),
    ("run", 25),
    ("push", 30),
    ("pull", 30),
    // Until the machine runs; its initial set-up follows.
    ("create", 1100),
    ("setup", 400),
    ("start", 300),
    ("stop", 200),
    ("restart", 500),
    ("delete", 150),
    ("rename", 30),
    ("clone", 100),
    ("export", 200),
    ("import", 120),
    ("start-orbstack", 250),
    ("stop-orbstack", 250),
    ("reset", 250),
];

/// How long a change works before it notices that its machine or OrbStack was stopped.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long each command takes.
#[derive(Debug)]
pub(crate) struct Latency {
    scale: f64,
    every: Option<u64>,
    by_command: HashMap<String, u64>,
}

impl Latency {
    /// Parses a comma list of `N` (every command takes N ms), `xF` (the defaults times F) and `command=N`. A command's
    /// own entry wins at any position.
    pub(crate) fn parse(text: &str) -> Outcome<Latency> {
        let mut latency = Latency {
            scale: 1.0,
            every: None,
            by_command: HashMap::new(),
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = || Refusal::own(format!("ORBCTL_SIM_LATENCY: '{part}' is not understood"));
            if let Some((command, ms)) = part.split_once('=') {
                let ms = ms.trim().parse().map_err(|_| bad())?;
                latency.by_command.insert(command.trim().to_owned(), ms);
            } else if let Some(scale) = part.strip_prefix('x') {
                let scale: f64 = scale.parse().map_err(|_| bad())?;
                latency.scale = if scale.is_finite() && scale >= 0.0 {
                    scale
                } else {
                    return Err(bad());
                };
            } else {
                latency.every = Some(part.parse().map_err(|_| bad())?);
            }
        }
        Ok(latency)
    }

    /// Returns the time that `command` takes.
    pub(crate) fn of(&self, command: &str) -> Duration {
        if let Some(ms) = self.by_command.get(command) {
            return Duration::from_millis(*ms);
        }
        if let Some(ms) = self.every {
            return Duration::from_millis(ms);
        }
        let default = DEFAULT_LATENCY.iter().find(|(name, _)| *name == command);
        Duration::from_millis(default.map_or(0, |(_, ms)| *ms)).mul_f64(self.scale)
    }

    /// Sleeps the whole latency of `command`.
    pub(crate) fn pass(&self, command: &str) {
        pause(self.of(command));
    }

    /// Sleeps the whole latency of `command` while `holds` is true, which is checked repeatedly. Returns whether it was
    /// true to the end.
    pub(crate) fn pass_while(&self, command: &str, mut holds: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + self.of(command);
        while holds() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            pause(left.min(LOOK_AGAIN));
        }
        false
    }

    /// Sleeps half the latency of `command`. A query reads the state between its two halves, so an answer can be older
    /// than a change that ended before the answer arrived, as with a real service.
    pub(crate) fn pass_half(&self, command: &str) {
        pause(self.of(command) / 2);
    }
}

fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}
