//! Cancelling, limits of time, clients that go away, force, pauses and drains.
