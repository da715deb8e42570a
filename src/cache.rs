//! A cache of observations of machines and of OrbStack, and the rules for when it may answer a read.
//!
//! Each value is an [`Observation`] stored under a [`CacheKey`]. It is served until a change makes its key stale or until it is
//! older than the caller accepts. This module reads no clock, runs nothing, and does not interpret the values.
//!
//! Two counters decide what is current. The *generation* increases with each invalidation, and each key records the generation that
//! last made it stale. A *ticket* is taken when a read begins and records the generation of that moment:
//!
//! ```text
//! generation    7        7          8              8            8
//!            begin A  begin B   invalidate      begin C      record A, B: superseded, they may have read the state before
//!                                                            the change; record C: stored
//! ```
//!
//! So a read that began before a change never overwrites a later observation, however late it ends. Of two reads in one generation,
//! the one that began later wins, in whichever order they end.
//!
//! A stale value stays available as [`Cache::last_known`], to be served with a warning while `orbctl` is unhealthy.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::clock::Moment;
use crate::operation::{RawQuery, Scope};
use orbd_host::machine::MachineName;

/// Limit on the number of keys. Real machines need far fewer, but callers can make up names.
const MACHINES_MAX: usize = 1024;

/// Identifies one cached value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheKey {
    /// The list of machines.
    Machines,
    /// One machine with its addresses and size.
    Info(MachineName),
    /// Status of OrbStack.
    Status,
    /// Version of `orbctl`.
    Version,
    /// OrbStack's configuration.
    Config,
    /// The default machine.
    Default,
    /// SSH connection settings for machines.
    Ssh,
    /// The raw output of `orbctl` for a read.
    RawQuery(RawQuery),
}

impl CacheKey {
    /// Returns the key whose invalidation also makes this one stale, if there is such a key.
    fn follows(&self) -> Option<Self> {
        match self {
            Self::RawQuery(read) => Some(match read {
                // The read may name a machine by its id, so a change of any machine makes it stale.
                RawQuery::List { .. } | RawQuery::Info { .. } | RawQuery::Logs(..) => Self::Machines,
                RawQuery::Status => Self::Status,
                RawQuery::Version => Self::Version,
                RawQuery::ConfigShow | RawQuery::ConfigGet(_) => Self::Config,
                RawQuery::Default => Self::Default,
                RawQuery::Ssh => Self::Ssh,
            }),
            _ => None,
        }
    }

    /// Returns the kind of read that produces the value.
    pub const fn source(&self) -> Source {
        match self {
            Self::Machines => Source::List,
            Self::Info(_) => Source::Info,
            Self::Status => Source::Status,
            Self::Version => Source::Version,
            Self::Config => Source::ConfigShow,
            Self::Default => Source::Default,
            Self::Ssh => Source::Ssh,
            Self::RawQuery(_) => Source::RawQuery,
        }
    }
}

/// The kind of read that produced an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `list`, for a caller.
    List,
    /// `info`, for a caller.
    Info,
    /// `status`, for a caller.
    Status,
    /// `version`, for a caller.
    Version,
    /// `config show`, for a caller.
    ConfigShow,
    /// `default`, for a caller.
    Default,
    /// `ssh`, for a caller.
    Ssh,
    /// `logs`, for a caller.
    Logs,
    /// A raw read, for a caller.
    RawQuery,
    /// A poll: a read that orbd makes on its own.
    Poll,
}

impl Source {
    /// Returns the name used on the wire: the verb of the query, `raw` or `poll`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Info => "info",
            Self::Status => "status",
            Self::Version => "version",
            Self::ConfigShow => "config_show",
            Self::Default => "default",
            Self::Ssh => "ssh",
            Self::Logs => "logs",
            Self::RawQuery => "raw",
            Self::Poll => "poll",
        }
    }
}

/// The number of invalidations so far. A higher generation is a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(u64);

impl Generation {
    /// Returns the number used on the wire.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A value, with the metadata needed to judge how current it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation<V> {
    /// The observed value.
    pub value: V,
    /// The generation in which the read began.
    pub generation: Generation,
    /// When the read began. The value is at least as recent as this.
    pub observed_at: Moment,
    /// The kind of read.
    pub source: Source,
}

/// A read in progress. [`Cache::begin`] creates it before the read, and [`Cache::record`] consumes it with the result.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the result of a read is lost unless its ticket is recorded"]
pub struct Ticket {
    cache_key: CacheKey,
    generation: Generation,
    turn: u64,
    began: Moment,
    source: Source,
}

impl Ticket {
    /// Marks the read as a poll, which no caller requested.
    pub fn as_poll(self) -> Self {
        Self {
            source: Source::Poll,
            ..self
        }
    }

    /// Returns the generation in which the read began.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the key that is being read.
    pub fn cache_key(&self) -> &CacheKey {
        &self.cache_key
    }
}

/// What [`Cache::record`] did with the result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The result is now the latest observation.
    Stored,
    /// The key became stale after the read began, or the result of a later read is already recorded. The cache is unchanged.
    Superseded,
}

/// The latest observation for each key.
#[derive(Debug)]
pub struct Cache<V> {
    slots: HashMap<CacheKey, Slot<V>>,
    generation: Generation,
    /// The generation in which all [`CacheKey::Info`] keys last became stale at once.
    infos_stale_at: Generation,
    turns: u64,
    /// The turn at which keys were last dropped. Older reads of dropped keys are superseded, because their history is lost.
    forgotten_at: u64,
}

#[derive(Debug)]
struct Slot<V> {
    stale_at: Generation,
    /// The first turn for which the history of this key is complete. Reads from before it are superseded.
    remembered_from: u64,
    latest: Option<Latest<V>>,
}

#[derive(Debug)]
struct Latest<V> {
    turn: u64,
    observation: Observation<V>,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Cache<V> {
    /// Creates an empty cache.
    pub fn new() -> Self {
        Self {
            slots: HashMap::new(),
            generation: Generation::default(),
            infos_stale_at: Generation::default(),
            turns: 0,
            forgotten_at: 0,
        }
    }

    /// Returns the current generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the latest observation unless it is stale, whatever its age.
    pub fn get(&self, cache_key: &CacheKey) -> Option<&Observation<V>> {
        self.last_known(cache_key)
            .filter(|seen| seen.generation >= self.stale_at(cache_key))
    }

    /// Returns the latest observation if it is not stale and younger than `max_age`. A `max_age` of zero always returns `None`.
    pub fn fresh(&self, cache_key: &CacheKey, now: &Moment, max_age: Duration) -> Option<&Observation<V>> {
        self.get(cache_key)
            .filter(|seen| now.age_of(&seen.observed_at) < max_age)
    }

    /// Returns the latest observation, even if it is stale.
    pub fn last_known(&self, cache_key: &CacheKey) -> Option<&Observation<V>> {
        let latest = self.slots.get(cache_key)?.latest.as_ref()?;
        Some(&latest.observation)
    }

    /// Returns all observations; the flag is true if the observation is not stale.
    pub fn entries(&self) -> impl Iterator<Item = (&CacheKey, &Observation<V>, bool)> {
        self.slots.iter().filter_map(|(cache_key, slot)| {
            let seen = &slot.latest.as_ref()?.observation;
            Some((cache_key, seen, seen.generation >= self.stale_at(cache_key)))
        })
    }

    /// Returns a ticket for a read that begins now.
    pub fn begin(&mut self, cache_key: &CacheKey, now: &Moment) -> Ticket {
        let turn = self.turns;
        self.turns += 1;
        Ticket {
            cache_key: cache_key.clone(),
            generation: self.generation,
            turn,
            began: *now,
            source: cache_key.source(),
        }
    }

    /// Returns whether the result of a read in progress would still be current. Only then may an equal read join it.
    pub fn is_current(&self, ticket: &Ticket) -> bool {
        ticket.generation >= self.stale_at(&ticket.cache_key)
            && ticket.turn >= self.remembered_from(&ticket.cache_key)
    }

    /// Stores the result of a read, unless a newer result may exist.
    pub fn record(&mut self, ticket: Ticket, value: V) -> Recorded {
        if !self.is_current(&ticket) {
            return Recorded::Superseded;
        }
        let Ticket {
            cache_key,
            generation,
            turn,
            began,
            source,
        } = ticket;
        let slot = self.slot(cache_key);
        if slot.latest.as_ref().is_some_and(|latest| latest.turn > turn) {
            return Recorded::Superseded;
        }
        let observation = Observation {
            value,
            generation,
            observed_at: began,
            source,
        };
        slot.latest = Some(Latest { turn, observation });
        Recorded::Stored
    }

    /// Makes stale everything that a change of this scope may affect. Returns the new generation.
    ///
    /// Any change may have started OrbStack, so its status is always included.
    pub fn invalidate(&mut self, scope: &Scope) -> Generation {
        self.generation.0 += 1;
        match scope {
            Scope::Machines(names) => {
                // The configuration has keys of each machine, which a new machine adds and a rename renames.
                self.make_stale([
                    CacheKey::Machines,
                    CacheKey::Default,
                    CacheKey::Status,
                    CacheKey::Config,
                ]);
                self.make_stale(names.iter().cloned().map(CacheKey::Info));
            }
            Scope::Configuration => {
                // The list and the details of each machine include settings.
                self.make_stale([
                    CacheKey::Config,
                    CacheKey::Default,
                    CacheKey::Machines,
                    CacheKey::Status,
                ]);
                self.infos_stale_at = self.generation;
            }
            Scope::Everything => self.make_all_but_version_stale(),
        }
        self.generation
    }

    /// Makes everything stale, including the version, which no change of machines affects.
    pub fn invalidate_all(&mut self) -> Generation {
        self.generation.0 += 1;
        self.make_all_but_version_stale();
        self.make_stale([CacheKey::Version]);
        self.generation
    }

    /// Drops the details of machines that no longer exist.
    pub fn retain_machines<'a>(&mut self, names: impl IntoIterator<Item = &'a MachineName>) {
        let names: BTreeSet<&MachineName> = names.into_iter().collect();
        self.forget(|cache_key| matches!(cache_key, CacheKey::Info(name) if !names.contains(name)));
    }

    fn make_all_but_version_stale(&mut self) {
        self.make_stale([
            CacheKey::Machines,
            CacheKey::Status,
            CacheKey::Config,
            CacheKey::Default,
            CacheKey::Ssh,
        ]);
        self.infos_stale_at = self.generation;
    }

    fn make_stale(&mut self, topics: impl IntoIterator<Item = CacheKey>) {
        let generation = self.generation;
        for cache_key in topics {
            // Record this even for a key without a value: a read of it may be in progress.
            self.slot(cache_key).stale_at = generation;
        }
    }

    fn stale_at(&self, cache_key: &CacheKey) -> Generation {
        let own = self
            .slots
            .get(cache_key)
            .map_or(Generation::default(), |slot| slot.stale_at);
        match (cache_key, cache_key.follows()) {
            (CacheKey::Info(_), _) => own.max(self.infos_stale_at),
            (_, Some(other)) => own.max(self.stale_at(&other)),
            (_, None) => own,
        }
    }

    fn remembered_from(&self, cache_key: &CacheKey) -> u64 {
        match (self.slots.get(cache_key), cache_key) {
            (Some(slot), _) => slot.remembered_from,
            (None, CacheKey::Info(_) | CacheKey::RawQuery(_)) => self.forgotten_at,
            // Other keys are never dropped.
            (None, _) => 0,
        }
    }

    fn slot(&mut self, cache_key: CacheKey) -> &mut Slot<V> {
        // Callers can make up names, so the number of keys is limited. Dropping a key costs a read, never a wrong answer.
        if self.slots.len() >= MACHINES_MAX && !self.slots.contains_key(&cache_key) {
            self.forget(|cache_key| matches!(cache_key, CacheKey::Info(_) | CacheKey::RawQuery(_)));
        }
        let remembered_from = self.remembered_from(&cache_key);
        self.slots.entry(cache_key).or_insert(Slot {
            stale_at: Generation::default(),
            remembered_from,
            latest: None,
        })
    }

    fn forget(&mut self, gone: impl Fn(&CacheKey) -> bool) {
        let before = self.slots.len();
        self.slots.retain(|cache_key, _| !gone(cache_key));
        if self.slots.len() < before {
            self.forgotten_at = self.turns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn info(name: &str) -> CacheKey {
        CacheKey::Info(machine(name))
    }

    fn machine(name: &str) -> MachineName {
        name.parse().expect("a valid name")
    }

    fn machines(names: &[&str]) -> Scope {
        Scope::Machines(names.iter().map(|name| machine(name)).collect())
    }

    fn later(moment: &Moment, by: Duration) -> Moment {
        Moment {
            instant: moment.instant + by,
            wall: moment.wall + by,
        }
    }

    /// Returns a cache with a value for each key.
    fn full(now: &Moment) -> Cache<u64> {
        let mut cache = Cache::new();
        for cache_key in topics() {
            let ticket = cache.begin(&cache_key, now);
            assert_eq!(cache.record(ticket, 1), Recorded::Stored);
        }
        cache
    }

    fn printed(name: &str) -> CacheKey {
        CacheKey::RawQuery(RawQuery::Info {
            machine: machine(name),
            format: None,
        })
    }

    fn topics() -> [CacheKey; 10] {
        [
            CacheKey::Machines,
            info("web"),
            info("db"),
            CacheKey::Status,
            CacheKey::Version,
            CacheKey::Config,
            CacheKey::Default,
            CacheKey::Ssh,
            printed("web"),
            CacheKey::RawQuery(RawQuery::ConfigGet("cpu".parse().expect("a key"))),
        ]
    }

    fn check_scope(scope: &Scope, known_after_it: &[CacheKey]) {
        let now = Moment::now();
        let mut cache = full(&now);
        assert!(cache.invalidate(scope) > Generation::default());
        let known: Vec<CacheKey> = topics()
            .into_iter()
            .filter(|cache_key| cache.get(cache_key).is_some())
            .collect();
        assert_eq!(known, known_after_it, "{scope:?}");
        assert!(
            topics()
                .iter()
                .all(|cache_key| cache.last_known(cache_key).is_some())
        );
    }

    #[test]
    fn change_makes_stale_only_what_it_may_affect() {
        check_scope(
            &machines(&["web"]),
            &[info("db"), CacheKey::Version, CacheKey::Ssh],
        );
        // The raw read of `web` becomes stale too: its operand may be the id of any machine.
        check_scope(
            &machines(&["db"]),
            &[info("web"), CacheKey::Version, CacheKey::Ssh],
        );
        check_scope(&Scope::Configuration, &[CacheKey::Version, CacheKey::Ssh]);
        check_scope(&Scope::Everything, &[CacheKey::Version]);
    }

    #[test]
    fn invalidate_all_makes_the_version_stale_too() {
        let mut cache = full(&Moment::now());
        cache.invalidate_all();
        assert!(topics().iter().all(|cache_key| cache.get(cache_key).is_none()));
    }

    #[test]
    fn observation_older_than_max_age_is_not_served() {
        let seen = Moment::now();
        let cache = full(&seen);
        let now = later(&seen, MINUTE);
        assert!(cache.fresh(&CacheKey::Machines, &now, MINUTE * 2).is_some());
        assert!(cache.fresh(&CacheKey::Machines, &now, MINUTE / 2).is_none());
        assert!(cache.fresh(&CacheKey::Machines, &seen, Duration::ZERO).is_none());
    }

    #[test]
    fn observation_ages_while_the_mac_sleeps() {
        let seen = Moment::now();
        let cache = full(&seen);
        let woken = Moment {
            instant: seen.instant,
            wall: seen.wall + MINUTE,
        };
        assert!(cache.fresh(&CacheKey::Status, &woken, MINUTE / 2).is_none());
    }

    #[test]
    fn age_of_an_observation_counts_from_the_beginning_of_its_read() {
        let began = Moment::now();
        let mut cache = Cache::new();
        let ticket = cache.begin(&CacheKey::Machines, &began).as_poll();
        // It ends a minute later, which the cache does not see.
        assert_eq!(cache.record(ticket, "seen"), Recorded::Stored);
        let expected = Observation {
            value: "seen",
            generation: Generation(0),
            observed_at: began,
            source: Source::Poll,
        };
        assert_eq!(cache.get(&CacheKey::Machines), Some(&expected));
        assert!(
            cache
                .fresh(&CacheKey::Machines, &later(&began, MINUTE), MINUTE)
                .is_none()
        );
    }

    #[test]
    fn read_that_began_before_a_change_is_superseded() {
        let now = Moment::now();
        let mut cache = Cache::new();
        let before = cache.begin(&info("web"), &now);
        assert!(cache.is_current(&before));
        cache.invalidate(&machines(&["web"]));
        assert!(!cache.is_current(&before));
        let after = cache.begin(&info("web"), &now);
        assert_eq!(cache.record(after, "after"), Recorded::Stored);
        assert_eq!(cache.record(before, "before"), Recorded::Superseded);
        assert_eq!(cache.get(&info("web")).map(|seen| seen.value), Some("after"));
    }

    #[test]
    fn a_change_of_another_machine_does_not_supersede_a_read() {
        let mut cache = Cache::new();
        let read = cache.begin(&info("web"), &Moment::now());
        cache.invalidate(&machines(&["db"]));
        assert!(cache.is_current(&read));
        assert_eq!(cache.record(read, ()), Recorded::Stored);
    }

    #[test]
    fn later_read_wins_whichever_ends_first() {
        let now = Moment::now();
        let mut cache = Cache::new();
        let first = cache.begin(&CacheKey::Config, &now);
        let second = cache.begin(&CacheKey::Config, &now);
        assert_eq!(cache.record(second, 2), Recorded::Stored);
        assert_eq!(cache.record(first, 1), Recorded::Superseded);
        assert_eq!(cache.get(&CacheKey::Config).map(|seen| seen.value), Some(2));
    }

    #[test]
    fn dropped_machine_is_not_restored_by_an_old_read() {
        let now = Moment::now();
        let mut cache = full(&now);
        let old = cache.begin(&info("web"), &now);
        let other = cache.begin(&info("db"), &now);
        cache.invalidate(&machines(&["web"]));
        cache.retain_machines([&machine("db")]);
        assert!(cache.last_known(&info("web")).is_none());
        assert_eq!(cache.record(old.clone(), 2), Recorded::Superseded);
        assert_eq!(cache.record(other, 2), Recorded::Stored);
        let new = cache.begin(&info("web"), &now);
        assert_eq!(cache.record(new, 3), Recorded::Stored);
        assert!(!cache.is_current(&old), "nobody may join it either");
    }

    #[test]
    fn made_up_names_do_not_exceed_the_key_limit() {
        let mut cache = full(&Moment::now());
        for n in 0..3 * MACHINES_MAX {
            cache.invalidate(&machines(&[&format!("m{n}")]));
            let ticket = cache.begin(&printed(&format!("p{n}")), &Moment::now());
            let _ = cache.record(ticket, 1);
        }
        assert!(cache.slots.len() <= MACHINES_MAX);
        assert!(cache.get(&CacheKey::Version).is_some());
    }

    const STEPS: u64 = 1_000_000;

    /// A plain model of one key. Times are step numbers.
    #[derive(Default)]
    struct Model {
        stale_at: u64,
        forgotten_at: u64,
        /// When the read whose result is stored began.
        stored: Option<u64>,
    }

    struct Read {
        ticket: Ticket,
        cache_key: usize,
        began: u64,
    }

    fn random(dice: &mut u64, below: usize) -> usize {
        // Xorshift.
        *dice ^= *dice << 13;
        *dice ^= *dice >> 7;
        *dice ^= *dice << 17;
        usize::try_from(*dice >> 33).expect("31 bits") % below
    }

    /// A million random reads, changes and lookups, compared with the model. A read that began at some step may be stored as long
    /// as nothing made its key stale at a later step.
    #[test]
    fn random_operations_never_serve_a_stale_value() {
        #[expect(
            clippy::disallowed_methods,
            reason = "the seed to repeat a run is read from the environment"
        )]
        let seed = std::env::var("ORBD_TEST_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"));
        println!("ORBD_TEST_SEED={seed} repeats this run");
        let mut dice = seed | 1;
        let topics = topics();
        let mut models: [Model; 10] = Default::default();
        let mut cache: Cache<u64> = Cache::new();
        let mut reads: Vec<Read> = Vec::new();
        let mut stored = 0;
        let now = Moment::now();
        for step in 1..=STEPS {
            match random(&mut dice, 20) {
                0..7 if reads.len() < 50 => {
                    let cache_key = random(&mut dice, topics.len());
                    let ticket = cache.begin(&topics[cache_key], &now);
                    let began = step;
                    reads.push(Read {
                        ticket,
                        cache_key,
                        began,
                    });
                }
                7..14 if !reads.is_empty() => {
                    let chosen = random(&mut dice, reads.len());
                    let Read {
                        ticket,
                        cache_key,
                        began,
                    } = reads.swap_remove(chosen);
                    let model = &mut models[cache_key];
                    let current = model.stale_at < began;
                    let latest = model.stored.is_none_or(|other| other < began);
                    // After its key was dropped, a read may be superseded, to be safe.
                    let must = current && latest && model.forgotten_at < began;
                    assert!(cache.is_current(&ticket) <= current, "step {step}");
                    let recorded = cache.record(ticket, began);
                    if must {
                        assert_eq!(recorded, Recorded::Stored, "step {step}");
                    }
                    if recorded == Recorded::Stored {
                        assert!(current && latest, "step {step}");
                        model.stored = Some(began);
                        stored += 1;
                    }
                }
                14 | 15 => {
                    let (scope, stale): (Scope, &[usize]) = match random(&mut dice, 6) {
                        0 => (machines(&["web"]), &[0, 1, 3, 5, 6, 8, 9]),
                        1 => (machines(&["db"]), &[0, 2, 3, 5, 6, 8, 9]),
                        2 => (machines(&["db", "web"]), &[0, 1, 2, 3, 5, 6, 8, 9]),
                        3 => (machines(&["mail"]), &[0, 3, 5, 6, 8, 9]),
                        4 => (Scope::Configuration, &[0, 1, 2, 3, 5, 6, 8, 9]),
                        _ => (Scope::Everything, &[0, 1, 2, 3, 5, 6, 7, 8, 9]),
                    };
                    let before = cache.generation();
                    assert!(cache.invalidate(&scope) > before);
                    for &cache_key in stale {
                        models[cache_key].stale_at = step;
                    }
                }
                16 if random(&mut dice, 10) == 0 => {
                    cache.invalidate_all();
                    for model in &mut models {
                        model.stale_at = step;
                    }
                }
                17 if random(&mut dice, 4) == 0 => {
                    cache.retain_machines([&machine("db")]);
                    // Only the keys of machines that no longer exist may be dropped.
                    models[1].stored = None;
                    models[1].forgotten_at = step;
                }
                _ => {}
            }
            for (cache_key, model) in topics.iter().zip(&models) {
                let told = cache.fresh(cache_key, &now, MINUTE).map(|seen| seen.value);
                assert_eq!(
                    told,
                    model.stored.filter(|&began| began > model.stale_at),
                    "step {step}"
                );
                assert_eq!(cache.last_known(cache_key).map(|seen| seen.value), model.stored);
            }
        }
        assert!(stored > STEPS / 20, "{stored} are too few to prove anything");
        println!("{STEPS} steps, {stored} reads kept");
    }
}
