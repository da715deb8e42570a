//! How much may run at once, and how much does.
//!
//! Two tiers of limits: a [`Group`] has a limit of its own (four commands in each machine, two creations), and the groups of
//! a [`Pool`] share a wider one (128 commands in all, eight changes of which two are creations). In strict mode there is one
//! pool with one place.

use std::collections::HashMap;

use crate::machine::MachineName;
use crate::operation::Class;

/// How much may wait and how much may run. Every number is at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Reads at once.
    pub queries_max: usize,
    /// Commands and transfers at once in one machine.
    pub exec_per_machine: usize,
    /// Commands and transfers at once in all machines.
    pub exec_max: usize,
    /// Changes of machines at once, creations included.
    pub changes_max: usize,
    /// Creations and imports at once.
    pub creates_max: usize,
    /// Jobs that may wait.
    pub queue_max: usize,
    /// Jobs of one client that may wait. Less than `queue_max`, so that no client fills the queue alone.
    pub queue_max_per_client: usize,
    /// One job at a time, whatever its class; sessions are not counted.
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

/// Jobs counted by class.
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

    /// Returns the number of jobs that count where one job at a time is allowed: all but sessions.
    pub fn without_sessions(&self) -> usize {
        self.total() - self.of(Class::Session)
    }

    pub(super) fn add(&mut self, class: Class) {
        self.0[class as usize] += 1;
    }

    pub(super) fn subtract(&mut self, class: Class) {
        let count = &mut self.0[class as usize];
        *count = count.checked_sub(1).expect("a counted job is taken off once");
    }
}

/// Jobs with a limit of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Query,
    /// Commands in one machine. A command that names none shares a group with others like it.
    Exec(Option<MachineName>),
    Change,
    Creation,
    Configuration,
    Fleet,
}

impl Group {
    /// Returns the group of a job; a session has none, because nothing limits sessions.
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
    /// Everything, in strict mode; empty otherwise.
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

/// The limits, and how much of them running jobs use up.
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

    /// Changes the limits. What runs beyond a lowered limit runs on; nothing joins it until enough has ended.
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
            // Counts of zero are dropped, so that machines that came and went leave nothing behind.
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
            // Their pool holds one group each, or none but their lane limits them.
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

    /// Returns the one limit that holds also for forced changes: one job at a time, if it is set and reached.
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
