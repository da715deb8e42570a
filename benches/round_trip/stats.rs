//! Medians, percentiles, and the table.

use std::fmt;
use std::time::Duration;

/// Returns the median; zero if there are no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Returns the value below which this share of the values lies.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list of samples"
    )]
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Converts a duration to microseconds.
pub(crate) fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Target of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    /// None: the figure is only shown.
    None,
    /// The figure should be at most this.
    AtMost(f64),
    /// The figure should be at least this.
    AtLeast(f64),
}

/// One row: what was measured, both sides, and how they compare.
#[derive(Debug)]
struct Row {
    what: String,
    /// Figure of the side without orbd; other text if there is no such side.
    base: String,
    ours: String,
    /// Median over rounds of the ratio or difference, which is compared with the target.
    value: f64,
    low: f64,
    high: f64,
    bar: Bar,
}

/// The results of all measurements.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// Adds a row with one ratio (or difference) per round.
    pub(crate) fn add(&mut self, what: &str, base: String, ours: String, rounds: &[f64], bar: Bar) {
        let row = Row {
            what: what.to_owned(),
            base,
            ours,
            value: median(rounds),
            low: percentile(rounds, 0.0),
            high: percentile(rounds, 1.0),
            bar,
        };
        // Also printed at once: a run takes minutes and may be interrupted.
        println!("{row}");
        self.0.push(row);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bar, met) = match self.bar {
            Bar::None => (String::new(), ""),
            Bar::AtMost(bar) => (format!("<= {bar}"), met(self.value <= bar)),
            Bar::AtLeast(bar) => (format!(">= {bar}"), met(self.value >= bar)),
        };
        let spread = format!("{:.2}..{:.2}", self.low, self.high);
        write!(
            f,
            "{:<46} {:>16} {:>16} {:>9.2} {:>15} {:>8} {met}",
            self.what, self.base, self.ours, self.value, spread, bar
        )
    }
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<46} {:>16} {:>16} {:>9} {:>15} {:>8}",
            "", "without orbd", "orbd", "compared", "rounds", "bar"
        )?;
        for row in &self.0 {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}
