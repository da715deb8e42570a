//! `orbd-ctl`: the command line client of orbd.
//!
//! It starts in about a millisecond: a blocking socket, no runtime, nothing initialised that a command does not need. Called
//! `orbctl` or `orb` it is the [`dropin`] and nothing else. What was typed becomes types in [`args`]; each verb has a file in
//! [`commands`]; [`context`] makes every call, [`progress`] says what takes so long, [`render`] writes for people, [`layout`] makes it
//! fit, and [`error`] knows what to say of failures and how to exit.

use std::ffi::OsString;
use std::process::ExitCode;

use args::Cli;
use console::Console;
use context::Context;
use environment::Environment;
use error::exit;
use link::Link;

mod args;
mod commands;
mod completions;
mod console;
mod context;
mod dropin;
mod environment;
mod error;
#[cfg(test)]
mod fake;
mod interrupt;
mod launch;
mod layout;
mod link;
mod progress;
#[cfg(test)]
mod reference;
mod render;
mod service;
mod waiting_child;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(called) = dropin::called_as(&words) {
        return dropin::main(called, words);
    }
    if words.get(1).is_some_and(|verb| verb == waiting_child::VERB) {
        return waiting_child::exec();
    }
    completions::answer_shell();
    let cli = match Cli::read(&words) {
        Ok(cli) => cli,
        Err(message) => {
            // Help goes to stdout with 0, a mistake to stderr with 2. Who does not read either is not told a third time.
            let _ = message.print();
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    let environment = Environment::read();
    let mut console = Console::of_process(&environment, cli.global.json);
    let link = match Link::resolve(&cli.global, environment) {
        Ok(link) => link,
        Err(error) => return error.end(&mut console),
    };
    let mut context = Context { link, console };
    match commands::carry_out(&mut context, cli.command) {
        Ok(code) => code,
        Err(error) => error.end(&mut context.console),
    }
}
