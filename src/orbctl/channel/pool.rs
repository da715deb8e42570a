//! Decides which command uses or opens which channel. Pure logic, without clock or I/O, over any kind of channel.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::time::{Duration, Instant};

use crate::operation::UserName;
use orbd_host::machine::MachineName;

/// Most open channels.
pub(super) const OPEN_MAX: usize = 64;
/// A second command within this time opens a channel.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);
/// A channel is worth its processes only if an `orbctl run` takes longer than this.
const WORTH_IT: Duration = Duration::from_millis(20);
/// How long a machine and user have no channel after a failed attempt; doubled with each failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// After this many failed attempts a machine and user have no channel until the machine has changed.
const FAILURES_MAX: u32 = 3;
/// After so many machines in a row had the same problem, it is that of `orbctl`, which gets no more channels.
const MACHINES_MAX: usize = 3;
/// Most machines and users about which anything is remembered.
const KNOWN_MAX: usize = 1024;

/// Whom a channel serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) machine: MachineName,
    /// `None` for the machine's default user.
    pub(super) user: Option<UserName>,
}

/// How to run a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan<H> {
    /// As an `orbctl run` of its own.
    OneShot,
    /// Through this channel, which counts as busy now.
    Use(H),
    /// Through a new channel, which counts as being opened now.
    Open {
        /// What must be closed first: idle channels of other users of the machine, or the channel that was idle longest.
        close_first: Vec<Leaving<H>>,
        /// Whether the channel must be tested before its first command, because none of this machine passed the test yet.
        needs_test: bool,
    },
}

/// Why no channel was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Something that may be different next time.
    Passing(String),
    /// There was no answer, which may be the machine's fault or `orbctl`'s.
    NoAnswer(String),
    /// Something of the machine, which will be the same until it has changed.
    Machine(String),
    /// Input and output did not pass unchanged, which may be the machine's fault or `orbctl`'s.
    Altered(String),
}

/// Every open channel, and what is remembered about machines and users without one.
#[derive(Debug)]
pub(super) struct Pool<H> {
    entries: HashMap<Key, Entry<H>>,
    /// Channels that take no more commands and have not ended yet.
    retiring: Vec<Retiring<H>>,
    program: Program,
    last: Serial,
}

#[derive(Debug)]
struct Retiring<H> {
    machine: MachineName,
    serial: Serial,
    handle: H,
    is_busy: bool,
}

/// A channel that is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaving<H> {
    pub(super) handle: H,
    /// Whether a command runs in it. It ends only after that.
    pub(super) is_busy: bool,
}

/// Tells the channels of a machine and user apart: one that was taken out may still serve its last command while the next is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Serial(u64);

/// What is known about the installed `orbctl`.
#[derive(Debug, Default)]
struct Program {
    run: Estimate,
    query: Estimate,
    unanswered: Suspicion,
    altered: Suspicion,
    /// A channel did not end with its input.
    stuck: Suspicion,
    /// Why it gets no channels.
    problem: Option<String>,
}

/// The machines in a row that had one problem. One machine alone proves nothing about `orbctl`.
#[derive(Debug, Default)]
struct Suspicion(BTreeSet<MachineName>);

impl Suspicion {
    /// Returns whether that is enough of them.
    fn add(&mut self, machine: &MachineName) -> bool {
        self.0.insert(machine.clone());
        self.0.len() >= MACHINES_MAX
    }
}

/// Estimates how long an `orbctl` takes that has nothing to do: the shortest of the recent ones. A single quick one, for example a
/// failure, is forgotten after a few others.
#[derive(Debug, Default)]
struct Estimate(Option<Duration>);

impl Estimate {
    fn add(&mut self, took: Duration) {
        self.0 = Some(self.0.map_or(took, |known| took.min(known * 5 / 4)));
    }
}

#[derive(Debug)]
struct Entry<H> {
    slot: Slot<H>,
    last_command: Option<Instant>,
    is_tested: bool,
    failures: u32,
    /// No attempt to open a channel before this time.
    not_before: Option<Instant>,
    /// Why the last attempt failed, or the last channel ended early.
    problem: Option<String>,
}

#[derive(Debug)]
enum Slot<H> {
    Closed,
    /// `is_wanted`: it may be used once it is open.
    Opening {
        is_wanted: bool,
    },
    Open(H, Opened),
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    serial: Serial,
    at: Instant,
    commands: u64,
    /// `None` while a command runs.
    idle_since: Option<Instant>,
}

/// A machine and user that has a channel, or had a problem with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelView {
    /// Name of the machine.
    pub machine: MachineName,
    /// Its user; `None` for the machine's default user.
    pub user: Option<UserName>,
    /// State of the channel.
    pub state: ChannelState,
    /// Why the last attempt to open one failed, or the last one ended early; `None` if there was no problem.
    pub problem: Option<String>,
}

/// Why no machine gets a channel from the installed `orbctl`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unused {
    /// A channel would save little.
    #[error("an orbctl run takes only {} ms", .0.as_millis())]
    Fast(Duration),
    /// It cannot serve a channel.
    #[error("{0}")]
    Unsuitable(String),
}

/// State of a machine's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelState {
    /// There is none.
    Closed,
    /// `orbctl run` was started, and the guest's program has not answered yet.
    Opening,
    /// It is open.
    Open {
        /// How long.
        age: Duration,
        /// How many commands it has begun.
        commands: u64,
        /// Whether a command runs in it.
        is_busy: bool,
    },
}

impl<H> Default for Entry<H> {
    fn default() -> Self {
        Self {
            slot: Slot::Closed,
            last_command: None,
            is_tested: false,
            failures: 0,
            not_before: None,
            problem: None,
        }
    }
}

impl<H> Default for Pool<H> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            retiring: Vec::new(),
            program: Program::default(),
            last: Serial::default(),
        }
    }
}

impl<H: Clone> Pool<H> {
    /// Decides how a command runs. `more_follow`: the client announced further commands.
    pub(super) fn plan(&mut self, key: &Key, more_follow: bool, now: Instant) -> Plan<H> {
        self.forget_old(key);
        let is_worth_it = self.is_worth_it(more_follow);
        let entry = self.entries.entry(key.clone()).or_default();
        let before = entry.last_command.replace(now);
        match &mut entry.slot {
            Slot::Open(handle, opened) if opened.idle_since.is_some() => {
                opened.idle_since = None;
                opened.commands += 1;
                return Plan::Use(handle.clone());
            }
            Slot::Opening { .. } | Slot::Open(..) => return Plan::OneShot,
            Slot::Closed => {}
        }
        let is_again = before.is_some_and(|before| now.saturating_duration_since(before) <= AGAIN_WITHIN);
        let is_paused = entry.not_before.is_some_and(|at| now < at) || entry.failures >= FAILURES_MAX;
        if !(is_again || more_follow) || is_paused || !is_worth_it {
            return Plan::OneShot;
        }
        self.open(key)
    }

    /// Decides how a command runs that the channel of `key` declined. That channel is closed.
    pub(super) fn plan_again(&mut self, key: &Key) -> Plan<H> {
        match self.entries.get(key).map(|entry| &entry.slot) {
            Some(Slot::Closed) => self.open(key),
            _ => Plan::OneShot,
        }
    }

    fn open(&mut self, key: &Key) -> Plan<H> {
        let Some(close_first) = self.make_room(key) else {
            return Plan::OneShot;
        };
        let entry = self.entries.entry(key.clone()).or_default();
        entry.slot = Slot::Opening { is_wanted: true };
        Plan::Open {
            close_first,
            needs_test: !entry.is_tested,
        }
    }

    /// Returns whether an `orbctl run` takes so long that a channel pays. Before one was measured, a read is the estimate, but only if
    /// the client announced further commands: a wrong guess should cost little.
    fn is_worth_it(&self, more_follow: bool) -> bool {
        let Program {
            run, query, problem, ..
        } = &self.program;
        let guess = if more_follow { query.0 } else { None };
        problem.is_none() && run.0.or(guess).is_some_and(|takes| takes >= WORTH_IT)
    }

    /// Takes what must be closed before a channel of `key` opens; `None` if a command of another user of the machine runs in one, or
    /// all channels are in use.
    fn make_room(&mut self, key: &Key) -> Option<Vec<Leaving<H>>> {
        let others = |other: &Key| other.machine == key.machine && other != key;
        if self
            .entries
            .iter()
            .any(|(other, entry)| others(other) && entry.is_in_use())
        {
            return None;
        }
        let mut close: Vec<Key> = self
            .entries
            .keys()
            .filter(|other| others(other))
            .cloned()
            .collect();
        let open = |entry: &&Entry<H>| !matches!(entry.slot, Slot::Closed);
        if self.entries.values().filter(open).count() >= OPEN_MAX {
            let idle = self
                .entries
                .iter()
                .filter_map(|(key, entry)| Some((key, entry.idle_since()?)));
            close.push(idle.min_by_key(|(_, since)| *since)?.0.clone());
        }
        Some(close.iter().filter_map(|key| self.retire(key)).collect())
    }

    /// Takes a channel out. Returns it unless it is closed or being opened.
    fn retire(&mut self, key: &Key) -> Option<Leaving<H>> {
        let entry = self.entries.get_mut(key)?;
        match mem::replace(&mut entry.slot, Slot::Closed) {
            Slot::Open(handle, opened) => {
                let is_busy = opened.idle_since.is_none();
                self.retiring.push(Retiring {
                    machine: key.machine.clone(),
                    serial: opened.serial,
                    handle: handle.clone(),
                    is_busy,
                });
                Some(Leaving { handle, is_busy })
            }
            slot => {
                entry.slot = slot;
                None
            }
        }
    }

    /// Records how long a command took as an `orbctl run` of its own, or the opening of a channel.
    pub(super) fn run_took(&mut self, took: Duration) {
        self.program.run.add(took);
    }

    /// Records how long a read took.
    pub(super) fn query_took(&mut self, took: Duration) {
        self.program.query.add(took);
    }

    /// Records that a channel was opened. It is busy with the command that opened it. `None` if it must not be used: its machine may
    /// have changed meanwhile.
    pub(super) fn opened(&mut self, key: &Key, handle: H, now: Instant) -> Option<Serial> {
        self.program.unanswered = Suspicion::default();
        self.program.altered = Suspicion::default();
        self.last.0 += 1;
        let entry = self.entries.entry(key.clone()).or_default();
        if !matches!(entry.slot, Slot::Opening { is_wanted: true }) {
            entry.slot = Slot::Closed;
            return None;
        }
        let opened = Opened {
            serial: self.last,
            at: now,
            commands: 1,
            idle_since: None,
        };
        *entry = Entry {
            slot: Slot::Open(handle, opened),
            last_command: entry.last_command,
            is_tested: true,
            ..Entry::default()
        };
        Some(self.last)
    }

    /// Records that no channel could be opened.
    pub(super) fn open_failed(&mut self, key: &Key, obstacle: Obstacle, now: Instant) {
        let (text, failures) = match obstacle {
            Obstacle::Passing(text) => (text, 1),
            Obstacle::NoAnswer(text) => {
                if self.program.unanswered.add(&key.machine) {
                    self.program.problem = Some(text.clone());
                }
                (text, 1)
            }
            Obstacle::Machine(text) => (text, FAILURES_MAX),
            Obstacle::Altered(text) => {
                if self.program.altered.add(&key.machine) {
                    self.program.problem = Some(format!("{text}, in several machines"));
                }
                (text, FAILURES_MAX)
            }
        };
        let entry = self.entries.entry(key.clone()).or_default();
        entry.slot = Slot::Closed;
        entry.problem = Some(text);
        entry.failures += failures;
        entry.not_before = Some(now + FAILURE_PAUSE * 2_u32.saturating_pow(entry.failures.min(FAILURES_MAX)));
    }

    /// Records that the attempt to open a channel was given up, through no fault of its own.
    pub(super) fn open_cancelled(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.slot = Slot::Closed;
        }
    }

    /// Records that a channel waits for a command.
    pub(super) fn idle(&mut self, key: &Key, serial: Serial, now: Instant) {
        if let Some(Entry {
            slot: Slot::Open(_, opened),
            ..
        }) = self.entries.get_mut(key)
            && opened.serial == serial
        {
            opened.idle_since = Some(now);
        }
    }

    /// Records that a channel takes no more commands, and why if it should have.
    pub(super) fn closing(&mut self, key: &Key, serial: Serial, problem: Option<String>) {
        if let Some(entry) = self.entries.get_mut(key)
            && matches!(&entry.slot, Slot::Open(_, opened) if opened.serial == serial)
        {
            entry.problem = problem;
            self.retire(key);
        }
        for retiring in self.retiring.iter_mut().filter(|one| one.serial == serial) {
            retiring.is_busy = false;
        }
    }

    /// Records that a channel has ended. `with_its_input`: whether that was enough to end it; `None` if it was not intact.
    pub(super) fn closed(&mut self, serial: Serial, with_its_input: Option<bool>) {
        let Some(at) = self.retiring.iter().position(|one| one.serial == serial) else {
            return;
        };
        let machine = self.retiring.swap_remove(at).machine;
        match with_its_input {
            Some(true) => self.program.stuck = Suspicion::default(),
            Some(false) if self.program.stuck.add(&machine) => {
                self.program.problem = Some("orbctl does not end when its input ends".into());
            }
            Some(false) | None => {}
        }
    }

    /// Takes every channel of these machines out, so that it can be closed. Also returns those that were taken out before and have not
    /// ended yet. Forgets the machines' problems: they are about to change.
    pub(super) fn take(&mut self, wanted: impl Fn(&MachineName) -> bool) -> Vec<Leaving<H>> {
        let keys: Vec<Key> = self
            .entries
            .keys()
            .filter(|key| wanted(&key.machine))
            .cloned()
            .collect();
        for key in &keys {
            self.retire(key);
            if let Some(entry) = self.entries.get_mut(key) {
                let is_opening = matches!(entry.slot, Slot::Opening { .. });
                *entry = Entry {
                    slot: if is_opening {
                        Slot::Opening { is_wanted: false }
                    } else {
                        Slot::Closed
                    },
                    last_command: entry.last_command,
                    is_tested: entry.is_tested,
                    ..Entry::default()
                };
            }
        }
        let leaving = self.retiring.iter().filter(|one| wanted(&one.machine));
        leaving
            .map(|one| Leaving {
                handle: one.handle.clone(),
                is_busy: one.is_busy,
            })
            .collect()
    }

    /// Forgets what is known about `orbctl`: another one is installed.
    pub(super) fn program_replaced(&mut self) {
        self.program = Program::default();
        for entry in self.entries.values_mut() {
            entry.is_tested = false;
        }
    }

    /// Forgets why `orbctl` gets no channels, so that it is tried again.
    pub(super) fn forgive_program(&mut self) {
        self.program = Program {
            run: mem::take(&mut self.program.run),
            query: mem::take(&mut self.program.query),
            ..Program::default()
        };
    }

    /// Returns why no machine gets a channel; `None` if that depends on the machine.
    pub(super) fn unused(&self) -> Option<Unused> {
        let fast = || {
            Some(Unused::Fast(
                self.program.run.0.filter(|takes| *takes < WORTH_IT)?,
            ))
        };
        self.program.problem.clone().map(Unused::Unsuitable).or_else(fast)
    }

    /// Returns every machine and user with a channel or a problem, by name.
    pub(super) fn view(&self, now: Instant) -> Vec<ChannelView> {
        let mut views: Vec<ChannelView> = self
            .entries
            .iter()
            .map(|(key, entry)| ChannelView {
                machine: key.machine.clone(),
                user: key.user.clone(),
                state: match &entry.slot {
                    Slot::Closed => ChannelState::Closed,
                    Slot::Opening { .. } => ChannelState::Opening,
                    Slot::Open(_, opened) => ChannelState::Open {
                        age: now.saturating_duration_since(opened.at),
                        commands: opened.commands,
                        is_busy: opened.idle_since.is_none(),
                    },
                },
                problem: entry.problem.clone(),
            })
            .filter(|view| view.state != ChannelState::Closed || view.problem.is_some())
            .collect();
        views.sort_by(|a, b| (&a.machine, &a.user).cmp(&(&b.machine, &b.user)));
        views
    }

    /// Keeps the number of entries bounded: forgets those without a channel.
    fn forget_old(&mut self, key: &Key) {
        if self.entries.len() >= KNOWN_MAX && !self.entries.contains_key(key) {
            self.entries
                .retain(|_, entry| !matches!(entry.slot, Slot::Closed));
        }
    }
}

impl<H> Entry<H> {
    fn is_in_use(&self) -> bool {
        !matches!(self.slot, Slot::Closed) && self.idle_since().is_none()
    }

    fn idle_since(&self) -> Option<Instant> {
        match &self.slot {
            Slot::Open(_, opened) => opened.idle_since,
            Slot::Opening { .. } | Slot::Closed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    const MS: Duration = Duration::from_millis(1);
    const SLOW: Duration = Duration::from_millis(150);

    fn key(machine: &str, user: &str) -> Key {
        Key {
            machine: machine.parse().expect("valid"),
            user: (!user.is_empty()).then(|| user.parse().expect("valid")),
        }
    }

    /// The plan to open a channel to a machine of which none was tested.
    const OPEN: Plan<u32> = Plan::Open {
        close_first: Vec::new(),
        needs_test: true,
    };
    const IDLE_0: Leaving<u32> = Leaving {
        handle: 0,
        is_busy: false,
    };
    const REOPEN: Plan<u32> = Plan::Open {
        close_first: Vec::new(),
        needs_test: false,
    };

    /// A pool that knows that an `orbctl run` is slow.
    fn pool() -> Pool<u32> {
        let mut pool = Pool::default();
        pool.run_took(SLOW);
        pool
    }

    /// A pool with an idle channel for each of these keys, numbered from 0.
    fn pool_with(keys: &[Key], now: Instant) -> (Pool<u32>, Vec<Serial>) {
        let mut pool = pool();
        let mut serials = Vec::new();
        for (number, key) in (0..).zip(keys) {
            assert_eq!(pool.plan(key, true, now), OPEN);
            let serial = pool.opened(key, number, now).expect("it is wanted");
            pool.idle(key, serial, now + MS * number);
            serials.push(serial);
        }
        (pool, serials)
    }

    #[test]
    fn the_second_command_within_five_seconds_opens_a_channel() {
        let now = Moment::now().instant;
        let web = key("web", "");
        for (pause, expected) in [(AGAIN_WITHIN, OPEN), (AGAIN_WITHIN + MS, Plan::OneShot)] {
            let mut pool = Pool::default();
            assert_eq!(pool.plan(&web, false, now), Plan::OneShot);
            pool.run_took(SLOW);
            assert_eq!(pool.plan(&web, false, now + pause), expected);
        }
    }

    #[test]
    fn announced_commands_open_one_at_once_if_reads_show_that_orbctl_is_slow() {
        let now = Moment::now().instant;
        let web = key("web", "");
        let mut pool: Pool<u32> = Pool::default();
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot, "nothing is known yet");
        pool.query_took(SLOW);
        assert_eq!(pool.plan(&web, false, now), Plan::OneShot, "only a guess");
        assert_eq!(pool.plan(&web, true, now), OPEN);
    }

    #[test]
    fn an_orbctl_that_starts_fast_gets_no_channels() {
        let now = Moment::now().instant;
        let web = key("web", "");
        let mut pool: Pool<u32> = Pool::default();
        pool.query_took(SLOW);
        let fast = Duration::from_millis(19);
        pool.run_took(fast);
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot);
        assert_eq!(pool.unused(), Some(Unused::Fast(fast)));
        pool.run_took(SLOW);
        assert_eq!(pool.plan(&web, true, now), OPEN, "the quick one is forgotten");
    }

    #[test]
    fn a_channel_that_is_in_use_or_opening_serves_no_other_command() {
        let now = Moment::now().instant;
        let web = key("web", "");
        let (mut pool, serials) = pool_with(std::slice::from_ref(&web), now);
        assert_eq!(pool.plan(&web, true, now), Plan::Use(0));
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot);
        pool.idle(&web, serials[0], now);
        assert_eq!(pool.plan(&web, true, now), Plan::Use(0));
        pool.closing(&web, serials[0], None);
        assert_eq!(pool.plan(&web, true, now), REOPEN);
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot);
    }

    #[test]
    fn a_declined_command_opens_the_next_channel() {
        let now = Moment::now().instant;
        let web = key("web", "");
        let (mut pool, serials) = pool_with(std::slice::from_ref(&web), now);
        assert_eq!(pool.plan(&web, false, now), Plan::Use(0));
        assert_eq!(pool.plan_again(&web), Plan::OneShot, "it is not closed yet");
        pool.closing(&web, serials[0], None);
        assert_eq!(pool.plan_again(&web), REOPEN);
        assert_eq!(pool.plan_again(&web), Plan::OneShot, "another command opens it");
    }

    #[test]
    fn a_machine_has_a_channel_for_one_user_at_a_time() {
        let now = Moment::now().instant;
        let (root, user) = (key("web", "root"), key("web", "das"));
        let (mut pool, _) = pool_with(std::slice::from_ref(&user), now);
        let opened = Plan::Open {
            close_first: vec![IDLE_0],
            needs_test: true,
        };
        assert_eq!(pool.plan(&root, true, now), opened);
        pool.opened(&root, 1, now);
        assert_eq!(pool.plan(&user, true, now), Plan::OneShot, "root's command runs");
        assert_eq!(pool.plan(&key("db", "das"), true, now), OPEN);
    }

    #[test]
    fn beyond_the_limit_the_channel_that_is_idle_longest_is_closed() {
        let now = Moment::now().instant;
        let keys: Vec<Key> = (0..OPEN_MAX)
            .map(|number| key(&format!("m{number}"), ""))
            .collect();
        let (mut pool, _) = pool_with(&keys, now);
        assert_eq!(pool.plan(&keys[0], false, now), Plan::Use(0));
        let opened = Plan::Open {
            close_first: vec![Leaving { handle: 1, ..IDLE_0 }],
            needs_test: true,
        };
        assert_eq!(pool.plan(&key("web", ""), true, now), opened);
        for key in &keys[2..] {
            assert!(matches!(pool.plan(key, false, now), Plan::Use(_)));
        }
        assert_eq!(
            pool.plan(&key("db", ""), true, now),
            Plan::OneShot,
            "all are in use"
        );
    }

    #[test]
    fn a_machine_that_fails_three_times_gets_a_channel_only_after_a_change() {
        let mut now = Moment::now().instant;
        let web = key("web", "");
        let mut pool = pool();
        for pause in [20, 40] {
            assert_eq!(pool.plan(&web, true, now), OPEN);
            pool.open_failed(&web, Obstacle::Passing("full".to_owned()), now);
            now += Duration::from_millis(pause * 1000 - 1);
            assert_eq!(pool.plan(&web, true, now), Plan::OneShot, "{pause} s");
            now += MS;
        }
        assert_eq!(pool.plan(&web, true, now), OPEN);
        pool.open_failed(&web, Obstacle::Passing("full".to_owned()), now);
        now += Duration::from_secs(3600);
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot);
        assert_eq!(pool.view(now)[0].problem.as_deref(), Some("full"));
        assert_eq!(pool.take(|_| true), []);
        assert_eq!(pool.plan(&web, true, now), OPEN);
        pool.open_failed(&web, Obstacle::Machine("no setsid".to_owned()), now);
        now += Duration::from_secs(3600);
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot, "it would fail again");
    }

    #[test]
    fn an_orbctl_that_cannot_serve_channels_is_asked_for_no_more() {
        let now = Moment::now().instant;
        let keys = ["a", "b", "c", "d"].map(|machine| key(machine, ""));
        let silent = || Obstacle::NoAnswer("no answer".to_owned());
        let mut pool = pool();
        for key in &keys[..3] {
            assert_eq!(pool.plan(key, true, now), OPEN);
            pool.open_failed(key, silent(), now);
        }
        assert_eq!(pool.plan(&keys[3], true, now), Plan::OneShot);
        let unsuitable = |text: &str| Some(Unused::Unsuitable(text.to_owned()));
        assert_eq!(pool.unused(), unsuitable("no answer"));
        pool.program_replaced();
        pool.run_took(SLOW);
        pool.take(|_| true);
        let alter = |pool: &mut Pool<u32>, key: &Key| {
            assert_eq!(pool.plan(key, true, now), OPEN);
            pool.open_failed(key, Obstacle::Altered("bytes changed".to_owned()), now);
            pool.take(|_| true);
        };
        for key in &keys[..2] {
            alter(&mut pool, key);
            alter(&mut pool, key);
        }
        assert_eq!(pool.unused(), None, "two machines prove nothing");
        alter(&mut pool, &keys[2]);
        assert_eq!(pool.unused(), unsuitable("bytes changed, in several machines"));
        pool.forgive_program();
        for (number, key) in (0..).zip(&keys[..3]) {
            assert_eq!(pool.unused(), None);
            assert_eq!(pool.plan(key, true, now), OPEN);
            let serial = pool.opened(key, number, now).expect("it is wanted");
            pool.closing(key, serial, None);
            pool.closed(serial, Some(false));
        }
        assert_ne!(pool.unused(), None);
    }

    #[test]
    fn a_channel_that_opens_while_its_machine_changes_is_not_used() {
        let now = Moment::now().instant;
        let web = key("web", "");
        let mut pool = pool();
        assert_eq!(pool.plan(&web, true, now), OPEN);
        assert_eq!(pool.take(|_| true), []);
        assert_eq!(pool.plan(&web, true, now), Plan::OneShot, "it is being opened");
        assert_eq!(pool.opened(&web, 0, now), None);
        assert_eq!(pool.plan(&web, true, now), OPEN);
    }

    #[test]
    fn a_change_takes_the_channels_of_its_machines_out() {
        let now = Moment::now().instant;
        let keys = [key("web", ""), key("db", "")];
        let (mut pool, serials) = pool_with(&keys, now);
        assert_eq!(pool.plan(&keys[0], false, now), Plan::Use(0));
        let take_web = |pool: &mut Pool<u32>| pool.take(|machine| machine.as_str() == "web");
        let busy = Leaving {
            is_busy: true,
            ..IDLE_0
        };
        assert_eq!(take_web(&mut pool), [busy]);
        assert_eq!(take_web(&mut pool), [busy], "it has not ended");
        pool.closing(&keys[0], serials[0], None);
        assert_eq!(take_web(&mut pool), [IDLE_0], "its command has");
        assert_eq!(pool.plan(&keys[0], true, now), REOPEN, "it was tested");
        let serial = pool.opened(&keys[0], 7, now).expect("it is wanted");
        pool.idle(&keys[0], serials[0], now);
        pool.closing(&keys[0], serials[0], None);
        assert_eq!(
            pool.plan(&keys[0], true, now),
            Plan::OneShot,
            "the old one's end does not touch the new one"
        );
        pool.closed(serials[0], Some(true));
        pool.idle(&keys[0], serial, now);
        assert_eq!(pool.plan(&keys[0], true, now), Plan::Use(7));
        pool.idle(&keys[0], serial, now);
        let next = Leaving { handle: 7, ..IDLE_0 };
        assert_eq!(take_web(&mut pool), [next]);
        assert_eq!(pool.plan(&keys[1], true, now), Plan::Use(1));
        pool.program_replaced();
        pool.run_took(SLOW);
        pool.take(|_| true);
        assert_eq!(pool.plan(&keys[0], true, now), OPEN, "another orbctl");
    }

    #[test]
    fn a_view_has_every_channel_and_every_problem() {
        let now = Moment::now().instant;
        let keys = [key("web", ""), key("db", "root")];
        let (mut pool, serials) = pool_with(&keys, now);
        pool.plan(&keys[0], false, now);
        pool.closing(&keys[1], serials[1], Some("it broke".to_owned()));
        pool.plan(&key("silent", ""), false, now);
        let view = |key: &Key, state, problem: Option<&str>| ChannelView {
            machine: key.machine.clone(),
            user: key.user.clone(),
            state,
            problem: problem.map(String::from),
        };
        let busy = ChannelState::Open {
            age: MS,
            commands: 2,
            is_busy: true,
        };
        assert_eq!(
            pool.view(now + MS),
            [
                view(&keys[1], ChannelState::Closed, Some("it broke")),
                view(&keys[0], busy, None)
            ]
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Moment::now().instant;
        let mut pool = pool();
        for number in 0..KNOWN_MAX * 3 {
            pool.plan(&key(&format!("m{number}"), ""), false, now);
        }
        assert!(pool.entries.len() <= KNOWN_MAX);
    }
}
