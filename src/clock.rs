//! The only module that reads the time.
//!
//! It reads tokio's clock, so a test that pauses tokio's time also pauses orbd's. A [`Moment`] holds both clocks: the monotonic
//! one for measuring, the wall clock for records. Ages use whichever clock advanced further: on some systems the monotonic clock
//! stops while the machine sleeps, and cached data must count as old after a sleep.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic clock, for durations and deadlines.
    pub instant: Instant,
    /// Wall clock, for records.
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this module wraps the unsafe calls")]
    pub fn now() -> Self {
        Self {
            instant: tokio::time::Instant::now().into_std(),
            wall: SystemTime::now(),
        }
    }

    /// Returns the time elapsed since `earlier`, by the clock that advanced further.
    pub fn age_of(&self, earlier: &Self) -> Duration {
        let monotonic = self.instant.saturating_duration_since(earlier.instant);
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        monotonic.max(wall)
    }

    /// Returns by how much more one clock has advanced since `earlier` than the other: after a sleep of the computer, and after the wall
    /// clock was set.
    pub fn jump_since(&self, earlier: &Self) -> Duration {
        let monotonic = self.instant.saturating_duration_since(earlier.instant);
        match self.wall.duration_since(earlier.wall) {
            Ok(wall) => wall.abs_diff(monotonic),
            Err(back) => back.duration() + monotonic,
        }
    }

    /// Returns the wall clock as milliseconds since 1970, zero for anything earlier.
    pub fn unix_ms(&self) -> u64 {
        unix_ms(self.wall)
    }
}

/// Waits until a deadline; forever if there is none.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
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
    fn a_sleep_and_a_clock_that_is_set_are_noticed() {
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
        assert_eq!(woken.jump_since(&before), Duration::from_millis(3_599_995));
        assert_eq!(set_back.jump_since(&before), hour * 2);
    }
}
