//! The error table: the only place that defines error codes.
//!
//! JSON-RPC reserves -32768 to -32000, and jsonrpsee uses part of that range. orbd's own codes are positive and grouped. Codes are added
//! and never reused.

use super::types::{ErrorData, ErrorObject};

/// Defines the table. The doc comment of a kind is its published meaning and must fit on one line.
macro_rules! kinds {
    ($(#[doc = $meaning:literal] $kind:ident $code:literal $word:literal;)*) => {
        /// The kinds of errors, each with its code, its stable name on the wire and its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorKind {
            $(#[doc = $meaning] $kind,)*
        }

        impl ErrorKind {
            /// All kinds, in the order of the published table.
            pub const ALL: [Self; [$($code),*].len()] = [$(Self::$kind),*];

            /// Returns the code on the wire.
            pub fn code(self) -> i32 {
                match self { $(Self::$kind => $code,)* }
            }

            /// Returns the stable name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word,)* }
            }

            /// Returns the published meaning.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$kind => $meaning,)* }.trim_ascii()
            }
        }
    };
}

kinds! {
    /// The request is not valid JSON.
    ParseError -32700 "parse_error";
    /// The message is JSON but not a valid request, or it exceeds a limit of the connection.
    InvalidRequest -32600 "invalid_request";
    /// A parameter is missing, unknown or invalid; `data.field` names it.
    InvalidParams -32602 "invalid_params";
    /// The method does not exist.
    MethodNotFound -32601 "method_not_found";
    /// A bug in orbd; `data.incident` identifies the line in its log.
    Internal -32603 "internal";
    /// The queue is full; retry after `data.retry_after_ms`.
    QueueFull 1001 "queue_full";
    /// The daemon, the queue or the lane is draining, or the daemon is stopping or being upgraded: new jobs are refused.
    Draining 1002 "draining";
    /// Client and daemon use different protocol versions; the message says which one to update.
    ProtocolMismatch 1003 "protocol_mismatch";
    /// The configuration of orbd is invalid; the message names the error and its line. Nothing changed.
    ConfigInvalid 1004 "config_invalid";
    /// The connection limit is reached: this connection may only call `daemon.*`. Retry after `data.retry_after_ms`.
    TooManyConnections 1005 "too_many_connections";
    /// Requests in flight and unread answers have reached the memory limit. Retry after `data.retry_after_ms`.
    Overloaded 1006 "overloaded";
    /// The metrics store is not usable at the moment; the message says why. Only metrics are affected.
    StoreUnavailable 1007 "store_unavailable";
    /// The journal cannot be written, so a detached change was refused or not started; the message says why. Attached jobs still run.
    JournalUnavailable 1008 "journal_unavailable";
    /// There is no machine with this name or id.
    MachineNotFound 2001 "machine_not_found";
    /// A machine with this name already exists.
    MachineExists 2002 "machine_exists";
    /// The state of the machine does not allow the operation; `data.machine_state` has the state.
    MachineWrongState 2003 "machine_wrong_state";
    /// There is no job with this id: it never existed, or has expired from history.
    JobNotFound 3001 "job_not_found";
    /// The job was cancelled; `data.phase` says whether it had started.
    JobCancelled 3002 "job_cancelled";
    /// A time limit passed: of waiting or of running, see `data.phase`. `data.waiting_for` says what the job waited for.
    DeadlineExceeded 3003 "deadline_exceeded";
    /// orbd did not see how the job ended, because the daemon, the owner of the lease or the channel to the machine ended; a change gets `outcome_unknown`.
    JobInterrupted 3004 "job_interrupted";
    /// A change was interrupted and may have taken effect; `data.observed` has what orbd observed afterwards.
    OutcomeUnknown 3005 "outcome_unknown";
    /// `orbctl` was not found, is not executable, or has an unsupported version.
    OrbctlUnavailable 4001 "orbctl_unavailable";
    /// `orbctl` failed; see `data.exit_code` and `data.stderr_tail`.
    OrbctlFailed 4002 "orbctl_failed";
    /// A signal that orbd did not send ended `orbctl`; `data.signal` has its number.
    OrbctlKilled 4003 "orbctl_killed";
    /// `orbctl` succeeded but printed output that orbd cannot parse.
    OrbctlOutputUnreadable 4004 "orbctl_output_unreadable";
    /// `orbctl` is unhealthy, so the operation was not started. Retry after `data.retry_after_ms`; forced operations still run.
    OrbctlUnhealthy 4005 "orbctl_unhealthy";
}

impl ErrorKind {
    /// Returns whether the same call may succeed later without any fix.
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

    /// Returns the kind with this name on the wire.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Builds an error of this kind.
    pub fn error(self, message: impl Into<String>) -> ErrorObject {
        ErrorObject {
            code: self.code(),
            message: message.into(),
            data: Some(Box::new(self.data())),
        }
    }

    /// Builds an error of this kind with the given data.
    pub fn with(self, message: impl Into<String>, data: ErrorData) -> ErrorObject {
        ErrorObject {
            code: self.code(),
            message: message.into(),
            data: Some(Box::new(data)),
        }
    }

    /// Returns the data common to all errors of this kind; the caller adds the rest.
    pub fn data(self) -> ErrorData {
        ErrorData {
            kind: self.as_str().into(),
            retryable: self.is_retryable(),
            ..ErrorData::default()
        }
    }
}

/// Builds the error for an invalid parameter. The message begins with the name of the field.
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
    fn codes_and_names_are_unique() {
        let codes: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        let words: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(
            (codes.len(), words.len()),
            (ErrorKind::ALL.len(), ErrorKind::ALL.len())
        );
    }
}
