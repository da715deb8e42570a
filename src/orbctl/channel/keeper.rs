//! The task that owns one open channel: runs commands in it, one at a time, and closes it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::link::{CLOSED, Command, Link, NotStarted, Served, UNCONFIRMED};
use crate::clock::Moment;
use crate::orbctl::supervise::Limits;
use crate::orbctl::{RunOptions, Started};
use crate::spool;

/// How long a channel stays open without a command, and without a connected client.
const IDLE_MAX: Duration = Duration::from_secs(15);
const NO_CLIENT_MAX: Duration = Duration::from_secs(2);
/// How long a channel stays open at most, and how many commands it serves: what a guest changes unnoticed is bounded by this.
const AGE_MAX: Duration = Duration::from_secs(600);
const COMMANDS_MAX: u32 = 5_000;

/// A command for the keeper.
pub(super) struct Order {
    pub(super) command: Command,
    pub(super) output: spool::Writer,
    pub(super) options: RunOptions,
}

/// The keeper's answer: the order is returned if the command was not started.
type Answer = Result<Served, (NotStarted, Order)>;

/// Leads to the keeper of one channel.
#[derive(Clone)]
pub(super) struct Handle {
    orders: mpsc::Sender<(Order, oneshot::Sender<Answer>)>,
    close: CancellationToken,
    closed: watch::Receiver<bool>,
}

impl Handle {
    /// Runs a command. Only one may run at a time; the pool ensures it.
    pub(super) async fn serve(&self, order: Order) -> Answer {
        let (reply, answer) = oneshot::channel();
        if let Err(mpsc::error::SendError((order, _))) = self.orders.send((order, reply)).await {
            return Err((NotStarted::because(CLOSED), order));
        }
        answer.await.unwrap_or(Ok(Served::MayHaveRun(UNCONFIRMED)))
    }

    /// Closes the channel after its current command.
    pub(super) fn close(&self) {
        self.close.cancel();
    }

    /// Waits until the channel's processes outside the machine are gone.
    pub(super) async fn closed(mut self) {
        // An error means that the keeper has ended.
        let _ = self.closed.wait_for(|closed| *closed).await;
    }
}

/// The keeper's side of a [`Handle`].
pub(super) struct Keeper {
    link: Link,
    orders: mpsc::Receiver<(Order, oneshot::Sender<Answer>)>,
    close: CancellationToken,
    closed: watch::Sender<bool>,
}

/// Returns the keeper of a channel, and the handle that leads to it.
pub(super) fn keeper(link: Link) -> (Handle, Keeper) {
    let (orders, receiver) = mpsc::channel(1);
    let (closed, is_closed) = watch::channel(false);
    let close = CancellationToken::new();
    let handle = Handle {
        orders,
        close: close.clone(),
        closed: is_closed,
    };
    let keeper = Keeper {
        link,
        orders: receiver,
        close,
        closed,
    };
    (handle, keeper)
}

/// Why a keeper closes its channel.
pub(super) enum Closing {
    /// A rule of the pool, or its age.
    Planned(&'static str),
    /// The channel is stale.
    Stale(String),
    /// It broke while no command ran, or with this command.
    Broken(String),
}

impl Closing {
    fn reason(&self) -> &str {
        match self {
            Self::Planned(reason) => reason,
            Self::Stale(reason) | Self::Broken(reason) => reason,
        }
    }

    /// Returns what went wrong; `None` if nothing did.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Planned(_) | Self::Stale(_) => None,
            Self::Broken(reason) => Some(reason.clone()),
        }
    }
}

impl Keeper {
    /// Serves until the channel is closed or broken. Calls `on_idle` after each command that leaves it usable, and `on_closing` before
    /// the answer to the last one. While it is idle, asks `has_clients` whether a client is connected. Returns whether `orbctl` ended
    /// with its input; `None` if the channel was broken before.
    pub(super) async fn run(
        mut self,
        on_idle: impl Fn(),
        on_closing: impl FnOnce(&Closing),
        has_clients: impl Fn() -> bool,
    ) -> Option<bool> {
        let opened = Moment::now().instant;
        let mut commands = 0;
        let (closing, last) = loop {
            let idle = idle(&has_clients);
            let (order, reply) = tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    None => break (Closing::Planned("no command can use it"), None),
                    Some(order) => order,
                },
                () = self.close.cancelled() => break (Closing::Planned("it was asked to"), None),
                () = self.link.broken() => break (Closing::Broken("orbctl ended it".into()), None),
                () = idle => break (Closing::Planned("it was idle"), None),
            };
            commands += 1;
            let answer = serve(&mut self.link, order).await;
            let closing = match &answer {
                Err((NotStarted { reason, is_stale }, _)) if *is_stale => Closing::Stale(reason.clone()),
                Err((NotStarted { reason, .. }, _)) => Closing::Broken(reason.clone()),
                Ok(Served::MayHaveRun(reason)) => Closing::Broken((*reason).into()),
                Ok(Served::Ended { .. }) if !self.link.is_usable() => {
                    Closing::Broken("a command left its output open, or had to be abandoned".into())
                }
                Ok(Served::Ended { .. }) if commands >= COMMANDS_MAX => {
                    Closing::Planned("it served enough commands")
                }
                Ok(Served::Ended { .. })
                    if Moment::now().instant.saturating_duration_since(opened) >= AGE_MAX =>
                {
                    Closing::Planned("it is old")
                }
                Ok(Served::Ended { .. }) => {
                    on_idle();
                    // Fails if the caller has gone.
                    let _ = reply.send(answer);
                    continue;
                }
            };
            break (closing, Some((answer, reply)));
        };
        let was_intact = !matches!(closing, Closing::Broken(_));
        tracing::debug!(reason = closing.reason(), commands, "closing a channel");
        on_closing(&closing);
        if let Some((answer, reply)) = last {
            let _ = reply.send(answer);
        }
        self.orders.close();
        if let Ok((order, reply)) = self.orders.try_recv() {
            // It came in the moment in which the channel closed, and was not sent.
            let _ = reply.send(Err((NotStarted::because(CLOSED), order)));
        }
        let has_ended_with_its_input = self.link.close().await;
        // Fails if nothing waits for it.
        let _ = self.closed.send(true);
        was_intact.then_some(has_ended_with_its_input)
    }
}

/// Waits until a channel was idle for long enough to be closed.
async fn idle(has_clients: impl Fn() -> bool) {
    let since = Moment::now().instant;
    while Moment::now().instant.saturating_duration_since(since) < IDLE_MAX {
        tokio::time::sleep(NO_CLIENT_MAX).await;
        if !has_clients() {
            return;
        }
    }
}

async fn serve(link: &mut Link, mut order: Order) -> Answer {
    let limits = Limits {
        stop: &order.options.stop,
        run_timeout: order.options.run_timeout,
        grace: order.options.grace,
    };
    let identity = link.identity();
    let started = &mut order.options.started;
    let on_start = || {
        if let (Some(identity), Some(started)) = (identity, started.take()) {
            // Fails if the receiver was dropped, which is harmless.
            let _ = started.send(Started {
                child: identity,
                in_channel: true,
            });
        }
    };
    let served = link.run(&order.command, &order.output, &limits, on_start).await;
    served.map_err(|not_started| (not_started, order))
}
