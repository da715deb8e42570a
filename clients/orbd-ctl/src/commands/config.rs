//! `config`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use orbd_host::nearest::nearest;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{ConfigAdd, ConfigGet, ConfigRemove, ConfigReset, ConfigSet, ConfigShow};
use orbd_proto::types::{ConfigGetParams, ReadParams};

use super::change::{self, Change};
use super::status::StatusArgs;
use crate::args::{AgeArgs, JobOptions};
use crate::context::{Context, request};
use crate::error::{CliError, exit};
use crate::link::Link;
use crate::progress::Wait;
use crate::render;

/// `config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show all keys
    Show(StatusArgs),
    /// Show one key; exits with 4 if it is not set
    Get {
        /// Key, e.g. machine.web.username
        key: String,
        /// Maximum age of the answer.
        #[command(flatten)]
        age: AgeArgs,
    },
    /// Set one key
    Set {
        /// Key, e.g. machine.web.username
        key: String,
        /// Value
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Options of the job.
        #[command(flatten)]
        job: JobOptions,
    },
    /// Add an entry to a key that holds a list
    Add {
        /// Key, e.g. machine.web.mounts
        key: String,
        /// Entry
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Options of the job.
        #[command(flatten)]
        job: JobOptions,
    },
    /// Remove an entry from a key that holds a list
    Remove {
        /// Key, e.g. machine.web.mounts
        key: String,
        /// Entry
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Options of the job.
        #[command(flatten)]
        job: JobOptions,
    },
    /// Hidden: prints that only `daemon config` has this subcommand.
    #[command(hide = true)]
    Path,
    /// Hidden: prints that only `daemon config` has this subcommand.
    #[command(hide = true)]
    Check,
    /// Reset all keys to their defaults; on a terminal, asks first
    Reset {
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
        /// Options of the job.
        #[command(flatten)]
        job: JobOptions,
    },
}

/// Shows and changes OrbStack's configuration.
pub(super) fn config(context: &mut Context, command: ConfigCommand) -> Result<ExitCode, CliError> {
    let watch = Wait::Ours("config_show", "config".into());
    match command {
        ConfigCommand::Show(args) => {
            let params = ReadParams {
                max_age_ms: args.age.max_age_ms(),
            };
            let answer = context.look::<ConfigShow>(watch, &params)?;
            context.console.answer(&answer, render::config)?;
            Ok(ExitCode::SUCCESS)
        }
        ConfigCommand::Get { key, age } => {
            let params = ConfigGetParams {
                key,
                max_age_ms: age.max_age_ms(),
            };
            let answer = context.look::<ConfigGet>(watch, &params)?;
            if context.console.json || answer.value.is_some() {
                context.console.answer(&answer, |answer, _| {
                    answer
                        .value
                        .as_ref()
                        .map_or_else(String::new, |value| format!("{value}\n"))
                })?;
                let code = if answer.value.is_some() {
                    0
                } else {
                    exit::WRONG_OBJECT
                };
                return Ok(ExitCode::from(code));
            }
            Err(CliError::Absent {
                message: format!("config key {} is not set", params.key),
                hint: nearest_key(&context.link, &params.key),
            })
        }
        ConfigCommand::Set { key, value, job } => {
            let job_flags = job.options();
            let (link, name) = (context.link.clone(), key.clone());
            let subjects = [key.clone()];
            let params = request!(&job_flags, ConfigSetParams { key, value });
            let change = Change::new("config_set", "set {}", "{} already has that value");
            change::carry_out_explained::<ConfigSet>(context, &change, &subjects, &[params], &|error| {
                explain_key(&link, &name, error)
            })
        }
        ConfigCommand::Add { key, value, job } => {
            let job_flags = job.options();
            let (link, name) = (context.link.clone(), key.clone());
            let subjects = [format!("{value} to {key}")];
            let params = request!(&job_flags, ConfigEntryParams { key, value });
            let change = Change::new("config_add", "added {}", "{}: nothing to add");
            change::carry_out_explained::<ConfigAdd>(context, &change, &subjects, &[params], &|error| {
                explain_key(&link, &name, error)
            })
        }
        ConfigCommand::Remove { key, value, job } => {
            let job_flags = job.options();
            let (link, name) = (context.link.clone(), key.clone());
            let subjects = [format!("{value} from {key}")];
            let params = request!(&job_flags, ConfigEntryParams { key, value });
            let change = Change::new("config_remove", "removed {}", "{}: nothing to remove");
            change::carry_out_explained::<ConfigRemove>(context, &change, &subjects, &[params], &|error| {
                explain_key(&link, &name, error)
            })
        }
        ConfigCommand::Path => Err(of_orbd("path")),
        ConfigCommand::Check => Err(of_orbd("check")),
        ConfigCommand::Reset { yes, job } => {
            let question = "reset OrbStack's whole configuration to its defaults?";
            if !yes && !context.console.confirm(question, "orbd-ctl config reset --yes")? {
                context.console.eprint("nothing reset");
                return Ok(ExitCode::from(exit::FAILED));
            }
            let job_flags = job.options();
            let params = request!(&job_flags, ChangeParams {});
            let change = Change::new(
                "config_reset",
                "configuration reset",
                "configuration already has its defaults",
            );
            change::carry_out::<ConfigReset>(context, &change, &["configuration".into()], &[params])
        }
    }
}

/// Adds the nearest key to the error if the key is the reason, or probably: `orbctl` gave no reason and does not show the key.
fn explain_key(link: &Link, key: &str, error: CliError) -> CliError {
    match (error.kind(), error) {
        (Some(ErrorKind::InvalidParams), CliError::Refused(error))
            if error.data.as_ref().and_then(|data| data.field.as_deref()) == Some("key") =>
        {
            CliError::Explained {
                error,
                hint: nearest_key(link, key),
            }
        }
        (Some(ErrorKind::OrbctlFailed), error) => {
            let keys = keys(link);
            if keys.is_empty() || keys.iter().any(|known| known == key) {
                return error;
            }
            CliError::Usage {
                message: error.to_string(),
                hint: nearest_key(link, key),
            }
        }
        (_, error) => error,
    }
}

/// Returns the hint for a key that is not set: the nearest one, if one is near.
fn nearest_key(link: &Link, key: &str) -> String {
    let keys = keys(link);
    let near = nearest(key, keys.iter().map(String::as_str));
    let near = near.map_or_else(String::new, |near| format!("did you mean '{near}'? "));
    format!("{near}`orbd-ctl config show` lists the keys")
}

/// Returns the keys of OrbStack's configuration for a message; empty if they cannot be read at once.
fn keys(link: &Link) -> Vec<String> {
    let answer = link
        .side_connection()
        .and_then(|mut client| client.call::<ConfigShow>(&ReadParams::default()).ok());
    let values = answer.map(|answer| answer.values).unwrap_or_default();
    values.into_keys().collect()
}

/// Returns the error for a subcommand that only `daemon config` has.
fn of_orbd(verb: &str) -> CliError {
    CliError::Usage {
        message: format!("`orbd-ctl config`, which is for OrbStack's configuration, has no `{verb}`"),
        hint: format!("for orbd's own configuration run `orbd-ctl daemon config {verb}`"),
    }
}
