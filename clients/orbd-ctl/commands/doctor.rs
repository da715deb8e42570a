//! `doctor`: looks at everything that has to be right, and says what mends what is not.
//!
//! Each check looks at one thing and gives one finding. None changes anything, starts the daemon or wakes OrbStack.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use orbd::client::Client;
use orbd::config::{Config, Environment as ConfigEnvironment, Flags, SOCKET_PATH_MAX};
use orbd::orbctl::locate::{Search, locate};
use orbd::rpc::api::{
    DaemonInfo, MetricsCounters, OrbstackStatus, OrbstackVersion, PROTOCOL_VERSION, QueueStatus,
};
use orbd::rpc::types::{DaemonInfoAnswer, NoParams, ReadParams};
use serde::Serialize;

use crate::context::Context;
use crate::link::Link;
use crate::render;
use crate::service::{ManagerName, Service};
use crate::trouble::{Trouble, exit};

/// How long the daemon may think about each question.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// Less free than this where orbd keeps its state, and something will fail soon.
const FREE_MIN: u64 = 100 << 20;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Good,
    /// It works, but not as well as it could, or not for long.
    Doubtful,
    /// It does not work.
    Bad,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    about: &'static str,
    level: Level,
    /// What was seen.
    says: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn good(about: &'static str, says: impl Into<String>) -> Self {
        Self {
            about,
            level: Level::Good,
            says: says.into(),
            mend: None,
        }
    }

    fn doubtful(about: &'static str, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            about,
            level: Level::Doubtful,
            says: says.into(),
            mend: Some(mend.into()),
        }
    }

    fn bad(about: &'static str, says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            ..Self::doubtful(about, says, mend)
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// Looks at everything, and fails when something is bad.
pub(super) fn doctor(context: &mut Context) -> Result<ExitCode, Trouble> {
    let findings = examine(&context.link);
    let is_bad = findings.iter().any(|finding| finding.level == Level::Bad);
    context.console.answer(&Findings { findings }, show)?;
    Ok(ExitCode::from(if is_bad { exit::FAILED } else { 0 }))
}

fn examine(link: &Link) -> Vec<Finding> {
    let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process());
    let mut findings = vec![match &config {
        Ok(config) => Finding::good(
            "configuration",
            config.file().map_or_else(
                || "no file; all is default".into(),
                |path| path.display().to_string(),
            ),
        ),
        Err(error) => Finding::bad(
            "configuration",
            error.to_string(),
            "correct it; `orbd --sample-config` explains every key, `orbd --check-config` checks again",
        ),
    }];
    findings.push(socket(&link.socket));
    let daemon = reach(link, &mut findings);
    findings.push(service(link, daemon.is_some()));
    match (daemon, &config) {
        (Some((client, info)), _) => findings.extend(of_daemon(client, &info)),
        (None, Ok(config)) => {
            findings.push(orbctl_alone(config, link));
            findings.extend(state_folder(&config.state_dir));
        }
        (None, Err(_)) => {}
    }
    findings
}

/// Looks at the socket's path and at who may reach it.
fn socket(path: &Path) -> Finding {
    const ABOUT: &str = "socket";
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Finding::bad(
            ABOUT,
            format!(
                "{} has {length} bytes; the system allows {SOCKET_PATH_MAX}",
                path.display()
            ),
            "set ORBD_SOCKET to a shorter path",
        );
    }
    let ours = rustix::process::geteuid().as_raw();
    if let Some(folder) = path.parent()
        && let Ok(data) = fs::metadata(folder)
        && (data.uid() != ours || data.mode() & 0o077 != 0)
    {
        return Finding::bad(
            ABOUT,
            format!("{} is open to other users", folder.display()),
            format!("chmod 700 {0}; it must be yours (chown)", folder.display()),
        );
    }
    match fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => Finding::bad(
            ABOUT,
            format!("{} is something else than a socket", path.display()),
            "move it away, or set ORBD_SOCKET to another path",
        ),
        Ok(data) if data.uid() != ours => Finding::bad(
            ABOUT,
            format!("{} belongs to another user", path.display()),
            "orbd runs once per user: unset ORBD_SOCKET, or call this as that user",
        ),
        _ => Finding::good(ABOUT, path.display().to_string()),
    }
}

/// Connects to a daemon that runs, and says how it is.
fn reach(link: &Link, findings: &mut Vec<Finding>) -> Option<(Client, DaemonInfoAnswer)> {
    const ABOUT: &str = "orbd";
    let dialled = link.dial().and_then(|mut client| {
        client.set_timeout(Some(ANSWER_MAX)).map_err(Trouble::Output)?;
        let info = client.call::<DaemonInfo>(&NoParams {})?;
        Ok((client, info))
    });
    let finding = match &dialled {
        Ok((_, info)) if info.protocol != PROTOCOL_VERSION => Finding::bad(
            ABOUT,
            format!(
                "orbd {} speaks protocol {}, orbd-ctl {} speaks {PROTOCOL_VERSION}",
                info.version,
                info.protocol,
                env!("CARGO_PKG_VERSION")
            ),
            "orbd-ctl daemon restart",
        ),
        Ok((_, info)) if info.upgrade.is_some() => {
            let upgrade = info.upgrade.as_ref().map(render::upgrade).unwrap_or_default();
            Finding::doubtful(
                ABOUT,
                format!("{} runs, pid {}; {upgrade}", info.version, info.pid),
                "orbd-ctl daemon restart",
            )
        }
        Ok((_, info)) if info.version != env!("CARGO_PKG_VERSION") => Finding::doubtful(
            ABOUT,
            format!(
                "orbd {} runs, orbd-ctl is {}",
                info.version,
                env!("CARGO_PKG_VERSION")
            ),
            "orbd-ctl daemon restart",
        ),
        Ok((_, info)) => Finding::good(ABOUT, format!("{} runs, pid {}", info.version, info.pid)),
        Err(Trouble::NotRunning { .. }) if link.is_held() => Finding::doubtful(
            ABOUT,
            "another orbd holds the lock and takes no connections: it is stopping",
            "orbd-ctl daemon start waits for it and starts a new one",
        ),
        Err(Trouble::NotRunning { .. }) if link.socket.exists() => Finding::doubtful(
            ABOUT,
            "it does not run; its socket was left by a crash and will be replaced",
            "orbd-ctl daemon start",
        ),
        Err(Trouble::NotRunning { .. }) => Finding::doubtful(
            ABOUT,
            "it does not run; it starts on demand",
            "orbd-ctl daemon start",
        ),
        Err(trouble) => Finding::bad(
            ABOUT,
            trouble.to_string(),
            trouble.hint().unwrap_or_else(|| "orbd-ctl daemon restart".into()),
        ),
    };
    findings.push(finding);
    dialled.ok().filter(|(_, info)| info.protocol == PROTOCOL_VERSION)
}

/// Looks at the service, if there is one.
fn service(link: &Link, daemon_runs: bool) -> Finding {
    const ABOUT: &str = "service";
    let found = Service::of(link, ManagerName::of_this_system()).and_then(|service| {
        let current = service.is_installed() && service.is_current(link)?;
        let state = service.is_installed().then(|| service.state());
        Ok((service, current, state))
    });
    match found {
        Err(trouble) => Finding::doubtful(ABOUT, trouble.to_string(), "orbd-ctl service status"),
        Ok((_, _, None)) => Finding::good(ABOUT, "none is installed; clients start orbd on demand"),
        Ok((service, _, Some(Err(trouble)))) => Finding::bad(
            ABOUT,
            format!("{} is installed, but {trouble}", service.file.display()),
            trouble
                .hint()
                .unwrap_or_else(|| "orbd-ctl service install".into()),
        ),
        Ok((service, false, Some(Ok(_)))) => Finding::doubtful(
            ABOUT,
            format!("{} is not what this version would write", service.file.display()),
            "orbd-ctl service install",
        ),
        Ok((_, true, Some(Ok(state)))) => match state.pid {
            Some(pid) => Finding::good(
                ABOUT,
                format!("{} runs it, pid {pid}", ManagerName::of_this_system().as_str()),
            ),
            None if daemon_runs => Finding::doubtful(
                ABOUT,
                "it is installed, but the orbd that runs was started without it",
                "orbd-ctl daemon stop && orbd-ctl service start",
            ),
            None => Finding::doubtful(
                ABOUT,
                "it is installed and does not run",
                "orbd-ctl service start",
            ),
        },
    }
}

/// Looks at what only a daemon that runs can tell.
fn of_daemon(mut client: Client, info: &DaemonInfoAnswer) -> Vec<Finding> {
    let mut findings = vec![match &info.orbctl {
        Some(path) => Finding::good("orbctl", path.clone()),
        None => not_found("orbd finds no orbctl"),
    }];
    if info.orbctl.is_some() {
        match client.call::<OrbstackVersion>(&ReadParams::default()) {
            Ok(answer) => findings.push(Finding::good("OrbStack's version", answer.version)),
            Err(error) => findings.push(Finding::bad(
                "OrbStack's version",
                Trouble::from(error).to_string(),
                "open OrbStack once, and let it update",
            )),
        }
        findings.push(match client.call::<OrbstackStatus>(&ReadParams::default()) {
            Ok(answer) if answer.status == "running" => Finding::good("OrbStack", answer.status),
            Ok(answer) => Finding::doubtful("OrbStack", answer.status, "orbd-ctl start"),
            Err(error) => Finding::bad(
                "OrbStack",
                Trouble::from(error).to_string(),
                "`orbd-ctl stop --orbstack --force`, then `orbd-ctl start`; if that does not help, restart the app",
            ),
        });
    }
    if let Ok(queue) = client.call::<QueueStatus>(&NoParams {}) {
        let held = match (queue.paused, queue.draining) {
            (true, _) => Some("is paused".to_owned()),
            (_, true) => Some("is draining".to_owned()),
            _ if !queue.paused_machines.is_empty() => {
                Some(format!("is paused for {}", queue.paused_machines.join(", ")))
            }
            _ if !queue.draining_machines.is_empty() => {
                Some(format!("is draining for {}", queue.draining_machines.join(", ")))
            }
            _ => None,
        };
        findings.push(match held {
            Some(held) => Finding::doubtful("queue", format!("it {held}"), "orbd-ctl queue resume [NAME]"),
            None => Finding::good("queue", format!("{} run, {} wait", queue.running, queue.waiting)),
        });
    }
    if let Ok(counters) = client.call::<MetricsCounters>(&NoParams {}) {
        findings.push(match counters.store.as_str() {
            "open" | "closed" => Finding::good("metrics", "the store is in order"),
            other => Finding::doubtful(
                "metrics",
                other,
                format!(
                    "history is not kept meanwhile; look into {}/metrics, then `orbd-ctl daemon restart`",
                    info.state_dir
                ),
            ),
        });
    }
    findings.extend(state_folder(Path::new(&info.state_dir)));
    findings
}

fn not_found(says: &str) -> Finding {
    Finding::bad(
        "orbctl",
        says,
        "install OrbStack (https://orbstack.dev), or set `orbctl` in orbd's configuration to its path",
    )
}

/// Looks for `orbctl` as a daemon of this environment would.
fn orbctl_alone(config: &Config, link: &Link) -> Finding {
    let ours: Vec<PathBuf> = std::env::current_exe().into_iter().collect();
    let search = Search {
        configured: config.orbctl.as_deref(),
        path: link.environment.path.as_deref(),
        home: link.environment.home.as_deref(),
        ours: &ours,
    };
    match locate(&search) {
        Ok(located) => Finding::good("orbctl", located.path().display().to_string()),
        Err(error) => not_found(&error.to_string()),
    }
}

/// Looks whether there is room where orbd keeps its state.
fn state_folder(folder: &Path) -> Option<Finding> {
    const ABOUT: &str = "disk";
    // Before the first start there is no folder yet; the one above it tells as much.
    let existing = folder.ancestors().find(|folder| folder.is_dir())?;
    let place = folder.display();
    let writable = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_ok();
    let free = rustix::fs::statvfs(existing)
        .map(|data| data.f_bavail.saturating_mul(data.f_frsize))
        .ok()?;
    Some(if !writable {
        Finding::bad(
            ABOUT,
            format!("{place} cannot be written"),
            format!("make it yours: chown -R \"$(id -un)\" {place}"),
        )
    } else if free < FREE_MIN {
        Finding::bad(
            ABOUT,
            format!("{} MiB are free where {place} is", free >> 20),
            "make room: output and the journal go there",
        )
    } else {
        Finding::good(ABOUT, format!("{} MiB are free where {place} is", free >> 20))
    })
}

fn show(findings: &Findings, colour: bool) -> String {
    let mut text = String::new();
    for finding in &findings.findings {
        let (style, sign) = match finding.level {
            Level::Good => (render::GOOD, "ok  "),
            Level::Doubtful => (render::HINT, "hmm "),
            Level::Bad => (render::BAD, "bad "),
        };
        text.extend([
            render::paint(colour, style, sign).as_str(),
            " ",
            finding.about,
            ": ",
            &finding.says,
            "\n",
        ]);
        if let Some(mend) = &finding.mend {
            text.extend(["     -> ", mend, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_that_cannot_work_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let permissions =
            |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("ours");
        permissions(0o755);
        assert!(
            socket(&folder.path().join("s"))
                .says
                .contains("open to other users")
        );
        permissions(0o700);
        let long = folder.path().join("x".repeat(120));
        assert_eq!(socket(&long).level, Level::Bad);
        let file = folder.path().join("orbd.sock");
        assert_eq!(socket(&file).level, Level::Good, "it is not there yet");
        fs::write(&file, "").expect("written");
        assert!(socket(&file).says.contains("something else"));
    }

    #[test]
    fn a_full_line_of_findings_reads_well() {
        let findings = Findings {
            findings: vec![
                Finding::good("socket", "/s"),
                Finding::bad("orbctl", "not found", "install OrbStack"),
            ],
        };
        assert_eq!(
            show(&findings, false),
            "ok   socket: /s\nbad  orbctl: not found\n     -> install OrbStack\n"
        );
    }
}
