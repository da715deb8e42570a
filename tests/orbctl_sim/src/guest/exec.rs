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
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::Sim;
use crate::answers::{Answers, Orbenv, RunChildren, RunFolder, RunLost, RunProfile, RunShell, RunSignals};
use crate::guest::Isolation;
use crate::guest::accounts::Account;
use crate::guest::directory::Note;
use crate::guest::guard::Guard;
use crate::guest::namespaces::{self, Identity};
use crate::guest::relay::Relay;
use crate::guest::shells::{self, LoginShell};
use crate::script::Trouble;
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
    pub(crate) answers: Answers,
    /// How the client dies before the command ends.
    pub(crate) death: Option<Trouble>,
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
    let answers = command.answers;
    // On a terminal the command has no process group that could be ended without its client's.
    let guarded = answers.run_lost == RunLost::Killed && !session;
    let guard = guarded.then(Guard::start).transpose()?;
    let relay = Relay::start(&mut command)?;
    let prepared = match machine.isolation {
        Isolation::Dir => in_directory(sim, machine, command)?,
        Isolation::Root => in_namespaces(sim, machine, command)?,
    };
    wait(prepared, session, answers, relay, guard)
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

fn in_directory(sim: &Sim<'_>, machine: &Machine, command: GuestCommand) -> Result<Prepared> {
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
    shells::set_sh(command.answers.sh, &folder.join("bin"), GUEST_PATH)?;
    let mut prepared = prepare(command, &account, &path, &workdir, Some(&folder), |value| value)?;
    prepared.noted_in = Some(folder);
    Ok(prepared)
}

/// Returns the caller's folder if the machine has it: below the caller's home, unless the machine is isolated. The path
/// means the same in the machine, which has the same tree.
fn shared_folder(sim: &Sim<'_>, machine: &Machine) -> Option<PathBuf> {
    let current = std::env::current_dir().ok();
    let in_home = |folder: &PathBuf| folder.starts_with(&sim.settings.user_home);
    let keeps = sim.settings.answers.in_machine(&machine.name).run_folder == RunFolder::Kept;
    current
        .filter(in_home)
        .filter(|_| keeps && !machine.config.isolated)
}

fn in_namespaces(sim: &Sim<'_>, machine: &Machine, command: GuestCommand) -> Result<Prepared> {
    let shared = shared_folder(sim, machine);
    namespaces::enter(machine.resident.context("the machine is not running")?)?;
    shells::set_sh(command.answers.sh, Path::new("/usr/bin"), GUEST_PATH)?;

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
    let mut prepared = prepare(command, &account, GUEST_PATH, &folder, None, translate)?;
    drop(identity);
    prepared.identity = Some((account, groups));
    Ok(prepared)
}

fn prepare(
    command: GuestCommand,
    account: &Account,
    path: &str,
    folder: &Path,
    directory: Option<&Path>,
    translate: impl Fn(OsString) -> OsString,
) -> Result<Prepared> {
    let shell = LoginShell::choose(command.answers.run_shell, &account.shell, path)?;
    let variable = shell.variable();
    let mut child = shell_or_program(&command, shell, account, path, directory);
    child.env_clear();
    for name in PASSING {
        if let Some(value) = std::env::var_os(name) {
            let proxy = name.to_ascii_lowercase().ends_with("_proxy");
            child.env(name, if proxy { translate(value) } else { value });
        }
    }
    let listed = match command.answers.orbenv {
        Orbenv::Passed => std::env::var_os("ORBENV").unwrap_or_default(),
        Orbenv::Ignored => OsString::new(),
    };
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
        .env("SHELL", variable)
        .env("PWD", folder)
        .current_dir(folder)
        .stdin(command.stdin.unwrap_or_else(Stdio::inherit))
        .stdout(command.stdout.unwrap_or_else(Stdio::inherit))
        .stderr(command.stderr.unwrap_or_else(Stdio::inherit));
    Ok(Prepared {
        command: child,
        identity: None,
        noted_in: None,
    })
}

/// Returns the program itself if the shell would only `exec` it, else the login shell.
fn shell_or_program(
    command: &GuestCommand,
    mut shell: LoginShell,
    account: &Account,
    path: &str,
    directory: Option<&Path>,
) -> Command {
    let reads_profile = command.profile || command.answers.run_profile == RunProfile::Read;
    if let Some((first, rest)) = command.words.split_first()
        && command.answers.run_shell == RunShell::Skipped
        && !reads_profile
        && let Some(program) = program(first, path)
    {
        let mut child = Command::new(program);
        child.arg0(first).args(rest);
        return child;
    }
    if reads_profile {
        shell.read_profile(directory.map(|_| Path::new(&account.home)));
    }
    shell.command(&command.words)
}

/// Returns the program that a first word names, unless the word means something else to a shell.
fn program(word: &OsStr, path: &str) -> Option<PathBuf> {
    if word.as_bytes().contains(&b'/') {
        let file = PathBuf::from(word);
        return (file.is_absolute() && shells::is_program(&file)).then_some(file);
    }
    if word.is_empty() || word.to_str().is_some_and(|word| SHELL_WORDS.contains(&word)) {
        return None;
    }
    shells::on_path(word, path)
}

/// How long a client that was asked to end waits for its caller to read what the command has written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Starts the command, passes signals on, waits for its end and for its output, and returns its exit code.
fn wait(
    prepared: Prepared,
    session: bool,
    answers: Answers,
    mut relay: Relay,
    mut guard: Option<Guard>,
) -> Result<u8> {
    let Prepared {
        mut command,
        identity,
        noted_in,
    } = prepared;
    if !session {
        command.process_group(0);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        // The handlers are installed before the command starts, so that no signal is lost in between.
        let mut signals = Signals::install(answers.run_signals)?;
        let program = command.get_program().to_os_string();
        let taken = identity
            .map(|(user, groups)| Identity::take(&user, &groups))
            .transpose()?;
        let child = tokio::process::Command::from(command).spawn();
        drop(taken);
        let mut child = child.with_context(|| format!("start {}", program.display()))?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let noted = noted_in.zip(group);
        let note = noted.and_then(|(folder, pid)| Note::write(&folder, pid.as_raw_pid()));
        if let Some((guard, group)) = guard.as_mut().zip(group) {
            guard.watch(group)?;
        }
        relay.begin();
        let pass = |signal: Signal| {
            // In a terminal session the terminal has sent the signal to the command already.
            if let Some(group) = group.filter(|_| !session) {
                let _ = kill_process_group(group, signal);
            }
        };
        let mut deadline = None;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                signal = signals.next() => {
                    deadline = Some(Instant::now() + PATIENCE);
                    pass(signal);
                }
            }
        };
        drop(note);
        if answers.run_children == RunChildren::Left {
            relay.stop();
        }
        // What the command wrote before its end was asked for has this long again to be read.
        deadline = deadline.map(|_| Instant::now() + PATIENCE);
        loop {
            let until = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                () = relay.ended() => break,
                () = sleep_until(until), if deadline.is_some() => break,
                signal = signals.next() => {
                    deadline = deadline.or_else(|| Some(Instant::now() + PATIENCE));
                    pass(signal);
                }
            }
        }
        if let Some(guard) = guard {
            guard.release();
        }
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 255,
        };
        Ok(u8::try_from(code).unwrap_or(255))
    })
}

/// The signals that ask a client to end.
struct Signals(Option<[tokio::signal::unix::Signal; 3]>);

impl Signals {
    fn install(choice: RunSignals) -> Result<Signals> {
        if choice == RunSignals::ClientOnly {
            return Ok(Signals(None));
        }
        let [terminate, interrupt, hangup] = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ];
        let listeners = [signal(terminate)?, signal(interrupt)?, signal(hangup)?];
        // A handler stays installed when its listener is dropped, so the signal has no effect.
        Ok(Signals((choice == RunSignals::Forwarded).then_some(listeners)))
    }

    /// Waits for the next signal; for ever if the client has no use for any.
    async fn next(&mut self) -> Signal {
        let Some([terminate, interrupt, hangup]) = &mut self.0 else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => Signal::TERM,
            _ = interrupt.recv() => Signal::INT,
            _ = hangup.recv() => Signal::HUP,
        }
    }
}
