//! The interval between polls.

use std::time::Duration;

/// Longest interval while nothing changes, unless the shortest interval is longer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// An interval that is short while things change and grows while they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    shortest: Duration,
    pause: Duration,
}

impl Backoff {
    /// Creates a backoff that starts with the shortest interval.
    pub fn new(shortest: Duration) -> Self {
        Self {
            shortest,
            pause: shortest,
        }
    }

    /// Returns the shortest interval.
    pub fn shortest(&self) -> Duration {
        self.shortest
    }

    /// Returns the interval before the next poll.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Resets to the shortest interval after a change, because more changes may follow soon.
    pub fn reset(&mut self) {
        self.pause = self.shortest;
    }

    /// Doubles the interval after a poll that found no change or failed.
    pub fn slow_down(&mut self) {
        self.pause = (self.pause * 2).min(PAUSE_MAX).max(self.shortest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_grows_while_nothing_changes_and_resets_on_a_change() {
        let pauses = |shortest: u64| -> Vec<u64> {
            let mut backoff = Backoff::new(Duration::from_secs(shortest));
            let mut next = || {
                let pause = backoff.pause().as_secs();
                backoff.slow_down();
                pause
            };
            (0..5).map(|_| next()).collect()
        };
        assert_eq!(pauses(2), [2, 4, 8, 10, 10]);
        assert_eq!(pauses(60), [60; 5], "never shorter than was asked for");
        let mut backoff = Backoff::new(Duration::from_secs(2));
        backoff.slow_down();
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::from_secs(2));
    }
}
