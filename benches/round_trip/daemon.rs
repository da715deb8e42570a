//! Starts the daemon, and pins processes to one CPU.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A running daemon with a folder of its own. It is killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    folder: TempDir,
    settings: Vec<String>,
    orbctl: PathBuf,
}

impl Daemon {
    /// Starts a daemon that uses this program as `orbctl`.
    pub(crate) fn with_stand_in(settings: &[&str]) -> Self {
        Self::start(settings, super::stand_in::install)
    }

    /// Starts a daemon that uses `orbctl-sim` with this many machines, each a plain folder.
    pub(crate) fn with_machines(machines: usize, settings: &[&str]) -> Self {
        Self::start(settings, |folder| {
            let program = PathBuf::from(programs::orbctl_sim());
            for n in 0..machines {
                let made = simulated(Command::new(&program), folder)
                    .args(["create", "ubuntu:24.04", &format!("machine-{n}")])
                    .stdout(Stdio::null())
                    .status();
                assert!(made.expect("orbctl-sim").success());
            }
            program
        })
    }

    fn start(settings: &[&str], orbctl: impl FnOnce(&Path) -> PathBuf) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("orbd-bench-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a folder");
        let orbctl = orbctl(folder.path());
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let child = spawn(folder.path(), &orbctl, &settings);
        let daemon = Self {
            child,
            folder,
            settings,
            orbctl,
        };
        daemon.wait();
        daemon
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was not waited for");
    }

    /// Starts it again in the same folder.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.folder.path(), &self.orbctl, &self.settings);
    }

    /// Waits for the daemon's first answer.
    pub(crate) fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            assert!(Instant::now() < until, "the daemon does not start");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn answers(&self) -> bool {
        UnixStream::connect(self.socket())
            .is_ok_and(|stream| Lines::over(stream).try_call("daemon.info", "{}").is_some())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the path of the program that the daemon uses as `orbctl`.
    pub(crate) fn orbctl(&self) -> &Path {
        &self.orbctl
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("it listens")
    }

    /// Connects for calls as JSON lines.
    pub(crate) fn lines(&self) -> Lines {
        Lines::over(self.connect())
    }

    /// Returns a field of its `/proc` status in KiB; 0 if the system has none.
    pub(crate) fn memory_kb(&self, key: &str) -> u32 {
        memory_kb(self.pid(), key).unwrap_or_default()
    }
}

/// Returns a field of a process's `/proc` status in KiB; `None` if the system has none.
pub(crate) fn memory_kb(pid: u32, key: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rest = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    rest.trim().trim_end_matches(" kB").parse().ok()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, orbctl: &Path, settings: &[String]) -> Child {
    let program = std::env::var_os("ORBD_BENCH_ORBD").unwrap_or_else(|| programs::orbd().into());
    let mut command = simulated(Command::new(program), folder);
    let set = |key: &str, path: &Path| format!("{key}={}", path.display());
    for setting in [
        set("socket", &folder.join("s")),
        set("state_dir", &folder.join("state")),
        set("orbctl", orbctl),
        "allow_root=true".to_owned(),
    ]
    .iter()
    .chain(settings)
    {
        command.args(["--set", setting]);
    }
    command.stderr(Stdio::null()).spawn().expect("orbd")
}

/// Sets the environment of the daemon and of what it starts.
fn simulated(mut command: Command, folder: &Path) -> Command {
    command
        .env_clear()
        .env("HOME", folder)
        .env("PATH", "/usr/bin:/bin")
        .env("ORBCTL_SIM_HOME", folder.join("sim"))
        .env("ORBCTL_SIM_LATENCY", "0")
        .env("ORBCTL_SIM_ISOLATION", "dir")
        .stdin(Stdio::null());
    command
}

/// Makes calls as JSON lines, one at a time.
pub(crate) struct Lines {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Lines {
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            line: String::new(),
        }
    }

    /// Sends an encoded request; returns the answer's line.
    pub(crate) fn exchange(&mut self, request: &str) -> Option<&str> {
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        self.line.clear();
        let read = self.stream.read_line(&mut self.line).ok()?;
        (read > 0).then_some(&*self.line)
    }

    fn try_call(&mut self, method: &str, params: &str) -> Option<Value> {
        let request = request(method, params);
        let answer: Value = serde_json::from_str(self.exchange(&request)?).ok()?;
        answer.get("result").cloned()
    }

    /// Makes a call that must succeed.
    pub(crate) fn call(&mut self, method: &str, params: &str) -> Value {
        self.try_call(method, params)
            .unwrap_or_else(|| panic!("{method} gave {}", self.line))
    }
}

/// Encodes a request as a line.
pub(crate) fn request(method: &str, params: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}\n")
}

/// Encodes a request as HTTP.
pub(crate) fn http_request(method: &str, params: &str) -> String {
    let body = request(method, params);
    let length = body.len();
    format!(
        "POST / HTTP/1.1\r\nHost: orbd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

const LENGTH: &[u8] = b"content-length: ";

/// Returns the length of the answer at the start of `bytes` if it is complete. An HTTP answer is measured by its
/// header; anything else is a line.
pub(crate) fn answer_length(bytes: &[u8]) -> Option<usize> {
    if bytes.first() != Some(&b'H') {
        // There is only one answer at a time, so a line end ends it.
        return (bytes.last() == Some(&b'\n')).then_some(bytes.len());
    }
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let at = memchr::memmem::find(&bytes[..head], LENGTH)? + LENGTH.len();
    let digits = bytes[at..head].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    (bytes.len() >= head + body).then_some(head + body)
}

/// Sends a request and reads the whole answer.
pub(crate) fn round_trip(stream: &mut UnixStream, request: &[u8], buffer: &mut [u8]) -> usize {
    stream.write_all(request).expect("it takes requests");
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).expect("it answers");
        assert!(read > 0, "it hung up");
        filled += read;
        if let Some(length) = answer_length(&buffer[..filled]) {
            return length;
        }
    }
}

/// Pins this process, and everything that it starts meanwhile, to one CPU until dropped.
pub(crate) struct Pinned {
    #[cfg(target_os = "linux")]
    before: rustix::thread::CpuSet,
}

impl Pinned {
    #[cfg(target_os = "linux")]
    pub(crate) fn to_one() -> Self {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let before = sched_getaffinity(None).expect("an affinity");
        // The last CPU, because interrupts tend to go to the first.
        let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| before.is_set(*cpu));
        let mut one = CpuSet::new();
        one.set(last.expect("some processor"));
        sched_setaffinity(None, &one).expect("a processor of ours");
        Self { before }
    }

    /// Other systems cannot pin: the figures are then those of all CPUs.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn to_one() -> Self {
        Self {}
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        rustix::thread::sched_setaffinity(None, &self.before).expect("what was allowed before");
    }
}
