//! The stored format of entries and their frames. A format that was released is never changed: variants are only added at the
//! end; any other change requires a new version in the file's header.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contents::{AcceptedJob, ENTRY_MAX, Entry, JournalError, MAGIC, Process, Starting};
use crate::job::JobId;
use crate::operation::{Access, Class, Lane};

/// Size of a frame before the entry's body: checksum, salt, length.
pub(super) const FRAME_HEADER: usize = 12;

/// Format version 1, written since 0.1.0.
#[derive(Serialize, Deserialize)]
pub(super) enum StoredV1 {
    IdsReserved {
        up_to: u64,
    },
    Accepted {
        job: u64,
        operation: Vec<u8>,
        client: String,
        accepted_ms: u64,
        queue_timeout_ms: Option<u64>,
        run_timeout_ms: Option<u64>,
    },
    Starting {
        job: u64,
        marker: String,
        lanes: Vec<(LaneV1, bool)>,
        verb: String,
        machine: Option<String>,
        class: u8,
        detached: bool,
    },
    Started {
        job: u64,
        process: ProcessV1,
        owner: Option<ProcessV1>,
    },
    Ended {
        job: u64,
    },
    Closed {
        next_id: u64,
    },
    Uncertain {
        job: u64,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct ProcessV1 {
    pid: u32,
    start_time: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(super) enum LaneV1 {
    Fleet,
    Configuration,
    Machine(String),
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Entry> for StoredV1 {
    fn from(entry: &Entry) -> Self {
        match entry {
            Entry::Accepted(accepted) => Self::Accepted {
                job: accepted.job.0,
                operation: accepted.operation.clone(),
                client: accepted.client.clone(),
                accepted_ms: accepted.accepted_ms,
                queue_timeout_ms: accepted.queue_timeout.map(to_ms),
                run_timeout_ms: accepted.run_timeout.map(to_ms),
            },
            Entry::Starting(starting) => Self::Starting {
                job: starting.job.0,
                marker: starting.marker.clone(),
                lanes: starting.lanes.iter().map(stored_lane).collect(),
                verb: starting.verb.clone(),
                machine: starting.machine.as_ref().map(|name| name.as_str().to_owned()),
                class: starting.class.number(),
                detached: starting.detached,
            },
            Entry::Started { job, process, owner } => Self::Started {
                job: job.0,
                process: stored_process(process),
                owner: owner.as_ref().map(stored_process),
            },
            Entry::Ended { job } => Self::Ended { job: job.0 },
        }
    }
}

fn stored_process(process: &Process) -> ProcessV1 {
    ProcessV1 {
        pid: process.pid,
        start_time: process.start_time.clone(),
    }
}

fn stored_lane((lane, access): &(Lane, Access)) -> (LaneV1, bool) {
    let lane = match lane {
        Lane::Fleet => LaneV1::Fleet,
        Lane::Configuration => LaneV1::Configuration,
        Lane::Machine(name) => LaneV1::Machine(name.as_str().to_owned()),
    };
    (lane, *access == Access::Exclusive)
}

pub(super) enum ParsedEntry {
    Entry(Entry),
    IdsReserved(u64),
    Closed(u64),
    Uncertain(JobId),
    /// An intact entry that this version does not know.
    Unknown,
}

impl StoredV1 {
    fn read(self) -> Option<ParsedEntry> {
        Some(match self {
            Self::IdsReserved { up_to } => ParsedEntry::IdsReserved(up_to),
            Self::Closed { next_id } => ParsedEntry::Closed(next_id),
            Self::Uncertain { job } => ParsedEntry::Uncertain(JobId(job)),
            Self::Accepted {
                job,
                operation,
                client,
                accepted_ms,
                queue_timeout_ms,
                run_timeout_ms,
            } => ParsedEntry::Entry(Entry::Accepted(AcceptedJob {
                job: JobId(job),
                operation,
                client,
                accepted_ms,
                queue_timeout: queue_timeout_ms.map(Duration::from_millis),
                run_timeout: run_timeout_ms.map(Duration::from_millis),
            })),
            Self::Starting {
                job,
                marker,
                lanes,
                verb,
                machine,
                class,
                detached,
            } => ParsedEntry::Entry(Entry::Starting(Starting {
                job: JobId(job),
                marker,
                lanes: lanes.into_iter().map(read_lane).collect::<Option<_>>()?,
                verb,
                machine: match machine {
                    Some(name) => Some(name.parse().ok()?),
                    None => None,
                },
                class: Class::from_number(class)?,
                detached,
            })),
            Self::Started { job, process, owner } => ParsedEntry::Entry(Entry::Started {
                job: JobId(job),
                process: read_process(process),
                owner: owner.map(read_process),
            }),
            Self::Ended { job } => ParsedEntry::Entry(Entry::Ended { job: JobId(job) }),
        })
    }
}

fn read_process(ProcessV1 { pid, start_time }: ProcessV1) -> Process {
    Process { pid, start_time }
}

fn read_lane((lane, exclusive): (LaneV1, bool)) -> Option<(Lane, Access)> {
    let lane = match lane {
        LaneV1::Fleet => Lane::Fleet,
        LaneV1::Configuration => Lane::Configuration,
        LaneV1::Machine(name) => Lane::Machine(name.parse().ok()?),
    };
    Some((
        lane,
        if exclusive {
            Access::Exclusive
        } else {
            Access::Shared
        },
    ))
}

/// Encodes the frame of an entry. Every frame repeats the salt of its file, so that bytes which a caller puts into an operation
/// cannot be mistaken for an entry, and entries can still be parsed if the file's header is damaged.
pub(super) fn frame(salt: u32, stored: &StoredV1) -> Result<Vec<u8>, JournalError> {
    let mut frame =
        postcard::to_extend(stored, vec![0; FRAME_HEADER]).expect("encoding an entry in memory succeeds");
    let bytes = frame.len() - FRAME_HEADER;
    if bytes > ENTRY_MAX {
        return Err(JournalError::TooLarge { bytes });
    }
    let length = u32::try_from(bytes).expect("bytes is at most ENTRY_MAX");
    frame[4..8].copy_from_slice(&salt.to_le_bytes());
    frame[8..12].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    Ok(frame)
}

/// Computes a checksum that includes the format's name, so that no frame of another version is valid.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(MAGIC);
    hasher.update(bytes);
    hasher.finalize()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Parses the frame at the start of `bytes`. Returns the entry and the frame's length; `None` if the frame is invalid.
pub(super) fn read_frame(salt: u32, bytes: &[u8]) -> Option<(ParsedEntry, usize)> {
    // The salt is compared first: a search through damaged bytes then costs one comparison per byte, not a checksum.
    if word(bytes, 4)? != salt {
        return None;
    }
    let length = length_of(bytes)?;
    if length == 0 || length > ENTRY_MAX {
        return None;
    }
    let end = FRAME_HEADER + length;
    if checksum(bytes.get(4..end)?) != word(bytes, 0)? {
        return None;
    }
    // The checksum is right, so this is not damage.
    let entry = match postcard::take_from_bytes::<StoredV1>(&bytes[FRAME_HEADER..end]) {
        Ok((stored, [])) => stored.read().unwrap_or(ParsedEntry::Unknown),
        _ => ParsedEntry::Unknown,
    };
    Some((entry, end))
}

/// Returns the body length recorded in the frame at the start of `bytes`.
pub(super) fn length_of(bytes: &[u8]) -> Option<usize> {
    usize::try_from(word(bytes, 8)?).ok()
}

/// Finds the salt of a file whose header is damaged: the one that covers most bytes of intact frames. `None` if no frame is
/// intact.
pub(super) fn find_salt(bytes: &[u8]) -> Option<u32> {
    let mut found: BTreeMap<u32, usize> = BTreeMap::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let frame = word(rest, 4).and_then(|salt| Some((salt, read_frame(salt, rest)?.1)));
        at += match frame {
            Some((salt, length)) => {
                *found.entry(salt).or_default() += length;
                length
            }
            None => 1,
        };
    }
    found
        .into_iter()
        .max_by_key(|(_, length)| *length)
        .map(|(salt, _)| salt)
}
