//! The record of one operation, and its stored format.
//!
//! An [`OperationRecord`] holds counts, times, names and outcomes, but never a command's arguments, environment or input. It is stored as
//! one version byte and a postcard body, [`StoredRecord`]. The conversion is written by hand, and a sample in `tests/data` pins the bytes.
//! Never change a version that a release has written: add a new version.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::job::{Ending, Outcome};
use crate::operation::Class;
use orbd_host::machine::MachineName;

/// Maximum length of a stored client name, in bytes. Longer names are truncated.
pub const CLIENT_NAME_MAX: usize = 128;

/// The record of one ended operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRecord {
    /// Id of the job.
    pub id: u64,
    /// Verb of the operation, a name of [`crate::operation::Verb`].
    pub operation: Cow<'static, str>,
    /// The operation's primary machine; `None` if it concerns no machine.
    pub machine: Option<MachineName>,
    /// Class of the operation.
    pub class: Class,
    /// The client that requested the operation.
    pub client: Client,
    /// Wall-clock time at which the job was accepted, in Unix milliseconds.
    pub accepted_ms: u64,
    /// Wall-clock time at which the job started, in Unix milliseconds; `None` if it never started.
    pub started_ms: Option<u64>,
    /// Wall-clock time at which the job ended, in Unix milliseconds. History and roll-ups are ordered by this.
    pub ended_ms: u64,
    /// Time from acceptance to start, by the monotonic clock, in microseconds.
    pub wait_us: u64,
    /// Time from start to end, by the monotonic clock, in microseconds; zero if the job never started.
    pub run_us: u64,
    /// How the child process ended; `None` if there was none or its end was not observed.
    pub ending: Option<Ending>,
    /// Outcome of the job.
    pub outcome: OutcomeWord,
    /// Exit code of the child process or of the guest's command; `None` if there is none.
    pub exit_code: Option<i32>,
    /// Bytes of input passed to the command.
    pub bytes_in: u64,
    /// Bytes that the command wrote to stdout and stderr.
    pub bytes_out: u64,
    /// Whether the job joined another job's invocation.
    pub joined: bool,
    /// Whether a resident channel carried out the command.
    pub in_channel: bool,
    /// Whether a change changed anything; `None` if that is unknown and for other operations.
    pub changed: Option<bool>,
    /// Label that the client gave the job.
    pub label: Option<Arc<str>>,
}

/// The client that requested an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The name that the client gave in `daemon.hello`; empty if it gave none.
    pub name: Arc<str>,
    /// Process id of the client; `None` if the socket did not provide it.
    pub pid: Option<u32>,
    /// User id of the client.
    pub uid: u32,
}

/// [`Outcome`] without its details. Part of the stored format: never reorder the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutcomeWord {
    /// The operation succeeded. Includes a guest's command that ran and returned a nonzero exit code.
    Succeeded,
    /// It ended with a [`Failure`](crate::job::Failure).
    Failed,
    /// The job was cancelled.
    Cancelled,
    /// A time limit passed.
    Expired,
    /// The daemon crashed or was killed while the job was unfinished.
    Interrupted,
    /// A change was cut short, so its effect is unknown.
    Unknown,
}

impl OutcomeWord {
    /// All variants, in the order of declaration.
    pub const ALL: [Self; 6] = [
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Interrupted,
        Self::Unknown,
    ];

    /// Returns the word used on the wire, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Interrupted => "interrupted",
            Self::Unknown => "unknown",
        }
    }

    /// Parses a word that [`Self::as_str`] returns; `None` if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }

    /// Returns whether this outcome counts as an error. A cancelled job does not, because its end was requested.
    pub fn is_error(self) -> bool {
        !matches!(self, Self::Succeeded | Self::Cancelled)
    }
}

impl From<&Outcome> for OutcomeWord {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Succeeded(_) => Self::Succeeded,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Cancelled(_) => Self::Cancelled,
            Outcome::Expired(_) => Self::Expired,
            Outcome::Interrupted => Self::Interrupted,
            Outcome::Unknown(_) => Self::Unknown,
        }
    }
}

/// Why stored bytes could not be decoded as a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// There are no bytes.
    #[error("the stored record is empty")]
    Empty,
    /// A newer orbd wrote the record, or it is damaged.
    #[error("the stored record has the unknown version {0}")]
    Version(u8),
    /// The body is not valid for its version.
    #[error("the stored record cannot be decoded")]
    Body,
}

const VERSION: u8 = 1;

/// Version of a record with a label: the body of [`VERSION`], then the label.
const VERSION_LABELLED: u8 = 2;

/// The body that follows the version byte.
#[derive(Serialize, Deserialize)]
struct StoredRecord<'a> {
    id: u64,
    operation: Cow<'a, str>,
    machine: Option<Cow<'a, str>>,
    class: u8,
    client_name: Cow<'a, str>,
    client_pid: Option<u32>,
    client_uid: u32,
    accepted_ms: u64,
    started_after_ms: Option<i64>,
    ended_after_ms: i64,
    wait_us: u64,
    run_us: u64,
    ending: Option<StoredEnding>,
    outcome: OutcomeWord,
    exit_code: Option<i32>,
    bytes_in: u64,
    bytes_out: u64,
    joined: bool,
    changed: Option<bool>,
    in_channel: bool,
}

#[derive(Serialize, Deserialize)]
enum StoredEnding {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Stopped,
}

impl OperationRecord {
    /// Encodes the record in its stored format.
    pub(super) fn encode(&self) -> Vec<u8> {
        let stored = StoredRecord {
            id: self.id,
            operation: Cow::Borrowed(&self.operation),
            machine: self.machine.as_ref().map(|name| Cow::Borrowed(name.as_str())),
            class: self.class.number(),
            client_name: Cow::Borrowed(cut(&self.client.name, CLIENT_NAME_MAX)),
            client_pid: self.client.pid,
            client_uid: self.client.uid,
            accepted_ms: self.accepted_ms,
            // The differences are signed, because the wall clock can be set back while a job waits or runs.
            started_after_ms: self
                .started_ms
                .map(|ms| ms.wrapping_sub(self.accepted_ms).cast_signed()),
            ended_after_ms: self.ended_ms.wrapping_sub(self.accepted_ms).cast_signed(),
            wait_us: self.wait_us,
            run_us: self.run_us,
            ending: self.ending.map(|ending| match ending {
                Ending::Exited(code) => StoredEnding::Exited(code),
                Ending::Signalled(signal) => StoredEnding::Signalled(signal),
                Ending::TimedOut => StoredEnding::TimedOut,
                Ending::Stopped => StoredEnding::Stopped,
            }),
            outcome: self.outcome,
            exit_code: self.exit_code,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            joined: self.joined,
            changed: self.changed,
            in_channel: self.in_channel,
        };
        let encoded = match &self.label {
            None => postcard::to_extend(&stored, vec![VERSION]),
            Some(label) => postcard::to_extend(&stored, vec![VERSION_LABELLED])
                .and_then(|bytes| postcard::to_extend(&**label, bytes)),
        };
        encoded.expect("encoding a record in memory succeeds")
    }

    /// Decodes the output of [`Self::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes {
            [] => Err(RecordError::Empty),
            [version @ (VERSION | VERSION_LABELLED), body @ ..] => {
                let (stored, rest) =
                    postcard::take_from_bytes::<StoredRecord<'_>>(body).map_err(|_| RecordError::Body)?;
                let (label, rest) = if *version == VERSION_LABELLED {
                    let (label, rest) =
                        postcard::take_from_bytes::<&str>(rest).map_err(|_| RecordError::Body)?;
                    (Some(Arc::from(label)), rest)
                } else {
                    (None, rest)
                };
                if rest.is_empty() {
                    stored.into_record(label)
                } else {
                    Err(RecordError::Body)
                }
            }
            [version, ..] => Err(RecordError::Version(*version)),
        }
    }
}

impl StoredRecord<'_> {
    fn into_record(self, label: Option<Arc<str>>) -> Result<OperationRecord, RecordError> {
        let machine = self.machine.map(|name| name.parse::<MachineName>()).transpose();
        let at = |after: i64| self.accepted_ms.wrapping_add(after.cast_unsigned());
        Ok(OperationRecord {
            id: self.id,
            operation: Cow::Owned(self.operation.into_owned()),
            machine: machine.map_err(|_| RecordError::Body)?,
            class: Class::from_number(self.class).ok_or(RecordError::Body)?,
            client: Client {
                name: Arc::from(&*self.client_name),
                pid: self.client_pid,
                uid: self.client_uid,
            },
            accepted_ms: self.accepted_ms,
            started_ms: self.started_after_ms.map(at),
            ended_ms: at(self.ended_after_ms),
            wait_us: self.wait_us,
            run_us: self.run_us,
            ending: self.ending.map(|ending| match ending {
                StoredEnding::Exited(code) => Ending::Exited(code),
                StoredEnding::Signalled(signal) => Ending::Signalled(signal),
                StoredEnding::TimedOut => Ending::TimedOut,
                StoredEnding::Stopped => Ending::Stopped,
            }),
            outcome: self.outcome,
            exit_code: self.exit_code,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            joined: self.joined,
            changed: self.changed,
            in_channel: self.in_channel,
            label,
        })
    }
}

/// Truncates a text to at most `max` bytes, at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a record with a value in every field. Tests change the fields that they need.
    pub(in crate::metrics) fn sample(id: u64) -> OperationRecord {
        OperationRecord {
            id,
            operation: Cow::Borrowed("start"),
            machine: Some("web".parse().expect("valid")),
            class: Class::Change,
            client: Client {
                name: "deploy".into(),
                pid: Some(4711),
                uid: 501,
            },
            accepted_ms: 1_763_650_000_000,
            started_ms: Some(1_763_650_000_020),
            ended_ms: 1_763_650_001_250,
            wait_us: 20_123,
            run_us: 1_230_456,
            ending: Some(Ending::Exited(0)),
            outcome: OutcomeWord::Succeeded,
            exit_code: Some(0),
            bytes_in: 12,
            bytes_out: 34_567,
            joined: false,
            in_channel: true,
            changed: Some(true),
            label: None,
        }
    }

    /// `sample(7)` in its stored format.
    const SAMPLE: &[u8] = include_bytes!("../../tests/data/metrics/record-v1.bin");

    #[test]
    fn sample_record_encodes_to_and_decodes_from_the_committed_bytes() {
        assert_eq!(sample(7).encode(), SAMPLE);
        assert_eq!(OperationRecord::decode(SAMPLE), Ok(sample(7)));
    }

    #[test]
    fn label_is_stored_after_the_body_of_version_1() {
        let mut record = sample(7);
        record.label = Some("Install packages".into());
        let encoded = record.encode();
        assert_eq!(encoded[0], 2);
        assert_eq!(encoded[1..SAMPLE.len()], SAMPLE[1..]);
        assert_eq!(OperationRecord::decode(&encoded), Ok(record));
        let cut = &encoded[..encoded.len() - 1];
        assert_eq!(OperationRecord::decode(cut), Err(RecordError::Body));
    }

    #[test]
    fn record_that_ended_before_it_was_accepted_by_the_wall_clock_reads_back() {
        let mut record = sample(1);
        record.machine = None;
        record.started_ms = None;
        record.ended_ms = record.accepted_ms - 5;
        record.ending = Some(Ending::Signalled(9));
        record.outcome = OutcomeWord::Unknown;
        record.changed = None;
        assert_eq!(OperationRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn invalid_bytes_are_refused_with_the_reason() {
        assert_eq!(OperationRecord::decode(&[]), Err(RecordError::Empty));
        assert_eq!(OperationRecord::decode(&[9, 1, 2]), Err(RecordError::Version(9)));
        for end in 1..SAMPLE.len() {
            assert_eq!(
                OperationRecord::decode(&SAMPLE[..end]),
                Err(RecordError::Body),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn long_client_name_is_truncated_at_a_character_boundary() {
        let mut record = sample(1);
        record.client.name = "ä".repeat(100).into();
        let stored = OperationRecord::decode(&record.encode()).expect("readable");
        assert_eq!(&*stored.client.name, "ä".repeat(64));
    }

    #[test]
    fn every_outcome_parses_from_its_word() {
        for outcome in OutcomeWord::ALL {
            assert_eq!(OutcomeWord::from_word(outcome.as_str()), Some(outcome));
        }
        assert_eq!(OutcomeWord::from_word("perhaps"), None);
    }
}
