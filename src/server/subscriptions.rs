//! The subscriptions of one JSON-lines connection: a channel for each, merged into one stream.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::stream::{self, AbortHandle, Abortable, BoxStream, SelectAll, StreamExt};
use jsonrpsee::core::server::{BoundedSubscriptions, MethodSink, SubscriptionState};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::types::{Params, SubscriptionId};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::budget::Permit;
use super::connection::overloaded;
use super::request::{PendingAnswer, SubscriptionRequest, Subscriptions};
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::unsubscribe_of;
use orbd_proto::types::ErrorObject;

/// Capacity of jsonrpsee's channel from a handler to the socket. The answer to the request is the only message in it.
const MESSAGES_MAX: usize = 1;
/// Lines in transit of a single subscription. Several subscriptions share this number, with at least one each.
const LINES_MAX: usize = 16;
/// Bytes charged for an open subscription: its task, and lines shorter than [`SMALL_LINE`].
const SUBSCRIPTION_BYTES: usize = 16 << 10;
/// Longer lines are charged to the budget of their connection.
pub(super) const SMALL_LINE: usize = 4 << 10;

/// Channel for the notifications of a subscription, which are encoded as complete lines. A handler gets it in its extensions.
///
/// jsonrpsee's own channel would encode a message again into its envelope. The answer that a handler gives through jsonrpsee is written
/// before any line that it sends here later, and lines keep their order.
#[derive(Debug, Clone)]
pub(super) struct LineSink(mpsc::Sender<Line>);

/// An encoded notification including its newline. `permit` reserves its bytes in the budget until the line is written.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) permit: Option<Permit>,
}

impl LineSink {
    /// Sends a line, waiting for earlier ones. Returns false if the connection has closed.
    pub(super) async fn send(&self, line: Line) -> bool {
        self.0.send(line).await.is_ok()
    }
}

/// An item from the channel of a subscription.
pub(super) enum SubscriptionItem {
    /// A message from jsonrpsee, with the number of the request that started the subscription.
    Message(u64, Box<RawValue>),
    /// A notification, encoded as a complete line.
    Line(Line),
    End(SubscriptionId<'static>),
}

/// The subscriptions of a connection.
pub(super) struct LineSubscriptions {
    /// Number of the request that is being handled.
    pub(super) request: u64,
    max: u32,
    permits: BoundedSubscriptions,
    /// Ids are 1, 2, 3 on each connection: clients whose numbers are doubles keep them exact.
    last_id: u64,
    /// Items from all subscriptions.
    inbox: SelectAll<BoxStream<'static, SubscriptionItem>>,
    /// The open subscriptions. An entry exists before the id is answered; jsonrpsee registers it only later.
    open: HashMap<SubscriptionId<'static>, Subscribed>,
}

/// How to end a subscription.
struct Subscribed {
    /// Name of its unsubscribe request.
    unsubscribe: &'static str,
    /// Aborts its channel, which ends its handler.
    channel: AbortHandle,
    _permit: Permit,
}

impl LineSubscriptions {
    pub(super) fn new(max: u32) -> Self {
        Self {
            request: 0,
            max,
            permits: BoundedSubscriptions::new(max),
            last_id: 0,
            inbox: SelectAll::new(),
            open: HashMap::new(),
        }
    }

    /// Returns whether no subscription has any items left.
    pub(super) fn is_silent(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Waits for the next item. Returns `None` if there are no subscriptions.
    pub(super) async fn next(&mut self) -> Option<SubscriptionItem> {
        let item = self.inbox.next().await;
        if let Some(SubscriptionItem::End(id)) = &item {
            self.open.remove(id);
        }
        item
    }

    /// Creates the channel of a subscription.
    fn channel(
        &mut self,
        id: SubscriptionId<'static>,
        unsubscribe: &'static str,
        permit: Permit,
    ) -> (mpsc::Sender<Box<RawValue>>, LineSink) {
        let share = |most: usize| (most / (self.open.len() + 1)).max(1);
        let (sink, messages) = mpsc::channel(MESSAGES_MAX);
        let (line_sink, lines) = mpsc::channel(share(LINES_MAX));
        let channel = Channel {
            request: self.request,
            messages,
            lines,
            line: None,
        };
        let told = stream::unfold(channel, async |mut channel: Channel| {
            channel.next().await.map(|item| (item, channel))
        });
        let (channel, registration) = AbortHandle::new_pair();
        self.open.insert(
            id.clone(),
            Subscribed {
                unsubscribe,
                channel,
                _permit: permit,
            },
        );
        let whole = told.chain(stream::once(std::future::ready(SubscriptionItem::End(id))));
        self.inbox.push(Abortable::new(whole, registration).boxed());
        (sink, LineSink(line_sink))
    }
}

impl Subscriptions for LineSubscriptions {
    fn subscribe(&mut self, request: SubscriptionRequest<'_>) -> Result<PendingAnswer, ErrorObject> {
        let Some(permit) = self.permits.acquire() else {
            let text = format!(
                "this connection has reached the limit of {} subscriptions",
                self.max
            );
            return Err(ErrorKind::QueueFull.error(text));
        };
        let room = request.budget.try_take(SUBSCRIPTION_BYTES).map_err(overloaded)?;
        let unsubscribe = unsubscribe_of(request.method).unwrap_or_default();
        self.last_id += 1;
        let given = FixedId(SubscriptionId::Num(self.last_id));
        let state = SubscriptionState {
            conn_id: request.rpc_connection,
            id_provider: &given,
            subscription_permit: permit,
        };
        let (messages, line_sink) = self.channel(given.0.clone(), unsubscribe, room);
        let mut extensions = request.extensions;
        extensions.insert(line_sink);
        // The answer goes through the sink, before the first notification.
        let sink = MethodSink::new(messages);
        let handler = request.handler;
        Ok(handler(request.id, request.params, sink, state, extensions)
            .map(|_| None)
            .boxed())
    }

    /// Ends a subscription: no notification follows. Its handler detects that its channel is closed.
    fn unsubscribe(&mut self, method: &'static str, params: &Params<'_>) -> Result<bool, ErrorObject> {
        let Ok(id) = params.one::<SubscriptionId<'_>>() else {
            return Ok(false);
        };
        let id = id.into_owned();
        let ours = self.open.get(&id);
        if ours.is_none_or(|subscribed| subscribed.unsubscribe != method) {
            return Ok(false);
        }
        if let Some(subscribed) = self.open.remove(&id) {
            subscribed.channel.abort();
        }
        Ok(true)
    }
}

/// The receiving end of a subscription's channel.
struct Channel {
    request: u64,
    messages: mpsc::Receiver<Box<RawValue>>,
    lines: mpsc::Receiver<Line>,
    /// A line that is kept back because messages are sent first.
    line: Option<Line>,
}

impl Channel {
    /// Waits for the next item. Returns `None` after the last one.
    async fn next(&mut self) -> Option<SubscriptionItem> {
        if self.line.is_none() {
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => return Some(SubscriptionItem::Message(self.request, message)),
                Some(line) = self.lines.recv() => self.line = Some(line),
                else => return None,
            }
        }
        // The answer that precedes a line may have arrived after the messages were checked.
        let earlier = self.messages.try_recv().ok();
        let earlier = earlier.map(|message| SubscriptionItem::Message(self.request, message));
        earlier.or_else(|| self.line.take().map(SubscriptionItem::Line))
    }
}

/// Returns a predetermined id.
#[derive(Debug)]
struct FixedId(SubscriptionId<'static>);

impl IdProvider for FixedId {
    fn next_id(&self) -> SubscriptionId<'static> {
        self.0.clone()
    }
}
