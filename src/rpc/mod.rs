//! The API: every method and type of the wire, and the transports that carry them.

pub mod api;
pub mod connection;
pub mod errors;
pub mod lines;
pub mod socket;
pub mod types;
