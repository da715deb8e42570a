//! What was typed, and what it touches. Pure: words in, a [`Plan`] out.
//!
//! The words themselves go to the real tool as they are, whatever is made of them here. So there is nothing to be polite about:
//! what is not understood without a doubt is [`Plan::Other`], and the tool says itself what is wrong with it.

use std::ffi::{OsStr, OsString};

use orbd::machine::MachineName;
use orbd::operation::ConfigKey;
use orbd::rpc::types::{LeaseOperation, Read, ReadCommand, ReadFormat};

/// Under which name we were called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Called {
    /// `orbctl`.
    Orbctl,
    /// `orb`, which without words opens a shell, and which runs words that it does not know in the default machine.
    Orb,
}

/// What is to be done with an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing of OrbStack's is touched: help, and what shells ask to complete a word.
    Untouched,
    /// A read, which may be shared.
    Read(Read),
    /// Something that needs a place in the queue.
    Place(Place),
    /// Something that orbd has no word for: in nobody's way, and afterwards nothing is known any more.
    Other,
}

/// A place in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// What for.
    pub(super) operation: LeaseOperation,
    /// Name or id; absent for the default machine and for what is about none.
    pub(super) machine: Option<String>,
    /// Several of them.
    pub(super) machines: Vec<String>,
    /// New name, of `rename` and `clone`.
    pub(super) new_name: Option<String>,
    /// It ends what is in its way.
    pub(super) force: bool,
}

impl Place {
    fn of(operation: LeaseOperation) -> Self {
        Self {
            operation,
            ..Self::default()
        }
    }
}

/// Words after which `orb` is `orbctl`.
const COMMANDS: [&str; 32] = [
    "list", "info", "create", "add", "new", "start", "stop", "restart", "delete", "clone", "rename",
    "export", "import", "default", "logs", "run", "shell", "push", "pull", "ssh", "config", "status",
    "version", "update", "doctor", "debug", "docker", "reset", "report", "login", "logout", "top",
];

/// The same, of which little is known.
const RARE_COMMANDS: [&str; 2] = ["k8s", "migrate"];

/// Says what is to be done. `interactive` says that input and output are on a terminal.
pub(super) fn plan(called: Called, words: &[OsString], interactive: bool) -> Plan {
    let Some((first, rest)) = words.split_first() else {
        return match called {
            Called::Orbctl => Plan::Untouched,
            Called::Orb => run(words, interactive),
        };
    };
    let Some(first) = first.to_str() else {
        return match called {
            Called::Orbctl => Plan::Other,
            Called::Orb => run(words, interactive),
        };
    };
    match first {
        "help" | "-h" | "--help" | "-V" | "--version" | "completion" | "__complete" | "__completeNoDesc" => {
            return Plan::Untouched;
        }
        "run" | "shell" => return run(rest, interactive),
        _ if called == Called::Orb && !COMMANDS.contains(&first) && !RARE_COMMANDS.contains(&first) => {
            return run(words, interactive);
        }
        _ => {}
    }
    if asks_for_help(rest) {
        return Plan::Untouched;
    }
    of_command(first, rest).unwrap_or(Plan::Other)
}

/// Says whether help is asked for before flags end.
fn asks_for_help(words: &[OsString]) -> bool {
    words
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "-h" || word == "--help")
}

/// A flag that a command knows: its long form, its letter, and whether a value follows.
type Flag = (&'static str, Option<char>, bool);

const FORMAT: Flag = ("format", Some('f'), true);
const FORCE: Flag = ("force", Some('f'), false);
const ALL: Flag = ("all", None, false);
const MACHINE: Flag = ("machine", Some('m'), true);

/// Flags before the command's own first word. `-s` and `-p` are known by their letters alone.
const OF_RUN: [Flag; 6] = [
    MACHINE,
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

/// Says what is to be done for a command other than `run`; `None` where it is not understood.
fn of_command(command: &str, words: &[OsString]) -> Option<Plan> {
    use LeaseOperation as L;
    match command {
        "list" | "info" | "status" | "version" | "ssh" | "logs" => looks(command, words),
        "default" if words.is_empty() => looks(command, words),
        "default" => {
            let machine = Sorted::mixed(words, &[])?.machine()?;
            Some(Plan::Place(Place {
                machine: (machine != "none").then_some(machine),
                ..Place::of(L::SetDefault)
            }))
        }
        "config" => config(words),
        "create" | "add" | "new" => {
            let sorted = Sorted::mixed(words, &OF_CREATE)?;
            let machine = match sorted.rest.as_slice() {
                // `ubuntu:24.04` makes `ubuntu`.
                [image] => name(image.split(':').next()?)?,
                [_, machine] => name(machine)?,
                _ => return None,
            };
            Some(Plan::Place(Place {
                machine: Some(machine),
                ..Place::of(L::Create)
            }))
        }
        "start" => each(words, &[ALL], L::Start, Some(L::StartAll), Some(L::StartOrbstack)),
        "stop" => each(
            words,
            &[ALL, FORCE],
            L::Stop,
            Some(L::StopAll),
            Some(L::StopOrbstack),
        ),
        "restart" => each(words, &[], L::Restart, None, None),
        "delete" => each(words, &[FORCE], L::Delete, None, None),
        "rename" => renamed(words, L::Rename),
        "clone" => renamed(words, L::Clone),
        "export" => match Sorted::mixed(words, &[])?.rest.as_slice() {
            [machine, _file] => Some(Plan::Place(Place {
                machine: Some(name(machine)?),
                ..Place::of(L::Export)
            })),
            _ => None,
        },
        "import" => {
            let sorted = Sorted::mixed(words, &[("name", Some('n'), true)])?;
            // Without a name the archive says which machine it makes, and only the tool reads that.
            let machine = name(sorted.value("name")?)?;
            (sorted.rest.len() == 1).then(|| {
                Plan::Place(Place {
                    machine: Some(machine),
                    ..Place::of(L::Import)
                })
            })
        }
        "push" => transfer(words, L::Push),
        "pull" => transfer(words, L::Pull),
        // Whatever is said with it, all of OrbStack is meant; but a mere look is not.
        "update" if !words.iter().any(|word| word == "--check") => {
            Some(Plan::Place(Place::of(L::UpdateOrbstack)))
        }
        "reset" => Some(Plan::Place(Place::of(L::ResetOrbstack))),
        _ => None,
    }
}

/// Says what is to be done for a command that shows something.
fn looks(command: &str, words: &[OsString]) -> Option<Plan> {
    let read = |command| {
        Some(Plan::Read(Read {
            command,
            ..Read::default()
        }))
    };
    match command {
        "list" => {
            let sorted = Sorted::mixed(
                words,
                &[FORMAT, ("quiet", Some('q'), false), ("running", Some('r'), false)],
            )?;
            sorted.none()?;
            Some(Plan::Read(Read {
                command: ReadCommand::List,
                format: sorted.format()?,
                quiet: sorted.has("quiet"),
                running: sorted.has("running"),
                ..Read::default()
            }))
        }
        "info" => {
            let sorted = Sorted::mixed(words, &[FORMAT])?;
            Some(Plan::Read(Read {
                command: ReadCommand::Info,
                machine: Some(sorted.machine()?),
                format: sorted.format()?,
                ..Read::default()
            }))
        }
        "status" if words.is_empty() => read(ReadCommand::Status),
        "version" if words.is_empty() => read(ReadCommand::Version),
        "ssh" if words.is_empty() => read(ReadCommand::Ssh),
        "default" if words.is_empty() => read(ReadCommand::Default),
        "logs" => {
            let sorted = Sorted::mixed(words, &[("all", Some('a'), false), ("follow", Some('f'), false)])?;
            let machine = Some(sorted.machine()?);
            Some(if sorted.has("follow") {
                Plan::Place(Place {
                    machine,
                    ..Place::of(LeaseOperation::Logs)
                })
            } else {
                Plan::Read(Read {
                    command: ReadCommand::Logs,
                    machine,
                    all: sorted.has("all"),
                    ..Read::default()
                })
            })
        }
        _ => None,
    }
}

fn config(words: &[OsString]) -> Option<Plan> {
    let (verb, words) = words.split_first()?;
    match (verb.to_str()?, words) {
        ("show", []) => Some(Plan::Read(Read {
            command: ReadCommand::ConfigShow,
            ..Read::default()
        })),
        ("get", [key]) => {
            let key: ConfigKey = key.to_str()?.parse().ok()?;
            Some(Plan::Read(Read {
                command: ReadCommand::ConfigGet,
                key: Some(key.to_string()),
                ..Read::default()
            }))
        }
        ("set", [_, _, ..]) => Some(Plan::Place(Place::of(LeaseOperation::ConfigSet))),
        ("reset", _) => Some(Plan::Place(Place::of(LeaseOperation::ConfigReset))),
        _ => None,
    }
}

/// Something that is done to each machine that is named, to all, or to OrbStack itself when none is.
fn each(
    words: &[OsString],
    flags: &[Flag],
    operation: LeaseOperation,
    all: Option<LeaseOperation>,
    none: Option<LeaseOperation>,
) -> Option<Plan> {
    let sorted = Sorted::mixed(words, flags)?;
    let operation = match (sorted.rest.is_empty(), sorted.has("all")) {
        (false, false) => operation,
        (true, true) => all?,
        (true, false) => none?,
        (false, true) => return None,
    };
    let takes_force = operation != LeaseOperation::StartAll;
    let mut place = Place {
        force: takes_force && sorted.has("force"),
        ..Place::of(operation)
    };
    match sorted.rest.as_slice() {
        [] => {}
        [only] => place.machine = Some(name(only)?),
        several => place.machines = several.iter().map(|word| name(word)).collect::<Option<_>>()?,
    }
    Some(Plan::Place(place))
}

fn renamed(words: &[OsString], operation: LeaseOperation) -> Option<Plan> {
    let sorted = Sorted::mixed(words, &[])?;
    let [from, to] = sorted.rest.as_slice() else {
        return None;
    };
    Some(Plan::Place(Place {
        machine: Some(name(from)?),
        new_name: Some(name(to)?),
        ..Place::of(operation)
    }))
}

fn transfer(words: &[OsString], operation: LeaseOperation) -> Option<Plan> {
    // Of files nothing is looked at: their names need not be text.
    let sorted = Sorted::sort(words, &[MACHINE], Order::Mixed)?;
    (sorted.rest_count > 0).then_some(())?;
    Some(Plan::Place(Place {
        machine: sorted.machine_flag()?,
        ..Place::of(operation)
    }))
}

/// A command in a machine; a session where somebody sits at a terminal.
fn run(words: &[OsString], interactive: bool) -> Plan {
    let Some(sorted) = Sorted::sort(words, &OF_RUN, Order::FlagsFirst) else {
        return if words.iter().take(1).any(|word| word == "-h" || word == "--help") {
            Plan::Untouched
        } else {
            Plan::Other
        };
    };
    let operation = if interactive {
        LeaseOperation::Shell
    } else {
        LeaseOperation::Run
    };
    match sorted.machine_flag() {
        Some(machine) => Plan::Place(Place {
            machine,
            ..Place::of(operation)
        }),
        None => Plan::Other,
    }
}

/// Passes a word that can be a machine's name or id.
fn name(word: &str) -> Option<String> {
    word.parse::<MachineName>().ok().map(|name| name.to_string())
}

/// Where flags may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Anywhere; `--` ends them.
    Mixed,
    /// Before the first word that is none.
    FlagsFirst,
}

/// Words sorted into flags and the rest.
#[derive(Default)]
struct Sorted {
    flags: Vec<(&'static str, String)>,
    /// The rest, as far as it is text.
    rest: Vec<String>,
    rest_count: usize,
}

impl Sorted {
    /// Sorts words all of which are text.
    fn mixed(words: &[OsString], known: &[Flag]) -> Option<Self> {
        Self::sort(words, known, Order::Mixed).filter(|sorted| sorted.rest.len() == sorted.rest_count)
    }

    /// Sorts words; `None` where a flag is not known, has no value, or is no text.
    fn sort(words: &[OsString], known: &[Flag], order: Order) -> Option<Self> {
        let mut sorted = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let text = word.to_str().unwrap_or_default();
            if word.as_encoded_bytes().first() != Some(&b'-') || word == "-" {
                sorted.add(word);
                if order == Order::FlagsFirst {
                    break;
                }
            } else if text == "--" {
                words.by_ref().for_each(|word| sorted.add(word));
            } else if let Some(long) = text.strip_prefix("--") {
                let (long, inline) = match long.split_once('=') {
                    Some((long, value)) => (long, Some(value.to_owned())),
                    None => (long, None),
                };
                let (flag, _, takes_value) = *known.iter().find(|(flag, ..)| *flag == long)?;
                let value = match (takes_value, inline) {
                    (_, Some(value)) => value,
                    (true, None) => words.next()?.to_str()?.to_owned(),
                    (false, None) => "true".to_owned(),
                };
                sorted.flags.push((flag, value));
            } else {
                sorted.letters(text.strip_prefix('-')?, known, &mut words)?;
            }
        }
        Some(sorted)
    }

    /// Sorts letters in one word; a value may stand behind its letter.
    fn letters<'a>(
        &mut self,
        mut letters: &str,
        known: &[Flag],
        words: &mut impl Iterator<Item = &'a OsString>,
    ) -> Option<()> {
        while let Some(letter) = letters.chars().next() {
            let behind = &letters[letter.len_utf8()..];
            let (flag, _, takes_value) = *known.iter().find(|(_, known, _)| *known == Some(letter))?;
            if takes_value {
                let value = match behind.strip_prefix('=').unwrap_or(behind) {
                    "" => words.next()?.to_str()?,
                    value => value,
                };
                self.flags.push((flag, value.to_owned()));
                return Some(());
            }
            self.flags.push((flag, "true".to_owned()));
            letters = behind;
        }
        Some(())
    }

    fn add(&mut self, word: &OsStr) {
        self.rest_count += 1;
        self.rest.extend(word.to_str().map(str::to_owned));
    }

    fn value(&self, flag: &str) -> Option<&str> {
        let mut given = self.flags.iter().rev();
        given
            .find(|(known, _)| *known == flag)
            .map(|(_, value)| value.as_str())
    }

    /// Says whether a switch is on.
    fn has(&self, flag: &str) -> bool {
        self.value(flag)
            .is_some_and(|value| !["false", "0", "f", "F", "FALSE", "False"].contains(&value))
    }

    fn none(&self) -> Option<()> {
        (self.rest_count == 0).then_some(())
    }

    /// Returns the one machine.
    fn machine(&self) -> Option<String> {
        match self.rest.as_slice() {
            [only] => name(only),
            _ => None,
        }
    }

    /// Returns the machine of `--machine`; `None` where it can be none.
    #[expect(clippy::option_option, reason = "not given is no mistake, what is no name is")]
    fn machine_flag(&self) -> Option<Option<String>> {
        match self.value("machine") {
            None => Some(None),
            Some(word) => name(word).map(Some),
        }
    }

    /// Returns the format; `None` where it is none that we know.
    #[expect(clippy::option_option, reason = "not given is no mistake, another word is")]
    fn format(&self) -> Option<Option<ReadFormat>> {
        match self.value("format") {
            None => Some(None),
            Some("json") => Some(Some(ReadFormat::Json)),
            Some("text") => Some(Some(ReadFormat::Text)),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    fn planned(line: &str) -> Plan {
        let mut words = words(line);
        let called = match words.remove(0).to_str() {
            Some("orb") => Called::Orb,
            _ => Called::Orbctl,
        };
        plan(called, &words, false)
    }

    fn check(line: &str, expected: &Plan) {
        assert_eq!(planned(line), *expected, "{line}");
    }

    fn read(command: ReadCommand) -> Read {
        Read {
            command,
            ..Read::default()
        }
    }

    fn place(operation: LeaseOperation, machine: &str) -> Plan {
        Plan::Place(Place {
            machine: (!machine.is_empty()).then(|| machine.to_owned()),
            ..Place::of(operation)
        })
    }

    fn forced(operation: LeaseOperation, machine: &str) -> Plan {
        match place(operation, machine) {
            Plan::Place(place) => Plan::Place(Place { force: true, ..place }),
            other => other,
        }
    }

    #[test]
    fn reads_are_read_however_they_are_spelled() {
        use ReadCommand as R;
        let list = |format, quiet, running| {
            Plan::Read(Read {
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
        let info = Read {
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
            &Plan::Read(Read {
                key,
                ..read(R::ConfigGet)
            }),
        );
        check(
            "orbctl logs -a web",
            &Plan::Read(Read {
                machine: Some("web".into()),
                all: true,
                ..read(R::Logs)
            }),
        );
    }

    #[test]
    fn what_runs_in_a_machine_is_left_alone() {
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
        let interactive = |line| plan(Called::Orb, &words(line), true);
        assert_eq!(interactive(""), place(L::Shell, ""));
        assert_eq!(interactive("-m web vim x"), place(L::Shell, "web"));
        assert_eq!(interactive("start web"), place(L::Start, "web"));
    }

    #[test]
    fn changes_name_what_they_touch() {
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
        check("orbctl delete -f web", &forced(L::Delete, "web"));
        check(
            "orbctl delete web db",
            &Plan::Place(Place {
                machines: vec!["web".into(), "db".into()],
                ..Place::of(L::Delete)
            }),
        );
        for (line, operation) in [
            ("orbctl rename web db", L::Rename),
            ("orbctl clone web db", L::Clone),
        ] {
            let Plan::Place(place) = place(operation, "web") else {
                panic!("a place");
            };
            let new_name = Some("db".into());
            check(line, &Plan::Place(Place { new_name, ..place }));
        }
        check("orbctl export web /tmp/a b", &Plan::Other);
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

    #[test]
    fn what_is_not_understood_without_a_doubt_goes_through() {
        for line in [
            "orbctl ls",
            "orbctl nonsense web",
            "orbctl list web",
            "orbctl list --colour",
            "orbctl list -f",
            "orbctl list -f yaml",
            "orbctl info",
            "orbctl info a b",
            "orbctl info -- --x",
            "orbctl info a_b/c",
            "orbctl create",
            "orbctl create a b c",
            "orbctl create ubuntu web --gpu 1",
            "orbctl start --all web",
            "orbctl restart",
            "orbctl delete",
            "orbctl delete --all",
            "orbctl rename web",
            "orbctl import /tmp/a",
            "orbctl push -m web",
            "orbctl run --gpu 1 true",
            "orbctl run -m",
            "orbctl run -m -x true",
            "orbctl config",
            "orbctl config docker",
            "orbctl config get a/b",
            "orbctl config set cpu",
            "orbctl update --check",
            "orbctl status web",
            "orb doctor",
            "orb k8s start",
        ] {
            check(line, &Plan::Other);
        }
    }

    #[test]
    fn help_touches_nothing() {
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
        ] {
            check(line, &Plan::Untouched);
        }
        assert_ne!(planned("orbctl delete -- -h"), Plan::Untouched);
    }

    #[test]
    fn words_that_are_no_text_are_the_tools_or_the_guests() {
        use std::os::unix::ffi::OsStrExt;
        let odd = OsStr::from_bytes(b"\xff").to_owned();
        let check = |line: &str, expected: Plan| {
            let mut words = words(line);
            words.push(odd.clone());
            assert_eq!(plan(Called::Orbctl, &words, false), expected, "{line}");
        };
        check("", Plan::Other);
        check("info", Plan::Other);
        check("list", Plan::Other);
        check("delete web", Plan::Other);
        check("run -m web cat", place(LeaseOperation::Run, "web"));
        check("push -m web", place(LeaseOperation::Push, "web"));
        check("run -m", Plan::Other);
        assert_eq!(
            plan(Called::Orb, std::slice::from_ref(&odd), false),
            place(LeaseOperation::Run, "")
        );
    }
}
