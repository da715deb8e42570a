//! HTTP/1.1 over the same socket: JSON-RPC by POST, the output of a job and recorded operations as plain bodies.
//!
//! ```text
//! POST /                                         JSON-RPC, without subscriptions
//! GET /jobs/ID/output?stream=stdout&offset=0     output as it is written, until the job has ended
//! GET /metrics/export?format=csv                 recorded operations
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
use super::context::Server;
use super::export;
use super::request::{Calls, NoSubscriptions, Service, error_json};
use crate::dispatcher::JobState;
use crate::job::JobId;
use crate::spool::{Batch, Chunk, Reader, Spool, Stream};
use crate::sys;
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::ErrorObject;

/// What this socket accepts; appended to the message of each refusal.
pub(super) const SPOKEN: &str = "this socket accepts newline-delimited JSON-RPC (calls and subscriptions), or HTTP/1.1: \
    POST / (JSON-RPC calls), GET /jobs/ID/output, GET /metrics/export";
/// Bytes that hyper reads ahead, and bytes of an answer that it buffers. The head of a request must fit.
const BUFFER_MAX: usize = 64 << 10;
/// Bytes of an answer that are passed to hyper at once. While there are more, the connection is in use.
const ANSWER_PIECE: usize = 64 << 10;
/// Maximum number of bytes of output read for a body at once.
const PIECE_MAX: usize = 256 << 10;
/// The same for output that is sent as it arrives, without a budget permit.
const PIECE_SMALL: usize = 16 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves connections whose first bytes are an HTTP/1.1 request.
pub struct Http {
    /// Used for the plain bodies.
    pub server: Arc<Server>,
    /// Answers the POST requests.
    pub service: Arc<Service>,
}

impl Http {
    /// Serves one connection until it is closed. A request that is being answered at the `end` is the last one.
    pub(super) async fn serve(&self, stream: UnixStream, connection: Arc<Connection>, end: &ConnectionEnd) {
        let mut hang_up = match sys::HangUp::watch(&stream) {
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
        let service =
            service_fn(async |request| Ok::<_, Infallible>(self.answer(request, &connection).await));
        let mut http = hyper::server::conn::http1::Builder::new();
        // A client that closes only its sending side still waits for its answer. A full hang-up is detected below.
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
                "HTTP connection failed"
            );
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, connection: &Arc<Connection>) -> Response<Body> {
        let is_call = request.method() == Method::POST && request.uri().path() == "/";
        let message = if is_call {
            // The connection is not in use before the request is complete, so until then it may be closed to make room for another.
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
            return plain(
                StatusCode::BAD_REQUEST,
                &format!("HTTP upgrades are not supported; {SPOKEN}"),
            );
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
        if path == orbd_proto::export::PATH {
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
                let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, &format!("use POST; {SPOKEN}"));
                response
                    .headers_mut()
                    .insert(header::ALLOW, HeaderValue::from_static("POST"));
                response
            }
            _ => plain(StatusCode::NOT_FOUND, &format!("{path} not found; {SPOKEN}")),
        }
    }

    /// Answers a JSON-RPC message. The status is 200, also for a JSON-RPC error.
    async fn post(
        &self,
        message: Vec<u8>,
        mut permit: Permit,
        connection: &Arc<Connection>,
        in_use: InUse,
    ) -> Response<Body> {
        // Releases what the handling of the message does not need.
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
        // Until the answer is written, the permits of its calls count for it.
        permit.shrink_to(calls_bytes);
        let room = [Some(permit), room];
        if output.is_empty() {
            // All calls were notifications.
            let mut response = Response::new(Answer::body(output, room, in_use));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        json(output, room, in_use)
    }

    /// Reads a complete body within `request_timeout`, and returns it with its permit.
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
            let text = format!("the request exceeds {most} bytes (frame_max); send large input in pieces");
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
                let text = format!("the body is incomplete: {error}");
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

    /// Waits for the budget of a body and its calls. Without a known length this is the budget of the longest body: permits for parts of
    /// bodies could block each other.
    async fn room(&self, budget: &Arc<Budget>, length: Option<u64>) -> Result<Permit, Refused> {
        let bounds = self.service.bounds;
        let length = length.and_then(|length| usize::try_from(length).ok());
        let bytes = length.map_or(bounds.one_frame(), |length| length + bounds.calls_of(length));
        // The wait must end before `request_timeout` of the whole request.
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

/// Permits of an answer: that of its call, and one more if the answer is long.
type Room = [Option<Permit>; 2];
/// A body and its permit.
type Message = (Vec<u8>, Permit);
/// Refusal of a request that was not read as JSON-RPC.
type Refused = (StatusCode, ErrorObject);

/// Returns a complete HTTP answer, for a connection that hyper does not serve.
pub(super) fn whole(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Builds an answer of plain text.
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

/// Builds an answer with a JSON body.
fn json(output: Vec<u8>, room: Room, in_use: InUse) -> Response<Body> {
    let mut response = Response::new(Answer::body(output, room, in_use));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Builds the refusal of a request that was not read as JSON-RPC.
fn refusal(status: StatusCode, error: ErrorObject, in_use: InUse) -> Response<Body> {
    let error = error_json(&Id::Null, error);
    let mut response = json(format!("{}\n", error.get()).into_bytes(), [None, None], in_use);
    *response.status_mut() = status;
    response
}

/// A body of known length. hyper requests a piece when the previous one is almost written, so the connection of a client that does not read
/// stays in use.
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

/// The requested part of a job's output.
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
                    .map_err(|_| format!("offset: must be a number of bytes (got {number:?})"))?;
            }
            _ => {
                return Err(format!(
                    "unknown parameter {pair:?}; use stream=stdout|stderr|both and offset=BYTES"
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
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported here");
    }
    let Some(id) = path
        .strip_suffix("/output")
        .and_then(|id| id.parse().ok())
        .map(JobId)
    else {
        return plain(StatusCode::NOT_FOUND, "not found; use /jobs/ID/output");
    };
    let wanted = match wanted(query) {
        Ok(wanted) => wanted,
        Err(text) => return plain(StatusCode::BAD_REQUEST, &text),
    };
    let Some(job) = server.dispatcher.job(id).await else {
        return plain(
            StatusCode::NOT_FOUND,
            "job not found (unknown id, or expired from history)",
        );
    };
    if job.output_gone > 0 {
        return plain(StatusCode::GONE, "the output is no longer stored");
    }
    let Some(spool) = job.spool else {
        return plain(StatusCode::NOT_FOUND, "this job has no output");
    };
    if wanted.offset > spool.end() {
        return plain(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &format!(
                "offset: must be at most {}, the end of the job's output",
                spool.end()
            ),
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
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is supported here");
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

/// The output of a job, as the source of a body.
struct Output {
    reader: Reader,
    spool: Spool,
    stream: Option<Stream>,
    /// Pieces already read, the next one last.
    ready: Vec<Bytes>,
    /// The permit for `ready`.
    room: Option<Permit>,
    budget: Arc<Budget>,
    /// Not read here. While the receiver exists, the dispatcher knows that the output is being read.
    _held: (InUse, watch::Receiver<JobState>),
}

impl Output {
    /// Returns the next piece; `None` at the end. A gap ends the body with an error, so that missing output is not overlooked.
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
                    let text = format!("bytes {from} to {to} are no longer stored");
                    return Some(Err(io::Error::other(text)));
                }
                Ok(Batch::End) => return None,
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
    }
}
