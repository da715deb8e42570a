//! The journal's file: its header, its lock, and how a damaged one is set aside.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::replay::Replay;
use super::{HEADER, JournalError, MAGIC, Recovered};

/// A journal's file, read and mended.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) salt: u32,
    pub(super) replay: Replay,
    pub(super) recovered: Recovered,
}

impl Opened {
    pub(super) fn read(path: &Path, mut file: File, unix_seconds: u64) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let salt = match read_header(&bytes) {
            Header::Ours(salt) => salt,
            Header::Foreign => {
                let salt = new_salt();
                let (file, aside) = replace(path, &header(salt), unix_seconds)?;
                tracing::error!(
                    path = %path.display(),
                    set_aside = %aside.display(),
                    "the journal is not of this version: it was set aside and a new one is begun"
                );
                return Ok(Self {
                    file,
                    salt,
                    replay: Replay::default(),
                    recovered: Recovered {
                        set_aside: Some(aside),
                        ..Recovered::default()
                    },
                });
            }
            Header::Torn => {
                let salt = new_salt();
                file.set_len(0)?;
                file.write_all(&header(salt))?;
                return Ok(Self {
                    file,
                    salt,
                    replay: Replay::default(),
                    recovered: Recovered {
                        clean: bytes.is_empty(),
                        torn_bytes: bytes.len() as u64,
                        ..Recovered::default()
                    },
                });
            }
        };
        let entries = &bytes[HEADER..];
        let mut replay = Replay::read(salt, entries);
        let mut recovered = replay.recovered(entries.len() as u64);
        if replay.damaged {
            replay.write_doubts(salt);
            let mut rest = header(salt);
            rest.extend(replay.jobs.values().flat_map(|job| &job.frames));
            let (mended, aside) = replace(path, &rest, unix_seconds)?;
            tracing::error!(
                path = %path.display(),
                set_aside = %aside.display(),
                "the journal is damaged: it was set aside and what can be read is kept"
            );
            file = mended;
            recovered.set_aside = Some(aside);
        } else if recovered.torn_bytes > 0 {
            tracing::warn!(
                path = %path.display(),
                bytes = recovered.torn_bytes,
                "the journal's last entry was cut short: it is removed"
            );
            file.set_len(HEADER as u64 + replay.valid)?;
        }
        Ok(Self {
            file,
            salt,
            replay,
            recovered,
        })
    }
}

enum Header {
    /// The file ends within it, or is empty.
    Torn,
    Ours(u32),
    Foreign,
}

fn read_header(bytes: &[u8]) -> Header {
    if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
        return Header::Foreign;
    }
    match bytes
        .get(MAGIC.len()..HEADER)
        .and_then(|salt| salt.try_into().ok())
    {
        Some(salt) => Header::Ours(u32::from_le_bytes(salt)),
        None => Header::Torn,
    }
}

pub(super) fn header(salt: u32) -> Vec<u8> {
    [MAGIC.as_slice(), &salt.to_le_bytes()].concat()
}

fn new_salt() -> u32 {
    // The keys of a fresh hasher are random; so is the hash of nothing.
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).expect("half of it is left")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// Opens the file and locks it; a rename may come in between, so it looks again.
pub(super) fn open_locked(path: &Path) -> Result<File, JournalError> {
    let io = |source| JournalError::Io {
        doing: "open",
        path: path.to_owned(),
        source,
    };
    let mut tries = 20;
    loop {
        let file = options().open(path).map_err(io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A child that a dying predecessor was just spawning holds the lock until it executes.
            Err(rustix::io::Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(io(error.into())),
        }
        let ours = file.metadata().map_err(io)?;
        if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a new file beside the journal, locked, with these contents, on disk.
pub(super) fn write_new(path: &Path, contents: &[u8]) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(contents)?;
    file.sync_all()?;
    Ok(file)
}

pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Puts new contents in the journal's place and keeps the old file under a new name; there is a journal at any moment.
fn replace(path: &Path, contents: &[u8], unix_seconds: u64) -> io::Result<(File, PathBuf)> {
    let mut aside = with_suffix(path, &format!(".set-aside-{unix_seconds}"));
    while aside.exists() {
        aside = with_suffix(&aside, "x");
    }
    let new = with_suffix(path, ".new");
    let file = write_new(&new, contents)?;
    fs::hard_link(path, &aside)?;
    fs::rename(&new, path)?;
    sync_folder_of(path)?;
    Ok((file, aside))
}
