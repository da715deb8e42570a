//! Names for the sets of words in string fields.
//!
//! These fields are `String` in Rust, so that a client of this version can read a word that a later daemon adds. In the published schema
//! each set is an enumeration with a name, which generators of other languages turn into one type.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::errors::ErrorKind;

/// Declares a set of words. It exists only as a schema.
macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident [$($word:literal),* $(,)?];)*) => {$(
        $(#[doc = $doc])*
        pub(super) enum $name {}

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": concat!($($doc, "\n"),*).trim(),
                    "type": "string",
                    "enum": [$($word),*],
                })
            }
        }
    )*};
}

words! {
    /// How a job ended. `succeeded`; `failed`; `cancelled`; `expired`: a time limit passed; `interrupted`: orbd did not see the end of a job
    /// that changes nothing; `unknown`: a change was interrupted and may have taken effect.
    OutcomeWord ["succeeded", "failed", "cancelled", "expired", "interrupted", "unknown"];
    /// Class of an operation, which selects its limits.
    JobClass ["query", "exec", "change", "creation", "configuration", "fleet", "session"];
    /// When a job was stopped: `queued` if it had not started, else `running`.
    StopPhase ["queued", "running"];
    /// `never_started`: the job was waiting and will not start. `stopping`: the job is running and is being ended. `already_ended`: there was
    /// nothing to cancel.
    CancelResult ["never_started", "stopping", "already_ended"];
    /// `pending`: the daemon executes the new program at the next idle moment. `refused`: the program failed the preflight, and the old daemon
    /// keeps running.
    UpgradeStatus ["pending", "refused"];
    /// `machines`: the machine list and the details of `machines`. `configuration`: OrbStack's configuration and the default machine.
    /// `everything`: all observations.
    InvalidatedScope ["machines", "configuration", "everything"];
}

/// The kinds of errors that this version knows. An open set: later versions may add words.
pub(super) enum ErrorWord {}

impl JsonSchema for ErrorWord {
    fn schema_name() -> Cow<'static, str> {
        "ErrorWord".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        let known: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
        json_schema!({
            "description": "Kind of an error. Later versions may add words, so clients must accept others.",
            "anyOf": [{ "type": "string", "enum": known }, { "type": "string" }],
        })
    }
}
