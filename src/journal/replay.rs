//! Replays the entries of a journal file into the state of its jobs.

use std::collections::BTreeMap;

use super::contents::{AcceptedJob, Entry, InFlight, Process, Recovered, Starting};
use super::entry::{FRAME_HEADER, ParsedEntry, StoredV1, frame, length_of, read_frame};
use crate::job::JobId;

/// Returns whether the unparsable rest of the file is an entry that was being written when the process died or power was lost: it
/// is incomplete, or ends in the zeros of a block that never reached the disk.
fn is_torn(tail: &[u8]) -> bool {
    let complete = length_of(tail).is_some_and(|length| length <= tail.len() - FRAME_HEADER);
    !complete || tail.ends_with(&[0; 8])
}

/// The state after the entries read so far.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Ids below this are used or reserved.
    next_id: u64,
    closed: bool,
    pub(super) damaged: bool,
    /// Whether an intact entry is of a kind that this version does not know.
    pub(super) is_newer: bool,
    pub(super) valid: u64,
}

#[derive(Default)]
pub(super) struct Job {
    accepted: Option<AcceptedJob>,
    starting: Option<Starting>,
    process: Option<Process>,
    owner: Option<Process>,
    before_damage: bool,
    pub(super) frames: Vec<u8>,
}

impl Replay {
    /// Replays the contents of a file without its header.
    pub(super) fn read(salt: u32, bytes: &[u8]) -> Self {
        let mut replay = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            if let Some((said, length)) = read_frame(salt, &bytes[at..]) {
                replay.take(said, &bytes[at..at + length]);
                at += length;
                replay.valid = at as u64;
                continue;
            }
            let next = (at + 1..bytes.len()).find(|next| read_frame(salt, &bytes[*next..]).is_some());
            if next.is_none() && is_torn(&bytes[at..]) {
                break;
            }
            replay.damaged = true;
            for job in replay.jobs.values_mut() {
                job.before_damage = true;
            }
            let Some(next) = next else { break };
            at = next;
        }
        replay
    }

    fn take(&mut self, said: ParsedEntry, frame: &[u8]) {
        self.closed = false;
        let entry = match said {
            ParsedEntry::IdsReserved(up_to) => {
                self.next_id = self.next_id.max(up_to);
                return;
            }
            ParsedEntry::Closed(next_id) => {
                self.closed = true;
                // After an orderly end, ids that were reserved but not used are available.
                self.next_id = next_id;
                return;
            }
            ParsedEntry::Uncertain(id) => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.before_damage = true;
                    job.frames.extend_from_slice(frame);
                }
                return;
            }
            ParsedEntry::Unknown => {
                self.is_newer = true;
                return;
            }
            ParsedEntry::Entry(entry) => entry,
        };
        let id = entry.job();
        self.next_id = self.next_id.max(id.0 + 1);
        let job = match entry {
            Entry::Ended { .. } => {
                self.jobs.remove(&id);
                return;
            }
            Entry::Accepted(accepted) => {
                let job = self.jobs.entry(id).or_default();
                job.accepted = Some(accepted);
                job
            }
            Entry::Starting(starting) => {
                let job = self.jobs.entry(id).or_default();
                job.starting = Some(starting);
                job
            }
            Entry::Started { process, owner, .. } => {
                let Some(job) = self.jobs.get_mut(&id) else { return };
                job.process = Some(process);
                job.owner = owner;
                job
            }
        };
        job.frames.extend_from_slice(frame);
    }

    /// Appends an `Uncertain` entry to each job that may have started, so that the next instance also knows.
    pub(super) fn mark_uncertain(&mut self, salt: u32) {
        for (id, job) in &mut self.jobs {
            if job.before_damage && job.starting.is_none() {
                let doubt = frame(salt, &StoredV1::Uncertain { job: id.0 }).expect("below ENTRY_MAX");
                job.frames.extend(doubt);
            }
        }
    }

    pub(super) fn recovered(&self, length: u64) -> Recovered {
        let mut recovered = Recovered {
            next_id: self.next_id,
            clean: self.closed && !self.damaged && self.valid == length,
            torn_bytes: length - self.valid,
            ..Recovered::default()
        };
        for job in self.jobs.values() {
            match (&job.starting, &job.accepted) {
                (Some(starting), accepted) => recovered.in_flight.push(InFlight {
                    starting: starting.clone(),
                    process: job.process.clone(),
                    owner: job.owner.clone(),
                    accepted: accepted.clone(),
                }),
                (None, Some(accepted)) if job.before_damage => recovered.uncertain.push(accepted.clone()),
                (None, Some(accepted)) => recovered.waiting.push(accepted.clone()),
                (None, None) => {}
            }
        }
        recovered
    }
}
