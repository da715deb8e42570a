//! Starts the daemon: through its service if one is installed, otherwise as a detached process. Waits until it answers.
//!
//! Several clients may do this at the same time. Every daemon but one finds the lock held and exits with 0, which is not an error
//! here. The daemon that holds the lock may also be shutting down: it accepts no connections, and exits once its running jobs have
//! ended. No daemon answers until another one is started, so a waiting client starts one again when the lock is free.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orbd_client::Client;
use orbd_host::config;

use crate::console::{Console, now};
use crate::daemon_binary::find;
use crate::error::CliError;
use crate::link::{Link, greet};
use crate::service::Service;

/// Maximum time until a daemon answers. Longer than a previous daemon takes to exit (10 s for changes, then its shutdown), and
/// shorter than the 20 s timeout that the PyInfra connector sets for `daemon start`.
const START_MAX: Duration = Duration::from_secs(18);

/// Maximum number of daemons that exit with 0 while the lock is free. More than one, because a client that checks the lock holds it
/// for a moment, which makes a daemon that starts then exit.
const VAIN_MAX: u32 = 5;

/// Pause before the second start. It doubles with each start, up to [`AGAIN_MAX`].
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Maximum pause between two starts.
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// Maximum number of bytes of a failed daemon's output that are shown.
const LAST_WORDS_MAX: u64 = 2000;

/// Maximum time for the service's daemon to answer; after that the daemon is started without the service.
const SERVICE_MAX: Duration = Duration::from_secs(5);

/// What starts the daemon.
pub(crate) struct Launcher {
    /// The installed service, if its program exists.
    service: Option<Service>,
    /// The program that is started without the service, or if the service fails.
    program: Result<PathBuf, CliError>,
}

impl Launcher {
    /// Chooses the service, or a program. `running` is the program of the daemon that is to be restarted: no other one replaces it while
    /// it exists.
    pub(crate) fn choose(link: &Link, running: Option<&Path>, console: &mut Console) -> Self {
        let mut service = Service::installed(link);
        if let Some(missing) = service.as_ref().and_then(Service::missing_program) {
            console.eprint(&format!(
                "the service's program {} does not exist; starting orbd without the service; `orbd-ctl service install` repairs it",
                missing.display()
            ));
            service = None;
        }
        let program = match running {
            Some(running) if running.is_file() => Ok(running.to_owned()),
            Some(running) => find(&link.environment).inspect(|found| {
                if service.is_none() {
                    console.eprint(&format!(
                        "{}, the program of the running orbd, does not exist any more; starting {}",
                        running.display(),
                        found.display()
                    ));
                }
            }),
            None => find(&link.environment),
        };
        Self { service, program }
    }

    /// Returns the path of the program that will run.
    pub(crate) fn program(&self) -> Result<PathBuf, &CliError> {
        match self.service.as_ref().and_then(Service::program) {
            Some(program) => Ok(program),
            None => self.program.as_ref().cloned(),
        }
    }

    /// Starts the daemon and connects to it once it answers.
    pub(crate) fn launch(self, link: &Link, console: &mut Console) -> Result<Client, CliError> {
        if let Some(service) = self.service {
            match service.start().and_then(|()| answered(link, SERVICE_MAX)) {
                Ok(Some(client)) => return Ok(client),
                Ok(None) => console.eprint("the service does not answer; starting orbd without it"),
                Err(error) => console.eprint(&format!("{error}; starting orbd without its service")),
            }
        }
        launch_program(&self.program?, link, console)
    }
}

/// Starts the daemon, through its service if one is installed, and connects to it once it answers.
pub(crate) fn launch(link: &Link, console: &mut Console) -> Result<Client, CliError> {
    Launcher::choose(link, None, console).launch(link, console)
}

/// Makes the program rename a journal that it cannot read, so that it can start.
#[expect(clippy::disallowed_methods, reason = "runs the daemon's program, not orbctl")]
pub(crate) fn set_aside_newer_journal(program: &Path, console: &mut Console) -> Result<(), CliError> {
    let output = Command::new(program)
        .arg("--set-aside-newer-journal")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CliError::Local {
            what: format!("cannot run {}", program.display()),
            source,
        })?;
    if !output.status.success() {
        return Err(CliError::NotStarted {
            reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            hint: "if another orbd uses the journal, stop it with `orbd-ctl daemon stop`".into(),
        });
    }
    console.eprint(String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Returns whether the configuration allows clients to start the daemon. Also true if the configuration is invalid: the daemon then
/// reports the error.
pub(crate) fn is_wanted() -> bool {
    config::Config::load(&config::Flags::default(), &config::Environment::of_process())
        .map_or(true, |config| config.autostart)
}

/// Returns whether a daemon answers. Any answer counts, even a protocol mismatch, which the caller's own greeting will report.
fn is_served(link: &Link) -> bool {
    link.dial()
        .is_ok_and(|mut client| !matches!(greet(&mut client, &link.socket), Err(CliError::Lost(_))))
}

/// Waits until a daemon answers that the service manager started; `None` after `at_most`.
pub(crate) fn answered(link: &Link, at_most: Duration) -> Result<Option<Client>, CliError> {
    let began = now();
    let mut pause = Duration::from_millis(1);
    while now() - began < at_most {
        if is_served(link) {
            return link.dial().map(Some);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(None)
}

fn launch_program(program: &Path, link: &Link, console: &mut Console) -> Result<Client, CliError> {
    let log = Log::open(&link.socket)?;
    let began = now();
    let mut starts = Starts::new(began);
    let mut pause = Duration::from_millis(1);
    let mut said = "";
    loop {
        if is_served(link) {
            return link.dial();
        }
        let waits_for = starts.tend(program, link, &log)?;
        let waited = now() - began;
        if waited >= START_MAX {
            let who = match waits_for {
                WaitsFor::Ours => "it",
                WaitsFor::Other => "another orbd, which holds the socket's lock,",
            };
            return Err(log.failed(&format!(
                "{who} has not answered on {} for {} s",
                link.socket.display(),
                waited.as_secs()
            )));
        }
        let saying = match waits_for {
            WaitsFor::Ours => "waiting for orbd to start",
            WaitsFor::Other => "waiting for another orbd to stop",
        };
        if waited >= Duration::from_secs(1) && said != saying {
            console.eprint(saying);
            said = saying;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Which process the client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// The daemon that this client has started, or will start next.
    Ours,
    /// The process that holds the lock.
    Other,
}

/// The daemons that this client has started, one after the other.
struct Starts {
    child: Option<Child>,
    /// Earliest time of the next start.
    next: Instant,
    /// Pause after the next exit.
    pause: Duration,
    /// Number of daemons that exited with 0.
    ended: u32,
    /// Number of daemons that exited with 0 although the lock was free.
    in_vain: u32,
}

impl Starts {
    fn new(at: Instant) -> Self {
        Self {
            child: None,
            next: at,
            pause: AGAIN_AFTER,
            ended: 0,
            in_vain: 0,
        }
    }

    /// Checks the daemon that was started, and starts another one if it has exited and the lock is free.
    fn tend(&mut self, program: &Path, link: &Link, log: &Log) -> Result<WaitsFor, CliError> {
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else {
                return Ok(WaitsFor::Ours);
            };
            if !status.success() {
                return Err(log.failed(&format!("{} exited with {status}", program.display())));
            }
            // It exited because another process held the lock; that one will answer or exit. If the lock is free, the reason is
            // unknown.
            self.child = None;
            self.ended += 1;
            self.next = now() + self.pause;
            self.pause = (self.pause * 2).min(AGAIN_MAX);
            if link.is_held() {
                return Ok(WaitsFor::Other);
            }
            self.in_vain += 1;
            if self.in_vain >= VAIN_MAX {
                return Err(log.failed(&format!(
                    "{} exited without serving, {VAIN_MAX} times, although no other orbd is running",
                    program.display()
                )));
            }
        } else if self.ended > 0 && link.is_held() {
            return Ok(WaitsFor::Other);
        } else if self.next <= now() {
            let child = spawn(program, link, &log.file)
                .map_err(|error| log.failed(&format!("{}: {error}", program.display())))?;
            self.child = Some(child);
        }
        Ok(WaitsFor::Ours)
    }
}

/// The file that receives the daemon's output until it has opened its own log.
struct Log {
    path: PathBuf,
    file: File,
    /// Length of the file before this start.
    start: u64,
}

impl Log {
    /// Opens the file next to the socket.
    fn open(socket: &Path) -> Result<Self, CliError> {
        let path = socket.with_extension("err");
        if let Some(directory) = path.parent() {
            // Fails if the directory exists, which is usual. Opening the file reports any other error.
            let _ = DirBuilder::new().mode(0o700).create(directory);
        }
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // The socket may be in a directory that other users can write to.
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        match opened {
            Ok((file, start)) => Ok(Self { path, file, start }),
            Err(source) => Err(CliError::Local {
                what: format!("cannot write {}", path.display()),
                source,
            }),
        }
    }

    /// Returns the error for a failed start, with the daemon's output if there is any, and the path of its log.
    fn failed(&self, reason: &str) -> CliError {
        let words = tail(&self.path, self.start);
        let hint = match (words.is_empty(), daemon_log()) {
            // A daemon without output here has opened its own log.
            (true, Some(log)) => match tail(&log, 0).lines().last() {
                Some(line) => format!("the last line of its log {} is: {line}", log.display()),
                None => format!("its log {} is empty or does not exist", log.display()),
            },
            _ => format!("its output during start-up is in {}", self.path.display()),
        };
        CliError::NotStarted {
            reason: if words.is_empty() {
                reason.to_owned()
            } else {
                format!("{reason}\n{words}")
            },
            hint,
        }
    }
}

/// Returns the path of the daemon's log, or `None` if the configuration is invalid. Correct if the daemon was started with the same
/// environment as this client.
pub(crate) fn daemon_log() -> Option<PathBuf> {
    let config = config::Config::load(&config::Flags::default(), &config::Environment::of_process()).ok()?;
    Some(config.log_folder().join("orbd.log"))
}

/// Starts the daemon in its own process group and in `/`, so that neither our terminal's signals nor our directory affect it.
#[expect(
    clippy::disallowed_methods,
    reason = "only the client starts the daemon, and only here"
)]
fn spawn(program: &Path, link: &Link, log: &File) -> std::io::Result<Child> {
    Command::new(program)
        .env("ORBD_SOCKET", &link.socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .process_group(0)
        .spawn()
}

/// Reads what was written to a file since `start`, at most the last [`LAST_WORDS_MAX`] bytes.
fn tail(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(LAST_WORDS_MAX))))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::fake;

    /// Creates a directory with a shell script as the daemon, and a [`Link`] to a socket without a listener.
    #[expect(
        clippy::disallowed_methods,
        reason = "written by another process: a file that this one has open for writing, and with it the children of its \
                  other threads, cannot be executed"
    )]
    fn with_daemon(script: &str) -> (tempfile::TempDir, PathBuf, Link) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("orbd");
        let written = Command::new("/bin/sh")
            .args([
                "-c",
                "printf '#!/bin/sh\n%s\n' \"$1\" >\"$2\" && chmod 755 \"$2\"",
                "sh",
                script,
            ])
            .arg(&program)
            .status()
            .unwrap();
        assert!(written.success());
        let link = Link {
            socket: directory.path().join("orbd.sock"),
            autostart: true,
            environment: Environment::default(),
        };
        (directory, program, link)
    }

    #[test]
    fn a_failed_start_quotes_the_daemons_output() {
        let (_directory, program, link) = with_daemon("echo 'config: no such key: colour' >&2; exit 2");
        let error = launch_program(&program, &link, &mut fake::console().0)
            .err()
            .expect("fails");
        assert_eq!(error.exit(), 3);
        let text = error.to_string();
        assert!(text.contains("no such key: colour"), "{text}");
        assert!(text.contains("exit status: 2"), "{text}");
        assert!(error.hint().unwrap().contains("orbd.err"));
    }

    #[test]
    fn a_daemon_that_exits_without_serving_is_restarted_a_limited_number_of_times() {
        let (directory, program, link) = with_daemon("echo x >>\"${0%/*}/starts\"");
        let error = launch_program(&program, &link, &mut fake::console().0)
            .err()
            .expect("fails");
        assert_eq!(error.exit(), 3);
        assert!(error.to_string().contains("exited without serving"), "{error}");
        assert!(error.hint().unwrap().contains("orbd.log"), "{:?}", error.hint());
        let starts = std::fs::read_to_string(directory.path().join("starts")).unwrap();
        assert_eq!(starts.lines().count(), usize::try_from(VAIN_MAX).unwrap());
    }

    #[test]
    fn only_the_output_of_this_start_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("orbd.sock");
        std::fs::write(directory.path().join("orbd.err"), "old\n").unwrap();
        let mut log = Log::open(&socket).unwrap();
        std::io::Write::write_all(&mut log.file, b"new\n").unwrap();
        assert_eq!(tail(&log.path, log.start), "new");
    }
}
