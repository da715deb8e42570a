//! The test suite: one binary.

mod orbctl_sim_suite;
mod published;
