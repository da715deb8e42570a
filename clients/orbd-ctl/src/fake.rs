//! Test helpers: a console with buffers, sample values of the API's types, and a scripted daemon.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use orbd_proto::types::{
    Client, Image, Job, JobStateWord, Machine, MachineConfig, Observed, Outcome, WaitReason, WaitingFor,
};
use serde_json::{Value, json};

use crate::console::Console;
use crate::context::Context;
use crate::environment::Environment;
use crate::layout::Look;
use crate::link::Link;

/// A shared buffer that records the bytes written to it.
#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Returns the recorded bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// Returns the recorded bytes as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Creates a console, and returns it with its recorded stdout and stderr.
pub(crate) fn console() -> (Console, Written, Written) {
    let (out, err) = (Written::default(), Written::default());
    let console = Console {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        input: None,
        err_is_terminal: false,
        is_interactive: false,
        can_ask: false,
        out_look: Look::default(),
        err_look: Look::default(),
        json: false,
        machine_names: Box::new(|| vec!["web".into(), "db".into()]),
    };
    (console, out, err)
}

/// The daemon's end of a connection, for its script.
pub(crate) struct Peer {
    writer: UnixStream,
}

impl Peer {
    /// Sends the result of a request.
    pub(crate) fn answer(&mut self, request: &Value, result: impl serde::Serialize) {
        let result = serde_json::to_value(result).unwrap();
        self.send(&json!({"jsonrpc": "2.0", "id": request["id"], "result": result}));
    }

    /// Sends an error as the answer to a request.
    pub(crate) fn refuse(&mut self, request: &Value, error: impl serde::Serialize) {
        let error = serde_json::to_value(error).unwrap();
        self.send(&json!({"jsonrpc": "2.0", "id": request["id"], "error": error}));
    }

    /// Sends an event to a subscriber of `machine.run_follow`.
    pub(crate) fn event(&mut self, event: impl serde::Serialize) {
        let event = serde_json::to_value(event).unwrap();
        self.send(
            &json!({"jsonrpc": "2.0", "method": "machine.run_event", "params": {"subscription": 1, "result": event}}),
        );
    }

    fn send(&mut self, message: &Value) {
        // The client may have disconnected; the test checks whether it should have.
        let _ = self.writer.write_all(format!("{message}\n").as_bytes());
    }
}

/// A scripted daemon that listens on a socket in a temporary directory.
pub(crate) struct Fake {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Fake {
    /// Starts a daemon that answers greetings, and passes every other request to `script`.
    pub(crate) fn new(script: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> Self {
        Self::greeting(move |peer, request| {
            if request["method"] == "daemon.hello" {
                peer.answer(request, json!({"protocol": 1, "version": "0", "instance": "i"}));
            } else {
                script(peer, request);
            }
        })
    }

    /// Starts a daemon that passes every request to `script`, including greetings.
    pub(crate) fn greeting(script: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("orbd.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                std::thread::spawn(move || serve(&stream, &*script, &log));
            }
        });
        Self { directory, asked }
    }

    /// Returns the recorded requests, without greetings.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Creates a context that connects to this daemon, and returns it with its recorded stdout and stderr.
    pub(crate) fn context(&self) -> (Context, Written, Written) {
        let (console, out, err) = console();
        let link = Link {
            socket: self.directory.path().join("orbd.sock"),
            autostart: false,
            environment: Environment::default(),
        };
        (Context { link, console }, out, err)
    }
}

fn serve(stream: &UnixStream, script: &(impl Fn(&mut Peer, &Value) + ?Sized), log: &Mutex<Vec<Value>>) {
    let mut peer = Peer {
        writer: stream.try_clone().unwrap(),
    };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        if request["method"] != "daemon.hello" {
            log.lock().unwrap().push(request.clone());
        }
        script(&mut peer, &request);
    }
}

/// Returns a sample machine.
pub(crate) fn machine(name: &str, state: &str) -> Machine {
    Machine {
        id: "01M4HXHNTVZXRXR1F5PV7GC8R7".into(),
        name: name.into(),
        state: state.into(),
        image: Image {
            distro: "ubuntu".into(),
            version: "noble".into(),
            arch: "arm64".into(),
            variant: None,
        },
        config: MachineConfig::default(),
        builtin: false,
    }
}

/// Returns the metadata of a fresh answer.
pub(crate) fn observed() -> Observed {
    Observed {
        generation: 7,
        observed_at: "2026-11-20T16:04:05.123Z".into(),
        source: "orbctl".into(),
        stale: false,
        stale_reason: None,
        age_ms: 12,
    }
}

/// Returns a sample job of the client `pyinfra` on the machine `web`.
pub(crate) fn job(id: u64, operation: &str, state: JobStateWord) -> Job {
    Job {
        job_id: id,
        operation: operation.into(),
        machine: Some("web".into()),
        job_class: "exec".into(),
        client: Client {
            name: "pyinfra".into(),
            pid: Some(std::process::id()),
            uid: 501,
        },
        label: None,
        lanes: Vec::new(),
        detached: false,
        state,
        accepted_at: "2026-11-20T16:04:05.123Z".into(),
        started_at: None,
        ended_at: None,
        wait_us: 1234,
        run_us: None,
        waiting_for: None,
        outcome: None,
        output_bytes: 0,
        joined_callers: 0,
        in_channel: false,
        not_durable: false,
    }
}

/// Returns what a job waits for behind job 12, which creates `web`.
pub(crate) fn waiting_for_create() -> WaitingFor {
    WaitingFor {
        description: "job 12 (create web) of pyinfra".into(),
        reason: WaitReason::Job {
            job_id: 12,
            operation: "create".into(),
            machine: Some("web".into()),
            client: "pyinfra".into(),
            age_ms: 34_000,
        },
    }
}

/// Returns the outcome of a command that exited with this code.
pub(crate) fn succeeded(exit_code: Option<i32>) -> Outcome {
    Outcome {
        kind: "succeeded".into(),
        exit_code,
        changed: None,
        warning: None,
        error: None,
    }
}
