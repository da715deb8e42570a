//! One module per verb. Each builds a request from the arguments, makes the call, and prints the answer.

use std::process::ExitCode;

use crate::args::Command;
use crate::context::Context;
use crate::error::CliError;

mod cache;
mod cancel;
mod change;
mod clone;
mod completions;
mod config;
mod create;
mod daemon;
mod daemon_config;
mod daemon_log;
mod default;
mod delete;
mod doctor;
mod dropin;
mod events;
mod folder;
mod follow;
mod info;
mod job;
mod jobs;
mod lease;
mod list;
mod logs;
mod metrics;
mod queue;
mod rename;
mod restart;
mod run;
mod service;
mod shell;
mod ssh;
mod start;
mod status;
mod stop;
mod transfer;
mod version;

/// Runs a command.
pub(crate) fn carry_out(context: &mut Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::list(context, &args),
        Command::Info(args) => info::info(context, args),
        Command::Create(args) => create::create(context, args),
        Command::Start(args) => start::start(context, &args),
        Command::Stop(args) => stop::stop(context, &args),
        Command::Restart(args) => restart::restart(context, &args),
        Command::Delete(args) => delete::delete(context, &args),
        Command::Rename(args) => rename::rename(context, args),
        Command::Clone(args) => clone::clone(context, args),
        Command::Default(args) => default::default(context, args),
        Command::Run(args) => Ok(run::run(context, args)),
        Command::Shell(args) => Ok(shell::shell(context, &args)),
        Command::Push(args) => transfer::push(context, &args),
        Command::Pull(args) => transfer::pull(context, &args),
        Command::Export(args) => transfer::export(context, &args),
        Command::Import(args) => transfer::import(context, &args),
        Command::Logs(args) if args.follow => logs::follow(context, &args),
        Command::Logs(args) => logs::logs(context, args),
        Command::Ssh(_) => ssh::ssh(context),
        Command::Config(args) => config::config(context, args.command),
        Command::Status(args) => status::status(context, &args),
        Command::Version(args) => version::version(context, &args),
        Command::Jobs(args) => jobs::jobs(context, args),
        Command::Job(args) => job::job(context, &args.command),
        Command::Cancel(args) => cancel::cancel(context, &args),
        Command::Queue(args) => queue::queue(context, args.command),
        Command::Events(args) => events::events(context, &args),
        Command::Cache(args) => cache::cache(context, args.command),
        Command::Metrics(args) => metrics::metrics(context, args),
        Command::Daemon(args) => daemon::daemon(context, args.command),
        Command::Service(args) => service::service(context, &args),
        Command::Dropin(args) => dropin::dropin(context, &args),
        Command::Doctor(_) => doctor::doctor(context),
        Command::Completions(args) => completions::completions(context, &args),
        Command::Man(args) => completions::man(context, &args),
    }
}
