//! Tests of the stand-in itself: against the recordings, under parallel use, with each kind of trouble, and for
//! isolation from the host.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "these tests start the stand-in, measure how long it takes, and say what they skip"
)]

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stand-in with a state directory of its own, which is cleaned up even if its test panics.
pub(crate) struct Sim {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Sim {
    /// Machines are plain directories and commands take no time.
    pub(crate) fn new() -> Sim {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("home")).expect("a home");
        let sim = Sim {
            folder,
            variables: Vec::new(),
        };
        sim.with("ORBCTL_SIM_ISOLATION", "dir")
            .with("ORBCTL_SIM_LATENCY", "0")
    }

    /// Machines are isolated. Returns `None`, and prints that the test is skipped, if this host cannot isolate them.
    pub(crate) fn isolated() -> Option<Sim> {
        if !cfg!(target_os = "linux") || !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: isolated machines need root on Linux");
            return None;
        }
        Some(Sim::new().with("ORBCTL_SIM_ISOLATION", "root"))
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Sim {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub(crate) fn script(self, text: &str) -> Sim {
        let path = self.path("script.toml");
        fs::write(&path, text).expect("a script");
        let path = path.display().to_string();
        self.with("ORBCTL_SIM_SCRIPT", &path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(programs::orbctl_sim());
        command
            .args(words)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.path("home"))
            .env("ORBCTL_SIM_HOME", self.path("state"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the stand-in starts")
    }

    /// Runs a command that must succeed; returns its stdout.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        text(&output.stdout)
    }

    /// Calls the stand-in as `orb`.
    fn orb(&self, words: &[&str]) -> Output {
        let orb = self.path("orb");
        if !orb.exists() {
            std::os::unix::fs::symlink(programs::orbctl_sim(), &orb).expect("a link");
        }
        let known = self.command(words);
        let mut command = Command::new(orb);
        command
            .args(words)
            .env_clear()
            .envs(known.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command.output().expect("the stand-in starts")
    }

    /// Runs a command with this text on stdin.
    pub(crate) fn answered(&self, words: &[&str], answer: &str) -> Output {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(answer.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).expect("JSON")
    }

    pub(crate) fn spawn(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    }

    fn ledger(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("state/ledger.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        self.ledger()
            .into_iter()
            .filter(|line| line["event"] == event)
            .collect()
    }

    /// Checks that no two pieces of work on a machine overlapped; returns how many there were.
    fn never_at_once(&self, machine: &str) -> usize {
        let mut busy = None;
        for line in self.ledger().iter().filter(|line| line["machine"] == machine) {
            match line["event"].as_str() {
                Some("work_start") => assert_eq!(busy.replace(line["id"].clone()), None),
                Some("work_end") => assert_eq!(busy.take().as_ref(), Some(&line["id"])),
                _ => {}
            }
        }
        let work = self.events("work_end");
        work.iter().filter(|line| line["machine"] == machine).count()
    }

    /// Waits until the list shows a machine in this state.
    pub(crate) fn shows(&self, machine: &str, state: &str) {
        eventually(&format!("{machine} is {state}"), || {
            let list = self.json(&["list", "-f", "json"]);
            let mut machines = list.as_array().expect("an array").iter();
            machines.any(|record| record["name"] == machine && record["state"] == state)
        });
    }

    /// Runs a command that must be refused with exactly this line.
    fn refused(&self, words: &[&str], line: &str) {
        let output = self.run(words);
        assert_eq!(text(&output.stderr), format!("{line}\n"), "{words:?}");
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(1), String::new())
        );
    }

    /// Writes an inventory, as other commands would have left it.
    pub(crate) fn lay(&self, inventory: &Value) {
        fs::create_dir_all(self.path("state/locks")).expect("a state directory");
        fs::write(self.path("state/state.json"), inventory.to_string()).expect("a state");
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let output = self.run(&["sim-cleanup"]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{output:?}");
            assert!(!self.path("state").exists());
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recorded(name: &str) -> String {
    let path = programs::root().join("tests/data/orbctl").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Repeats a check until it is true. Each check starts a process, so this is not a busy loop.
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !look() {
        assert!(begin.elapsed() < PATIENCE, "never happened: {what}");
    }
}

fn machine(name: &str, state: &str, image: [&str; 3], size: u64, address: u8) -> Value {
    let [distro, version, arch] = image;
    json!({
        "id": format!("{name:0>26}"), "name": name, "state": state,
        "image": {"distro": distro, "version": version, "arch": arch, "variant": "default"},
        "config": {
            "default_username": "dev", "isolated": false, "isolate_network": false,
            "forward_ssh_agent": false, "mounts": [], "cpus": 0, "memory_mib": 0,
            "disk_bytes": 0, "http_port": 0, "https_port": 0
        },
        "isolation": "dir", "address": address, "disk_size": size, "resident": null
    })
}

fn inventory(machines: &[Value]) -> Value {
    json!({"service": "running", "default": null, "config": {}, "machines": machines})
}

fn two_machines() -> Value {
    inventory(&[
        machine(
            "b1-lab",
            "running",
            ["ubuntu", "jammy", "amd64"],
            2_100_000_000,
            64,
        ),
        machine(
            "cspagubuntu",
            "running",
            ["ubuntu", "questing", "amd64"],
            687_200_000,
            91,
        ),
    ])
}

/// Checks that the answer has every key of the recording, with a value of the same kind.
fn assert_covers(answer: &Value, recording: &Value, path: &str) {
    match (answer, recording) {
        (Value::Object(answer), Value::Object(recording)) => {
            for (key, recorded) in recording {
                let path = format!("{path}.{key}");
                let answered = answer.get(key).unwrap_or_else(|| panic!("{path} is missing"));
                assert_covers(answered, recorded, &path);
            }
        }
        (Value::Array(answer), Value::Array(recording)) => {
            assert_covers(&answer[0], &recording[0], &format!("{path}[0]"));
        }
        _ => assert_eq!(
            std::mem::discriminant(answer),
            std::mem::discriminant(recording),
            "{path}: {answer} is not of the kind of {recording}"
        ),
    }
}

// Shapes and texts, compared with the recordings.

#[test]
fn the_table_without_a_terminal_is_the_recorded_one_without_dashes() {
    let sim = Sim::new();
    sim.lay(&two_machines());
    let recording = recorded("2.1/list-two.terminal.txt");
    let lines = recording.lines().filter(|line| !line.starts_with("----"));
    assert_eq!(
        sim.ok(&["list"]).lines().collect::<Vec<_>>(),
        lines.collect::<Vec<_>>()
    );
}

#[test]
fn the_table_on_a_terminal_is_the_recorded_one() {
    if !crate::support::has_program("script", "bsdutils") {
        return;
    }
    let sim = Sim::new();
    sim.lay(&two_machines());
    let list = sim.command(&["list"]);
    let mut terminal = Command::new("script");
    terminal.args([
        "-qec",
        &format!("{} list", list.get_program().display()),
        "/dev/null",
    ]);
    terminal.envs(list.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let shown = terminal
        .stdin(Stdio::null())
        .output()
        .expect("script starts")
        .stdout;
    assert_eq!(
        text(&shown).replace("\r\n", "\n"),
        recorded("2.1/list-two.terminal.txt")
    );
}

#[test]
fn a_stopped_row_keeps_its_trailing_blanks() {
    let sim = Sim::new();
    let image = ["ubuntu", "noble", "arm64"];
    // The recording's author cut out the row that made SIZE this wide.
    sim.lay(&inventory(&[
        machine("24.04ubuntu", "stopped", image, 1_000_000_000, 2),
        machine("cut", "running", image, 687_200_000, 3),
    ]));
    let table = sim.ok(&["list"]);
    let rows: Vec<&str> = table.split_inclusive('\n').take(2).collect();
    assert_eq!(rows.concat(), recorded("2.2/list-stopped-row.txt"));
}

#[test]
fn json_answers_have_every_recorded_key() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu:24.04", "web"]);
    let parsed = |name: &str| serde_json::from_str(&recorded(name)).expect("recorded JSON");
    let list = sim.json(&["list", "-f", "json"]);
    for recording in ["2.2/list.json", "2.0/list-multi.json"] {
        assert_covers(&list, &parsed(recording), recording);
    }
    let running = sim.json(&["info", "web", "--format", "json"]);
    for recording in ["2.2/info-running.json", "2.0/info-running.json"] {
        assert_covers(&running, &parsed(recording), recording);
    }
    sim.ok(&["stop", "web"]);
    let stopped = sim.json(&["info", "--format=json", "web"]);
    assert_covers(&stopped, &parsed("2.2/info-stopped.json"), "info-stopped");
    assert_eq!(stopped.get("ip4"), None);
    assert_eq!(stopped.get("ip6"), None);
    assert_eq!(list[0]["image"]["version"], "noble");
}

#[test]
fn addresses_and_ids_have_the_recorded_form() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "web"]);
    let info = sim.json(&["info", "web", "-f", "json"]);
    let id = info["record"]["id"].as_str().expect("an id");
    assert_eq!(id.len(), 26);
    assert!(
        id.bytes()
            .all(|byte| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&byte)),
        "{id}"
    );
    assert!(info["ip4"].as_str().expect("ip4").starts_with("192.168.139."));
    assert!(
        info["ip6"]
            .as_str()
            .expect("ip6")
            .starts_with("fd07:b51a:cc66:0:")
    );
    assert_eq!(sim.json(&["info", id, "-f", "json"])["record"]["name"], "web");
    sim.ok(&["stop", id]);
    sim.ok(&["rename", id, "shop"]);
    sim.ok(&["start", id]);
    assert_eq!(sim.json(&["info", "shop", "-f", "json"])["record"]["id"], id);
}

#[test]
fn refusals_are_the_recorded_lines() {
    let sim = Sim::new();
    let refused = |words: &[&str], recording: &str| {
        let output = sim.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), recorded(recording));
    };
    refused(&["run", "true"], "2.2/no-machines.stderr.txt");
    refused(&["info", "-f", "json", "nosuch"], "2.2/info-not-found.stderr.txt");
    // Without the prefix `run 'nosuch':`, as in bug reports.
    refused(&["run", "-m", "nosuch", "true"], "2.2/info-not-found.stderr.txt");
    sim.ok(&["create", "ubuntu:22.04", "b1-lab"]);
    refused(
        &["create", "ubuntu:22.04", "b1-lab"],
        "2.1/create-exists.stderr.txt",
    );
    let output = sim.run(&["run", "b1-lab"]);
    assert_eq!(output.status.code(), Some(127));
    if Path::new("/bin/bash").exists() {
        assert_eq!(text(&output.stderr), recorded("2.1/run-not-found.stderr.txt"));
    }
}

#[test]
fn orbstack_stops_and_starts_with_its_machines() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "up"]);
    sim.ok(&["create", "ubuntu", "down"]);
    sim.ok(&["stop", "down"]);
    assert_eq!(sim.ok(&["status"]), recorded("2.2/status-running.txt"));
    sim.ok(&["stop"]);
    let output = sim.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), recorded("2.2/status-stopped.txt"));
    // `list` starts OrbStack; `status` does not.
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "up\n");
    assert_eq!(sim.ok(&["status"]), recorded("2.2/status-running.txt"));
}

#[test]
fn version_has_two_lines_and_names_the_stand_in() {
    let sim = Sim::new();
    let version = sim.ok(&["version"]);
    let recording = recorded("2.2/version.txt");
    assert_eq!(version.lines().next(), recording.lines().next());
    let commit = version.lines().nth(1).expect("two lines");
    assert!(
        commit.starts_with("Commit: ") && commit.ends_with(" (orbctl-sim)"),
        "{commit}"
    );
    assert_eq!(version.lines().count(), 2);
}

#[test]
fn without_home_it_panics_like_a_go_program() {
    let sim = Sim::new();
    let output = sim
        .command(&["version"])
        .env_remove("HOME")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("panic: $HOME is not defined\n\ngoroutine 1"));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn deleting_by_id_crashes_and_deletes_nothing() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "web"]);
    let id = sim.json(&["list", "-f", "json"])[0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    for words in [&["delete", &*id][..], &["delete", "-f", &*id]] {
        let output = sim.run(words);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("nil pointer dereference"));
    }
    assert_eq!(sim.ok(&["list", "-q"]), "web\n");
    sim.ok(&["delete", "-f", "web"]);
    assert_eq!(sim.ok(&["list", "-f", "json"]).trim(), "[]");
}

#[test]
fn config_reads_back_what_was_set() {
    let sim = Sim::new();
    sim.ok(&["create", "--cpus", "2", "debian:12", "db", "--memory", "2G"]);
    let shown = sim.ok(&["config", "show"]);
    for line in [
        "rosetta: true",
        "machine.db.username: dev",
        "machine.db.memory_mib: 2048",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} is not in {shown}"
        );
    }
    assert_eq!(sim.ok(&["config", "get", "machine.db.cpu"]), "2\n");
    sim.ok(&["config", "set", "machine.db.disk_bytes", "1000"]);
    assert_eq!(
        sim.json(&["list", "-f", "json"])[0]["config"]["disk_limit_bytes"],
        1000
    );
    sim.ok(&["config", "set", "memory_mib", "4096"]);
    assert_eq!(sim.ok(&["config", "get", "memory_mib"]), "4096\n");
    sim.ok(&["config", "reset"]);
    assert_eq!(sim.ok(&["config", "get", "memory_mib"]), "16384\n");
    assert!(!sim.run(&["config", "set", "memory_mib", "lots"]).status.success());
    assert!(!sim.run(&["config", "get", "no.such.key"]).status.success());
}

#[test]
fn clone_export_and_import_carry_files_and_leave_machines_stopped() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "golden"]);
    sim.ok(&["run", "-m", "golden", "sh", "-c", "echo kept > file"]);
    sim.ok(&["clone", "golden", "copy"]);
    sim.ok(&["export", "golden", "golden.tar.zst"]);
    sim.ok(&["import", "-n", "back", "golden.tar.zst"]);
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "golden\n");
    for name in ["copy", "back"] {
        // This also starts the machine.
        assert_eq!(sim.ok(&["run", "-m", name, "cat", "file"]), "kept\n");
    }
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "golden\ncopy\nback\n");
}

#[test]
fn push_and_pull_copy_files_and_folders() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    fs::create_dir_all(sim.path("tree/leaf")).expect("a tree");
    fs::write(sim.path("tree/leaf/bytes"), [0_u8, 255, 10, 13]).expect("a file");
    fs::write(sim.path("one"), "one").expect("a file");
    sim.ok(&["push", "-m", "box", "one", "tree", "."]);
    sim.ok(&["push", "-m", "box", "one", "renamed"]);
    assert_eq!(sim.ok(&["run", "-m", "box", "cat", "one", "renamed"]), "oneone");
    // The content of a folder, into a folder that does not exist yet and into one that does.
    for _ in 0..2 {
        sim.ok(&["push", "-m", "box", "tree/.", "made/"]);
    }
    assert_eq!(sim.ok(&["run", "-m", "box", "ls", "made"]), "leaf\n");
    sim.ok(&["pull", "-m", "box", "tree", "back"]);
    assert_eq!(
        fs::read(sim.path("back/leaf/bytes")).expect("it came"),
        [0, 255, 10, 13]
    );
    assert!(
        !sim.run(&["pull", "-m", "box", "no-such-file", "x"])
            .status
            .success()
    );
}

// Arguments.

/// gh#2597: `orb ls` runs `ls`. It is not known whether `orb rm` and `orb remove` do the same (gh#1898).
#[test]
fn orb_runs_ls_rm_and_unknown_commands_in_the_default_machine() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    sim.ok(&["run", "touch", "seen", "removed"]);
    let output = sim.orb(&["ls"]);
    assert_eq!(text(&output.stdout), "removed\nseen\n", "{output:?}");
    assert!(sim.orb(&["rm", "removed"]).status.success());
    assert_eq!(text(&sim.orb(&["ls", "-A"]).stdout), "seen\n");
    assert_eq!(sim.orb(&["remove", "box"]).status.code(), Some(127));
    assert_eq!(sim.ok(&["list", "-q"]), "box\n");
    for word in ["ls", "rm", "remove"] {
        let output = sim.run(&[word, "box"]);
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("Error: unknown command \"{word}\" for \"orbctl\"\nUsage:\n");
        assert!(text(&output.stderr).starts_with(&expected), "{output:?}");
    }
}

/// Recorded in gh#2180.
#[test]
fn delete_asks_on_stderr_and_deletes_on_yes() {
    const QUESTION: &str = "WARNING: This will PERMANENTLY DELETE ALL DATA in the following machines:
  a
  b
You cannot undo this action.

Continue [y/N]? ";
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "a"]);
    sim.ok(&["create", "ubuntu", "b"]);
    for no in ["", "\n", "n\n", "maybe\n"] {
        let output = sim.answered(&["delete", "a", "b"], no);
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), QUESTION);
        assert_eq!(output.status.code(), Some(1), "{no:?}");
    }
    assert_eq!(sim.ok(&["list", "-q"]), "a\nb\n");
    let output = sim.answered(&["delete", "a", "b"], "y\n");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(sim.ok(&["list", "-q"]), "");
    // A missing machine is not asked about, and nothing is asked with `-f`. `-v` is accepted (gh#2086).
    let output = sim.run(&["delete", "a"]);
    assert_eq!(text(&output.stderr), "[-32098] machine not found: 'a'\n");
    sim.ok(&["create", "ubuntu", "c"]);
    assert_eq!(text(&sim.run(&["delete", "-f", "-v", "c"]).stderr), "");
}

/// Recorded in gh#2339; `-y` in gh#896.
#[test]
fn reset_asks_and_removes_every_machine_and_setting() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "a"]);
    sim.ok(&["config", "set", "memory_mib", "4096"]);
    let output = sim.answered(&["reset"], "n\n");
    assert_eq!(
        text(&output.stderr),
        "WARNING: This will PERMANENTLY DELETE ALL DOCKER AND LINUX DATA!\n\
         This cannot be undone.\n\nAre you sure you want to continue [y/N]? "
    );
    assert_eq!(sim.ok(&["list", "-q"]), "a\n");
    sim.ok(&["reset", "-y"]);
    assert_eq!(sim.run(&["status"]).status.code(), Some(1));
    assert_eq!(sim.ok(&["list", "-q"]), "");
    assert_eq!(sim.ok(&["config", "get", "memory_mib"]), "16384\n");
}

/// The shape is that of gh#556, gh#2122 (`unknown flag --`) and gh#2202.
#[test]
fn usage_errors_name_the_error_then_the_usage_block() {
    let sim = Sim::new();
    let refused = |words: &[&str], error: &str, usage: &str| {
        let output = sim.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert_eq!(text(&output.stdout), "");
        let stderr = text(&output.stderr);
        let expected = format!("Error: {error}\nUsage:\n  {usage}\n");
        assert!(stderr.starts_with(&expected), "{words:?}: {stderr}");
    };
    refused(&["list", "--x"], "unknown flag: --x", "orbctl list [flags]");
    refused(
        &["list", "-x"],
        "unknown shorthand flag: 'x' in -x",
        "orbctl list [flags]",
    );
    refused(
        &["run", "-m", "box", "--", "uname", "-a"],
        "unknown flag --",
        "orbctl run [flags] -- [COMMAND] [ARGS]...",
    );
    refused(
        &["create"],
        "accepts between 1 and 2 arg(s), received 0",
        "orbctl create [flags] DISTRO[:VERSION] [NAME]",
    );
    refused(
        &["import", "x", "-n"],
        "flag needs an argument: 'n' in -n",
        "orbctl import [flags] FILE",
    );
    refused(
        &["config", "set", "a=b"],
        "accepts 2 arg(s), received 1",
        "orbctl config set [flags] KEY VALUE",
    );
    refused(
        &["config", "nosuch"],
        "unknown command \"nosuch\" for \"orbctl config\"",
        "orbctl config [command]",
    );
    refused(
        &["nosuch"],
        "unknown command \"nosuch\" for \"orbctl\"",
        "orbctl [command]",
    );
    let output = sim.orb(&["run", "--", "true"]);
    assert!(text(&output.stderr).contains("\n  orb run [flags]"), "{output:?}");
}

#[test]
fn help_and_version_answer_on_stdout_with_success() {
    let sim = Sim::new();
    let usage = sim.ok(&["delete", "-h"]);
    assert!(
        usage.starts_with("Usage:\n  orbctl delete [flags] NAME...\n"),
        "{usage}"
    );
    assert!(usage.ends_with("\n  -h, --help   help for delete\n"), "{usage}");
    assert_eq!(sim.ok(&["help", "delete"]), usage);
    assert!(sim.ok(&["shell", "-h"]).contains("Aliases:\n  run, shell\n"));
    for flag in ["--version", "-V"] {
        assert_eq!(sim.ok(&[flag]), sim.ok(&["version"]));
    }
    assert!(sim.events("work_start").is_empty());
}

/// Five public files have flags before the command.
#[test]
fn flags_of_run_may_precede_the_command() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "first"]);
    sim.ok(&["create", "ubuntu", "box"]);
    fs::write(sim.path("file"), "pushed").expect("a file");
    sim.ok(&["-m", "box", "push", "file"]);
    assert_eq!(sim.ok(&["-m", "box", "run", "cat", "file"]), "pushed");
    assert_eq!(
        sim.ok(&["--machine=box", "shell", "-w", "..", "cat", "home/file"]),
        "pushed"
    );
    assert_eq!(text(&sim.orb(&["-m", "box", "cat", "file"]).stdout), "pushed");
    assert_eq!(
        text(&sim.orb(&["-m", "box", "run", "cat", "file"]).stdout),
        "pushed"
    );
    let output = sim.run(&["-m", "box", "cat", "file"]);
    assert!(
        text(&output.stderr).starts_with("Error: unknown command \"cat\""),
        "{output:?}"
    );
}

/// `shutdown` is in gh#323; three public scripts use bare `restart`.
#[test]
fn bare_restart_and_shutdown_act_on_orbstack() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "up"]);
    sim.ok(&["create", "ubuntu", "down"]);
    sim.ok(&["stop", "down"]);
    sim.ok(&["restart"]);
    assert_eq!(sim.ok(&["status"]), "Running\n");
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "up\n");
    let halted = sim.events("work_start");
    assert!(
        halted
            .iter()
            .any(|line| line["machine"] == "up" && line["command"] == "stop")
    );
    sim.ok(&["shutdown"]);
    assert_eq!(sim.run(&["status"]).status.code(), Some(1));
    sim.ok(&["start", "-a"]);
    sim.ok(&["restart", "--all"]);
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "up\ndown\n");
}

#[test]
fn docker_and_k8s_are_accepted_but_never_listed() {
    let sim = Sim::new();
    for words in [
        &["start", "k8s"][..],
        &["stop", "docker"],
        &["restart", "docker"],
        &["logs", "docker"],
        &["delete", "-f", "k8s"],
    ] {
        sim.ok(words);
    }
    assert_eq!(sim.ok(&["list", "-f", "json"]).trim(), "[]");
    let work: Vec<Value> = sim.events("work_end");
    let names: Vec<&Value> = work.iter().map(|line| &line["machine"]).collect();
    assert_eq!(names, ["k8s", "docker", "docker", "k8s"]);
    assert!(!sim.run(&["create", "ubuntu", "docker"]).status.success());
}

#[test]
fn mounts_are_added_and_removed_one_by_one() {
    let sim = Sim::new();
    sim.ok(&["create", "--isolated", "--mount", "/a", "ubuntu", "box"]);
    sim.ok(&["config", "add", "machine.box.mounts", "/b:/c"]);
    assert_eq!(sim.ok(&["config", "get", "machine.box.mounts"]), "/a,/b:/c\n");
    sim.ok(&["config", "remove", "machine.box.mounts", "/a"]);
    assert_eq!(sim.ok(&["config", "get", "machine.box.mounts"]), "/b:/c\n");
    assert!(
        !sim.run(&["config", "remove", "machine.box.mounts", "/a"])
            .status
            .success()
    );
    assert!(
        !sim.run(&["config", "add", "machine.box.cpu", "1"])
            .status
            .success()
    );
}

// Running commands.

#[test]
fn run_keeps_args_streams_and_exit_codes() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    assert_eq!(
        sim.ok(&["run", "-m", "box", "printf", "%s|", "a b", "$HOME", "'", ""]),
        "a b|$HOME|'||"
    );
    let output = sim.run(&["run", "-m", "box", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".into(), "err\n".into())
    );
    // After the first operand, nothing is a flag.
    assert_eq!(
        sim.ok(&["run", "echo", "-m", "nosuch", "--", "x"]),
        "-m nosuch -- x\n"
    );
    assert_eq!(sim.run(&["run", "--", "true"]).status.code(), Some(1));
}

#[test]
fn run_forwards_stdin_byte_for_byte() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(300_000).collect();
    let mut command = sim.command(&["run", "-m", "box", "cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("all written");
    assert_eq!(output.stdout, bytes);
}

#[test]
fn run_passes_only_the_named_environment() {
    let sim = Sim::new()
        .with("SECRET", "s")
        .with("A", "1")
        .with("B", "2")
        .with("ORBENV", "A:NONE");
    let sim = sim.with("TERM", "dumb").with("https_proxy", "http://proxy:3128");
    sim.ok(&["create", "ubuntu", "box"]);
    let environment = sim.ok(&["run", "-e", "B", "env"]);
    let has = |line: &str| environment.lines().any(|other| other == line);
    assert!(has("A=1") && has("B=2") && has("TERM=dumb") && has("https_proxy=http://proxy:3128"));
    assert!(!environment.contains("SECRET") && !environment.contains("ORBCTL_SIM"));
}

#[test]
fn a_terminated_client_ends_its_command() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = sim.spawn(&["run", "-m", "box", "sh", "-c", script]);
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("a line");
    assert_eq!(line, "ready\n");
    signal(&child, rustix::process::Signal::TERM);
    line.clear();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("a line");
    assert_eq!(line, "asked\n");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("it lives");
}

/// It is not recorded whether the command of a real machine keeps running then. It cannot hold pipes of the Mac,
/// though.
#[test]
fn killed_client_closes_the_callers_pipes_and_its_command_lives() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let mut child = sim.spawn(&["run", "-m", "box", "sh", "-c", "echo $$; exec sleep 1000"]);
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("a line");
    signal(&child, rustix::process::Signal::KILL);
    for mut pipe in [
        Box::new(stdout) as Box<dyn std::io::Read>,
        Box::new(child.stderr.take().expect("a pipe")),
    ] {
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut pipe, &mut rest).expect("the end");
        assert_eq!(text(&rest), "");
    }
    child.wait().expect("it ends");
    let pid = rustix::process::Pid::from_raw(line.trim().parse().expect("a pid")).expect("a pid");
    rustix::process::test_kill_process(pid).expect("the command lives");
    if cfg!(target_os = "linux") {
        sim.ok(&["stop", "box"]);
        eventually("the machine's stop ends it", || {
            let status = fs::read_to_string(format!("/proc/{}/status", line.trim())).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        });
    }
}

#[test]
fn process_left_by_a_command_does_not_hold_the_callers_pipes() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let begin = Instant::now();
    assert_eq!(sim.ok(&["run", "sh", "-c", "sleep 15 & echo done"]), "done\n");
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[test]
fn stopping_a_machine_ends_its_running_command() {
    if !cfg!(target_os = "linux") {
        eprintln!("SKIPPED: a directory machine finds its commands by /proc");
        return;
    }
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    let mut child = sim.spawn(&["run", "-m", "box", "sh", "-c", "echo ready; sleep 1000"]);
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    sim.ok(&["stop", "box"]);
    assert_eq!(child.wait().expect("it ends").code(), Some(137));
}

#[test]
fn directory_machine_refuses_root() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "box"]);
    for words in [
        &["run", "-u", "root", "id"][..],
        &["run", "sudo", "id"],
        &["run", "-s", "sudo", "id"],
    ] {
        let output = sim.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(text(&output.stderr).contains("plain directory without isolation"));
    }
}

// The ledger and parallel use.

#[test]
fn ledger_has_the_start_and_end_of_every_invocation() {
    let sim = Sim::new();
    sim.ok(&["create", "ubuntu", "web"]);
    sim.run(&["run", "-m", "web", "sh", "-c", "exit 3"]);
    sim.run(&["nonsense", "word"]);
    let starts = sim.events("start");
    let commands: Vec<&Value> = starts.iter().map(|line| &line["command"]).collect();
    assert_eq!(commands, ["create", "run", "nonsense"]);
    assert_eq!(
        starts[1]["args"],
        json!(["run", "-m", "web", "sh", "-c", "exit 3"])
    );
    assert_eq!(starts[1]["machine"], "web");
    assert_eq!(starts[1]["parent"], std::process::id());
    let ends = sim.events("end");
    let exits: Vec<&Value> = ends.iter().map(|line| &line["exit"]).collect();
    assert_eq!(exits, [0, 3, 1]);
    for (start, end) in starts.iter().zip(&ends) {
        assert_eq!(start["id"], end["id"]);
        assert!(start["monotonic_ns"].as_u64() < end["monotonic_ns"].as_u64());
    }
}

#[test]
fn parallel_creates_overlap_and_all_succeed() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,create=400");
    let names: Vec<String> = (0..8).map(|number| format!("m{number}")).collect();
    let children: Vec<Child> = names
        .iter()
        .map(|name| sim.spawn(&["create", "alpine", name]))
        .collect();
    eventually("all eight are being made at once", || {
        sim.ok(&["list"]).matches("creating").count() == 8
    });
    for child in children {
        assert!(child.wait_with_output().expect("it ends").status.success());
    }
    let machines = sim.json(&["list", "-r", "-f", "json"]);
    let machines = machines.as_array().expect("an array");
    assert_eq!(machines.len(), 8);
    let ids: std::collections::BTreeSet<&str> = machines
        .iter()
        .filter_map(|machine| machine["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 8);
}

#[test]
fn one_of_two_equal_creates_is_refused() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,create=100");
    let children: Vec<Child> = (0..2).map(|_| sim.spawn(&["create", "alpine", "same"])).collect();
    let ends: Vec<Output> = children
        .into_iter()
        .map(|child| child.wait_with_output().expect("it ends"))
        .collect();
    assert_eq!(ends.iter().filter(|end| end.status.success()).count(), 1);
    let refused = ends.iter().find(|end| !end.status.success()).expect("one");
    assert!(text(&refused.stderr).contains("machine already exists: 'same'"));
}

/// CCVM: clones of one source run one after the other.
#[test]
fn clones_of_one_source_run_one_after_the_other() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,clone=20");
    sim.ok(&["create", "alpine", "web"]);
    let children: Vec<Child> = ["a", "b", "c", "d"]
        .iter()
        .map(|name| sim.spawn(&["clone", "web", name]))
        .collect();
    for child in children {
        assert!(child.wait_with_output().expect("it ends").status.success());
    }
    assert_eq!(sim.never_at_once("web"), 5);
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "web\n");
}

#[test]
fn concurrent_changes_of_one_machine_are_refused_or_run_in_sequence() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,restart=20");
    sim.ok(&["create", "alpine", "web"]);
    let children: Vec<Child> = (0..6).map(|_| sim.spawn(&["restart", "web"])).collect();
    let ends: Vec<Output> = children
        .into_iter()
        .map(|child| child.wait_with_output().expect("it ends"))
        .collect();
    let done = ends.iter().filter(|end| end.status.success()).count();
    assert_eq!(sim.never_at_once("web"), done + 1);
    for refused in ends.iter().filter(|end| !end.status.success()) {
        assert_eq!(
            text(&refused.stderr),
            "[-32098] cannot transition from starting to stopping\n"
        );
    }
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "web\n");
}

#[test]
fn two_commands_that_start_a_machine_both_run() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,start=50");
    sim.ok(&["create", "alpine", "web"]);
    sim.ok(&["stop", "web"]);
    let children: Vec<Child> = (0..2).map(|_| sim.spawn(&["run", "-m", "web", "true"])).collect();
    for child in children {
        assert!(child.wait_with_output().expect("it ends").status.success());
    }
}

// Two concurrent calls.

/// The error of a create whose machine was shut down during it: gh#2555 has it from the command line of 2.2.1, gh#1399
/// from the window of 1.7.0. gh#1583 (1.8.1) has `cancel by` instead.
const CANCELED: &str = "[-32098] create 'web': setup: do initial setup: canceled by machine shutdown\n";

/// gh#1583, gh#804: the list shows the machine as running during its initial set-up. Any shutdown of it makes the
/// create fail, and the machine is gone.
#[test]
fn a_shutdown_during_the_initial_set_up_fails_the_create() {
    for change in [
        &["stop", "web"][..],
        &["restart", "web"],
        &["delete", "-f", "web"],
        &["stop", "--all"],
        &["stop"],
    ] {
        let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,setup=60000");
        let create = sim.spawn(&["create", "alpine", "web"]);
        sim.shows("web", "running");
        sim.ok(&["run", "-m", "web", "true"]);
        sim.ok(change);
        let output = create.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{change:?}");
        assert_eq!(text(&output.stderr), CANCELED, "{change:?}");
        assert_eq!(sim.ok(&["list", "-q"]), "", "{change:?}");
    }
}

/// gh#1410 and gh#364 have the first two lines, from the command line.
#[test]
fn a_machine_that_is_being_created_refuses_every_change() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,create=60000");
    let create = sim.spawn(&["create", "alpine", "web"]);
    sim.shows("web", "creating");
    sim.refused(
        &["delete", "-f", "web"],
        "[-32098] cannot transition from creating to deleting",
    );
    for words in [&["start", "web"][..], &["run", "-m", "web", "true"]] {
        sim.refused(words, "[-32098] cannot transition from creating to starting");
    }
    for words in [&["stop", "web"][..], &["restart", "web"]] {
        sim.refused(words, "[-32098] cannot transition from creating to stopping");
    }
    for words in [&["clone", "web", "copy"][..], &["rename", "web", "shop"]] {
        sim.refused(words, "[-32098] machine is creating");
    }
    // gh#2013: OrbStack is quit during the create. The machine stays, and can neither be opened nor deleted.
    sim.ok(&["stop"]);
    let output = create.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    sim.ok(&["start"]);
    sim.shows("web", "creating");
    sim.refused(
        &["delete", "-f", "web"],
        "[-32098] cannot transition from creating to deleting",
    );
    sim.refused(
        &["run", "-m", "web", "true"],
        "[-32098] cannot transition from creating to starting",
    );
    // The maintainers' advice in gh#2013.
    sim.ok(&["reset", "-y"]);
    assert_eq!(sim.ok(&["list", "-q"]), "");
}

/// gh#1973: after `orb stop; orb start` while a clone is `provisioning`, the clone is gone.
#[test]
fn a_clone_that_is_provisioning_vanishes_when_orbstack_stops() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,clone=60000");
    sim.ok(&["create", "alpine", "web"]);
    let clone = sim.spawn(&["clone", "web", "copy"]);
    sim.shows("copy", "provisioning");
    sim.ok(&["stop"]);
    sim.ok(&["start"]);
    assert_eq!(clone.wait_with_output().expect("it ends").status.code(), Some(1));
    assert_eq!(sim.ok(&["list", "-q"]), "web\n");
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "web\n");
}

/// gh#2653: OrbStack deletes the half-made machine of a create that fails.
#[test]
fn a_create_that_fails_leaves_no_machine() {
    let sim = Sim::new();
    sim.ok(&["list"]);
    fs::write(sim.path("state/machines"), "no folder").expect("a file");
    let output = sim.run(&["create", "alpine", "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).starts_with("[-32098] create 'web': "),
        "{output:?}"
    );
    assert_eq!(sim.ok(&["list", "-q"]), "");
    fs::remove_file(sim.path("state/machines")).expect("a file");
    sim.ok(&["create", "alpine", "web"]);
}

/// The form of the refusal is recorded; these pairs of states are not.
#[test]
fn machine_in_transition_refuses_another_and_joins_the_same() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,stop=3000,start=3000,delete=3000");
    sim.ok(&["create", "alpine", "web"]);
    let stop = sim.spawn(&["stop", "web"]);
    sim.shows("web", "stopping");
    sim.refused(
        &["start", "web"],
        "[-32098] cannot transition from stopping to starting",
    );
    sim.refused(
        &["delete", "-f", "web"],
        "[-32098] cannot transition from stopping to deleting",
    );
    sim.ok(&["stop", "web"]);
    assert!(stop.wait_with_output().expect("it ends").status.success());
    let start = sim.spawn(&["start", "web"]);
    sim.shows("web", "starting");
    sim.refused(
        &["stop", "web"],
        "[-32098] cannot transition from starting to stopping",
    );
    sim.ok(&["run", "-m", "web", "true"]);
    assert!(start.wait_with_output().expect("it ends").status.success());
    let delete = sim.spawn(&["delete", "-f", "web"]);
    sim.shows("web", "deleting");
    sim.refused(
        &["start", "web"],
        "[-32098] cannot transition from deleting to starting",
    );
    assert!(delete.wait_with_output().expect("it ends").status.success());
    assert_eq!(sim.ok(&["list", "-q"]), "");
}

#[test]
fn killing_a_create_during_its_set_up_does_not_undo_it() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,setup=300");
    let mut child = sim.spawn(&["create", "alpine", "web"]);
    sim.shows("web", "running");
    signal(&child, rustix::process::Signal::KILL);
    child.wait().expect("it ends");
    eventually("the set-up is done", || {
        let work = sim.events("work_end");
        work.iter()
            .any(|line| line["command"] == "create" && line["done"] == true)
    });
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "web\n");
}

// Trouble.

/// gh#2531: the line has no error code, and the next command works.
#[test]
fn start_of_orbstack_can_time_out_although_it_succeeds() {
    let sim = Sim::new().script("[[trouble]]\ncommand = ['list', 'start*']\nkind = 'start_times_out'\n");
    sim.ok(&["create", "alpine", "web"]);
    for words in [&["list"][..], &["start"], &["start", "web"]] {
        sim.ok(&["stop"]);
        sim.refused(words, "start VM: timed out waiting for VM to start");
        assert_eq!(sim.ok(&["status"]), "Running\n");
        sim.ok(words);
    }
}

#[test]
fn empty_list_can_be_null_or_no_output() {
    let sim = Sim::new().script(
        "[[trouble]]\nnth = 1\nkind = 'empty_list'\n[[trouble]]\nnth = 2\nkind = 'empty_list'\ntext = ''\n",
    );
    let lists = [(); 3].map(|()| sim.ok(&["list", "-f", "json"]));
    assert_eq!(lists, ["null\n", "", "[]\n"]);
}

#[test]
fn slow_command_answers_after_its_delay() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'list'\nkind = 'slow'\nms = 120\n");
    let begin = Instant::now();
    sim.ok(&["list"]);
    assert!(begin.elapsed() >= Duration::from_millis(120));
}

#[test]
fn a_hanging_command_ends_by_sigterm() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'status'\nkind = 'hang'\n");
    let mut child = sim.spawn(&["status"]);
    eventually("it has begun", || !sim.events("start").is_empty());
    assert!(child.try_wait().expect("a child").is_none());
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().expect("it ends").signal(), Some(15));
    assert!(sim.events("end").is_empty());
}

#[test]
fn a_hard_hanging_command_ends_only_by_sigkill() {
    let sim = Sim::new().script("[[trouble]]\nkind = 'hang_hard'\n");
    let mut child = sim.spawn(&["status"]);
    // The mask of caught signals in /proc shows when the process handles SIGTERM (bit 14).
    if cfg!(target_os = "linux") {
        let status = format!("/proc/{}/status", child.id());
        eventually("SIGTERM is caught", || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
            let caught = caught.and_then(|mask| u64::from_str_radix(mask, 16).ok());
            caught.is_some_and(|mask| mask & (1 << 14) != 0)
        });
        signal(&child, rustix::process::Signal::TERM);
        // The signal has been delivered when it is no longer pending.
        eventually("SIGTERM is delivered", || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            text.lines().any(|line| line == "ShdPnd:\t0000000000000000")
        });
        assert!(child.try_wait().expect("a child").is_none());
    }
    signal(&child, rustix::process::Signal::KILL);
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
}

#[test]
fn panic_looks_like_a_go_panic() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'list'\nkind = 'panic'\n");
    let output = sim.run(&["list", "-f", "json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).starts_with("panic: timed out waiting for services to start"));
    assert!(text(&output.stderr).contains("goroutine 1 [running]:"));
}

#[test]
fn a_killed_command_ends_by_sigkill() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'info'\nkind = 'killed'\n");
    assert_eq!(sim.run(&["info", "x"]).status.signal(), Some(9));
}

#[test]
fn garbage_output_is_not_json_and_exits_with_success() {
    let sim = Sim::new().script("[[trouble]]\nkind = 'garbage'\n");
    let output = sim.run(&["list", "-f", "json"]);
    assert!(output.status.success());
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_err());
}

#[test]
fn scripted_failure_has_the_scripted_text_and_exit_code() {
    let sim = Sim::new()
        .script("[[trouble]]\ncommand = 'start'\nmachine = 'w*'\nkind = 'fail'\nexit = 5\ntext = 'boom'\n");
    sim.ok(&["create", "alpine", "web"]);
    sim.ok(&["create", "alpine", "db"]);
    let output = sim.run(&["start", "web"]);
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(5), "boom\n".into())
    );
    sim.ok(&["start", "db"]);
}

#[test]
fn failure_after_the_work_keeps_its_effect() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'create'\nkind = 'fail'\nwhen = 'after'\n");
    assert_eq!(sim.run(&["create", "alpine", "web"]).status.code(), Some(1));
    assert_eq!(sim.ok(&["list", "-q", "-r"]), "web\n");
}

#[test]
fn a_machine_made_while_its_client_died_appears_in_the_list() {
    let sim = Sim::new()
        .with("ORBCTL_SIM_LATENCY", "0,create=50")
        .script("[[trouble]]\ncommand = 'create'\nkind = 'made_though_client_died'\nending = 'killed'\n");
    assert_eq!(sim.run(&["create", "alpine", "web"]).status.signal(), Some(9));
    eventually("it runs", || sim.ok(&["list", "-q", "-r"]) == "web\n");
    let output = sim.run(&["create", "alpine", "web"]);
    // The second client dies as well; there must still be only one machine.
    assert_eq!(output.status.signal(), Some(9));
    assert_eq!(sim.ok(&["list", "-q"]), "web\n");
}

#[test]
fn client_of_a_create_that_hangs_still_leaves_a_machine() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'create'\nkind = 'made_though_client_died'\n");
    let mut child = sim.spawn(&["create", "alpine", "web"]);
    eventually("it runs", || sim.ok(&["list", "-q", "-r"]) == "web\n");
    assert!(child.try_wait().expect("a child").is_none());
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().expect("it ends").signal(), Some(15));
}

#[test]
fn killing_an_ordinary_create_does_not_undo_it() {
    let sim = Sim::new().with("ORBCTL_SIM_LATENCY", "0,create=150");
    let mut child = sim.spawn(&["create", "alpine", "web"]);
    eventually("it is being made", || sim.ok(&["list"]).contains("creating"));
    signal(&child, rustix::process::Signal::KILL);
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    eventually("it runs", || sim.ok(&["list", "-q", "-r"]) == "web\n");
}

#[test]
fn banner_is_on_stderr_and_json_is_unchanged() {
    let sim = Sim::new().script("[[trouble]]\nkind = 'banner'\n");
    let output = sim.run(&["list", "-f", "json"]);
    assert_eq!(text(&output.stdout).trim(), "[]");
    let banner = text(&output.stderr);
    assert!(
        banner.starts_with("\n╭") && banner.ends_with("╯\n\n"),
        "{banner:?}"
    );
}

#[test]
fn optional_keys_can_be_missing() {
    let sim = Sim::new().script("[[trouble]]\ncommand = ['list', 'info']\nkind = 'missing_optional_keys'\n");
    sim.ok(&["create", "alpine", "web"]);
    let record = &sim.json(&["list", "-f", "json"])[0];
    assert_eq!(record.get("builtin"), None);
    assert_eq!(record["image"].get("variant"), None);
    let keys: Vec<&String> = record["config"].as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["default_username", "isolated"]);
    assert_eq!(sim.json(&["info", "web", "-f", "json"]).get("disk_size"), None);
}

#[test]
fn unknown_keys_and_states_can_appear() {
    let sim = Sim::new()
        .script("[[trouble]]\nkind = 'unknown_keys'\n[[trouble]]\nkind = 'unknown_state'\nrecord = 'odd'\n");
    sim.ok(&["create", "alpine", "even"]);
    sim.ok(&["create", "alpine", "odd"]);
    let list = sim.json(&["list", "-f", "json"]);
    assert_eq!(
        (&list[0]["state"], &list[1]["state"]),
        (&json!("running"), &json!("provisioning"))
    );
    assert_eq!(list[0]["sim_future_key"], 1);
    assert!(sim.ok(&["list"]).contains("provisioning"));
}

#[test]
fn status_can_say_starting() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'status'\nkind = 'starting'\ntimes = 2\n");
    for _ in 0..2 {
        let output = sim.run(&["status"]);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(1), "Starting\n".into())
        );
    }
    assert_eq!(sim.ok(&["status"]), "Running\n");
}

#[test]
fn a_list_can_be_cut_in_half() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'list'\nnth = 2\nkind = 'list_half'\n");
    sim.ok(&["create", "alpine", "web"]);
    let whole = sim.ok(&["list", "-f", "json"]);
    let half = sim.ok(&["list", "-f", "json"]);
    assert_eq!(half, whole[..whole.len() / 2]);
}

#[test]
fn a_grandchild_can_hold_the_streams_open() {
    let sim = Sim::new().script("[[trouble]]\ncommand = 'list'\nkind = 'grandchild'\nms = 400\n");
    let begin = Instant::now();
    let mut child = sim.spawn(&["list", "-q"]);
    assert!(child.wait().expect("it ends").success());
    let ended = begin.elapsed();
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().expect("a pipe"), &mut all).expect("bytes");
    let closed = begin.elapsed();
    assert!(closed >= Duration::from_millis(400), "closed after {closed:?}");
    assert!(ended < closed);
}

#[test]
fn scripted_probability_is_the_same_in_every_run() {
    let script = "seed = 11\n[[trouble]]\ncommand = 'version'\nkind = 'fail'\nprobability = 0.5\n";
    let played = || {
        let sim = Sim::new().script(script);
        (0..24)
            .map(|_| sim.run(&["version"]).status.success())
            .collect::<Vec<bool>>()
    };
    let first = played();
    assert_eq!(first, played());
    assert!(first.contains(&true) && first.contains(&false));
}

#[test]
fn invalid_script_is_refused() {
    let sim = Sim::new().script("[[trouble]]\nkind = 'no-such-kind'\n");
    let output = sim.run(&["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("script.toml"));
}

// Isolation.

#[test]
fn isolated_machine_has_its_own_files_name_and_processes() {
    let Some(sim) = Sim::isolated() else { return };
    let host_passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    let host_name = rustix::system::uname().nodename().to_owned();
    sim.ok(&["create", "debian:12", "box"]);
    sim.ok(&["run", "-m", "box", "-u", "root", "useradd", "simguest"]);
    sim.ok(&[
        "run",
        "-m",
        "box",
        "-u",
        "root",
        "sh",
        "-c",
        "echo x > /etc/simguest-file",
    ]);
    assert_eq!(sim.ok(&["run", "-m", "box", "cat", "/etc/simguest-file"]), "x\n");
    assert!(
        sim.ok(&["run", "-m", "box", "id", "simguest"])
            .contains("(simguest)")
    );
    assert_eq!(sim.ok(&["run", "-m", "box", "hostname"]), "box\n");
    assert_eq!(sim.ok(&["run", "-m", "box", "cat", "/etc/hostname"]), "box\n");
    assert!(
        sim.ok(&["run", "-m", "box", "cat", "/etc/hosts"])
            .contains("127.0.1.1\tbox\n")
    );
    // It sees only its own processes: the first one, and the one that lists them.
    let processes = sim.ok(&["run", "-m", "box", "sh", "-c", "echo /proc/[0-9]*"]);
    assert!(processes.starts_with("/proc/1 "), "{processes}");
    assert!(processes.split_whitespace().count() <= 3, "{processes}");

    assert_eq!(fs::read_to_string("/etc/passwd").expect("passwd"), host_passwd);
    assert!(!Path::new("/etc/simguest-file").exists());
    assert_eq!(rustix::system::uname().nodename(), &*host_name);
}

#[test]
fn default_user_is_not_root_and_starts_at_home() {
    let Some(sim) = Sim::isolated() else { return };
    sim.ok(&["create", "debian", "box", "-u", "maker"]);
    assert_eq!(sim.ok(&["run", "id", "-un"]), "maker\n");
    assert_eq!(sim.ok(&["run", "pwd"]), "/home/maker\n");
    assert_eq!(
        sim.ok(&["run", "sh", "-c", "echo y > file; stat -c %U file"]),
        "maker\n"
    );
    assert_eq!(sim.ok(&["run", "-u", "root", "id", "-u"]), "0\n");
    assert_eq!(
        sim.ok(&["run", "-u", "root", "sh", "-c", "echo $HOME"]),
        "/root\n"
    );
    assert_eq!(sim.ok(&["run", "-w", "/etc", "pwd"]), "/etc\n");
    assert_eq!(sim.run(&["run", "touch", "/etc/not-mine"]).status.code(), Some(1));
    assert_eq!(
        sim.run(&["run", "-u", "nobody-at-all", "id"]).status.code(),
        Some(1)
    );
}

#[test]
fn a_restart_ends_all_processes_and_keeps_the_files() {
    let Some(sim) = Sim::isolated() else { return };
    sim.ok(&["create", "debian", "box"]);
    // The command ends when `sleep` runs, not when it is about to.
    let script = "echo kept > /opt/file; echo lost > /tmp/file; setsid sleep 1000 >/dev/null 2>&1 & \
                  until grep -qs ^sleep /proc/[0-9]*/comm; do :; done";
    sim.ok(&["run", "-u", "root", "sh", "-c", script]);
    let count = ["run", "sh", "-c", "grep -ls ^sleep /proc/[0-9]*/comm | wc -l"];
    assert_eq!(sim.ok(&count), "1\n");
    sim.ok(&["restart", "box"]);
    assert_eq!(sim.ok(&count), "0\n");
    assert_eq!(sim.ok(&["run", "cat", "/opt/file"]), "kept\n");
    assert!(!sim.run(&["run", "cat", "/tmp/file"]).status.success());
}

#[test]
fn a_clone_has_its_own_name_and_its_own_files() {
    let Some(sim) = Sim::isolated() else { return };
    sim.ok(&["create", "debian", "one"]);
    sim.ok(&[
        "run",
        "-m",
        "one",
        "-u",
        "root",
        "sh",
        "-c",
        "echo 1 > /opt/file; rm -f /etc/motd",
    ]);
    sim.ok(&["clone", "one", "two"]);
    assert_eq!(sim.ok(&["run", "-m", "two", "hostname"]), "two\n");
    sim.ok(&["run", "-m", "two", "-u", "root", "sh", "-c", "echo 2 > /opt/file"]);
    assert_eq!(sim.ok(&["run", "-m", "one", "cat", "/opt/file"]), "1\n");
    // A file deleted in the source stays deleted in the copy.
    assert!(
        !sim.run(&["run", "-m", "two", "cat", "/etc/motd"])
            .status
            .success()
    );
    sim.ok(&["export", "two", "two.tar.zst"]);
    sim.ok(&["import", "-n", "three", "two.tar.zst"]);
    assert_eq!(sim.ok(&["run", "-m", "three", "cat", "/opt/file"]), "2\n");
}

#[test]
fn machine_cannot_see_the_state_directory() {
    let Some(sim) = Sim::isolated() else { return };
    // The state directory is outside /tmp, because every machine has a /tmp of its own.
    let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let home = folder.path().join("state").display().to_string();
    let sim = sim.with("ORBCTL_SIM_HOME", &home);
    sim.ok(&["create", "debian", "box"]);
    assert_eq!(sim.ok(&["run", "-u", "root", "ls", "-A", &home]), "");
    sim.ok(&["sim-cleanup"]);
}

#[test]
fn cleaning_up_leaves_no_mount_and_no_process() {
    let Some(sim) = Sim::isolated() else { return };
    let state = sim.path("state").display().to_string();
    for name in ["a", "b"] {
        sim.ok(&["create", "debian", name]);
        sim.ok(&[
            "run",
            "-m",
            name,
            "sh",
            "-c",
            "setsid sleep 1000 >/dev/null 2>&1 &",
        ]);
    }
    let stored: Value =
        serde_json::from_str(&fs::read_to_string(sim.path("state/state.json")).expect("a state"))
            .expect("JSON");
    let residents: Vec<u64> = stored["machines"]
        .as_array()
        .expect("machines")
        .iter()
        .filter_map(|machine| machine["resident"]["pid"].as_u64())
        .collect();
    assert_eq!(residents.len(), 2);
    sim.ok(&["sim-cleanup"]);
    assert!(!Path::new(&state).exists());
    assert!(
        !fs::read_to_string("/proc/mounts")
            .expect("mounts")
            .contains(&state)
    );
    for pid in residents {
        // A process that is left may only be a zombie that its new parent has not reaped yet.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
    }
}

#[test]
fn a_machine_whose_first_process_was_killed_is_booted_again() {
    let Some(sim) = Sim::isolated() else { return };
    sim.ok(&["create", "debian", "box"]);
    let stored: Value =
        serde_json::from_str(&fs::read_to_string(sim.path("state/state.json")).expect("a state"))
            .expect("JSON");
    let pid = stored["machines"][0]["resident"]["pid"].as_i64().expect("a pid");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it lives");
    eventually("it is gone", || rustix::process::test_kill_process(pid).is_err());
    assert_eq!(sim.ok(&["run", "hostname"]), "box\n");
}
