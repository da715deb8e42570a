//! A fair queue of ready items: clients take turns, and each client's own items are ordered by [`OrderKey`].
//!
//! ```text
//! client 7: ▪            ─┐ a client moves to the end of the rotation each time it is served,
//! client 2: ▪▪▪▪▪▪▪▪      ─┘ so a thousand jobs of one client do not delay one job of another
//! ```
//!
//! No client starves: each is served once per rotation, and new clients join at its end. Waiting time has no influence, so the
//! order needs no clock.
//!
//! Items are generic: they are the jobs of a group, or the groups of a pool.

use std::collections::{BTreeMap, HashMap};

use super::Seq;
use crate::job::ClientId;

/// The position of an item in a fair queue: its client, and its order among that client's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SchedulingKey {
    pub(super) client: ClientId,
    pub(super) rank: OrderKey,
}

/// The order of the items of one client. Each item of a client has a different key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OrderKey {
    /// `false` if the item is a group in which other clients have jobs too. Such items go first.
    pub(super) alone: bool,
    pub(super) seq: Seq,
}

/// A fair queue: the items of each client, and the clients in the order in which they are served.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    backlogs: HashMap<ClientId, Backlog<T>>,
    order: BTreeMap<u64, ClientId>,
    next_turn: u64,
}

/// The items of one client; never empty.
#[derive(Debug)]
struct Backlog<T> {
    turn: u64,
    items: Items<T>,
}

type Items<T> = BTreeMap<OrderKey, T>;

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            backlogs: HashMap::new(),
            order: BTreeMap::new(),
            next_turn: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Adds an item. A client without items joins the rotation at its end.
    pub(super) fn insert(&mut self, standing: SchedulingKey, item: T) {
        let SchedulingKey { client, rank } = standing;
        if let Some(backlog) = self.backlogs.get_mut(&client) {
            backlog.items.insert(rank, item);
        } else {
            self.line_up(client, BTreeMap::from([(rank, item)]));
        }
    }

    /// Removes an item out of order. If its client has other items, it keeps its position in the rotation.
    pub(super) fn remove(&mut self, standing: SchedulingKey) -> Option<T> {
        let backlog = self.backlogs.get_mut(&standing.client)?;
        let item = backlog.items.remove(&standing.rank)?;
        if backlog.items.is_empty() {
            self.step_out(standing.client);
        }
        Some(item)
    }

    /// Replaces an item. If the client is the same, it keeps its position in the rotation.
    pub(super) fn replace(&mut self, before: SchedulingKey, standing: SchedulingKey, item: T) {
        self.insert(standing, item);
        self.remove(before);
    }

    /// Returns the next item and its key.
    pub(super) fn first(&self) -> Option<(SchedulingKey, &T)> {
        let (_, &client) = self.order.first_key_value()?;
        let (&rank, item) = self.backlogs[&client].items.first_key_value()?;
        Some((SchedulingKey { client, rank }, item))
    }

    /// Removes and returns the next item. Its client moves to the end of the rotation.
    pub(super) fn take_first(&mut self) -> Option<T> {
        let (_, &client) = self.order.first_key_value()?;
        let mut items = self.step_out(client)?;
        let (_, first) = items.pop_first()?;
        if !items.is_empty() {
            self.line_up(client, items);
        }
        Some(first)
    }

    /// Returns the key of this whole queue as one item of another fair queue: that of its next item, with `alone` set if there is
    /// only one client.
    pub(super) fn standing(&self) -> Option<SchedulingKey> {
        let (first, _) = self.first()?;
        Some(SchedulingKey {
            client: first.client,
            rank: OrderKey {
                alone: self.backlogs.len() == 1,
                ..first.rank
            },
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.backlogs.is_empty()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.backlogs.values().flat_map(|backlog| backlog.items.values())
    }

    /// Adds a client with all its items at the end of the rotation.
    fn line_up(&mut self, client: ClientId, items: Items<T>) {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.order.insert(turn, client);
        let before = self.backlogs.insert(client, Backlog { turn, items });
        debug_assert!(before.is_none(), "a client has one place in the rotation");
    }

    /// Removes a client with all its items from the rotation.
    fn step_out(&mut self, client: ClientId) -> Option<Items<T>> {
        let backlog = self.backlogs.remove(&client)?;
        self.order.remove(&backlog.turn);
        Some(backlog.items)
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::{Random, Repeat, seed_or};
    use super::*;

    fn standing(client: u64, seq: u64) -> SchedulingKey {
        SchedulingKey {
            client: ClientId(client),
            rank: OrderKey {
                alone: true,
                seq: Seq(seq),
            },
        }
    }

    fn take_all(turns: &mut FairQueue<u64>) -> Vec<u64> {
        std::iter::from_fn(|| turns.take_first()).collect()
    }

    #[test]
    fn clients_take_turns_and_a_new_client_joins_at_the_end() {
        let mut turns = FairQueue::default();
        for (client, seq) in [(1, 1), (1, 2), (1, 3), (2, 4)] {
            turns.insert(standing(client, seq), seq);
        }
        assert_eq!(turns.take_first(), Some(1));
        turns.insert(standing(3, 5), 5);
        assert_eq!(take_all(&mut turns), [4, 2, 5, 3]);
    }

    #[test]
    fn item_that_other_clients_wait_for_goes_first_within_its_client() {
        let mut turns = FairQueue::default();
        for seq in 1..=3 {
            turns.insert(standing(1, seq), seq);
        }
        let before = standing(1, 3);
        let mut wanted = before;
        wanted.rank.alone = false;
        turns.replace(before, wanted, 3);
        assert_eq!(take_all(&mut turns), [3, 1, 2]);
    }

    #[test]
    fn replacing_an_item_keeps_its_clients_position_in_the_rotation() {
        let mut turns = FairQueue::default();
        turns.insert(standing(1, 1), 1);
        turns.insert(standing(2, 2), 2);
        turns.replace(standing(1, 1), standing(1, 3), 3);
        assert_eq!(turns.take_first(), Some(3));
    }

    /// A model in a vector: the clients in the order of the rotation, each with its items in order.
    #[derive(Default)]
    struct Model(Vec<(u64, Vec<u64>)>);

    impl Model {
        fn insert(&mut self, client: u64, seq: u64) {
            match self.0.iter_mut().find(|(other, _)| *other == client) {
                Some((_, items)) => items.push(seq),
                None => self.0.push((client, vec![seq])),
            }
        }

        fn remove(&mut self, seq: u64) {
            for (_, items) in &mut self.0 {
                items.retain(|&other| other != seq);
            }
            self.0.retain(|(_, items)| !items.is_empty());
        }

        fn take_first(&mut self) -> Option<u64> {
            if self.0.is_empty() {
                return None;
            }
            let (client, mut items) = self.0.remove(0);
            let seq = items.remove(0);
            if !items.is_empty() {
                self.0.push((client, items));
            }
            Some(seq)
        }

        fn items(&self) -> impl Iterator<Item = (u64, u64)> {
            self.0
                .iter()
                .flat_map(|(client, items)| items.iter().map(|&seq| (*client, seq)))
        }
    }

    #[test]
    fn random_operations_agree_with_the_model() {
        let seed = seed_or(5);
        let mut repeat = Repeat { seed, step: 0 };
        let mut random = Random(seed);
        let mut turns = FairQueue::default();
        let mut model = Model::default();
        for step in 0..100_000 {
            repeat.step = step;
            match random.below(6) {
                0..3 if model.items().count() < 40 => {
                    let client = random.below(5);
                    turns.insert(standing(client, step), step);
                    model.insert(client, step);
                }
                0..5 => assert_eq!(turns.take_first(), model.take_first()),
                _ => {
                    let chosen = random.index(40);
                    let item = model.items().nth(chosen);
                    if let Some((client, seq)) = item {
                        assert_eq!(turns.remove(standing(client, seq)), Some(seq));
                        model.remove(seq);
                    }
                }
            }
            let expected = model.0.first().map(|(client, items)| SchedulingKey {
                client: ClientId(*client),
                rank: OrderKey {
                    alone: model.0.len() == 1,
                    seq: Seq(items[0]),
                },
            });
            assert_eq!(turns.standing(), expected);
            assert_eq!(turns.is_empty(), expected.is_none());
        }
    }
}
