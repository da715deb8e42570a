//! The test suite: one binary.

mod ctl_events;
mod ctl_service;
mod ctl_session;
mod ctl_suite;
mod daemon_cache;
mod daemon_crash;
mod daemon_events;
mod daemon_extremes;
mod daemon_jobs;
mod daemon_lease;
mod daemon_lifecycle;
mod daemon_output;
mod daemon_queue;
mod daemon_reload;
mod daemon_sick;
mod daemon_socket;
mod daemon_trouble;
mod daemon_upgrade;
mod daemon_wire;
mod deaths;
mod golden;
mod orbctl_sim_suite;
mod published;
mod schema;
mod support;
mod tidy;
