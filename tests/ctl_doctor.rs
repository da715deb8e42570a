//! `orbd-ctl doctor` in constructed situations: each problem is found, named and printed with its fix. Checks of the
//! service are tested in `ctl_service`, checks of the drop-in in `dropin`.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the command line as a shell would"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use serde_json::Value;

use crate::ctl_suite::{call, ctl, ok, said};
use crate::support::{World, skip};

/// One entry of `doctor --json`: what it is about, its status, the message and the fix.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) about: String,
    pub(crate) level: String,
    pub(crate) message: String,
    pub(crate) fix: String,
}

/// Parses the output of `doctor --json` and checks what holds for every answer.
#[track_caller]
pub(crate) fn read(output: &Output) -> Vec<Finding> {
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings: Vec<Finding> = answer["checks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|finding| Finding {
            about: text(finding, "name"),
            level: text(finding, "status"),
            message: text(finding, "message"),
            fix: text(finding, "fix"),
        })
        .collect();
    let is_bad = findings.iter().any(|finding| finding.level == "error");
    assert_eq!(output.status.code(), Some(i32::from(is_bad)), "{findings:#?}");
    for finding in &findings {
        assert!(!finding.message.is_empty(), "{finding:?}");
        assert_eq!(finding.level == "ok", finding.fix.is_empty(), "{finding:?}");
    }
    findings
}

/// Returns the entry about `wanted`.
#[track_caller]
pub(crate) fn about<'a>(findings: &'a [Finding], wanted: &str) -> &'a Finding {
    let mut found = findings.iter().filter(|finding| finding.about == wanted);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("no entry about {wanted}: {findings:#?}"));
    assert!(
        found.next().is_none(),
        "two entries about {wanted}: {findings:#?}"
    );
    first
}

/// Checks status, message and fix of one entry.
#[track_caller]
fn check(output: &Output, wanted: &str, level: &str, message: &str, fix: &str) {
    let findings = read(output);
    let finding = about(&findings, wanted);
    assert!(
        finding.level == level && finding.message.contains(message) && finding.fix.contains(fix),
        "{finding:?}"
    );
}

fn doctor(world: &World) -> Output {
    call(world, &["doctor", "--json"])
}

#[test]
fn missing_or_non_executable_orbctl_is_reported_with_and_without_a_daemon() {
    let world = World::new();
    let path = world.path("orbctl");
    let path = path.to_str().expect("text");
    let doctor = |world: &World| {
        let mut doctor = ctl(world, &["doctor", "--json"]);
        doctor.env("ORBD_ORBCTL", path).output().expect("it starts")
    };
    check(
        &doctor(&world),
        "orbctl",
        "error",
        "does not exist or cannot be executed",
        "orbd's configuration",
    );
    fs::write(path, "#!/bin/sh\n").expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
    check(
        &doctor(&world),
        "orbctl",
        "error",
        "cannot be executed",
        &format!("chmod +x {path}"),
    );
    let world = world.variable("ORBD_ORBCTL", path).started();
    check(
        &doctor(&world),
        "orbctl",
        "error",
        "cannot be executed",
        &format!("chmod +x {path}"),
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
    check(&doctor(&world), "orbctl", "ok", path, "");
}

#[test]
fn orbctl_that_only_a_restarted_daemon_would_find_is_reported() {
    let world = World::new();
    let missing = world.path("missing");
    let missing = missing.to_str().expect("text");
    let world = world.variable("ORBD_ORBCTL", missing).started();
    let mut doctor = ctl(&world, &["doctor", "--json"]);
    let output = doctor
        .env("ORBD_ORBCTL", programs::orbctl_sim())
        .output()
        .expect("it starts");
    check(
        &output,
        "orbctl",
        "error",
        "did not find orbctl with the configuration and PATH that it was started with",
        "orbd-ctl daemon restart",
    );
}

#[test]
fn stopped_or_unresponsive_orbstack_is_reported() {
    let world = World::new()
        .set("query_timeout", "1s")
        .machines(&["a"])
        .script("")
        .started();
    ok(&world, &["stop", "--orbstack"]);
    check(&doctor(&world), "OrbStack", "warn", "stopped", "orbd-ctl start");
    ok(&world, &["start"]);
    check(&doctor(&world), "OrbStack", "ok", "running", "");
    world.rescript("[[trouble]]\ncommand = \"status\"\nkind = \"hang\"");
    call(&world, &["cache", "invalidate"]);
    check(
        &doctor(&world),
        "OrbStack",
        "error",
        "",
        "orbd-ctl restart --orbstack --force",
    );
}

#[test]
fn too_long_socket_path_and_non_socket_file_are_reported() {
    let world = World::new();
    let long = world.path(&"x".repeat(120));
    let long = long.to_str().expect("text");
    let output = call(&world, &["--socket", long, "doctor", "--json"]);
    check(&output, "socket", "error", "the system allows 103", "ORBD_SOCKET");
    fs::write(world.socket(), "").expect("written");
    check(
        &doctor(&world),
        "socket",
        "error",
        "is not a socket",
        "move it away",
    );
    fs::remove_file(world.socket()).expect("ours");
    let folder = world.socket();
    let folder = folder.parent().expect("a folder");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    check(
        &doctor(&world),
        "socket",
        "error",
        "open to other users",
        "chmod 700",
    );
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("ours");
}

#[test]
fn stale_socket_and_socket_of_another_user_are_reported() {
    let mut world = World::with_machines(&["a"]);
    check(&doctor(&world), "orbd", "ok", "is running, pid", "");
    world.kill();
    check(
        &doctor(&world),
        "orbd",
        "warn",
        "left by a crash",
        "orbd-ctl daemon start",
    );
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(world.socket(), Some(12345), None).expect("root may");
        check(
            &doctor(&world),
            "socket",
            "error",
            "belongs to another user",
            "unset ORBD_SOCKET",
        );
    } else {
        eprintln!("SKIPPED, because this needs root: a socket of another user (a unit test covers it)");
    }
}

/// Listens on another socket and answers each client with the daemon's `daemon.info`, but with this version and
/// protocol, and with a program of Homebrew that exists while the returned folder does.
fn impostor(world: &World, version: &str, protocol: u32) -> tempfile::TempDir {
    let mut info: Value = serde_json::from_str(&ok(world, &["--json", "daemon", "status"])).expect("JSON");
    info["version"] = version.into();
    info["protocol"] = protocol.into();
    info["protocol_min"] = protocol.into();
    let cellar = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let program = cellar.path().join("Cellar/orbd/0.0.1/bin/orbd");
    fs::create_dir_all(program.parent().expect("one")).expect("a folder");
    fs::write(&program, "").expect("written");
    info["program"] = program.display().to_string().into();
    let path = world.path("other.sock");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let request: Value = serde_json::from_str(&line).expect("JSON");
                let answer = match request["method"].as_str() {
                    Some("daemon.info") => {
                        serde_json::json!({"jsonrpc": "2.0", "id": request["id"], "result": info})
                    }
                    _ => serde_json::json!({"jsonrpc": "2.0", "id": request["id"],
                                            "error": {"code": -32601, "message": "no such method"}}),
                };
                // The client may have disconnected already.
                let _ = (&stream).write_all(format!("{answer}\n").as_bytes());
            }
        }
    });
    cellar
}

#[test]
fn other_daemon_version_is_a_warning_and_other_protocol_an_error() {
    let world = World::with_machines(&["a"]);
    let socket = world.path("other.sock");
    let socket = socket.to_str().expect("text");
    let _cellar = impostor(&world, "9.9.9", 1);
    let output = call(&world, &["--socket", socket, "doctor", "--json"]);
    check(
        &output,
        "orbd",
        "warn",
        "9.9.9 is running, pid",
        "install the new version as",
    );
    let _cellar = impostor(&world, "9.9.9", 2);
    let output = call(&world, &["--socket", socket, "doctor", "--json"]);
    check(
        &output,
        "orbd",
        "error",
        "speaks protocol 2, this orbd-ctl",
        "install the new version as",
    );
}

#[test]
fn doctor_names_the_command_that_upgrades_an_older_daemon() {
    let world = World::with_machines(&["a"]);
    let socket = world.path("other.sock");
    let socket = socket.to_str().expect("text");
    for (protocol, status, message) in [
        (1, "warn", "both speak a common protocol"),
        (0, "error", "orbd 0.0.1 speaks protocol 0, this orbd-ctl"),
    ] {
        let _cellar = impostor(&world, "0.0.1", protocol);
        let output = call(&world, &["--socket", socket, "doctor", "--json"]);
        check(&output, "orbd", status, message, "brew upgrade orbd");
    }
}

#[test]
fn files_that_were_set_aside_are_reported() {
    let world = World::with_machines(&["a"]);
    let findings = read(&doctor(&world));
    assert!(
        findings.iter().all(|finding| finding.level == "ok"),
        "{findings:#?}"
    );
    fs::create_dir_all(world.path("state/metrics/store-1.set-aside-1795879048")).expect("a folder");
    check(
        &doctor(&world),
        "set aside",
        "warn",
        "store-1.set-aside-1795879048",
        "orbd-ctl daemon logs",
    );
    fs::write(world.path("state/journal.set-aside-1795879049"), "").expect("written");
    check(&doctor(&world), "set aside", "warn", "and 1 more", "remove it");
}

/// The state directory is on a small, full tmpfs, mounted in a namespace that only this call sees.
#[test]
fn full_disk_is_reported() {
    let world = World::new();
    let state = world.path("state");
    fs::create_dir_all(&state).expect("a folder");
    let mut doctor = ctl(&world, &["doctor", "--json"]);
    let mut small = Command::new("unshare");
    small
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=1m tmpfs \"$0\" && exec \"$@\"")
        .arg(&state)
        .arg(doctor.get_program())
        .args(doctor.get_args())
        .env_clear();
    for (name, value) in doctor.get_envs() {
        small.env(name, value.expect("set"));
    }
    let output = small.output();
    match output {
        Ok(output) if !output.stdout.is_empty() => {
            check(&output, "disk", "error", "MiB free", "free disk space");
        }
        other => skip(&format!(
            "`unshare` of util-linux and user namespaces, to mount a small disk: {other:?}"
        )),
    }
    check(&doctor.output().expect("it starts"), "disk", "ok", "MiB free", "");
}

#[test]
fn orbctl_on_path_is_found_as_the_daemon_would_find_it() {
    let world = World::new();
    let bin = world.path("somewhere");
    fs::create_dir(&bin).expect("a folder");
    symlink(programs::orbctl_sim(), bin.join("orbctl")).expect("a link");
    let mut doctor = ctl(&world, &["doctor", "--json"]);
    doctor.env_remove("ORBD_ORBCTL").env("PATH", &bin);
    let place = bin.join("orbctl");
    let output = doctor.output().expect("it starts");
    check(&output, "orbctl", "ok", place.to_str().expect("text"), "");
}

#[test]
fn daemon_that_does_not_answer_is_named_with_its_pid_and_can_be_killed() {
    let mut world = World::with_machines(&["a"]);
    let pid = world.pid();
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(raw, rustix::process::Signal::STOP).expect("it runs");
    let output = doctor(&world);
    check(
        &output,
        "orbd",
        "error",
        &format!("(pid {pid})"),
        "orbd-ctl daemon stop --force",
    );
    // The other checks do not depend on the daemon.
    check(&output, "disk", "ok", "MiB free", "");
    let stop = call(&world, &["daemon", "stop"]);
    assert_eq!(stop.status.code(), Some(3), "{}", said(&stop));
    assert!(said(&stop).contains(&format!("pid {pid}")), "{}", said(&stop));
    let stopped = ok(&world, &["daemon", "stop", "--force"]);
    assert_eq!(stopped, format!("orbd stopped (pid {pid})\n"));
    assert!(!world.ended().success());
}
