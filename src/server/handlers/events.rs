//! `events.subscribe`.
//!
//! The state of a subscriber is the number of the last event that it was sent. It reads from the shared event log and waits for the log to
//! grow and for room on its own connection, never for another subscriber. A subscriber that falls behind the log gets a `gap` and the
//! current state.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::dispatcher::{self, Rejection, Snapshot};
use crate::events::{Gap, Kind, SequencedEvent};
use crate::server::context::Server;
use crate::server::convert;
use crate::server::notifier::{Notifier, Subscriber};
use crate::server::registry::Registry;
use orbd_proto::methods::EventsSubscribe;
use orbd_proto::types::{EventsSubscribeParams, GapReason};

/// Maximum number of events read from the log at once.
const BATCH_MAX: usize = 64;

pub(super) fn register(registry: &mut Registry) {
    registry.subscription::<EventsSubscribe, _, _>(async |server, params, _caller, subscriber| {
        let kinds: Vec<Kind> = params.kinds.iter().copied().map(convert::event_kind).collect();
        let wants_looks = kinds.is_empty() || kinds.iter().any(|kind| kind.is_found_by_looking());
        let Some(subscription) = server.dispatcher.subscribe(wants_looks).await else {
            return subscriber.reject(convert::rejection(&Rejection::Stopping)).await;
        };
        let begin = begin(&server, &params);
        // Returns when the subscription ends or the dispatcher stops.
        let _ = tell(&server, subscription, &kinds, begin, subscriber).await;
    });
}

/// Start of a subscription.
enum Begin {
    /// With the current state.
    Now,
    /// After this event.
    After(u64),
    /// After an event of another instance.
    Elsewhere,
}

fn begin(server: &Server, params: &EventsSubscribeParams) -> Begin {
    let is_ours = params
        .instance
        .as_ref()
        .is_none_or(|instance| *instance == server.info.instance);
    match params.since {
        None => Begin::Now,
        Some(number) if is_ours => Begin::After(number),
        Some(_) => Begin::Elsewhere,
    }
}

/// Sends events until the subscription ends or the dispatcher stops.
async fn tell(
    server: &Server,
    mut subscription: dispatcher::Subscriber,
    kinds: &[Kind],
    begin: Begin,
    subscriber: Subscriber,
) -> Option<()> {
    let notifier = subscriber.accept().await?;
    let mut last = match begin {
        Begin::Now => everything(server, &notifier, None).await?,
        Begin::After(number) => number,
        Begin::Elsewhere => everything(server, &notifier, Some(GapReason::OtherInstance)).await?,
    };
    loop {
        let (newest, since) = {
            let ring = subscription.events.borrow_and_update();
            (ring.last(), ring.since(last, BATCH_MAX))
        };
        match since {
            Ok(events) if events.is_empty() => {
                tokio::select! {
                    changed = subscription.events.changed() => changed.ok()?,
                    () = notifier.closed() => return None,
                }
            }
            Ok(events) => {
                for told in events {
                    last = told.sequence;
                    if kinds.is_empty() || kinds.contains(&told.event.kind()) {
                        notifier.send(&encoded(&told, &server.info.instance)?).await?;
                    }
                }
            }
            Err(Gap) => {
                // This instance has not assigned that number yet, so another instance did.
                let reason = if last > newest {
                    GapReason::OtherInstance
                } else {
                    GapReason::NotKept
                };
                last = everything(server, &notifier, Some(reason)).await?;
            }
        }
    }
}

/// Sends the current state, after a `gap` if there is one. Returns the number of the last event that the state includes.
async fn everything(server: &Server, notifier: &Notifier, gap: Option<GapReason>) -> Option<u64> {
    let snapshot: Snapshot = server.dispatcher.snapshot().await?;
    let instance = &server.info.instance;
    if let Some(reason) = gap {
        notifier
            .send(&convert::event_gap(&snapshot, instance, reason))
            .await?;
    }
    notifier.send(&convert::event_state(&snapshot, instance)).await?;
    Some(snapshot.sequence)
}

/// Returns the event as sent on the wire. It is encoded once; each subscriber gets a copy of the text.
fn encoded<'a>(told: &'a Arc<SequencedEvent>, instance: &str) -> Option<&'a RawValue> {
    let text = told.encoded.get_or_init(|| {
        serde_json::to_string(&convert::event(told, instance))
            .unwrap_or_default()
            .into()
    });
    // The text is borrowed and only checked, which costs less than encoding it again.
    serde_json::from_str(text).ok()
}
