//! Registers handlers as jsonrpsee methods and subscriptions.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use jsonrpsee::types::Params;
use jsonrpsee::{Methods, RpcModule};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::call::Call;
use super::context::Server;
use super::errors;
use super::notifier::{Subscriber, owned};
use super::subscriptions::LineSink;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{Method, Subscription};
use orbd_proto::types::ErrorObject;

pub(super) struct Registry {
    module: RpcModule<Server>,
}

impl Registry {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            module: RpcModule::from_arc(server),
        }
    }

    /// Returns the methods that were added.
    pub(super) fn into_methods(self) -> Methods {
        self.module.into()
    }

    pub(super) fn method<M, F, Fut>(&mut self, handler: F)
    where
        M: Method,
        F: Fn(Call, M::Params) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Answer, ErrorObject>> + Send,
        M::Answer: Clone,
    {
        self.encoded::<M, _, _>(move |call, params| {
            let answer = handler(call, params);
            async move {
                let answer = answer.await?;
                serde_json::value::to_raw_value(&answer).map_err(|error| {
                    errors::internal(&format!("cannot encode the answer of {}: {error}", M::NAME))
                })
            }
        });
    }

    /// Adds a method whose handler encodes its answer itself.
    pub(super) fn encoded<M, F, Fut>(&mut self, handler: F)
    where
        M: Method,
        F: Fn(Call, M::Params) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Box<RawValue>, ErrorObject>> + Send,
    {
        let added = self
            .module
            .register_async_method(M::NAME, move |params, server, extensions| {
                let handler = handler.clone();
                async move {
                    // A panic in a handler becomes an error for the caller; the connection stays open.
                    let call = async move {
                        let parsed = parse::<M::Params>(&params)?;
                        // Long parameters are not kept twice while they are handled.
                        drop(params);
                        handler(Call::new(server, &extensions)?, parsed).await
                    };
                    let answer = AssertUnwindSafe(call).catch_unwind().await;
                    answer
                        .unwrap_or_else(|_| Err(errors::internal(&format!("{} panicked", M::NAME))))
                        .map_err(owned)
                }
            });
        assert!(added.is_ok(), "{} is registered once", M::NAME);
    }

    pub(super) fn subscription<S, F, Fut>(&mut self, handler: F)
    where
        S: Subscription,
        F: Fn(Call, S::Params, Subscriber) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let added = self.module.register_subscription(
            S::NAME,
            S::NOTIFICATION,
            S::UNSUBSCRIBE,
            move |params, pending, server, extensions| {
                let handler = handler.clone();
                async move {
                    let (Some(line_sink), Ok(call)) =
                        (extensions.get::<LineSink>(), Call::new(server, &extensions))
                    else {
                        let error = errors::internal("a subscription has no connection");
                        return pending.reject(owned(error)).await;
                    };
                    let subscriber = Subscriber {
                        pending,
                        line_sink: line_sink.clone(),
                        budget: call.connection.budget().clone(),
                    };
                    match parse::<S::Params>(&params) {
                        Ok(params) => handler(call, params, subscriber).await,
                        Err(error) => subscriber.reject(error).await,
                    }
                }
            },
        );
        assert!(added.is_ok(), "{} is registered once", S::NAME);
    }
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
