//! Words that `orbctl` takes as arguments. None of them can be taken for a flag.

/// Returns whether a text is safe as one argument of `orbctl`: not empty, at most 255 bytes, no leading `-`, and no whitespace,
/// control character or `/`.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with('-')
        && !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '/')
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::token::TokenError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err($crate::token::TokenError { what: $what }) }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A text does not have the required form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}")]
pub struct TokenError {
    pub(crate) what: &'static str,
}

token! {
    /// A guest user's name.
    UserName, "user name: no blanks, no '/', no leading '-'", is_token
}
token! {
    /// Name of a distribution, as in `ubuntu`.
    Distro, "distribution: letters, digits, '-' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}
token! {
    /// Version of a distribution, as in `24.04` or `noble`.
    DistroVersion, "version: letters, digits, '-', '.' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
token! {
    /// A size in `orbctl`'s syntax, as in `4G` or `2048M`.
    Size, "size: digits followed by an optional K, M, G or T",
    |t| {
        let digits = t.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
        !digits.is_empty() && t.len() - digits.len() <= 1 && digits.bytes().all(|b| b.is_ascii_digit())
    }
}
token! {
    /// A configuration key, as in `machine.web.username`.
    ConfigKey, "configuration key: letters, digits, '-', '.' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
token! {
    /// A shared folder, `SRC[:DEST]`.
    Mount, "mount: SRC or SRC:DEST, absolute paths",
    |t| t.starts_with('/') && t.len() <= 4096 && !t.chars().any(|c| c.is_control() || c == ',')
}

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Apple silicon.
    Arm64,
    /// Intel, emulated by Rosetta on Apple silicon.
    Amd64,
}

impl Arch {
    /// Returns the name used by `orbctl`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
        }
    }
}

impl std::str::FromStr for Arch {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        match text {
            "arm64" => Ok(Self::Arm64),
            "amd64" => Ok(Self::Amd64),
            _ => Err(TokenError {
                what: "architecture: arm64 or amd64",
            }),
        }
    }
}

pub(crate) use token;
