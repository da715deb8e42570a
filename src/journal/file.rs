//! The journal's file: its header, its lock, and setting aside a damaged file.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::contents::{HEADER, JournalError, MAGIC, Recovered};
use super::entry::{checksum, find_salt};
use super::replay::Replay;

/// Result of opening and repairing the journal's file.
pub(super) struct Opened {
    /// `None` if the file neither exists nor can be created.
    pub(super) file: Option<File>,
    pub(super) salt: u32,
    pub(super) replay: Replay,
    pub(super) recovered: Recovered,
    /// A failed write: the file must be replaced before it can be relied on.
    pub(super) problem: Option<Problem>,
}

/// Why the file is incomplete.
pub(super) struct Problem {
    pub(super) error: io::Error,
    /// Whether replacing the file would lose data, so that it has to be set aside.
    pub(super) keeps_old: bool,
}

impl Opened {
    /// Reads the file, and repairs it as far as the file system allows. `None` if a newer version has written entries that this one does
    /// not know; the file is unchanged then.
    pub(super) fn read(path: &Path, located: Located, unix_seconds: u64) -> io::Result<Option<Self>> {
        let Located { file, error } = located;
        let mut bytes = Vec::new();
        if let Some(file) = &file {
            (&*file).read_to_end(&mut bytes)?;
        }
        let is_new = bytes.is_empty();
        let (salt, is_header_intact) = match read_header(&bytes) {
            Header::Intact(salt) => (salt, true),
            Header::CutShort => (new_salt(), true),
            Header::Damaged => (find_salt(&bytes).unwrap_or_else(new_salt), false),
            Header::Newer => return Ok(None),
        };
        // If the header is damaged, the whole file is searched for entries, as after any other damage.
        let entries = if is_header_intact {
            bytes.get(HEADER..).unwrap_or_default()
        } else {
            &bytes
        };
        let mut replay = Replay::read(salt, entries);
        if replay.is_newer {
            return Ok(None);
        }
        replay.damaged |= !is_header_intact;
        if replay.damaged {
            replay.mark_uncertain(salt);
        }
        let mut recovered = replay.recovered(entries.len() as u64);
        if bytes.len() < HEADER && is_header_intact {
            recovered.torn_bytes = bytes.len() as u64;
        }
        let mut opened = Self {
            file,
            salt,
            replay,
            recovered,
            problem: None,
        };
        let repaired = match error {
            Some(error) => Err(error),
            None if opened.replay.damaged => opened.set_aside(path, unix_seconds),
            None if bytes.len() < HEADER => opened.begin(),
            None if opened.recovered.torn_bytes > 0 => opened.cut_off_tail(path),
            None => Ok(()),
        };
        if let Err(error) = repaired {
            tracing::error!(path = %path.display(), %error, "cannot write the journal");
            opened.problem = Some(Problem {
                error,
                keeps_old: opened.replay.damaged && !is_new,
            });
        }
        Ok(Some(opened))
    }

    /// Replaces a damaged file with its intact entries, and keeps the damaged one under another name.
    fn set_aside(&mut self, path: &Path, unix_seconds: u64) -> io::Result<()> {
        let mut contents = header(self.salt);
        contents.extend(self.replay.jobs.values().flat_map(|job| &job.frames));
        let aside = name_aside(path, unix_seconds);
        let file = write_new(&with_suffix(path, ".new"), &contents)?;
        replace(path, Some(&aside))?;
        tracing::error!(
            path = %path.display(),
            set_aside = %aside.display(),
            jobs = self.replay.jobs.len(),
            "the journal was damaged; its intact entries were kept and the damaged file was set aside"
        );
        self.file = Some(file);
        self.recovered.set_aside = Some(aside);
        Ok(())
    }

    /// Starts a new file with its header.
    fn begin(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.set_len(0)?;
        file.write_all(&header(self.salt))
    }

    fn cut_off_tail(&mut self, path: &Path) -> io::Result<()> {
        tracing::warn!(
            path = %path.display(),
            bytes = self.recovered.torn_bytes,
            "removing the journal's last entry, which was cut short"
        );
        match &self.file {
            Some(file) => file.set_len(HEADER as u64 + self.replay.valid),
            None => Ok(()),
        }
    }
}

enum Header {
    /// The file is empty or ends within the header.
    CutShort,
    Intact(u32),
    Damaged,
    /// Written in a later version of the format.
    Newer,
}

fn read_header(bytes: &[u8]) -> Header {
    let (magic, rest) = bytes.split_at(bytes.len().min(MAGIC.len()));
    if !MAGIC.starts_with(magic) {
        return if is_newer_format(bytes) {
            Header::Newer
        } else {
            Header::Damaged
        };
    }
    let Some((salt, rest)) = rest.split_first_chunk::<4>() else {
        return Header::CutShort;
    };
    match rest.split_first_chunk::<4>() {
        Some((crc, _)) if u32::from_le_bytes(*crc) == checksum(salt) => {
            Header::Intact(u32::from_le_bytes(*salt))
        }
        Some(_) => Header::Damaged,
        None => Header::CutShort,
    }
}

/// Returns whether the file begins like a journal of a later format: the same name, and a greater number.
fn is_newer_format(bytes: &[u8]) -> bool {
    let name = MAGIC.split(|byte| *byte == b' ').next().unwrap_or_default();
    let line = bytes
        .get(..32.min(bytes.len()))
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
        .next();
    let version = line
        .and_then(|line| line.strip_prefix(name)?.strip_prefix(b" "))
        .and_then(|number| std::str::from_utf8(number).ok()?.parse::<u32>().ok());
    version.is_some_and(|version| version > 1)
}

/// Reads the journal without locking or repairing it. Returns what it holds; `None` if a newer version has written entries that this one
/// does not know.
pub(super) fn peek(path: &Path) -> io::Result<Option<Recovered>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Recovered::default())),
        Err(error) => return Err(error),
    };
    let salt = match read_header(&bytes) {
        Header::Intact(salt) => salt,
        Header::Newer => return Ok(None),
        // Nothing in it, or damage, which the start repairs.
        Header::CutShort | Header::Damaged => return Ok(Some(Recovered::default())),
    };
    let entries = bytes.get(HEADER..).unwrap_or_default();
    let replay = Replay::read(salt, entries);
    Ok((!replay.is_newer).then(|| replay.recovered(entries.len() as u64)))
}

/// Renames the journal, so that the next start begins with an empty one. Returns its new path; `None` if there is no journal.
pub(super) fn move_aside(path: &Path, unix_seconds: u64) -> io::Result<Option<PathBuf>> {
    let aside = name_aside(path, unix_seconds);
    match fs::rename(path, &aside) {
        Ok(()) => sync_folder_of(path).map(|()| Some(aside)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn header(salt: u32) -> Vec<u8> {
    let salt = salt.to_le_bytes();
    [MAGIC.as_slice(), &salt, &checksum(&salt).to_le_bytes()].concat()
}

fn new_salt() -> u32 {
    // The keys of a new hasher are random, and so is its hash of empty input.
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).expect("half of it is left")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// The journal's file as it was found and locked.
pub(super) struct Located {
    /// `None` if the file neither exists nor can be created.
    pub(super) file: Option<File>,
    /// Why the file cannot be written; `None` if it can.
    pub(super) error: Option<io::Error>,
}

/// Opens the file for writing, or if that fails for reading.
///
/// A file that exists but cannot be read is an error: it may hold acknowledged changes.
fn open(path: &Path) -> io::Result<Located> {
    let error = match options().open(path) {
        Ok(file) => {
            return Ok(Located {
                file: Some(file),
                error: None,
            });
        }
        Err(error) => error,
    };
    match File::open(path) {
        Ok(file) => Ok(Located {
            file: Some(file),
            error: Some(error),
        }),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(Located {
            file: None,
            error: Some(error),
        }),
        Err(_) => Err(error),
    }
}

/// Opens and locks the file. If the file is replaced in between, starts over.
pub(super) fn open_locked(path: &Path) -> Result<Located, JournalError> {
    let io = |source| JournalError::Io {
        doing: "open",
        path: path.to_owned(),
        source,
    };
    let mut tries = 20;
    loop {
        let located = open(path).map_err(io)?;
        let Some(file) = &located.file else {
            return Ok(located);
        };
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A child that a dying predecessor was spawning holds the lock until it executes its program.
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
            return Ok(located);
        }
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates a new file with these contents next to the journal, locked and synced.
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

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Returns an unused name for a file that is set aside.
pub(super) fn name_aside(path: &Path, unix_seconds: u64) -> PathBuf {
    let mut aside = with_suffix(path, &format!(".set-aside-{unix_seconds}"));
    while aside.exists() {
        aside = with_suffix(&aside, "x");
    }
    aside
}

/// Renames the new file over the journal, after keeping the old one under the name `aside`. The path always names a journal, the old one
/// or the new one.
pub(super) fn replace(path: &Path, aside: Option<&Path>) -> io::Result<()> {
    if let Some(aside) = aside
        && let Err(error) = fs::hard_link(path, aside)
        // An earlier attempt may already have created the link.
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    fs::rename(with_suffix(path, ".new"), path)?;
    sync_folder_of(path)
}
