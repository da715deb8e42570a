//! One message of JSON-RPC, a request or a batch, whatever framing carried it: it is parsed, and its methods are called.
//!
//! Both framings come through here, so both give the same answers and the same errors.

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
use super::errors::ErrorKind;
use super::types::ErrorObject;

/// Limits of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest message that a client may send, in bytes.
    pub frame_max: usize,
    /// Bytes that a connection may hold.
    pub connection_bytes_max: usize,
    /// Bytes that all connections together may hold, beside the share of each.
    pub bytes_max: usize,
    /// How long a client may take to send a message that it has begun.
    pub request_timeout: Duration,
    /// Calls of one connection in flight; beyond it nothing is read until one ends.
    pub in_flight_max: usize,
    /// Calls in one batch.
    pub batch_max: usize,
    /// Subscriptions of one connection.
    pub subscriptions_max: u32,
}

/// What a call in flight takes beside the bytes of its request. A short answer takes no more than that.
pub(super) const CALL_BYTES: usize = 4 << 10;
/// No request that does anything is shorter.
const CALL_LENGTH_MIN: usize = 32;

impl Bounds {
    /// Returns what the longest request takes, while it is read and while it is handled.
    pub(super) fn one_frame(&self) -> usize {
        self.frame_max + (self.batch_max + 16) * CALL_BYTES
    }

    /// Returns how many calls a message may be.
    fn calls(&self, message: &[u8]) -> usize {
        match message.trim_ascii_start().first() {
            Some(b'[') => self.calls_max(message.len()),
            _ => 1,
        }
    }

    fn calls_max(&self, length: usize) -> usize {
        (length / CALL_LENGTH_MIN).clamp(1, self.batch_max)
    }

    /// Returns what the calls of a message of this length may take beside its bytes.
    pub(super) fn calls_of(&self, length: usize) -> usize {
        self.calls_max(length) * CALL_BYTES
    }

    /// Returns what a message takes while it is handled.
    pub(super) fn cost(&self, message: &[u8]) -> usize {
        message.len() + self.calls(message) * CALL_BYTES
    }
}

/// Answers the hottest reads without going through the general dispatch. Must answer what the general dispatch would.
pub trait FastPath: Send + Sync {
    /// Appends the result's JSON for a method with these parameters, or returns false to leave it to the general dispatch.
    fn answer(&self, method: &str, params: Option<&RawValue>, out: &mut Vec<u8>) -> bool;
}

/// What every connection shares.
pub struct Service {
    /// The methods.
    pub methods: Methods,
    /// The hottest reads.
    pub fast: Box<dyn FastPath>,
    /// Limits of each connection.
    pub bounds: Bounds,
}

/// An answer that is not known at once. `None` when it left another way.
pub(super) type PendingAnswer = BoxFuture<'static, Option<Answer>>;

/// Calls in flight: what they come to, and how many they are.
pub(super) struct Pending {
    pub(super) answer: PendingAnswer,
    pub(super) calls: usize,
}

/// An answer, with the room that it takes beyond that of its call until it is written.
pub(super) struct Answer {
    pub(super) json: Box<RawValue>,
    pub(super) permit: Option<Permit>,
}

impl Answer {
    /// Takes room for an answer; one for which there is none becomes an error.
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
    /// Begins one. Its answer and its notifications leave through a channel of its own.
    fn subscribe(&mut self, request: SubscriptionRequest<'_>) -> Result<PendingAnswer, ErrorObject>;

    /// Ends the one that the parameters name, if `method` is how it ends. Returns whether there was one.
    fn unsubscribe(&mut self, method: &'static str, params: &Params<'_>) -> Result<bool, ErrorObject>;
}

/// A request to begin a subscription.
pub(super) struct SubscriptionRequest<'a> {
    pub(super) id: Id<'a>,
    pub(super) method: &'static str,
    pub(super) params: Params<'a>,
    pub(super) handler: SubscriptionMethod<'static>,
    /// The connection, as jsonrpsee names it.
    pub(super) rpc_connection: RpcConnectionId,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) extensions: Extensions,
}

/// Subscriptions of a framing that cannot carry notifications.
#[derive(Debug)]
pub(super) struct NoSubscriptions;

impl NoSubscriptions {
    fn refusal() -> ErrorObject {
        ErrorKind::InvalidRequest.error(
            "HTTP carries no subscriptions; send newline-delimited JSON over the same socket, or follow a job's output with \
             GET /jobs/ID/output",
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

/// Parses a request. Valid UTF-8 is parsed as text: it is checked once, instead of for each string in it.
fn request(message: &[u8]) -> serde_json::Result<Request<'_>> {
    match std::str::from_utf8(message) {
        Ok(text) => serde_json::from_str(text),
        // serde_json says what is wrong and where.
        Err(_) => serde_json::from_slice(message),
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
struct PartialRequest<'a> {
    #[serde(borrow)]
    id: Option<Id<'a>>,
}

/// Calls methods for one connection.
pub(super) struct Calls<'a, S> {
    pub(super) service: &'a Service,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) subscriptions: &'a mut S,
    /// Where answers go that are known at once, each with a line end.
    pub(super) output: &'a mut Vec<u8>,
}

impl<S: Subscriptions> Calls<'_, S> {
    /// Handles a message. Returns the answer that is still to come, if it is.
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

    /// Begins a call; an answer that is known at once is pushed at once.
    fn call(&mut self, request: &Request<'_>) -> Option<PendingAnswer> {
        // JSON-RPC: a request without id wants no answer. None of ours is worth making without one, so it is not executed.
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
                // The handler itself runs code before it returns its future; that too may panic.
                let handler = handler.clone();
                let params = params.into_owned();
                let asked = id.clone();
                let budget = self.connection.budget().clone();
                let call = async move { handler(id, params, connection, usize::MAX, extensions).await };
                Some(
                    AssertUnwindSafe(call)
                        .catch_unwind()
                        .map(move |answer| match answer {
                            Ok(answer) => Some(Answer::new(&asked, answer.into_json(), &budget)),
                            Err(_) => Some(Answer::small(error_json(&asked, panicked(name)))),
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

    /// Runs a batch, one call after the other, and answers it as one.
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
            let text = format!("a batch has 1 to {} calls", self.service.bounds.batch_max);
            self.refuse(&Id::Null, ErrorKind::InvalidRequest.error(text));
            return None;
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
                // The parts become the whole.
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

/// Makes the error for a method that does not exist.
pub fn unknown_method(method: &str) -> ErrorObject {
    let shown: String = method.chars().take(80).collect();
    ErrorKind::MethodNotFound.error(format!("no method {shown:?}; proto/openrpc.json lists them"))
}

fn panicked(method: &str) -> ErrorObject {
    tracing::error!(method, "a handler panicked");
    ErrorKind::Internal.error("orbd failed while handling this call; its log says more")
}
