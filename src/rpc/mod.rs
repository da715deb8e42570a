//! The API: all methods and wire types, and the framings that carry them.
//!
//! ```text
//! socket ── listen ──'{'──> lines ──┬─> request ──> server (methods) ──> dispatcher
//!              └────'P'──> http ────┘                 └ api, types, errors, convert
//! ```

pub mod api;
mod budget;
pub mod connection;
mod connection_limit;
mod convert;
pub mod errors;
pub mod export;
pub mod http;
mod line_notifications;
pub mod lines;
pub mod listen;
mod machine_list_cache;
mod methods;
pub mod openrpc;
pub mod request;
pub mod server;
pub mod socket;
mod subscriptions;
pub mod types;
