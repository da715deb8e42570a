//! The test suite: one binary.

mod golden;
mod orbctl_sim_suite;
mod published;
mod schema;
mod tidy;
