//! Where output goes and input comes from: raw descriptors for people and pipes, buffers for tests.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use serde::Serialize;

use crate::environment::Environment;
use crate::error::CliError;
use crate::layout::Look;

/// The three standard streams and how to treat them.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property of the streams that no other one implies"
)]
pub(crate) struct Console {
    /// Answers. Unbuffered: whoever composes a table writes it in one piece.
    pub(crate) out: Box<dyn Write>,
    /// Messages for people. Unbuffered.
    pub(crate) err: Box<dyn Write>,
    /// Input for a guest's command; absent when a person would have to type it. Taken by the one who reads it.
    pub(crate) input: Option<Box<dyn Read + Send>>,
    /// Somebody looks at `err`.
    pub(crate) err_is_terminal: bool,
    /// Somebody can be asked: both input and messages are on a terminal.
    pub(crate) can_ask: bool,
    /// Input and answers are on a terminal, so a command can have it.
    pub(crate) is_interactive: bool,
    /// How `out` is looked at.
    pub(crate) out_look: Look,
    /// How `err` is looked at.
    pub(crate) err_look: Look,
    /// Answers are for programs.
    pub(crate) json: bool,
}

impl Console {
    /// Takes the process's own streams.
    pub(crate) fn of_process(environment: &Environment, json: bool) -> Self {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let input_is_terminal = stdin.is_terminal();
        let err_is_terminal = stderr.is_terminal();
        Self {
            out_look: Look::of(&stdout, environment.colour_off),
            err_look: Look::of(&stderr, environment.colour_off),
            err_is_terminal,
            is_interactive: input_is_terminal && stdout.is_terminal(),
            can_ask: input_is_terminal && err_is_terminal,
            input: (!input_is_terminal)
                .then(|| duplicate(&stdin).map_or_else(|| Box::new(stdin) as _, |file| Box::new(file) as _)),
            out: duplicate(&stdout).map_or_else(|| Box::new(stdout) as _, |file| Box::new(file) as _),
            err: duplicate(&stderr).map_or_else(|| Box::new(stderr) as _, |file| Box::new(file) as _),
            json,
        }
    }

    /// Writes an answer: the wire's object as one line of JSON, or what `text` makes of it.
    pub(crate) fn answer<A: Serialize>(
        &mut self,
        answer: &A,
        text: impl FnOnce(&A, Look) -> String,
    ) -> Result<(), CliError> {
        let text = if self.json {
            let mut line = serde_json::to_string(answer).map_err(io::Error::from)?;
            line.push('\n');
            line
        } else {
            text(answer, self.out_look)
        };
        self.print(text.as_bytes())
    }

    /// Writes bytes of an answer.
    pub(crate) fn print(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }

    /// Tells a person something. That nobody can be told is no reason to fail.
    pub(crate) fn eprint(&mut self, message: &str) {
        let line = self.err_look.paragraph(&format!("orbd-ctl: {message}\n"), 2);
        let _ = self.err.write_all(line.as_bytes());
    }
}

/// Opens a stream's descriptor a second time, past the standard library's buffers.
fn duplicate(stream: &impl AsFd) -> Option<File> {
    stream.as_fd().try_clone_to_owned().ok().map(File::from)
}

/// Reads the monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "orbd's clock reads tokio's, and no tokio runs here; this is the client's one reader of time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
