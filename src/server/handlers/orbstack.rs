//! `orbstack.*`: OrbStack as a whole.

use crate::clock::Moment;
use crate::dispatcher::QueryAnswer;
use crate::operation::{Change, Query};
use crate::server::registry::Registry;
use crate::server::{convert, errors};
use orbd_proto::methods::{OrbstackStart, OrbstackStatus, OrbstackStop, OrbstackVersion};
use orbd_proto::types::{StatusAnswer, VersionAnswer};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<OrbstackStatus, _, _>(async |call, params| {
        let seen = call.read(Query::Status, params.max_age_ms).await?;
        let QueryAnswer::Status(status) = &seen.value.answer else {
            return Err(errors::internal(
                "the answer for the status has an unexpected type",
            ));
        };
        Ok(StatusAnswer {
            status: status.as_str().into(),
            observed: convert::observed(&seen, &Moment::now()),
        })
    });
    registry.method::<OrbstackVersion, _, _>(async |call, params| {
        let seen = call.read(Query::Version, params.max_age_ms).await?;
        let QueryAnswer::Version(version) = &seen.value.answer else {
            return Err(errors::internal(
                "the answer for the version has an unexpected type",
            ));
        };
        Ok(VersionAnswer {
            version: version.version.clone(),
            build: version.build,
            commit: version.commit.clone(),
            observed: convert::observed(&seen, &Moment::now()),
        })
    });
    registry.method::<OrbstackStart, _, _>(async |call, params| {
        let operation = Change::StartOrbstack(convert::force(params.force));
        call.change(operation, None, params.options()).await
    });
    registry.method::<OrbstackStop, _, _>(async |call, params| {
        let operation = Change::StopOrbstack(convert::force(params.force));
        call.change(operation, None, params.options()).await
    });
}
