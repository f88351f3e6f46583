//! A store that is a local file or block device.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use crate::aligned::is_aligned;
use crate::{AlignedBuffer, BackingStore, Result, StoreError, Transfer, Version, Writability};

/// Bytes that pass through a bounce buffer at a time.
const BOUNCE_BYTES: usize = 256 << 10;

/// A local file or block device.
///
/// Reads are direct (O_DIRECT) where the file system has that: what the engine caches is then not in the kernel's
/// cache as well. Elsewhere they are buffered, and the kernel is told to drop the pages (posix_fadvise(2) DONTNEED).
///
/// A file opened read-only is pinned to the version that was opened: device, inode, size and times. A read after it
/// was written to or truncated is [`StoreError::Changed`]; renaming or unlinking it, or changing its owner or mode,
/// changes nothing. Times are compared after the bytes have come, so with a kernel that stamps finely (multigrain
/// timestamps, Linux 6.13) no write is missed; before it, one in the same few milliseconds as the last can be. Stores
/// by others through a shared mapping stamp the file late, or, where the page was writable already, not at all:
/// [`Verified`](crate::Verified) finds those too.
///
/// The descriptor is closed when the store is dropped, which drops any fcntl(2) record locks that the process has
/// on the file.
pub struct FileStore {
    name: String,
    file: File,
    transfers: Transfers,
    /// For unaligned writes beside direct transfers. Opened and closed with `file`, never between: closing any
    /// descriptor of a file drops the process's record locks on it.
    buffered: Option<File>,
    length: AtomicU64,
    /// What the file was when it was opened. Not checked on a writable store, whose own writes change it.
    identity: Mutex<Identity>,
    writability: Writability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfers {
    Direct,
    Buffered,
}

impl FileStore {
    /// Opens a file for reading.
    pub fn open(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_as(path.as_ref(), Writability::ReadOnly)
    }

    /// Opens a file for reading and writing. Its version is not pinned.
    pub fn open_writable(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_as(path.as_ref(), Writability::ReadWrite)
    }

    fn open_as(path: &Path, writability: Writability) -> Result<FileStore> {
        let name = path.display().to_string();
        let failed = |source| StoreError::Open { name: name.clone(), source };
        // O_NONBLOCK: opening a FIFO must not wait for a writer; regular files ignore it.
        let open = |flags: OFlags| {
            File::options()
                .read(true)
                .write(writability == Writability::ReadWrite)
                .custom_flags((flags | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32)
                .open(path)
        };
        let (file, transfers) = match open(OFlags::DIRECT) {
            Ok(file) => (file, Transfers::Direct),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                (open(OFlags::empty()).map_err(failed)?, Transfers::Buffered)
            }
            Err(e) => return Err(failed(e)),
        };
        let mut store = Self::new(name.clone(), file, transfers, writability)?;
        if (transfers, writability) == (Transfers::Direct, Writability::ReadWrite) {
            store.buffered = Some(open(OFlags::empty()).map_err(failed)?);
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
        let transfers =
            if flags.contains(OFlags::DIRECT) { Transfers::Direct } else { Transfers::Buffered };
        Self::new(name, file, transfers, Writability::ReadOnly)
    }

    fn new(name: String, file: File, transfers: Transfers, writability: Writability) -> Result<FileStore> {
        let failed = |source| StoreError::Open { name: name.clone(), source };
        let metadata = file.metadata().map_err(failed)?;
        let length = length_of(&name, &file, &metadata)?;
        let identity = Mutex::new(Identity::of(&file, &metadata));
        let length = AtomicU64::new(length);
        Ok(FileStore { name, file, transfers, buffered: None, length, identity, writability })
    }

    /// Whether reads bypass the kernel's page cache.
    pub fn is_direct(&self) -> bool {
        self.transfers == Transfers::Direct
    }

    fn read_direct(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        if is_aligned(offset, into) {
            return read_until_end(&self.file, offset, into);
        }
        let alignment = AlignedBuffer::ALIGNMENT as u64;
        let bounce_bytes = (into.len() + 2 * AlignedBuffer::ALIGNMENT)
            .next_multiple_of(AlignedBuffer::ALIGNMENT)
            .min(BOUNCE_BYTES);
        let mut bounce = AlignedBuffer::new(bounce_bytes);
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let skip = (at % alignment) as usize;
            let wanted = (into.len() - done + skip).next_multiple_of(AlignedBuffer::ALIGNMENT).min(bounce.len());
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
    fn check_identity(&self) -> Result<()> {
        if self.writability == Writability::ReadWrite {
            return Ok(());
        }
        let metadata = self.file.metadata().map_err(|source| StoreError::Io { action: "stat", length: 0, source })?;
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if known.ctime == (metadata.ctime(), metadata.ctime_nsec()) && known.size == metadata.size() {
            return Ok(());
        }
        *known = known.follow(Identity::of(&self.file, &metadata))?;
        Ok(())
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
        Transfer::default()
    }

    fn version(&self) -> Option<Version> {
        (self.writability == Writability::ReadOnly)
            .then(|| Version::new(self.identity.lock().unwrap_or_else(PoisonError::into_inner).to_string()))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let left = self.len().saturating_sub(offset);
        let wanted = (into.len() as u64).min(left) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let outcome = match self.transfers {
            // The whole buffer, although the object may end before it: direct transfers are whole blocks.
            Transfers::Direct => self.read_direct(offset, into),
            Transfers::Buffered => self.read_buffered(offset, &mut into[..wanted]),
        };
        let got = outcome.map_err(Self::io("read", wanted))?;
        self.check_identity()?;
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

fn length_of(name: &str, file: &File, metadata: &Metadata) -> Result<u64> {
    let kind = metadata.file_type();
    if kind.is_file() {
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
    } else {
        "is a character device: only the kernel can map it"
    };
    Err(StoreError::Unusable { name: name.to_owned(), reason: what.to_owned() })
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
    path: Option<std::path::PathBuf>,
}

impl Identity {
    fn of(file: &File, metadata: &Metadata) -> Identity {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(file);
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
            owner_and_mode: (metadata.uid(), metadata.gid(), metadata.mode()),
            path: std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok(),
        }
    }

    /// The identity to go on with if the bytes must still be those of `self`.
    ///
    /// The change time alone moves for many reasons: a rename, an unlink, a new owner. Those leave a trace that
    /// explains it. Where there is none, somebody may have written and then put the modification time back.
    fn follow(&self, now: Identity) -> Result<Identity> {
        let changed = |how: String| Err(StoreError::Changed { how });
        if now.size != self.size {
            return changed(format!("it had {} bytes and has {}", self.size, now.size));
        }
        if now.mtime != self.mtime {
            return changed("it was written to".to_owned());
        }
        let explained =
            now.links != self.links || now.owner_and_mode != self.owner_and_mode || now.path != self.path;
        if now.ctime != self.ctime && !explained {
            return changed("its change time moved, and nothing but a write explains it".to_owned());
        }
        Ok(now)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { device, inode, size, mtime, .. } = self;
        write!(f, "{device}:{inode}:{size}:{}.{:09}", mtime.0, mtime.1)
    }
}
