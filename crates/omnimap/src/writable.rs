//! Mappings that can be stored to.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use omnimap_core::{Error, MappedView, Prefetch, Result, Stats};

use crate::mapping::{advise, length_of};
use crate::residency::{Residency, lock, residency, split_off, unlock};
use crate::{Advice, MapOptions, Mapping};

/// How long [`MappingMut::sync_range`] and [`SharedMapping::sync_range`] take (msync(2)).
///
/// `MS_INVALIDATE` is a call of its own: [`MappingMut::invalidate`], [`SharedMapping::invalidate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// What is dirty is durable when the call returns (`MS_SYNC`, fsync(2)).
    Durable,
    /// Writing begins; the call does not wait (`MS_ASYNC`).
    Start,
}

macro_rules! common {
    ($name:ident) => {
        impl $name {
            /// What the object is called: its path, its URL.
            pub fn name(&self) -> &str {
                self.view.object().name()
            }

            /// Copies bytes out; touches no mapped address, so it raises no signal.
            ///
            /// # Errors
            /// As [`Mapping::read_at`].
            pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
                self.view.read_at(offset, into)
            }

            /// Begins to fetch a range in the background.
            ///
            /// # Errors
            /// As [`Mapping::prefetch`].
            pub fn prefetch(&self, range: Range<u64>) -> Result<Prefetch> {
                length_of(&self.view, &range)?;
                self.view.prefetch(&[range])
            }

            /// Says what is known about the use of a range. Dirty pages stay, whatever is said.
            ///
            /// # Errors
            /// [`Error::OutOfRange`].
            pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
                advise(&self.view, range, advice)
            }

            /// What of a range is in memory, at this moment (mincore(2)).
            ///
            /// # Errors
            /// [`Error::OutOfRange`].
            pub fn residency(&self, range: Range<u64>) -> Result<Residency> {
                residency(&self.view, range)
            }

            /// Brings a range into memory and keeps it there, in whole pages, until it is unlocked or the mapping is dropped.
            ///
            /// # Errors
            /// As [`Mapping::lock`].
            pub fn lock(&self, range: Range<u64>) -> Result<()> {
                lock(&self.view, range)
            }

            /// Lets the pages of a range go again.
            ///
            /// # Errors
            /// [`Error::OutOfRange`].
            pub fn unlock(&self, range: Range<u64>) -> Result<()> {
                unlock(&self.view, range)
            }

            /// Figures of the object since it was mapped.
            pub fn stats(&self) -> Stats {
                self.view.stats()
            }

            /// Bytes of memory that the object has now, as the kernel counts them, and not as we do.
            ///
            /// # Errors
            /// If the kernel does not tell.
            pub fn kernel_resident_bytes(&self) -> Result<u64> {
                self.view.object().kernel_resident_bytes()
            }

            /// Bytes, in whole pages, that the store does not have yet.
            pub fn dirty_bytes(&self) -> u64 {
                self.view.dirty_bytes()
            }

            /// Bytes of a page, the unit of residency and of dirtiness.
            pub fn page_bytes(&self) -> u64 {
                self.view.cache().page_bytes()
            }

            /// Makes everything that was stored durable, as fsync(2).
            ///
            /// # Errors
            /// [`Error::Write`], with object, offset and cause, if the store did not take something, now or in the background
            /// since the last sync. It is dirty still, can be read, and is written again by the next sync; one that succeeds
            /// has written everything.
            pub fn sync(&self) -> Result<()> {
                self.view.sync(0..self.view.len())
            }

            /// Makes all that was stored since the last atomic sync durable together or not at all, at whatever moment the
            /// process or the machine stops. Nothing of it reaches the object before.
            ///
            /// The bytes are those of one moment: if a store is part of it, so are all that happened before that one.
            /// Only for mappings made with [`MapOptions::atomic`] (or over a store whose sync is atomic by itself).
            ///
            /// # Errors
            /// [`Error::NotAllowed`] for other mappings; else as [`sync`](Self::sync).
            pub fn sync_atomic(&self) -> Result<()> {
                if !self.view.object().store().is_atomic() {
                    let reason = "its sync is not atomic; map it with MapOptions::atomic";
                    return Err(Error::NotAllowed { object: self.name().into(), reason });
                }
                self.sync()
            }

            /// Keeps a range in step with the store. Where syncs are atomic, `Durable` syncs everything.
            ///
            /// # Errors
            /// [`Error::OutOfRange`]; else as [`sync`](Self::sync).
            pub fn sync_range(&self, range: Range<u64>, mode: SyncMode) -> Result<()> {
                length_of(&self.view, &range)?;
                match mode {
                    SyncMode::Durable => self.view.sync(range),
                    SyncMode::Start => self.view.start_sync(range),
                }
            }

            /// The bytes of this moment, as a mapping that never changes, while this one goes on being stored to.
            ///
            /// It costs nothing by itself; the first store to each page afterwards copies what the page held. Both share a
            /// memory budget.
            ///
            /// # Errors
            /// If the machine has no memory or addresses for it.
            pub fn snapshot(&self) -> Result<Mapping> {
                let object = self.view.snapshot()?;
                let length = object.len();
                let cache = self.view.cache();
                let readahead = MapOptions::READAHEAD_BYTES_MAX_DEFAULT;
                Ok(Mapping::new(cache.map(&object, 0, length, readahead)?))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("name", &self.name())
                    .field("len", &self.view.len())
                    .field("dirty_bytes", &self.dirty_bytes())
                    .finish_non_exhaustive()
            }
        }
    };
}

common!(MappingMut);
common!(SharedMapping);

/// An object, or a part of it, as a slice that its one holder may store to.
///
/// What is stored is in memory first, and reaches the store when it is evicted, in the background, at
/// [`sync`](Self::sync), when the mapping is dropped, and when the process ends by `exit` or by returning from `main`.
/// A process that is killed loses what was not synced. For all or nothing see [`sync_atomic`](Self::sync_atomic).
///
/// # Example
/// ```
/// use omnimap::MapOptions;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = tempfile::NamedTempFile::new()?;
/// # std::fs::write(file.path(), b"abc")?;
/// # let path = file.path();
/// let mut mapping = MapOptions::new().open_mut(path)?;
/// mapping[1] = b'd';
/// mapping.sync()?;
/// assert_eq!(std::fs::read(path)?, b"adc");
/// # Ok(())
/// # }
/// ```
///
/// # Why the slice is sound
/// As for [`Mapping`]; and as no other mapping of the object is handed out, nobody else has a slice of its bytes.
pub struct MappingMut {
    view: MappedView,
}

/// An object that any number of threads store to, by atomics and copies; cheap to borrow, never a `&mut` slice.
///
/// # Example
/// ```
/// use std::sync::atomic::Ordering;
/// use omnimap::{MapOptions, store::MemoryStore};
///
/// # fn main() -> omnimap::Result<()> {
/// let counters = MapOptions::new().map_shared_mut(MemoryStore::writable("counters", vec![0; 1 << 16]))?;
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| counters.atomic_u64(8).map(|n| n.fetch_add(1, Ordering::Relaxed)));
///     }
/// });
/// assert_eq!(counters.read::<u64>(8)?, 4);
/// counters.sync()?;
/// # Ok(())
/// # }
/// ```
///
/// Atomics of different sizes on the same bytes, at the same time, are for the program to avoid ([`std::sync::atomic`]).
pub struct SharedMapping {
    view: MappedView,
}

impl MappingMut {
    /// Maps a whole local file with [`MapOptions`] as they are by default.
    ///
    /// # Errors
    /// As [`MapOptions::open_mut`].
    pub fn open(path: impl AsRef<Path>) -> Result<MappingMut> {
        MapOptions::new().open_mut(path)
    }

    pub(crate) fn new(view: MappedView) -> MappingMut {
        MappingMut { view }
    }

    /// Copies bytes in, as [`read_at`](Self::read_at) copies them out: whatever goes wrong is an error.
    ///
    /// # Errors
    /// As [`Mapping::read_at`]; some of the bytes may have been written then, from the first on.
    pub fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        self.view.write_at(offset, from)
    }

    /// Makes the object longer, with zeros, or shorter; the mapping ends where the object does. Its address may change.
    ///
    /// # Errors
    /// If the store refuses, a snapshot needs what would be cut off, or there are no addresses; then nothing has changed.
    pub fn resize(&mut self, length: u64) -> Result<()> {
        self.view.resize(length)
    }

    /// Takes the store's object as others have left it, and drops what is clean of a range, so that it is read again. What
    /// is dirty stays, and will be written over theirs.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; if the store cannot be asked, or what was on its way does not come in time.
    pub fn invalidate(&mut self, range: Range<u64>) -> Result<()> {
        length_of(&self.view, &range)?;
        self.view.invalidate(range)
    }
}

impl Deref for MappingMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.view.exclusive_bytes()
    }
}

impl DerefMut for MappingMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.view.exclusive_bytes_mut()
    }
}

impl AsRef<[u8]> for MappingMut {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for MappingMut {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl SharedMapping {
    pub(crate) fn new(view: MappedView) -> SharedMapping {
        SharedMapping { view }
    }

    /// Makes two independent mappings of one: keeps the first `at` bytes, where they are, and gives the rest, at new
    /// addresses. Both show one object, under one budget: a sync of one is about its own range.
    ///
    /// # Errors
    /// As [`Mapping::split_off`].
    pub fn split_off(&mut self, at: u64) -> Result<SharedMapping> {
        Ok(SharedMapping { view: split_off(&mut self.view, at)? })
    }

    /// Length in bytes, of what the object has of the mapping now.
    pub fn len(&self) -> u64 {
        self.view.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.view.is_empty()
    }

    /// Copies bytes in. Others may see some of them before the rest.
    ///
    /// # Errors
    /// As [`Mapping::read_at`]; some of the bytes may have been written then, from the first on.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.view.write_at(offset, from)
    }

    crate::typed::typed_access!();

    /// All bytes as atomic cells.
    pub fn cells(&self) -> &[AtomicU8] {
        self.view.cells()
    }

    /// A range as 64-bit numbers; `None` if it is not inside or its ends are not at multiples of 8 bytes.
    pub fn atomics_u64(&self, range: Range<u64>) -> Option<&[AtomicU64]> {
        omnimap_host::as_u64(self.part(range.start, range.end.checked_sub(range.start)?)?)
    }

    /// As [`atomics_u64`](Self::atomics_u64), with 32 bits and 4 bytes.
    pub fn atomics_u32(&self, range: Range<u64>) -> Option<&[AtomicU32]> {
        omnimap_host::as_u32(self.part(range.start, range.end.checked_sub(range.start)?)?)
    }

    fn part(&self, offset: u64, length: u64) -> Option<&[AtomicU8]> {
        let start = usize::try_from(offset).ok()?;
        self.cells().get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }

    /// Makes the object longer, with zeros, or shorter. The mapping shows what of it lies within the range that it was
    /// made for ([`MapOptions::reserve`]); stores to cells beyond the end raise SIGBUS.
    ///
    /// # Errors
    /// If the store refuses, or a snapshot needs what would be cut off; then nothing has changed.
    pub fn resize(&self, length: u64) -> Result<()> {
        self.view.set_object_len(length)
    }

    /// Takes the store's object as others have left it, and drops what is clean of a range, so that it is read again. What
    /// is dirty stays, and will be written over theirs.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; if the store cannot be asked, or what was on its way does not come in time.
    pub fn invalidate(&self, range: Range<u64>) -> Result<()> {
        length_of(&self.view, &range)?;
        self.view.invalidate(range)
    }
}
