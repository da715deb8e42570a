//! Fits text to the terminal: tables, name-value pairs and paragraphs. Nothing is truncated: long text is wrapped, and a table that
//! cannot be made narrow enough is printed as one block of lines per row.
//!
//! Output to a pipe or a file has no width limit; there each row is one line.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

/// Colours and width of an output stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether to print colours.
    pub(crate) colour: bool,
    /// Width in columns; `None` if the stream is not a terminal, or is narrower than [`WIDTH_MIN`].
    pub(crate) width: Option<usize>,
}

/// Minimum width in columns for which text is wrapped. A narrower terminal wraps by itself.
const WIDTH_MIN: usize = 30;

/// Minimum width to which a `wide` column is squeezed.
const COLUMN_MIN: usize = 12;

/// Number of spaces between table columns.
const GAP: usize = 2;

impl Look {
    /// Inspects an output stream.
    pub(crate) fn of(stream: &(impl AsFd + IsTerminal), colour_off: bool) -> Self {
        let is_terminal = stream.is_terminal();
        let width = || {
            let size = rustix::termios::tcgetwinsize(stream).ok()?;
            Some(usize::from(size.ws_col)).filter(|width| *width >= WIDTH_MIN)
        };
        Self {
            colour: is_terminal && !colour_off,
            width: is_terminal.then(width).flatten(),
        }
    }

    /// Wraps text at spaces and indents continuation lines by `indent` columns. Existing line breaks are kept.
    pub(crate) fn paragraph(self, text: &str, indent: usize) -> String {
        let Some(width) = self.width else {
            return text.to_owned();
        };
        let mut wrapped = String::with_capacity(text.len() + 16);
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                wrapped.push('\n');
            }
            if columns(line) <= width {
                wrapped.push_str(line);
                continue;
            }
            // Leading spaces are indentation, not separators, so they are kept.
            let text = line.trim_start_matches(' ');
            let mut column = line.len() - text.len();
            wrapped.push_str(&line[..column]);
            let mut is_first = true;
            for word in text.split(' ') {
                let length = columns(word);
                // A word that is too long for any line stays on the current one: moving it would only separate it from its label.
                if !is_first && column + 1 + length > width && indent + length <= width {
                    let _ = write!(wrapped, "\n{:indent$}", "");
                    column = indent;
                } else if !is_first {
                    wrapped.push(' ');
                    column += 1;
                }
                wrapped.push_str(word);
                column += length;
                is_first = false;
            }
        }
        wrapped
    }

    /// Formats names and values, one pair per line.
    pub(crate) fn pairs<'a>(self, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let indent = GAP + pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        pairs.iter().fold(String::new(), |mut text, (name, value)| {
            text.push_str(&self.paragraph(&format!("{name:indent$}{value}"), indent));
            text.push('\n');
            text
        })
    }

    /// Formats a table. `right` lists the right-aligned columns, `wide` those that may be squeezed because their text can be wrapped.
    pub(crate) fn table(
        self,
        header: &[&str],
        right: &[usize],
        wide: &[usize],
        rows: impl IntoIterator<Item = Vec<Cell>>,
    ) -> String {
        let rows: Vec<Vec<Cell>> = rows.into_iter().collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if let Some(width) = self.width {
            let natural = widths(header, &rows);
            let gaps = GAP * (header.len() - 1);
            let all =
                |width_of: &dyn Fn(usize) -> usize| (0..header.len()).map(width_of).sum::<usize>() + gaps;
            if all(&|column| natural[column]) > width {
                let squeezed = |column: usize| {
                    let most = if wide.contains(&column) {
                        COLUMN_MIN
                    } else {
                        usize::MAX
                    };
                    natural[column].min(most)
                };
                if all(&squeezed) > width {
                    return self.blocks(header, &rows);
                }
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
            }
        }
        table.set_header(header.iter().map(Cell::new));
        for row in rows {
            table.add_row(row);
        }
        let last = header.len() - 1;
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if !wide.contains(&index) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let mut text = table.trim_fmt();
        text.push('\n');
        text
    }

    /// Returns whether no line of the text is wider than the terminal.
    pub(crate) fn fits(self, text: &str) -> bool {
        self.width
            .is_none_or(|width| text.lines().all(|line| columns(line) <= width))
    }

    /// Formats each row as a block of name-value pairs.
    fn blocks(self, header: &[&str], rows: &[Vec<Cell>]) -> String {
        let names = names(header);
        let blocks: Vec<String> = rows
            .iter()
            .map(|row| {
                let values = row.iter().map(Cell::content);
                self.pairs(names.iter().map(String::as_str).zip(values))
            })
            .collect();
        blocks.join("\n")
    }
}

/// Counts the columns of a line, without its colour escape sequences.
fn columns(line: &str) -> usize {
    let mut count = 0;
    let mut is_paint = false;
    for character in line.chars() {
        match character {
            '\x1b' => is_paint = true,
            'm' if is_paint => is_paint = false,
            _ if is_paint => {}
            _ => count += 1,
        }
    }
    count
}

/// Returns the natural width of each column.
fn widths(header: &[&str], rows: &[Vec<Cell>]) -> Vec<usize> {
    let lines = |text: &str| text.lines().map(columns).max().unwrap_or_default();
    let mut widths: Vec<usize> = header.iter().map(|name| lines(name)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(lines(&cell.content()));
        }
    }
    widths
}

/// Returns the full name of each column. In a two-line header the upper word also applies to the following columns that have none.
fn names(header: &[&str]) -> Vec<String> {
    let mut group = "";
    header
        .iter()
        .map(|name| match name.split_once('\n') {
            Some((upper, lower)) => {
                if !upper.is_empty() {
                    group = upper;
                }
                format!("{group} {lower}").trim_start().to_owned()
            }
            None => (*name).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "a-very-long-machine-name-that-somebody-has-chosen-for-reasons-1";

    fn look(width: usize) -> Look {
        Look {
            colour: false,
            width: Some(width),
        }
    }

    fn rows(names: &[&str]) -> Vec<Vec<Cell>> {
        let row = |name: &&str| {
            [name, "running", "ubuntu", "noble", "arm64"]
                .map(Cell::new)
                .to_vec()
        };
        names.iter().map(row).collect()
    }

    const HEADER: [&str; 5] = ["NAME", "STATE", "DISTRO", "VERSION", "ARCH"];

    /// Returns the sorted characters of a text without whitespace, to check that nothing is lost.
    fn letters(text: &str) -> String {
        let mut letters: Vec<char> = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    #[test]
    fn tables_fit_the_terminal_without_truncation() {
        let whole = Look::default().table(&HEADER, &[], &[0], rows(&["web", LONG]));
        assert_eq!(
            whole.lines().count(),
            3,
            "without a terminal a row is one line: {whole}"
        );
        for width in [50, 60, 80, 100, 200] {
            let text = look(width).table(&HEADER, &[], &[0], rows(&["web", LONG]));
            for line in text.lines() {
                assert!(columns(line) <= width, "{width}: {line}");
            }
            assert_eq!(letters(&text), letters(&whole), "{width}:\n{text}");
        }
        let narrow = look(40).table(&HEADER, &[], &[0], rows(&["web", "db"]));
        assert_eq!(
            narrow,
            Look::default().table(&HEADER, &[], &[0], rows(&["web", "db"]))
        );
    }

    #[test]
    fn a_table_wider_than_the_terminal_becomes_blocks() {
        let header = ["\nOPERATION", "\nCOUNT", "WAIT\np50", "\np99", "RUN\np50"];
        let row = ["restart", "12", "1.2 ms", "34 ms", "5.0 s"]
            .map(Cell::new)
            .to_vec();
        let text = look(32).table(&header, &[1, 2, 3, 4], &[], [row.clone(), row]);
        let block =
            "OPERATION  restart\nCOUNT      12\nWAIT p50   1.2 ms\nWAIT p99   34 ms\nRUN p50    5.0 s\n";
        assert_eq!(text, format!("{block}\n{block}"));
    }

    #[test]
    fn paragraphs_wrap_between_words_with_indentation() {
        let check = |text: &str, indent: usize, expected: &str| {
            assert_eq!(look(30).paragraph(text, indent), expected);
        };
        check("short", 4, "short");
        check(
            "hint: one two three four five six seven",
            6,
            "hint: one two three four five\n      six seven",
        );
        check(
            "     -> a command that fixes it all",
            8,
            "     -> a command that fixes\n        it all",
        );
        check(LONG, 4, LONG);
        check(&format!("name  {LONG}"), 6, &format!("name  {LONG}"));
        check(
            "\x1b[31mred\x1b[0m and words that make it",
            0,
            "\x1b[31mred\x1b[0m and words that make it",
        );
        assert_eq!(
            Look::default().paragraph(&"word ".repeat(40), 4),
            "word ".repeat(40)
        );
    }
}
