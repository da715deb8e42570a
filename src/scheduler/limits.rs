//! The limits on running jobs, and the counts of running jobs.
//!
//! There are two tiers of limits. A [`Group`] has a limit of its own (four commands in each machine, two creations). The groups of
//! a [`Pool`] share a wider one (128 commands in total; eight changes, of which two are creations). In strict mode there is one
//! pool with one slot.

use std::collections::HashMap;

use crate::operation::Class;
use orbd_host::machine::MachineName;

/// The limits on waiting and running jobs. Every number is at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of running reads.
    pub queries_max: usize,
    /// Maximum number of running commands and transfers in one machine.
    pub exec_per_machine: usize,
    /// Maximum number of running commands and transfers in all machines.
    pub exec_max: usize,
    /// Maximum number of running changes of machines, creations included.
    pub changes_max: usize,
    /// Maximum number of running creations and imports.
    pub creates_max: usize,
    /// Maximum number of waiting jobs.
    pub queue_max: usize,
    /// Maximum number of waiting jobs of one client. Less than `queue_max`, so that no client fills the queue alone.
    pub queue_max_per_client: usize,
    /// Run one job at a time, of any class; sessions do not count.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queries_max: 4,
            exec_per_machine: 4,
            exec_max: 128,
            changes_max: 8,
            creates_max: 2,
            queue_max: 1024,
            queue_max_per_client: 512,
            strict: false,
        }
    }
}

/// Number of jobs by class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts([usize; 7]);

impl Counts {
    /// Returns the number of jobs of one class.
    pub fn of(&self, class: Class) -> usize {
        self.0[class as usize]
    }

    /// Returns the number of jobs of all classes.
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }

    /// Returns the number of jobs that count in strict mode: all except sessions.
    pub fn without_sessions(&self) -> usize {
        self.total() - self.of(Class::Session)
    }

    pub(super) fn add(&mut self, class: Class) {
        self.0[class as usize] += 1;
    }

    pub(super) fn subtract(&mut self, class: Class) {
        let count = &mut self.0[class as usize];
        *count = count.checked_sub(1).expect("a counted job is subtracted once");
    }
}

/// Jobs that share the inner tier of limits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Query,
    /// Commands in one machine. Commands without a machine share one group.
    Exec(Option<MachineName>),
    Change,
    Creation,
    Configuration,
    Fleet,
}

impl Group {
    /// Returns the group of a job; `None` for a session, to which no limit applies.
    pub(super) fn of(class: Class, machine: Option<&MachineName>) -> Option<Self> {
        Some(match class {
            Class::Query => Self::Query,
            Class::Exec => Self::Exec(machine.cloned()),
            Class::Change => Self::Change,
            Class::Creation => Self::Creation,
            Class::Configuration => Self::Configuration,
            Class::Fleet => Self::Fleet,
            Class::Session => return None,
        })
    }
}

/// Groups that share a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool {
    Queries,
    Execs,
    Changes,
    Configuration,
    Fleet,
    /// All groups in strict mode; otherwise empty.
    Strict,
}

impl Pool {
    pub(super) const ALL: [Self; 6] = [
        Self::Fleet,
        Self::Configuration,
        Self::Changes,
        Self::Queries,
        Self::Execs,
        Self::Strict,
    ];
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// Its name in the configuration.
    pub(super) name: &'static str,
    pub(super) limit: usize,
}

/// The limits, and how much of them running jobs use.
#[derive(Debug)]
pub(super) struct Slots {
    limits: Limits,
    running: Counts,
    execs: HashMap<Option<MachineName>, usize>,
}

impl Slots {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: Counts::default(),
            execs: HashMap::new(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Replaces the limits. Jobs above a lowered limit keep running; no further job starts until the count is below the limit.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn running(&self) -> Counts {
        self.running
    }

    pub(super) fn occupy(&mut self, class: Class, machine: Option<&MachineName>) {
        self.running.add(class);
        if class == Class::Exec {
            *self.execs.entry(machine.cloned()).or_default() += 1;
        }
    }

    pub(super) fn vacate(&mut self, class: Class, machine: Option<&MachineName>) {
        self.running.subtract(class);
        if class == Class::Exec {
            // Drop counts of zero, so that deleted machines leave no entries behind.
            let key = machine.cloned();
            let left = self.execs.get(&key).expect("a running command is counted") - 1;
            if left == 0 {
                self.execs.remove(&key);
            } else {
                self.execs.insert(key, left);
            }
        }
    }

    /// Returns the pool of a group.
    pub(super) fn pool(&self, group: &Group) -> Pool {
        if self.limits.strict {
            return Pool::Strict;
        }
        match group {
            Group::Query => Pool::Queries,
            Group::Exec(_) => Pool::Execs,
            Group::Change | Group::Creation => Pool::Changes,
            Group::Configuration => Pool::Configuration,
            Group::Fleet => Pool::Fleet,
        }
    }

    /// Returns the limit of the group itself, if it is reached.
    pub(super) fn group_full(&self, group: &Group) -> Option<Reached> {
        match group {
            Group::Exec(machine) => {
                let running = self.execs.get(machine).copied().unwrap_or_default();
                reached("exec_per_machine", running, self.limits.exec_per_machine)
            }
            Group::Creation => reached(
                "creates_max",
                self.running.of(Class::Creation),
                self.limits.creates_max,
            ),
            // No limit of their own: the limit of their pool applies, or their lanes alone limit them.
            Group::Query | Group::Change | Group::Configuration | Group::Fleet => None,
        }
    }

    /// Returns the limit that the groups of a pool share, if it is reached.
    pub(super) fn pool_full(&self, pool: Pool) -> Option<Reached> {
        let Limits {
            queries_max,
            exec_max,
            changes_max,
            ..
        } = self.limits;
        match pool {
            Pool::Queries => reached("queries_max", self.running.of(Class::Query), queries_max),
            Pool::Execs => reached("exec_max", self.running.of(Class::Exec), exec_max),
            Pool::Changes => reached(
                "changes_max",
                self.running.of(Class::Change) + self.running.of(Class::Creation),
                changes_max,
            ),
            Pool::Configuration | Pool::Fleet => None,
            Pool::Strict => reached("strict", self.running.without_sessions(), 1),
        }
    }

    /// Returns the only limit that also applies to forced changes, strict mode, if it is reached.
    pub(super) fn strict_full(&self) -> Option<Reached> {
        self.limits.strict.then(|| self.pool_full(Pool::Strict)).flatten()
    }

    #[cfg(test)]
    pub(super) fn execs(&self) -> &HashMap<Option<MachineName>, usize> {
        &self.execs
    }
}

fn reached(name: &'static str, running: usize, limit: usize) -> Option<Reached> {
    (running >= limit).then_some(Reached { name, limit })
}
