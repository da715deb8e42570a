//! Preflight: runs the new program as a child process before an upgrade, with the arguments and the environment that it will have. It loads
//! its configuration and prints its version. A program that is incomplete, does not run on this system, refuses the configuration or uses
//! another handoff version fails this check while the old program still serves.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use orbd_host::release::is_older;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Program;
use super::handoff::HANDOFF_VERSION;
use crate::sys::{self, ChildIdentity};

/// Time limit for the preflight.
const LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of bytes read from each of the child's output streams.
const OUTPUT_MAX: u64 = 4096;
/// The flag of `main.rs` that makes a program run its preflight.
const FLAG: &str = "--preflight";

/// Why a program failed its preflight.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Another process still has the file open for writing.
    #[error("the new program is still being written")]
    Busy,
    /// The program could not be executed.
    #[error("the new program could not be started")]
    NotStarted(#[source] io::Error),
    /// The program did not exit in time.
    #[error("the new program did not finish within {} s", LIMIT.as_secs())]
    Timeout,
    /// The program exited unsuccessfully.
    #[error("the new program ended with {status}{}{output}", if output.is_empty() { "" } else { ": " })]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The beginning of its stderr.
        output: String,
    },
    /// The program's output is not that of an orbd with this handoff version.
    #[error("the new program is not an orbd that can take over from this one; it printed {0:?}")]
    NotOrbd(String),
    /// The program is an older version, which may not know what this one has stored.
    #[error(
        "the new program is orbd {0}, older than the running {ours}; `orbd-ctl daemon restart --force` starts it anyway",
        ours = env!("CARGO_PKG_VERSION")
    )]
    Older(String),
}

/// Returns the line that this program prints in its preflight.
pub fn greeting(protocol: u32) -> String {
    format!(
        "orbd {} protocol {protocol} handoff {HANDOFF_VERSION}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Runs the preflight of the file on disk and returns its version. Kills any process that it has left running in its process group.
pub async fn preflight(program: &Program) -> Result<String, PreflightError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this runs the new orbd binary, not orbctl"
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
    // Must be dropped before the child is reaped: until then the kernel cannot reuse the process group's id.
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async move {
        if let Some(identity) = identity {
            sys::gone(identity).await;
        }
        // Kills descendants that are still running, because they may hold the output streams open.
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
    match version(&printed) {
        None => Err(PreflightError::NotOrbd(printed)),
        Some(version) if is_older(version, env!("CARGO_PKG_VERSION")) => {
            Err(PreflightError::Older(version.to_owned()))
        }
        Some(version) => Ok(version.to_owned()),
    }
}

/// The process group of a child that has not been reaped. Killed on drop.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            sys::kill_process_group(pid);
        }
    }
}

/// Reads a stream to its end, but at most [`OUTPUT_MAX`] bytes.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // Bytes read before an error are kept; the exit status decides about success.
        let _ = stream.take(OUTPUT_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Parses a greeting and returns the program's version; `None` if it is not a greeting or has another handoff version.
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

    #[test]
    fn greeting_parses_and_other_output_is_refused() {
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
        // Copied by another process. If this process wrote the file, a child that another test forks meanwhile would inherit the open
        // descriptor, and executing the file would fail with `ETXTBSY`.
        #[expect(
            clippy::disallowed_methods,
            reason = "this process must not open the copy for writing"
        )]
        let copied = tokio::process::Command::new("cp")
            .arg(folder.join("script"))
            .arg(&path)
            .status()
            .await;
        assert!(copied.expect("cp").success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        let words = vec!["orbd".into(), "--set".into(), "strict=true".into()];
        let program = Program::of_file(path, words);
        preflight(&program).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn program_that_prints_the_greeting_passes_and_gets_our_arguments() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "[ \"$*\" = '--set strict=true --preflight' ] && echo 'orbd 2.0 protocol 1 handoff 1'";
        assert_eq!(of_script(folder.path(), script).await, Ok("2.0".into()));
    }

    #[tokio::test]
    async fn older_version_is_refused_and_a_newer_one_passes() {
        let folder = tempfile::tempdir().expect("a folder");
        let older = of_script(folder.path(), "echo 'orbd 0.0.9 protocol 1 handoff 1'").await;
        let reason = older.expect_err("older");
        assert!(
            reason.starts_with("the new program is orbd 0.0.9, older than"),
            "{reason}"
        );
        assert!(reason.contains("daemon restart --force"), "{reason}");
        let newer = of_script(folder.path(), "echo 'orbd 99.0.0-rc.1 protocol 1 to 2 handoff 1'").await;
        assert!(newer.is_err(), "another form of the greeting");
        let newer = of_script(folder.path(), "echo 'orbd 99.0.0-rc.1 protocol 7 handoff 1'").await;
        assert_eq!(newer, Ok("99.0.0-rc.1".into()));
    }

    #[tokio::test]
    async fn error_contains_exit_status_and_stderr_of_a_failed_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let failed = of_script(folder.path(), "echo 'no key `colour`' >&2; exit 3").await;
        assert_eq!(
            failed,
            Err("the new program ended with exit status: 3: no key `colour`".into())
        );
        let other = of_script(folder.path(), "echo hello").await.expect_err("no orbd");
        assert!(other.contains("not an orbd"), "{other}");
    }

    #[tokio::test]
    async fn processes_that_a_refused_program_started_are_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid_file = folder.path().join("pid");
        // `sleep` also holds the streams of its parent open.
        let script = format!("sleep 600 & echo $! > {}; exit 3", pid_file.display());
        let refused = of_script(folder.path(), &script).await;
        assert_eq!(refused, Err("the new program ended with exit status: 3".into()));
        let pid = fs::read_to_string(pid_file).expect("it was started");
        let pid: u32 = pid.trim().parse().expect("a pid");
        // `preflight` has sent the signal by now, but the kernel reports the end of a process only to its parent, so wait for it.
        if let Some(started) = sys::process_identity(pid) {
            sys::gone(ChildIdentity { pid, started }).await;
        }
    }

    #[tokio::test]
    async fn file_that_is_not_executable_is_not_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd");
        fs::write(&path, "\x7fELF").expect("written");
        let program = Program::of_file(path, Vec::new());
        assert!(matches!(
            preflight(&program).await,
            Err(PreflightError::NotStarted(_))
        ));
    }
}
