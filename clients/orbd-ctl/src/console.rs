//! Input and output of the client: raw descriptors in production, buffers in tests.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use serde::Serialize;

use crate::environment::Environment;
use crate::error::CliError;
use crate::layout::Look;

/// The three standard streams and their properties.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are independent properties of the streams"
)]
pub(crate) struct Console {
    /// Standard output. Unbuffered, so callers write an answer in one call.
    pub(crate) out: Box<dyn Write>,
    /// Standard error, for messages. Unbuffered.
    pub(crate) err: Box<dyn Write>,
    /// Standard input for a guest's command. `None` if it is a terminal, or after its reader has taken it.
    pub(crate) input: Option<Box<dyn Read + Send>>,
    /// Standard error is a terminal.
    pub(crate) err_is_terminal: bool,
    /// The user can be prompted: standard input and standard error are terminals.
    pub(crate) can_ask: bool,
    /// Standard input and output are terminals, so a command can use the terminal.
    pub(crate) is_interactive: bool,
    /// Colours and width of `out`.
    pub(crate) out_look: Look,
    /// Colours and width of `err`.
    pub(crate) err_look: Look,
    /// Print answers as JSON.
    pub(crate) json: bool,
    /// Returns the names of all machines, to suggest one for a misspelt name.
    pub(crate) machine_names: Box<dyn Fn() -> Vec<String>>,
}

impl Console {
    /// Uses the process's standard streams.
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
            machine_names: Box::new(Vec::new),
        }
    }

    /// Formats an answer: with `--json` the API's object as one line of JSON, otherwise the result of `text`.
    pub(crate) fn format<A: Serialize>(
        &self,
        answer: &A,
        text: impl FnOnce(&A, Look) -> String,
    ) -> io::Result<String> {
        if self.json {
            let mut line = serde_json::to_string(answer).map_err(io::Error::from)?;
            line.push('\n');
            Ok(line)
        } else {
            Ok(text(answer, self.out_look))
        }
    }

    /// Prints an answer, as [`Console::format`] formats it.
    pub(crate) fn answer<A: Serialize>(
        &mut self,
        answer: &A,
        text: impl FnOnce(&A, Look) -> String,
    ) -> io::Result<()> {
        let text = self.format(answer, text)?;
        self.print(text.as_bytes())
    }

    /// Writes bytes to standard output.
    pub(crate) fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Asks a question on the terminal; returns whether the answer is yes. Without a terminal it returns an error instead, which names
    /// the command that does not ask.
    pub(crate) fn confirm(&mut self, question: &str, without_asking: &str) -> Result<bool, CliError> {
        if !self.can_ask {
            return Err(CliError::Usage {
                message: "not confirmed, and there is no terminal to ask on; nothing was changed".into(),
                hint: format!("`{without_asking}` does not ask"),
            });
        }
        write!(self.err, "{question} [y/N] ")?;
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        Ok(matches!(line.trim(), "y" | "Y" | "yes"))
    }

    /// Prints a message to standard error. A failed write is ignored.
    pub(crate) fn eprint(&mut self, message: &str) {
        let line = self.err_look.paragraph(&format!("orbd-ctl: {message}\n"), 2);
        let _ = self.err.write_all(line.as_bytes());
    }
}

/// Duplicates a stream's descriptor, to bypass the standard library's buffers.
fn duplicate(stream: &impl AsFd) -> Option<File> {
    stream.as_fd().try_clone_to_owned().ok().map(File::from)
}

/// Reads the monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "orbd's clock uses tokio, which the client does not run; only this function reads time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
