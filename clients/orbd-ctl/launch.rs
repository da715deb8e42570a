//! Starting the daemon when nobody manages it: find the program, start it detached, wait until it answers.
//!
//! Ten clients may do so at once: every daemon but one finds the lock held and exits with 0, which is no failure here.

use std::env;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orbd::client::Client;

use crate::console::{Console, now};
use crate::link::{Link, greet};
use crate::trouble::Trouble;

/// How long a daemon may take to answer after its start.
const START_MAX: Duration = Duration::from_secs(5);

/// How much of a failed daemon's last words is shown.
const LAST_WORDS_MAX: u64 = 2000;

/// Starts the daemon and connects to it once it answers.
pub(crate) fn launch(link: &Link, console: &mut Console) -> Result<Client, Trouble> {
    let program = find(link)?;
    let (log_path, log, log_start) = open_log(&link.socket)?;
    let mut child = spawn(&program, link, &log)
        .map_err(|error| failed(format!("{}: {error}", program.display()), &log_path))?;
    let started = now();
    let mut pause = Duration::from_millis(1);
    let mut said = false;
    let mut alive = true;
    loop {
        if let Ok(mut client) = link.dial() {
            // Any answer will do, also that it speaks another protocol: whoever asked finds that out alone.
            match greet(&mut client, &link.socket) {
                Err(Trouble::Lost(_)) => {}
                _ => return link.dial(),
            }
        }
        if alive && let Ok(Some(status)) = child.try_wait() {
            if !status.success() {
                let words = last_words(&log_path, log_start);
                let words = if words.is_empty() {
                    String::new()
                } else {
                    format!("\n{words}")
                };
                return Err(failed(
                    format!("{} ended with {status}{words}", program.display()),
                    &log_path,
                ));
            }
            // Somebody else's daemon holds the lock and will answer.
            alive = false;
        }
        let waited = now() - started;
        if waited >= START_MAX {
            let words = last_words(&log_path, log_start);
            let words = if words.is_empty() {
                String::new()
            } else {
                format!("\n{words}")
            };
            return Err(failed(
                format!(
                    "it has not answered on {} for {} s{words}",
                    link.socket.display(),
                    waited.as_secs()
                ),
                &log_path,
            ));
        }
        if waited >= Duration::from_secs(1) && !said {
            console.say("waiting for orbd to start");
            said = true;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn failed(reason: String, log: &Path) -> Trouble {
    Trouble::NotStarted {
        reason,
        hint: format!("what it says at its start is in {}", log.display()),
    }
}

/// Finds `orbd`: beside our own program, as it was called and as it really is, else on PATH.
fn find(link: &Link) -> Result<PathBuf, Trouble> {
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
        .ok_or_else(|| Trouble::NotStarted {
            reason: "no program named orbd beside orbd-ctl or on PATH".into(),
            hint: "install both together; `cargo install` and the release archive do".into(),
        })
}

/// Opens the file that takes what the daemon says before its own log is open, and returns where it ends now.
fn open_log(socket: &Path) -> Result<(PathBuf, File, u64), Trouble> {
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
        Ok((file, end)) => Ok((path, file, end)),
        Err(source) => Err(Trouble::Local {
            what: format!("cannot write {}", path.display()),
            source,
        }),
    }
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

/// Reads what was written to the log since `start`, its end if it is long.
fn last_words(path: &Path, start: u64) -> String {
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::environment::Environment;
    use crate::fake;

    /// Makes a directory with a program `orbd` of these lines and a link that finds it on PATH.
    fn with_daemon(script: &str) -> (tempfile::TempDir, Link) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("orbd");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let link = Link {
            socket: directory.path().join("orbd.sock"),
            autostart: true,
            environment: Environment {
                path: Some(directory.path().into()),
                ..Environment::default()
            },
        };
        (directory, link)
    }

    #[test]
    fn a_daemon_that_cannot_start_is_quoted() {
        let (_directory, link) = with_daemon("echo 'config: no such key: colour' >&2; exit 2");
        if env::current_exe()
            .unwrap()
            .parent()
            .unwrap()
            .join("orbd")
            .is_file()
        {
            return;
        }
        let trouble = launch(&link, &mut fake::console().0).err().expect("fails");
        assert_eq!(trouble.exit(), 3);
        assert!(trouble.to_string().contains("no such key: colour"), "{trouble}");
    }

    #[test]
    fn only_what_this_start_said_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("orbd.sock");
        std::fs::write(directory.path().join("orbd.err"), "old\n").unwrap();
        let (path, mut log, start) = open_log(&socket).unwrap();
        std::io::Write::write_all(&mut log, b"new\n").unwrap();
        assert_eq!(last_words(&path, start), "new");
    }
}
