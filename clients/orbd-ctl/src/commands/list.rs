//! `list`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use orbd_client::Client;
use orbd_proto::methods::{MachineDefault, MachineInfo, MachineList};
use orbd_proto::types::{EventKind, MachineInfoParams, MachineListAnswer, ReadParams};

use super::watch::{View, watch};
use crate::args::AgeArgs;
use crate::console::now;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render::{self, MachineColumns, MachineDetails};

/// `list`.
#[derive(Debug, Args, Default)]
pub(crate) struct ListArgs {
    /// Print names only, one per line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only running machines
    #[arg(short, long)]
    pub(crate) running: bool,
    /// Output format; wide adds user, IPv6 address and id; json is the same as --json
    #[arg(
        short,
        long,
        visible_short_alias = 'o',
        visible_alias = "output",
        value_name = "FORM",
        value_enum
    )]
    pub(crate) format: Option<ListFormat>,
    /// Print the list again whenever it changes, until Ctrl-C
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// Values of `list --format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// A table
    Text,
    /// JSON
    Json,
    /// A table with more columns
    Wide,
}

/// How long `list` waits for addresses and sizes that orbd has not cached. It prints the others without them.
const DETAILS_MAX: Duration = Duration::from_secs(1);

/// Lists machines.
pub(super) fn list(context: &mut Context, args: &ListArgs) -> Result<ExitCode, CliError> {
    if args.watch {
        use EventKind as K;
        let kinds = [
            K::MachinesKnown,
            K::MachineAppeared,
            K::MachineChanged,
            K::MachineGone,
            K::OrbstackChanged,
        ];
        return watch(context, &kinds, None, &mut |context| list_once(context, args));
    }
    list_once(context, args)?.print(&mut context.console)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns what `list` prints.
fn list_once(context: &mut Context, args: &ListArgs) -> Result<View, CliError> {
    let params = ReadParams {
        max_age_ms: args.age.max_age_ms(),
    };
    let watch = Wait::Ours("list", "list".into());
    let (client, mut answer) = context.look_and_keep::<MachineList>(watch, &params)?;
    if args.running {
        answer.machines.retain(|machine| machine.state == "running");
    }
    let is_table = !args.quiet && !context.console.json;
    let details = if is_table && !answer.observed.stale {
        details(client, &answer)
    } else {
        MachineDetails::default()
    };
    let text = context.console.format(&answer, |answer, look| {
        if args.quiet {
            answer
                .machines
                .iter()
                .fold(String::new(), |text, machine| text + &machine.name + "\n")
        } else {
            let columns = match args.format {
                Some(ListFormat::Wide) => MachineColumns::Wide(&details),
                _ => MachineColumns::Details(&details),
            };
            render::machines(answer, columns, look)
        }
    })?;
    let mut notes = Vec::new();
    if answer.machines.is_empty() && is_table {
        notes.push(if args.running {
            "no running machines; `orbd-ctl list` includes stopped machines".to_owned()
        } else {
            "no machines; `orbd-ctl create ubuntu` creates one".to_owned()
        });
    }
    notes.extend(render::staleness(&answer.observed));
    Ok(View { text, notes })
}

/// Reads what the list of `orbctl` does not contain as JSON: the default machine, addresses and sizes. What is not known in time stays
/// empty; orbd continues to read it, so the next list has it.
fn details(mut client: Client, answer: &MachineListAnswer) -> MachineDetails {
    let mut details = MachineDetails::default();
    let deadline = now() + DETAILS_MAX;
    let left = || {
        deadline
            .saturating_duration_since(now())
            .max(Duration::from_millis(1))
    };
    if answer.machines.is_empty() {
        return details;
    }
    let Ok(sent) = client.send_one::<MachineDefault>(&ReadParams::default()) else {
        return details;
    };
    if let Ok(Some(default)) = client.fetch(&sent, left()) {
        details.default = default.machine;
    }
    let params: Vec<MachineInfoParams> = answer
        .machines
        .iter()
        .map(|machine| MachineInfoParams {
            machine: machine.name.clone(),
            max_age_ms: None,
        })
        .collect();
    let Ok(sent) = client.send_each::<MachineInfo>(&params) else {
        return details;
    };
    for (sent, machine) in sent.iter().zip(&answer.machines) {
        // A machine that was deleted meanwhile has no details.
        if let Ok(Some(info)) = client.fetch(sent, left()) {
            details.infos.insert(machine.name.clone(), info);
        }
    }
    details
}

#[cfg(test)]
mod tests {
    use orbd_proto::errors::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::fake::{self, Fake};

    fn with_machines() -> Fake {
        Fake::new(|peer, request| {
            let mut answer = serde_json::to_value(fake::observed()).unwrap();
            match request["method"].as_str() {
                Some("machine.default") => answer["machine"] = json!("db"),
                Some("machine.info") if request["params"]["machine"] == "web" => {
                    answer["machine"] = json!(fake::machine("web", "running"));
                    answer["ip4"] = json!("192.168.139.64");
                    answer["disk_size"] = json!(2_100_000_000_u64);
                }
                Some("machine.info") => {
                    return peer.refuse(request, ErrorKind::MachineNotFound.error("it is gone"));
                }
                _ => {}
            }
            if request["method"] != "machine.list" {
                return peer.answer(request, answer);
            }
            answer["machines"] = json!([fake::machine("web", "running"), fake::machine("db", "stopped")]);
            answer["new_in_a_later_version"] = json!(true);
            peer.answer(request, answer);
        })
    }

    #[test]
    fn list_prints_a_table_names_or_json() {
        let check = |args: &ListArgs, json: bool, expected: &str| {
            let fake = with_machines();
            let (mut context, out, err) = fake.context();
            context.console.json = json;
            assert_eq!(list(&mut context, args).unwrap(), ExitCode::SUCCESS);
            assert!(out.text().starts_with(expected), "{}", out.text());
            assert_eq!(err.text(), "");
        };
        let table = "\
NAME  STATE    DISTRO  VERSION  ARCH   SIZE    IP              DEFAULT
web   running  ubuntu  noble    arm64  2.1 GB  192.168.139.64
db    stopped  ubuntu  noble    arm64  -       -               *
";
        check(&ListArgs::default(), false, table);
        let wide = ListArgs {
            format: Some(ListFormat::Wide),
            ..ListArgs::default()
        };
        check(
            &wide,
            false,
            "NAME  STATE    DISTRO  VERSION  ARCH   SIZE    IP              DEFAULT  USER",
        );
        let quiet = ListArgs {
            quiet: true,
            running: true,
            ..ListArgs::default()
        };
        check(&quiet, false, "web\n");
        check(
            &quiet,
            true,
            "{\"machines\":[{\"id\":\"01M4HXHNTVZXRXR1F5PV7GC8R7\",\"name\":\"web\"",
        );
    }

    #[test]
    fn an_error_is_printed_with_a_hint_and_as_json() {
        let fake = Fake::new(|peer, request| {
            peer.refuse(
                request,
                ErrorKind::OrbctlUnavailable.error("orbctl was not found"),
            );
        });
        let (mut context, out, err) = fake.context();
        context.console.json = true;
        let error = list(&mut context, &ListArgs::default()).expect_err("refused");
        assert_eq!(error.exit(), 1);
        error.tell(&mut context.console);
        assert_eq!(
            out.text(),
            "{\"error\":{\"code\":4001,\"message\":\"orbctl was not found\",\"data\":{\"kind\":\"orbctl_unavailable\",\"retryable\":false}}}\n"
        );
        assert!(
            err.text()
                .starts_with("orbd-ctl: orbctl was not found\nhint: install OrbStack")
        );
    }

    #[test]
    fn exits_with_3_if_the_daemon_is_not_running() {
        let fake = with_machines();
        let (mut context, ..) = fake.context();
        context.link.socket.set_file_name("nobody.sock");
        let error = list(&mut context, &ListArgs::default()).expect_err("no daemon listens");
        assert_eq!(error.exit(), 3);
        assert_eq!(error.hint().as_deref(), Some("`orbd-ctl daemon start` starts it"));
    }
}
