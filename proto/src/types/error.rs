//! Errors.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::WaitingFor;
use crate::errors::ErrorKind;

words! {
    /// When a job was stopped: `queued` if it had not started, else `running`.
    StopPhase ["queued", "running"];
}

/// The kinds of errors that this version knows. An open set: later versions may add words.
pub(super) enum ErrorWord {}

impl JsonSchema for ErrorWord {
    fn schema_name() -> Cow<'static, str> {
        "ErrorWord".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        let known: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
        json_schema!({
            "description": "Kind of an error. Later versions may add words, so clients must accept others.",
            "anyOf": [{ "type": "string", "enum": known }, { "type": "string" }],
        })
    }
}

/// A JSON-RPC error.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// Number of the error's kind; see `components.errors`.
    pub code: i32,
    /// Description for display.
    pub message: String,
    /// Details for programs.
    pub data: Option<Box<ErrorData>>,
}

/// Details of an error, for programs. Fields other than `kind` and `retryable` are absent if they do not apply.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// Stable name of the error's kind; see `components.errors`.
    #[schemars(with = "ErrorWord")]
    pub kind: String,
    /// Whether the same call may succeed later without any fix.
    pub retryable: bool,
    /// The invalid parameter.
    pub field: Option<String>,
    /// The job that the error is about.
    pub job_id: Option<u64>,
    /// The machine that the error is about.
    pub machine: Option<String>,
    /// State of the machine, if that state does not allow the operation.
    pub machine_state: Option<String>,
    /// When the job was stopped: `queued` if it had not started, else `running`.
    #[schemars(with = "Option<StopPhase>")]
    pub phase: Option<String>,
    /// Exit code of `orbctl`.
    pub exit_code: Option<i32>,
    /// Signal that ended `orbctl`.
    pub signal: Option<i32>,
    /// Last part of what `orbctl` wrote to stderr.
    pub stderr_tail: Option<String>,
    /// Milliseconds to wait before the next attempt.
    pub retry_after_ms: Option<u64>,
    /// What the job waited for when its time limit passed, or the forced change that cancelled it.
    pub waiting_for: Option<WaitingFor>,
    /// What orbd observed after the change was interrupted.
    pub observed: Option<ReconcileReport>,
    /// Identifier of the error's line in the daemon's log.
    pub incident: Option<String>,
}

/// What orbd observed after a change was interrupted.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileReport {
    /// Whether the observed state is final. If false, the change may still be under way.
    pub stable: bool,
    /// Whether the observed state is the requested one; absent if orbd could not determine it.
    pub satisfied: Option<bool>,
    /// State of the machine; absent if the machine was not found.
    pub machine_state: Option<String>,
}
