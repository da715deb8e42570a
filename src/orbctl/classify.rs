//! Says what an ending and stderr mean. The only code that reads stderr.
//!
//! Errors look like `[CODE] operation 'NAME': cause`. The code in brackets is that of a JSON-RPC library and says next to nothing;
//! only the text after it is looked at.
//!
//! **A guest command's exit code is its own.** `orbctl run` hands it on, so exit 1 can also be `orbctl` saying that it did not run
//! anything. It is taken for that if stdout is empty, the code is 1, and all of stderr is one line that is exactly a text that was
//! recorded from `orbctl` itself (see `testdata/errors.tsv`), with or without a code in brackets. The risk that is left is a guest
//! program that prints exactly such a line about the machine in which it runs, and nothing else, and exits with 1: it is reported as a
//! failure of `orbctl`. That includes `orbctl` itself, called inside the machine about this same machine.
//!
//! **Sick** is `orbctl` when what failed was not the operation but OrbStack's service under it: later calls will fail or hang in
//! the same way, whatever they ask. A change that ends so is looked for in the inventory like one that was killed. What is no sign
//! of it: a change that ran into its limit, because creates wait for the network (the looks that follow it are signs); a command
//! that did, because that is its caller's affair. A read about one machine that did leaves a doubt: it may be that machine. So does a
//! command that ends with what the service says when it is sick: it may be the guest's own. And so does "timed out waiting for VM to
//! start" from anything but a read: it was recorded to be false, the VM starts a moment later.
//! **Well** it is when the service answered, if only to refuse; what `orbctl` may read from a file of its own says nothing.

use std::borrow::Cow;
use std::sync::Arc;

use super::output::said;
use super::{Captured, Completion, TAIL_MAX};
use crate::job::{Ending, Failure, HealthProblem, HealthSignal};
use crate::machine::MachineName;
use crate::operation::{Operation, Query};

/// What the end of an invocation means.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What went wrong. `None` for success and for what we ended ourselves: what a timeout or a stop means depends on why, which
    /// the dispatcher knows.
    pub failure: Option<Failure>,
    /// What it says about `orbctl` itself.
    pub signal: HealthSignal,
}

impl Verdict {
    /// Nothing failed, and it says this about `orbctl` itself.
    fn passed(signal: HealthSignal) -> Self {
        Self {
            failure: None,
            signal,
        }
    }

    /// Says whether `orbctl` itself is sick, or may be: what a change that ends so has done is not known.
    pub fn may_be_unhealthy(&self) -> bool {
        matches!(self.signal, HealthSignal::Unhealthy(_) | HealthSignal::Suspect(_))
    }
}

/// Longest line that is quoted as what is wrong with `orbctl`.
const SAID_MAX: usize = 200;

/// What OrbStack's service was recorded to say, or what is said in its place, when it does not work.
const SICK: [&str; 5] = [
    "timed out waiting for services to start",
    "timed out waiting for VM to start",
    "missing TCC permission",
    "$HOME is not defined",
    "panic: mkdir /docker: read-only file system",
];

/// What `orbctl` was recorded to say of a VM that does start, only later.
const STARTS_LATER: &str = "timed out waiting for VM to start";

/// What the service was recorded to say, in full, under a command that it did not run.
const NOT_RUN: [&str; 2] = [
    "start VM: timed out waiting for VM to start",
    "timed out waiting for services to start",
];

/// What the start of a machine, which a command makes where it has to, was recorded to end with.
const NOT_STARTED: [&str; 3] = [
    "setup: machine didn't start in 30s (missing IP address)",
    "setup: timed out waiting for network",
    "setup: machine crashed on startup",
];

/// What it says where there is no machine at all.
const NO_MACHINES: [&str; 6] = [
    "To use Docker:",
    "docker run ...",
    "See \"orb docker\" for more info.",
    "To create a Linux machine:",
    "orb create ubuntu",
    "See \"orb create --help\" for supported distros and options.",
];

/// What the tool's language says when a socket has nobody behind it: the service's, unless a guest's program says so of its own.
const NOBODY: [&str; 2] = [
    "connect: connection refused",
    "connect: no such file or directory",
];

/// Says what the end of an invocation means for its operation.
pub fn classify(operation: &Operation, completion: &Completion) -> Verdict {
    if let Operation::Query(Query::RawQuery(read)) = operation {
        return classify(&Operation::Query(read.subject()), completion);
    }
    match completion.ending {
        Ending::Exited(0) if asks_the_service(operation) => Verdict::passed(HealthSignal::Healthy),
        Ending::Exited(0) | Ending::Stopped => Verdict::passed(HealthSignal::Nothing),
        Ending::TimedOut => Verdict::passed(match operation {
            Operation::Query(query) => {
                let blocked = HealthProblem::Blocked { verb: query.verb() };
                match operation.machine() {
                    Some(_) => HealthSignal::Suspect(blocked),
                    None => HealthSignal::Unhealthy(blocked),
                }
            }
            _ => HealthSignal::Nothing,
        }),
        Ending::Signalled(signal) => Verdict {
            failure: Some(Failure::OrbctlKilled {
                signal,
                stderr_tail: tail_for(operation, &completion.stderr),
            }),
            signal: HealthSignal::Nothing,
        },
        Ending::Exited(code) => match operation {
            Operation::Exec(machine, _) => of_exec(machine, code, completion),
            // Its exit code is 1 when OrbStack is stopped, which is an answer.
            Operation::Query(Query::Status) if completion.stdout.total > 0 => {
                Verdict::passed(HealthSignal::Nothing)
            }
            _ => of_failed(operation, code, &completion.stderr),
        },
    }
}

/// Says whether only a service that works can have carried this out. Not of what `orbctl` may know from its own files; `status`
/// was recorded to answer while the rest did not.
fn asks_the_service(operation: &Operation) -> bool {
    match operation {
        Operation::Query(Query::List | Query::Info(_)) => true,
        Operation::Query(_)
        | Operation::SetDefault(_)
        | Operation::ConfigSet { .. }
        | Operation::ConfigReset => false,
        _ => true,
    }
}

fn of_failed(operation: &Operation, code: i32, stderr: &Captured) -> Verdict {
    let opening = String::from_utf8_lossy(&stderr.opening);
    let kept = String::from_utf8_lossy(&stderr.bytes);
    let lines = || said(&opening).chain(said(&kept));
    let recognised = lines().find_map(|line| recognise(operation, cause(line).1));
    let failure = recognised.unwrap_or_else(|| Failure::OrbctlFailed {
        exit_code: code,
        stderr_tail: tail(stderr),
    });
    let has = |word: &str| lines().any(|line| line.contains(word));
    let is_panic_line = |line: &str| line.starts_with("panic:") || line.starts_with("goroutine ");
    // A crash over its own operands (`delete ID` in 2.2.3) says nothing about the next call; over a bare read it does.
    let is_own_crash = has("runtime error") && !matches!(operation, Operation::Query(_));
    let complaint = lines()
        .find(|line| SICK.iter().any(|text| line.contains(text)) || (is_panic_line(line) && !is_own_crash));
    let nobody = lines().find(|line| NOBODY.iter().any(|text| line.contains(text)));
    let is_read = matches!(operation, Operation::Query(_));
    let signal = match (complaint, nobody, &failure) {
        (Some(line), ..) if line.contains(STARTS_LATER) && !is_read => {
            HealthSignal::Suspect(said_to_be(line))
        }
        (Some(line), ..) => HealthSignal::Unhealthy(said_to_be(line)),
        (None, Some(line), _) if is_read => HealthSignal::Unhealthy(said_to_be(line)),
        // Where an image comes from may be what refuses.
        (None, Some(line), _) => HealthSignal::Suspect(said_to_be(line)),
        // It looked and refused.
        (
            None,
            None,
            Failure::MachineNotFound(_) | Failure::MachineExists(_) | Failure::MachineWrongState { .. },
        ) => HealthSignal::Healthy,
        (None, None, _) => HealthSignal::Nothing,
    };
    Verdict {
        failure: Some(failure),
        signal,
    }
}

/// Quotes the line that shows that `orbctl` is sick.
fn said_to_be(line: &str) -> HealthProblem {
    let text = clean(line.as_bytes());
    HealthProblem::ParsedEntry(text.chars().take(SAID_MAX).collect::<String>().into())
}

fn of_exec(machine: &MachineName, code: i32, completion: &Completion) -> Verdict {
    let stderr = &completion.stderr;
    if completion.stdout.total > 0 {
        return Verdict::passed(HealthSignal::Nothing);
    }
    let text = String::from_utf8_lossy(if stderr.is_whole() {
        &stderr.bytes
    } else {
        &stderr.opening
    });
    if code == 1 && said(&text).map(str::trim).eq(NO_MACHINES) {
        return Verdict {
            failure: Some(Failure::MachineNotFound(machine.as_str().into())),
            signal: HealthSignal::Nothing,
        };
    }
    let mut lines = said(&text);
    let Some(first) = lines.next() else {
        return Verdict::passed(HealthSignal::Nothing);
    };
    let is_alone = stderr.is_whole() && lines.next().is_none();
    if code == 1 && is_alone {
        return of_refused_exec(machine, first, stderr);
    }
    // The service was recorded to fall over under any command.
    let text = cause(first).1;
    if code == 2 && text.starts_with("panic: ") && SICK.iter().any(|known| text.contains(known)) {
        return not_run(2, text, stderr);
    }
    Verdict::passed(HealthSignal::Nothing)
}

/// Says what one line, which was all that was said, means under a command with exit code 1.
fn of_refused_exec(machine: &MachineName, line: &str, stderr: &Captured) -> Verdict {
    let (has_code, text) = cause(line);
    let start = format!("start '{machine}': ");
    let run = format!("run '{machine}': ");
    let names_us = text.starts_with(&start) || text.starts_with(&run);
    let own = text
        .strip_prefix(&start)
        .or_else(|| text.strip_prefix(&run))
        .unwrap_or(text);
    let not_found = ["machine not found", "no machine found"].iter().any(|phrase| {
        let quoted = format!("{phrase}: '{machine}'");
        own == quoted || own == format!("{phrase}: {machine}") || (has_code && ends_with_cause(text, &quoted))
    });
    if not_found {
        return Verdict {
            failure: Some(Failure::MachineNotFound(machine.as_str().into())),
            signal: HealthSignal::Healthy,
        };
    }
    if let Some(state) = transition(own).filter(|_| has_code || names_us) {
        return Verdict {
            failure: Some(Failure::MachineWrongState {
                machine: machine.clone(),
                state: state.into(),
            }),
            signal: HealthSignal::Nothing,
        };
    }
    let is_known = |known: &[&str]| known.iter().any(|known| text.contains(known));
    if NOT_RUN.contains(&own) || (has_code && (is_known(&SICK) || is_known(&NOBODY))) {
        return not_run(1, text, stderr);
    }
    if has_code && names_us && NOT_STARTED.contains(&own) {
        return Verdict {
            signal: HealthSignal::Nothing,
            ..not_run(1, text, stderr)
        };
    }
    Verdict::passed(HealthSignal::Nothing)
}

/// A command that `orbctl` did not run. A guest's program could say the same: its words alone must not make all others wait.
fn not_run(exit_code: i32, text: &str, stderr: &Captured) -> Verdict {
    Verdict {
        failure: Some(Failure::OrbctlFailed {
            exit_code,
            stderr_tail: tail(stderr),
        }),
        signal: HealthSignal::Suspect(said_to_be(text)),
    }
}

/// Recognises the failures that have a name.
fn recognise(operation: &Operation, text: &str) -> Option<Failure> {
    let named = |phrase: &str| {
        let rest = text.split_once(phrase)?.1.trim();
        // 2023's versions had no quotes.
        let name = rest
            .strip_prefix('\'')
            .map_or(rest, |rest| rest.split_once('\'').map_or(rest, |(name, _)| name));
        let name = if name.is_empty() {
            operation.machine()?.as_str()
        } else {
            name
        };
        Some(Arc::<str>::from(name))
    };
    if let Some(name) = named("machine not found:").or_else(|| named("no machine found:")) {
        return Some(Failure::MachineNotFound(name));
    }
    if let Some(name) = named("machine already exists:") {
        return Some(Failure::MachineExists(name));
    }
    let in_operation = || text.split_once('\'')?.1.split_once('\'')?.0.parse().ok();
    if let Some(state) = transition(text)
        && let Some(machine) = operation.machine().cloned().or_else(in_operation)
    {
        return Some(Failure::MachineWrongState {
            machine,
            state: state.into(),
        });
    }
    if let Some((_, kind)) = text.split_once(" has no logs of type ")
        && let Some(machine) = operation.machine().cloned().or_else(in_operation)
    {
        return Some(Failure::NoLogs {
            machine,
            kind: kind.trim().into(),
        });
    }
    if let Operation::ConfigSet { key, .. } = operation
        && ends_with_cause(text, "key not found")
    {
        return Some(Failure::ConfigKeyNotFound(key.as_str().into()));
    }
    // Not recorded anywhere; written in the manner of those above. Anything else stays `OrbctlFailed` with its text.
    let states = [
        ("machine not running", "stopped"),
        ("machine is not running", "stopped"),
        ("machine not stopped", "running"),
        ("machine is not stopped", "running"),
        ("machine is running", "running"),
        ("machine is stopped", "stopped"),
    ];
    states.iter().find_map(|(phrase, state)| {
        let (_, rest) = text.split_once(phrase)?;
        let named = rest
            .strip_prefix(": ")
            .and_then(|rest| rest.trim().trim_matches('\'').parse().ok());
        let machine = named.or_else(|| operation.machine().cloned())?;
        rest.is_empty()
            .then_some(())
            .or_else(|| rest.starts_with(':').then_some(()))?;
        Some(Failure::MachineWrongState {
            machine,
            state: (*state).into(),
        })
    })
}

/// Returns the state in which a machine is that cannot go to another one.
fn transition(text: &str) -> Option<&str> {
    let phrases = ["cannot transition from ", "invalid transition from "];
    let (_, states) = phrases.iter().find_map(|phrase| text.split_once(phrase))?;
    let (from, to) = states.split_once(" to ")?;
    let is_state = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    (is_state(from) && is_state(to)).then_some(from)
}

/// Takes the code in brackets off a line; says whether there was one.
fn cause(line: &str) -> (bool, &str) {
    let line = line.trim();
    let stripped = line.strip_prefix('[').and_then(|rest| {
        let (code, text) = rest.split_once("] ")?;
        code.parse::<i32>().ok().map(|_| text)
    });
    (stripped.is_some(), stripped.unwrap_or(line))
}

/// Says whether `text` is this cause, alone or after `operation 'NAME': `.
fn ends_with_cause(text: &str, cause: &str) -> bool {
    text.strip_suffix(cause)
        .is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

/// Returns stderr for a message. A guest command's own stderr is output, which the caller has; it is not repeated.
fn tail_for(operation: &Operation, stderr: &Captured) -> Arc<str> {
    if matches!(operation, Operation::Exec(..)) {
        "".into()
    } else {
        tail(stderr)
    }
}

/// Returns the end of stderr as text fit for a terminal and a log of the caller's: no control characters, bounded, and with its first
/// line if that is not part of the end.
fn tail(stderr: &Captured) -> Arc<str> {
    let from = stderr.bytes.len().saturating_sub(TAIL_MAX);
    let end = clean(&stderr.bytes[from..]);
    let is_all = stderr.total <= TAIL_MAX as u64;
    if is_all {
        return end.trim().into();
    }
    let opening = clean(&stderr.opening);
    let first = said(&opening).next().unwrap_or_default();
    format!("{first}\n...\n{}", end.trim()).into()
}

fn clean(bytes: &[u8]) -> String {
    let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
    text.chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::operation::{ExecRequest, Force, LogScope, NewMachine};

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    fn completion(ending: Ending, stdout: &str, stderr: &str) -> Completion {
        Completion {
            ending,
            stdout: Captured::whole(stdout.to_owned()),
            stderr: Captured::whole(stderr.to_owned()),
            took: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            output_cut: false,
        }
    }

    fn check(
        operation: &Operation,
        code: i32,
        stdout: &str,
        stderr: &str,
        expected: &(Option<Failure>, bool),
    ) {
        let verdict = classify(operation, &completion(Ending::Exited(code), stdout, stderr));
        let is_unhealthy = matches!(verdict.signal, HealthSignal::Unhealthy(_));
        assert_eq!(&(verdict.failure, is_unhealthy), expected, "{stderr}");
    }

    fn failed(exit_code: i32, stderr: &str, sick: bool) -> (Option<Failure>, bool) {
        let failure = Failure::OrbctlFailed {
            exit_code,
            stderr_tail: stderr.trim().into(),
        };
        (Some(failure), sick)
    }

    fn create(machine: &str) -> Operation {
        Operation::Create(NewMachine {
            name: name(machine),
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
        })
    }

    fn exec(machine: &str) -> Operation {
        let request = ExecRequest::new(vec!["true".into()]).expect("valid");
        Operation::Exec(name(machine), request)
    }

    fn info(machine: &str) -> Operation {
        Operation::Query(Query::Info(name(machine)))
    }

    #[test]
    fn recorded_refusals_are_recognised() {
        check(
            &info("nosuch"),
            1,
            "",
            include_str!("testdata/error-info-not-found.stderr.txt"),
            &(Some(Failure::MachineNotFound("nosuch".into())), false),
        );
        check(
            &create("b1-lab"),
            1,
            "",
            include_str!("testdata/error-create-exists.stderr.txt"),
            &(Some(Failure::MachineExists("b1-lab".into())), false),
        );
    }

    #[test]
    fn other_wordings_of_the_same_refusal_are_recognised() {
        let missing = |machine: &str| (Some(Failure::MachineNotFound(machine.into())), false);
        check(
            &info("a"),
            1,
            "",
            "[-32602] no machine found: 'vm-name'\n",
            &missing("vm-name"),
        );
        check(
            &Operation::Start(name("openeuler")),
            1,
            "",
            "machine not found: openeuler\n",
            &missing("openeuler"),
        );
        check(
            &Operation::Rename {
                from: name("a"),
                to: name("b"),
            },
            1,
            "",
            "[-32098] rename 'a': machine not found: 'a'\n",
            &missing("a"),
        );
        check(
            &Operation::Restart(name("a")),
            1,
            "",
            "[-32098] restart 'a': machine not running: 'a'\n",
            &(
                Some(Failure::MachineWrongState {
                    machine: name("a"),
                    state: "stopped".into(),
                }),
                false,
            ),
        );
    }

    #[test]
    fn an_unknown_refusal_keeps_its_text() {
        for stderr in [
            "[-32098] create 'burp': setup: timed out waiting for network\n",
            "[-32098] create 'opensuse156': setup: machine didn't start in 30s (missing IP address)\n",
            "something else\n",
            "",
        ] {
            check(&create("a"), 1, "", stderr, &failed(1, stderr, false));
        }
    }

    #[test]
    fn a_service_that_does_not_work_makes_orbctl_sick() {
        let panic = "panic: timed out waiting for services to start\n\ngoroutine 1 [running]:\nmain.main()\n";
        let start = "[-32098] start VM: timed out waiting for VM to start\n";
        let list = Operation::Query(Query::List);
        check(&list, 2, "", panic, &failed(2, panic, true));
        check(
            &Operation::StartOrbstack(Force::No),
            1,
            "",
            start,
            // It was recorded to be false.
            &failed(1, start, false),
        );
        check(&list, 1, "", start, &failed(1, start, true));
        // Under a command it is a doubt, because a guest's program could say it.
        check(&exec("web"), 2, "", panic, &failed(2, panic, false));
        check(&exec("web"), 1, "", start, &failed(1, start, false));
        let verdict = classify(&exec("web"), &completion(Ending::Exited(2), "", panic));
        let said = HealthProblem::ParsedEntry("panic: timed out waiting for services to start".into());
        assert_eq!(verdict.signal, HealthSignal::Suspect(said));
        let home = "panic: $HOME is not defined\n";
        check(
            &Operation::Query(Query::Version),
            2,
            "",
            home,
            &failed(2, home, true),
        );
    }

    #[test]
    fn a_crash_over_its_operands_does_not() {
        let crash = "panic: runtime error: invalid memory address or nil pointer dereference\ngoroutine 1 [running]:\n";
        let delete = Operation::Delete(name("a"));
        check(&delete, 2, "", crash, &failed(2, crash, false));
        check(
            &Operation::Query(Query::List),
            2,
            "",
            crash,
            &failed(2, crash, true),
        );
    }

    #[test]
    fn a_long_panic_is_recognised_by_its_beginning() {
        let stderr = format!(
            "panic: timed out waiting for services to start\n{}",
            "\tframe\n".repeat(9999)
        );
        let captured = Captured {
            bytes: stderr.as_bytes()[stderr.len() - 4096..].to_vec().into(),
            ..Captured::whole(stderr.clone())
        };
        let completion = Completion {
            stderr: captured,
            ..completion(Ending::Exited(2), "", "")
        };
        let verdict = classify(&Operation::Query(Query::List), &completion);
        let said = HealthProblem::ParsedEntry("panic: timed out waiting for services to start".into());
        assert_eq!(verdict.signal, HealthSignal::Unhealthy(said));
        let Some(Failure::OrbctlFailed { stderr_tail, .. }) = verdict.failure else {
            panic!("{verdict:?}");
        };
        assert!(stderr_tail.starts_with("panic: timed out waiting for services to start\n...\n"));
        assert!(stderr_tail.len() < 5000);
    }

    #[test]
    fn a_guest_command_s_code_is_its_own() {
        let well = (None, false);
        for (code, stdout, stderr) in [
            (1, "", ""),
            (7, "out", "err"),
            (127, "", include_str!("testdata/orb-shell-wrong-usage.txt")),
            // A Go program in the guest.
            (
                2,
                "",
                "panic: runtime error: index out of range\n\ngoroutine 1 [running]:\n",
            ),
            // One that misses its own database.
            (
                2,
                "",
                "panic: dial tcp 127.0.0.1:5432: connect: connection refused\n\ngoroutine 1 [running]:\n",
            ),
            // Not alone, not about this machine, not `orbctl`'s form, not its exit code.
            (1, "x", "[-32098] machine not found: 'web'\n"),
            (1, "", "before\n[-32098] machine not found: 'web'\n"),
            (1, "", "[-32098] machine not found: 'web'\nafter\n"),
            (1, "", "[-32098] machine not found: 'other'\n"),
            (1, "", "error: machine not found: 'web'\n"),
            (1, "", "cannot transition from open to closed\n"),
            (1, "", "ssh: start VM: timed out waiting for VM to start\n"),
            (1, "", "start VM: timed out waiting for VM to start!\n"),
            (2, "", "start VM: timed out waiting for VM to start\n"),
            (1, "x", "start VM: timed out waiting for VM to start\n"),
            (1, "", "start VM: timed out waiting for VM to start\nmore\n"),
            (2, "", "[-32098] machine not found: 'web'\n"),
            (1, "", "[-32098] machine not found: 'web' or so\n"),
        ] {
            check(&exec("web"), code, stdout, stderr, &well);
        }
    }

    /// The ambiguity that is left: a guest that prints exactly what `orbctl` prints is taken for it, but makes nobody else wait.
    #[test]
    fn guest_that_prints_exactly_a_text_of_orbctl_is_taken_for_orbctl() {
        let text = "start VM: timed out waiting for VM to start";
        let verdict = classify(
            &exec("web"),
            &completion(Ending::Exited(1), "", &format!("{text}\n")),
        );
        assert_eq!((verdict.failure, false), failed(1, text, false));
        assert_eq!(
            verdict.signal,
            HealthSignal::Suspect(HealthProblem::ParsedEntry(text.into()))
        );
    }

    #[test]
    fn recorded_errors_mean_what_the_table_says() {
        let mut rows = 0;
        for line in include_str!("testdata/errors.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let [command, expected, _source, text] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("four columns: {line}");
            };
            let operation = match command {
                "run" => exec("web"),
                "info" => info("web"),
                "list" => Operation::Query(Query::List),
                "logs" => Operation::Query(Query::Logs(name("web"), LogScope::Default)),
                "start" => Operation::Start(name("web")),
                "create" => create("web"),
                "delete" => Operation::Delete(name("web")),
                "config set" => Operation::ConfigSet {
                    key: "no.such.key".parse().expect("valid"),
                    value: "x".into(),
                },
                other => panic!("{other}"),
            };
            let verdict = classify(
                &operation,
                &completion(Ending::Exited(1), "", &format!("{text}\n")),
            );
            let signal = match verdict.signal {
                HealthSignal::Unhealthy(_) => "unhealthy",
                HealthSignal::Suspect(_) => "suspect",
                HealthSignal::Healthy | HealthSignal::Nothing => "",
            };
            let meaning = match (verdict.failure, signal) {
                (Some(Failure::OrbctlFailed { .. }), "") => "failed".to_owned(),
                (Some(Failure::OrbctlFailed { .. }), signal) => signal.to_owned(),
                (None, "") => "guest".to_owned(),
                (Some(Failure::MachineNotFound(name)), "") => format!("machine_not_found {name}"),
                (Some(Failure::MachineExists(name)), "") => format!("machine_exists {name}"),
                (Some(Failure::MachineWrongState { machine, state }), "") => {
                    assert_eq!(machine, name("web"));
                    format!("machine_wrong_state {state}")
                }
                (Some(Failure::NoLogs { machine, kind }), "") => {
                    assert_eq!(machine, name("web"));
                    format!("no_logs {kind}")
                }
                (Some(Failure::ConfigKeyNotFound(key)), "") => {
                    assert_eq!(&*key, "no.such.key");
                    "key_not_found".to_owned()
                }
                (failure, signal) => format!("{failure:?} {signal}"),
            };
            assert_eq!(meaning, expected, "{command}: {text}");
            rows += 1;
        }
        assert!(rows >= 30, "{rows} rows");
    }

    #[test]
    fn orbctl_s_own_refusal_of_a_command_is_told_from_it() {
        let missing = (Some(Failure::MachineNotFound("web".into())), false);
        for stderr in [
            include_str!("testdata/orb-no-machines.stderr.txt"),
            "[-32098] machine not found: 'web'\n",
            "[-32098] run 'web': machine not found: 'web'",
            "\n\u{256d}\u{2500}\u{256e}\n\u{2502} update \u{2502}\n\u{2570}\u{2500}\u{256f}\n\n[-32098] machine not found: 'web'\n",
        ] {
            check(&exec("web"), 1, "", stderr, &missing);
        }
    }

    #[test]
    fn stopped_is_an_answer_of_status() {
        let status = Operation::Query(Query::Status);
        check(
            &status,
            1,
            include_str!("testdata/status-stopped.txt"),
            "",
            &(None, false),
        );
        check(&status, 1, "", "broken\n", &failed(1, "broken", false));
    }

    #[test]
    fn what_we_ended_is_for_the_dispatcher_to_judge() {
        let blocked = |verb| HealthProblem::Blocked { verb };
        let list = Operation::Query(Query::List);
        for (operation, ending, signal) in [
            (&list, Ending::TimedOut, HealthSignal::Unhealthy(blocked("list"))),
            (
                &info("a"),
                Ending::TimedOut,
                HealthSignal::Suspect(blocked("info")),
            ),
            (&create("a"), Ending::TimedOut, HealthSignal::Nothing),
            (&exec("a"), Ending::TimedOut, HealthSignal::Nothing),
            (&list, Ending::Stopped, HealthSignal::Nothing),
        ] {
            let verdict = classify(operation, &completion(ending, "", "panic: x"));
            assert_eq!((verdict.failure, verdict.signal), (None, signal), "{operation:?}");
        }
    }

    #[test]
    fn orbctl_is_well_when_its_service_answered_if_only_to_refuse() {
        let missing = "[-32098] machine not found: 'web'\n";
        for (operation, code, stderr, signal) in [
            (Operation::Query(Query::List), 0, "", HealthSignal::Healthy),
            (info("web"), 1, missing, HealthSignal::Healthy),
            (exec("web"), 0, "", HealthSignal::Healthy),
            (exec("web"), 1, missing, HealthSignal::Healthy),
            (create("web"), 0, "", HealthSignal::Healthy),
            // The guest's own answer, or one from a file, or one that was given while nothing else was.
            (exec("web"), 7, "", HealthSignal::Nothing),
            (Operation::Query(Query::Version), 0, "", HealthSignal::Nothing),
            (Operation::Query(Query::Status), 0, "", HealthSignal::Nothing),
            (create("web"), 1, "[-32098] no space\n", HealthSignal::Nothing),
            (
                create("web"),
                1,
                "[-32098] create 'web': dial tcp 10.0.0.1:443: connect: connection refused\n",
                HealthSignal::Suspect(HealthProblem::ParsedEntry(
                    "[-32098] create 'web': dial tcp 10.0.0.1:443: connect: connection refused".into(),
                )),
            ),
        ] {
            let verdict = classify(&operation, &completion(Ending::Exited(code), "", stderr));
            assert_eq!(verdict.signal, signal, "{operation:?} {code}");
        }
        let killed = classify(&info("web"), &completion(Ending::Signalled(9), "", ""));
        assert_eq!(killed.signal, HealthSignal::Nothing);
    }

    #[test]
    fn what_is_quoted_of_a_sick_orbctl_is_one_short_clean_line() {
        let stderr = format!("panic: \u{1b}[31m{}\ngoroutine 1 [running]:\n", "x".repeat(9000));
        let list = Operation::Query(Query::List);
        let verdict = classify(&list, &completion(Ending::Exited(2), "", &stderr));
        let HealthSignal::Unhealthy(HealthProblem::ParsedEntry(line)) = verdict.signal else {
            panic!("{verdict:?}");
        };
        assert_eq!(*line, format!("panic: [31m{}", "x".repeat(SAID_MAX - 11)));
    }

    #[test]
    fn a_killed_command_does_not_repeat_its_output() {
        let killed = |operation: &Operation| {
            classify(
                operation,
                &completion(Ending::Signalled(9), "", "secret\u{1b}[0m"),
            )
            .failure
        };
        let expected = |tail: &str| {
            Some(Failure::OrbctlKilled {
                signal: 9,
                stderr_tail: tail.into(),
            })
        };
        assert_eq!(killed(&exec("a")), expected(""));
        assert_eq!(killed(&create("a")), expected("secret[0m"));
    }
}
