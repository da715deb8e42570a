//! Reads `tests/claims.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

/// The table of claims.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Short names of sources, each with what it is.
    pub sources: BTreeMap<String, String>,
    /// The claims, in the order of the file.
    #[serde(rename = "claim")]
    pub claims: Vec<Claim>,
}

/// One thing that orbd assumes about `orbctl`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Lower case words with dashes; unique.
    pub id: String,
    /// The arguments of `orbctl`, and the circumstances if they matter.
    pub command: String,
    /// The output, exit code or effect that orbd expects. For an open claim, the likely one.
    pub expect: String,
    /// How sure this is.
    pub confidence: Confidence,
    /// Where it comes from: a key of `sources`, `gh#N` (an issue of OrbStack), `index:N` (a file of an index of public repositories)
    /// or `data:FILE` (a recording in `tests/data/orbctl`). An open claim may have none.
    pub source: Vec<String>,
    /// Files of orbd that rest on it.
    pub code: Vec<String>,
    /// Open claims: the other answers that the stand-in can give, as `ORBCTL_SIM_ANSWERS` takes them.
    #[serde(default)]
    pub answers: Vec<String>,
    /// Open claims without `answers`: why the stand-in needs none.
    pub no_answer: Option<String>,
    /// Open claims with `answers`: what orbd does under another answer.
    pub otherwise: Option<String>,
    /// Filters of the Rust test suite that run under each other answer.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Files with tests of the connector that run under each other answer.
    #[serde(default)]
    pub python: Vec<String>,
    /// Tests that fail under another answer, because what they prove is not true then.
    #[serde(default)]
    pub breaks: Vec<String>,
    /// Whether CI runs the other answers.
    #[serde(default)]
    pub ci: bool,
}

/// How sure a claim is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Output of the real tool is public.
    Recorded,
    /// Its vendor or its users say so, or their code depends on it.
    Stated,
    /// It follows from what is recorded or stated.
    Inferred,
    /// No source settles it, or sources conflict.
    Open,
}

impl Confidence {
    /// All of them, the surest first.
    pub const ALL: [Self; 4] = [Self::Recorded, Self::Stated, Self::Inferred, Self::Open];
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Recorded => "recorded",
            Self::Stated => "stated",
            Self::Inferred => "inferred",
            Self::Open => "open",
        })
    }
}

/// The file, as it was when the program was built.
const TEXT: &str = include_str!("../../claims.toml");

impl Table {
    /// Reads the table that is built in.
    ///
    /// # Errors
    ///
    /// The file is not what this module describes.
    pub fn built_in() -> Result<Table, toml::de::Error> {
        toml::from_str(TEXT)
    }

    /// Returns the claim with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.id == id)
    }

    /// Returns what is wrong with the table in itself, one line each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut ids = BTreeSet::new();
        let mut used = BTreeSet::new();
        for claim in &self.claims {
            let mut fault = |text: &str| faults.push(format!("{}: {text}", claim.id));
            if !ids.insert(&claim.id) {
                fault("the id is used twice");
            }
            if claim.code.is_empty() {
                fault("nothing rests on it");
            }
            let is_open = claim.confidence == Confidence::Open;
            if claim.source.is_empty() && !is_open {
                fault("it has no source");
            }
            for source in &claim.source {
                let is_number = |text: &str| text.parse::<u64>().is_ok();
                let known = match source.split_once(['#', ':']) {
                    Some(("gh" | "index", number)) => is_number(number),
                    Some(("data", _)) => true,
                    _ => self.sources.contains_key(source),
                };
                if !known {
                    fault(&format!("its source '{source}' is not in [sources]"));
                }
                used.insert(source);
            }
            match (is_open, claim.answers.is_empty(), claim.no_answer.is_some()) {
                (true, true, true) | (true, false, false) | (false, true, false) => {}
                (true, ..) => fault("an open claim has either `answers` or `no_answer`"),
                (false, ..) => fault("only an open claim has answers"),
            }
            let runs = !claim.tests.is_empty() || !claim.python.is_empty();
            if claim.answers.is_empty() == (runs || claim.otherwise.is_some()) {
                fault("a claim with `answers`, and no other, has `otherwise` and tests");
            }
        }
        let unused = self.sources.keys().filter(|source| !used.contains(source));
        faults.extend(unused.map(|source| format!("source '{source}' is not used")));
        faults
    }
}
