//! `orbd-answers`: runs orbd's tests on a stand-in that answers an open claim in another way, once for each answer, and prints what
//! breaks.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of its own: it starts the tests, measures them and prints"
)]

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use orbd_conformance::claims::{Claim, Table};

const HELP: &str = "\
Runs orbd's tests once for each other answer to an open claim about orbctl, and prints what breaks.

Usage: orbd-answers [--ci] [--no-python] [CLAIM]...

  --ci         only the claims that `tests/claims.toml` marks for CI
  --no-python  only the Rust tests
  CLAIM        only these claims, by id

Run it in the root of the repository. Exit code 0: exactly the tests break that `tests/claims.toml` lists.
";

struct Options {
    ci: bool,
    python: bool,
    claims: Vec<String>,
}

/// The result of the tests under one answer.
struct Outcome {
    passed: usize,
    failed: BTreeSet<String>,
}

fn main() -> ExitCode {
    let mut options = Options {
        ci: false,
        python: true,
        claims: Vec::new(),
    };
    for word in env::args().skip(1) {
        match word.as_str() {
            "--ci" => options.ci = true,
            "--no-python" => options.python = false,
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            id => options.claims.push(id.to_owned()),
        }
    }
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("orbd-answers: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool, String> {
    let table = Table::built_in().map_err(|error| format!("tests/claims.toml: {error}"))?;
    for id in &options.claims {
        let claim = table
            .find(id)
            .ok_or_else(|| format!("no claim has the id '{id}'"))?;
        if claim.answers.is_empty() {
            return Err(format!("the stand-in has one answer to '{id}'"));
        }
    }
    let wanted = |claim: &&Claim| {
        let named = options.claims.is_empty() || options.claims.contains(&claim.id);
        !claim.answers.is_empty() && named && (claim.ci || !options.ci)
    };
    let mut as_listed = true;
    println!(
        "{:<22} {:<24} {:>6} {:>6}  breaks",
        "claim", "answer", "tests", "s"
    );
    for claim in table.claims.iter().filter(wanted) {
        let mut broken = BTreeSet::new();
        for answer in &claim.answers {
            let began = Instant::now();
            let outcome = tests_under(claim, answer, options)?;
            let names: Vec<&str> = outcome.failed.iter().map(String::as_str).collect();
            println!(
                "{:<22} {answer:<24} {:>6} {:>6}  {}",
                claim.id,
                outcome.passed + outcome.failed.len(),
                began.elapsed().as_secs(),
                if names.is_empty() {
                    "-".to_owned()
                } else {
                    names.join(", ")
                }
            );
            broken.extend(outcome.failed);
        }
        let listed: BTreeSet<String> = claim.breaks.iter().cloned().collect();
        for name in broken.difference(&listed) {
            as_listed = false;
            println!(
                "  NEW: {name} breaks, and `breaks` of {} does not list it",
                claim.id
            );
        }
        let is_run = |name: &&String| options.python || !name.contains(".py::");
        for name in listed.difference(&broken).filter(is_run) {
            as_listed = false;
            println!(
                "  GONE: {name} passes, although `breaks` of {} lists it",
                claim.id
            );
        }
    }
    Ok(as_listed)
}

fn tests_under(claim: &Claim, answer: &str, options: &Options) -> Result<Outcome, String> {
    let mut outcome = Outcome {
        passed: 0,
        failed: BTreeSet::new(),
    };
    if !claim.tests.is_empty() {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["test", "--quiet", "-p", "orbd-tests", "--test", "suite", "--"])
            // With names and results, one line each.
            .args(["--format", "pretty"])
            // As `make test-rust`.
            .arg("--test-threads=4")
            .args(&claim.tests);
        let text = output_of(&mut cargo, answer)?;
        let results = text
            .lines()
            .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
        let before = outcome.failed.len() + outcome.passed;
        for (name, result) in results {
            match result {
                "ok" => outcome.passed += 1,
                "FAILED" => drop(outcome.failed.insert(name.to_owned())),
                _ => {}
            }
        }
        if outcome.failed.len() + outcome.passed == before {
            return Err(format!("no test ran under {answer}: {}", last_lines(&text)));
        }
    }
    if !claim.python.is_empty() && options.python {
        let package = Path::new("clients/pyinfra-orbd");
        let python = env::current_dir()
            .map_err(|error| error.to_string())?
            .join(".venv/bin/python");
        let mut pytest = Command::new(python);
        pytest
            .args([
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-q",
                "-rfEp",
                "--no-header",
            ])
            .args(claim.python.iter().map(|file| format!("tests/{file}")))
            .current_dir(package);
        let text = output_of(&mut pytest, answer)?;
        let mut ran = false;
        for line in text.lines() {
            if let Some(test) = line.strip_prefix("PASSED tests/") {
                outcome.passed += 1;
                ran = ran || !test.is_empty();
            } else if let Some(test) = line
                .strip_prefix("FAILED tests/")
                .or_else(|| line.strip_prefix("ERROR tests/"))
            {
                let name = test.split(" - ").next().unwrap_or(test);
                outcome.failed.insert(name.to_owned());
                ran = true;
            }
        }
        if !ran {
            return Err(format!(
                "no Python test ran under {answer}: {}",
                last_lines(&text)
            ));
        }
    }
    Ok(outcome)
}

/// Runs tests under an answer; returns what they print.
fn output_of(command: &mut Command, answer: &str) -> Result<String, String> {
    let output = command
        .env("ORBCTL_SIM_ANSWERS", answer)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", Path::new(command.get_program()).display()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.stdout.is_empty() {
        text = String::from_utf8_lossy(&output.stderr).into_owned();
    }
    Ok(text)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
