//! `service`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::daemon_log;
use super::daemon_log::LogArgs;
use crate::context::Context;
use crate::daemon_binary;
use crate::error::{CliError, exit};
use crate::launch;
use crate::layout::Look;
use crate::render;
use crate::service::program::stable;
use crate::service::{ManagerName, Service, State, Written};

/// `service`.
#[derive(Debug, Args)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    pub(crate) command: ServiceCommand,
    /// Service manager [default: the system's own]
    #[arg(long, global = true, value_enum, hide = true)]
    pub(crate) manager: Option<ManagerName>,
}

/// `service ...`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write the service file and start orbd, now and at each login; updates an outdated file
    Install {
        /// Print the file and change nothing
        #[arg(long)]
        print: bool,
    },
    /// Stop orbd and remove the service file
    Uninstall,
    /// Start the service and wait until it answers
    Start,
    /// Stop the service gracefully; it stays stopped until the next login or use
    Stop,
    /// Stop the service gracefully and start it again
    Restart,
    /// Show whether the service is installed, loaded and running; exits with 3 if it is not running
    Status,
    /// Show the last lines of orbd's log file, as `daemon logs` does
    Logs(LogArgs),
}

/// Maximum time for the daemon to answer after the manager has started the service.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Maximum time for the daemon to exit after it was asked to stop. launchd and systemd kill it before that.
const GONE_MAX: Duration = Duration::from_secs(60);

/// State of the service, as `--json` prints it.
#[derive(Debug, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are independent, and programs read them by name"
)]
struct Report {
    manager: &'static str,
    file: PathBuf,
    installed: bool,
    /// The file is the one that this version of orbd-ctl would write.
    current: bool,
    /// The program that the file names; `None` if the service is not installed.
    program: Option<PathBuf>,
    /// That program exists.
    program_exists: bool,
    /// The manager has loaded the file.
    loaded: bool,
    /// Process id of the service; `None` if it is not running.
    pid: Option<u32>,
    /// Exit code of the service's last process, if the manager reports it.
    last_exit: Option<i32>,
    /// A daemon answers on the socket: the service or another one.
    answers: bool,
    socket: PathBuf,
}

/// Installs, removes, starts, stops and shows the service.
pub(super) fn service(context: &mut Context, args: &ServiceArgs) -> Result<ExitCode, CliError> {
    let name = args.manager.unwrap_or_else(ManagerName::of_this_system);
    let service = Service::of(&context.link, name)?;
    match args.command {
        ServiceCommand::Install { print: true } => {
            let text = service.text(&context.link)?;
            context.console.print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        ServiceCommand::Install { print: false } => install(context, &service)?,
        ServiceCommand::Uninstall => uninstall(context, &service)?,
        ServiceCommand::Start => {
            must_be_startable(&service)?;
            service.check()?;
            service.start()?;
            must_answer(context)?;
            print_result(context, &service, "service started")?;
        }
        ServiceCommand::Stop => {
            must_be_installed(&service)?;
            stop(&service)?;
            print_result(context, &service, "service stopped")?;
        }
        ServiceCommand::Restart => {
            must_be_startable(&service)?;
            stop(&service)?;
            service.start()?;
            must_answer(context)?;
            print_result(context, &service, "service restarted")?;
        }
        ServiceCommand::Status => return status(context, &service),
        ServiceCommand::Logs(args) => daemon_log::logs(context, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn install(context: &mut Context, service: &Service) -> Result<(), CliError> {
    if let Some(file) = service.homebrew_file() {
        return Err(CliError::Service {
            message: format!("Homebrew already runs orbd as a service: {}", file.display()),
            hint: "keep that one, or run `brew services stop orbd` first".into(),
        });
    }
    service.check()?;
    let written = service.write(&context.link)?;
    let state = service.state()?;
    if written == Written::Same && state.pid.is_some() && context.link.dial().is_ok() {
        print_result(context, service, "service already installed and running")?;
        note_other_program(context, service);
        return Ok(());
    }
    // A daemon that runs without the service holds the lock, so the service's daemon would exit at once.
    if state.pid.is_none() && context.link.is_held() {
        context
            .console
            .eprint("stopping the orbd that runs without a service");
        super::daemon::stop_quietly(context)?;
    }
    service.load()?;
    must_answer(context)?;
    print_result(
        context,
        service,
        "service installed: orbd runs now and after each login",
    )?;
    note_other_program(context, service);
    Ok(())
}

/// Says that the service keeps the program of another installation.
fn note_other_program(context: &mut Context, service: &Service) {
    let Some(program) = service.program() else { return };
    let ours =
        daemon_binary::find(&context.link.environment).map(|found| stable(&found, &context.link.environment));
    let is_same =
        |ours: &PathBuf| ours == &program || ours.canonicalize().ok() == program.canonicalize().ok();
    if let Ok(ours) = ours
        && !is_same(&ours)
        && !service.runs_copy()
    {
        context.console.eprint(&format!(
            "the service runs {}; to make it run {}, run `orbd-ctl service uninstall` and `orbd-ctl service install`",
            program.display(),
            ours.display()
        ));
    }
}

fn uninstall(context: &mut Context, service: &Service) -> Result<(), CliError> {
    let said = if service.remove()? {
        "service uninstalled; orbd still starts on demand"
    } else {
        "service not installed"
    };
    print_result(context, service, said)
}

fn stop(service: &Service) -> Result<(), CliError> {
    let Some(pid) = service.state()?.pid else {
        return Ok(());
    };
    service.stop()?;
    let asked = crate::console::now();
    let mut pause = Duration::from_millis(5);
    while service.state()?.pid == Some(pid) {
        if crate::console::now() - asked > GONE_MAX {
            return Err(CliError::Service {
                message: format!(
                    "orbd (pid {pid}) was asked to stop and has not exited for {} s",
                    GONE_MAX.as_secs()
                ),
                hint: "`orbd-ctl jobs` shows the running jobs".into(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(250));
    }
    Ok(())
}

/// Checks that the service can be started.
fn must_be_startable(service: &Service) -> Result<(), CliError> {
    must_be_installed(service)?;
    match service.missing_program() {
        None => Ok(()),
        Some(missing) => Err(CliError::Absent {
            message: format!("the service's program {} does not exist", missing.display()),
            hint: "`orbd-ctl service install` makes the service run an installed program".into(),
        }),
    }
}

fn must_be_installed(service: &Service) -> Result<(), CliError> {
    if service.is_installed() {
        return Ok(());
    }
    Err(CliError::Absent {
        message: format!("service not installed: {} does not exist", service.file.display()),
        hint: "`orbd-ctl service install` installs and starts it".into(),
    })
}

/// Waits until the service's daemon answers.
fn must_answer(context: &Context) -> Result<(), CliError> {
    match launch::answered(&context.link, ANSWER_MAX)? {
        Some(_) => Ok(()),
        None => Err(CliError::NotStarted {
            reason: format!(
                "the service was started, but nothing answered on {} for {} s",
                context.link.socket.display(),
                ANSWER_MAX.as_secs()
            ),
            hint: format!(
                "`orbd-ctl service status` shows its exit code, `orbd-ctl service logs` and {} its output",
                context.link.socket.with_extension("err").display()
            ),
        }),
    }
}

fn report(context: &Context, service: &Service) -> Result<Report, CliError> {
    // If the manager cannot be queried, reports the service as not loaded; the state of the file is still known.
    let State {
        loaded,
        pid,
        last_exit,
    } = service.state().unwrap_or_default();
    let program_exists = service.program().is_some_and(|program| program.is_file());
    Ok(Report {
        manager: service.name.as_str(),
        file: service.file.clone(),
        installed: service.is_installed(),
        current: program_exists && service.is_current(&context.link)?,
        program_exists,
        program: service.program(),
        loaded,
        pid,
        last_exit,
        answers: context.link.dial().is_ok(),
        socket: context.link.socket.clone(),
    })
}

fn print_result(context: &mut Context, service: &Service, sentence: &str) -> Result<(), CliError> {
    if !context.console.json {
        let line = format!("{sentence} ({})\n", service.file.display());
        return Ok(context.console.print(line.as_bytes())?);
    }
    let report = report(context, service)?;
    Ok(context.console.answer(&report, |_, _| String::new())?)
}

fn status(context: &mut Context, service: &Service) -> Result<ExitCode, CliError> {
    let report = report(context, service)?;
    let runs = report.pid.is_some() && report.answers;
    context.console.answer(&report, show)?;
    Ok(if runs {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::UNREACHABLE)
    })
}

fn show(report: &Report, look: Look) -> String {
    let (style, headline) = match (report.installed, report.pid, report.answers) {
        (true, None, answers) if !report.program_exists => (
            render::BAD,
            if answers {
                "the service's program does not exist; another orbd answers".into()
            } else {
                "the service's program does not exist".to_owned()
            },
        ),
        (true, Some(pid), true) => (render::GOOD, format!("orbd is running as a service (pid {pid})")),
        (true, Some(pid), false) => (
            render::BAD,
            format!("the service is running (pid {pid}) but does not answer"),
        ),
        (true, None, true) => (
            render::BAD,
            "the service is not running; another orbd answers".into(),
        ),
        (true, None, false) => (render::BAD, "the service is installed but not running".into()),
        (false, _, true) => (
            render::GOOD,
            "no service installed; orbd is running without one".into(),
        ),
        (false, _, false) => (
            render::BAD,
            "no service installed, and orbd is not running".into(),
        ),
    };
    let mut text = format!("{}\n", render::paint(look, style, &headline));
    let program = report.program.as_ref().map(|program| {
        let note = if report.program_exists {
            ""
        } else {
            " (does not exist)"
        };
        format!("{}{note}", program.display())
    });
    let mut line = |name: &str, value: &str| text.extend(["  ", &format!("{name:<8}"), " ", value, "\n"]);
    line("manager", report.manager);
    line("file", &report.file.display().to_string());
    if let Some(program) = program {
        line("program", &program);
    }
    line("socket", &report.socket.display().to_string());
    if let Some(code) = report.last_exit {
        line("last", &format!("exited with code {code}"));
    }
    let advice = match (report.installed, report.current, report.loaded) {
        (false, ..) => Some("`orbd-ctl service install` installs and starts it"),
        (true, _, _) if !report.program_exists => {
            Some("`orbd-ctl service install` makes the service run an installed program")
        }
        (true, false, _) => Some("`orbd-ctl service install` updates the file"),
        (true, true, false) => Some("`orbd-ctl service start` loads and starts it"),
        (true, true, true) => None,
    };
    text.extend(advice.map(|advice| format!("{} {advice}\n", render::paint(look, render::HINT, "hint:"))));
    text
}
