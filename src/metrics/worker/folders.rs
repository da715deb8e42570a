//! The folders of the stores and the small files beside them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::metrics::store::is_of_the_disk;

/// Maximum number of set-aside stores kept; the oldest are removed.
const SET_ASIDE_MAX: usize = 3;

pub(super) fn mark(folder: &Path, kind: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(kind);
    name.into()
}

pub(super) fn write_count(folder: &Path, next_seq: u64) {
    // An error is harmless: without a current count, lost records may go undetected.
    let _ = write_private(&mark(folder, "count"), next_seq.to_string().as_bytes());
}

/// Writes a file with mode 0600.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(bytes)
}

pub(super) fn make_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Returns the numbers of the existing stores in ascending order.
pub(super) fn store_numbers(root: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("store-"))
            .and_then(|rest| rest.parse().ok());
        if let Some(number) = number
            && entry.path().is_dir()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns an error if a file of 1 MiB cannot be written because the disk is full or not writable.
pub(super) fn probe_disk(root: &Path) -> io::Result<()> {
    let path = root.join(".probe");
    let result = write_private(&path, &vec![0; 1 << 20]);
    let _ = fs::remove_file(&path);
    match result {
        Err(error) if is_of_the_disk(&error) => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn remove_oldest_set_aside(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let mut all: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains(".set-aside-"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    let surplus = all.len().saturating_sub(SET_ASIDE_MAX);
    for (_, path) in all.drain(..surplus) {
        tracing::warn!(folder = %path.display(), "removing the oldest damaged metrics store");
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(folder = %path.display(), %error, "cannot remove the damaged metrics store");
        }
    }
}
