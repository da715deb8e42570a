//! What is kept of one operation, and the shape in which it is stored.
//!
//! An [`OperationRecord`] holds counts, times and words, never a command line's arguments, environment or input. It is
//! stored as one version byte and a postcard body, [`StoredRecord`], converted by hand; a committed sample pins the bytes. Once a
//! release has written a version it never changes: add the next one.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::job::{Ending, Outcome};
use crate::machine::MachineName;
use crate::operation::Class;

/// The longest client name that is kept, in bytes; the rest is cut.
pub const CLIENT_NAME_MAX: usize = 128;

/// One operation, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationRecord {
    /// The job's id.
    pub id: u64,
    /// The operation's verb, as [`crate::operation::Operation::verb`] gives it.
    pub operation: Cow<'static, str>,
    /// The machine that it was chiefly about.
    pub machine: Option<MachineName>,
    /// Its class.
    pub class: Class,
    /// Who asked.
    pub client: Client,
    /// When it was accepted, wall clock, milliseconds since 1970.
    pub accepted_ms: u64,
    /// When it started, wall clock; `None` when it never did.
    pub started_ms: Option<u64>,
    /// When it ended, wall clock. History and roll-ups are ordered by this.
    pub ended_ms: u64,
    /// How long it waited, by the monotonic clock, in microseconds.
    pub wait_us: u64,
    /// How long it ran, by the monotonic clock, in microseconds; zero when it never started.
    pub run_us: u64,
    /// How its child stopped; `None` when there was none or its end was not seen.
    pub ending: Option<Ending>,
    /// What that meant.
    pub outcome: OutcomeWord,
    /// The exit code of the child or of the guest command.
    pub exit_code: Option<i32>,
    /// Bytes given to it as input.
    pub bytes_in: u64,
    /// Bytes that it wrote to both streams.
    pub bytes_out: u64,
    /// Whether it shared another's invocation.
    pub joined: bool,
    /// For a change: whether it was needed.
    pub changed: Option<bool>,
}

/// Who asked for an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The name given at hello; empty when none was.
    pub name: Arc<str>,
    /// Its process, where the socket told.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
}

/// [`Outcome`] as one word. Part of a stored shape: variants keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OutcomeWord {
    /// It was done; also a guest command with an exit code of its own.
    Succeeded,
    /// It could not be done.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// A limit passed.
    Expired,
    /// The daemon died over it.
    Interrupted,
    /// A change that was cut short.
    Unknown,
}

impl OutcomeWord {
    /// Every word, in the order of declaration.
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

    /// Reads the word that [`Self::as_str`] gives.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }

    /// Says whether it counts into the error rate. A cancelled job ended as somebody wished.
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

/// Why stored bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// There are no bytes.
    #[error("the stored record is empty")]
    Empty,
    /// A newer orbd wrote it, or nobody did.
    #[error("the stored record has the unknown version {0}")]
    Version(u8),
    /// The body does not fit its version.
    #[error("the stored record does not fit its version")]
    Body,
}

const VERSION: u8 = 1;

/// The body behind [`VERSION`].
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
}

#[derive(Serialize, Deserialize)]
enum StoredEnding {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    Stopped,
}

/// Numbers of the classes in stored shapes. Only ever added to.
const CLASSES: [Class; 7] = [
    Class::Query,
    Class::Exec,
    Class::Change,
    Class::Creation,
    Class::Configuration,
    Class::Fleet,
    Class::Session,
];

impl OperationRecord {
    /// Encodes it as it is stored.
    pub(super) fn encode(&self) -> Vec<u8> {
        let class = CLASSES
            .iter()
            .position(|class| *class == self.class)
            .expect("every class has a number");
        let stored = StoredRecord {
            id: self.id,
            operation: Cow::Borrowed(&self.operation),
            machine: self.machine.as_ref().map(|name| Cow::Borrowed(name.as_str())),
            class: u8::try_from(class).expect("there are few classes"),
            client_name: Cow::Borrowed(cut(&self.client.name, CLIENT_NAME_MAX)),
            client_pid: self.client.pid,
            client_uid: self.client.uid,
            accepted_ms: self.accepted_ms,
            // Differences are signed: the wall clock may be set back while a job waits.
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
        };
        postcard::to_extend(&stored, vec![VERSION]).expect("a record always encodes into memory")
    }

    /// Decodes what [`Self::encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes {
            [] => Err(RecordError::Empty),
            [VERSION, body @ ..] => {
                let (stored, rest) =
                    postcard::take_from_bytes::<StoredRecord<'_>>(body).map_err(|_| RecordError::Body)?;
                if rest.is_empty() {
                    stored.into_record()
                } else {
                    Err(RecordError::Body)
                }
            }
            [version, ..] => Err(RecordError::Version(*version)),
        }
    }
}

impl StoredRecord<'_> {
    fn into_record(self) -> Result<OperationRecord, RecordError> {
        let machine = self.machine.map(|name| name.parse::<MachineName>()).transpose();
        let at = |after: i64| self.accepted_ms.wrapping_add(after.cast_unsigned());
        Ok(OperationRecord {
            id: self.id,
            operation: Cow::Owned(self.operation.into_owned()),
            machine: machine.map_err(|_| RecordError::Body)?,
            class: *CLASSES.get(usize::from(self.class)).ok_or(RecordError::Body)?,
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
        })
    }
}

/// Cuts a text to at most `max` bytes, at a character.
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

    /// A record with something in every field; tests change what they are about.
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
            changed: Some(true),
        }
    }

    /// `sample(7)` as it is stored.
    const SAMPLE: &[u8] = include_bytes!("../../tests/data/metrics/record-v1.bin");

    #[test]
    fn a_stored_record_equals_the_committed_sample_in_both_directions() {
        assert_eq!(sample(7).encode(), SAMPLE);
        assert_eq!(OperationRecord::decode(SAMPLE), Ok(sample(7)));
    }

    #[test]
    fn a_record_survives_being_stored_also_over_a_clock_set_back() {
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
    fn bytes_that_are_no_record_are_refused_with_the_reason() {
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
    fn a_long_client_name_is_cut_at_a_character() {
        let mut record = sample(1);
        record.client.name = "ä".repeat(100).into();
        let stored = OperationRecord::decode(&record.encode()).expect("readable");
        assert_eq!(&*stored.client.name, "ä".repeat(64));
    }

    #[test]
    fn each_outcome_has_a_word_of_its_own() {
        for outcome in OutcomeWord::ALL {
            assert_eq!(OutcomeWord::from_word(outcome.as_str()), Some(outcome));
        }
        assert_eq!(OutcomeWord::from_word("perhaps"), None);
    }
}
