//! The server of the API: handlers of all methods, and the framings that carry them. The wire types are in `orbd_proto`.
//!
//! ```text
//! socket ── listener ──'{'──> json_lines ──┬─> request ──> registry (handlers) ──> dispatcher
//!                └─────'P'──> http ────────┘                 └ orbd_proto, convert
//! ```

mod budget;
mod call;
pub mod connection;
mod connection_limit;
pub mod context;
mod convert;
mod encoding;
mod errors;
pub mod export;
mod handlers;
pub mod http;
mod jobs;
pub mod json_lines;
mod line_notifications;
pub mod listener;
mod machine_list_cache;
mod notifier;
mod registry;
pub mod request;
pub mod socket;
mod subscriptions;
