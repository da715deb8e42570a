//! The dedicated thread that starts all children.
//!
//! `posix_spawn` returns only when the child has executed its program: after about a millisecond, or more while many children
//! start. On a worker of the runtime this would delay every connection of that worker. Here only the caller waits.
//!
//! macOS also requires a single thread: it has no call that creates a close-on-exec pipe atomically, so with two concurrent
//! spawns one child could inherit the pipes of the other.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Capacity of the task queue. Further callers wait until the thread takes a task.
const WAITING_MAX: usize = 64;

/// Starts children one at a time on its own thread. The thread starts with the first child and exits when this value is dropped.
#[derive(Debug, Default)]
pub(super) struct Spawner {
    tasks: Mutex<Option<mpsc::Sender<Task>>>,
}

type Task = Box<dyn FnOnce() + Send>;

impl Spawner {
    /// Starts a child. Returns `None`, without starting one, if `stop` was cancelled before.
    ///
    /// If the future is dropped after the spawn has begun, the child keeps running, like every other child.
    pub(super) async fn spawn(
        &self,
        mut command: Command,
        stop: &CancellationToken,
    ) -> io::Result<Option<Child>> {
        self.run(move || command.spawn(), stop).await
    }

    /// Runs `work` on the thread, within the caller's runtime context. Returns `None` if `stop` was cancelled before `work`
    /// began.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
        stop: &CancellationToken,
    ) -> io::Result<Option<T>> {
        let (reply, mut result) = oneshot::channel();
        let runtime = Handle::current();
        // Set by the thread when it begins or by the caller when it gives up, whichever comes first.
        let is_claimed = Arc::new(AtomicBool::new(false));
        let task = {
            let is_claimed = Arc::clone(&is_claimed);
            move || {
                if reply.is_closed() || is_claimed.swap(true, Ordering::AcqRel) {
                    return;
                }
                let _context = runtime.enter();
                // If the caller is gone, the runtime reaps the child.
                let _ = reply.send(work());
            }
        };
        let tasks = self.tasks()?;
        match stop.run_until_cancelled(tasks.send(Box::new(task))).await {
            None => return Ok(None),
            Some(sent) => sent.map_err(|_| thread_ended())?,
        }
        let result = tokio::select! {
            biased;
            result = &mut result => result,
            () = stop.cancelled() => {
                if !is_claimed.swap(true, Ordering::AcqRel) {
                    return Ok(None);
                }
                result.await
            }
        };
        result.map_err(|_| thread_ended())?.map(Some)
    }

    fn tasks(&self) -> io::Result<mpsc::Sender<Task>> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_ref().filter(|tasks| !tasks.is_closed()) {
            return Ok(tasks.clone());
        }
        let (sender, mut receiver) = mpsc::channel::<Task>(WAITING_MAX);
        thread::Builder::new().name("spawner".into()).spawn(move || {
            while let Some(task) = receiver.blocking_recv() {
                task();
            }
        })?;
        *tasks = Some(sender.clone());
        Ok(sender)
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the thread that starts processes has exited")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use tokio::task::JoinHandle;

    use super::*;

    /// Blocks the thread, as the spawn of a program on an unresponsive disk would, until the returned sender is used or dropped.
    async fn occupy(spawner: &Arc<Spawner>) -> (Sender<()>, JoinHandle<io::Result<Option<()>>>) {
        let (release, released): (_, Receiver<()>) = channel();
        let (began, has_begun) = oneshot::channel();
        let spawner = Arc::clone(spawner);
        let occupied = tokio::spawn(async move {
            let work = move || {
                began.send(()).expect("the test waits for it");
                // Returns on a message and when the sender is dropped.
                let _ = released.recv();
                Ok(())
            };
            spawner.run(work, &CancellationToken::new()).await
        });
        has_begun.await.expect("it began");
        (release, occupied)
    }

    #[tokio::test]
    async fn cancelled_spawn_behind_a_blocked_one_returns_at_once_and_never_starts() {
        let spawner = Arc::new(Spawner::default());
        let (release, occupied) = occupy(&spawner).await;
        let stop = CancellationToken::new();
        let (starts, started) = channel();
        let waiting = tokio::spawn({
            let (spawner, stop) = (Arc::clone(&spawner), stop.clone());
            async move { spawner.run(move || Ok(starts.send(())), &stop).await }
        });
        tokio::task::yield_now().await;
        stop.cancel();
        assert!(waiting.await.expect("no panic").expect("no error").is_none());
        drop(release);
        assert_eq!(occupied.await.expect("no panic").expect("no error"), Some(()));
        // The thread takes tasks in order, so it has already taken the cancelled one.
        let next = spawner.run(|| Ok(7), &CancellationToken::new()).await;
        assert_eq!(next.expect("no error"), Some(7));
        assert!(started.recv().is_err(), "its sender was dropped unused");
    }

    #[tokio::test]
    async fn spawn_that_has_begun_returns_its_child_although_it_is_cancelled() {
        let spawner = Arc::new(Spawner::default());
        let stop = CancellationToken::new();
        let work = {
            let stop = stop.clone();
            move || {
                stop.cancel();
                Ok("child")
            }
        };
        assert_eq!(spawner.run(work, &stop).await.expect("no error"), Some("child"));
    }

    #[tokio::test]
    async fn dropped_spawn_that_has_not_begun_never_starts() {
        let spawner = Arc::new(Spawner::default());
        let (release, occupied) = occupy(&spawner).await;
        let (starts, started) = channel();
        let waiting = tokio::spawn({
            let spawner = Arc::clone(&spawner);
            async move {
                let stop = CancellationToken::new();
                spawner.run(move || Ok(starts.send(())), &stop).await
            }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        assert!(waiting.await.expect_err("aborted").is_cancelled());
        drop(release);
        assert_eq!(occupied.await.expect("no panic").expect("no error"), Some(()));
        assert!(started.recv().is_err(), "its sender was dropped unused");
    }

    #[tokio::test]
    async fn tasks_beyond_the_queue_capacity_wait_and_run_once() {
        let spawner = Arc::new(Spawner::default());
        let (release, occupied) = occupy(&spawner).await;
        let (done, order) = channel();
        let tasks: Vec<_> = (0..WAITING_MAX * 2)
            .map(|number| {
                let (spawner, done) = (Arc::clone(&spawner), done.clone());
                tokio::spawn(async move {
                    let work = move || {
                        done.send(number).expect("the test reads");
                        Ok(())
                    };
                    spawner.run(work, &CancellationToken::new()).await
                })
            })
            .collect();
        drop((release, done));
        for task in tasks {
            assert_eq!(task.await.expect("no panic").expect("no error"), Some(()));
        }
        assert_eq!(occupied.await.expect("no panic").expect("no error"), Some(()));
        // Tasks that found the queue full may be overtaken by later ones.
        let mut numbers: Vec<usize> = order.into_iter().collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..WAITING_MAX * 2));
    }

    #[test]
    fn thread_exits_when_its_spawner_is_dropped() {
        thread_local! {
            static KEPT: std::cell::RefCell<Option<Sender<()>>> = const { std::cell::RefCell::new(None) };
        }
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (kept, ended) = channel::<()>();
        let spawner = Spawner::default();
        let work = move || {
            KEPT.set(Some(kept));
            Ok(())
        };
        let done = runtime.block_on(spawner.run(work, &CancellationToken::new()));
        assert_eq!(done.expect("no error"), Some(()));
        drop(spawner);
        assert!(ended.recv().is_err(), "dropped with the thread");
    }
}
