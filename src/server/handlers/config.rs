//! `config.*`: OrbStack's configuration.

use std::collections::BTreeMap;

use crate::clock::Moment;
use crate::dispatcher::QueryAnswer;
use crate::operation::{Change, Query};
use crate::server::convert::{self, parse};
use crate::server::errors;
use crate::server::registry::Registry;
use orbd_proto::errors::invalid;
use orbd_proto::methods::{ConfigGet, ConfigReset, ConfigSet, ConfigShow};
use orbd_proto::types::{ConfigAnswer, ConfigGetAnswer};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<ConfigShow, _, _>(async |call, params| {
        let seen = call.read(Query::ConfigShow, params.max_age_ms).await?;
        let QueryAnswer::Config(values) = &seen.value.answer else {
            return Err(errors::internal(
                "the answer for the configuration has an unexpected type",
            ));
        };
        Ok(ConfigAnswer {
            values: config(values),
            observed: convert::observed(&seen, &Moment::now()),
        })
    });
    registry.method::<ConfigGet, _, _>(async |call, params| {
        let _: crate::operation::ConfigKey = parse("key", &params.key)?;
        let seen = call.read(Query::ConfigShow, params.max_age_ms).await?;
        let QueryAnswer::Config(values) = &seen.value.answer else {
            return Err(errors::internal(
                "the answer for the configuration has an unexpected type",
            ));
        };
        let value = values
            .iter()
            .find(|(key, _)| *key == params.key)
            .map(|(_, value)| value.clone());
        Ok(ConfigGetAnswer {
            value,
            observed: convert::observed(&seen, &Moment::now()),
        })
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

/// Converts configuration keys and values.
fn config(values: &[(String, String)]) -> BTreeMap<String, String> {
    values.iter().cloned().collect()
}
