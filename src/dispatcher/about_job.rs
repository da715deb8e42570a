//! What every line of the log about a job has in common: its id, operation, machine and client. Never its words, environment or
//! input, which is why a job is never logged as a whole.

use tracing::Span;

use super::handle::JobSpec;

/// Logs something about a job: the level, its [`JobSpec`], fields if any, and the message.
macro_rules! about_job {
    ($level:ident, $spec:expr, $($rest:tt)+) => {{
        let spec: &$crate::dispatcher::handle::JobSpec = &$spec;
        tracing::$level!(
            job_id = spec.id.0,
            operation = spec.asked.operation.verb(),
            machine = spec.asked.operation.machine().map(tracing::field::display),
            client = %spec.asked.client.name,
            $($rest)+
        )
    }};
}
pub(super) use about_job;

/// Makes the span of a job's task, for lines from where nobody knows of jobs. It is there at every level.
pub(super) fn span(spec: &JobSpec) -> Span {
    tracing::error_span!(
        "job",
        job_id = spec.id.0,
        operation = spec.asked.operation.verb(),
        machine = spec.asked.operation.machine().map(tracing::field::display),
        client = %spec.asked.client.name,
    )
}
