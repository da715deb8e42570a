//! The server of the API: handlers of all methods, and the framings that carry them. The wire types are in `orbd_proto`.
//!
//! ```text
//! socket ── listen ──'{'──> lines ──┬─> request ──> server (methods) ──> dispatcher
//!              └────'P'──> http ────┘                 └ orbd_proto, convert
//! ```

mod budget;
pub mod connection;
mod connection_limit;
mod convert;
pub mod export;
pub mod http;
mod line_notifications;
pub mod lines;
pub mod listen;
mod machine_list_cache;
mod methods;
pub mod request;
pub mod server;
pub mod socket;
mod subscriptions;
