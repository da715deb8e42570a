//! One typed call of `orbctl`: arguments, run, classification and answer.

use std::path::PathBuf;

use orbd_host::run_command::{Call, GuestEnv};
use tokio_util::sync::CancellationToken;

use super::classify::{self, Verdict};
use super::{
    CallError, CallResult, Completion, Exec, Invocation, Orbctl, QueryAnswer, RawOutput, RunOptions, Runner,
    Sink, SpawnError, argv, output,
};
use crate::job::{Ending, Failure, HealthSignal};
use crate::operation::{Change, Query};

/// Most bytes kept of an answer. A list of ten thousand machines fits.
const ANSWER_MAX: usize = 16 << 20;

impl<R: Runner> Orbctl for R {
    fn is_replaced(&self) -> bool {
        Runner::is_replaced(self)
    }

    async fn query(&self, query: &Query, options: RunOptions) -> CallResult<QueryAnswer> {
        let (invocation, stop) = invocation(argv::query(query), Sink::Capture { max: ANSWER_MAX }, options);
        let run = self.run(invocation, stop).await;
        let classify = |completion: &Completion| classify::query(query, completion);
        finish(run, classify, |completion, failure| {
            answer(query, completion, failure)
        })
    }

    async fn exec(&self, exec: Exec, guest_env: GuestEnv, options: RunOptions) -> CallResult<i32> {
        let call = argv::exec(&exec.machine, &exec.request, guest_env);
        let (mut invocation, stop) = invocation(call, Sink::Spool(exec.output), options);
        invocation.stdin = exec.stdin;
        let run = self.run(invocation, stop).await;
        let classify = |completion: &Completion| classify::exec(&exec.machine, completion);
        finish(run, classify, exit_code)
    }

    async fn change(&self, change: &Change, output_dir: PathBuf, options: RunOptions) -> CallResult<()> {
        let sink = Sink::Files {
            dir: output_dir,
            max: ANSWER_MAX,
        };
        let (invocation, stop) = invocation(argv::change(change), sink, options);
        let run = self.run(invocation, stop).await;
        let classify = |completion: &Completion| classify::change(change, completion);
        finish(run, classify, |completion, failure| {
            exit_code(completion, failure).map(drop)
        })
    }
}

fn invocation(call: Call, output: Sink, options: RunOptions) -> (Invocation, CancellationToken) {
    let RunOptions {
        stop,
        run_timeout,
        grace,
        marker,
        started,
    } = options;
    let invocation = Invocation {
        run_timeout,
        grace,
        marker,
        started,
        ..Invocation::new(call, output)
    };
    (invocation, stop)
}

/// Classifies how a run ended. `answer` turns what is left of it into the result, unless orbd ended the run.
fn finish<T>(
    run: Result<Completion, SpawnError>,
    classify: impl FnOnce(&Completion) -> Verdict,
    answer: impl FnOnce(&Completion, Option<Failure>) -> Result<T, Failure>,
) -> CallResult<T> {
    let completion = match run {
        Ok(completion) => completion,
        Err(error) => {
            return CallResult {
                result: Err(CallError::Spawn(error)),
                signal: HealthSignal::Nothing,
                ending: None,
                bytes_in: 0,
                bytes_out: 0,
            };
        }
    };
    let verdict = classify(&completion);
    let result = match completion.ending {
        Ending::Stopped => Err(CallError::Stopped),
        Ending::TimedOut => Err(CallError::TimedOut),
        Ending::Exited(_) | Ending::Signalled(_) => {
            answer(&completion, verdict.failure).map_err(CallError::Failed)
        }
    };
    CallResult {
        result,
        signal: verdict.signal,
        ending: Some(completion.ending),
        bytes_in: completion.bytes_in,
        bytes_out: completion.bytes_out,
    }
}

fn exit_code(completion: &Completion, failure: Option<Failure>) -> Result<i32, Failure> {
    match (failure, completion.ending) {
        (Some(failure), _) => Err(failure),
        (None, Ending::Exited(code)) => Ok(code),
        (None, ending) => Err(Failure::Internal(
            format!("unclassified ending {ending:?}").into(),
        )),
    }
}

/// Parses the answer of a read. Unparsed output is an answer also if the read failed.
fn answer(query: &Query, completion: &Completion, failure: Option<Failure>) -> Result<QueryAnswer, Failure> {
    let stdout = &completion.stdout.bytes;
    Ok(match (query, failure) {
        (Query::RawQuery(_), failure) => QueryAnswer::Raw(raw(completion, failure)?),
        (_, Some(failure)) => return Err(failure),
        (Query::List, None) => QueryAnswer::Machines(output::list(stdout)?),
        (Query::Info(_), None) => QueryAnswer::Info(Box::new(output::info(stdout)?)),
        (Query::Status, None) => QueryAnswer::Status(output::status(completion.ending, stdout)?),
        (Query::Version, None) => QueryAnswer::Version(output::version(stdout)?),
        (Query::ConfigShow, None) => QueryAnswer::Config(output::config(stdout)?),
        (Query::Default, None) => QueryAnswer::Default(output::default_machine(stdout)?),
        (Query::Ssh | Query::Logs(..), None) => QueryAnswer::Text(output::text(stdout).into_owned()),
    })
}

fn raw(completion: &Completion, failure: Option<Failure>) -> Result<RawOutput, Failure> {
    let (stdout, stderr) = (&completion.stdout, &completion.stderr);
    if completion.output_cut || !stdout.is_whole() || !stderr.is_whole() {
        return Err(Failure::OrbctlOutputUnreadable(
            "output exceeds the size limit".into(),
        ));
    }
    Ok(RawOutput {
        stdout: stdout.bytes.clone(),
        stderr: stderr.bytes.clone(),
        ending: completion.ending,
        failure,
    })
}
