//! The error table: the one place that knows codes.
//!
//! JSON-RPC keeps -32768..-32000 for itself and jsonrpsee uses part of that; ours are positive and grouped. Codes are added,
//! never reused.

use super::types::{ErrorData, ErrorObject};

/// Kinds of errors, each with its code and its stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A parameter is missing, unknown or out of range; `data.field` says which.
    InvalidParams,
    /// Not JSON.
    ParseError,
    /// JSON, but not a request, or over a bound of the connection.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// The queue is full; `data.retry_after_ms` says when to come back.
    QueueFull,
    /// New work is refused.
    Draining,
    /// `orbctl` knows no such machine.
    MachineNotFound,
    /// The name is taken.
    MachineExists,
    /// The machine is in a state in which this cannot be done.
    MachineWrongState,
    /// Unknown, or no longer kept.
    JobNotFound,
    /// Cancelled; `data.phase` says where.
    JobCancelled,
    /// A limit passed; `data.phase` says which, `data.holder` what was in the way.
    DeadlineExceeded,
    /// The daemon that ran it died.
    JobInterrupted,
    /// A change was cut short and may have taken effect; `data.observed` says what was seen.
    OutcomeUnknown,
    /// Not found, not executable, or a version that is not supported.
    OrbctlUnavailable,
    /// `orbctl` failed.
    OrbctlFailed,
    /// A signal ended `orbctl`.
    OrbctlKilled,
    /// `orbctl` succeeded but said something that we do not know.
    OrbctlOutputUnreadable,
    /// Client and daemon speak different protocols.
    ProtocolMismatch,
    /// Our own fault; `data.incident` finds the log line.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the published table.
    pub const ALL: [Self; 20] = [
        Self::ParseError,
        Self::InvalidRequest,
        Self::InvalidParams,
        Self::MethodNotFound,
        Self::Internal,
        Self::QueueFull,
        Self::Draining,
        Self::ProtocolMismatch,
        Self::MachineNotFound,
        Self::MachineExists,
        Self::MachineWrongState,
        Self::JobNotFound,
        Self::JobCancelled,
        Self::DeadlineExceeded,
        Self::JobInterrupted,
        Self::OutcomeUnknown,
        Self::OrbctlUnavailable,
        Self::OrbctlFailed,
        Self::OrbctlKilled,
        Self::OrbctlOutputUnreadable,
    ];

    /// Returns the code on the wire.
    pub fn code(self) -> i32 {
        match self {
            Self::ParseError => -32700,
            Self::InvalidRequest => -32600,
            Self::InvalidParams => -32602,
            Self::MethodNotFound => -32601,
            Self::Internal => -32603,
            Self::QueueFull => 1001,
            Self::Draining => 1002,
            Self::ProtocolMismatch => 1003,
            Self::MachineNotFound => 2001,
            Self::MachineExists => 2002,
            Self::MachineWrongState => 2003,
            Self::JobNotFound => 3001,
            Self::JobCancelled => 3002,
            Self::DeadlineExceeded => 3003,
            Self::JobInterrupted => 3004,
            Self::OutcomeUnknown => 3005,
            Self::OrbctlUnavailable => 4001,
            Self::OrbctlFailed => 4002,
            Self::OrbctlKilled => 4003,
            Self::OrbctlOutputUnreadable => 4004,
        }
    }

    /// Returns the stable word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ParseError => "parse_error",
            Self::InvalidRequest => "invalid_request",
            Self::InvalidParams => "invalid_params",
            Self::MethodNotFound => "method_not_found",
            Self::Internal => "internal",
            Self::QueueFull => "queue_full",
            Self::Draining => "draining",
            Self::ProtocolMismatch => "protocol_mismatch",
            Self::MachineNotFound => "machine_not_found",
            Self::MachineExists => "machine_exists",
            Self::MachineWrongState => "machine_wrong_state",
            Self::JobNotFound => "job_not_found",
            Self::JobCancelled => "job_cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::JobInterrupted => "job_interrupted",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::OrbctlUnavailable => "orbctl_unavailable",
            Self::OrbctlFailed => "orbctl_failed",
            Self::OrbctlKilled => "orbctl_killed",
            Self::OrbctlOutputUnreadable => "orbctl_output_unreadable",
        }
    }

    /// Says whether the same call may succeed later without anybody mending anything.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::QueueFull | Self::Draining)
    }

    /// Finds the kind of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Makes an error of this kind.
    pub fn error(self, message: impl Into<String>) -> ErrorObject {
        ErrorObject {
            code: self.code(),
            message: message.into(),
            data: Some(Box::new(self.data())),
        }
    }

    /// Makes an error of this kind with data that was filled in.
    pub fn with(self, message: impl Into<String>, data: ErrorData) -> ErrorObject {
        ErrorObject {
            code: self.code(),
            message: message.into(),
            data: Some(Box::new(data)),
        }
    }

    /// Makes the data of an error of this kind, to be filled in.
    pub fn data(self) -> ErrorData {
        ErrorData {
            kind: self.as_str().into(),
            retryable: self.is_retryable(),
            ..ErrorData::default()
        }
    }
}

/// Makes the error for a parameter that is not what it must be.
pub fn invalid(field: &str, message: impl std::fmt::Display) -> ErrorObject {
    let mut data = ErrorKind::InvalidParams.data();
    data.field = Some(field.into());
    ErrorObject {
        code: ErrorKind::InvalidParams.code(),
        message: format!("{field}: {message}"),
        data: Some(Box::new(data)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_code_and_no_word_stands_for_two_kinds() {
        let codes: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        let words: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(
            (codes.len(), words.len()),
            (ErrorKind::ALL.len(), ErrorKind::ALL.len())
        );
    }
}
