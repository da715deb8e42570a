//! Environment variables that a caller passes to a command in a machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use crate::token::token;

/// The variable that lists, separated by colons, the caller's variables that `orbctl run` passes to the guest.
pub const ORBENV: &str = "ORBENV";

/// Variables of the caller that `orbctl run` always reads or passes to the guest.
const READ_BY_ORBCTL: [&str; 11] = [
    ORBENV,
    "TERM",
    "DISPLAY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// The variables that `orbctl run` would pass to the guest if the caller had started it: `ORBENV`, the variables listed in it, the
/// proxy variables, `TERM` and `DISPLAY`. The values may hold secrets, so `Debug` prints only their number.
#[derive(Clone, PartialEq, Default)]
pub struct CallerEnv(BTreeMap<String, String>);

/// Why a variable is not allowed in a [`CallerEnv`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerEnvError {
    /// `orbctl run` would not pass it to the guest.
    #[error("`{0}` is neither listed in ORBENV nor a proxy variable, TERM or DISPLAY")]
    NotListed(String),
    /// Its value contains a NUL byte, which an environment cannot hold.
    #[error("the value of {0} contains a NUL byte")]
    Nul(String),
    /// Its value is not UTF-8, which JSON cannot carry.
    #[error("the value of {0} in the environment is not UTF-8")]
    NotUtf8(String),
}

impl CallerEnv {
    /// Creates the set, and rejects a variable that `orbctl run` would not read or pass on.
    pub fn new(variables: BTreeMap<String, String>) -> Result<Self, CallerEnvError> {
        let orbenv = variables.get(ORBENV).map_or("", String::as_str);
        for (name, value) in &variables {
            if !READ_BY_ORBCTL.contains(&name.as_str()) && !listed(orbenv).any(|listed| listed == name) {
                return Err(CallerEnvError::NotListed(name.clone()));
            }
            if value.contains('\0') {
                return Err(CallerEnvError::Nul(name.clone()));
            }
        }
        Ok(Self(variables))
    }

    /// Collects the variables from an environment; `read` returns the value of one variable.
    pub fn collect(read: impl Fn(&str) -> Option<OsString>) -> Result<Self, CallerEnvError> {
        let text = |name: &str| {
            read(name)
                .map(|value| {
                    value
                        .into_string()
                        .map_err(|_| CallerEnvError::NotUtf8(name.into()))
                })
                .transpose()
        };
        let orbenv = text(ORBENV)?.unwrap_or_default();
        let mut variables = BTreeMap::new();
        for name in READ_BY_ORBCTL.into_iter().chain(listed(&orbenv)) {
            if let Some(value) = text(name)? {
                variables.insert(name.to_owned(), value);
            }
        }
        Ok(Self(variables))
    }

    /// Returns the variables by name.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for CallerEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallerEnv({})", self.0.len())
    }
}

/// Returns the names listed in the value of `ORBENV`. A `/` in an entry starts its flags, as in WSLENV.
fn listed(orbenv: &str) -> impl Iterator<Item = &str> {
    orbenv
        .split(':')
        .map(listed_name)
        .filter(|name| is_env_name(name) && !name.starts_with("ORBD_"))
}

/// Returns the name in one entry of `ORBENV`, without its flags.
pub fn listed_name(entry: &str) -> &str {
    entry.split('/').next().unwrap_or_default()
}

fn is_env_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Returns whether every `sh` (tested: dash, bash and busybox) exports exactly the value assigned to this name. Shells treat some
/// names as read-only or special, and orbd uses `ORBD_E0`, `ORBD_E1` and so on to transfer values.
fn is_exported_as_given(name: &str) -> bool {
    const SET_BY_SH: [&str; 19] = [
        "_",
        "UID",
        "EUID",
        "PPID",
        "BASHOPTS",
        "BASHPID",
        "SHELLOPTS",
        "SHLVL",
        "OPTIND",
        "LINENO",
        "RANDOM",
        "SRANDOM",
        "SECONDS",
        "EPOCHSECONDS",
        "EPOCHREALTIME",
        "GROUPS",
        "DIRSTACK",
        "HISTCMD",
        "FUNCNAME",
    ];
    !SET_BY_SH.contains(&name)
        && (!name.starts_with("BASH_") || name == "BASH_ENV")
        && !name
            .strip_prefix("ORBD_E")
            .is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
}

token! {
    /// The name of an environment variable.
    EnvName, "environment variable name: letters, digits and '_', not starting with a digit, and none that `sh` sets itself or cannot \
              export, such as UID or RANDOM",
    |t| is_env_name(t) && is_exported_as_given(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        variables.iter().map(owned).collect()
    }

    #[test]
    fn caller_env_accepts_only_variables_that_orbctl_run_reads() {
        let given = env(&[
            ("ORBENV", "TOKEN:CI/p"),
            ("TOKEN", "1"),
            ("CI", "2"),
            ("no_proxy", "x"),
            ("TERM", "t"),
        ]);
        assert_eq!(
            CallerEnv::new(given.clone()).expect("allowed").variables(),
            &given
        );
        let refused = |variables: &[(&str, &str)]| CallerEnv::new(env(variables)).expect_err("refused");
        let not_listed = |name: &str| CallerEnvError::NotListed(name.into());
        assert_eq!(refused(&[("TOKEN", "1")]), not_listed("TOKEN"));
        assert_eq!(refused(&[("ORBENV", "A:B"), ("PATH", "/x")]), not_listed("PATH"));
        assert_eq!(
            refused(&[("ORBENV", "ORBD_JOB"), ("ORBD_JOB", "x")]),
            not_listed("ORBD_JOB")
        );
        assert_eq!(refused(&[("TERM", "a\0")]), CallerEnvError::Nul("TERM".into()));
    }

    #[test]
    fn caller_env_collects_only_variables_that_orbctl_run_reads() {
        let all = env(&[
            ("ORBENV", "A:UNSET:a b"),
            ("A", "1"),
            ("B", "2"),
            ("HTTPS_PROXY", "p"),
            ("HOME", "/h"),
        ]);
        let collected = CallerEnv::collect(|name| all.get(name).map(OsString::from)).expect("text");
        assert_eq!(
            collected.variables(),
            &env(&[("ORBENV", "A:UNSET:a b"), ("A", "1"), ("HTTPS_PROXY", "p")])
        );
        assert_eq!(CallerEnv::new(collected.variables().clone()), Ok(collected));
    }

    #[test]
    fn env_name_that_sh_cannot_export_is_rejected() {
        for name in [
            "UID",
            "RANDOM",
            "_",
            "BASH_ARGV",
            "ORBD_E0",
            "ORBD_E12",
            "1A",
            "A-B",
            "",
        ] {
            assert!(name.parse::<EnvName>().is_err(), "{name}");
        }
        for name in ["A", "_A", "PATH", "BASH_ENV", "ORBD_EX", "ORBD_SOCKET", "IFS"] {
            assert!(name.parse::<EnvName>().is_ok(), "{name}");
        }
    }
}
