//! All jobs: those that wait or run, and the ended ones that are kept.

pub(super) mod by_connection;
pub(super) mod entry;
pub(super) mod history;
pub(super) mod watchers;
