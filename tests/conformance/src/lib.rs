//! What orbd assumes about OrbStack's `orbctl`, as data.
//!
//! `tests/claims.toml` has the claims, and `docs/claims.md` is made from them.

pub mod claims;
pub mod page;
