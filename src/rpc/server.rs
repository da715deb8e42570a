//! What handlers have, and how they become jsonrpsee methods.

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

use super::api::{Method, Subscription};
use super::budget::{Budget, Permit};
use super::connection::Connection;
use super::errors::{ErrorKind, invalid};
use super::line_notifications::{self, Envelope};
use super::methods;
use super::subscriptions::{Line, LineSink, SMALL_LINE};
use super::types::{ErrorObject, ReloadAnswer};
use crate::clock::Moment;
use crate::dispatcher::{Client, Dispatcher};
use crate::metrics::Metrics;
use crate::upgrade::BinaryWatcher;

/// What every handler has.
pub struct Server {
    /// Decides and runs.
    pub dispatcher: Dispatcher,
    /// Remembers.
    pub metrics: Metrics,
    /// What `daemon.info` tells and never changes.
    pub info: InstanceInfo,
    /// What `daemon.info` tells and a reload may change.
    pub in_force: watch::Receiver<EffectiveConfig>,
    /// Says where `orbctl` is.
    pub orbctl: WhereOrbctl,
    /// Reads the configuration again.
    pub reload: Reload,
    /// Checks whether the program was replaced.
    pub binary_watcher: Arc<BinaryWatcher>,
    /// The program that takes over when the daemon is idle, or why it does not.
    pub upgrade: watch::Receiver<Option<Upgrade>>,
    /// Ends the daemon.
    pub stop: CancellationToken,
}

/// A program on disk that is not the one that runs.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// When it was noticed.
    pub noticed: Moment,
    /// Its version, or why it does not take over.
    pub preflight: Result<String, String>,
}

/// Says where `orbctl` is, if anywhere: it may come while we serve.
pub type WhereOrbctl = Box<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// Reads the configuration again and says what became of it, or what is wrong with it.
pub type Reload = Box<dyn Fn() -> BoxFuture<'static, Result<ReloadAnswer, String>> + Send + Sync>;

/// What `daemon.info` tells and a reload may change.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The configuration file that was read.
    pub config_file: Option<PathBuf>,
    /// Bounds by name.
    pub limits: BTreeMap<String, u64>,
    /// One invocation at a time.
    pub strict: bool,
}

/// What `daemon.info` tells and never changes.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// New at every start.
    pub instance: String,
    /// When the daemon started.
    pub started: Moment,
    /// The socket.
    pub socket: PathBuf,
    /// Where state is kept.
    pub state_dir: PathBuf,
}

/// A call's origin.
pub(super) struct Caller {
    connection: Option<Arc<Connection>>,
}

impl Caller {
    fn new(extensions: &Extensions) -> Self {
        Self {
            connection: extensions.get::<Arc<Connection>>().cloned(),
        }
    }

    /// Returns the client as the dispatcher knows it.
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

    /// Returns the connection.
    pub(super) fn connection(&self) -> Result<&Connection, ErrorObject> {
        self.connection
            .as_deref()
            .ok_or_else(|| super::convert::internal("a call came without its connection"))
    }
}

/// A client that asked for a subscription and was not answered yet.
pub(super) struct Subscriber {
    pub(super) pending: PendingSubscriptionSink,
    /// Every notification goes this way, so that they stay in order.
    pub(super) outlet: LineSink,
    /// What lines and their bytes are held by.
    pub(super) budget: Arc<Budget>,
}

impl Subscriber {
    /// Refuses the subscription.
    pub(super) async fn reject(self, error: ErrorObject) {
        self.pending.reject(owned(error)).await;
    }

    /// Accepts it. `None` when the client is gone.
    pub(super) async fn accept(self) -> Option<Notifier> {
        Some(Notifier {
            sink: self.pending.accept().await.ok()?,
            outlet: self.outlet,
            budget: self.budget,
        })
    }
}

/// A subscription that was accepted: its notifications leave here.
pub(super) struct Notifier {
    sink: SubscriptionSink,
    outlet: LineSink,
    budget: Arc<Budget>,
}

impl Notifier {
    /// Returns what notifications of it begin with.
    pub(super) fn envelope(&self) -> Envelope<'_> {
        Envelope {
            method: self.sink.method_name(),
            subscription: self.sink.subscription_id(),
        }
    }

    /// Returns what its lines are held by.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Returns when the client is gone or has ended the subscription.
    pub(super) async fn closed(&self) {
        self.sink.closed().await;
    }

    /// Sends an event, waiting for its turn and for room. `None` when the client is gone.
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

    /// Sends a line for which there is room, waiting for its turn.
    pub(super) async fn send_line(&self, bytes: Vec<u8>, permit: Option<Permit>) -> Option<()> {
        let line = Line { bytes, permit };
        (!self.sink.is_closed() && self.outlet.send(line).await).then_some(())
    }
}

/// Builds every method.
pub fn methods(server: Arc<Server>) -> Methods {
    let mut registry = Registry {
        module: RpcModule::from_arc(server),
    };
    methods::register(&mut registry);
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
                    super::convert::internal(&format!("{} cannot be encoded: {error}", M::NAME))
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
                    // A handler that panics is our fault alone: the caller is told, and the connection goes on.
                    let call = async move {
                        let parsed = parse::<M::Params>(&params)?;
                        // Long parameters are not held twice while they are handled.
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
                    let (Some(outlet), Ok(connection)) = (extensions.get::<LineSink>(), caller.connection())
                    else {
                        let error = super::convert::internal("a subscription came without its connection");
                        return pending.reject(owned(error)).await;
                    };
                    let subscriber = Subscriber {
                        pending,
                        outlet: outlet.clone(),
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

/// Parses parameters, naming the field that is wrong.
pub(super) fn parse<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, ErrorObject> {
    let text = match params.as_str() {
        None => "{}",
        Some(text) if text.trim_start().starts_with('{') => text,
        // An empty list is what clients without named parameters send for "none".
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
        // Serde reports a missing field at its parent and names it in the text alone.
        let missing = text
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next())
            .map(str::to_owned);
        let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
        match missing {
            Some(field) => invalid(&field, "is missing"),
            None if path == "." => ErrorKind::InvalidParams.error(format!("params: {text}")),
            None => invalid(&path, text),
        }
    })
}
