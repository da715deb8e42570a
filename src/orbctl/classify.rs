//! Classifies the result of an invocation from its ending and stderr. No other code reads stderr.
//!
//! Errors have the form `[CODE] operation 'NAME': cause`. The code in brackets comes from a JSON-RPC library and carries almost
//! no information, so only the text after it is examined.
//!
//! **Exit codes of guest commands.** `orbctl run` passes on the exit code of the guest's command, so exit code 1 is ambiguous:
//! `orbctl` may also have failed to run the command. It is attributed to `orbctl` if stdout is empty, the code is 1, and all of
//! stderr is one line that exactly matches a text recorded from `orbctl` itself (see `testdata/errors.tsv`), with or without a
//! code in brackets. The remaining risk: a guest program that prints exactly such a line about its own machine, and nothing else,
//! and exits with 1 is reported as a failure of `orbctl`. This includes `orbctl` called inside the machine about the same
//! machine.
//!
//! **Unhealthy** means that the fault is not in the operation but in OrbStack's service: later calls will fail or block in the
//! same way, whatever they ask. A change that ends this way is reconciled with the inventory like one that was killed.
//!
//! - Not a signal: a change that exceeds its time limit, because creates wait for the network (the polls that follow it are
//!   signals); a command that does, because its duration depends on the guest's program.
//! - Suspect: a read about one machine that times out, because the cause may be that machine.
//! - Suspect: a command that ends with a text of the unhealthy service, because the guest's program may have printed it.
//! - Suspect: "timed out waiting for VM to start" from anything but a read. According to recordings the VM starts a moment later.
//!
//! **Healthy** means that the service answered, even with a refusal. Answers that `orbctl` may read from its own files prove
//! nothing.

use std::borrow::Cow;
use std::sync::Arc;

use super::output::said;
use super::{Captured, Completion, TAIL_MAX};
use crate::job::{Ending, Failure, HealthProblem, HealthSignal};
use crate::operation::{Change, ConfigKey, Query};
use orbd_host::machine::MachineName;

/// The classification of an invocation's result.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// Why the operation failed. `None` for success, and for a timeout or stop: what those mean depends on why orbd ended the
    /// child, which the dispatcher knows.
    pub failure: Option<Failure>,
    /// What the result implies for the health of `orbctl` itself.
    pub signal: HealthSignal,
}

impl Verdict {
    /// Returns a verdict without a failure.
    fn passed(signal: HealthSignal) -> Self {
        Self {
            failure: None,
            signal,
        }
    }
}

/// Maximum length, in characters, of the quoted line that shows the problem.
const SAID_MAX: usize = 200;

/// Recorded texts of OrbStack's service, or printed in its place, when it does not work.
const UNHEALTHY: [&str; 5] = [
    "timed out waiting for services to start",
    "timed out waiting for VM to start",
    "missing TCC permission",
    "$HOME is not defined",
    "panic: mkdir /docker: read-only file system",
];

/// Recorded text of `orbctl` about a VM that does start, only later.
const STARTS_LATER: &str = "timed out waiting for VM to start";

/// Recorded complete texts of the service for a command that it did not run.
const NOT_RUN: [&str; 2] = [
    "start VM: timed out waiting for VM to start",
    "timed out waiting for services to start",
];

/// Recorded endings of the machine start that `orbctl run` performs for a stopped machine.
const NOT_STARTED: [&str; 3] = [
    "setup: machine didn't start in 30s (missing IP address)",
    "setup: timed out waiting for network",
    "setup: machine crashed on startup",
];

/// What `orbctl` prints if no machine exists at all.
const NO_MACHINES: [&str; 6] = [
    "To use Docker:",
    "docker run ...",
    "See \"orb docker\" for more info.",
    "To create a Linux machine:",
    "orb create ubuntu",
    "See \"orb create --help\" for supported distros and options.",
];

/// What Go prints if nothing listens on a socket. It is the service's socket, unless a guest's program printed the text about a
/// socket of its own.
const NOT_LISTENING: [&str; 2] = [
    "connect: connection refused",
    "connect: no such file or directory",
];

/// Classifies the result of a read.
pub(super) fn query(query: &Query, completion: &Completion) -> Verdict {
    if let Query::RawQuery(read) = query {
        return self::query(&read.subject(), completion);
    }
    match completion.ending {
        // Success proves nothing if `orbctl` may read the answer from its own files, or for `status`, which was seen to succeed while
        // other calls failed.
        Ending::Exited(0) if matches!(query, Query::List | Query::Info(_)) => {
            Verdict::passed(HealthSignal::Healthy)
        }
        Ending::Exited(0) | Ending::Stopped => Verdict::passed(HealthSignal::Nothing),
        Ending::TimedOut => {
            let blocked = HealthProblem::Blocked {
                verb: query.verb().as_str(),
            };
            Verdict::passed(match query.machine() {
                Some(_) => HealthSignal::Suspect(blocked),
                None => HealthSignal::Unhealthy(blocked),
            })
        }
        Ending::Signalled(signal) => killed(signal, tail(&completion.stderr)),
        // Exit code 1 with output means that OrbStack is stopped, which is an answer.
        Ending::Exited(_) if *query == Query::Status && completion.stdout.total > 0 => {
            Verdict::passed(HealthSignal::Nothing)
        }
        Ending::Exited(code) => {
            let call = Call {
                machine: query.machine(),
                key: None,
                is_read: true,
            };
            of_failed(&call, code, &completion.stderr)
        }
    }
}

/// Classifies the result of a change.
pub(super) fn change(change: &Change, completion: &Completion) -> Verdict {
    match completion.ending {
        // `orbctl` may write these to its own files, so their success proves nothing.
        Ending::Exited(0)
            if matches!(
                change,
                Change::SetDefault(_)
                    | Change::ConfigSet { .. }
                    | Change::ConfigAdd { .. }
                    | Change::ConfigRemove { .. }
                    | Change::ConfigReset
            ) =>
        {
            Verdict::passed(HealthSignal::Nothing)
        }
        Ending::Exited(0) => Verdict::passed(HealthSignal::Healthy),
        Ending::Stopped | Ending::TimedOut => Verdict::passed(HealthSignal::Nothing),
        Ending::Signalled(signal) => killed(signal, tail(&completion.stderr)),
        Ending::Exited(code) => {
            let info = change.info();
            let call = Call {
                machine: info.machine.as_ref(),
                key: match change {
                    Change::ConfigSet { key, .. }
                    | Change::ConfigAdd { key, .. }
                    | Change::ConfigRemove { key, .. } => Some(key),
                    _ => None,
                },
                is_read: false,
            };
            of_failed(&call, code, &completion.stderr)
        }
    }
}

/// Classifies the result of a command in a machine. The caller already has its stderr as output, so no failure repeats it.
pub(super) fn exec(machine: &MachineName, completion: &Completion) -> Verdict {
    match completion.ending {
        Ending::Exited(0) => Verdict::passed(HealthSignal::Healthy),
        Ending::Stopped | Ending::TimedOut => Verdict::passed(HealthSignal::Nothing),
        Ending::Signalled(signal) => killed(signal, "".into()),
        Ending::Exited(code) => of_exec(machine, code, completion),
    }
}

fn killed(signal: i32, stderr_tail: Arc<str>) -> Verdict {
    Verdict {
        failure: Some(Failure::OrbctlKilled { signal, stderr_tail }),
        signal: HealthSignal::Nothing,
    }
}

/// What `orbctl` was called for, as far as its errors may refer to it.
struct Call<'a> {
    machine: Option<&'a MachineName>,
    /// The key of a `config set`.
    key: Option<&'a ConfigKey>,
    is_read: bool,
}

fn of_failed(call: &Call<'_>, code: i32, stderr: &Captured) -> Verdict {
    let opening = String::from_utf8_lossy(&stderr.opening);
    let kept = String::from_utf8_lossy(&stderr.bytes);
    let lines = || said(&opening).chain(said(&kept));
    let recognised = lines().find_map(|line| recognise(call, cause(line).1));
    let failure = recognised.unwrap_or_else(|| Failure::OrbctlFailed {
        exit_code: code,
        stderr_tail: tail(stderr),
    });
    let has = |word: &str| lines().any(|line| line.contains(word));
    let is_panic_line = |line: &str| line.starts_with("panic:") || line.starts_with("goroutine ");
    // A crash on particular operands (`delete ID` in 2.2.3) implies nothing for the next call; on a plain read it does.
    let is_own_crash = has("runtime error") && !call.is_read;
    let complaint = lines().find(|line| {
        UNHEALTHY.iter().any(|text| line.contains(text)) || (is_panic_line(line) && !is_own_crash)
    });
    let not_listening = lines().find(|line| NOT_LISTENING.iter().any(|text| line.contains(text)));
    let signal = match (complaint, not_listening, &failure) {
        (Some(line), ..) if line.contains(STARTS_LATER) && !call.is_read => {
            HealthSignal::Suspect(said_to_be(line))
        }
        (Some(line), ..) => HealthSignal::Unhealthy(said_to_be(line)),
        (None, Some(line), _) if call.is_read => HealthSignal::Unhealthy(said_to_be(line)),
        // The refused connection may be to the image server.
        (None, Some(line), _) => HealthSignal::Suspect(said_to_be(line)),
        // The service checked the machine's state and refused.
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

/// Quotes the line that shows that `orbctl` is unhealthy.
fn said_to_be(line: &str) -> HealthProblem {
    let text = clean(line.as_bytes());
    HealthProblem::Reported(text.chars().take(SAID_MAX).collect::<String>().into())
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
    // The service was recorded to panic under any command.
    let text = cause(first).1;
    if code == 2 && text.starts_with("panic: ") && UNHEALTHY.iter().any(|known| text.contains(known)) {
        return not_run(2, text, stderr);
    }
    Verdict::passed(HealthSignal::Nothing)
}

/// Classifies a command that ended with exit code 1 and printed nothing but this line.
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
    if NOT_RUN.contains(&own) || (has_code && (is_known(&UNHEALTHY) || is_known(&NOT_LISTENING))) {
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

/// Returns the verdict for a command that `orbctl` did not run. Only `Suspect`: a guest's program could print the same text, and
/// that alone must not block all other jobs.
fn not_run(exit_code: i32, text: &str, stderr: &Captured) -> Verdict {
    Verdict {
        failure: Some(Failure::OrbctlFailed {
            exit_code,
            stderr_tail: tail(stderr),
        }),
        signal: HealthSignal::Suspect(said_to_be(text)),
    }
}

/// Maps an error text to one of the named failures.
fn recognise(call: &Call<'_>, text: &str) -> Option<Failure> {
    let named = |phrase: &str| {
        let rest = text.split_once(phrase)?.1.trim();
        // Versions from 2023 print no quotes.
        let name = rest
            .strip_prefix('\'')
            .map_or(rest, |rest| rest.split_once('\'').map_or(rest, |(name, _)| name));
        let name = if name.is_empty() {
            call.machine?.as_str()
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
        && let Some(machine) = call.machine.cloned().or_else(in_operation)
    {
        return Some(Failure::MachineWrongState {
            machine,
            state: state.into(),
        });
    }
    if let Some((_, kind)) = text.split_once(" has no logs of type ")
        && let Some(machine) = call.machine.cloned().or_else(in_operation)
    {
        return Some(Failure::NoLogs {
            machine,
            kind: kind.trim().into(),
        });
    }
    if let Some(key) = call.key
        && ends_with_cause(text, "key not found")
    {
        return Some(Failure::ConfigKeyNotFound(key.as_str().into()));
    }
    // Not recorded; modelled on the recorded texts. Any other text stays `OrbctlFailed`.
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
        let machine = named.or_else(|| call.machine.cloned())?;
        rest.is_empty()
            .then_some(())
            .or_else(|| rest.starts_with(':').then_some(()))?;
        Some(Failure::MachineWrongState {
            machine,
            state: (*state).into(),
        })
    })
}

/// Returns the current state from an error about an impossible state transition.
fn transition(text: &str) -> Option<&str> {
    let phrases = ["cannot transition from ", "invalid transition from "];
    let (_, states) = phrases.iter().find_map(|phrase| text.split_once(phrase))?;
    let (from, to) = states.split_once(" to ")?;
    let is_state = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    (is_state(from) && is_state(to)).then_some(from)
}

/// Strips the code in brackets from a line. Also returns whether there was one.
fn cause(line: &str) -> (bool, &str) {
    let line = line.trim();
    let stripped = line.strip_prefix('[').and_then(|rest| {
        let (code, text) = rest.split_once("] ")?;
        code.parse::<i32>().ok().map(|_| text)
    });
    (stripped.is_some(), stripped.unwrap_or(line))
}

/// Returns whether `text` is `cause`, alone or after `operation 'NAME': `.
fn ends_with_cause(text: &str, cause: &str) -> bool {
    text.strip_suffix(cause)
        .is_some_and(|before| before.is_empty() || before.ends_with(": "))
}

/// Returns the end of stderr, safe for the caller's terminal and log: without control characters, limited in length, and with the
/// first line of stderr in front if the end does not include it.
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
    use crate::operation::{Action, ExecRequest, Force, LogScope, NewMachine};

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

    fn classify(action: &Action, completion: &Completion) -> Verdict {
        match action {
            Action::Query(query) => super::query(query, completion),
            Action::Exec(machine, _) => super::exec(machine, completion),
            Action::Change(change) => super::change(change, completion),
        }
    }

    fn check(operation: &Action, code: i32, stdout: &str, stderr: &str, expected: &(Option<Failure>, bool)) {
        let verdict = classify(operation, &completion(Ending::Exited(code), stdout, stderr));
        let is_unhealthy = matches!(verdict.signal, HealthSignal::Unhealthy(_));
        assert_eq!(&(verdict.failure, is_unhealthy), expected, "{stderr}");
    }

    fn failed(exit_code: i32, stderr: &str, unhealthy: bool) -> (Option<Failure>, bool) {
        let failure = Failure::OrbctlFailed {
            exit_code,
            stderr_tail: stderr.trim().into(),
        };
        (Some(failure), unhealthy)
    }

    fn create(machine: &str) -> Action {
        Action::Change(Change::Create(NewMachine::new(
            name(machine),
            "ubuntu".parse().expect("valid"),
        )))
    }

    fn exec(machine: &str) -> Action {
        let request = ExecRequest::new(vec!["true".into()]).expect("valid");
        Action::Exec(name(machine), request)
    }

    fn info(machine: &str) -> Action {
        Action::Query(Query::Info(name(machine)))
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
            &Action::Change(Change::Start(name("openeuler"))),
            1,
            "",
            "machine not found: openeuler\n",
            &missing("openeuler"),
        );
        check(
            &Action::Change(Change::Rename {
                from: name("a"),
                to: name("b"),
            }),
            1,
            "",
            "[-32098] rename 'a': machine not found: 'a'\n",
            &missing("a"),
        );
        check(
            &Action::Change(Change::Restart(name("a"))),
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
    fn unknown_refusals_keep_their_text() {
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
    fn errors_of_a_broken_service_mean_unhealthy() {
        let panic = "panic: timed out waiting for services to start\n\ngoroutine 1 [running]:\nmain.main()\n";
        let start = "[-32098] start VM: timed out waiting for VM to start\n";
        let list = Action::Query(Query::List);
        check(&list, 2, "", panic, &failed(2, panic, true));
        check(
            &Action::Change(Change::StartOrbstack(Force::No)),
            1,
            "",
            start,
            // Recorded to be false: the VM starts later.
            &failed(1, start, false),
        );
        check(&list, 1, "", start, &failed(1, start, true));
        // Only suspect under a command, because a guest's program could print it.
        check(&exec("web"), 2, "", panic, &failed(2, panic, false));
        check(&exec("web"), 1, "", start, &failed(1, start, false));
        let verdict = classify(&exec("web"), &completion(Ending::Exited(2), "", panic));
        let said = HealthProblem::Reported("panic: timed out waiting for services to start".into());
        assert_eq!(verdict.signal, HealthSignal::Suspect(said));
        let home = "panic: $HOME is not defined\n";
        check(
            &Action::Query(Query::Version),
            2,
            "",
            home,
            &failed(2, home, true),
        );
    }

    #[test]
    fn crash_on_operands_does_not_mean_unhealthy() {
        let crash = "panic: runtime error: invalid memory address or nil pointer dereference\ngoroutine 1 [running]:\n";
        let delete = Action::Change(Change::Delete(name("a")));
        check(&delete, 2, "", crash, &failed(2, crash, false));
        check(&Action::Query(Query::List), 2, "", crash, &failed(2, crash, true));
    }

    #[test]
    fn long_panic_is_recognised_by_its_beginning() {
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
        let verdict = classify(&Action::Query(Query::List), &completion);
        let said = HealthProblem::Reported("panic: timed out waiting for services to start".into());
        assert_eq!(verdict.signal, HealthSignal::Unhealthy(said));
        let Some(Failure::OrbctlFailed { stderr_tail, .. }) = verdict.failure else {
            panic!("{verdict:?}");
        };
        assert!(stderr_tail.starts_with("panic: timed out waiting for services to start\n...\n"));
        assert!(stderr_tail.len() < 5000);
    }

    #[test]
    fn exit_code_of_a_guest_command_is_not_a_failure_of_orbctl() {
        let well = (None, false);
        for (code, stdout, stderr) in [
            (1, "", ""),
            (7, "out", "err"),
            (127, "", include_str!("testdata/orb-shell-wrong-usage.txt")),
            // A Go program in the guest that panics.
            (
                2,
                "",
                "panic: runtime error: index out of range\n\ngoroutine 1 [running]:\n",
            ),
            // A guest program whose own database does not answer.
            (
                2,
                "",
                "panic: dial tcp 127.0.0.1:5432: connect: connection refused\n\ngoroutine 1 [running]:\n",
            ),
            // Not the only output, not about this machine, not in `orbctl`'s form, or not with its exit code.
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

    /// The remaining ambiguity: a guest's output that exactly matches a text of `orbctl` is attributed to it, but does not block
    /// other jobs.
    #[test]
    fn guest_output_that_exactly_matches_a_text_of_orbctl_is_attributed_to_it() {
        let text = "start VM: timed out waiting for VM to start";
        let verdict = classify(
            &exec("web"),
            &completion(Ending::Exited(1), "", &format!("{text}\n")),
        );
        assert_eq!((verdict.failure, false), failed(1, text, false));
        assert_eq!(
            verdict.signal,
            HealthSignal::Suspect(HealthProblem::Reported(text.into()))
        );
    }

    #[test]
    fn recorded_errors_are_classified_as_in_the_table() {
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
                "list" => Action::Query(Query::List),
                "logs" => Action::Query(Query::Logs(name("web"), LogScope::Default)),
                "start" => Action::Change(Change::Start(name("web"))),
                "create" => create("web"),
                "delete" => Action::Change(Change::Delete(name("web"))),
                "config set" => Action::Change(Change::ConfigSet {
                    key: "no.such.key".parse().expect("valid"),
                    value: "x".into(),
                }),
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
    fn refusal_by_orbctl_is_distinguished_from_the_guest_command() {
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
    fn status_stopped_is_an_answer_not_a_failure() {
        let status = Action::Query(Query::Status);
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
    fn timeouts_and_stops_are_not_failures() {
        let blocked = |verb| HealthProblem::Blocked { verb };
        let list = Action::Query(Query::List);
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
    fn answers_and_refusals_of_the_service_mean_healthy() {
        let missing = "[-32098] machine not found: 'web'\n";
        for (operation, code, stderr, signal) in [
            (Action::Query(Query::List), 0, "", HealthSignal::Healthy),
            (info("web"), 1, missing, HealthSignal::Healthy),
            (exec("web"), 0, "", HealthSignal::Healthy),
            (exec("web"), 1, missing, HealthSignal::Healthy),
            (create("web"), 0, "", HealthSignal::Healthy),
            // The guest's own exit code, an answer from a file, or an answer that was recorded while the service did not work.
            (exec("web"), 7, "", HealthSignal::Nothing),
            (Action::Query(Query::Version), 0, "", HealthSignal::Nothing),
            (Action::Query(Query::Status), 0, "", HealthSignal::Nothing),
            (create("web"), 1, "[-32098] no space\n", HealthSignal::Nothing),
            (
                create("web"),
                1,
                "[-32098] create 'web': dial tcp 10.0.0.1:443: connect: connection refused\n",
                HealthSignal::Suspect(HealthProblem::Reported(
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
    fn health_problem_quotes_one_short_line_without_control_characters() {
        let stderr = format!("panic: \u{1b}[31m{}\ngoroutine 1 [running]:\n", "x".repeat(9000));
        let list = Action::Query(Query::List);
        let verdict = classify(&list, &completion(Ending::Exited(2), "", &stderr));
        let HealthSignal::Unhealthy(HealthProblem::Reported(line)) = verdict.signal else {
            panic!("{verdict:?}");
        };
        assert_eq!(*line, format!("panic: [31m{}", "x".repeat(SAID_MAX - 11)));
    }

    #[test]
    fn killed_command_does_not_repeat_its_output() {
        let killed = |operation: &Action| {
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
