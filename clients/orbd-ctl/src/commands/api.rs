//! `api`: calls a method of orbd's API.

use std::fmt::Write as _;
use std::io::Read;
use std::process::ExitCode;

use clap::Args;
use orbd_host::nearest::nearest;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{SUMMARIES, unsubscribe_of};
use serde_json::value::RawValue;

use crate::context::Context;
use crate::error::CliError;

/// `api`.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// Method, e.g. machine.info; without it, all methods are listed
    #[arg(value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Parameters as a JSON object; `-` reads them from standard input
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) params: Option<String>,
}

/// Calls a method and prints its result, or the events of a subscription until Ctrl-C.
pub(super) fn api(context: &mut Context, args: &ApiArgs) -> Result<ExitCode, CliError> {
    let Some(method) = &args.method else {
        context.console.answer(&methods(), |methods, look| {
            let lines = methods.iter().fold(String::new(), |mut text, method| {
                let _ = writeln!(text, "{:24}{}", method.name, method.summary);
                text
            });
            look.paragraph(&lines, 24)
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    let params = params(context, args.params.as_deref())?;
    let mut client = context.connect()?;
    let result = client.call_by_name(method, &params).map_err(|error| {
        let error = CliError::from(error);
        match error.kind() {
            Some(ErrorKind::MethodNotFound) => unknown(method),
            _ => error,
        }
    })?;
    if unsubscribe_of(method).is_none() {
        context.console.print(format!("{result}\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let event = client.next_notification()?;
        context.console.print(format!("{event}\n").as_bytes())?;
        if is_last(method, &event) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// A method, as `api --json` lists it.
#[derive(serde::Serialize)]
struct Method {
    name: &'static str,
    summary: &'static str,
}

fn methods() -> Vec<Method> {
    let methods = SUMMARIES.iter();
    methods.map(|&(name, summary)| Method { name, summary }).collect()
}

/// Returns the names of all methods.
pub(crate) fn method_names() -> impl Iterator<Item = &'static str> {
    SUMMARIES.iter().map(|(name, _)| *name)
}

/// Reads the parameters: a JSON object, by default an empty one.
fn params(context: &mut Context, given: Option<&str>) -> Result<Box<RawValue>, CliError> {
    let text = match given {
        None => "{}".to_owned(),
        Some("-") => {
            let mut text = String::new();
            if let Some(mut input) = context.console.input.take() {
                input
                    .read_to_string(&mut text)
                    .map_err(|source| CliError::Local {
                        what: "cannot read the parameters from standard input".into(),
                        source,
                    })?;
            }
            text
        }
        Some(text) => text.to_owned(),
    };
    let usage = |message: String| CliError::Usage {
        message,
        hint: "e.g. `orbd-ctl api machine.info '{\"machine\": \"web\"}'`".into(),
    };
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|error| usage(format!("the parameters are not a JSON object: {error}")))?;
    serde_json::value::to_raw_value(&object).map_err(|error| usage(error.to_string()))
}

fn unknown(method: &str) -> CliError {
    let near = nearest(method, method_names());
    CliError::Usage {
        message: format!("unknown method '{method}'"),
        hint: near.map_or_else(
            || "`orbd-ctl api` lists the methods".into(),
            |near| format!("did you mean '{near}'? `orbd-ctl api` lists the methods"),
        ),
    }
}

/// Returns whether an event is the last one of a subscription: the end of the job. `events.subscribe` has none.
fn is_last(method: &str, event: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct JobEvent<'a> {
        r#type: &'a str,
    }
    method != "events.subscribe"
        && serde_json::from_str::<JobEvent<'_>>(event.get()).is_ok_and(|event| event.r#type == "ended")
}
