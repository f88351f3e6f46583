//! A store that is a local file or block device.

mod far;
mod identity;
mod pin;

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use self::pin::{Change, OwnChange, Pin};
use crate::aligned::is_aligned;
use crate::backing_store::read_in_turn;
use crate::error::left_locked;
use crate::{
    AlignedBytes, Answers, BackingStore, ReadAt, Result, StoreError, Transfer, Version, Writability, WriteAt,
};

/// Bytes that pass through a bounce buffer at a time.
const BOUNCE_BYTES: usize = 256 << 10;

/// A local file or block device.
///
/// Reads are direct (O_DIRECT) where the file system has that: what the engine caches is then not in the kernel's
/// cache as well. Elsewhere they are buffered, and the kernel is told to drop the pages (posix_fadvise(2) DONTNEED).
///
/// A regular file is pinned to the version that was opened: device, inode, size and times, compared after the bytes
/// have come. Every read after it was seen to be written to or truncated is [`StoreError::Changed`]; renaming or
/// unlinking it, or giving it another owner or mode, changes nothing. A change time that moves without a trace of its
/// reason counts as a write: setting extended attributes, or the owner that it has already, does that too, and so does
/// what is undone before the store looks again (a link made and removed, a name given and taken back).
///
/// What is written through the store moves the pin. The file is looked at before the first of a burst of writes (those
/// of which at least one is under way all the time) and after the last one. If others changed it before, the write is
/// [`StoreError::Changed`] and nothing is written; what others do during a burst cannot be told from what we do, but for
/// another size at its end. It stays changed, for reads and writes, until [`refresh`](BackingStore::refresh).
///
/// What the times do not tell, is not seen: a write in the few milliseconds of one clock tick (before Linux 6.13), a
/// write that was under way already at the opening, one whose times were put back together with a rename, and stores
/// through a shared mapping to a page that was writable already. [`Verified`](crate::Verified) finds those too, for
/// bytes that were read or written before. Block devices are not pinned at all.
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
    /// Written with `resizing` held.
    length: AtomicU64,
    /// Held while the length changes, so that the last change of the file's is the last one of `length`. Before the
    /// pin's own lock.
    resizing: Mutex<()>,
    /// What pins the version, if anything does.
    pin: Option<Pin>,
    writability: Writability,
    /// Found out when it is asked for.
    answers: OnceLock<Answers>,
}

/// What becomes of a path where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsAnError,
    IsCreated,
}

impl FileStore {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`StoreError::Open`] with what the system answered, [`StoreError::Unusable`] for what is no file or block device.
    pub fn open(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_as(shown(path.as_ref()), path.as_ref(), Writability::ReadOnly, Missing::IsAnError)
    }

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable(path: impl AsRef<Path>) -> Result<FileStore> {
        Self::open_writable_as(shown(path.as_ref()), path.as_ref())
    }

    /// The same, of a path that says nothing to people.
    pub(crate) fn open_writable_as(name: String, path: &Path) -> Result<FileStore> {
        Self::open_as(name, path, Writability::ReadWrite, Missing::IsAnError)
    }

    /// Opens a file for reading and writing; makes an empty one, with the mode that umask(2) leaves, if there is none.
    ///
    /// Its name is durable when this returns, as its bytes are after [`sync`](BackingStore::sync).
    ///
    /// # Errors
    /// As [`open`](Self::open); also if the directory cannot be read, which making it durable takes.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<FileStore> {
        let path = path.as_ref();
        let store = Self::open_as(shown(path), path, Writability::ReadWrite, Missing::IsCreated)?;
        sync_directory_of(path).map_err(|source| StoreError::Open { name: store.name.clone(), source })?;
        Ok(store)
    }

    fn open_as(name: String, path: &Path, writability: Writability, missing: Missing) -> Result<FileStore> {
        let failed = |source| StoreError::Open { name: name.clone(), source };
        // O_NONBLOCK: opening a FIFO must not wait for a writer; regular files ignore it.
        let open = |flags: OFlags| {
            File::options()
                .read(true)
                .write(writability == Writability::ReadWrite)
                .create(missing == Missing::IsCreated)
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
        // Before the length is asked for: if somebody comes between, that is a change.
        let (pin, metadata) = Pin::new(&file).map_err(failed)?;
        let length = length_of(&name, &file, &metadata)?;
        // The times of a device's node say nothing about the device.
        let pin = Some(pin).filter(|_| metadata.is_file());
        Ok(FileStore {
            name,
            file,
            direct: AtomicBool::new(direct),
            buffered: None,
            length: AtomicU64::new(length),
            resizing: Mutex::default(),
            pin,
            writability,
            answers: OnceLock::new(),
        })
    }

    /// Whether reads bypass the kernel's page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Opens a file for reading; reads are buffered until [`read_directly`](Self::read_directly).
    pub(crate) fn open_buffered(path: &Path) -> Result<FileStore> {
        let name = shown(path);
        let failed = |source| StoreError::Open { name: name.clone(), source };
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        Self::new(name, file, false, Writability::ReadOnly)
    }

    /// Lets reads bypass the kernel's page cache from now on, where the file system has that.
    pub(crate) fn read_directly(&self) {
        let flags = rustix::fs::fcntl_getfl(&self.file);
        let set = flags.and_then(|flags| rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT));
        self.direct.store(set.is_ok(), Ordering::Relaxed);
    }

    /// Gives direct transfers up: the file system took the flag and refuses a transfer.
    fn give_up_direct(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
        self.direct.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn read_direct(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> io::Result<usize> {
        let begin = Instant::now();
        let mut meanwhile = || meanwhile(begin.elapsed());
        let mut read =
            |part: &mut [u8], at| omnimap_queue::read_awaited(&self.file, part, at, &mut meanwhile);
        if is_aligned(offset, into) {
            return read_until_end(offset, into, read);
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
            let got = read_until_end(at - skip as u64, &mut bounce[..wanted], &mut read)?;
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
        let got = read_until_end(offset, into, |part, at| self.file.read_at(part, at))?;
        if let Some(length) = std::num::NonZeroU64::new(got as u64) {
            // Advice only: where it is refused, the bytes are in two caches and nothing else is wrong.
            let _ = rustix::fs::fadvise(&self.file, offset, Some(length), rustix::fs::Advice::DontNeed);
        }
        Ok(got)
    }

    /// Refuses to write to a file that others changed, and takes what changes as our own doing until this is dropped.
    fn begin_change(&self, change: Change) -> Result<Option<OwnChange<'_>>> {
        if self.writability == Writability::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        self.pin.as_ref().map(|pin| pin.begin_change(&self.file, change)).transpose()
    }

    fn check_room(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.writability == Writability::ReadOnly {
            return Err(StoreError::ReadOnly);
        }
        let (end, length) = (self.len(), bytes.len() as u64);
        if offset.checked_add(length).is_none_or(|e| e > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        Ok(())
    }

    fn resizing(&self) -> MutexGuard<'_, ()> {
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
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
        const TOGETHER: NonZeroUsize = NonZeroUsize::new(omnimap_queue::TRANSFERS_MAX).unwrap();
        let answers = *self.answers.get_or_init(|| far::answers(&self.file));
        let transfer = Transfer::default().answering(answers);
        if self.is_direct() { transfer.reading_together(TOGETHER) } else { transfer }
    }

    fn version(&self) -> Option<Version> {
        let promised = self.writability == Writability::ReadOnly;
        self.pin.as_ref().filter(|_| promised).map(Pin::version)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.read_awaited(offset, into, &mut |_| {})
    }

    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        let left = self.len().saturating_sub(offset);
        let wanted = (into.len() as u64).min(left) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let mut outcome = if self.is_direct() {
            // The whole buffer, although the object may end before it: direct transfers are whole blocks.
            self.read_direct(offset, into, meanwhile)
        } else {
            self.read_buffered(offset, &mut into[..wanted])
        };
        if outcome.as_ref().is_err_and(|e| self.is_direct() && is_refusal(e)) {
            outcome = self.give_up_direct().and_then(|()| self.read_buffered(offset, &mut into[..wanted]));
        }
        let got = outcome.map_err(Self::io("read", wanted))?;
        self.pin.as_ref().map_or(Ok(()), |pin| pin.check(&self.file))?;
        if got < wanted {
            return Err(StoreError::Short { wanted: wanted as u64, got: got as u64 });
        }
        Ok(wanted)
    }

    /// Direct reads are given to the kernel together.
    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        let length = self.len();
        let end = |read: &ReadAt<'_>| read.offset.saturating_add(read.into.len() as u64);
        let together =
            self.is_direct() && reads.iter().all(|r| is_aligned(r.offset, r.into) && end(r) <= length);
        if !together {
            return read_in_turn(reads, came, |offset, into| self.read_at(offset, into));
        }
        let mut outcomes: Vec<io::Result<usize>> = reads.iter().map(|_| Ok(0)).collect();
        let mut requests: Vec<omnimap_queue::Read<'_>> = reads
            .iter_mut()
            .map(|read| omnimap_queue::Read { offset: read.offset, into: &mut *read.into })
            .collect();
        omnimap_queue::read_each(&self.file, &mut requests, |number, outcome| outcomes[number] = outcome);
        // Once for all: what changed before any of them came is seen.
        let pinned = self.pin.as_ref().map_or(Ok(()), |pin| pin.check(&self.file));
        for (number, (read, outcome)) in reads.iter_mut().zip(outcomes).enumerate() {
            let whole = outcome.as_ref().is_ok_and(|got| *got == read.into.len());
            // What is not simply there is read alone, which knows what to say and what to try.
            let alone = !whole || pinned.is_err();
            came(number, if alone { self.read_at(read.offset, read.into) } else { Ok(read.into.len()) });
        }
    }

    fn writability(&self) -> Writability {
        self.writability
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_room(offset, bytes)?;
        let _ours = self.begin_change(Change::Bytes)?;
        // Direct transfers are whole blocks, and reading the rest of a block to write it back would undo what others
        // write there at the same time: the kernel's cache does that right, and keeps in step with direct transfers.
        let file = match &self.buffered {
            Some(buffered) if !is_aligned(offset, bytes) => buffered,
            _ => &self.file,
        };
        file.write_all_at(bytes, offset).map_err(Self::io("write", bytes.len()))
    }

    /// Direct writes are given to the kernel together.
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        let (mut numbers, mut together) = (Vec::new(), Vec::new());
        let ours = if self.is_direct() { self.begin_change(Change::Bytes) } else { Ok(None) };
        for (number, write) in writes.iter().enumerate() {
            let WriteAt { offset, bytes } = *write;
            if self.is_direct() && ours.is_ok() && is_aligned(offset, bytes) {
                match self.check_room(offset, bytes) {
                    Ok(()) => {
                        numbers.push(number);
                        together.push(omnimap_queue::Write { offset, bytes });
                    }
                    Err(error) => written(number, Err(error)),
                }
            } else {
                written(number, self.write_at(offset, bytes));
            }
        }
        omnimap_queue::write_each(&self.file, &together, |index, outcome| {
            written(numbers[index], outcome.map_err(Self::io("write", together[index].bytes.len())));
        });
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _one = self.resizing();
        let _ours = self.begin_change(Change::Length)?;
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

    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        let failed = |source| StoreError::Open { name: self.name.clone(), source };
        let file = self.file.try_clone().map_err(failed)?;
        let mut new = Self::new(self.name.clone(), file, self.is_direct(), self.writability)?;
        new.buffered = self.buffered.as_ref().map(File::try_clone).transpose().map_err(failed)?;
        if self.writability == Writability::ReadOnly {
            // The version that was promised, not the one that is there now.
            new.length = AtomicU64::new(self.length.load(Ordering::Acquire));
            new.pin = match &self.pin {
                Some(pin) => Some(pin.copy().ok_or_else(|| left_locked(&self.name))?),
                None => None,
            };
        }
        Ok(Arc::new(new))
    }

    fn refresh(&self) -> Result<()> {
        let _one = self.resizing();
        let length = match &self.pin {
            Some(pin) => pin.refresh(&self.file)?,
            None => {
                let metadata = self.file.metadata().map_err(Self::io("stat", 0))?;
                length_of(&self.name, &self.file, &metadata)?
            }
        };
        self.length.store(length, Ordering::Release);
        Ok(())
    }
}

/// Makes a file's name durable. fsync(2) of the file need not do that.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    let Some(directory) = path.parent() else { return Ok(()) };
    match File::open(directory)?.sync_all() {
        // Some file systems have nothing to do there and say so.
        Err(e) if is_refusal(&e) => Ok(()),
        outcome => outcome,
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Reads until the buffer is full or the file ends.
fn read_until_end(
    offset: u64,
    into: &mut [u8],
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match read_at(&mut into[done..], offset + done as u64) {
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
