//! `orbd-ctl service` with scripted service managers. They record each call in a folder, start and stop the real
//! daemon, and fail in the ways that the real managers do. No test runs the launchd file under a real launchd;
//! `systemd-analyze` checks the systemd unit.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the command line as a shell would"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[cfg(target_os = "linux")]
use crate::ctl_doctor;
use crate::support::{World, eventually};

/// Shared part of both managers. The folder has `pid`, `loaded`, `exit`, the recorded calls in `told`, and the scripted
/// failures.
const COMMON: &str = r#"#!/bin/sh
folder='FOLDER'
echo "${0##*/} $*" >>"$folder/told"
runs() { [ -s "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; }
begin() {
    runs && return
    rm -f "$folder/exit"
    (
        "$1" >>"$folder/said" 2>&1 &
        echo $! >"$folder/pid"
        wait $!
        echo $? >"$folder/exit"
        rm "$folder/pid"
    ) >/dev/null 2>&1 &
    while [ ! -e "$folder/pid" ] && [ ! -e "$folder/exit" ]; do sleep 0.01; done
}
end() {
    runs || return
    kill -TERM "$(cat "$folder/pid")"
    while runs; do sleep 0.01; done
}
fails() { [ -e "$folder/$1" ] || return 1; echo "$2" >&2; exit "$3"; }
"#;

const LAUNCHCTL: &str = r#"
domain="gui/$(id -u)"
target="$domain/dev.orbd.orbd"
program() { sed -n '/ProgramArguments/,/<\/array>/s/.*<string>\(.*\)<.*/\1/p' "$1"; }
case "$1 $2" in
"print $domain")
    fails no_session "Domain does not support specified action" 125 ;;
"print $target")
    [ -e "$folder/loaded" ] || { echo 'Could not find service "dev.orbd.orbd" in domain for user gui: 501' >&2; exit 113; }
    echo "$target = {"
    runs && printf '\tstate = running\n\tpid = %s\n' "$(cat "$folder/pid")"
    [ -e "$folder/exit" ] && printf '\tlast exit code = %s\n' "$(cat "$folder/exit")"
    printf '\tendpoints = {\n\t\tpid = 1\n\t}\n}\n' ;;
"enable $target") ;;
"bootstrap $domain")
    fails refuse "Bootstrap failed: 5: Input/output error" 5
    if [ -e "$folder/faster" ]; then cp "$3" "$folder/loaded"; begin "$(program "$3")"; fi
    fails loaded "Bootstrap failed: 5: Input/output error" 5
    cp "$3" "$folder/loaded"
    begin "$(program "$3")" ;;
"bootout $target")
    [ -e "$folder/loaded" ] || { echo "Boot-out failed: 3: No such process" >&2; exit 3; }
    if [ -e "$folder/slow" ]; then
        (end; rm "$folder/loaded") >/dev/null 2>&1 &
        echo "Boot-out failed: 36: Operation now in progress" >&2
        exit 36
    fi
    end
    rm "$folder/loaded" ;;
"kickstart $target")
    begin "$(program "$folder/loaded")" ;;
"kill SIGTERM")
    runs && kill -TERM "$(cat "$folder/pid")" ;;
*) echo "unknown: $*" >&2; exit 64 ;;
esac
exit 0
"#;

const SYSTEMCTL: &str = r#"
unit="$HOME/.config/systemd/user/orbd.service"
program() { sed -n 's/^ExecStart="\(.*\)"$/\1/p' "$unit"; }
[ "$1" = --user ] || exit 64
shift
fails no_session "Failed to connect to bus: No medium found" 1
case "$*" in
show-environment) ;;
daemon-reload) ;;
"enable --now orbd.service") : >"$folder/loaded"; begin "$(program)" ;;
"disable --now orbd.service") end; rm "$folder/loaded" ;;
"start orbd.service") fails refuse "Job for orbd.service failed." 1; begin "$(program)" ;;
"stop orbd.service") end ;;
"show orbd.service --property="*)
    runs && echo "MainPID=$(cat "$folder/pid")" || echo MainPID=0
    if [ -e "$folder/exit" ]; then echo "ExecMainStatus=$(cat "$folder/exit")"; echo ExecMainExitTimestampMonotonic=5; fi
    [ -e "$unit" ] && echo LoadState=loaded || echo LoadState=not-found
    [ -e "$folder/loaded" ] && echo UnitFileState=enabled || echo UnitFileState=disabled ;;
*) echo "unknown: $*" >&2; exit 64 ;;
esac
exit 0
"#;

/// A world with the scripted managers first on PATH.
struct Managed {
    world: World,
    by: &'static str,
}

impl Managed {
    fn new(by: &'static str) -> Self {
        let world = World::new().machines(&["a"]);
        let managed = Self { world, by };
        fs::create_dir_all(managed.folder()).expect("a folder");
        for (name, text) in [("launchctl", LAUNCHCTL), ("systemctl", SYSTEMCTL)] {
            let path = managed.bin().join(name);
            fs::create_dir_all(managed.bin()).expect("a folder");
            let common = COMMON.replace("FOLDER", &managed.folder().display().to_string());
            fs::write(&path, common + text).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
        }
        managed
    }

    fn folder(&self) -> PathBuf {
        self.world.path("manager")
    }

    fn bin(&self) -> PathBuf {
        self.world.path("bin")
    }

    /// Turns a scripted failure on or off.
    fn trouble(&self, name: &str, on: bool) {
        let path = self.folder().join(name);
        if on {
            fs::write(path, "").expect("written");
        } else {
            fs::remove_file(path).expect("it was there");
        }
    }

    fn call(&self, words: &[&str]) -> Output {
        self.run(Path::new(programs::orbd_ctl()), words)
    }

    /// Runs the orbd-ctl of any installation.
    fn run(&self, program: &Path, words: &[&str]) -> Output {
        let described = self.world.daemon_command();
        let mut command = Command::new(program);
        command.args(words).env_clear();
        for (name, value) in described.get_envs() {
            match value {
                Some(value) if name == "PATH" => {
                    let folders = [self.bin()].into_iter().chain(std::env::split_paths(value));
                    command.env("PATH", std::env::join_paths(folders).expect("a path"));
                }
                Some(value) => {
                    command.env(name, value);
                }
                None => {}
            }
        }
        command
            .env("HOME", self.world.path("home"))
            .stdin(Stdio::null())
            .output()
            .expect("it starts")
    }

    fn service(&self, words: &[&str]) -> Output {
        let words: Vec<&str> = ["service"]
            .iter()
            .chain(words)
            .chain(&["--manager", self.by])
            .copied()
            .collect();
        self.call(&words)
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.service(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, wanted: &[&str]) {
        let output = self.service(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        for wanted in wanted {
            assert!(said.contains(wanted), "{words:?}: {said}");
        }
    }

    fn status(&self) -> Value {
        let output = self.service(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Returns the calls that the manager received since the last time, without status queries.
    fn told(&self) -> Vec<String> {
        let path = self.folder().join("told");
        let told = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        let uid = format!("gui/{}", rustix::process::getuid().as_raw());
        told.lines()
            .map(|line| {
                line.replace(&uid, "gui/UID")
                    .replace(&self.world.path("home").display().to_string(), "~")
            })
            .filter(|line| {
                !line.contains(" print ") && !line.contains(" show ") && !line.contains("show-environment")
            })
            .collect()
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.folder().join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Waits until the manager has noticed the end of its process, a moment after the daemon closed its socket.
    fn has_ended(&self) {
        eventually("the manager has seen its end", || {
            self.pid().is_none().then_some(())
        });
    }
}

/// Takes a service through its whole life cycle under one manager. Returns it uninstalled.
fn lives(under: &'static str) -> Managed {
    let managed = Managed::new(under);
    assert_eq!(managed.status()["installed"], false);
    managed.fails(&["start"], 4, &["not installed", "orbd-ctl service install"]);

    assert!(managed.ok(&["install"]).contains("installed"));
    let status = managed.status();
    let pid = managed.pid();
    assert!(pid.is_some());
    assert_eq!(status["pid"].as_u64(), pid.map(u64::from));
    for yes in ["installed", "current", "loaded", "answers"] {
        assert_eq!(status[yes], true, "{yes}: {status}");
    }
    managed.told();
    assert!(managed.ok(&["install"]).contains("already"));
    assert_eq!(managed.told(), [""; 0], "a second call does nothing");
    assert_eq!(managed.pid(), pid);

    managed.ok(&["restart"]);
    assert!(managed.pid().is_some() && managed.pid() != pid);
    managed.ok(&["stop"]);
    managed.has_ended();
    assert_eq!(managed.status()["last_exit"], 0);
    assert_eq!(managed.service(&["status"]).status.code(), Some(3));
    managed.ok(&["start"]);
    assert!(managed.pid().is_some());

    managed.ok(&["uninstall"]);
    managed.has_ended();
    let status = managed.status();
    assert_eq!(
        (&status["installed"], &status["loaded"]),
        (&false.into(), &false.into())
    );
    assert!(managed.ok(&["uninstall"]).contains("not installed"));
    managed
}

#[test]
fn a_service_under_launchd_is_installed_stopped_started_and_removed() {
    let managed = lives("launchd");
    managed.told();
    managed.ok(&["install"]);
    assert_eq!(
        managed.told(),
        [
            "launchctl enable gui/UID/dev.orbd.orbd",
            "launchctl bootstrap gui/UID ~/Library/LaunchAgents/dev.orbd.orbd.plist",
        ]
    );
    managed.ok(&["stop"]);
    managed.ok(&["start"]);
    assert_eq!(
        managed.told(),
        [
            "launchctl kill SIGTERM gui/UID/dev.orbd.orbd",
            "launchctl kickstart gui/UID/dev.orbd.orbd",
        ]
    );
    managed.ok(&["uninstall"]);
    assert_eq!(managed.told(), ["launchctl bootout gui/UID/dev.orbd.orbd"]);
}

#[test]
fn a_service_under_systemd_is_installed_stopped_started_and_removed() {
    let managed = lives("systemd");
    managed.told();
    managed.ok(&["install"]);
    assert_eq!(
        managed.told(),
        [
            "systemctl --user daemon-reload",
            "systemctl --user enable --now orbd.service"
        ]
    );
}

#[test]
fn outdated_service_file_is_rewritten_and_loaded_again() {
    let managed = Managed::new("launchd");
    managed.ok(&["install"]);
    let file = managed
        .world
        .path("home/Library/LaunchAgents/dev.orbd.orbd.plist");
    let text = fs::read_to_string(&file).expect("written");
    fs::write(&file, text.replace("Interactive", "Background")).expect("ours");
    assert_eq!(managed.status()["current"], false);
    managed.told();
    // The agent takes a moment to unload, and the manager reports that.
    managed.trouble("slow", true);
    managed.ok(&["install"]);
    assert_eq!(managed.told()[0], "launchctl bootout gui/UID/dev.orbd.orbd");
    assert_eq!(managed.status()["current"], true);
    assert_eq!(fs::read_to_string(&file).expect("written"), text);
}

#[test]
fn install_without_a_login_session_explains_what_is_missing() {
    for (under, words) in [
        ("launchd", "log in on the Mac's screen"),
        ("systemd", "enable-linger"),
    ] {
        let managed = Managed::new(under);
        managed.trouble("no_session", true);
        managed.fails(&["install"], 1, &[words, "orbd-ctl daemon start"]);
        assert_eq!(managed.status()["installed"], false, "nothing was written");
    }
}

#[test]
fn failed_bootstrap_is_reported_unless_the_service_was_loaded_meanwhile() {
    let managed = Managed::new("launchd");
    managed.trouble("refuse", true);
    managed.fails(&["install"], 1, &["Bootstrap failed: 5", "plutil -lint"]);
    managed.trouble("refuse", false);
    managed.trouble("faster", true);
    // Another process loads the service meanwhile, for which launchd prints the same error.
    assert!(managed.ok(&["install"]).contains("installed"));
}

#[test]
fn install_replaces_a_daemon_that_runs_without_a_service() {
    let managed = Managed::new("systemd");
    assert!(managed.call(&["daemon", "start"]).status.success());
    let output = managed.service(&["install"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("stopping the orbd that runs without a service")
    );
    assert_eq!(managed.status()["answers"], true);
    assert!(managed.pid().is_some());
}

/// With `autostart = false`, only an explicit `daemon start` starts the daemon.
#[test]
fn autostart_can_be_turned_off_in_the_configuration() {
    let managed = Managed::new("systemd");
    let config = managed.world.path("home/.config/orbd");
    fs::create_dir_all(&config).expect("a folder");
    fs::write(config.join("config.toml"), "autostart = false\n").expect("written");
    let output = managed.call(&["list"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("orbd-ctl daemon start"),
        "{output:?}"
    );
    assert!(managed.call(&["daemon", "start"]).status.success());
    assert!(managed.call(&["list"]).status.success());
    assert!(managed.call(&["daemon", "stop"]).status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn call_without_a_daemon_starts_the_installed_service() {
    let managed = Managed::new("systemd");
    managed.ok(&["install"]);
    managed.ok(&["stop"]);
    managed.told();
    let output = managed.call(&["list"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(managed.told(), ["systemctl --user start orbd.service"]);
    assert!(managed.pid().is_some());
    managed.ok(&["stop"]);
    managed.has_ended();
    managed.trouble("refuse", true);
    let output = managed.call(&["list"]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("starting orbd without its service"),
        "{output:?}"
    );
    assert_eq!(managed.pid(), None);
    assert!(managed.call(&["daemon", "stop"]).status.success());
}

#[cfg(target_os = "linux")]
#[test]
fn doctor_reports_a_failing_service_and_a_path_without_orbctl() {
    let managed = Managed::new("systemd");
    managed.ok(&["install"]);
    let doctor = |managed: &Managed| ctl_doctor::read(&managed.call(&["doctor", "--json"]));
    let found = doctor(&managed);
    assert_eq!(ctl_doctor::about(&found, "service").level, "ok", "{found:#?}");
    managed.ok(&["stop"]);
    fs::write(managed.folder().join("exit"), "78").expect("written");
    let found = doctor(&managed);
    let service = ctl_doctor::about(&found, "service");
    assert!(
        service.level == "error"
            && service.message.contains("exit code 78")
            && service.fix.contains("orbd-ctl service logs"),
        "{service:?}"
    );
    // The service has a PATH of its own, so it may not find an orbctl that a terminal finds.
    let path = ctl_doctor::about(&found, "service's PATH");
    assert!(
        path.level == "error"
            && path.message.contains("has no orbctl")
            && path.fix.contains("orbd-ctl service install"),
        "{path:?}"
    );
    let file = managed.world.path("home/.config/systemd/user/orbd.service");
    let unit = fs::read_to_string(&file).expect("installed");
    let somewhere = managed.world.path("somewhere");
    fs::create_dir(&somewhere).expect("a folder");
    std::os::unix::fs::symlink(programs::orbctl_sim(), somewhere.join("orbctl")).expect("a link");
    fs::remove_file(managed.folder().join("exit")).expect("it was there");
    let unit = unit.replace("PATH=", &format!("PATH={}:", somewhere.display()));
    fs::write(&file, unit).expect("written");
    let found = doctor(&managed);
    assert_eq!(
        ctl_doctor::about(&found, "service's PATH").level,
        "ok",
        "{found:#?}"
    );
    assert!(
        ctl_doctor::about(&found, "service")
            .message
            .contains("is outdated")
    );
}

#[test]
fn service_logs_prints_the_log() {
    let managed = Managed::new("systemd");
    managed.ok(&["install"]);
    let text = eventually("the first line is written", || {
        let output = managed.service(&["logs"]);
        let text = String::from_utf8(output.stdout).expect("text");
        text.contains("orbd").then_some(text)
    });
    assert!(text.lines().count() <= 50);
    assert_eq!(managed.ok(&["logs", "-n", "1"]).lines().count(), 1);
}

/// systemd's own checker reads the unit; skipped if it is not installed.
#[cfg(target_os = "linux")]
#[test]
fn systemd_accepts_the_unit() {
    let managed = Managed::new("systemd");
    let unit = managed.world.path("orbd.service");
    fs::write(&unit, managed.ok(&["install", "--print"])).expect("written");
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--user"])
        .arg(&unit)
        .env("XDG_RUNTIME_DIR", managed.world.path("home"))
        .output();
    let Ok(verified) = verified else {
        crate::support::skip("`systemd-analyze` (Debian: apt-get install systemd)");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success(), "{said}");
    assert!(!said.contains("orbd.service"), "{said}");
}

/// The files in `launchd/` are those that `service install` writes. `ORBD_BLESS=1` rewrites them.
#[test]
fn published_service_files_are_those_that_are_installed() {
    let home = tempfile::tempdir().expect("a folder");
    let program = PathBuf::from(programs::orbd_ctl()).with_file_name("orbd");
    for (manager, file) in [("launchd", "dev.orbd.orbd.plist"), ("systemd", "orbd.service")] {
        let output = Command::new(programs::orbd_ctl())
            .args(["service", "install", "--print", "--manager", manager])
            .env_clear()
            .env("HOME", home.path())
            .env("PATH", "/usr/bin:/bin")
            .output()
            .expect("it starts");
        let installed = String::from_utf8(output.stdout)
            .expect("text")
            .replace(&home.path().display().to_string(), "/Users/you")
            .replace(&program.display().to_string(), "/opt/homebrew/opt/orbd/bin/orbd");
        let path = programs::root().join("launchd").join(file);
        if std::env::var_os("ORBD_BLESS").is_some() {
            fs::write(&path, &installed).expect("written");
        }
        assert_eq!(fs::read_to_string(&path).expect("there"), installed, "{file}");
    }
}

/// Puts orbd-ctl and a daemon's program into a folder, as an installation has them.
fn installation(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).expect("a folder");
    for program in [programs::orbd(), programs::orbd_ctl()] {
        // Linked where possible; a copy is written by another process, because a file that this one has open for writing
        // cannot be executed.
        let linked = Command::new("/bin/sh")
            .args([
                "-c",
                "ln -f \"$1\" \"$2\" 2>/dev/null || cp \"$1\" \"$2\"",
                "sh",
                program,
            ])
            .arg(folder)
            .status()
            .expect("a shell");
        assert!(linked.success());
    }
    folder.join("orbd-ctl")
}

/// A folder that is not a temporary one.
fn lasting_folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

#[test]
fn service_is_not_installed_from_a_temporary_folder() {
    let managed = Managed::new("systemd");
    let ctl = installation(&managed.world.path("uvx/bin"));
    let folder = lasting_folder();
    let links = folder.path().display().to_string();
    for words in [
        &["service", "install", "--manager", "systemd"][..],
        &["dropin", "install", "--dir", &links],
    ] {
        let output = managed.run(&ctl, words);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for wanted in ["is in a cache or a temporary directory", "uv tool install orbd"] {
            assert!(said.contains(wanted), "{said}");
        }
    }
    assert_eq!(managed.status()["installed"], false);
}

#[test]
fn service_from_a_virtual_environment_runs_a_link_outside_or_a_copy() {
    let managed = Managed::new("systemd");
    let folder = lasting_folder();
    let venv = folder.path().join("my venv");
    let ctl = installation(&venv.join("bin"));
    fs::write(venv.join("pyvenv.cfg"), "home = /usr\n").expect("written");
    let install = |ctl: &Path| {
        let output = managed.run(ctl, &["service", "install", "--manager", "systemd", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["program"].as_str().expect("a path").to_owned()
    };
    let copy = managed.world.path("state/service/orbd");
    assert_eq!(install(&ctl), copy.display().to_string());
    assert_eq!(
        fs::read(&copy).expect("copied"),
        fs::read(programs::orbd()).expect("built")
    );
    // Another installation neither takes over the service nor updates it to another path.
    assert_eq!(
        install(Path::new(programs::orbd_ctl())),
        copy.display().to_string()
    );
    managed.ok(&["uninstall"]);
    managed.has_ended();

    let bin = managed.world.path("home/.local/bin");
    fs::create_dir_all(&bin).expect("a folder");
    std::os::unix::fs::symlink(venv.join("bin/orbd"), bin.join("orbd")).expect("a link");
    assert_eq!(install(&ctl), bin.join("orbd").display().to_string());
    let other = managed.service(&["install"]);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        said.contains("the service runs") && said.contains(programs::orbd()),
        "{said}"
    );
    managed.ok(&["uninstall"]);
    managed.has_ended();
}

#[cfg(target_os = "linux")]
#[test]
fn service_whose_program_is_gone_is_skipped_and_named_first_by_doctor() {
    let managed = Managed::new("systemd");
    managed.ok(&["install"]);
    managed.ok(&["stop"]);
    managed.has_ended();
    let file = managed.world.path("home/.config/systemd/user/orbd.service");
    let gone = managed.world.path("gone/orbd").display().to_string();
    let unit = fs::read_to_string(&file).expect("installed");
    fs::write(&file, unit.replace(programs::orbd(), &gone)).expect("ours");
    managed.told();
    let output = managed.call(&["list"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("the service's program {gone} does not exist"))
            && said.contains("orbd-ctl service install"),
        "{said}"
    );
    assert_eq!(managed.told(), [""; 0], "the manager is not asked to start it");
    let found = ctl_doctor::read(&managed.call(&["doctor", "--json"]));
    assert_eq!(found[0].about, "service", "{found:#?}");
    assert!(
        found[0].level == "error" && found[0].message.contains(&gone),
        "{found:#?}"
    );
    managed.fails(&["start"], 4, &["does not exist", "orbd-ctl service install"]);
    assert_eq!(managed.status()["program_exists"], false);
    managed.ok(&["install"]);
    assert_eq!(managed.status()["program"], programs::orbd());
    managed.ok(&["uninstall"]);
}

#[cfg(target_os = "linux")]
#[test]
fn uninstall_stops_the_service_and_removes_its_file() {
    let managed = Managed::new("systemd");
    managed.ok(&["install"]);
    let pid = managed.pid().expect("it runs");
    managed.told();
    let output = managed.call(&["uninstall", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(managed.told(), ["systemctl --user disable --now orbd.service"]);
    assert!(!crate::support::is_alive(pid));
    let status = managed.status();
    assert_eq!(
        (&status["installed"], &status["answers"]),
        (&false.into(), &false.into())
    );
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("service ") && text.contains("removes it"), "{text}");
}

#[test]
fn service_of_homebrew_is_not_installed_twice() {
    for (under, file) in [
        ("launchd", "home/Library/LaunchAgents/homebrew.mxcl.orbd.plist"),
        ("systemd", "home/.config/systemd/user/homebrew.orbd.service"),
    ] {
        let managed = Managed::new(under);
        let file = managed.world.path(file);
        fs::create_dir_all(file.parent().expect("one")).expect("a folder");
        fs::write(&file, "").expect("written");
        managed.fails(&["install"], 1, &["Homebrew", "brew services stop orbd"]);
        assert_eq!(managed.status()["installed"], false);
    }
}

/// What `brew services start orbd` and `service install` have in common; launchd/README.md says where they differ.
#[test]
fn formula_and_installed_agent_agree() {
    let root = programs::root().join("launchd");
    let formula = fs::read_to_string(root.join("homebrew/orbd.rb")).expect("there");
    let (_, service) = formula.split_once("service do").expect("a service block");
    let (service, _) = service.split_once("\n  end").expect("its end");
    let agent = fs::read_to_string(root.join("dev.orbd.orbd.plist")).expect("there");
    let agent: String = agent.split_whitespace().collect::<Vec<_>>().join(" ");
    for (formula, key) in [
        (
            "run opt_bin/\"orbd\"",
            "<key>ProgramArguments</key> <array> <string>/opt/homebrew/opt/orbd/bin/orbd</string> </array>",
        ),
        (
            "keep_alive successful_exit: false",
            "<key>KeepAlive</key> <dict> <key>SuccessfulExit</key> <false/> </dict>",
        ),
        ("run_at_load true", "<key>RunAtLoad</key> <true/>"),
        (
            "throttle_interval 5",
            "<key>ThrottleInterval</key> <integer>5</integer>",
        ),
        (
            "process_type :interactive",
            "<key>ProcessType</key> <string>Interactive</string>",
        ),
        (
            "PATH: \"#{Dir.home}/.orbstack/bin:#{std_service_path_env}\"",
            "<string>/Users/you/.orbstack/bin:/opt/homebrew/bin:",
        ),
    ] {
        assert!(service.contains(formula), "{formula}: {service}");
        assert!(agent.contains(key), "{key}: {agent}");
    }
}
