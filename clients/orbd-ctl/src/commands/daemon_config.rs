//! `daemon config`: the path of orbd's configuration file, the value and source of every key, and validation of a file.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::Cell;
use orbd_host::config::{self, Config, ConfigError, Environment, Flags, Key, Origin, UserDirs};
use orbd_host::error_chain::error_chain;
use orbd_proto::errors::ErrorKind;
use serde::Serialize;

use crate::context::Context;
use crate::error::{CliError, exit};
use crate::layout::Look;

/// `daemon config ...`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DaemonConfigCommand {
    /// Print the path of the configuration file, even if it does not exist
    Path,
    /// Show every key, its value, and the source of the value
    Show,
    /// Validate a configuration file; exits with 1 if it is invalid
    Check {
        /// File to check instead of the one that orbd reads
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Shows orbd's own configuration.
pub(super) fn daemon_config(
    context: &mut Context,
    command: DaemonConfigCommand,
) -> Result<ExitCode, CliError> {
    let here = Here::find()?;
    match command {
        DaemonConfigCommand::Path => {
            let answer = PathAnswer {
                config_file: here.file.display().to_string(),
                exists: here.file.exists(),
            };
            context
                .console
                .answer(&answer, |answer, _| format!("{}\n", answer.config_file))?;
        }
        DaemonConfigCommand::Show => {
            let answer = shown(&here.load(&Flags::default()).map_err(|error| invalid(&error))?);
            context.console.answer(&answer, show)?;
        }
        DaemonConfigCommand::Check { file } => return check(context, &here, file),
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration as this process finds it. A service may have been started with other environment variables.
struct Here {
    places: UserDirs,
    environment: Environment,
    file: PathBuf,
}

impl Here {
    fn find() -> Result<Self, CliError> {
        let places = UserDirs::of_this_user().map_err(|error| invalid(&error))?;
        let environment = Environment::of_process();
        Ok(Self {
            file: config::file_in_use(&places, &Flags::default(), &environment),
            places,
            environment,
        })
    }

    fn load(&self, flags: &Flags) -> Result<Config, ConfigError> {
        Config::load_for(&self.places, flags, &self.environment)
    }
}

/// Answer of `path`.
#[derive(Serialize)]
struct PathAnswer {
    config_file: String,
    exists: bool,
}

/// One key of `show`.
#[derive(Serialize)]
struct ShownKey {
    key: &'static str,
    /// In the form that `--set` accepts; null if the key is not set.
    value: Option<String>,
    /// `default`, `file` or `variable`.
    from: &'static str,
    /// Line of the file, or name of the variable; absent for a default.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    needs_restart: bool,
}

/// Answer of `show`.
#[derive(Serialize)]
struct Shown {
    config_file: Option<String>,
    keys: Vec<ShownKey>,
}

fn shown(config: &Config) -> Shown {
    let keys = config.texts().into_iter().map(|(name, value)| {
        let origin = config.origin(name);
        ShownKey {
            key: name,
            value,
            from: match origin {
                Origin::Default => "default",
                Origin::File { .. } => "file",
                Origin::Variable(_) => "variable",
                Origin::Flag(_) => "flag",
            },
            place: (origin != Origin::Default).then(|| origin.to_string()),
            needs_restart: config::find_key(name).is_ok_and(Key::needs_restart),
        }
    });
    Shown {
        config_file: config.file().map(|path| path.display().to_string()),
        keys: keys.collect(),
    }
}

fn show(answer: &Shown, look: Look) -> String {
    look.table(
        &["KEY", "VALUE", "FROM"],
        &[],
        &[1, 2],
        answer.keys.iter().map(|key| {
            vec![
                Cell::new(key.key),
                Cell::new(key.value.as_deref().unwrap_or("-")),
                Cell::new(key.place.as_deref().unwrap_or(key.from)),
            ]
        }),
    )
}

/// Answer of `check`.
#[derive(Serialize)]
struct Checked {
    config_file: Option<String>,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

fn check(context: &mut Context, here: &Here, file: Option<PathBuf>) -> Result<ExitCode, CliError> {
    let flags = Flags {
        file,
        values: Vec::new(),
    };
    let path = config::file_in_use(&here.places, &flags, &here.environment);
    let found = here.load(&flags);
    let answer = Checked {
        config_file: (found.is_err() || path.exists()).then(|| path.display().to_string()),
        valid: found.is_ok(),
        problem: found.as_ref().err().map(|error| error_chain(error)),
    };
    context.console.answer(&answer, |answer, _| match answer {
        Checked {
            problem: Some(problem),
            ..
        } => format!("{problem}\n"),
        Checked {
            config_file: Some(file),
            ..
        } => format!("{file} is valid\n"),
        Checked { .. } => "no configuration file; all keys have their defaults\n".into(),
    })?;
    Ok(ExitCode::from(if answer.valid { 0 } else { exit::FAILED }))
}

fn invalid(error: &ConfigError) -> CliError {
    CliError::Refused(ErrorKind::ConfigInvalid.error(error_chain(error)))
}
