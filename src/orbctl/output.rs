//! Parses the stdout of `orbctl` into types.
//!
//! Accepted: unknown keys, unknown states, missing or malformed optional values, an update banner before the answer. Rejected, as
//! [`Unreadable`]: an answer without its required parts. In particular, empty output is never taken for "no machines": a false
//! empty list would make all machines disappear for every client. No input makes a parser panic.

use std::borrow::Cow;

use serde_json::Value;

use crate::job::{Ending, Failure};
use orbd_host::machine::{
    Image, Machine, MachineConfig, MachineInfo, MachineName, MachineState, OrbctlVersion, OrbstackStatus,
};

/// `orbctl` succeeded but its output could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("orbctl {command}: {problem}")]
pub(super) struct Unreadable {
    /// The subcommand of `orbctl` that was run.
    pub command: &'static str,
    /// What is wrong with the output. Quotes only names from it.
    pub problem: String,
}

impl From<Unreadable> for Failure {
    fn from(unreadable: Unreadable) -> Self {
        Self::OrbctlOutputUnreadable(unreadable.to_string().into())
    }
}

/// Returns a constructor of errors for one subcommand.
fn unreadable(command: &'static str) -> impl Fn(&str) -> Unreadable {
    move |problem| Unreadable {
        command,
        problem: problem.into(),
    }
}

/// Parses the output of `list -f json`. `null` is an empty list, because Go prints a nil slice this way; empty output is an
/// error.
pub(super) fn list(stdout: &[u8]) -> Result<Vec<Machine>, Unreadable> {
    let fail = unreadable("list");
    match json(stdout).map_err(|problem| fail(&problem))? {
        Value::Null => Ok(Vec::new()),
        Value::Array(records) => records.iter().map(|record| machine(record, &fail)).collect(),
        _ => Err(fail("not a list")),
    }
}

/// Parses the output of `info -f json NAME`.
pub(super) fn info(stdout: &[u8]) -> Result<MachineInfo, Unreadable> {
    let fail = unreadable("info");
    let value = json(stdout).map_err(|problem| fail(&problem))?;
    let record = value.get("record").ok_or_else(|| fail("no \"record\""))?;
    let address = |key: &str| value.get(key).and_then(Value::as_str);
    Ok(MachineInfo {
        machine: machine(record, &fail)?,
        disk_size: value.get("disk_size").and_then(Value::as_u64),
        ip4: address("ip4").and_then(|text| text.parse().ok()),
        ip6: address("ip6").and_then(|text| text.parse().ok()),
    })
}

/// Parses the output of `status`: one word on stdout, for any exit code (1 with `Stopped`).
pub(super) fn status(ending: Ending, stdout: &[u8]) -> Result<OrbstackStatus, Unreadable> {
    let fail = unreadable("status");
    if !matches!(ending, Ending::Exited(_)) {
        return Err(fail("did not exit by itself"));
    }
    let text = String::from_utf8_lossy(stdout);
    let word = only_line(&text).ok_or_else(|| fail("not one line"))?;
    match word {
        "Running" => Ok(OrbstackStatus::Running),
        "Stopped" => Ok(OrbstackStatus::Stopped),
        word if word.len() <= 64 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') => {
            Ok(OrbstackStatus::Other(word.to_ascii_lowercase().into()))
        }
        _ => Err(fail("not a word")),
    }
}

/// Parses the output of `version`.
pub(super) fn version(stdout: &[u8]) -> Result<OrbctlVersion, Unreadable> {
    let fail = unreadable("version");
    let text = String::from_utf8_lossy(stdout);
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label));
    let mut words = after("Version:")
        .ok_or_else(|| fail("no \"Version:\""))?
        .split_ascii_whitespace();
    let version = words.next().ok_or_else(|| fail("no version"))?.to_owned();
    let build = words
        .next()
        .and_then(|word| word.strip_prefix('(')?.strip_suffix(')')?.parse().ok());
    let commit = after("Commit:").and_then(|rest| rest.split_ascii_whitespace().next());
    Ok(OrbctlVersion {
        version,
        build,
        commit: commit.map(str::to_owned),
    })
}

/// Parses the output of `config show`: one `key: value` per line. Any other line continues the value before it.
pub(super) fn config(stdout: &[u8]) -> Result<Vec<(String, String)>, Unreadable> {
    let fail = unreadable("config show");
    let text = String::from_utf8_lossy(stdout);
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in said(&text) {
        match key_and_value(line) {
            Some((key, value)) => entries.push((key.into(), value.into())),
            None => match entries.last_mut() {
                Some((_, value)) => {
                    value.push('\n');
                    value.push_str(line.trim_end());
                }
                None => return Err(fail("does not begin with a key")),
            },
        }
    }
    if entries.is_empty() {
        return Err(fail("no keys"));
    }
    Ok(entries)
}

/// Parses the output of `default`: a name; `none` or nothing if there is no default machine.
pub(super) fn default_machine(stdout: &[u8]) -> Result<Option<MachineName>, Unreadable> {
    let fail = unreadable("default");
    let text = String::from_utf8_lossy(stdout);
    if said(&text).next().is_none() {
        return Ok(None);
    }
    match only_line(&text) {
        None => Err(fail("not one line")),
        Some("none") => Ok(None),
        Some(name) => name
            .parse()
            .map(Some)
            .map_err(|error| fail(&format!("{name:?}: {error}"))),
    }
}

/// Decodes output that is free text: `ssh` and `logs`.
pub(super) fn text(stdout: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(stdout)
}

fn machine(record: &Value, fail: &impl Fn(&str) -> Unreadable) -> Result<Machine, Unreadable> {
    let required = |key: &str| {
        record
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| fail(&format!("a machine without {key:?}")))
    };
    let name = required("name")?;
    let name: MachineName = name
        .parse()
        .map_err(|error| fail(&format!("machine {name:?}: {error}")))?;
    let id = required("id")?
        .parse()
        .map_err(|error| fail(&format!("machine {name}: {error}")))?;
    Ok(Machine {
        id,
        state: MachineState::from_word(required("state")?),
        image: image(record.get("image")),
        config: machine_config(record.get("config")),
        builtin: record.get("builtin").and_then(Value::as_bool).unwrap_or(false),
        name,
    })
}

fn image(image: Option<&Value>) -> Image {
    let text = |key: &str| Some(image?.get(key)?.as_str()?.to_owned());
    Image {
        distro: text("distro").unwrap_or_default(),
        version: text("version").unwrap_or_default(),
        arch: text("arch").unwrap_or_default(),
        variant: text("variant"),
    }
}

fn machine_config(config: Option<&Value>) -> MachineConfig {
    let get = |key: &str| config?.get(key);
    let flag = |key: &str| get(key)?.as_bool();
    let number = |key: &str| get(key)?.as_u64();
    let port = |key: &str| number(key)?.try_into().ok();
    MachineConfig {
        default_username: get("default_username").and_then(|name| Some(name.as_str()?.to_owned())),
        isolated: flag("isolated"),
        isolate_network: flag("isolate_network"),
        forward_ssh_agent: flag("forward_ssh_agent"),
        http_port: port("http_port"),
        https_port: port("https_port"),
        cpu_limit: number("cpu_limit"),
        memory_limit_mib: number("memory_limit_mib"),
        disk_limit_bytes: number("disk_limit_bytes"),
    }
}

/// Parses JSON, starting at the first line that can begin it, so that a banner is skipped.
fn json(stdout: &[u8]) -> Result<Value, String> {
    let mut rest = stdout;
    loop {
        rest = rest.trim_ascii_start();
        if [&b"["[..], b"{", b"null"]
            .iter()
            .any(|begin| rest.starts_with(begin))
        {
            // serde_json's message gives the position and quotes nothing from the output.
            return serde_json::from_slice(rest).map_err(|error| format!("not JSON: {error}"));
        }
        let Some(line) = rest.iter().position(|byte| *byte == b'\n') else {
            break;
        };
        rest = &rest[line + 1..];
    }
    Err("no JSON".into())
}

/// Returns the lines that are neither blank nor part of the box in which `orbctl` draws its update banner.
pub(super) fn said(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| {
        let first = line.trim_start().chars().next();
        first.is_some_and(|first| !('\u{2500}'..='\u{257f}').contains(&first))
    })
}

/// Returns the line if there is exactly one, not counting a banner.
fn only_line(text: &str) -> Option<&str> {
    let mut lines = said(text);
    let line = lines.next()?.trim();
    lines.next().is_none().then_some(line)
}

fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let is_key = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'));
    (is_key && (value.is_empty() || value.starts_with(' '))).then(|| (key, value.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use orbd_host::machine::MachineId;

    const BANNER: &str = "\n\u{256d}\u{2500}\u{2500}\u{2500}\u{256e}\n\u{2502} An update is waiting [1] \u{2502}\n\u{2570}\u{2500}\u{2500}\u{2500}\u{256f}\n\n";

    fn summary(machine: &Machine) -> (&str, &str, &str, &str) {
        (
            machine.name.as_str(),
            machine.state.as_str(),
            &machine.image.distro,
            &machine.image.version,
        )
    }

    fn check_list(input: &[u8], expected: Result<&[(&str, &str, &str, &str)], &str>) {
        let found = list(input);
        let found = found
            .as_ref()
            .map(|machines| machines.iter().map(summary).collect::<Vec<_>>());
        let found = found.as_deref().map_err(|unreadable| unreadable.problem.as_str());
        assert_eq!(found, expected);
    }

    #[test]
    fn recorded_lists_are_parsed() {
        check_list(
            include_bytes!("testdata/list.json"),
            Ok(&[("pod-probe-a1", "running", "ubuntu", "noble")]),
        );
        // That recording repeats an id; uniqueness is not checked here.
        check_list(
            include_bytes!("testdata/list-multi.json"),
            Ok(&[
                ("web-server", "running", "ubuntu", "jammy"),
                ("db-server", "stopped", "ubuntu", "jammy"),
                ("router-vm", "running", "voidlinux", "current"),
            ]),
        );
    }

    #[test]
    fn all_fields_of_a_recorded_list_are_parsed() {
        let machines = list(include_bytes!("testdata/list.json")).expect("readable");
        let expected = Machine {
            id: "01M4HXHNTVZXRXR1F5PV7GC8R7".parse::<MachineId>().expect("an id"),
            name: "pod-probe-a1".parse().expect("a name"),
            state: MachineState::Running,
            image: Image {
                distro: "ubuntu".into(),
                version: "noble".into(),
                arch: "arm64".into(),
                variant: Some("default".into()),
            },
            config: MachineConfig {
                isolated: Some(false),
                default_username: Some("dev".into()),
                ..MachineConfig::default()
            },
            builtin: false,
        };
        assert_eq!(machines, [expected]);
    }

    #[test]
    fn empty_list_is_accepted_and_empty_output_is_rejected() {
        check_list(b"[]\n", Ok(&[]));
        check_list(b"null\n", Ok(&[]));
        check_list(b"", Err("no JSON"));
        check_list(b" \n\n", Err("no JSON"));
        check_list(b"{}", Err("not a list"));
        check_list(
            include_bytes!("testdata/orb-no-machines.stderr.txt"),
            Err("no JSON"),
        );
    }

    #[test]
    fn banner_before_the_answer_is_skipped() {
        let mut input = BANNER.as_bytes().to_vec();
        input.extend_from_slice(include_bytes!("testdata/list.json"));
        check_list(&input, Ok(&[("pod-probe-a1", "running", "ubuntu", "noble")]));
    }

    #[test]
    fn unknown_and_missing_keys_are_accepted() {
        check_list(
            br#"[{"id":"01M4HXHNTVZXRXR1F5PV7GC8R7","name":"a","state":"provisioning","new":{"x":[1]}}]"#,
            Ok(&[("a", "provisioning", "", "")]),
        );
        let odd = list(
            br#"[{"id":"01M4HXHNTVZXRXR1F5PV7GC8R7","name":"a","state":"stopped","image":null,"builtin":"no",
                 "config":{"http_port":99999,"https_port":443,"isolated":1,"cpu_limit":4,"memory_limit_mib":-1}}]"#,
        );
        let config = &odd.expect("readable")[0].config;
        assert_eq!(
            *config,
            MachineConfig {
                https_port: Some(443),
                cpu_limit: Some(4),
                ..MachineConfig::default()
            }
        );
    }

    #[test]
    fn machine_with_an_invalid_name_or_id_makes_the_list_unreadable() {
        check_list(
            br#"[{"id":"01M4HXHNTVZXRXR1F5PV7GC8R7","name":"--all","state":"running"}]"#,
            Err("machine \"--all\": a machine name cannot start with '-'"),
        );
        check_list(
            br#"[{"id":"1","name":"a","state":"running"}]"#,
            Err("machine a: a machine id is a ULID of 26 digits and upper-case letters"),
        );
        check_list(br#"[{"name":"a"}]"#, Err("a machine without \"id\""));
        check_list(b"[1]", Err("a machine without \"name\""));
    }

    #[test]
    fn recorded_infos_are_parsed() {
        let old = info(include_bytes!("testdata/info-running-2.0.json")).expect("readable");
        assert_eq!(summary(&old.machine), ("test-vm", "running", "ubuntu", "jammy"));
        assert_eq!(old.disk_size, Some(962_924_544));
        assert_eq!(old.ip4, Some([198, 19, 249, 76].into()));
        assert!(old.ip6.is_some());
        assert_eq!(old.machine.image.variant, None);

        let new = info(include_bytes!("testdata/info-running-2.2.3.json")).expect("readable");
        assert_eq!(summary(&new.machine), ("edge-1", "running", "ubuntu", "noble"));
        assert_eq!((new.disk_size, new.machine.config.isolated), (None, None));

        let stopped = info(include_bytes!("testdata/info-stopped.json")).expect("readable");
        assert_eq!(stopped.machine.state, MachineState::Stopped);
        assert_eq!((stopped.ip4, stopped.ip6), (None, None));
        assert_eq!(stopped.machine.config.isolate_network, Some(false));
    }

    #[test]
    fn info_without_a_record_is_unreadable() {
        let problem = |input: &[u8]| info(input).expect_err("unreadable").problem;
        assert_eq!(problem(b"{}"), "no \"record\"");
        assert_eq!(problem(b"[]"), "no \"record\"");
        assert!(problem(b"{").starts_with("not JSON"));
    }

    fn check_status(code: i32, stdout: &[u8], expected: Option<&OrbstackStatus>) {
        assert_eq!(status(Ending::Exited(code), stdout).ok().as_ref(), expected);
    }

    #[test]
    fn status_is_one_word() {
        check_status(
            0,
            include_bytes!("testdata/status-running.txt"),
            Some(&OrbstackStatus::Running),
        );
        check_status(
            1,
            include_bytes!("testdata/status-stopped.txt"),
            Some(&OrbstackStatus::Stopped),
        );
        check_status(0, b"Starting\n", Some(&OrbstackStatus::Other("starting".into())));
        check_status(
            0,
            format!("{BANNER}Running\n").as_bytes(),
            Some(&OrbstackStatus::Running),
        );
        check_status(1, b"", None);
        check_status(0, b"two words\n", None);
        check_status(0, b"Running\nStopped\n", None);
        assert!(status(Ending::TimedOut, b"Running\n").is_err());
    }

    #[test]
    fn recorded_versions_are_parsed() {
        let check = |input: &[u8], version_: &str, build, commit: &str| {
            let read = version(input).expect("readable");
            assert_eq!((read.version.as_str(), read.build), (version_, Some(build)));
            assert_eq!(read.commit.as_deref(), Some(commit));
        };
        check(
            include_bytes!("testdata/version-1.9.2.txt"),
            "1.9.2",
            1_090_200,
            "f56c5adaa796a0902c648f038307ed8d434b0522",
        );
        check(
            include_bytes!("testdata/version-2.2.3.txt"),
            "2.2.3",
            2_020_300,
            "c83556b0ef8f1ba9a33abbb194622b6b7a1c0307",
        );
        let bare = version(b"Version: 3.0.0\n").expect("readable");
        assert_eq!((bare.build, bare.commit), (None, None));
        assert!(version(b"orb version 1.2.3\n").is_err());
        assert!(version(b"Version:\n").is_err());
    }

    #[test]
    fn configuration_is_parsed_line_by_line() {
        let entries = config(include_bytes!("testdata/config-show-partial-2.0.4.txt")).expect("readable");
        assert_eq!(entries.len(), 9);
        assert_eq!(entries[2], ("network.subnet4".into(), "192.168.138.0/23".into()));
        assert_eq!(entries[6], ("machine.nas-vm.username".into(), "dev".into()));
        let odd = config(b"network_proxy:\ndocker.node_name: a: b\n{ \"x\": 1 }\n").expect("readable");
        assert_eq!(odd[0], ("network_proxy".into(), String::new()));
        assert_eq!(odd[1].1, "a: b\n{ \"x\": 1 }");
        assert!(config(b"").is_err());
        assert!(config(b"something else\n").is_err());
    }

    #[test]
    fn default_machine_is_a_name_or_none() {
        let name = |input: &[u8]| default_machine(input).map(|name| name.map(|name| name.to_string()));
        assert_eq!(name(b"web\n"), Ok(Some("web".into())));
        assert_eq!(name(b"none\n"), Ok(None));
        assert_eq!(name(b"\n"), Ok(None));
        assert!(name(b"two words\n").is_err());
        assert!(name(b"a\nb\n").is_err());
    }

    proptest! {
        #[test]
        fn parsers_do_not_panic_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse_all(&bytes);
        }

        #[test]
        fn parsers_do_not_panic_on_text_like_orbctls(
            text in r#"([\[\]{}":,'\n 0-9a-z_.-]|Version:|"record"|null|true|\u{2500}|"name"|"id"){0,80}"#,
        ) {
            parse_all(text.as_bytes());
        }
    }

    fn parse_all(bytes: &[u8]) {
        let _ = list(bytes);
        let _ = info(bytes);
        let _ = status(Ending::Exited(0), bytes);
        let _ = version(bytes);
        let _ = config(bytes);
        let _ = default_machine(bytes);
        let _ = text(bytes);
    }
}
