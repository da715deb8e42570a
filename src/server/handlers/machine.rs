//! `machine.*`: reads and changes of machines.

use serde_json::value::RawValue;

use crate::clock::Moment;
use crate::dispatcher::QueryAnswer;
use crate::operation::{LogScope, Operation, Query};
use crate::server::call::{change, read, resolve};
use crate::server::convert::{self, force, parse};
use crate::server::machine_list_cache;
use crate::server::registry::Registry;
use orbd_proto::methods::{
    MachineClone, MachineCreate, MachineDefault, MachineDelete, MachineInfo, MachineList, MachineLogs,
    MachineRename, MachineRestart, MachineSetDefault, MachineSsh, MachineStart, MachineStartAll, MachineStop,
    MachineStopAll,
};
use orbd_proto::types::{DefaultAnswer, TextAnswer};

pub(super) fn register(registry: &mut Registry) {
    reads(registry);
    changes(registry);
}

fn reads(registry: &mut Registry) {
    registry.encoded::<MachineList, _, _>(async |server, params, caller| {
        let seen = read(&server, &caller, Query::List, params.max_age_ms).await?;
        let mut json = Vec::new();
        if !machine_list_cache::machine_list(&seen, &Moment::now(), &mut json) {
            return Err(convert::internal(
                "the answer for the machine list has an unexpected type",
            ));
        }
        String::from_utf8(json)
            .ok()
            .and_then(|json| RawValue::from_string(json).ok())
            .ok_or_else(|| convert::internal("the encoded machine list is not valid JSON"))
    });
    registry.method::<MachineInfo, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let seen = read(&server, &caller, Query::Info(machine.name), params.max_age_ms).await?;
        match &seen.value.answer {
            QueryAnswer::Info(info) => Ok(convert::info(info, convert::observed(&seen, &Moment::now()))),
            _ => Err(convert::internal(
                "the answer for the machine's details has an unexpected type",
            )),
        }
    });
    registry.method::<MachineDefault, _, _>(async |server, params, caller| {
        let seen = read(&server, &caller, Query::Default, params.max_age_ms).await?;
        let QueryAnswer::Default(machine) = &seen.value.answer else {
            return Err(convert::internal(
                "the answer for the default machine has an unexpected type",
            ));
        };
        let machine = machine.as_ref().map(ToString::to_string);
        Ok(DefaultAnswer {
            machine,
            observed: convert::observed(&seen, &Moment::now()),
        })
    });
    registry.method::<MachineLogs, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let scope = if params.all {
            LogScope::All
        } else {
            LogScope::Default
        };
        let seen = read(&server, &caller, Query::Logs(machine.name, scope), None).await?;
        text(&seen.value.answer)
    });
    registry.method::<MachineSsh, _, _>(async |server, _params, caller| {
        let seen = read(&server, &caller, Query::Ssh, None).await?;
        text(&seen.value.answer)
    });
}

fn text(answer: &QueryAnswer) -> Result<TextAnswer, orbd_proto::types::ErrorObject> {
    match answer {
        QueryAnswer::Text(text) => Ok(TextAnswer { text: text.clone() }),
        _ => Err(convert::internal("the answer for a text has an unexpected type")),
    }
}

fn changes(registry: &mut Registry) {
    registry.method::<MachineCreate, _, _>(async |server, params, caller| {
        let operation = Operation::Create(convert::new_machine(&params)?);
        change(server, caller, operation, None, params.options()).await
    });
    registry.method::<MachineStart, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        change(
            server,
            caller,
            Operation::Start(machine.name),
            machine.id,
            params.options(),
        )
        .await
    });
    registry.method::<MachineStop, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let operation = Operation::Stop(machine.name, force(params.force));
        change(server, caller, operation, machine.id, params.options()).await
    });
    registry.method::<MachineRestart, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        change(
            server,
            caller,
            Operation::Restart(machine.name),
            machine.id,
            params.options(),
        )
        .await
    });
    registry.method::<MachineDelete, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let operation = Operation::Delete(machine.name);
        change(server, caller, operation, machine.id, params.options()).await
    });
    registry.method::<MachineRename, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let operation = Operation::Rename {
            from: machine.name,
            to: parse("new_name", &params.new_name)?,
        };
        change(server, caller, operation, machine.id, params.options()).await
    });
    registry.method::<MachineClone, _, _>(async |server, params, caller| {
        let machine = resolve(&server, &caller, "machine", &params.machine).await?;
        let copy = parse("new_name", &params.new_name)?;
        let operation = Operation::Clone {
            source: machine.name,
            copy,
        };
        change(server, caller, operation, machine.id, params.options()).await
    });
    registry.method::<MachineSetDefault, _, _>(async |server, params, caller| {
        let (name, id) = match &params.machine {
            Some(machine) => {
                let machine = resolve(&server, &caller, "machine", machine).await?;
                (Some(machine.name), machine.id)
            }
            None => (None, None),
        };
        change(server, caller, Operation::SetDefault(name), id, params.options()).await
    });
    registry.method::<MachineStartAll, _, _>(async |server, params, caller| {
        change(server, caller, Operation::StartAll, None, params.options()).await
    });
    registry.method::<MachineStopAll, _, _>(async |server, params, caller| {
        change(
            server,
            caller,
            Operation::StopAll(force(params.force)),
            None,
            params.options(),
        )
        .await
    });
}
