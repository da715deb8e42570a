//! launchd: the agent's property list, and the invocations of `launchctl`.
//!
//! The agent runs in the domain of the user's login session (`gui/UID`), as OrbStack itself does; there it has the user's privacy
//! permissions. That domain exists only while the user is logged in on the Mac's screen, so with ssh alone the agent cannot be
//! loaded; [`Launchd::check`] reports that.
//!
//! `launchctl` has no machine-readable output. This module reads only its exit codes and three lines of `print`. It has not run on a
//! Mac yet; the tests use a scripted `launchctl` that imitates the known behaviour of the real one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use plist::{Dictionary, Value};

use super::{DESCRIPTORS, Description, Manager, State, THROTTLE_S, refused, tool};
use crate::console::now;
use crate::error::CliError;

pub(super) const LABEL: &str = "dev.orbd.orbd";

/// The file's name in `~/Library/LaunchAgents`.
pub(super) const FILE_NAME: &str = "dev.orbd.orbd.plist";

/// launchd's tool, which is on every Mac's PATH.
const LAUNCHCTL: &str = "launchctl";

/// Exit code of `launchctl bootout` while the agent is still shutting down: "Operation now in progress".
const IN_PROGRESS: i32 = 36;

/// Maximum time for an agent to exit after `bootout`. Longer than launchd waits before it kills the agent.
const GONE_MAX: Duration = Duration::from_secs(60);

/// launchd under one user.
pub(super) struct Launchd {
    file: PathBuf,
    /// `gui/501`.
    domain: String,
    /// `gui/501/dev.orbd.orbd`.
    target: String,
}

impl Launchd {
    pub(super) fn new(file: &Path) -> Self {
        let domain = format!("gui/{}", rustix::process::getuid().as_raw());
        Self {
            file: file.to_owned(),
            target: format!("{domain}/{LABEL}"),
            domain,
        }
    }

    fn print(&self) -> Result<Output, CliError> {
        tool(LAUNCHCTL, &["print", &self.target])
    }

    fn must(arguments: &[&str], hint: &str) -> Result<(), CliError> {
        let output = tool(LAUNCHCTL, arguments)?;
        if output.status.success() {
            return Ok(());
        }
        Err(refused(LAUNCHCTL, arguments, &output, hint))
    }
}

impl Manager for Launchd {
    fn text(&self, description: &Description) -> Result<Vec<u8>, CliError> {
        let mut text = Vec::new();
        agent(description)
            .and_then(|agent| agent.to_writer_xml(&mut text).map_err(std::io::Error::other))
            .map_err(|error| CliError::Local {
                what: "cannot write the agent's property list".into(),
                source: error,
            })?;
        text.push(b'\n');
        Ok(text)
    }

    fn check(&self) -> Result<(), CliError> {
        let arguments = ["print", self.domain.as_str()];
        let output = tool(LAUNCHCTL, &arguments)?;
        if output.status.success() {
            return Ok(());
        }
        Err(refused(
            LAUNCHCTL,
            &arguments,
            &output,
            "launchd needs a login session, which ssh alone does not create: log in on the Mac's screen and try again; \
             until then `orbd-ctl daemon start` runs orbd without a service",
        ))
    }

    fn load(&self) -> Result<(), CliError> {
        // If the agent is disabled, `bootstrap` fails with "5: Input/output error", which does not name the reason.
        Self::must(
            &["enable", &self.target],
            "`launchctl print-disabled gui/$UID` shows disabled agents",
        )?;
        let file = self.file.display().to_string();
        let arguments = ["bootstrap", self.domain.as_str(), file.as_str()];
        let output = tool(LAUNCHCTL, &arguments)?;
        // `bootstrap` also fails with "5: Input/output error" if another process has loaded the agent meanwhile.
        if output.status.success() || self.state()?.loaded {
            return Ok(());
        }
        let hint = format!(
            "`plutil -lint {file}` checks the file; `log show --last 1m --predicate 'process == \"launchd\"'` shows launchd's reason; \
             `orbd-ctl daemon start` runs orbd without a service"
        );
        Err(refused(LAUNCHCTL, &arguments, &output, &hint))
    }

    fn unload(&self) -> Result<(), CliError> {
        let arguments = ["bootout", self.target.as_str()];
        let output = tool(LAUNCHCTL, &arguments)?;
        if !output.status.success() && output.status.code() != Some(IN_PROGRESS) && self.state()?.loaded {
            return Err(refused(
                LAUNCHCTL,
                &arguments,
                &output,
                "`launchctl print gui/$UID/dev.orbd.orbd` shows its state",
            ));
        }
        // `bootout` may return before the daemon has exited; `bootstrap` fails until then.
        let asked = now();
        let mut pause = Duration::from_millis(5);
        while self.state()?.loaded {
            if now() - asked > GONE_MAX {
                return Err(CliError::Service {
                    message: format!("{} has not exited for {} s", self.target, GONE_MAX.as_secs()),
                    hint: "`orbd-ctl jobs` shows its running jobs; logging out stops the service".into(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(250));
        }
        Ok(())
    }

    fn start(&self) -> Result<(), CliError> {
        Self::must(
            &["kickstart", &self.target],
            "`orbd-ctl service install` loads it again",
        )
    }

    fn stop(&self) -> Result<(), CliError> {
        if self.state()?.pid.is_none() {
            return Ok(());
        }
        // The daemon exits with 0, so `KeepAlive` does not restart it.
        Self::must(
            &["kill", "SIGTERM", &self.target],
            "`orbd-ctl daemon stop` stops it without launchd",
        )
    }

    fn state(&self) -> Result<State, CliError> {
        let output = self.print()?;
        Ok(if output.status.success() {
            read_state(&String::from_utf8_lossy(&output.stdout))
        } else {
            State::default()
        })
    }

    fn search_path(&self, text: &[u8]) -> Option<OsString> {
        let agent = Value::from_reader_xml(text).ok()?;
        let environment = agent.as_dictionary()?.get("EnvironmentVariables")?;
        Some(environment.as_dictionary()?.get("PATH")?.as_string()?.into())
    }

    fn program(&self, text: &[u8]) -> Option<PathBuf> {
        let agent = Value::from_reader_xml(text).ok()?;
        let words = agent.as_dictionary()?.get("ProgramArguments")?.as_array()?;
        Some(words.first()?.as_string()?.into())
    }
}

/// Parses the output of `launchctl print gui/UID/LABEL`. Lines about the agent itself are indented by one tab; lines with more belong
/// to nested objects.
fn read_state(text: &str) -> State {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let line = line.strip_prefix('\t')?;
            line.strip_prefix(name)?.strip_prefix(" = ")
        })
    };
    State {
        loaded: true,
        pid: value("pid").and_then(|pid| pid.parse().ok()),
        // "(never exited)" before the first exit.
        last_exit: value("last exit code").and_then(|code| code.split(':').next()?.trim().parse().ok()),
    }
}

/// Builds the agent's property list. See launchd.plist(5) for the keys.
fn agent(description: &Description) -> Result<Value, std::io::Error> {
    let text = |value: &std::ffi::OsStr| {
        value
            .to_str()
            .map(|text| Value::String(text.to_owned()))
            .ok_or_else(|| std::io::Error::other(format!("{} is not UTF-8", value.display())))
    };
    let mut environment = Dictionary::new();
    for (name, value) in description.environment() {
        environment.insert(name.to_owned(), text(&value)?);
    }
    let mut on_failure = Dictionary::new();
    on_failure.insert("SuccessfulExit".into(), Value::Boolean(false));
    let mut descriptors = Dictionary::new();
    descriptors.insert("NumberOfFiles".into(), DESCRIPTORS.into());
    let said = text(description.said.as_os_str())?;
    let mut agent = Dictionary::new();
    agent.insert("Label".into(), LABEL.into());
    agent.insert(
        "ProgramArguments".into(),
        Value::Array(vec![text(description.program.as_os_str())?]),
    );
    agent.insert("EnvironmentVariables".into(), Value::Dictionary(environment));
    agent.insert("WorkingDirectory".into(), "/".into());
    agent.insert("RunAtLoad".into(), true.into());
    // Restart after a crash, but not after a graceful stop.
    agent.insert("KeepAlive".into(), Value::Dictionary(on_failure));
    agent.insert("ThrottleInterval".into(), THROTTLE_S.into());
    agent.insert("ExitTimeOut".into(), description.stop_limit.as_secs().into());
    // Users wait for its answers and for the programs that it starts, so disable background throttling.
    agent.insert("ProcessType".into(), "Interactive".into());
    // Running changes continue when the daemon stops, and the next instance finds them.
    agent.insert("AbandonProcessGroup".into(), true.into());
    agent.insert("LimitLoadToSessionType".into(), "Aqua".into());
    agent.insert(
        "SoftResourceLimits".into(),
        Value::Dictionary(descriptors.clone()),
    );
    agent.insert("HardResourceLimits".into(), Value::Dictionary(descriptors));
    agent.insert("Umask".into(), 0o077.into());
    agent.insert("StandardOutPath".into(), said.clone());
    agent.insert("StandardErrorPath".into(), said);
    Ok(Value::Dictionary(agent))
}

#[cfg(test)]
mod tests {
    use super::super::tests::description;
    use super::*;

    fn parsed(description: &Description) -> Dictionary {
        let text = Launchd::new(Path::new("/missing"))
            .text(description)
            .expect("written");
        let value = Value::from_reader(std::io::Cursor::new(text)).expect("a property list");
        value.into_dictionary().expect("a dictionary")
    }

    #[test]
    fn property_list_has_the_expected_keys_and_values() {
        let agent = parsed(&description());
        let keys: Vec<&str> = agent.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "Label",
                "ProgramArguments",
                "EnvironmentVariables",
                "WorkingDirectory",
                "RunAtLoad",
                "KeepAlive",
                "ThrottleInterval",
                "ExitTimeOut",
                "ProcessType",
                "AbandonProcessGroup",
                "LimitLoadToSessionType",
                "SoftResourceLimits",
                "HardResourceLimits",
                "Umask",
                "StandardOutPath",
                "StandardErrorPath",
            ]
        );
        let text = |key: &str| agent[key].as_string();
        let number = |key: &str| agent[key].as_unsigned_integer();
        assert_eq!(text("Label"), Some(LABEL));
        assert_eq!(FILE_NAME, format!("{LABEL}.plist"));
        assert_eq!(
            agent["ProgramArguments"].as_array().map(Vec::as_slice),
            Some(["/opt/homebrew/bin/orbd".into()].as_slice())
        );
        let text_of = Launchd::new(Path::new("/missing"))
            .text(&description())
            .expect("written");
        let program = Launchd::new(Path::new("/missing")).program(&text_of);
        assert_eq!(program, Some("/opt/homebrew/bin/orbd".into()));
        let environment = agent["EnvironmentVariables"].as_dictionary().expect("one");
        assert_eq!(environment["HOME"].as_string(), Some("/Users/me & co"));
        assert_eq!(environment["PATH"].as_string(), Some("/usr/bin:/bin"));
        assert!(!environment.contains_key("ORBD_SOCKET"));
        let keep_alive = agent["KeepAlive"].as_dictionary().expect("one");
        assert_eq!(keep_alive["SuccessfulExit"].as_boolean(), Some(false));
        assert_eq!(number("ThrottleInterval"), Some(5));
        assert_eq!(number("ExitTimeOut"), Some(30));
        assert_eq!(text("ProcessType"), Some("Interactive"));
        assert_eq!(agent["AbandonProcessGroup"].as_boolean(), Some(true));
        assert_eq!(number("Umask"), Some(0o077));
        for limits in ["SoftResourceLimits", "HardResourceLimits"] {
            let limits = agent[limits].as_dictionary().expect("one");
            assert_eq!(
                limits["NumberOfFiles"].as_unsigned_integer(),
                Some(u64::from(DESCRIPTORS))
            );
        }
        assert_eq!(text("StandardErrorPath"), Some("/Users/me & co/.orbd/orbd.err"));
    }

    #[test]
    fn a_non_default_socket_is_in_the_agents_environment() {
        let agent = parsed(&Description {
            socket: Some("/tmp/s".into()),
            ..description()
        });
        let environment = agent["EnvironmentVariables"].as_dictionary().expect("one");
        assert_eq!(environment["ORBD_SOCKET"].as_string(), Some("/tmp/s"));
    }

    #[test]
    fn state_is_parsed_from_the_agents_own_lines() {
        let text = "gui/501/dev.orbd.orbd = {\n\tactive count = 1\n\tstate = running\n\n\tprogram = /opt/homebrew/bin/orbd\n\
                    \tpid = 4711\n\timmediate reason = kickstart\n\tlast exit code = 0\n\n\tspawn type = interactive (4)\n\
                    \tendpoints = {\n\t\tpid = 12\n\t}\n}\n";
        let state = State {
            loaded: true,
            pid: Some(4711),
            last_exit: Some(0),
        };
        assert_eq!(read_state(text), state);
        let idle = "x = {\n\tstate = not running\n\tlast exit code = 78: EX_CONFIG\n\tendpoints = {\n\t\tpid = 12\n\t}\n}\n";
        let state = State {
            loaded: true,
            pid: None,
            last_exit: Some(78),
        };
        assert_eq!(read_state(idle), state);
        assert_eq!(
            read_state("x = {\n\tlast exit code = (never exited)\n}\n").last_exit,
            None
        );
    }
}
