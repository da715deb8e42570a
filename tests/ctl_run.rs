//! `orbd-ctl run` compared with a bare `orbctl run`: the same command line gives the same output, byte for byte.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start both programs as a shell would"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use orbd_proto::methods::MachineRun;
use serde_json::json;

use crate::ctl_session::OnTerminal;
use crate::ctl_suite::{call, ctl, said};
use crate::support::{Random, World};

/// Returns a bare `orbctl` call with the environment and folder of a call of the command line.
fn bare(world: &World, words: &[&str]) -> Command {
    let like = ctl(world, &[]);
    let mut command = Command::new(programs::orbctl_sim());
    command
        .args(words)
        .env_clear()
        .envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(world.path("home"))
        .stdin(Stdio::null());
    command
}

/// Returns stdout, stderr and exit code as the caller sees them, without the lines in which orbd-ctl reports what it
/// waits for.
fn seen(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let err = text(&output.stderr);
    let err: String = err
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("orbd-ctl: "))
        .collect();
    (text(&output.stdout), err, output.status.code())
}

/// Runs the args both ways, each call prepared by `set`; checks that both give the same and returns that.
#[track_caller]
fn same(world: &World, words: &[&str], set: impl Fn(&mut Command)) -> (String, String, Option<i32>) {
    let run: Vec<&str> = ["run", "-m", "a"]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    let (mut plain, mut ours) = (bare(world, &run), ctl(world, &run));
    set(&mut plain);
    set(&mut ours);
    let expected = seen(&plain.output().expect("it starts"));
    let found = seen(&ours.output().expect("it starts"));
    assert_eq!(found, expected, "{words:?}");
    found
}

#[test]
fn run_starts_in_the_callers_folder_if_the_machine_has_it() {
    let world = World::with_machines(&["a"]);
    let app = world.path("home").join("src/a b's \"app\"");
    fs::create_dir_all(&app).expect("a folder");
    fs::write(app.join("Makefile"), "").expect("a file");
    let at = |folder: &Path| {
        let folder = folder.to_owned();
        move |command: &mut Command| {
            command.current_dir(&folder);
        }
    };
    let (out, ..) = same(&world, &["pwd"], at(&app));
    assert_eq!(out, format!("{}\n", app.display()));
    assert_eq!(same(&world, &["ls"], at(&app)).0, "Makefile\n");
    assert_eq!(
        same(&world, &["sh", "-c", "pwd; echo \"$PWD.$OLDPWD\""], at(&app)).2,
        Some(0)
    );
    // The caller's folder does not exist in the machine: its `/etc` is another folder. The command starts at home.
    let (home, ..) = same(&world, &["pwd"], at(Path::new("/etc")));
    assert!(home.ends_with("/home\n"), "{home}");
    // A folder named with `-w` is used as is.
    assert_eq!(same(&world, &["-w", "/usr", "pwd"], at(&app)).0, "/usr\n");
    // A call over the wire starts in the home folder.
    let answer = world
        .client()
        .ok::<MachineRun>(json!({"machine": "a", "command": ["pwd"]}));
    assert_eq!(answer.output[0].text.as_deref(), Some(home.as_str()));
    let both = json!({"machine": "a", "command": ["pwd"], "workdir": "/", "try_workdir": "/"});
    let refused = world.client().refused::<MachineRun>(both);
    assert_eq!(refused.field.as_deref(), Some("try_workdir"));
}

#[test]
fn builtins_and_unknown_commands_end_as_with_orbctl_run() {
    let world = World::with_machines(&["a"]);
    fs::write(world.path("home/no-shebang"), "echo \"$0 $1\"\n").expect("a file");
    fs::write(world.path("home/no-program"), "").expect("a file");
    fs::write(world.path("home/bad-interpreter"), "#!/nosuch/interpreter\n").expect("a file");
    for name in ["no-shebang", "bad-interpreter"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(world.path("home").join(name), fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let cases: &[&[&str]] = &[
        &["type", "ls"],
        &["type", "nosuch"],
        &["cd", "/nosuch"],
        &["cd"],
        &["ulimit", "-t"],
        &["ulimit", "nosuch"],
        &["umask", "999"],
        &["umask", "-S", "027"],
        &["command", "-v", "ls"],
        &["command", "-v", "nosuch"],
        &["pwd"],
        &["echo", "-e", "a\\tb"],
        &["printf", "%s\n", "a"],
        &["test", "1", "-eq"],
        &["exit", "7"],
        &["eval", "echo $0; exit 3"],
        &["exec", "nosuch"],
        &["if"],
        &["nosuch"],
        &["nosuch", "with", "words"],
        &["a=b"],
        &["a=b", "env"],
        &["./no-shebang", "x"],
        &["./no-program"],
        &["./bad-interpreter"],
        &["./nosuch"],
        &["/nosuch/program"],
        &["/usr"],
        &["/bin/sh", "-c", "exit 5"],
        &["sh", "-c", "kill -TERM $$"],
        &["sh", "-c", "echo out; echo err >&2; exit 9"],
        &["cat"],
    ];
    for words in cases {
        same(&world, words, |_| ());
    }
    let (_, err, code) = same(&world, &["nosuch"], |_| ());
    assert_eq!(code, Some(127));
    assert!(
        err.contains("nosuch: command not found") && !err.contains("orbd"),
        "{err}"
    );
    // With variables, the command goes through a shell.
    let with_variable = |words: &[&str]| {
        let words: Vec<&str> = ["run", "-m", "a", "-e", "A=1"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        seen(&call(&world, &words))
    };
    for words in cases {
        let plain = same(&world, words, |_| ());
        assert_eq!(with_variable(words), plain, "{words:?}");
    }
}

#[test]
fn machine_name_given_as_the_command_fails_with_a_hint() {
    let world = World::with_machines(&["a", "web"]);
    let (_, err, code) = same(&world, &["web", "uname"], |_| ());
    assert_eq!(code, Some(127));
    assert!(err.contains("web: command not found"), "{err}");
    let hint = "'web' is a machine; to run a command in it: `orbd-ctl run -m web COMMAND`";
    assert!(said(&call(&world, &["run", "-m", "a", "web", "uname"])).contains(hint));
    assert!(!said(&call(&world, &["run", "-m", "a", "nosuch"])).contains("is a machine"));
}

#[test]
fn every_arg_reaches_the_command_unchanged() {
    let world = World::with_machines(&["a"]);
    // Many args per call, because each call starts two processes.
    let mut random = Random::new(7);
    for round in 0..6 {
        let words: Vec<String> = (0..40).map(|_| word(&mut random)).collect();
        let mut command = vec![
            if round % 2 == 0 {
                "/usr/bin/printf"
            } else {
                "printf"
            },
            "[%s]",
        ];
        command.extend(words.iter().map(String::as_str));
        let (out, err, code) = same(&world, &command, |_| ());
        let expected = format!("[{}]", words.join("]["));
        assert_eq!((out, err.as_str(), code), (expected, "", Some(0)));
    }
}

/// Makes an arg of pieces that a shell would interpret.
fn word(random: &mut Random) -> String {
    const PIECES: [&str; 32] = [
        "'",
        "\"",
        "\\",
        "\\\\",
        "$HOME",
        "${x",
        "$(echo x)",
        "`echo x`",
        "*",
        "?",
        "[a-z]",
        "{a,b}",
        "~",
        "!",
        "!!",
        "#",
        "&",
        "|",
        ";",
        "<",
        ">",
        "(",
        ")",
        "\n",
        "\t",
        " ",
        "  ",
        "a",
        "=",
        "-n",
        "\u{1}\u{7f}",
        "\u{e9}\u{1f600}",
    ];
    (0..random.below(6))
        .map(|_| PIECES[usize::try_from(random.below(32)).expect("small")])
        .collect()
}

#[test]
fn variables_that_orbctl_run_forwards_reach_the_command() {
    let world = World::with_machines(&["a"]);
    let script = "echo \"$TERM,$DISPLAY,$https_proxy,$NO_PROXY,$TOKEN,$SECRET,$ORBENV\"; env | grep ORBD_";
    let (out, ..) = same(&world, &["sh", "-c", script], |command| {
        command.envs([
            ("TERM", "xterm-odd"),
            ("DISPLAY", ":9"),
            ("https_proxy", "http://p:1"),
            ("NO_PROXY", "x,y"),
            ("ORBENV", "TOKEN:UNSET"),
            ("TOKEN", "it's \"$HOME\"\n*"),
            ("SECRET", "not passed"),
        ]);
    });
    assert_eq!(out, "xterm-odd,:9,http://p:1,x,y,it's \"$HOME\"\n*,,\n");
    // A `PATH` listed in `ORBENV` is for the guest and has no effect on orbctl.
    let mut command = ctl(&world, &["run", "-m", "a", "/usr/bin/env"]);
    command.envs([
        ("ORBENV", "LD_ODD:PATH"),
        ("LD_ODD", "x"),
        ("PATH", "/odd:/usr/bin:/bin"),
    ]);
    let output = command.output().expect("it starts");
    let lines = String::from_utf8(output.stdout).expect("text");
    assert!(lines.lines().any(|line| line == "LD_ODD=x"), "{lines}");
    assert!(
        lines.lines().any(|line| line == "PATH=/odd:/usr/bin:/bin"),
        "{lines}"
    );
}

#[test]
fn variable_name_that_sh_cannot_export_is_refused_before_the_run() {
    let world = World::with_machines(&["a"]);
    for words in [
        &["run", "-m", "a", "-e", "RANDOM=1", "true"][..],
        &["run", "-m", "a", "-s", "-e", "RANDOM=1", "true"],
    ] {
        let output = call(&world, words);
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        assert!(said(&output).contains("RANDOM"), "{}", said(&output));
    }
}

#[test]
fn unknown_option_is_reported_with_the_most_similar_one() {
    let world = World::new();
    let check = |words: &[&str], message: &str| {
        let output = call(&world, words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(message), "{words:?}: {}", said(&output));
    };
    check(
        &["run", "--detatch", "-m", "web", "x"],
        "unknown option '--detatch'; did you mean '--detach'?",
    );
    check(
        &["run", "-m", "web", "--usr=root", "x"],
        "unknown option '--usr'; did you mean '--user'?",
    );
    check(&["run", "-Z", "x"], "unknown option '-Z'");
    check(
        &["shell", "--usr", "root"],
        "unknown option '--usr'; did you mean '--user'?",
    );
    check(
        &["list", "--runing"],
        "unknown option '--runing'; did you mean '--running'?",
    );
    // Options after the first word of the command belong to the command.
    let world = World::with_machines(&["a"]);
    let output = call(
        &world,
        &[
            "run",
            "-m",
            "a",
            "printf",
            "%s,",
            "--detatch",
            "-m",
            "--json",
            "--",
            "-d",
        ],
    );
    assert_eq!(output.stdout, b"--detatch,-m,--json,--,-d,", "{}", said(&output));
}

/// Reports whether stdin and stdout are terminals, echoes one typed line, and exits with 6.
const ON_TERMINAL: &str = "test -t 0 && test -t 1 && echo both; read line && echo \"read $line.\"; exit 6";

#[test]
fn run_allocates_a_terminal_as_orbctl_run_does() {
    let world = World::with_machines(&["a"]);
    let words = ["run", "-m", "a", "sh", "-c", ON_TERMINAL];
    let shown = |mut terminal: OnTerminal| {
        terminal.until_it_shows("both");
        terminal.types("typed\n");
        terminal.until_it_shows("read typed.");
        terminal.ends().0
    };
    assert_eq!(
        shown(OnTerminal::start_program(&world, &bare(&world, &words))),
        Some(6)
    );
    assert_eq!(shown(OnTerminal::start(&world, &words)), Some(6));
    for flags in [&["-it"][..], &["-i", "-t"], &["-i"]] {
        let words: Vec<&str> = ["run"].iter().chain(flags).chain(&words[1..]).copied().collect();
        assert_eq!(shown(OnTerminal::start(&world, &words)), Some(6), "{flags:?}");
    }
    // A terminal command gets its variables through the environment, too.
    let words = [
        "run",
        "-m",
        "a",
        "-e",
        "A=one two",
        "sh",
        "-c",
        "echo \"[$A]\"; test -t 0",
    ];
    let (code, rest) = OnTerminal::start(&world, &words).ends();
    assert_eq!(code, Some(0));
    assert!(rest.contains("[one two]"), "{rest}");
}

#[test]
fn run_without_a_terminal_reads_stdin_only_with_dash_i() {
    let world = World::with_machines(&["a"]);
    let words = ["run", "-m", "a", "--no-terminal", "sh", "-c", ON_TERMINAL];
    let (code, rest) = OnTerminal::start(&world, &words).ends();
    assert_eq!(code, Some(6));
    assert!(!rest.contains("both") && !rest.contains("read"), "{rest}");
    let words = ["run", "-i", "-m", "a", "--no-terminal", "sh", "-c", ON_TERMINAL];
    let mut terminal = OnTerminal::start(&world, &words);
    terminal.types("typed\n");
    terminal.until_it_shows("read typed.");
    assert_eq!(terminal.ends().0, Some(6));
}
