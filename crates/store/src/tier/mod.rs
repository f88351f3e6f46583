//! A directory that keeps what was fetched from far away, across runs and for many processes.
//!
//! ```text
//! DIRECTORY/usage                 how many bytes are taken, under a lock
//! DIRECTORY/users/…               a locked file of each user that lives
//! DIRECTORY/<object, version>/<n> the n-th MiB of that object, as far as it was fetched (span.rs)
//! ```
//! A file says of each page what its checksum is, whose seed is the object, its version and the page's place: what a crash has
//! half written, what was damaged and what belongs elsewhere is not found, and fetched again. Nothing is ever made durable.
//!
//! Bytes are counted in `usage` before they are written, by each process for some time ahead, so that all together stay
//! within the bound. When it is reached, the directory is looked through, and the files that were used longest ago go.

mod span;
mod store;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use self::store::Tiered;
use crate::{BackingStore, Result, StoreError};

/// The least that a tier can have: a few spans.
const BYTES_MIN: u64 = 8 << 20;
/// What a process counts at a time, so that it need not lock the count for each page.
const LEASE_BYTES_MAX: u64 = 4 << 20;
/// And this part of the whole.
const LEASE_SHARE: u64 = 32;
/// How much of the bound is left taken when something had to go.
const KEPT_PERCENT: u64 = 90;
/// How often and how far apart a lock is tried for.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
const USAGE: &str = "usage";
const USERS: &str = "users";
const USAGE_MAGIC: &[u8; 8] = b"omnitier";

/// A bounded directory of fetched bytes.
///
/// Any number of processes may use one directory at the same time; each tells the bound anew, and the smallest counts for all
/// that go on writing. What is in the directory and not the tier's is left alone, and not counted.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use omnimap_store::{BackingStore, DiskTier, MemoryStore};
///
/// # fn main() -> omnimap_store::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// let tier = DiskTier::open(directory.path(), 64 << 20)?;
/// let store = tier.before(Arc::new(MemoryStore::new("far away", vec![7; 100_000])));
/// let mut bytes = [0; 10];
/// store.read_at(50_000, &mut bytes)?;
/// # Ok(())
/// # }
/// ```
pub struct DiskTier {
    directory: PathBuf,
    bytes_max: u64,
    /// Bytes that are counted in `usage` and not written yet.
    lease: Mutex<u64>,
    user: User,
    made_in: u32,
}

impl DiskTier {
    /// Uses a directory, which is made if it is not there, for at most `bytes_max` bytes (8 MiB at the least).
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn open(directory: impl Into<PathBuf>, bytes_max: u64) -> Result<Arc<DiskTier>> {
        let directory = directory.into();
        let open = || {
            make_directory(&directory.join(USERS))?;
            // Whoever else uses the directory is not waited for.
            open_own(&directory.join(USAGE))?;
            User::new(&directory)
        };
        match open() {
            Ok(user) => Ok(Arc::new(DiskTier {
                bytes_max: bytes_max.max(BYTES_MIN),
                lease: Mutex::new(0),
                made_in: process::id(),
                user,
                directory,
            })),
            Err(source) => Err(StoreError::Open { name: directory.display().to_string(), source }),
        }
    }

    /// A store whose bytes are looked for in the tier first, and kept there when they were fetched.
    ///
    /// One that does not promise its version ([`BackingStore::version`]) is given back as it is: nobody could tell later
    /// whether what was kept is right.
    pub fn before(self: &Arc<Self>, store: Arc<dyn BackingStore>) -> Arc<dyn BackingStore> {
        match store.version() {
            Some(version) => Arc::new(Tiered::new(self.clone(), store, &version)),
            None => store,
        }
    }

    /// Bytes of a store's object that are in the tier, in whole pages of 4 KiB.
    pub fn bytes_kept(self: &Arc<Self>, store: &Arc<dyn BackingStore>) -> u64 {
        let version = store.version();
        version.map_or(0, |version| Tiered::new(self.clone(), store.clone(), &version).bytes_kept())
    }

    /// Bytes that are taken, or counted as such.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn bytes_used(&self) -> Result<u64> {
        let read = || self.lock_usage().map(|usage| usage.read().unwrap_or(0));
        read().map_err(|source| StoreError::Io {
            action: "reading the count of the disk tier",
            length: 8,
            source,
        })
    }

    /// Counts bytes that are to be written; whether there is room.
    fn take(&self, bytes: u64) -> io::Result<bool> {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if *lease < bytes {
            let more = (bytes - *lease).max(self.lease_bytes());
            if more > self.bytes_max / 2 {
                return Ok(false);
            }
            let usage = self.lock_usage()?;
            let counted = usage.read();
            let used = match counted {
                Some(used) if used + more <= self.bytes_max => used,
                // Files are counted anew, and what others may have counted and not written yet.
                _ => {
                    let leases = self.leases_of_others()? + *lease;
                    let most = self.bytes_max * KEPT_PERCENT / 100;
                    self.look_through(most.saturating_sub(more + leases))? + leases
                }
            };
            if used + more > self.bytes_max {
                return Ok(false);
            }
            usage.write(used + more)?;
            *lease += more;
        }
        *lease -= bytes;
        Ok(true)
    }

    fn lease_bytes(&self) -> u64 {
        LEASE_BYTES_MAX.min(self.bytes_max / LEASE_SHARE)
    }

    /// What other users of the directory may have counted and not written yet.
    fn leases_of_others(&self) -> io::Result<u64> {
        let mut others = 0;
        for entry in
            fs::read_dir(self.directory.join(USERS))?.flatten().filter(|e| e.path() != self.user.path)
        {
            let Ok(file) = File::open(entry.path()) else { continue };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // It is dead.
                Ok(()) => drop(fs::remove_file(entry.path())),
                Err(_) => others += self.lease_bytes(),
            }
        }
        Ok(others)
    }

    /// Removes what was used longest ago until at most `keep` bytes are left; gives how many are.
    fn look_through(&self, keep: u64) -> io::Result<u64> {
        let mut found: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for object in fs::read_dir(&self.directory)?.flatten().filter(|entry| is_ours(entry, 32)) {
            let Ok(spans) = fs::read_dir(object.path()) else { continue };
            for span in spans.flatten().filter(|entry| is_ours(entry, 16)) {
                // Gone meanwhile, by another process.
                let Ok(meta) = span.metadata() else { continue };
                found.push((meta.modified()?, meta.size(), span.path()));
            }
        }
        let mut used: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        found.sort_unstable();
        for (_, bytes, path) in found {
            if used <= keep {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                used -= bytes;
            }
            // Only an empty one goes.
            let _ = path.parent().map(fs::remove_dir);
        }
        Ok(used)
    }

    fn lock_usage(&self) -> io::Result<Usage> {
        Ok(Usage(Locked::new(open_own(&self.directory.join(USAGE))?)?))
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        // A forked child has a copy of what its parent will give back.
        if self.made_in != process::id() {
            return;
        }
        let lease = *self.lease.get_mut().unwrap_or_else(PoisonError::into_inner);
        let give_back = || {
            let usage = self.lock_usage()?;
            usage.read().map_or(Ok(()), |used| usage.write(used.saturating_sub(lease)))
        };
        let _ = fs::remove_file(&self.user.path);
        if let Err(error) = give_back() {
            tracing::debug!(directory = %self.directory.display(), %error, "the disk tier's count stays too high");
        }
    }
}

/// Directories and files of the tier have names of so many hexadecimal digits.
fn is_ours(entry: &fs::DirEntry, digits: usize) -> bool {
    let name = entry.file_name();
    name.to_str()
        .is_some_and(|name| name.len() == digits && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A directory, or a file, whose bytes nobody else has to see.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn open_own(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A file that nobody else has locked, until it is dropped.
struct Locked(File);

impl Locked {
    /// Tries for a moment: nobody depends on what is kept, and whoever has the lock may have been stopped.
    fn new(file: File) -> io::Result<Locked> {
        for _ in 0..LOCK_TRIES {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody else has it locked"))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A forked child may have a copy of the descriptor, which would keep the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// A file that is locked as long as this user of the directory lives.
struct User {
    path: PathBuf,
    _file: File,
}

impl User {
    fn new(directory: &Path) -> io::Result<User> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // To an end: each turn passes over a file that somebody has locked.
        loop {
            let name = format!("{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = directory.join(USERS).join(name);
            let file = open_own(&path)?;
            // One that is left of a process of the same number is nobody's, unless that lives in another PID namespace.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(User { path, _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The count, locked until it is dropped.
struct Usage(Locked);

impl Usage {
    /// Nothing, if nobody has counted yet, or the file is damaged.
    fn read(&self) -> Option<u64> {
        let mut bytes = [0; 16];
        self.0.0.read_exact_at(&mut bytes, 0).ok()?;
        let (magic, count) = bytes.split_at(8);
        (magic == USAGE_MAGIC).then(|| u64::from_le_bytes(count.try_into().expect("eight bytes")))
    }

    fn write(&self, count: u64) -> io::Result<()> {
        self.0.0.write_all_at(&[*USAGE_MAGIC, count.to_le_bytes()].concat(), 0)
    }
}

/// The file of a span.
fn span_path(directory: &Path, key: u128, number: u64) -> PathBuf {
    directory.join(format!("{key:032x}")).join(format!("{number:016x}"))
}
