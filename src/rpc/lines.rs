//! Newline-delimited JSON-RPC over one connection.
//!
//! One task per connection reads, runs handlers and writes; it calls the same jsonrpsee methods as HTTP and WebSocket do. What
//! it promises: calls are answered as they end, in any order; a client that does not read is not read from either, and what it
//! has sent waits unhandled, so its requests cost bounded memory; a half-close lets calls in flight end; a full hang-up is seen
//! even while nothing is read; a subscription can be ended as soon as its id is known.
//!
//! ```text
//!            +-- complete line --> fast path (cached list) ----+
//!  socket -> input                                             +-> output -> socket
//!            +-- complete line --> handler future, in flight --+
//!        for each subscription, until its end: messages ------+
//!                                      and lines of its outlet +
//! ```

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, AbortHandle, Abortable, BoxStream, FuturesUnordered, SelectAll, StreamExt};
use jsonrpsee::core::server::{BoundedSubscriptions, ConnectionId as RpcConnectionId};
use jsonrpsee::core::server::{MethodCallback, MethodSink, SubscriptionState};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::server::RandomIntegerIdProvider;
use jsonrpsee::types::{Id, Params, SubscriptionId};
use jsonrpsee::{Extensions, Methods};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::WriteHalf;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::api::unsubscribe_of;
use super::connection::Connection;
use super::errors::ErrorKind;
use super::types::ErrorObject;
use crate::sys;

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest line that a client may send, in bytes.
    pub frame_max: usize,
    /// Calls of one connection in flight; beyond it nothing is read until one ends.
    pub in_flight_max: usize,
    /// Calls in one batch.
    pub batch_max: usize,
    /// Subscriptions of one connection.
    pub subscriptions_max: u32,
}

/// Unwritten output at which a connection stops reading, handling what it has read, and taking subscription messages.
const OUTPUT_HIGH: usize = 64 << 10;
/// Room made for each read.
const READ_SIZE: usize = 16 << 10;
/// Buffers larger than this are given back once they are empty, so that one large answer is not kept for ever.
const KEEP_CAPACITY: usize = 128 << 10;
/// Messages between a handler and the socket, of a subscription that is alone; of several, each has a share, and one at least.
const MESSAGES_MAX: usize = 16;
/// The same of its outlet's lines; each may hold a chunk of output.
const LINES_MAX: usize = 2;

/// Answers the hottest reads without going through the general dispatch. Must answer what the general dispatch would.
pub trait FastPath: Send + Sync {
    /// Appends the result's JSON for a method with these parameters, or returns false to leave it to the general dispatch.
    fn answer(&self, method: &str, params: Option<&RawValue>, out: &mut Vec<u8>) -> bool;
}

/// A subscription's way to its connection for messages that are whole lines already. Its handler finds it in its extensions.
///
/// jsonrpsee's own way encodes a message again to put it into its envelope. An answer that a handler gave through jsonrpsee is written
/// before any line that it sends here later; among lines the order is kept; between lines and later messages there is none.
#[derive(Debug, Clone)]
pub struct Outlet(mpsc::Sender<Vec<u8>>);

impl Outlet {
    /// Sends a line, its end included, waiting for room. False when the connection is gone.
    pub async fn send(&self, line: Vec<u8>) -> bool {
        self.0.send(line).await.is_ok()
    }
}

/// What every connection shares.
pub struct Service {
    /// The methods.
    pub methods: Methods,
    /// The hottest reads.
    pub fast: Box<dyn FastPath>,
    /// Bounds of each connection.
    pub bounds: Bounds,
}

#[derive(Deserialize)]
struct Request<'a> {
    jsonrpc: Option<&'a str>,
    #[serde(borrow, default, deserialize_with = "given")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Reads a request. What is known to be UTF-8 is read as such: that is checked once, instead of for each text in it.
fn request(line: &[u8]) -> serde_json::Result<Request<'_>> {
    match std::str::from_utf8(line) {
        Ok(text) => serde_json::from_str(text),
        // What is wrong, and where, is told in the terms of JSON.
        Err(_) => serde_json::from_slice(line),
    }
}

/// Reads an id that is there: also `null` is one, and only its absence asks for no answer.
fn given<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses an id. Costs more than all else of a request, so the fast path does without.
fn parsed(id: &RawValue) -> Result<Id<'_>, ErrorObject> {
    serde_json::from_str(id.get()).map_err(|_| {
        ErrorKind::InvalidRequest.error("not a JSON-RPC request: an id is a text, a whole number or null")
    })
}

/// Says whether an id can be repeated in an answer as it was written.
fn is_plain(id: &RawValue) -> bool {
    match id.get().as_bytes() {
        [b'"', text @ .., b'"'] => !text.contains(&b'\\'),
        // Any such number fits into 64 bits.
        digits => digits.len() < 20 && digits.iter().all(u8::is_ascii_digit),
    }
}

/// What is known of a request that is not one: enough to answer it.
#[derive(Deserialize)]
struct Fragment<'a> {
    #[serde(borrow)]
    id: Option<Id<'a>>,
}

/// Serves one connection until the client is gone or `stop` says that no more requests are taken.
///
/// While `rest` is true, it takes nothing new and gives the stream back as soon as nothing is under way on it: whoever has it then
/// can serve it further, and its client notices nothing.
pub async fn serve(
    stream: UnixStream,
    service: Arc<Service>,
    connection: Arc<Connection>,
    stop: CancellationToken,
    rest: watch::Receiver<bool>,
) -> Option<UnixStream> {
    let hang_up = match sys::HangUp::watch(&stream) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            tracing::warn!(
                client = %connection.name(),
                pid = connection.pid(),
                %error,
                "a connection cannot be watched for hang-up"
            );
            return None;
        }
    };
    let outside = FuturesUnordered::new();
    outside.push(hung_up(hang_up).boxed());
    outside.push(stop.cancelled_owned().map(|()| Outside::Stopped).boxed());
    let rests = if *rest.borrow() { Rest::Wanted } else { Rest::No };
    outside.push(rest_changed(rest).boxed());
    let session = Session {
        subscriptions: BoundedSubscriptions::new(service.bounds.subscriptions_max),
        service,
        connection,
        inbox: SelectAll::new(),
        subscribed: HashMap::new(),
        in_flight: FuturesUnordered::new(),
        input: Vec::new(),
        scanned: 0,
        has_unhandled: false,
        output: Vec::new(),
        written: 0,
        reading: Reading::On,
        rests,
    };
    session.run(stream, outside).await
}

/// What a connection hears of beside its socket's readiness and its own calls. Polled only when one of them happened.
type Outsides = FuturesUnordered<BoxFuture<'static, Outside>>;

enum Outside {
    /// The client is gone.
    HungUp,
    /// No more requests are taken.
    Stopped,
    /// Whether to come to rest has changed.
    Rest(watch::Receiver<bool>),
}

async fn rest_changed(mut rest: watch::Receiver<bool>) -> Outside {
    match rest.changed().await {
        Ok(()) => Outside::Rest(rest),
        // Nobody is left to change it.
        Err(_) => std::future::pending().await,
    }
}

async fn hung_up(mut hang_up: sys::HangUp) -> Outside {
    hang_up.seen().await;
    Outside::HungUp
}

struct Session {
    service: Arc<Service>,
    connection: Arc<Connection>,
    subscriptions: BoundedSubscriptions,
    /// What subscriptions tell.
    inbox: SelectAll<BoxStream<'static, Heard>>,
    /// Each of them, from before its id is answered: jsonrpsee's own account has it only some time after that.
    subscribed: HashMap<SubscriptionId<'static>, Subscribed>,
    /// Calls that have not ended. `None` is the end of a call whose answer went another way.
    in_flight: FuturesUnordered<BoxFuture<'static, Option<Box<RawValue>>>>,
    /// Bytes read and not yet handled; `scanned` of them are known to hold no line end.
    input: Vec<u8>,
    scanned: usize,
    /// Whole lines were left in the input because a bound was reached.
    has_unhandled: bool,
    /// Bytes to be written; the first `written` of them are.
    output: Vec<u8>,
    written: usize,
    reading: Reading,
    rests: Rest,
}

/// Whether more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It is.
    On,
    /// We stop; the client has not.
    Stopped,
    /// The client closed its sending side, or sent a frame over the bound.
    Over,
}

/// Whether the stream is to come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It is served on.
    No,
    /// Nothing new is taken from it.
    Wanted,
    /// It cannot: whoever served it further would not know its subscriptions, and its client would wait for them in vain.
    Impossible,
}

/// How a subscription is ended.
struct Subscribed {
    /// By which request.
    unsubscribe: &'static str,
    /// Its channel, and with it its handler.
    channel: AbortHandle,
}

/// What comes out of a subscription's channel.
enum Heard {
    Message(Box<RawValue>),
    /// A message that is a whole line already.
    Line(Vec<u8>),
    /// Nothing more follows.
    End(SubscriptionId<'static>),
}

/// The end of a subscription's channel where things come out.
struct Channel {
    messages: mpsc::Receiver<Box<RawValue>>,
    lines: mpsc::Receiver<Vec<u8>>,
    /// A line that lets messages go first.
    line: Option<Vec<u8>>,
}

impl Channel {
    /// Waits for what comes next; `None` when nothing will.
    async fn next(&mut self) -> Option<Heard> {
        if self.line.is_none() {
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => return Some(Heard::Message(message)),
                Some(line) = self.lines.recv() => self.line = Some(line),
                else => return None,
            }
        }
        // The answer that goes before a line may have come since messages were looked for.
        let earlier = self.messages.try_recv().ok().map(Heard::Message);
        earlier.or_else(|| self.line.take().map(Heard::Line))
    }
}

/// Gives a subscription the id that was made for it.
#[derive(Debug)]
struct Given(SubscriptionId<'static>);

impl IdProvider for Given {
    fn next_id(&self) -> SubscriptionId<'static> {
        self.0.clone()
    }
}

impl Session {
    async fn run(mut self, mut stream: UnixStream, mut outsides: Outsides) -> Option<UnixStream> {
        let (mut reader, writer) = stream.split();
        let mut in_use = None;
        loop {
            // What can be answered at once leaves with what was answered before it, in one write and for one wake-up. Not more than
            // that: answers that are ready are many and may be long, and each would wait here for the others.
            while !self.in_flight.is_empty()
                && self.output.len() < OUTPUT_HIGH
                && let Some(Some(answer)) = self.in_flight.next().now_or_never()
            {
                self.push_answer(answer);
            }
            if !self.flush(&writer) {
                return None;
            }
            if self.is_idle() {
                in_use = None;
                // What was read in part would be lost, so the rest of it is waited for.
                let may_rest = self.rests == Rest::Wanted && self.reading != Reading::Over;
                if may_rest && self.input.is_empty() {
                    return Some(stream);
                }
            }
            let is_reading = self.reading == Reading::On;
            let may_handle = is_reading && self.has_room();
            let may_read = may_handle && !(self.rests == Rest::Wanted && self.input.is_empty());
            if may_handle && self.has_unhandled {
                self.handle();
                continue;
            }
            let pending = self.output.len() - self.written;
            let room = pending < OUTPUT_HIGH;
            if !is_reading && self.in_flight.is_empty() && pending == 0 && self.inbox.is_empty() {
                return None;
            }
            if may_read {
                self.input.reserve(READ_SIZE);
            }
            tokio::select! {
                biased;
                Some(outside) = outsides.next() => match outside {
                    Outside::HungUp => return None,
                    Outside::Stopped if is_reading => self.reading = Reading::Stopped,
                    Outside::Stopped => {}
                    Outside::Rest(mut rest) => {
                        self.rests = match *rest.borrow_and_update() {
                            true if self.subscribed.is_empty() => Rest::Wanted,
                            true => Rest::Impossible,
                            false => Rest::No,
                        };
                        outsides.push(rest_changed(rest).boxed());
                    }
                },
                ready = writer.writable(), if pending > 0 => if ready.is_err() { return None },
                Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => self.push_answer(answer),
                heard = self.inbox.next(), if room && !self.inbox.is_empty() => match heard {
                    Some(Heard::Message(message)) => self.push(message.get().as_bytes()),
                    Some(Heard::Line(line)) => self.push_line(line),
                    Some(Heard::End(id)) => drop(self.subscribed.remove(&id)),
                    None => {}
                },
                read = reader.read_buf(&mut self.input), if may_read => {
                    if in_use.is_none() {
                        in_use = self.connection.begin_use();
                    }
                    match read {
                        // It was idle for too long, and this came too late.
                        _ if in_use.is_none() => return None,
                        Ok(0) => {
                            self.reading = Reading::Over;
                            // What is whole but for its line end is a request all the same; what was cut short is told so.
                            let last = std::mem::take(&mut self.input);
                            self.line(&last);
                        }
                        Ok(_) => self.handle(),
                        Err(_) => return None,
                    }
                }
            }
        }
    }

    /// Says whether nothing is under way: no call, no subscription, nothing to be handled or written.
    fn is_idle(&self) -> bool {
        let is_quiet = self.in_flight.is_empty() && self.inbox.is_empty();
        is_quiet && !self.has_unhandled && self.output.is_empty()
    }

    /// Says whether one more request may be handled: there is room for its answer, and for its call.
    fn has_room(&self) -> bool {
        self.output.len() - self.written < OUTPUT_HIGH
            && self.in_flight.len() < self.service.bounds.in_flight_max
    }

    /// Writes what can be written now. Returns false when the connection is broken.
    fn flush(&mut self, stream: &WriteHalf<'_>) -> bool {
        while self.written < self.output.len() {
            match stream.try_write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        self.written = 0;
        if self.output.capacity() > KEEP_CAPACITY {
            self.output = Vec::new();
        } else {
            self.output.clear();
        }
        true
    }

    /// Handles the complete lines of what was read, as far as there is room.
    fn handle(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut start = 0;
        let mut from = self.scanned;
        self.has_unhandled = false;
        while let Some(at) = memchr::memchr(b'\n', &input[from..]) {
            if !self.has_room() {
                self.has_unhandled = true;
                break;
            }
            let end = from + at;
            self.line(&input[start..end]);
            start = end + 1;
            from = start;
        }
        self.input = input;
        self.input.drain(..start);
        if self.has_unhandled {
            self.scanned = 0;
            return;
        }
        self.scanned = self.input.len();
        if self.input.is_empty() && self.input.capacity() > KEEP_CAPACITY {
            self.input = Vec::new();
        }
        if self.input.len() > self.service.bounds.frame_max {
            let text = format!(
                "a line has at most {} bytes; send large input in pieces",
                self.service.bounds.frame_max
            );
            self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
            self.input = Vec::new();
            self.reading = Reading::Over;
        }
    }

    /// Handles one line.
    fn line(&mut self, line: &[u8]) {
        let line = line.trim_ascii();
        match line.first() {
            None => {}
            Some(b'[') => self.batch(line),
            Some(_) => match request(line) {
                Ok(request) => {
                    if let Some(call) = self.call(&request) {
                        self.in_flight.push(call);
                    }
                }
                Err(error) => {
                    let (id, refusal) = malformed(line, &error);
                    self.refuse(&id, refusal);
                }
            },
        }
    }

    /// Begins a call; an answer that is known at once is pushed at once.
    fn call(&mut self, request: &Request<'_>) -> Option<BoxFuture<'static, Option<Box<RawValue>>>> {
        // JSON-RPC: a request without id wants no answer. None of ours is worth making without one, so it is not executed.
        let raw = request.id?;
        let is_ours = request.jsonrpc == Some("2.0");
        if is_ours && is_plain(raw) && self.fast(raw, &request.method, request.params) {
            return None;
        }
        let id = match parsed(raw) {
            Ok(id) => id,
            Err(error) => {
                self.refuse(&Id::Null, error);
                return None;
            }
        };
        if !is_ours {
            self.refuse(
                &id,
                ErrorKind::InvalidRequest.error("\"jsonrpc\" must be \"2.0\""),
            );
            return None;
        }
        let Some((name, callback)) = self.service.methods.method_with_name(&request.method) else {
            self.refuse(&id, unknown_method(&request.method));
            return None;
        };
        let mut extensions = Extensions::new();
        extensions.insert(self.connection.clone());
        let rpc_connection = RpcConnectionId(usize::try_from(self.connection.id().0).unwrap_or(usize::MAX));
        extensions.insert(rpc_connection);
        let params = Params::new(request.params.map(RawValue::get));
        match callback {
            MethodCallback::Sync(handler) => {
                let answer = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    handler(id.clone(), params, usize::MAX, extensions)
                }));
                match answer {
                    Ok(answer) => self.push(answer.as_json().get().as_bytes()),
                    Err(_) => self.refuse(&id, panicked(name)),
                }
                None
            }
            MethodCallback::Unsubscription(_) => {
                let ended = self.unsubscribe(name, &params);
                self.push(ended_json(&id, ended).get().as_bytes());
                None
            }
            MethodCallback::Async(handler) => {
                let id = id.into_owned();
                // The handler itself runs code before it returns its future; that too may panic.
                let handler = handler.clone();
                let params = params.into_owned();
                let on_panic = id.clone();
                let call = async move { handler(id, params, rpc_connection, usize::MAX, extensions).await };
                Some(
                    AssertUnwindSafe(call)
                        .catch_unwind()
                        .map(move |answer| match answer {
                            Ok(answer) => Some(answer.into_json()),
                            Err(_) => Some(error_json(&on_panic, panicked(name))),
                        })
                        .boxed(),
                )
            }
            MethodCallback::Subscription(handler) => {
                let unsubscribe = unsubscribe_of(name).unwrap_or_default();
                let Some(permit) = self.subscriptions.acquire() else {
                    let text = format!(
                        "a connection has at most {} subscriptions",
                        self.service.bounds.subscriptions_max
                    );
                    self.refuse(&id, ErrorKind::QueueFull.error(text));
                    return None;
                };
                let handler = handler.clone();
                let given = Given(RandomIntegerIdProvider.next_id());
                let state = SubscriptionState {
                    conn_id: rpc_connection,
                    id_provider: &given,
                    subscription_permit: permit,
                };
                let (messages, outlet) = self.open(given.0.clone(), unsubscribe);
                extensions.insert(outlet);
                // The answer goes through the sink, ahead of the first notification.
                let sink = MethodSink::new(messages);
                Some(handler(id, params, sink, state, extensions).map(|_| None).boxed())
            }
        }
    }

    /// Makes the channel of a subscription.
    fn open(
        &mut self,
        id: SubscriptionId<'static>,
        unsubscribe: &'static str,
    ) -> (mpsc::Sender<Box<RawValue>>, Outlet) {
        let share = |most: usize| (most / (self.subscribed.len() + 1)).max(1);
        let (sink, messages) = mpsc::channel(share(MESSAGES_MAX));
        let (outlet, lines) = mpsc::channel(share(LINES_MAX));
        let channel = Channel {
            messages,
            lines,
            line: None,
        };
        let told = stream::unfold(channel, async |mut channel: Channel| {
            channel.next().await.map(|heard| (heard, channel))
        });
        let (channel, registration) = AbortHandle::new_pair();
        let subscribed = Subscribed { unsubscribe, channel };
        if self.rests == Rest::Wanted {
            self.rests = Rest::Impossible;
        }
        self.subscribed.insert(id.clone(), subscribed);
        let whole = told.chain(stream::once(std::future::ready(Heard::End(id))));
        self.inbox.push(Abortable::new(whole, registration).boxed());
        (sink, Outlet(outlet))
    }

    /// Ends a subscription at once: nothing of it is told after this. Its handler sees that its channel is closed.
    fn unsubscribe(&mut self, request: &str, params: &Params<'_>) -> bool {
        let Ok(id) = params.one::<SubscriptionId<'_>>() else {
            return false;
        };
        let id = id.into_owned();
        let ours = self.subscribed.get(&id);
        if ours.is_none_or(|subscribed| subscribed.unsubscribe != request) {
            return false;
        }
        if let Some(subscribed) = self.subscribed.remove(&id) {
            subscribed.channel.abort();
        }
        true
    }

    fn fast(&mut self, id: &RawValue, method: &str, params: Option<&RawValue>) -> bool {
        let start = self.output.len();
        self.output.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        self.output.extend_from_slice(id.get().as_bytes());
        self.output.extend_from_slice(b",\"result\":");
        if self.service.fast.answer(method, params, &mut self.output) {
            self.output.extend_from_slice(b"}\n");
            return true;
        }
        self.output.truncate(start);
        false
    }

    /// Runs a batch, one call after the other, and answers it as one.
    fn batch(&mut self, line: &[u8]) {
        let requests: Vec<&RawValue> = match serde_json::from_slice(line) {
            Ok(requests) => requests,
            Err(error) => {
                let (id, refusal) = malformed(line, &error);
                return self.refuse(&id, refusal);
            }
        };
        if requests.is_empty() || requests.len() > self.service.bounds.batch_max {
            let text = format!("a batch has 1 to {} calls", self.service.bounds.batch_max);
            return self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
        }
        let mut calls = Vec::with_capacity(requests.len());
        for request in requests {
            // Answers that are known at once are taken back out of the output and wait for the others.
            let start = self.output.len();
            let call = match serde_json::from_str::<Request<'_>>(request.get()) {
                Ok(request) if self.is_subscription(&request.method) => {
                    let refusal = ErrorKind::InvalidRequest.error("a subscription cannot be part of a batch");
                    request.id.map(|id| {
                        let answer = match parsed(id) {
                            Ok(id) => error_json(&id, refusal),
                            Err(error) => error_json(&Id::Null, error),
                        };
                        std::future::ready(Some(answer)).boxed()
                    })
                }
                Ok(request) => self.call(&request),
                Err(error) => {
                    let (id, refusal) = malformed(request.get().as_bytes(), &error);
                    self.refuse(&id, refusal);
                    None
                }
            };
            let known = self.output.split_off(start);
            calls.extend(call);
            if let Ok(text) = String::from_utf8(known)
                && let Ok(answer) = RawValue::from_string(text.trim_end().to_owned())
            {
                calls.push(std::future::ready(Some(answer)).boxed());
            }
        }
        self.in_flight.push(
            async move {
                let mut answers = Vec::with_capacity(calls.len());
                for call in calls {
                    answers.extend(call.await);
                }
                if answers.is_empty() {
                    None
                } else {
                    serde_json::value::to_raw_value(&answers).ok()
                }
            }
            .boxed(),
        );
    }

    fn is_subscription(&self, method: &str) -> bool {
        matches!(
            self.service.methods.method(method),
            Some(MethodCallback::Subscription(_))
        )
    }

    fn refuse(&mut self, id: &Id<'_>, error: ErrorObject) {
        let answer = error_json(id, error);
        self.push(answer.get().as_bytes());
    }

    fn push(&mut self, json: &[u8]) {
        self.output.reserve(json.len() + 1);
        self.output.extend_from_slice(json);
        self.output.push(b'\n');
    }

    /// The same for what a call came to, if it is to be answered. It is ours to keep: a long answer becomes the output, where a copy
    /// of it would cost its length once more.
    fn push_answer(&mut self, answer: Option<Box<RawValue>>) {
        let Some(answer) = answer else { return };
        if self.output.is_empty() && answer.get().len() > KEEP_CAPACITY {
            let mut line = Box::<str>::from(answer).into_string().into_bytes();
            // No more than that: the next power of two would be the copy again.
            line.reserve_exact(1);
            line.push(b'\n');
            self.output = line;
        } else {
            self.push(answer.get().as_bytes());
        }
    }

    /// Takes a whole line, as it is where nothing else waits to be written.
    fn push_line(&mut self, line: Vec<u8>) {
        if self.output.is_empty() {
            self.output = line;
        } else {
            self.output.extend_from_slice(&line);
        }
    }
}

/// Makes the answer that carries an error.
pub fn error_json(id: &Id<'_>, error: ErrorObject) -> Box<RawValue> {
    #[derive(serde::Serialize)]
    struct Answer<'a> {
        jsonrpc: &'static str,
        id: &'a Id<'a>,
        error: ErrorObject,
    }
    serde_json::value::to_raw_value(&Answer {
        jsonrpc: "2.0",
        id,
        error,
    })
    .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Makes the answer to a request that was to end a subscription.
fn ended_json(id: &Id<'_>, ended: bool) -> Box<RawValue> {
    let answer = serde_json::json!({"jsonrpc": "2.0", "id": id, "result": ended});
    serde_json::value::to_raw_value(&answer).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn malformed<'a>(line: &'a [u8], error: &serde_json::Error) -> (Id<'a>, ErrorObject) {
    let id = serde_json::from_slice::<Fragment<'_>>(line)
        .ok()
        .and_then(|fragment| fragment.id)
        .unwrap_or(Id::Null);
    let kind = if error.is_syntax() || error.is_eof() {
        ErrorKind::ParseError
    } else {
        ErrorKind::InvalidRequest
    };
    (id, kind.error(format!("not a JSON-RPC request: {error}")))
}

/// Makes the error for a method that does not exist.
pub fn unknown_method(method: &str) -> ErrorObject {
    let shown: String = method.chars().take(80).collect();
    ErrorKind::MethodNotFound.error(format!("no method {shown:?}; proto/openrpc.json lists them"))
}

fn panicked(method: &str) -> ErrorObject {
    tracing::error!(method, "a handler panicked");
    ErrorKind::Internal.error("orbd failed while handling this call; its log says more")
}
