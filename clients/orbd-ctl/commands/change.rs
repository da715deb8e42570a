//! What all changes have in common: several at once, one line for each, and the exit code of the first that failed.

use std::process::ExitCode;

use orbd::rpc::api::Method;
use orbd::rpc::types::{ChangeAnswer, JobStateWord};

use crate::context::Context;
use crate::error::CliError;
use crate::render;

/// How a change is told.
pub(super) struct Change {
    /// Verb in job lists and records, as in `start`.
    pub(super) verb: &'static str,
    /// Said when it was done, as in `started`.
    pub(super) done: &'static str,
    /// Said when there was nothing to do, as in `is running already`.
    pub(super) held: &'static str,
}

/// Carries out a change of each subject.
pub(super) fn carry_out<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    subjects: &[String],
    requests: &[M::Params],
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
                console.answer(&answer, |answer, _| told(change, &subjects[index], answer))
            }
            Err(error) => {
                let this = error.end(console);
                if !failed {
                    (code, failed) = (this, true);
                }
                Ok(())
            }
        },
    )?;
    Ok(code)
}

/// Carries out a change of each machine that was named.
pub(super) fn each<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    machines: &[String],
    request: impl Fn(String) -> M::Params,
) -> Result<ExitCode, CliError> {
    let requests: Vec<_> = machines.iter().cloned().map(request).collect();
    carry_out::<M>(context, change, machines, &requests)
}

/// Carries out one change of something that is no machine.
pub(super) fn whole<M: Method<Answer = ChangeAnswer>>(
    context: &mut Context,
    change: &Change,
    subject: &str,
    request: M::Params,
) -> Result<ExitCode, CliError> {
    carry_out::<M>(context, change, &[subject.to_owned()], &[request])
}

/// Says what became of one change. A detached job is its id alone, for scripts.
fn told(change: &Change, subject: &str, answer: &ChangeAnswer) -> String {
    if answer.state != JobStateWord::Ended {
        return format!("{}\n", answer.job_id);
    }
    if answer.changed == Some(false) {
        return format!("{subject} {}\n", change.held);
    }
    let mut times = Vec::new();
    // Waits that nobody noticed are not worth a word.
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
    format!("{subject} {}{times}\n", change.done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_whether_there_was_anything_to_do_and_how_long_it_took() {
        let change = Change {
            verb: "start",
            done: "started",
            held: "is running already",
        };
        let check = |state, changed, wait_us, expected: &str| {
            let answer = ChangeAnswer {
                job_id: 12,
                state,
                changed,
                warning: None,
                wait_us: Some(wait_us),
                run_us: Some(1_234_567),
            };
            assert_eq!(told(&change, "web", &answer), expected);
        };
        check(JobStateWord::Ended, Some(true), 50, "web started (took 1.2 s)\n");
        check(
            JobStateWord::Ended,
            Some(true),
            34_000_000,
            "web started (waited 34 s, took 1.2 s)\n",
        );
        check(JobStateWord::Ended, Some(false), 50, "web is running already\n");
        check(JobStateWord::Waiting, None, 50, "12\n");
    }
}
