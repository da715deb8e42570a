//! Makes `docs/claims.md` from the table.

use std::fmt::Write as _;

use crate::claims::{Claim, Confidence, Table};

/// The page, from the repository's root.
pub const PAGE: &str = "docs/claims.md";

const BEGINNING: &str = "\
# What orbd assumes about `orbctl`

<!-- Generated from tests/claims.toml: `make bless` rewrites this page. -->

To compare these assumptions with the tool on your Mac, run `make conformance ORBCTL=real` in a checkout. It only reads, takes at most a
minute, and writes a report without names, paths or addresses. With `ARGS=--create` it also makes, changes and deletes two machines
`orbd-conformance-*`.

OrbStack is closed source and orbd has never run on it. Everything that orbd knows comes from public recordings and reports. **Recorded**:
output of the real tool is public. **Stated**: its vendor or its users say so. **Inferred**: it follows from the former. **Open**: no
source settles it, or sources conflict; the likely answer stands here, and the simulator gives the
[others](orbctl-sim.md#answers-to-open-questions). `make test-answers` runs orbd's tests once with each of them.

`gh#N` is issue N of OrbStack's issue tracker, `index:N` a file in an index of public repositories, `data:FILE` a recording in
`tests/data/orbctl`.
";

/// Returns the whole page.
#[must_use]
pub fn page(table: &Table) -> String {
    let mut page = String::from(BEGINNING);
    page.push_str("\n| confidence | claims |\n|---|---|\n");
    let of = |confidence| {
        table
            .claims
            .iter()
            .filter(move |claim| claim.confidence == confidence)
    };
    for confidence in Confidence::ALL {
        let _ = writeln!(page, "| {confidence} | {} |", of(confidence).count());
    }
    page.push_str(
        "\n## Open claims\n\nWith the other answers that the simulator gives, and what orbd does under them.\n\n\
         | claim | `orbctl` | likely | other answers | what orbd does then |\n|---|---|---|---|---|\n",
    );
    for claim in of(Confidence::Open) {
        let answers: Vec<String> = claim.answers.iter().map(|answer| format!("`{answer}`")).collect();
        let then = claim.otherwise.as_ref().or(claim.no_answer.as_ref());
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            claim.id,
            command(claim),
            cell(&claim.expect),
            if answers.is_empty() {
                "-".to_owned()
            } else {
                answers.join(", ")
            },
            cell(then.map_or("", String::as_str)),
        );
    }
    page.push_str(
        "\n### Tests that break\n\nUnder another answer these tests fail, because what they prove is not true then. All others that \
         `make test-answers`\nruns pass.\n\n| claim | tests |\n|---|---|\n",
    );
    for claim in of(Confidence::Open).filter(|claim| !claim.breaks.is_empty()) {
        let tests: Vec<String> = claim.breaks.iter().map(|test| format!("`{test}`")).collect();
        let _ = writeln!(page, "| {} | {} |", claim.id, tests.join(", "));
    }
    for (confidence, title) in [
        (Confidence::Recorded, "Recorded"),
        (Confidence::Stated, "Stated"),
        (Confidence::Inferred, "Inferred"),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| claim | `orbctl` | expected | source |\n|---|---|---|---|\n"
        );
        for claim in of(confidence) {
            let _ = writeln!(page, "{}", row(claim));
        }
    }
    page.push_str("\n## Sources\n\n| name | what it is |\n|---|---|\n");
    for (name, what) in &table.sources {
        let _ = writeln!(page, "| {name} | {} |", cell(what));
    }
    page
}

fn row(claim: &Claim) -> String {
    format!(
        "| {} | {} | {} | {} |",
        claim.id,
        command(claim),
        cell(&claim.expect),
        claim.source.join(", ")
    )
}

fn command(claim: &Claim) -> String {
    let text = cell(&claim.command);
    if text.starts_with("any") || text.starts_with("where") {
        text
    } else {
        format!("`{text}`")
    }
}

/// Escapes what would end a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
