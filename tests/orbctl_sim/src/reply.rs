//! The result of an invocation: two streams and an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// The finished output of one invocation. Commands that ran in a machine have already written theirs, and leave both
/// streams empty.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: u8,
}

impl Reply {
    /// Returns success with the given text on stdout.
    pub(crate) fn text(text: impl Into<String>) -> Reply {
        Reply {
            stdout: text.into().into_bytes(),
            ..Reply::default()
        }
    }

    /// Returns success without output, as changes do.
    pub(crate) fn silent() -> Reply {
        Reply::default()
    }

    /// Returns no output and the given exit code.
    pub(crate) fn exit(exit: u8) -> Reply {
        Reply {
            exit,
            ..Reply::default()
        }
    }

    /// Returns failure with the given text on stderr.
    pub(crate) fn failure(exit: u8, text: impl Into<String>) -> Reply {
        Reply {
            stderr: text.into().into_bytes(),
            exit,
            ..Reply::default()
        }
    }

    /// Writes both streams and returns the exit code for `main`.
    pub(crate) fn print(self) -> ExitCode {
        // A reader that closed its end does not change the exit code.
        let _ = io::stderr().write_all(&self.stderr);
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&self.stdout).and_then(|()| stdout.flush());
        ExitCode::from(self.exit)
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        Reply::failure(1, format!("{refusal}\n"))
    }
}

impl From<Result<Reply, Refusal>> for Reply {
    fn from(result: Result<Reply, Refusal>) -> Reply {
        result.unwrap_or_else(Reply::from)
    }
}
