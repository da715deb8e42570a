//! Starting the daemon: through its service where one is installed, else find the program, start it detached, wait until it answers.
//!
//! Ten clients may do so at once: every daemon but one finds the lock held and exits with 0, which is no failure here. The one
//! that holds the lock may also be on its way out: it takes no connections any more and goes when what runs has ended. Then
//! nobody is going to answer until another daemon is started, so whoever waits starts one again once the lock is free.

use std::env;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orbd::client::Client;
use orbd::config;

use crate::console::{Console, now};
use crate::error::CliError;
use crate::link::{Link, greet};
use crate::service::Service;

/// How long it may take until a daemon answers: longer than an earlier one takes to go (10 s for changes, farewells after that),
/// and shorter than the 20 s that PyInfra's connector gives `daemon start`.
const START_MAX: Duration = Duration::from_secs(18);

/// How often a daemon is started that exits with 0 while nobody holds the lock. More than once, because a client that looks at
/// the lock holds it for a moment.
const VAIN_MAX: u32 = 5;

/// The pause before a second start; it doubles with each until it is [`AGAIN_MAX`].
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The longest pause between two starts.
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// How much of a failed daemon's last words is shown.
const LAST_WORDS_MAX: u64 = 2000;

/// How long a service manager's daemon may take to answer before one is started without it.
const SERVICE_MAX: Duration = Duration::from_secs(5);

/// Starts the daemon and connects to it once it answers: through its service where one is installed, else by itself.
pub(crate) fn launch(link: &Link, console: &mut Console) -> Result<Client, CliError> {
    if let Some(service) = Service::installed(link) {
        match service.start().and_then(|()| answered(link, SERVICE_MAX)) {
            Ok(Some(client)) => return Ok(client),
            Ok(None) => console.eprint("the service has not answered; starting orbd without it"),
            Err(error) => console.eprint(&format!("{error}; starting orbd without its service")),
        }
    }
    launch_program(&find(link)?, link, console)
}

/// Says whether the configuration lets clients start the daemon. Where it is not in order the daemon itself will say so.
pub(crate) fn is_wanted() -> bool {
    config::Config::load(&config::Flags::default(), &config::Environment::of_process())
        .map_or(true, |config| config.autostart)
}

/// Says whether a daemon answers. Any answer will do, also that it speaks another protocol: whoever asked finds that out alone.
fn is_served(link: &Link) -> bool {
    link.dial()
        .is_ok_and(|mut client| !matches!(greet(&mut client, &link.socket), Err(CliError::Lost(_))))
}

/// Waits for a daemon that somebody else started.
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
                WaitsFor::Other => "another orbd, which holds the lock beside the socket,",
            };
            return Err(log.failed(&format!(
                "{who} has not answered on {} for {} s",
                link.socket.display(),
                waited.as_secs()
            )));
        }
        let saying = match waits_for {
            WaitsFor::Ours => "waiting for orbd to start",
            WaitsFor::Other => "waiting for another orbd, which seems to be stopping, to go",
        };
        if waited >= Duration::from_secs(1) && said != saying {
            console.eprint(saying);
            said = saying;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whom we wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    /// The daemon that we started, or are about to start again.
    Ours,
    /// Whoever holds the lock.
    Other,
}

/// The daemons that we started, one after the other.
struct Starts {
    child: Option<Child>,
    /// When there may be another.
    next: Instant,
    pause: Duration,
    /// How many have ended with 0.
    ended: u32,
    /// How many of them for no reason that we know.
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

    /// Looks after the daemon that we started, and starts another if none is going to answer.
    fn tend(&mut self, program: &Path, link: &Link, log: &Log) -> Result<WaitsFor, CliError> {
        if let Some(child) = &mut self.child {
            let Ok(Some(status)) = child.try_wait() else {
                return Ok(WaitsFor::Ours);
            };
            if !status.success() {
                return Err(log.failed(&format!("{} ended with {status}", program.display())));
            }
            // Somebody held the lock, who will answer or go; or, when nobody did, there was a reason that we do not know.
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
                    "{} ended without serving, {VAIN_MAX} times, though no other orbd runs",
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

/// The file that takes what the daemon says before its own log is open.
struct Log {
    path: PathBuf,
    file: File,
    /// Where it ended before this start.
    start: u64,
}

impl Log {
    /// Opens the file beside the socket.
    fn open(socket: &Path) -> Result<Self, CliError> {
        let path = socket.with_extension("err");
        if let Some(directory) = path.parent() {
            // Fails where it exists, which is the usual case; opening the file tells everything else.
            let _ = DirBuilder::new().mode(0o700).create(directory);
        }
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // The socket may be in a directory that others write to.
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

    /// Says why there is no daemon, in its own words where it had any, and where to read more.
    fn failed(&self, reason: &str) -> CliError {
        let words = tail(&self.path, self.start);
        let hint = match (words.is_empty(), daemon_log()) {
            // Whoever said nothing here has come as far as its own log.
            (true, Some(log)) => match tail(&log, 0).lines().last() {
                Some(line) => format!("its log is {}, whose last line is: {line}", log.display()),
                None => format!("its log would be {}, which is empty or not there", log.display()),
            },
            _ => format!("what it says at its start is in {}", self.path.display()),
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

/// Returns where the daemon's own log is: it reads the same configuration as we do here, from the same environment.
pub(crate) fn daemon_log() -> Option<PathBuf> {
    let config = config::Config::load(&config::Flags::default(), &config::Environment::of_process()).ok()?;
    Some(config.log_folder().join("orbd.log"))
}

/// Finds `orbd`: beside our own program, as it was called and as it really is, else on PATH.
pub(crate) fn find(link: &Link) -> Result<PathBuf, CliError> {
    let ours = env::current_exe().ok();
    let real = ours.as_ref().and_then(|path| path.canonicalize().ok());
    let on_path = link
        .environment
        .path
        .iter()
        .flat_map(|path| env::split_paths(path));
    [ours, real]
        .into_iter()
        .flatten()
        .filter_map(|path| path.parent().map(Path::to_owned))
        .chain(on_path.filter(|directory| directory.is_absolute()))
        .map(|directory| directory.join("orbd"))
        .find(|path| path.is_file())
        .ok_or_else(|| CliError::NotStarted {
            reason: "no program named orbd beside orbd-ctl or on PATH".into(),
            hint: "install both together; `cargo install` and the release archive do".into(),
        })
}

/// Starts the daemon in its own process group, away from our terminal's signals and our directory.
#[expect(
    clippy::disallowed_methods,
    reason = "the daemon itself is started here, by nobody else than the client"
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

/// Reads what was written to a file since `start`, its end if it is long.
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

    /// Makes a directory with a program of these lines and a link to a socket where nobody listens.
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
    fn a_daemon_that_cannot_start_is_quoted() {
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
    fn a_daemon_that_ends_without_serving_is_started_a_few_times_and_no_more() {
        let (directory, program, link) = with_daemon("echo x >>\"${0%/*}/starts\"");
        let error = launch_program(&program, &link, &mut fake::console().0)
            .err()
            .expect("fails");
        assert_eq!(error.exit(), 3);
        assert!(error.to_string().contains("ended without serving"), "{error}");
        assert!(error.hint().unwrap().contains("orbd.log"), "{:?}", error.hint());
        let starts = std::fs::read_to_string(directory.path().join("starts")).unwrap();
        assert_eq!(starts.lines().count(), usize::try_from(VAIN_MAX).unwrap());
    }

    #[test]
    fn only_what_this_start_said_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("orbd.sock");
        std::fs::write(directory.path().join("orbd.err"), "old\n").unwrap();
        let mut log = Log::open(&socket).unwrap();
        std::io::Write::write_all(&mut log.file, b"new\n").unwrap();
        assert_eq!(tail(&log.path, log.start), "new");
    }
}
