//! Parses a JSON-RPC message, which is a request or a batch, and calls its methods.
//!
//! Both framings use this module, so both give the same answers and errors.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jsonrpsee::core::server::{ConnectionId as RpcConnectionId, MethodCallback, SubscriptionMethod};
use jsonrpsee::types::{Id, Params};
use jsonrpsee::{Extensions, Methods};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::budget::{Budget, Permit};
use super::connection::{Connection, overloaded};
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::ErrorObject;

/// Limits of one connection; `bytes_max` is the limit of all connections together.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Maximum length of a message from the client, in bytes.
    pub frame_max: usize,
    /// Maximum number of bytes that a connection may hold.
    pub connection_bytes_max: usize,
    /// Maximum number of bytes that all connections together may hold, in addition to the share of each.
    pub bytes_max: usize,
    /// Time in which a client must complete a message that it has begun.
    pub request_timeout: Duration,
    /// Maximum number of calls in flight on a connection. At the limit nothing is read until one ends.
    pub in_flight_max: usize,
    /// Maximum number of calls in a batch.
    pub batch_max: usize,
    /// Maximum number of subscriptions of a connection.
    pub subscriptions_max: u32,
}

/// Bytes charged for a call in flight, in addition to its request. They cover a short answer.
pub(super) const CALL_BYTES: usize = 4 << 10;
/// Minimum length of a useful request, in bytes.
const CALL_LENGTH_MIN: usize = 32;

impl Bounds {
    /// Returns the bytes charged for the longest request, while it is read and handled.
    pub(super) fn one_frame(&self) -> usize {
        self.frame_max + (self.batch_max + 16) * CALL_BYTES
    }

    /// Returns the maximum number of calls in a message.
    fn calls(&self, message: &[u8]) -> usize {
        match message.trim_ascii_start().first() {
            Some(b'[') => self.calls_max(message.len()),
            _ => 1,
        }
    }

    fn calls_max(&self, length: usize) -> usize {
        (length / CALL_LENGTH_MIN).clamp(1, self.batch_max)
    }

    /// Returns the maximum number of bytes charged for the calls of a message of this length, in addition to its own bytes.
    pub(super) fn calls_of(&self, length: usize) -> usize {
        self.calls_max(length) * CALL_BYTES
    }

    /// Returns the bytes charged for a message while it is handled.
    pub(super) fn cost(&self, message: &[u8]) -> usize {
        message.len() + self.calls(message) * CALL_BYTES
    }
}

/// Answers the most frequent reads without the general dispatch. The answer must be the same as that of the general dispatch.
pub trait FastPath: Send + Sync {
    /// Appends the result as JSON, or returns false to leave the call to the general dispatch.
    fn answer(&self, method: &str, params: Option<&RawValue>, out: &mut Vec<u8>) -> bool;
}

/// State shared by all connections.
pub struct Service {
    /// The handlers, by method name.
    pub methods: Methods,
    /// Answers the most frequent reads.
    pub fast: Box<dyn FastPath>,
    /// Limits of each connection.
    pub bounds: Bounds,
}

/// An answer that is not available yet. `None` if the answer was sent another way, or none is wanted.
pub(super) type PendingAnswer = BoxFuture<'static, Option<Answer>>;

/// Calls in flight: their answer and their number.
pub(super) struct Pending {
    pub(super) answer: PendingAnswer,
    pub(super) calls: usize,
}

/// An answer. `permit` covers the bytes that exceed those charged for its call, until it is written.
pub(super) struct Answer {
    pub(super) json: Box<RawValue>,
    pub(super) permit: Option<Permit>,
}

impl Answer {
    /// Charges an answer to the budget. If that fails, the answer becomes an error.
    fn new(id: &Id<'_>, json: Box<RawValue>, budget: &Arc<Budget>) -> Self {
        let Some(beyond) = json.get().len().checked_sub(CALL_BYTES) else {
            return Self { json, permit: None };
        };
        match budget.try_take(beyond) {
            Ok(permit) => Self {
                json,
                permit: Some(permit),
            },
            Err(shortage) => Self::small(error_json(id, overloaded(shortage))),
        }
    }

    fn small(json: Box<RawValue>) -> Self {
        Self { json, permit: None }
    }
}

/// The subscriptions of a connection.
pub(super) trait Subscriptions {
    /// Starts a subscription. Its answer and its notifications go through its own channel.
    fn subscribe(&mut self, request: SubscriptionRequest<'_>) -> Result<PendingAnswer, ErrorObject>;

    /// Ends the subscription that the parameters name, if `method` is its unsubscribe request. Returns whether there was one.
    fn unsubscribe(&mut self, method: &'static str, params: &Params<'_>) -> Result<bool, ErrorObject>;
}

/// A request to start a subscription.
pub(super) struct SubscriptionRequest<'a> {
    pub(super) id: Id<'a>,
    pub(super) method: &'static str,
    pub(super) params: Params<'a>,
    pub(super) handler: SubscriptionMethod<'static>,
    /// The connection's id in jsonrpsee.
    pub(super) rpc_connection: RpcConnectionId,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) extensions: Extensions,
}

/// For a framing that cannot carry notifications.
#[derive(Debug)]
pub(super) struct NoSubscriptions;

impl NoSubscriptions {
    fn refusal() -> ErrorObject {
        ErrorKind::InvalidRequest.error(
            "HTTP does not support subscriptions; send newline-delimited JSON over the same socket, \
             or read a job's output with GET /jobs/ID/output",
        )
    }
}

impl Subscriptions for NoSubscriptions {
    fn subscribe(&mut self, _request: SubscriptionRequest<'_>) -> Result<PendingAnswer, ErrorObject> {
        Err(Self::refusal())
    }

    fn unsubscribe(&mut self, _method: &'static str, _params: &Params<'_>) -> Result<bool, ErrorObject> {
        Err(Self::refusal())
    }
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

/// Parses a request. Valid UTF-8 is parsed as text, because it is then validated once instead of for each string.
fn request(message: &[u8]) -> serde_json::Result<Request<'_>> {
    match std::str::from_utf8(message) {
        Ok(text) => serde_json::from_str(text),
        // serde_json reports the error and its position.
        Err(_) => serde_json::from_slice(message),
    }
}

/// Deserializes an id that is present. `null` is an id too; only a request without id wants no answer.
fn given<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Parses an id. This costs more than the rest of a request, so the fast path omits it.
fn parsed(id: &RawValue) -> Result<Id<'_>, ErrorObject> {
    serde_json::from_str(id.get()).map_err(|_| {
        ErrorKind::InvalidRequest.error("not a JSON-RPC request: id must be a string, an integer or null")
    })
}

/// Returns whether an id can be copied to the answer unchanged.
fn is_plain(id: &RawValue) -> bool {
    match id.get().as_bytes() {
        [b'"', text @ .., b'"'] => !text.contains(&b'\\'),
        // A number of fewer than 20 digits fits in 64 bits.
        digits => digits.len() < 20 && digits.iter().all(u8::is_ascii_digit),
    }
}

/// The part of an invalid request that is needed to answer it.
#[derive(Deserialize)]
struct PartialRequest<'a> {
    #[serde(borrow)]
    id: Option<Id<'a>>,
}

/// Calls methods for one connection.
pub(super) struct Calls<'a, S> {
    pub(super) service: &'a Service,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) subscriptions: &'a mut S,
    /// Buffer for answers that are available at once, one per line.
    pub(super) output: &'a mut Vec<u8>,
}

impl<S: Subscriptions> Calls<'_, S> {
    /// Handles a message. Returns the pending answer, if it is not available at once.
    pub(super) fn message(mut self, message: &[u8]) -> Option<Pending> {
        let calls = self.service.bounds.calls(message);
        let message = message.trim_ascii();
        if !message.is_empty() {
            self.connection.note_request();
        }
        let answer = match message.first() {
            None => None,
            Some(b'[') => self.batch(message),
            Some(_) => match request(message) {
                Ok(request) => self.call(&request),
                Err(error) => {
                    let (id, refusal) = malformed(message, &error);
                    self.refuse(&id, refusal);
                    None
                }
            },
        };
        answer.map(|answer| Pending { answer, calls })
    }

    /// Starts a call. An answer that is available at once is appended to the output.
    fn call(&mut self, request: &Request<'_>) -> Option<PendingAnswer> {
        // In JSON-RPC a request without id wants no answer. No method is useful without its answer, so it is not executed.
        let raw = request.id?;
        let is_ours = request.jsonrpc == Some("2.0");
        let admitted = self.connection.admit(&request.method);
        if is_ours && admitted.is_ok() && is_plain(raw) && self.fast(raw, &request.method, request.params) {
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
        if let Err(error) = admitted {
            self.refuse(&id, error);
            return None;
        }
        let Some((name, callback)) = self.service.methods.method_with_name(&request.method) else {
            self.refuse(&id, unknown_method(&request.method));
            return None;
        };
        let mut extensions = Extensions::new();
        extensions.insert(self.connection.clone());
        let connection = RpcConnectionId(usize::try_from(self.connection.id().0).unwrap_or(usize::MAX));
        extensions.insert(connection);
        let params = Params::new(request.params.map(RawValue::get));
        match callback {
            MethodCallback::Sync(handler) => {
                let answer = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    handler(id.clone(), params, usize::MAX, extensions)
                }));
                match answer {
                    Ok(answer) => push(self.output, answer.as_json().get().as_bytes()),
                    Err(_) => self.refuse(&id, panicked(name)),
                }
                None
            }
            MethodCallback::Unsubscription(_) => {
                match self.subscriptions.unsubscribe(name, &params) {
                    Ok(ended) => push(self.output, ended_json(&id, ended).get().as_bytes()),
                    Err(error) => self.refuse(&id, error),
                }
                None
            }
            MethodCallback::Async(handler) => {
                let id = id.into_owned();
                // The handler runs code before it returns its future, and that code may panic too.
                let handler = handler.clone();
                let params = params.into_owned();
                let submission = id.clone();
                let budget = self.connection.budget().clone();
                let call = async move { handler(id, params, connection, usize::MAX, extensions).await };
                Some(
                    AssertUnwindSafe(call)
                        .catch_unwind()
                        .map(move |answer| match answer {
                            Ok(answer) => Some(Answer::new(&submission, answer.into_json(), &budget)),
                            Err(_) => Some(Answer::small(error_json(&submission, panicked(name)))),
                        })
                        .boxed(),
                )
            }
            MethodCallback::Subscription(handler) => {
                let request = SubscriptionRequest {
                    id: id.clone(),
                    method: name,
                    params,
                    handler: handler.clone(),
                    rpc_connection: connection,
                    budget: self.connection.budget(),
                    extensions,
                };
                match self.subscriptions.subscribe(request) {
                    Ok(pending) => Some(pending),
                    Err(error) => {
                        self.refuse(&id, error);
                        None
                    }
                }
            }
        }
    }

    fn fast(&mut self, id: &RawValue, method: &str, params: Option<&RawValue>) -> bool {
        let start = self.output.len();
        self.output.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        self.output.extend_from_slice(id.get().as_bytes());
        self.output.extend_from_slice(b",\"result\":");
        if self.service.fast.answer(method, params, self.output) {
            self.output.extend_from_slice(b"}\n");
            return true;
        }
        self.output.truncate(start);
        false
    }

    /// Runs a batch, one call after the other, and returns all answers as one.
    fn batch(&mut self, message: &[u8]) -> Option<PendingAnswer> {
        let requests: Vec<&RawValue> = match serde_json::from_slice(message) {
            Ok(requests) => requests,
            Err(error) => {
                let (id, refusal) = malformed(message, &error);
                self.refuse(&id, refusal);
                return None;
            }
        };
        if requests.is_empty() || requests.len() > self.service.bounds.batch_max {
            let text = format!(
                "a batch must have 1 to {} calls (batch_max)",
                self.service.bounds.batch_max
            );
            self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
            return None;
        }
        let mut calls = Vec::with_capacity(requests.len());
        for request in requests {
            // Answers that are available at once are moved from the output to the answer of the batch.
            let start = self.output.len();
            let call = match serde_json::from_str::<Request<'_>>(request.get()) {
                Ok(request) if self.is_subscription(&request.method) => {
                    let refusal = ErrorKind::InvalidRequest.error("a subscription cannot be part of a batch");
                    request.id.map(|id| {
                        let answer = match parsed(id) {
                            Ok(id) => error_json(&id, refusal),
                            Err(error) => error_json(&Id::Null, error),
                        };
                        std::future::ready(Some(Answer::small(answer))).boxed()
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
                calls.push(std::future::ready(Some(Answer::small(answer))).boxed());
            }
        }
        let budget = self.connection.budget().clone();
        Some(
            async move {
                let (mut answers, mut permits) = (Vec::with_capacity(calls.len()), Vec::new());
                for call in calls {
                    if let Some(answer) = call.await {
                        answers.push(answer.json);
                        permits.extend(answer.permit);
                    }
                }
                if answers.is_empty() {
                    return None;
                }
                let json = serde_json::value::to_raw_value(&answers).ok()?;
                drop(answers);
                // The permits of the parts are replaced by that of the whole.
                drop(permits);
                Some(Answer::new(&Id::Null, json, &budget))
            }
            .boxed(),
        )
    }

    fn is_subscription(&self, method: &str) -> bool {
        matches!(
            self.service.methods.method(method),
            Some(MethodCallback::Subscription(_))
        )
    }

    fn refuse(&mut self, id: &Id<'_>, error: ErrorObject) {
        push(self.output, error_json(id, error).get().as_bytes());
    }
}

/// Appends a message and its line end.
pub(super) fn push(output: &mut Vec<u8>, json: &[u8]) {
    output.reserve(json.len() + 1);
    output.extend_from_slice(json);
    output.push(b'\n');
}

/// Encodes an answer with an error.
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

/// Encodes the answer to an unsubscribe request.
fn ended_json(id: &Id<'_>, ended: bool) -> Box<RawValue> {
    let answer = serde_json::json!({"jsonrpc": "2.0", "id": id, "result": ended});
    serde_json::value::to_raw_value(&answer).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn malformed<'a>(message: &'a [u8], error: &serde_json::Error) -> (Id<'a>, ErrorObject) {
    let id = id_of(message);
    let kind = if error.is_syntax() || error.is_eof() {
        ErrorKind::ParseError
    } else {
        ErrorKind::InvalidRequest
    };
    (id, kind.error(format!("not a JSON-RPC request: {error}")))
}

/// Returns the id of a message that is refused before it is parsed.
pub(super) fn id_of(message: &[u8]) -> Id<'_> {
    serde_json::from_slice::<PartialRequest<'_>>(message)
        .ok()
        .and_then(|fragment| fragment.id)
        .unwrap_or(Id::Null)
}

/// Returns the error for a method that does not exist.
pub fn unknown_method(method: &str) -> ErrorObject {
    let shown: String = method.chars().take(80).collect();
    ErrorKind::MethodNotFound.error(format!("method {shown:?} not found; see proto/openrpc.json"))
}

fn panicked(method: &str) -> ErrorObject {
    tracing::error!(method, "handler panicked");
    ErrorKind::Internal.error("internal error in orbd while handling this call; see its log")
}
