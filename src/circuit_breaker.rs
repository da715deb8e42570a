//! A circuit breaker for `orbctl`: whether operations may run, and when to probe again.
//!
//! While OrbStack's service is unhealthy, every call fails or blocks, and each caller waits for its whole run limit. So while the
//! circuit is open, only *forced* operations pass, which may repair the service, and one *probe* at a time, at growing intervals.
//! This module has no clock and does no I/O: the dispatcher reports how invocations ended ([`HealthSignal`]) and acts on the
//! result.
//!
//! ```text
//!              Suspect                             Unhealthy
//!        ┌──────────────────► doubted ────────────────────┐
//!        │   Healthy signal   │  │ probe: at once if the  │
//!        │ ◄─ or probe ended ─┘  │ last ended 30 s ago    ▼
//!      closed ────────────── Unhealthy ────────────────► open ─┐ probe after 1 s, 2 s, 4 s ... 30 s
//!        ▲                                                │  ▲ │ without a Healthy signal
//!        └─────────────────── Healthy ────────────────────┘  └─┘
//! ```
//!
//! - One unhealthy signal opens the circuit. It is reliable: either the service itself reported that it does not work, or a read
//!   that normally takes a fraction of a second did not finish within more than a hundred times that. A wrong decision costs one
//!   second, until the first probe; waiting for a second signal would cost every caller another run limit.
//! - A signal describes the state at the time its invocation *began*. Of two signals, the one whose invocation began later counts,
//!   in whichever order they end. So a read that blocked during an outage and times out after the recovery does not open the
//!   circuit again, and a single blocked list does not open it while commands that began later succeed.
//! - Probes run only while there is demand: after [`ATTENTION`] without a request they stop until the next request. An idle daemon
//!   does not probe a broken service all night.

use std::time::{Duration, Instant};

use crate::clock::Moment;
use crate::job::{HealthProblem, HealthSignal};

/// Interval before the first probe; it doubles with each probe.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest interval between probes.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long probes continue after the last request.
const ATTENTION: Duration = Duration::from_secs(10 * 60);

/// Decides which operations may run. See the [module](self) for the rules.
#[derive(Debug)]
pub struct CircuitBreaker {
    state: State,
    /// When the latest invocation that gave a definite signal (healthy or unhealthy) began.
    newest: Option<Instant>,
    /// When the probe in progress began. Separate from `state`, because a recovery does not wait for the probe to end.
    probe: Option<Instant>,
    /// When the last probe ended.
    probed: Option<Instant>,
    /// When a client last requested an operation.
    note_demand: Option<Instant>,
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
        /// From the end of one probe to the next.
        pause: Duration,
    },
}

/// Since when `orbctl` has been unhealthy, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// When orbd detected it.
    pub since: Moment,
    /// The problem detected last.
    pub problem: HealthProblem,
}

/// How a signal changed the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the caller must act on the change"]
pub enum CircuitChange {
    /// The circuit did not change.
    None,
    /// The circuit is now open: only forced operations pass.
    Opened,
    /// The circuit is now closed: all operations pass.
    Recovered,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self::new()
    }
}

impl CircuitBreaker {
    /// Creates a circuit breaker that assumes `orbctl` is healthy.
    pub fn new() -> Self {
        Self {
            state: State::Healthy,
            newest: None,
            probe: None,
            probed: None,
            note_demand: None,
        }
    }

    /// Returns the outage if the circuit is open; `None` if it is closed.
    pub fn outage(&self) -> Option<&Outage> {
        match &self.state {
            State::Unhealthy { outage, .. } => Some(outage),
            State::Healthy | State::Doubted { .. } => None,
        }
    }

    /// Handles the end of any invocation: ordinary, forced, poll or probe. `began` is when the invocation started.
    pub fn on_health_signal(&mut self, signal: HealthSignal, began: Instant, now: &Moment) -> CircuitChange {
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
                // Equivalent to a failed probe, so postpone the next one.
                outage.problem = problem;
                *probe_at = (*probe_at).max(now.instant + *pause);
                CircuitChange::None
            }
            (HealthSignal::Unhealthy(problem), State::Healthy | State::Doubted { .. }) => {
                self.note_demand = Some(now.instant);
                self.state = State::Unhealthy {
                    outage: Outage { since: *now, problem },
                    probe_at: now.instant + PAUSE_FIRST,
                    pause: PAUSE_FIRST,
                };
                CircuitChange::Opened
            }
        }
    }

    /// Records a request, which keeps probes running.
    pub fn note_demand(&mut self, now: Instant) {
        self.note_demand = Some(now);
    }

    /// Returns when a probe is due; `None` while the circuit is healthy, while a probe is in progress, or if there has been no
    /// request for `ATTENTION`.
    pub fn next_probe(&self) -> Option<Instant> {
        if self.probe.is_some() {
            return None;
        }
        match &self.state {
            State::Healthy => None,
            // Repeated suspicions must not turn into continuous polling.
            State::Doubted { since } => {
                let rested = self.probed.map(|probed| probed + PAUSE_MAX);
                rested.max(Some(*since))
            }
            State::Unhealthy { probe_at, .. } => Some(*probe_at).filter(|at| {
                self.note_demand
                    .is_some_and(|note_demand| *at <= note_demand + ATTENTION)
            }),
        }
    }

    /// Begins a probe if one is due, and returns whether it did.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        let is_due = self.next_probe().is_some_and(|at| at <= now);
        if is_due {
            self.probe = Some(now);
        }
        is_due
    }

    /// Records the end of the probe. Its signal must have been passed to [`on_health_signal`](Self::on_health_signal) before.
    pub fn probe_ended(&mut self, now: Instant) {
        let Some(began) = self.probe.take() else {
            debug_assert!(false, "no probe is in progress");
            return;
        };
        self.probed = Some(now);
        match &mut self.state {
            // The probe found no problem that affects all of `orbctl`.
            State::Doubted { since } if *since <= began => self.state = State::Healthy,
            State::Healthy | State::Doubted { .. } => {}
            State::Unhealthy { probe_at, pause, .. } => {
                *pause = (*pause * 2).min(PAUSE_MAX);
                *probe_at = now + *pause;
            }
        }
    }

    /// Returns how long a refused caller should wait before it retries: until the next probe, or one second while a probe is in
    /// progress.
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

    /// A circuit breaker with a clock that the test advances.
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

        fn outage() -> Self {
            let mut bench = Self::new();
            assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
            bench
        }

        fn pass(&mut self, time: Duration) {
            self.now.instant += time;
            self.now.wall += time;
        }

        /// Reports an invocation that took no time.
        fn hear(&mut self, signal: HealthSignal) -> CircuitChange {
            self.circuit_breaker
                .on_health_signal(signal, self.now.instant, &self.now)
        }

        fn probe(&mut self) -> bool {
            self.circuit_breaker.begin_probe(self.now.instant)
        }

        fn end_probe(&mut self) {
            self.circuit_breaker.probe_ended(self.now.instant);
        }

        /// Returns the time until the next probe.
        fn pause(&self) -> Option<Duration> {
            let at = self.circuit_breaker.next_probe()?;
            Some(at.saturating_duration_since(self.now.instant))
        }

        fn is_unhealthy(&self) -> bool {
            self.circuit_breaker.outage().is_some()
        }
    }

    #[test]
    fn one_unhealthy_signal_opens_the_circuit_and_one_healthy_signal_closes_it() {
        let mut bench = Bench::outage();
        assert_eq!(bench.hear(blocked()), CircuitChange::None, "it is known");
        bench.pass(SECOND);
        assert_eq!(bench.hear(HealthSignal::Nothing), CircuitChange::None);
        assert!(bench.is_unhealthy());
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        assert_eq!((bench.is_unhealthy(), bench.pause()), (false, None));
    }

    #[test]
    fn probe_interval_doubles_up_to_30_s_and_resets_with_the_next_outage() {
        let mut bench = Bench::outage();
        for _ in 0..2 {
            for pause in [1, 2, 4, 8, 16, 30, 30] {
                assert_eq!(bench.pause(), Some(SECOND * pause));
                assert!(!bench.probe(), "not yet");
                bench.pass(SECOND * pause);
                assert!(bench.probe());
                assert!(!bench.probe(), "one at a time");
                // It takes 7 s and ends without a signal, which counts as a failure.
                bench.pass(SECOND * 7);
                bench.end_probe();
            }
            assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
            bench.pass(SECOND);
            assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        }
    }

    #[test]
    fn signal_of_the_invocation_that_began_later_counts() {
        let mut bench = Bench::new();
        let caught = bench.now.instant;
        bench.pass(SECOND);
        assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        bench.pass(SECOND);
        assert_eq!(bench.hear(HealthSignal::Healthy), CircuitChange::Recovered);
        bench.pass(SECOND * 20);
        // A read that blocked during the outage times out only now.
        assert_eq!(
            bench
                .circuit_breaker
                .on_health_signal(blocked(), caught, &bench.now),
            CircuitChange::None
        );
        assert!(!bench.is_unhealthy());
        // A command that began before the outage proves nothing by succeeding.
        let before = bench.now.instant;
        bench.pass(SECOND);
        assert_eq!(bench.hear(blocked()), CircuitChange::Opened);
        assert_eq!(
            bench
                .circuit_breaker
                .on_health_signal(HealthSignal::Healthy, before, &bench.now),
            CircuitChange::None
        );
        assert!(bench.is_unhealthy());
    }

    #[test]
    fn suspect_signal_keeps_the_circuit_closed_and_is_probed_at_once() {
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
    fn probe_that_began_before_a_suspect_signal_does_not_clear_it() {
        let mut bench = Bench::outage();
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
    fn probes_stop_without_requests_and_resume_with_the_next() {
        let mut bench = Bench::outage();
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
        bench.circuit_breaker.note_demand(bench.now.instant);
        assert_eq!(bench.pause(), Some(Duration::ZERO));
        assert!(bench.probe());
    }

    #[test]
    fn retry_after_points_to_the_next_probe() {
        let mut bench = Bench::outage();
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

    /// Returns a signal, and whether it is unhealthy; `None` if it is not definite.
    fn random_sign(dice: &mut u64) -> (HealthSignal, Option<bool>) {
        match random(dice, 8) {
            0 | 1 => (blocked(), Some(true)),
            2 => (uncertain(), None),
            3 => (HealthSignal::Nothing, None),
            _ => (HealthSignal::Healthy, Some(false)),
        }
    }

    /// 300,000 random ends, probes, requests and waits, compared with a plain model: of all definite signals, the one whose
    /// invocation began last determines the state.
    #[test]
    fn random_signals_agree_with_the_model_and_probes_never_overlap() {
        #[expect(
            clippy::disallowed_methods,
            reason = "the seed to repeat a run is read from the environment"
        )]
        let seed = std::env::var("ORBD_TEST_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"));
        println!("ORBD_TEST_SEED={seed} repeats this run");
        let mut dice = seed | 1;
        let mut bench = Bench::new();
        let mut in_flight: Vec<Instant> = Vec::new();
        // When its invocation began, at which step it was reported, and whether it was unhealthy.
        let mut latest: Option<(Instant, u64, bool)> = None;
        let mut probe: Option<Instant> = None;
        let mut pause_before = Duration::ZERO;
        let (mut probes, mut turns, mut let_through) = (0, 0, 0);
        for step in 0..300_000 {
            let was_sick = bench.is_unhealthy();
            match random(&mut dice, 16) {
                0..4 => bench.pass(Duration::from_millis(random(&mut dice, 4000))),
                4..7 if in_flight.len() < 20 => {
                    // Ordinary operations start only while the circuit is closed; forced ones always do.
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
                    let told = bench.circuit_breaker.on_health_signal(signal, began, &bench.now);
                    if let Some(outage) = sure {
                        latest = latest.max(Some((began, step, outage)));
                    }
                    let is_unhealthy = latest.is_some_and(|(_, _, outage)| outage);
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
                        let _ = bench.circuit_breaker.on_health_signal(signal, began, &bench.now);
                        if let Some(outage) = sure {
                            latest = latest.max(Some((began, step, outage)));
                        }
                        bench.end_probe();
                        if was_sick && bench.is_unhealthy() {
                            let pause = bench.pause().unwrap_or(PAUSE_MAX);
                            assert!(pause >= pause_before.min(PAUSE_MAX), "step {step}: it shrank");
                            pause_before = pause;
                        }
                    }
                }
                _ => bench.circuit_breaker.note_demand(bench.now.instant),
            }
            let is_unhealthy = latest.is_some_and(|(_, _, outage)| outage);
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
