//! `events.subscribe`: what happens, as it happens.
//!
//! A subscriber is a number, that of the last event it was told, and a place in the one ring of events. It waits for the ring to
//! grow and for room on its own connection, never for another subscriber; who stays behind for longer than the ring reaches is
//! told of the gap and of everything as it is.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::dispatcher::{self, Rejection, Snapshot};
use crate::events::{Gap, Kind, SequencedEvent};
use crate::rpc::api::EventsSubscribe;
use crate::rpc::convert;
use crate::rpc::server::{Notifier, Registry, Server, Subscriber};
use crate::rpc::types::{EventsSubscribeParams, GapReason};

/// Events taken from the ring at once.
const BATCH_MAX: usize = 64;

pub(super) fn register(registry: &mut Registry) {
    registry.subscription::<EventsSubscribe, _, _>(async |server, params, _caller, subscriber| {
        let kinds: Vec<Kind> = params.kinds.iter().copied().map(convert::event_kind).collect();
        let wants_looks = kinds.is_empty() || kinds.iter().any(|kind| kind.is_found_by_looking());
        let Some(subscription) = server.dispatcher.subscribe(wants_looks).await else {
            return subscriber.reject(convert::rejection(&Rejection::Stopping)).await;
        };
        let begin = begin(&server, &params);
        // Ends when either side is gone.
        let _ = tell(&server, subscription, &kinds, begin, subscriber).await;
    });
}

/// Where a subscriber begins.
enum Begin {
    /// With everything as it is.
    Now,
    /// After this event.
    After(u64),
    /// After an event that another life told.
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

/// Tells events until the subscriber or the dispatcher is gone.
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
                // A number that was not given yet was given by somebody else.
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

/// Tells everything as it is, after the gap if there is one, and returns the number of the last event in it.
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

/// Returns the event as it goes over the wire. It is written once; each subscriber gets a copy of the text.
fn encoded<'a>(told: &'a Arc<SequencedEvent>, instance: &str) -> Option<&'a RawValue> {
    let text = told.encoded.get_or_init(|| {
        serde_json::to_string(&convert::event(told, instance))
            .unwrap_or_default()
            .into()
    });
    // Borrowed and parsed, which is less than to build it again.
    serde_json::from_str(text).ok()
}
