//! A real daemon over the stand-in in a folder of its own, and helpers that observe it.
//!
//! Nothing here sleeps to synchronise. [`eventually`] polls with a time limit, and is only for conditions that no
//! notification announces: a socket that appears, a line in the ledger, a process that exits.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs, give up after a while, and print the log of a daemon that failed"
)]

mod ledger;
mod processes;
mod wire;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use orbd_client::{CallError, Client};
use orbd_proto::methods::{
    DaemonInfo, JobCancel, JobGet, JobList, JobOutput, JobWait, MachineList, MachineRun, Method, QueuePause,
    QueueResume, QueueStatus,
};
use orbd_proto::types::{
    Chunk, ErrorData, ErrorObject, Job, JobStateWord, Machine, NoParams, Outage, RunAnswer, Stream,
};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

pub(crate) use ledger::Ledger;
pub(crate) use processes::{children_of, count_open, is_alive, resident, resident_peak, state_of, words_of};
pub(crate) use wire::Wire;

/// Longer than anything here takes; what takes this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const EXEC_CHANNEL: &str = "ORBD_EXEC_CHANNEL";

/// PATH of the programs that tests start.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Reports that a test, or a part of it, is skipped: what it needs and how to install that. The line bypasses the
/// runner's capture of output. With `ORBD_REQUIRE_ALL` set, as in CI, a skip is a failure.
pub(crate) fn skip(needs: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("ORBD_REQUIRE_ALL").is_none(),
        "{name} must not be skipped, and needs {needs}"
    );
    // If stderr is closed, there is nowhere to report.
    let _ = writeln!(io::stderr(), "SKIPPED {name}: needs {needs}");
}

/// Returns whether a program that a test needs is on PATH; if it is not, reports that the test is skipped. `package` is
/// its Debian package.
pub(crate) fn has_program(program: &str, package: &str) -> bool {
    let is_there = PATH
        .split(':')
        .any(|folder| Path::new(folder).join(program).exists());
    if !is_there {
        skip(&format!("`{program}` (Debian: apt-get install {package})"));
    }
    is_there
}

/// Makes every signal that tests send have its default action in the programs that they start, even if the shell that
/// started the tests ignores it: an ignored signal stays ignored across exec, a handled one is reset. The handler does
/// what the default action would do.
fn restore_default_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
            signal_hook::flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true)))
                .expect("a signal that can be handled");
        }
    });
}

/// Returns the answers to open questions that all tests run with.
fn answers() -> Option<String> {
    std::env::var("ORBCTL_SIM_ANSWERS").ok()
}

/// Polls until `look` returns a value.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, look)
}

/// The same with another time limit, for what takes longer by design.
#[track_caller]
pub(crate) fn eventually_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < patience, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A folder with a stand-in and a daemon. Dropping it ends both, and everything that they started.
pub(crate) struct World {
    folder: tempfile::TempDir,
    values: Vec<String>,
    variables: Vec<(&'static str, String)>,
    /// The daemon's program; `None` for the one that was built.
    program: Option<PathBuf>,
    daemon: Option<Child>,
    /// Dropped last, so that it also watches the rest of the drop.
    _watchdog: Option<Watchdog>,
}

impl World {
    /// Returns a world in which commands take no time, each as an `orbctl run` of its own; nothing runs yet.
    pub(crate) fn new() -> Self {
        restore_default_signals();
        let folder = tempfile::Builder::new()
            .prefix("orbd-it-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a temporary folder");
        fs::create_dir(folder.path().join("home")).expect("a home");
        let mut variables = vec![
            ("ORBCTL_SIM_LATENCY", "0".to_owned()),
            ("ORBCTL_SIM_ISOLATION", "dir".to_owned()),
            // On a busy computer an `orbctl run` may take long enough for a channel to be opened.
            (EXEC_CHANNEL, "off".to_owned()),
        ];
        // `make test-answers` runs the tests on a stand-in that answers open questions in another way.
        variables.extend(answers().map(|answers| ("ORBCTL_SIM_ANSWERS", answers)));
        Self {
            folder,
            values: Vec::new(),
            variables,
            program: None,
            daemon: None,
            _watchdog: Watchdog::start(),
        }
    }

    /// Starts a daemon over running machines with these names.
    pub(crate) fn with_machines(names: &[&str]) -> Self {
        Self::new().machines(names).started()
    }

    /// Sets a configuration key.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.values.push(format!("{key}={value}"));
        self
    }

    /// Sets an environment variable of the daemon and of the stand-in.
    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Makes commands take this many milliseconds, as in `restart=100,list=20`.
    pub(crate) fn latency(self, text: &str) -> Self {
        self.variable("ORBCTL_SIM_LATENCY", &format!("0,{text}"))
    }

    /// Lets commands use resident channels, as by default. Each `orbctl run` takes long enough for that.
    pub(crate) fn channels(mut self) -> Self {
        self.variables.retain(|(name, _)| *name != EXEC_CHANNEL);
        self.latency("run=25")
    }

    /// Scripts troubles of the stand-in.
    pub(crate) fn script(self, text: &str) -> Self {
        let path = self.path("script.toml");
        fs::write(&path, text).expect("a script");
        let path = path.display().to_string();
        self.variable("ORBCTL_SIM_SCRIPT", &path)
    }

    /// Scripts one trouble: these invocations wait at a gate.
    pub(crate) fn gated(self, rule: &str, gate: &str) -> Self {
        let pipe = self.gate(gate);
        self.script(&format!("{rule}\nkind = \"gate\"\ntext = \"{pipe}\""))
    }

    /// Replaces the scripted troubles, from the next invocation on.
    pub(crate) fn rescript(&self, text: &str) {
        let next = self.path("script.next");
        fs::write(&next, text).expect("a script");
        // In one step: a concurrent invocation reads either the old script or the new one.
        fs::rename(next, self.path("script.toml")).expect("a script");
    }

    /// Makes machines before the daemon starts, without lines in the ledger.
    pub(crate) fn machines(self, names: &[&str]) -> Self {
        for name in names {
            let output = self.sim(&["create", "ubuntu", name]);
            assert!(output.status.success(), "{output:?}");
        }
        self
    }

    /// Runs the daemon from a copy of its program in this world, which tests can replace.
    pub(crate) fn installed(mut self) -> Self {
        fs::create_dir(self.path("bin")).expect("a folder");
        self.program = Some(self.path("bin/orbd"));
        self.install(Path::new(programs::orbd()));
        self
    }

    /// Replaces the daemon's program as a package manager does: writes a copy next to it, then renames the copy over
    /// it. Each copy ends with a comment of its own, so that it counts as another program.
    pub(crate) fn install(&self, program: &Path) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("# {}\n", NEXT.fetch_add(1, Ordering::Relaxed));
        self.put_in_place(program, &mark);
    }

    /// Replaces the daemon's program by a copy with the same contents.
    pub(crate) fn reinstall(&self) {
        self.put_in_place(&self.path("bin/orbd"), "");
    }

    fn put_in_place(&self, program: &Path, mark: &str) {
        // Another process writes the file: a file that this process, and so a child of another thread, has open for
        // writing cannot be executed.
        let copied = Command::new("/bin/sh")
            .args([
                "-c",
                "cp \"$1\" \"$2.new\" && printf %s \"$3\" >>\"$2.new\" && chmod 755 \"$2.new\" && mv -f \"$2.new\" \"$2\"",
                "sh",
            ])
            .arg(program)
            .arg(self.path("bin/orbd"))
            .arg(mark)
            .status()
            .expect("cp");
        assert!(copied.success());
    }

    /// Mounts a disk of one mebibyte on a folder, visible only to the daemon and gone when the daemon ends. Returns
    /// `None`, and reports a skip, if none can be mounted.
    pub(crate) fn with_small_disk(mut self, folder: &str) -> Option<Self> {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).expect("a folder");
        let namespace = if rustix::process::geteuid().is_root() {
            "unshare --mount"
        } else {
            "unshare --user --map-current-user --keep-caps --mount"
        };
        let mount = format!(
            "exec {namespace} sh -c 'mount -t tmpfs -o size=1m,mode=700 tmpfs \"$0\" && exec \"$@\"' '{}'",
            folder.display()
        );
        let probe = Command::new("/bin/sh")
            .args(["-c", &format!("{mount} true")])
            .env("PATH", PATH)
            .output()
            .expect("a shell");
        if !probe.status.success() {
            eprintln!("SKIPPED, because no disk can be mounted here: {probe:?}");
            return None;
        }
        let program = self.path("orbd-on-small-disk");
        let built = programs::orbd();
        // Another process writes the file: a file that this process has open for writing cannot be executed.
        let written = Command::new("/bin/sh")
            .args([
                "-c",
                "printf '#!/bin/sh\n%s\n' \"$2\" >\"$1\" && chmod 755 \"$1\"",
                "sh",
            ])
            .arg(&program)
            .arg(format!("{mount} '{built}' \"$@\""))
            .status()
            .expect("a shell");
        assert!(written.success());
        self.program = Some(program);
        Some(self)
    }

    /// Returns the path at which a test finds a file on the disk that only the daemon sees.
    pub(crate) fn daemon_path(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let path = path.strip_prefix("/").expect("absolute");
        Path::new(&format!("/proc/{}/root", self.pid())).join(path)
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts the daemon and waits until this daemon is the one that answers.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.until_it_answers();
    }

    /// Starts the daemon from a description, and waits until this daemon is the one that answers.
    #[cfg(target_os = "linux")]
    pub(crate) fn start_as(&mut self, mut command: Command) {
        self.daemon = Some(command.spawn().expect("the daemon starts"));
        self.until_it_answers();
    }

    /// Starts the daemon without waiting for anything.
    pub(crate) fn launch(&mut self) {
        self.daemon = Some(self.daemon_command().spawn().expect("the daemon starts"));
    }

    /// Takes over a daemon that was started in another way.
    pub(crate) fn adopt(&mut self, daemon: Child) {
        self.daemon = Some(daemon);
    }

    /// Waits until the started daemon is the one that answers.
    pub(crate) fn until_it_answers(&mut self) {
        let mut child = self.daemon.take().expect("a daemon runs");
        eventually("the daemon answers", || {
            if let Some(status) = child.try_wait().expect("ours") {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            let mut client = Client::connect(&self.socket()).ok()?;
            client.set_timeout(Some(Duration::from_secs(1))).ok()?;
            let info = client.call::<DaemonInfo>(&NoParams {}).ok()?;
            (info.pid == child.id()).then_some(())
        });
        self.daemon = Some(child);
    }

    /// Returns the command that starts the daemon.
    pub(crate) fn daemon_command(&self) -> Command {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log");
        let built = Path::new(programs::orbd());
        let mut command = Command::new(self.program.as_deref().unwrap_or(built));
        command
            .arg("--foreground")
            .args(self.values.iter().flat_map(|value| ["--set", value]))
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.path("home"))
            .env("ORBD_ALLOW_ROOT", "true")
            .env("ORBD_SOCKET", self.socket())
            .env("ORBD_STATE_DIR", self.path("state"))
            .env("ORBD_ORBCTL", programs::orbctl_sim())
            .env("ORBD_LOG_LEVEL", "debug")
            .env("ORBCTL_SIM_HOME", self.path("sim"))
            .env("ORBCTL_SIM_LEDGER", self.path("ledger.jsonl"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            // A signal to the test's process group must not reach the daemon.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// Runs the stand-in without the daemon, and without delay, trouble or lines in the ledger.
    pub(crate) fn sim(&self, words: &[&str]) -> Output {
        Command::new(programs::orbctl_sim())
            .args(words)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.path("home"))
            .env("ORBCTL_SIM_HOME", self.path("sim"))
            .env("ORBCTL_SIM_LEDGER", "/dev/null")
            .env("ORBCTL_SIM_ISOLATION", "dir")
            .env("ORBCTL_SIM_LATENCY", "0")
            .stdin(Stdio::null())
            .output()
            .expect("the stand-in starts")
    }

    /// Returns the machines and their states as the stand-in itself lists them.
    pub(crate) fn truth(&self) -> Vec<(String, String)> {
        let output = self.sim(&["list", "-f", "json"]);
        assert!(output.status.success(), "{output:?}");
        let machines: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let word = |machine: &Value, key: &str| machine[key].as_str().expect("a word").to_owned();
        machines
            .iter()
            .map(|machine| (word(machine, "name"), word(machine, "state")))
            .collect()
    }

    /// Returns a path in the world's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the path of the socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("orbd.sock")
    }

    /// Returns what the daemons of this world logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon runs").id()
    }

    /// Connects a client.
    pub(crate) fn client(&self) -> Caller {
        Caller::connect(&self.socket())
    }

    /// Connects for requests that a test writes by hand.
    pub(crate) fn wire(&self) -> Wire {
        Wire::connect(&self.socket())
    }

    /// Connects as soon as there is room: a closed connection counts until the daemon notices.
    pub(crate) fn admitted(&self) -> Wire {
        eventually("there is room", || {
            let mut wire = self.wire();
            let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.info\"}\n";
            // If the connection is refused, it may be closed before this is written.
            let _ = wire.stream.write_all(request);
            wire.receive()?["result"].is_object().then_some(wire)
        })
    }

    /// Connects as soon as there is room, and subscribes, so that the connection is in use.
    pub(crate) fn subscribed(&self) -> Wire {
        let mut wire = self.admitted();
        let answer = wire.call(2, "events.subscribe", &json!({}));
        assert!(answer["error"].is_null(), "{answer}");
        wire
    }

    /// Runs a client on a connection and a thread of its own.
    pub(crate) fn background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Caller) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let mut caller = self.client();
        std::thread::spawn(move || work(&mut caller))
    }

    /// Reads the ledger as it is now.
    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::read(&self.path("ledger.jsonl"))
    }

    /// Makes a named pipe: a command that reads it runs until [`World::open_gate`].
    pub(crate) fn gate(&self, name: &str) -> String {
        let path = self.path(name);
        // With the program, because rustix has this call for Linux only.
        let made = Command::new("mkfifo").args(["-m", "600"]).arg(&path).status();
        assert!(made.expect("this program").success());
        path.display().to_string()
    }

    /// Waits until a command reads from the gate, and keeps it there until it is released.
    ///
    /// A running job need not be there yet: its process must first start and read the scripted troubles.
    #[track_caller]
    pub(crate) fn at_gate(&self, name: &str) -> AtGate {
        let path = self.path(name);
        // Non-blocking, because a blocking `open` would never return if no process reads.
        let mode = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        eventually(&format!("a command reads {name}"), || {
            match rustix::fs::open(&path, mode, rustix::fs::Mode::empty()) {
                Ok(opened) => Some(AtGate(opened.into())),
                Err(rustix::io::Errno::NXIO) => None,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        })
    }

    /// Releases one command at the gate, with a line to read.
    #[track_caller]
    pub(crate) fn open_gate(&self, name: &str) {
        self.at_gate(name).open();
    }

    /// Kills the daemon as a crash would. Its children survive.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        daemon.kill().expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// Asks the daemon for an orderly stop, with SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.pid()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
    }

    /// Waits until the daemon has exited.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        eventually("the daemon ends", || daemon.try_wait().expect("it is ours"))
    }

    /// Returns the processes that belong to this world, by their environment or their folder.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes::belonging_to(self.folder.path())
    }
}

/// A command that waits at a gate. It reads end of file when this is dropped.
pub(crate) struct AtGate(fs::File);

impl AtGate {
    /// Releases the command, with a line to read.
    pub(crate) fn open(mut self) {
        self.0.write_all(b"go\n").expect("somebody reads");
    }
}

/// Aborts the whole run and prints the test's name if one of its worlds lives too long. An endless wait would otherwise
/// print nothing, not even which test it is.
struct Watchdog {
    /// Dropped with the world, which ends the thread.
    _over: mpsc::Sender<()>,
}

impl Watchdog {
    /// Much longer than the longest test here; `make soak` runs without a watchdog.
    const PATIENCE: Duration = Duration::from_secs(240);

    fn start() -> Option<Self> {
        if std::env::var_os("ORBD_SOAK_CYCLES").is_some() {
            return None;
        }
        // The first use builds the programs, which may take minutes.
        programs::orbd();
        let (over, waits) = mpsc::channel();
        // The test's name, after which the harness names its threads.
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if waits.recv_timeout(Self::PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Bypasses the harness, which captures output until the test ends.
                let line = format!("\ntest {name} has not ended in {:?}: given up\n", Self::PATIENCE);
                let _ = io::stderr().write_all(line.as_bytes());
                std::process::abort();
            }
        });
        Some(Self { _over: over })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Either may fail because the daemon has exited.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        self.sim(&["sim-cleanup"]);
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            for line in tail.iter().rev() {
                eprintln!("orbd: {line}");
            }
        }
    }
}

/// A client that takes parameters as JSON and returns typed answers.
pub(crate) struct Caller(pub(crate) Client);

impl Caller {
    pub(crate) fn connect(socket: &Path) -> Self {
        let client = Client::connect(socket).expect("the daemon takes connections");
        client.set_timeout(Some(PATIENCE * 2)).expect("a timeout");
        Self(client)
    }

    /// Makes a call; the error is the daemon's.
    pub(crate) fn call<M: Method>(&mut self, params: Value) -> Result<M::Answer, Box<ErrorObject>> {
        match self.try_call::<M>(params) {
            Ok(answer) => answer,
            Err(error) => panic!("{}: {error}", M::NAME),
        }
    }

    /// Makes a call to a daemon that may die meanwhile.
    pub(crate) fn try_call<M: Method>(
        &mut self,
        params: Value,
    ) -> io::Result<Result<M::Answer, Box<ErrorObject>>> {
        let params = serde_json::from_value(params).expect("parameters of this method");
        match self.0.call::<M>(&params) {
            Ok(answer) => Ok(Ok(answer)),
            Err(CallError::Refused(error)) => Ok(Err(Box::new(error))),
            Err(CallError::Lost(error)) => Err(error),
            Err(error @ CallError::Unreadable { .. }) => panic!("{}: {error:?}", M::NAME),
        }
    }

    /// Makes a call that must succeed.
    #[track_caller]
    pub(crate) fn ok<M: Method>(&mut self, params: Value) -> M::Answer {
        match self.call::<M>(params) {
            Ok(answer) => answer,
            Err(error) => panic!("{}: {error:?}", M::NAME),
        }
    }

    /// Makes a call that must be refused; returns the error's data.
    #[track_caller]
    pub(crate) fn refused<M: Method>(&mut self, params: Value) -> ErrorData {
        match self.call::<M>(params) {
            Ok(_) => panic!("{} succeeded", M::NAME),
            Err(error) => *error.data.expect("every error has data"),
        }
    }

    /// Returns the machine list, which may come from the cache.
    pub(crate) fn machines(&mut self) -> Vec<Machine> {
        self.ok::<MachineList>(json!({})).machines
    }

    /// Returns the state of a machine; `None` if the list does not have it.
    pub(crate) fn state_of(&mut self, name: &str) -> Option<String> {
        let machines = self.machines();
        let machine = machines.into_iter().find(|machine| machine.name == name)?;
        Some(machine.state)
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run(&mut self, machine: &str, command: &[&str]) -> RunAnswer {
        self.ok::<MachineRun>(json!({"machine": machine, "command": command}))
    }

    /// Starts a detached command; returns its job id.
    #[track_caller]
    pub(crate) fn run_detached(&mut self, machine: &str, command: &[&str]) -> u64 {
        let params = json!({"machine": machine, "command": command, "detach": true});
        self.ok::<MachineRun>(params).job_id
    }

    /// Returns the outage of `orbctl` that the daemon reports.
    #[track_caller]
    pub(crate) fn outage(&mut self) -> Option<Outage> {
        self.ok::<QueueStatus>(json!({})).unhealthy
    }

    /// Polls until the daemon reports no outage.
    #[track_caller]
    pub(crate) fn until_healthy(&mut self) {
        eventually("the daemon reports no outage", || {
            self.outage().is_none().then_some(())
        });
    }

    /// Returns a job.
    #[track_caller]
    pub(crate) fn job(&mut self, id: u64) -> Job {
        self.ok::<JobGet>(json!({"job_id": id})).job
    }

    /// Returns all jobs.
    pub(crate) fn jobs(&mut self) -> Vec<Job> {
        self.ok::<JobList>(json!({"limit": 10_000})).jobs
    }

    /// Waits until a job has ended, and returns it.
    #[track_caller]
    pub(crate) fn end_of(&mut self, id: u64) -> Job {
        let params = json!({"job_id": id, "timeout_ms": PATIENCE.as_millis()});
        let job = self.ok::<JobWait>(params).job;
        assert_eq!(job.state, JobStateWord::Ended, "{job:?}");
        job
    }

    /// Polls until a job runs.
    #[track_caller]
    pub(crate) fn until_running(&mut self, id: u64) {
        eventually("the job runs", || {
            (self.job(id).state == JobStateWord::Running).then_some(())
        });
    }

    /// Polls until the job of a call made elsewhere is in this state, and returns it.
    #[track_caller]
    pub(crate) fn find(&mut self, operation: &str, machine: &str, state: JobStateWord) -> Job {
        eventually("the call becomes a job", || {
            let machine = (!machine.is_empty()).then_some(machine);
            let params = json!({"operation": operation, "machine": machine, "state": state});
            self.ok::<JobList>(params).jobs.pop()
        })
    }

    pub(crate) fn cancel(&mut self, id: u64) -> String {
        self.ok::<JobCancel>(json!({"job_id": id})).result
    }

    pub(crate) fn pause(&mut self) {
        self.ok::<QueuePause>(json!({}));
    }

    pub(crate) fn resume(&mut self) {
        self.ok::<QueueResume>(json!({}));
    }

    /// Reads a job's output from an offset to its end, and checks that nothing is missing or repeated.
    pub(crate) fn output_from(&mut self, id: u64, mut offset: u64, bytes_max: u64) -> Vec<Chunk> {
        let mut all = Vec::new();
        loop {
            let params = json!({"job_id": id, "offset": offset, "bytes_max": bytes_max, "wait_ms": 20_000});
            let answer = self.ok::<JobOutput>(params);
            assert_eq!(answer.gap, None);
            for chunk in answer.output {
                assert_eq!(chunk.offset, offset, "chunks follow each other");
                offset += bytes_of(&chunk).len() as u64;
                all.push(chunk);
            }
            assert_eq!(answer.next_offset, offset);
            if answer.eof {
                return all;
            }
        }
    }
}

/// Returns the bytes of one chunk.
pub(crate) fn bytes_of(chunk: &Chunk) -> Vec<u8> {
    match (&chunk.text, &chunk.base64) {
        (Some(text), None) => text.clone().into_bytes(),
        (None, Some(coded)) => base64::engine::general_purpose::STANDARD
            .decode(coded)
            .expect("base64"),
        _ => panic!("a chunk has text or base64"),
    }
}

/// Returns the bytes of one stream.
pub(crate) fn stream_of(chunks: &[Chunk], stream: Stream) -> Vec<u8> {
    chunks
        .iter()
        .filter(|chunk| chunk.stream == stream)
        .flat_map(bytes_of)
        .collect()
}

/// Returns what a command wrote to stdout, as text.
pub(crate) fn stdout_of(answer: &RunAnswer) -> String {
    String::from_utf8_lossy(&stream_of(&answer.output, Stream::Stdout)).into_owned()
}

/// Returns the outcome of an ended job, and the kind of its error.
pub(crate) fn outcome_of(job: &Job) -> (&str, &str) {
    let outcome = job.outcome.as_ref().expect("it has ended");
    let kind = outcome
        .error
        .as_ref()
        .and_then(|error| error.data.as_ref())
        .map_or("", |data| data.kind.as_str());
    (&outcome.kind, kind)
}

/// Pseudo-random numbers that are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64, with its published constants.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| u8::try_from(self.below(256)).expect("below 256"))
            .collect()
    }
}
