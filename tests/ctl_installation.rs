//! Several installations of orbd on one machine: which program runs, what may replace it, and how orbd is removed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use orbd_proto::methods::DaemonInfo;
use orbd_proto::types::DaemonInfoAnswer;
use serde_json::{Value, json};

use crate::ctl_session::OnTerminal;
use crate::ctl_suite::{call, ctl, ok, said};
use crate::support::{World, eventually};

fn info(world: &World) -> DaemonInfoAnswer {
    world.client().ok::<DaemonInfo>(json!({}))
}

/// Replaces the daemon's program by an older version: a script that has that version and otherwise runs orbd.
fn install_older(world: &World) {
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in --version) exec echo 'orbd 0.0.1' ;; *--preflight*) exit 1 ;; esac\nexec '{}' \"$@\"\n",
        programs::orbd()
    );
    let path = world.path("script");
    fs::write(&path, script).expect("written");
    world.install(&path);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs a copy of orbd-ctl")]
fn links_in_a_temporary_directory_may_lead_to_a_program_in_one() {
    let world = World::new();
    // The whole world is in a temporary directory.
    let program = world.path("orbd-ctl");
    fs::copy(programs::orbd_ctl(), &program).expect("copied");
    let links = world.path("links");
    let known = ctl(&world, &[]);
    let installed = Command::new(&program)
        .args(["dropin", "install", "--dir"])
        .arg(&links)
        .env_clear()
        .envs(known.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    assert!(installed.status.success(), "{installed:?}");
    assert_eq!(fs::read_link(links.join("orbctl")).expect("a link"), program);
}

#[test]
fn restart_by_another_installation_keeps_the_daemons_program() {
    let world = World::new().installed().started();
    let before = info(&world);
    let program = world.path("bin/orbd").display().to_string();
    assert_eq!(before.program.as_ref(), Some(&program));
    // This orbd-ctl is next to another orbd.
    ok(&world, &["daemon", "restart"]);
    let after = info(&world);
    assert_ne!(after.pid, before.pid);
    assert_eq!(after.program, Some(program));
    ok(&world, &["daemon", "stop"]);
}

#[test]
fn restart_without_the_daemons_program_starts_the_installed_one_and_says_so() {
    let world = World::new().installed().started();
    // A connected client, so that the daemon does not end by itself.
    let _client = world.client();
    fs::remove_file(world.path("bin/orbd")).expect("ours");
    let doctor = String::from_utf8(call(&world, &["doctor"]).stdout).expect("text");
    assert!(
        doctor.contains("that program does not exist any more"),
        "{doctor}"
    );
    let output = call(&world, &["daemon", "restart"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        said(&output).contains("does not exist any more; starting"),
        "{output:?}"
    );
    assert_eq!(info(&world).program.as_deref(), Some(programs::orbd()));
    ok(&world, &["daemon", "stop"]);
}

#[test]
fn restart_never_starts_an_older_program_unless_forced() {
    let world = World::new().installed().started();
    let before = info(&world);
    install_older(&world);
    let output = call(&world, &["daemon", "restart"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    for wanted in [
        "orbd 0.0.1, older than the running",
        "nothing was stopped",
        "restart --force",
    ] {
        assert!(said(&output).contains(wanted), "{wanted}: {output:?}");
    }
    assert_eq!(info(&world).instance, before.instance);
    ok(&world, &["daemon", "restart", "--force"]);
    assert_ne!(info(&world).pid, before.pid);
    ok(&world, &["daemon", "stop"]);
}

#[test]
fn program_that_cannot_read_the_journal_names_the_one_to_run() {
    let mut world = World::new().installed().started();
    world.terminate();
    assert!(world.ended().success());
    let journal = world.path("state/journal");
    let newer = "orbd-journal 2\n\0later";
    fs::write(&journal, newer).expect("written");
    let output = call(&world, &["daemon", "start"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = said(&output);
    let program = world.path("bin/orbd").display().to_string();
    for wanted in [
        "cannot read: run orbd",
        &program,
        "`orbd-ctl daemon start --force`",
        "loses the changes that wait in it",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(fs::read_to_string(&journal).expect("unchanged"), newer);
    ok(&world, &["daemon", "start", "--force"]);
    let kept = fs::read_dir(world.path("state"))
        .expect("a folder")
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.to_string_lossy().contains("set-aside"))
        .expect("the journal was kept");
    assert_eq!(fs::read_to_string(kept).expect("readable"), newer);
    ok(&world, &["daemon", "stop"]);
    ok(&world, &["daemon", "start", "--force"]);
    ok(&world, &["daemon", "stop"]);
}

#[test]
fn upgrade_to_a_program_that_cannot_read_the_journal_is_refused() {
    let world = World::new().installed().started();
    let before = info(&world);
    // The running daemon holds the file open and does not notice.
    fs::rename(world.path("state/journal"), world.path("state/own")).expect("ours");
    fs::write(world.path("state/journal"), "orbd-journal 2\n\0later").expect("written");
    world.install(Path::new(programs::orbd()));
    let upgrade = eventually("the preflight fails", || {
        info(&world).upgrade.filter(|upgrade| upgrade.state == "refused")
    });
    let reason = upgrade.reason.expect("it says why");
    assert!(reason.contains("cannot read"), "{reason}");
    assert_eq!(info(&world).instance, before.instance);
}

#[test]
fn status_and_doctor_say_which_program_runs_from_where_and_since_when() {
    let world = World::new().installed().started();
    let info = info(&world);
    let status = ok(&world, &["daemon", "status"]);
    let doctor = String::from_utf8(call(&world, &["doctor"]).stdout).expect("text");
    for text in [&status, &doctor] {
        for wanted in [
            info.program.as_deref().expect("known"),
            &info.started_at,
            &info.version,
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }
}

/// Returns the paths with this key and, for removed ones, what they are.
fn paths(report: &Value, key: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = report[key].as_array().expect("a list");
    items
        .iter()
        .map(|item| (text(&item["what"]), text(&item["path"])))
        .collect()
}

#[test]
fn uninstall_without_a_terminal_shows_everything_and_removes_nothing() {
    let world = World::with_machines(&["a"]);
    for words in [&["uninstall"][..], &["--json", "uninstall"]] {
        let output = call(&world, words);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = said(&output);
        for wanted in [
            "orbd.sock",
            "state/journal",
            "not touched",
            "orbd-ctl uninstall --yes",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }
    assert_eq!(info(&world).pid, world.pid(), "it was not stopped");
}

#[test]
fn uninstall_asks_on_a_terminal_and_removes_nothing_without_a_yes() {
    let world = World::with_machines(&["a"]);
    for (answer, code, shown) in [("n\n", 1, "nothing removed"), ("y\n", 0, "removed:")] {
        assert!(world.socket().exists());
        let mut asked = OnTerminal::start(&world, &["uninstall"]);
        // Typed before the question: the question has no line end, so a test cannot wait for it.
        asked.types(answer);
        let (exit, screen) = asked.ends();
        assert_eq!(exit, Some(code), "{screen}");
        for wanted in ["this stops orbd and removes:", "remove all of it? [y/N]", shown] {
            assert!(screen.contains(wanted), "{wanted}: {screen}");
        }
    }
    assert!(!world.socket().exists());
}

#[test]
fn uninstall_stops_the_daemon_and_removes_only_what_is_orbds() {
    let mut world = World::new().installed().machines(&["a"]).started();
    world.client().run("a", &["true"]);
    ok(&world, &["dropin", "install"]);
    // A file of the user's with the name of one of the links.
    let mine = world.path("home/.orbd/bin/orb");
    fs::remove_file(&mine).expect("ours");
    fs::write(&mine, "mine").expect("written");
    let config = world.path("home/.config/orbd/config.toml");
    fs::create_dir_all(config.parent().expect("one")).expect("a folder");
    fs::write(&config, "queue_max = 600\n").expect("written");
    fs::write(world.path("state/notes.txt"), "mine").expect("written");
    fs::write(world.path("state/journal.set-aside-17"), "old").expect("written");

    let report = ok(&world, &["--json", "uninstall", "--yes"]);
    assert!(world.ended().success(), "the daemon was asked to stop");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let removed = paths(&report, "removed");
    for (what, path) in [
        ("drop-in", "home/.orbd/bin/orbctl"),
        ("socket", "orbd.sock.lock"),
        ("configuration", "home/.config/orbd/config.toml"),
        ("state", "state/journal"),
        ("state", "state/journal.set-aside-17"),
        ("state", "state/last-program"),
        ("state", "state/spool"),
    ] {
        let item = (what.to_owned(), world.path(path).display().to_string());
        assert!(removed.contains(&item), "{item:?}: {removed:?}");
        assert!(world.path(path).symlink_metadata().is_err(), "{path}");
    }
    assert_eq!(fs::read_to_string(&mine).expect("kept"), "mine");
    assert!(!world.path("home/.config/orbd").exists());
    assert_eq!(
        fs::read_to_string(world.path("state/notes.txt")).expect("kept"),
        "mine"
    );
    let left = report["left"].as_array().expect("a list");
    let reason = |path: &str| {
        let found = left.iter().find(|left| left["path"] == path);
        found.unwrap_or_else(|| panic!("{path}: {left:?}"))["reason"].to_string()
    };
    assert!(reason(&world.path("state").display().to_string()).contains("not orbd's"));
    assert!(reason(&world.path("bin/orbd").display().to_string()).contains("rm "));
    assert!(reason(programs::orbd_ctl()).contains("rm "));
    assert!(world.path("bin/orbd").exists());

    let again = ok(&world, &["uninstall"]);
    assert!(again.starts_with("nothing to remove\n"), "{again}");
}
