//! Computes the environment of every `orbctl`, independent of how the daemon was started.
//!
//! A shell, launchd and another program's autostart give the daemon very different environments, and its children would inherit
//! the difference for as long as the daemon runs. Only the path of the SSH agent is inherited, because it cannot be computed.
//! Variables that a caller sets for one command travel with that command ([`super::argv`]).

use std::ffi::OsString;
use std::path::Path;

use orbd_host::locate::search_folders;

use crate::sys;

/// The only variable that is inherited.
const SSH_AGENT: &str = "SSH_AUTH_SOCK";

/// Prefix of the variables that configure the simulator in tests. They are inherited too; the real `orbctl` reads none of them.
const STAND_IN: &[u8] = b"ORBCTL_SIM_";

/// The messages of `orbctl` and of the programs that it starts are matched as English text.
const LANG: &str = if cfg!(target_os = "macos") {
    "en_US.UTF-8"
} else {
    "C.UTF-8"
};

/// Returns the variables that every child gets. `given` is the daemon's own environment.
pub(super) fn of_children(
    home: &Path,
    given: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = given
        .into_iter()
        .filter(|(name, value)| {
            (name == SSH_AGENT && Path::new(value).is_absolute())
                || name.as_encoded_bytes().starts_with(STAND_IN)
        })
        .collect();
    // A folder with a colon in its name cannot be an entry of PATH.
    let folders = search_folders(home)
        .into_iter()
        .filter(|folder| !folder.as_os_str().as_encoded_bytes().contains(&b':'));
    let path = std::env::join_paths(folders).unwrap_or_default();
    let mut set = |name: &str, value: OsString| variables.push((name.into(), value));
    // Without HOME, `orbctl` panics.
    set("HOME", home.into());
    set("PATH", path);
    set("LANG", LANG.into());
    if let Some(account) = sys::account() {
        set("USER", account.name.clone());
        set("LOGNAME", account.name);
        set("SHELL", account.shell);
    }
    if let Some(folder) = sys::temporary_folder() {
        set("TMPDIR", folder);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ssh_agent_is_inherited() {
        let given = [
            ("PATH", "/somewhere"),
            ("HOME", "/missing"),
            ("LANG", "de_DE"),
            ("TMPDIR", "/tmp/nix-shell"),
            ("SHELL", "/bin/odd"),
            ("ORBENV", "SECRET"),
            ("SECRET", "x"),
            ("https_proxy", "http://proxy"),
            ("DISPLAY", ":0"),
            ("TERM", "xterm"),
            ("DYLD_INSERT_LIBRARIES", "x"),
            ("ORBD_SOCKET", "x"),
            ("NOTIFY_SOCKET", "x"),
            ("SSH_AUTH_SOCK", "/run/agent"),
        ];
        let variables = of_children(
            Path::new("/home/u"),
            given.map(|(name, value)| (name.into(), value.into())),
        );
        let value = |name: &str| {
            let mut values = variables.iter().filter(|(other, _)| other == name);
            let value = values.next().map(|(_, value)| value.to_str().expect("text"));
            assert!(values.next().is_none(), "{name} is set twice");
            value
        };
        assert_eq!(value("HOME"), Some("/home/u"));
        assert_eq!(
            value("PATH"),
            Some("/home/u/.orbstack/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        );
        assert_eq!(value("LANG"), Some(LANG));
        assert_eq!(value("SSH_AUTH_SOCK"), Some("/run/agent"));
        assert_ne!(value("SHELL"), Some("/bin/odd"));
        assert_ne!(value("TMPDIR"), Some("/tmp/nix-shell"));
        let known = [
            "HOME",
            "PATH",
            "LANG",
            "USER",
            "LOGNAME",
            "SHELL",
            "TMPDIR",
            "SSH_AUTH_SOCK",
        ];
        for (name, _) in &variables {
            assert!(known.iter().any(|known| name == known), "{}", name.display());
        }
    }

    #[test]
    fn a_relative_ssh_agent_is_dropped() {
        let given = [("SSH_AUTH_SOCK".into(), "agent".into())];
        let variables = of_children(Path::new("/"), given);
        assert!(variables.iter().all(|(name, _)| name != SSH_AGENT));
    }
}
