//! `ssh`.

use std::process::ExitCode;

use orbd_proto::methods::MachineSsh;
use orbd_proto::types::NoParams;

use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;

/// Shows how to connect to machines over SSH.
pub(super) fn ssh(context: &mut Context) -> Result<ExitCode, CliError> {
    let answer = context.look::<MachineSsh>(Wait::Ours("ssh", "ssh".into()), &NoParams {})?;
    context.console.answer(&answer, |answer, _| answer.text.clone())?;
    Ok(ExitCode::SUCCESS)
}
