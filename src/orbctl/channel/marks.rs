//! Finds the marks of the guest's program in the output of a channel.
//!
//! A mark is one line: the byte 0x1e, the channel's token, a kind and its values. Marks can be anywhere, also in the middle of a
//! line of output, and can be split between reads at any byte. What is not part of a mark is output and passes at once; only bytes
//! that may be the beginning of a mark wait for the next read.

use bytes::{Buf, Bytes, BytesMut};

use super::guest::Token;

/// The byte that begins a mark.
const BEGIN: u8 = 0x1e;

/// Longest mark. The longest value is a path in a guest's home.
const MARK_MAX: usize = 4096;

/// A message of the guest's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// The program runs. Names what it misses in the guest; empty if a channel can be used. On both streams; on stderr without
    /// values.
    Hello {
        /// Programs and files that are missing.
        missing: String,
    },
    /// Answer to the probe with this number.
    Probe(u64),
    /// The input was read; send the command.
    InputRead,
    /// A process writes the input to the command.
    InputForwarded,
    /// Everything that the command itself has written to this stream precedes this mark.
    OutputWhole,
    /// The command is about to start, in a process group of this id.
    Started,
    /// The command is not started: the machine has changed since the channel was opened. Names what changed.
    Declined(String),
    /// The command has ended with this exit status.
    Ended(i32),
    /// No process writes to this stream any more, and everything was copied if the status is 0.
    StreamEnded {
        /// Exit status of the copying program.
        status: i32,
    },
}

/// What a scanner finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// Output of the command.
    Output(Bytes),
    /// A mark.
    Mark(Mark),
}

/// The guest's program sent something that is not a mark although it begins with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel's program sent an invalid message")]
pub(super) struct InvalidMark;

/// Separates the marks of one stream from its output.
#[derive(Debug)]
pub(super) struct Scanner {
    /// [`BEGIN`], the token and a space.
    prefix: Vec<u8>,
    /// Unfinished beginning of a mark.
    held: BytesMut,
}

impl Scanner {
    pub(super) fn new(token: &Token) -> Self {
        let mut prefix = vec![BEGIN];
        prefix.extend(token.as_str().as_bytes());
        prefix.push(b' ');
        Self {
            prefix,
            held: BytesMut::new(),
        }
    }

    /// Appends what was read to `items`, separated.
    pub(super) fn push(&mut self, read: Bytes, items: &mut Vec<Item>) -> Result<(), InvalidMark> {
        let mut rest = if self.held.is_empty() {
            read
        } else {
            self.held.extend_from_slice(&read);
            self.held.split().freeze()
        };
        let mut from = 0;
        while let Some(found) = memchr::memchr(BEGIN, &rest[from..]) {
            let at = from + found;
            let candidate = &rest[at..];
            let known = candidate.len().min(self.prefix.len());
            if candidate[..known] != self.prefix[..known] {
                from = at + 1;
                continue;
            }
            let end = if known < self.prefix.len() {
                None
            } else {
                memchr::memchr(b'\n', candidate)
            };
            let Some(end) = end else {
                if candidate.len() > MARK_MAX {
                    return Err(InvalidMark);
                }
                self.held.extend_from_slice(candidate);
                rest.truncate(at);
                break;
            };
            let mark = parse(&candidate[self.prefix.len()..end]).ok_or(InvalidMark)?;
            push_output(rest.split_to(at), items);
            rest.advance(end + 1);
            items.push(Item::Mark(mark));
            from = 0;
        }
        push_output(rest, items);
        Ok(())
    }
}

fn push_output(bytes: Bytes, items: &mut Vec<Item>) {
    if !bytes.is_empty() {
        items.push(Item::Output(bytes));
    }
}

fn parse(line: &[u8]) -> Option<Mark> {
    let line = String::from_utf8_lossy(line);
    let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
    Some(match kind {
        "H" => Mark::Hello {
            // The first value is the program's pid.
            missing: rest
                .split_once(' ')
                .map_or("", |(_, missing)| missing.trim())
                .to_owned(),
        },
        "P" => Mark::Probe(rest.parse().ok()?),
        "C" => Mark::InputRead,
        "W" => Mark::InputForwarded,
        "O" => Mark::OutputWhole,
        "A" => Mark::Started,
        "N" => Mark::Declined(rest.to_owned()),
        "E" => Mark::Ended(rest.parse().ok()?),
        "Z" => Mark::StreamEnded {
            status: rest.rsplit(' ').next()?.parse().ok()?,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token::new([0x5a; 16])
    }

    fn mark(text: &str) -> Vec<u8> {
        format!("\x1e{} {text}\n", token().as_str()).into_bytes()
    }

    /// Returns the output and the marks of a stream that arrives in these pieces.
    fn scanned(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Mark>) {
        let mut scanner = Scanner::new(&token());
        let (mut output, mut marks) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut items = Vec::new();
            scanner
                .push(Bytes::copy_from_slice(piece), &mut items)
                .expect("valid marks");
            for item in items {
                match item {
                    Item::Output(bytes) => output.extend(bytes),
                    Item::Mark(mark) => marks.push(mark),
                }
            }
        }
        output.extend(&scanner.held);
        (output, marks)
    }

    #[test]
    fn marks_are_found_wherever_the_stream_is_split() {
        let mut stream = mark("A 17");
        stream.extend(b"one \x1e line\x1e");
        stream.extend(mark("E 3"));
        stream.extend(b"late");
        stream.extend(mark("Z 1 0"));
        let expected = (
            b"one \x1e line\x1elate".to_vec(),
            vec![Mark::Started, Mark::Ended(3), Mark::StreamEnded { status: 0 }],
        );
        for at in 0..=stream.len() {
            let (before, after) = stream.split_at(at);
            assert_eq!(scanned(&[before, after]), expected, "split at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(scanned(&bytes), expected);
    }

    #[test]
    fn output_that_resembles_a_mark_is_output() {
        let whole = mark("E 0");
        for length in 1..whole.len() - 4 {
            let mut stream = whole[..length].to_vec();
            stream.extend(b"!\n");
            if length > 34 {
                continue;
            }
            assert_eq!(
                scanned(&[&stream]),
                (stream.clone(), vec![]),
                "{length} bytes of a mark"
            );
        }
    }

    #[test]
    fn only_the_beginning_of_a_mark_is_held_back() {
        let mut scanner = Scanner::new(&token());
        let mut items = Vec::new();
        scanner
            .push(Bytes::from_static(b"progress: 10%"), &mut items)
            .expect("valid");
        assert_eq!(items, [Item::Output(Bytes::from_static(b"progress: 10%"))]);
        assert!(scanner.held.is_empty());
        items.clear();
        scanner
            .push(Bytes::from_static(b"x\x1e"), &mut items)
            .expect("valid");
        assert_eq!(items, [Item::Output(Bytes::from_static(b"x"))]);
        assert!(!scanner.held.is_empty());
        items.clear();
        scanner.push(Bytes::from_static(b"y"), &mut items).expect("valid");
        assert_eq!(items, [Item::Output(Bytes::from_static(b"\x1ey"))]);
    }

    #[test]
    fn invalid_and_endless_marks_are_errors() {
        let push = |bytes: Vec<u8>| Scanner::new(&token()).push(bytes.into(), &mut Vec::new());
        assert_eq!(push(mark("Q")), Err(InvalidMark));
        assert_eq!(push(mark("E x")), Err(InvalidMark));
        let mut endless = mark("N ");
        endless.pop();
        endless.extend(vec![b'x'; MARK_MAX]);
        assert_eq!(push(endless), Err(InvalidMark));
    }

    proptest! {
        #[test]
        fn output_passes_unchanged_in_any_pieces(
            output in prop::collection::vec(prop_oneof![Just(BEGIN), Just(b'5'), Just(b'a'), any::<u8>()], 0..300),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            place in any::<prop::sample::Index>(),
        ) {
            let place = place.index(output.len() + 1);
            let mut stream = output[..place].to_vec();
            stream.extend(mark("E 7"));
            stream.extend(&output[place..]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(scanned(&pieces), (output, vec![Mark::Ended(7)]));
        }
    }
}
