//! The API: every method and type of the wire, and the transports that carry them.

pub mod api;
pub mod errors;
pub mod types;
