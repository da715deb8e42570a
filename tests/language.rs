//! The language of the source: words that make a reader stop do not occur in comments, log lines and errors, and a test's name fits a line.
//!
//! A word is listed with what to write instead. The lists are short on purpose: they keep out habits that the tree once had, and are no
//! substitute for reading.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest name of a test.
const TEST_NAME_MAX: usize = 80;

/// Words that do not occur in comments and strings of programs, and what to write instead.
const BANNED: [(&str, &str); 19] = [
    ("whoever", "name the caller, the client or the user"),
    ("nobody", "no client, no caller; or say what happens"),
    ("somebody", "a client, a caller"),
    ("anybody", "any client, any caller"),
    ("everybody", "all clients, all callers"),
    ("sick", "unhealthy"),
    ("sickness", "outage"),
    ("illness", "health problem"),
    ("ailing", "unhealthy"),
    ("mend", "fix, repair"),
    ("mends", "fixes, repairs"),
    ("mended", "fixed, repaired"),
    ("anew", "again"),
    ("hurry", "reset the backoff"),
    ("farewell", "shutdown"),
    ("steward", "supervisor"),
    ("heirloom", "handoff"),
    ("is told", "receives, gets; or say who sends it"),
    ("of it it", "rewrite the sentence"),
];

/// Folders whose programs are read.
const READ: [&str; 7] = [
    "src",
    "proto/src",
    "clients/orbd-client",
    "clients/orbd-ctl",
    "clients/orbd-host",
    "clients/python/src",
    "clients/pyinfra-orbd/src",
];

#[test]
fn comments_and_messages_use_plain_words() {
    let mut breaches = Vec::new();
    for (path, text) in sources(&READ, &["rs", "py"]) {
        if path.contains("simulation") || path.ends_with("/tests.rs") {
            continue;
        }
        // What tests say is for those who work on them.
        let program = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in program.lines().enumerate() {
            let prose = prose_of(line);
            for (word, instead) in BANNED {
                if has_word(&prose, word) {
                    breaches.push(format!("{path}:{}: \"{word}\": {instead}", number + 1));
                }
            }
        }
    }
    report("words that make a reader stop", &breaches);
}

#[test]
fn names_of_tests_fit_a_line() {
    let mut breaches = Vec::new();
    let folders = [
        "src",
        "clients/orbd-client",
        "clients/orbd-ctl",
        "clients/orbd-host",
        "clients/pyinfra-orbd/tests",
        "proto/src",
        "tests",
        "benches",
    ];
    for (path, text) in sources(&folders, &["rs", "py"]) {
        for name in tests_of(&text, Path::new(&path).extension().is_some_and(|it| it == "py")) {
            if name.len() > TEST_NAME_MAX {
                breaches.push(format!("{path}: {name} has {} characters", name.len()));
            }
        }
    }
    report("tests with names that are too long", &breaches);
}

#[test]
fn the_checks_find_what_they_look_for() {
    assert!(has_word("a Nobody waits", "nobody"));
    assert!(!has_word("homesickness", "sick"));
    assert!(has_word("orbctl is sick.", "sick"));
    assert_eq!(prose_of("let sick = 1; // it waits"), " it waits");
    assert_eq!(prose_of("say(\"orbctl is sick\");"), "orbctl is sick ");
    let rust =
        "#[test]\nfn one() {}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\nfn three() {}\n";
    assert_eq!(tests_of(rust, false), ["one", "two"]);
    assert_eq!(tests_of("def test_it(a: int) -> None:\n", true), ["test_it"]);
}

/// Returns the comment of a line and the contents of its string literals. A line inside of a longer string has no quotes and counts as
/// code; such strings are rare.
fn prose_of(line: &str) -> String {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") || trimmed.starts_with('#') || trimmed.starts_with("\"\"\"") {
        return trimmed.to_owned();
    }
    let mut prose = String::new();
    let mut is_quoted = false;
    let mut characters = line.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' if is_quoted => drop(characters.next()),
            '"' => {
                is_quoted = !is_quoted;
                if !is_quoted {
                    prose.push(' ');
                }
            }
            '/' if !is_quoted && line[at..].starts_with("//") => return prose + &line[at + 2..],
            _ if is_quoted => prose.push(character),
            _ => {}
        }
    }
    prose
}

fn has_word(prose: &str, word: &str) -> bool {
    let prose = prose.to_lowercase();
    let is_part = |character: Option<char>| character.is_some_and(|it| it.is_alphanumeric() || it == '_');
    prose.match_indices(word).any(|(at, _)| {
        !is_part(prose[..at].chars().next_back()) && !is_part(prose[at + word.len()..].chars().next())
    })
}

/// Returns the names of the tests in a file.
fn tests_of(text: &str, is_python: bool) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_marked = is_python;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
            is_marked = true;
        }
        let function = if is_python { "def " } else { "fn " };
        let Some((_, rest)) = line.split_once(function).filter(|_| is_marked) else {
            continue;
        };
        let name = rest.split('(').next().unwrap_or_default();
        if !is_python {
            is_marked = false;
        }
        if !is_python || name.starts_with("test_") {
            names.push(name);
        }
    }
    names
}

/// Returns the files below these folders that have one of these endings, with their names from the root of the repository.
fn sources(folders: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let root = programs::root();
    let mut files = Vec::new();
    for folder in folders {
        visit(&root.join(folder), endings, &mut files);
    }
    files.sort();
    assert!(!files.is_empty(), "there is something to read");
    let name = |path: &Path| {
        path.strip_prefix(root)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned()
    };
    files
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).expect("a readable file")))
        .collect()
}

fn visit(folder: &Path, endings: &[&str], files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            visit(&path, endings, files);
        } else if path
            .extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|it| endings.contains(&it))
        {
            files.push(path);
        }
    }
}

fn report(what: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{what}:\n  {}", breaches.join("\n  "));
}
