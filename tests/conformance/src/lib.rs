//! What orbd assumes about OrbStack's `orbctl`, as data, and its comparison with a tool.
//!
//! `tests/claims.toml` has the claims, and `docs/claims.md` is made from them. The program `orbd-conformance` checks them against the
//! stand-in, or on a Mac against OrbStack.
#![expect(
    clippy::disallowed_methods,
    reason = "it starts the tool under test and measures how long that takes"
)]

pub mod checks;
pub mod claims;
pub mod page;
pub mod report;
pub mod tool;
