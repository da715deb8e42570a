//! Builds `orbctl`'s arguments, except for those of `orbctl run` ([`orbd_host::run_command`]). No other module does.
//!
//! Flags come before operands. An operand cannot be taken for a flag, because its type does not allow a leading `-`.

use std::ffi::OsString;
use std::path::Path;

use orbd_host::caller_env::ORBENV;
use orbd_host::run_command::{Call, GuestEnv, Run, Start, guest_command, run, text_args};

use crate::operation::{
    Change, ConfigKey, ExecRequest, Force, Format, LogScope, NewMachine, Query, RawQuery, UserName,
};
use orbd_host::machine::MachineName;

/// Returns the call that carries out a change.
pub(super) fn change(change: &Change) -> Call {
    let args = match change {
        Change::Create(new) => of_create(new),
        Change::Start(machine) => text_args(["start", machine.as_str()]),
        Change::Stop(machine, Force::No) => text_args(["stop", machine.as_str()]),
        Change::Stop(machine, Force::Yes) => text_args(["stop", "-f", machine.as_str()]),
        Change::Restart(machine) => text_args(["restart", machine.as_str()]),
        // Always with -f, which skips the confirmation: the daemon has no terminal on which `orbctl` could ask. Always by name:
        // `delete ID` crashes in 2.2.3.
        Change::Delete(machine) => text_args(["delete", "-f", machine.as_str()]),
        Change::Rename { from, to } => text_args(["rename", from.as_str(), to.as_str()]),
        Change::Clone { source, copy } => text_args(["clone", source.as_str(), copy.as_str()]),
        Change::Export(machine, file) => {
            let mut args = text_args(["export", machine.as_str()]);
            args.push(of_path(file));
            args
        }
        Change::Import(machine, file) => {
            let mut args = text_args(["import", "-n", machine.as_str()]);
            args.push(of_path(file));
            args
        }
        Change::SetDefault(Some(machine)) => text_args(["default", machine.as_str()]),
        Change::SetDefault(None) => text_args(["default", "none"]),
        Change::ConfigSet { key, value } => of_setting("set", key, value),
        Change::ConfigAdd { key, value } => of_setting("add", key, value),
        Change::ConfigRemove { key, value } => of_setting("remove", key, value),
        Change::ConfigReset => text_args(["config", "reset"]),
        Change::StartOrbstack(_) => text_args(["start"]),
        Change::StopOrbstack(Force::No) => text_args(["stop"]),
        Change::StopOrbstack(Force::Yes) => text_args(["stop", "-f"]),
        Change::StartAll => text_args(["start", "--all"]),
        Change::StopAll(Force::No) => text_args(["stop", "--all"]),
        Change::StopAll(Force::Yes) => text_args(["stop", "--all", "-f"]),
    };
    args.into()
}

/// Returns the call that makes a read.
pub(super) fn query(query: &Query) -> Call {
    of_query(query).into()
}

fn of_query(query: &Query) -> Vec<OsString> {
    match query {
        Query::List => text_args(["list", "-f", "json"]),
        Query::Info(machine) => text_args(["info", "-f", "json", machine.as_str()]),
        Query::Status => text_args(["status"]),
        Query::Version => text_args(["version"]),
        Query::ConfigShow => text_args(["config", "show"]),
        Query::Default => text_args(["default"]),
        Query::Ssh => text_args(["ssh"]),
        Query::Logs(machine, LogScope::Default) => text_args(["logs", machine.as_str()]),
        Query::Logs(machine, LogScope::All) => text_args(["logs", "--all", machine.as_str()]),
        Query::RawQuery(read) => of_raw_query(read),
    }
}

fn of_raw_query(read: &RawQuery) -> Vec<OsString> {
    match read {
        RawQuery::List {
            format,
            quiet,
            running,
        } => {
            let mut args = text_args(["list"]);
            args.extend(of_format(*format));
            args.extend(quiet.then(|| "-q".into()));
            args.extend(running.then(|| "-r".into()));
            args
        }
        RawQuery::Info { machine, format } => {
            let mut args = text_args(["info"]);
            args.extend(of_format(*format));
            args.push(machine.as_str().into());
            args
        }
        RawQuery::ConfigGet(key) => text_args(["config", "get", key.as_str()]),
        // `orbctl` has no other output formats for these, so the raw query is the same call.
        RawQuery::Status
        | RawQuery::Version
        | RawQuery::ConfigShow
        | RawQuery::Default
        | RawQuery::Ssh
        | RawQuery::Logs(..) => of_query(&read.subject()),
    }
}

fn of_format(format: Option<Format>) -> Vec<OsString> {
    format.map_or_else(Vec::new, |format| text_args(["-f", format.as_str()]))
}

/// Returns the call that runs a command in a machine.
pub(super) fn exec(machine: &MachineName, request: &ExecRequest, guest_env: GuestEnv) -> Call {
    run(&in_machine(machine, request), guest_env)
}

/// Returns the words and the variables of a command for a channel. `None` if only `orbctl` itself can start it like this: in a
/// working directory, or with variables that `orbctl` interprets.
pub(super) fn exec_in_channel(machine: &MachineName, request: &ExecRequest) -> Option<Call> {
    let command = in_machine(machine, request);
    let names = request.caller_env.variables().keys();
    let is_passed_unchanged = |name: &String| matches!(name.as_str(), "TERM" | "DISPLAY");
    if matches!(command.start, Start::Workdir(_)) || !names.clone().all(is_passed_unchanged) {
        return None;
    }
    let mut call = guest_command(&command, GuestEnv::Orbenv);
    call.env.retain(|(name, _)| name != ORBENV);
    Some(call)
}

/// Returns the call that opens a channel to a machine, in which these words run.
pub(super) fn channel(machine: &MachineName, user: Option<&UserName>, words: [&str; 3]) -> Call {
    let mut args = text_args(["run", "-m", machine.as_str()]);
    args.extend(user.into_iter().flat_map(|user| text_args(["-u", user.as_str()])));
    args.extend(text_args(words));
    args.into()
}

fn in_machine<'a>(machine: &'a MachineName, request: &'a ExecRequest) -> Run<'a> {
    // An empty directory means the default.
    let workdir = request.workdir.as_deref().filter(|workdir| !workdir.is_empty());
    Run {
        machine: machine.as_str(),
        user: request.user.as_ref().map(UserName::as_str),
        start: match (workdir, request.try_workdir.as_deref()) {
            (Some(workdir), _) => Start::Workdir(workdir),
            (None, Some(folder)) => Start::Folder(folder),
            (None, None) => Start::Home,
        },
        login_shell: false,
        translate_paths: false,
        env: &request.env,
        caller_env: &request.caller_env,
        command: request.command(),
    }
}

/// Returns the arguments that set, extend or shorten a configuration value.
fn of_setting(verb: &str, key: &ConfigKey, value: &str) -> Vec<OsString> {
    // Only if the value would be taken for a flag: that `config` accepts `--` is customary but not recorded.
    if value.starts_with('-') {
        text_args(["config", verb, "--", key.as_str(), value])
    } else {
        text_args(["config", verb, key.as_str(), value])
    }
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
    let mut args = text_args(["create"]);
    if let Some(arch) = arch {
        args.extend(text_args(["-a", arch.as_str()]));
    }
    if let Some(user) = user {
        args.extend(text_args(["-u", user.as_str()]));
    }
    if let Some(cpus) = cpus {
        args.extend(text_args(["--cpus", &cpus.to_string()]));
    }
    if let Some(memory) = memory {
        args.extend(text_args(["--memory", memory.as_str()]));
    }
    if let Some(disk) = disk {
        args.extend(text_args(["--disk", disk.as_str()]));
    }
    if *isolated {
        args.push("--isolated".into());
    }
    if *isolate_network {
        args.push("--isolate-network".into());
    }
    for mount in mounts {
        args.extend(text_args(["--mount", mount.as_str()]));
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

/// Prefixes `./` to a relative path that begins with `-`, so that it is not taken for a flag.
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

    fn check(change: &Change, expected: &[&str]) {
        check_call(&super::change(change), expected);
    }

    fn check_call(call: &Call, expected: &[&str]) {
        assert_eq!(call.args, expected);
        assert!(call.env.is_empty(), "{expected:?}");
    }

    fn exec(command: &[&str]) -> ExecRequest {
        ExecRequest::new(command.iter().copied().map(String::from).collect()).expect("a valid command")
    }

    fn new_machine() -> NewMachine {
        NewMachine::new(name("web"), "ubuntu".parse().expect("valid"))
    }

    #[test]
    fn queries_request_json_where_orbctl_supports_it() {
        let check = |query, expected: &[&str]| check_call(&super::query(&query), expected);
        check(Query::List, &["list", "-f", "json"]);
        check(Query::Info(name("web")), &["info", "-f", "json", "web"]);
        check(Query::Status, &["status"]);
        check(Query::Version, &["version"]);
        check(Query::ConfigShow, &["config", "show"]);
        check(Query::Default, &["default"]);
        check(Query::Ssh, &["ssh"]);
        check(Query::Logs(name("web"), LogScope::Default), &["logs", "web"]);
        check(Query::Logs(name("web"), LogScope::All), &["logs", "--all", "web"]);
        let verbatim = |read, words: &[&str]| check(Query::RawQuery(read), words);
        let list = |format, quiet, running| RawQuery::List {
            format,
            quiet,
            running,
        };
        let info = |format| RawQuery::Info {
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
            RawQuery::ConfigGet("cpu".parse().expect("a key")),
            &["config", "get", "cpu"],
        );
        verbatim(RawQuery::ConfigShow, &["config", "show"]);
        verbatim(
            RawQuery::Logs(name("web"), LogScope::All),
            &["logs", "--all", "web"],
        );
    }

    #[test]
    fn changes_pass_flags_before_the_machine_name() {
        check(&Change::Start(name("web")), &["start", "web"]);
        check(&Change::Stop(name("web"), Force::No), &["stop", "web"]);
        check(&Change::Stop(name("web"), Force::Yes), &["stop", "-f", "web"]);
        check(&Change::Restart(name("web")), &["restart", "web"]);
        check(
            &Change::Rename {
                from: name("a"),
                to: name("b"),
            },
            &["rename", "a", "b"],
        );
        check(
            &Change::Clone {
                source: name("a"),
                copy: name("b"),
            },
            &["clone", "a", "b"],
        );
        check(&Change::SetDefault(Some(name("a"))), &["default", "a"]);
        check(&Change::SetDefault(None), &["default", "none"]);
    }

    #[test]
    fn delete_skips_the_confirmation_prompt() {
        check(&Change::Delete(name("web")), &["delete", "-f", "web"]);
    }

    #[test]
    fn operations_on_orbstack_itself_pass_no_machine_name() {
        check(&Change::StartOrbstack(Force::No), &["start"]);
        check(&Change::StopOrbstack(Force::No), &["stop"]);
        check(&Change::StopOrbstack(Force::Yes), &["stop", "-f"]);
        check(&Change::StartAll, &["start", "--all"]);
        check(&Change::StopAll(Force::No), &["stop", "--all"]);
        check(&Change::StopAll(Force::Yes), &["stop", "--all", "-f"]);
        check(&Change::ConfigReset, &["config", "reset"]);
    }

    #[test]
    fn operands_that_begin_with_a_dash_are_not_parsed_as_flags() {
        let set = |value: &str| Change::ConfigSet {
            key: "cpu".parse().expect("valid"),
            value: value.into(),
        };
        check(&set("4"), &["config", "set", "cpu", "4"]);
        check(&set("--help"), &["config", "set", "--", "cpu", "--help"]);
        let (key, value): (ConfigKey, _) = ("machine.web.mounts".parse().expect("valid"), "/a:/b");
        check(
            &Change::ConfigAdd {
                key: key.clone(),
                value: value.into(),
            },
            &["config", "add", "machine.web.mounts", value],
        );
        check(
            &Change::ConfigRemove {
                key,
                value: "-x".into(),
            },
            &["config", "remove", "--", "machine.web.mounts", "-x"],
        );
        let file = PathBuf::from("-x.tar.zst");
        check(
            &Change::Export(name("web"), file.clone()),
            &["export", "web", "./-x.tar.zst"],
        );
        check(
            &Change::Import(name("web"), file),
            &["import", "-n", "web", "./-x.tar.zst"],
        );
        check(
            &Change::Export(name("web"), "/tmp/a b".into()),
            &["export", "web", "/tmp/a b"],
        );
    }

    #[test]
    fn an_empty_workdir_means_the_home_and_workdir_overrides_try_workdir() {
        let started_in = |workdir: Option<&str>, try_workdir: Option<&str>, start| {
            let mut request = exec(&["make"]);
            request.user = Some("root".parse().expect("valid"));
            request.workdir = workdir.map(String::from);
            request.try_workdir = try_workdir.map(String::from);
            request.env = vec![("A".parse().expect("valid"), "1".into())];
            let command = Run {
                machine: "web",
                user: Some("root"),
                start,
                login_shell: false,
                translate_paths: false,
                env: &request.env,
                caller_env: &request.caller_env,
                command: request.command(),
            };
            let expected = run(&command, GuestEnv::Orbenv);
            let call = super::exec(&name("web"), &request, GuestEnv::Orbenv);
            assert!(call == expected, "{:?}", call.args);
        };
        started_in(None, None, Start::Home);
        started_in(Some(""), None, Start::Home);
        started_in(None, Some("/a b"), Start::Folder("/a b"));
        started_in(Some("/srv"), None, Start::Workdir("/srv"));
        started_in(Some("/srv"), Some("/a b"), Start::Workdir("/srv"));
    }

    #[test]
    fn create_passes_flags_before_distro_and_name() {
        check(&Change::Create(new_machine()), &["create", "ubuntu", "web"]);
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
            &Change::Create(full),
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
