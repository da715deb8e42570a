//! Newline-delimited JSON-RPC over one connection.
//!
//! One task per connection reads, runs handlers and writes. It calls methods through `request`, as HTTP does. It guarantees:
//!
//! - Calls are answered as they end, in any order.
//! - While a client does not read, nothing is read from it and its requests stay unhandled, so they use bounded memory.
//! - After a half-close the calls in flight are still answered.
//! - A full hang-up is detected even while nothing is read.
//! - A subscription can be ended as soon as its id is known.
//!
//! ```text
//!            +-- complete line --> fast path (cached list) ----+
//!  socket -> input                                             +-> output -> socket
//!            +-- complete line --> handler future, in flight --+
//!        for each subscription, until its end: messages -------+
//!                                   and lines of its LineSink -+
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
use super::request::{Answer, CALL_BYTES, Calls, Service, error_json, id_of, push};
use super::subscriptions::{Line, LineSubscriptions, SubscriptionItem};
use crate::clock::{Moment, sleep_until};
use crate::sys;
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::{self, ErrorObject};

/// Bytes of unwritten output at which a connection stops reading, stops handling what it has read, and stops taking messages of
/// subscriptions.
const OUTPUT_HIGH: usize = 64 << 10;
/// Space reserved for each read, in bytes.
const READ_SIZE: usize = 16 << 10;
/// Input up to this length is charged as it arrives. A longer line is charged as the longest line at once: permits for parts of lines could
/// block each other.
const INPUT_SMALL: usize = 32 << 10;
/// Empty buffers larger than this are freed, so that a large answer does not keep its memory.
const KEEP_CAPACITY: usize = 128 << 10;

/// Serves one connection until the client disconnects or the `end`. After the `end` no more requests are accepted.
///
/// Before an upgrade the last message is `daemon.closing`. It counts the answered requests, so that the client can send the others to the
/// next instance.
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
                "cannot watch a connection for hang-up"
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

/// Events other than the readiness of the socket and the end of calls. Each future is polled only when it has been woken.
type ControlEvents = FuturesUnordered<BoxFuture<'static, ControlEvent>>;

enum ControlEvent {
    /// The client has disconnected.
    HungUp,
    /// The daemon is stopping: no more requests are accepted.
    Stopped,
    /// The daemon is about to be upgraded.
    Upgrading,
}

/// Charges the budget, up to `bytes` in all.
fn take(room: &mut Option<Permit>, budget: &Arc<Budget>, bytes: usize) -> Result<(), Shortage> {
    match room {
        Some(room) => room.grow_to(bytes),
        None => budget.try_take(bytes).map(|taken| *room = Some(taken)),
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
    /// Requests whose calls have not ended. The answer is `None` if it was sent another way.
    in_flight: FuturesUnordered<BoxFuture<'static, EndedRequest>>,
    /// Number of calls in `in_flight`.
    calls: usize,
    /// Bytes read and not handled yet. The first `scanned` of them contain no line end.
    input: Vec<u8>,
    scanned: usize,
    /// The permit for `input`.
    input_room: Option<Permit>,
    /// Bytes that could not be charged for the first line of the input; 0 if none are missing.
    short_of: usize,
    /// Whether the input has complete lines that a limit keeps from being handled.
    has_unhandled: bool,
    /// Time since which the current line is incomplete although the client could have completed it.
    partial_since: Option<Instant>,
    /// Number of handled requests; a batch counts as one.
    requests: u64,
    /// Number of the first request that was refused because of an upgrade. It is not answered: the client sends it to the next instance.
    unbegun: Option<u64>,
    /// Bytes to write; the first `written` of them have been written.
    output: Vec<u8>,
    written: usize,
    /// Permits for long answers and notifications in `output`.
    output_room: Vec<Permit>,
    reading: ReadState,
    closing: Closing,
    upgrading: CancellationToken,
}

/// A request whose calls have ended.
struct EndedRequest {
    /// Number of the request on this connection, from 1.
    number: u64,
    /// Number of calls in the request.
    calls: usize,
    /// `None` if the answer was sent another way, or none is wanted.
    answer: Option<Answer>,
    /// The permit for the request.
    room: Permit,
}

/// Whether the connection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    On,
    /// The daemon has stopped reading.
    Stopped,
    /// The client closed its sending side, or sent a line longer than `frame_max`.
    Over,
}

/// Progress of closing the connection for an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// No more is read, and the requests already read are answered.
    Answering,
    /// `daemon.closing` has been sent.
    Sent,
}

impl Session {
    async fn run(mut self, mut stream: UnixStream, mut outsides: ControlEvents) {
        let (mut reader, writer) = stream.split();
        let mut in_use = None;
        loop {
            // Answers that are ready are written together with earlier ones, in one write and one wake-up. `OUTPUT_HIGH` limits them,
            // because they may be many and long, and each would delay the others here.
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
            // If the budget for more of a line is used up, waits at most as long as the line may take.
            let wanted = self.input_wanted();
            let budget = self.connection.budget().clone();
            let has_input_room = may_handle && take(&mut self.input_room, &budget, wanted).is_ok();
            if has_input_room {
                self.reserve_input(wanted);
            }
            if !may_handle && self.partial_since.is_some() {
                // The client cannot complete a line that is not being read.
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
                // Polled even if nothing can be written: a handler that is not polled may hold what others wait for.
                Some(ended) = self.in_flight.next(), if !self.in_flight.is_empty() => self.push_answer(ended),
                item = self.subscriptions.next(), if room && !is_silent => self.push_item(item),
                () = budget.wait_for(|| take(&mut self.input_room, &budget, wanted).ok()), if may_handle && !has_input_room => {}
                _ = budget.take_some(self.short_of, self.short_of), if self.short_of > 0 => self.short_of = 0,
                read = reader.read_buf(&mut self.input), if has_input_room => {
                    if in_use.is_none() {
                        in_use = self.connection.begin_use();
                    }
                    match read {
                        // The connection was closed for being idle before this input arrived.
                        _ if in_use.is_none() => return,
                        Ok(0) => {
                            self.reading = ReadState::Over;
                            // A last line without line end is handled like any other; if it is incomplete, the client gets an error.
                            let last = std::mem::take(&mut self.input);
                            let room = self.room_for(&last).unwrap_or_else(|| {
                                Err(ErrorKind::Overloaded.error("the memory limit is reached; send the request again later"))
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
                    // Written once. There is no wait for a client that does not read.
                    self.flush(&writer);
                    return;
                }
            }
        }
    }

    /// Returns whether there is no call, no subscription, and nothing to handle or write.
    fn is_idle(&self) -> bool {
        let is_quiet = self.in_flight.is_empty() && self.subscriptions.is_silent();
        is_quiet && !self.has_unhandled && self.output.is_empty()
    }

    /// Appends the messages that subscriptions have ready, then `daemon.closing`. Subscriptions with further messages end here.
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

    /// Returns whether one more request may be handled: the output and the calls in flight are below their limits.
    fn has_room(&self) -> bool {
        self.output.len() - self.written < OUTPUT_HIGH
            && self.calls < self.service.bounds.in_flight_max
            && self.short_of == 0
    }

    /// Returns the bytes to charge for the input before one more read.
    fn input_wanted(&self) -> usize {
        if self.input.len() + READ_SIZE <= INPUT_SMALL {
            INPUT_SMALL
        } else {
            self.service.bounds.one_frame()
        }
    }

    /// Reserves buffer space for one more read, up to the charged bytes if possible.
    fn reserve_input(&mut self, room: usize) {
        let length = self.input.len();
        if self.input.capacity() - length < READ_SIZE {
            let least = length + READ_SIZE;
            let capacity = (2 * length).min(room).max(least);
            self.input.reserve_exact(capacity - length);
        }
    }

    /// Writes what can be written without waiting. Returns false if the connection is broken.
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

    /// Handles the complete lines of the input, as far as the limits allow.
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
                "the line exceeds {} bytes (frame_max); send large input in pieces",
                self.service.bounds.frame_max
            );
            self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
            self.input = Vec::new();
            self.reading = ReadState::Over;
        }
    }

    /// Charges a line for the time that it is handled, if necessary out of the input's permit. Returns `None` if the line must wait for a
    /// request in flight, and an error if there is none to wait for.
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

    /// Appends the answer of a request, if it has one. A long answer is moved to the output, because a copy would use its length in memory
    /// again.
    fn push_answer(&mut self, mut ended: EndedRequest) {
        self.calls -= ended.calls;
        self.short_of = 0;
        let Some(Answer { json, permit }) = ended.answer else {
            return;
        };
        if self.is_left_to_the_next(ended.number, &json) {
            return;
        }
        // The permit of its calls covers the answer until it is written.
        ended.room.shrink_to(ended.calls * CALL_BYTES);
        self.output_room.push(ended.room);
        self.output_room.extend(permit);
        if self.output.is_empty() && json.get().len() > KEEP_CAPACITY {
            let mut line = Box::<str>::from(json).into_string().into_bytes();
            // Exactly one byte: growing to the next power of two would use the memory of a copy.
            line.reserve_exact(1);
            line.push(b'\n');
            self.output = line;
        } else {
            push(&mut self.output, json.get().as_bytes());
        }
    }

    /// Appends the message or line of a subscription.
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

    /// Reports whether a message refuses request `number` because of an upgrade. The refused request was not begun, and the client sends it
    /// to the next instance. It counts as not read, and so do later requests without an answer.
    fn is_left_to_the_next(&mut self, number: u64, message: &RawValue) -> bool {
        if !self.upgrading.is_cancelled() || !is_refusal(message) {
            return false;
        }
        self.unbegun = Some(self.unbegun.map_or(number, |first| first.min(number)));
        true
    }

    /// Appends a complete line. If the output is empty, the line is moved instead of copied.
    fn push_line(&mut self, line: Line) {
        self.output_room.extend(line.permit);
        if self.output.is_empty() {
            self.output = line.bytes;
        } else {
            self.output.extend_from_slice(&line.bytes);
        }
    }
}

/// Returns whether a message is an error of kind `draining`.
fn is_refusal(message: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        code: i32,
    }
    // A batch is an array and does not match.
    serde_json::from_str::<Answer>(message.get())
        .is_ok_and(|answer| answer.error.code == ErrorKind::Draining.code())
}
