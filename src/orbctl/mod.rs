//! The only module that knows `orbctl`: its arguments, processes, output, errors, versions and location.
//!
//! - [`argv`] turns an [`Action`](crate::operation::Action) into arguments;
//! - [`environment`] computes the environment of every child;
//! - [`process`] runs children and handles every way in which a run can end;
//! - [`output`] parses stdout into types, [`classify`] turns an ending and stderr into a [`Failure`];
//! - [`version`] maps versions to features, [`locate`] finds the program.
//!
//! [`Orbctl`] is the trait that the rest of the daemon uses; tests replace it with a scripted in-memory version. This module does
//! not
//! decide when something runs, and it never logs arguments, environment, input or output.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use crate::sys::{ChildIdentity, StartTime};
pub use invocation::{Captured, Completion, Input, Invocation, Sink, SpawnError};

pub mod argv;
pub mod classify;
pub mod environment;
mod files;
mod invocation;
pub use orbd_host::locate;
pub mod output;
pub mod process;
mod spawner;
mod supervise;
pub mod version;

/// Bytes of each stream's end that are kept for error messages when the output goes to a spool.
pub const TAIL_MAX: usize = 4 * 1024;

/// Bytes of each stream's beginning that are always kept: a Go panic prints its cause first, followed by pages of stack traces.
pub const OPENING_MAX: usize = 512;

/// Default time between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// Runs `orbctl`. The production implementation is [`process::Installed`].
pub trait Orbctl: Send + Sync + 'static {
    /// Reports whether the program's file has been replaced since the previous call, for example by an upgrade of OrbStack. Call
    /// it before each run; it costs one `stat`.
    fn is_replaced(&self) -> bool;

    /// Runs one invocation to its end. Cancelling `stop` ends the child; what the child has already done is not undone.
    ///
    /// Dropping the future leaves the child running: when the daemon stops in order, running changes finish on their own.
    fn run(
        &self,
        invocation: Invocation,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<Completion, SpawnError>> + Send;
}
