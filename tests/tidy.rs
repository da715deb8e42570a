//! Project rules, as far as a program can check them. Each failure message gives the reason for its rule.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the library that each module may use. A module uses only modules above it; each exception gives its
/// reason.
///
/// `machine`, `operation` and `job` are plain data. Scheduler and cache decide, so they use no external resource. Each
/// external resource (time, kernel, files, orbctl, the journal's file, the store) has one module that uses it, and that
/// module decides nothing. The dispatcher coordinates. `server` uses the dispatcher's handle, never a module that decides
/// or that runs `orbctl`.
const MAY_USE: [(&str, &[&str]); 28] = [
    // The crate `orbd-host`, which the compiler keeps below all others.
    ("machine", &[]),
    ("token", &[]),
    ("caller_env", &[]),
    ("run_command", &[]),
    ("locate", &[]),
    ("nearest", &[]),
    ("config", &["nearest"]),
    ("error_chain", &[]),
    ("release", &[]),
    ("last_program", &[]),
    ("operation", &["machine", "token", "caller_env"]),
    ("job", &["machine"]),
    ("clock", &[]),
    ("sys", &[]),
    ("scheduler", &["machine", "operation", "job"]),
    // `Moment` is passed in; the cache computes ages from it and never reads the clock.
    ("cache", &["machine", "operation", "clock"]),
    // An event carries the time at which it was noticed; this module never reads the clock.
    ("events", &["machine", "operation", "job", "clock", "cache"]),
    ("circuit_breaker", &["job", "clock"]),
    ("spool", &["clock"]),
    // Output goes directly from the pipes into a spool. `sys` identifies a child for the dispatcher.
    (
        "orbctl",
        &[
            "machine",
            "caller_env",
            "run_command",
            "locate",
            "operation",
            "job",
            "clock",
            "sys",
            "spool",
        ],
    ),
    ("upgrade", &["release", "sys"]),
    (
        "journal",
        &["error_chain", "machine", "operation", "job", "clock", "sys"],
    ),
    ("metrics", &["machine", "operation", "job", "clock", "sys"]),
    (
        "dispatcher",
        &[
            "error_chain",
            "machine",
            // How variables reach the guest, which the configuration says.
            "run_command",
            // A constant that the clients know too.
            "config",
            "operation",
            "job",
            "clock",
            "sys",
            "scheduler",
            "cache",
            "events",
            "circuit_breaker",
            "spool",
            "orbctl",
            "journal",
            "metrics",
        ],
    ),
    // Besides the handle: readers of spools and queries of metrics need no decision, so they bypass the dispatcher's
    // task. `cache::CacheKey` is written by `cache.status`.
    (
        "server",
        &[
            "machine",
            // The path of the lock next to the socket.
            "config",
            "operation",
            "job",
            "clock",
            "sys",
            "cache",
            "events",
            "spool",
            "metrics",
            "dispatcher",
            // Each connection makes the daemon check whether its program was replaced.
            "upgrade",
        ],
    ),
    ("logging", &["clock", "config"]),
    (
        "daemon",
        &[
            "last_program",
            "locate",
            // Whether channels are wanted.
            "run_command",
            "error_chain",
            "clock",
            "sys",
            "scheduler",
            "spool",
            "orbctl",
            "journal",
            "metrics",
            "dispatcher",
            "upgrade",
            "server",
            "logging",
            "config",
        ],
    ),
    (
        "main",
        &[
            "config", "daemon", "logging", "metrics", "server", "sys", "upgrade",
        ],
    ),
];

/// Words that must not occur in modules that only decide: their tests control time and events.
const IMPURE: [&str; 12] = [
    "tokio",
    "tracing",
    "std::fs",
    "std::io",
    "::connect(",
    "std::process",
    "std::thread",
    "std::env",
    "Moment::now",
    "Instant::now",
    "SystemTime::now",
    ".await",
];

/// Files that may name `serde`: the wire, what is stored, and the parsing of orbctl's answers. Other types are written
/// and read by hand, so that renaming a field changes no format.
const SERDE: [&str; 5] = [
    "src/server/",
    "src/metrics/",
    "src/journal",
    "src/dispatcher/stored.rs",
    "src/orbctl/output.rs",
];

#[test]
fn modules_use_only_modules_allowed_to_them() {
    let mut breaches = Vec::new();
    for file in production() {
        let module = file.module();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            if module != "lib" {
                breaches.push(format!("{}: {module} has no row in MAY_USE", file.name));
            }
            continue;
        };
        for used in file.uses() {
            if used != module && !allowed.contains(&used.as_str()) {
                breaches.push(format!("{} uses {used}", file.name));
            }
        }
    }
    report("uses that MAY_USE in tests/tidy.rs does not allow", &breaches);
}

#[test]
fn module_table_has_no_cycle() {
    let known: Vec<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < known.len() {
        let next = MAY_USE
            .iter()
            .find(|(name, uses)| !placed.contains(name) && uses.iter().all(|used| placed.contains(used)));
        let (name, _) = next.expect("the modules of MAY_USE can be put in an order");
        placed.insert(name);
    }
}

#[test]
fn deciding_modules_are_pure() {
    let deciding = [
        "machine",
        "operation",
        "job",
        "scheduler",
        "cache",
        "circuit_breaker",
        "events",
    ];
    let mut breaches = Vec::new();
    for file in production()
        .iter()
        .filter(|file| deciding.contains(&file.module()))
    {
        for word in IMPURE {
            if let Some(line) = file.line_with(word) {
                breaches.push(format!("{}:{line} says {word}", file.name));
            }
        }
    }
    report(
        "modules that should only decide, but use something external",
        &breaches,
    );
}

/// The parts of the dispatcher's state. Their tests control time and need no runtime.
const PARTS: [&str; 8] = [
    "drains",
    "health",
    "hold",
    "idle",
    "jobs.rs",
    "jobs/",
    "read_table",
    "watch",
];

#[test]
fn parts_of_the_dispatcher_only_decide() {
    let impure = ["tracing", "Moment::now", ".await", "spawn(", "std::fs", "State<"];
    let mut breaches = Vec::new();
    for file in production() {
        let within = file.name.strip_prefix("src/dispatcher/");
        if !within.is_some_and(|name| PARTS.iter().any(|part| name.starts_with(part))) {
            continue;
        }
        for word in impure {
            if let Some(line) = file.line_with(word) {
                breaches.push(format!("{}:{line} says {word}", file.name));
            }
        }
    }
    report(
        "parts of the dispatcher's state that do more than decide",
        &breaches,
    );
}

#[test]
fn each_external_resource_is_used_in_one_place() {
    let places: [(&str, &[&str]); 5] = [
        // sled may panic, hang or abort, and its threads never end, so it runs in the helper process.
        ("sled::", &["src/metrics/store.rs"]),
        // The helper, the preflight and the next instance run the daemon's own binary, not orbctl.
        (
            "Command::new",
            &[
                "src/orbctl/process.rs",
                "src/metrics/helper.rs",
                "src/upgrade/preflight.rs",
                "src/upgrade/handoff.rs",
            ],
        ),
        ("Instant::now", &["src/clock.rs"]),
        ("SystemTime::now", &["src/clock.rs"]),
        // Everywhere else, codes are looked up by error kind.
        ("-3260", &[]),
    ];
    let mut breaches = Vec::new();
    for file in production() {
        for (word, allowed) in places {
            if !allowed.contains(&file.name.as_str())
                && let Some(line) = file.line_with(word)
            {
                breaches.push(format!("{}:{line} says {word}", file.name));
            }
        }
    }
    report(
        "external resources used outside the module that owns them",
        &breaches,
    );
}

#[test]
fn only_orbctl_builds_arguments_for_orbctl() {
    let breaches: Vec<String> = production()
        .iter()
        .filter(|file| file.module() != "orbctl" && file.text.contains("Invocation::new("))
        .map(|file| format!("{} makes an invocation of its own arguments", file.name))
        .collect();
    report("arguments that orbctl::argv did not build", &breaches);
}

#[test]
fn serde_is_used_only_at_the_edges() {
    let breaches: Vec<String> = production()
        .iter()
        .filter(|file| !SERDE.iter().any(|place| file.name.starts_with(place)))
        .filter_map(|file| {
            file.line_with("serde")
                .map(|line| format!("{}:{line} names serde", file.name))
        })
        .collect();
    report(
        "serde used away from the edges (see SERDE in tests/tidy.rs)",
        &breaches,
    );
}

/// A reader of the log searches for a job or a client, and must find all of its lines.
#[test]
fn log_lines_about_a_job_name_its_client() {
    let mut breaches = Vec::new();
    for file in production() {
        for (at, _) in file.text.match_indices("tracing::") {
            let call = file.text[at..].split(");").next().unwrap_or_default();
            if call.contains("!(") && call.contains("job_id") && !call.contains("client") {
                let line = file.text[..at].lines().count();
                breaches.push(format!("{}:{line}", file.name));
            }
        }
    }
    report(
        "lines about a job without its client (use `about_job!`)",
        &breaches,
    );
}

#[test]
fn every_module_begins_with_a_doc_comment() {
    let breaches: Vec<String> = sources()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(name, _)| format!("{name} does not open with //!"))
        .collect();
    report("modules without a doc comment at the top", &breaches);
}

#[test]
fn comments_have_no_marks_of_unfinished_work() {
    let marks = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];
    report(
        "marks of unfinished work in comments; use an issue instead",
        &lines_with(&marks),
    );
}

#[test]
fn files_name_no_development_machine() {
    let marks = [concat!("/wo", "rk/"), concat!("far", "m-")];
    report(
        "names of the machine on which this was written",
        &lines_with(&marks),
    );
}

#[test]
fn every_test_file_is_part_of_the_suite() {
    let main = read("tests/main.rs");
    let breaches: Vec<String> = sources()
        .filter_map(|(name, _)| {
            name.strip_prefix("tests/")?
                .strip_suffix(".rs")
                .map(str::to_owned)
        })
        // `programs` is the library of this package.
        .filter(|name| !name.contains('/') && name != "main" && name != "programs")
        .filter(|name| !main.lines().any(|line| line == format!("mod {name};")))
        .map(|name| format!("tests/{name}.rs is not a module of tests/main.rs"))
        .collect();
    report("tests that never run", &breaches);
}

#[test]
fn links_between_documents_resolve() {
    let mut breaches = Vec::new();
    for (name, text) in tracked().filter(|(name, _)| has_ending(name, &["md"])) {
        let folder = root()
            .join(&name)
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        for target in links(&text) {
            let path = target.split('#').next().unwrap_or_default();
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:");
            if is_elsewhere {
                continue;
            }
            let wanted = if path.is_empty() {
                root().join(&name)
            } else {
                folder.join(path)
            };
            let Ok(data) = wanted.metadata() else {
                breaches.push(format!("{name}: {target}"));
                continue;
            };
            if let Some((_, heading)) = target.split_once('#')
                && !(data.is_file()
                    && headings(&fs::read_to_string(&wanted).unwrap_or_default()).contains(heading))
            {
                breaches.push(format!("{name}: {target} (no such heading)"));
            }
        }
    }
    report("links that do not resolve", &breaches);
}

#[test]
fn changelog_has_a_section_for_this_version() {
    let text = read("CHANGELOG.md");
    let version = concat!("## [", env!("CARGO_PKG_VERSION"), "]");
    assert!(
        text.lines()
            .any(|line| line.starts_with("## [Unreleased]") || line.starts_with(version)),
        "CHANGELOG.md needs a section `[Unreleased]` or {version}"
    );
}

#[test]
fn every_decision_is_in_the_index() {
    let index = read("docs/decisions/README.md");
    let breaches: Vec<String> = tracked()
        .filter_map(|(name, _)| name.strip_prefix("docs/decisions/").map(str::to_owned))
        .filter(|name| name != "README.md" && !index.contains(&format!("({name})")))
        .collect();
    report("decisions missing from the index", &breaches);
}

/// The command line starts within milliseconds, and an edit of the daemon does not rebuild it.
#[test]
fn command_line_links_neither_the_daemon_nor_its_libraries() {
    let lock: toml::Table = toml::from_str(&read("Cargo.lock")).expect("a lock file");
    let packages = lock["package"].as_array().expect("packages");
    let dependencies = |name: &str| -> Vec<String> {
        let found = packages
            .iter()
            .find(|package| package["name"].as_str() == Some(name));
        let list = found.and_then(|package| package.get("dependencies")?.as_array());
        let names = list.into_iter().flatten().filter_map(toml::Value::as_str);
        // "name", or "name version" if there are several versions.
        names
            .filter_map(|name| name.split(' ').next().map(str::to_owned))
            .collect()
    };
    let mut linked = BTreeSet::new();
    let mut open = vec!["orbd-ctl".to_owned()];
    while let Some(name) = open.pop() {
        if linked.insert(name.clone()) {
            open.extend(dependencies(&name));
        }
    }
    assert!(linked.contains("orbd-host"), "the walk works");
    let breaches: Vec<String> = ["orbd", "sled", "tokio", "hyper", "jsonrpsee", "jsonrpsee-server"]
        .into_iter()
        .filter(|name| linked.contains(*name))
        .map(str::to_owned)
        .collect();
    report("what orbd-ctl must not link", &breaches);
}

// ---- helpers ----------------------------------------------------------------------------------------------------------------

fn report(what: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{what}:\n  {}", breaches.join("\n  "));
}

fn root() -> &'static Path {
    programs::root()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn has_ending(name: &str, endings: &[&str]) -> bool {
    Path::new(name)
        .extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|it| endings.contains(&it))
}

/// Returns every text file of the tree, with its path from the root. Skips what tools generate.
fn tracked() -> impl Iterator<Item = (String, String)> {
    let mut files = Vec::new();
    visit(root(), &mut files);
    files.sort();
    files.into_iter().filter_map(|path| {
        let name = path.strip_prefix(root()).ok()?.to_string_lossy().into_owned();
        Some((name, fs::read_to_string(&path).ok()?))
    })
}

fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
    let left_behind = [
        "target",
        "build",
        "dist",
        "__pycache__",
        ".git",
        ".demo",
        ".hypothesis",
    ];
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_left_behind = left_behind.contains(&name.as_str())
            || name.starts_with(".venv")
            || name.ends_with("_cache")
            || name.ends_with(".egg-info");
        if is_left_behind {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => visit(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

/// Returns every Rust file.
fn sources() -> impl Iterator<Item = (String, String)> {
    tracked().filter(|(name, _)| has_ending(name, &["rs"]))
}

/// Finds lines with one of these marks as a separate word, in files that people write by hand.
fn lines_with(marks: &[&str]) -> Vec<String> {
    let by_hand = ["rs", "md", "py", "toml", "json", "sh", "yml", "yaml", "plist"];
    let mut found = Vec::new();
    for (name, text) in tracked() {
        // Recordings are kept as they were made.
        if name.starts_with("tests/data/") || !(has_ending(&name, &by_hand) || name.ends_with("Makefile")) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for mark in marks {
                let hit = line.match_indices(mark).any(|(at, _)| {
                    let joined = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                    let before = joined(line[..at].chars().next_back());
                    let ends_open = mark.ends_with(|c: char| !c.is_alphanumeric());
                    let after = !ends_open && joined(line[at + mark.len()..].chars().next());
                    !(before || after)
                });
                if hit {
                    found.push(format!("{name}:{} says {mark}", number + 1));
                }
            }
        }
    }
    found
}

/// Returns the targets of a document's links, except those in fenced code.
fn links(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut targets = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        for piece in line.split("](").skip(1) {
            if let Some((target, _)) = piece.split_once(')') {
                targets.push(target.to_owned());
            }
        }
    }
    targets
}

/// Returns the link anchors of a document's headings.
fn headings(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let Some(title) = line.strip_prefix('#').filter(|_| !is_code) else {
            continue;
        };
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        found.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    found
}

/// A file of the library or the daemon, without its tests and comments.
struct Source {
    name: String,
    /// Source text, with unchanged line numbers.
    text: String,
}

/// Returns every file below `src` that is part of the program.
fn production() -> Vec<Source> {
    let all: Vec<(String, String)> = sources().filter(|(name, _)| name.starts_with("src/")).collect();
    let tests: Vec<String> = all
        .iter()
        .flat_map(|(name, text)| test_modules(name, text))
        .collect();
    // Files below a test module belong to the tests, too.
    let is_test = |name: &str| {
        let is_below = |module: &String| name.starts_with(&module.replace(".rs", "/"));
        tests.iter().any(|module| module == name || is_below(module))
    };
    all.into_iter()
        .filter(|(name, _)| !is_test(name))
        .map(|(name, text)| Source {
            text: without_tests_and_comments(&text),
            name,
        })
        .collect()
}

/// Returns the files that a file declares as test-only modules.
fn test_modules(name: &str, text: &str) -> Vec<String> {
    let folder = match name.strip_suffix("/mod.rs") {
        Some(folder) => folder.to_owned(),
        None => name.trim_end_matches(".rs").to_owned(),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .filter(|pair| pair[0].trim() == "#[cfg(test)]")
        .filter_map(|pair| {
            let line = pair[1].trim();
            let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        })
        .map(|module| format!("{folder}/{module}.rs"))
        .collect()
}

fn without_tests_and_comments(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut kept = String::new();
    for (at, line) in lines.iter().enumerate() {
        let next = lines.get(at + 1).map_or("", |next| next.trim());
        // A test module is the last item of its file.
        if line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        if !line.trim_start().starts_with("//") {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

impl Source {
    /// Returns the top-level module that it belongs to.
    fn module(&self) -> &str {
        let path = self.name.trim_start_matches("src/");
        path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
    }

    /// Returns the top-level modules that it names.
    fn uses(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for from in ["crate::", "orbd::", "orbd_host::"] {
            for piece in self.text.split(from).skip(1) {
                let names: Vec<&str> = match piece.strip_prefix('{') {
                    Some(group) => group.split('}').next().unwrap_or_default().split(',').collect(),
                    None => vec![piece],
                };
                for name in names {
                    let name: String = name
                        .trim()
                        .chars()
                        .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                        .collect();
                    if MAY_USE.iter().any(|(known, _)| *known == name) {
                        used.insert(name);
                    }
                }
            }
        }
        used
    }

    /// Returns the number of the first line that contains a text.
    fn line_with(&self, text: &str) -> Option<usize> {
        self.text
            .lines()
            .position(|line| line.contains(text))
            .map(|at| at + 1)
    }
}

#[test]
fn rule_helpers_find_what_they_search_for() {
    let text = "use crate::{cache::Cache, job};\n// crate::server\nuse orbd::config;\n#[cfg(test)]\nmod tests {\nuse crate::server;\n}";
    let source = Source {
        name: "src/scheduler/mod.rs".into(),
        text: without_tests_and_comments(text),
    };
    assert_eq!(source.module(), "scheduler");
    assert_eq!(
        source.uses().into_iter().collect::<Vec<_>>(),
        ["cache", "config", "job"]
    );
    assert_eq!(
        test_modules("src/journal.rs", "#[cfg(test)]\nmod tests;\n"),
        ["src/journal/tests.rs"]
    );
    let found = headings("# One: two `three`\n```\n# four\n```\n### Five\n");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["five", "one-two-three"]);
    assert_eq!(links("see [a](b.md#c) and\n```\n[x](y)\n```\n"), ["b.md#c"]);
}
