//! The table of claims is whole, and what is made from it is current.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use orbd_conformance::claims::Table;
use orbd_conformance::page::{PAGE, page};

use crate::published::is_blessing;

fn table() -> Table {
    Table::built_in().expect("tests/claims.toml")
}

#[test]
fn the_table_of_claims_has_no_fault() {
    assert_eq!(table().faults(), [""; 0]);
}

#[test]
fn files_that_claims_name_exist() {
    let root = programs::root();
    let mut missing = Vec::new();
    for claim in table().claims {
        let data = claim
            .source
            .iter()
            .filter_map(|source| source.strip_prefix("data:"));
        let data = data.map(|file| format!("tests/data/orbctl/{file}"));
        let python = claim
            .python
            .iter()
            .map(|file| format!("clients/pyinfra-orbd/tests/{file}"));
        let named = claim.code.iter().cloned().chain(data).chain(python);
        missing.extend(
            named
                .filter(|file| !root.join(file).is_file())
                .map(|file| format!("{}: {file}", claim.id)),
        );
    }
    assert_eq!(missing, [""; 0]);
}

/// Every answer of a claim is one that the stand-in gives and not its first, which it gives without being asked. Every question of the
/// stand-in belongs to a claim, except those that only tests need.
#[test]
fn claims_and_the_stand_in_have_the_same_answers() {
    #[expect(clippy::disallowed_methods, reason = "a test starts the stand-in")]
    let output = Command::new(programs::orbctl_sim())
        .arg("sim-answers")
        .output()
        .expect("it starts");
    let questions = String::from_utf8(output.stdout).expect("text");
    let known: BTreeSet<String> = questions
        .lines()
        .filter_map(|line| line.split_once('='))
        .flat_map(|(question, answers)| {
            let others = answers.split('|').skip(1);
            others.map(move |answer| format!("{question}={answer}"))
        })
        .collect();
    let table = table();
    let claimed: BTreeSet<String> = table
        .claims
        .iter()
        .flat_map(|claim| claim.answers.clone())
        .collect();
    let unknown: Vec<_> = claimed.difference(&known).collect();
    assert!(unknown.is_empty(), "the stand-in does not give {unknown:?}");
    // One shell of a kind is enough for a claim, and which `sh` a machine has is no claim about `orbctl`.
    let unclaimed: Vec<_> = known
        .difference(&claimed)
        .filter(|answer| !answer.starts_with("run-shell=") && !answer.starts_with("sh="))
        .collect();
    assert!(unclaimed.is_empty(), "no claim names {unclaimed:?}");
}

/// `ORBD_BLESS=1` rewrites the page.
#[test]
fn the_page_of_claims_is_generated_from_the_table() {
    let path = programs::root().join(PAGE);
    let generated = page(&table());
    if is_blessing() {
        fs::write(&path, &generated).expect("the page is written");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "{PAGE} differs from tests/claims.toml; `make bless` rewrites it"
    );
}
