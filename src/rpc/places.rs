//! Places for connections: how many there are, and that their number may change while they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for connections.
#[derive(Debug, Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// Places that are taken and no longer exist: as many are not given back.
    surplus: Arc<AtomicUsize>,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    surplus: Arc<AtomicUsize>,
}

impl Places {
    /// Makes so many.
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            surplus: Arc::default(),
        }
    }

    /// Takes one that is free now.
    pub(super) fn take_now(&self) -> Option<Place> {
        self.free
            .clone()
            .try_acquire_owned()
            .ok()
            .map(|it| self.place(it))
    }

    /// Takes one when it is free.
    pub(super) async fn take(&self) -> Option<Place> {
        let permit = self.free.clone().acquire_owned().await.ok()?;
        Some(self.place(permit))
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        Place {
            permit: Some(permit),
            surplus: self.surplus.clone(),
        }
    }

    /// Makes as many of them more, or fewer, as lie between the two numbers. Nobody loses a place that is taken.
    pub(super) fn resize(&self, from: usize, to: usize) {
        for _ in from..to {
            if !pay(&self.surplus) {
                self.free.add_permits(1);
            }
        }
        if to < from {
            let gone = from - to;
            let taken = gone - self.free.forget_permits(gone);
            self.surplus.fetch_add(taken, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take()
            && pay(&self.surplus)
        {
            permit.forget();
        }
    }
}

/// Takes one off a number above zero, and says whether it was.
fn pay(surplus: &AtomicUsize) -> bool {
    let less = |surplus: usize| surplus.checked_sub(1);
    surplus
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_are_taken_outlast_a_smaller_number_and_are_not_given_back() {
        let places = Places::new(3);
        let mut taken: Vec<Place> = (0..3).filter_map(|_| places.take_now()).collect();
        assert_eq!(taken.len(), 3);
        places.resize(3, 1);
        taken.truncate(1);
        assert!(places.take_now().is_none(), "one is the number, and it is taken");
        places.resize(1, 2);
        taken.extend(places.take_now());
        assert_eq!(taken.len(), 2);
        assert!(places.take_now().is_none());
        taken.clear();
        places.resize(2, 1);
        let only = places.take_now();
        assert!(only.is_some());
        assert!(places.take_now().is_none());
    }

    #[test]
    fn a_number_that_comes_back_costs_nobody_a_place() {
        let places = Places::new(2);
        let taken = (places.take_now(), places.take_now());
        places.resize(2, 1);
        places.resize(1, 2);
        drop(taken);
        let again = (places.take_now(), places.take_now(), places.take_now());
        assert!(again.0.is_some() && again.1.is_some() && again.2.is_none());
    }
}
