//! The journal's file beside the object's.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::journaled::{JournalOptions, Journaled, require_writable};
use super::record::{HEADER_BYTES, Header, Record, has_magic};
use super::recover::{Found, find, foreign};
use crate::{BackingStore, FileStore, Result, StoreError};

/// What the name of a journal ends with.
const SUFFIX: &str = ".omnimap-journal";

/// Where the journal of a file is: in its directory, under its name and `.omnimap-journal`.
///
/// Symbolic links are followed first, so that all names of a file lead to one journal; hard links do not.
pub fn path_for(object: impl AsRef<Path>) -> PathBuf {
    let object = object.as_ref();
    let mut path = object.canonicalize().unwrap_or_else(|_| object.to_owned()).into_os_string();
    path.push(SUFFIX);
    path.into()
}

/// Puts the journal of a file before it: [`Journaled::open`] with a journal that is a file, locked (flock(2)) as long as
/// the store lives.
///
/// `object` is the file at `object_path`, opened for writing. The journal is at `journal_path`, or else where
/// [`path_for`] says; it may be read and written by those who may do so with the object. It is made if it is not there,
/// and removed when the store is dropped, unless it still holds a transaction that could not be applied.
///
/// # Errors
/// Those of [`Journaled::open`]; if the file cannot be made or opened; if another process has it locked.
pub fn open_file(
    object: Arc<dyn BackingStore>,
    object_path: impl AsRef<Path>,
    journal_path: Option<&Path>,
    options: JournalOptions,
) -> Result<Journaled> {
    let object_path = object_path.as_ref();
    let path = journal_path.map_or_else(|| path_for(object_path), Path::to_owned);
    let mode = std::fs::metadata(object_path).map_or(0o600, |metadata| metadata.mode() & 0o666);
    // Else a journal would be left that nobody removes.
    require_writable(&*object)?;
    let file = JournalFile::open(path, mode)?;
    let mut journaled = Journaled::open(object, file.store()?, options)?;
    journaled.file = Some(file);
    Ok(journaled)
}

/// Refuses a file that a crash has left half written, for whoever wants to use it without its journal.
///
/// While a process has it locked, what the journal holds is that process's affair.
///
/// # Errors
/// [`StoreError::Unusable`], which says how to recover; if the journal cannot be read.
pub fn refuse_half_written(object_path: &Path) -> Result<()> {
    let path = path_for(object_path);
    let journal = match FileStore::open(&path) {
        Ok(journal) => journal,
        Err(StoreError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // Without the lock first: holding it, for however short, would turn a writer away that comes just then.
    let holds = |journal: &FileStore| {
        Ok::<_, StoreError>(match find(journal)? {
            Found::Transaction(transaction) => Some(transaction.sequence()),
            Found::Foreign | Found::Nothing { .. } => None,
        })
    };
    // Written to while it was read: somebody is alive.
    let alive = |outcome: Result<Option<u64>>| match outcome {
        Err(StoreError::Changed { .. } | StoreError::Short { .. }) => Ok(None),
        outcome => outcome,
    };
    let Some(sequence) = alive(holds(&journal))? else { return Ok(()) };
    let failed = |source| StoreError::Open { name: path.display().to_string(), source };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(failed)?,
    };
    let unusable = |reason| Err(StoreError::Unusable { name: object_path.display().to_string(), reason });
    let is_locked = !lock_shared(&file).map_err(failed)?;
    let again = FileStore::from_file(path.display().to_string(), file.try_clone().map_err(failed)?)?;
    if is_locked {
        // A child that was forked by a dead writer has the lock of it. A live one goes on to its next transaction soon.
        return match alive(holds(&again))? {
            Some(same) if same == sequence => unusable(
                "is being brought up to date by another process, or one that wrote to it has died and left its lock to a child: \
                 try again, or end that child and run omnimap recover"
                    .to_owned(),
            ),
            _ => Ok(()),
        };
    }
    if holds(&again)?.is_none() {
        return Ok(());
    }
    unusable(format!(
        "is half written: a crash left a transaction in its journal; run: omnimap recover {}",
        object_path.display()
    ))
}

/// As [`refuse_half_written`], for whoever wants to write to a file past its journal: that it holds nothing is durable then, and
/// no power cut brings back what it held before, to be applied over what is written now.
///
/// # Errors
/// As there; if that cannot be made durable.
pub fn make_way(object_path: &Path) -> Result<()> {
    refuse_half_written(object_path)?;
    let path = path_for(object_path);
    let settled = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.and_then(|journal| journal.sync_all()),
    };
    settled.map_err(|source| StoreError::Open { name: path.display().to_string(), source })
}

/// Locks a journal to be looked at; `false` if a process has it that stays.
///
/// A child that was forked a moment ago has the lock of its parent, dead or alive, until it runs its own program (flock(2)).
fn lock_shared(file: &File) -> io::Result<bool> {
    for _ in 0..TRIES_MAX {
        match flock(file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(TRY_AGAIN),
            outcome => return outcome.map(|()| true).map_err(Into::into),
        }
    }
    Ok(false)
}

/// A journal's file, locked.
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// The process that locked it.
    made_in: u32,
}

/// How often, and how far apart, a lock is tried for: whoever looks whether a journal holds something has it that long.
const TRIES_MAX: usize = 10;
const TRY_AGAIN: Duration = Duration::from_millis(10);

impl JournalFile {
    fn open(path: PathBuf, mode: u32) -> Result<JournalFile> {
        let failed = |source| StoreError::Open { name: path.display().to_string(), source };
        for _ in 0..TRIES_MAX {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                // Somebody's link could lead to another's file.
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32)
                .open(&path)
                .map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    std::thread::sleep(TRY_AGAIN);
                    continue;
                }
                outcome => outcome.map_err(|e| failed(e.into()))?,
            }
            // Whoever had it locked may have removed it.
            let metadata = file.metadata().map_err(failed)?;
            if !is_at(&metadata, &path) {
                continue;
            }
            claim(&file, &path)?;
            // Made durable before it holds anything: a journal that a power cut takes away recovers nothing.
            sync_directory(&path).map_err(failed)?;
            return Ok(JournalFile { path, file, made_in: std::process::id() });
        }
        Err(StoreError::Unusable {
            name: path.display().to_string(),
            reason: "is being written by another process; wait until that has ended".to_owned(),
        })
    }

    /// The file's bytes, as a store.
    fn store(&self) -> Result<Arc<dyn BackingStore>> {
        // Through the descriptor, for the path may be another file's by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(Arc::new(FileStore::open_writable_as(self.path.display().to_string(), Path::new(&path))?))
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.made_in == std::process::id()
    }

    /// Removes the file, for good: if it came back with the transaction that it had last, that would be applied over what
    /// others have written to the object since.
    pub(super) fn remove(&self) {
        // Nobody is there to be told of a failure; a journal that stays is applied again to the same effect.
        let Ok(metadata) = self.file.metadata() else { return };
        if is_at(&metadata, &self.path) && std::fs::remove_file(&self.path).is_ok() {
            let _ = sync_directory(&self.path);
        }
    }
}

/// Refuses a file that is no journal; sees to it that one that begins has a header for good before it grows. So a longer file
/// whose magic is zeros is somebody else's.
fn claim(file: &File, path: &Path) -> Result<()> {
    let failed = |source| StoreError::Open { name: path.display().to_string(), source };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(foreign(&path.display().to_string()));
    }
    let length = metadata.len();
    let mut block = vec![0; length.min(HEADER_BYTES) as usize];
    file.read_exact_at(&mut block, 0).map_err(failed)?;
    let begins = length <= HEADER_BYTES;
    let record = match Header::decode(&block) {
        Header::Foreign => return Err(foreign(&path.display().to_string())),
        Header::Torn if begins => Record { sequence: 0, commit: None },
        Header::Torn if !has_magic(&block) => return Err(foreign(&path.display().to_string())),
        // Whoever was killed may have written it and not made it durable.
        Header::Written(record) if begins => record,
        // What is unknown is told by who reads it.
        Header::Torn | Header::Written(_) | Header::Unknown(_) => return Ok(()),
    };
    file.write_all_at(&record.encode(), 0).and_then(|()| file.sync_all()).map_err(failed)
}

/// Whether a file is the one at a path.
fn is_at(file: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (file.dev(), file.ino()))
}

/// Makes the names in the directory of `path` durable (fsync(2): that of a file does not).
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
