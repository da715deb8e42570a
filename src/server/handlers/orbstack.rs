//! `orbstack.*`: OrbStack as a whole.

use crate::dispatcher::Read;
use crate::operation::Change;
use crate::server::convert;
use crate::server::registry::Registry;
use orbd_host::machine::{OrbctlVersion, OrbstackStatus as Status};
use orbd_proto::methods::{OrbstackStart, OrbstackStatus, OrbstackStop, OrbstackVersion};
use orbd_proto::types::{Observed, StatusAnswer, VersionAnswer};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<OrbstackStatus, _, _>(async |call, params| {
        call.read(Read::status(), params.max_age_ms, status).await
    });
    registry.method::<OrbstackVersion, _, _>(async |call, params| {
        call.read(Read::version(), params.max_age_ms, version).await
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

fn status(status: &Status, observed: Observed) -> StatusAnswer {
    StatusAnswer {
        status: status.as_str().into(),
        observed,
    }
}

fn version(version: &OrbctlVersion, observed: Observed) -> VersionAnswer {
    VersionAnswer {
        version: version.version.clone(),
        build: version.build,
        commit: version.commit.clone(),
        observed,
    }
}
