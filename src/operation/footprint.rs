//! What an operation locks and what it makes stale.

use std::fmt;

use orbd_host::machine::MachineName;

/// A resource that operations lock. Operations that conflict in a lane run in order of acceptance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// OrbStack as a whole.
    Fleet,
    /// OrbStack's configuration and the default machine.
    Configuration,
    /// The machine with this name.
    Machine(MachineName),
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Configuration => f.write_str("configuration"),
            Self::Machine(name) => write!(f, "machine {name}"),
        }
    }
}

/// How an operation locks a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Together with others that share it.
    Shared,
    /// With no other operation in the lane.
    Exclusive,
}

/// The lanes that an operation locks, each at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footprint(Vec<(Lane, Access)>);

impl Footprint {
    /// No lanes: the operation waits for none and blocks none.
    pub const NONE: Self = Self(Vec::new());

    /// Creates a footprint. A lane that occurs twice is kept once, with the stronger access.
    pub fn new(lanes: impl IntoIterator<Item = (Lane, Access)>) -> Self {
        let mut all: Vec<(Lane, Access)> = lanes.into_iter().collect();
        // The stronger access sorts last within a lane, and `dedup_by` keeps the first: hence the descending order.
        all.sort_by(|a, b| b.cmp(a));
        all.dedup_by(|later, kept| later.0 == kept.0);
        Self(all)
    }

    /// Returns the lanes and the access to each.
    pub fn lanes(&self) -> &[(Lane, Access)] {
        &self.0
    }

    /// Returns the machines whose lanes it has.
    pub fn machines(&self) -> impl Iterator<Item = &MachineName> {
        self.0.iter().filter_map(|(lane, _)| match lane {
            Lane::Machine(name) => Some(name),
            Lane::Fleet | Lane::Configuration => None,
        })
    }
}

/// The class of an operation; it determines which limits apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A read.
    Query,
    /// A command or a file transfer in a machine.
    Exec,
    /// A change of machines.
    Change,
    /// A change that creates a machine from an image or an archive: create or import.
    Creation,
    /// A change of OrbStack's configuration.
    Configuration,
    /// A change of OrbStack as a whole.
    Fleet,
    /// A terminal or a log that is followed: recorded, but blocks no other job.
    Session,
}

impl Class {
    /// Every class. The index is the number in the journal and in records, so classes are only added at the end.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Exec,
        Self::Change,
        Self::Creation,
        Self::Configuration,
        Self::Fleet,
        Self::Session,
    ];

    /// Returns the number of the class in the journal and in records.
    pub fn number(self) -> u8 {
        let index = Self::ALL.iter().position(|class| *class == self);
        let index = index.expect("ALL contains every class");
        u8::try_from(index).expect("fewer than 256 classes")
    }

    /// Returns the class with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Returns the name used on the wire, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Exec => "exec",
            Self::Change => "change",
            Self::Creation => "creation",
            Self::Configuration => "configuration",
            Self::Fleet => "fleet",
            Self::Session => "session",
        }
    }
}

/// Which cached data an operation makes stale.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The list of machines, and the data of these machines.
    Machines(Vec<MachineName>),
    /// The configuration, and the data of machines that includes settings.
    Configuration,
    /// Everything except the version of `orbctl`.
    Everything,
}

/// What an operation does to cached data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It makes nothing stale.
    Reads,
    /// It makes those of these machines stale that do not run, because it starts them. Only the dispatcher knows which those are.
    MayStart(Vec<MachineName>),
    /// It makes a scope stale, both when it starts and when it ends.
    Changes(Scope),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn a_footprint_names_each_lane_once_with_the_stronger_access() {
        let lane = Lane::Machine(name("a"));
        let print = Footprint::new([(lane.clone(), Access::Shared), (lane.clone(), Access::Exclusive)]);
        assert_eq!(print.lanes(), [(lane, Access::Exclusive)]);
    }
}
