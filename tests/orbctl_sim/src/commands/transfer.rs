//! `push` and `pull`: copy files between the host and a machine.
//!
//! One side packs and the other unpacks, both with `tar` in a small script, so that several sources need to enter the
//! machine only once. The machine's side runs as its default user, and its paths are relative to that user's home.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use crate::Sim;
use crate::args::Words;
use crate::commands::run::awake;
use crate::guest::exec::{self, GuestCommand};
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;

/// Direction of the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Push,
    Pull,
}

impl Direction {
    /// Returns the command's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Push => "push",
            Direction::Pull => "pull",
        }
    }
}

/// A parsed `push` or `pull`.
pub(crate) struct Transfer {
    pub(crate) direction: Direction,
    pub(crate) machine: Option<String>,
    sources: Vec<OsString>,
    target: OsString,
}

/// Packs the files named by its arguments, each under its last path component.
const SEND: &str = r#"
for source do
    folder=$(cd "$(dirname -- "$source")" && pwd) || exit 1
    set -- "$@" -C "$folder" "$(basename -- "$source")"
    shift
done
exec tar -cf - "$@"
"#;

/// Unpacks into a folder, or renames the only file. `DIR/.` means the content of a folder, for which the target is
/// created. Its arguments: the target, then the sources' names.
const RECEIVE: &str = r#"
target=$1 name=$(basename -- "$2")
if [ $# -eq 2 ] && [ "$name" = . ]; then
    mkdir -p -- "$target" || exit 1
fi
if [ -d "$target" ]; then
    exec tar -xf - --no-same-owner -C "$target"
elif [ $# -gt 2 ]; then
    echo "$target: not a directory" >&2
    exit 1
fi
folder=$(mktemp -d "$(dirname -- "$target")/.orbctl-sim.XXXXXX") || exit 1
tar -xf - --no-same-owner -C "$folder" && mv -f -- "$folder/$name" "$target"
code=$?
rm -rf -- "$folder"
exit $code
"#;

/// Parses the arguments of `push` or `pull`. The last of several operands is the target.
pub(crate) fn read(direction: Direction, mut words: Words) -> Transfer {
    let target = if words.rest.len() > 1 {
        words.rest.pop()
    } else {
        None
    };
    Transfer {
        direction,
        machine: words.text("machine"),
        target: target.unwrap_or_else(|| OsString::from(".")),
        sources: words.rest,
    }
}

/// Copies the files.
pub(crate) fn execute(sim: &Sim<'_>, transfer: &Transfer) -> Outcome<Reply> {
    let name = transfer.direction.name();
    let machine = awake(sim, transfer.machine.as_deref())?;
    sim.settings.latency.pass(name);
    let send = script(SEND, transfer.sources.iter());
    let receive = script(
        RECEIVE,
        [&transfer.target].into_iter().chain(transfer.sources.iter()),
    );
    let (here, there) = match transfer.direction {
        Direction::Push => (send, receive),
        Direction::Pull => (receive, send),
    };
    // The host's side starts first: once this process has entered the machine, its paths are the machine's.
    let mut here_command = Command::new("sh");
    here_command.args(&here[1..]);
    let mut guest = GuestCommand {
        words: there,
        ..GuestCommand::default()
    };
    let mut here = match transfer.direction {
        Direction::Push => {
            let mut child = here_command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
            guest.stdin = child.stdout.take().map(Stdio::from);
            child
        }
        Direction::Pull => {
            let mut child = here_command.stdin(Stdio::piped()).spawn()?;
            guest.stdout = child.stdin.take().map(Stdio::from);
            guest.stdin = Some(Stdio::null());
            child
        }
    };
    // The host's side works in the caller's folder, for a pull and a push; the machine's side works in its home.
    guest.workdir = Some(".".into());
    let there = exec::run(sim, &machine, guest);
    let here = here.wait()?;
    let there = there.map_err(|error| Refusal::service(name, &machine.name, error))?;
    Ok(Reply::exit(u8::from(there != 0 || !here.success())))
}

fn script<'a>(script: &str, words: impl Iterator<Item = &'a OsString>) -> Vec<OsString> {
    let fixed = ["sh", "-c", script, "orbctl-sim"].map(OsString::from);
    fixed.into_iter().chain(words.cloned()).collect()
}
