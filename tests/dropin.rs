//! The drop-in compared with the bare stand-in: the same args give the same bytes, exit code and signals. The drop-in
//! also takes part in the queue.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests call the tool as any program would, with the drop-in before it and without"
)]

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use orbd_proto::methods::{MetricsCounters, QueueDrain};
use orbd_proto::types::JobStateWord;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::ctl_suite::{call, ctl, said};
use crate::support::{Random, World, eventually, is_alive, outcome_of, state_of};

/// Ways to call the tool: directly, and through the drop-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Bare,
    DropIn,
}

impl Way {
    /// Returns a folder of a world whose `orbctl` and `orb` are links to the program for this way.
    pub(crate) fn folder(self, world: &World) -> PathBuf {
        let (name, program) = match self {
            Self::Bare => ("bare", programs::orbctl_sim()),
            Self::DropIn => ("dropin", programs::orbd_ctl()),
        };
        let folder = world.path(name);
        // The folder may exist since the last call.
        let _ = fs::create_dir(&folder);
        for name in ["orbctl", "orb"] {
            let _ = symlink(program, folder.join(name));
        }
        folder
    }

    /// Describes a call; its first arg is the tool's name.
    pub(crate) fn command(self, world: &World, words: &[&str]) -> Command {
        let mut command = Command::new(self.folder(world).join(words[0]));
        let daemon = world.daemon_command();
        command
            .args(&words[1..])
            .env_clear()
            .envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(world.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn call(self, world: &World, words: &[&str]) -> Output {
        self.command(world, words).output().expect("it starts")
    }
}

fn line(text: &str) -> Vec<&str> {
    text.split(' ').filter(|word| !word.is_empty()).collect()
}

/// Returns stdout, stderr and exit status, for comparison.
fn shown(output: &Output) -> (String, String, ExitStatus) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status)
}

/// Calls that change nothing, valid and invalid.
const HARMLESS: &str = "
    orbctl
    orbctl list
    orbctl list -q
    orbctl list -r -q
    orbctl list -f json
    orbctl list --format=text --running
    orbctl list extra
    orbctl list --colour
    orbctl list -f
    orbctl list -f yaml
    orb list
    orbctl info a
    orbctl info a -f json
    orbctl info -fjson b
    orbctl info gone
    orbctl info gone -f json
    orbctl info
    orbctl info a b
    orbctl status
    orbctl status a
    orbctl version
    orbctl --version
    orbctl help
    orbctl --help
    orb -h
    orbctl ssh
    orbctl default
    orbctl default gone
    orbctl logs a
    orbctl logs --all a
    orbctl logs gone
    orbctl config show
    orbctl config get cpu
    orbctl config get machine.a.username
    orbctl config get no.such.key
    orbctl config get
    orbctl config
    orbctl config set
    orbctl update --check
    orbctl nonsense and more
    orbctl create
    orbctl create ubuntu a
    orbctl create nosuchdistro x
    orbctl create ubuntu x --gpu
    orbctl start gone
    orbctl start a gone
    orbctl stop gone
    orbctl restart gone
    orbctl delete gone
    orbctl delete -f gone
    orbctl rename gone x
    orbctl rename a
    orbctl clone gone x
    orbctl clone a b
    orbctl export gone x.tar.zst
    orbctl import -n x nosuchfile
    orbctl import nosuchfile
    orbctl push -m a nosuchfile
    orbctl push -m gone nosuchfile
    orbctl pull -m a nosuchfile
    orbctl run
    orbctl run -m gone true
    orbctl run --bad true
    orbctl run -m a -- true
    orbctl run -m a true
    orbctl run -m a nosuchcommand
    orbctl run -m a sh -c exit\t7
    orbctl run -m a sh -c echo\tout;echo\terr>&2
    orbctl run -m a -u nosuchuser true
    orbctl run -m a echo --help -f
    orb -m a echo hello
    orb echo hello
    orb nosuchcommand
    orb
";

#[test]
fn read_only_calls_print_and_exit_as_the_bare_tool() {
    let world = World::with_machines(&["a", "b"]);
    let lines: Vec<&str> = HARMLESS
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    for text in &lines {
        // A tab is a blank within an arg.
        let words: Vec<String> = line(text).iter().map(|word| word.replace('\t', " ")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| way.call(&world, &words));
        assert_eq!(shown(&ours), shown(&bare), "{text}");
    }
    // The calls went through the drop-in: orbd has jobs of its client name.
    let jobs = world.client().jobs();
    assert!(jobs.len() > lines.len() / 2, "{}", jobs.len());
    assert!(jobs.iter().all(|job| job.client.name == "orbctl"));
}

/// Calls that change something, made in this order.
const CHANGES: &str = "
    orbctl create ubuntu b
    orbctl create ubuntu b
    orbctl create ubuntu:noble
    orbctl new debian c --isolated -a arm64
    orbctl start b
    orbctl stop b
    orbctl run -m b true
    orbctl restart b
    orbctl stop b c
    orbctl start b c
    orbctl rename b d
    orbctl info b
    orbctl clone d e
    orbctl default d
    orbctl default
    orb echo x
    orbctl default none
    orbctl config set machine.d.http_port 8080
    orbctl config get machine.d.http_port
    orbctl config set cpu
    orbctl config set cpu many
    orbctl config reset
    orbctl export d d.tar.zst
    orbctl import -n f d.tar.zst
    orbctl push -m d file
    orbctl pull -m d file copy
    orbctl stop --all
    orbctl list -q -r
    orbctl start --all
    orbctl list -q -r
    orbctl delete e f
    orbctl delete -f c
    orbctl list -q
    orbctl stop
    orbctl status
    orbctl start
    orbctl status
    orbctl update
";

#[test]
fn changes_have_the_output_and_effect_of_the_bare_tool() {
    let worlds = [Way::Bare, Way::DropIn].map(|way| {
        let world = World::with_machines(&["a"]);
        fs::write(world.path("home").join("file"), "content\n").expect("a file");
        (way, world)
    });
    for text in CHANGES.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let [bare, ours] = worlds.each_ref().map(|(way, world)| {
            let (stdout, stderr, status) = shown(&way.call(world, &line(text)));
            // Each world has a home of its own.
            let home = world.path("home").display().to_string();
            (stdout.replace(&home, "~"), stderr.replace(&home, "~"), status)
        });
        assert_eq!(ours, bare, "{text}");
    }
    let [bare, ours] = worlds.each_ref().map(|(_, world)| world.truth());
    assert_eq!(ours, bare);
    let [(_, bare), (_, ours)] = worlds;
    let content = |world: &World| fs::read(world.path("home").join("copy")).ok();
    assert_eq!(content(&ours), content(&bare));
    assert!(content(&ours).is_some());
    let ledger = ours.ledger();
    ledger.assert_no_overlap();
    assert_eq!(ledger.spawns("create"), bare.ledger().spawns("create"));
}

#[test]
fn megabytes_go_in_and_come_out_byte_for_byte() {
    let world = World::with_machines(&["a"]);
    let bytes = Random::new(7).bytes(3 << 20);
    for stream in ["cat", "cat >&2"] {
        let mut child = Way::DropIn
            .command(&world, &["orbctl", "run", "-m", "a", "sh", "-c", stream])
            .stdin(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("piped");
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || input.write_all(&sent).expect("it reads"));
        let output = child.wait_with_output().expect("ours");
        writer.join().expect("no panic");
        let (full, empty) = if stream == "cat" {
            (&output.stdout, &output.stderr)
        } else {
            (&output.stderr, &output.stdout)
        };
        assert!(*full == bytes, "{stream}: {} bytes came back", full.len());
        assert!(empty.is_empty(), "{stream}");
    }
}

#[test]
fn non_text_output_of_a_read_is_passed_on_unchanged() {
    let world = World::new()
        .machines(&["a"])
        .script("[[trouble]]\ncommand = \"list\"\nkind = \"list_half\"")
        .started();
    let [bare, ours] =
        [Way::Bare, Way::DropIn].map(|way| way.call(&world, &["orbctl", "list", "-f", "json"]));
    assert_eq!(shown(&ours), shown(&bare));
    let odd = program(
        &world,
        "odd",
        "printf '\\377\\000\\n'; printf '\\376' >&2; exit 3",
    );
    let world = world.variable("ORBD_ORBCTL", odd.to_str().expect("text"));
    let mut world = world;
    world.terminate();
    world.ended();
    world.start();
    let ours = Way::DropIn.call(&world, &["orbctl", "list"]);
    assert_eq!(ours.stdout, b"\xff\0\n");
    assert_eq!(ours.stderr, b"\xfe");
    assert_eq!(ours.status.code(), Some(3));
}

/// Writes a shell script that is used as the tool.
pub(crate) fn program(world: &World, name: &str, script: &str) -> PathBuf {
    let path = world.path(name);
    let mut file = fs::File::create(&path).expect("a file");
    file.write_all(format!("#!/bin/sh\n{script}\n").as_bytes())
        .expect("written");
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .expect("ours");
    path
}

/// Returns a world in which a script is used as the tool.
fn with_tool(script: &str) -> World {
    let world = World::new();
    let tool = program(&world, "tool", script);
    world
        .variable("ORBD_ORBCTL", tool.to_str().expect("text"))
        .started()
}

#[test]
fn tool_gets_the_callers_folder_environment_args_and_open_files() {
    let world = with_tool("pwd; for word; do echo \"<$word>\"; done; cat <&3; echo ---; env | sort");
    let folder = world.path("here");
    fs::create_dir(&folder).expect("a folder");
    fs::write(world.path("third"), "the third\n").expect("a file");
    let command = Way::DropIn.command(&world, &["orbctl"]);
    let mut shell = Command::new("/bin/sh");
    let output = shell
        .args(["-c", "exec \"$0\" nonsense '' 'a b' --x 3<\"$THIRD\""])
        .arg(command.get_program())
        .env_clear()
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("THIRD", world.path("third"))
        .env("OWN", "value")
        .current_dir(&folder)
        .output()
        .expect("it starts");
    let stdout = String::from_utf8(output.stdout.clone()).expect("text");
    let (before, environment) = stdout.split_once("---\n").expect("both");
    assert_eq!(
        before,
        format!(
            "{}\n<nonsense>\n<>\n<a b>\n<--x>\nthe third\n",
            folder.canonicalize().expect("there").display()
        ),
        "{}",
        said(&output)
    );
    let mut told: Vec<&str> = environment
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    told.retain(|name| *name != "_");
    let mut expected: Vec<String> = command
        .get_envs()
        .filter_map(|(name, value)| value.map(|_| name.to_str().expect("text").to_owned()))
        .chain(["THIRD", "OWN", "PWD", "ORBD_JOB", "ORBD_DROPIN"].map(Into::into))
        // The shell of this test adds it, not the drop-in.
        .chain(environment.contains("\nSHLVL=").then(|| "SHLVL".into()))
        .chain(environment.contains("\nOLDPWD=").then(|| "OLDPWD".into()))
        .collect();
    expected.sort();
    told.sort_unstable();
    assert_eq!(told, expected);
}

/// Starts a call whose command in the machine waits at a gate; returns it with the tool's process id.
pub(crate) fn at_gate(world: &World, way: Way) -> (Child, u32) {
    let gate = world.gate(match way {
        Way::Bare => "gate-bare",
        Way::DropIn => "gate-dropin",
    });
    let before = world.ledger().of("run").len();
    let child = way
        .command(world, &["orbctl", "run", "-m", "a", "cat", &gate])
        .spawn()
        .expect("it starts");
    let tool = eventually("the tool runs", || {
        world.ledger().of("run").get(before).map(|run| run.pid)
    });
    // The gate is held open, so that only a signal ends the command.
    std::mem::forget(
        world.at_gate(
            Path::new(&gate)
                .file_name()
                .expect("a name")
                .to_str()
                .expect("text"),
        ),
    );
    (child, tool)
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("it is ours");
}

pub(crate) fn end_of(child: &mut Child) -> ExitStatus {
    eventually("it ends", || child.try_wait().expect("ours"))
}

#[test]
fn signal_that_ends_the_tool_ends_the_drop_in() {
    for signal in [
        Signal::KILL,
        Signal::TERM,
        Signal::INT,
        Signal::QUIT,
        Signal::USR1,
    ] {
        let world = World::with_machines(&["a"]);
        let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| {
            let (mut child, tool) = at_gate(&world, way);
            kill(tool, signal);
            let status = end_of(&mut child);
            (status.code(), status.signal())
        });
        assert_eq!(ours, bare, "{signal:?} to the tool");
    }
}

#[test]
fn signals_to_the_drop_in_reach_the_tool() {
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
    ] {
        let world = World::with_machines(&["a"]);
        let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| {
            let (mut child, tool) = at_gate(&world, way);
            kill(child.id(), signal);
            let status = end_of(&mut child);
            eventually("the tool is gone", || (!is_alive(tool)).then_some(()));
            (status.code(), status.signal())
        });
        assert_eq!(ours, bare, "{signal:?} to what was called");
    }
}

#[test]
fn drop_in_stops_and_continues_with_the_tool() {
    let world = World::with_machines(&["a"]);
    let (mut child, tool) = at_gate(&world, Way::DropIn);
    for _ in 0..20 {
        kill(tool, Signal::STOP);
        eventually("both are stopped", || {
            (state_of(tool) == Some('T') && state_of(child.id()) == Some('T')).then_some(())
        });
        kill(child.id(), Signal::CONT);
        eventually("both go on", || {
            (state_of(tool) != Some('T') && state_of(child.id()) != Some('T')).then_some(())
        });
    }
    kill(child.id(), Signal::TERM);
    end_of(&mut child);
}

#[test]
fn closed_stdout_ends_the_call_as_with_the_bare_tool() {
    let world = World::with_machines(&["a"]);
    let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| {
        let mut child = way
            .command(&world, &["orbctl", "run", "-m", "a", "sh", "-c", "exec yes 2>&1"])
            .spawn()
            .expect("it starts");
        let mut some = [0; 4];
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut some).expect("it writes");
        drop(stdout);
        let status = end_of(&mut child);
        (some, status.code(), status.signal())
    });
    assert_eq!(ours, bare);
    // The drop-in writes this output itself, and ends at a closed pipe as programs do.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = Way::DropIn
        .command(&world, &["orbctl", "list"])
        .stdout(writer)
        .status()
        .expect("it starts");
    assert_eq!(status.signal(), Some(Signal::PIPE.as_raw()));
}

#[test]
fn concurrent_equal_reads_share_one_run() {
    let world = World::new();
    let (first, second) = (world.gate("first"), world.gate("second"));
    let been = world.path("been").display().to_string();
    let script = format!(
        "if [ -e {been} ]; then read line <{second}; else : >{been}; read line <{first}; fi; echo \"$@\""
    );
    let tool = program(&world, "tool", &script);
    let world = world
        .variable("ORBD_ORBCTL", tool.to_str().expect("text"))
        .set("queries_max", "1")
        .started();
    let mut caller = world.client();
    let start = || {
        Way::DropIn
            .command(&world, &["orbctl", "list", "-q"])
            .spawn()
            .expect("it starts")
    };
    let first = start();
    let held = world.at_gate("first");
    let second = start();
    caller.find("list", "", JobStateWord::Waiting);
    let third = start();
    let mut counters = |name: &str| caller.ok::<MetricsCounters>(json!({})).counters[name];
    eventually("the third joins the second", || {
        (counters("joins") == 1).then_some(())
    });
    let spawns = counters("spawns");
    held.open();
    world.open_gate("second");
    for child in [first, second, third] {
        let output = child.wait_with_output().expect("ours");
        assert_eq!(output.stdout, b"list -q\n", "{}", said(&output));
    }
    assert_eq!(counters("spawns"), spawns + 1, "two runs for three calls");
}

#[test]
fn cached_answers_are_opt_in_and_end_with_the_next_change() {
    let world = World::with_machines(&["a"]);
    let spawns = || world.ledger().spawns("list");
    let list = |age: Option<&str>| {
        let mut command = Way::DropIn.command(&world, &["orbctl", "list", "-q"]);
        command.envs(age.map(|age| ("ORBD_MAX_AGE", age)));
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(list(None), "a\n");
    assert_eq!(list(None), "a\n");
    assert_eq!(spawns(), 2, "a loop that waits for a change sees it");
    assert_eq!(list(Some("1h")), "a\n");
    assert_eq!(list(Some("3600")), "a\n");
    assert_eq!(spawns(), 2);
    assert_eq!(list(Some("soon")), "a\n");
    assert_eq!(spawns(), 3, "an invalid call invalidates nothing");
    assert!(
        Way::DropIn
            .call(&world, &["orbctl", "create", "ubuntu", "b"])
            .status
            .success()
    );
    assert_eq!(list(Some("1h")), "a\nb\n", "the change is seen");
    assert_eq!(spawns(), 4);
    assert!(Way::DropIn.call(&world, &["orbctl", "nonsense"]).status.code() == Some(1));
    list(Some("1h"));
    assert_eq!(spawns(), 5, "the effect of that call is unknown");
}

#[test]
fn calls_on_one_machine_do_not_overlap() {
    let world = World::with_machines(&["a", "b"]);
    let words: [&[&str]; 6] = [
        &["orbctl", "restart", "a"],
        &["orbctl", "run", "-m", "a", "true"],
        &["orbctl", "stop", "a", "b"],
        &["orbctl", "start", "b"],
        &["orbctl", "stop", "--all"],
        &["orbctl", "start", "--all"],
    ];
    let calls: Vec<Child> = (0..4)
        .flat_map(|_| words)
        .map(|words| Way::DropIn.command(&world, words).spawn().expect("it starts"))
        .collect();
    for call in calls {
        let output = call.wait_with_output().expect("ours");
        assert!(output.status.success(), "{}", said(&output));
    }
    world.ledger().assert_no_overlap();
}

#[test]
fn delete_with_f_waits_in_the_queue_and_cancels_nothing() {
    for delete in ["orbctl", "orbd-ctl"] {
        let world = World::new()
            .script("[[trouble]]\ncommand = \"export\"\nkind = \"hang\"\ntimes = 1")
            .machines(&["db"])
            .started();
        let mut caller = world.client();
        let start = |words: &[&str]| Way::DropIn.command(&world, words).spawn().expect("it starts");
        let mut export = start(&["orbctl", "export", "db", "db.tar.zst"]);
        let held = caller.find("export", "db", JobStateWord::Running).job_id;
        let orbctl = eventually("the export runs", || {
            Some(world.ledger().of("export").first()?.pid)
        });
        let clone = start(&["orbctl", "clone", "db", "copy"]);
        let waiting = caller.find("clone", "copy", JobStateWord::Waiting).job_id;
        let delete = match delete {
            "orbctl" => start(&["orbctl", "delete", "-f", "db"]),
            _ => ctl(&world, &["delete", "-f", "db"]).spawn().expect("it starts"),
        };
        let last = caller.find("delete", "db", JobStateWord::Waiting).job_id;
        assert_eq!(caller.job(held).state, JobStateWord::Running);
        assert_eq!(caller.job(waiting).state, JobStateWord::Waiting);
        assert!(is_alive(orbctl));
        kill(orbctl, Signal::KILL);
        assert_eq!(end_of(&mut export).signal(), Some(Signal::KILL.as_raw()));
        for (child, job) in [(clone, waiting), (delete, last)] {
            let output = child.wait_with_output().expect("ours");
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
            assert_eq!(outcome_of(&caller.end_of(job)), ("succeeded", ""));
        }
        assert_eq!(world.truth(), [("copy".into(), "stopped".into())]);
    }
}

#[test]
fn refusal_is_one_line_and_runs_nothing() {
    let world = World::new().machines(&["a"]).set("queue_timeout", "1s").started();
    let check = |words: &[&str], says: &[&str]| {
        let before = world.ledger().lines();
        let output = Way::DropIn.call(&world, words);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(output.stdout.is_empty());
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("orbd: "), "{said}");
        for part in says {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(world.ledger().lines(), before);
    };
    // The command that it waits for never ends by itself.
    let (mut held, _) = at_gate(&world, Way::DropIn);
    check(
        &["orbctl", "stop", "a"],
        &["exceeded its queue timeout while waiting for job", "run a"],
    );
    kill(held.id(), Signal::TERM);
    end_of(&mut held);
    world.client().ok::<QueueDrain>(json!({}));
    check(&["orbctl", "start", "a"], &["draining"]);
    check(&["orbctl", "run", "-m", "a", "true"], &["draining"]);
}

#[test]
fn call_from_inside_a_job_does_not_wait() {
    // The command in `a` calls the drop-in for `a`, whose lane its own caller holds, and waits for the result.
    let world = World::new().machines(&["a"]);
    let dropin = Way::DropIn.folder(&world).join("orbctl").display().to_string();
    let (sim, socket) = (programs::orbctl_sim(), world.socket().display().to_string());
    let script = format!("[ \"$1\" = run ] && ORBD_SOCKET={socket} exec {dropin} stop a; exec {sim} \"$@\"");
    let tool = program(&world, "tool", &script);
    let mut world = world.variable("ORBD_ORBCTL", tool.to_str().expect("text"));
    world.start();
    let output = Way::DropIn.call(&world, &["orbctl", "run", "-m", "a", "true"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(world.truth(), [("a".to_owned(), "stopped".to_owned())]);
    let mut caller = world.client();
    assert_eq!(caller.find("other", "", JobStateWord::Ended).job_class, "session");
    // The same if the daemon itself runs the command.
    assert!(
        Way::DropIn
            .call(&world, &["orbctl", "start", "a"])
            .status
            .success()
    );
    let ran = caller.run("a", &["true"]);
    assert_eq!(ran.exit_code, Some(0));
    assert_eq!(world.truth(), [("a".to_owned(), "stopped".to_owned())]);
    // The marker of a job that has ended is ignored.
    let over = caller.jobs()[0].job_id;
    let output = Way::DropIn
        .command(&world, &["orbctl", "start", "a"])
        .env("ORBD_JOB", format!("01J:{over}"))
        .output()
        .expect("it starts");
    assert!(output.status.success());
    let job = caller.find("start", "a", JobStateWord::Ended);
    assert_eq!(outcome_of(&job), ("succeeded", ""));
}

#[test]
fn without_a_daemon_the_real_tool_runs_silently() {
    let world = World::new().machines(&["a"]);
    for words in [
        &["orbctl", "list"][..],
        &["orbctl", "info", "gone"],
        &["orbctl", "run", "-m", "a", "sh", "-c", "exit 7"],
        &["orb", "-m", "a", "echo", "x"],
        &["orbctl", "nonsense"],
    ] {
        let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| way.call(&world, words));
        assert_eq!(shown(&ours), shown(&bare), "{words:?}");
        let strict = Way::DropIn
            .command(&world, words)
            .env("ORBD_STRICT", "1")
            .output()
            .expect("it starts");
        assert_eq!(strict.status.code(), Some(125));
        assert!(said(&strict).contains("nothing listens on"), "{}", said(&strict));
    }
    assert!(!world.socket().exists(), "nor is a daemon started");
}

#[test]
fn copies_of_the_drop_in_do_not_call_each_other_forever() {
    let world = World::new();
    let copies = ["one", "two"].map(|folder| {
        let folder = world.path(folder);
        fs::create_dir(&folder).expect("a folder");
        fs::copy(programs::orbd_ctl(), folder.join("orbctl")).expect("copied");
        folder
    });
    let run = |folders: &[&Path]| {
        let mut path: Vec<OsString> = folders.iter().map(Into::into).collect();
        path.push("/nonexistent".into());
        Command::new(folders[0].join("orbctl"))
            .arg("list")
            .env_clear()
            .env("HOME", world.path("home"))
            .env("ORBD_SOCKET", world.socket())
            .env("PATH", std::env::join_paths(path).expect("a path"))
            .output()
            .expect("it starts")
    };
    let [one, two] = copies.each_ref().map(PathBuf::as_path);
    let output = run(&[one, two]);
    assert_eq!(output.status.code(), Some(127), "{}", said(&output));
    assert!(said(&output).contains("orbd's own drop-in"), "{}", said(&output));
    // A link to the drop-in on PATH is skipped at once.
    let links = Way::DropIn.folder(&world);
    let output = run(&[&links, one, two]);
    assert_eq!(output.status.code(), Some(127), "{}", said(&output));
    // A daemon that is configured to use a copy of the drop-in reports that.
    let world = world
        .variable("ORBD_ORBCTL", one.join("orbctl").to_str().expect("text"))
        .started();
    let output = Way::DropIn.call(&world, &["orbctl", "nonsense"]);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(said(&output).contains("not the real orbctl"), "{}", said(&output));
}

#[test]
fn links_are_installed_shown_and_removed() {
    let world = World::with_machines(&["a"]);
    let home = world.path("home").join(".orbd/bin");
    let status = |first: bool| {
        let mut path = vec![Way::Bare.folder(&world)];
        if first {
            path.insert(0, home.clone());
        }
        let output = ctl(&world, &["dropin", "status", "--json"])
            .env("PATH", std::env::join_paths(path).expect("a path"))
            .output()
            .expect("it starts");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), report)
    };
    assert_eq!(status(true).0, Some(1));
    let installed = call(&world, &["dropin", "install"]);
    assert!(installed.status.success(), "{}", said(&installed));
    let told = String::from_utf8(installed.stdout).expect("text");
    assert!(told.contains("export PATH=\"$HOME/.orbd/bin:$PATH\""), "{told}");
    let (code, report) = status(true);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["orbctl"], programs::orbctl_sim());
    assert_eq!(
        (&report["installed"], &report["first"], &report["answers"]),
        (&json!(true), &json!(true), &json!(true))
    );
    let (code, report) = status(false);
    assert_eq!((code, &report["first"]), (Some(1), &json!(false)));
    let doctor = ctl(&world, &["doctor"])
        .env("PATH", Way::Bare.folder(&world))
        .output()
        .expect("it starts");
    let found = String::from_utf8(doctor.stdout).expect("text");
    assert!(found.contains("comes first"), "{found}");
    assert!(found.contains("export PATH="), "{found}");
    // Through the installed links.
    let output = Command::new(home.join("orbctl"))
        .args(["list", "-q"])
        .env_clear()
        .env("HOME", world.path("home"))
        .env("ORBD_SOCKET", world.socket())
        .output()
        .expect("it starts");
    assert_eq!(output.stdout, b"a\n", "{}", said(&output));
    let foreign = call(
        &world,
        &[
            "dropin",
            "install",
            "--dir",
            world.path("bare").to_str().expect("text"),
        ],
    );
    assert_eq!(foreign.status.code(), Some(2), "{}", said(&foreign));
    assert!(call(&world, &["dropin", "uninstall"]).status.success());
    assert!(!home.join("orb").exists());
    assert!(Way::Bare.folder(&world).join("orb").exists());
}

#[test]
fn verbose_mode_reports_a_wait() {
    let world = World::with_machines(&["a"]);
    let (mut held, _) = at_gate(&world, Way::DropIn);
    let mut stop = Way::DropIn
        .command(&world, &["orbctl", "stop", "a"])
        .env("ORBD_VERBOSE", "1")
        .spawn()
        .expect("it starts");
    let mut stderr = std::io::BufReader::new(stop.stderr.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).expect("text");
    assert!(line.contains("waiting for job"), "{line}");
    kill(held.id(), Signal::TERM);
    end_of(&mut held);
    assert!(end_of(&mut stop).success());
}

#[test]
fn cancelled_job_ends_the_call_with_the_reason() {
    let world = World::with_machines(&["a"]);
    let (mut child, _) = at_gate(&world, Way::DropIn);
    let mut caller = world.client();
    let id = caller.find("run", "a", JobStateWord::Running).job_id;
    caller.cancel(id);
    assert_eq!(outcome_of(&caller.end_of(id)).0, "cancelled");
    end_of(&mut child);
    let mut told = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut told).expect("text");
    assert_eq!(
        told,
        format!("orbd: job {id} (run a) was cancelled while it ran\n")
    );
}
