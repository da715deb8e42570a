//! Encodes what a channel's guest reads: frames with a command, its input, and signals.
//!
//! ```text
//! P n                          a probe, answered by the mark P n
//! I 0 DATA.                    input of the next command, as escapes of `printf %b`
//! I size \n DATA.              the same; answered by the mark C, before which nothing more may be sent
//! X 0 PROGRAM #token           a command
//! X size \n PROGRAM #token     the same
//! K TERM, K KILL               while a command runs: a signal for all of its processes
//! D                            the end of a command was seen; the next frame may follow
//! ```
//!
//! A shell reads a line with one system call per byte, so larger data is read by `head` and its size comes first. PROGRAM ends in a
//! comment with the token: if the daemon is killed while it writes, half a frame is never executed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use bytes::{BufMut, Bytes, BytesMut};
use rustix::process::Signal;

use super::guest::Token;

/// Largest part of a frame that is sent in its line.
const LINE_MAX: usize = 2 * 1024;

/// Largest command, in bytes with quotes. Linux limits a process argument to 128 KiB, and the shell's own share is unknown.
pub(super) const COMMAND_MAX: usize = 96 * 1024;

/// Largest input of a command that is sent through a channel.
pub(super) const INPUT_MAX: usize = 256 * 1024;

/// Returns what the guest evaluates to run a command with these variables, or `None` if it is too large.
///
/// The names of the variables must be valid in a shell; [`EnvName`](orbd_host::caller_env::EnvName) ensures it.
pub(super) fn program(env: &[(OsString, OsString)], words: &[OsString]) -> Option<Bytes> {
    let mut program = BytesMut::with_capacity(LINE_MAX);
    for (name, value) in env {
        program.put_slice(b"export ");
        program.put_slice(name.as_bytes());
        program.put_u8(b'=');
        quote(value.as_bytes(), &mut program);
        program.put_u8(b';');
    }
    program.put_slice(b"set --");
    for word in words {
        program.put_u8(b' ');
        quote(word.as_bytes(), &mut program);
    }
    (program.len() <= COMMAND_MAX).then(|| program.freeze())
}

/// Returns the frame of a command.
pub(super) fn command(token: &Token, program: &[u8]) -> Bytes {
    sized(b'X', &[program, b" #", token.as_str().as_bytes()].concat())
}

/// Returns the frame with the input of the next command, and whether the guest must confirm it before more is sent.
pub(super) fn input(bytes: &[u8]) -> (Bytes, bool) {
    let mut data = BytesMut::with_capacity(bytes.len() * 2);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b' ' if at > 0 => data.put_u8(b' '),
            b'!'..=b'[' | b']'..=b'~' => data.put_u8(*byte),
            byte => {
                data.put_slice(b"\\0");
                data.put_slice(&[b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]);
            }
        }
    }
    // A shell removes blanks at the end of a line, and line ends from the output of `head`.
    data.put_u8(b'.');
    (sized(b'I', &data), data.len() > LINE_MAX)
}

/// Returns the frame of a probe.
pub(super) fn probe(number: u64) -> Bytes {
    format!("P {number}\n").into()
}

/// Returns the frame of a signal for the running command.
pub(super) fn signal(signal: Signal) -> &'static [u8] {
    if signal == Signal::KILL {
        b"K KILL\n"
    } else {
        b"K TERM\n"
    }
}

/// The frame that lets the guest go on to the next command.
pub(super) const DONE: &[u8] = b"D\n";

/// Returns a frame with data in its line if it is small, otherwise after it.
fn sized(kind: u8, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(data.len() + 16);
    frame.put_u8(kind);
    if data.len() <= LINE_MAX {
        frame.put_slice(b" 0 ");
        frame.put_slice(data);
        frame.put_u8(b'\n');
    } else {
        frame.put_slice(format!(" {}\n", data.len()).as_bytes());
        frame.put_slice(data);
    }
    frame.freeze()
}

/// Appends a word in single quotes. A line end would end the frame's line, so a variable of the guest's program replaces it.
fn quote(word: &[u8], text: &mut BytesMut) {
    text.put_u8(b'\'');
    for byte in word {
        match byte {
            b'\'' => text.put_slice(br"'\''"),
            b'\n' => text.put_slice(br#"'"$orbd_nl"'"#),
            byte => text.put_u8(*byte),
        }
    }
    text.put_u8(b'\'');
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "the tests ask real shells")]

    use std::ffi::OsStr;
    use std::io::Write;
    use std::os::unix::ffi::OsStringExt;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token::new([7; 16])
    }

    /// Lets a shell read a frame as the guest does and print what it understood, each word followed by NUL.
    fn read_by(shell: &[&str], frame: &[u8], print: &str) -> Vec<u8> {
        let script = format!(
            "orbd_nl=$(printf '\\nx'); orbd_nl=${{orbd_nl%x}}; IFS=' ' read -r kind size rest; \
             case $size in 0) ;; *) rest=$(head -c \"$size\") ;; esac; {print}"
        );
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        // The frame is smaller than a pipe, or the shell reads all of it.
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(frame)
            .expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{shell:?}: {output:?}");
        output.stdout
    }

    fn shells() -> Vec<&'static [&'static str]> {
        let all: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["busybox", "sh"]];
        let is_there = |shell: &&&[&str]| Command::new(shell[0]).arg("-c").arg(":").output().is_ok();
        let found: Vec<_> = all.iter().filter(is_there).copied().collect();
        assert!(!found.is_empty(), "no shell to test with");
        found
    }

    fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![1u8..=255, Just(b'\''), Just(b'\n'), Just(b' '), Just(b'\\')];
        let small = prop::collection::vec(byte.clone(), 0..20);
        let large = prop::collection::vec(byte, 1_500..4_000);
        prop::collection::vec(prop_oneof![9 => small, 1 => large], 1..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn shells_read_every_word_as_it_was(words in words()) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            let frame = command(&token(), &program(&[], &words).expect("small enough"));
            let mut expected = Vec::new();
            for word in &words {
                expected.extend(word.as_bytes());
                expected.push(0);
            }
            for shell in shells() {
                prop_assert_eq!(&read_by(shell, &frame, r#"eval "$rest"; printf '%s\0' "$@""#), &expected);
            }
        }

        #[test]
        fn shells_write_every_input_as_it_was(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
            let (frame, _) = input(&bytes);
            for shell in shells() {
                prop_assert_eq!(&read_by(shell, &frame, r#"printf %b "${rest%.}""#), &bytes);
            }
        }
    }

    #[test]
    fn variables_are_exported_before_the_command() {
        let env = [(OsString::from("ORBD_E0"), OsString::from("it's\na secret"))];
        let program = program(&env, &["env".into()]).expect("small enough");
        let frame = command(&token(), &program);
        for shell in shells() {
            let seen = read_by(shell, &frame, r#"eval "$rest"; sh -c 'printf %s "$ORBD_E0"'"#);
            assert_eq!(OsStr::from_bytes(&seen), "it's\na secret");
        }
    }

    #[test]
    fn commands_beyond_the_limit_have_no_program() {
        let of = |length: usize| program(&[], &["x".repeat(length).into()]);
        let fixed = "set -- ''".len();
        assert!(of(COMMAND_MAX - fixed).is_some());
        assert!(of(COMMAND_MAX - fixed + 1).is_none());
    }
}
