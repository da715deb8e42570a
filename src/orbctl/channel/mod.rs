//! Resident channels: one `orbctl run` that serves many commands of one machine and user.
//!
//! An `orbctl run` takes 100 to 500 ms on a Mac, whatever the command does. [`Channels`] runs a command through an open channel if
//! there is one that is free, and otherwise as an `orbctl run` of its own; a job does not know which. A command that may have run
//! is never run again.
//!
//! - `guest` has the program that runs in the machine, `frame` what is sent to it, `marks` what it answers;
//! - `link` is one open channel, `keeper` the task that owns it, `pool` decides which command opens or uses which.
//!
//! An idle channel holds no lane. It is closed before a change of its machine starts. When the daemon dies, the channel's input
//! ends, which ends the command, the guest's program and `orbctl`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orbd_host::locate::LocateError;
use orbd_host::run_command::GuestEnv;
use tokio_util::sync::CancellationToken;

use self::guest::Token;
use self::keeper::{Closing, Handle, Order, keeper};
use self::link::{Command, Link, OpenError, Served};
pub use self::pool::{ChannelState, ChannelView, Unused};
use self::pool::{Key, Leaving, Plan, Pool};
use super::{CallError, CallResult, Exec, Input, Installed, Orbctl, QueryAnswer, RunOptions, argv};
use crate::clock::{Moment, sleep_until};
use crate::job::{Ending, Failure, HealthSignal};
use crate::operation::{Change, ChannelUse, Query, Scope};

mod frame;
mod guest;
mod keeper;
mod link;
mod marks;
mod pool;
#[cfg(test)]
mod tests;

/// How long a change waits for the channels of its machines to close. An idle one closes in milliseconds.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// What the marker of a channel ends with, so that the next instance tells its process from that of the job that opened it.
pub const MARKER_SUFFIX: &str = ":channel";

/// [`Orbctl`] with channels.
pub struct Channels {
    installed: Arc<Installed>,
    pool: SharedPool,
    observer: Arc<dyn Observer>,
}

/// Hears of what channels do, and knows whether a client is connected.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn on(&self, event: ChannelEvent);

    /// Returns whether a client is connected. Without one, an idle channel is closed early.
    fn has_clients(&self) -> bool;
}

/// An event of a channel, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelEvent {
    /// One was opened.
    Opened,
    /// None could be opened; the command ran as an `orbctl run` of its own.
    OpenFailed,
    /// A command ran in one that was open before: an `orbctl run` was saved.
    Reused,
    /// The machine had changed, so a command was declined and a new one is opened.
    Declined,
    /// One became unusable.
    Broken,
    /// One broke while a command ran, so how the command ended is unknown.
    MayHaveRun,
}

type SharedPool = Arc<Mutex<Pool<Handle>>>;

impl Channels {
    /// Creates it without an open channel.
    pub fn new(installed: Arc<Installed>, observer: Arc<dyn Observer>) -> Self {
        Self {
            installed,
            pool: Arc::default(),
            observer,
        }
    }

    /// Returns the path of `orbctl`; see [`Installed::program`].
    pub fn program(&self) -> Result<PathBuf, LocateError> {
        self.installed.program()
    }

    /// Returns every machine and user with a channel, or with a reason why it has none.
    pub fn view(&self) -> Vec<ChannelView> {
        lock(&self.pool).view(now())
    }

    /// Returns why no machine gets a channel from the installed `orbctl`; `None` if that depends on the machine.
    pub fn unused(&self) -> Option<Unused> {
        lock(&self.pool).unused()
    }

    /// Runs a command through a channel. Returns everything if it was not started, so that it can be run another way.
    async fn serve(&self, key: &Key, more_follow: bool, mut order: Order) -> Result<CallResult<i32>, Order> {
        // Opening a channel and a command that was declined count towards the limit of the command.
        let deadline = order.options.run_timeout.map(|limit| now() + limit);
        let mut plan = lock(&self.pool).plan(key, more_follow, now());
        // A machine that declines again changes all the time.
        for is_last in [false, true] {
            let is_reused = matches!(plan, Plan::Use(_));
            let handle = match plan {
                Plan::OneShot => break,
                Plan::Use(handle) => handle,
                Plan::Open {
                    close_first,
                    needs_test,
                } => {
                    close(close_first).await;
                    let opened = self.open(key, needs_test, &order.options, deadline).await;
                    let Some(handle) = opened else { break };
                    handle
                }
            };
            order.options.run_timeout = left(deadline);
            let bytes_in = order.command.input.len() as u64;
            let (not_started, back) = match handle.serve(order).await {
                Ok(served) => {
                    if is_reused {
                        self.observer.on(ChannelEvent::Reused);
                    }
                    return Ok(self.result(key, &served, bytes_in));
                }
                Err(not_started) => not_started,
            };
            tracing::debug!(machine = %key.machine, reason = not_started.reason, "the channel did not start the command");
            order = back;
            if is_last || !not_started.is_stale {
                break;
            }
            self.observer.on(ChannelEvent::Declined);
            handle.closed().await;
            plan = lock(&self.pool).plan_again(key);
        }
        order.options.run_timeout = left(deadline);
        if order.options.run_timeout.is_some_and(|left| left.is_zero()) {
            return Ok(ended_by_us(Ending::TimedOut));
        }
        Err(order)
    }

    /// Runs a command as an `orbctl run` of its own.
    async fn run_alone(&self, exec: Exec, guest_env: GuestEnv, options: RunOptions) -> CallResult<i32> {
        let began = now();
        let result = self.installed.exec(exec, guest_env, options).await;
        if result.result.is_ok() {
            lock(&self.pool).run_took(now().saturating_duration_since(began));
        }
        result
    }

    fn result(&self, key: &Key, served: &Served, bytes_in: u64) -> CallResult<i32> {
        let (result, ending, bytes_out) = match *served {
            Served::MayHaveRun(reason) => {
                self.observer.on(ChannelEvent::MayHaveRun);
                let failure = Failure::ChannelBroken {
                    machine: key.machine.clone(),
                    reason: reason.into(),
                };
                (Err(CallError::Failed(failure)), None, 0)
            }
            Served::Ended { ending, bytes_out } => (exit_code(ending), Some(ending), bytes_out),
        };
        CallResult {
            result,
            // What the command prints and how it ends says nothing about `orbctl`.
            signal: HealthSignal::Nothing,
            ending,
            bytes_in,
            bytes_out,
        }
    }

    async fn open(
        &self,
        key: &Key,
        needs_test: bool,
        options: &RunOptions,
        deadline: Option<Instant>,
    ) -> Option<Handle> {
        let began = now();
        // Cancelled at the limit of the command too, so that what has begun to open is closed.
        let stop = options.stop.child_token();
        let at_the_limit = async {
            sleep_until(deadline).await;
            stop.cancel();
            std::future::pending().await
        };
        let connected = tokio::select! {
            connected = self.connect(key, needs_test, &options.marker, &stop) => connected,
            never = at_the_limit => never,
        };
        let link = match connected {
            Ok(link) => link,
            Err(OpenError::Stopped) => {
                lock(&self.pool).open_cancelled(key);
                return None;
            }
            Err(error) => {
                tracing::info!(machine = %key.machine, %error, "no channel was opened; commands run as an orbctl run each");
                self.observer.on(ChannelEvent::OpenFailed);
                lock(&self.pool).open_failed(key, error.into(), now());
                return None;
            }
        };
        let took = now().saturating_duration_since(began);
        tracing::debug!(machine = %key.machine, ms = took.as_millis(), "opened a channel");
        self.observer.on(ChannelEvent::Opened);
        let (handle, keeper) = keeper(link);
        let serial = {
            let mut pool = lock(&self.pool);
            pool.run_took(took);
            pool.opened(key, handle.clone(), now())
        };
        let Some(serial) = serial else {
            handle.close();
            tokio::spawn(keeper.run(|| {}, |_| {}, || false));
            return None;
        };
        let (pool, key, observer) = (Arc::clone(&self.pool), key.clone(), Arc::clone(&self.observer));
        tokio::spawn(async move {
            let on_idle = || lock(&pool).idle(&key, serial, now());
            let on_closing = |closing: &Closing| {
                let problem = closing.problem();
                if problem.is_some() {
                    observer.on(ChannelEvent::Broken);
                }
                lock(&pool).closing(&key, serial, problem);
            };
            let has_clients = || observer.has_clients();
            let with_its_input = keeper.run(on_idle, on_closing, has_clients).await;
            lock(&pool).closed(serial, with_its_input);
        });
        Some(handle)
    }

    async fn connect(
        &self,
        key: &Key,
        needs_test: bool,
        marker: &str,
        stop: &CancellationToken,
    ) -> Result<Link, OpenError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| OpenError::Broken("the system has no random bytes"))?;
        let token = Token::new(random);
        let call = argv::channel(&key.machine, key.user.as_ref(), guest::COMMAND);
        let marker = match marker {
            "" => String::new(),
            marker => format!("{marker}{MARKER_SUFFIX}"),
        };
        Link::open(&self.installed, &call, &marker, token, needs_test, stop).await
    }
}

impl Orbctl for Channels {
    fn is_replaced(&self) -> bool {
        let is_replaced = Orbctl::is_replaced(&*self.installed);
        if is_replaced {
            lock(&self.pool).program_replaced();
        }
        is_replaced
    }

    async fn query(&self, query: &Query, options: RunOptions) -> CallResult<QueryAnswer> {
        let began = now();
        let result = self.installed.query(query, options).await;
        if result.result.is_ok() {
            lock(&self.pool).query_took(now().saturating_duration_since(began));
        }
        result
    }

    async fn exec(&self, exec: Exec, guest_env: GuestEnv, options: RunOptions) -> CallResult<i32> {
        let Some((key, command)) = eligible(&exec) else {
            return self.run_alone(exec, guest_env, options).await;
        };
        let Exec {
            machine,
            request,
            stdin,
            output,
        } = exec;
        let order = Order {
            command,
            output,
            options,
        };
        let more_follow = request.channel == ChannelUse::MoreFollow;
        match self.serve(&key, more_follow, order).await {
            Ok(result) => result,
            Err(Order { output, options, .. }) => {
                let exec = Exec {
                    machine,
                    request,
                    stdin,
                    output,
                };
                self.run_alone(exec, guest_env, options).await
            }
        }
    }

    async fn change(&self, change: &Change, output_dir: PathBuf, options: RunOptions) -> CallResult<()> {
        self.installed.change(change, output_dir, options).await
    }

    async fn close_channels(&self, scope: &Scope) {
        if *scope == Scope::Everything {
            lock(&self.pool).forgive_program();
        }
        let leaving = lock(&self.pool).take(|machine| match scope {
            Scope::Machines(machines) => machines.contains(machine),
            Scope::Configuration | Scope::Everything => true,
        });
        close(leaving).await;
    }
}

/// Returns the time until a deadline; `None` if there is none.
fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|at| at.saturating_duration_since(now()))
}

/// Returns the result of a command that orbd ended before it started.
fn ended_by_us(ending: Ending) -> CallResult<i32> {
    CallResult {
        result: exit_code(ending),
        signal: HealthSignal::Nothing,
        ending: Some(ending),
        bytes_in: 0,
        bytes_out: 0,
    }
}

fn now() -> Instant {
    Moment::now().instant
}

fn lock(pool: &Mutex<Pool<Handle>>) -> MutexGuard<'_, Pool<Handle>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes channels, and waits until the idle ones have ended, but no longer than a change may be delayed. A busy one closes after its
/// command.
async fn close(leaving: Vec<Leaving<Handle>>) {
    let mut idle = Vec::new();
    for Leaving { handle, is_busy } in leaving {
        handle.close();
        if !is_busy {
            idle.push(handle.closed());
        }
    }
    if tokio::time::timeout(CLOSE_MAX, futures_util::future::join_all(idle))
        .await
        .is_err()
    {
        tracing::warn!("a channel is still open after {} s", CLOSE_MAX.as_secs());
    }
}

/// Returns what a channel needs to run a command; `None` if it must be an `orbctl run` of its own.
fn eligible(exec: &Exec) -> Option<(Key, Command)> {
    let input = match &exec.stdin {
        _ if exec.request.channel == ChannelUse::Off => return None,
        Input::Empty => Bytes::new(),
        Input::Bytes(bytes) if bytes.len() <= frame::INPUT_MAX => bytes.clone(),
        Input::Bytes(_) | Input::Stream(_) => return None,
    };
    let call = argv::exec_in_channel(&exec.machine, &exec.request)?;
    let key = Key {
        machine: exec.machine.clone(),
        user: exec.request.user.clone(),
    };
    let program = frame::program(&call.env, &call.args)?;
    Some((key, Command { program, input }))
}

fn exit_code(ending: Ending) -> Result<i32, CallError> {
    match ending {
        Ending::Exited(code) => Ok(code),
        Ending::Signalled(signal) => Ok(128 + signal),
        Ending::Stopped => Err(CallError::Stopped),
        Ending::TimedOut => Err(CallError::TimedOut),
    }
}
