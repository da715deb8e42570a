//! The new program proves itself before anything is staked on it: started as a child, with the words and the environment that it
//! will have, it reads its configuration and says who it is. What was copied by half, does not run here, refuses the configuration
//! or cannot take over what we leave says so by itself, while the old one still serves.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::Program;
use super::heirloom;

/// How long it has.
const LIMIT: Duration = Duration::from_secs(10);
/// Most of what it says that is read.
const WORDS_MAX: u64 = 4096;
/// The switch that asks for the proof.
pub(super) const SWITCH: &str = "--prove";

/// Why a program is not to take over.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// Somebody is still writing it.
    #[error("it is still being written")]
    Busy,
    /// It cannot be started.
    #[error("it cannot be started")]
    NotStarted(#[source] io::Error),
    /// It did not end by itself.
    #[error("it did not say who it is within {} s", LIMIT.as_secs())]
    Silent,
    /// It ended badly.
    #[error("it ended with {status}{}{words}", if words.is_empty() { "" } else { ": " })]
    Failed {
        /// How.
        status: std::process::ExitStatus,
        /// What it said.
        words: String,
    },
    /// It is not an orbd that could take over from this one.
    #[error("it is no orbd that can take over from this one; it says {0:?}")]
    Stranger(String),
}

/// Returns what this program says of itself when it is to prove itself.
pub fn greeting(protocol: u32) -> String {
    format!(
        "orbd {} protocol {protocol} heirloom {}\n",
        env!("CARGO_PKG_VERSION"),
        heirloom::FORM
    )
}

/// Lets the file on disk prove itself; returns its version.
pub async fn prove(program: &Program) -> Result<String, Unproven> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's own next life is tried, which is no orbctl"
    )]
    let mut command = tokio::process::Command::new(&program.path);
    let child = command
        .args(program.words.iter().skip(1))
        .arg(SWITCH)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => return Err(Unproven::Busy),
        Err(error) => return Err(Unproven::NotStarted(error)),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (said, complained) = tokio::join!(words(stdout), words(stderr));
        (child.wait().await, said, complained)
    };
    let Ok((status, said, complained)) = tokio::time::timeout(LIMIT, ended).await else {
        return Err(Unproven::Silent);
    };
    let status = status.map_err(Unproven::NotStarted)?;
    if !status.success() {
        return Err(Unproven::Failed {
            status,
            words: complained,
        });
    }
    version(&said).map(str::to_owned).ok_or(Unproven::Stranger(said))
}

/// Reads what it says, up to a bound; what is beyond it is for nobody.
async fn words(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What came until an error is told; the end of the child tells the rest.
        let _ = stream.take(WORDS_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Reads a greeting; `None` when it is none, or of one that does not know what we would leave it.
fn version(said: &str) -> Option<&str> {
    let words: Vec<&str> = said.split_ascii_whitespace().collect();
    match words[..] {
        ["orbd", version, "protocol", protocol, "heirloom", form, ..]
            if protocol.parse::<u32>().is_ok() && form.parse() == Ok(heirloom::FORM) =>
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

    use super::*;
    use crate::sys::FileStamp;

    #[test]
    fn a_greeting_is_read_back_and_anything_else_is_a_stranger() {
        assert_eq!(version(&greeting(7)), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(version("orbd 9.0 protocol 2 heirloom 1 and more"), Some("9.0"));
        for said in [
            "",
            "orbd 9.0",
            "the configuration is valid",
            "orbd 9.0 protocol 2 heirloom 2",
        ] {
            assert_eq!(version(said), None, "{said:?}");
        }
    }

    async fn of_script(script: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd");
        fs::write(folder.path().join("script"), format!("#!/bin/sh\n{script}\n")).expect("written");
        // By another process: a child that another test starts meanwhile would have our descriptor, and the file be busy.
        #[expect(
            clippy::disallowed_methods,
            reason = "a copy that this process never had open"
        )]
        let copied = tokio::process::Command::new("cp")
            .arg(folder.path().join("script"))
            .arg(&path)
            .status()
            .await;
        assert!(copied.expect("cp").success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        let program = Program {
            stamp: FileStamp::of(&path).expect("there"),
            words: vec!["orbd".into(), "--set".into(), "strict=true".into()],
            path,
        };
        prove(&program).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_program_that_says_who_it_is_is_good_and_sees_our_words() {
        let script = "[ \"$*\" = '--set strict=true --prove' ] && echo 'orbd 2.0 protocol 1 heirloom 1'";
        assert_eq!(of_script(script).await, Ok("2.0".into()));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let failed = of_script("echo 'no key `colour`' >&2; exit 3").await;
        assert_eq!(
            failed,
            Err("it ended with exit status: 3: no key `colour`".into())
        );
        let stranger = of_script("echo hello").await.expect_err("no orbd");
        assert!(stranger.contains("no orbd"), "{stranger}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_program_is_not_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("orbd");
        fs::write(&path, "\x7fELF").expect("written");
        let program = Program {
            stamp: FileStamp::of(&path).expect("there"),
            words: Vec::new(),
            path,
        };
        assert!(matches!(prove(&program).await, Err(Unproven::NotStarted(_))));
    }
}
