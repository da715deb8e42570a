//! The handlers of all methods, one file per group. A handler parses the parameters, calls the dispatcher and converts the answer.

mod cache;
mod config;
mod daemon;
mod events;
mod job;
mod lease;
mod machine;
mod metrics;
mod orbstack;
mod queue;
mod raw_read;
mod run;
mod unknown_form;

use std::sync::Arc;

use jsonrpsee::Methods;

use super::context::Server;
use super::registry::Registry;

/// Builds the methods of all groups.
pub(super) fn methods(server: Arc<Server>) -> Methods {
    let mut registry = Registry::new(server);
    cache::register(&mut registry);
    config::register(&mut registry);
    daemon::register(&mut registry);
    events::register(&mut registry);
    job::register(&mut registry);
    lease::register(&mut registry);
    machine::register(&mut registry);
    metrics::register(&mut registry);
    orbstack::register(&mut registry);
    queue::register(&mut registry);
    run::register(&mut registry);
    registry.into_methods()
}
