//! Answers to questions about the real tool that no public recording settles.
//!
//! `ORBCTL_SIM_ANSWERS` chooses them, as in `run-stdin=at-end,web:run-shell=zsh`: with a machine before the colon, a
//! choice holds in that machine alone. The first word of each answer is the likely one, which holds without a choice.
//! `tests/claims.toml` names the claim behind each answer, and `sim-answers` prints them all.

use crate::refusal::{Outcome, Refusal};

macro_rules! answers {
    ($(
        $(#[$doc:meta])*
        $field:ident: $type:ident = $name:literal {
            $(#[$first_doc:meta])* $first:ident = $first_word:literal,
            $($(#[$value_doc:meta])* $value:ident = $word:literal,)+
        }
    )+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub(crate) enum $type {
                $(#[$first_doc])*
                #[default]
                $first,
                $($(#[$value_doc])* $value,)+
            }
        )+

        /// One answer to each question.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Answers {
            $($(#[$doc])* pub(crate) $field: $type,)+
        }

        impl Answers {
            /// Gives the answer `word` to the question `name`.
            fn set(&mut self, name: &str, word: &str) -> Result<(), String> {
                match (name, word) {
                    $(
                        ($name, $first_word) => self.$field = $type::$first,
                        $(($name, $word) => self.$field = $type::$value,)+
                    )+
                    _ => return Err(explain(name, word)),
                }
                Ok(())
            }
        }

        /// Names of the questions, each with its answers.
        const QUESTIONS: &[(&str, &[&str])] = &[$(($name, &[$first_word, $($word),+])),+];
    };
}

answers! {
    /// How `run` starts a command.
    run_shell: RunShell = "run-shell" {
        /// Starts a program directly, and through the login shell only what is none. For what a command can see, this
        /// differs from a login shell in its profile and its quoting.
        Skipped = "skipped",
        /// Always through the login shell of the account.
        Account = "account",
        Bash = "bash",
        Zsh = "zsh",
        Fish = "fish",
        Dash = "dash",
        Tcsh = "tcsh",
        Busybox = "busybox",
    }
    /// Whether the login shell of `run` reads its profile.
    run_profile: RunProfile = "run-profile" {
        Skipped = "skipped",
        Read = "read",
    }
    /// Which program `sh` is in a machine.
    sh: Sh = "sh" {
        Unchanged = "unchanged",
        Dash = "dash",
        Bash = "bash",
        Busybox = "busybox",
    }
    /// When `run` forwards its stdin.
    run_stdin: RunStdin = "run-stdin" {
        AtOnce = "at-once",
        /// At once, at most 16 bytes in one write.
        Chunks = "chunks",
        /// Everything, when it has ended.
        AtEnd = "at-end",
    }
    /// How `run` forwards the output of a command.
    run_output: RunOutput = "run-output" {
        AtOnce = "at-once",
        /// At once, at most 16 bytes in one write.
        Chunks = "chunks",
    }
    /// What SIGTERM, SIGINT and SIGHUP to `run` do.
    run_signals: RunSignals = "run-signals" {
        /// The signal reaches the command, and `run` waits for its end.
        Forwarded = "forwarded",
        /// `run` ends by the signal, of which the command learns only by `run-lost`.
        ClientOnly = "client-only",
        /// Nothing happens.
        Ignored = "ignored",
    }
    /// What happens to a command when its `run` is gone: by SIGKILL, or by another signal with
    /// `run-signals=client-only`.
    run_lost: RunLost = "run-lost" {
        Continues = "continues",
        /// SIGKILL ends the command with its process group.
        Killed = "killed",
    }
    /// Whether `run` waits for processes that a command leaves behind with its stdout or stderr.
    run_children: RunChildren = "run-children" {
        Left = "left",
        Awaited = "awaited",
    }
    /// Whether `run` accepts `--` after its flags.
    run_dashes: RunDashes = "run-dashes" {
        Refused = "refused",
        Accepted = "accepted",
    }
    /// Where a command starts without `-w`.
    run_folder: RunFolder = "run-folder" {
        /// In the caller's folder, if the machine has it.
        Kept = "kept",
        Home = "home",
    }
    /// Whether `run` passes the variables that ORBENV names.
    orbenv: Orbenv = "orbenv" {
        Passed = "passed",
        Ignored = "ignored",
    }
    /// Whether flags of `run` may precede the command.
    leading_flags: LeadingFlags = "leading-flags" {
        Accepted = "accepted",
        Refused = "refused",
    }
    /// What `list -f json` prints without a machine.
    empty_list: EmptyList = "empty-list" {
        Brackets = "brackets",
        Null = "null",
        Nothing = "nothing",
    }
    /// Whether JSON is indented.
    json_form: JsonForm = "json-form" {
        Indented = "indented",
        Compact = "compact",
    }
    /// Whether records have the keys that only some recordings show.
    json_keys: JsonKeys = "json-keys" {
        All = "all",
        Few = "few",
    }
    /// Whether the table has its row of dashes.
    list_dashes: ListDashes = "list-dashes" {
        Terminal = "terminal",
        Always = "always",
    }
    /// What `list` and `info` do while OrbStack is stopped.
    list_stopped: ListStopped = "list-stopped" {
        Wakes = "wakes",
        /// They list the machines as stopped and start nothing.
        Answers = "answers",
        Refuses = "refuses",
    }
    /// Where an available update is announced, before the output of any command.
    banner: Banner = "banner" {
        Absent = "absent",
        Stderr = "stderr",
        Stdout = "stdout",
    }
    /// Exit code of `status` while OrbStack starts.
    status_starting: StatusStarting = "status-starting" {
        Fails = "fails",
        Succeeds = "succeeds",
    }
    /// What `delete` does without `-f` and without a terminal.
    delete_question: DeleteQuestion = "delete-question" {
        /// It asks, and reads the answer from stdin.
        Read = "read",
        Refused = "refused",
        Skipped = "skipped",
    }
    /// How commands other than `info` and `run` name an unknown machine.
    unknown_machine: UnknownMachine = "unknown-machine" {
        Plain = "plain",
        /// In the form of other refusals, with the operation and the machine first.
        Prefixed = "prefixed",
    }
    /// What a change prints without a terminal.
    change_output: ChangeOutput = "change-output" {
        Nothing = "nothing",
        Stdout = "stdout",
        Stderr = "stderr",
    }
    /// When `stop` returns.
    stop_returns: StopReturns = "stop-returns" {
        Stopped = "stopped",
        /// When OrbStack has the order.
        Early = "early",
    }
    /// What `stop` does with a machine that is stopped.
    stop_stopped: StopStopped = "stop-stopped" {
        Succeeds = "succeeds",
        Refused = "refused",
    }
    /// What `config get` prints.
    config_get: ConfigGet = "config-get" {
        Value = "value",
        Pair = "pair",
        /// The whole configuration, as a source says of 2.0.
        Everything = "everything",
    }
    /// What `default` prints if there is no default machine.
    default_none: DefaultNone = "default-none" {
        Word = "word",
        Nothing = "nothing",
    }
    /// Whether `logs` knows `--follow`.
    logs_follow: LogsFollow = "logs-follow" {
        Known = "known",
        Unknown = "unknown",
    }
    /// Whether `shutdown` exists.
    shutdown_verb: ShutdownVerb = "shutdown-verb" {
        Known = "known",
        Unknown = "unknown",
    }
    /// What `rm` and `remove` are.
    remove_verb: RemoveVerb = "remove-verb" {
        Unknown = "unknown",
        Delete = "delete",
    }
}

/// Explains an unknown question or answer.
fn explain(name: &str, word: &str) -> String {
    if let Some((_, answers)) = QUESTIONS.iter().find(|(known, _)| *known == name) {
        return format!("{name} takes {}, not '{word}'", answers.join(", "));
    }
    let names: Vec<&str> = QUESTIONS.iter().map(|(known, _)| *known).collect();
    format!("'{name}' is no question; there are {}", names.join(", "))
}

/// The chosen answers.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    everywhere: Answers,
    /// Machine, question and answer.
    in_machines: Vec<(String, String, String)>,
}

impl Chosen {
    /// Parses a comma list of `[MACHINE:]QUESTION=ANSWER`.
    pub(crate) fn parse(text: &str) -> Outcome<Chosen> {
        let mut chosen = Chosen::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let refuse = |why: String| Refusal::own(format!("ORBCTL_SIM_ANSWERS: {why}"));
            let (question, word) = part
                .split_once('=')
                .ok_or_else(|| refuse(format!("'{part}' is not [MACHINE:]QUESTION=ANSWER")))?;
            let (machine, name) = match question.split_once(':') {
                Some((machine, name)) => (Some(machine), name),
                None => (None, question),
            };
            match machine {
                None => chosen.everywhere.set(name, word).map_err(refuse)?,
                Some(machine) => {
                    Answers::default().set(name, word).map_err(refuse)?;
                    chosen
                        .in_machines
                        .push((machine.to_owned(), name.to_owned(), word.to_owned()));
                }
            }
        }
        Ok(chosen)
    }

    /// Returns the answers that hold outside of machines.
    pub(crate) fn everywhere(&self) -> Answers {
        self.everywhere
    }

    /// Returns the answers that hold in a machine.
    pub(crate) fn in_machine(&self, machine: &str) -> Answers {
        let mut answers = self.everywhere;
        let own = self.in_machines.iter().filter(|(named, ..)| named == machine);
        for (_, name, word) in own {
            // `parse` has checked it.
            let _ = answers.set(name, word);
        }
        answers
    }
}

/// Returns all questions, one in a line, each with its answers: the likely one first.
pub(crate) fn questions() -> String {
    let lines = QUESTIONS
        .iter()
        .map(|(name, answers)| format!("{name}={}\n", answers.join("|")));
    lines.collect()
}
