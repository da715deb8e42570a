//! How text fits a terminal: tables, pairs of name and value, paragraphs. Nothing is ever cut off: what does not fit is wrapped
//! where it reads best, and a table that cannot be made narrow enough becomes a block of lines for each row.
//!
//! Where nobody looks (a pipe, a file) there is no width, and a row is a line.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

/// How a stream is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// In colours.
    pub(crate) colour: bool,
    /// So many columns wide; `None` where nobody looks.
    pub(crate) width: Option<usize>,
}

/// Below this nothing is laid out: the terminal may wrap as it likes.
const WIDTH_MIN: usize = 30;

/// The least that a wide column is squeezed to.
const COLUMN_MIN: usize = 12;

/// Columns between columns.
const GAP: usize = 2;

impl Look {
    /// Looks at one of our streams.
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

    /// Breaks a paragraph at its blanks; what follows its first line is `indent` columns in. Lines of its own stay lines.
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
            // What a line begins with is its place in a layout, not a blank between words.
            let text = line.trim_start_matches(' ');
            let mut column = line.len() - text.len();
            wrapped.push_str(&line[..column]);
            let mut is_first = true;
            for word in text.split(' ') {
                let length = columns(word);
                // What is too long for any line stays where it is: a name that is torn off its label is harder to find.
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

    /// Lays out names and values, one pair a line.
    pub(crate) fn pairs<'a>(self, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let indent = GAP + pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        pairs.iter().fold(String::new(), |mut text, (name, value)| {
            text.push_str(&self.paragraph(&format!("{name:indent$}{value}"), indent));
            text.push('\n');
            text
        })
    }

    /// Lays out rows in columns two blanks apart. `right` names the columns of numbers, `wide` those that may be squeezed because
    /// what is in them can be read on several lines.
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

    /// Says whether a text fits.
    pub(crate) fn fits(self, text: &str) -> bool {
        self.width
            .is_none_or(|width| text.lines().all(|line| columns(line) <= width))
    }

    /// Writes each row as a block of names and values.
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

/// Counts the columns of a line, without what only paints.
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

/// Returns how wide each column wants to be.
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

/// Returns what each column is called by itself: in a header of two lines the upper word counts for those that follow too.
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

    /// Nothing is lost: without blanks and line ends, the text is the same.
    fn letters(text: &str) -> String {
        let mut letters: Vec<char> = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        letters.sort_unstable();
        letters.into_iter().collect()
    }

    #[test]
    fn a_table_fits_every_terminal_and_nothing_is_cut() {
        let whole = Look::default().table(&HEADER, &[], &[0], rows(&["web", LONG]));
        assert_eq!(
            whole.lines().count(),
            3,
            "a row is a line where nobody looks: {whole}"
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
    fn a_table_that_cannot_be_narrow_enough_becomes_blocks() {
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
    fn a_paragraph_breaks_between_words_and_goes_on_where_it_began() {
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
            "     -> a command that mends it all",
            8,
            "     -> a command that mends\n        it all",
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
