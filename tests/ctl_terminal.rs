//! Output on a terminal, made by `script`: it fits the width, nothing is cut off, and colours can be turned off.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the command line as a shell would"
)]

use std::process::{Command, Stdio};

use crate::ctl_suite::{ctl, ok};
use crate::support::World;

/// A machine name of the greatest length that every known OrbStack version accepts.
const LONG: &str = "a-very-long-machine-name-that-somebody-has-chosen-for-reasons-1";

/// Calls that print more than one line, and some that fail.
const SHOWN: [&str; 17] = [
    "list",
    "list --running",
    "info LONG",
    "info nobody",
    "jobs",
    "jobs --all",
    "job show 999",
    "queue",
    "cache",
    "metrics",
    "metrics --by machine",
    "metrics --by both",
    "metrics history",
    "metrics counters",
    "daemon status",
    "doctor",
    "events",
];

/// Runs all calls one after the other on a terminal of this width; returns the screen.
fn shown(world: &World, columns: usize, colours: bool) -> String {
    let inner = ctl(world, &[]);
    let program = inner.get_program().to_str().expect("text");
    let calls: Vec<String> = SHOWN
        .iter()
        .map(|words| format!("'{program}' {}", words.replace("LONG", LONG)))
        .collect();
    let line = format!("stty cols {columns} rows 50; {}; true", calls.join("; "));
    let output = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
        .env_clear()
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm-256color")
        .env("NO_COLOR", if colours { "" } else { "1" })
        .stdin(Stdio::null())
        .output()
        .expect("util-linux has `script`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").replace('\r', "")
}

/// Removes escape sequences that set colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut pieces = text.split("\u{1b}[");
    plain.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        plain.push_str(piece.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

#[track_caller]
fn fits(text: &str, columns: usize) {
    for line in text.lines() {
        // A name or path that is too long for any line stays in one piece.
        let has_room = line.split(' ').all(|word| word.chars().count() + 24 < columns);
        assert!(
            line.chars().count() <= columns || !has_room,
            "{columns} columns, but {}: {line}\nin\n{text}",
            line.chars().count()
        );
    }
}

#[test]
fn output_fits_the_terminal_with_zero_one_and_thirty_machines() {
    let mut names: Vec<String> = (1..30).map(|number| format!("m{number}")).collect();
    names.push(LONG.to_owned());
    for count in [0, 1, 30] {
        let names: Vec<&str> = names.iter().rev().take(count).map(String::as_str).collect();
        let world = World::with_machines(&names);
        if count > 0 {
            ok(&world, &["run", "-m", LONG, "true"]);
            ok(&world, &["restart", LONG]);
        }
        for columns in [60, 80, 120] {
            let text = shown(&world, columns, false);
            assert!(!text.contains('\u{1b}'), "NO_COLOR: {text:?}");
            fits(&text, columns);
            // Nothing is cut off: a long name appears whole, and wrapped in the column of a table.
            assert!(text.contains(LONG), "{columns}: {text}");
            for name in &names {
                assert!(
                    text.contains(&name[..name.len().min(12)]),
                    "{columns}: {name} is not in {text}"
                );
            }
        }
    }
}

#[test]
fn colours_are_printed_on_terminals_only() {
    let world = World::with_machines(&["a"]);
    let text = shown(&world, 80, true).replace("info nobody", "");
    assert!(text.contains("\u{1b}["), "{text}");
    assert!(plain(&text).contains("running"), "{text}");
    fits(&plain(&text), 80);
    assert!(!ok(&world, &["list"]).contains('\u{1b}'));
    assert!(!ok(&world, &["doctor"]).contains('\u{1b}'));
}
