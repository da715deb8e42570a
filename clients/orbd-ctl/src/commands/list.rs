//! `list`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineList;
use orbd_proto::types::ReadParams;

use crate::args::{AgeArgs, FormatArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `list`.
#[derive(Debug, Args, Default)]
pub(crate) struct ListArgs {
    /// Print names only, one per line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only running machines
    #[arg(short, long)]
    pub(crate) running: bool,
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// Lists machines.
pub(super) fn list(context: &mut Context, args: &ListArgs) -> Result<ExitCode, CliError> {
    let params = ReadParams {
        max_age_ms: args.age.max_age_ms(),
    };
    let mut answer = context.look::<MachineList>(Wait::Ours("list", "list".into()), &params)?;
    if args.running {
        answer.machines.retain(|machine| machine.state == "running");
    }
    context.console.answer(&answer, |answer, look| {
        if args.quiet {
            answer
                .machines
                .iter()
                .fold(String::new(), |text, machine| text + &machine.name + "\n")
        } else {
            render::machines(answer, look)
        }
    })?;
    if answer.machines.is_empty() && !args.quiet && !context.console.json {
        context.console.eprint(if args.running {
            "no running machines; `orbd-ctl list` includes stopped machines"
        } else {
            "no machines; `orbd-ctl create ubuntu` creates one"
        });
    }
    if let Some(note) = render::staleness(&answer.observed) {
        context.console.eprint(&note);
    }
    Ok(ExitCode::SUCCESS)
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
        check(&ListArgs::default(), false, "NAME  STATE    DISTRO");
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
