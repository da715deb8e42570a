//! The report: each claim with what was seen, and nothing about the Mac or its user.

use std::fmt::Write as _;

use crate::checks::{Results, Seen};
use crate::claims::{Confidence, Table};

/// The report of a run.
pub struct Report {
    text: String,
    different: usize,
    unknown: Vec<&'static str>,
}

impl Report {
    /// Makes the report; `subject` says what was checked.
    #[must_use]
    pub fn new(table: &Table, results: &Results, subject: &str) -> Report {
        let find = |id: &str| {
            results
                .iter()
                .find(|(checked, _)| *checked == id)
                .map(|(_, seen)| seen)
        };
        let (mut same, mut different, mut unchecked) = (0, 0, 0);
        let mut text = format!("orbd's claims about orbctl, checked against {subject}\n\n");
        for claim in &table.claims {
            let (word, detail) = match find(&claim.id) {
                Some(Seen::Same) => {
                    same += 1;
                    ("same", String::new())
                }
                Some(Seen::Different(what)) => {
                    different += 1;
                    (
                        "DIFFERENT",
                        format!("\n    expected: {}\n    seen: {what}", claim.expect),
                    )
                }
                Some(Seen::Nothing(why)) => {
                    unchecked += 1;
                    ("not checked", format!("  ({why})"))
                }
                None => {
                    unchecked += 1;
                    continue;
                }
            };
            let _ = writeln!(text, "{word:<12} {:<9} {}{detail}", claim.confidence, claim.id);
        }
        let _ = writeln!(
            text,
            "\n{same} same, {different} different, {unchecked} not checked, of {} claims",
            table.claims.len()
        );
        for confidence in Confidence::ALL {
            let of = || table.claims.iter().filter(|claim| claim.confidence == confidence);
            let agree = of().filter(|claim| find(&claim.id) == Some(&Seen::Same)).count();
            let differ = of().filter(|claim| matches!(find(&claim.id), Some(Seen::Different(_))));
            let _ = writeln!(
                text,
                "  {confidence}: {agree} same, {} different, of {}",
                differ.count(),
                of().count()
            );
        }
        let unknown = results.iter().map(|(id, _)| *id);
        Report {
            text,
            different,
            unknown: unknown.filter(|id| table.find(id).is_none()).collect(),
        }
    }

    /// Returns the text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns whether the tool does what every checked claim says.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.different == 0
    }

    /// Returns checks that belong to no claim.
    #[must_use]
    pub fn unknown(&self) -> &[&'static str] {
        &self.unknown
    }
}
