//! `machine.*`: reads and changes of machines.

use serde_json::value::RawValue;

use crate::clock::Moment;
use crate::dispatcher::Read;
use crate::operation::{Change, LogScope, NewMachine};
use crate::server::convert::{self, force, parse, parse_optional};
use crate::server::registry::Registry;
use crate::server::{errors, machine_list_cache};
use orbd_host::machine::MachineName;
use orbd_proto::errors::invalid;
use orbd_proto::methods::{
    MachineClone, MachineCreate, MachineDefault, MachineDelete, MachineInfo, MachineList, MachineLogs,
    MachineRename, MachineRestart, MachineSetDefault, MachineSsh, MachineStart, MachineStartAll, MachineStop,
    MachineStopAll,
};
use orbd_proto::types::{self, DefaultAnswer, ErrorObject, TextAnswer};

pub(super) fn register(registry: &mut Registry) {
    reads(registry);
    changes(registry);
}

fn reads(registry: &mut Registry) {
    registry.encoded::<MachineList, _, _>(async |call, params| {
        let seen = call.observe(&Read::list(), params.max_age_ms).await?;
        let mut json = Vec::new();
        if !machine_list_cache::machine_list(&seen, &Moment::now(), &mut json) {
            return Err(errors::internal(
                "the answer for the machine list has an unexpected type",
            ));
        }
        String::from_utf8(json)
            .ok()
            .and_then(|json| RawValue::from_string(json).ok())
            .ok_or_else(|| errors::internal("the encoded machine list is not valid JSON"))
    });
    registry.method::<MachineInfo, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let info = Read::info(machine.name);
        call.read(info, params.max_age_ms, |info, observed| {
            info_answer(info, observed)
        })
        .await
    });
    registry.method::<MachineDefault, _, _>(async |call, params| {
        let answer = |machine: &Option<MachineName>, observed| DefaultAnswer {
            machine: machine.as_ref().map(ToString::to_string),
            observed,
        };
        let default = Read::default_machine();
        call.read(default, params.max_age_ms, answer).await
    });
    registry.method::<MachineLogs, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let scope = if params.all {
            LogScope::All
        } else {
            LogScope::Default
        };
        call.read(Read::logs(machine.name, scope), None, |log, _| text(log))
            .await
    });
    registry.method::<MachineSsh, _, _>(async |call, _params| {
        call.read(Read::ssh(), None, |settings, _| text(settings)).await
    });
}

fn text(text: &str) -> TextAnswer {
    TextAnswer {
        text: text.to_owned(),
    }
}

fn changes(registry: &mut Registry) {
    registry.method::<MachineCreate, _, _>(async |call, params| {
        let operation = Change::Create(new_machine(&params)?);
        call.change(operation, None, params.options()).await
    });
    registry.method::<MachineStart, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        call.change(Change::Start(machine.name), machine.id, params.options())
            .await
    });
    registry.method::<MachineStop, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let operation = Change::Stop(machine.name, force(params.force));
        call.change(operation, machine.id, params.options()).await
    });
    registry.method::<MachineRestart, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        call.change(Change::Restart(machine.name), machine.id, params.options())
            .await
    });
    registry.method::<MachineDelete, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let operation = Change::Delete(machine.name);
        call.change(operation, machine.id, params.options()).await
    });
    registry.method::<MachineRename, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let operation = Change::Rename {
            from: machine.name,
            to: parse("new_name", &params.new_name)?,
        };
        call.change(operation, machine.id, params.options()).await
    });
    registry.method::<MachineClone, _, _>(async |call, params| {
        let machine = call.resolve("machine", &params.machine).await?;
        let copy = parse("new_name", &params.new_name)?;
        let operation = Change::Clone {
            source: machine.name,
            copy,
        };
        call.change(operation, machine.id, params.options()).await
    });
    registry.method::<MachineSetDefault, _, _>(async |call, params| {
        let (name, id) = match &params.machine {
            Some(machine) => {
                let machine = call.resolve("machine", machine).await?;
                (Some(machine.name), machine.id)
            }
            None => (None, None),
        };
        call.change(Change::SetDefault(name), id, params.options()).await
    });
    registry.method::<MachineStartAll, _, _>(async |call, params| {
        call.change(Change::StartAll, None, params.options()).await
    });
    registry.method::<MachineStopAll, _, _>(async |call, params| {
        call.change(Change::StopAll(force(params.force)), None, params.options())
            .await
    });
}

/// Parses the parameters of a machine to create.
fn new_machine(params: &types::MachineCreateParams) -> Result<NewMachine, ErrorObject> {
    if params.cpus == Some(0) {
        return Err(invalid("cpus", "must be at least 1"));
    }
    Ok(NewMachine {
        name: parse("name", &params.name)?,
        distro: parse("distro", &params.distro)?,
        version: parse_optional("version", params.version.as_ref())?,
        arch: parse_optional("arch", params.arch.as_ref())?,
        user: parse_optional("user", params.user.as_ref())?,
        cpus: params.cpus,
        memory: parse_optional("memory", params.memory.as_ref())?,
        disk: parse_optional("disk", params.disk.as_ref())?,
        isolated: params.isolated,
        isolate_network: params.isolate_network,
        mounts: params
            .mounts
            .iter()
            .map(|mount| parse("mounts", mount))
            .collect::<Result<_, _>>()?,
        forward_ssh_agent: params.forward_ssh_agent,
    })
}

/// Converts the details of a machine.
fn info_answer(
    info: &orbd_host::machine::MachineInfo,
    observed: types::Observed,
) -> types::MachineInfoAnswer {
    types::MachineInfoAnswer {
        machine: convert::machine(&info.machine),
        disk_size: info.disk_size,
        ip4: info.ip4.map(|ip| ip.to_string()),
        ip6: info.ip6.map(|ip| ip.to_string()),
        observed,
    }
}
