//! The wire protocol of orbd: methods, types, errors, and the published description that is generated from them.
//!
//! The daemon and all Rust clients use these types, so they always agree. `openrpc.json` beside this crate is the description for other
//! languages; `README.md` explains framings and limits.

pub mod errors;
pub mod export;
pub mod methods;
pub mod openrpc;
pub mod protocol;
pub mod types;
