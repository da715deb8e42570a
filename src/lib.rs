//! orbd: one small daemon per user through which every `orbctl` invocation goes.
//!
//! The map, top to bottom; a module never uses one below it (`tests/tidy.rs` checks):
//!
//! - [`machine`], [`operation`], [`job`]: the words. Plain data.
//! - [`error_chain`]: an error with all that led to it, as one sentence.
//! - [`scheduler`], [`cache`], [`events`], [`circuit_breaker`]: what starts next, what is known, what is told of it, and whether `orbctl` is well
//!   enough to be asked. Pure: no clock, no I/O, no async.
//! - [`clock`], [`sys`]: time, and questions to the kernel about processes, sockets and files.
//! - [`spool`]: a job's output, in memory, then in files; readers follow from any offset.
//! - [`orbctl`]: the only module that knows `orbctl`.
//! - [`journal`], [`metrics`]: what must survive a crash, and what happened.
//! - [`dispatcher`]: the one task that owns what changes.
//! - [`upgrade`]: whether another program lies on disk, and how it takes over.
//! - [`rpc`], [`client`]: the wire, from both ends.
//! - [`config`], [`logging`], [`daemon`]: how it is set up and put together.

pub mod cache;
pub mod circuit_breaker;
pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod dispatcher;
pub mod error_chain;
pub mod events;
pub mod job;
pub mod journal;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod operation;
pub mod orbctl;
pub mod rpc;
pub mod scheduler;
pub mod spool;
pub mod sys;
pub mod upgrade;
