//! Paged objects, as the calls see them: what a descriptor is for a file.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use omnimap_core::{MappedView, MemoryObject, PageCache};

use crate::errno::{Errno, Result};
use crate::family::{self, Family, SyncKind};

/// How an object was opened: what its mappings may be (mmap(2), `EACCES`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// As with `O_RDONLY`.
    ReadOnly,
    /// As with `O_RDWR`.
    ReadWrite,
}

/// A paged object that is open: bytes of a store behind a cache, to be given to [`mmap`](crate::mmap()).
///
/// Its mappings keep it open. It is also the checked way to the same bytes: [`read_at`](Self::read_at) answers with an
/// error where an access through an address would raise SIGBUS.
pub struct Object {
    /// By which it is known to all processes that share it.
    pub(crate) cookie: u64,
    made: Live,
    pub(crate) rights: Rights,
    pub(crate) readahead_bytes_max: u64,
    /// The processes that share it, once it has been shared.
    pub(crate) family: OnceLock<Arc<Family>>,
}

/// The engine's part of an object, in one process.
pub(crate) struct Live {
    /// That of the process which went on with it, this one or a parent.
    heir: OnceLock<Box<Live>>,
    // Dropped first: it writes what was written to it, for which the cache has threads.
    pub(crate) bytes: MappedView,
    pub(crate) object: Arc<MemoryObject>,
    pub(crate) cache: Arc<PageCache>,
}

impl Live {
    pub(crate) fn new(cache: Arc<PageCache>, object: Arc<MemoryObject>, readahead_bytes_max: u64) -> Live {
        let bytes = cache.without_addresses(&object, readahead_bytes_max);
        Live { heir: OnceLock::new(), cache, object, bytes }
    }
}

impl Object {
    /// An object of a cache; for [`Rights::ReadWrite`] it must have been opened for shared use.
    pub fn new(
        cache: Arc<PageCache>,
        object: Arc<MemoryObject>,
        rights: Rights,
        readahead_bytes_max: u64,
    ) -> Arc<Object> {
        static MADE: AtomicU64 = AtomicU64::new(1);
        let cookie = u64::from(std::process::id()) << 32 | MADE.fetch_add(1, Ordering::Relaxed);
        let new = Arc::new(Object {
            cookie,
            made: Live::new(cache, object, readahead_bytes_max),
            rights,
            readahead_bytes_max,
            family: OnceLock::new(),
        });
        family::note_object(&new);
        new
    }

    /// The engine's part, in this process or, without one here, a parent's.
    pub(crate) fn live(&self) -> &Live {
        let mut live = &self.made;
        while let Some(heir) = live.heir.get() {
            live = heir;
        }
        live
    }

    /// Goes on with it in this process.
    pub(crate) fn inherit(&self, live: Live) {
        let _this_process_goes_on_once = self.live().heir.set(Box::new(live));
    }

    /// Whether this process serves it.
    pub(crate) fn is_served_here(&self) -> bool {
        self.live().cache.is_here()
    }

    /// For calls that only who serves it can do: before they change anything.
    ///
    /// # Errors
    /// `ECHILD` where that is another process.
    pub(crate) fn check_served_here(&self) -> Result<()> {
        if self.is_served_here() { Ok(()) } else { Err(Errno::ECHILD) }
    }

    /// Brings a range into step with the store, wherever it is served.
    pub(crate) fn sync_range(&self, bytes: Range<u64>, how: SyncKind) -> Result<()> {
        let own = &self.live().bytes;
        match (self.family.get(), how) {
            (Some(family), _) if !self.is_served_here() => family.ask_sync(self.cookie, bytes, how),
            (_, SyncKind::Write) => Ok(own.write_back(bytes)?),
            (_, SyncKind::Start) => Ok(own.start_sync(bytes)?),
            (_, SyncKind::Wait) => Ok(own.sync(bytes)?),
            (_, SyncKind::Invalidate) => Ok(own.invalidate(bytes)?),
        }
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        self.live().object.name()
    }

    /// Its length in bytes, now.
    pub fn len(&self) -> u64 {
        self.live().object.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How it was opened.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Copies bytes out, as pread(2): no pointer, so no signal. Shared mappings' stores are seen.
    ///
    /// # Errors
    /// With object, offset and cause: if the range is not inside the object, or the store fails.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), omnimap_core::Error> {
        self.live().bytes.read_at(offset, into)
    }

    /// Copies bytes in, as pwrite(2); seen through every mapping at once.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and if it was opened read-only.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), omnimap_core::Error> {
        self.live().bytes.write_at(offset, from)
    }

    /// Makes it longer, with zeros, or shorter, as ftruncate(2): pages of a mapping behind the new end raise SIGBUS, those
    /// that become part of the object are accessible.
    ///
    /// # Errors
    /// If it was opened read-only, or the store refuses.
    pub fn set_len(&self, length: u64) -> Result<(), omnimap_core::Error> {
        self.live().bytes.set_object_len(length)
    }

    /// Makes everything that was stored durable, as fsync(2).
    ///
    /// # Errors
    /// If the store did not take something, now or since the last sync.
    pub fn sync(&self) -> Result<(), omnimap_core::Error> {
        self.live().bytes.sync(0..self.len())
    }

    /// Drops what is clean and neither pinned nor locked from memory; gives how many bytes.
    ///
    /// # Errors
    /// In a forked child.
    pub fn evict(&self) -> Result<u64, omnimap_core::Error> {
        self.live().bytes.evict(0..self.len())
    }

    /// Bytes that the store does not have yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.live().bytes.dirty_bytes()
    }

    /// Figures of it, since it was opened or, in a forked child that goes on with it, since then.
    pub fn stats(&self) -> omnimap_core::Stats {
        self.live().bytes.stats()
    }

    /// Bytes of memory that it has, as the kernel counts them.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn resident_bytes(&self) -> Result<u64, omnimap_core::Error> {
        self.live().object.kernel_resident_bytes()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("name", &self.name())
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}
