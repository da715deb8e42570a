//! Newline-delimited JSON-RPC over one connection.
//!
//! One task per connection reads, runs handlers and writes; it calls methods as HTTP does (`request`). What it promises: calls are
//! answered as they end, in any order; a client that does not read is not read from either, and what it has sent waits unhandled, so
//! its requests cost bounded memory; a half-close lets calls in flight end; a full hang-up is seen even while nothing is read; a
//! subscription can be ended as soon as its id is known.
//!
//! ```text
//!            +-- complete line --> fast path (cached list) ----+
//!  socket -> input                                             +-> output -> socket
//!            +-- complete line --> handler future, in flight --+
//!        for each subscription, until its end: messages ------+
//!                                      and lines of its outlet +
//! ```

use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jsonrpsee::types::Id;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::WriteHalf;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Permit, Shortage};
use super::connection::{Connection, ConnectionEnd, overloaded};
use super::errors::ErrorKind;
use super::request::{Answer, CALL_BYTES, Calls, Service, error_json, id_of, push};
use super::subscriptions::{Line, LineSubscriptions, SubscriptionItem};
use super::types::{self, ErrorObject};
use crate::clock::Moment;
use crate::sys;

/// Unwritten output at which a connection stops reading, handling what it has read, and taking subscription messages.
const OUTPUT_HIGH: usize = 64 << 10;
/// Room made for each read.
const READ_SIZE: usize = 16 << 10;
/// Input up to this length takes room as it comes. A longer line takes that of the longest at once: room for parts would keep each
/// from being completed.
const INPUT_SMALL: usize = 32 << 10;
/// Buffers larger than this are given back once they are empty, so that one large answer is not kept for ever.
const KEEP_CAPACITY: usize = 128 << 10;

/// Serves one connection until the client is gone or the `end` comes, after which no more requests are taken.
///
/// Before an upgrade the last message is `daemon.closing`: it counts the requests that were answered, so that the client can send the
/// others to the next instance.
pub(super) async fn serve(
    stream: UnixStream,
    service: Arc<Service>,
    connection: Arc<Connection>,
    end: &ConnectionEnd,
) {
    let hang_up = match sys::HangUp::watch(&stream) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            tracing::warn!(
                client = %connection.name(),
                pid = connection.pid(),
                %error,
                "a connection cannot be watched for hang-up"
            );
            return;
        }
    };
    let outside = FuturesUnordered::new();
    outside.push(hung_up(hang_up).boxed());
    let stopped = end.stop.clone().cancelled_owned();
    outside.push(stopped.map(|()| ControlEvent::Stopped).boxed());
    let upgrading = end.upgrading.clone().cancelled_owned();
    outside.push(upgrading.map(|()| ControlEvent::Upgrading).boxed());
    let session = Session {
        subscriptions: LineSubscriptions::new(service.bounds.subscriptions_max),
        service,
        connection,
        in_flight: FuturesUnordered::new(),
        calls: 0,
        input: Vec::new(),
        input_room: None,
        short_of: 0,
        output_room: Vec::new(),
        scanned: 0,
        has_unhandled: false,
        partial_since: None,
        requests: 0,
        unbegun: None,
        output: Vec::new(),
        written: 0,
        reading: ReadState::On,
        closing: Closing::No,
        upgrading: end.upgrading.clone(),
    };
    session.run(stream, outside).await;
}

/// What a connection hears of beside its socket's readiness and its own calls. Polled only when one of them happened.
type ControlEvents = FuturesUnordered<BoxFuture<'static, ControlEvent>>;

enum ControlEvent {
    /// The client is gone.
    HungUp,
    /// No more requests are taken.
    Stopped,
    /// The next instance is about to take over.
    Upgrading,
}

/// Takes so much room, unless it is taken already.
fn take(room: &mut Option<Permit>, budget: &Arc<Budget>, bytes: usize) -> Result<(), Shortage> {
    match room {
        Some(room) => room.grow_to(bytes),
        None => budget.try_take(bytes).map(|taken| *room = Some(taken)),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn hung_up(mut hang_up: sys::HangUp) -> ControlEvent {
    hang_up.observed().await;
    ControlEvent::HungUp
}

struct Session {
    service: Arc<Service>,
    connection: Arc<Connection>,
    subscriptions: LineSubscriptions,
    /// Calls that have not ended. `None` is the end of a call whose answer went another way.
    in_flight: FuturesUnordered<BoxFuture<'static, EndedRequest>>,
    /// Calls of which they consist.
    calls: usize,
    /// Bytes read and not yet handled; `scanned` of them are known to hold no line end.
    input: Vec<u8>,
    scanned: usize,
    /// What the input takes.
    input_room: Option<Permit>,
    /// The room that the first line of the input needs and did not get; 0 if it did.
    short_of: usize,
    /// Whole lines were left in the input because a bound was reached.
    has_unhandled: bool,
    /// Since when a line has begun and could have been completed.
    partial_since: Option<Instant>,
    /// Requests that were handled, a batch counting as one.
    requests: u64,
    /// The first of them that was refused because of an upgrade, and is not answered: the next instance takes it.
    unbegun: Option<u64>,
    /// Bytes to be written; the first `written` of them are.
    output: Vec<u8>,
    written: usize,
    /// What long answers and notifications in it take.
    output_room: Vec<Permit>,
    reading: ReadState,
    closing: Closing,
    upgrading: CancellationToken,
}

/// A request that has ended.
struct EndedRequest {
    /// Its number on the connection, from 1.
    number: u64,
    /// Calls of which it consists.
    calls: usize,
    /// `None` where the answer went another way, or none is wanted.
    answer: Option<Answer>,
    /// What the request takes.
    room: Permit,
}

/// Whether more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    /// It is.
    On,
    /// We stop; the client has not.
    Stopped,
    /// The client closed its sending side, or sent a frame over the bound.
    Over,
}

/// How far a connection is closed for an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    /// It is not.
    No,
    /// Nothing more is read, and what was read is answered.
    Answering,
    /// The client was sent `daemon.closing`.
    Sent,
}

impl Session {
    async fn run(mut self, mut stream: UnixStream, mut outsides: ControlEvents) {
        let (mut reader, writer) = stream.split();
        let mut in_use = None;
        loop {
            // What can be answered at once leaves with what was answered before it, in one write and for one wake-up. Not more than
            // that: answers that are ready are many and may be long, and each would wait here for the others.
            while !self.in_flight.is_empty()
                && self.output.len() < OUTPUT_HIGH
                && let Some(Some(ended)) = self.in_flight.next().now_or_never()
            {
                self.push_answer(ended);
            }
            if self.closing == Closing::Answering && self.in_flight.is_empty() {
                self.close();
            }
            if !self.flush(&writer) {
                return;
            }
            if self.is_idle() {
                in_use = None;
            }
            let is_reading = self.reading == ReadState::On;
            let may_handle = is_reading && self.has_room();
            if may_handle && self.has_unhandled {
                self.handle();
                continue;
            }
            let pending = self.output.len() - self.written;
            let room = pending < OUTPUT_HIGH;
            let is_silent = self.subscriptions.is_silent() || self.closing == Closing::Sent;
            if !is_reading && self.in_flight.is_empty() && pending == 0 && is_silent {
                return;
            }
            // Room for more of a line is waited for as long as the line may take.
            let wanted = self.input_wanted();
            let budget = self.connection.budget().clone();
            let has_input_room = may_handle && take(&mut self.input_room, &budget, wanted).is_ok();
            if has_input_room {
                self.reserve_input(wanted);
            }
            if !may_handle && self.partial_since.is_some() {
                // The client cannot complete what is not read.
                self.partial_since = Some(Moment::now().instant);
            }
            let timeout = self.service.bounds.request_timeout;
            let deadline = self.partial_since.map(|since| since + timeout);
            tokio::select! {
                biased;
                Some(outside) = outsides.next() => match outside {
                    ControlEvent::HungUp => return,
                    ControlEvent::Stopped if is_reading => self.reading = ReadState::Stopped,
                    ControlEvent::Stopped => {}
                    ControlEvent::Upgrading => {
                        self.closing = Closing::Answering;
                        if is_reading {
                            self.reading = ReadState::Stopped;
                        }
                    }
                },
                ready = writer.writable(), if pending > 0 => if ready.is_err() { return },
                // Also while nothing can be written: a handler that is not polled may hold what others wait for.
                Some(ended) = self.in_flight.next(), if !self.in_flight.is_empty() => self.push_answer(ended),
                item = self.subscriptions.next(), if room && !is_silent => self.push_item(item),
                () = budget.wait_for(|| take(&mut self.input_room, &budget, wanted).ok()), if may_handle && !has_input_room => {}
                _ = budget.take_some(self.short_of, self.short_of), if self.short_of > 0 => self.short_of = 0,
                read = reader.read_buf(&mut self.input), if has_input_room => {
                    if in_use.is_none() {
                        in_use = self.connection.begin_use();
                    }
                    match read {
                        // It was idle for too long, and this came too late.
                        _ if in_use.is_none() => return,
                        Ok(0) => {
                            self.reading = ReadState::Over;
                            // What is whole but for its line end is a request all the same; what was cut short is told so.
                            let last = std::mem::take(&mut self.input);
                            let room = self.room_for(&last).unwrap_or_else(|| {
                                Err(ErrorKind::Overloaded.error("no room for the last request; try again later"))
                            });
                            self.line(&last, room);
                        }
                        Ok(_) => self.handle(),
                        Err(_) => return,
                    }
                }
                () = sleep_until(deadline), if may_handle && deadline.is_some() => {
                    let error = take(&mut self.input_room, &budget, wanted).map_or_else(overloaded, |()| {
                        let text = format!("a line was not complete within {timeout:?} (request_timeout)");
                        ErrorKind::InvalidRequest.error(text)
                    });
                    self.refuse(&Id::Null, error);
                    // Once: a client that does not read it either is not waited for.
                    self.flush(&writer);
                    return;
                }
            }
        }
    }

    /// Says whether nothing is under way: no call, no subscription, nothing to be handled or written.
    fn is_idle(&self) -> bool {
        let is_quiet = self.in_flight.is_empty() && self.subscriptions.is_silent();
        is_quiet && !self.has_unhandled && self.output.is_empty()
    }

    /// Writes `daemon.closing`, after what subscriptions have ready. Those that have more to come end here.
    fn close(&mut self) {
        while let Some(Some(item)) = self.subscriptions.next().now_or_never() {
            self.push_item(Some(item));
        }
        let requests_read = self.unbegun.map_or(self.requests, |number| number - 1);
        let closing = serde_json::json!({
            "jsonrpc": "2.0",
            "method": types::Closing::NOTIFICATION,
            "params": types::Closing { requests_read },
        });
        push(&mut self.output, closing.to_string().as_bytes());
        self.closing = Closing::Sent;
    }

    /// Says whether one more request may be handled: there is room for its answer, and for its call.
    fn has_room(&self) -> bool {
        self.output.len() - self.written < OUTPUT_HIGH
            && self.calls < self.service.bounds.in_flight_max
            && self.short_of == 0
    }

    /// Returns the room that the input needs for one more read.
    fn input_wanted(&self) -> usize {
        if self.input.len() + READ_SIZE <= INPUT_SMALL {
            INPUT_SMALL
        } else {
            self.service.bounds.one_frame()
        }
    }

    /// Makes place for one more read, at most as much as there is room for.
    fn reserve_input(&mut self, room: usize) {
        let length = self.input.len();
        if self.input.capacity() - length < READ_SIZE {
            let least = length + READ_SIZE;
            let capacity = (2 * length).min(room).max(least);
            self.input.reserve_exact(capacity - length);
        }
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
        if !self.output.is_empty() {
            self.short_of = 0;
        }
        self.output_room.clear();
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
            let line = &input[start..end];
            let Some(room) = self.room_for(line) else {
                self.short_of = self.service.bounds.cost(line);
                self.has_unhandled = true;
                break;
            };
            self.line(line, room);
            start = end + 1;
            from = start;
        }
        self.input = input;
        self.input.drain(..start);
        if self.has_unhandled {
            self.partial_since = None;
            self.scanned = 0;
            return;
        }
        self.scanned = self.input.len();
        if self.input.is_empty() {
            self.partial_since = None;
        } else if start > 0 || self.partial_since.is_none() {
            self.partial_since = Some(Moment::now().instant);
        }
        if self.input.is_empty() && self.input.capacity() > KEEP_CAPACITY {
            self.input = Vec::new();
        }
        if self.input.len() + READ_SIZE <= INPUT_SMALL
            && let Some(room) = &mut self.input_room
        {
            room.shrink_to(INPUT_SMALL);
        }
        if self.input.len() > self.service.bounds.frame_max {
            let text = format!(
                "a line has at most {} bytes; send large input in pieces",
                self.service.bounds.frame_max
            );
            self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
            self.input = Vec::new();
            self.reading = ReadState::Over;
        }
    }

    /// Takes the room that a line needs while it is handled, if need be of what it took while it was read. `None` when something in
    /// flight is to be waited for, an error when there is nothing to wait for.
    fn room_for(&mut self, line: &[u8]) -> Option<Result<Permit, ErrorObject>> {
        let cost = self.service.bounds.cost(line);
        match self.connection.budget().try_take(cost) {
            Ok(room) => Some(Ok(room)),
            Err(shortage) => match self.input_room.as_mut().and_then(|room| room.split(cost)) {
                Some(room) => Some(Ok(room)),
                None if self.in_flight.is_empty() && self.output.is_empty() => {
                    Some(Err(overloaded(shortage)))
                }
                None => None,
            },
        }
    }

    /// Handles one line.
    fn line(&mut self, line: &[u8], room: Result<Permit, ErrorObject>) {
        if !line.trim_ascii().is_empty() {
            self.requests += 1;
        }
        let number = self.requests;
        self.subscriptions.request = number;
        let room = match room {
            Ok(room) => room,
            Err(error) => return self.refuse(&id_of(line), error),
        };
        let calls = Calls {
            service: &self.service,
            connection: &self.connection,
            subscriptions: &mut self.subscriptions,
            output: &mut self.output,
        };
        if let Some(pending) = calls.message(line) {
            self.calls += pending.calls;
            let ended = async move {
                EndedRequest {
                    number,
                    answer: pending.answer.await,
                    calls: pending.calls,
                    room,
                }
            };
            self.in_flight.push(ended.boxed());
        }
    }

    fn refuse(&mut self, id: &Id<'_>, error: ErrorObject) {
        let answer = error_json(id, error);
        push(&mut self.output, answer.get().as_bytes());
    }

    /// Pushes what a call came to, if it is to be answered. It is ours to keep: a long answer becomes the output, where a copy
    /// of it would cost its length once more.
    fn push_answer(&mut self, mut ended: EndedRequest) {
        self.calls -= ended.calls;
        self.short_of = 0;
        let Some(Answer { json, permit }) = ended.answer else {
            return;
        };
        if self.is_left_to_the_next(ended.number, &json) {
            return;
        }
        // It takes the room of its call until it is written.
        ended.room.shrink_to(ended.calls * CALL_BYTES);
        self.output_room.push(ended.room);
        self.output_room.extend(permit);
        if self.output.is_empty() && json.get().len() > KEEP_CAPACITY {
            let mut line = Box::<str>::from(json).into_string().into_bytes();
            // No more than that: the next power of two would be the copy again.
            line.reserve_exact(1);
            line.push(b'\n');
            self.output = line;
        } else {
            push(&mut self.output, json.get().as_bytes());
        }
    }

    /// Pushes what came from a subscription.
    fn push_item(&mut self, item: Option<SubscriptionItem>) {
        match item {
            Some(SubscriptionItem::Message(number, message)) => {
                if !self.is_left_to_the_next(number, &message) {
                    push(&mut self.output, message.get().as_bytes());
                }
            }
            Some(SubscriptionItem::Line(line)) => self.push_line(line),
            Some(SubscriptionItem::End(_)) | None => {}
        }
    }

    /// Says whether a message refuses the request of this number because of an upgrade. Then nothing was begun, and the next instance
    /// carries it out: the request counts as not read, and so do those after it that have no answer.
    fn is_left_to_the_next(&mut self, number: u64, message: &RawValue) -> bool {
        if !self.upgrading.is_cancelled() || !is_refusal(message) {
            return false;
        }
        self.unbegun = Some(self.unbegun.map_or(number, |first| first.min(number)));
        true
    }

    /// Takes a whole line, as it is where nothing else waits to be written.
    fn push_line(&mut self, line: Line) {
        self.output_room.extend(line.permit);
        if self.output.is_empty() {
            self.output = line.bytes;
        } else {
            self.output.extend_from_slice(&line.bytes);
        }
    }
}

/// Says whether a message is the refusal of new work.
fn is_refusal(message: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        code: i32,
    }
    // A batch is not: it has an answer for each of its calls.
    serde_json::from_str::<Answer>(message.get())
        .is_ok_and(|answer| answer.error.code == ErrorKind::Draining.code())
}
