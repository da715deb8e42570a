//! Builds `orbctl`'s arguments; the only place that does.
//!
//! Flags come before operands, and no operand can be taken for a flag, because its type does not allow that. What is not a word
//! of `orbctl` is passed as a word of its own and never put together into shell text: `orbctl run` keeps the words apart on their
//! way through the guest's login shell.

use std::ffi::OsString;
use std::path::Path;

use crate::machine::MachineName;
use crate::operation::{ExecRequest, Force, Format, LogScope, NewMachine, Operation, Query, Verbatim};

/// Starts a command in the guest user's home, as ssh does: also where there is no home (`nobody`), then in `/`.
/// `orbctl run` by itself starts in the directory that corresponds to the caller's, which for a daemon means nothing.
const AT_HOME: &str = r#"cd 2>/dev/null || cd /; exec "$@""#;

/// Starts a command as it is.
const AS_IT_IS: &str = r#"exec "$@""#;

/// Returns the arguments that carry out an operation; none for one that only clients carry out, who have their own.
///
/// A push or a pull is carried out by its client, who appends the files to these arguments.
pub fn argv(operation: &Operation) -> Vec<OsString> {
    match operation {
        Operation::Query(query) => of_query(query),
        Operation::Exec(machine, request) => of_exec(machine, request),
        Operation::Push(machine) => words(["push", "-m", machine.as_str()]),
        Operation::Pull(machine) => words(["pull", "-m", machine.as_str()]),
        Operation::Create(new) => of_create(new),
        Operation::Start(machine) => words(["start", machine.as_str()]),
        Operation::Stop(machine, Force::No) => words(["stop", machine.as_str()]),
        Operation::Stop(machine, Force::Yes) => words(["stop", "-f", machine.as_str()]),
        Operation::Restart(machine) => words(["restart", machine.as_str()]),
        // Always with -f, which skips the question: the daemon has no terminal on which `orbctl` could ask.
        // Always a name: by id, 2.2.3 crashes.
        Operation::Delete(machine) => words(["delete", "-f", machine.as_str()]),
        Operation::Rename { from, to } => words(["rename", from.as_str(), to.as_str()]),
        Operation::Clone { source, copy } => words(["clone", source.as_str(), copy.as_str()]),
        Operation::Export(machine, file) => {
            let mut args = words(["export", machine.as_str()]);
            args.push(of_path(file));
            args
        }
        Operation::Import(machine, file) => {
            let mut args = words(["import", "-n", machine.as_str()]);
            args.push(of_path(file));
            args
        }
        Operation::SetDefault(Some(machine)) => words(["default", machine.as_str()]),
        Operation::SetDefault(None) => words(["default", "none"]),
        // Only where the value would be taken for a flag: that `--` is accepted here is not recorded, only usual.
        Operation::ConfigSet { key, value } if value.starts_with('-') => {
            words(["config", "set", "--", key.as_str(), value])
        }
        Operation::ConfigSet { key, value } => words(["config", "set", key.as_str(), value]),
        Operation::ConfigReset => words(["config", "reset"]),
        Operation::StartOrbstack(_) => words(["start"]),
        Operation::StopOrbstack(Force::No) => words(["stop"]),
        Operation::StopOrbstack(Force::Yes) => words(["stop", "-f"]),
        Operation::StartAll => words(["start", "--all"]),
        Operation::StopAll(Force::No) => words(["stop", "--all"]),
        Operation::StopAll(Force::Yes) => words(["stop", "--all", "-f"]),
        Operation::Leased(_) => Vec::new(),
    }
}

fn of_query(query: &Query) -> Vec<OsString> {
    match query {
        Query::List => words(["list", "-f", "json"]),
        Query::Info(machine) => words(["info", "-f", "json", machine.as_str()]),
        Query::Status => words(["status"]),
        Query::Version => words(["version"]),
        Query::ConfigShow => words(["config", "show"]),
        Query::Default => words(["default"]),
        Query::Ssh => words(["ssh"]),
        Query::Logs(machine, LogScope::Default) => words(["logs", machine.as_str()]),
        Query::Logs(machine, LogScope::All) => words(["logs", "--all", machine.as_str()]),
        Query::Verbatim(read) => of_verbatim(read),
    }
}

fn of_verbatim(read: &Verbatim) -> Vec<OsString> {
    match read {
        Verbatim::List {
            format,
            quiet,
            running,
        } => {
            let mut args = words(["list"]);
            args.extend(of_format(*format));
            args.extend(quiet.then(|| "-q".into()));
            args.extend(running.then(|| "-r".into()));
            args
        }
        Verbatim::Info { machine, format } => {
            let mut args = words(["info"]);
            args.extend(of_format(*format));
            args.push(machine.as_str().into());
            args
        }
        Verbatim::ConfigGet(key) => words(["config", "get", key.as_str()]),
        // These have no forms: asked in `orbctl`'s own words they are the same.
        Verbatim::Status
        | Verbatim::Version
        | Verbatim::ConfigShow
        | Verbatim::Default
        | Verbatim::Ssh
        | Verbatim::Logs(..) => of_query(&read.subject()),
    }
}

fn of_format(format: Option<Format>) -> Vec<OsString> {
    format.map_or_else(Vec::new, |format| words(["-f", format.as_str()]))
}

fn of_exec(machine: &MachineName, request: &ExecRequest) -> Vec<OsString> {
    let mut args = words(["run", "-m", machine.as_str()]);
    if let Some(user) = &request.user {
        args.extend(words(["-u", user.as_str()]));
    }
    // An empty directory says nothing.
    let workdir = request.workdir.as_deref().filter(|workdir| !workdir.is_empty());
    match workdir {
        Some(workdir) => args.extend(words(["-w", workdir])),
        None => args.extend(words(["sh", "-c", AT_HOME, "orbd"])),
    }
    if !request.env.is_empty() {
        args.push("env".into());
        args.extend(
            request
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}").into()),
        );
    }
    // `env`, and a shell that is given an unquoted first word, would take a program called `a=b` for an assignment.
    let looks_like_assignment = request.command().first().is_some_and(|word| word.contains('='));
    if looks_like_assignment && (workdir.is_some() || !request.env.is_empty()) {
        args.extend(words(["sh", "-c", AS_IT_IS, "orbd"]));
    }
    args.extend(request.command().iter().map(OsString::from));
    args
}

fn of_create(new: &NewMachine) -> Vec<OsString> {
    let NewMachine {
        name,
        distro,
        version,
        arch,
        user,
        cpus,
        memory,
        disk,
        isolated,
        isolate_network,
        mounts,
        forward_ssh_agent,
    } = new;
    let mut args = words(["create"]);
    if let Some(arch) = arch {
        args.extend(words(["-a", arch.as_str()]));
    }
    if let Some(user) = user {
        args.extend(words(["-u", user.as_str()]));
    }
    if let Some(cpus) = cpus {
        args.extend(words(["--cpus", &cpus.to_string()]));
    }
    if let Some(memory) = memory {
        args.extend(words(["--memory", memory.as_str()]));
    }
    if let Some(disk) = disk {
        args.extend(words(["--disk", disk.as_str()]));
    }
    if *isolated {
        args.push("--isolated".into());
    }
    if *isolate_network {
        args.push("--isolate-network".into());
    }
    for mount in mounts {
        args.extend(words(["--mount", mount.as_str()]));
    }
    if *forward_ssh_agent {
        args.push("--forward-ssh-agent".into());
    }
    args.push(match version {
        Some(version) => format!("{distro}:{version}").into(),
        None => distro.as_str().into(),
    });
    args.push(name.as_str().into());
    args
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

/// Keeps a relative path that begins with `-` from being taken for a flag.
fn of_path(path: &Path) -> OsString {
    if path.as_os_str().as_encoded_bytes().starts_with(b"-") {
        Path::new(".").join(path).into_os_string()
    } else {
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    fn check(operation: &Operation, expected: &[&str]) {
        assert_eq!(argv(operation), expected, "{operation:?}");
    }

    fn exec(command: &[&str]) -> ExecRequest {
        ExecRequest::new(command.iter().copied().map(String::from).collect()).expect("a valid command")
    }

    fn new_machine() -> NewMachine {
        NewMachine {
            name: name("web"),
            distro: "ubuntu".parse().expect("valid"),
            version: None,
            arch: None,
            user: None,
            cpus: None,
            memory: None,
            disk: None,
            isolated: false,
            isolate_network: false,
            mounts: vec![],
            forward_ssh_agent: false,
        }
    }

    #[test]
    fn a_query_asks_for_json_where_there_is_json() {
        let check = |query, expected: &[&str]| check(&Operation::Query(query), expected);
        check(Query::List, &["list", "-f", "json"]);
        check(Query::Info(name("web")), &["info", "-f", "json", "web"]);
        check(Query::Status, &["status"]);
        check(Query::Version, &["version"]);
        check(Query::ConfigShow, &["config", "show"]);
        check(Query::Default, &["default"]);
        check(Query::Ssh, &["ssh"]);
        check(Query::Logs(name("web"), LogScope::Default), &["logs", "web"]);
        check(Query::Logs(name("web"), LogScope::All), &["logs", "--all", "web"]);
        let verbatim = |read, words: &[&str]| check(Query::Verbatim(read), words);
        let list = |format, quiet, running| Verbatim::List {
            format,
            quiet,
            running,
        };
        let info = |format| Verbatim::Info {
            machine: name("web"),
            format,
        };
        verbatim(list(None, false, false), &["list"]);
        verbatim(
            list(Some(Format::Json), true, true),
            &["list", "-f", "json", "-q", "-r"],
        );
        verbatim(info(None), &["info", "web"]);
        verbatim(info(Some(Format::Text)), &["info", "-f", "text", "web"]);
        verbatim(
            Verbatim::ConfigGet("cpu".parse().expect("a key")),
            &["config", "get", "cpu"],
        );
        verbatim(Verbatim::ConfigShow, &["config", "show"]);
        verbatim(
            Verbatim::Logs(name("web"), LogScope::All),
            &["logs", "--all", "web"],
        );
    }

    #[test]
    fn a_change_names_its_machine_last() {
        check(&Operation::Start(name("web")), &["start", "web"]);
        check(&Operation::Stop(name("web"), Force::No), &["stop", "web"]);
        check(&Operation::Stop(name("web"), Force::Yes), &["stop", "-f", "web"]);
        check(&Operation::Restart(name("web")), &["restart", "web"]);
        check(
            &Operation::Rename {
                from: name("a"),
                to: name("b"),
            },
            &["rename", "a", "b"],
        );
        check(
            &Operation::Clone {
                source: name("a"),
                copy: name("b"),
            },
            &["clone", "a", "b"],
        );
        check(&Operation::SetDefault(Some(name("a"))), &["default", "a"]);
        check(&Operation::SetDefault(None), &["default", "none"]);
    }

    #[test]
    fn a_delete_never_asks() {
        check(&Operation::Delete(name("web")), &["delete", "-f", "web"]);
    }

    #[test]
    fn orbstack_itself_is_a_command_without_a_name() {
        check(&Operation::StartOrbstack(Force::No), &["start"]);
        check(&Operation::StopOrbstack(Force::No), &["stop"]);
        check(&Operation::StopOrbstack(Force::Yes), &["stop", "-f"]);
        check(&Operation::StartAll, &["start", "--all"]);
        check(&Operation::StopAll(Force::No), &["stop", "--all"]);
        check(&Operation::StopAll(Force::Yes), &["stop", "--all", "-f"]);
        check(&Operation::ConfigReset, &["config", "reset"]);
    }

    #[test]
    fn an_operand_never_becomes_a_flag() {
        let set = |value: &str| Operation::ConfigSet {
            key: "cpu".parse().expect("valid"),
            value: value.into(),
        };
        check(&set("4"), &["config", "set", "cpu", "4"]);
        check(&set("--help"), &["config", "set", "--", "cpu", "--help"]);
        let file = PathBuf::from("-x.tar.zst");
        check(
            &Operation::Export(name("web"), file.clone()),
            &["export", "web", "./-x.tar.zst"],
        );
        check(
            &Operation::Import(name("web"), file),
            &["import", "-n", "web", "./-x.tar.zst"],
        );
        check(
            &Operation::Export(name("web"), "/tmp/a b".into()),
            &["export", "web", "/tmp/a b"],
        );
    }

    #[test]
    fn a_command_starts_at_home_unless_a_directory_is_named() {
        let mut request = exec(&["printf", "%s\n", "a b", "$HOME"]);
        let run = |request: &ExecRequest| Operation::Exec(name("web"), request.clone());
        check(
            &run(&request),
            &[
                "run", "-m", "web", "sh", "-c", AT_HOME, "orbd", "printf", "%s\n", "a b", "$HOME",
            ],
        );
        request.user = Some("root".parse().expect("valid"));
        request.workdir = Some("/srv/a b".into());
        check(
            &run(&request),
            &[
                "run", "-m", "web", "-u", "root", "-w", "/srv/a b", "printf", "%s\n", "a b", "$HOME",
            ],
        );
        request.env = vec![
            ("A".parse().expect("valid"), "1".into()),
            ("B".parse().expect("valid"), "x y=z".into()),
        ];
        check(
            &run(&request),
            &[
                "run", "-m", "web", "-u", "root", "-w", "/srv/a b", "env", "A=1", "B=x y=z", "printf",
                "%s\n", "a b", "$HOME",
            ],
        );
        request.workdir = Some(String::new());
        request.user = None;
        check(
            &run(&request),
            &[
                "run", "-m", "web", "sh", "-c", AT_HOME, "orbd", "env", "A=1", "B=x y=z", "printf", "%s\n",
                "a b", "$HOME",
            ],
        );
    }

    #[test]
    fn a_program_with_an_equals_sign_is_not_an_assignment() {
        let mut request = exec(&["a=b"]);
        request.workdir = Some("/".into());
        check(
            &Operation::Exec(name("web"), request),
            &["run", "-m", "web", "-w", "/", "sh", "-c", AS_IT_IS, "orbd", "a=b"],
        );
    }

    #[test]
    fn a_new_machine_has_its_flags_first() {
        check(&Operation::Create(new_machine()), &["create", "ubuntu", "web"]);
        let full = NewMachine {
            version: Some("24.04".parse().expect("valid")),
            arch: Some(crate::operation::Arch::Amd64),
            user: Some("dev".parse().expect("valid")),
            cpus: Some(2),
            memory: Some("4G".parse().expect("valid")),
            disk: Some("40G".parse().expect("valid")),
            isolated: true,
            isolate_network: true,
            mounts: vec![
                "/Users/dev/a:/a".parse().expect("valid"),
                "/b".parse().expect("valid"),
            ],
            forward_ssh_agent: true,
            ..new_machine()
        };
        check(
            &Operation::Create(full),
            &[
                "create",
                "-a",
                "amd64",
                "-u",
                "dev",
                "--cpus",
                "2",
                "--memory",
                "4G",
                "--disk",
                "40G",
                "--isolated",
                "--isolate-network",
                "--mount",
                "/Users/dev/a:/a",
                "--mount",
                "/b",
                "--forward-ssh-agent",
                "ubuntu:24.04",
                "web",
            ],
        );
    }
}
