//! The table of claims is whole, what is made from it is current, and the program that checks it sees what there is to see.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start the stand-in and the program"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

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

/// Runs the program in a home with a user of its own, and with the troubles of its `script.toml`.
fn conformance(home: &Path, words: &[&str], answers: &str) -> (Output, String) {
    let report = home.join("report.txt");
    let script = home.join("script.toml");
    let output = Command::new(programs::conformance())
        .args(words)
        .arg("--report")
        .arg(&report)
        .env("HOME", home)
        .env("USER", "janedoe")
        .env("ORBCTL_SIM_HOME", home.join("sim"))
        .env("ORBCTL_SIM_LATENCY", "0")
        .env("ORBCTL_SIM_ISOLATION", "dir")
        .env("ORBCTL_SIM_ANSWERS", answers)
        .envs(script.is_file().then_some(("ORBCTL_SIM_SCRIPT", &script)))
        .output()
        .expect("it starts");
    let text = fs::read_to_string(&report).unwrap_or_default();
    (output, text)
}

#[test]
fn the_stand_in_does_what_every_checked_claim_says() {
    let home = tempfile::tempdir().expect("a folder");
    let (output, report) = conformance(home.path(), &["--orbctl", "sim"], "");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!report.contains("DIFFERENT"), "{report}");
    let summary = report.lines().find(|line| line.contains(" same, 0 different, "));
    let same = summary.and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
    assert!(same.is_some_and(|same| same >= 75), "{report}");
}

#[test]
fn a_claim_that_is_false_is_reported_as_different() {
    let home = tempfile::tempdir().expect("a folder");
    let answers = "run-dashes=accepted,list-dashes=always";
    let (output, report) = conformance(home.path(), &[], answers);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let different: Vec<&str> = report
        .lines()
        .filter(|line| line.starts_with("DIFFERENT"))
        .collect();
    let ids = different
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap_or_default());
    assert_eq!(ids.collect::<Vec<_>>(), ["list-dashes", "run-dashes"], "{report}");
    assert!(
        report.contains("expected: refused: unknown flag `--`"),
        "{report}"
    );
}

#[test]
fn without_create_the_program_only_reads_and_reports_nothing_private() {
    let home = tempfile::tempdir().expect("a folder");
    let tool = programs::orbctl_sim();
    let sim = |words: &[&str]| {
        let mut command = Command::new(tool);
        command
            .args(words)
            .env("HOME", home.path())
            .env("USER", "janedoe")
            .env("ORBCTL_SIM_HOME", home.path().join("sim"))
            .env("ORBCTL_SIM_LATENCY", "0")
            .env("ORBCTL_SIM_ISOLATION", "dir");
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    sim(&["create", "ubuntu", "customer-db"]);
    let before = fs::read(home.path().join("sim/state.json")).expect("a state");
    // Each answer makes a check show what it saw.
    let answers = "json-keys=few,json-form=compact,banner=stderr,config-get=everything,list-dashes=always";
    let (output, report) = conformance(home.path(), &["--orbctl", tool], answers);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(report.matches("DIFFERENT").count() >= 5, "{report}");
    let ledger = fs::read_to_string(home.path().join("sim/ledger.jsonl")).expect("a ledger");
    let reads = [
        "list", "info", "status", "version", "default", "config", "ssh", "help",
    ];
    for line in ledger
        .lines()
        .filter(|line| line.contains("\"event\":\"start\""))
        .skip(1)
    {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let command = line["command"].as_str().expect("a word");
        let is_refused = ["rm", "orbd-nosuch"].contains(&command);
        assert!(reads.contains(&command) || is_refused, "{line}");
    }
    assert_eq!(
        fs::read(home.path().join("sim/state.json")).expect("a state"),
        before
    );
    // Names in a list that the program cannot read are not known to it.
    fs::write(
        home.path().join("script.toml"),
        "[[trouble]]\ncommand = \"list\"\nkind = \"list_half\"\n",
    )
    .expect("a script");
    let (output, halved) = conformance(home.path(), &["--orbctl", tool], answers);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(halved.contains("DIFFERENT    recorded  list-json\n"), "{halved}");
    let report = report + &halved;
    let id = sim(&["info", "customer-db"]);
    let id = id
        .lines()
        .find_map(|line| line.strip_prefix("ID: "))
        .expect("an id");
    let home = home.path().display().to_string();
    for private in ["customer-db", "janedoe", id, home.as_str()] {
        assert!(
            !report.contains(private),
            "'{private}' is in the report: {report}"
        );
    }
}

#[test]
fn a_missing_tool_and_an_unknown_argument_are_errors_of_their_own() {
    let home = tempfile::tempdir().expect("a folder");
    let (output, report) = conformance(home.path(), &["--orbctl", "/missing/orbctl"], "");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), report.as_str()), (Some(2), ""));
    assert_eq!(stderr, "orbd-conformance: '/missing/orbctl' is not a file\n");
    let (output, _) = conformance(home.path(), &["--creat"], "");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let answers = Path::new(programs::conformance()).with_file_name("orbd-answers");
    let output = Command::new(answers).arg("nosuch").output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr, "orbd-answers: no claim has the id 'nosuch'\n");
}
