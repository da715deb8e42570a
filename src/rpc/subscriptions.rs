//! The subscriptions of one JSON-lines connection: a channel for each, and what comes out of all of them.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::stream::{self, AbortHandle, Abortable, BoxStream, SelectAll, StreamExt};
use jsonrpsee::core::id_providers::RandomIntegerIdProvider;
use jsonrpsee::core::server::{BoundedSubscriptions, MethodSink, SubscriptionState};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::types::{Params, SubscriptionId};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::api::unsubscribe_of;
use super::budget::Permit;
use super::connection::overloaded;
use super::errors::ErrorKind;
use super::request::{PendingAnswer, SubscriptionRequest, Subscriptions};
use super::types::ErrorObject;

/// jsonrpsee's messages between a handler and the socket: the answer to the request is the only one.
const MESSAGES_MAX: usize = 1;
/// Lines of an outlet on their way, of a subscription that is alone; of several, each has a share, and one at least.
const LINES_MAX: usize = 16;
/// What a subscription takes as long as it is open: its task, and lines that are shorter than [`SMALL_LINE`].
const SUBSCRIPTION_BYTES: usize = 16 << 10;
/// Longer lines need room in the budget of their connection.
pub(super) const SMALL_LINE: usize = 4 << 10;

/// A subscription's way to its connection for messages that are whole lines already. Its handler gets it beside its parameters.
///
/// jsonrpsee's own way encodes a message again to put it into its envelope. The answer that a handler gave through jsonrpsee is written
/// before any line that it sends here later, and lines keep their order.
#[derive(Debug, Clone)]
pub(super) struct LineSink(mpsc::Sender<Line>);

/// A line of notification, its end included, with the room that it takes until it is written.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    pub(super) permit: Option<Permit>,
}

impl LineSink {
    /// Sends a line, waiting for its turn. False when the connection is gone.
    pub(super) async fn send(&self, line: Line) -> bool {
        self.0.send(line).await.is_ok()
    }
}

/// What comes out of a subscription's channel.
pub(super) enum SubscriptionItem {
    /// With the number of the request that began the subscription.
    Message(u64, Box<RawValue>),
    /// A message that is a whole line already.
    Line(Line),
    /// Nothing more follows.
    End(SubscriptionId<'static>),
}

/// The subscriptions of a connection.
pub(super) struct LineSubscriptions {
    /// The number of the request that is being handled.
    pub(super) request: u64,
    max: u32,
    permits: BoundedSubscriptions,
    /// What subscriptions send.
    inbox: SelectAll<BoxStream<'static, SubscriptionItem>>,
    /// Each of them, from before its id is answered: jsonrpsee's own account has it only some time after that.
    open: HashMap<SubscriptionId<'static>, Subscribed>,
}

/// How a subscription is ended.
struct Subscribed {
    /// By which request.
    unsubscribe: &'static str,
    /// Its channel, and with it its handler.
    channel: AbortHandle,
    _permit: Permit,
}

impl LineSubscriptions {
    /// Makes room for so many.
    pub(super) fn new(max: u32) -> Self {
        Self {
            request: 0,
            max,
            permits: BoundedSubscriptions::new(max),
            inbox: SelectAll::new(),
            open: HashMap::new(),
        }
    }

    /// Says whether nothing more comes from any of them.
    pub(super) fn is_silent(&self) -> bool {
        self.inbox.is_empty()
    }

    /// Waits for what comes next; `None` while there are none.
    pub(super) async fn next(&mut self) -> Option<SubscriptionItem> {
        let item = self.inbox.next().await;
        if let Some(SubscriptionItem::End(id)) = &item {
            self.open.remove(id);
        }
        item
    }

    /// Makes the channel of a subscription.
    fn channel(
        &mut self,
        id: SubscriptionId<'static>,
        unsubscribe: &'static str,
        permit: Permit,
    ) -> (mpsc::Sender<Box<RawValue>>, LineSink) {
        let share = |most: usize| (most / (self.open.len() + 1)).max(1);
        let (sink, messages) = mpsc::channel(MESSAGES_MAX);
        let (outlet, lines) = mpsc::channel(share(LINES_MAX));
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
        (sink, LineSink(outlet))
    }
}

impl Subscriptions for LineSubscriptions {
    fn subscribe(&mut self, request: SubscriptionRequest<'_>) -> Result<PendingAnswer, ErrorObject> {
        let Some(permit) = self.permits.acquire() else {
            let text = format!("a connection has at most {} subscriptions", self.max);
            return Err(ErrorKind::QueueFull.error(text));
        };
        let room = request.budget.try_take(SUBSCRIPTION_BYTES).map_err(overloaded)?;
        let unsubscribe = unsubscribe_of(request.method).unwrap_or_default();
        let given = FixedId(RandomIntegerIdProvider.next_id());
        let state = SubscriptionState {
            conn_id: request.rpc_connection,
            id_provider: &given,
            subscription_permit: permit,
        };
        let (messages, outlet) = self.channel(given.0.clone(), unsubscribe, room);
        let mut extensions = request.extensions;
        extensions.insert(outlet);
        // The answer goes through the sink, ahead of the first notification.
        let sink = MethodSink::new(messages);
        let handler = request.handler;
        Ok(handler(request.id, request.params, sink, state, extensions)
            .map(|_| None)
            .boxed())
    }

    /// Ends a subscription at once: nothing of it is told after this. Its handler sees that its channel is closed.
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

/// The end of a subscription's channel where things come out.
struct Channel {
    request: u64,
    messages: mpsc::Receiver<Box<RawValue>>,
    lines: mpsc::Receiver<Line>,
    /// A line that lets messages go first.
    line: Option<Line>,
}

impl Channel {
    /// Waits for what comes next; `None` when nothing will.
    async fn next(&mut self) -> Option<SubscriptionItem> {
        if self.line.is_none() {
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => return Some(SubscriptionItem::Message(self.request, message)),
                Some(line) = self.lines.recv() => self.line = Some(line),
                else => return None,
            }
        }
        // The answer that goes before a line may have come since messages were looked for.
        let earlier = self.messages.try_recv().ok();
        let earlier = earlier.map(|message| SubscriptionItem::Message(self.request, message));
        earlier.or_else(|| self.line.take().map(SubscriptionItem::Line))
    }
}

/// Gives a subscription the id that was made for it.
#[derive(Debug)]
struct FixedId(SubscriptionId<'static>);

impl IdProvider for FixedId {
    fn next_id(&self) -> SubscriptionId<'static> {
        self.0.clone()
    }
}
