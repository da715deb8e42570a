//! Runs the tool under test, each call with a time limit, and keeps what is private out of what is shown.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Longest time of a call that reads.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time of a call that changes machines: a create may load an image.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);

/// Pause between two looks at a call that has not ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long output may follow the end of a call.
const REST: Duration = Duration::from_millis(300);

/// The tool under test.
pub struct Tool {
    program: PathBuf,
    environment: Vec<(String, OsString)>,
    folder: PathBuf,
    /// No call begins or lasts longer after it.
    deadline: Instant,
    /// Words that are not shown: the home, the user, machines.
    private: Vec<String>,
}

/// What a call did.
pub struct Done {
    /// The exit code; `None` if a signal ended it or it took too long.
    pub code: Option<i32>,
    /// Whether it took longer than it may.
    pub timed_out: bool,
    /// Its whole output.
    pub stdout: Vec<u8>,
    /// Its whole error output.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub time: Duration,
}

impl Done {
    /// Returns the output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns the error output as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A call that runs.
pub struct Running {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<thread::JoinHandle<()>>,
    began: Instant,
}

impl Tool {
    /// Returns the tool at a path, which is called in `folder` and not after `limit`.
    #[must_use]
    pub fn new(
        program: &Path,
        folder: &Path,
        environment: Vec<(String, OsString)>,
        private: Vec<String>,
        limit: Duration,
    ) -> Tool {
        Tool {
            program: program.to_owned(),
            environment,
            folder: folder.to_owned(),
            deadline: Instant::now() + limit,
            private,
        }
    }

    /// Keeps a word out of the report.
    pub fn hide(&mut self, word: &str) {
        if word.len() > 1 && !self.private.iter().any(|known| known == word) {
            self.private.push(word.to_owned());
        }
    }

    /// Returns the folder in which the tool is called.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a call that reads.
    #[must_use]
    pub fn read(&self, words: &[&str]) -> Done {
        self.call(words, READ_TIMEOUT)
    }

    /// Runs a call that changes machines.
    #[must_use]
    pub fn change(&self, words: &[&str]) -> Done {
        self.call(words, CHANGE_TIMEOUT)
    }

    fn call(&self, words: &[&str], limit: Duration) -> Done {
        match self.start(words, &[], Stdio::null()) {
            Ok(running) => running.end(limit.min(self.left())),
            Err(error) => failed(&error),
        }
    }

    /// Runs a call with other variables; a name without a value is removed.
    #[must_use]
    pub fn read_with(&self, words: &[&str], variables: &[(&str, Option<&str>)]) -> Done {
        match self.start(words, variables, Stdio::null()) {
            Ok(running) => running.end(READ_TIMEOUT.min(self.left())),
            Err(error) => failed(&error),
        }
    }

    /// Runs a call with this input.
    #[must_use]
    pub fn feed(&self, words: &[&str], input: &[u8]) -> Done {
        match self.start(words, &[], Stdio::piped()) {
            Ok(mut running) => {
                if let Some(mut stdin) = running.child.stdin.take() {
                    let input = input.to_vec();
                    // A tool that does not read must not block this program.
                    thread::spawn(move || stdin.write_all(&input));
                }
                running.end(READ_TIMEOUT.min(self.left()))
            }
            Err(error) => failed(&error),
        }
    }

    /// Starts a call in a process group of its own.
    ///
    /// # Errors
    ///
    /// The tool does not start.
    pub fn start(
        &self,
        words: &[&str],
        variables: &[(&str, Option<&str>)],
        stdin: Stdio,
    ) -> std::io::Result<Running> {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let began = Instant::now();
        let mut child = command.spawn()?;
        let mut readers = Vec::new();
        let stdout = collect(child.stdout.take(), &mut readers);
        let stderr = collect(child.stderr.take(), &mut readers);
        Ok(Running {
            child,
            stdout,
            stderr,
            readers,
            began,
        })
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Returns whether there is no time left for another call.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.left().is_zero()
    }

    /// Returns the first line of a text without what is private in it.
    #[must_use]
    pub fn shown(&self, text: &str) -> String {
        let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
        let mut line: String = line.chars().filter(|c| !c.is_control()).take(160).collect();
        let mut private: Vec<&String> = self.private.iter().collect();
        // A long word may contain a short one.
        private.sort_by_key(|word| std::cmp::Reverse(word.len()));
        for word in private {
            line = line.replace(word.as_str(), "PRIVATE");
        }
        line.split(' ')
            .map(|word| {
                // Other paths and ids say more about the Mac than about the tool.
                let is_path = word.matches('/').count() > 1;
                let letters = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
                let is_id = letters.len() == 26 && letters.chars().all(|c| c.is_ascii_alphanumeric());
                if is_path || is_id { "..." } else { word }
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Describes what a call did, for the report.
    #[must_use]
    pub fn describe(&self, done: &Done) -> String {
        let mut parts = vec![ending(done)];
        for (name, bytes) in [("stdout", &done.stdout), ("stderr", &done.stderr)] {
            if bytes.is_empty() {
                parts.push(format!("no {name}"));
            } else {
                let text = String::from_utf8_lossy(bytes);
                parts.push(format!("{name} {:?}", self.shown(&text)));
            }
        }
        parts.join(", ")
    }
}

impl Running {
    /// Takes the input of a call that was started with a pipe.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Returns the process id of the client.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the client alone.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits until the output has this text; returns whether it came in time.
    #[must_use]
    pub fn says(&self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let said = String::from_utf8_lossy(&locked(&self.stdout)).contains(text);
            if said || Instant::now() > end {
                return said;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits for the end; after `limit` it is enforced, for the whole process group.
    #[must_use]
    pub fn end(mut self, limit: Duration) -> Done {
        let end = self.began + limit;
        let mut timed_out = false;
        let status: Option<ExitStatus> = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Err(_) => break None,
                Ok(None) => {}
            }
            if Instant::now() > end {
                timed_out = true;
                let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
                break self.child.wait().ok();
            }
            thread::sleep(LOOK_AGAIN);
        };
        let time = self.began.elapsed();
        let rest = Instant::now() + REST;
        // A process that the tool left behind may hold the pipes.
        while !self.readers.iter().all(thread::JoinHandle::is_finished) && Instant::now() < rest {
            thread::sleep(LOOK_AGAIN);
        }
        Done {
            code: status
                .filter(|status| status.signal().is_none())
                .and_then(|status| status.code()),
            timed_out,
            stdout: locked(&self.stdout).clone(),
            stderr: locked(&self.stderr).clone(),
            time,
        }
    }
}

/// Describes what a call did without its output, which is about machines of the user.
#[must_use]
pub fn describe_unseen(done: &Done) -> String {
    let size = |name: &str, bytes: &[u8]| {
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').count();
        format!("{lines} lines of {name}")
    };
    let parts = [
        ending(done),
        size("stdout", &done.stdout),
        size("stderr", &done.stderr),
    ];
    parts.join(", ")
}

fn ending(done: &Done) -> String {
    match (done.timed_out, done.code) {
        (true, _) => "no end in time".to_owned(),
        (false, Some(code)) => format!("exit code {code}"),
        (false, None) => "ended by a signal".to_owned(),
    }
}

fn failed(error: &std::io::Error) -> Done {
    Done {
        code: None,
        timed_out: false,
        stdout: Vec::new(),
        stderr: format!("it does not start: {}", error.kind()).into_bytes(),
        time: Duration::ZERO,
    }
}

fn locked(bytes: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn collect(
    pipe: Option<impl Read + Send + 'static>,
    readers: &mut Vec<thread::JoinHandle<()>>,
) -> Arc<Mutex<Vec<u8>>> {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    if let Some(mut pipe) = pipe {
        let bytes = Arc::clone(&bytes);
        readers.push(thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                locked(&bytes).extend_from_slice(&buffer[..read]);
            }
        }));
    }
    bytes
}
