//! Programs that use the terminal, through `orb` with and without the drop-in: a real shell in a real tmux, whose keys
//! are pressed and whose screen is read. Both ways must show the same.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start a terminal as a person would"
)]

use std::path::Path;
use std::process::{Command, Output};

use orbd_proto::types::JobStateWord;

use crate::dropin::Way;
use crate::support::{World, eventually, has_program, outcome_of};

/// A shell on a terminal, in which `orb` is the bare tool or the drop-in.
struct Terminal<'a> {
    world: &'a World,
    socket: String,
}

impl<'a> Terminal<'a> {
    fn open(world: &'a World, way: Way) -> Self {
        let folder = way.folder(world);
        let terminal = Self {
            world,
            socket: world
                .path(if way == Way::Bare {
                    "tmux-bare"
                } else {
                    "tmux-dropin"
                })
                .display()
                .to_string(),
        };
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", folder.display());
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            &format!("PATH={path} PS1='> ' exec bash --norc --noprofile -i"),
        ]);
        terminal.shows("> ");
        terminal
    }

    #[track_caller]
    fn tmux(&self, words: &[&str]) -> Output {
        let daemon = self.world.daemon_command();
        let output = Command::new("tmux")
            .arg("-S")
            .arg(Path::new(&self.socket))
            .args(words)
            .env_clear()
            .envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("TERM", "xterm")
            .current_dir(self.world.path("home"))
            .output()
            .expect("tmux is there");
        assert!(
            output.status.success(),
            "tmux {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Presses keys, as tmux names them.
    fn press(&self, keys: &[&str]) {
        let mut words = vec!["send-keys"];
        words.extend(keys);
        self.tmux(&words);
    }

    /// Types a line.
    fn types(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press(&["Enter"]);
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until a line of the screen ends with this text.
    #[track_caller]
    fn shows(&self, wanted: &str) {
        eventually(&format!("{wanted:?} on the screen"), || {
            self.screen()
                .lines()
                .any(|line| line.trim_end().ends_with(wanted.trim_end()))
                .then_some(())
        });
    }

    /// Returns the exit code of the last command, as the shell prints it.
    #[track_caller]
    fn code(&self) -> String {
        self.has_prompt();
        self.types("echo \"code is $?.\"");
        let code = self.shows_code();
        self.has_prompt();
        self.types("clear");
        eventually("a clear screen", || {
            (!self.screen().contains("code is")).then_some(())
        });
        code
    }

    /// Waits for the shell's prompt. Text that is typed earlier goes to the program that has the terminal, or is lost.
    #[track_caller]
    fn has_prompt(&self) {
        eventually("a prompt", || {
            let screen = self.screen();
            let last = screen.lines().rfind(|line| !line.trim().is_empty())?;
            last.trim_end().ends_with('>').then_some(())
        });
    }

    #[track_caller]
    fn shows_code(&self) -> String {
        eventually("a code on the screen", || {
            let screen = self.screen();
            let code = screen
                .lines()
                .find_map(|line| line.strip_prefix("code is ")?.trim_end().strip_suffix('.'))?;
            Some(code.to_owned())
        })
    }

    /// Changes the size of the terminal.
    fn resize(&self, columns: u32, lines: u32) {
        self.tmux(&[
            "resize-window",
            "-x",
            &columns.to_string(),
            "-y",
            &lines.to_string(),
        ]);
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Does the same both ways, and returns what was seen each time.
fn both<T>(act: impl Fn(&Terminal<'_>) -> T) -> [T; 2] {
    let world = World::with_machines(&["a"]);
    [Way::Bare, Way::DropIn].map(|way| {
        let seen = act(&Terminal::open(&world, way));
        if way == Way::DropIn {
            // The call went through the drop-in: orbd has a session for it.
            let job = world.client().find("shell", "a", JobStateWord::Ended);
            assert_eq!(job.job_class, "session");
        }
        seen
    })
}

const VIM: &str = "orb -m a vim -u NONE -N -n";

#[test]
fn editor_sees_the_terminal_size_and_its_changes() {
    if !(has_program("tmux", "tmux") && has_program("vim", "vim")) {
        return;
    }
    let [bare, ours] = both(|terminal| {
        terminal.types(VIM);
        terminal.shows("~");
        let size = |wanted: &str| {
            // Asked again each time: the editor may not know the new size yet.
            eventually(wanted, || {
                terminal.press(&["Escape"]);
                terminal.types(":echo 'size' &columns . 'x' . &lines");
                terminal.screen().contains(wanted).then_some(())
            });
        };
        size("size 80x24");
        terminal.resize(100, 30);
        size("size 100x30");
        terminal.press(&["i"]);
        terminal.tmux(&["send-keys", "-l", "typed"]);
        terminal.shows("typed");
        terminal.press(&["Escape"]);
        terminal.types(":cquit 3");
        terminal.code()
    });
    assert_eq!((ours.as_str(), bare.as_str()), ("3", "3"));
}

#[test]
fn ctrl_z_stops_an_editor_and_fg_resumes_it() {
    if !(has_program("tmux", "tmux") && has_program("vim", "vim")) {
        return;
    }
    let [bare, ours] = both(|terminal| {
        terminal.types(VIM);
        terminal.shows("~");
        terminal.press(&["i"]);
        terminal.tmux(&["send-keys", "-l", "kept"]);
        terminal.shows("kept");
        let mut seen = Vec::new();
        for _ in 0..2 {
            terminal.press(&["Escape", "C-z"]);
            terminal.shows("Stopped                 orb -m a vim -u NONE -N -n");
            seen.push(terminal.code());
            terminal.has_prompt();
            terminal.types("jobs | sed 's/ .*orb/ orb/'");
            terminal.shows("[1]+ orb -m a vim -u NONE -N -n");
            terminal.has_prompt();
            terminal.types("clear; fg");
            terminal.shows("kept");
        }
        terminal.press(&["Escape"]);
        terminal.types(":quit!");
        seen.push(terminal.code());
        seen
    });
    assert_eq!(ours, bare);
    assert_eq!(ours.last().map(String::as_str), Some("0"));
}

fn counted(terminal: &Terminal<'_>) -> usize {
    let is_counted = |line: &&str| line.trim_end().ends_with("counted");
    terminal.screen().lines().filter(is_counted).count()
}

#[test]
fn ctrl_c_ends_a_command_and_reaches_a_trap_exactly_once() {
    if !has_program("tmux", "tmux") {
        return;
    }
    let [bare, ours] = both(|terminal| {
        terminal.types("orb -m a sh -c 'echo be''gun; exec sleep 1000'");
        terminal.shows("begun");
        terminal.press(&["C-c"]);
        let command = terminal.code();
        terminal.types(
            "orb -m a sh -c 'trap \"echo counted\" INT; echo re''ady; until read line; do :; done; exit 5'",
        );
        terminal.shows("ready");
        // One at a time: pending signals of a kind are delivered as one.
        for pressed in 1..=2 {
            terminal.press(&["C-c"]);
            eventually("it is counted", || (counted(terminal) >= pressed).then_some(()));
        }
        terminal.press(&["Enter"]);
        terminal.has_prompt();
        let counted = counted(terminal);
        let trapped = terminal.code();
        (command, counted, trapped)
    });
    assert_eq!(ours, bare);
    assert_eq!(ours, ("130".to_owned(), 2, "5".to_owned()));
}

#[test]
fn full_screen_program_runs_until_it_is_quit() {
    if !(has_program("tmux", "tmux") && has_program("top", "procps")) {
        return;
    }
    let [bare, ours] = both(|terminal| {
        terminal.types("orb -m a top");
        eventually("a table of processes", || {
            terminal.screen().contains("PID").then_some(())
        });
        terminal.press(&["q"]);
        terminal.code()
    });
    assert_eq!((ours.as_str(), bare.as_str()), ("0", "0"));
}

#[test]
fn shell_in_a_machine_has_the_terminal_and_returns_its_exit_code() {
    if !has_program("tmux", "tmux") {
        return;
    }
    let [bare, ours] = both(|terminal| {
        terminal.types("orb -m a");
        terminal.types("test -t 0 && test -t 1 && echo on a $((40 + 2))");
        terminal.shows("on a 42");
        terminal.types("exit 9");
        terminal.code()
    });
    assert_eq!((ours.as_str(), bare.as_str()), ("9", "9"));
}

#[test]
fn read_on_a_terminal_is_printed_by_the_tool_and_recorded() {
    if !has_program("tmux", "tmux") {
        return;
    }
    let world = World::with_machines(&["a"]);
    let [bare, ours] = [Way::Bare, Way::DropIn].map(|way| {
        let terminal = Terminal::open(&world, way);
        terminal.types("clear; orbctl list; orbctl info gone");
        terminal.shows("machine not found: 'gone'");
        terminal.has_prompt();
        terminal.screen()
    });
    assert_eq!(ours, bare);
    assert!(ours.contains("NAME"), "{ours}");
    for (operation, ended) in [("list", "succeeded"), ("info", "failed")] {
        let job = world.client().find(operation, "", JobStateWord::Ended);
        assert_eq!((job.job_class.as_str(), outcome_of(&job).0), ("session", ended));
    }
}
