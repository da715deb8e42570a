//! Classifies the arguments of the real tool: pure functions from arguments to a [`Plan`].
//!
//! The real tool always gets the arguments unchanged, and reports every usage error itself. An invocation that is not fully understood
//! (an unknown flag, an unknown verb) takes all lanes that it might need: too few lanes would let changes overlap, too many only delay.
//! Only orbd knows which arguments are machines, so all that may be names are sent with the request.

use std::ffi::OsString;

use orbd_host::token::ConfigKey;
use orbd_proto::types::{LeaseOperation, RawRead, ReadCommand, UnknownForm};

use super::flags::{Flag, NAMES_MAX, Order, ParsedFlags, name};

/// Name by which this program was invoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvokedAs {
    /// `orbctl`.
    Orbctl,
    /// `orb`, which opens a shell without arguments, and runs an unknown verb as a command in the default machine.
    Orb,
}

/// How to run an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Does not involve OrbStack's machines: help and shell completion. Runs without orbd.
    Untouched,
    /// A read, whose output may be shared.
    Read(RawRead),
    /// A command that needs a lease.
    Lease(LeaseRequest),
    /// A command that affects no machine as far as the arguments show. Takes no lanes, and invalidates the whole cache.
    Other,
}

/// The lease that a command needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LeaseRequest {
    /// The operation to run under the lease.
    pub(super) operation: LeaseOperation,
    /// Name or id of the machine; `None` for the default machine, or for an operation that is not about one machine.
    pub(super) machine: Option<String>,
    /// Names or ids, if there are several machines; otherwise empty.
    pub(super) machines: Vec<String>,
    /// New name, for `rename` and `clone`.
    pub(super) new_name: Option<String>,
    /// Preempts the jobs that block it.
    pub(super) force: bool,
    /// Operands of an invocation that is not fully understood; `None` if it is.
    pub(super) unknown_form: Option<UnknownForm>,
}

impl LeaseRequest {
    fn of(operation: LeaseOperation) -> Self {
        Self {
            operation,
            ..Self::default()
        }
    }
}

/// Verbs for which `orb` behaves like `orbctl`.
const COMMANDS: [&str; 33] = [
    "list", "info", "create", "add", "new", "start", "stop", "restart", "delete", "clone", "rename",
    "export", "import", "default", "logs", "run", "shell", "push", "pull", "ssh", "config", "status",
    "version", "update", "doctor", "debug", "docker", "reset", "report", "login", "logout", "top",
    "shutdown",
];

/// Further such verbs, which are not well documented.
const RARE_COMMANDS: [&str; 2] = ["k8s", "migrate"];

/// Words that `orb` may run as a command in the default machine, but that may also be a change: because its behaviour is unclear, because
/// a later version may have such a verb, or because the command stops the machine that it runs in.
const MAY_CHANGE: [&str; 11] = [
    "remove", "rm", "suspend", "resume", "pause", "unpause", "snapshot", "restore", "reboot", "poweroff",
    "halt",
];

/// Classifies an invocation. `interactive` means that stdin and stdout are terminals.
pub(super) fn plan(called: InvokedAs, words: &[OsString], interactive: bool) -> Plan {
    let (leading, words) = match called {
        InvokedAs::Orbctl => words.split_at(count_leading(words)),
        InvokedAs::Orb => words.split_at(0),
    };
    if asks_for_help(leading) || leading.iter().any(|word| word == "-V" || word == "--version") {
        return Plan::Untouched;
    }
    let Some((first, rest)) = words.split_first() else {
        return match called {
            InvokedAs::Orbctl if leading.is_empty() => Plan::Untouched,
            InvokedAs::Orbctl | InvokedAs::Orb => run(leading, interactive),
        };
    };
    let Some(first) = first.to_str() else {
        return match called {
            InvokedAs::Orbctl => unknown_verb(leading, rest),
            InvokedAs::Orb => run(words, interactive),
        };
    };
    match first {
        "help" | "-h" | "--help" | "-V" | "--version" | "completion" | "__complete" | "__completeNoDesc" => {
            return Plan::Untouched;
        }
        "run" | "shell" => return run(&[leading, rest].concat(), interactive),
        _ if called == InvokedAs::Orb && MAY_CHANGE.contains(&first) => {
            return ParsedFlags::mixed(rest, &[]).unknown(LeaseOperation::RunOrChange);
        }
        _ if called == InvokedAs::Orb && !is_command(first) => return run(words, interactive),
        _ => {}
    }
    if asks_for_help(rest) {
        return Plan::Untouched;
    }
    match first {
        "push" => transfer(&[leading, rest].concat(), LeaseOperation::Push),
        "pull" => transfer(&[leading, rest].concat(), LeaseOperation::Pull),
        _ => classify_command(
            first,
            Call {
                leading,
                words: rest,
                interactive,
            },
        ),
    }
}

fn is_command(word: &str) -> bool {
    COMMANDS.contains(&word) || RARE_COMMANDS.contains(&word)
}

/// Returns whether the arguments before `--` contain a help flag.
fn asks_for_help(words: &[OsString]) -> bool {
    words
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "-h" || word == "--help")
}

/// Counts the arguments before the verb: flags of `run` and their values. The argument after an unknown flag counts as its value if it is
/// not a verb, but the next argument is.
fn count_leading(words: &[OsString]) -> usize {
    let is_flag = |word: &OsString| word.as_encoded_bytes().first() == Some(&b'-');
    let is_verb = |word: &OsString| word.to_str().is_some_and(is_command);
    let mut at = 0;
    while words.get(at).is_some_and(is_flag) {
        let sorted = ParsedFlags::sort(&words[at..=at], &OF_RUN, Order::FlagsFirst);
        let takes_next = match words.get(at + 1) {
            // A known flag whose value is the next argument.
            Some(_) if sorted.lacks_value => true,
            Some(next) if sorted.is_unknown && !is_flag(next) => {
                !is_verb(next) && words.get(at + 2).is_some_and(is_verb)
            }
            _ => false,
        };
        at += if takes_next { 2 } else { 1 };
    }
    at
}

const FORMAT: Flag = ("format", Some('f'), true);
const FORCE: Flag = ("force", Some('f'), false);
const ALL: Flag = ("all", Some('a'), false);
const MACHINE: Flag = ("machine", Some('m'), true);

/// Flags of `run`, which precede the guest's command. For `-s` and `-p` only the letters are documented; the long names are assumed.
const OF_RUN: [Flag; 7] = [
    MACHINE,
    ("help", Some('h'), false),
    ("user", Some('u'), true),
    ("workdir", Some('w'), true),
    ("shell", Some('s'), false),
    ("path", Some('p'), false),
    ("env", Some('e'), true),
];

const OF_CREATE: [Flag; 11] = [
    ("arch", Some('a'), true),
    ("user", Some('u'), true),
    ("set-password", Some('p'), false),
    ("user-data", Some('c'), true),
    ("isolated", None, false),
    ("isolate-network", None, false),
    ("mount", None, true),
    ("forward-ssh-agent", None, false),
    ("cpus", None, true),
    ("memory", None, true),
    ("disk", None, true),
];

/// The arguments of a verb other than `run`, `push` and `pull`.
#[derive(Clone, Copy)]
struct Call<'a> {
    /// Flags before the verb. Only `run`, `push` and `pull` are known to accept any.
    leading: &'a [OsString],
    /// Arguments after the verb.
    words: &'a [OsString],
    interactive: bool,
}

impl Call<'_> {
    fn sort(self, known: &[Flag]) -> ParsedFlags {
        let mut sorted = ParsedFlags::mixed(self.words, known);
        sorted.add_leading(self.leading, &OF_RUN);
        sorted
    }
}

/// Classifies a verb other than `run`, `push` and `pull`.
fn classify_command(command: &str, call: Call<'_>) -> Plan {
    use LeaseOperation as L;
    match command {
        "list" | "info" | "status" | "version" | "ssh" | "logs" => {
            classify_read(command, call).unwrap_or(Plan::Other)
        }
        "default" if call.words.is_empty() => classify_read(command, call).unwrap_or(Plan::Other),
        "default" => set_default(&call.sort(&[])),
        "config" => config(call),
        "create" | "add" | "new" => create(call.sort(&OF_CREATE)),
        "start" => each(
            &call.sort(&[ALL]),
            L::Start,
            Some((L::StartAll, L::StartOrbstack)),
        ),
        "stop" => each(
            &call.sort(&[ALL, FORCE]),
            L::Stop,
            Some((L::StopAll, L::StopOrbstack)),
        ),
        "restart" => each(
            &call.sort(&[ALL]),
            L::Restart,
            Some((L::RestartAll, L::RestartOrbstack)),
        ),
        // `-f` only confirms the deletion; it does not preempt jobs.
        "delete" | "rm" | "remove" => each(&call.sort(&[FORCE]), L::Delete, None),
        "rename" => renamed(&call.sort(&[]), L::Rename),
        "clone" => renamed(&call.sort(&[]), L::Clone),
        "export" => export(&call.sort(&[])),
        "import" => import(&call.sort(&[("name", Some('n'), true)])),
        // Affects all of OrbStack, whatever its arguments; `--check` changes nothing.
        "update" if call.sort(&[("check", None, false)]).has("check") => Plan::Other,
        "update" => Plan::Lease(LeaseRequest::of(L::UpdateOrbstack)),
        "reset" => Plan::Lease(LeaseRequest::of(L::ResetOrbstack)),
        "shutdown" => Plan::Lease(LeaseRequest::of(L::StopOrbstack)),
        // OrbStack's internal machines, which are not listed. They have lanes under their names; `restart docker` takes the same one.
        "docker" | "migrate" => under_own_name("docker"),
        "k8s" => under_own_name("k8s"),
        "doctor" | "debug" | "report" | "login" | "logout" | "top" => Plan::Other,
        _ => unknown_verb(call.leading, call.words),
    }
}

/// Plans an unknown verb: it may affect each machine that its arguments name.
fn unknown_verb(leading: &[OsString], words: &[OsString]) -> Plan {
    let mut sorted = ParsedFlags::mixed(words, &[]);
    sorted.add_leading(leading, &OF_RUN);
    let operands = sorted.names();
    if operands.is_empty() {
        return Plan::Other;
    }
    Plan::Lease(LeaseRequest {
        unknown_form: Some(unknown_form(operands)),
        ..LeaseRequest::of(LeaseOperation::Other)
    })
}

fn under_own_name(name: &str) -> Plan {
    Plan::Lease(LeaseRequest {
        machine: Some(name.to_owned()),
        ..LeaseRequest::of(LeaseOperation::Other)
    })
}

/// Classifies a read-only command; `None` if its arguments are not fully understood.
fn classify_read(command: &str, call: Call<'_>) -> Option<Plan> {
    call.leading.is_empty().then_some(())?;
    let words = call.words;
    let read = |command| {
        Some(Plan::Read(RawRead {
            command,
            ..RawRead::default()
        }))
    };
    match command {
        "list" => {
            let sorted = ParsedFlags::known(
                words,
                &[FORMAT, ("quiet", Some('q'), false), ("running", Some('r'), false)],
            )?;
            sorted.none()?;
            Some(Plan::Read(RawRead {
                command: ReadCommand::List,
                format: sorted.format()?,
                quiet: sorted.has("quiet"),
                running: sorted.has("running"),
                ..RawRead::default()
            }))
        }
        "info" => {
            let sorted = ParsedFlags::known(words, &[FORMAT])?;
            Some(Plan::Read(RawRead {
                command: ReadCommand::Info,
                machine: Some(sorted.machine()?),
                format: sorted.format()?,
                ..RawRead::default()
            }))
        }
        "status" if words.is_empty() => read(ReadCommand::Status),
        "version" if words.is_empty() => read(ReadCommand::Version),
        "ssh" if words.is_empty() => read(ReadCommand::Ssh),
        "default" if words.is_empty() => read(ReadCommand::Default),
        "logs" => {
            let sorted = ParsedFlags::known(words, &[ALL, ("follow", Some('f'), false)])?;
            let machine = Some(sorted.machine()?);
            Some(if sorted.has("follow") {
                Plan::Lease(LeaseRequest {
                    machine,
                    ..LeaseRequest::of(LeaseOperation::Logs)
                })
            } else {
                Plan::Read(RawRead {
                    command: ReadCommand::Logs,
                    machine,
                    all: sorted.has("all"),
                    ..RawRead::default()
                })
            })
        }
        _ => None,
    }
}

fn config(call: Call<'_>) -> Plan {
    let is_verb = |word: &&OsString| word.as_encoded_bytes().first() != Some(&b'-');
    let Some(verb) = call.words.iter().find(is_verb).and_then(|verb| verb.to_str()) else {
        return Plan::Other;
    };
    let operation = match verb {
        "show" | "get" => return read_config(call).unwrap_or(Plan::Other),
        "reset" => LeaseOperation::ConfigReset,
        "set" | "add" | "remove" => LeaseOperation::ConfigSet,
        // Some of these open an editor, which may stay open for any time.
        _ if call.interactive => return Plan::Other,
        _ => LeaseOperation::ConfigSet,
    };
    Plan::Lease(LeaseRequest::of(operation))
}

fn read_config(call: Call<'_>) -> Option<Plan> {
    let (verb, words) = call.words.split_first()?;
    call.leading.is_empty().then_some(())?;
    match (verb.to_str()?, words) {
        ("show", []) => Some(Plan::Read(RawRead {
            command: ReadCommand::ConfigShow,
            ..RawRead::default()
        })),
        ("get", [key]) => {
            let key: ConfigKey = key.to_str()?.parse().ok()?;
            Some(Plan::Read(RawRead {
                command: ReadCommand::ConfigGet,
                key: Some(key.to_string()),
                ..RawRead::default()
            }))
        }
        _ => None,
    }
}

fn set_default(sorted: &ParsedFlags) -> Plan {
    match sorted.machine().filter(|_| sorted.is_known()) {
        Some(machine) => Plan::Lease(LeaseRequest {
            machine: (machine != "none").then_some(machine),
            ..LeaseRequest::of(LeaseOperation::SetDefault)
        }),
        None => sorted.change(LeaseOperation::SetDefault),
    }
}

fn create(mut sorted: ParsedFlags) -> Plan {
    // The default name of `ubuntu:24.04` is `ubuntu`. An argument may be the image or the name, so the version is cut off from all.
    for word in &mut sorted.rest {
        if let Some(end) = word.find(':') {
            word.truncate(end);
        }
    }
    let machine = match sorted.rest.as_slice() {
        [machine] | [_, machine] if sorted.is_known() => name(machine),
        _ => None,
    };
    match machine {
        Some(machine) => Plan::Lease(LeaseRequest {
            machine: Some(machine),
            ..LeaseRequest::of(LeaseOperation::Create)
        }),
        None => sorted.change(LeaseOperation::Create),
    }
}

/// Plans an operation on the named machines, on all machines, or without a name on OrbStack itself. `of_fleet` has the operations for
/// the latter two; `None` if the verb requires a name.
fn each(
    sorted: &ParsedFlags,
    operation: LeaseOperation,
    of_fleet: Option<(LeaseOperation, LeaseOperation)>,
) -> Plan {
    let names: Option<Vec<String>> = sorted.rest.iter().map(|word| name(word)).collect();
    let mut place = match (names, of_fleet) {
        _ if !sorted.is_known() => return sorted.change(operation),
        (_, Some((all, _))) if sorted.has("all") => LeaseRequest::of(all),
        (Some(names), Some((_, none))) if names.is_empty() => LeaseRequest::of(none),
        (Some(mut names), _) if names.len() == 1 => LeaseRequest {
            machine: names.pop(),
            ..LeaseRequest::of(operation)
        },
        (Some(machines), _) if (2..=NAMES_MAX).contains(&machines.len()) => LeaseRequest {
            machines,
            ..LeaseRequest::of(operation)
        },
        _ => return sorted.change(operation),
    };
    place.force = sorted.is_forced(operation);
    Plan::Lease(place)
}

fn renamed(sorted: &ParsedFlags, operation: LeaseOperation) -> Plan {
    let [from, to] = sorted.rest.as_slice() else {
        return sorted.change(operation);
    };
    match (name(from), name(to)) {
        (Some(from), Some(to)) if sorted.is_known() => Plan::Lease(LeaseRequest {
            machine: Some(from),
            new_name: Some(to),
            ..LeaseRequest::of(operation)
        }),
        _ => sorted.change(operation),
    }
}

fn export(sorted: &ParsedFlags) -> Plan {
    let machine = match sorted.rest.as_slice() {
        [machine, _file] if sorted.is_known() => name(machine),
        _ => None,
    };
    match machine {
        Some(machine) => Plan::Lease(LeaseRequest {
            machine: Some(machine),
            ..LeaseRequest::of(LeaseOperation::Export)
        }),
        None => sorted.change(LeaseOperation::Export),
    }
}

fn import(sorted: &ParsedFlags) -> Plan {
    let operation = LeaseOperation::Import;
    let machine = match sorted.value("name").map(name) {
        Some(Some(machine)) if !sorted.may_mean_all => machine,
        Some(None) if sorted.is_known() => return Plan::Other,
        // Without a name the archive determines the machine, and only the tool reads the archive.
        _ => return whole_fleet(operation),
    };
    let is_known = sorted.is_known() && sorted.rest_count == 1;
    Plan::Lease(LeaseRequest {
        machine: Some(machine),
        unknown_form: (!is_known).then(|| unknown_form(sorted.names())),
        ..LeaseRequest::of(operation)
    })
}

fn transfer(words: &[OsString], operation: LeaseOperation) -> Plan {
    // The operands are files, whose names may not be UTF-8, so they are ignored.
    in_machine(&ParsedFlags::mixed(words, &[MACHINE]), operation)
}

/// Plans a command in a machine. On a terminal it is a session.
fn run(words: &[OsString], interactive: bool) -> Plan {
    let sorted = ParsedFlags::sort(words, &OF_RUN, Order::FlagsFirst);
    // After an unknown flag, `--help` may belong to the guest's command.
    if sorted.has("help") && !sorted.is_unknown {
        return Plan::Untouched;
    }
    if interactive {
        return match sorted.value("machine").map(name) {
            Some(None) => Plan::Other,
            machine => Plan::Lease(LeaseRequest {
                machine: machine.flatten(),
                ..LeaseRequest::of(LeaseOperation::Shell)
            }),
        };
    }
    in_machine(&sorted, LeaseOperation::Run)
}

/// Plans an operation in the machine of `--machine`, or in the default machine.
fn in_machine(sorted: &ParsedFlags, operation: LeaseOperation) -> Plan {
    let machine = match sorted.value("machine").map(name) {
        Some(None) if !sorted.is_unknown => return Plan::Other,
        machine => machine.flatten(),
    };
    let unknown_form = sorted.is_unknown.then(|| {
        let mut operands = sorted.names();
        // Each operand only adds a shared lane, so it is safe to drop operands beyond the limit.
        operands.truncate(NAMES_MAX);
        UnknownForm {
            operands,
            whole_fleet: false,
        }
    });
    Plan::Lease(LeaseRequest {
        machine,
        unknown_form,
        ..LeaseRequest::of(operation)
    })
}

fn whole_fleet(operation: LeaseOperation) -> Plan {
    Plan::Lease(LeaseRequest {
        unknown_form: Some(UnknownForm {
            operands: Vec::new(),
            whole_fleet: true,
        }),
        ..LeaseRequest::of(operation)
    })
}

/// Returns the form for these operands; with too many for a request it covers the whole fleet.
fn unknown_form(operands: Vec<String>) -> UnknownForm {
    if operands.len() > NAMES_MAX {
        return UnknownForm {
            operands: Vec::new(),
            whole_fleet: true,
        };
    }
    UnknownForm {
        operands,
        whole_fleet: false,
    }
}

impl ParsedFlags {
    /// Plans a change with unknown flags or unexpected operands.
    fn change(&self, operation: LeaseOperation) -> Plan {
        let has_names = self.rest.iter().any(|word| name(word).is_some());
        if !self.is_unknown && self.rest_count > 0 && !has_names {
            // All flags are known, and no operand can be a machine.
            return Plan::Other;
        }
        self.unknown(operation)
    }

    /// Plans an invocation that is not fully understood: it takes the machines that its arguments may name, or the whole fleet if none
    /// can be a name.
    fn unknown(&self, operation: LeaseOperation) -> Plan {
        let has_names = self.rest.iter().any(|word| name(word).is_some());
        let is_command = operation == LeaseOperation::RunOrChange;
        let form = if !is_command && (self.may_mean_all || !has_names) {
            UnknownForm {
                operands: Vec::new(),
                whole_fleet: true,
            }
        } else {
            unknown_form(self.names())
        };
        Plan::Lease(LeaseRequest {
            force: self.is_forced(operation),
            unknown_form: Some(form),
            ..LeaseRequest::of(operation)
        })
    }

    /// Returns whether the operation preempts the jobs that block it. Only for `stop`; for other verbs `-f` confirms a prompt.
    fn is_forced(&self, operation: LeaseOperation) -> bool {
        operation == LeaseOperation::Stop && self.has("force")
    }
}

#[cfg(test)]
mod tests {
    use orbd_proto::types::ReadFormat;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    fn planned(line: &str) -> Plan {
        let mut words = words(line);
        let called = match words.remove(0).to_str() {
            Some("orb") => InvokedAs::Orb,
            _ => InvokedAs::Orbctl,
        };
        plan(called, &words, false)
    }

    fn check(line: &str, expected: &Plan) {
        assert_eq!(planned(line), *expected, "{line}");
    }

    fn read(command: ReadCommand) -> RawRead {
        RawRead {
            command,
            ..RawRead::default()
        }
    }

    fn place(operation: LeaseOperation, machine: &str) -> Plan {
        Plan::Lease(LeaseRequest {
            machine: (!machine.is_empty()).then(|| machine.to_owned()),
            ..LeaseRequest::of(operation)
        })
    }

    fn forced(operation: LeaseOperation, machine: &str) -> Plan {
        match place(operation, machine) {
            Plan::Lease(place) => Plan::Lease(LeaseRequest { force: true, ..place }),
            other => other,
        }
    }

    #[test]
    fn all_spellings_of_a_read_give_the_same_plan() {
        use ReadCommand as R;
        let list = |format, quiet, running| {
            Plan::Read(RawRead {
                format,
                quiet,
                running,
                ..read(R::List)
            })
        };
        let json = Some(ReadFormat::Json);
        check("orbctl list", &list(None, false, false));
        for line in ["-f json", "-fjson", "--format json", "--format=json"] {
            check(&format!("orb list {line}"), &list(json, false, false));
        }
        for line in ["-qr", "-rq", "--quiet --running", "-q --running=true"] {
            check(&format!("orbctl list {line}"), &list(None, true, true));
        }
        check("orbctl list -qrf json", &list(json, true, true));
        let info = RawRead {
            machine: Some("web".into()),
            format: json,
            ..read(R::Info)
        };
        check("orbctl info web -f json", &Plan::Read(info.clone()));
        check("orbctl info -f json web", &Plan::Read(info));
        for (line, command) in [
            ("status", R::Status),
            ("version", R::Version),
            ("ssh", R::Ssh),
            ("default", R::Default),
            ("config show", R::ConfigShow),
        ] {
            check(&format!("orbctl {line}"), &Plan::Read(read(command)));
        }
        let key = Some("machine.web.username".into());
        check(
            "orbctl config get machine.web.username",
            &Plan::Read(RawRead {
                key,
                ..read(R::ConfigGet)
            }),
        );
        check(
            "orbctl logs -a web",
            &Plan::Read(RawRead {
                machine: Some("web".into()),
                all: true,
                ..read(R::Logs)
            }),
        );
    }

    #[test]
    fn flags_after_the_guest_command_belong_to_the_command() {
        use LeaseOperation as L;
        for line in [
            "orbctl run -m web ls --help",
            "orbctl run --machine=web -u root -w /tmp sh -c x -m db",
            "orbctl shell -mweb",
            "orbctl run -sp -m web -e A -- true",
            "orb -m web whoami",
            "orb run -m web",
        ] {
            check(line, &place(L::Run, "web"));
        }
        for line in [
            "orb",
            "orb uname -m web",
            "orb run true",
            "orb -u root id",
            "orb ls",
        ] {
            check(line, &place(L::Run, ""));
        }
        let interactive = |line| plan(InvokedAs::Orb, &words(line), true);
        assert_eq!(interactive(""), place(L::Shell, ""));
        assert_eq!(interactive("-m web vim x"), place(L::Shell, "web"));
        assert_eq!(interactive("start web"), place(L::Start, "web"));
    }

    #[test]
    fn changes_take_the_lanes_of_the_machines_they_name() {
        use LeaseOperation as L;
        check("orbctl create ubuntu", &place(L::Create, "ubuntu"));
        check("orbctl create ubuntu:24.04", &place(L::Create, "ubuntu"));
        check(
            "orbctl create -a amd64 ubuntu:noble --cpus 2 web -p",
            &place(L::Create, "web"),
        );
        check("orb new debian web --isolated", &place(L::Create, "web"));
        check("orbctl start", &place(L::StartOrbstack, ""));
        check("orbctl start --all", &place(L::StartAll, ""));
        check("orbctl start web", &place(L::Start, "web"));
        check("orbctl stop", &place(L::StopOrbstack, ""));
        check("orbctl stop -f", &forced(L::StopOrbstack, ""));
        check("orbctl stop --all -f", &forced(L::StopAll, ""));
        check("orbctl stop web --force", &forced(L::Stop, "web"));
        check("orbctl stop --force=false web", &place(L::Stop, "web"));
        check("orbctl restart docker", &place(L::Restart, "docker"));
        check("orbctl delete -f web", &place(L::Delete, "web"));
        check("orbctl rm --force web", &place(L::Delete, "web"));
        check("orbctl shutdown", &place(L::StopOrbstack, ""));
        check("orb shutdown", &place(L::StopOrbstack, ""));
        check("orbctl restart", &place(L::RestartOrbstack, ""));
        check("orbctl restart -a", &place(L::RestartAll, ""));
        check("orbctl start -a web", &place(L::StartAll, ""));
        check("orbctl stop -af", &forced(L::StopAll, ""));
        check("orbctl -m web run true", &place(L::Run, "web"));
        check("orbctl -m web push a", &place(L::Push, "web"));
        check("orbctl config set a=b", &place(L::ConfigSet, ""));
        check("orbctl config add a b", &place(L::ConfigSet, ""));
        check("orbctl docker migrate", &place(L::Other, "docker"));
        check(
            "orbctl delete web db",
            &Plan::Lease(LeaseRequest {
                machines: vec!["web".into(), "db".into()],
                ..LeaseRequest::of(L::Delete)
            }),
        );
        for (line, operation) in [
            ("orbctl rename web db", L::Rename),
            ("orbctl clone web db", L::Clone),
        ] {
            let Plan::Lease(place) = place(operation, "web") else {
                panic!("a place");
            };
            let new_name = Some("db".into());
            check(line, &Plan::Lease(LeaseRequest { new_name, ..place }));
        }
        check("orbctl export web /tmp/a", &place(L::Export, "web"));
        check("orbctl import -n new /tmp/a", &place(L::Import, "new"));
        check("orbctl push -m web a b c", &place(L::Push, "web"));
        check("orbctl pull a", &place(L::Pull, ""));
        check("orbctl default web", &place(L::SetDefault, "web"));
        check("orbctl default none", &place(L::SetDefault, ""));
        check("orbctl config set cpu 4", &place(L::ConfigSet, ""));
        check("orbctl config reset", &place(L::ConfigReset, ""));
        check("orbctl update", &place(L::UpdateOrbstack, ""));
        check("orbctl reset -y", &place(L::ResetOrbstack, ""));
        check("orbctl logs -f web", &place(L::Logs, "web"));
    }

    /// Returns the plan for an invocation that is not fully understood, with these operands.
    fn unknown(operation: LeaseOperation, operands: &str) -> Plan {
        let Plan::Lease(place) = place(operation, "") else {
            panic!("a place");
        };
        let operands = operands.split_whitespace().map(str::to_owned).collect();
        Plan::Lease(LeaseRequest {
            unknown_form: Some(unknown_form(operands)),
            ..place
        })
    }

    #[test]
    fn a_change_with_an_unknown_flag_sends_all_possible_machine_names() {
        use LeaseOperation as L;
        check("orbctl delete -v web", &unknown(L::Delete, "web"));
        check("orbctl delete --keep=db web", &unknown(L::Delete, "web db"));
        check("orbctl start --wait 5 web", &unknown(L::Start, "5 web"));
        check(
            "orbctl create --gpu 1 ubuntu:noble web",
            &unknown(L::Create, "1 ubuntu web"),
        );
        check("orbctl create a b c", &unknown(L::Create, "a b c"));
        check("orbctl rename web", &unknown(L::Rename, "web"));
        check("orbctl clone -q web a/b", &unknown(L::Clone, "web"));
        check("orbctl export web /tmp/a b", &unknown(L::Export, "web b"));
        check("orbctl export -v web /tmp/a", &unknown(L::Export, "web"));
        check("orbctl default -q web", &unknown(L::SetDefault, "web"));
        check("orbctl -m db start web", &unknown(L::Start, "web db"));
        let Plan::Lease(import) = unknown(L::Import, "") else {
            panic!("a place");
        };
        let machine = Some("new".to_owned());
        check(
            "orbctl import -v -n new /tmp/a",
            &Plan::Lease(LeaseRequest { machine, ..import }),
        );
        let Plan::Lease(stop) = unknown(L::Stop, "web") else {
            panic!("a place");
        };
        check(
            "orbctl stop -fv web",
            &Plan::Lease(LeaseRequest { force: true, ..stop }),
        );
    }

    #[test]
    fn a_change_that_may_affect_all_machines_takes_the_whole_fleet() {
        use LeaseOperation as L;
        for (line, operation) in [
            ("orbctl delete", L::Delete),
            ("orbctl delete --all", L::Delete),
            ("orbctl delete --all-stopped web", L::Delete),
            ("orbctl delete -a web", L::Delete),
            ("orbctl delete -fa web", L::Delete),
            ("orbctl start --quiet", L::Start),
            ("orbctl start --machine=web", L::Start),
            ("orbctl restart -v", L::Restart),
            ("orbctl -m web restart", L::Restart),
            ("orbctl --gpu 1 restart", L::Restart),
            ("orbctl create", L::Create),
            ("orbctl create -a", L::Create),
            ("orbctl import /tmp/a", L::Import),
            ("orbctl import -v /tmp/a", L::Import),
            ("orbctl import --all -n web /tmp/a", L::Import),
            ("orbctl default --clear", L::SetDefault),
        ] {
            check(line, &whole_fleet(operation));
        }
        let many: Vec<String> = (0..300).map(|number| format!("m{number}")).collect();
        for (verb, operation) in [("delete", L::Delete), ("suspend", L::Other)] {
            check(
                &format!("orbctl {verb} {}", many.join(" ")),
                &whole_fleet(operation),
            );
        }
    }

    #[test]
    fn an_unknown_verb_sends_all_possible_machine_names() {
        use LeaseOperation as L;
        check("orbctl suspend web", &unknown(L::Other, "web"));
        check(
            "orbctl suspend --now --on=db web a/b",
            &unknown(L::Other, "web db"),
        );
        check("orbctl -mweb suspend", &unknown(L::Other, "web"));
        check("orb remove -f web", &unknown(L::RunOrChange, "web"));
        check("orb rm a/b", &unknown(L::RunOrChange, ""));
    }

    #[test]
    fn run_or_push_with_an_unknown_flag_sends_all_possible_machine_names() {
        use LeaseOperation as L;
        let with = |plan: Plan, machine: &str| match plan {
            Plan::Lease(place) => Plan::Lease(LeaseRequest {
                machine: Some(machine.to_owned()),
                ..place
            }),
            other => other,
        };
        check(
            "orbctl run --gpu 1 -m web true",
            &with(unknown(L::Run, "1 true"), "web"),
        );
        check("orbctl push --to web a", &unknown(L::Push, "web a"));
        check("orbctl run -m", &unknown(L::Run, ""));
        // A session takes no lanes, so the unknown flag does not matter.
        let words = words("run --gpu 1 -m web true");
        assert_eq!(plan(InvokedAs::Orbctl, &words, true), place(L::Shell, "web"));
    }

    #[test]
    fn invocations_that_affect_no_machine_take_no_lanes() {
        for line in [
            "orbctl ls",
            "orbctl list web",
            "orbctl list --colour",
            "orbctl --colour list",
            "orbctl list -f",
            "orbctl list -f yaml",
            "orbctl info",
            "orbctl info a b",
            "orbctl info -- --x",
            "orbctl info a_b/c",
            "orbctl start a/b",
            "orbctl run -m -x true",
            "orbctl config",
            "orbctl config get a/b",
            "orbctl update --check",
            "orbctl status web",
            "orbctl debug web",
            "orb doctor",
        ] {
            check(line, &Plan::Other);
        }
        let words = words("config docker");
        assert_eq!(plan(InvokedAs::Orbctl, &words, true), Plan::Other);
        assert_eq!(
            plan(InvokedAs::Orbctl, &words, false),
            place(LeaseOperation::ConfigSet, "")
        );
    }

    #[test]
    fn help_and_completion_run_without_orbd() {
        for line in [
            "orbctl",
            "orbctl help run",
            "orbctl --help",
            "orb -h",
            "orbctl completion zsh",
            "orbctl create --help",
            "orbctl stop web -h",
            "orb run --help",
            "orbctl --version",
            "orbctl -m web --help",
            "orbctl run -m web --help",
        ] {
            check(line, &Plan::Untouched);
        }
        assert_ne!(planned("orbctl delete -- -h"), Plan::Untouched);
    }

    #[test]
    fn arguments_that_are_not_utf8_are_accepted() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let odd = OsStr::from_bytes(b"\xff").to_owned();
        let check = |line: &str, expected: Plan| {
            let mut words = words(line);
            words.push(odd.clone());
            assert_eq!(plan(InvokedAs::Orbctl, &words, false), expected, "{line}");
        };
        check("", Plan::Other);
        check("info", Plan::Other);
        check("list", Plan::Other);
        check("delete web", unknown(LeaseOperation::Delete, "web"));
        check("run -m web cat", place(LeaseOperation::Run, "web"));
        check("push -m web", place(LeaseOperation::Push, "web"));
        check("run -m", Plan::Other);
        check("suspend web", unknown(LeaseOperation::Other, "web"));
        assert_eq!(
            plan(InvokedAs::Orb, std::slice::from_ref(&odd), false),
            place(LeaseOperation::Run, "")
        );
    }
}
