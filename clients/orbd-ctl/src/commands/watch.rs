//! `--watch`: prints a table again whenever it changes.

use std::process::ExitCode;
use std::time::Duration;

use orbd_client::CallError;
use orbd_proto::methods::EventsSubscribe;
use orbd_proto::types::{EventKind, EventsSubscribeParams};

use super::events;
use crate::console::Console;
use crate::context::Context;
use crate::error::CliError;

/// How long events are collected before the table is read again: a change causes several.
const SETTLE: Duration = Duration::from_millis(50);

/// Most events that are collected, so that a stream of events does not hide the table.
const COLLECTED_MAX: usize = 100;

/// Wait for the next event if nothing else updates the table.
const EVENT_WAIT: Duration = Duration::from_secs(3600);

/// Moves the cursor to the first column of the first line and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What a command shows: the text for stdout, and messages about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) text: String,
    pub(super) notes: Vec<String>,
}

impl View {
    /// Prints the text to stdout and the messages to stderr.
    pub(super) fn print(&self, console: &mut Console) -> Result<(), CliError> {
        console.print(self.text.as_bytes())?;
        for note in &self.notes {
            console.eprint(note);
        }
        Ok(())
    }
}

/// Prints the result of `show`, again after each event of these kinds, until Ctrl-C. On a terminal the table replaces the one before and is
/// also updated every `tick`; elsewhere only a changed one is printed. If orbd restarts, waits for the next instance.
pub(super) fn watch(
    context: &mut Context,
    kinds: &[EventKind],
    tick: Option<Duration>,
    show: &mut dyn FnMut(&mut Context) -> Result<View, CliError>,
) -> Result<ExitCode, CliError> {
    let params = EventsSubscribeParams {
        kinds: kinds.to_vec(),
        ..EventsSubscribeParams::default()
    };
    let is_terminal = context.console.out_look.width.is_some();
    let wait = tick.filter(|_| is_terminal).unwrap_or(EVENT_WAIT);
    let mut client = context.connect()?;
    let mut shown = View::default();
    loop {
        let lost = match client.subscribe::<EventsSubscribe>(&params) {
            Ok(mut events) => loop {
                let view = show(context)?;
                if is_terminal {
                    context.console.print(CLEAR.as_bytes())?;
                }
                if is_terminal || view != shown {
                    view.print(&mut context.console)?;
                    shown = view;
                }
                let mut at_most = wait;
                let mut collected = 0;
                let lost = loop {
                    match events.next_event_within(at_most) {
                        Ok(Some(_)) if collected < COLLECTED_MAX => at_most = SETTLE,
                        Ok(_) => break None,
                        Err(error) => break Some(error),
                    }
                    collected += 1;
                };
                if let Some(error) = lost {
                    break error;
                }
            },
            Err(error) => error,
        };
        let CallError::Lost(source) = lost else {
            return Err(lost.into());
        };
        let lost = CliError::Lost(source);
        context.console.eprint(&format!("{lost}; waiting for orbd"));
        client = events::reconnect(&context.link)?;
    }
}
