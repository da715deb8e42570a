//! `orbd-ctl`: the command line client of orbd.
//!
//! It starts in about a millisecond: it uses a blocking socket and no runtime, and initialises only what the command needs. When
//! invoked as `orbctl` or `orb` it runs the [`dropin`] instead. [`args`] parses the command line, and each verb has a file in
//! [`commands`]. [`context`] makes every call, [`progress`] reports long waits, [`render`] formats text output, [`layout`] fits it
//! to the terminal, and [`error`] defines error messages, hints and exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory as _;
use cli::Cli;
use console::Console;
use context::Context;
use environment::Environment;
use error::exit;
use link::Link;

mod args;
mod cli;
mod commands;
mod completions;
mod connect;
mod console;
mod context;
mod daemon_binary;
mod dropin;
mod environment;
mod error;
#[cfg(test)]
mod fake;
mod installation;
mod interrupt;
mod launch;
mod layout;
mod lease_child;
mod link;
mod progress;
#[cfg(test)]
mod reference;
mod render;
mod service;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(called) = dropin::called_as(&words) {
        return dropin::main(called, words);
    }
    completions::answer_shell();
    let cli = match Cli::read(&words) {
        Ok(cli) => cli,
        Err(message) => {
            // Prints help to stdout (code 0) or a usage error to stderr (code 2). A failed write is ignored: there is no other output.
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
    let names_of = link.clone();
    console.machine_names = Box::new(move || names_of.machine_names());
    let mut context = Context { link, console };
    match commands::carry_out(&mut context, cli.command, Cli::command) {
        Ok(code) => code,
        Err(error) => error.end(&mut context.console),
    }
}
