//! Read commands of `orbctl` whose output is passed on unchanged.

use bytes::Bytes;

use crate::dispatcher::RawOutput;
use crate::job::Ending;
use crate::operation::{Format, LogScope, RawQuery};
use crate::server::convert::parse;
use crate::server::encoding::text_or_base64;
use orbd_host::machine::MachineName;
use orbd_proto::errors::invalid;
use orbd_proto::types::{self, ErrorObject};

/// Rejects the first parameter that was supplied but is not accepted by `to`. Each item has the parameter's name, whether it was supplied,
/// and whether it is accepted.
pub(super) fn only_what_belongs<'a>(
    to: &str,
    parameters: impl IntoIterator<Item = (&'a str, bool, bool)>,
) -> Result<(), ErrorObject> {
    for (field, is_given, is_taken) in parameters {
        if is_given && !is_taken {
            return Err(invalid(field, format!("not accepted by this {to}")));
        }
    }
    Ok(())
}

/// Parses a read command of `orbctl`. Rejects a field that the command does not accept.
pub(super) fn raw_query(read: &types::RawRead) -> Result<RawQuery, ErrorObject> {
    use types::ReadCommand as R;
    let command = read.command;
    let takes_machine = matches!(command, R::Info | R::Logs);
    let takes_format = matches!(command, R::List | R::Info);
    only_what_belongs(
        "command",
        [
            ("read.machine", read.machine.is_some(), takes_machine),
            ("read.key", read.key.is_some(), command == R::ConfigGet),
            ("read.format", read.format.is_some(), takes_format),
            ("read.quiet", read.quiet, command == R::List),
            ("read.running", read.running, command == R::List),
            ("read.all", read.all, command == R::Logs),
        ],
    )?;
    let format = read.format.map(|format| match format {
        types::ReadFormat::Text => Format::Text,
        types::ReadFormat::Json => Format::Json,
    });
    let machine = || -> Result<MachineName, ErrorObject> {
        let missing = || invalid("read.machine", "required by this command");
        parse("read.machine", read.machine.as_ref().ok_or_else(missing)?)
    };
    Ok(match command {
        R::List => RawQuery::List {
            format,
            quiet: read.quiet,
            running: read.running,
        },
        R::Info => RawQuery::Info {
            machine: machine()?,
            format,
        },
        R::Status => RawQuery::Status,
        R::Version => RawQuery::Version,
        R::ConfigShow => RawQuery::ConfigShow,
        R::ConfigGet => {
            let missing = || invalid("read.key", "required by this command");
            RawQuery::ConfigGet(parse("read.key", read.key.as_ref().ok_or_else(missing)?)?)
        }
        R::Default => RawQuery::Default,
        R::Ssh => RawQuery::Ssh,
        R::Logs => {
            let scope = if read.all {
                LogScope::All
            } else {
                LogScope::Default
            };
            RawQuery::Logs(machine()?, scope)
        }
    })
}

/// Converts the output of `orbctl` and how it ended.
pub(super) fn raw_output(printed: &RawOutput, observed: types::Observed) -> types::RawOutputAnswer {
    let bytes = |bytes: &Bytes| {
        let (text, base64) = text_or_base64(bytes);
        types::RawStream { text, base64 }
    };
    let (exit_code, signal) = match printed.ending {
        Ending::Exited(code) => (Some(code), None),
        Ending::Signalled(signal) => (None, Some(signal)),
        // A read that ended this way fails with an error instead.
        Ending::TimedOut | Ending::Stopped => (None, None),
    };
    types::RawOutputAnswer {
        stdout: bytes(&printed.stdout),
        stderr: bytes(&printed.stderr),
        exit_code,
        signal,
        observed,
    }
}
