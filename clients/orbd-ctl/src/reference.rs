//! Tests that `docs/cli.md` matches the command line: its reference is generated from the clap definitions.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use orbd_proto::errors::ErrorKind;

use crate::cli::Cli;
use crate::environment::variable;
use crate::error::CliError;

/// The page, and the markers around its generated part. Text outside the markers is written by hand.
const PAGE: &str = "docs/cli.md";
const BEGIN: &str = "<!-- Generated from the clap definitions: `make bless` updates this part. -->\n";
const END: &str = "<!-- End of the generated part. -->\n";

/// Generates the reference of all verbs.
fn reference() -> String {
    let mut grammar = Cli::command().disable_help_subcommand(true);
    grammar.build();
    let mut text = String::from(
        "\n### Global options\n\nThese go before or after any verb. `--help` works with every verb, `--version` only before a verb.\n\n",
    );
    table(
        &mut text,
        grammar
            .get_arguments()
            .filter(|argument| argument.is_global_set()),
    );
    for verb in grammar.get_subcommands() {
        chapter(&mut text, verb, 3);
    }
    text.push('\n');
    text
}

fn chapter(text: &mut String, command: &Command, level: usize) {
    if command.is_hide_set() {
        return;
    }
    let mut usage = command.clone().render_usage().to_string();
    if let Some(words) = usage.strip_prefix("Usage: ") {
        // clap indents the second and later usage lines.
        usage = words.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    }
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n{} {name}\n\n{about}.", "#".repeat(level));
    let aliases: Vec<String> = command
        .get_visible_aliases()
        .map(|alias| format!("`{alias}`"))
        .collect();
    if !aliases.is_empty() {
        let _ = write!(text, " Also {}.", aliases.join(", "));
    }
    let _ = write!(text, "\n\n```text\n{usage}\n```\n");
    let own = |argument: &&Arg| {
        !argument.is_global_set() && !argument.is_hide_set() && argument.get_id().as_str() != "help"
    };
    if command.get_arguments().any(|argument| own(&argument)) {
        text.push('\n');
        table(text, command.get_arguments().filter(own));
    }
    if let Some(help) = command.get_after_help() {
        let help = help.to_string();
        let (prose, examples) = help.split_once("Examples:\n").unwrap_or((&help, ""));
        for (before, part, after) in [
            ("\n", prose.trim(), "\n"),
            ("\n```text\n", examples.trim_end(), "\n```\n"),
        ] {
            if !part.is_empty() {
                let lines: Vec<&str> = part
                    .lines()
                    .map(|line| line.strip_prefix("  ").unwrap_or(line))
                    .collect();
                text.extend([before, &lines.join("\n"), after]);
            }
        }
    }
    for verb in command.get_subcommands() {
        chapter(text, verb, level + 1);
    }
}

fn table<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    text.push_str("| | |\n|---|---|\n");
    for argument in arguments {
        let name = argument.to_string();
        let short = argument
            .get_short()
            .map_or_else(String::new, |short| format!("`-{short}`, "));
        let aliases = argument.get_visible_aliases().unwrap_or_default();
        let aliases = aliases.iter().fold(String::new(), |mut text, alias| {
            let _ = write!(text, ", `--{alias}`");
            text
        });
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let values = argument.get_possible_values();
        let values: Vec<&str> = values
            .iter()
            .map(clap::builder::PossibleValue::get_name)
            .collect();
        let takes_value = argument.get_action().takes_values();
        let values = if values.is_empty() || !takes_value {
            String::new()
        } else {
            format!(": {}", values.join(", "))
        };
        let default = argument.get_default_values().first().filter(|_| takes_value);
        let default = default.map_or_else(String::new, |value| {
            format!(" [default: {}]", value.to_string_lossy())
        });
        // An unescaped bar would end the table cell.
        let cell = |text: String| text.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| {} | {} |",
            cell(format!("{short}`{name}`{aliases}")),
            cell(format!("{help}{values}{default}"))
        );
    }
}

#[test]
fn the_reference_matches_the_clap_definitions() {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(&path).expect("the page exists");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a begin marker");
    let (committed, after) = rest.split_once(END).expect("the page has an end marker");
    let generated = reference();
    if variable("ORBD_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{generated}{END}{after}"))
            .expect("the page is written");
        return;
    }
    assert!(
        committed == generated,
        "{PAGE} does not match the clap definitions; run `make bless` to update it"
    );
}

/// Returns the root of the source tree.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the path, relative to the root, and the text of every document that names verbs.
fn documents() -> Vec<(String, String)> {
    let root = root();
    let folders = [
        "",
        "docs",
        "docs/pyinfra",
        "docs/decisions",
        "launchd",
        "proto",
        "clients/python",
        "clients/pyinfra-orbd",
    ];
    let mut found = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "md") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((
                    path.strip_prefix(&root).expect("below").display().to_string(),
                    text,
                ));
            }
        }
    }
    found
}

#[test]
fn every_verb_that_a_document_names_exists() {
    let mut grammar = Cli::command();
    grammar.build();
    let is_verb = |word: &str| {
        let is_flag = word.starts_with('-') || !word.starts_with(|letter: char| letter.is_ascii_lowercase());
        is_flag
            || grammar
                .get_subcommands()
                .any(|verb| verb.get_name() == word || verb.get_visible_aliases().any(|alias| alias == word))
    };
    let (mut named, mut unknown) = (0, Vec::new());
    for (document, text) in documents() {
        let mut is_code = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            let begins = line.strip_prefix("orbd-ctl ").filter(|_| is_code);
            for rest in begins.into_iter().chain(line.split("`orbd-ctl ").skip(1)) {
                let word = rest
                    .split([' ', '`', '|', '\\', ',', ')', ';'])
                    .next()
                    .unwrap_or_default();
                named += 1;
                if !is_verb(word) {
                    unknown.push(format!("{document}: orbd-ctl {word}"));
                }
            }
        }
    }
    assert!(named > 150, "{named}");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn the_page_lists_the_exit_code_of_every_error_kind() {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(path).expect("the page exists");
    for kind in ErrorKind::ALL {
        let error = kind.error("sorry");
        let word = error.data.as_ref().expect("has data").kind.clone();
        let code = CliError::Refused(error).exit();
        let row = page.lines().find(|line| line.starts_with(&format!("| {code} |")));
        let row = row.unwrap_or_else(|| panic!("no row for {code}"));
        assert!(
            row.contains(&format!("`{word}`")),
            "the page does not list {word} under exit code {code}"
        );
    }
}

#[test]
fn the_command_table_names_every_verb() {
    let path = root().join(PAGE);
    let page = std::fs::read_to_string(path).expect("the page exists");
    let (map, _) = page.split_once(BEGIN).expect("the page has a begin marker");
    let rows: String = map.lines().filter(|line| line.starts_with("| `")).collect();
    let mut grammar = Cli::command();
    grammar.build();
    for verb in grammar.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = verb.get_name();
        let is_named = rows.split(['`', ' ', ',', '|']).any(|word| word == name);
        assert!(
            is_named || name == "help",
            "{name} is in no row of the command table"
        );
    }
}
