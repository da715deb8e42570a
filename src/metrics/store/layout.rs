//! Keys and metadata as they are stored.

use serde::{Deserialize, Serialize};

use super::error::Trouble;
use crate::metrics::query::Cursor;
use crate::metrics::rollup::Series;

pub(super) const META_KEY: &[u8] = b"m";

const META_VERSION: u8 = 1;

/// Metadata of the store, updated with every batch. `records`, `hours`, `days` and `spans` are numbers of rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    /// When the store was created, in Unix milliseconds.
    pub(super) born_ms: u64,
    pub(super) next_seq: u64,
    pub(super) records: u64,
    /// All records that ended at this time or later are still there, in Unix milliseconds.
    pub(super) records_from_ms: u64,
    pub(super) hours: u64,
    /// The cells of this hour and all later ones are still there.
    pub(super) hours_from: u32,
    pub(super) days: u64,
    /// The cells of all days before this one were computed. A record that arrives later for such a day is added to its cell directly.
    pub(super) days_to: u32,
    pub(super) spans: u64,
    /// The cells of all spans before this one were computed.
    pub(super) spans_to: u32,
}

pub(super) fn record_key(ended_ms: u64, seq: u32) -> [u8; 13] {
    let mut key = [b'o'; 13];
    key[1..9].copy_from_slice(&ended_ms.to_be_bytes());
    key[9..].copy_from_slice(&seq.to_be_bytes());
    key
}

pub(super) fn read_record_key(key: &[u8]) -> Result<Cursor, Trouble> {
    let damaged = || Trouble::Damaged("a record's key has the wrong length".into());
    let rest = key.get(1..13).filter(|_| key.len() == 13).ok_or_else(damaged)?;
    let (ms, seq) = rest.split_at(8);
    Ok(Cursor {
        ended_ms: u64::from_be_bytes(ms.try_into().map_err(|_| damaged())?),
        seq: u32::from_be_bytes(seq.try_into().map_err(|_| damaged())?),
    })
}

pub(super) fn read_cell_key(key: &[u8]) -> Result<(u32, Series), Trouble> {
    let damaged = || Trouble::Damaged("a roll-up's key cannot be read".into());
    let bucket = key
        .get(2..6)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(damaged)?;
    let series = Series::from_key(&key[6..]).ok_or_else(damaged)?;
    Ok((u32::from_be_bytes(bucket), series))
}

pub(super) fn read_meta(bytes: &[u8]) -> Result<Meta, Trouble> {
    match bytes {
        [META_VERSION, body @ ..] => postcard::from_bytes(body)
            .map_err(|_| Trouble::Damaged("the store's metadata cannot be read".into())),
        [version, ..] => Err(Trouble::Damaged(format!(
            "the store has the unknown version {version}"
        ))),
        [] => Err(Trouble::Damaged("the store's metadata is empty".into())),
    }
}

pub(super) fn write_meta(meta: &Meta) -> Vec<u8> {
    postcard::to_extend(meta, vec![META_VERSION]).expect("encoding metadata in memory succeeds")
}
