//! A typed, blocking client: JSON lines over the Unix socket, one call at a time.
//!
//! `orbd-ctl` and the integration tests use it. It needs no async runtime, so a command starts within a millisecond. Each thread needs its
//! own client.
//!
//! When the daemon closes the connection for an upgrade (`daemon.closing`), the client reconnects and resends the requests that the daemon
//! has not read. It never resends a request that the daemon has read.

pub mod download;

use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use orbd_proto::methods::{DaemonHello, Method, PROTOCOL_MIN, PROTOCOL_VERSION, Subscription};
use orbd_proto::types::{Closing, ErrorObject, HelloAnswer, HelloParams};

/// Maximum length of a line from the daemon, in bytes, so that a faulty daemon cannot exhaust the client's memory.
const ANSWER_MAX: u64 = 64 << 20;
/// Maximum length of a `daemon.closing` notification, in bytes. The client does not check whether a longer line is one.
const CLOSING_MAX: usize = 256;
/// How long to wait, after `daemon.closing`, for the remaining answers and the end of the stream.
const CLOSING_WAIT: Duration = Duration::from_secs(10);
/// How often one call is resent. Each resend needs an upgrade of the daemon, so more than one is rare.
const RESENDS_MAX: u32 = 3;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with this error.
    #[error("{}", .0.message)]
    Refused(ErrorObject),
    /// The connection failed or was closed before the answer.
    #[error("connection to orbd lost")]
    Lost(#[source] io::Error),
    /// A message could not be encoded or decoded.
    #[error("orbd's answer to {method} could not be read")]
    Unreadable {
        /// Name of the method or notification.
        method: &'static str,
        /// The encoding or decoding error.
        #[source]
        source: serde_json::Error,
    },
}

/// A connection to the daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    next_id: u64,
    /// The beginning of a line that was incomplete when a wait timed out.
    partial: Vec<u8>,
    socket: PathBuf,
    /// Id and text of the last `daemon.hello` request, which is repeated on a new connection.
    hello: Option<(u64, Vec<u8>)>,
    /// Number of requests sent on this connection.
    requests: u64,
    /// Requests that wait for their answers: several after [`Client::send_both`] or [`Client::send_each`].
    open: Vec<OpenRequest>,
    /// Answers to open requests that arrived while the client waited for another answer, by request id.
    early: Vec<(u64, String)>,
    resends: u32,
}

/// A request that waits for its answer.
struct OpenRequest {
    id: u64,
    /// Sequence number among the requests of this connection, from 1.
    number: u64,
    line: Vec<u8>,
}

/// Handle of a call that was sent. [`Client::fetch`] returns its answer.
#[derive(Debug)]
pub struct Sent<M> {
    id: u64,
    method: PhantomData<M>,
}

impl<M> Sent<M> {
    fn of(id: u64) -> Self {
        Self {
            id,
            method: PhantomData,
        }
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: &'a P,
}

#[derive(Deserialize)]
struct Frame<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorObject>,
    #[serde(borrow)]
    params: Option<Notification<'a>>,
}

#[derive(Deserialize)]
struct Notification<'a> {
    #[serde(borrow)]
    result: &'a RawValue,
}

impl Frame<'_> {
    /// Returns whether this answers the request `id`. An error without an id answers any request: the daemon could not read its id.
    fn answers(&self, id: u64) -> bool {
        self.id == Some(id) || (self.id.is_none() && self.error.is_some())
    }
}

/// Extracts the method's answer, or the daemon's error.
fn answer<M: Method>(frame: Frame<'_>) -> Result<M::Answer, CallError> {
    match (frame.error, frame.result) {
        (Some(error), _) => Err(CallError::Refused(error)),
        (None, result) => parse(M::NAME, result.map_or("null", RawValue::get)),
    }
}

impl Client {
    /// Connects to the daemon's socket.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        Ok(Self {
            reader: BufReader::with_capacity(64 << 10, writer.try_clone()?),
            writer,
            next_id: 1,
            partial: Vec::new(),
            socket: socket.to_owned(),
            hello: None,
            requests: 0,
            open: Vec::new(),
            early: Vec::new(),
            resends: 0,
        })
    }

    /// Sends `daemon.hello`: names this client to the daemon and agrees on a protocol version.
    pub fn hello(&mut self, name: &str) -> Result<HelloAnswer, CallError> {
        self.call::<DaemonHello>(&HelloParams {
            client: name.into(),
            protocol: PROTOCOL_VERSION,
            protocol_min: Some(PROTOCOL_MIN),
        })
    }

    /// Sets how long a call waits for its answer; `None`, the default, is no limit.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.writer.set_read_timeout(timeout)
    }

    /// Calls a method and waits for its answer.
    pub fn call<M: Method>(&mut self, params: &M::Params) -> Result<M::Answer, CallError> {
        let id = self.send(M::NAME, params)?;
        self.receive(id, answer::<M>)
    }

    /// Calls a method by its name and returns the result as the daemon encoded it. For methods that this build does not know.
    pub fn call_by_name(&mut self, method: &str, params: &RawValue) -> Result<Box<RawValue>, CallError> {
        let id = self.send(method, &params)?;
        self.receive(id, |frame| match (frame.error, frame.result) {
            (Some(error), _) => Err(CallError::Refused(error)),
            (None, Some(result)) => Ok(result.to_owned()),
            (None, None) => parse("the method", "null"),
        })
    }

    /// Waits for the next notification of a subscription that [`Client::call_by_name`] made, and returns its event as the daemon encoded it.
    pub fn next_notification(&mut self) -> Result<Box<RawValue>, CallError> {
        loop {
            let line = self.line()?;
            let frame: Frame<'_> = parse("the subscription", &line)?;
            if let Some(notification) = frame.params {
                return Ok(notification.result.to_owned());
            }
        }
    }

    /// Sends a call without waiting for its answer. The returned [`Pending`] waits for it and borrows the client.
    pub fn start<M: Method>(&mut self, params: &M::Params) -> Result<Pending<'_, M>, CallError> {
        let sent = self.send_one(params)?;
        Ok(Pending { client: self, sent })
    }

    /// Sends a call without waiting for its answer. [`Client::fetch`] waits for it. Any earlier call without an answer is abandoned.
    pub fn send_one<M: Method>(&mut self, params: &M::Params) -> Result<Sent<M>, CallError> {
        self.send(M::NAME, params).map(Sent::of)
    }

    /// Sends two calls in one write, which saves a round trip. The daemon handles both, even if the first fails.
    pub fn send_both<A: Method, B: Method>(
        &mut self,
        first: &A::Params,
        second: &B::Params,
    ) -> Result<(Sent<A>, Sent<B>), CallError> {
        self.give_up_open();
        let first = self.encode(A::NAME, first)?;
        let second = self.encode(B::NAME, second)?;
        self.transmit()?;
        Ok((Sent::of(first), Sent::of(second)))
    }

    /// Sends a call of one method for each of the parameters, in one write. The daemon handles them at the same time.
    pub fn send_each<M: Method>(&mut self, params: &[M::Params]) -> Result<Vec<Sent<M>>, CallError> {
        self.give_up_open();
        let sent = params
            .iter()
            .map(|params| self.encode(M::NAME, params).map(Sent::of))
            .collect::<Result<_, _>>()?;
        self.transmit()?;
        Ok(sent)
    }

    /// Waits about `at_most` for the answer to a call that was sent. Returns `None` on a timeout; the wait can then be repeated.
    pub fn fetch<M: Method>(
        &mut self,
        sent: &Sent<M>,
        at_most: Duration,
    ) -> Result<Option<M::Answer>, CallError> {
        loop {
            if let Some(line) = self.take_early(sent.id) {
                return answer::<M>(parse(M::NAME, &line)?).map(Some);
            }
            let Some(line) = self.line_within(at_most)? else {
                return Ok(None);
            };
            self.sort(line)?;
        }
    }

    /// Subscribes. The returned [`Events`] reads the events and borrows the client.
    pub fn subscribe<S: Subscription>(&mut self, params: &S::Params) -> Result<Events<'_, S>, CallError> {
        let id = self.send(S::NAME, params)?;
        self.receive(id, |frame| match frame.error {
            Some(error) => Err(CallError::Refused(error)),
            None => Ok(()),
        })?;
        Ok(Events {
            client: self,
            subscription: PhantomData,
        })
    }

    /// Sends a request and returns its id.
    fn send(&mut self, method: &str, params: &impl Serialize) -> Result<u64, CallError> {
        self.give_up_open();
        let id = self.encode(method, params)?;
        self.transmit()?;
        Ok(id)
    }

    fn give_up_open(&mut self) {
        self.open.clear();
        self.early.clear();
        self.resends = 0;
    }

    /// Writes the open requests.
    fn transmit(&mut self) -> Result<(), CallError> {
        let written = match &self.open[..] {
            [one] => self.writer.write_all(&one.line),
            several => {
                let lines: Vec<&[u8]> = several.iter().map(|request| &request.line[..]).collect();
                self.writer.write_all(&lines.concat())
            }
        };
        match written {
            // The daemon has closed the connection. What it sent before shows whether it has read the requests; `receive` reads that.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe) => Ok(()),
            other => other.map_err(CallError::Lost),
        }
    }

    /// Encodes a request, adds it to the open ones and returns its id. [`Client::transmit`] sends it.
    fn encode(&mut self, method: &str, params: &impl Serialize) -> Result<u64, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            jsonrpc: "2.0",
            id,
            method,
            params,
        };
        let mut line = serde_json::to_vec(&request).map_err(|source| CallError::Unreadable {
            method: "a request",
            source,
        })?;
        line.push(b'\n');
        if method == DaemonHello::NAME {
            self.hello = Some((id, line.clone()));
        }
        self.requests += 1;
        let number = self.requests;
        self.open.push(OpenRequest { id, number, line });
        Ok(id)
    }

    /// Reads lines until the answer to `id` arrives, and returns the result of `take` on it.
    fn receive<T>(
        &mut self,
        id: u64,
        take: impl FnOnce(Frame<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        loop {
            if let Some(line) = self.take_early(id)
                && let Ok(frame) = serde_json::from_str::<Frame<'_>>(&line)
            {
                return take(frame);
            }
            let line = self.line()?;
            self.sort(line)?;
        }
    }

    /// Removes and returns the answer to a request, if it has arrived. The request is no longer open then.
    fn take_early(&mut self, id: u64) -> Option<String> {
        let at = self.early.iter().position(|(early, _)| *early == id)?;
        self.open.retain(|request| request.id != id);
        Some(self.early.swap_remove(at).1)
    }

    /// Handles a line: reconnects on `daemon.closing`, keeps an answer to an open request, and discards anything else, which belongs to an
    /// abandoned call or an ended subscription.
    fn sort(&mut self, line: String) -> Result<(), CallError> {
        if let Some(requests_read) = requests_read(&line) {
            return self.reconnect(requests_read);
        }
        self.keep(line);
        Ok(())
    }

    fn keep(&mut self, line: String) {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(&line) else {
            return;
        };
        let answered = self
            .open
            .iter()
            .find(|request| frame.answers(request.id) && !self.early.iter().any(|(id, _)| *id == request.id));
        if let Some(request) = answered {
            self.early.push((request.id, line));
        }
    }

    /// Connects to the next instance of the daemon and resends the requests that the old one has not read. `requests_read` is the number
    /// of requests of this connection that it has read.
    fn reconnect(&mut self, requests_read: u64) -> Result<(), CallError> {
        let (read_limit, write_limit) = (self.writer.read_timeout(), self.writer.write_timeout());
        // Before the old instance ends the stream, it answers every request that it has read.
        self.set_timeout(Some(CLOSING_WAIT)).map_err(CallError::Lost)?;
        while let Ok(line) = self.read_line() {
            self.keep(line);
        }
        let is_answered = |request: &OpenRequest| self.early.iter().any(|(id, _)| *id == request.id);
        let mut unread = std::mem::take(&mut self.open);
        unread.retain(|request| !is_answered(request));
        let was_read = unread.iter().any(|request| request.number <= requests_read);
        self.resends += 1;
        if was_read || self.resends > RESENDS_MAX {
            return Err(CallError::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let connected = UnixStream::connect(&self.socket).and_then(|writer| {
            writer.set_read_timeout(read_limit?)?;
            writer.set_write_timeout(write_limit?)?;
            Ok((BufReader::with_capacity(64 << 10, writer.try_clone()?), writer))
        });
        (self.reader, self.writer) = connected.map_err(CallError::Lost)?;
        self.partial.clear();
        self.requests = 0;
        if let Some((id, line)) = self.hello.clone()
            && !unread.iter().any(|request| request.id == id)
        {
            self.greet_again(id, &line)?;
        }
        for request in &mut unread {
            self.requests += 1;
            request.number = self.requests;
        }
        self.open = unread;
        if self.open.is_empty() {
            Ok(())
        } else {
            self.transmit()
        }
    }

    /// Sends `daemon.hello` on a new connection and waits for its answer. If the daemon refuses it, nothing else is sent.
    fn greet_again(&mut self, id: u64, hello: &[u8]) -> Result<(), CallError> {
        self.requests += 1;
        self.writer.write_all(hello).map_err(CallError::Lost)?;
        loop {
            let line = self.line()?;
            let frame: Frame<'_> = parse(DaemonHello::NAME, &line)?;
            if frame.answers(id) {
                return answer::<DaemonHello>(frame).map(|_| ());
            }
        }
    }

    fn line(&mut self) -> Result<String, CallError> {
        self.read_line().map_err(CallError::Lost)
    }

    /// Reads a line; returns `None` if none is complete within about `at_most`, and keeps its beginning. Afterwards the socket has no read
    /// timeout.
    fn line_within(&mut self, at_most: Duration) -> Result<Option<String>, CallError> {
        if self.reader.buffer().contains(&b'\n') {
            return self.line().map(Some);
        }
        self.set_timeout(Some(at_most)).map_err(CallError::Lost)?;
        let line = match self.read_line() {
            Ok(line) => Some(line),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(error) => return Err(CallError::Lost(error)),
        };
        self.set_timeout(None).map_err(CallError::Lost)?;
        Ok(line)
    }

    fn read_line(&mut self) -> io::Result<String> {
        let room = ANSWER_MAX.saturating_sub(self.partial.len() as u64);
        io::Read::take(&mut self.reader, room).read_until(b'\n', &mut self.partial)?;
        if !self.partial.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        String::from_utf8(std::mem::take(&mut self.partial)).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for Client {
    /// Returns the connected socket, for questions about the peer. Reading or writing it corrupts the connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }
}

/// A call that was sent. Dropping it discards the answer.
pub struct Pending<'a, M> {
    client: &'a mut Client,
    sent: Sent<M>,
}

impl<M: Method> Pending<'_, M> {
    /// Waits about `at_most` for the answer. Returns `None` on a timeout; the wait can then be repeated.
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<M::Answer>, CallError> {
        self.client.fetch(&self.sent, at_most)
    }
}

fn parse<'a, T: Deserialize<'a>>(method: &'static str, text: &'a str) -> Result<T, CallError> {
    serde_json::from_str(text).map_err(|source| CallError::Unreadable { method, source })
}

/// The events of a subscription, in order.
///
/// Make other calls on another connection. On this one, a call can deadlock: while events fill the socket's buffer, the daemon stops
/// reading requests until the client reads events, and the client would read none while it waits to send its request.
pub struct Events<'a, S> {
    client: &'a mut Client,
    subscription: PhantomData<S>,
}

impl<S: Subscription> Events<'_, S> {
    /// Waits for the next event. The last event of a subscription is marked as such by its content.
    pub fn next_event(&mut self) -> Result<S::Event, CallError> {
        loop {
            let line = self.client.line()?;
            if let Some(event) = event::<S>(&line)? {
                return Ok(event);
            }
        }
    }

    /// Waits about `at_most` for the next event. Returns `None` on a timeout; the wait can then be repeated.
    pub fn next_event_within(&mut self, at_most: Duration) -> Result<Option<S::Event>, CallError> {
        while let Some(line) = self.client.line_within(at_most)? {
            if let Some(event) = event::<S>(&line)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// Parses a notification of a subscription; `None` if the line is something else.
fn event<S: Subscription>(line: &str) -> Result<Option<S::Event>, CallError> {
    if requests_read(line).is_some() {
        let cause = "orbd is being upgraded; subscriptions end and must be renewed";
        return Err(CallError::Lost(io::Error::new(
            io::ErrorKind::ConnectionReset,
            cause,
        )));
    }
    let frame: Frame<'_> = parse(S::NOTIFICATION, line)?;
    frame
        .params
        .map(|notification| parse(S::NOTIFICATION, notification.result.get()))
        .transpose()
}

/// Parses `daemon.closing` and returns how many requests of the connection the daemon has read. `None` if the line is something else.
fn requests_read(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Notification<'a> {
        method: &'a str,
        params: Closing,
    }
    if line.len() > CLOSING_MAX || !line.contains(Closing::NOTIFICATION) {
        return None;
    }
    let closing: Notification<'_> = serde_json::from_str(line).ok()?;
    (closing.method == Closing::NOTIFICATION).then_some(closing.params.requests_read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use orbd_proto::methods::DaemonInfo;
    use orbd_proto::types::NoParams;

    fn hello_params() -> HelloParams {
        HelloParams {
            client: "test".into(),
            protocol: 1,
            protocol_min: None,
        }
    }

    /// The daemon answers calls as they end, in any order.
    #[test]
    fn send_both_matches_answers_that_arrive_in_any_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let daemon = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut requests = BufReader::new(stream.try_clone().expect("a copy")).lines();
            for _ in 0..2 {
                requests.next().expect("a request").expect("a line");
            }
            let hello =
                r#"{"jsonrpc":"2.0","id":1,"result":{"version":"9.9.9","protocol":1,"instance":"x"}}"#;
            let error = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32603,"message":"no","data":{"kind":"internal","retryable":false}}}"#;
            // Neither line answers one of the two requests.
            let late = r#"{"jsonrpc":"2.0","id":7,"result":null}"#;
            let told = r#"{"jsonrpc":"2.0","method":"x","params":{"subscription":1,"result":null}}"#;
            (&stream)
                .write_all(format!("{told}\n{error}\n{late}\n{hello}\n").as_bytes())
                .expect("it reads");
        });
        let mut client = Client::connect(&socket).expect("it listens");
        let (first, second) = client
            .send_both::<DaemonHello, DaemonInfo>(&hello_params(), &NoParams {})
            .expect("sent");
        let patience = Duration::from_secs(30);
        let greeted = client
            .fetch(&first, patience)
            .expect("an answer")
            .expect("in time");
        assert_eq!(greeted.version, "9.9.9");
        let refused = client.fetch(&second, patience).expect_err("it was refused");
        assert!(matches!(refused, CallError::Refused(_)), "{refused}");
        daemon.join().expect("no panic");
    }

    /// Starts a fake daemon that accepts one connection per conversation, one after the other.
    fn daemon<const N: usize>(
        conversations: [fn(&mut Conversation); N],
    ) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let daemon = std::thread::spawn(move || {
            for conversation in conversations {
                let (stream, _) = listener.accept().expect("a client");
                let requests = BufReader::new(stream.try_clone().expect("a copy"));
                conversation(&mut Conversation { requests, stream });
            }
        });
        (folder, socket, daemon)
    }

    struct Conversation {
        requests: BufReader<UnixStream>,
        stream: UnixStream,
    }

    impl Conversation {
        /// Reads a request, checks its method and returns its id.
        fn request(&mut self, method: &str) -> u64 {
            let mut line = String::new();
            self.requests.read_line(&mut line).expect("a request");
            let request: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!(request["method"], method);
            request["id"].as_u64().expect("an id")
        }

        fn send(&mut self, text: &str) {
            self.stream
                .write_all(format!("{text}\n").as_bytes())
                .expect("it reads");
        }

        fn greet(&mut self, protocol: u32) {
            let id = self.request("daemon.hello");
            self.send(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"version":"9.9.9","protocol":{protocol},"instance":"x"}}}}"#
            ));
        }

        fn refuse(&mut self, id: u64) {
            self.send(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":"no","data":{{"kind":"internal","retryable":false}}}}}}"#
            ));
        }

        fn close(&mut self, requests_read: u64) {
            self.send(&format!(
                r#"{{"jsonrpc":"2.0","method":"daemon.closing","params":{{"requests_read":{requests_read}}}}}"#
            ));
        }
    }

    fn is_refused<T>(answer: &Result<T, CallError>) -> bool {
        matches!(answer, Err(CallError::Refused(_)))
    }

    #[test]
    fn unread_request_is_resent_to_the_next_instance() {
        let (_folder, socket, daemon) = daemon([
            |old| {
                old.greet(1);
                old.request("daemon.info");
                old.close(1);
            },
            |new| {
                new.greet(1);
                let id = new.request("daemon.info");
                new.refuse(id);
                // The client has no open request at this point.
                new.close(2);
            },
            |newest| {
                newest.greet(1);
                let id = newest.request("daemon.info");
                newest.refuse(id);
            },
        ]);
        let mut client = Client::connect(&socket).expect("it listens");
        client.hello("test").expect("it is greeted");
        assert!(is_refused(&client.call::<DaemonInfo>(&NoParams {})));
        assert!(is_refused(&client.call::<DaemonInfo>(&NoParams {})));
        daemon.join().expect("no panic");
    }

    #[test]
    fn request_that_was_read_is_never_resent() {
        let (_folder, socket, daemon) = daemon([|old| {
            old.greet(1);
            old.request("daemon.info");
            old.close(2);
        }]);
        let mut client = Client::connect(&socket).expect("it listens");
        client.hello("test").expect("it is greeted");
        let lost = client.call::<DaemonInfo>(&NoParams {});
        assert!(matches!(lost, Err(CallError::Lost(_))), "{lost:?}");
        daemon.join().expect("no panic");
    }

    #[test]
    fn answer_that_follows_daemon_closing_is_kept() {
        let (_folder, socket, daemon) = daemon([
            |old| {
                let hello = old.request("daemon.hello");
                old.request("daemon.info");
                old.close(1);
                old.refuse(hello);
            },
            |new| {
                new.greet(1);
                let id = new.request("daemon.info");
                new.refuse(id);
            },
        ]);
        let mut client = Client::connect(&socket).expect("it listens");
        let (hello, info) = client
            .send_both::<DaemonHello, DaemonInfo>(&hello_params(), &NoParams {})
            .expect("sent");
        let patience = Duration::from_secs(30);
        assert!(is_refused(&client.fetch(&info, patience)));
        assert!(is_refused(&client.fetch(&hello, patience)));
        daemon.join().expect("no panic");
    }

    #[test]
    fn no_request_is_resent_to_an_instance_that_refuses_hello() {
        let (_folder, socket, daemon) = daemon([
            |old| {
                old.greet(1);
                old.request("daemon.info");
                old.close(1);
            },
            |new| {
                let id = new.request("daemon.hello");
                new.refuse(id);
                let mut rest = String::new();
                let read = new.requests.read_line(&mut rest).expect("the end");
                assert_eq!(read, 0, "{rest}");
            },
        ]);
        let mut client = Client::connect(&socket).expect("it listens");
        client.hello("test").expect("it is greeted");
        assert!(is_refused(&client.call::<DaemonInfo>(&NoParams {})));
        drop(client);
        daemon.join().expect("no panic");
    }
}
