//! The error table: the one place that knows codes.
//!
//! JSON-RPC keeps -32768..-32000 for itself and jsonrpsee uses part of that; ours are positive and grouped. Codes are added,
//! never reused.

use super::types::{ErrorData, ErrorObject};

/// Writes the table once: the doc comment is the published meaning.
macro_rules! kinds {
    ($(#[doc = $meaning:literal] $kind:ident $code:literal $word:literal;)*) => {
        /// Kinds of errors, each with its code, its stable word and what it means.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorKind {
            $(#[doc = $meaning] $kind,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of the published table.
            pub const ALL: [Self; [$($code),*].len()] = [$(Self::$kind),*];

            /// Returns the code on the wire.
            pub fn code(self) -> i32 {
                match self { $(Self::$kind => $code,)* }
            }

            /// Returns the stable word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word,)* }
            }

            /// Returns what it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$kind => $meaning,)* }.trim_ascii()
            }
        }
    };
}

kinds! {
    /// Not JSON.
    ParseError -32700 "parse_error";
    /// JSON, but not a request, or over a bound of the connection.
    InvalidRequest -32600 "invalid_request";
    /// A parameter is missing, unknown or out of range; `data.field` says which.
    InvalidParams -32602 "invalid_params";
    /// No such method.
    MethodNotFound -32601 "method_not_found";
    /// Our own fault; `data.incident` finds the log line.
    Internal -32603 "internal";
    /// The queue is full; `data.retry_after_ms` says when to come back.
    QueueFull 1001 "queue_full";
    /// New work is refused.
    Draining 1002 "draining";
    /// Client and daemon speak different protocols.
    ProtocolMismatch 1003 "protocol_mismatch";
    /// orbd's own configuration is not valid; the message says what and where, and nothing changed.
    ConfigInvalid 1004 "config_invalid";
    /// As many connections are open as may be; this one may call `daemon.*` only. `data.retry_after_ms` says when to come back.
    TooManyConnections 1005 "too_many_connections";
    /// Requests in flight and unread answers hold as many bytes as they may. `data.retry_after_ms` says when to come back.
    Overloaded 1006 "overloaded";
    /// The store of the metrics cannot be used for now; the message says why. Everything else works.
    StoreUnavailable 1007 "store_unavailable";
    /// The journal cannot be written, so a detached change was refused or not started; the message says why. Jobs that are not detached run.
    JournalUnavailable 1008 "journal_unavailable";
    /// `orbctl` knows no such machine.
    MachineNotFound 2001 "machine_not_found";
    /// The name is taken.
    MachineExists 2002 "machine_exists";
    /// The machine is in a state in which this cannot be done.
    MachineWrongState 2003 "machine_wrong_state";
    /// Unknown, or no longer kept.
    JobNotFound 3001 "job_not_found";
    /// Cancelled; `data.phase` says where.
    JobCancelled 3002 "job_cancelled";
    /// A limit passed; `data.phase` says which, `data.waiting_for` what was in the way.
    DeadlineExceeded 3003 "deadline_exceeded";
    /// It ended unseen: the daemon that ran it died, or the client that held its lease did.
    JobInterrupted 3004 "job_interrupted";
    /// A change was cut short and may have taken effect; `data.observed` says what was seen.
    OutcomeUnknown 3005 "outcome_unknown";
    /// Not found, not executable, or a version that is not supported.
    OrbctlUnavailable 4001 "orbctl_unavailable";
    /// `orbctl` failed; `data.exit_code` and `data.stderr_tail` say how.
    OrbctlFailed 4002 "orbctl_failed";
    /// A signal ended `orbctl`.
    OrbctlKilled 4003 "orbctl_killed";
    /// `orbctl` succeeded but said something that we do not know.
    OrbctlOutputUnreadable 4004 "orbctl_output_unreadable";
    /// `orbctl` itself is unhealthy, so nothing was begun; `data.retry_after_ms` says when to come back. Force passes.
    OrbctlUnhealthy 4005 "orbctl_unhealthy";
}

impl ErrorKind {
    /// Says whether the same call may succeed later without anybody mending anything.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::QueueFull
                | Self::Draining
                | Self::TooManyConnections
                | Self::Overloaded
                | Self::StoreUnavailable
                | Self::OrbctlUnhealthy
        )
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
