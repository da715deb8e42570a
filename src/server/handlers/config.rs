//! `config.*`: OrbStack's configuration.

use crate::dispatcher::Read;
use crate::operation::Change;
use crate::server::convert::parse;
use crate::server::registry::Registry;
use orbd_proto::errors::invalid;
use orbd_proto::methods::{ConfigGet, ConfigReset, ConfigSet, ConfigShow};
use orbd_proto::types::{ConfigAnswer, ConfigGetAnswer};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<ConfigShow, _, _>(async |call, params| {
        let show = |values: &Vec<(String, String)>, observed| ConfigAnswer {
            values: values.iter().cloned().collect(),
            observed,
        };
        call.read(Read::config(), params.max_age_ms, show).await
    });
    registry.method::<ConfigGet, _, _>(async |call, params| {
        let _: crate::operation::ConfigKey = parse("key", &params.key)?;
        let get = |values: &Vec<(String, String)>, observed| {
            let found = values.iter().find(|(key, _)| *key == params.key);
            let value = found.map(|(_, value)| value.clone());
            ConfigGetAnswer { value, observed }
        };
        call.read(Read::config(), params.max_age_ms, get).await
    });
    registry.method::<ConfigSet, _, _>(async |call, params| {
        let options = params.options();
        if params.value.contains('\0') {
            return Err(invalid("value", "must not contain NUL bytes"));
        }
        let operation = Change::ConfigSet {
            key: parse("key", &params.key)?,
            value: params.value.into(),
        };
        call.change(operation, None, options).await
    });
    registry.method::<ConfigReset, _, _>(async |call, params| {
        call.change(Change::ConfigReset, None, params.options()).await
    });
}
