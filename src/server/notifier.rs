//! Refuses or accepts a subscription, and sends its notifications.

use std::sync::Arc;

use jsonrpsee::core::server::{PendingSubscriptionSink, SubscriptionSink};
use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;

use super::budget::{Budget, Permit};
use super::line_notifications::{self, Envelope};
use super::subscriptions::{Line, LineSink, SMALL_LINE};
use orbd_proto::types::ErrorObject;

/// A requested subscription that is not answered yet.
pub(super) struct Subscriber {
    pub(super) pending: PendingSubscriptionSink,
    /// All notifications go through it, which keeps them in order.
    pub(super) line_sink: LineSink,
    /// The budget that lines are charged to.
    pub(super) budget: Arc<Budget>,
}

impl Subscriber {
    pub(super) async fn reject(self, error: ErrorObject) {
        self.pending.reject(owned(error)).await;
    }

    /// Accepts the subscription. Returns `None` if the client has disconnected.
    pub(super) async fn accept(self) -> Option<Notifier> {
        Some(Notifier {
            sink: self.pending.accept().await.ok()?,
            line_sink: self.line_sink,
            budget: self.budget,
        })
    }
}

/// Sends the notifications of an accepted subscription.
pub(super) struct Notifier {
    sink: SubscriptionSink,
    line_sink: LineSink,
    budget: Arc<Budget>,
}

impl Notifier {
    /// Returns the common part of its notifications.
    pub(super) fn envelope(&self) -> Envelope<'_> {
        Envelope {
            method: self.sink.method_name(),
            subscription: self.sink.subscription_id(),
        }
    }

    /// Returns the budget that its lines are charged to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Waits until the client has disconnected or ended the subscription.
    pub(super) async fn closed(&self) {
        self.sink.closed().await;
    }

    /// Sends an event, waiting for budget and for earlier lines. Returns `None` if the client has disconnected.
    pub(super) async fn send(&self, event: &impl Serialize) -> Option<()> {
        let line = line_notifications::line(self.envelope(), event)?;
        if line.len() <= SMALL_LINE {
            return self.send_line(line, None).await;
        }
        let permit = tokio::select! {
            permit = self.budget.take_some(line.len(), line.len()) => permit,
            () = self.closed() => return None,
        };
        self.send_line(line, Some(permit)).await
    }

    /// Sends a line that has been charged, waiting for earlier lines.
    pub(super) async fn send_line(&self, bytes: Vec<u8>, permit: Option<Permit>) -> Option<()> {
        let line = Line { bytes, permit };
        (!self.sink.is_closed() && self.line_sink.send(line).await).then_some(())
    }
}

/// Converts to jsonrpsee's error.
pub(super) fn owned(error: ErrorObject) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(error.code, error.message, error.data)
}
