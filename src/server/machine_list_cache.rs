//! Answers `machine.list` from bytes that are encoded once.
//!
//! Clients request the machine list many times per second. The first request encodes it, and the bytes are stored with the observation;
//! only the age is written each time. The general handler and the fast path both use this module, so their answers are the same.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::context::Server;
use super::convert;
use super::request::FastPath;
use crate::clock::Moment;
use crate::dispatcher::ObservedAnswer;
use crate::metrics::Counter;
use orbd_proto::methods::{MachineList, Method};
use orbd_proto::types::{Machine, MachineListAnswer, ReadParams};

/// Appends the result of `machine.list`. Returns false if the answer is not a machine list.
pub(super) fn machine_list(seen: &ObservedAnswer, now: &Moment, out: &mut Vec<u8>) -> bool {
    let Some(machines) = seen.value.machines() else {
        return false;
    };
    let encode = || {
        let machines: Vec<Machine> = machines.iter().map(convert::machine).collect();
        let answer = MachineListAnswer {
            machines,
            observed: convert::observed(seen, now),
        };
        let json = serde_json::to_string(&answer).unwrap_or_default();
        // The age is the last field; everything before its value stays the same.
        let end = json.rfind(AGE).map_or(0, |at| at + AGE.len());
        json[..end].into()
    };
    if seen.stale.is_some() {
        // A stale list differs in its mark. It is only served while `orbctl` is unhealthy, so its bytes are not stored.
        let front: Box<str> = encode();
        out.extend_from_slice(front.as_bytes());
    } else {
        out.extend_from_slice(seen.value.encoded.get_or_init(encode).as_bytes());
    }
    write!(out, "{}}}", convert::ms(now.age_of(&seen.observed_at))).is_ok()
}

const AGE: &str = "\"age_ms\":";

/// Answers `machine.list` from the list that the dispatcher has published, if it is fresh enough for the caller.
pub(super) struct Published(pub(super) Arc<Server>);

impl FastPath for Published {
    fn answer(&self, method: &str, params: Option<&RawValue>, out: &mut Vec<u8>) -> bool {
        if method != MachineList::NAME {
            return false;
        }
        let wanted = match params.map(|params| serde_json::from_str::<ReadParams>(params.get())) {
            None => None,
            Some(Ok(params)) => params.max_age_ms.map(Duration::from_millis),
            // The general dispatch reports the error.
            Some(Err(_)) => return false,
        };
        let published = self.0.dispatcher.published();
        let max_age = wanted.map_or(published.cache_max_age, |wanted| {
            wanted.min(published.cache_max_age)
        });
        let Some(seen) = &published.machines else {
            return false;
        };
        let now = Moment::now();
        if now.age_of(&seen.observed_at) > max_age {
            return false;
        }
        let answered = machine_list(seen, &now, out);
        if answered {
            self.0.metrics.count(Counter::CacheHits);
            self.0.metrics.count(Counter::SpawnsSaved);
        }
        answered
    }
}
