//! The last events, and what comes after any one of them.

use std::collections::VecDeque;

/// The last of a sequence that is numbered from 1 and grows for ever. The oldest make room.
#[derive(Debug)]
pub struct EventLog<T> {
    kept: VecDeque<T>,
    last: u64,
    most: usize,
}

/// What a reader asked for is not kept any more, or never was: it belongs to another life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap;

impl<T: Clone> EventLog<T> {
    /// Makes an empty one that keeps at most so many, and at least one.
    pub fn new(most: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            last: 0,
            most: most.max(1),
        }
    }

    /// Returns the number of the last event, 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Appends what `make` builds for the next number.
    pub fn push(&mut self, make: impl FnOnce(u64) -> T) {
        self.last += 1;
        if self.kept.len() == self.most {
            self.kept.pop_front();
        }
        self.kept.push_back(make(self.last));
    }

    /// Returns the events after the one with this number, the oldest first, at most so many of them; none when it is the last.
    pub fn since(&self, number: u64, most: usize) -> Result<Vec<T>, Gap> {
        let behind = self.last.checked_sub(number).ok_or(Gap)?;
        let behind = usize::try_from(behind).map_err(|_| Gap)?;
        let first = self.kept.len().checked_sub(behind).ok_or(Gap)?;
        Ok(self.kept.iter().skip(first).take(most).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn of(most: usize, events: u64) -> EventLog<u64> {
        let mut ring = EventLog::new(most);
        for _ in 0..events {
            ring.push(|number| number);
        }
        ring
    }

    fn check(ring: &EventLog<u64>, number: u64, expected: &Result<Vec<u64>, Gap>) {
        assert_eq!(
            &ring.since(number, 100),
            expected,
            "since {number} of {}",
            ring.last()
        );
    }

    #[test]
    fn a_reader_gets_what_it_was_not_told_or_hears_that_it_is_gone() {
        let ring = of(4, 8);
        check(&ring, 8, &Ok(vec![]));
        check(&ring, 6, &Ok(vec![7, 8]));
        check(&ring, 4, &Ok(vec![5, 6, 7, 8]));
        check(&ring, 3, &Err(Gap));
        check(&ring, 0, &Err(Gap));
        // A number that was not given yet was given by another life.
        check(&ring, 9, &Err(Gap));
        check(&ring, u64::MAX, &Err(Gap));
        assert_eq!(ring.since(4, 2), Ok(vec![5, 6]));
    }

    #[test]
    fn before_the_first_event_only_the_beginning_is_known() {
        check(&of(4, 0), 0, &Ok(vec![]));
        check(&of(4, 0), 1, &Err(Gap));
        check(&of(4, 3), 0, &Ok(vec![1, 2, 3]));
        assert_eq!(of(0, 3).since(2, 9), Ok(vec![3]), "one is always kept");
    }

    /// A world of counters: an event adds one to a counter, everything as it is are all counters.
    #[derive(Default)]
    struct Reader {
        number: u64,
        counters: BTreeMap<u8, u64>,
        /// Numbers of all events that it was told.
        told: Vec<u64>,
        /// For each gap: the number before it and the one that everything was told for.
        gaps: Vec<(u64, u64)>,
    }

    impl Reader {
        fn read(&mut self, ring: &EventLog<(u64, u8)>, all: &BTreeMap<u8, u64>, most: usize) {
            if let Ok(events) = ring.since(self.number, most) {
                for (number, counter) in events {
                    self.told.push(number);
                    self.number = number;
                    *self.counters.entry(counter).or_default() += 1;
                }
            } else {
                self.gaps.push((self.number, ring.last()));
                self.number = ring.last();
                self.counters.clone_from(all);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Happens(u8),
        Reads { reader: usize, most: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => any::<u8>().prop_map(|counter| Step::Happens(counter % 5)),
            1 => (0..3_usize, 1..6_usize).prop_map(|(reader, most)| Step::Reads { reader, most }),
        ]
    }

    proptest! {
        #[test]
        fn whoever_follows_with_any_pauses_misses_nothing_unsaid_and_hears_nothing_twice(
            kept in 1..12_usize,
            steps in proptest::collection::vec(step(), 0..300),
        ) {
            let mut ring = EventLog::new(kept);
            let mut all = BTreeMap::<u8, u64>::new();
            let mut readers = [Reader::default(), Reader::default(), Reader::default()];
            for step in steps {
                match step {
                    Step::Happens(counter) => {
                        ring.push(|number| (number, counter));
                        *all.entry(counter).or_default() += 1;
                    }
                    Step::Reads { reader, most } => readers[reader].read(&ring, &all, most),
                }
                prop_assert!(ring.kept.len() <= kept);
            }
            for reader in &mut readers {
                // Catches up, in pieces.
                while reader.number < ring.last() {
                    reader.read(&ring, &all, 2);
                }
                prop_assert_eq!(&reader.counters, &all, "what it knows is true");
                // Events and gaps together cover every number once, in order.
                let mut number = 0;
                let mut gaps = reader.gaps.iter().peekable();
                for told in &reader.told {
                    while let Some((_, to)) = gaps.next_if(|(from, _)| *from == number && *told != number + 1) {
                        number = *to;
                    }
                    prop_assert_eq!(*told, number + 1);
                    number = *told;
                }
                for (from, to) in gaps {
                    prop_assert_eq!(*from, number);
                    number = *to;
                }
                prop_assert_eq!(number, ring.last());
            }
        }
    }
}
