//! What is known of machines and of OrbStack, and whether it may still be told.
//!
//! A fact is an [`Observation`] of a [`CacheKey`]. It is told until a change makes its topic stale or until it is too old for the
//! one who asks. Nothing here reads a clock or runs anything; what the values are is not known either.
//!
//! Time is counted twice. The *generation* rises with each invalidation; a topic remembers at which it was last made stale.
//! A *ticket* is taken when a read begins and remembers the generation of that moment:
//!
//! ```text
//! generation    7        7          8              8            8
//!            begin A  begin B   invalidate      begin C      record A, B: superseded, they may have looked before the
//!                                                            change; record C: stored
//! ```
//!
//! So a read that began before a change never overwrites what came after it, however late it ends. Of two reads in one
//! generation the one that began later wins, in whichever order they end.
//!
//! What was made stale is kept as [`Cache::last_known`], to be told with a warning while `orbctl` is sick.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::clock::Moment;
use crate::machine::MachineName;
use crate::operation::{RawQuery, Scope};

/// Machines of which something is remembered; the list says which exist, so more than this means that nobody told us.
const MACHINES_MAX: usize = 1024;

/// What there is to know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheKey {
    /// The list of machines.
    Machines,
    /// One machine with its addresses and size.
    Info(MachineName),
    /// How OrbStack is.
    Status,
    /// Which `orbctl` this is.
    Version,
    /// The configuration.
    Config,
    /// The default machine.
    Default,
    /// How to reach machines over SSH.
    Ssh,
    /// What `orbctl` prints for a read.
    RawQuery(RawQuery),
}

impl CacheKey {
    /// Returns the topic with which this one becomes stale, where that is another.
    fn follows(&self) -> Option<Self> {
        match self {
            Self::RawQuery(read) => Some(match read {
                // A machine may be named by its id there, so a change of any makes it stale.
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

    /// Returns the kind of read that tells it.
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

/// Where a fact comes from.
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
    /// Any read in `orbctl`'s own words, for a caller.
    RawQuery,
    /// A look that no caller asked for.
    Poll,
}

impl Source {
    /// Returns the name used on the wire: that of the query, or `poll`.
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

/// How many times something was made stale; the higher, the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(u64);

impl Generation {
    /// Returns the number for the wire.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A fact, and what one must know to judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation<V> {
    /// What was seen.
    pub value: V,
    /// The generation in which the read that saw it began.
    pub generation: Generation,
    /// When that read began: what it saw is at least as new.
    pub observed_at: Moment,
    /// What kind of read it was.
    pub source: Source,
}

/// A read that is under way. Taken before it begins, given back with what it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a read whose ticket is not recorded leaves nothing behind"]
pub struct Ticket {
    cache_key: CacheKey,
    generation: Generation,
    turn: u64,
    began: Moment,
    source: Source,
}

impl Ticket {
    /// Marks the read as one that no caller asked for.
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

    /// Returns what is read.
    pub fn cache_key(&self) -> &CacheKey {
        &self.cache_key
    }
}

/// What became of what a read saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is the latest known.
    Stored,
    /// Its topic was made stale after it began, or a later read was recorded before it; it changed nothing.
    Superseded,
}

/// The latest observation of each topic.
#[derive(Debug)]
pub struct Cache<V> {
    slots: HashMap<CacheKey, Slot<V>>,
    generation: Generation,
    /// When all of [`CacheKey::Info`] were last made stale at once.
    infos_stale_at: Generation,
    turns: u64,
    /// The turn at which machines were last forgotten, and with them what superseded reads of them.
    forgotten_at: u64,
}

#[derive(Debug)]
struct Slot<V> {
    stale_at: Generation,
    /// The turn from which on it is known what superseded a read of this topic.
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
    /// Makes a cache that knows nothing.
    pub fn new() -> Self {
        Self {
            slots: HashMap::new(),
            generation: Generation::default(),
            infos_stale_at: Generation::default(),
            turns: 0,
            forgotten_at: 0,
        }
    }

    /// Returns the generation of this moment.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the latest observation unless it was made stale, however old it is.
    pub fn get(&self, cache_key: &CacheKey) -> Option<&Observation<V>> {
        self.last_known(cache_key)
            .filter(|seen| seen.generation >= self.stale_at(cache_key))
    }

    /// Returns the latest observation if it was not made stale and is younger than `max_age`. With zero there is none.
    pub fn fresh(&self, cache_key: &CacheKey, now: &Moment, max_age: Duration) -> Option<&Observation<V>> {
        self.get(cache_key)
            .filter(|seen| now.age_of(&seen.observed_at) < max_age)
    }

    /// Returns the latest observation even if it was made stale.
    pub fn last_known(&self, cache_key: &CacheKey) -> Option<&Observation<V>> {
        let latest = self.slots.get(cache_key)?.latest.as_ref()?;
        Some(&latest.observation)
    }

    /// Returns everything that is kept, and whether it may still be answered.
    pub fn entries(&self) -> impl Iterator<Item = (&CacheKey, &Observation<V>, bool)> {
        self.slots.iter().filter_map(|(cache_key, slot)| {
            let seen = &slot.latest.as_ref()?.observation;
            Some((cache_key, seen, seen.generation >= self.stale_at(cache_key)))
        })
    }

    /// Takes a ticket for a read that begins now.
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

    /// Says whether nothing made the topic of a read under way stale since it began. Only then may an equal read join it.
    pub fn is_current(&self, ticket: &Ticket) -> bool {
        ticket.generation >= self.stale_at(&ticket.cache_key)
            && ticket.turn >= self.remembered_from(&ticket.cache_key)
    }

    /// Keeps what a read saw, unless it may be older than what is known.
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

    /// Makes everything stale that a change of this scope may change. Returns the generation that begins with it.
    ///
    /// Any change may have woken OrbStack, so its status is always among it.
    pub fn invalidate(&mut self, scope: &Scope) -> Generation {
        self.generation.0 += 1;
        match scope {
            Scope::Machines(names) => {
                self.make_stale([CacheKey::Machines, CacheKey::Default, CacheKey::Status]);
                self.make_stale(names.iter().cloned().map(CacheKey::Info));
            }
            Scope::Configuration => {
                // The list and each machine show settings too.
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

    /// Makes everything stale, also the version, which no change of machines touches.
    pub fn invalidate_all(&mut self) -> Generation {
        self.generation.0 += 1;
        self.make_all_but_version_stale();
        self.make_stale([CacheKey::Version]);
        self.generation
    }

    /// Forgets machines that are no longer there.
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
            // A topic of which nothing is known is remembered as well: a read of it may be under way.
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
            // Other topics are never forgotten.
            (None, _) => 0,
        }
    }

    fn slot(&mut self, cache_key: CacheKey) -> &mut Slot<V> {
        // What callers make up must not fill the memory. Forgetting costs a read, never a wrong answer.
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

    /// A cache in which each topic is known.
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
    fn a_change_makes_stale_what_it_may_change_and_nothing_else() {
        check_scope(
            &machines(&["web"]),
            &[
                info("db"),
                CacheKey::Version,
                CacheKey::Config,
                CacheKey::Ssh,
                topics()[9].clone(),
            ],
        );
        // It may be the id of any.
        check_scope(
            &machines(&["db"]),
            &[
                info("web"),
                CacheKey::Version,
                CacheKey::Config,
                CacheKey::Ssh,
                topics()[9].clone(),
            ],
        );
        check_scope(&Scope::Configuration, &[CacheKey::Version, CacheKey::Ssh]);
        check_scope(&Scope::Everything, &[CacheKey::Version]);
    }

    #[test]
    fn a_request_to_forget_makes_the_version_stale_too() {
        let mut cache = full(&Moment::now());
        cache.invalidate_all();
        assert!(topics().iter().all(|cache_key| cache.get(cache_key).is_none()));
    }

    #[test]
    fn a_caller_gets_nothing_older_than_it_accepts() {
        let seen = Moment::now();
        let cache = full(&seen);
        let now = later(&seen, MINUTE);
        assert!(cache.fresh(&CacheKey::Machines, &now, MINUTE * 2).is_some());
        assert!(cache.fresh(&CacheKey::Machines, &now, MINUTE / 2).is_none());
        assert!(cache.fresh(&CacheKey::Machines, &seen, Duration::ZERO).is_none());
    }

    #[test]
    fn after_sleep_all_is_old() {
        let seen = Moment::now();
        let cache = full(&seen);
        let woken = Moment {
            instant: seen.instant,
            wall: seen.wall + MINUTE,
        };
        assert!(cache.fresh(&CacheKey::Status, &woken, MINUTE / 2).is_none());
    }

    #[test]
    fn an_observation_is_as_old_as_the_beginning_of_its_read() {
        let began = Moment::now();
        let mut cache = Cache::new();
        let ticket = cache.begin(&CacheKey::Machines, &began).as_poll();
        // It ends a minute later; nobody is told of that.
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
    fn a_read_that_began_before_a_change_never_counts_after_it() {
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
    fn of_two_reads_the_one_that_began_later_wins() {
        let now = Moment::now();
        let mut cache = Cache::new();
        let first = cache.begin(&CacheKey::Config, &now);
        let second = cache.begin(&CacheKey::Config, &now);
        assert_eq!(cache.record(second, 2), Recorded::Stored);
        assert_eq!(cache.record(first, 1), Recorded::Superseded);
        assert_eq!(cache.get(&CacheKey::Config).map(|seen| seen.value), Some(2));
    }

    #[test]
    fn a_machine_that_is_gone_is_forgotten_and_no_old_read_brings_it_back() {
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
    fn names_that_callers_make_up_do_not_fill_the_memory() {
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

    /// A plain model of one topic: each read and each change with its place in history.
    #[derive(Default)]
    struct Model {
        stale_at: u64,
        forgotten_at: u64,
        /// When the read that is stored began.
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

    /// A million random reads, changes and questions against the model. The history is the step number; a read that began at a
    /// step may count as long as nothing made its topic stale at a later one.
    #[test]
    fn whatever_happens_nothing_stale_is_told() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a seed to repeat a run comes from outside"
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
                    // After its machine was forgotten a read may be turned away, to be safe.
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
                        0 => (machines(&["web"]), &[0, 1, 3, 6, 8]),
                        1 => (machines(&["db"]), &[0, 2, 3, 6, 8]),
                        2 => (machines(&["db", "web"]), &[0, 1, 2, 3, 6, 8]),
                        3 => (machines(&["mail"]), &[0, 3, 6, 8]),
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
                    // Whatever is forgotten, only machines that are gone may feel it.
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
