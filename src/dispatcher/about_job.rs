//! Fields common to every log line about a job: its id, operation, machine and client. Arguments, environment and input may hold
//! secrets, so they are never logged; that is why a job is never logged as a whole.

use tracing::Span;

use super::submission::JobSpec;

/// Logs a message about a job. Arguments: the level, the job's [`JobSpec`], further fields if any, and the message.
macro_rules! about_job {
    ($level:ident, $spec:expr, $($rest:tt)+) => {{
        let spec: &$crate::dispatcher::submission::JobSpec = &$spec;
        tracing::$level!(
            job_id = spec.id.0,
            operation = spec.info.verb.as_str(),
            machine = spec.info.machine.as_ref().map(tracing::field::display),
            client = %spec.client.name,
            $($rest)+
        )
    }};
}
pub(super) use about_job;

/// Returns the span of a job's task, so that log lines of modules that do not know about jobs carry the job's fields. The span is at
/// error level so that no log filter disables it.
pub(super) fn span(spec: &JobSpec) -> Span {
    tracing::error_span!(
        "job",
        job_id = spec.id.0,
        operation = spec.info.verb.as_str(),
        machine = spec.info.machine.as_ref().map(tracing::field::display),
        client = %spec.client.name,
    )
}
