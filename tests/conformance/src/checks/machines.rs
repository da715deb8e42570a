//! Checks that need machines: they make, change and delete machines of their own, and touch no other.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::{Results, Seen};
use crate::tool::{Done, Tool};

/// Beginning of the name of every machine that is made here.
pub const PREFIX: &str = "orbd-conformance-";

/// The machine in which commands run, its clone, and the clone's second name.
const FIRST: &str = "orbd-conformance-a";
const COPY: &str = "orbd-conformance-b";
const RENAMED: &str = "orbd-conformance-c";
/// A name whose validity is in question.
const UNDERSCORE: &str = "orbd-conformance_d";
const NOSUCH: &str = "orbd-conformance-nosuch";

/// Longest time of something that is at once.
const SOON: Duration = Duration::from_secs(20);

/// Returns the names of machines that begin like those made here.
#[must_use]
pub fn own_machines(tool: &Tool) -> Vec<String> {
    let names = tool.read(&["list", "-q"]).out();
    let own = names.lines().filter(|name| name.starts_with("orbd-conformance"));
    own.map(str::to_owned).collect()
}

/// Deletes the machines that were made here.
pub fn remove_machines(tool: &Tool) {
    for name in own_machines(tool) {
        let _ = tool.change(&["delete", "-f", &name]);
    }
}

/// Makes all checks that need machines.
pub fn check_machines(tool: &Tool) -> Results {
    let mut results = Results::new();
    if !create(tool, &mut results) {
        return results;
    }
    commands(tool, &mut results);
    environment(tool, &mut results);
    streams(tool, &mut results);
    signals(tool, &mut results);
    transfers(tool, &mut results);
    unknown_machines(tool, &mut results);
    copies(tool, &mut results);
    power(tool, &mut results);
    deletes(tool, &mut results);
    results
}

fn record(tool: &Tool, name: &str) -> Option<Value> {
    let list: Vec<Value> = serde_json::from_slice(&tool.read(&["list", "-f", "json"]).stdout).ok()?;
    list.into_iter().find(|record| record["name"] == name)
}

fn is_in(tool: &Tool, name: &str, state: &str) -> bool {
    record(tool, name).is_some_and(|record| record["state"] == state)
}

/// Runs a command in the first machine.
fn run(tool: &Tool, words: &[&str]) -> Done {
    tool.read(&[&["run", "-m", FIRST], words].concat())
}

fn succeeds(done: &Done) -> bool {
    done.code == Some(0)
}

fn create(tool: &Tool, results: &mut Results) -> bool {
    let (made, list) = thread::scope(|scope| {
        let making = scope.spawn(|| tool.change(&["create", "ubuntu", FIRST]));
        let list = tool.read(&["list", "-f", "json"]);
        (making.join(), list)
    });
    let Ok(made) = made else { return false };
    let runs = succeeds(&made) && is_in(tool, FIRST, "running");
    results.push(("create-returns-running", Seen::when(runs, tool, &made)));
    if !runs {
        return false;
    }
    let quiet = made.stdout.is_empty() && made.stderr.is_empty();
    results.push(("create-output", Seen::when(quiet, tool, &made)));
    let soon = succeeds(&list) && list.time < Duration::from_secs(5);
    results.push(("tool-parallel-reads", Seen::when(soon, tool, &list)));
    let again = tool.change(&["create", "ubuntu", FIRST]);
    let line = format!("[-32098] create '{FIRST}': machine already exists: '{FIRST}'\n");
    results.push((
        "create-exists",
        Seen::when(again.code == Some(1) && again.err() == line, tool, &again),
    ));
    for (id, words) in [
        ("create-distro-unknown", ["create", "orbd-nosuch", NOSUCH]),
        ("create-names", ["create", "ubuntu", UNDERSCORE]),
    ] {
        let done = tool.change(&words);
        let refused = done.code == Some(1) && !done.stderr.is_empty() && record(tool, words[2]).is_none();
        results.push((id, Seen::when(refused, tool, &done)));
    }
    let started = tool.change(&["start", FIRST]);
    results.push(("start-running", Seen::when(succeeds(&started), tool, &started)));
    let id = record(tool, FIRST).unwrap_or_default();
    let by_id = tool.change(&["start", id["id"].as_str().unwrap_or(NOSUCH)]);
    results.push(("start-by-id", Seen::when(succeeds(&by_id), tool, &by_id)));
    true
}

fn commands(tool: &Tool, results: &mut Results) {
    let mut expect = |id, words: &[&str], code: i32, stdout: &str, stderr: &str| {
        let done = tool.read(words);
        let fits = done.code == Some(code) && done.out() == stdout && done.err().starts_with(stderr);
        let is_directory = done.err().contains("plain directory without isolation");
        results.push((
            id,
            if is_directory {
                Seen::nothing("the stand-in needs root for it")
            } else {
                Seen::when(fits, tool, &done)
            },
        ));
    };
    let exit = ["run", "-m", FIRST, "sh", "-c", "exit 7"];
    expect("run-exit-code", &exit, 7, "", "");
    let words = ["run", "-m", FIRST, "printf", "[%s]", "a b", "", "*", "~"];
    expect("run-args", &words, 0, "[a b][][*][~]", "");
    let odd = "a\\\\b!c$HOME`x`\"'\n;&|<>#";
    let words = ["run", "-m", FIRST, "printf", "%s", odd];
    expect("run-quoting", &words, 0, odd, "");
    expect(
        "run-flags-first",
        &["run", "-m", FIRST, "echo", "-m", "x"],
        0,
        "-m x\n",
        "",
    );
    let long = [
        "run",
        "--machine",
        FIRST,
        "--user",
        "root",
        "--workdir",
        "/tmp",
        "id",
        "-u",
    ];
    expect("run-long-flags", &long, 0, "0\n", "");
    expect(
        "run-user",
        &["run", "-m", FIRST, "-u", "root", "id", "-u"],
        0,
        "0\n",
        "",
    );
    expect(
        "run-workdir",
        &["run", "-m", FIRST, "-w", "/tmp", "pwd"],
        0,
        "/tmp\n",
        "",
    );
    let dashes = ["run", "-m", FIRST, "--", "echo", "x"];
    expect("run-dashes", &dashes, 1, "", "Error: unknown flag");
    expect(
        "run-leading-flags",
        &["-m", FIRST, "run", "echo", "x"],
        0,
        "x\n",
        "",
    );
    let unknown = format!("[-32098] machine not found: '{NOSUCH}'\n");
    expect(
        "run-unknown-machine",
        &["run", "-m", NOSUCH, "true"],
        1,
        "",
        &unknown,
    );
    let both = ["run", "-m", FIRST, "sh", "-c", "echo a; echo b >&2"];
    let done = tool.read(&both);
    // Warnings of a login shell may come before.
    let apart = done.out() == "a\n" && done.err().ends_with("b\n");
    results.push(("run-streams", Seen::when(apart, tool, &done)));
    let missing = run(tool, &["orbd-nosuch-command"]);
    let by_shell = missing.code == Some(127) && missing.err().contains("bash: line 1: orbd-nosuch-command");
    results.push(("run-login-shell", Seen::when(by_shell, tool, &missing)));
    let script = "for file in ~/.profile ~/.bash_profile; do [ ! -e $file ] || cp $file $file.orbd; done; \
        printf '\\nexport ORBD_PROFILE=read\\n' >>~/.profile";
    let _ = run(tool, &["sh", "-c", script]);
    let profile = run(tool, &["sh", "-c", "echo $ORBD_PROFILE"]);
    results.push((
        "run-profile",
        Seen::when(profile.out() == "read\n", tool, &profile),
    ));
}

fn environment(tool: &Tool, results: &mut Results) {
    let variables = [
        ("ORBENV", Some("ORBD_A:ORBD_B")),
        ("ORBD_A", Some("1")),
        ("ORBD_C", Some("2")),
        ("https_proxy", Some("http://orbd.invalid:1")),
    ];
    let done = tool.read_with(&["run", "-m", FIRST, "env"], &variables);
    let text = done.out();
    let has = |line: &str| text.lines().any(|other| other == line);
    let missing = |what: &str| Seen::Different(format!("{what} of {} variables", text.lines().count()));
    let seen = if has("ORBD_A=1") {
        Seen::Same
    } else {
        missing("the named one is not among")
    };
    results.push(("run-orbenv", seen));
    let seen = if !has("ORBD_C=2") && has("https_proxy=http://orbd.invalid:1") {
        Seen::Same
    } else {
        missing("others pass")
    };
    results.push(("run-environment", seen));
    let folder = run(tool, &["pwd"]);
    let kept = folder.out().trim_end() == tool.folder().to_string_lossy();
    results.push(("run-folder", Seen::when(kept, tool, &folder)));
}

fn streams(tool: &Tool, results: &mut Results) {
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(300_000).collect();
    let cat = ["run", "-m", FIRST, "cat"];
    let done = tool.feed(&cat, &bytes);
    let whole = |what: &str| {
        if done.stdout == bytes {
            Seen::Same
        } else {
            Seen::Different(format!("{} bytes of {}, {what}", done.stdout.len(), bytes.len()))
        }
    };
    results.push(("run-binary", whole("or others")));
    results.push(("run-stdin-end", whole("or no end")));
    if let Ok(mut running) = tool.start(&cat, &[], Stdio::piped())
        && let Some(mut stdin) = running.stdin()
    {
        let _ = stdin.write_all(b"now\n");
        let seen = if running.says("now\n", SOON) {
            Seen::Same
        } else {
            Seen::Different("nothing arrived while stdin was open".to_owned())
        };
        results.push(("run-stdin-at-once", seen));
        let memory = resident_kilobytes(running.id());
        drop(stdin);
        let _ = running.end(SOON);
        results.push((
            "run-memory",
            match memory {
                Some(kilobytes) if kilobytes < 30_000 => Seen::Same,
                Some(kilobytes) => Seen::Different(format!("{kilobytes} kB")),
                None => Seen::nothing("ps does not tell"),
            },
        ));
    }
    let began = Instant::now();
    let left = run(tool, &["sh", "-c", "sleep 60 & echo done"]);
    let at_once = succeeds(&left) && left.out() == "done\n" && began.elapsed() < SOON;
    results.push(("run-children", Seen::when(at_once, tool, &left)));
    let codes = thread::scope(|scope| {
        let many: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| run(tool, &["sleep", "0.5"])))
            .collect();
        many.into_iter()
            .filter_map(|one| one.join().ok())
            .filter(succeeds)
            .count()
    });
    let time = began.elapsed();
    let seen = if codes == 16 && time < SOON * 2 {
        Seen::Same
    } else {
        Seen::Different(format!("{codes} of 16 succeeded in {} s", time.as_secs()))
    };
    results.push(("run-parallel", seen));
}

/// Returns the resident memory of a process.
fn resident_kilobytes(pid: u32) -> Option<u64> {
    let mut ps = std::process::Command::new("ps");
    let output = ps.args(["-o", "rss=", "-p", &pid.to_string()]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Signals a client whose command notes what happens to it, and looks for the notes in the machine.
fn signals(tool: &Tool, results: &mut Results) {
    let script = "trap 'echo got >$HOME/orbd-signal; exit 3' TERM; echo ready; \
        n=0; while [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done";
    let words = ["run", "-m", FIRST, "sh", "-c", script];
    if let Ok(running) = tool.start(&words, &[], Stdio::null()) {
        let ready = running.says("ready", SOON);
        running.signal(Signal::TERM);
        let done = running.end(SOON);
        let note = run(tool, &["sh", "-c", "cat $HOME/orbd-signal"]);
        let reached = note.out() == "got\n";
        let seen = if ready && reached && done.code == Some(3) {
            Seen::Same
        } else {
            Seen::Different(format!(
                "the command {} the signal; the client: {}",
                if reached { "got" } else { "did not get" },
                tool.describe(&done)
            ))
        };
        results.push(("run-term", seen));
    }
    // It touches a file while it lives, so that a second look tells whether it still does.
    let script =
        "echo ready; n=0; while [ $n -lt 100 ]; do echo $n >$HOME/orbd-alive; sleep 0.1; n=$((n+1)); done";
    let words = ["run", "-m", FIRST, "sh", "-c", script];
    if let Ok(running) = tool.start(&words, &[], Stdio::null()) {
        let ready = running.says("ready", SOON);
        running.signal(Signal::KILL);
        let _ = running.end(SOON);
        let look = "cat $HOME/orbd-alive; sleep 1; cat $HOME/orbd-alive";
        let numbers = run(tool, &["sh", "-c", look]).out();
        let mut numbers = numbers.lines();
        let lives = numbers.next() != numbers.next();
        results.push((
            "run-kill",
            if ready && lives {
                Seen::Same
            } else {
                Seen::Different("the command ended with its client".to_owned())
            },
        ));
    }
}

fn transfers(tool: &Tool, results: &mut Results) {
    let name = |name: &str| format!("orbd-conformance-{name}.txt");
    let (one, two) = (name("one"), name("two"));
    for file in [&one, &two] {
        let _ = fs::write(tool.folder().join(file), b"x\n");
    }
    let done = tool.read(&["push", "-m", FIRST, &one]);
    let there = run(tool, &["sh", "-c", &format!("cat $HOME/{one}")]);
    results.push((
        "push-one-argument",
        Seen::when(succeeds(&done) && there.out() == "x\n", tool, &done),
    ));
    let _ = run(tool, &["sh", "-c", "mkdir -p $HOME/orbd-folder"]);
    let done = tool.read(&["push", "-m", FIRST, &one, &two, "orbd-folder"]);
    let there = run(
        tool,
        &[
            "sh",
            "-c",
            &format!("cat $HOME/orbd-folder/{one} $HOME/orbd-folder/{two}"),
        ],
    );
    results.push((
        "push-several",
        Seen::when(succeeds(&done) && there.out() == "x\nx\n", tool, &done),
    ));
    for file in [&one, &two] {
        let _ = fs::remove_file(tool.folder().join(file));
    }
}

fn unknown_machines(tool: &Tool, results: &mut Results) {
    let calls: [&[&str]; 5] = [
        &["start", NOSUCH],
        &["stop", NOSUCH],
        &["delete", "-f", NOSUCH],
        &["rename", NOSUCH, RENAMED],
        &["clone", NOSUCH, RENAMED],
    ];
    let line = format!("[-32098] machine not found: '{NOSUCH}'\n");
    let mut other = Vec::new();
    for words in calls {
        let done = tool.change(words);
        if done.code != Some(1) || done.err() != line {
            other.push(format!("{}: {}", words[0], tool.describe(&done)));
        }
    }
    let seen = if other.is_empty() {
        Seen::Same
    } else {
        Seen::Different(other.join("; "))
    };
    results.push(("error-unknown-machine", seen));
}

fn copies(tool: &Tool, results: &mut Results) {
    let id = |name: &str| record(tool, name).map(|record| record["id"].clone());
    let cloned = tool.change(&["clone", FIRST, COPY]);
    let stopped = succeeds(&cloned) && is_in(tool, COPY, "stopped") && id(COPY) != id(FIRST);
    results.push(("clone-stopped", Seen::when(stopped, tool, &cloned)));
    let before = id(COPY);
    let renamed = tool.change(&["rename", COPY, RENAMED]);
    let kept = succeeds(&renamed) && before.is_some() && id(RENAMED) == before;
    results.push(("rename", Seen::when(kept, tool, &renamed)));
    let key = format!("machine.{RENAMED}.cpu");
    let set = tool.change(&["config", "set", &key, "2"]);
    let get = tool.read(&["config", "get", &key]);
    let stored = succeeds(&set) && get.out().trim_end().ends_with('2');
    results.push(("config-set", Seen::when(stored, tool, &set)));
    results.push(("config-set-stopped", Seen::when(stored, tool, &set)));
}

fn power(tool: &Tool, results: &mut Results) {
    let idle = tool.start(&["run", "-m", FIRST, "cat"], &[], Stdio::piped());
    let stopped = tool.change(&["stop", FIRST]);
    let at_once = succeeds(&stopped) && is_in(tool, FIRST, "stopped");
    results.push(("stop-returns", Seen::when(at_once, tool, &stopped)));
    if let Ok(idle) = idle {
        let done = idle.end(SOON);
        results.push(("stop-busy", Seen::when(!done.timed_out && at_once, tool, &done)));
    }
    let again = tool.change(&["stop", FIRST]);
    results.push(("stop-stopped", Seen::when(succeeds(&again), tool, &again)));
    let woken = tool.change(&["run", "-m", FIRST, "true"]);
    let runs = succeeds(&woken) && is_in(tool, FIRST, "running");
    results.push(("run-stopped-machine", Seen::when(runs, tool, &woken)));
    let forced = tool.change(&["stop", "-f", FIRST]);
    results.push(("stop-force", Seen::when(succeeds(&forced), tool, &forced)));
}

fn deletes(tool: &Tool, results: &mut Results) {
    let asked = tool.change(&["delete", RENAMED]);
    let kept = record(tool, RENAMED).is_some();
    results.push((
        "delete-no-terminal",
        Seen::when(kept && !asked.timed_out, tool, &asked),
    ));
    let id = record(tool, FIRST).unwrap_or_default();
    let by_id = tool.change(&["delete", "-f", id["id"].as_str().unwrap_or(NOSUCH)]);
    let crashed = !succeeds(&by_id) && by_id.err().contains("panic") && record(tool, FIRST).is_some();
    results.push(("delete-by-id", Seen::when(crashed, tool, &by_id)));
    let deleted = tool.change(&["delete", "-f", FIRST]);
    let gone = succeeds(&deleted) && record(tool, FIRST).is_none();
    results.push(("delete-by-name", Seen::when(gone, tool, &deleted)));
}
