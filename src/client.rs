//! A typed client: JSON lines over the Unix socket, blocking, one call at a time.
//!
//! The command line needs nothing more, starts in a millisecond this way, and the tests drive the daemon through it. Several
//! threads use several clients.

pub mod download;

use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::rpc::api::{DaemonHello, Method, PROTOCOL_VERSION, Subscription};
use crate::rpc::types::{ErrorObject, HelloAnswer, HelloParams};

/// The longest answer accepted, so that a daemon gone wrong cannot fill our memory.
const ANSWER_MAX: u64 = 64 << 20;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon refused or failed; the object says why.
    #[error("{}", .0.message)]
    Refused(ErrorObject),
    /// The connection broke.
    #[error("connection to orbd lost")]
    Lost(#[source] io::Error),
    /// The daemon said something that we do not understand.
    #[error("orbd's answer to {method} could not be read")]
    Unreadable {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// A connection to the daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    next_id: u64,
    /// The beginning of a line whose end had not come when a limited wait was over.
    partial: Vec<u8>,
    /// Two calls that were sent as one, and the answer to either that came while the other's was waited for.
    pair: [u64; 2],
    early: Option<(u64, String)>,
}

/// A call that was sent; [`Client::fetch`] fetches its answer.
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
    method: &'static str,
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
    /// Says whether it is the answer to the request `id`, or to one whose id the daemon could not read.
    fn answers(&self, id: u64) -> bool {
        self.id == Some(id) || (self.id.is_none() && self.error.is_some())
    }
}

/// Returns what a method answered.
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
            // No request has this id.
            pair: [0; 2],
            early: None,
        })
    }

    /// Names this client to the daemon and compares protocol versions.
    pub fn hello(&mut self, name: &str) -> Result<HelloAnswer, CallError> {
        self.call::<DaemonHello>(&HelloParams {
            client: name.into(),
            protocol: PROTOCOL_VERSION,
        })
    }

    /// Limits how long a call waits for its answer; none by default.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.writer.set_read_timeout(timeout)
    }

    /// Calls a method and waits for its answer.
    pub fn call<M: Method>(&mut self, params: &M::Params) -> Result<M::Answer, CallError> {
        let id = self.send(M::NAME, params)?;
        self.receive(id, answer::<M>)
    }

    /// Sends a call without waiting for its answer, which is read from what is returned.
    pub fn start<M: Method>(&mut self, params: &M::Params) -> Result<Pending<'_, M>, CallError> {
        let sent = self.send_one(params)?;
        Ok(Pending { client: self, sent })
    }

    /// Sends a call.
    pub fn send_one<M: Method>(&mut self, params: &M::Params) -> Result<Sent<M>, CallError> {
        self.send(M::NAME, params).map(Sent::of)
    }

    /// Sends two calls as one message, which saves waiting for the first before the second is on its way. Both are carried out,
    /// whatever comes of the first.
    pub fn send_both<A: Method, B: Method>(
        &mut self,
        first: &A::Params,
        second: &B::Params,
    ) -> Result<(Sent<A>, Sent<B>), CallError> {
        let mut lines = Vec::new();
        let first = self.encode(A::NAME, first, &mut lines)?;
        let second = self.encode(B::NAME, second, &mut lines)?;
        self.writer.write_all(&lines).map_err(CallError::Lost)?;
        self.pair = [first, second];
        Ok((Sent::of(first), Sent::of(second)))
    }

    /// Waits for the answer to a call that was sent, about `at_most` long; `None` when it has not come, and the wait can be repeated.
    pub fn fetch<M: Method>(
        &mut self,
        sent: &Sent<M>,
        at_most: Duration,
    ) -> Result<Option<M::Answer>, CallError> {
        if let Some((_, line)) = self.early.take_if(|(id, _)| *id == sent.id) {
            return answer::<M>(parse(M::NAME, &line)?).map(Some);
        }
        while let Some(line) = self.line_within(at_most)? {
            // Whatever else comes was given up: a call that took too long, or a subscription.
            let Ok(frame) = serde_json::from_str::<Frame<'_>>(&line) else {
                continue;
            };
            if frame.answers(sent.id) {
                return answer::<M>(frame).map(Some);
            }
            let other = self.pair.into_iter().find(|id| frame.answers(*id));
            if let Some(other) = other {
                self.early = Some((other, line));
            }
        }
        Ok(None)
    }

    /// Subscribes; the events are read from what is returned, which borrows the connection.
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
    fn send(&mut self, method: &'static str, params: &impl Serialize) -> Result<u64, CallError> {
        let mut line = Vec::new();
        let id = self.encode(method, params, &mut line)?;
        self.writer.write_all(&line).map_err(CallError::Lost)?;
        Ok(id)
    }

    /// Writes a request as a line, and returns its id.
    fn encode(
        &mut self,
        method: &'static str,
        params: &impl Serialize,
        out: &mut Vec<u8>,
    ) -> Result<u64, CallError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            jsonrpc: "2.0",
            id,
            method,
            params,
        };
        serde_json::to_writer(&mut *out, &request)
            .map_err(|source| CallError::Unreadable { method, source })?;
        out.push(b'\n');
        Ok(id)
    }

    /// Reads until the answer to `id`, and returns what `take` makes of it. Notifications of a subscription that was given up are passed
    /// over.
    fn receive<T>(
        &mut self,
        id: u64,
        take: impl FnOnce(Frame<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        loop {
            let line = self.line()?;
            if let Ok(frame) = serde_json::from_str::<Frame<'_>>(&line)
                && frame.answers(id)
            {
                return take(frame);
            }
        }
    }

    fn line(&mut self) -> Result<String, CallError> {
        self.read_line().map_err(CallError::Lost)
    }

    /// Reads a line unless none comes within about `at_most`; what came of it until then is kept. No limit is left behind.
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

/// A call that was sent. Dropping it gives the answer up.
pub struct Pending<'a, M> {
    client: &'a mut Client,
    sent: Sent<M>,
}

impl<M: Method> Pending<'_, M> {
    /// Waits for the answer, about `at_most` long; `None` when it has not come, and the wait can be repeated.
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<M::Answer>, CallError> {
        self.client.fetch(&self.sent, at_most)
    }
}

fn parse<'a, T: Deserialize<'a>>(method: &'static str, text: &'a str) -> Result<T, CallError> {
    serde_json::from_str(text).map_err(|source| CallError::Unreadable { method, source })
}

/// The events of a subscription, in order.
///
/// Other calls are made on another connection: a request that the daemon does not take yet, because it waits for room to tell
/// events, would never be sent by one who reads none of them meanwhile.
pub struct Events<'a, S> {
    client: &'a mut Client,
    subscription: PhantomData<S>,
}

impl<S: Subscription> Events<'_, S> {
    /// Waits for the next event. The last one says itself that it is the last.
    pub fn next_event(&mut self) -> Result<S::Event, CallError> {
        loop {
            let line = self.client.line()?;
            let frame: Frame<'_> = parse(S::NOTIFICATION, &line)?;
            if let Some(notification) = frame.params {
                return parse(S::NOTIFICATION, notification.result.get());
            }
        }
    }

    /// Waits for the next event, about `at_most` long; `None` when none has come, and the wait can be repeated.
    pub fn next_event_within(&mut self, at_most: Duration) -> Result<Option<S::Event>, CallError> {
        while let Some(line) = self.client.line_within(at_most)? {
            let frame: Frame<'_> = parse(S::NOTIFICATION, &line)?;
            if let Some(notification) = frame.params {
                return parse(S::NOTIFICATION, notification.result.get()).map(Some);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::rpc::api::DaemonInfo;
    use crate::rpc::types::NoParams;

    /// Calls are answered as they end, in any order.
    #[test]
    fn of_two_calls_sent_as_one_each_gets_its_own_answer_whichever_comes_first() {
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
            // Neither is anybody's answer.
            let late = r#"{"jsonrpc":"2.0","id":7,"result":null}"#;
            let told = r#"{"jsonrpc":"2.0","method":"x","params":{"subscription":1,"result":null}}"#;
            (&stream)
                .write_all(format!("{told}\n{error}\n{late}\n{hello}\n").as_bytes())
                .expect("it reads");
        });
        let mut client = Client::connect(&socket).expect("it listens");
        let hello = HelloParams {
            client: "test".into(),
            protocol: 1,
        };
        let (first, second) = client
            .send_both::<DaemonHello, DaemonInfo>(&hello, &NoParams {})
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
}
