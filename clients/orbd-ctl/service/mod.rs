//! The daemon as a service of the user's session: launchd on a Mac, systemd's user manager on Linux.
//!
//! A service is one file that the manager reads and a few words said to the manager's own tool. What the file says is made from a
//! [`Description`], the same for both; [`launchd`] and [`systemd`] know the form of the file and the words, and nobody else does.
//! Nothing here waits for the daemon to answer: that it runs is the manager's business, that it serves is found out on the socket.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use orbd::config::{Config, Environment as ConfigEnvironment, Flags};
use orbd::daemon::LEAVE_CHANGES_AFTER;
use orbd::orbctl::environment::search_folders;

use crate::error::CliError;
use crate::link::Link;

mod launchd;
pub(crate) mod program;
mod systemd;

/// Descriptors that the daemon may have open: a connection takes one, a running job half a dozen. launchd gives 256 otherwise.
const DESCRIPTORS: u32 = 16_384;

/// After a crash the daemon is started again no sooner than this many seconds after its last start.
const THROTTLE_S: u32 = 5;

/// What closing connections, the journal and the metrics may take after that, generously.
const FAREWELLS_MAX: Duration = Duration::from_secs(20);

/// What the service's file says, whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Description {
    /// The daemon, by a path that survives its upgrade.
    program: PathBuf,
    /// `HOME` of the daemon; `orbctl` runs there.
    home: PathBuf,
    /// `PATH` of the daemon and with it of `orbctl`.
    path: OsString,
    /// `ORBD_SOCKET`, where it is not the usual one.
    socket: Option<PathBuf>,
    /// Takes what the daemon says before its own log is open.
    said: PathBuf,
    /// How long it has between being asked to stop and being killed. Longer than it takes to stop in order.
    stop_limit: Duration,
}

impl Description {
    /// Describes the service as this program would install it now.
    fn of(link: &Link) -> Result<Self, CliError> {
        let home = home(link)?;
        // The daemon would end at once with the same words, again and again.
        let config = Config::load(&Flags::default(), &ConfigEnvironment::of_process()).map_err(|error| {
            CliError::Local {
                what: "the daemon's configuration is not in order".into(),
                source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
            }
        })?;
        let usual = home.join(".orbd/orbd.sock");
        Ok(Self {
            program: program::stable(&crate::launch::find(link)?, link.environment.path.as_deref()),
            path: search_path(&home, link.environment.path.as_deref()),
            socket: (link.socket != usual).then(|| link.socket.clone()),
            said: link.socket.with_extension("err"),
            stop_limit: config.grace.max(LEAVE_CHANGES_AFTER) + FAREWELLS_MAX,
            home,
        })
    }

    /// Returns the environment that the file sets: a manager gives little of its own.
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

/// Returns the home that the service belongs to.
fn home(link: &Link) -> Result<PathBuf, CliError> {
    let home = link.environment.home.clone().filter(|home| home.is_absolute());
    home.ok_or_else(|| CliError::Usage {
        message: "HOME is not set, so there is no place for a service".into(),
        hint: "set HOME to an absolute path".into(),
    })
}

/// Returns the `PATH` for the daemon: where OrbStack, Homebrew and the system put programs, and what the caller's has beyond that,
/// as far as it is absolute. Folders of a temporary nature (a virtual environment, say) do no harm there.
fn search_path(home: &Path, ours: Option<&OsStr>) -> OsString {
    let mut folders = search_folders(home);
    for folder in ours.into_iter().flat_map(std::env::split_paths) {
        if folder.is_absolute() && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    // A folder with a colon in its name cannot be said in a PATH.
    folders.retain(|folder| !folder.as_os_str().as_encoded_bytes().contains(&b':'));
    std::env::join_paths(folders).unwrap_or_else(|_| "/usr/bin:/bin".into())
}

/// How the manager sees the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// The manager has read the file.
    pub(crate) loaded: bool,
    /// The process that runs, if one does.
    pub(crate) pid: Option<u32>,
    /// How the last one ended, where the manager tells.
    pub(crate) last_exit: Option<i32>,
}

/// Which manager to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ManagerName {
    /// launchd, as on a Mac.
    Launchd,
    /// systemd's user manager, as on Linux.
    Systemd,
}

impl ManagerName {
    /// Returns the one of this system.
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

/// What is said to a manager.
trait Manager {
    /// Returns the form of the file.
    fn text(&self, description: &Description) -> Result<Vec<u8>, CliError>;
    /// Makes sure that there is a manager to talk to.
    fn check(&self) -> Result<(), CliError>;
    /// Lets the manager read the file, and start the service now and at each login.
    fn load(&self) -> Result<(), CliError>;
    /// Lets the manager forget the service; ends the daemon.
    fn unload(&self) -> Result<(), CliError>;
    /// Starts the service, if it does not run.
    fn start(&self) -> Result<(), CliError>;
    /// Asks the daemon to stop in order, and not to be started again until somebody wants it.
    fn stop(&self) -> Result<(), CliError>;
    /// Looks.
    fn state(&self) -> Result<State, CliError>;
    /// Returns the `PATH` that a file sets.
    fn search_path(&self, text: &[u8]) -> Option<OsString>;
}

/// The service of one user under one manager.
pub(crate) struct Service {
    /// Which manager.
    pub(crate) name: ManagerName,
    /// The file that the manager reads.
    pub(crate) file: PathBuf,
    manager: Box<dyn Manager>,
}

/// What became of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It was there and said the same.
    Same,
    /// It says something new.
    New,
}

impl Service {
    /// Returns the service of the user who asks.
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

    /// Returns the service that is installed for the daemon behind this link, if one is. Costs one look at a file.
    pub(crate) fn installed(link: &Link) -> Option<Self> {
        let service = Self::of(link, ManagerName::of_this_system()).ok()?;
        (service.is_installed() && service.serves(link)).then_some(service)
    }

    /// Says whether its file is there.
    pub(crate) fn is_installed(&self) -> bool {
        self.file.is_file()
    }

    /// Says whether its daemon listens where the link leads: the file names the socket, or none and it is the usual one.
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

    /// Returns what the file would say if it were written now.
    pub(crate) fn text(&self, link: &Link) -> Result<Vec<u8>, CliError> {
        self.manager.text(&Description::of(link)?)
    }

    /// Says whether the file says what it would if it were written now.
    pub(crate) fn is_current(&self, link: &Link) -> Result<bool, CliError> {
        let wanted = self.text(link)?;
        Ok(fs::read(&self.file).is_ok_and(|found| found == wanted))
    }

    /// Makes sure that there is a manager to talk to.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.manager.check()
    }

    /// Writes the file, all of it or nothing.
    pub(crate) fn write(&self, link: &Link) -> Result<Written, CliError> {
        let text = self.text(link)?;
        if fs::read(&self.file).is_ok_and(|found| found == text) {
            return Ok(Written::Same);
        }
        write_whole(&self.file, &text).map_err(|source| CliError::Local {
            what: format!("cannot write {}", self.file.display()),
            source,
        })?;
        Ok(Written::New)
    }

    /// Lets the manager read the file and start the daemon. What it had read before is unloaded first.
    pub(crate) fn load(&self) -> Result<(), CliError> {
        if self.manager.state()?.loaded {
            self.manager.unload()?;
        }
        self.manager.load()
    }

    /// Ends the daemon, and takes the file away. Says whether there was anything to undo.
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

    /// Starts it, if it does not run.
    pub(crate) fn start(&self) -> Result<(), CliError> {
        if !self.manager.state()?.loaded {
            return self.manager.load();
        }
        self.manager.start()
    }

    /// Asks it to stop in order.
    pub(crate) fn stop(&self) -> Result<(), CliError> {
        self.manager.stop()
    }

    /// Returns the `PATH` that its file sets, where it is installed.
    pub(crate) fn search_path(&self) -> Option<OsString> {
        self.manager.search_path(&fs::read(&self.file).ok()?)
    }

    /// Looks how the manager sees it.
    pub(crate) fn state(&self) -> Result<State, CliError> {
        self.manager.state()
    }
}

/// Writes a file beside its place and moves it there, so that the manager never reads half of one.
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
    // launchd refuses a file that others may write to, whatever our umask is.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// Runs a manager's tool and returns what it said.
#[expect(
    clippy::disallowed_methods,
    reason = "a service manager is talked to through its tool, here and nowhere else"
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

/// Says that a manager refused: its own words, its exit code, and what to do.
fn refused(program: &str, arguments: &[&str], output: &Output, hint: &str) -> CliError {
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let said = if words.is_empty() {
        "it said nothing"
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
            home: "/Users/me & co".into(),
            path: "/usr/bin:/bin".into(),
            socket: None,
            said: "/Users/me & co/.orbd/orbd.err".into(),
            stop_limit: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_search_path_has_the_usual_places_first_and_each_once() {
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
    fn a_file_is_replaced_whole_and_nobody_else_may_write_it() {
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
