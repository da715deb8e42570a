//! Encodes notifications as complete lines; output is encoded in one pass.
//!
//! A gigabyte of output is sixteen thousand events. jsonrpsee would copy each into a value, encode it, and encode it again into its
//! envelope. Here the envelope is encoded from the same wire types without the bytes, and the bytes are inserted last.

use base64::Engine as _;
use jsonrpsee::types::{SubscriptionId, SubscriptionPayload, SubscriptionResponse};
use serde::Serialize;

use super::encoding::{self, BASE64};
use crate::spool;
use orbd_proto::types::JobEvent;

/// What follows a chunk's bytes: the ends of the string, the event, the parameters and the notification.
const TAIL: &[u8] = b"\"}}}";

/// Estimated size of an envelope, in bytes.
const ENVELOPE: usize = 256;

/// The common part of a subscription's notifications.
pub(super) struct Envelope<'a> {
    pub(super) method: &'a str,
    pub(super) subscription: SubscriptionId<'static>,
}

/// Encodes an event as a line.
pub(super) fn line(envelope: Envelope<'_>, event: &impl Serialize) -> Option<Vec<u8>> {
    let mut line = Vec::with_capacity(ENVELOPE);
    encode(envelope, event, &mut line)?;
    line.push(b'\n');
    Some(line)
}

/// Encodes output as a line. The result is the same as that of [`line`] with [`encoding::chunk`].
pub(super) fn output_line(envelope: Envelope<'_>, chunk: &spool::Chunk) -> Option<Vec<u8>> {
    let bytes = &chunk.bytes[..];
    let text = std::str::from_utf8(bytes).ok();
    let empty = JobEvent::Output(encoding::chunk_with(
        chunk,
        text.is_some().then(String::new),
        text.is_none().then(String::new),
    ));
    let room = match text {
        // Room for one escape per eight characters before the buffer has to grow.
        Some(text) => text.len() + text.len() / 8,
        None => bytes.len().div_ceil(3) * 4,
    };
    let mut line = Vec::with_capacity(ENVELOPE + room);
    encode(envelope, &empty, &mut line)?;
    debug_assert!(line.ends_with(TAIL), "the bytes are the last field");
    line.truncate(line.len() - TAIL.len());
    if let Some(text) = text {
        // serde_json writes the quotes itself.
        line.pop();
        serde_json::to_writer(&mut line, text).ok()?;
        line.pop();
    } else {
        let start = line.len();
        line.resize(start + bytes.len().div_ceil(3) * 4, 0);
        BASE64.encode_slice(bytes, &mut line[start..]).ok()?;
    }
    line.extend_from_slice(TAIL);
    line.push(b'\n');
    Some(line)
}

fn encode(envelope: Envelope<'_>, event: &impl Serialize, to: &mut Vec<u8>) -> Option<()> {
    let payload = SubscriptionPayload {
        subscription: envelope.subscription,
        result: event,
    };
    let notification = SubscriptionResponse::new(envelope.method.into(), payload);
    serde_json::to_writer(to, &notification).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn output_lines_match_the_general_encoding() {
        let every_byte: Vec<u8> = (0..=u8::MAX).cycle().take(1000).collect();
        let pieces: [&[u8]; 9] = [
            b"",
            b"plain\n",
            b"\"quoted\" \\ \x00\x1b[1m\t\x7f",
            "\u{e4}\u{2028}\u{1f980}".as_bytes(),
            b"\xff",
            b"\xff1",
            b"\xff12",
            &every_byte,
            // A character that is split between two pieces.
            &"\u{1f980}".as_bytes()[..2],
        ];
        for (number, piece) in (0..).zip(pieces) {
            for stream in [spool::Stream::Stdout, spool::Stream::Stderr] {
                let chunk = spool::Chunk {
                    stream,
                    at: Duration::from_micros(number * 1000),
                    offset: number,
                    bytes: bytes::Bytes::copy_from_slice(piece),
                };
                let envelope = || Envelope {
                    method: "job.event",
                    subscription: SubscriptionId::Num(number),
                };
                let expected = line(envelope(), &JobEvent::Output(encoding::chunk(&chunk)));
                assert!(expected.is_some());
                assert_eq!(output_line(envelope(), &chunk), expected, "{piece:?}");
            }
        }
    }
}
