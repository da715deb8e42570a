//! Index of active jobs by connection: the jobs that would be cancelled, stopped or left without their client if the connection
//! closed.
//!
//! Thousands of ended jobs are kept, and connections open and close often. The index makes a disconnect cost only the jobs attached
//! to the connection.

use std::collections::{BTreeSet, HashSet};

use crate::job::JobId;

use super::super::submission::JobSpec;

/// Active jobs by connection. A job is in the index from its acceptance to its end.
#[derive(Debug, Default)]
pub(super) struct JobsByConnection(BTreeSet<(u64, JobId)>);

impl JobsByConnection {
    /// Adds an accepted job.
    pub(super) fn enter(&mut self, spec: &JobSpec) {
        // Leases are included even if detached: only their client can report how they end.
        if !spec.detached || spec.lease.is_some() {
            self.0.insert((spec.client.connection, spec.id));
        }
    }

    /// Removes an ended job.
    pub(super) fn leave(&mut self, spec: &JobSpec) {
        self.0.remove(&(spec.client.connection, spec.id));
    }

    /// Returns the jobs attached to a connection, oldest first.
    pub(super) fn on(&self, connection: u64) -> impl Iterator<Item = JobId> {
        let all = (connection, JobId(0))..=(connection, JobId(u64::MAX));
        self.0.range(all).map(|(_, id)| *id)
    }

    /// Returns the connections that have attached jobs.
    pub(super) fn connections(&self) -> HashSet<u64> {
        self.0.iter().map(|(connection, _)| *connection).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::submission::LeaseProcesses;
    use super::*;
    use crate::clock::Moment;
    use crate::operation::{JobInfo, Query};
    use crate::sys::{ChildIdentity, StartTime};

    fn job(id: u64, connection: u64, detached: bool) -> JobSpec {
        let info = JobInfo::read(&Query::List);
        let mut spec = JobSpec::without_client(JobId(id), info, "test", detached, Moment::now());
        spec.client.connection = connection;
        spec
    }

    fn lease(id: u64, connection: u64) -> JobSpec {
        let mut spec = job(id, connection, true);
        let identity = |pid| ChildIdentity {
            pid,
            started: StartTime { at: 1, boot: 1 },
        };
        spec.lease = Some(LeaseProcesses {
            child: identity(7),
            owner: identity(6),
        });
        spec
    }

    #[test]
    fn attached_jobs_are_found_until_they_end() {
        let mut attached = JobsByConnection::default();
        let check = |attached: &JobsByConnection, connection: u64, expected: &[u64]| {
            let found: Vec<u64> = attached.on(connection).map(|id| id.0).collect();
            assert_eq!(found, expected, "on {connection}");
        };
        for spec in [job(1, 5, false), job(3, 5, false), job(2, 6, false), lease(4, 5)] {
            attached.enter(&spec);
        }
        attached.enter(&job(9, 5, true));
        check(&attached, 5, &[1, 3, 4]);
        check(&attached, 6, &[2]);
        check(&attached, 7, &[]);
        assert_eq!(attached.connections(), HashSet::from([5, 6]));
        for over in [job(1, 5, false), job(2, 6, false), lease(4, 5), job(9, 5, true)] {
            attached.leave(&over);
        }
        check(&attached, 5, &[3]);
        assert_eq!(attached.connections(), HashSet::from([5]));
        attached.leave(&job(3, 5, false));
        assert!(attached.0.is_empty(), "ended jobs leave no entries");
    }
}
