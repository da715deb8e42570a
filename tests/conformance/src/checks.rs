//! The claims that a program can check: those that only read, and those that need machines of its own.

mod machines;
mod reads;

use crate::tool::{Done, Tool, describe_unseen};

pub use machines::{PREFIX, check_machines, own_machines, remove_machines};
pub use reads::check_reads;

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// What the claim says.
    Same,
    /// Something else.
    Different(String),
    /// Nothing, for this reason.
    Nothing(String),
}

impl Seen {
    /// Returns `Same` if it holds, else what the call did.
    fn when(holds: bool, tool: &Tool, done: &Done) -> Seen {
        if holds {
            Seen::Same
        } else {
            Seen::Different(tool.describe(done))
        }
    }

    /// The same for a call whose output is about machines of the user.
    fn when_unseen(holds: bool, done: &Done) -> Seen {
        if holds {
            Seen::Same
        } else {
            Seen::Different(describe_unseen(done))
        }
    }

    fn nothing(why: &str) -> Seen {
        Seen::Nothing(why.to_owned())
    }
}

/// The claims that were checked, in order, each with what was seen.
pub type Results = Vec<(&'static str, Seen)>;
