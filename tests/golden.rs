//! The golden examples in `proto/examples`. Each runs over both framings, each time with a new daemon and the stand-in
//! as `orbctl`.
//!
//! `proto/README.md` describes the files. `ORBD_BLESS=1` rewrites the answers in them; placeholders stay.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start the daemon and other children, and give up after a while"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use orbd_proto::errors::ErrorKind;
use serde_json::{Map, Value, json};

use crate::published::is_blessing;
use crate::schema::Published;

/// Longer than any answer takes; a case that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);
/// Cases that run at the same time.
const AT_ONCE: usize = 4;

/// Error kinds that no example shows, each with the reason.
const NOT_SHOWN: [(ErrorKind, &str); 6] = [
    (
        ErrorKind::Internal,
        "it is our own fault, and none is known that could be provoked",
    ),
    (
        ErrorKind::Overloaded,
        "it takes megabytes of requests; daemon_limits.rs sends them",
    ),
    (
        ErrorKind::TooManyConnections,
        "it takes more connections than an example has; daemon_limits.rs opens them",
    ),
    (
        ErrorKind::ConfigInvalid,
        "it takes a file that is spoilt while the daemon runs; daemon_reload.rs does that",
    ),
    (
        ErrorKind::StoreUnavailable,
        "it takes a store that cannot be opened; daemon_metrics.rs has one",
    ),
    (
        ErrorKind::JournalUnavailable,
        "it takes a full disk; daemon_crash.rs has one",
    ),
];

#[test]
fn every_example_is_answered_as_written() {
    let published = Published::new();
    let queue = Mutex::new(files().into_iter().collect::<VecDeque<_>>());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no player panics with it").pop_front();
                    let Some(file) = next else { return };
                    if let Err(problem) = Case::read(&file).play(&published) {
                        let name = file.strip_prefix(folder()).unwrap_or(&file).display().to_string();
                        failures
                            .lock()
                            .expect("no player panics with it")
                            .push(format!("{name}: {problem}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("all players are done");
    assert!(
        failures.is_empty(),
        "{} examples differ; ORBD_BLESS=1 rewrites their answers\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

#[test]
fn every_method_has_an_example() {
    let published = Published::new();
    let shown: BTreeSet<String> = files().iter().map(|file| method_of(file)).collect();
    let missing: Vec<&str> = published
        .names()
        .into_iter()
        .filter(|name| !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no example in proto/examples for {missing:?}");
}

#[test]
fn every_kind_of_error_has_an_example_or_a_reason() {
    let mut shown = BTreeSet::new();
    for file in files() {
        kinds(&Case::read(&file).parts["response"], &mut shown);
    }
    for kind in ErrorKind::ALL {
        let excused = NOT_SHOWN.iter().any(|(other, _)| *other == kind);
        assert_ne!(
            shown.contains(kind.as_str()),
            excused,
            "{} needs either an example or a reason for having none",
            kind.as_str()
        );
    }
}

/// Collects the kinds of the errors in an answer.
fn kinds(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(kind) = value.pointer("/error/data/kind").and_then(Value::as_str) {
                found.insert(kind.to_owned());
            }
            fields.values().for_each(|value| kinds(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| kinds(value, found)),
        _ => {}
    }
}

fn folder() -> PathBuf {
    programs::root().join("proto/examples")
}

/// Returns every example, sorted.
fn files() -> Vec<PathBuf> {
    let list = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).expect("proto/examples can be read");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let mut files: Vec<PathBuf> = list(&folder()).iter().flat_map(|path| list(path)).collect();
    files.sort();
    files
}

/// Returns the method that an example is about, which is the name of its folder.
fn method_of(file: &Path) -> String {
    let folder = file
        .parent()
        .and_then(Path::file_name)
        .expect("an example is in a folder");
    folder.to_string_lossy().into_owned()
}

// ---- one case ---------------------------------------------------------------------------------------------------------------

/// One example file.
struct Case {
    file: PathBuf,
    parts: Value,
}

impl Case {
    fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).expect("an example can be read");
        let parts: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let known = [
            "about",
            "config",
            "trouble",
            "setup",
            "request",
            "request_text",
            "meanwhile",
            "response",
            "notifications",
            "until",
        ];
        for part in parts.as_object().expect("an example is an object").keys() {
            assert!(
                known.contains(&part.as_str()),
                "{}: unknown part {part}",
                file.display()
            );
        }
        Self {
            file: file.to_owned(),
            parts,
        }
    }

    fn play(&self, published: &Published) -> Result<(), String> {
        if !self.parts["about"].is_string() {
            return Err("`about` must be one sentence on what the example shows".into());
        }
        let mut daemon = Daemon::start(&self.parts)?;
        let played = self.converse(&mut daemon);
        daemon.end();
        let (response, notifications) = played.map_err(|problem| format!("{problem}\n{}", daemon.said()))?;
        self.check_published(published, &daemon.saved, &response, &notifications)?;
        let notifications = self
            .parts
            .get("notifications")
            .map(|_| Value::Array(notifications));
        if is_blessing() {
            self.bless(&response, notifications.as_ref());
            return Ok(());
        }
        compare(&self.parts["response"], &response, "response")?;
        if let Some(heard) = &notifications {
            compare(&self.parts["notifications"], heard, "notifications")?;
        }
        self.play_by_post(published)
    }

    /// Sends the request by POST. The answer is the same, except that there are no subscriptions.
    fn play_by_post(&self, published: &Published) -> Result<(), String> {
        let mut daemon = Daemon::start(&self.parts)?;
        let played = self.post(&mut daemon);
        daemon.end();
        let response = played.map_err(|problem| format!("by POST: {problem}\n{}", daemon.said()))?;
        if published.is_of_subscriptions(&self.parts["request"]["method"]) {
            let kind = &response["error"]["data"]["kind"];
            return compare(
                &json!("invalid_request"),
                kind,
                "by POST: response/error/data/kind",
            );
        }
        compare(&self.parts["response"], &response, "by POST: response")
    }

    fn post(&self, daemon: &mut Daemon) -> Result<Value, String> {
        let talk = self.set_up(daemon)?;
        let (sent, _) = self.request(daemon)?;
        let mut stream = UnixStream::connect(&daemon.socket).map_err(|error| error.to_string())?;
        let request = format!(
            "POST / HTTP/1.1\r\nhost: orbd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{sent}",
            sent.len()
        );
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.write_all(request.as_bytes()))
            .map_err(|error| error.to_string())?;
        self.meanwhile(daemon)?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .map_err(|error| error.to_string())?;
        // Jobs that were started on the other connection run until that connection closes.
        drop(talk);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(answer);
        }
        serde_json::from_str(body).map_err(|error| format!("{body}: {error}"))
    }

    fn set_up(&self, daemon: &mut Daemon) -> Result<Talk, String> {
        let mut talk = Talk::open(&daemon.socket)?;
        for step in list(&self.parts["setup"]) {
            daemon.step(&mut talk, step)?;
        }
        Ok(talk)
    }

    /// Returns the request as it is sent, and its id.
    fn request(&self, daemon: &mut Daemon) -> Result<(String, Value), String> {
        if let Value::String(text) = &self.parts["request_text"] {
            return Ok((text.clone(), Value::Null));
        }
        let request = daemon.filled(&self.parts["request"])?;
        let id = request.get("id").cloned().unwrap_or_default();
        Ok((request.to_string(), id))
    }

    /// Runs the steps between request and answer.
    fn meanwhile(&self, daemon: &mut Daemon) -> Result<(), String> {
        let Some(steps) = self.parts.get("meanwhile") else {
            return Ok(());
        };
        let mut aside = Talk::open(&daemon.socket)?;
        for step in list(steps) {
            daemon.step(&mut aside, step)?;
        }
        Ok(())
    }

    /// Runs setup and request; returns the answer and the notifications of the subscription.
    fn converse(&self, daemon: &mut Daemon) -> Result<(Value, Vec<Value>), String> {
        let mut talk = self.set_up(daemon)?;
        let (sent, id) = self.request(daemon)?;
        talk.send(&sent)?;
        self.meanwhile(daemon)?;
        let response = if self.parts["request"].is_array() {
            talk.batch()?
        } else {
            talk.answer(&id)?
        };
        let mut heard = Vec::new();
        if self.parts.get("notifications").is_some() {
            loop {
                let message = talk.notification()?;
                let until = self.parts["until"].as_str().unwrap_or("ended");
                let last = message["params"]["result"]["type"] == until;
                heard.push(message);
                if last {
                    break;
                }
            }
        }
        Ok((response, heard))
    }

    /// Checks request and answer against the published description.
    fn check_published(
        &self,
        published: &Published,
        saved: &BTreeMap<String, Value>,
        response: &Value,
        notifications: &[Value],
    ) -> Result<(), String> {
        let Some(method) = self.parts["request"]["method"]
            .as_str()
            .and_then(|name| published.method(name))
        else {
            return Ok(());
        };
        let name = method["name"].as_str().expect("a name");
        if name != method_of(&self.file) {
            return Err(format!("an example of {name} is in another method's folder"));
        }
        let unpublished = |schema: &Value, value: &Value| {
            let mut found = Vec::new();
            published.unknown_fields(schema, value, "", &mut found);
            if found.is_empty() {
                Ok(())
            } else {
                Err(format!("fields that are not published: {found:?}"))
            }
        };
        if let Some(error) = response.get("error") {
            published.check_component("ErrorObject", error)?;
            unpublished(&json!({ "$ref": "#/components/schemas/ErrorObject" }), error)?;
            let word = error["data"]["kind"].as_str().ok_or("an error without a kind")?;
            let kind =
                ErrorKind::from_word(word).ok_or_else(|| format!("{word} is not a known error kind"))?;
            if error["code"] != kind.code() {
                return Err(format!("{word} has code {}, not {}", kind.code(), error["code"]));
            }
            let anywhere = matches!(
                kind,
                ErrorKind::ParseError | ErrorKind::InvalidRequest | ErrorKind::MethodNotFound
            );
            if !anywhere && !published.errors(method).iter().any(|other| other == word) {
                return Err(format!("{name} is not published as answering with {word}"));
            }
            if kind == ErrorKind::InvalidParams {
                return Ok(());
            }
        } else {
            let schema = &method["result"]["schema"];
            published.check(schema, &response["result"], "result")?;
            unpublished(schema, &response["result"])?;
        }
        let params = substitute(&self.parts["request"]["params"], &|name| saved.get(name).cloned());
        published.check_params(method, &params)?;
        let event = &method["x-notification"]["params"]["properties"]["result"];
        for notification in notifications {
            published.check(event, &notification["params"]["result"], "event")?;
            unpublished(event, &notification["params"]["result"])?;
        }
        Ok(())
    }

    fn bless(&self, response: &Value, notifications: Option<&Value>) {
        let method = method_of(&self.file);
        let mut parts = self.parts.clone();
        parts["response"] = blessed(&parts["response"], response, "response", &method);
        if let Some(heard) = notifications {
            parts["notifications"] = blessed(&parts["notifications"], heard, "notifications", &method);
        }
        fs::write(&self.file, written(&parts)).expect("an example can be written");
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Formats a case with its parts in the order in which they happen.
fn written(parts: &Value) -> String {
    let order = [
        "about",
        "config",
        "trouble",
        "setup",
        "request",
        "request_text",
        "meanwhile",
        "response",
        "notifications",
        "until",
    ];
    let mut text = String::from("{\n");
    for name in order {
        let Some(part) = parts.get(name) else { continue };
        if text.len() > 2 {
            text.push_str(",\n");
        }
        let json = serde_json::to_string_pretty(part).expect("a value is JSON");
        text.extend(["  \"", name, "\": ", &json.replace('\n', "\n  ")]);
    }
    text.push_str("\n}\n");
    text
}

// ---- the daemon -------------------------------------------------------------------------------------------------------------

/// A daemon with a stand-in and a folder of its own.
struct Daemon {
    folder: tempfile::TempDir,
    child: Child,
    socket: PathBuf,
    /// Values that steps saved, by name.
    saved: BTreeMap<String, Value>,
    /// The process that `$child` names; `None` until a request uses it.
    named: Option<Child>,
}

impl Daemon {
    fn start(parts: &Value) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| folder.path().join(name);
        for name in ["home", "state"] {
            fs::create_dir(path(name)).map_err(|error| error.to_string())?;
        }
        let socket = path("run/s");
        let mut command = Command::new(programs::orbd());
        command
            .arg("--foreground")
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", path("home"))
            .env("ORBD_ALLOW_ROOT", "true")
            .env("ORBD_SOCKET", &socket)
            .env("ORBD_STATE_DIR", path("state"))
            .env("ORBD_ORBCTL", programs::orbctl_sim())
            .env("ORBCTL_SIM_HOME", path("sim"))
            .env("ORBCTL_SIM_ISOLATION", "dir")
            .env("ORBCTL_SIM_LATENCY", "0")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).map_err(|error| error.to_string())?);
        for (key, value) in parts["config"].as_object().into_iter().flatten() {
            let value = value.as_str().ok_or("values of `config` are strings")?;
            command.arg("--set").arg(format!("{key}={value}"));
        }
        if let Some(trouble) = parts.get("trouble") {
            let script =
                toml::to_string(&json!({ "trouble": trouble })).map_err(|error| error.to_string())?;
            fs::write(path("trouble.toml"), script).map_err(|error| error.to_string())?;
            command.env("ORBCTL_SIM_SCRIPT", path("trouble.toml"));
        }
        let child = command.spawn().map_err(|error| error.to_string())?;
        Ok(Self {
            folder,
            child,
            socket,
            saved: BTreeMap::new(),
            named: None,
        })
    }

    /// Runs one setup step. Repeats the request while a value to be saved is missing.
    fn step(&mut self, talk: &mut Talk, step: &Value) -> Result<(), String> {
        if step["end_child"] == true {
            return self.end_child();
        }
        if let Some(event) = step.get("hear") {
            while talk.notification()?["params"]["result"]["type"] != *event {}
            return Ok(());
        }
        let started = Instant::now();
        loop {
            let params = self.filled(&step["params"])?;
            let mut request = json!({ "jsonrpc": "2.0", "id": "step", "method": step["method"] });
            if !params.is_null() {
                request["params"] = params;
            }
            talk.send(&request.to_string())?;
            let answer = talk.answer(&json!("step"))?;
            if answer.get("error").is_some() {
                return Err(format!("setup: {step} got the answer {answer}"));
            }
            let mut is_complete = true;
            for (name, pointer) in step["save"].as_object().into_iter().flatten() {
                match answer.pointer(pointer.as_str().ok_or("`save` names JSON pointers")?) {
                    Some(value) => drop(self.saved.insert(name.clone(), value.clone())),
                    None => is_complete = false,
                }
            }
            if is_complete {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!(
                    "setup: {step} did not return the value to save: {answer}"
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Inserts saved values into a request.
    fn filled(&mut self, value: &Value) -> Result<Value, String> {
        if value.to_string().contains("\"$child\"") && self.named.is_none() {
            let child = Command::new("sleep")
                .arg("600")
                .spawn()
                .map_err(|error| error.to_string())?;
            self.saved.insert("child".into(), json!(child.id()));
            self.named = Some(child);
        }
        Ok(substitute(value, &|name| self.saved.get(name).cloned()))
    }

    fn end_child(&mut self) -> Result<(), String> {
        let mut child = self.named.take().ok_or("no request named $child before")?;
        child.kill().map_err(|error| error.to_string())?;
        child.wait().map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Ends the daemon with SIGTERM, and kills it if that takes too long.
    fn end(&mut self) {
        if self.named.is_some() {
            // It may have exited already; this still reaps it.
            let _ = self.end_child();
        }
        if let Ok(None) = self.child.try_wait() {
            let pid = rustix::process::Pid::from_child(&self.child);
            // A daemon that is stopping by itself may be gone by now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let started = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if started.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns the daemon's log, for a failed case.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        // End what a case leaves running in its machines.
        let cleaned = Command::new(programs::orbctl_sim())
            .arg("sim-cleanup")
            .env_clear()
            .env("HOME", self.folder.path().join("home"))
            .env("ORBCTL_SIM_HOME", self.folder.path().join("sim"))
            .output();
        drop(cleaned);
    }
}

/// Replaces strings `$name` by the values of the names.
fn substitute(value: &Value, known: &dyn Fn(&str) -> Option<Value>) -> Value {
    match value {
        Value::String(text) => {
            let name = text.strip_prefix('$');
            name.and_then(known).unwrap_or_else(|| value.clone())
        }
        Value::Array(items) => items.iter().map(|item| substitute(item, known)).collect(),
        Value::Object(fields) => {
            let filled: Map<String, Value> = fields
                .iter()
                .map(|(name, value)| (name.clone(), substitute(value, known)))
                .collect();
            Value::Object(filled)
        }
        other => other.clone(),
    }
}

// ---- the wire ---------------------------------------------------------------------------------------------------------------

/// One JSON-lines connection.
struct Talk {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// Notifications that arrived before a step waited for them.
    heard: VecDeque<Value>,
}

impl Talk {
    /// Connects as soon as the daemon listens.
    fn open(socket: &Path) -> Result<Self, String> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > PATIENCE => return Err(format!("no daemon: {error}")),
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        let ready = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.try_clone());
        let lines = BufReader::new(ready.map_err(|error| error.to_string())?);
        Ok(Self {
            stream,
            lines,
            heard: VecDeque::new(),
        })
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| error.to_string())
    }

    fn message(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("the daemon closed the connection".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{line}: {error}")),
            Err(error) => Err(format!("no answer: {error}")),
        }
    }

    /// Returns the answer to a request.
    fn answer(&mut self, id: &Value) -> Result<Value, String> {
        loop {
            let message = self.message()?;
            if message.get("method").is_some() {
                self.heard.push_back(message);
            } else if message["id"] == *id {
                return Ok(message);
            }
        }
    }

    /// Returns the answer to a batch.
    fn batch(&mut self) -> Result<Value, String> {
        loop {
            let message = self.message()?;
            if message.is_array() {
                return Ok(message);
            }
        }
    }

    fn notification(&mut self) -> Result<Value, String> {
        match self.heard.pop_front() {
            Some(message) => Ok(message),
            None => self.message(),
        }
    }
}

// ---- placeholders -----------------------------------------------------------------------------------------------------------

/// All placeholders.
const PLACEHOLDERS: [&str; 6] = ["<any>", "<int>", "<id>", "<time>", "<ulid>", "<string>"];

/// Compares an answer with the expected one.
fn compare(expected: &Value, actual: &Value, at: &str) -> Result<(), String> {
    match (expected, actual) {
        (Value::Object(wanted), Value::Object(given)) => {
            if let Some(name) = given.keys().find(|name| !wanted.contains_key(*name)) {
                return Err(format!("{at}/{name} is not in the example: {}", given[name]));
            }
            for (name, wanted) in wanted {
                let given = given.get(name).ok_or_else(|| format!("{at}/{name} is missing"))?;
                compare(wanted, given, &format!("{at}/{name}"))?;
            }
            Ok(())
        }
        (Value::Array(wanted), Value::Array(given)) if wanted.len() == given.len() => {
            let pairs = wanted.iter().zip(given).enumerate();
            pairs
                .into_iter()
                .try_for_each(|(index, (wanted, given))| compare(wanted, given, &format!("{at}/{index}")))
        }
        (Value::String(pattern), given) if stands_for(pattern, given) => Ok(()),
        (wanted, given) if wanted == given => Ok(()),
        (wanted, given) => Err(format!("{at} is {given}, not {wanted}")),
    }
}

/// Returns whether a text with placeholders matches a value.
fn stands_for(pattern: &str, value: &Value) -> bool {
    match (pattern, value) {
        ("<any>", _) => true,
        ("<int>" | "<id>", value) => value.is_u64(),
        (pattern, Value::String(text)) => matches(pattern, text),
        _ => false,
    }
}

/// Returns whether a text with placeholders matches a whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((at, placeholder)) = PLACEHOLDERS
        .iter()
        .filter_map(|placeholder| Some((pattern.find(placeholder)?, *placeholder)))
        .min()
    else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(&pattern[..at]) else {
        return false;
    };
    let pattern = &pattern[at + placeholder.len()..];
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter()
        .any(|end| is_kind(placeholder, &rest[..end]) && matches(pattern, &rest[end..]))
}

/// Returns whether a text has the form that a placeholder requires.
fn is_kind(placeholder: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match placeholder {
        "<int>" | "<id>" => digits(text),
        "<ulid>" => text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "<time>" => {
            let shape: String = text
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            shape == "0000-00-00T00:00:00.000Z"
        }
        _ => true,
    }
}

/// Returns an answer to be written to the file. Placeholders that still match stay, and values that differ in every run
/// become placeholders.
fn blessed(before: &Value, actual: &Value, name: &str, method: &str) -> Value {
    match actual {
        Value::Object(fields) => {
            let is_message = fields.contains_key("jsonrpc");
            let fields = fields.iter().map(|(name, value)| {
                // A message's own id is the request's, which is the same in every run.
                let is_own_id = is_message && name == "id";
                let name_here = if is_own_id { "" } else { name };
                (name.clone(), blessed(&before[name], value, name_here, method))
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items
                .map(|(index, item)| blessed(&before[index], item, name, method))
                .collect()
        }
        _ => match before {
            Value::String(pattern) if stands_for(pattern, actual) => before.clone(),
            before if before == actual => before.clone(),
            _ => volatile(name, actual, method).map_or_else(|| actual.clone(), Value::from),
        },
    }
}

/// Returns the placeholder for a value that differs in every run, by the value's name.
fn volatile(name: &str, value: &Value, method: &str) -> Option<String> {
    // The daemon's own version changes; that of the stand-in and of images does not.
    let name = if name == "version" && method.starts_with("daemon.") {
        "instance"
    } else {
        name
    };
    let placeholder = match (name, value) {
        (name, Value::String(_)) if name.ends_with("_at") => "<time>",
        ("id", Value::String(text)) if is_kind("<ulid>", text) => "<ulid>",
        ("job_id" | "id" | "subscription" | "result", Value::Number(_)) => "<id>",
        (
            "disk_size" | "age_ms" | "uptime_ms" | "retry_after_ms" | "generation" | "pid" | "uid",
            Value::Number(_),
        ) => "<int>",
        (name, Value::Number(_)) if name.ends_with("_us") => "<int>",
        (
            "instance" | "program" | "socket" | "orbctl" | "state_dir" | "cursor" | "incident" | "store"
            | "marker" | "default_username" | "arch" | "ip4" | "ip6",
            Value::String(_),
        ) => "<string>",
        ("message" | "description", Value::String(text)) => return Some(with_numbers_open(text)),
        _ => return None,
    };
    Some(placeholder.to_owned())
}

/// Replaces a job's number and an age in a sentence by placeholders.
fn with_numbers_open(text: &str) -> String {
    let mut open = text.to_owned();
    for before in ["job ", "accepted "] {
        let mut from = 0;
        while let Some(at) = open[from..].find(before).map(|at| from + at + before.len()) {
            let digits = open[at..].bytes().take_while(u8::is_ascii_digit).count();
            if digits > 0 {
                open.replace_range(at..at + digits, "<int>");
            }
            from = at;
        }
    }
    open
}

#[test]
fn placeholders_match_only_their_own_values() {
    let check = |pattern: &str, value: Value, expected: bool| {
        assert_eq!(stands_for(pattern, &value), expected, "{pattern} and {value}");
    };
    check("<any>", json!(null), true);
    check("<int>", json!(0), true);
    check("<int>", json!(-1), false);
    check("<int>", json!("7"), false);
    check("<id>", json!(7), true);
    check("<time>", json!("2026-01-02T03:04:05.678Z"), true);
    check("<time>", json!("2026-01-02T03:04:05Z"), false);
    check("<string>", json!(""), true);
    check("<string>", json!(1), false);
    check(
        "job <int> (start web) waited",
        json!("job 12 (start web) waited"),
        true,
    );
    check(
        "job <int> (start web) waited",
        json!("job (start web) waited"),
        false,
    );
    check("plain", json!("plain"), true);
    check("plain", json!("other"), false);
}
