//! Whose turn it is among those that are ready: priority first, then clients in rotation; waiting ages.
//!
//! ```text
//! interactive   client 7: ▪            ─┐ a client goes to the end of its rotation each time it is served,
//!               client 2: ▪▪▪          ─┘ so a thousand jobs of one do not hold back one of another
//!    ▲ 30 s     ...
//! normal        client 2: ▪▪▪▪▪▪▪▪▪▪▪
//!    ▲ 60 s     ...
//! background    client 9: ▪▪
//! ```
//!
//! It is the *client* that ages within a level, not each of its jobs: one that has not been served for a while has its first
//! job raised by one level, and waits anew with the rest. If each job aged by itself, a client with a thousand old jobs would
//! soon have a thousand interactive ones, and hold back everybody.
//!
//! Nobody starves: the first job of a client reaches the top level after [`BACKGROUND_PATIENCE`] and [`NORMAL_PATIENCE`], and
//! is there served within one turn of the rotation, which newcomers join at its end.
//!
//! What takes turns is generic: jobs within a group, and groups within a pool.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Seq;
use crate::job::{ClientId, Priority};

/// How long a client's background jobs go unserved before the first of them counts as normal.
pub(super) const BACKGROUND_PATIENCE: Duration = Duration::from_secs(60);

/// How long a client's normal jobs go unserved before the first of them counts as interactive.
pub(super) const NORMAL_PATIENCE: Duration = Duration::from_secs(30);

/// What decides when an item's turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) priority: Priority,
    pub(super) client: ClientId,
    pub(super) rank: Rank,
}

/// The order among the items of one client, each of which has a rank of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Whether no other client waits for it to go; if one does, it goes first.
    pub(super) alone: bool,
    pub(super) seq: Seq,
}

/// Items that take turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// By level, interactive first.
    levels: [Rotation<T>; 3],
    /// How many items have each priority, at whatever level they are by now.
    by_priority: [usize; 3],
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            levels: [
                Rotation::new(None),
                Rotation::new(Some(NORMAL_PATIENCE)),
                Rotation::new(Some(BACKGROUND_PATIENCE)),
            ],
            by_priority: [0; 3],
        }
    }
}

impl<T> Turns<T> {
    /// Adds an item, which waits in the level of its priority from `now` on.
    pub(super) fn insert(&mut self, standing: Standing, item: T, now: Instant) {
        self.by_priority[standing.priority as usize] += 1;
        self.levels[standing.priority as usize].insert(standing, item, now);
    }

    /// Takes an item out of turn. Its client keeps its place in the rotation if it has others.
    pub(super) fn remove(&mut self, standing: Standing) -> Option<T> {
        let removed = self.level_of(standing)?.remove(standing);
        self.by_priority[standing.priority as usize] -= usize::from(removed.is_some());
        removed
    }

    /// Puts an item in another's stead. The client keeps its place in the rotation if client and priority are the same.
    pub(super) fn replace(&mut self, before: Standing, standing: Standing, item: T, now: Instant) {
        let same_turn = (before.client, before.priority) == (standing.client, standing.priority);
        if same_turn && let Some(level) = self.level_of(before) {
            level.insert(standing, item, now);
            level.remove(before);
        } else {
            self.remove(before);
            self.insert(standing, item, now);
        }
    }

    /// Returns the level of an item: that of its priority or, if it has aged, one above.
    fn level_of(&mut self, standing: Standing) -> Option<&mut Rotation<T>> {
        self.levels[..=standing.priority as usize]
            .iter_mut()
            .find(|level| level.has(standing))
    }

    /// Returns the item whose turn it is, and how it stands.
    pub(super) fn first(&self) -> Option<(Standing, &T)> {
        self.levels.iter().find_map(Rotation::first)
    }

    /// Takes the item whose turn it is; its client goes to the end of the rotation.
    pub(super) fn take_first(&mut self, now: Instant) -> Option<T> {
        let (standing, item) = self.levels.iter_mut().find_map(|level| level.take_first(now))?;
        self.by_priority[standing.priority as usize] -= 1;
        Some(item)
    }

    /// Returns how all the items together stand, as one that takes turns with others like it: with the best priority that any
    /// of them has, as the client whose turn it is.
    pub(super) fn standing(&self) -> Option<Standing> {
        let (first, _) = self.first()?;
        let [interactive, normal, _] = self.by_priority;
        let others_wait = self
            .levels
            .iter()
            .any(|level| level.has_others_than(first.client));
        Some(Standing {
            priority: match (interactive, normal) {
                (1.., _) => Priority::Interactive,
                (0, 1..) => Priority::Normal,
                (0, 0) => Priority::Background,
            },
            client: first.client,
            rank: Rank {
                alone: !others_wait,
                ..first.rank
            },
        })
    }

    /// Raises the first item of each client that has gone unserved for too long.
    pub(super) fn age(&mut self, now: Instant) {
        for level in 1..self.levels.len() {
            while let Some((standing, item)) = self.levels[level].take_aged(now) {
                self.levels[level - 1].insert(standing, item, now);
            }
        }
    }

    /// Returns when [`Turns::age`] has something to do.
    pub(super) fn ages_at(&self) -> Option<Instant> {
        self.levels.iter().filter_map(Rotation::ages_at).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.backlogs.is_empty())
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.levels
            .iter()
            .flat_map(|level| level.backlogs.values())
            .flat_map(|backlog| backlog.items.values())
            .map(|(_, item)| item)
    }
}

/// The clients of one level, in the order in which they are served.
#[derive(Debug)]
struct Rotation<T> {
    backlogs: HashMap<ClientId, Backlog<T>>,
    order: BTreeMap<u64, ClientId>,
    turns_given: u64,
    /// How long a client is content to go unserved; none on the top level, where there is nothing to rise to.
    patience: Option<Duration>,
    impatient_at: BTreeSet<(Instant, ClientId)>,
}

/// What one client has in one level; never empty.
#[derive(Debug)]
struct Backlog<T> {
    turn: u64,
    unserved_since: Instant,
    items: Items<T>,
}

type Items<T> = BTreeMap<Rank, (Standing, T)>;

impl<T> Rotation<T> {
    fn new(patience: Option<Duration>) -> Self {
        Self {
            backlogs: HashMap::new(),
            order: BTreeMap::new(),
            turns_given: 0,
            patience,
            impatient_at: BTreeSet::new(),
        }
    }

    fn insert(&mut self, standing: Standing, item: T, now: Instant) {
        let Standing { client, rank, .. } = standing;
        if let Some(backlog) = self.backlogs.get_mut(&client) {
            backlog.items.insert(rank, (standing, item));
        } else {
            self.line_up(client, BTreeMap::from([(rank, (standing, item))]), now);
        }
    }

    /// Puts a client with all that it has at the end of the rotation.
    fn line_up(&mut self, client: ClientId, items: Items<T>, now: Instant) {
        if items.is_empty() {
            return;
        }
        let turn = self.turns_given;
        self.turns_given += 1;
        self.order.insert(turn, client);
        self.impatient_at
            .extend(self.patience.map(|patience| (now + patience, client)));
        let backlog = Backlog {
            turn,
            unserved_since: now,
            items,
        };
        let before = self.backlogs.insert(client, backlog);
        debug_assert!(before.is_none(), "a client has one place in a rotation");
    }

    /// Takes a client with all that it has out of the rotation.
    fn step_out(&mut self, client: ClientId) -> Option<Items<T>> {
        let backlog = self.backlogs.remove(&client)?;
        self.order.remove(&backlog.turn);
        if let Some(patience) = self.patience {
            self.impatient_at
                .remove(&(backlog.unserved_since + patience, client));
        }
        Some(backlog.items)
    }

    fn remove(&mut self, standing: Standing) -> Option<T> {
        let backlog = self.backlogs.get_mut(&standing.client)?;
        let (_, item) = backlog.items.remove(&standing.rank)?;
        if backlog.items.is_empty() {
            self.step_out(standing.client);
        }
        Some(item)
    }

    fn has(&self, standing: Standing) -> bool {
        self.backlogs
            .get(&standing.client)
            .is_some_and(|backlog| backlog.items.contains_key(&standing.rank))
    }

    fn first(&self) -> Option<(Standing, &T)> {
        let (_, client) = self.order.first_key_value()?;
        let (standing, item) = self.backlogs[client].items.values().next()?;
        Some((*standing, item))
    }

    fn take_first(&mut self, now: Instant) -> Option<(Standing, T)> {
        let (_, &client) = self.order.first_key_value()?;
        let mut items = self.step_out(client)?;
        let (_, first) = items.pop_first()?;
        self.line_up(client, items, now);
        Some(first)
    }

    /// Takes the first item of a client that has gone unserved for too long. The client waits anew with the rest.
    fn take_aged(&mut self, now: Instant) -> Option<(Standing, T)> {
        let patience = self.patience?;
        let &(at, client) = self.impatient_at.first()?;
        if at > now {
            return None;
        }
        self.impatient_at.pop_first();
        let backlog = self.backlogs.get_mut(&client)?;
        let (_, first) = backlog.items.pop_first()?;
        if backlog.items.is_empty() {
            self.step_out(client);
        } else {
            backlog.unserved_since = now;
            self.impatient_at.insert((now + patience, client));
        }
        Some(first)
    }

    fn has_others_than(&self, client: ClientId) -> bool {
        self.backlogs.len() > usize::from(self.backlogs.contains_key(&client))
    }

    fn ages_at(&self) -> Option<Instant> {
        self.impatient_at.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::{Random, Repeat, seed_or};
    use super::*;
    use crate::clock::Moment;

    const LEVELS: [Priority; 3] = [Priority::Interactive, Priority::Normal, Priority::Background];
    const PATIENCE: [(usize, Duration); 2] = [(1, NORMAL_PATIENCE), (2, BACKGROUND_PATIENCE)];

    fn standing(priority: Priority, client: u64, seq: u64) -> Standing {
        Standing {
            priority,
            client: ClientId(client),
            rank: Rank {
                alone: true,
                seq: Seq(seq),
            },
        }
    }

    #[test]
    fn clients_take_turns_and_a_newcomer_joins_at_the_end() {
        let now = Moment::now().instant;
        let mut turns = Turns::default();
        for (client, seq) in [(1, 1), (1, 2), (1, 3), (2, 4)] {
            turns.insert(standing(Priority::Normal, client, seq), seq, now);
        }
        assert_eq!(turns.take_first(now), Some(1));
        turns.insert(standing(Priority::Normal, 3, 5), 5, now);
        let order: Vec<u64> = std::iter::from_fn(|| turns.take_first(now)).collect();
        assert_eq!(order, [4, 2, 5, 3]);
    }

    #[test]
    fn what_others_wait_for_goes_before_the_rest_of_a_client() {
        let now = Moment::now().instant;
        let mut turns = Turns::default();
        for seq in 1..=3 {
            turns.insert(standing(Priority::Normal, 1, seq), seq, now);
        }
        let before = standing(Priority::Normal, 1, 3);
        let mut wanted = before;
        wanted.rank.alone = false;
        turns.replace(before, wanted, 3, now);
        let order: Vec<u64> = std::iter::from_fn(|| turns.take_first(now)).collect();
        assert_eq!(order, [3, 1, 2]);
    }

    #[test]
    fn an_item_that_is_replaced_keeps_its_clients_place_in_the_rotation() {
        let now = Moment::now().instant;
        let mut turns = Turns::default();
        turns.insert(standing(Priority::Normal, 1, 1), 1, now);
        turns.insert(standing(Priority::Normal, 2, 2), 2, now);
        turns.replace(
            standing(Priority::Normal, 1, 1),
            standing(Priority::Normal, 1, 3),
            3,
            now,
        );
        assert_eq!(turns.take_first(now), Some(3));
    }

    /// The same in vectors: per level the clients in the order of their turns, each with its items in order.
    #[derive(Default)]
    struct Model {
        levels: [Vec<ModelClient>; 3],
    }

    struct ModelClient {
        client: u64,
        since: Instant,
        items: Vec<(Priority, u64)>,
    }

    impl Model {
        fn insert(&mut self, level: usize, client: u64, item: (Priority, u64), now: Instant) {
            let clients = &mut self.levels[level];
            match clients.iter_mut().find(|other| other.client == client) {
                Some(known) => {
                    known.items.push(item);
                    known.items.sort_unstable_by_key(|&(_, seq)| seq);
                }
                None => clients.push(ModelClient {
                    client,
                    since: now,
                    items: vec![item],
                }),
            }
        }

        fn remove(&mut self, seq: u64) {
            for level in &mut self.levels {
                for client in &mut *level {
                    client.items.retain(|&(_, other)| other != seq);
                }
                level.retain(|client| !client.items.is_empty());
            }
        }

        fn take_first(&mut self, now: Instant) -> Option<u64> {
            let level = self.levels.iter_mut().find(|level| !level.is_empty())?;
            let mut client = level.remove(0);
            let (_, seq) = client.items.remove(0);
            if !client.items.is_empty() {
                client.since = now;
                level.push(client);
            }
            Some(seq)
        }

        fn age(&mut self, now: Instant) {
            for (level, patience) in PATIENCE {
                let mut impatient: Vec<(Instant, u64)> = self.levels[level]
                    .iter()
                    .filter(|client| client.since + patience <= now)
                    .map(|client| (client.since, client.client))
                    .collect();
                impatient.sort_unstable();
                for (_, id) in impatient {
                    let clients = &mut self.levels[level];
                    let place = clients
                        .iter()
                        .position(|client| client.client == id)
                        .expect("it is there");
                    clients[place].since = now;
                    let item = clients[place].items.remove(0);
                    clients.retain(|client| !client.items.is_empty());
                    self.insert(level - 1, id, item, now);
                }
            }
        }

        fn items(&self) -> impl Iterator<Item = (u64, Priority, u64)> {
            let clients = self.levels.iter().flatten();
            clients.flat_map(|client| {
                client
                    .items
                    .iter()
                    .map(|&(priority, seq)| (client.client, priority, seq))
            })
        }
    }

    #[test]
    fn turns_agree_with_a_model_made_of_vectors() {
        let seed = seed_or(5);
        let mut repeat = Repeat { seed, step: 0 };
        let mut random = Random(seed);
        let mut now = Moment::now().instant;
        let mut turns = Turns::default();
        let mut model = Model::default();
        for step in 0..100_000 {
            repeat.step = step;
            match random.below(8) {
                0..3 if model.items().count() < 40 => {
                    let level = random.index(3);
                    let client = random.below(5);
                    turns.insert(standing(LEVELS[level], client, step), step, now);
                    model.insert(level, client, (LEVELS[level], step), now);
                }
                3..5 => assert_eq!(turns.take_first(now), model.take_first(now)),
                5 => {
                    let chosen = random.index(40);
                    let item = model.items().nth(chosen);
                    if let Some((client, priority, seq)) = item {
                        assert_eq!(turns.remove(standing(priority, client, seq)), Some(seq));
                        model.remove(seq);
                    }
                }
                6 => now += Duration::from_secs(random.below(40)),
                _ => {
                    turns.age(now);
                    model.age(now);
                }
            }
            let best = model.items().map(|(_, priority, _)| priority).min();
            assert_eq!(turns.standing().map(|together| together.priority), best);
            assert_eq!(turns.is_empty(), best.is_none());
            assert!(
                turns.ages_at().is_some() || turns.levels[1..].iter().all(|level| level.backlogs.is_empty())
            );
        }
    }
}
