//! HTTP/1.1 over the same socket: JSON-RPC by POST, and a job's output as a plain body.
//!
//! ```text
//! POST /                                       JSON-RPC, without subscriptions
//! GET /jobs/ID/output?stream=stdout&from=0     bytes, as they come, until the job has ended
//! GET /metrics/export?format=csv               what is recorded
//! ```

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jsonrpsee::types::Id;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::budget::{Budget, Permit};
use super::connection::{Connection, ConnectionEnd, InUse, overloaded};
use super::errors::ErrorKind;
use super::export;
use super::request::{Calls, NoSubscriptions, Service, error_json};
use super::server::Server;
use super::types::ErrorObject;
use crate::dispatcher::JobState;
use crate::job::JobId;
use crate::spool::{Batch, Chunk, Reader, Spool, Stream};
use crate::sys;

/// What an answer says that refuses everything else.
pub(super) const SPOKEN: &str = "this socket takes newline-delimited JSON-RPC (calls and subscriptions), or HTTP/1.1: \
    POST / (JSON-RPC calls), GET /jobs/ID/output, GET /metrics/export";
/// Bytes that hyper reads ahead, and bytes of answers that it keeps unwritten. A head must fit.
const BUFFER_MAX: usize = 64 << 10;
/// Bytes of an answer handed to hyper at once. While there are more, the connection is in use.
const ANSWER_PIECE: usize = 64 << 10;
/// Bytes of output that are read for a body at once.
const PIECE_MAX: usize = 256 << 10;
/// The same while they come one by one, without room in the budget of the connection.
const PIECE_SMALL: usize = 16 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves HTTP connections.
pub struct Http {
    /// What a body is made from.
    pub server: Arc<Server>,
    /// What a POST is answered by.
    pub service: Arc<Service>,
}

impl Http {
    /// Serves one connection until it is closed. The request that is being answered at the `end` is the last one.
    pub(super) async fn serve(&self, stream: UnixStream, connection: Arc<Connection>, end: &ConnectionEnd) {
        let mut hang_up = match sys::HangUp::watch(&stream) {
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
        let service =
            service_fn(async |request| Ok::<_, Infallible>(self.answer(request, &connection).await));
        let mut http = hyper::server::conn::http1::Builder::new();
        // A client that closes its sending side still waits for its answer; a full hang-up is seen below.
        http.half_close(true);
        http.max_buf_size(BUFFER_MAX);
        // hyper also closes a connection on which no request begins for this long.
        http.timer(TokioTimer::new())
            .header_read_timeout(self.service.bounds.request_timeout);
        let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut is_stopping = false;
        let served = loop {
            tokio::select! {
                served = &mut served => break served,
                () = hang_up.observed() => return,
                () = end.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    served.as_mut().graceful_shutdown();
                }
                () = end.upgrading.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    served.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(
                client = %connection.name(),
                pid = connection.pid(),
                %error,
                "an HTTP connection ended"
            );
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, connection: &Arc<Connection>) -> Response<Body> {
        let is_call = request.method() == Method::POST && request.uri().path() == "/";
        let message = if is_call {
            // Until a request is whole, its connection may be closed for another one.
            Some(self.message(request.body_mut(), connection.budget()).await)
        } else {
            None
        };
        let Some(in_use) = connection.begin_use() else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the connection was closed for being idle; connect again",
            );
        };
        if request.headers().contains_key(header::UPGRADE) {
            return plain(StatusCode::BAD_REQUEST, &format!("no upgrade: {SPOKEN}"));
        }
        let path = request.uri().path();
        if let Some(rest) = path.strip_prefix("/jobs/") {
            if let Err(error) = connection.admit("job.output") {
                return refusal(StatusCode::SERVICE_UNAVAILABLE, error, in_use);
            }
            connection.note_request();
            let query = request.uri().query();
            return job_output(&self.server, request.method(), rest, query, connection, in_use).await;
        }
        if path == export::PATH {
            if let Err(error) = connection.admit("metrics.export") {
                return refusal(StatusCode::SERVICE_UNAVAILABLE, error, in_use);
            }
            connection.note_request();
            return metrics_export(&self.server, request.method(), request.uri().query(), in_use).await;
        }
        match (message, path) {
            (Some(Ok((message, permit))), _) => self.post(message, permit, connection, in_use).await,
            (Some(Err((status, error))), _) => refusal(status, error, in_use),
            (None, "/") => {
                let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, &format!("only POST: {SPOKEN}"));
                response
                    .headers_mut()
                    .insert(header::ALLOW, HeaderValue::from_static("POST"));
                response
            }
            _ => plain(StatusCode::NOT_FOUND, &format!("nothing at {path}: {SPOKEN}")),
        }
    }

    /// Answers a message of JSON-RPC. What it comes to is an answer with status 200, also when that is an error.
    async fn post(
        &self,
        message: Vec<u8>,
        mut permit: Permit,
        connection: &Arc<Connection>,
        in_use: InUse,
    ) -> Response<Body> {
        // The rest is not needed to handle it.
        permit.shrink_to(self.service.bounds.cost(&message));
        let (mut output, mut room) = (Vec::new(), None);
        let calls_bytes = self.service.bounds.cost(&message) - message.len();
        let calls = Calls {
            service: &self.service,
            connection,
            subscriptions: &mut NoSubscriptions,
            output: &mut output,
        };
        let pending = calls.message(&message);
        drop(message);
        if let Some(pending) = pending
            && let Some(answer) = pending.answer.await
        {
            output = Box::<str>::from(answer.json).into_string().into_bytes();
            output.push(b'\n');
            room = answer.permit;
        }
        // An answer takes the room of its call until it is written.
        permit.shrink_to(calls_bytes);
        let room = [Some(permit), room];
        if output.is_empty() {
            // Nothing in it wanted an answer.
            let mut response = Response::new(Answer::body(output, room, in_use));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        json(output, room, in_use)
    }

    /// Reads a body to its end, in time, with the room that it takes.
    async fn message(&self, body: &mut Incoming, budget: &Arc<Budget>) -> Result<Message, Refused> {
        let timeout = self.service.bounds.request_timeout;
        tokio::time::timeout(timeout, self.read(body, budget))
            .await
            .unwrap_or_else(|_| {
                let text = format!("the body was not complete within {timeout:?} (request_timeout)");
                let error = ErrorKind::InvalidRequest.error(text);
                Err((StatusCode::REQUEST_TIMEOUT, error))
            })
    }

    async fn read(&self, body: &mut Incoming, budget: &Arc<Budget>) -> Result<Message, Refused> {
        let most = self.service.bounds.frame_max;
        let too_large = || {
            let text = format!("a request has at most {most} bytes (frame_max); send large input in pieces");
            (
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::InvalidRequest.error(text),
            )
        };
        if body.size_hint().lower() > most as u64 {
            return Err(too_large());
        }
        let mut message = Vec::new();
        let permit = self.room(budget, body.size_hint().exact()).await?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let text = format!("the body was cut short: {error}");
                (StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest.error(text))
            })?;
            let Ok(bytes) = frame.into_data() else { continue };
            if message.len() + bytes.len() > most {
                return Err(too_large());
            }
            message.extend_from_slice(&bytes);
        }
        if message.trim_ascii().is_empty() {
            let error = ErrorKind::ParseError.error("not a JSON-RPC request: the body is empty");
            return Err((StatusCode::BAD_REQUEST, error));
        }
        Ok((message, permit))
    }

    /// Waits for room for a body and its calls, of the longest if its length is not known: room for a part would keep others from
    /// being completed.
    async fn room(&self, budget: &Arc<Budget>, length: Option<u64>) -> Result<Permit, Refused> {
        let bounds = self.service.bounds;
        let length = length.and_then(|length| usize::try_from(length).ok());
        let bytes = length.map_or(bounds.one_frame(), |length| length + bounds.calls_of(length));
        // Before the time is over that the whole request has.
        let timeout = bounds.request_timeout / 2;
        let taken = budget.wait_for(|| budget.try_take(bytes).ok());
        match tokio::time::timeout(timeout, taken).await {
            Ok(permit) => Ok(permit),
            Err(_) => budget
                .try_take(bytes)
                .map_err(|shortage| (StatusCode::SERVICE_UNAVAILABLE, overloaded(shortage))),
        }
    }
}

/// What an answer takes: the room of its call, and more if it is long.
type Room = [Option<Permit>; 2];
/// A body, and the room that it takes.
type Message = (Vec<u8>, Permit);
/// How a request is refused before it is one of JSON-RPC.
type Refused = (StatusCode, ErrorObject);

/// Returns a whole answer for a connection that hyper does not serve.
pub(super) fn whole(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Makes an answer of plain text.
fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = http_body_util::Full::from(format!("{text}\n")).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Makes an answer of JSON-RPC.
fn json(output: Vec<u8>, room: Room, in_use: InUse) -> Response<Body> {
    let mut response = Response::new(Answer::body(output, room, in_use));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Refuses a request before it was one of JSON-RPC.
fn refusal(status: StatusCode, error: ErrorObject, in_use: InUse) -> Response<Body> {
    let error = error_json(&Id::Null, error);
    let mut response = json(format!("{}\n", error.get()).into_bytes(), [None, None], in_use);
    *response.status_mut() = status;
    response
}

/// A body of known length. hyper takes a piece when the one before is nearly written, so a client that does not read keeps its
/// connection in use.
struct Answer {
    rest: Bytes,
    _room: Room,
    _in_use: InUse,
}

impl Answer {
    fn body(bytes: Vec<u8>, room: Room, in_use: InUse) -> Body {
        let answer = Self {
            rest: bytes.into(),
            _room: room,
            _in_use: in_use,
        };
        answer.boxed_unsync()
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(ANSWER_PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Which bytes of a job's output are wanted.
struct Wanted {
    stream: Option<Stream>,
    offset: u64,
}

fn wanted(query: Option<&str>) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        stream: None,
        offset: 0,
    };
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        match pair.split_once('=') {
            Some(("stream", "stdout")) => wanted.stream = Some(Stream::Stdout),
            Some(("stream", "stderr")) => wanted.stream = Some(Stream::Stderr),
            Some(("stream", "both")) => wanted.stream = None,
            Some(("offset", number)) => {
                wanted.offset = number
                    .parse()
                    .map_err(|_| format!("offset: {number:?} is not a byte offset"))?;
            }
            _ => {
                return Err(format!(
                    "{pair:?}: give stream=stdout|stderr|both and offset=BYTES"
                ));
            }
        }
    }
    Ok(wanted)
}

async fn job_output(
    server: &Server,
    method: &Method,
    path: &str,
    query: Option<&str>,
    connection: &Connection,
    in_use: InUse,
) -> Response<Body> {
    if method != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    let Some(id) = path
        .strip_suffix("/output")
        .and_then(|id| id.parse().ok())
        .map(JobId)
    else {
        return plain(StatusCode::NOT_FOUND, "there is /jobs/ID/output");
    };
    let wanted = match wanted(query) {
        Ok(wanted) => wanted,
        Err(text) => return plain(StatusCode::BAD_REQUEST, &text),
    };
    let Some(job) = server.dispatcher.job(id).await else {
        return plain(StatusCode::NOT_FOUND, "no such job, or it ended too long ago");
    };
    if job.output_gone > 0 {
        return plain(StatusCode::GONE, "the output is no longer kept");
    }
    let Some(spool) = job.spool else {
        return plain(StatusCode::NOT_FOUND, "this job has no output");
    };
    if wanted.offset > spool.end() {
        return plain(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &format!("the job wrote {} bytes", spool.end()),
        );
    }
    let output = Output {
        reader: spool.follow(wanted.offset),
        spool,
        stream: wanted.stream,
        ready: Vec::new(),
        room: None,
        budget: connection.budget().clone(),
        _held: (in_use, job.state),
    };
    let pieces = stream::unfold(output, async |mut output: Output| {
        output.next().await.map(|piece| (piece.map(Frame::data), output))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    response
}

async fn metrics_export(
    server: &Server,
    method: &Method,
    query: Option<&str>,
    in_use: InUse,
) -> Response<Body> {
    if method != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    let export = match export::begin(server, query).await {
        Ok(export) => export,
        Err(refusal) => return plain(refusal.status, &refusal.message),
    };
    let frames = export.body.map(move |piece| {
        // The connection is in use until the body ends.
        let _in_use = &in_use;
        piece.map(Frame::data)
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(export.media_type));
    response
}

/// A job's output as it leaves in a body.
struct Output {
    reader: Reader,
    spool: Spool,
    stream: Option<Stream>,
    /// Pieces that were read, the next one last.
    ready: Vec<Bytes>,
    /// What they take.
    room: Option<Permit>,
    budget: Arc<Budget>,
    /// While the state is held, the dispatcher knows that the output is read; it is not read itself.
    _held: (InUse, watch::Receiver<JobState>),
}

impl Output {
    /// Returns the next piece; `None` at the end. A gap breaks the body off: silence would be a lie.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop() {
                return Some(Ok(bytes));
            }
            self.room = None;
            if self.reader.position() < self.spool.end() {
                self.room = Some(self.budget.take_some(PIECE_SMALL, PIECE_MAX).await);
            }
            let most = self.room.as_ref().map_or(PIECE_SMALL, Permit::bytes);
            match self.reader.next(most).await {
                Ok(Batch::Chunks(chunks)) => {
                    let wanted = |chunk: &Chunk| self.stream.is_none_or(|only| only == chunk.stream);
                    let wanted = chunks.into_iter().filter(wanted).map(|chunk| chunk.bytes);
                    self.ready = wanted.rev().collect();
                }
                Ok(Batch::Gap { from, to }) => {
                    let text = format!("bytes {from} to {to} are no longer kept");
                    return Some(Err(io::Error::other(text)));
                }
                Ok(Batch::End) => return None,
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
    }
}
