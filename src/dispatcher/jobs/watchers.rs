//! State channels of ended jobs.

use tokio::sync::watch;

use crate::job::JobId;

use super::super::submission::JobState;

/// Smallest number of channels at which [`EndedJobWatchers`] removes those without receivers.
const FOLLOWED_MIN: usize = 16;

/// State channels of ended jobs that still have receivers. They show which clients have yet to read a job's result or output; an
/// upgrade waits for them.
#[derive(Default)]
pub(super) struct EndedJobWatchers {
    channels: Vec<(JobId, watch::Sender<JobState>)>,
    /// Number of channels at which unwatched ones are removed: twice the number that the last removal left, so that the cost per
    /// channel is constant.
    many: usize,
}

impl EndedJobWatchers {
    /// Keeps the channel of an ended job while it has receivers.
    pub(super) fn keep(&mut self, id: JobId, channel: watch::Sender<JobState>) {
        if channel.receiver_count() == 0 {
            return;
        }
        if self.channels.len() >= self.many {
            self.channels.retain(|(_, channel)| channel.receiver_count() > 0);
            self.many = (self.channels.len() * 2).max(FOLLOWED_MIN);
            self.channels.shrink_to(self.many);
        }
        self.channels.push((id, channel));
    }

    /// Returns the ended jobs that still have a watcher.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        let watchers = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.receiver_count() > 0);
        watchers.map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::EndedJob;
    use super::*;
    use crate::clock::Moment;
    use crate::job::Outcome;

    fn channel() -> (watch::Sender<JobState>, watch::Receiver<JobState>) {
        let over = EndedJob {
            since: None,
            at: Moment::now(),
            outcome: Outcome::Interrupted,
            holder: None,
        };
        watch::channel(over.state())
    }

    #[test]
    fn channel_is_kept_while_it_has_a_receiver() {
        let mut watchers = EndedJobWatchers::default();
        let (first, one) = channel();
        let (second, other) = channel();
        watchers.keep(JobId(1), first);
        watchers.keep(JobId(2), second);
        watchers.keep(JobId(3), channel().0);
        assert!(watchers.jobs().eq([JobId(1), JobId(2)]), "job 3 has no watcher");
        drop(one);
        assert!(watchers.jobs().eq([JobId(2)]));
        assert!(other.borrow().is_ended());
        drop(other);
        assert_eq!(watchers.jobs().count(), 0);
    }

    #[test]
    fn channels_without_receivers_do_not_accumulate() {
        let mut watchers = EndedJobWatchers::default();
        let (channel_of_one, one) = channel();
        watchers.keep(JobId(0), channel_of_one);
        for id in 1..10_000 {
            let (channel, receiver) = channel();
            watchers.keep(JobId(id), channel);
            drop(receiver);
            assert!(watchers.channels.len() <= FOLLOWED_MIN);
        }
        assert!(watchers.jobs().eq([JobId(0)]));
        drop(one);
    }

    #[test]
    fn many_watched_channels_are_kept_and_released() {
        let mut watchers = EndedJobWatchers::default();
        let receivers: Vec<_> = (0..1_000)
            .map(|id| {
                let (channel, receiver) = channel();
                watchers.keep(JobId(id), channel);
                receiver
            })
            .collect();
        assert_eq!(watchers.jobs().count(), 1_000);
        drop(receivers);
        let (channel, _receiver) = channel();
        for id in 0..2_000 {
            let (other, receiver) = self::channel();
            watchers.keep(JobId(id), other);
            drop(receiver);
        }
        watchers.keep(JobId(7), channel);
        assert!(watchers.channels.len() <= FOLLOWED_MIN, "memory is released");
        assert!(watchers.channels.capacity() <= 2 * FOLLOWED_MIN);
        assert!(watchers.jobs().eq([JobId(7)]));
    }
}
