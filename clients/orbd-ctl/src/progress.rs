//! Progress messages for waits longer than a second.
//!
//! On a terminal, one line is updated in place and cleared at the end. Otherwise a plain line is printed whenever the reason of
//! the wait changes. The reason is polled over a second connection, because the first one is waiting for the answer.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use orbd_client::Client;
use orbd_proto::methods::{JobGet, JobList, QueueStatus};
use orbd_proto::types::{Job, JobListParams, JobParams, JobStateWord, NoParams, WaitingFor};

use crate::console::{Console, now};
use crate::link::{Link, SIDE_QUESTION_MAX};
use crate::render;

/// Time before the first message, and the interval between polls.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a command waits for.
#[derive(Debug, Clone)]
pub(crate) enum Wait {
    /// Jobs of this process with this operation; the second field describes them in messages.
    Ours(&'static str, String),
    /// All jobs of this process; the field describes them in messages.
    All(&'static str),
    /// The job with this id, of any client.
    Job(u64),
    /// The queue as a whole.
    Queue,
    /// The exit of the daemon.
    Shutdown,
}

/// Reports what a command waits for.
pub(crate) struct Progress<'a> {
    link: &'a Link,
    watch: Wait,
    began: Instant,
    looked: Instant,
    side_connection: Option<Client>,
    ours: Vec<u64>,
    told: String,
    line: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    /// Starts a wait. Prints nothing until [`PATIENCE`] has passed.
    pub(crate) fn new(link: &'a Link, watch: Wait) -> Self {
        let began = now();
        Self {
            link,
            watch,
            began,
            looked: began,
            side_connection: None,
            ours: Vec::new(),
            told: String::new(),
            line: None,
        }
    }

    /// Starts a wait for the daemon at the other end of this connection to exit. Polls over this connection only: the daemon
    /// accepts no new ones, so a new connection would reach another daemon.
    pub(crate) fn of_farewell(link: &'a Link, client: Client) -> Self {
        let mut progress = Self::new(link, Wait::Shutdown);
        // The daemon may be hung, and its answers are optional.
        progress.side_connection = client.set_timeout(Some(SIDE_QUESTION_MAX)).ok().map(|()| client);
        progress
    }

    /// Polls what the command waits for and reports it, if the poll interval has passed.
    pub(crate) fn tick(&mut self, console: &mut Console) {
        let at = now();
        if at - self.looked < PATIENCE {
            return;
        }
        self.looked = at;
        let message = self.look();
        self.tell(console, &message);
    }

    /// Reports what a job waits for, from an event that the daemon sent.
    pub(crate) fn waiting(&mut self, console: &mut Console, waiting_for: &WaitingFor) {
        self.tell(console, &Message::waiting(waiting_for));
    }

    /// Clears the progress line.
    pub(crate) fn clear(&mut self) {
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
        self.told.clear();
    }

    /// Returns the watched jobs that have not ended.
    pub(crate) fn open_jobs(&mut self) -> Vec<Job> {
        let mut jobs = self.jobs();
        jobs.retain(|job| job.state != JobStateWord::Ended);
        jobs
    }

    /// Returns the connection for polls, opening it if necessary.
    pub(crate) fn side_connection(&mut self) -> Option<&mut Client> {
        if self.side_connection.is_none() && !matches!(self.watch, Wait::Shutdown) {
            self.side_connection = self.link.side_connection();
        }
        self.side_connection.as_mut()
    }

    /// Queries the watched jobs. A failed call drops the connection; the next poll opens a new one.
    fn jobs(&mut self) -> Vec<Job> {
        let verb = match self.watch {
            Wait::Ours(verb, _) => Some(verb),
            Wait::All(_) => None,
            Wait::Job(id) => {
                self.ours = vec![id];
                None
            }
            Wait::Queue => return Vec::new(),
            Wait::Shutdown => return self.running(),
        };
        if self.ours.is_empty() {
            let pid = std::process::id();
            let query = JobListParams {
                operation: verb.map(Into::into),
                limit: Some(1000),
                ..JobListParams::default()
            };
            let Some(client) = self.side_connection() else {
                return Vec::new();
            };
            let Ok(answer) = client.call::<JobList>(&query) else {
                self.side_connection = None;
                return Vec::new();
            };
            let ours: Vec<Job> = answer
                .jobs
                .into_iter()
                .filter(|job| job.client.pid == Some(pid))
                .collect();
            self.ours = ours.iter().map(|job| job.job_id).collect();
            return ours;
        }
        let mut jobs = Vec::new();
        for job_id in self.ours.clone() {
            let Some(client) = self.side_connection() else {
                break;
            };
            match client.call::<JobGet>(&JobParams { job_id }) {
                Ok(answer) => jobs.push(answer.job),
                Err(_) => self.side_connection = None,
            }
        }
        jobs
    }

    /// Queries all running jobs.
    fn running(&mut self) -> Vec<Job> {
        let query = JobListParams {
            state: Some(JobStateWord::Running),
            ..JobListParams::default()
        };
        if let Some(Ok(answer)) = self
            .side_connection()
            .map(|client| client.call::<JobList>(&query))
        {
            answer.jobs
        } else {
            self.side_connection = None;
            Vec::new()
        }
    }

    fn look(&mut self) -> Message {
        match &self.watch {
            Wait::Queue => {
                let answer = self
                    .side_connection()
                    .map(|client| client.call::<QueueStatus>(&NoParams {}));
                match answer {
                    Some(Ok(status)) => Message::plain(format!(
                        "waiting for the queue to drain: {} running, {} waiting",
                        status.running, status.waiting
                    )),
                    _ => Message::plain("waiting for the queue to drain".into()),
                }
            }
            Wait::Shutdown => Message::farewell(&self.open_jobs()),
            Wait::Ours(_, what) => {
                let what = what.clone();
                let jobs = self.open_jobs();
                Message::of(&jobs, &what)
            }
            Wait::All(what) => {
                let what = *what;
                let jobs = self.open_jobs();
                Message::of(&jobs, what)
            }
            Wait::Job(id) => {
                let what = format!("job {id}");
                let jobs = self.open_jobs();
                Message::of(&jobs, &what)
            }
        }
    }

    fn tell(&mut self, console: &mut Console, message: &Message) {
        if console.err_is_terminal {
            let line = self.line.get_or_insert_with(|| {
                let line = ProgressBar::new_spinner();
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                    line.set_style(style);
                }
                line.enable_steady_tick(Duration::from_millis(120));
                line
            });
            let waited = render::duration(now() - self.began);
            line.set_message(format!("{}{} [{waited}]", message.lasting, message.passing));
        } else if self.told != message.lasting {
            console.eprint(&format!("{}{}", message.lasting, message.passing));
            self.told.clone_from(&message.lasting);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A progress message: `lasting` names what the command waits for; `passing` changes at every poll.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    lasting: String,
    passing: String,
}

impl Message {
    fn plain(lasting: String) -> Self {
        Self {
            lasting,
            passing: String::new(),
        }
    }

    fn waiting(waiting_for: &WaitingFor) -> Self {
        let (lasting, passing) = render::waiting_for(waiting_for);
        Self {
            lasting: format!("waiting for {lasting}"),
            passing,
        }
    }

    fn farewell(running: &[Job]) -> Self {
        Self::plain(match render::job_names(running) {
            Some(names) => format!("waiting for orbd to stop; still running: {names}"),
            None => "waiting for orbd to stop".into(),
        })
    }

    /// Summarises several jobs in one message. Waiting jobs take precedence over running ones.
    fn of(jobs: &[Job], what: &str) -> Self {
        let more = |count: usize| {
            if count > 1 {
                format!(" (and {} more)", count - 1)
            } else {
                String::new()
            }
        };
        let waiting: Vec<_> = jobs
            .iter()
            .filter_map(|job| Some((job, job.waiting_for.as_ref()?)))
            .collect();
        if let Some((job, waiting_for)) = waiting.first() {
            let mut message = Self::waiting(waiting_for);
            if waiting.len() > 1 {
                message.lasting = format!(
                    "{}{}: {}",
                    render::job_name(job),
                    more(waiting.len()),
                    message.lasting
                );
            }
            return message;
        }
        match jobs.iter().find(|job| job.state == JobStateWord::Running) {
            Some(job) => Self::plain(format!(
                "{} is running{}",
                render::job_name(job),
                more(jobs.len())
            )),
            None => Self::plain(format!("waiting for orbd: {what}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn message_names_the_blocking_job() {
        let mut job = fake::job(13, "start", JobStateWord::Waiting);
        job.waiting_for = Some(fake::waiting_for_create());
        assert_eq!(
            Message::of(&[job], "start web"),
            Message {
                lasting: "waiting for job 12 (create web) of pyinfra".into(),
                passing: ", accepted 34 s ago".into(),
            }
        );
    }

    #[test]
    fn shutdown_message_names_running_jobs() {
        let told = |count: u64| {
            let jobs: Vec<Job> = (0..count)
                .map(|at| fake::job(13 + at, "start", JobStateWord::Running))
                .collect();
            Message::farewell(&jobs).lasting
        };
        assert_eq!(told(0), "waiting for orbd to stop");
        assert_eq!(
            told(2),
            "waiting for orbd to stop; still running: job 13 (start web), job 14 (start web)"
        );
        assert_eq!(
            told(5),
            "waiting for orbd to stop; still running: job 13 (start web), job 14 (start web), job 15 (start web) and 2 more"
        );
    }

    #[test]
    fn message_names_a_running_job_if_none_waits() {
        let jobs = [
            fake::job(13, "start", JobStateWord::Running),
            fake::job(14, "start", JobStateWord::Running),
        ];
        assert_eq!(
            Message::of(&jobs, "start").lasting,
            "job 13 (start web) is running (and 1 more)"
        );
        assert_eq!(
            Message::of(&[], "start web").lasting,
            "waiting for orbd: start web"
        );
    }
}
