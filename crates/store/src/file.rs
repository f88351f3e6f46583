//! A store that is a local file or block device.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::aligned::is_aligned;
use crate::{AlignedBytes, Answers, BackingStore, Result, StoreError, Transfer, Version, Writability};

/// Bytes that pass through a bounce buffer at a time.
const BOUNCE_BYTES: usize = 256 << 10;

/// A local file or block device.
///
/// Reads are direct (O_DIRECT) where the file system has that: what the engine caches is then not in the kernel's
/// cache as well. Elsewhere they are buffered, and the kernel is told to drop the pages (posix_fadvise(2) DONTNEED).
///
/// A regular file opened read-only is pinned to the version that was opened: device, inode, size and times, compared
/// after the bytes have come. Every read after it was seen to be written to or truncated is [`StoreError::Changed`];
/// renaming or unlinking it, or giving it another owner or mode, changes nothing. A change time that moves without a
/// trace of its reason counts as a write: setting extended attributes, or the owner that it has already, does that too.
///
/// What the times do not tell, is not seen: a write in the few milliseconds of one clock tick (before Linux 6.13), a
/// write that was under way already at the opening, one whose times were put back together with a rename, and stores
/// through a shared mapping to a page that was writable already. [`Verified`](crate::Verified) finds those too, for
/// bytes that were read before. Block devices and files opened for writing are not pinned at all.
///
/// The descriptor is closed when the store is dropped, which drops any fcntl(2) record locks that the process has
/// on the file.
pub struct FileStore {
    name: String,
    file: File,
    /// Whether transfers are direct; given up for good when the file system refuses one.
    direct: AtomicBool,
    /// For unaligned writes beside direct transfers. Opened and closed with `file`, never between: closing any
    /// descriptor of a file drops the process's record locks on it.
    buffered: Option<File>,
    length: AtomicU64,
    /// What pins the version, if anything does.
    pin: Option<Pin>,
    writability: Writability,
}

/// The version that was opened.
struct Pin {
    version: Version,
    identity: Mutex<Identity>,
    /// How the file was seen to have changed; it stays so.
    changed: OnceLock<String>,
}

impl FileStore {
    /// Opens a file for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_as(shown(path.as_ref()), path.as_ref(), Writability::ReadOnly)
    }

    /// Opens a file for reading and writing. Its version is not pinned.
    pub fn open_writable(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_writable_as(shown(path.as_ref()), path.as_ref())
    }

    /// The same, of a path that says nothing to people.
    pub(crate) fn open_writable_as(name: String, path: &Path) -> Result<FileStore> {
        Self::open_as(name, path, Writability::ReadWrite)
    }

    fn open_as(name: String, path: &Path, writability: Writability) -> Result<FileStore> {
        let failed = |source| StoreError::Open { name: name.clone(), source };
        // O_NONBLOCK: opening a FIFO must not wait for a writer; regular files ignore it.
        let open = |flags: OFlags| {
            File::options()
                .read(true)
                .write(writability == Writability::ReadWrite)
                .custom_flags((flags | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32)
                .open(path)
        };
        let (file, direct) = match open(OFlags::DIRECT) {
            Ok(file) => (file, true),
            Err(e) if is_refusal(&e) => (open(OFlags::empty()).map_err(failed)?, false),
            Err(e) => return Err(failed(e)),
        };
        let mut store = Self::new(name.clone(), file, direct, writability)?;
        if direct && writability == Writability::ReadWrite {
            // Through the descriptor, for the path may be another file's by now.
            let path = format!("/proc/self/fd/{}", store.file.as_raw_fd());
            store.buffered = Some(File::options().write(true).open(path).map_err(failed)?);
        }
        Ok(store)
    }

    /// Reads a file that is already open (for reading). `name` is for people.
    ///
    /// Reads are buffered unless the file was opened with O_DIRECT: the flag belongs to whoever opened it.
    pub fn from_file(name: impl Into<String>, file: File) -> Result<FileStore> {
        let name = name.into();
        let failed = |e: rustix::io::Errno| StoreError::Open { name: name.clone(), source: e.into() };
        let flags = rustix::fs::fcntl_getfl(&file).map_err(failed)?;
        if flags.contains(OFlags::WRONLY) {
            return Err(failed(rustix::io::Errno::ACCESS));
        }
        let direct = flags.contains(OFlags::DIRECT);
        Self::new(name, file, direct, Writability::ReadOnly)
    }

    fn new(name: String, file: File, direct: bool, writability: Writability) -> Result<FileStore> {
        let failed = |source| StoreError::Open { name: name.clone(), source };
        let identity = Identity::now(&file).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let length = AtomicU64::new(length_of(&name, &file, &metadata)?);
        // The times of a device's node say nothing about the device.
        let pinned = writability == Writability::ReadOnly && metadata.is_file();
        let pin = pinned.then(|| Pin {
            version: identity.version(),
            identity: Mutex::new(identity),
            changed: OnceLock::new(),
        });
        let direct = AtomicBool::new(direct);
        Ok(FileStore { name, file, direct, buffered: None, length, pin, writability })
    }

    /// Whether reads bypass the kernel's page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Gives direct transfers up: the file system took the flag and refuses a transfer.
    fn give_up_direct(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
        self.direct.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn read_direct(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        if is_aligned(offset, into) {
            return read_until_end(&self.file, offset, into);
        }
        let alignment = AlignedBytes::ALIGNMENT as u64;
        let bounce_bytes = (into.len() + 2 * AlignedBytes::ALIGNMENT)
            .next_multiple_of(AlignedBytes::ALIGNMENT)
            .min(BOUNCE_BYTES);
        let mut bounce = AlignedBytes::new(bounce_bytes);
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let skip = (at % alignment) as usize;
            let wanted =
                (into.len() - done + skip).next_multiple_of(AlignedBytes::ALIGNMENT).min(bounce.len());
            let got = read_until_end(&self.file, at - skip as u64, &mut bounce[..wanted])?;
            let count = got.saturating_sub(skip).min(into.len() - done);
            into[done..done + count].copy_from_slice(&bounce[skip..skip + count]);
            done += count;
            if got < wanted {
                break;
            }
        }
        Ok(done)
    }

    fn read_buffered(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let got = read_until_end(&self.file, offset, into)?;
        if let Some(length) = std::num::NonZeroU64::new(got as u64) {
            // Advice only: where it is refused, the bytes are in two caches and nothing else is wrong.
            let _ = rustix::fs::fadvise(&self.file, offset, Some(length), rustix::fs::Advice::DontNeed);
        }
        Ok(got)
    }

    /// Whether the file is still the version that was opened.
    fn check_version(&self) -> Result<()> {
        let Some(pin) = &self.pin else { return Ok(()) };
        let changed = |how: &String| Err(StoreError::Changed { how: how.clone() });
        if let Some(how) = pin.changed.get() {
            return changed(how);
        }
        let failed = |source| StoreError::Io { action: "stat", length: 0, source };
        let metadata = self.file.metadata().map_err(failed)?;
        let mut known = pin.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_same(&metadata) {
            return Ok(());
        }
        // Looked at anew, for another thread may have followed a later change meanwhile.
        match known.follow(Identity::now(&self.file).map_err(failed)?) {
            Ok(now) => {
                *known = now;
                Ok(())
            }
            Err(how) => changed(pin.changed.get_or_init(|| how)),
        }
    }

    fn io(action: &'static str, length: usize) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::Io { action, length: length as u64, source }
    }
}

impl BackingStore for FileStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn transfer(&self) -> Transfer {
        Transfer::default().answering(Answers::Promptly)
    }

    fn version(&self) -> Option<Version> {
        self.pin.as_ref().map(|pin| pin.version.clone())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let left = self.len().saturating_sub(offset);
        let wanted = (into.len() as u64).min(left) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let mut outcome = if self.is_direct() {
            // The whole buffer, although the object may end before it: direct transfers are whole blocks.
            self.read_direct(offset, into)
        } else {
            self.read_buffered(offset, &mut into[..wanted])
        };
        if outcome.as_ref().is_err_and(|e| self.is_direct() && is_refusal(e)) {
            outcome = self.give_up_direct().and_then(|()| self.read_buffered(offset, &mut into[..wanted]));
        }
        let got = outcome.map_err(Self::io("read", wanted))?;
        self.check_version()?;
        if got < wanted {
            return Err(StoreError::Short { wanted: wanted as u64, got: got as u64 });
        }
        Ok(wanted)
    }

    fn writability(&self) -> Writability {
        self.writability
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.writability == Writability::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        let (end, length) = (self.len(), bytes.len() as u64);
        if offset.checked_add(length).is_none_or(|e| e > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        // Direct transfers are whole blocks, and reading the rest of a block to write it back would undo what others
        // write there at the same time: the kernel's cache does that right, and keeps in step with direct transfers.
        let file = match &self.buffered {
            Some(buffered) if !is_aligned(offset, bytes) => buffered,
            _ => &self.file,
        };
        file.write_all_at(bytes, offset).map_err(Self::io("write", bytes.len()))
    }

    fn set_len(&self, length: u64) -> Result<()> {
        if self.writability == Writability::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        self.file.set_len(length).map_err(Self::io("truncate", length as usize))?;
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        if self.writability == Writability::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        self.file.sync_all().map_err(Self::io("sync", 0))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Reads until the buffer is full or the file ends.
fn read_until_end(file: &File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A direct read that goes on after a part that is no whole block: the file ended there.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput && done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Whether an error says that direct transfers are not to be had, and not that something is wrong.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|number| refusals.contains(&number))
}

fn length_of(name: &str, file: &File, metadata: &Metadata) -> Result<u64> {
    let kind = metadata.file_type();
    if kind.is_file() && (metadata.len() > 0 || is_really_empty(file)) {
        return Ok(metadata.len());
    }
    if kind.is_block_device() {
        return rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| StoreError::Open { name: name.to_owned(), source: e.into() });
    }
    let what = if kind.is_dir() {
        "is a directory"
    } else if kind.is_fifo() {
        "is a pipe: it has no offsets to map; write it to a file first"
    } else if kind.is_socket() {
        "is a socket: it has no offsets to map"
    } else if kind.is_file() {
        "does not tell its length (as files in /proc); copy it to a file first"
    } else {
        "is a character device: only the kernel can map it"
    };
    Err(StoreError::Unusable { name: name.to_owned(), reason: what.to_owned() })
}

/// Files in /proc say that they are empty and are not.
fn is_really_empty(file: &File) -> bool {
    let mut block = AlignedBytes::new(AlignedBytes::ALIGNMENT);
    !matches!(file.read_at(&mut block, 0), Ok(1..))
}

/// What a file's version is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// The rest explains changes of ctime that change no byte.
    links: u64,
    owner_and_mode: (u32, u32, u32),
    path: Option<PathBuf>,
}

/// Looks at a file that is renamed all the time before its identity is taken as it is.
const LOOKS_MAX: usize = 8;

impl Identity {
    /// The file as it is; path and times are of the same moment, or the next look follows a change that was none.
    fn now(file: &File) -> io::Result<Identity> {
        let mut metadata = file.metadata()?;
        for _ in 0..LOOKS_MAX {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
            let again = file.metadata()?;
            let identity = Identity {
                device: again.dev(),
                inode: again.ino(),
                size: again.size(),
                mtime: (again.mtime(), again.mtime_nsec()),
                ctime: (again.ctime(), again.ctime_nsec()),
                links: again.nlink(),
                owner_and_mode: (again.uid(), again.gid(), again.mode()),
                path,
            };
            if identity.is_same(&metadata) {
                return Ok(identity);
            }
            metadata = again;
        }
        Err(io::Error::other("it is renamed or changed all the time"))
    }

    /// Whether a file has not been changed in any way since.
    fn is_same(&self, metadata: &Metadata) -> bool {
        self.ctime == (metadata.ctime(), metadata.ctime_nsec()) && self.size == metadata.size()
    }

    /// The identity to go on with if the bytes must still be those of `self`; else how they changed.
    ///
    /// The change time alone moves for many reasons: a rename, an unlink, a new owner. Those leave a trace that
    /// explains it. Where there is none, somebody may have written and then put the modification time back.
    fn follow(&self, now: Identity) -> Result<Identity, String> {
        if now.size != self.size {
            return Err(format!("it had {} bytes and has {}", self.size, now.size));
        }
        if now.mtime != self.mtime {
            return Err("it was written to".to_owned());
        }
        let explained =
            now.links != self.links || now.owner_and_mode != self.owner_and_mode || now.path != self.path;
        if now.ctime != self.ctime && !explained {
            return Err(
                "its change time moved, and neither a rename nor a new owner or mode explains it".to_owned()
            );
        }
        Ok(now)
    }

    fn version(&self) -> Version {
        let Identity { device, inode, size, mtime, ctime, .. } = self;
        Version::new(format!("{device}:{inode}:{size}:{}.{:09}:{}.{:09}", mtime.0, mtime.1, ctime.0, ctime.1))
    }
}
