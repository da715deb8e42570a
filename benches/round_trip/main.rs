//! What orbd costs: every figure is measured next to that of doing the same without orbd, in the same run and by the
//! same load generator.
//!
//! `cargo bench --bench round_trip` measures answers from the cache, commands, starts of the client, calls through the
//! drop-in, output and events. `cargo bench --bench round_trip -- idle restart export` measures the three that take
//! minutes; names select sections. Rounds of the two sides alternate, so that a machine that slows down slows both.
//! Medians are over rounds. `docs/benchmarks.md` explains each number.
//!
//! `cargo test` runs everything with tiny sizes and checks no time. `ORBD_BENCH_ORBD` and `ORBD_BENCH_CTL` select
//! another daemon and another client to measure.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and starts what it measures"
)]
#![expect(clippy::print_stdout, reason = "its tables")]

mod burst;
mod cached;
mod channel;
mod daemon;
mod dropin;
mod echo;
mod events;
mod exec;
mod export;
mod idle;
mod output;
mod restart;
mod stand_in;
mod start;
mod stats;

use std::path::Path;

use stats::Table;

/// Size of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Large enough for figures.
    Full,
    /// Just large enough to check that it works.
    Tiny,
}

impl Scale {
    /// Returns the value for this scale.
    pub(crate) fn pick<T>(self, full: T, tiny: T) -> T {
        match self {
            Self::Full => full,
            Self::Tiny => tiny,
        }
    }
}

type Section = (&'static str, fn(Scale, &mut Table));

/// Sections by name, in order. The first eight run unless others are named.
const SECTIONS: [Section; 11] = [
    ("cached", cached::measure),
    ("burst", burst::measure),
    ("exec", exec::measure),
    ("channel", channel::measure),
    ("start", start::measure),
    ("dropin", dropin::measure),
    ("output", output::measure),
    ("events", events::measure),
    ("idle", idle::measure),
    ("restart", restart::measure),
    ("export", export::measure),
];

fn main() {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    // This program is also started in two other roles.
    if Path::new(&called)
        .file_name()
        .is_some_and(|name| name == stand_in::NAME)
    {
        return stand_in::run(Path::new(&called), args);
    }
    let words: Vec<String> = args.filter_map(|word| word.into_string().ok()).collect();
    if words.first().is_some_and(|word| word == echo::FLAG) {
        return echo::serve(&words[1..]);
    }
    // Cargo passes `--bench` for benches, and not for tests.
    let is_bench = words.iter().any(|word| word == "--bench");
    let scale = if is_bench && std::env::var_os("ORBD_BENCH_TINY").is_none() {
        Scale::Full
    } else {
        Scale::Tiny
    };
    let wanted = |name: &str, at: usize| {
        let named = words.iter().any(|word| !word.starts_with('-'));
        match (named, scale) {
            (true, _) => words.iter().any(|word| word == name),
            (false, Scale::Full) => at < 8,
            (false, Scale::Tiny) => true,
        }
    };
    let mut table = Table::default();
    for (at, (name, measure)) in SECTIONS.iter().enumerate() {
        if wanted(name, at) {
            measure(scale, &mut table);
        }
    }
    if scale == Scale::Full {
        print!("{table}");
    }
}
