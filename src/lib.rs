//! orbd: one small daemon per user that runs every `orbctl` invocation.
//!
//! The modules, from lowest to highest layer. The table `MAY_USE` in `tests/tidy.rs` defines which module may use which, and that test
//! enforces it.
//!
//! - [`operation`], [`job`]: the domain types. Plain data. Machines, configuration and what else the clients know are in [`orbd_host`].
//! - [`scheduler`], [`cache`], [`events`], [`circuit_breaker`]: decide which job starts next, which cached answers are valid, which events
//!   clients receive, and whether `orbctl` is healthy enough to be called. Pure: no clock, no I/O, no async.
//! - [`clock`], [`sys`]: time, and system calls about processes, sockets and files.
//! - [`spool`]: a job's output, kept in memory and then in files; readers can start at any offset.
//! - [`orbctl`]: builds `orbctl` command lines, runs `orbctl`, and parses its output. No other module knows its syntax.
//! - [`journal`], [`metrics`]: the state that must survive a crash, and the history of operations.
//! - [`dispatcher`]: one task that owns all mutable state and coordinates the other parts.
//! - [`upgrade`]: detects a replaced binary and hands over to it.
//! - [`server`]: the server side of the wire protocol, whose types are in [`orbd_proto`].
//! - [`logging`], [`daemon`]: log output, and startup and shutdown of the daemon.

pub mod cache;
pub mod circuit_breaker;
pub mod clock;
pub mod daemon;
pub mod dispatcher;
pub mod events;
pub mod job;
pub mod journal;
pub mod logging;
pub mod metrics;
pub mod operation;
pub mod orbctl;
pub mod scheduler;
pub mod server;
pub mod spool;
pub mod sys;
pub mod upgrade;
