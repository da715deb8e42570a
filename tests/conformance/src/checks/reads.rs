//! Checks that change nothing. None of them runs a command in a machine of the user.

use serde_json::Value;

use super::{Results, Seen};
use crate::tool::Tool;

/// No machine has this name.
const NOSUCH: &str = "orbd-conformance-nosuch";

/// Makes all checks that only read. If OrbStack is stopped, most of them would start it, and are left out.
pub fn check_reads(tool: &mut Tool) -> Results {
    let mut results = Results::new();
    let status = tool.read(&["status"]);
    let running = Seen::when(
        status.code == Some(0) && status.out() == "Running\n",
        tool,
        &status,
    );
    if running != Seen::Same {
        let stopped = status.code == Some(1) && status.out() == "Stopped\n";
        let starting = status.code == Some(1) && status.out() == "Starting\n";
        results.push((
            "status-running",
            Seen::nothing("OrbStack does not run: start it and check again"),
        ));
        if starting || status.out() == "Starting\n" {
            results.push(("status-starting", Seen::when(starting, tool, &status)));
        } else {
            results.push(("status-stopped", Seen::when(stopped, tool, &status)));
        }
        return results;
    }
    results.push(("status-running", running));
    versions(tool, &mut results);
    let records = lists(tool, &mut results);
    infos(tool, &records, &mut results);
    settings(tool, &records, &mut results);
    errors(tool, &mut results);
    verbs(tool, &mut results);
    results
}

fn versions(tool: &Tool, results: &mut Results) {
    let version = tool.read(&["version"]);
    let text = version.out();
    let mut lines = text.lines();
    let first = lines.next().and_then(|line| line.strip_prefix("Version: "));
    let is_first = first.is_some_and(|rest| {
        let mut words = rest.split(' ');
        let number = words.next().unwrap_or_default();
        let build = words
            .next()
            .and_then(|word| word.strip_prefix('(')?.strip_suffix(')'));
        number.split('.').count() == 3 && build.is_some_and(|build| build.parse::<u64>().is_ok())
    });
    let is_second = lines.next().is_some_and(|line| line.starts_with("Commit: "));
    results.push(("version-text", Seen::when(is_first && is_second, tool, &version)));
}

/// Checks the forms of `list`; returns the records.
fn lists(tool: &mut Tool, results: &mut Results) -> Vec<Value> {
    let list = tool.read(&["list", "-f", "json"]);
    let parsed: Option<Vec<Value>> = serde_json::from_slice(&list.stdout).ok();
    let records = parsed.clone().unwrap_or_default();
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    for record in &records {
        tool.hide(&text(record, "name"));
        tool.hide(&text(record, "id"));
        tool.hide(record["config"]["default_username"].as_str().unwrap_or_default());
    }
    let is_empty = parsed.as_ref().is_none_or(Vec::is_empty);
    let form = if list.out().trim() == "null" || list.stdout.is_empty() {
        Seen::nothing("there is no machine")
    } else {
        Seen::when_unseen(list.code == Some(0) && parsed.is_some(), &list)
    };
    results.push(("list-json", form));
    let has_box = [&list.stdout, &list.stderr]
        .iter()
        .any(|bytes| String::from_utf8_lossy(bytes).contains('\u{256d}'));
    results.push(("list-banner", Seen::when_unseen(!has_box, &list)));
    results.push((
        "results-on-stdout",
        Seen::when_unseen(list.stderr.is_empty(), &list),
    ));
    let every = |holds: &dyn Fn(&Value) -> bool, what: &str| match records.iter().all(holds) {
        _ if is_empty => Seen::nothing("there is no machine"),
        true => Seen::Same,
        false => Seen::Different(format!("a record does not have {what}")),
    };
    let has = |record: &Value, keys: &[&str]| keys.iter().all(|key| record.get(key).is_some());
    let keys = |record: &Value| has(record, &["id", "name", "state", "image", "config"]);
    results.push(("list-record-keys", every(&keys, "all of these keys")));
    let id = |record: &Value| {
        let id = text(record, "id");
        id.len() == 26 && id.chars().all(|c| c.is_ascii_alphanumeric())
    };
    results.push(("list-id", every(&id, "such an id")));
    let image = |record: &Value| {
        let version = record["image"]["version"].as_str().unwrap_or_default();
        let is_number = version.chars().all(|c| c.is_ascii_digit() || c == '.');
        has(&record["image"], &["distro", "version", "arch"])
            && (record["image"]["distro"] != "ubuntu" || !is_number)
    };
    results.push(("list-image", every(&image, "such an image")));
    let optional = |record: &Value| {
        let config = ["isolate_network", "forward_ssh_agent", "http_port"];
        has(&record["config"], &config) && has(record, &["builtin"]) && has(&record["image"], &["variant"])
    };
    results.push(("list-json-keys", every(&optional, "all of these keys")));
    let state = |record: &Value| {
        let state = text(record, "state");
        !state.is_empty() && state.chars().all(|c| c.is_ascii_lowercase())
    };
    results.push(("list-state-words", every(&state, "a word as its state")));
    let out = list.out();
    if is_empty {
        let seen = Seen::when_unseen(list.code == Some(0) && out.trim_end() == "[]", &list);
        results.push(("list-empty", seen));
    } else {
        let indented = out.ends_with("]\n") && out.starts_with("[\n ");
        let seen = if indented {
            Seen::Same
        } else {
            let newline = if out.ends_with('\n') { "with" } else { "without" };
            Seen::Different(format!(
                "{} lines, {newline} a newline at the end",
                out.lines().count()
            ))
        };
        results.push(("list-json-form", seen));
        results.push(("list-empty", Seen::nothing("there are machines")));
    }
    more_lists(tool, &records, results);
    records
}

fn more_lists(tool: &Tool, records: &[Value], results: &mut Results) {
    let names = |records: &[Value], running: bool| -> Vec<String> {
        let wanted = records
            .iter()
            .filter(|record| !running || record["state"] == "running");
        wanted
            .map(|record| record["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let spelled = tool.read(&["list", "--format=json"]);
    let again: Vec<Value> = serde_json::from_slice(&spelled.stdout).unwrap_or_default();
    let short = tool.read(&["list", "-fjson"]);
    results.push((
        "list-format-spelling",
        Seen::when_unseen(spelled.stdout == short.stdout && spelled.code == Some(0), &short),
    ));
    let same_order = names(&again, false) == names(records, false);
    results.push(("list-order", Seen::when_unseen(same_order, &spelled)));
    for (id, flag, running) in [("list-quiet", "-q", false), ("list-running", "-rq", true)] {
        let done = tool.read(&["list", flag]);
        let mut listed: Vec<String> = done.out().lines().map(str::to_owned).collect();
        let mut expected = names(records, running);
        listed.sort();
        expected.sort();
        results.push((
            id,
            Seen::when_unseen(done.code == Some(0) && listed == expected, &done),
        ));
    }
    let table = tool.read(&["list"]);
    let text = table.out();
    let columns: Vec<&str> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let known = ["NAME", "STATE", "DISTRO", "VERSION", "ARCH", "SIZE", "IP"];
    results.push(("list-table", Seen::when_unseen(columns == known, &table)));
    let dashes = text.lines().nth(1).is_some_and(|line| line.starts_with("---"));
    results.push((
        "list-dashes",
        if dashes {
            Seen::Different("a row of dashes, although stdout is no terminal".to_owned())
        } else {
            Seen::Same
        },
    ));
}

fn infos(tool: &Tool, records: &[Value], results: &mut Results) {
    let unknown = tool.read(&["info", NOSUCH, "-f", "json"]);
    let line = format!("[-32098] machine not found: '{NOSUCH}'\n");
    let is_refused = unknown.code == Some(1) && unknown.err() == line && unknown.stdout.is_empty();
    results.push(("info-unknown", Seen::when(is_refused, tool, &unknown)));
    results.push((
        "error-form",
        Seen::when(unknown.err().starts_with("[-"), tool, &unknown),
    ));
    let by_state = |state: &str| records.iter().find(|record| record["state"] == state);
    let Some(record) = by_state("running").or_else(|| by_state("stopped")) else {
        return;
    };
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    let info = tool.read(&["info", text("name"), "-f", "json"]);
    let value: Value = serde_json::from_slice(&info.stdout).unwrap_or_default();
    let is_info = value["record"]["id"] == record["id"] && value["disk_size"].is_u64();
    // The whole answer is about a machine of the user, so only its keys may be shown.
    let keys = || {
        let keys = value
            .as_object()
            .map(|object| object.keys().cloned().collect::<Vec<_>>());
        Seen::Different(format!("keys {}", keys.unwrap_or_default().join(", ")))
    };
    results.push(("info-json", if is_info { Seen::Same } else { keys() }));
    let addressed = value["ip4"].is_string() && value["ip6"].is_string();
    let none = value.get("ip4").is_none() && value.get("ip6").is_none();
    let fits = if text("state") == "running" {
        addressed
    } else {
        none
    };
    results.push(("info-addresses", if fits { Seen::Same } else { keys() }));
    let other_order = tool.read(&["info", "-f", "json", text("name")]);
    let by_id = tool.read(&["info", text("id"), "-f", "json"]);
    for (id, done) in [("info-flag-order", other_order), ("info-by-id", by_id)] {
        let other: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
        let same = other["record"]["id"] == record["id"];
        results.push((
            id,
            if same {
                Seen::Same
            } else {
                Seen::Different("another answer".to_owned())
            },
        ));
    }
    let plain = tool.read(&["info", text("name")]).out();
    let labels: Vec<&str> = plain
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    let has = |label: &str| labels.contains(&label);
    let fits = has("Architecture") && (has("IPv4") || text("state") != "running");
    let seen = if fits {
        Seen::Same
    } else {
        Seen::Different(format!("{} lines with labels", labels.len()))
    };
    results.push(("info-text", seen));
}

fn settings(tool: &Tool, records: &[Value], results: &mut Results) {
    let default = tool.read(&["default"]);
    let name = default.out();
    let name = name.trim();
    if name.is_empty() || name == "none" {
        results.push(("default-name", Seen::nothing("there is no default machine")));
        results.push(("default-none", Seen::when(name == "none", tool, &default)));
    } else {
        let known = records.iter().any(|record| record["name"] == name);
        results.push(("default-name", Seen::when_unseen(known, &default)));
        results.push(("default-none", Seen::nothing("there is a default machine")));
    }
    let show = tool.read(&["config", "show"]);
    let text = show.out();
    let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let is_pairs = show.code == Some(0) && !pairs.is_empty() && pairs.len() == text.lines().count();
    // Values and names of machines are the user's, so only the count is shown.
    let odd = || {
        Seen::Different(format!(
            "{} lines, {} of them with a key",
            text.lines().count(),
            pairs.len()
        ))
    };
    results.push(("config-show", if is_pairs { Seen::Same } else { odd() }));
    if records.is_empty() {
        results.push(("config-show-machine-keys", Seen::nothing("there is no machine")));
    } else {
        let named = pairs
            .iter()
            .any(|(key, _)| key.starts_with("machine.") && key.ends_with(".username"));
        results.push(("config-show-machine-keys", if named { Seen::Same } else { odd() }));
    }
    if let Some((key, value)) = pairs.iter().find(|(key, _)| *key == "cpu") {
        let get = tool.read(&["config", "get", key]);
        results.push((
            "config-get",
            Seen::when(get.out().trim() == value.trim(), tool, &get),
        ));
    }
    let unknown = tool.read(&["config", "get", "orbd.nosuch"]);
    let is_refused = unknown.code == Some(1) && unknown.err().contains("key not found");
    results.push(("config-unknown-key", Seen::when(is_refused, tool, &unknown)));
    let ssh = tool.read(&["ssh"]);
    let names = ssh.out().contains("32222");
    let seen = if names {
        Seen::Same
    } else {
        Seen::Different(format!(
            "{} lines, none with port 32222",
            ssh.out().lines().count()
        ))
    };
    results.push(("ssh-text", seen));
}

fn errors(tool: &Tool, results: &mut Results) {
    for (id, words, beginning) in [
        ("error-usage", &["list", "--orbd-nosuch"][..], "Error: "),
        (
            "error-unknown-command",
            &["orbd-nosuch"],
            "Error: unknown command",
        ),
    ] {
        let done = tool.read(words);
        let fits =
            done.code == Some(1) && done.err().starts_with(beginning) && done.err().contains("\nUsage:");
        results.push((id, Seen::when(fits, tool, &done)));
    }
    let homeless = tool.read_with(&["version"], &[("HOME", None)]);
    let panics = homeless.err().contains("$HOME is not defined");
    results.push(("error-home-missing", Seen::when(panics, tool, &homeless)));
    results.push((
        "error-panic-exit",
        Seen::when(homeless.code == Some(2), tool, &homeless),
    ));
}

/// Checks which verbs and flags there are, by their help.
fn verbs(tool: &Tool, results: &mut Results) {
    let usage = |verb: &str| {
        let done = tool.read(&[verb, "--help"]);
        let text = done.out();
        let usage = text.lines().skip_while(|line| !line.starts_with("Usage:")).nth(1);
        let usage = usage.unwrap_or_default().to_owned();
        (done, usage)
    };
    let (done, line) = usage("shutdown");
    results.push((
        "shutdown-verb",
        Seen::when(line.contains(" shutdown"), tool, &done),
    ));
    let (done, line) = usage("rm");
    results.push(("remove-verb", Seen::when(!line.contains(" delete"), tool, &done)));
    let (done, _) = usage("logs");
    results.push((
        "logs-follow",
        Seen::when(done.out().contains("--follow"), tool, &done),
    ));
}
