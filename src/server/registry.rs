//! The state that handlers share, and the registration of handlers as jsonrpsee methods.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jsonrpsee::core::server::{PendingSubscriptionSink, SubscriptionSink};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{Extensions, Methods, RpcModule};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Permit};
use super::connection::Connection;
use super::handlers;
use super::line_notifications::{self, Envelope};
use super::subscriptions::{Line, LineSink, SMALL_LINE};
use crate::clock::Moment;
use crate::dispatcher::{Client, Dispatcher};
use crate::metrics::Metrics;
use crate::upgrade::BinaryWatcher;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{Method, Subscription};
use orbd_proto::types::{ErrorObject, ReloadAnswer};

/// State shared by all handlers.
pub struct Server {
    /// Schedules and runs jobs.
    pub dispatcher: Dispatcher,
    /// Records operations and counters.
    pub metrics: Metrics,
    /// The part of `daemon.info` that never changes.
    pub info: InstanceInfo,
    /// The part of `daemon.info` that a reload may change.
    pub in_force: watch::Receiver<EffectiveConfig>,
    /// Returns the path of `orbctl`.
    pub orbctl: WhereOrbctl,
    /// Re-reads the configuration.
    pub reload: Reload,
    /// Checks whether the daemon's binary was replaced.
    pub binary_watcher: Arc<BinaryWatcher>,
    /// The new binary on disk; `None` if there is none.
    pub upgrade: watch::Receiver<Option<Upgrade>>,
    /// Cancelled to stop the daemon.
    pub stop: CancellationToken,
}

/// A new binary on disk that is not running.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// When it was detected.
    pub noticed: Moment,
    /// Version of the new binary, or why its preflight failed.
    pub preflight: Result<String, String>,
}

/// Returns the path of `orbctl`, or `None` if it is not found. It may be installed while the daemon runs.
pub type WhereOrbctl = Box<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// Re-reads the configuration. Returns what changed, or what is wrong with the configuration.
pub type Reload = Box<dyn Fn() -> BoxFuture<'static, Result<ReloadAnswer, String>> + Send + Sync>;

/// The part of `daemon.info` that a reload may change.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The configuration file that was read; `None` if there is none.
    pub config_file: Option<PathBuf>,
    /// Limits by configuration key.
    pub limits: BTreeMap<String, u64>,
    /// Whether `strict` is set: one job runs at a time, sessions excepted.
    pub strict: bool,
}

/// The part of `daemon.info` that never changes.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// Id of this run of the daemon.
    pub instance: String,
    /// When the daemon started.
    pub started: Moment,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Folder of the journal, the metrics and stored output.
    pub state_dir: PathBuf,
}

/// The caller of a method.
pub(super) struct Caller {
    connection: Option<Arc<Connection>>,
}

impl Caller {
    fn new(extensions: &Extensions) -> Self {
        Self {
            connection: extensions.get::<Arc<Connection>>().cloned(),
        }
    }

    /// Returns the client, as the dispatcher identifies it.
    pub(super) fn client(&self) -> Result<Client, ErrorObject> {
        let connection = self.connection()?;
        Ok(Client {
            id: connection.client(),
            connection: connection.id().0,
            gone: connection.gone().clone(),
            name: connection.name(),
            pid: connection.pid(),
            uid: connection.uid(),
        })
    }

    /// Returns the connection of the call.
    pub(super) fn connection(&self) -> Result<&Connection, ErrorObject> {
        self.connection
            .as_deref()
            .ok_or_else(|| super::convert::internal("a call has no connection"))
    }
}

/// A requested subscription that is not answered yet.
pub(super) struct Subscriber {
    pub(super) pending: PendingSubscriptionSink,
    /// All notifications go through it, which keeps them in order.
    pub(super) line_sink: LineSink,
    /// The budget that lines are charged to.
    pub(super) budget: Arc<Budget>,
}

impl Subscriber {
    /// Refuses the subscription.
    pub(super) async fn reject(self, error: ErrorObject) {
        self.pending.reject(owned(error)).await;
    }

    /// Accepts the subscription. Returns `None` if the client has disconnected.
    pub(super) async fn accept(self) -> Option<Notifier> {
        Some(Notifier {
            sink: self.pending.accept().await.ok()?,
            line_sink: self.line_sink,
            budget: self.budget,
        })
    }
}

/// Sends the notifications of an accepted subscription.
pub(super) struct Notifier {
    sink: SubscriptionSink,
    line_sink: LineSink,
    budget: Arc<Budget>,
}

impl Notifier {
    /// Returns the common part of its notifications.
    pub(super) fn envelope(&self) -> Envelope<'_> {
        Envelope {
            method: self.sink.method_name(),
            subscription: self.sink.subscription_id(),
        }
    }

    /// Returns the budget that its lines are charged to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Waits until the client has disconnected or ended the subscription.
    pub(super) async fn closed(&self) {
        self.sink.closed().await;
    }

    /// Sends an event, waiting for budget and for earlier lines. Returns `None` if the client has disconnected.
    pub(super) async fn send(&self, event: &impl Serialize) -> Option<()> {
        let line = line_notifications::line(self.envelope(), event)?;
        if line.len() <= SMALL_LINE {
            return self.send_line(line, None).await;
        }
        let permit = tokio::select! {
            permit = self.budget.take_some(line.len(), line.len()) => permit,
            () = self.closed() => return None,
        };
        self.send_line(line, Some(permit)).await
    }

    /// Sends a line that has been charged, waiting for earlier lines.
    pub(super) async fn send_line(&self, bytes: Vec<u8>, permit: Option<Permit>) -> Option<()> {
        let line = Line { bytes, permit };
        (!self.sink.is_closed() && self.line_sink.send(line).await).then_some(())
    }
}

/// Builds all methods.
pub fn methods(server: Arc<Server>) -> Methods {
    let mut registry = Registry {
        module: RpcModule::from_arc(server),
    };
    handlers::register(&mut registry);
    registry.module.into()
}

/// Collects methods.
pub(super) struct Registry {
    module: RpcModule<Server>,
}

impl Registry {
    /// Adds a method.
    pub(super) fn method<M, F, Fut>(&mut self, handler: F)
    where
        M: Method,
        F: Fn(Arc<Server>, M::Params, Caller) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Answer, ErrorObject>> + Send,
        M::Answer: Clone,
    {
        self.encoded::<M, _, _>(move |server, params, caller| {
            let answer = handler(server, params, caller);
            async move {
                let answer = answer.await?;
                serde_json::value::to_raw_value(&answer).map_err(|error| {
                    super::convert::internal(&format!("cannot encode the answer of {}: {error}", M::NAME))
                })
            }
        });
    }

    /// Adds a method whose handler encodes its answer itself.
    pub(super) fn encoded<M, F, Fut>(&mut self, handler: F)
    where
        M: Method,
        F: Fn(Arc<Server>, M::Params, Caller) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Box<RawValue>, ErrorObject>> + Send,
    {
        let added = self
            .module
            .register_async_method(M::NAME, move |params, server, extensions| {
                let handler = handler.clone();
                async move {
                    let caller = Caller::new(&extensions);
                    // A panic in a handler becomes an error for the caller; the connection stays open.
                    let call = async move {
                        let parsed = parse::<M::Params>(&params)?;
                        // Long parameters are not kept twice while they are handled.
                        drop(params);
                        handler(server, parsed, caller).await
                    };
                    let answer = AssertUnwindSafe(call).catch_unwind().await;
                    answer
                        .unwrap_or_else(|_| Err(super::convert::internal(&format!("{} panicked", M::NAME))))
                        .map_err(owned)
                }
            });
        assert!(added.is_ok(), "{} is registered once", M::NAME);
    }

    /// Adds a subscription.
    pub(super) fn subscription<S, F, Fut>(&mut self, handler: F)
    where
        S: Subscription,
        F: Fn(Arc<Server>, S::Params, Caller, Subscriber) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let added = self.module.register_subscription(
            S::NAME,
            S::NOTIFICATION,
            S::UNSUBSCRIBE,
            move |params, pending, server, extensions| {
                let handler = handler.clone();
                async move {
                    let caller = Caller::new(&extensions);
                    let (Some(line_sink), Ok(connection)) =
                        (extensions.get::<LineSink>(), caller.connection())
                    else {
                        let error = super::convert::internal("a subscription has no connection");
                        return pending.reject(owned(error)).await;
                    };
                    let subscriber = Subscriber {
                        pending,
                        line_sink: line_sink.clone(),
                        budget: connection.budget().clone(),
                    };
                    match parse::<S::Params>(&params) {
                        Ok(params) => handler(server, params, caller, subscriber).await,
                        Err(error) => subscriber.reject(error).await,
                    }
                }
            },
        );
        assert!(added.is_ok(), "{} is registered once", S::NAME);
    }
}

/// Converts to jsonrpsee's error.
pub(super) fn owned(error: ErrorObject) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(error.code, error.message, error.data)
}

/// Parses parameters; the error names the invalid field.
pub(super) fn parse<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, ErrorObject> {
    let text = match params.as_str() {
        None => "{}",
        Some(text) if text.trim_start().starts_with('{') => text,
        // Clients without named parameters send an empty list for no parameters.
        Some(text)
            if text
                .trim_start()
                .strip_prefix('[')
                .is_some_and(|rest| rest.trim() == "]") =>
        {
            "{}"
        }
        Some(_) => return Err(invalid("params", "must be an object with named parameters")),
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        let text = cause.to_string();
        // Serde reports a missing field at its parent and names it only in the text.
        let missing = text
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next())
            .map(str::to_owned);
        let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
        match missing {
            Some(field) => invalid(&field, "required parameter"),
            None if path == "." => ErrorKind::InvalidParams.error(format!("params: {text}")),
            None => invalid(&path, text),
        }
    })
}
