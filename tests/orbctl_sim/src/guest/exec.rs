//! Runs one command in a machine and waits for it.
//!
//! Arguments stay separate. The real tool sends them, quoted, through the user's login shell. For a word that names a
//! program and no builtin, that shell would only `exec` the program, so the shell is left out here. Everything else
//! goes through the shell, which prints `command not found` and exits with 127.
//!
//! The streams are separate and byte for byte; `relay` carries them. Without a terminal the command has a process group
//! of its own, to which SIGTERM, SIGINT and SIGHUP are passed on. SIGKILL cannot be passed on: then the command keeps
//! running without its caller's streams.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

use crate::Sim;
use crate::guest::Isolation;
use crate::guest::accounts::Account;
use crate::guest::directory::Note;
use crate::guest::namespaces::{self, Identity};
use crate::guest::relay::Relay;
use crate::state::Machine;

/// A command for a machine.
#[derive(Default)]
pub(crate) struct GuestCommand {
    /// The machine's default user if `None`.
    pub(crate) user: Option<String>,
    pub(crate) workdir: Option<PathBuf>,
    /// Whether the login shell reads its profile first, which takes time.
    pub(crate) profile: bool,
    /// Names of variables to pass, in addition to those that are always passed.
    pub(crate) pass: Vec<OsString>,
    /// The command and its args; an interactive shell if empty.
    pub(crate) words: Vec<OsString>,
    pub(crate) stdin: Option<Stdio>,
    pub(crate) stdout: Option<Stdio>,
    pub(crate) stderr: Option<Stdio>,
}

/// Variables that are always passed to a machine.
const PASSING: [&str; 10] = [
    "TERM",
    "DISPLAY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Words that a login shell handles itself, or differently from the program of the same name.
const SHELL_WORDS: [&str; 52] = [
    ".", ":", "[", "alias", "bg", "bind", "break", "builtin", "caller", "case", "cd", "command", "compgen",
    "complete", "continue", "declare", "dirs", "disown", "do", "echo", "enable", "eval", "exec", "exit",
    "export", "fc", "fg", "for", "getopts", "hash", "help", "history", "if", "jobs", "kill", "let", "local",
    "popd", "printf", "pushd", "pwd", "read", "return", "set", "shift", "source", "test", "time", "trap",
    "type", "ulimit", "umask",
];

/// Runs the command to its end and returns its exit code. With an isolated machine, this process is in the machine
/// afterwards and must not use a path of the host again.
pub(crate) fn run(sim: &Sim<'_>, machine: &Machine, mut command: GuestCommand) -> Result<u8> {
    let session = is_session(&command);
    let relay = Relay::start(&mut command)?;
    let prepared = match machine.isolation {
        Isolation::Dir => in_directory(sim, machine, command)?,
        Isolation::Root => in_namespaces(sim, machine, command)?,
    };
    let end = wait(prepared, session)?;
    relay.finish(end.is_asked_for);
    Ok(end.code)
}

/// Returns whether the command works on the caller's terminal. Then the terminal sends it signals by itself.
fn is_session(command: &GuestCommand) -> bool {
    command.stdin.is_none()
        && (std::io::stdin().is_terminal() || (command.words.is_empty() && std::io::stdout().is_terminal()))
}

/// A command that is ready to be started, and the user to start it as.
struct Prepared {
    command: Command,
    identity: Option<(Account, Vec<u32>)>,
    /// The folder of a directory machine, where running commands are noted.
    noted_in: Option<PathBuf>,
}

/// How a command ended.
struct End {
    code: u8,
    /// Whether a signal was passed on to it.
    is_asked_for: bool,
}

fn in_directory(sim: &Sim<'_>, machine: &Machine, mut command: GuestCommand) -> Result<Prepared> {
    // The host's profile would set a PATH on which `sudo` is the host's.
    command.profile = false;
    let default = &machine.config.default_username;
    if let Some(user) = command.user.as_ref().filter(|user| *user != default) {
        bail!(
            "orbctl-sim: this machine is a plain directory without isolation; \
             running as '{user}' is refused"
        );
    }
    let folder = sim.store.machine_folder(&machine.id);
    let account = Account {
        name: default.clone(),
        uid: 0,
        gid: 0,
        home: folder.join("home").to_string_lossy().into_owned(),
        shell: if Path::new("/bin/bash").exists() {
            "/bin/bash"
        } else {
            "/bin/sh"
        }
        .to_owned(),
    };
    let path = format!("{}:{GUEST_PATH}", folder.join("bin").display());
    let home = PathBuf::from(&account.home);
    let workdir = match (&command.workdir, shared_folder(sim, machine)) {
        (Some(workdir), _) => home.join(workdir),
        (None, Some(shared)) => shared,
        (None, None) => home,
    };
    if !workdir.is_dir() {
        bail!("chdir {}: no such file or directory", workdir.display());
    }
    let mut prepared = prepare(command, &account, &path, &workdir, |value| value);
    prepared.noted_in = Some(folder);
    Ok(prepared)
}

/// Returns the caller's folder if the machine has it: below the caller's home, unless the machine is isolated. The path
/// means the same in the machine, which has the same tree.
fn shared_folder(sim: &Sim<'_>, machine: &Machine) -> Option<PathBuf> {
    let current = std::env::current_dir().ok();
    let in_home = |folder: &PathBuf| folder.starts_with(&sim.settings.user_home);
    current.filter(in_home).filter(|_| !machine.config.isolated)
}

fn in_namespaces(sim: &Sim<'_>, machine: &Machine, command: GuestCommand) -> Result<Prepared> {
    let shared = shared_folder(sim, machine);
    namespaces::enter(machine.resident.context("the machine is not running")?)?;

    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd of the machine")?;
    let user = command.user.as_ref().unwrap_or(&machine.config.default_username);
    let account = Account::find(&passwd, user).with_context(|| format!("user not found: '{user}'"))?;
    let groups = account.groups(&fs::read_to_string("/etc/group").unwrap_or_default());

    // Folders are checked as the user who will work there.
    let identity = Identity::take(&account, &groups)?;
    let enterable = |folder: &Path| folder.is_dir() && access(folder, Access::EXEC_OK).is_ok();
    let home = PathBuf::from(&account.home);
    let folder = match (&command.workdir, shared) {
        (Some(workdir), _) => {
            let folder = home.join(workdir);
            if !folder.is_dir() {
                bail!("chdir {}: no such file or directory", folder.display());
            }
            folder
        }
        (None, Some(shared)) if enterable(&shared) => shared,
        (None, _) if enterable(&home) => home,
        (None, _) => PathBuf::from("/"),
    };
    // A proxy on the host's own address is reached by the host's name.
    let translate = |value: OsString| match value.to_str() {
        Some(text) => text
            .replace("//127.0.0.1", "//host.orb.internal")
            .replace("//localhost", "//host.orb.internal")
            .into(),
        None => value,
    };
    let mut prepared = prepare(command, &account, GUEST_PATH, &folder, translate);
    drop(identity);
    prepared.identity = Some((account, groups));
    Ok(prepared)
}

fn prepare(
    command: GuestCommand,
    account: &Account,
    path: &str,
    folder: &Path,
    translate: impl Fn(OsString) -> OsString,
) -> Prepared {
    let mut child = shell_or_program(&command, account, path);
    child.env_clear();
    for name in PASSING {
        if let Some(value) = std::env::var_os(name) {
            let proxy = name.to_ascii_lowercase().ends_with("_proxy");
            child.env(name, if proxy { translate(value) } else { value });
        }
    }
    let listed = std::env::var_os("ORBENV").unwrap_or_default();
    let listed = listed
        .as_bytes()
        .split(|byte| *byte == b':')
        .map(OsStr::from_bytes);
    for name in listed.chain(command.pass.iter().map(OsString::as_os_str)) {
        // `-e NAME=VALUE` gives the value itself.
        let bytes = name.as_bytes();
        if let Some(at) = bytes.iter().position(|byte| *byte == b'=') {
            child.env(
                OsStr::from_bytes(&bytes[..at]),
                OsStr::from_bytes(&bytes[at + 1..]),
            );
        } else if let Some(value) = std::env::var_os(name).filter(|_| !name.is_empty()) {
            child.env(name, value);
        }
    }
    child
        .env("PATH", path)
        .env("HOME", &account.home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name)
        .env("SHELL", &account.shell)
        .env("PWD", folder)
        .current_dir(folder)
        .stdin(command.stdin.unwrap_or_else(Stdio::inherit))
        .stdout(command.stdout.unwrap_or_else(Stdio::inherit))
        .stderr(command.stderr.unwrap_or_else(Stdio::inherit));
    Prepared {
        command: child,
        identity: None,
        noted_in: None,
    }
}

/// Returns the program itself if the shell would only `exec` it, else the login shell.
fn shell_or_program(command: &GuestCommand, account: &Account, path: &str) -> Command {
    if let Some((first, rest)) = command.words.split_first()
        && !command.profile
        && let Some(program) = program(first, path)
    {
        let mut child = Command::new(program);
        child.arg0(first).args(rest);
        return child;
    }
    let shell = Path::new(&account.shell);
    let name = shell.file_name().unwrap_or(shell.as_os_str()).to_string_lossy();
    let mut child = Command::new(shell);
    child.arg0(format!("-{name}"));
    if !command.profile && name == "bash" {
        child.arg("--noprofile");
    }
    if !command.words.is_empty() {
        child.arg("-c").arg(quoted(&command.words));
    }
    child
}

/// Returns the program that a first word names, unless the word means something else to a shell.
fn program(word: &OsStr, path: &str) -> Option<PathBuf> {
    let runs = |file: &Path| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    if word.as_bytes().contains(&b'/') {
        let file = PathBuf::from(word);
        return (file.is_absolute() && runs(&file)).then_some(file);
    }
    if word.is_empty() || word.to_str().is_some_and(|word| SHELL_WORDS.contains(&word)) {
        return None;
    }
    path.split(':')
        .map(|folder| Path::new(folder).join(word))
        .find(|file| runs(file))
}

/// Joins the words to one shell text in which each stays one word.
fn quoted(words: &[OsString]) -> OsString {
    let mut text = Vec::new();
    for word in words {
        if !text.is_empty() {
            text.push(b' ');
        }
        text.push(b'\'');
        for byte in word.as_bytes() {
            match byte {
                b'\'' => text.extend_from_slice(b"'\\''"),
                byte => text.push(*byte),
            }
        }
        text.push(b'\'');
    }
    OsString::from_vec(text)
}

/// Starts the command, passes signals on and waits for its end.
fn wait(prepared: Prepared, session: bool) -> Result<End> {
    let Prepared {
        mut command,
        identity,
        noted_in,
    } = prepared;
    if !session {
        command.process_group(0);
    }
    let mut is_asked_for = false;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let status: ExitStatus = runtime.block_on(async {
        // The handlers are installed before the command starts, so that no signal is lost in between.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let program = command.get_program().to_os_string();
        let taken = identity
            .map(|(user, groups)| Identity::take(&user, &groups))
            .transpose()?;
        let child = tokio::process::Command::from(command).spawn();
        drop(taken);
        let mut child = child.with_context(|| format!("start {}", program.display()))?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let on_job_event = noted_in.zip(group);
        let _note = on_job_event.and_then(|(folder, pid)| Note::write(&folder, pid.as_raw_pid()));
        let mut pass = |signal: Signal| {
            is_asked_for = true;
            // In a terminal session the terminal has sent the signal to the command already.
            if let Some(group) = group.filter(|_| !session) {
                let _ = kill_process_group(group, signal);
            }
        };
        loop {
            tokio::select! {
                status = child.wait() => break Ok::<_, anyhow::Error>(status?),
                _ = terminate.recv() => pass(Signal::TERM),
                _ = interrupt.recv() => pass(Signal::INT),
                _ = hangup.recv() => pass(Signal::HUP),
            }
        }
    })?;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Ok(End {
        code: u8::try_from(code).unwrap_or(255),
        is_asked_for,
    })
}
