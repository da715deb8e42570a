//! The environment of the daemon's children: it does not depend on who started the daemon, and the values of a
//! command's variables are visible to no other process.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use orbd_proto::methods::MachineRun;
use serde_json::json;

use crate::support::{World, eventually};

/// Value of a variable, which the tests search for elsewhere.
const SECRET: &str = "hunter2-4cf7e0c1";

/// Value in the environment of the process that starts a daemon.
const STARTERS: &str = "of-the-starter-77d0";

/// Variables that a child may have, apart from the stand-in's settings and orbd's own marker.
const COMPUTED: [&str; 8] = [
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TMPDIR",
    "SSH_AUTH_SOCK",
];

/// A process: `words` as `/proc` shows them to every user, `environment` as it shows it to this user.
struct Seen {
    pid: u32,
    parent: u32,
    words: Vec<u8>,
    environment: Vec<u8>,
}

impl Seen {
    fn has(&self, variable: &str) -> bool {
        self.environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(variable.as_bytes()))
    }
}

/// Lists every process except this one.
fn processes() -> Vec<Seen> {
    let all = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let of = |file: &str| fs::read(format!("/proc/{pid}/{file}"));
        let stat = String::from_utf8_lossy(&of("stat").ok()?).into_owned();
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        Some(Seen {
            pid,
            parent,
            words: of("cmdline").ok()?,
            environment: of("environ").unwrap_or_default(),
        })
    });
    all.filter(|seen| seen.pid != std::process::id()).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Collects the files below a folder that contain a text.
fn files_with(folder: &Path, text: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            files_with(&entry.path(), text, found);
        } else if kind.is_file() && contains(&fs::read(entry.path()).expect("readable"), text) {
            found.push(entry.path().display().to_string());
        }
    }
}

#[test]
fn variable_value_is_visible_only_to_its_own_orbctl_and_command() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let running = world.background(move |caller| {
        let script = format!("read line <'{gate}'; printf %s \"$TOKEN\" | wc -c; env | grep -c ORBD_");
        caller.ok::<MachineRun>(json!({
            "machine": "a",
            "command": ["sh", "-c", script],
            "env": {"TOKEN": SECRET, "PATH": "/usr/bin:/bin:/from-the-caller"},
        }))
    });
    let at_gate = world.at_gate("gate");
    let all = processes();
    let daemon = world.pid();
    let orbctl: Vec<&Seen> = all
        .iter()
        .filter(|seen| seen.parent == daemon && seen.has("ORBD_JOB="))
        .collect();
    let [orbctl] = orbctl[..] else {
        panic!("{} children of the daemon have a marker", orbctl.len());
    };
    assert!(contains(&orbctl.environment, SECRET), "the value reaches orbctl");
    // The guest's PATH is not set for orbctl.
    assert!(!orbctl.has("PATH=/usr/bin:/bin:/from-the-caller"));
    assert!(!orbctl.has("TOKEN="));
    // Descendants of the stand-in are the guest's processes, which on a Mac are in a virtual machine.
    let mut guests = vec![orbctl.pid];
    while let Some(next) = all
        .iter()
        .find(|seen| guests.contains(&seen.parent) && !guests.contains(&seen.pid))
    {
        guests.push(next.pid);
    }
    for seen in &all {
        let words = String::from_utf8_lossy(&seen.words).into_owned();
        assert!(
            !contains(&seen.words, SECRET),
            "arguments of {}: {words}",
            seen.pid
        );
        let may_have_it = guests.contains(&seen.pid);
        assert!(
            may_have_it || !contains(&seen.environment, SECRET),
            "environment of {}: {words}",
            seen.pid
        );
    }
    at_gate.open();
    let answer = running.join().expect("no panic");
    let text: String = answer
        .output
        .iter()
        .filter_map(|chunk| chunk.text.clone())
        .collect();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["16", "0"]);
    // Neither the log, the journal nor the stand-in's ledger contains the value.
    let mut found = Vec::new();
    files_with(&world.path(""), SECRET, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn guest_env_argv_passes_variables_to_the_guest() {
    let world = World::new().machines(&["a"]).set("guest_env", "argv").started();
    let answer = world.client().ok::<MachineRun>(json!({
        "machine": "a",
        "command": ["sh", "-c", "echo \"$A/$B\""],
        "env": {"A": "one two", "B": "it's\n$HOME"},
    }));
    let text: String = answer
        .output
        .iter()
        .filter_map(|chunk| chunk.text.clone())
        .collect();
    assert_eq!(text, "one two/it's\n$HOME\n");
}

#[test]
fn a_variable_that_sh_cannot_export_is_refused_by_name() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let params = json!({"machine": "a", "command": ["true"], "env": {"UID": "0"}});
    assert_eq!(caller.refused::<MachineRun>(params).field.as_deref(), Some("env"));
    let params = json!({"machine": "a", "command": ["true"], "caller_env": {"SECRET": "x"}});
    let refused = caller.refused::<MachineRun>(params);
    assert_eq!(refused.field.as_deref(), Some("caller_env"));
}

#[test]
fn child_environment_does_not_depend_on_who_started_the_daemon() {
    let mut world = World::new().machines(&["a"]);
    let own = world.path("");
    let mut starter = world.daemon_command();
    starter
        .envs([
            ("ORBENV", "LEAKED"),
            ("LEAKED", STARTERS),
            ("https_proxy", STARTERS),
            ("DISPLAY", STARTERS),
            ("TERM", STARTERS),
            ("LC_ALL", STARTERS),
            ("DYLD_INSERT_LIBRARIES", STARTERS),
            ("SSH_AUTH_SOCK", "/run/agent.sock"),
            ("TMPDIR", STARTERS),
            ("LANG", STARTERS),
            ("SHELL", STARTERS),
        ])
        .arg0("orbd");
    #[expect(
        unsafe_code,
        reason = "a process that lowers its own limits before it becomes the daemon"
    )]
    // SAFETY: umask and setrlimit are safe between fork and exec, and the closure shares nothing with this process.
    unsafe {
        starter.pre_exec(|| {
            use rustix::process::{Resource, Rlimit, setrlimit, umask};
            umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO | rustix::fs::Mode::WUSR);
            let lower = |resource, current| {
                let maximum = rustix::process::getrlimit(resource).maximum;
                setrlimit(resource, Rlimit { current, maximum })
            };
            lower(Resource::Fsize, Some(4096 * 1024))?;
            lower(Resource::Nofile, Some(256))?;
            Ok(())
        });
    }
    world.start_as(starter);
    let gate = world.gate("gate");
    let running = world.background(move |caller| {
        let script = format!("umask; ulimit -f; read line <'{gate}'; env");
        caller.run("a", &["sh", "-c", &script])
    });
    let at_gate = world.at_gate("gate");
    let daemon = world.pid();
    let all = processes();
    let orbctl = all
        .iter()
        .find(|seen| seen.parent == daemon && seen.has("ORBD_JOB="))
        .expect("a command runs");
    assert!(!contains(&orbctl.environment, STARTERS));
    assert!(orbctl.has("SSH_AUTH_SOCK=/run/agent.sock"));
    for entry in orbctl
        .environment
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty())
    {
        let name = entry.split(|byte| *byte == b'=').next().expect("a name");
        let name = String::from_utf8_lossy(name);
        assert!(
            COMPUTED.contains(&name.as_ref()) || name == "ORBD_JOB" || name.starts_with("ORBCTL_SIM_"),
            "{name}"
        );
    }
    at_gate.open();
    let answer = running.join().expect("no panic");
    let text: String = answer
        .output
        .iter()
        .filter_map(|chunk| chunk.text.clone())
        .collect();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0022"));
    let unlimited = rustix::process::getrlimit(rustix::process::Resource::Fsize)
        .maximum
        .is_none();
    assert_eq!(lines.next() == Some("unlimited"), unlimited, "{text}");
    // Files that the daemon creates are private to its user, whatever the umask.
    eventually("the metrics are there", || {
        own.join("state/metrics").is_dir().then_some(())
    });
    let mut open = Vec::new();
    modes_beyond_owner(&own.join("state"), &mut open);
    assert_eq!(open, Vec::<String>::new());
}

/// Collects files and folders that users other than the owner may read or write.
fn modes_beyond_owner(folder: &Path, found: &mut Vec<String>) {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        let metadata = entry.metadata().expect("there");
        if metadata.permissions().mode() & 0o077 != 0 {
            found.push(format!(
                "{:o} {}",
                metadata.permissions().mode(),
                entry.path().display()
            ));
        }
        if metadata.is_dir() {
            modes_beyond_owner(&entry.path(), found);
        }
    }
}

#[test]
fn callers_variables_reach_only_its_own_command() {
    let world = World::with_machines(&["a"]);
    let script = "echo \"$TERM,$https_proxy,$TOKEN,$HOME_OF_CALLER\"";
    let run = |caller_env: serde_json::Value| {
        let answer = world.client().ok::<MachineRun>(json!({
            "machine": "a", "command": ["sh", "-c", script], "caller_env": caller_env,
        }));
        let text: String = answer
            .output
            .iter()
            .filter_map(|chunk| chunk.text.clone())
            .collect();
        text.trim_end().to_owned()
    };
    let given = json!({"ORBENV": "TOKEN", "TOKEN": "s", "TERM": "xterm", "https_proxy": "http://p"});
    assert_eq!(run(given), "xterm,http://p,s,");
    assert_eq!(run(json!({})), ",,,");
}
