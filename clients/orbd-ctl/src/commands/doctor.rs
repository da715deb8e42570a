//! `doctor`: checks the installation and prints a fix for each problem.
//!
//! Each function checks one thing. None of them changes anything, or starts the daemon or OrbStack. The groups of checks run on threads
//! of their own until one deadline, so that a daemon, an `orbctl` or a disk that hangs hides no other problem.

mod channels;
mod services;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use orbd_client::Client;
use orbd_host::config::{Config, ConfigError, Environment as ConfigEnvironment, Flags, SOCKET_PATH_MAX};
use orbd_host::locate::{LocateError, Located, Search, locate};
use orbd_host::release::is_older;
use orbd_proto::methods::{
    DaemonHello, DaemonInfo, Method, MetricsCounters, OrbstackStatus, OrbstackVersion, QueueStatus,
};
use orbd_proto::protocol::ProtocolRange;
use orbd_proto::types::{DaemonInfoAnswer, NoParams, QueueStatusAnswer, ReadParams};
use serde::Serialize;

use crate::console::now;
use crate::context::Context;
use crate::error::{CliError, exit};
use crate::installation::Installation;
use crate::layout::Look;
use crate::link::{self, CLIENT_NAME, Link};
use crate::render;
use crate::service::copy_path;
use services::{missing_service_program, service, service_path};

/// Time for all checks together.
const CHECKS_MAX: Duration = Duration::from_millis(4500);

/// Time for all calls to the daemon. Shorter than [`CHECKS_MAX`], so that a call without an answer is reported as what it is.
const CALLS_MAX: Duration = Duration::from_secs(4);

/// Time for the daemon's first answer.
const GREETING_MAX: Duration = Duration::from_secs(2);

/// Fix for an OrbStack that does not answer.
const UNSTICK: &str = "run `orbd-ctl restart --orbstack --force`; if that does not help, as after sleep, quit the OrbStack app and its process OrbStack Helper, and open the app again";

/// Minimum free space, in bytes, on the disk of orbd's state directory.
const FREE_MIN: u64 = 100 << 20;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    /// No problem.
    Ok,
    /// Works, but with a limitation or a problem to come.
    Warn,
    /// Does not work.
    Error,
}

/// One check and its result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Check {
    /// What was checked.
    name: &'static str,
    status: CheckStatus,
    message: String,
    /// How to fix the problem; `None` if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self {
            name,
            status: CheckStatus::Ok,
            message: message.into(),
            fix: None,
        }
    }

    fn warn(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            status: CheckStatus::Warn,
            message: message.into(),
            fix: Some(fix.into()),
        }
    }

    fn error(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            status: CheckStatus::Error,
            ..Self::warn(name, message, fix)
        }
    }
}

/// Answer of `doctor --json`.
#[derive(Debug, Serialize)]
struct Checks {
    checks: Vec<Check>,
}

/// Runs all checks; exits with 1 if one of them is an error.
pub(super) fn doctor(context: &mut Context) -> Result<ExitCode, CliError> {
    let checks = examine(&context.link);
    let is_bad = checks.iter().any(|check| check.status == CheckStatus::Error);
    context.console.answer(&Checks { checks }, show)?;
    Ok(ExitCode::from(if is_bad { exit::FAILED } else { 0 }))
}

/// Checks that run one after the other.
struct Group {
    /// Name under which the group is reported if it does not end in time.
    name: &'static str,
    /// What to look at then.
    fix: &'static str,
    checks: Box<dyn FnOnce() -> Vec<Check> + Send>,
}

impl Group {
    fn new(
        name: &'static str,
        fix: &'static str,
        link: &Link,
        checks: impl FnOnce(&Link) -> Vec<Check> + Send + 'static,
    ) -> Self {
        let link = link.clone();
        Self {
            name,
            fix,
            checks: Box::new(move || checks(&link)),
        }
    }
}

fn examine(link: &Link) -> Vec<Check> {
    const DISK: &str = "the disk of orbd's files does not answer: check the file system, e.g. with `df`";
    const SERVICE: &str = "orbd-ctl service status";
    let (state_dir_sender, state_dir) = mpsc::channel();
    in_time(
        vec![
            Group::new("service", SERVICE, link, |link| {
                missing_service_program(link).into_iter().collect()
            }),
            Group::new("configuration", DISK, link, |_| vec![configuration()]),
            Group::new("socket", DISK, link, |link| vec![socket(&link.socket)]),
            Group::new("orbd", "orbd-ctl daemon stop --force", link, move |link| {
                of_orbd(link, &state_dir_sender)
            }),
            Group::new("service", SERVICE, link, |link| {
                match missing_service_program(link) {
                    Some(_) => Vec::new(),
                    None => vec![service(link, link.dial().is_ok())],
                }
            }),
            Group::new("service's PATH", SERVICE, link, |link| {
                service_path(link).into_iter().collect()
            }),
            Group::new("drop-in", "orbd-ctl dropin status", link, |link| {
                dropin(link).into_iter().collect()
            }),
            // The daemon's own answer, if it gives one: it may have been started with another configuration.
            Group::new("disk", DISK, link, move |_| {
                let told: Option<PathBuf> = state_dir.recv_timeout(GREETING_MAX).ok();
                let configured = || Some(load_config().ok()?.state_dir);
                told.or_else(configured)
                    .map(|folder| state_folder(&folder))
                    .unwrap_or_default()
            }),
        ],
        CHECKS_MAX,
    )
}

/// Runs groups of checks at the same time, and returns their results in the order of the groups. A group that has not ended after
/// `at_most` is reported as an error; its thread ends with the process.
fn in_time(groups: Vec<Group>, at_most: Duration) -> Vec<Check> {
    let deadline = now() + at_most;
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Result<Vec<Check>, Check>> = Vec::new();
    for (index, group) in groups.into_iter().enumerate() {
        let message = format!("not checked: no answer within {}", render::duration(at_most));
        results.push(Err(Check::error(group.name, message, group.fix)));
        let sender = sender.clone();
        // The receiver is gone after the deadline.
        std::thread::spawn(move || drop(sender.send((index, (group.checks)()))));
    }
    drop(sender);
    while let Ok((index, checks)) = receiver.recv_timeout(deadline.saturating_duration_since(now())) {
        results[index] = Ok(checks);
    }
    results
        .into_iter()
        .flat_map(|result| result.unwrap_or_else(|missing| vec![missing]))
        .collect()
}

fn load_config() -> Result<Config, ConfigError> {
    Config::load(&Flags::default(), &ConfigEnvironment::of_process())
}

fn configuration() -> Check {
    match load_config() {
        Ok(config) => Check::ok(
            "configuration",
            config.file().map_or_else(
                || "no file; all keys have their defaults".into(),
                |path| path.display().to_string(),
            ),
        ),
        Err(error) => Check::error(
            "configuration",
            error.to_string(),
            "correct the file; `orbd --sample-config` explains every key, `orbd --check-config` validates the file",
        ),
    }
}

/// Checks the daemon, and what it knows; without one, `orbctl` as a daemon would find it.
fn of_orbd(link: &Link, state_dir: &mpsc::Sender<PathBuf>) -> Vec<Check> {
    let deadline = now() + CALLS_MAX;
    let mut checks = Vec::new();
    let daemon = reach(link, &mut checks);
    let config = load_config();
    match (daemon, config) {
        (Some((client, info)), config) => {
            // The receiver is gone if it has waited too long.
            let _ = state_dir.send(PathBuf::from(&info.state_dir));
            checks.extend(of_daemon(client, &info, config.as_ref().ok(), link, deadline));
        }
        (None, Ok(config)) => checks.push(orbctl_alone(&config, link)),
        (None, Err(_)) => {}
    }
    checks
}

/// Checks the socket's path, type, owner and permissions.
fn socket(path: &Path) -> Check {
    socket_of(path, rustix::process::geteuid().as_raw())
}

/// As [`socket`], for the user with the id `ours`.
fn socket_of(path: &Path, ours: u32) -> Check {
    const ABOUT: &str = "socket";
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Check::error(
            ABOUT,
            format!(
                "{} has {length} bytes; the system allows {SOCKET_PATH_MAX}",
                path.display()
            ),
            "set ORBD_SOCKET to a shorter path",
        );
    }
    if let Some(folder) = path.parent()
        && let Ok(data) = fs::metadata(folder)
        && (data.uid() != ours || data.mode() & 0o077 != 0)
    {
        return Check::error(
            ABOUT,
            format!("{} is open to other users", folder.display()),
            format!(
                "run `chmod 700 {0}`; you must own the directory",
                folder.display()
            ),
        );
    }
    match fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => Check::error(
            ABOUT,
            format!("{} is not a socket", path.display()),
            "move it away, or set ORBD_SOCKET to another path",
        ),
        Ok(data) if data.uid() != ours => Check::error(
            ABOUT,
            format!("{} belongs to another user", path.display()),
            "orbd runs once per user: unset ORBD_SOCKET, or run this as that user",
        ),
        _ => Check::ok(ABOUT, path.display().to_string()),
    }
}

/// Checks whether the daemon is running and has the right version. Returns a connection if there is a common protocol.
fn reach(link: &Link, checks: &mut Vec<Check>) -> Option<(Client, DaemonInfoAnswer)> {
    const ABOUT: &str = "orbd";
    let dialled = link.dial().and_then(|mut client| {
        let answer = client.start::<DaemonInfo>(&NoParams {})?.wait(GREETING_MAX)?;
        match answer {
            Some(info) => Ok((client, info)),
            None => Err(link::mute(&client, &link.socket)),
        }
    });
    let check = match &dialled {
        Ok((_, info)) if !speaks_ours(info) => Check::error(
            ABOUT,
            format!("{}; {}", link::mismatch(info), running(info)),
            upgrade_of_older(info),
        ),
        Ok((_, info)) if info.upgrade.is_some() => {
            let upgrade = info.upgrade.as_ref();
            let is_refused = upgrade.is_some_and(|upgrade| upgrade.state == "refused");
            Check::warn(
                ABOUT,
                format!(
                    "{}; {}",
                    running(info),
                    upgrade.map(render::upgrade).unwrap_or_default()
                ),
                if is_refused {
                    "remove the cause, then run `orbd-ctl daemon reload`"
                } else {
                    "orbd-ctl daemon restart"
                },
            )
        }
        Ok((_, info)) if is_gone(info) => Check::warn(
            ABOUT,
            format!(
                "{}; that program does not exist any more, so orbd ends when no client is connected",
                running(info)
            ),
            "`orbd-ctl daemon restart` starts an installed orbd now",
        ),
        Ok((_, info)) if info.version != env!("CARGO_PKG_VERSION") => Check::warn(
            ABOUT,
            format!(
                "{}; orbd-ctl is {}, and both speak a common protocol",
                running(info),
                env!("CARGO_PKG_VERSION")
            ),
            upgrade_of_older(info),
        ),
        Ok((_, info)) => Check::ok(ABOUT, running(info)),
        Err(CliError::NotRunning { .. }) if link.is_held() => Check::warn(
            ABOUT,
            "another orbd holds the lock and accepts no connections: it is stopping",
            "`orbd-ctl daemon start` waits until it has exited and starts a new one",
        ),
        Err(CliError::NotRunning { .. }) if link.socket.exists() => Check::warn(
            ABOUT,
            "not running; its socket was left by a crash and will be replaced",
            "orbd-ctl daemon start",
        ),
        Err(CliError::NotRunning { .. }) => Check::warn(
            ABOUT,
            "not running; clients start it on demand",
            "orbd-ctl daemon start",
        ),
        Err(error @ CliError::Mute { .. }) => Check::error(
            ABOUT,
            error.to_string(),
            "`fg` or `kill -CONT` resumes a suspended process; `orbd-ctl daemon stop --force` kills it; `orbd-ctl daemon logs` may say more",
        ),
        Err(error) => Check::error(
            ABOUT,
            error.to_string(),
            error.hint().unwrap_or_else(|| "orbd-ctl daemon restart".into()),
        ),
    };
    checks.push(check);
    dialled.ok().filter(|(_, info)| speaks_ours(info))
}

/// Says which daemon runs, from where and since when.
fn running(info: &DaemonInfoAnswer) -> String {
    format!(
        "{} is running, pid {}, from {} since {}",
        info.version,
        info.pid,
        info.program.as_deref().unwrap_or("an unknown program"),
        info.started_at
    )
}

/// Returns whether the daemon's program was deleted.
fn is_gone(info: &DaemonInfoAnswer) -> bool {
    info.program
        .as_ref()
        .is_some_and(|program| !Path::new(program).exists())
}

/// Returns the command that upgrades the older of daemon and client. Nothing is ever downgraded.
fn upgrade_of_older(info: &DaemonInfoAnswer) -> String {
    if is_older(&info.version, env!("CARGO_PKG_VERSION")) {
        let Some(program) = info.program.as_deref().map(Path::new) else {
            return "upgrade orbd where it is installed".into();
        };
        return Installation::of(program, copy_path().as_deref()).upgrade(program);
    }
    match std::env::current_exe() {
        Ok(own) => Installation::of(&own, None).upgrade(&own),
        Err(_) => "upgrade orbd-ctl where it is installed".into(),
    }
}

/// Returns whether the daemon and this client have a common protocol.
fn speaks_ours(info: &DaemonInfoAnswer) -> bool {
    link::protocols_of(info).is_some_and(|theirs| theirs.agree(ProtocolRange::OURS).is_some())
}

/// Makes a call that must be answered before the deadline; `None` if it is not.
fn ask<M: Method>(
    client: &mut Client,
    params: &M::Params,
    deadline: Instant,
) -> Result<Option<M::Answer>, CliError> {
    let sent = client.send_one::<M>(params)?;
    Ok(client.fetch(&sent, left(deadline))?)
}

/// Returns the time until a deadline, but not zero, which would be no timeout.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(now())
        .max(Duration::from_millis(1))
}

/// Runs the checks that need a running daemon: `orbctl`, OrbStack, queue and metrics.
fn of_daemon(
    mut client: Client,
    info: &DaemonInfoAnswer,
    config: Option<&Config>,
    link: &Link,
    deadline: Instant,
) -> Vec<Check> {
    // Names this client in the metrics. The protocol has been compared before, so the answer does not matter.
    let _ = ask::<DaemonHello>(&mut client, &link::hello_of(CLIENT_NAME), deadline);
    let mut checks = vec![match &info.orbctl {
        Some(path) => Check::ok("orbctl", path.clone()),
        // orbd searches again on every use, but with the configuration and PATH of its start.
        None => match config.map(|config| find_orbctl(config, link, link.environment.path.as_deref())) {
            Some(Ok(found)) => Check::error(
                "orbctl",
                format!(
                    "orbd did not find orbctl with the configuration and PATH that it was started with; this shell finds {}",
                    found.path().display()
                ),
                "orbd-ctl daemon restart",
            ),
            Some(Err(error)) => not_found(&error),
            None => not_found(&LocateError::NotFound),
        },
    }];
    let queue = ask::<QueueStatus>(&mut client, &NoParams {}, deadline)
        .ok()
        .flatten();
    let counters = ask::<MetricsCounters>(&mut client, &NoParams {}, deadline);
    if info.orbctl.is_some() {
        let outage = queue.as_ref().and_then(|queue| queue.unhealthy.as_ref());
        if queue.as_ref().is_some_and(|queue| queue.paused) {
            // The call would wait until the queue is resumed.
            let message = "not checked: the queue is paused";
            checks.push(Check::warn("OrbStack", message, "orbd-ctl queue resume"));
        } else if let Some(outage) = outage {
            let message = format!("orbctl unhealthy since {}: {}", outage.since, outage.reason);
            checks.push(Check::error("OrbStack", message, UNSTICK));
        } else {
            checks.extend(of_orbstack(&mut client, deadline));
        }
    }
    checks.extend(queue.as_ref().map(of_queue));
    checks.push(channels::channels(info));
    if let Ok(Some(counters)) = counters {
        checks.push(match counters.store.as_str() {
            "open" | "closed" => Check::ok("metrics", "the store is healthy"),
            other => Check::warn(
                "metrics",
                other,
                format!(
                    "no history is recorded meanwhile; check {}/metrics, then run `orbd-ctl daemon restart`",
                    info.state_dir
                ),
            ),
        });
    }
    checks
}

/// Checks OrbStack's version and status, which the daemon reads from `orbctl`.
fn of_orbstack(client: &mut Client, deadline: Instant) -> Vec<Check> {
    let params = ReadParams::default();
    let (version, status) = match client.send_both::<OrbstackVersion, OrbstackStatus>(&params, &params) {
        Ok(sent) => sent,
        Err(error) => {
            return vec![Check::error(
                "OrbStack",
                CliError::from(error).to_string(),
                UNSTICK,
            )];
        }
    };
    let status = client.fetch(&status, left(deadline));
    let version = client.fetch(&version, left(deadline));
    let mut checks = Vec::new();
    match version {
        Ok(Some(answer)) => checks.push(Check::ok("OrbStack's version", answer.version)),
        // The status is reported below, and has the same cause.
        Ok(None) => {}
        Err(error) => checks.push(Check::error(
            "OrbStack's version",
            CliError::from(error).to_string(),
            "open the OrbStack app and let it update",
        )),
    }
    checks.push(match status {
        Ok(Some(answer)) if answer.observed.stale => Check::error(
            "OrbStack",
            render::staleness(&answer.observed).unwrap_or_default(),
            UNSTICK,
        ),
        Ok(Some(answer)) if answer.status == "running" => Check::ok("OrbStack", answer.status),
        Ok(Some(answer)) => Check::warn("OrbStack", answer.status, "orbd-ctl start"),
        Ok(None) => Check::error("OrbStack", "orbctl did not answer `status` in time", UNSTICK),
        Err(error) => Check::error("OrbStack", CliError::from(error).to_string(), UNSTICK),
    });
    checks
}

/// Checks whether the queue or a lane is paused or draining.
fn of_queue(queue: &QueueStatusAnswer) -> Check {
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
    match held {
        Some(held) => Check::warn("queue", format!("it {held}"), "orbd-ctl queue resume [NAME]"),
        None => Check::ok(
            "queue",
            format!("{} running, {} waiting", queue.running, queue.waiting),
        ),
    }
}

/// Checks whether calls of `orbctl` reach the drop-in. `None` if the drop-in is not installed.
fn dropin(link: &Link) -> Option<Check> {
    const ABOUT: &str = "drop-in";
    let report = super::dropin::examine(link, &super::dropin::usual_folder(link)?);
    match report.shadow() {
        Some((message, fix)) => Some(Check::warn(ABOUT, message, fix)),
        None => report.good().map(|message| Check::ok(ABOUT, message)),
    }
}

/// Returns the check for a missing `orbctl`.
fn not_found(error: &LocateError) -> Check {
    let fix = match error {
        LocateError::NotExecutable(path) if path.exists() => {
            format!(
                "chmod +x {}, or correct `orbctl` in orbd's configuration",
                path.display()
            )
        }
        LocateError::NotFound => {
            "install OrbStack (https://orbstack.dev), or set `orbctl` in orbd's configuration to its path"
                .into()
        }
        _ => {
            "correct `orbctl` in orbd's configuration, or remove the key so that orbd searches for it".into()
        }
    };
    Check::error("orbctl", error.to_string(), fix)
}

/// Searches for `orbctl` as a daemon with this configuration and PATH would.
fn find_orbctl(config: &Config, link: &Link, path: Option<&OsStr>) -> Result<Located, LocateError> {
    let ours: Vec<PathBuf> = std::env::current_exe().into_iter().collect();
    locate(&Search {
        configured: config.orbctl.as_deref(),
        path,
        home: link.environment.home.as_deref(),
        ours: &ours,
    })
}

/// Checks `orbctl` without a daemon: searches as a daemon started in this environment would.
fn orbctl_alone(config: &Config, link: &Link) -> Check {
    match find_orbctl(config, link, link.environment.path.as_deref()) {
        Ok(located) => Check::ok("orbctl", located.path().display().to_string()),
        Err(error) => not_found(&error),
    }
}

/// Checks orbd's state directory: free space, and damaged files that were set aside.
fn state_folder(folder: &Path) -> Vec<Check> {
    disk(folder).into_iter().chain(set_aside(folder)).collect()
}

/// Checks for damaged files that orbd renamed instead of deleting.
fn set_aside(folder: &Path) -> Option<Check> {
    let mut found: Vec<PathBuf> = [folder.join("metrics"), folder.to_owned()]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(".set-aside-"))
        })
        .collect();
    found.sort();
    let first = found.first()?;
    let more = match found.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(Check::warn(
        "set aside",
        format!(
            "{}{more}: damaged, so orbd started with an empty one",
            first.display()
        ),
        "`orbd-ctl daemon logs` shows the reason; remove it when you no longer need it",
    ))
}

fn disk(folder: &Path) -> Option<Check> {
    // The directory does not exist before the first start; its nearest existing parent is on the same disk.
    let existing = folder.ancestors().find(|folder| folder.is_dir())?;
    let writable = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_ok();
    let free = rustix::fs::statvfs(existing)
        .map(|data| data.f_bavail.saturating_mul(data.f_frsize))
        .ok()?;
    Some(room(folder, writable, free))
}

/// Returns the check for a disk with these properties.
fn room(folder: &Path, writable: bool, free: u64) -> Check {
    const ABOUT: &str = "disk";
    let place = folder.display();
    if !writable {
        Check::error(
            ABOUT,
            format!("{place} is not writable"),
            format!("run `chown -R \"$(id -un)\" {place}`"),
        )
    } else if free < FREE_MIN {
        Check::error(
            ABOUT,
            format!("{} MiB free on the disk of {place}", free >> 20),
            "free disk space: orbd stores output and the journal there",
        )
    } else {
        Check::ok(ABOUT, format!("{} MiB free on the disk of {place}", free >> 20))
    }
}

fn show(checks: &Checks, look: Look) -> String {
    let mut text = String::new();
    for check in &checks.checks {
        let (style, sign) = match check.status {
            CheckStatus::Ok => (render::GOOD, "ok     "),
            CheckStatus::Warn => (render::HINT, "warning"),
            CheckStatus::Error => (render::BAD, "error  "),
        };
        let sign = render::paint(look, style, sign);
        let message = format!("{sign} {}: {}\n", check.name, check.message);
        text.push_str(&look.paragraph(&message, 8));
        if let Some(fix) = &check.fix {
            text.push_str(&look.paragraph(&format!("        -> {fix}\n"), 11));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn unusable_sockets_are_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let permissions =
            |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("ours");
        permissions(0o755);
        assert!(
            socket(&folder.path().join("s"))
                .message
                .contains("open to other users")
        );
        permissions(0o700);
        let long = folder.path().join("x".repeat(120));
        assert_eq!(socket(&long).status, CheckStatus::Error);
        let file = folder.path().join("orbd.sock");
        assert_eq!(socket(&file).status, CheckStatus::Ok, "it does not exist yet");
        fs::write(&file, "").expect("written");
        assert!(socket(&file).message.contains("is not a socket"));
        fs::remove_file(&file).expect("ours");
        let _listener = std::os::unix::net::UnixListener::bind(&file).expect("a socket");
        assert_eq!(socket(&file).status, CheckStatus::Ok);
        let stranger = rustix::process::geteuid().as_raw() + 1;
        assert_eq!(socket_of(&file, stranger).status, CheckStatus::Error);
    }

    #[test]
    fn checks_that_hang_are_reported_and_hide_no_other() {
        let (hung, release) = mpsc::channel::<()>();
        let group = |name, checks: Box<dyn FnOnce() -> Vec<Check> + Send>| Group {
            name,
            fix: "df",
            checks,
        };
        let checks = in_time(
            vec![
                group("first", Box::new(|| vec![Check::ok("first", "fine")])),
                group(
                    "hung",
                    Box::new(move || {
                        let _ = release.recv();
                        Vec::new()
                    }),
                ),
                group("last", Box::new(|| vec![Check::ok("last", "fine")])),
            ],
            Duration::from_millis(300),
        );
        let found: Vec<_> = checks.iter().map(|check| (check.name, check.status)).collect();
        let expected = [
            ("first", CheckStatus::Ok),
            ("hung", CheckStatus::Error),
            ("last", CheckStatus::Ok),
        ];
        assert_eq!(found, expected);
        assert!(
            checks[1].message.contains("no answer within 300 ms"),
            "{checks:?}"
        );
        drop(hung);
    }

    #[test]
    fn low_disk_space_is_an_error_before_the_disk_is_full() {
        let check = |writable, free, status| {
            assert_eq!(room(Path::new("/state"), writable, free).status, status, "{free}");
        };
        check(true, FREE_MIN, CheckStatus::Ok);
        check(true, FREE_MIN - 1, CheckStatus::Error);
        check(true, 0, CheckStatus::Error);
        check(false, u64::MAX, CheckStatus::Error);
    }

    #[test]
    fn checks_are_printed_one_per_line_with_their_fixes() {
        let checks = Checks {
            checks: vec![
                Check::ok("socket", "/s"),
                Check::error("orbctl", "not found", "install OrbStack"),
            ],
        };
        assert_eq!(
            show(&checks, Look::default()),
            "ok      socket: /s\nerror   orbctl: not found\n        -> install OrbStack\n"
        );
    }
}
