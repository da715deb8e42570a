//! orbd: one small daemon per user through which every `orbctl` invocation goes.
//!
//! The map, top to bottom; a module never uses one below it (`tests/tidy.rs` checks):
//!
//! - [`machine`], [`operation`], [`job`]: the words. Plain data.
//! - [`rpc`], [`client`]: the wire, from both ends.
pub mod client;
//! - [`scheduler`]: which job starts next. Pure: no clock, no I/O, no async.
pub mod clock;
pub mod job;
pub mod machine;
pub mod operation;
pub mod rpc;
pub mod sys;
pub mod scheduler;
