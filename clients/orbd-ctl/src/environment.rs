//! The environment variables that the client uses.

use std::ffi::OsString;
use std::path::PathBuf;

/// The environment variables that the client uses, read once at start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// `$ORBD_SOCKET`, unless empty.
    pub(crate) socket: Option<PathBuf>,
    /// `$ORBD_MACHINE`, unless empty.
    pub(crate) machine: Option<String>,
    /// `$HOME`, unless empty.
    pub(crate) home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`, if it is an absolute path.
    pub(crate) config_home: Option<PathBuf>,
    /// `$PATH`, unless empty.
    pub(crate) path: Option<OsString>,
    /// `$ORBD_AUTOSTART` forbids starting the daemon.
    pub(crate) autostart_off: bool,
    /// `$NO_COLOR` is not empty, or `$TERM` is `dumb`.
    pub(crate) colour_off: bool,
}

impl Environment {
    /// Reads the process environment.
    pub(crate) fn read() -> Self {
        Self::of(variable)
    }

    fn of(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = |name: &str| get(name).filter(|value| !value.is_empty());
        Self {
            socket: given("ORBD_SOCKET").map(PathBuf::from),
            // A value that is not UTF-8 is no machine's name; the daemon refuses what is left of it.
            machine: given("ORBD_MACHINE").map(|name| name.to_string_lossy().into_owned()),
            home: given("HOME").map(PathBuf::from),
            config_home: given("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute()),
            path: given("PATH"),
            autostart_off: given("ORBD_AUTOSTART").is_some_and(|value| {
                ["0", "no", "off", "false"]
                    .iter()
                    .any(|no| value.eq_ignore_ascii_case(no))
            }),
            colour_off: given("NO_COLOR").is_some() || given("TERM").is_some_and(|term| term == "dumb"),
        }
    }
}

/// Returns an environment variable.
#[expect(
    clippy::disallowed_methods,
    reason = "the client has no configuration, and reads the environment only here"
)]
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let environment = Environment::of(|name| match name {
            "ORBD_SOCKET" | "NO_COLOR" => Some("".into()),
            "ORBD_AUTOSTART" => Some("Off".into()),
            "HOME" => Some("/home/me".into()),
            _ => None,
        });
        assert_eq!(environment.socket, None);
        assert!(!environment.colour_off);
        assert!(environment.autostart_off);
        assert_eq!(environment.home, Some("/home/me".into()));
    }
}
