//! Common code of all changes: runs several in parallel, prints a line for each, and exits with the code of the first failure.

use std::process::ExitCode;

use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::Method;
use orbd_proto::types::{ChangeAnswer, JobStateWord};
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::render;

/// Names and messages of a change.
pub(super) struct Change {
    /// Operation in job lists and records, e.g. `start`.
    pub(super) verb: &'static str,
    /// Message after success, e.g. `started {}`; `{}` stands for the subject.
    pub(super) done: &'static str,
    /// Message if there was nothing to do, e.g. `{} is already running`; `{}` stands for the subject.
    pub(super) held: &'static str,
    /// This error means that there was nothing to do, because the user said so with a flag such as `--ignore-missing`.
    pub(super) tolerated: Option<ErrorKind>,
    /// Print only the subject.
    pub(super) quiet: bool,
}

impl Change {
    /// Returns a change for which every error is one.
    pub(super) fn new(verb: &'static str, done: &'static str, held: &'static str) -> Self {
        Self {
            verb,
            done,
            held,
            tolerated: None,
            quiet: false,
        }
    }
}

/// What `--json` prints for a tolerated error: the part of the answer that is known.
#[derive(Serialize)]
struct Unchanged {
    changed: bool,
}

/// Requests a change of each subject, and prints the results.
pub(super) fn carry_out<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    subjects: &[String],
    requests: &[M::Params],
) -> Result<ExitCode, CliError> {
    carry_out_explained::<M>(context, change, subjects, requests, &|error| error)
}

/// As [`carry_out`]. `explain` adds to an error what only the verb knows.
pub(super) fn carry_out_explained<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    subjects: &[String],
    requests: &[M::Params],
    explain: &dyn Fn(CliError) -> CliError,
) -> Result<ExitCode, CliError> {
    let what = match subjects {
        [one] => format!("{} {one}", change.verb),
        many => format!("{} {} machines", change.verb, many.len()),
    };
    let mut code = ExitCode::SUCCESS;
    let mut failed = false;
    context.change::<M>(
        change.verb,
        &what,
        requests,
        &mut |console, index, answer| match answer {
            Ok(answer) => {
                if let Some(warning) = &answer.warning {
                    console.eprint(&format!(
                        "warning: {} {}: {warning}",
                        change.verb, subjects[index]
                    ));
                }
                let text = |answer: &_, _| format_result(change, &subjects[index], answer);
                console.answer(&answer, text).map_err(CliError::from)
            }
            Err(error) if change.tolerated.is_some() && error.kind() == change.tolerated => {
                let text = |_: &_, _| format_unchanged(change, &subjects[index]);
                console
                    .answer(&Unchanged { changed: false }, text)
                    .map_err(CliError::from)
            }
            Err(error) => {
                let this = explain(error).end(console);
                if !failed {
                    (code, failed) = (this, true);
                }
                Ok(())
            }
        },
    )?;
    Ok(code)
}

/// Requests a change of each of the given machines.
pub(super) fn each<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    machines: &[String],
    request: impl Fn(String) -> M::Params,
) -> Result<ExitCode, CliError> {
    let requests: Vec<_> = machines.iter().cloned().map(request).collect();
    carry_out::<M>(context, change, machines, &requests)
}

/// Requests a single change of something other than a machine.
pub(super) fn whole<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    subject: &str,
    request: M::Params,
) -> Result<ExitCode, CliError> {
    carry_out::<M>(context, change, &[subject.to_owned()], &[request])
}

/// Adds the rule for names to the error if the name of a new machine is the probable reason. Only `orbctl` decides: its own rule is not
/// published.
pub(super) fn explain_new_name(name: &str, error: CliError) -> CliError {
    let is_usual = name
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || matches!(character, '-' | '.'));
    if is_usual || error.kind() != Some(ErrorKind::OrbctlFailed) {
        return error;
    }
    CliError::Usage {
        message: error.to_string(),
        hint: format!("the name of a new machine has only letters, digits, '-' and '.', unlike '{name}'"),
    }
}

/// Formats the result of a change. For a detached job this is only its id, for scripts.
fn format_result(change: &Change, subject: &str, answer: &ChangeAnswer) -> String {
    if answer.state != JobStateWord::Ended {
        return format!("{}\n", answer.job_id);
    }
    if answer.changed == Some(false) {
        return format_unchanged(change, subject);
    }
    if change.quiet {
        return format!("{subject}\n");
    }
    let mut times = Vec::new();
    // Waits of less than a second are not worth mentioning.
    if let Some(us) = answer.wait_us.filter(|us| *us >= 1_000_000) {
        times.push(format!("waited {}", render::duration_us(us)));
    }
    if let Some(us) = answer.run_us {
        times.push(format!("took {}", render::duration_us(us)));
    }
    let times = if times.is_empty() {
        String::new()
    } else {
        format!(" ({})", times.join(", "))
    };
    format!("{}{times}\n", change.done.replace("{}", subject))
}

/// Prints that a change had nothing to do.
pub(super) fn print_unchanged(context: &mut Context, change: &Change, subject: &str) -> Result<(), CliError> {
    let text = |_: &_, _| format_unchanged(change, subject);
    Ok(context.console.answer(&Unchanged { changed: false }, text)?)
}

/// Formats the result of a change that had nothing to do.
fn format_unchanged(change: &Change, subject: &str) -> String {
    if change.quiet {
        format!("{subject}\n")
    } else {
        format!("{}\n", change.held.replace("{}", subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_the_subject_and_the_times_or_that_nothing_was_done() {
        let change = Change::new("start", "started {}", "{} is already running");
        let check = |state, changed, wait_us, expected: &str| {
            let answer = ChangeAnswer {
                job_id: 12,
                state,
                changed,
                warning: None,
                wait_us: Some(wait_us),
                run_us: Some(1_234_567),
            };
            assert_eq!(format_result(&change, "web", &answer), expected);
        };
        check(JobStateWord::Ended, Some(true), 50, "started web (took 1.2 s)\n");
        check(
            JobStateWord::Ended,
            Some(true),
            34_000_000,
            "started web (waited 34 s, took 1.2 s)\n",
        );
        check(JobStateWord::Ended, Some(false), 50, "web is already running\n");
        check(JobStateWord::Waiting, None, 50, "12\n");
        let quiet = Change {
            quiet: true,
            ..change
        };
        let answer = |changed| ChangeAnswer {
            job_id: 12,
            state: JobStateWord::Ended,
            changed: Some(changed),
            warning: None,
            wait_us: None,
            run_us: None,
        };
        assert_eq!(format_result(&quiet, "web", &answer(true)), "web\n");
        assert_eq!(format_result(&quiet, "web", &answer(false)), "web\n");
    }
}
