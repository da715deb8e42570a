//! A minimal `orbctl`: this program under that name. It lists one machine, writes a stream, or exits at once. If it was slowed down, it
//! also runs commands.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Name under which this program is an `orbctl`.
pub(crate) const NAME: &str = "orbctl";

/// Its only machine.
pub(crate) const MACHINE: &str = "web";

/// File beside the program with the milliseconds that it takes.
const LATENCY: &str = "latency";

/// First argument that makes it write; a kind and a number of bytes follow.
pub(crate) const EMIT: &str = "emit";

/// Bytes written at a time.
const PIECE: usize = 64 << 10;

const LIST: &str = r#"[{"id": "01M4HXHNTVZXRXR1F5PV7GC8R7", "name": "web",
    "image": {"distro": "ubuntu", "version": "noble", "arch": "arm64", "variant": "default"},
    "config": {"isolated": false, "default_username": "dev"}, "builtin": false, "state": "running"}]"#;

/// Links this program under that name in a folder.
pub(crate) fn install(folder: &Path) -> PathBuf {
    let path = folder.join(NAME);
    let own = std::env::current_exe().expect("this program has a path");
    std::os::unix::fs::symlink(own, &path).expect("a link");
    path
}

/// Makes the program in this folder take so long for everything, and run commands.
pub(crate) fn slow_down(folder: &Path, ms: u64) {
    std::fs::write(folder.join(LATENCY), ms.to_string()).expect("a file");
}

/// Acts as `orbctl` with these arguments. `called` is the path under which it was started.
pub(crate) fn run(called: &Path, args: impl Iterator<Item = OsString>) {
    let words: Vec<String> = args.filter_map(|word| word.into_string().ok()).collect();
    if let Ok(ms) = std::fs::read_to_string(called.with_file_name(LATENCY)) {
        std::thread::sleep(Duration::from_millis(ms.parse().expect("a number")));
        if let ["run", "-m", MACHINE, program, rest @ ..] = words_of(&words).as_slice() {
            panic!("{program}: {}", Command::new(program).args(rest).exec());
        }
    }
    if words.first().is_some_and(|word| word == "list") {
        print!("{LIST}");
        return;
    }
    if words.first().is_some_and(|word| word == "status") {
        println!("Running");
        return;
    }
    let Some(at) = words.iter().position(|word| word == EMIT) else {
        return;
    };
    let kind = &words[at + 1];
    let mut left: usize = words[at + 2].parse().expect("a number of bytes");
    let piece = piece(kind);
    let mut stdout = std::io::stdout().lock();
    while left > 0 {
        let now = left.min(piece.len());
        // The reader has closed the pipe.
        if stdout.write_all(&piece[..now]).is_err() {
            return;
        }
        left -= now;
    }
}

fn words_of(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// Returns the text that is written repeatedly: a line of a log, or bytes that are not text.
fn piece(kind: &str) -> Vec<u8> {
    if kind == "text" {
        let line =
            b"2026-11-20T16:50:56Z INFO unpacking \"linux-headers\" (6.8.0-51) over the last one ...\n";
        line.iter().copied().cycle().take(PIECE).collect()
    } else {
        (0..=u8::MAX).rev().cycle().take(PIECE).collect()
    }
}
