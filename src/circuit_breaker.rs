//! Whether `orbctl` is well enough to be asked, and when to look again.
//!
//! When OrbStack's service is sick, every call fails or hangs, and each makes somebody wait for its whole limit. So while it is,
//! nothing is let through but *force*, which mends, and one *probe* at a time, with growing pauses. Nothing here reads a clock or
//! runs anything: it is told how invocations ended ([`HealthSignal`]) and says what follows.
//!
//! ```text
//!             a doubtful sign                      a sick sign
//!        ┌──────────────────► Doubted ────────────────────┐
//!        │   a well sign, or  │  │ probe, at once if the  │
//!        │ ◄── a probe's end ─┘  │ last was 30 s ago      ▼
//!       Well ────────────── a sick sign ───────────────► Sick ─┐ probe after 1 s, 2 s, 4 s ... 30 s
//!        ▲                                                │  ▲ │ without a well sign
//!        └────────────────── a well sign ─────────────────┘  └─┘
//! ```
//!
//! - One sick sign is enough. A service that says that it does not work means it, and a read that takes a fraction of a second when
//!   all is well was given more than a hundred times that. A mistake costs a second, until the probe; a second opinion would cost
//!   every caller another limit.
//! - An ending is a sign of how things were when its invocation *began*. Of two signs the one that began later counts, in
//!   whichever order they end: a read that was caught by the illness and is given up long after the recovery brings nothing back,
//!   and one list that blocks means nothing while commands that began after it come and go.
//! - Probes go on only while somebody is waiting to hear: after [`ATTENTION`] without a question there are none until the next.
//!   A sick service is not asked all night on behalf of nobody, and an idle daemon sleeps.

use std::time::{Duration, Instant};

use crate::clock::Moment;
use crate::job::{HealthProblem, HealthSignal};

/// Pause before the first probe; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between probes.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long probes go on after somebody last asked for something.
const ATTENTION: Duration = Duration::from_secs(10 * 60);

/// Decides what is let through. See the [module](self) for the rules.
#[derive(Debug)]
pub struct CircuitBreaker {
    state: State,
    /// The beginning of the latest invocation that said something for sure.
    newest: Option<Instant>,
    /// The beginning of the probe under way. Apart from the state: a recovery does not wait for it.
    probe: Option<Instant>,
    /// When the last probe ended.
    probed: Option<Instant>,
    /// When somebody last asked for something.
    asked: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Healthy,
    Doubted {
        since: Instant,
    },
    Unhealthy {
        outage: Outage,
        probe_at: Instant,
        /// From the end of a probe to the next.
        pause: Duration,
    },
}

/// Since when `orbctl` is sick, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When it was noticed.
    pub since: Moment,
    /// What was noticed, last.
    pub problem: HealthProblem,
}

/// What a sign changed for everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "somebody waits for it"]
pub enum CircuitChange {
    /// Nothing.
    None,
    /// From now on nothing ordinary is let through.
    Opened,
    /// From now on all is let through again.
    Recovered,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self::new()
    }
}

impl CircuitBreaker {
    /// Makes one that takes `orbctl` for well until it hears otherwise.
    pub fn new() -> Self {
        Self {
            state: State::Healthy,
            newest: None,
            probe: None,
            probed: None,
            asked: None,
        }
    }

    /// Returns why nothing ordinary is let through; `None` when all is.
    pub fn outage(&self) -> Option<&Outage> {
        match &self.state {
            State::Unhealthy { outage, .. } => Some(outage),
            State::Healthy | State::Doubted { .. } => None,
        }
    }

    /// Takes in how an invocation ended, be it ordinary, forced, a look or a probe.
    pub fn heard(&mut self, signal: HealthSignal, began: Instant, now: &Moment) -> CircuitChange {
        if signal == HealthSignal::Nothing || self.newest.is_some_and(|newest| began < newest) {
            return CircuitChange::None;
        }
        if !matches!(signal, HealthSignal::Suspect(_)) {
            self.newest = Some(began);
        }
        match (signal, &mut self.state) {
            (HealthSignal::Nothing, _)
            | (HealthSignal::Suspect(_), State::Doubted { .. } | State::Unhealthy { .. }) => {
                CircuitChange::None
            }
            (HealthSignal::Healthy, State::Unhealthy { .. }) => {
                self.state = State::Healthy;
                CircuitChange::Recovered
            }
            (HealthSignal::Healthy, State::Healthy | State::Doubted { .. }) => {
                self.state = State::Healthy;
                CircuitChange::None
            }
            (HealthSignal::Suspect(_), State::Healthy) => {
                self.state = State::Doubted { since: now.instant };
                CircuitChange::None
            }
            (
                HealthSignal::Unhealthy(problem),
                State::Unhealthy {
                    outage,
                    probe_at,
                    pause,
                },
            ) => {
                // As good as a probe: the next one would see the same.
                outage.problem = problem;
                *probe_at = (*probe_at).max(now.instant + *pause);
                CircuitChange::None
            }
            (HealthSignal::Unhealthy(problem), State::Healthy | State::Doubted { .. }) => {
                self.asked = Some(now.instant);
                self.state = State::Unhealthy {
                    outage: Outage { since: *now, problem },
                    probe_at: now.instant + PAUSE_FIRST,
                    pause: PAUSE_FIRST,
                };
                CircuitChange::Opened
            }
        }
    }

    /// Takes note that somebody wants something, so that probes are worth their while.
    pub fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Returns when a probe is due; `None` where none is, because all is well, one is under way, or nobody asks any more.
    pub fn next_probe(&self) -> Option<Instant> {
        if self.probe.is_some() {
            return None;
        }
        match &self.state {
            State::Healthy => None,
            // Doubts that come again and again must not become a poll.
            State::Doubted { since } => {
                let rested = self.probed.map(|probed| probed + PAUSE_MAX);
                rested.max(Some(*since))
            }
            State::Unhealthy { probe_at, .. } => {
                Some(*probe_at).filter(|at| self.asked.is_some_and(|asked| *at <= asked + ATTENTION))
            }
        }
    }

    /// Begins a probe, if one is due.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        let is_due = self.next_probe().is_some_and(|at| at <= now);
        if is_due {
            self.probe = Some(now);
        }
        is_due
    }

    /// Takes note that the probe is over. What it saw was [`heard`](Self::heard) before.
    pub fn probe_ended(&mut self, now: Instant) {
        let Some(began) = self.probe.take() else {
            debug_assert!(false, "a probe ends that never began");
            return;
        };
        self.probed = Some(now);
        match &mut self.state {
            // It saw nothing that is wrong with all of `orbctl`.
            State::Doubted { since } if *since <= began => self.state = State::Healthy,
            State::Healthy | State::Doubted { .. } => {}
            State::Unhealthy { probe_at, pause, .. } => {
                *pause = (*pause * 2).min(PAUSE_MAX);
                *probe_at = now + *pause;
            }
        }
    }

    /// Returns when a refused caller may come back: after the next probe, or soon, while one is under way.
    pub fn retry_after(&self, now: Instant) -> Duration {
        match &self.state {
            State::Unhealthy { probe_at, .. } if self.probe.is_none() => {
                probe_at.saturating_duration_since(now).max(PAUSE_FIRST)
            }
            State::Unhealthy { .. } => PAUSE_FIRST,
            State::Healthy | State::Doubted { .. } => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn blocked() -> HealthSignal {
        HealthSignal::Unhealthy(HealthProblem::Blocked { verb: "list" })
    }

    fn uncertain() -> HealthSignal {
        HealthSignal::Suspect(HealthProblem::Blocked { verb: "info" })
    }

    /// A breaker and a clock that only moves when told.
    struct Bench {
        circuit_breaker: CircuitBreaker,
        now: Moment,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                circuit_breaker: CircuitBreaker::new(),
                now: Moment::now(),
            }
        }

        fn sick() -> Self {
            let mut bench = Self::new();
            assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
            bench
        }

        fn pass(&mut self, time: Duration) {
            self.now.instant += time;
            self.now.wall += time;
        }

        /// Hears of an invocation that took no time.
        fn hear(&mut self, signal: HealthSignal) -> CircuitChange {
            self.circuit_breaker.heard(signal, self.now.instant, &self.now)
        }

        fn probe(&mut self) -> bool {
            self.circuit_breaker.begin_probe(self.now.instant)
        }

        fn end_probe(&mut self) {
            self.circuit_breaker.probe_ended(self.now.instant);
        }

        /// Returns how long it is until the next probe.
        fn pause(&self) -> Option<Duration> {
            let at = self.circuit_breaker.next_probe()?;
            Some(at.saturating_duration_since(self.now.instant))
        }

        fn is_unhealthy(&self) -> bool {
            self.circuit_breaker.outage().is_some()
        }
    }

    #[test]
    fn one_sick_sign_closes_the_door_and_one_well_sign_opens_it() {
        let mut bench = Bench::sick();
        assert_eq!(bench.hear(blocked()), CircuitChange::None, "it is known");
        bench.pass(SECOND);
        assert_eq!(bench.hear(HealthSignal::Nothing), CircuitChange::None);
        assert!(bench.is_unhealthy());
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        assert_eq!((bench.is_unhealthy(), bench.pause()), (false, None));
    }

    #[test]
    fn pauses_double_up_to_half_a_minute_and_begin_anew_with_the_next_illness() {
        let mut bench = Bench::sick();
        for _ in 0..2 {
            for pause in [1, 2, 4, 8, 16, 30, 30] {
                assert_eq!(bench.pause(), Some(SECOND * pause));
                assert!(!bench.probe(), "not yet");
                bench.pass(SECOND * pause);
                assert!(bench.probe());
                assert!(!bench.probe(), "one at a time");
                // It takes its time, and ends with neither good nor bad news, which is bad news.
                bench.pass(SECOND * 7);
                bench.end_probe();
            }
            assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
            bench.pass(SECOND);
            assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        }
    }

    #[test]
    fn of_two_signs_the_one_that_began_later_counts() {
        let mut bench = Bench::new();
        let caught = bench.now.instant;
        bench.pass(SECOND);
        assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        bench.pass(SECOND);
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        bench.pass(SECOND * 20);
        // A read that was caught by the illness is given up only now.
        assert_eq!(
            bench.circuit_breaker.heard(blocked(), caught, &bench.now),
            CircuitChange::None
        );
        assert!(!bench.is_unhealthy());
        // And a command that began before the illness proves nothing by ending.
        let before = bench.now.instant;
        bench.pass(SECOND);
        assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        assert_eq!(
            bench
                .circuit_breaker
                .heard(HealthSignal::Healthy, before, &bench.now),
            CircuitChange::None
        );
        assert!(bench.is_unhealthy());
    }

    #[test]
    fn a_doubt_lets_all_through_and_is_looked_into_at_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.hear(uncertain()), CircuitChange::None);
        assert!(!bench.is_unhealthy());
        assert!(bench.probe());
        bench.pass(SECOND);
        bench.end_probe();
        assert_eq!(bench.pause(), None, "nothing was wrong");
        assert_eq!(bench.hear(uncertain()), CircuitChange::None);
        assert_eq!(bench.pause(), Some(PAUSE_MAX), "not again and again");
        bench.pass(PAUSE_MAX);
        assert!(bench.probe());
        assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        bench.end_probe();
        assert_eq!(bench.pause(), Some(SECOND * 2));
    }

    #[test]
    fn a_probe_that_began_before_the_doubt_does_not_settle_it() {
        let mut bench = Bench::sick();
        bench.pass(SECOND);
        assert!(bench.probe());
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        bench.pass(SECOND);
        assert_eq!(bench.hear(uncertain()), CircuitChange::None);
        assert!(!bench.probe(), "one at a time");
        bench.end_probe();
        bench.pass(PAUSE_MAX);
        assert!(bench.probe());
    }

    #[test]
    fn nobody_is_probed_for_who_does_not_ask() {
        let mut bench = Bench::sick();
        let mut probes = 0;
        while let Some(pause) = bench.pause() {
            bench.pass(pause);
            assert!(bench.probe());
            bench.end_probe();
            probes += 1;
        }
        assert!((20..30).contains(&probes), "{probes}");
        bench.pass(SECOND * 3600);
        assert_eq!(bench.pause(), None);
        bench.circuit_breaker.asked(bench.now.instant);
        assert_eq!(bench.pause(), Some(Duration::ZERO));
        assert!(bench.probe());
    }

    #[test]
    fn who_is_refused_comes_back_after_the_probe() {
        let mut bench = Bench::sick();
        let retry = |bench: &Bench| bench.circuit_breaker.retry_after(bench.now.instant);
        assert_eq!(retry(&bench), SECOND);
        bench.pass(SECOND);
        assert!(bench.probe());
        assert_eq!(retry(&bench), SECOND);
        bench.end_probe();
        assert_eq!(retry(&bench), SECOND * 2);
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        assert_eq!(retry(&bench), Duration::ZERO);
    }

    fn random(dice: &mut u64, below: u64) -> u64 {
        // Xorshift.
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        (*dice >> 33) % below
    }

    /// Returns a sign, and whether it is a sick one, if it says anything for sure.
    fn random_sign(dice: &mut u64) -> (HealthSignal, Option<bool>) {
        match random(dice, 8) {
            0 | 1 => (blocked(), Some(true)),
            2 => (uncertain(), None),
            3 => (HealthSignal::Nothing, None),
            _ => (HealthSignal::Healthy, Some(false)),
        }
    }

    /// 300,000 random ends, probes, questions and waits against a plain model: of all that was ever said for sure, what the latest
    /// invocation said is what is so.
    #[test]
    fn whatever_happens_the_latest_sure_sign_decides_and_probes_come_one_at_a_time() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a seed to repeat a run comes from outside"
        )]
        let seed = std::env::var("ORBD_TEST_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"));
        println!("ORBD_TEST_SEED={seed} repeats this run");
        let mut dice = seed | 1;
        let mut bench = Bench::new();
        let mut in_flight: Vec<Instant> = Vec::new();
        // When it began, when it was heard of, whether it was sick.
        let mut latest: Option<(Instant, u64, bool)> = None;
        let mut probe: Option<Instant> = None;
        let mut pause_before = Duration::ZERO;
        let (mut probes, mut turns, mut let_through) = (0, 0, 0);
        for step in 0..300_000 {
            let was_sick = bench.is_unhealthy();
            match random(&mut dice, 16) {
                0..4 => bench.pass(Duration::from_millis(random(&mut dice, 4000))),
                4..7 if in_flight.len() < 20 => {
                    // What is ordinary begins only while all is well; what is forced, always.
                    let is_forced = random(&mut dice, 8) == 0;
                    if is_forced || !was_sick {
                        in_flight.push(bench.now.instant);
                        let_through += 1;
                    }
                }
                7..12 if !in_flight.is_empty() => {
                    let at = random(&mut dice, in_flight.len() as u64);
                    let began = in_flight.swap_remove(usize::try_from(at).expect("an index"));
                    let (signal, sure) = random_sign(&mut dice);
                    let told = bench.circuit_breaker.heard(signal, began, &bench.now);
                    if let Some(sick) = sure {
                        latest = latest.max(Some((began, step, sick)));
                    }
                    let is_unhealthy = latest.is_some_and(|(_, _, sick)| sick);
                    let expected = match (was_sick, is_unhealthy) {
                        (false, true) => CircuitChange::Opened,
                        (true, false) => CircuitChange::Recovered,
                        _ => CircuitChange::None,
                    };
                    assert_eq!(told, expected, "step {step}");
                    turns += u32::from(told != CircuitChange::None);
                }
                12 | 13 => {
                    let due = bench.circuit_breaker.next_probe();
                    let began = bench.probe();
                    assert_eq!(
                        began,
                        due.is_some_and(|at| at <= bench.now.instant),
                        "step {step}"
                    );
                    if began {
                        assert_eq!(probe, None, "step {step}: two probes");
                        probe = Some(bench.now.instant);
                        probes += 1;
                    }
                }
                14 => {
                    if let Some(began) = probe.take() {
                        let (signal, sure) = random_sign(&mut dice);
                        let _ = bench.circuit_breaker.heard(signal, began, &bench.now);
                        if let Some(sick) = sure {
                            latest = latest.max(Some((began, step, sick)));
                        }
                        bench.end_probe();
                        if was_sick && bench.is_unhealthy() {
                            let pause = bench.pause().unwrap_or(PAUSE_MAX);
                            assert!(pause >= pause_before.min(PAUSE_MAX), "step {step}: it shrank");
                            pause_before = pause;
                        }
                    }
                }
                _ => bench.circuit_breaker.asked(bench.now.instant),
            }
            let is_unhealthy = latest.is_some_and(|(_, _, sick)| sick);
            assert_eq!(bench.is_unhealthy(), is_unhealthy, "step {step}");
            if !is_unhealthy {
                pause_before = Duration::ZERO;
            }
            if probe.is_some() {
                assert_eq!(bench.circuit_breaker.next_probe(), None, "step {step}");
            }
            assert!(
                bench.pause().is_none_or(|pause| pause <= PAUSE_MAX),
                "step {step}"
            );
            assert!(
                bench.circuit_breaker.retry_after(bench.now.instant) <= PAUSE_MAX,
                "step {step}"
            );
        }
        assert!(
            probes > 1000 && turns > 1000 && let_through > 10_000,
            "{probes} probes, {turns} turns and {let_through} beginnings are too few to prove anything"
        );
    }
}
