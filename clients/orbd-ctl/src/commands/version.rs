//! `version`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::OrbstackVersion;
use orbd_proto::protocol::ProtocolRange;
use orbd_proto::types::ReadParams;

use crate::args::AgeArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::link;
use crate::progress::Wait;

/// `version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// Shows the versions of orbctl, orbd and orbd-ctl.
pub(super) fn version(context: &mut Context, args: &VersionArgs) -> Result<ExitCode, CliError> {
    let ours = format!(
        "orbd-ctl  {}, {}\n",
        env!("CARGO_PKG_VERSION"),
        ProtocolRange::OURS
    );
    if !context.console.json {
        // Printed first, so that they are visible even if the call to orbctl fails.
        context.console.print(ours.as_bytes())?;
        let mut client = context.connect()?;
        let hello = link::greet(&mut client, &context.link.socket)?;
        let theirs = format!("orbd      {}, protocol {}\n", hello.version, hello.protocol);
        context.console.print(theirs.as_bytes())?;
    }
    let params = ReadParams {
        max_age_ms: args.age.max_age_ms(),
    };
    let answer = context.look::<OrbstackVersion>(Wait::Ours("version", "version".into()), &params)?;
    context.console.answer(&answer, |answer, _| {
        let build = answer
            .build
            .map_or_else(String::new, |build| format!(", build {build}"));
        format!("orbctl    {}{build}\n", answer.version)
    })?;
    Ok(ExitCode::SUCCESS)
}
