//! How long to wait between two looks that nobody asked for.

use std::time::Duration;

/// The longest pause while nothing changes, unless the shortest is longer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Waits shortly while things change and longer while they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    shortest: Duration,
    pause: Duration,
}

impl Backoff {
    /// Begins with the shortest pause.
    pub fn new(shortest: Duration) -> Self {
        Self {
            shortest,
            pause: shortest,
        }
    }

    /// Takes another shortest pause, and begins with it.
    pub fn set_shortest(&mut self, shortest: Duration) {
        *self = Self::new(shortest);
    }

    /// Returns the pause before the next look.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Something changed: more may follow soon.
    pub fn reset(&mut self) {
        self.pause = self.shortest;
    }

    /// A look saw nothing new, or could not see.
    pub fn slow_down(&mut self) {
        self.pause = (self.pause * 2).min(PAUSE_MAX).max(self.shortest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_while_nothing_changes_and_is_short_again_when_something_does() {
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
