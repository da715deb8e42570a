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
//! What takes turns is generic: jobs within a group, and groups (each for its first job) within a pool.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Seq;
use crate::job::{ClientId, Priority};

/// How long a client's background jobs go unserved before the first of them counts as normal.
pub(super) const BACKGROUND_PATIENCE: Duration = Duration::from_secs(60);

/// How long a client's normal jobs go unserved before the first of them counts as interactive.
pub(super) const NORMAL_PATIENCE: Duration = Duration::from_secs(30);

/// Where a job stands: what decides when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) priority: Priority,
    pub(super) client: ClientId,
    pub(super) seq: Seq,
}

/// Items that take turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// By level, interactive first.
    levels: [Rotation<T>; 3],
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            levels: [
                Rotation::new(None),
                Rotation::new(Some(NORMAL_PATIENCE)),
                Rotation::new(Some(BACKGROUND_PATIENCE)),
            ],
        }
    }
}

impl<T> Turns<T> {
    /// Adds an item, which waits in the level of its priority from `now` on.
    pub(super) fn insert(&mut self, standing: Standing, item: T, now: Instant) {
        self.levels[standing.priority as usize].insert(standing.client, standing.seq, item, now);
    }

    /// Takes an item out of turn. Its client keeps its place in the rotation.
    pub(super) fn remove(&mut self, standing: Standing) -> Option<T> {
        // It is in the level of its priority or, aged, in one above.
        self.levels[..=standing.priority as usize]
            .iter_mut()
            .rev()
            .find_map(|level| level.remove(standing.client, standing.seq))
    }

    /// Returns the item whose turn it is.
    pub(super) fn first(&self) -> Option<&T> {
        self.levels.iter().find_map(Rotation::first)
    }

    /// Takes the item whose turn it is; its client goes to the end of the rotation.
    pub(super) fn take_first(&mut self, now: Instant) -> Option<T> {
        self.levels.iter_mut().find_map(|level| level.take_first(now))
    }

    /// Raises the first item of each client that has gone unserved for too long.
    pub(super) fn age(&mut self, now: Instant) {
        for level in 1..self.levels.len() {
            while let Some((client, seq, item)) = self.levels[level].take_aged(now) {
                self.levels[level - 1].insert(client, seq, item, now);
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
    items: BTreeMap<Seq, T>,
}

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

    fn insert(&mut self, client: ClientId, seq: Seq, item: T, now: Instant) {
        if let Some(backlog) = self.backlogs.get_mut(&client) {
            backlog.items.insert(seq, item);
        } else {
            self.line_up(client, BTreeMap::from([(seq, item)]), now);
        }
    }

    /// Puts a client with all that it has at the end of the rotation.
    fn line_up(&mut self, client: ClientId, items: BTreeMap<Seq, T>, now: Instant) {
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
    fn step_out(&mut self, client: ClientId) -> Option<BTreeMap<Seq, T>> {
        let backlog = self.backlogs.remove(&client)?;
        self.order.remove(&backlog.turn);
        if let Some(patience) = self.patience {
            self.impatient_at
                .remove(&(backlog.unserved_since + patience, client));
        }
        Some(backlog.items)
    }

    fn remove(&mut self, client: ClientId, seq: Seq) -> Option<T> {
        let backlog = self.backlogs.get_mut(&client)?;
        let item = backlog.items.remove(&seq)?;
        if backlog.items.is_empty() {
            self.step_out(client);
        }
        Some(item)
    }

    fn first(&self) -> Option<&T> {
        let (_, client) = self.order.first_key_value()?;
        self.backlogs[client].items.values().next()
    }

    fn take_first(&mut self, now: Instant) -> Option<T> {
        let (_, &client) = self.order.first_key_value()?;
        let mut items = self.step_out(client)?;
        let first = items.pop_first();
        self.line_up(client, items, now);
        first.map(|(_, item)| item)
    }

    fn take_aged(&mut self, now: Instant) -> Option<(ClientId, Seq, T)> {
        let &(at, client) = self.impatient_at.first()?;
        if at > now {
            return None;
        }
        self.impatient_at.pop_first();
        let backlog = self.backlogs.get_mut(&client)?;
        let (seq, item) = backlog.items.pop_first()?;
        if backlog.items.is_empty() {
            self.step_out(client);
        } else {
            backlog.unserved_since = now;
            self.impatient_at
                .extend(self.patience.map(|patience| (now + patience, client)));
        }
        Some((client, seq, item))
    }

    fn ages_at(&self) -> Option<Instant> {
        self.impatient_at.first().map(|&(at, _)| at)
    }
}
