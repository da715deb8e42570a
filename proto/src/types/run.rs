//! Commands in machines, and their output.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{JobOptions, JobStateWord, is_false};

job_params! {
    /// Parameters of `machine.run` and `machine.run_follow`.
    RunParams {
        /// Name or id of the machine.
        machine: String,
        /// Program and its arguments; no shell interprets them. The program cannot start with `-`.
        #[schemars(length(min = 1))]
        command: Vec<String>,
        /// Guest user. Default: the machine's default user.
        user: Option<String>,
        /// Guest directory to run in. Default: the guest user's home.
        workdir: Option<String>,
        /// Guest directory to run in if it exists, else the guest user's home. Not together with `workdir`.
        try_workdir: Option<String>,
        /// Environment variables to set for the command.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<String, String>,
        /// Variables of the caller's own environment that `orbctl run` would have passed to the guest: `ORBENV`, the variables that it
        /// lists, `TERM`, `DISPLAY` and the proxy variables. Others are rejected.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        caller_env: BTreeMap<String, String>,
        /// Input of the command, as text. At most one of `stdin_text`, `stdin_base64` and `stdin_stream`; without any, the input is empty.
        stdin_text: Option<String>,
        /// Input of the command, as base64.
        stdin_base64: Option<String>,
        /// Send the input with `job.input` while the command runs.
        #[serde(default, skip_serializing_if = "is_false")]
        stdin_stream: bool,
        /// Store only the output that followers have not read yet, and the last 512 KiB. Use it for large output that a client reads as it
        /// arrives: orbd then writes no file. While no client follows the job, all output is stored.
        #[serde(default, skip_serializing_if = "is_false")]
        pass_through: bool,
        /// Whether the command may run through a resident channel to the machine. `open`: yes, and more commands for the machine follow, so
        /// that the first one opens a channel. Default: `auto`. Without effect if orbd's key `exec_channel` is `off`.
        #[schemars(with = "Option<ChannelUse>")]
        channel: Option<String>,
    }
}

words! {
    /// `auto`: if there is a free one, or if commands for the machine follow each other. `open`: the same, and the first command opens one.
    /// `off`: no.
    ChannelUse ["auto", "open", "off"];
}

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a command's output: `text` if it is UTF-8, else `base64`.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// The stream that it was written to.
    pub stream: Stream,
    /// Offset of the first byte, counted over both streams in order of arrival.
    pub offset: u64,
    /// Microseconds from the job's start to the arrival of this piece.
    pub at_us: u64,
    /// The bytes, if they are UTF-8.
    pub text: Option<String>,
    /// The bytes in base64, if they are not UTF-8.
    pub base64: Option<String>,
}

/// Answer of `machine.run`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RunAnswer {
    /// Id of the job.
    pub job_id: u64,
    /// `ended`; for a detached job `waiting` or `running`.
    pub state: JobStateWord,
    /// Exit code of the command; absent until the job has ended.
    pub exit_code: Option<i32>,
    /// Output in order of arrival: at most 1 MiB, less if the connection holds many bytes, empty for a detached job. Read the rest with
    /// `job.output`.
    pub output: Vec<Chunk>,
    /// Offset after the last byte in `output`. If it is below `output_bytes`, read on from it with `job.output`.
    pub next_offset: u64,
    /// Bytes written to both streams so far; 0 for a detached job.
    pub output_bytes: u64,
    /// Microseconds from acceptance to start; absent while the job waits.
    pub wait_us: Option<u64>,
    /// Microseconds from start to end, or to now; absent until the job has started.
    pub run_us: Option<u64>,
}

/// Output that is no longer stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// First missing byte.
    pub offset: u64,
    /// First byte after the gap.
    pub next_offset: u64,
}
