//! `config.*`: OrbStack's configuration.

use std::sync::Arc;

use crate::dispatcher::Read;
use crate::operation::{Change, ConfigKey};
use crate::server::convert::parse;
use crate::server::registry::Registry;
use orbd_proto::errors::invalid;
use orbd_proto::methods::{ConfigAdd, ConfigGet, ConfigRemove, ConfigReset, ConfigSet, ConfigShow};
use orbd_proto::types::{ConfigAnswer, ConfigGetAnswer, ErrorObject};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<ConfigShow, _, _>(async |call, params| {
        let show = |values: &Vec<(String, String)>, observed| ConfigAnswer {
            values: values.iter().cloned().collect(),
            observed,
        };
        call.read(Read::config(), params.max_age_ms, show).await
    });
    registry.method::<ConfigGet, _, _>(async |call, params| {
        let _: ConfigKey = parse("key", &params.key)?;
        let get = |values: &Vec<(String, String)>, observed| {
            let found = values.iter().find(|(key, _)| *key == params.key);
            let value = found.map(|(_, value)| value.clone());
            ConfigGetAnswer { value, observed }
        };
        call.read(Read::config(), params.max_age_ms, get).await
    });
    registry.method::<ConfigSet, _, _>(async |call, params| {
        let options = params.options();
        let (key, value) = setting(&params.key, params.value)?;
        call.change(Change::ConfigSet { key, value }, None, options).await
    });
    registry.method::<ConfigAdd, _, _>(async |call, params| {
        let options = params.options();
        let (key, value) = setting(&params.key, params.value)?;
        call.change(Change::ConfigAdd { key, value }, None, options).await
    });
    registry.method::<ConfigRemove, _, _>(async |call, params| {
        let options = params.options();
        let (key, value) = setting(&params.key, params.value)?;
        call.change(Change::ConfigRemove { key, value }, None, options)
            .await
    });
    registry.method::<ConfigReset, _, _>(async |call, params| {
        call.change(Change::ConfigReset, None, params.options()).await
    });
}

/// Checks a key and a value.
fn setting(key: &str, value: String) -> Result<(ConfigKey, Arc<str>), ErrorObject> {
    if value.contains('\0') {
        return Err(invalid("value", "must not contain NUL bytes"));
    }
    Ok((parse("key", key)?, value.into()))
}
