//! The checks of the service that starts orbd.

use orbd_host::config::{Config, Environment as ConfigEnvironment, Flags};
use orbd_host::locate::LocateError;

use super::{Check, find_orbctl, not_found};
use crate::link::Link;
use crate::service::{ManagerName, Service, State};

/// Returns the check for a service whose program was removed: nothing else explains so many symptoms.
pub(super) fn missing_service_program(link: &Link) -> Option<Check> {
    let service = Service::installed(link)?;
    let missing = service.missing_program()?;
    Some(Check::error(
        "service",
        format!(
            "its program {} does not exist, so it cannot start",
            missing.display()
        ),
        "run `orbd-ctl service install` from an installed orbd, or `orbd-ctl service uninstall`",
    ))
}

/// Checks the service, if one is installed.
pub(super) fn service(link: &Link, daemon_runs: bool) -> Check {
    const ABOUT: &str = "service";
    let found = Service::of(link, ManagerName::of_this_system()).and_then(|service| {
        let current = service.is_installed() && service.is_current(link)?;
        let state = service.is_installed().then(|| service.state());
        Ok((service, current, state))
    });
    match found {
        Err(error) => Check::warn(ABOUT, error.to_string(), "orbd-ctl service status"),
        Ok((_, _, None)) => Check::ok(ABOUT, "not installed; clients start orbd on demand"),
        Ok((service, _, Some(Err(error)))) => Check::error(
            ABOUT,
            format!("{} is installed, but {error}", service.file.display()),
            error.hint().unwrap_or_else(|| "orbd-ctl service install".into()),
        ),
        Ok((_, _, Some(Ok(state)))) if is_failing(&state) && !daemon_runs => Check::error(
            ABOUT,
            format!(
                "installed, but orbd ended with exit code {}",
                state.last_exit.unwrap_or_default()
            ),
            format!(
                "check `orbd-ctl service logs` and {}, then run `orbd-ctl service start`",
                link.socket.with_extension("err").display()
            ),
        ),
        Ok((service, false, Some(Ok(_)))) => Check::warn(
            ABOUT,
            format!("{} is outdated", service.file.display()),
            "orbd-ctl service install",
        ),
        Ok((_, true, Some(Ok(state)))) => match state.pid {
            Some(pid) => Check::ok(
                ABOUT,
                format!(
                    "running under {}, pid {pid}",
                    ManagerName::of_this_system().as_str()
                ),
            ),
            None if daemon_runs => Check::warn(
                ABOUT,
                "installed, but the running orbd was started without it",
                "orbd-ctl daemon stop && orbd-ctl service start",
            ),
            None => Check::warn(ABOUT, "installed, but not running", "orbd-ctl service start"),
        },
    }
}

/// Returns whether the service failed: it is not running, and its last exit code was not 0.
fn is_failing(state: &State) -> bool {
    state.pid.is_none() && state.last_exit.is_some_and(|code| code != 0)
}

/// Checks whether `orbctl` is on the PATH that the service's file sets. It may differ from the PATH of this terminal.
pub(super) fn service_path(link: &Link) -> Option<Check> {
    const ABOUT: &str = "service's PATH";
    let service = Service::of(link, ManagerName::of_this_system()).ok()?;
    let path = service.search_path()?;
    // The service reads the configuration file, but does not have the variables of this environment.
    let config = Config::load(&Flags::default(), &ConfigEnvironment::default()).ok()?;
    Some(match find_orbctl(&config, link, Some(&path)) {
        Ok(found) => Check::ok(ABOUT, format!("finds {}", found.path().display())),
        Err(LocateError::NotFound) => Check::error(
            ABOUT,
            format!("{} has no orbctl", path.display()),
            "run `orbd-ctl service install` in a shell with orbctl on PATH, or set `orbctl` in orbd's configuration",
        ),
        Err(error) => Check {
            name: ABOUT,
            ..not_found(&error)
        },
    })
}
