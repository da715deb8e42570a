//! Builds the arguments and the environment of `orbctl run`.
//!
//! Everything that the caller supplies is passed as an argument of its own and never inserted into shell text: `orbctl run` keeps
//! arguments separate on their way through the guest's login shell.
//!
//! **Variables for the guest.** Every user of the Mac can read arguments (`ps`). Values therefore travel in the environment of
//! that one `orbctl` process, and never under their own names: a `PATH` meant for the guest must not change which programs
//! `orbctl` finds.
//!
//! ```text
//! env {TOKEN: s3cret}  -->  ORBD_E0=s3cret ORBENV=ORBD_E0 orbctl run -m web sh -c 'export TOKEN="$ORBD_E0"; ...; exec "$@"' orbd
//! CMD
//! ```
//!
//! That `ORBENV` lists the variables to pass is reported by users of the tool but not confirmed by a recording.
//! [`GuestEnv::Argv`] is the alternative that does not depend on it.

use std::ffi::OsString;
use std::fmt::Write as _;

use crate::caller_env::{CallerEnv, EnvName, ORBENV, listed_name};

/// Changes to the guest user's home, as ssh does, or to `/` if the user has none (such as a system user). By itself `orbctl run` starts in the
/// guest directory that corresponds to the caller's, and the daemon's own directory is meaningless to the guest.
const TO_HOME: &str = "cd 2>/dev/null || cd /; ";

/// Changes to the directory in the first operand if it exists, otherwise to the home.
const TO_FOLDER: &str = r#"cd "$1" 2>/dev/null || cd 2>/dev/null || cd /; shift; "#;

/// Removes the variable that `cd` sets and that a command started directly by `orbctl run` does not have.
const FORGET_FOLDER: &str = "unset OLDPWD; ";

/// Replaces `sh` with the command if it is a program on `PATH`, as the login shell would.
const HAND_OVER: &str = r#"command -v "$1" >/dev/null 2>&1 && exec "$@"; "#;

/// Runs the command in the user's login shell, as `orbctl run` does: so that its builtins work, and so that the shell itself
/// reports a command that cannot be run. Shells put `$0` before the arguments, and `orbctl` starts them as login shells, with a
/// `-` before the name.
const TO_LOGIN_SHELL: &str = concat!(
    r#"case ${SHELL##*/} in fish) set -- 'eval (string escape -- $argv)' "$@";; csh|tcsh) set -- '$argv:q' "$@";; "#,
    r#"*) set -- '"$@"' "-${SHELL##*/}" "$@";; esac; exec "${SHELL:-/bin/sh}" -c "$@""#
);

/// Names with a special meaning to `sh` or to a login shell: `sh` cannot replace itself with a program of that name, or the login
/// shell would not run that program. `true` and `false` are left out, because program and builtin do the same.
const SHELL_WORDS: [&str; 83] = [
    "!",
    ".",
    ":",
    "[",
    "[[",
    "]]",
    "alias",
    "autoload",
    "bg",
    "bind",
    "break",
    "builtin",
    "caller",
    "case",
    "cd",
    "chdir",
    "command",
    "compgen",
    "complete",
    "compopt",
    "continue",
    "coproc",
    "declare",
    "dirs",
    "disown",
    "do",
    "done",
    "echo",
    "elif",
    "else",
    "enable",
    "esac",
    "eval",
    "exec",
    "exit",
    "export",
    "fc",
    "fg",
    "fi",
    "for",
    "function",
    "getopts",
    "hash",
    "help",
    "history",
    "if",
    "in",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "popd",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readarray",
    "readonly",
    "return",
    "select",
    "set",
    "shift",
    "shopt",
    "source",
    "suspend",
    "test",
    "then",
    "time",
    "times",
    "trap",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "unset",
    "until",
    "wait",
    "while",
    "{",
    "}",
];

/// Error that the guest's `sh` prints when a value did not arrive. Inserted into shell text within double quotes: no `"`, `$`,
/// backquote or `}`.
const NOT_PASSED: &str = "variable not passed by orbctl; set guest_env = argv in the orbd configuration";

/// Arguments and environment of one call of `orbctl`. Both may hold secrets.
#[derive(Default, Clone, PartialEq)]
pub struct Call {
    /// Arguments, without the program's name.
    pub args: Vec<OsString>,
    /// Variables in addition to those that every child gets.
    pub env: Vec<(OsString, OsString)>,
}

impl From<Vec<OsString>> for Call {
    fn from(args: Vec<OsString>) -> Self {
        Self {
            args,
            env: Vec::new(),
        }
    }
}

/// How variables for a command reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuestEnv {
    /// In the environment of `orbctl`, under aliases that `ORBENV` lists.
    #[default]
    Orbenv,
    /// As arguments of the command, which every user of the Mac can read.
    Argv,
}

/// Whether commands may run through resident channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecChannel {
    /// If commands for a machine follow each other, and `orbctl` takes long to start.
    Auto,
    /// Never.
    Off,
}

/// Working directory of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// The default of `orbctl run`: the guest directory that corresponds to the process's own.
    LikeOrbctl,
    /// The guest user's home.
    Home,
    /// This guest directory if it exists, otherwise the home.
    Folder(&'a str),
    /// This guest directory, passed to `orbctl` as `-w`.
    Workdir(&'a str),
}

/// A command to run in a machine; see [`run`].
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Name of the machine.
    pub machine: &'a str,
    /// Guest user; `None` for the machine's default user.
    pub user: Option<&'a str>,
    /// Working directory.
    pub start: Start<'a>,
    /// `-s`: run in the login shell.
    pub login_shell: bool,
    /// `-p`: translate paths of the Mac.
    pub translate_paths: bool,
    /// Variables that the request sets; they override those in `caller_env`.
    pub env: &'a [(EnvName, String)],
    /// Variables from the caller's environment.
    pub caller_env: &'a CallerEnv,
    /// Program and arguments; empty for an interactive shell.
    pub command: &'a [String],
}

/// Returns the call that runs a command in a machine.
pub fn run(command: &Run<'_>, guest_env: GuestEnv) -> Call {
    let mut args = text_args(["run", "-m", command.machine]);
    let workdir = match command.start {
        Start::Workdir(workdir) => Some(workdir),
        Start::Home | Start::Folder(_) | Start::LikeOrbctl => None,
    };
    for (flag, value) in [("-u", command.user), ("-w", workdir)] {
        args.extend(value.into_iter().flat_map(|value| text_args([flag, value])));
    }
    for (flag, is_given) in [("-s", command.login_shell), ("-p", command.translate_paths)] {
        args.extend(is_given.then(|| flag.into()));
    }
    let guest = guest_command(command, guest_env);
    args.extend(guest.args);
    Call { args, env: guest.env }
}

/// Returns what [`run`] lets `orbctl` start in the machine: the command's words, and the variables that `orbctl` passes on.
pub fn guest_command(command: &Run<'_>, guest_env: GuestEnv) -> Call {
    let variables = Variables::of(command);
    let mut call = Call::default();
    let mut operands = Vec::new();
    let mut script = match command.start {
        Start::Home => format!("{TO_HOME}{FORGET_FOLDER}"),
        Start::Folder(folder) => {
            operands.push(folder.into());
            format!("{TO_FOLDER}{FORGET_FOLDER}")
        }
        Start::LikeOrbctl | Start::Workdir(_) => String::new(),
    };
    match guest_env {
        GuestEnv::Orbenv => script.push_str(&variables.by_orbenv(&mut call.env)),
        GuestEnv::Argv => script.push_str(&variables.by_operands(&mut call.env, &mut operands)),
    }
    if !script.is_empty() {
        if !is_for_login_shell(command.command) {
            script.push_str(HAND_OVER);
        }
        script.push_str(TO_LOGIN_SHELL);
        call.args.extend(text_args(["sh", "-c", &script, "orbd"]));
        call.args.extend(operands);
    }
    call.args.extend(command.command.iter().map(OsString::from));
    call
}

/// Returns whether only the login shell can interpret the first word: a builtin or keyword, or a path, whose file may be a script
/// without an interpreter line or no program at all.
fn is_for_login_shell(command: &[String]) -> bool {
    let first = command.first().map_or("", String::as_str);
    first.contains('/') || SHELL_WORDS.contains(&first)
}

/// The variables of one command, grouped by how they reach the guest.
struct Variables<'a> {
    /// Exported by the guest's `sh` under their real names.
    exported: Vec<(&'a str, &'a str)>,
    /// Set in `orbctl`'s environment, which passes them on under their own names.
    passed: Vec<(&'a str, &'a str)>,
    /// Entries of the caller's `ORBENV`, without those in `exported`.
    orbenv: Vec<&'a str>,
}

impl<'a> Variables<'a> {
    fn of(command: &Run<'a>) -> Self {
        let (env, caller) = (command.env, command.caller_env.variables());
        let mut exported = Vec::new();
        let mut passed = Vec::new();
        for (name, value) in caller.iter().map(|(name, value)| (name.as_str(), value.as_str())) {
            if name == ORBENV || env.iter().any(|(other, _)| other.as_str() == name) {
                continue;
            }
            if is_read_by_children(name) {
                exported.push((name, value));
            } else {
                passed.push((name, value));
            }
        }
        let orbenv = caller.get(ORBENV).map_or("", String::as_str).split(':');
        let orbenv = orbenv
            .filter(|entry| !entry.is_empty() && !is_read_by_children(listed_name(entry)))
            .collect();
        exported.extend(env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        Self {
            exported,
            passed,
            orbenv,
        }
    }

    /// Puts everything into the environment of `orbctl`. Returns the shell text that exports the values under their real names.
    fn by_orbenv(&self, env: &mut Vec<(OsString, OsString)>) -> String {
        let aliases: Vec<String> = (0..self.exported.len()).map(|at| format!("ORBD_E{at}")).collect();
        let (mut export, mut unset) = (String::new(), String::new());
        for (at, ((name, _), alias)) in self.exported.iter().zip(&aliases).enumerate() {
            // Either all values arrive or none, so one check is enough.
            let value = if at == 0 {
                format!("{alias}?{NOT_PASSED}")
            } else {
                alias.clone()
            };
            let _ = write!(export, " {name}=\"${{{value}}}\"");
            let _ = write!(unset, " {alias}");
        }
        env.extend(
            self.passed
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        let values = aliases.iter().zip(&self.exported);
        env.extend(values.map(|(alias, (_, value))| (alias.into(), value.into())));
        let listed: Vec<&str> = self
            .orbenv
            .iter()
            .copied()
            .chain(aliases.iter().map(String::as_str))
            .collect();
        if !listed.is_empty() {
            env.push((ORBENV.into(), listed.join(":").into()));
        }
        if export.is_empty() {
            return export;
        }
        format!("export{export}; unset{unset}; ")
    }

    /// Passes the values as operands of `sh`. Returns the shell text that exports them under their real names. Variables that the
    /// caller's own `ORBENV` lists stay in the environment of `orbctl`, as when the caller runs `orbctl` directly.
    fn by_operands(&self, env: &mut Vec<(OsString, OsString)>, operands: &mut Vec<OsString>) -> String {
        env.extend(
            self.passed
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        if !self.orbenv.is_empty() {
            env.push((ORBENV.into(), self.orbenv.join(":").into()));
        }
        if self.exported.is_empty() {
            return String::new();
        }
        let mut export = String::new();
        for (at, (name, value)) in self.exported.iter().enumerate() {
            let _ = write!(export, " {name}=\"${{{}}}\"", at + 1);
            operands.push(value.into());
        }
        format!("export{export}; shift {}; ", self.exported.len())
    }
}

/// Returns whether a variable in the environment of `orbctl` would change the behaviour of `orbctl` or of the programs that it
/// starts.
fn is_read_by_children(name: &str) -> bool {
    const COMPUTED: [&str; 8] = [
        "HOME",
        "PATH",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "TMPDIR",
        "SSH_AUTH_SOCK",
    ];
    COMPUTED.contains(&name) || name.starts_with("DYLD_") || name.starts_with("LD_")
}

/// Converts arguments that are text.
pub fn text_args<const N: usize>(args: [&str; N]) -> Vec<OsString> {
    args.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command with default settings.
    #[derive(Default)]
    struct Request {
        user: Option<&'static str>,
        workdir: Option<&'static str>,
        try_workdir: Option<&'static str>,
        env: Vec<(EnvName, String)>,
        caller_env: CallerEnv,
        command: Vec<String>,
    }

    fn exec(command: &[&str]) -> Request {
        Request {
            command: command.iter().copied().map(String::from).collect(),
            ..Request::default()
        }
    }

    fn exec_call(request: &Request, guest_env: GuestEnv) -> (Vec<String>, Vec<String>) {
        let command = Run {
            machine: "web",
            user: request.user,
            start: match (request.workdir, request.try_workdir) {
                (Some(workdir), _) => Start::Workdir(workdir),
                (None, Some(folder)) => Start::Folder(folder),
                (None, None) => Start::Home,
            },
            login_shell: false,
            translate_paths: false,
            env: &request.env,
            caller_env: &request.caller_env,
            command: &request.command,
        };
        let Call { args, env } = run(&command, guest_env);
        let text = |word: OsString| word.into_string().expect("text");
        let variable = |(name, value)| format!("{}={}", text(name), text(value));
        (
            args.into_iter().map(text).collect(),
            env.into_iter().map(variable).collect(),
        )
    }

    #[track_caller]
    fn check_exec(request: &Request, guest_env: GuestEnv, args: &[&str], env: &[&str]) {
        let (given_args, given_env) = exec_call(request, guest_env);
        assert_eq!(given_args, args);
        assert_eq!(given_env, env);
    }

    fn env(variables: &[(&str, &str)]) -> Vec<(EnvName, String)> {
        let parsed = |(name, value): &(&str, &str)| (name.parse().expect("valid"), (*value).to_owned());
        variables.iter().map(parsed).collect()
    }

    fn caller_env(variables: &[(&str, &str)]) -> CallerEnv {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        CallerEnv::new(variables.iter().map(owned).collect()).expect("allowed")
    }

    #[test]
    fn commands_start_in_the_home_unless_workdir_is_set() {
        let mut request = exec(&["printf", "%s\n", "a b", "$HOME"]);
        let at_home = format!("{TO_HOME}{FORGET_FOLDER}{TO_LOGIN_SHELL}");
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &[
                "run", "-m", "web", "sh", "-c", &at_home, "orbd", "printf", "%s\n", "a b", "$HOME",
            ],
            &[],
        );
        request.user = Some("root");
        request.workdir = Some("/srv/a b");
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &[
                "run", "-m", "web", "-u", "root", "-w", "/srv/a b", "printf", "%s\n", "a b", "$HOME",
            ],
            &[],
        );
    }

    #[test]
    fn programs_replace_sh_and_other_words_run_in_the_login_shell() {
        let script = |command: &[&str]| exec_call(&exec(command), GuestEnv::Orbenv).0[5].clone();
        let direct = format!("{TO_HOME}{FORGET_FOLDER}{HAND_OVER}{TO_LOGIN_SHELL}");
        assert_eq!(script(&["make", "type"]), direct);
        assert_eq!(script(&["a=b"]), direct);
        let through_shell = format!("{TO_HOME}{FORGET_FOLDER}{TO_LOGIN_SHELL}");
        for first in [
            "type", "cd", "ulimit", "umask", "command", "if", "./run", "/bin/ls",
        ] {
            assert_eq!(script(&[first]), through_shell, "{first}");
        }
        assert!(SHELL_WORDS.is_sorted());
    }

    #[test]
    fn try_workdir_is_passed_as_an_operand_not_as_a_flag() {
        let mut request = exec(&["make"]);
        request.try_workdir = Some("/Users/u/a b");
        request.env = env(&[("A", "1")]);
        let folder = format!("{TO_FOLDER}{FORGET_FOLDER}");
        let script = format!(
            "{folder}export A=\"${{ORBD_E0?{NOT_PASSED}}}\"; unset ORBD_E0; {HAND_OVER}{TO_LOGIN_SHELL}"
        );
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &[
                "run",
                "-m",
                "web",
                "sh",
                "-c",
                &script,
                "orbd",
                "/Users/u/a b",
                "make",
            ],
            &["ORBD_E0=1", "ORBENV=ORBD_E0"],
        );
        let script = format!("{folder}export A=\"${{1}}\"; shift 1; {HAND_OVER}{TO_LOGIN_SHELL}");
        check_exec(
            &request,
            GuestEnv::Argv,
            &[
                "run",
                "-m",
                "web",
                "sh",
                "-c",
                &script,
                "orbd",
                "/Users/u/a b",
                "1",
                "make",
            ],
            &[],
        );
    }

    #[test]
    fn orbenv_passes_values_under_aliases() {
        let mut request = exec(&["make"]);
        request.env = env(&[("PATH", "/evil"), ("B", "x y=z")]);
        let export =
            format!("export PATH=\"${{ORBD_E0?{NOT_PASSED}}}\" B=\"${{ORBD_E1}}\"; unset ORBD_E0 ORBD_E1; ");
        let variables = ["ORBD_E0=/evil", "ORBD_E1=x y=z", "ORBENV=ORBD_E0:ORBD_E1"];
        let script = format!("{TO_HOME}{FORGET_FOLDER}{export}{HAND_OVER}{TO_LOGIN_SHELL}");
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &["run", "-m", "web", "sh", "-c", &script, "orbd", "make"],
            &variables,
        );
        request.workdir = Some("/srv");
        let script = format!("{export}{HAND_OVER}{TO_LOGIN_SHELL}");
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &[
                "run", "-m", "web", "-w", "/srv", "sh", "-c", &script, "orbd", "make",
            ],
            &variables,
        );
    }

    #[test]
    fn guest_env_argv_passes_values_as_operands() {
        let mut request = exec(&["make"]);
        request.env = env(&[("A", "1"), ("B", "x y=z")]);
        request.caller_env = caller_env(&[("ORBENV", "C:HOME"), ("C", "3"), ("HOME", "/h")]);
        let script = format!(
            "{TO_HOME}{FORGET_FOLDER}export HOME=\"${{1}}\" A=\"${{2}}\" B=\"${{3}}\"; shift 3; {HAND_OVER}{TO_LOGIN_SHELL}"
        );
        check_exec(
            &request,
            GuestEnv::Argv,
            &[
                "run", "-m", "web", "sh", "-c", &script, "orbd", "/h", "1", "x y=z", "make",
            ],
            &["C=3", "ORBENV=C"],
        );
    }

    #[test]
    fn caller_variables_keep_their_names_unless_orbctl_reads_them() {
        let mut request = exec(&["make"]);
        request.workdir = Some("/");
        request.caller_env = caller_env(&[
            ("ORBENV", "TOKEN:DYLD_INSERT_LIBRARIES:UNSET:A"),
            ("TOKEN", "s"),
            ("DYLD_INSERT_LIBRARIES", "/lib"),
            ("A", "callers"),
            ("TERM", "xterm"),
            ("https_proxy", "http://p"),
        ]);
        request.env = env(&[("A", "given")]);
        let script = format!(
            "export DYLD_INSERT_LIBRARIES=\"${{ORBD_E0?{NOT_PASSED}}}\" A=\"${{ORBD_E1}}\"; unset ORBD_E0 ORBD_E1; {HAND_OVER}{TO_LOGIN_SHELL}"
        );
        check_exec(
            &request,
            GuestEnv::Orbenv,
            &["run", "-m", "web", "-w", "/", "sh", "-c", &script, "orbd", "make"],
            &[
                "TERM=xterm",
                "TOKEN=s",
                "https_proxy=http://p",
                "ORBD_E0=/lib",
                "ORBD_E1=given",
                "ORBENV=TOKEN:UNSET:A:ORBD_E0:ORBD_E1",
            ],
        );
    }
}
