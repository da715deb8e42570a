//! The guest's program: a loop that executes one command after the other. `guest.sh` is its source.

use std::fmt::{self, Write as _};

/// What `orbctl run` starts: a shell that reads the program as the first line of its input. So nothing of the program passes
/// through the quoting of the user's login shell.
pub(super) const COMMAND: [&str; 3] = ["sh", "-c", r#"IFS= read -r orbd_line;eval "$orbd_line""#];

const SOURCE: &str = include_str!("guest.sh");

/// The secret by which the marks of one channel are told from the output of commands. 128 random bits, as hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    /// Creates a token from random bytes.
    pub(super) fn new(random: [u8; 16]) -> Self {
        let mut digits = String::with_capacity(32);
        for byte in random {
            // Writing to a `String` cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Self(digits)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Prints nothing of the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Returns the first line of a channel's input.
pub(super) fn program(token: &Token) -> String {
    // A profile may have set `allexport`.
    let mut line = format!("set +a;unset orbd_line;orbd_token={};", token.as_str());
    for part in SOURCE.lines().map(str::trim) {
        if !part.is_empty() && !part.starts_with('#') {
            line.push_str(part.trim_end_matches('\\').trim_end());
            line.push(' ');
        }
    }
    line.pop();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_one_line_without_comments() {
        let line = program(&Token::new([0xab; 16]));
        assert!(
            line.starts_with(&format!(
                "set +a;unset orbd_line;orbd_token={};orbd_cwd=",
                "ab".repeat(16)
            )),
            "{line}"
        );
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains("# "), "{line}");
    }
}
