//! Bytes on the wire: output is text if it is UTF-8, and base64 otherwise.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::PAD;
use bytes::Bytes;

use super::convert::us;
use crate::spool;
use orbd_proto::errors::invalid;
use orbd_proto::types::{self, ErrorObject};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Base64 = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Base64 = base64::engine::GeneralPurpose;

/// The standard alphabet with padding, using SIMD instructions where available.
pub(super) static BASE64: LazyLock<Base64> = LazyLock::new(|| {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return Base64::standard(PAD);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Base64::new(&base64::alphabet::STANDARD, PAD);
});

/// Decodes base64. The error names `field`.
pub(super) fn bytes_of(field: &str, base64: &str) -> Result<Bytes, ErrorObject> {
    BASE64
        .decode(base64)
        .map(Bytes::from)
        .map_err(|error| invalid(field, format!("invalid base64: {error}")))
}

/// Converts a piece of output.
pub(super) fn chunk(chunk: &spool::Chunk) -> types::Chunk {
    let (text, base64) = text_or_base64(&chunk.bytes);
    chunk_with(chunk, text, base64)
}

/// Encodes bytes as text if they are UTF-8, else as base64.
pub(super) fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

/// Converts a piece of output whose bytes the caller has encoded.
pub(super) fn chunk_with(chunk: &spool::Chunk, text: Option<String>, base64: Option<String>) -> types::Chunk {
    let stream = match chunk.stream {
        spool::Stream::Stdout => types::Stream::Stdout,
        spool::Stream::Stderr => types::Stream::Stderr,
    };
    types::Chunk {
        stream,
        offset: chunk.offset,
        at_us: us(chunk.at),
        text,
        base64,
    }
}
