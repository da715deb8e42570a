//! The host as programs next to `orbctl` see it: shared by the daemon and its clients on this machine.
//!
//! - [`config`]: configuration keys, the file, the environment and their origins; the user's folders and the socket's path.
//! - [`last_program`], [`release`]: the program that last served a state directory, and the order of orbd's versions.
//! - [`locate`]: where `orbctl` is.
//! - [`run_command`], [`caller_env`]: arguments and environment of `orbctl run`.
//! - [`machine`], [`token`]: the words that `orbctl` takes as arguments.
//! - [`sys`]: identity of processes and files.
//! - [`nearest`]: suggestions for misspelt names.
//! - [`error_chain`]: formats an error and its causes as one line.

pub mod caller_env;
pub mod config;
pub mod error_chain;
pub mod last_program;
pub mod locate;
pub mod machine;
pub mod nearest;
pub mod release;
pub mod run_command;
pub mod sys;
pub mod token;
