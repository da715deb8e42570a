//! Preflight: the new program runs as a child, with the arguments and the environment that it will have, before anything depends on it. It
//! reads its configuration and prints its version. One that is half copied, does not run here, refuses the configuration or does not
//! know our handoff fails that way, while the old one still serves.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::Program;
use super::handoff::HANDOFF_VERSION;
use crate::sys::{self, ChildIdentity};

/// How long it has.
const LIMIT: Duration = Duration::from_secs(10);
/// Most of its output that is read, in bytes.
const OUTPUT_MAX: u64 = 4096;
/// The flag that asks for it.
const FLAG: &str = "--preflight";

/// Why a program is not to take over.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Another process is still writing it.
    #[error("it is still being written")]
    Busy,
    /// It cannot be started.
    #[error("it cannot be started")]
    NotStarted(#[source] io::Error),
    /// It did not end by itself.
    #[error("it did not answer within {} s", LIMIT.as_secs())]
    Timeout,
    /// It ended badly.
    #[error("it ended with {status}{}{output}", if output.is_empty() { "" } else { ": " })]
    Failed {
        /// How.
        status: std::process::ExitStatus,
        /// What it wrote to stderr.
        output: String,
    },
    /// It is not an orbd that could take over from this one.
    #[error("it is not an orbd that can take over from this one; it printed {0:?}")]
    NotOrbd(String),
}

/// Returns what this program prints in its preflight.
pub fn greeting(protocol: u32) -> String {
    format!(
        "orbd {} protocol {protocol} handoff {HANDOFF_VERSION}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Runs the preflight of the file on disk; returns its version. Nothing that it started is left behind.
pub async fn preflight(program: &Program) -> Result<String, PreflightError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's own next instance is tried, which is no orbctl"
    )]
    let mut command = tokio::process::Command::new(&program.path);
    let child = command
        .args(program.words.iter().skip(1))
        .arg(FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => return Err(PreflightError::Busy),
        Err(error) => return Err(PreflightError::NotStarted(error)),
    };
    let identity = child.id().and_then(|pid| {
        let started = sys::process_identity(pid)?;
        Some(ChildIdentity { pid, started })
    });
    // Dropped before the child is waited for: until then no other process group can have its number.
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async move {
        if let Some(identity) = identity {
            sys::gone(identity).await;
        }
        // What it leaves running may hold its streams open.
        drop(group);
    };
    let ended = async { tokio::join!(ended, read(stdout), read(stderr)) };
    let Ok(((), printed, complaint)) = tokio::time::timeout(LIMIT, ended).await else {
        return Err(PreflightError::Timeout);
    };
    let status = child.wait().await.map_err(PreflightError::NotStarted)?;
    if !status.success() {
        return Err(PreflightError::Failed {
            status,
            output: complaint,
        });
    }
    version(&printed)
        .map(str::to_owned)
        .ok_or(PreflightError::NotOrbd(printed))
}

/// The process group of a child that was not waited for. Ends it when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            sys::kill_process_group(pid);
        }
    }
}

/// Reads a stream up to a bound.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came before an error is used; the exit status says the rest.
        let _ = stream.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Reads a greeting; `None` if it is none, or if the program does not know our handoff.
fn version(printed: &str) -> Option<&str> {
    let words: Vec<&str> = printed.split_ascii_whitespace().collect();
    match words[..] {
        ["orbd", version, "protocol", protocol, "handoff", handoff, ..]
            if protocol.parse::<u32>().is_ok() && handoff.parse() == Ok(HANDOFF_VERSION) =>
        {
            Some(version)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::sys::FileId;

    #[test]
    fn a_greeting_is_read_back_and_other_output_is_not_orbd() {
        assert_eq!(version(&greeting(7)), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(version("orbd 9.0 protocol 2 handoff 1 and more"), Some("9.0"));
        for printed in [
            "",
            "orbd 9.0",
            "the configuration is valid",
            "orbd 9.0 protocol 2 handoff 2",
        ] {
            assert_eq!(version(printed), None, "{printed:?}");
        }
    }

    async fn of_script(folder: &Path, script: &str) -> Result<String, String> {
        let path = folder.join("orbd");
        fs::write(folder.join("script"), format!("#!/bin/sh\n{script}\n")).expect("written");
        // By another process: a child that another test starts meanwhile would have our descriptor, and the file be busy.
        #[expect(
            clippy::disallowed_methods,
            reason = "a copy that this process never had open"
        )]
        let copied = tokio::process::Command::new("cp")
            .arg(folder.join("script"))
            .arg(&path)
            .status()
            .await;
        assert!(copied.expect("cp").success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        let program = Program {
            stamp: FileId::of(&path).expect("there"),
            words: vec!["orbd".into(), "--set".into(), "strict=true".into()],
            path,
        };
        preflight(&program).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_program_that_greets_passes_and_gets_our_arguments() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "[ \"$*\" = '--set strict=true --preflight' ] && echo 'orbd 2.0 protocol 1 handoff 1'";
        assert_eq!(of_script(folder.path(), script).await, Ok("2.0".into()));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let folder = tempfile::tempdir().expect("a folder");
        let failed = of_script(folder.path(), "echo 'no key `colour`' >&2; exit 3").await;
        assert_eq!(
            failed,
            Err("it ended with exit status: 3: no key `colour`".into())
        );
        let other = of_script(folder.path(), "echo hello").await.expect_err("no orbd");
        assert!(other.contains("not an orbd"), "{other}");
    }

    #[tokio::test]
    async fn processes_that_a_refused_program_started_are_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid_file = folder.path().join("pid");
        // It holds the streams of its parent open, too.
        let script = format!("sleep 600 & echo $! > {}; exit 3", pid_file.display());
        let refused = of_script(folder.path(), &script).await;
        assert_eq!(refused, Err("it ended with exit status: 3".into()));
        let pid = fs::read_to_string(pid_file).expect("it was started");
        let pid: u32 = pid.trim().parse().expect("a pid");
        // The signal was sent before the answer; nothing announces the end of a process that is not ours.
        if let Some(started) = sys::process_identity(pid) {
            sys::gone(ChildIdentity { pid, started }).await;
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_program_is_not_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd");
        fs::write(&path, "\x7fELF").expect("written");
        let program = Program {
            stamp: FileId::of(&path).expect("there"),
            words: Vec::new(),
            path,
        };
        assert!(matches!(
            preflight(&program).await,
            Err(PreflightError::NotStarted(_))
        ));
    }
}
