//! The same commands as an `orbctl run` each and through a channel: output, exit code, side effects and records are equal.
//!
//! Each command runs in two machines whose commands start in the same way, but only one of them has a channel. The combinations of `sh`,
//! login shell and behaviour of `orbctl run` are those that users have, and those that no recording rules out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orbd_proto::methods::{MachineList, MachineRun, MetricsHistory};
use orbd_proto::types::{MetricsRecord, RunAnswer, Stream};
use serde_json::{Value, json};

use crate::support::{Caller, World, has_program, stream_of};

const ALONE: &str = "alone";
const THROUGH: &str = "through";

/// Scripts for `sh -c`.
const SCRIPTS: &[&str] = &[
    // Exit codes and signals.
    "exit 0",
    "exit 1",
    "exit 7",
    "exit 126",
    "exit 127",
    "exit 255",
    "exit 300",
    "false",
    "kill -TERM $$",
    "kill -KILL $$",
    "kill -HUP $$",
    "kill -INT $$",
    "kill -QUIT $$; exit 9",
    "kill -SEGV $$",
    "kill -PIPE $$",
    "kill -USR1 $$",
    "trap 'echo caught; exit 3' TERM; kill -TERM $$; exit 4",
    "trap 'echo bye' EXIT; exit 5",
    "trap '' INT TERM; kill -TERM $$; echo ignored",
    "sh -c 'exit 9'; echo $?",
    "(exit 4); echo $?",
    "set -e; false; echo unreached",
    "set -u; echo $nosuchvariable",
    "return 3",
    // Output.
    "echo out; echo err >&2",
    "printf 'no line end'",
    "printf 'no line end' >&2",
    "printf '\\n\\n\\n'",
    "printf '\\036'",
    "printf 'a\\036b\\036'",
    "printf '\\000\\001\\377\\376'",
    "printf '\\r\\nx\\r'",
    "head -c 300000 /dev/zero",
    "head -c 65536 /dev/zero | tr '\\0' y",
    "head -c 65537 /dev/zero | tr '\\0' y >&2",
    "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done",
    "i=0; while [ $i -lt 300 ]; do echo $i >&2; i=$((i+1)); done",
    "exec 2>&1; echo one; echo two >&2; echo three",
    "exec >&2; echo all to stderr",
    "exec >&-; echo lost; exit 4",
    "exec 2>&-; echo lost >&2; exit 4",
    "echo x >/dev/stdout",
    "echo x >/dev/stderr",
    "yes | head -n 1000 | tail -n 1",
    "seq 1 20000",
    "echo 'ünïcödé €'",
    "printf '\\377\\376 not UTF-8\\n'",
    // Descriptors, terminal, session.
    "for f in /proc/self/fd/*; do [ -e $f ] && echo ${f##*/}; done",
    "tty; test -t 0; echo $?",
    "test -t 1; echo $?; test -t 2; echo $?",
    "read -r a b c </proc/self/stat; echo ok",
    "echo x 3>&1 >&3",
    "exec 5>file5; echo five >&5; exec 5>&-; cat file5; rm file5",
    // Environment and place.
    "env | grep -v -e ^_= -e ^PWD= -e ^OLDPWD= -e ^HOME= -e ^PATH= | sort",
    "echo \"$HOME\" | sed 's,.*/,,'",
    "pwd | sed 's,.*/,,'",
    "echo \"$SHLVL|$0|$#|$-\"",
    "cd /tmp && pwd",
    "cd /nosuch || echo $?",
    "cd ..; basename \"$OLDPWD\"",
    "umask; umask 077; umask",
    "ulimit -n; ulimit -c; ulimit -s",
    "id -u; id -g",
    "hostname",
    "nice",
    "trap",
    "alias",
    "set -- a 'b c'; echo $# \"$2\"",
    "unset HOME; echo \"[$HOME]\"",
    "PATH=; echo $?",
    "export X=1; sh -c 'echo $X'",
    "IFS=:; set -- a:b; echo $1",
    "echo ${orbd_token-none} ${orbd_x-none} ${orbd_rest-none}",
    "env | grep -c orbd_",
    // Input: none is given.
    "cat",
    "read -r line; echo \"$? [$line]\"",
    "wc -c",
    "cat - /dev/null",
    "sh",
    // Processes.
    "sleep 0.01 & wait; echo waited",
    "(sleep 0.02; echo late) & echo first; wait",
    "true & true & wait; echo $?",
    "sleep 0.01 && echo slept",
    "nohup true 2>/dev/null; echo $?",
    "setsid true; echo $?",
    "exec true",
    "exec sh -c 'echo replaced; exit 2'",
    "sh -c 'kill -9 $PPID'; echo $?",
    "x=$(echo sub); echo $x",
    "cat <<E\nhere $((1+1))\nE",
    "cat <<'E'\nhere $((1+1))\nE",
    "echo a | (read -r x; echo got $x)",
    "if true; then echo yes; else echo no; fi",
    "case abc in a*) echo match;; esac",
    "f() { echo in $1; return 3; }; f x; echo $?",
    "for i in 1 2 3; do printf %s $i; done",
    "test -d . && [ -w . ]; echo $?",
    "eval 'echo eval'",
    "command -v sh >/dev/null; echo $?",
    "type nosuch; echo $?",
    "nosuch-program",
    "./nosuch",
    "/",
    "/etc/passwd",
    "echo $(( 7 / 2 ))",
    "echo `echo back`",
    "echo '$HOME' \"\\$HOME\"",
    "echo 'single'\"double\"bare",
    "echo a\\ b",
    "echo !",
    "echo '!x' \"!x\"",
    "printf '%s\\n' * | sort | head -n 3",
    "echo # comment",
    "echo ~ | sed 's,.*/,,'",
    "printf '%s|' \"$@\"",
    "true; ; true",
    "echo 'unterminated",
    "if",
    // Side effects.
    "echo text >file; cat file",
    "mkdir -p d/e && echo x >d/e/f && find d | sort && rm -r d",
    "echo more >>file; wc -l <file",
    "ln -s file link; readlink link; rm link",
    "chmod 600 file; ls -l file | cut -c1-10; rm file",
    "touch 'a b'; ls; rm 'a b'",
    "printf x >.hidden; ls -a | grep hidden; rm .hidden",
    "mkfifo p; (echo through >p &) ; cat p; rm p",
    // What the PyInfra connector and PyInfra's facts send.
    "uname -s",
    "! command -v nosuchtool >/dev/null || (nosuchtool --version || true)",
    "cat /etc/os-release 2>/dev/null | head -n 1",
    "! test -e /etc/nosuch || ( sed -n 1p /etc/nosuch )",
    "stat -c 'user=%U group=%G mode=%A atime=%X mtime=%Y ctime=%Z size=%s %N' /etc/nosuch 2>/dev/null || stat -c %n /etc/passwd",
    "getent passwd 0",
    "sudo -n true 2>/dev/null; [ $? -lt 2 ]; echo $?",
    "export A='1' && cd /tmp && sh -c 'echo $A; pwd'",
    "sh -c 'sh -c '\"'\"'echo nested'\"'\"''",
    "command -v mktemp >/dev/null && f=$(mktemp) && test -f \"$f\" && rm \"$f\" && echo made",
    "cat >written; wc -c <written; rm written",
    "cat /etc/nosuch",
    "chown nosuchuser file 2>&1 | head -n 1",
];

/// Words that are no script.
const WORDS: &[&[&str]] = &[
    &["true"],
    &["false"],
    &["echo"],
    &["echo", "a  b", "c"],
    &["nosuch-program"],
    &["nosuch-program", "an argument"],
    &["/nonexistent/program", "x"],
    &["/"],
    &["/etc/passwd"],
    &["cat", "/nosuch"],
    &[
        "printf", "%s|", "", " ", "\t", "it's", "\"$x\"", "`y`", "!", "*", "~", "-n", "é",
    ],
    &["printf", "%s|", "line\nend", "\n"],
    &["printf", "\\036 \\0 \\377"],
    &["env", "-i", "A=b", "env"],
    &["test", "a", "=", "b"],
    &["sh", "-c", "echo \"$0 $1\"", "name", "argument"],
    &["sh", "-e", "-c", "false; echo unreached"],
    &["id", "-u"],
    &["sleep", "0"],
    &["expr", "1", "+", "1"],
];

/// Input, with the script that reads it.
fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let all: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
    vec![
        ("cat", b"text\n".to_vec()),
        ("cat", b"no line end".to_vec()),
        ("cat", all.clone()),
        ("cat", b"\n\n \n".to_vec()),
        ("cat", b"  ".to_vec()),
        ("cat", b"%s \\n \\0 \\c .".to_vec()),
        ("wc -c", vec![b'x'; 100_000]),
        ("cksum", all.repeat(200)),
        ("exit 3", vec![b'x'; 100_000]),
        ("head -c 3", b"abcdef".to_vec()),
        ("read -r a; read -r b; echo \"$b\"; cat", b"1\n2\n3\n".to_vec()),
        ("exec <&-; echo closed", b"unread".to_vec()),
        ("sh", b"echo from stdin; exit 6\n".to_vec()),
        ("cat >file; cat file; rm file", all),
        ("true", b"unread".to_vec()),
        ("sleep 0.01; cat", b"late reader".to_vec()),
    ]
}

/// What a channel does otherwise, and the line of `docs/channels.md` that says so.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "ls -l /proc/self/fd/0 | grep -c pipe",
        "A command without input reads `/dev/null`",
    ),
    (
        "kill -KILL $PPID; sleep 1",
        "A command that ends its parent process",
    ),
];

/// What a command did, without what differs between two machines: ids, times, and the machine's folder.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    exit_code: Option<i32>,
    error: Option<String>,
    stdout: String,
    stderr: String,
    home: BTreeMap<String, String>,
}

/// Two machines in which commands start in the same way.
struct Pair {
    world: World,
    caller: Caller,
    folders: [String; 2],
    /// The jobs of each command.
    jobs: Vec<[u64; 2]>,
}

impl Pair {
    fn new(answers: &str) -> Self {
        let world = World::new()
            .channels()
            .variable("ORBCTL_SIM_ANSWERS", answers)
            .machines(&[ALONE, THROUGH])
            .started();
        let mut caller = world.client();
        let machines = caller.ok::<MachineList>(json!({})).machines;
        let folder = |name: &str| {
            let machine = machines
                .iter()
                .find(|machine| machine.name == name)
                .expect("it exists");
            world.path("sim/machines").join(&machine.id).display().to_string()
        };
        let folders = [folder(ALONE), folder(THROUGH)];
        assert!(
            folders.iter().all(|folder| Path::new(folder).is_dir()),
            "{folders:?}"
        );
        let mut pair = Self {
            world,
            caller,
            folders,
            jobs: Vec::new(),
        };
        // Opens the channel once the daemon has seen what a run costs.
        for _ in 0..2 {
            pair.run(1, &json!({"command": ["true"]}));
        }
        pair.jobs.clear();
        pair
    }

    fn run(&mut self, which: usize, params: &Value) -> (Option<u64>, Seen) {
        let name = [ALONE, THROUGH][which];
        let mut params = params.clone();
        params["machine"] = name.into();
        params["channel"] = ["off", "open"][which].into();
        let folder = self.folders[which].clone();
        let plain = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace(folder.as_str(), "MACHINE");
            text.replace(&format!("'{name}'"), "MACHINE")
        };
        let (id, exit_code, error, output) = match self.caller.call::<MachineRun>(params) {
            Ok(answer) => (Some(answer.job_id), answer.exit_code, None, self.output(&answer)),
            Err(error) => {
                let data = error.data.expect("data");
                (data.job_id, None, Some(data.kind), [Vec::new(), Vec::new()])
            }
        };
        let seen = Seen {
            exit_code,
            error,
            stdout: plain(&output[0]),
            stderr: plain(&output[1]),
            home: files(&Path::new(&folder).join("home")),
        };
        (id, seen)
    }

    fn output(&mut self, answer: &RunAnswer) -> [Vec<u8>; 2] {
        let mut chunks = answer.output.clone();
        if answer.next_offset < answer.output_bytes {
            chunks.extend(
                self.caller
                    .output_from(answer.job_id, answer.next_offset, 1 << 20),
            );
        }
        [Stream::Stdout, Stream::Stderr].map(|stream| stream_of(&chunks, stream))
    }

    /// Runs a command in both machines, and adds what differs to `differences`.
    fn compare(&mut self, what: &str, params: &Value, differences: &mut Vec<String>) {
        let (alone, expected) = self.run(0, params);
        let (through, seen) = self.run(1, params);
        if let (Some(alone), Some(through)) = (alone, through) {
            self.jobs.push([alone, through]);
        }
        if seen != expected {
            differences.push(format!("{what}\n  alone:   {expected:?}\n  through: {seen:?}"));
        }
    }

    /// Compares the records of all commands.
    fn compare_records(&mut self, differences: &mut Vec<String>) {
        let mut records = BTreeMap::new();
        let mut cursor = Value::Null;
        loop {
            let page = self
                .caller
                .ok::<MetricsHistory>(json!({"limit": 500, "cursor": cursor}));
            records.extend(page.records.into_iter().map(|record| (record.job_id, record)));
            match page.cursor {
                Some(next) => cursor = next.into(),
                None => break,
            }
        }
        let recorded = |record: &MetricsRecord| {
            (
                record.outcome.clone(),
                record.exit_code,
                record.bytes_in,
                record.bytes_out,
            )
        };
        for jobs in &self.jobs {
            let [alone, through] =
                jobs.map(|id| records.get(&id).unwrap_or_else(|| panic!("{id} has a record")));
            let in_channel = (alone.in_channel, through.in_channel);
            if in_channel != (false, true) {
                differences.push(format!(
                    "job {} ran through a channel: {in_channel:?}",
                    through.job_id
                ));
            }
            // A path in the output may be longer in one of the machines.
            let longest = 16;
            let (mut one, mut other) = (recorded(alone), recorded(through));
            if one.3.abs_diff(other.3) <= longest {
                (one.3, other.3) = (0, 0);
            }
            if one != other {
                differences.push(format!("records differ: {one:?} {other:?}"));
            }
        }
    }
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let content = fs::read(entry.path()).unwrap_or_default();
        found.insert(name, String::from_utf8_lossy(&content).into_owned());
    }
    found
}

/// Runs every command under these answers of the stand-in.
#[track_caller]
fn compare(answers: &str) {
    let mut pair = Pair::new(answers);
    let mut differences = Vec::new();
    for script in SCRIPTS {
        pair.compare(
            script,
            &json!({"command": ["sh", "-c", script]}),
            &mut differences,
        );
    }
    for words in WORDS {
        pair.compare(&words.join(" "), &json!({"command": words}), &mut differences);
    }
    for (script, input) in inputs() {
        let params = json!({"command": ["sh", "-c", script], "stdin_base64": STANDARD.encode(&input)});
        let jobs = pair.jobs.len();
        pair.compare(
            &format!("{script} <{} bytes", input.len()),
            &params,
            &mut differences,
        );
        if script == "exit 3" {
            // How much of it fits into a pipe before the end is not the same twice.
            pair.jobs.truncate(jobs);
        }
    }
    for params in [
        json!({"command": ["sh", "-c", "echo \"$A|$B\""], "env": {"A": "it's\n", "B": ""}}),
        json!({"command": ["env"], "env": {"PATH": "/usr/bin:/bin", "LANG": "C", "HOME": "/tmp", "SHELL": "/bin/sh",
            "USER": "u", "LOGNAME": "u", "PWD": "/", "_": "x", "SHLVL": "7"}}),
        json!({"command": ["pwd"], "workdir": "/tmp"}),
        json!({"command": ["pwd"], "workdir": "/nosuch"}),
        json!({"command": ["sleep", "1000"], "run_timeout_ms": 200}),
        json!({"command": ["sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"], "run_timeout_ms": 200}),
    ] {
        let has_workdir = params.get("workdir").is_some();
        let jobs = pair.jobs.len();
        pair.compare(&params.to_string(), &params, &mut differences);
        if has_workdir {
            // Only `orbctl` can start it there.
            pair.jobs.truncate(jobs);
        }
    }
    pair.compare_records(&mut differences);
    for (script, said) in DIFFERENT {
        let mut found = Vec::new();
        pair.compare(script, &json!({"command": ["sh", "-c", script]}), &mut found);
        if found.is_empty() {
            differences.push(format!("{script}: no difference any more: {said}"));
        }
    }
    assert!(
        differences.is_empty(),
        "{answers}: {} differences\n{}",
        differences.len(),
        differences.join("\n")
    );
    pair.world.ledger().assert_no_overlap();
}

macro_rules! under {
    ($($name:ident: $needs:expr, $answers:expr;)+) => {
        $(
            #[test]
            fn $name() {
                let needs: &[&str] = &$needs;
                if needs.iter().all(|program| has_program(program, program)) {
                    compare($answers);
                }
            }
        )+
    };
}

under! {
    started_directly: [], "";
    dash_and_bash: ["dash"], "sh=dash,run-shell=bash";
    bash_and_zsh: ["zsh"], "sh=bash,run-shell=zsh";
    busybox_and_fish: ["busybox", "fish"], "sh=busybox,run-shell=fish";
    dash_and_bash_with_profile: ["dash"], "sh=dash,run-shell=bash,run-profile=read";
    signals_are_not_forwarded: ["dash"], "sh=dash,run-shell=bash,run-signals=client-only,run-lost=killed";
    small_writes: ["dash"], "sh=dash,run-shell=bash,run-stdin=chunks,run-output=chunks";
    children_are_awaited: ["dash"], "sh=dash,run-shell=bash,run-children=awaited";
}

/// The other combinations of `sh` and login shell.
#[test]
#[ignore = "takes a minute; `make soak-channels` runs it"]
fn every_combination_of_shells() {
    for sh in ["dash", "bash", "busybox"] {
        for login in ["bash", "zsh", "fish"] {
            compare(&format!("sh={sh},run-shell={login}"));
        }
    }
}

#[test]
fn documentation_names_every_difference() {
    let page = include_str!("../docs/channels.md");
    for (script, said) in DIFFERENT {
        assert!(page.contains(said), "{script}: {said}");
    }
}

/// Input that is forwarded only at its end cannot carry a channel: every command is an `orbctl run`.
#[test]
fn buffered_input_leaves_every_command_as_it_was() {
    let world = World::new()
        .channels()
        .variable("ORBCTL_SIM_ANSWERS", "run-stdin=at-end")
        .machines(&[THROUGH])
        .started();
    let mut caller = world.client();
    for _ in 0..3 {
        let params =
            json!({"machine": THROUGH, "command": ["cat"], "stdin_text": "input", "channel": "open"});
        let answer = caller.ok::<MachineRun>(params);
        assert_eq!(stream_of(&answer.output, Stream::Stdout), b"input");
        assert!(!caller.job(answer.job_id).in_channel);
    }
}
