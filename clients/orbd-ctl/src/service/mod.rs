//! Runs the daemon as a service of the user's session: launchd on macOS, systemd's user manager on Linux.
//!
//! A service consists of a file that the manager reads, and a few invocations of the manager's tool. The content of the file is
//! described by a [`Description`], the same for both managers; [`launchd`] and [`systemd`] define the file format and the invocations.
//! Nothing here waits for the daemon to answer: the callers check that on the socket.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use orbd_host::config::LEAVE_CHANGES_AFTER;
use orbd_host::config::{Config, Environment as ConfigEnvironment, Flags};
use orbd_host::locate::search_folders;
use orbd_host::release::is_older;

use crate::daemon_binary;
use crate::error::CliError;
use crate::link::Link;
use program::ServiceProgram;

mod launchd;
pub(crate) mod program;
mod systemd;

/// Limit on open file descriptors of the daemon. A connection needs one, a running job about six. launchd's default is 256.
const DESCRIPTORS: u32 = 16_384;

/// Minimum time, in seconds, between two starts of the daemon after a crash.
const THROTTLE_S: u32 = 5;

/// Upper bound for the rest of the daemon's shutdown, after running changes have ended: closing connections, journal and metrics.
const FAREWELLS_MAX: Duration = Duration::from_secs(20);

/// Content of the service file, independent of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Description {
    /// The daemon's program, by a path that stays valid after an upgrade.
    program: PathBuf,
    /// The installed program, if `program` is a copy of it that has to be written or updated.
    copy_of: Option<PathBuf>,
    /// `HOME` of the daemon; `orbctl` runs there.
    home: PathBuf,
    /// `PATH` of the daemon, which `orbctl` inherits.
    path: OsString,
    /// `ORBD_SOCKET`; `None` for the default socket.
    socket: Option<PathBuf>,
    /// File that receives the daemon's output until it has opened its own log.
    said: PathBuf,
    /// Time between the request to stop and SIGKILL. Longer than a graceful shutdown takes.
    stop_limit: Duration,
}

impl Description {
    /// Returns the description that this program would install now. An installed service keeps its program, `installed`, while that exists:
    /// another installation of orbd, such as a project's virtual environment, must not take over the service by accident.
    fn of(link: &Link, installed: Option<PathBuf>) -> Result<Self, CliError> {
        let home = home(link)?;
        // With an invalid configuration the manager would restart the daemon again and again.
        let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process()).map_err(|error| {
            CliError::Local {
                what: "orbd's configuration is invalid".into(),
                source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
            }
        })?;
        let usual = home.join(".orbd/orbd.sock");
        let copy = config.service_program_path();
        let installed = installed.filter(|path| path.is_file());
        let choose =
            || program::for_service(&daemon_binary::find(&link.environment)?, &link.environment, &copy);
        let (program, copy_of) = match installed {
            Some(path) if path == copy => (path, choose().ok().map(ServiceProgram::into_path)),
            Some(path) => (path, None),
            None => match choose()? {
                ServiceProgram::Stable(path) => (path, None),
                ServiceProgram::Copy { source } => (copy, Some(source)),
            },
        };
        Ok(Self {
            program,
            copy_of,
            path: search_path(&home, link.environment.path.as_deref()),
            socket: (link.socket != usual).then(|| link.socket.clone()),
            said: link.socket.with_extension("err"),
            stop_limit: config.grace.max(LEAVE_CHANGES_AFTER) + FAREWELLS_MAX,
            home,
        })
    }

    /// Returns the environment variables that the file sets. Managers set few of their own.
    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = vec![
            ("HOME", self.home.clone().into_os_string()),
            ("PATH", self.path.clone()),
        ];
        variables.extend(
            self.socket
                .iter()
                .map(|socket| ("ORBD_SOCKET", socket.clone().into_os_string())),
        );
        variables
    }
}

/// Returns the path of the service's copy of the program; `None` if the configuration is invalid.
pub(crate) fn copy_path() -> Option<PathBuf> {
    let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process()).ok()?;
    Some(config.service_program_path())
}

/// Copies the installed program for the service, unless the copy is the same or newer. Replaces it atomically: a daemon that runs the old
/// copy notices the new one and executes it when it is idle.
fn update_copy(source: &Path, copy: &Path) -> Result<(), CliError> {
    let local = |source| CliError::Local {
        what: format!("cannot copy orbd to {}", copy.display()),
        source,
    };
    if source == copy
        || fs::read(source)
            .ok()
            .is_some_and(|wanted| fs::read(copy).is_ok_and(|found| found == wanted))
    {
        return Ok(());
    }
    if copy.exists()
        && let Ok(found) = daemon_binary::version_of(copy)
        && is_older(&daemon_binary::version_of(source)?, &found)
    {
        return Ok(());
    }
    let folder = copy
        .parent()
        .ok_or(io::ErrorKind::InvalidInput)
        .map_err(|kind| local(kind.into()))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(local)?;
    let new = copy.with_extension("new");
    fs::copy(source, &new)
        .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, copy))
        .map_err(local)
}

/// Returns the home directory of the user whose service it is.
fn home(link: &Link) -> Result<PathBuf, CliError> {
    let home = link.environment.home.clone().filter(|home| home.is_absolute());
    home.ok_or_else(|| CliError::Usage {
        message: "HOME is not set, so the path of the service file is unknown".into(),
        hint: "set HOME to an absolute path".into(),
    })
}

/// Returns the `PATH` for the daemon: the directories of OrbStack, Homebrew and the system, then the other absolute directories on
/// the caller's `PATH`. Temporary ones, such as a virtual environment, do no harm there.
fn search_path(home: &Path, ours: Option<&OsStr>) -> OsString {
    let mut folders = search_folders(home);
    for folder in ours.into_iter().flat_map(std::env::split_paths) {
        if folder.is_absolute() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    // A directory with a colon in its name cannot be part of a PATH.
    folders.retain(|folder| !folder.as_os_str().as_encoded_bytes().contains(&b':'));
    std::env::join_paths(folders).unwrap_or_else(|_| "/usr/bin:/bin".into())
}

/// State of the service as its manager reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// The manager has read the file.
    pub(crate) loaded: bool,
    /// Process id of the daemon; `None` if it is not running.
    pub(crate) pid: Option<u32>,
    /// Exit code of the last process, if the manager reports it.
    pub(crate) last_exit: Option<i32>,
}

/// A service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ManagerName {
    /// launchd, on macOS
    Launchd,
    /// systemd's user manager, on Linux
    Systemd,
}

impl ManagerName {
    /// Returns the manager of this operating system.
    pub(crate) const fn of_this_system() -> Self {
        if cfg!(target_os = "macos") {
            Self::Launchd
        } else {
            Self::Systemd
        }
    }

    /// Returns its name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Launchd => "launchd",
            Self::Systemd => "systemd",
        }
    }
}

/// Operations of a service manager.
trait Manager {
    /// Returns the content of the service file.
    fn text(&self, description: &Description) -> Result<Vec<u8>, CliError>;
    /// Checks that the manager is reachable.
    fn check(&self) -> Result<(), CliError>;
    /// Makes the manager read the file, and start the service now and at each login.
    fn load(&self) -> Result<(), CliError>;
    /// Stops the daemon and makes the manager forget the service.
    fn unload(&self) -> Result<(), CliError>;
    /// Starts the service, if it is not running.
    fn start(&self) -> Result<(), CliError>;
    /// Asks the daemon to stop gracefully. The manager does not restart it.
    fn stop(&self) -> Result<(), CliError>;
    /// Queries the state of the service.
    fn state(&self) -> Result<State, CliError>;
    /// Returns the `PATH` that a service file sets.
    fn search_path(&self, text: &[u8]) -> Option<OsString>;
    /// Returns the program that a service file names.
    fn program(&self, text: &[u8]) -> Option<PathBuf>;
}

/// The service of one user under one manager.
pub(crate) struct Service {
    /// The manager.
    pub(crate) name: ManagerName,
    /// Path of the service file, which may not exist.
    pub(crate) file: PathBuf,
    manager: Box<dyn Manager>,
}

/// Result of writing the service file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// The file already had this content.
    Same,
    /// The file was created or changed.
    New,
}

impl Service {
    /// Returns the service of the current user under this manager, installed or not.
    pub(crate) fn of(link: &Link, name: ManagerName) -> Result<Self, CliError> {
        let home = home(link)?;
        let (file, manager): (PathBuf, Box<dyn Manager>) = match name {
            ManagerName::Launchd => {
                let file = home.join("Library/LaunchAgents").join(launchd::FILE_NAME);
                let manager = launchd::Launchd::new(&file);
                (file, Box::new(manager))
            }
            ManagerName::Systemd => {
                let folder = link.environment.config_home.clone();
                let folder = folder
                    .unwrap_or_else(|| home.join(".config"))
                    .join("systemd/user");
                (folder.join(systemd::UNIT), Box::new(systemd::Systemd))
            }
        };
        Ok(Self { name, file, manager })
    }

    /// Returns the service that is installed for the daemon of this link, if there is one. Only reads the service file.
    pub(crate) fn installed(link: &Link) -> Option<Self> {
        let service = Self::of(link, ManagerName::of_this_system()).ok()?;
        (service.is_installed() && service.serves(link)).then_some(service)
    }

    /// Returns whether the service file exists.
    pub(crate) fn is_installed(&self) -> bool {
        self.file.is_file()
    }

    /// Returns whether the service's daemon listens on the link's socket: the file names that socket, or it names none and the socket
    /// is the default one.
    fn serves(&self, link: &Link) -> bool {
        let Ok(text) = fs::read(&self.file) else {
            return false;
        };
        let names_one = memchr::memmem::find(&text, b"ORBD_SOCKET").is_some();
        let is_usual = home(link).is_ok_and(|home| link.socket == home.join(".orbd/orbd.sock"));
        let socket = link.socket.as_os_str().as_encoded_bytes();
        if names_one {
            memchr::memmem::find(&text, socket).is_some()
        } else {
            is_usual
        }
    }

    /// Returns the content that the service file should have.
    pub(crate) fn text(&self, link: &Link) -> Result<Vec<u8>, CliError> {
        self.manager.text(&Description::of(link, self.program())?)
    }

    /// Returns whether the service file has the content that it should have.
    pub(crate) fn is_current(&self, link: &Link) -> Result<bool, CliError> {
        let wanted = self.text(link)?;
        Ok(fs::read(&self.file).is_ok_and(|found| found == wanted))
    }

    /// Checks that the manager is reachable.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.manager.check()
    }

    /// Writes the service file atomically, and the copy of the program if the service runs one.
    pub(crate) fn write(&self, link: &Link) -> Result<Written, CliError> {
        let description = Description::of(link, self.program())?;
        if let Some(source) = &description.copy_of {
            update_copy(source, &description.program)?;
        }
        let text = self.manager.text(&description)?;
        if fs::read(&self.file).is_ok_and(|found| found == text) {
            return Ok(Written::Same);
        }
        write_whole(&self.file, &text).map_err(|source| CliError::Local {
            what: format!("cannot write {}", self.file.display()),
            source,
        })?;
        Ok(Written::New)
    }

    /// Makes the manager read the file and start the daemon. An older file that is loaded is unloaded first.
    pub(crate) fn load(&self) -> Result<(), CliError> {
        if self.manager.state()?.loaded {
            self.manager.unload()?;
        }
        self.manager.load()
    }

    /// Stops the daemon and removes the file. Returns whether the service was installed or loaded.
    pub(crate) fn remove(&self) -> Result<bool, CliError> {
        let loaded = self.manager.state()?.loaded;
        if loaded {
            self.manager.unload()?;
        }
        match fs::remove_file(&self.file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(loaded),
            Err(source) => {
                return Err(CliError::Local {
                    what: format!("cannot remove {}", self.file.display()),
                    source,
                });
            }
        }
        Ok(true)
    }

    /// Starts the service, if it is not running.
    pub(crate) fn start(&self) -> Result<(), CliError> {
        if !self.manager.state()?.loaded {
            return self.manager.load();
        }
        self.manager.start()
    }

    /// Asks the service to stop gracefully.
    pub(crate) fn stop(&self) -> Result<(), CliError> {
        self.manager.stop()
    }

    /// Returns the `PATH` that the service file sets; `None` if the service is not installed.
    pub(crate) fn search_path(&self) -> Option<OsString> {
        self.manager.search_path(&fs::read(&self.file).ok()?)
    }

    /// Returns the program that the service file names; `None` if the service is not installed.
    pub(crate) fn program(&self) -> Option<PathBuf> {
        self.manager.program(&fs::read(&self.file).ok()?)
    }

    /// Returns the file of a service that Homebrew runs, if there is one.
    pub(crate) fn homebrew_file(&self) -> Option<PathBuf> {
        let name = match self.name {
            ManagerName::Launchd => "homebrew.mxcl.orbd.plist",
            ManagerName::Systemd => "homebrew.orbd.service",
        };
        Some(self.file.with_file_name(name)).filter(|file| file.is_file())
    }

    /// Returns whether the service runs the copy in the state directory.
    pub(crate) fn runs_copy(&self) -> bool {
        let copy = copy_path();
        copy.is_some() && copy == self.program()
    }

    /// Returns the program that the service file names if it does not exist.
    pub(crate) fn missing_program(&self) -> Option<PathBuf> {
        self.program().filter(|program| !program.is_file())
    }

    /// Queries the state of the service.
    pub(crate) fn state(&self) -> Result<State, CliError> {
        self.manager.state()
    }
}

/// Writes a temporary file and renames it, so that the manager never reads a partial file.
fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&beside)?;
    file.write_all(text)?;
    // launchd refuses a file that other users can write to, so do not depend on the umask.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Runs a manager's tool and returns its output.
#[expect(
    clippy::disallowed_methods,
    reason = "only this module runs the tools of service managers"
)]
fn tool(program: &str, arguments: &[&str]) -> Result<Output, CliError> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CliError::Local {
            what: format!("cannot run {program}"),
            source,
        })
}

/// Returns the error for a failed invocation of a manager's tool, with its message and exit status.
fn refused(program: &str, arguments: &[&str], output: &Output, hint: &str) -> CliError {
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let said = if words.is_empty() {
        "no error message"
    } else {
        words
    };
    CliError::Service {
        message: format!(
            "`{program} {}` failed ({}): {said}",
            arguments.join(" "),
            output.status
        ),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn description() -> Description {
        Description {
            program: "/opt/homebrew/bin/orbd".into(),
            copy_of: None,
            home: "/Users/me & co".into(),
            path: "/usr/bin:/bin".into(),
            socket: None,
            said: "/Users/me & co/.orbd/orbd.err".into(),
            stop_limit: Duration::from_secs(30),
        }
    }

    #[test]
    fn search_path_starts_with_the_default_directories_without_duplicates() {
        let path = search_path(
            Path::new("/Users/me"),
            Some(OsStr::new("/bin:relative:/Users/me/bin:/opt/homebrew/bin")),
        );
        assert_eq!(
            path,
            "/Users/me/.orbstack/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/Users/me/bin"
        );
    }

    #[test]
    fn service_file_is_replaced_atomically_and_writable_only_by_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("below/agent.plist");
        write_whole(&path, b"one").expect("written");
        write_whole(&path, b"two").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"two");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(
            fs::read_dir(path.parent().expect("one"))
                .expect("a folder")
                .count(),
            1
        );
    }
}
