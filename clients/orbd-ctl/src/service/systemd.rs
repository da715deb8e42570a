//! systemd's user manager: the unit file, and the invocations of `systemctl --user`.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;

use super::{DESCRIPTORS, Description, Manager, State, THROTTLE_S, refused, tool};
use crate::error::CliError;

/// Name of the unit and of its file.
pub(super) const UNIT: &str = "orbd.service";

const SYSTEMCTL: &str = "systemctl";

/// systemd's user manager of the current user.
pub(super) struct Systemd;

const NO_MANAGER: &str = "systemd's user manager is not running: log in, or run `loginctl enable-linger` as an administrator; \
                          until then `orbd-ctl daemon start` runs orbd without a service";

impl Systemd {
    fn must(words: &[&str], hint: &str) -> Result<(), CliError> {
        let arguments: Vec<&str> = ["--user"].iter().chain(words).copied().collect();
        let output = tool(SYSTEMCTL, &arguments)?;
        if output.status.success() {
            return Ok(());
        }
        Err(refused(SYSTEMCTL, &arguments, &output, hint))
    }
}

impl Manager for Systemd {
    fn text(&self, description: &Description) -> Result<Vec<u8>, CliError> {
        unit(description)
            .map(String::into_bytes)
            .map_err(|value| CliError::Usage {
                message: format!("{value:?} cannot be written into a unit file"),
                hint: "paths in a unit file must be UTF-8 without control characters".into(),
            })
    }

    fn check(&self) -> Result<(), CliError> {
        Self::must(&["show-environment"], NO_MANAGER)
    }

    fn load(&self) -> Result<(), CliError> {
        Self::must(&["daemon-reload"], NO_MANAGER)?;
        Self::must(
            &["enable", "--now", UNIT],
            "`systemctl --user status orbd` and `journalctl --user -u orbd` show details",
        )
    }

    fn unload(&self) -> Result<(), CliError> {
        Self::must(
            &["disable", "--now", UNIT],
            "`systemctl --user status orbd` shows details",
        )
    }

    fn start(&self) -> Result<(), CliError> {
        Self::must(
            &["start", UNIT],
            "`systemctl --user status orbd` and `journalctl --user -u orbd` show details",
        )
    }

    fn stop(&self) -> Result<(), CliError> {
        Self::must(&["stop", UNIT], "`systemctl --user status orbd` shows details")
    }

    fn state(&self) -> Result<State, CliError> {
        let arguments = [
            "--user",
            "show",
            UNIT,
            "--property=LoadState,UnitFileState,MainPID,ExecMainStatus,ExecMainExitTimestampMonotonic",
        ];
        let output = tool(SYSTEMCTL, &arguments)?;
        if !output.status.success() {
            return Err(refused(SYSTEMCTL, &arguments, &output, NO_MANAGER));
        }
        Ok(read_state(&String::from_utf8_lossy(&output.stdout)))
    }

    fn search_path(&self, text: &[u8]) -> Option<OsString> {
        // The format that `unit` writes. Escapes are not undone: the escaped characters do not occur in directories on a PATH.
        let text = std::str::from_utf8(text).ok()?;
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("Environment=\"PATH=")?.strip_suffix('"'))?;
        Some(path.into())
    }

    fn program(&self, text: &[u8]) -> Option<PathBuf> {
        let text = std::str::from_utf8(text).ok()?;
        let word = text.lines().find_map(|line| line.strip_prefix("ExecStart="))?;
        Some(unquoted_word(word).into())
    }
}

fn read_state(text: &str) -> State {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let has_ended = !matches!(value("ExecMainExitTimestampMonotonic"), "" | "0");
    State {
        loaded: value("LoadState") == "loaded"
            && matches!(value("UnitFileState"), "enabled" | "enabled-runtime"),
        pid: value("MainPID").parse().ok().filter(|pid| *pid != 0),
        last_exit: has_ended.then(|| value("ExecMainStatus").parse().ok()).flatten(),
    }
}

/// Builds the unit file. See systemd.service(5) and systemd.exec(5) for the keys. Fails with a value that cannot be written.
fn unit(description: &Description) -> Result<String, String> {
    let mut environment = String::new();
    for (name, value) in description.environment() {
        let _ = writeln!(
            environment,
            "Environment={}",
            quoted(&format!("{name}={}", plain(&value)?))
        );
    }
    Ok(format!(
        "[Unit]\n\
         Description=orbd, the daemon that runs all orbctl invocations\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={program}\n\
         # Reloads the configuration; orbd.log has the result.\n\
         ExecReload=/bin/kill -HUP $MAINPID\n\
         {environment}\
         # Restart after a crash, but not after a graceful stop.\n\
         Restart=on-failure\n\
         RestartSec={THROTTLE_S}\n\
         # Running changes continue when orbd stops, and the next instance finds them.\n\
         KillMode=process\n\
         TimeoutStopSec={stop}\n\
         LimitNOFILE={DESCRIPTORS}\n\
         UMask=0077\n\
         StandardOutput=append:{said}\n\
         StandardError=inherit\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
        program = command_word(plain(description.program.as_os_str())?),
        stop = description.stop_limit.as_secs(),
        said = unquoted(plain(description.said.as_os_str())?),
    ))
}

/// Returns the value as text if a unit file can contain it: UTF-8 without control characters.
fn plain(value: &OsStr) -> Result<&str, String> {
    value
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| value.to_string_lossy().into_owned())
}

/// Quotes a value for a unit file, and escapes the characters that systemd interprets.
fn quoted(text: &str) -> String {
    let mut word = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => word.extend(['\\', letter]),
            '%' => word.push_str("%%"),
            other => word.push(other),
        }
    }
    word.push('"');
    word
}

/// Quotes an argument of a command line, in which systemd also expands variables.
fn command_word(text: &str) -> String {
    quoted(text).replace('$', "$$")
}

/// Undoes [`command_word`]. A word without quotes ends at the first space.
fn unquoted_word(text: &str) -> String {
    let Some(text) = text.strip_prefix('"') else {
        return text.split(' ').next().unwrap_or_default().to_owned();
    };
    let mut word = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' | '%' | '$' => word.extend(letters.next()),
            other => word.push(other),
        }
    }
    word
}

/// Escapes an unquoted value, in which systemd interprets only `%`.
fn unquoted(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::super::tests::description;
    use super::*;

    #[test]
    fn unit_file_has_the_expected_lines() {
        let text = unit(&description()).expect("a unit");
        for line in [
            "ExecStart=\"/opt/homebrew/bin/orbd\"",
            "Environment=\"HOME=/Users/me & co\"",
            "Environment=\"PATH=/usr/bin:/bin\"",
            "Restart=on-failure",
            "RestartSec=5",
            "KillMode=process",
            "TimeoutStopSec=30",
            "LimitNOFILE=16384",
            "StandardOutput=append:/Users/me & co/.orbd/orbd.err",
            "WantedBy=default.target",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(quoted("a \"b\" 100% $HOME \\"), r#""a \"b\" 100%% $HOME \\""#);
        assert_eq!(command_word("$HOME"), r#""$$HOME""#);
        for path in ["/opt/orbd", "/a \"b\" 100% $HOME \\/orbd"] {
            assert_eq!(unquoted_word(&command_word(path)), path);
        }
        assert_eq!(unquoted_word("/usr/bin/orbd --foreground"), "/usr/bin/orbd");
        let line_break = Description {
            program: "/a\nExecStartPre=/bin/evil".into(),
            ..description()
        };
        assert!(unit(&line_break).is_err());
    }

    #[test]
    fn state_is_parsed_from_systemctl_show() {
        let text = "MainPID=77\nExecMainStatus=0\nLoadState=loaded\nUnitFileState=enabled\nExecMainExitTimestampMonotonic=0\n";
        let running = State {
            loaded: true,
            pid: Some(77),
            last_exit: None,
        };
        assert_eq!(read_state(text), running);
        let text = "MainPID=0\nExecMainStatus=2\nLoadState=loaded\nUnitFileState=disabled\nExecMainExitTimestampMonotonic=9\n";
        let failed = State {
            loaded: false,
            pid: None,
            last_exit: Some(2),
        };
        assert_eq!(read_state(text), failed);
    }
}
