//! orbd: one small daemon per user through which every `orbctl` invocation goes.
//!
//! The map, top to bottom; a module never uses one below it (`tests/tidy.rs` checks):
//!
//! - [`machine`], [`operation`], [`job`]: the words. Plain data.
//! - [`rpc`], [`client`]: the wire, from both ends.
//! - [`scheduler`]: which job starts next. Pure: no clock, no I/O, no async.
//! - [`sys`]: questions to the kernel about processes.
//! - [`spool`]: a job's output, in memory, then in files; readers follow from any offset.
//! - [`orbctl`]: the only module that knows `orbctl`.

pub mod client;
//! - [`clock`], [`metrics`], [`journal`]: time, what happened, what must survive.
//! - [`config`], [`logging`]: how it is set up.
//! - [`scheduler`]: which job starts next. [`cache`]: what is known, and whether it may still be told. Both are pure: no
//!   clock, no I/O, no async.
pub mod cache;
pub mod clock;

pub mod job;
pub mod journal;

pub mod machine;
pub mod metrics;
pub mod operation;
pub mod orbctl;
pub mod rpc;
pub mod scheduler;
pub mod spool;
pub mod sys;
