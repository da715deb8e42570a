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

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use jsonrpsee::types::Id;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::WriteHalf;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::errors::ErrorKind;
use super::request::{Calls, PendingAnswer, Service, error_json, push};
use super::subscriptions::{Heard, LineSubscriptions};
use super::types::ErrorObject;
use crate::sys;

/// Unwritten output at which a connection stops reading, handling what it has read, and taking subscription messages.
const OUTPUT_HIGH: usize = 64 << 10;
/// Room made for each read.
const READ_SIZE: usize = 16 << 10;
/// Buffers larger than this are given back once they are empty, so that one large answer is not kept for ever.
const KEEP_CAPACITY: usize = 128 << 10;

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
        subscriptions: LineSubscriptions::new(service.bounds.subscriptions_max),
        service,
        connection,
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
    subscriptions: LineSubscriptions,
    /// Calls that have not ended. `None` is the end of a call whose answer went another way.
    in_flight: FuturesUnordered<PendingAnswer>,
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
            if !is_reading && self.in_flight.is_empty() && pending == 0 && self.subscriptions.is_silent() {
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
                            true if self.subscriptions.is_empty() => Rest::Wanted,
                            true => Rest::Impossible,
                            false => Rest::No,
                        };
                        outsides.push(rest_changed(rest).boxed());
                    }
                },
                ready = writer.writable(), if pending > 0 => if ready.is_err() { return None },
                Some(answer) = self.in_flight.next(), if !self.in_flight.is_empty() => self.push_answer(answer),
                heard = self.subscriptions.next(), if room && !self.subscriptions.is_silent() => match heard {
                    Some(Heard::Message(message)) => push(&mut self.output, message.get().as_bytes()),
                    Some(Heard::Line(line)) => self.push_line(line),
                    Some(Heard::End(_)) | None => {}
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
        let is_quiet = self.in_flight.is_empty() && self.subscriptions.is_silent();
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
        let calls = Calls {
            service: &self.service,
            connection: &self.connection,
            subscriptions: &mut self.subscriptions,
            output: &mut self.output,
        };
        if let Some(answer) = calls.message(line) {
            self.in_flight.push(answer);
        }
        if self.rests == Rest::Wanted && !self.subscriptions.is_empty() {
            self.rests = Rest::Impossible;
        }
    }

    fn refuse(&mut self, id: &Id<'_>, error: ErrorObject) {
        let answer = error_json(id, error);
        push(&mut self.output, answer.get().as_bytes());
    }

    /// Pushes what a call came to, if it is to be answered. It is ours to keep: a long answer becomes the output, where a copy
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
            push(&mut self.output, answer.get().as_bytes());
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
