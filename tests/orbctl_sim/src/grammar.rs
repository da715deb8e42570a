//! The table of commands: names, aliases, flags and operands, as public usage of the real tool shows them.

use crate::args::{Flag, Order, Syntax, switch, value};

const fn mixed(
    names: &'static [&'static str],
    operands: &'static str,
    count: (usize, usize),
    flags: &'static [Flag],
) -> Syntax {
    Syntax {
        names,
        operands,
        count,
        flags,
        order: Order::Mixed,
    }
}

const MANY: usize = usize::MAX;
const ALL: Flag = switch("all", Some(b'a'));
const FORCE: Flag = switch("force", Some(b'f'));
const FORMAT: Flag = value("format", Some(b'f'));
const MACHINE: Flag = value("machine", Some(b'm'));

/// `run`, which also handles commands unknown to `orb`. Its usage line is recorded (gh#2122), although `--` is refused.
pub(crate) const RUN: Syntax = run(Order::FlagsFirst);

/// `run` with `--` accepted.
pub(crate) const RUN_WITH_DASHES: Syntax = run(Order::FlagsThenDashes);

const RUN_FLAGS: &[Flag] = &[
    MACHINE,
    value("user", Some(b'u')),
    value("workdir", Some(b'w')),
    switch("shell", Some(b's')),
    switch("path", Some(b'p')),
    value("env", Some(b'e')),
];

const fn run(order: Order) -> Syntax {
    Syntax {
        names: &["run", "shell"],
        operands: "-- [COMMAND] [ARGS]...",
        count: (0, MANY),
        flags: RUN_FLAGS,
        order,
    }
}

/// `create`, whose values are checked beyond this table.
pub(crate) const CREATE: Syntax = mixed(
    &["create", "add", "new"],
    "DISTRO[:VERSION] [NAME]",
    (1, 2),
    &[
        value("arch", Some(b'a')),
        value("user", Some(b'u')),
        switch("set-password", Some(b'p')),
        value("user-data", Some(b'c')),
        switch("isolated", None),
        switch("isolate-network", None),
        value("mount", None),
        switch("forward-ssh-agent", None),
        value("cpus", None),
        value("memory", None),
        value("disk", None),
    ],
);

/// Every command except the group `config`.
const COMMANDS: &[Syntax] = &[
    mixed(
        &["list"],
        "",
        (0, 0),
        &[FORMAT, switch("quiet", Some(b'q')), switch("running", Some(b'r'))],
    ),
    mixed(&["info"], "NAME_OR_ID", (1, 1), &[FORMAT]),
    mixed(&["status"], "", (0, 0), &[]),
    mixed(&["version"], "", (0, 0), &[]),
    mixed(&["ssh"], "", (0, 0), &[]),
    mixed(&["update"], "", (0, 0), &[switch("check", None)]),
    mixed(&["default"], "[NAME]", (0, 1), &[]),
    mixed(
        &["logs"],
        "NAME_OR_ID",
        (1, 1),
        &[ALL, switch("follow", Some(b'f'))],
    ),
    RUN,
    mixed(&["push"], "SRC... [DEST]", (1, MANY), &[MACHINE]),
    mixed(&["pull"], "SRC... [DEST]", (1, MANY), &[MACHINE]),
    CREATE,
    mixed(&["start"], "[NAME_OR_ID]...", (0, MANY), &[ALL]),
    mixed(&["stop"], "[NAME_OR_ID]...", (0, MANY), &[ALL, FORCE]),
    mixed(&["shutdown"], "", (0, 0), &[]),
    mixed(&["restart"], "[NAME_OR_ID]...", (0, MANY), &[ALL]),
    // The effect of `-v` is not known, nor its long form.
    mixed(
        &["delete"],
        "NAME...",
        (1, MANY),
        &[FORCE, switch("", Some(b'v'))],
    ),
    mixed(&["rename"], "NAME_OR_ID NEW_NAME", (2, 2), &[]),
    mixed(&["clone"], "NAME_OR_ID NEW_NAME", (2, 2), &[]),
    mixed(&["export"], "NAME_OR_ID FILE", (2, 2), &[]),
    mixed(&["import"], "FILE", (1, 1), &[value("name", Some(b'n'))]),
    mixed(&["reset"], "", (0, 0), &[switch("yes", Some(b'y'))]),
];

/// The commands of the group `config`.
pub(crate) const CONFIG: &[Syntax] = &[
    mixed(&["config show"], "", (0, 0), &[]),
    mixed(&["config get"], "KEY", (1, 1), &[]),
    mixed(&["config set"], "KEY VALUE", (2, 2), &[]),
    mixed(&["config add"], "KEY VALUE", (2, 2), &[]),
    mixed(&["config remove"], "KEY VALUE", (2, 2), &[]),
    mixed(&["config reset"], "[KEY]", (0, 1), &[]),
];

/// Commands of the real tool that the stand-in does not have; `orb` must not run them in a machine.
const NOT_PLAYED: &[&str] = &[
    "completion",
    "debug",
    "docker",
    "doctor",
    "k8s",
    "login",
    "logout",
    "migrate",
    "report",
    "top",
];

/// Commands that flags of `run` may also precede.
pub(crate) const TAKES_LEADING_FLAGS: &[&str] = &["run", "shell", "push", "pull"];

/// Returns the command with this name or alias.
pub(crate) fn find(name: &str) -> Option<&'static Syntax> {
    COMMANDS.iter().find(|syntax| syntax.names.contains(&name))
}

/// Returns whether the real tool has this command and the stand-in does not.
pub(crate) fn is_not_played(name: &str) -> bool {
    NOT_PLAYED.contains(&name)
}
