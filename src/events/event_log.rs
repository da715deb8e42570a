//! A bounded log of the most recent events.

use std::collections::VecDeque;

/// The most recent items of a sequence numbered from 1. When the log is full, the oldest item is dropped.
#[derive(Debug)]
pub struct EventLog<T> {
    kept: VecDeque<T>,
    last: u64,
    most: usize,
}

/// The requested events are not in the log: they were dropped, or the number belongs to another instance of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap;

impl<T: Clone> EventLog<T> {
    /// Creates an empty log that keeps at most `most` items, and at least one.
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

    /// Appends the item that `make` builds for the next number.
    pub fn push(&mut self, make: impl FnOnce(u64) -> T) {
        self.last += 1;
        if self.kept.len() == self.most {
            self.kept.pop_front();
        }
        self.kept.push_back(make(self.last));
    }

    /// Returns up to `most` events after the one with this number, oldest first; empty if it is the last.
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
    fn reader_gets_the_events_it_missed_or_a_gap() {
        let ring = of(4, 8);
        check(&ring, 8, &Ok(vec![]));
        check(&ring, 6, &Ok(vec![7, 8]));
        check(&ring, 4, &Ok(vec![5, 6, 7, 8]));
        check(&ring, 3, &Err(Gap));
        check(&ring, 0, &Err(Gap));
        // A number that is not assigned yet was assigned by another instance.
        check(&ring, 9, &Err(Gap));
        check(&ring, u64::MAX, &Err(Gap));
        assert_eq!(ring.since(4, 2), Ok(vec![5, 6]));
    }

    #[test]
    fn new_log_accepts_only_number_zero() {
        check(&of(4, 0), 0, &Ok(vec![]));
        check(&of(4, 0), 1, &Err(Gap));
        check(&of(4, 3), 0, &Ok(vec![1, 2, 3]));
        assert_eq!(of(0, 3).since(2, 9), Ok(vec![3]), "one is always kept");
    }

    /// A reader of a set of counters. An event increments one counter; the snapshot is all counters.
    #[derive(Default)]
    struct Reader {
        number: u64,
        counters: BTreeMap<u8, u64>,
        /// Numbers of all events that it received.
        event: Vec<u64>,
        /// For each gap: the last number before it and the number of the snapshot after it.
        gaps: Vec<(u64, u64)>,
    }

    impl Reader {
        fn read(&mut self, ring: &EventLog<(u64, u8)>, all: &BTreeMap<u8, u64>, most: usize) {
            if let Ok(events) = ring.since(self.number, most) {
                for (number, counter) in events {
                    self.event.push(number);
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
        fn every_event_reaches_each_reader_once_or_is_covered_by_a_gap(
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
                // Catch up, two events at a time.
                while reader.number < ring.last() {
                    reader.read(&ring, &all, 2);
                }
                prop_assert_eq!(&reader.counters, &all, "what it knows is true");
                // Events and gaps together cover every number once, in order.
                let mut number = 0;
                let mut gaps = reader.gaps.iter().peekable();
                for event in &reader.event {
                    while let Some((_, to)) = gaps.next_if(|(from, _)| *from == number && *event != number + 1) {
                        number = *to;
                    }
                    prop_assert_eq!(*event, number + 1);
                    number = *event;
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
