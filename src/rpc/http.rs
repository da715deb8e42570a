//! HTTP over the same socket: JSON-RPC by POST, WebSocket by upgrade (both jsonrpsee's own server), and a job's output as a plain
//! body.
//!
//! ```text
//! POST /                                       JSON-RPC
//! GET / with an upgrade                        WebSocket
//! GET /jobs/ID/output?stream=stdout&from=0     bytes, as they come, until the job has ended
//! ```

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonrpsee::Methods;
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, ServerBuilder, ServerConfig, ServerHandle, StopHandle, TowerServiceBuilder,
    stop_channel,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tower::Service;
use tower::layer::util::Identity;

use super::connection::{Connection, InUse};
use super::lines::Bounds;
use super::server::Server;
use crate::job::JobId;
use crate::spool::{Batch, Reader, Stream};
use crate::sys;

/// Messages of a WebSocket session between a handler and the socket. Each may hold 64 KiB of output.
const MESSAGES_MAX: u32 = 16;
/// Bytes of output in one piece of a body.
const PIECE_MAX: usize = 256 << 10;
/// After so many bytes others go first, however small the reads were that brought them.
const READ_AT_ONCE: usize = 4 << 10;

/// Serves HTTP connections.
pub struct Http {
    server: Arc<Server>,
    methods: Methods,
    builder: TowerServiceBuilder<Identity, Identity>,
    stop: StopHandle,
}

impl Http {
    /// Prepares jsonrpsee's server; the handle stops its WebSocket sessions.
    pub fn new(server: Arc<Server>, methods: Methods, bounds: Bounds) -> (Self, ServerHandle) {
        let frame_max = u32::try_from(bounds.frame_max).unwrap_or(u32::MAX);
        let config = ServerConfig::builder()
            .max_request_body_size(frame_max)
            .max_response_body_size(u32::MAX)
            .max_subscriptions_per_connection(bounds.subscriptions_max)
            .set_batch_request_config(BatchRequestConfig::Limit(
                u32::try_from(bounds.batch_max).unwrap_or(u32::MAX),
            ))
            .set_message_buffer_capacity(MESSAGES_MAX)
            // Connections are bounded where they are accepted: this bound counts HTTP requests, not connections.
            .max_connections(u32::MAX)
            .build();
        let builder = ServerBuilder::with_config(config).to_service_builder();
        let (stop, handle) = stop_channel();
        (
            Self {
                server,
                methods,
                builder,
                stop,
            },
            handle,
        )
    }

    /// Serves one connection until it is closed, also after it became a WebSocket session.
    pub async fn serve(&self, stream: UnixStream, connection: Arc<Connection>, bounds: Bounds) {
        let id = u32::try_from(connection.id().0 & u64::from(u32::MAX)).unwrap_or_default();
        // Built once per connection, as jsonrpsee counts each as one.
        let rpc = self
            .builder
            .clone()
            .connection_id(id)
            .build(self.methods.clone(), self.stop.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            let mut rpc = rpc.clone();
            let (server, connection) = (self.server.clone(), connection.clone());
            async move {
                let Some(in_use) = connection.begin_use() else {
                    return Ok(plain(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "closed for being idle; connect again",
                    ));
                };
                if let Some(rest) = request.uri().path().strip_prefix("/jobs/") {
                    return Ok::<_, Infallible>(
                        job_output(&server, request.method(), rest, request.uri().query(), in_use).await,
                    );
                }
                request.extensions_mut().insert(connection);
                let answer = rpc.call(request).await;
                Ok(answer
                    .unwrap_or_else(|error| plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())))
            }
        });
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
        let (open, closed) = oneshot::channel();
        let session = connection.clone();
        let mut http = hyper::server::conn::http1::Builder::new();
        // A client that closes its sending side still waits for its answer; a full hang-up is seen below.
        http.half_close(true);
        http.max_buf_size(bounds.frame_max.clamp(64 << 10, 1 << 20));
        let served = http
            .serve_connection(
                TokioIo::new(Polite::new(stream, connection.clone(), open)),
                service,
            )
            .with_upgrades();
        tokio::select! {
            served = served => {
                if let Err(error) = served {
                    tracing::debug!(
                        client = %connection.name(),
                        pid = connection.pid(),
                        %error,
                        "an HTTP connection ended"
                    );
                }
            }
            () = hang_up.seen() => return,
        }
        // An upgraded stream went to a session's own task, and only jsonrpsee knows what that does: it is in use to its end. Nothing is ever sent: this ends when the stream is dropped.
        let _in_use = session.begin_use();
        let _ = closed.await;
    }
}

fn plain(status: StatusCode, text: &str) -> Response<HttpBody> {
    let mut response = Response::new(HttpBody::from(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Which bytes of a job's output are wanted.
struct Wanted {
    stream: Option<Stream>,
    from: u64,
}

fn wanted(query: Option<&str>) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        stream: None,
        from: 0,
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
            Some(("from", number)) => {
                wanted.from = number
                    .parse()
                    .map_err(|_| format!("from: {number:?} is not a byte offset"))?;
            }
            _ => {
                return Err(format!(
                    "{pair:?}: give stream=stdout|stderr|both and from=OFFSET"
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
    in_use: InUse,
) -> Response<HttpBody> {
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
    if wanted.from > spool.end() {
        return plain(
            StatusCode::RANGE_NOT_SATISFIABLE,
            &format!("the job wrote {} bytes", spool.end()),
        );
    }
    let pieces = stream::unfold(
        (spool.follow(wanted.from), Vec::new(), in_use),
        move |(mut reader, mut ready, in_use)| async move {
            loop {
                if let Some(bytes) = ready.pop() {
                    return Some((Ok(Frame::data(bytes)), (reader, ready, in_use)));
                }
                match next(&mut reader, wanted.stream).await {
                    // Taken from the end, so turned around.
                    Ok(Some(mut bytes)) => {
                        bytes.reverse();
                        ready = bytes;
                    }
                    Ok(None) => return None,
                    Err(error) => return Some((Err(error), (reader, ready, in_use))),
                }
            }
        },
    );
    let mut response = Response::new(HttpBody::new(StreamBody::new(pieces)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/octet-stream"),
    );
    response
}

/// Reads the next pieces of the wanted stream; `None` at the end. A gap breaks the body off: silence would be a lie.
async fn next(reader: &mut Reader, stream: Option<Stream>) -> io::Result<Option<Vec<Bytes>>> {
    match reader.next(PIECE_MAX).await {
        Ok(Batch::Chunks(chunks)) => {
            let wanted = |chunk: &crate::spool::Chunk| stream.is_none_or(|only| only == chunk.stream);
            Ok(Some(
                chunks
                    .into_iter()
                    .filter(wanted)
                    .map(|chunk| chunk.bytes)
                    .collect(),
            ))
        }
        Ok(Batch::Gap { from, to }) => Err(io::Error::other(format!(
            "bytes {from} to {to} are no longer kept"
        ))),
        Ok(Batch::End) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// A stream that is not read from while a write to it is blocked, and that lets others go first every few KiB.
///
/// jsonrpsee's WebSocket loop starts a task for each message that it reads; a client that sends without ever reading would make
/// it hold every answer in memory.
struct Polite {
    stream: UnixStream,
    connection: Arc<Connection>,
    write_blocked: bool,
    /// While a write is blocked: an answer is on its way.
    in_use: Option<InUse>,
    /// Bytes read since others went first.
    read: usize,
    reader: Option<Waker>,
    /// Tells by being dropped that the connection is over, whoever held it last.
    _open: oneshot::Sender<()>,
}

impl Polite {
    fn new(stream: UnixStream, connection: Arc<Connection>, open: oneshot::Sender<()>) -> Self {
        Self {
            stream,
            connection,
            write_blocked: false,
            in_use: None,
            read: 0,
            reader: None,
            _open: open,
        }
    }

    fn wrote<T>(&mut self, result: Poll<T>) -> Poll<T> {
        self.write_blocked = result.is_pending();
        if !self.write_blocked {
            self.in_use = None;
        } else if self.in_use.is_none() {
            self.in_use = self.connection.begin_use();
        }
        if !self.write_blocked
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        result
    }
}

impl AsyncRead for Polite {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.write_blocked {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        if self.read >= READ_AT_ONCE {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read += buffer.filled().len() - before;
        result
    }
}

impl AsyncWrite for Polite {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
