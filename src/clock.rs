//! The only reader of time.
//!
//! It reads tokio's clock, so a test that pauses tokio's time pauses ours. A [`Moment`] holds both clocks: the monotonic one
//! measures, the wall clock is recorded; ages use whichever of the two moved further, so that everything is old after the
//! machine slept, during which the monotonic clock of some systems stands still.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic, for durations and deadlines.
    pub instant: Instant,
    /// Wall clock, for records.
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the one module that may")]
    pub fn now() -> Self {
        Self {
            instant: tokio::time::Instant::now().into_std(),
            wall: SystemTime::now(),
        }
    }

    /// Returns how long ago `earlier` was, by the clock that moved further.
    pub fn age_of(&self, earlier: &Self) -> Duration {
        let monotonic = self.instant.saturating_duration_since(earlier.instant);
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        monotonic.max(wall)
    }

    /// Returns the wall clock as milliseconds since 1970, zero for anything earlier.
    pub fn unix_ms(&self) -> u64 {
        unix_ms(self.wall)
    }
}

/// Returns a wall-clock time as milliseconds since 1970, zero for anything earlier.
pub fn unix_ms(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_sleep_the_wall_clock_decides_how_old_a_fact_is() {
        let before = Moment::now();
        let hour = Duration::from_secs(3600);
        let woken = Moment {
            instant: before.instant + Duration::from_millis(5),
            wall: before.wall + hour,
        };
        assert_eq!(woken.age_of(&before), hour);
        let set_back = Moment {
            instant: before.instant + hour,
            wall: before.wall - hour,
        };
        assert_eq!(set_back.age_of(&before), hour);
    }
}
