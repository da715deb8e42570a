//! `cache.*`: status and invalidation of the cache.

use crate::cache::CacheKey;
use crate::metrics::Counter;
use crate::operation::Scope;
use crate::server::convert::{ms, parse};
use crate::server::errors;
use crate::server::registry::Registry;
use orbd_proto::methods::{CacheInvalidate, CacheStatus};
use orbd_proto::types::{CacheEntry, CacheInvalidateAnswer, CacheStatusAnswer};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<CacheStatus, _, _>(async |call, _params| {
        let view = call
            .server
            .dispatcher
            .cache_view()
            .await
            .ok_or_else(|| errors::internal("the dispatcher has stopped"))?;
        let counters = call.server.metrics.counters();
        let mut entries: Vec<CacheEntry> = view
            .entries
            .into_iter()
            .map(|kept| {
                let (cache_key, machine) = match kept.cache_key {
                    CacheKey::Machines => ("machines", None),
                    CacheKey::Info(name) => ("info", Some(name.to_string())),
                    CacheKey::Status => ("status", None),
                    CacheKey::Version => ("version", None),
                    CacheKey::Config => ("config", None),
                    CacheKey::Default => ("default", None),
                    CacheKey::Ssh => ("ssh", None),
                    CacheKey::RawQuery(read) => ("raw", read.machine().map(ToString::to_string)),
                };
                CacheEntry {
                    key: cache_key.into(),
                    machine,
                    generation: kept.generation.get(),
                    age_ms: ms(kept.age),
                    valid: kept.valid,
                }
            })
            .collect();
        entries.sort_by(|a, b| (&a.key, &a.machine).cmp(&(&b.key, &b.machine)));
        Ok(CacheStatusAnswer {
            generation: view.generation.get(),
            entries,
            hits: counters.get(Counter::CacheHits),
            misses: counters.get(Counter::CacheMisses),
        })
    });
    registry.method::<CacheInvalidate, _, _>(async |call, params| {
        let scope = match params.machine {
            Some(machine) => Scope::Machines(vec![parse("machine", &machine)?]),
            None => Scope::Everything,
        };
        let generation = call
            .server
            .dispatcher
            .invalidate(scope)
            .await
            .ok_or_else(|| errors::internal("the dispatcher has stopped"))?;
        Ok(CacheInvalidateAnswer {
            generation: generation.get(),
        })
    });
}
