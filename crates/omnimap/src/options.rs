//! How a mapping is made.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use omnimap_core::{Error, MappedView, MemoryObject, Result};
use omnimap_host::linux::Wishes;
use omnimap_host::{Exclusive, FaultMode, Use};
use omnimap_posix::{Object, Rights};
use omnimap_store::{
    BackingStore, FileStore, Format, JournalOptions, PrivateStore, SwapOptions, SwapStore, Transfer,
    Verified, Writability, catch, journal,
};

#[cfg(feature = "remote")]
use omnimap_store::DiskTier;
#[cfg(feature = "remote")]
use omnimap_store_object::RemoteOptions;

use crate::cache::{Cache, Limits};
use crate::mapping::advise;
use crate::place::Reservation;
use crate::source::ToWrite;
use crate::{Advice, Mapping, MappingMut, SharedMapping};

/// How a mapping is made: a builder, as [`std::fs::OpenOptions`].
///
/// # Example
/// ```
/// use omnimap::{Advice, MapOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = tempfile::NamedTempFile::new()?;
/// # std::fs::write(file.path(), vec![0; 1 << 20])?;
/// # let path = file.path();
/// let mapping = MapOptions::new()
///     .budget(256 << 10)
///     .offset(100_000)
///     .length(500_000)
///     .advice(Advice::Random)
///     .open(path)?;
/// assert_eq!(mapping.len(), 500_000);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MapOptions {
    budget_bytes: u64,
    cache: Option<Cache>,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
    pub(crate) advice: Advice,
    readahead_bytes_max: Option<u64>,
    workers_max: Option<NonZeroUsize>,
    fill_time_max: Option<Duration>,
    pub(crate) format: Format,
    #[cfg(feature = "remote")]
    pub(crate) remote: RemoteOptions,
    #[cfg(feature = "remote")]
    pub(crate) disk_tier: Option<Arc<DiskTier>>,
    #[cfg(feature = "remote")]
    pub(crate) changes: Option<PathBuf>,
    verify: bool,
    reserve_bytes: u64,
    atomic: bool,
    journal: Option<PathBuf>,
    journal_options: JournalOptions,
    pub(crate) swap: SwapOptions,
    dirty_bytes_max: Option<u64>,
    dirty_time_max: Option<Duration>,
    write_back_bytes_per_second_max: Option<u64>,
    fault_mode: Option<FaultMode>,
    pub(crate) large_pages: bool,
    pub(crate) wishes: Wishes,
    pub(crate) reservation: Option<(Reservation, u64)>,
}

impl MapOptions {
    /// The budget of a mapping that is given neither a budget nor a cache: 256 MiB.
    pub const BUDGET_BYTES_DEFAULT: u64 = 256 << 20;
    /// What is fetched ahead of a reader at the most, unless it is set: 8 MiB.
    pub const READAHEAD_BYTES_MAX_DEFAULT: u64 = 8 << 20;
    /// The same for an object that is far away, as in a bucket: 16 MiB.
    pub const FAR_READAHEAD_BYTES_MAX_DEFAULT: u64 = 16 << 20;

    /// The whole object, under [a budget of its own](Self::BUDGET_BYTES_DEFAULT).
    pub fn new() -> MapOptions {
        MapOptions {
            budget_bytes: Self::BUDGET_BYTES_DEFAULT,
            cache: None,
            offset: 0,
            length: None,
            advice: Advice::Normal,
            readahead_bytes_max: None,
            workers_max: None,
            fill_time_max: None,
            format: Format::Auto,
            #[cfg(feature = "remote")]
            remote: RemoteOptions::new(),
            #[cfg(feature = "remote")]
            disk_tier: None,
            #[cfg(feature = "remote")]
            changes: None,
            verify: false,
            reserve_bytes: 0,
            atomic: false,
            journal: None,
            journal_options: JournalOptions::default(),
            swap: SwapOptions::default(),
            dirty_bytes_max: None,
            dirty_time_max: None,
            write_back_bytes_per_second_max: None,
            fault_mode: None,
            large_pages: true,
            wishes: Wishes::default(),
            reservation: None,
        }
    }

    /// At most so many bytes of it are in memory at a time. Ignored with a [`cache`](Self::cache), which has a budget.
    pub fn budget(&mut self, bytes: u64) -> &mut Self {
        self.budget_bytes = bytes;
        self
    }

    /// Shares the budget of a cache with its other mappings.
    pub fn cache(&mut self, cache: &Cache) -> &mut Self {
        self.cache = Some(cache.clone());
        self
    }

    /// Where in the object it begins, in bytes; need not be at a page.
    pub fn offset(&mut self, bytes: u64) -> &mut Self {
        self.offset = bytes;
        self
    }

    /// How long it is, in bytes; without this, up to the object's end.
    pub fn length(&mut self, bytes: u64) -> &mut Self {
        self.length = Some(bytes);
        self
    }

    /// What is known about how it will be used. Nothing need be.
    pub fn advice(&mut self, advice: Advice) -> &mut Self {
        self.advice = advice;
        self
    }

    /// The most that is fetched ahead of each reader, in bytes; 0 for nothing.
    pub fn readahead_max(&mut self, bytes: u64) -> &mut Self {
        self.readahead_bytes_max = Some(bytes);
        self
    }

    /// Threads that serve raw accesses, and as many again for checked ones and readahead; each waits for one transfer
    /// at a time, and is there only while it is needed. The default is 64. Ignored with a cache.
    pub fn workers_max(&mut self, threads: NonZeroUsize) -> &mut Self {
        self.workers_max = Some(threads);
        self
    }

    /// How long an access waits for the store before it fails; the default is 60 s, and more than a year counts as one. Ignored
    /// with a cache.
    pub fn fill_time_max(&mut self, time: Duration) -> &mut Self {
        self.fill_time_max = Some(time);
        self
    }

    /// What the file's bytes mean; the default is to find out.
    pub fn format(&mut self, format: Format) -> &mut Self {
        self.format = format;
        self
    }

    /// Remembers checksums of what was read or written, and refuses bytes that come back different.
    ///
    /// Done in any case where the store does not promise that its bytes stay (a writable one, a block device, one without
    /// a version). Worth asking for with files that others write through mappings of their own. It costs 9 to 10 bytes
    /// of memory for each 4 KiB that were ever read or written, and up to 100 where they lie far apart.
    pub fn verify(&mut self, verify: bool) -> &mut Self {
        self.verify = verify;
        self
    }

    /// Addresses that a writable mapping has at the least, in bytes: it can grow so far in place, if it goes to the object's
    /// end. The default is the length.
    pub fn reserve(&mut self, bytes: u64) -> &mut Self {
        self.reserve_bytes = bytes;
        self
    }

    /// Lets what is stored reach the object only by syncs that are all or nothing ([`MappingMut::sync_atomic`]); what no
    /// sync has made durable when the mapping is dropped, or the process ends, is given up.
    ///
    /// Until the sync it lies in memory, and in a journal beside the file (named as it, and `.omnimap-journal`), which
    /// opening the file this way again recovers from after a crash, and so does `omnimap recover`. Only one process at a
    /// time can have a file mapped so.
    pub fn atomic(&mut self, yes: bool) -> &mut Self {
        self.atomic = yes;
        self
    }

    /// Where the journal of an [atomic](Self::atomic) mapping is, instead of beside the file. Stores that are no local
    /// files need it.
    pub fn journal(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.journal = Some(path.into());
        self
    }

    /// The most bytes that a journal may have; the default is 1 GiB. What is stored between two atomic syncs must fit in
    /// it and in the budget together.
    pub fn journal_max(&mut self, bytes: u64) -> &mut Self {
        self.journal_options.bytes_max = bytes;
        self
    }

    /// Where private and anonymous mappings keep what does not fit in the budget: compressed in memory, up to a bound that
    /// comes on top of the budget (64 MiB by default), then in a temporary file.
    pub fn swap(&mut self, options: SwapOptions) -> &mut Self {
        self.swap = options;
        self
    }

    /// Dirty bytes above which they are written back in the background; the default is half of the budget. Ignored
    /// with a cache.
    pub fn dirty_max(&mut self, bytes: u64) -> &mut Self {
        self.dirty_bytes_max = Some(bytes);
        self
    }

    /// How long something is dirty before it is written back in the background; the default is 30 s. Ignored with a cache.
    pub fn dirty_time_max(&mut self, time: Duration) -> &mut Self {
        self.dirty_time_max = Some(time);
        self
    }

    /// The most that is written in the background, in bytes a second; nothing bounds it by default. What somebody waits
    /// for (a sync) is not bounded. Ignored with a cache.
    pub fn write_back_rate_max(&mut self, bytes_per_second: u64) -> &mut Self {
        self.write_back_bytes_per_second_max = Some(bytes_per_second);
        self
    }

    /// How faults are served; the default is what the environment variable `OMNIMAP_FAULT_MODE` says (`worker`, `in-thread`
    /// or `trap`), or else the first of [`Worker`](FaultMode::Worker) and [`Trap`](FaultMode::Trap) that this machine
    /// allows. Ignored with a cache.
    pub fn fault_mode(&mut self, mode: FaultMode) -> &mut Self {
        self.fault_mode = Some(mode);
        self
    }

    /// Maps a local file, or what a URL names ([`open_store`](Self::open_store)).
    ///
    /// # Errors
    /// If it cannot be opened or is of no kind that can be mapped; if the range is not inside it; if the machine or the
    /// budget does not allow a mapping.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Mapping> {
        self.map_shared(self.open_store(path)?)
    }

    /// Maps any store.
    ///
    /// # Errors
    /// If the range is not inside the object; if the machine or the budget does not allow a mapping.
    pub fn map(&self, store: impl BackingStore + 'static) -> Result<Mapping> {
        self.map_shared(Arc::new(store))
    }

    /// Maps a store that is in use elsewhere too. Two mappings of one store made this way have their pages twice.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_shared(&self, store: Arc<dyn BackingStore>) -> Result<Mapping> {
        let store = self.held_to_its_bytes(store)?;
        Ok(Mapping::new(self.view(store, Use::ReadOnly)?))
    }

    /// Maps a local file, or an object of a bucket ([`changes`](Self::changes)), to be stored to by one holder.
    ///
    /// Changes that others make to the file meanwhile are found out and not written over ([`FileStore::open_writable`]).
    /// A packed file cannot be stored to.
    ///
    /// # Errors
    /// As [`open`](Self::open); and if the file cannot be written.
    pub fn open_mut(&self, path: impl AsRef<Path>) -> Result<MappingMut> {
        Ok(MappingMut::new(self.view(self.writable_file(path.as_ref())?, Use::Exclusive)?))
    }

    /// Maps a writable store to be stored to by one holder.
    ///
    /// # Errors
    /// As [`map`](Self::map); and [`Error::NotAllowed`] if the store is read-only.
    pub fn map_mut(&self, store: impl BackingStore + 'static) -> Result<MappingMut> {
        Ok(MappingMut::new(self.view(self.writable_store(Arc::new(store))?, Use::Exclusive)?))
    }

    /// Maps a local file, or an object of a bucket, to be stored to by many, with atomics and copies.
    ///
    /// # Errors
    /// As [`open_mut`](Self::open_mut).
    pub fn open_shared_mut(&self, path: impl AsRef<Path>) -> Result<SharedMapping> {
        Ok(SharedMapping::new(self.view(self.writable_file(path.as_ref())?, Use::Shared)?))
    }

    /// Maps a writable store to be stored to by many, with atomics and copies.
    ///
    /// # Errors
    /// As [`map_mut`](Self::map_mut).
    pub fn map_shared_mut(&self, store: impl BackingStore + 'static) -> Result<SharedMapping> {
        Ok(SharedMapping::new(self.view(self.writable_store(Arc::new(store))?, Use::Shared)?))
    }

    /// Maps a local file, plain or packed, to be stored to by one holder, whose stores nobody else sees and which never
    /// reach the file (`MAP_PRIVATE`, mmap(2)).
    ///
    /// What was stored counts against the budget as any page, and goes to [swap](Self::swap). The file itself is held to
    /// the version that was opened, as in [`open`](Self::open).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_private(&self, path: impl AsRef<Path>) -> Result<MappingMut> {
        self.map_private(self.open_store(path)?)
    }

    /// Maps any store so that what is stored never reaches it.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_private(&self, store: impl BackingStore + 'static) -> Result<MappingMut> {
        let base = self.held_to_its_bytes(Arc::new(store))?;
        let copy = PrivateStore::new(base, self.swap.clone())?;
        Ok(MappingMut::new(self.view(Arc::new(copy), Use::Exclusive)?))
    }

    /// Memory of its own, all zeros at first, that may be larger than RAM (`MAP_ANONYMOUS`, mmap(2)).
    ///
    /// What does not fit in the budget goes to [swap](Self::swap). Pages that were never stored to take nothing.
    ///
    /// # Errors
    /// If the machine or the budget does not allow a mapping.
    ///
    /// # Example
    /// ```
    /// use omnimap::MapOptions;
    ///
    /// # fn main() -> omnimap::Result<()> {
    /// let mut array = MapOptions::new().budget(1 << 20).anonymous(1 << 40)?;
    /// array[1 << 39] = 7;
    /// assert_eq!((array[1 << 39], array[0]), (7, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn anonymous(&self, length: u64) -> Result<MappingMut> {
        Ok(MappingMut::new(self.view(self.swap_store(length)?, Use::Exclusive)?))
    }

    /// As [`anonymous`](Self::anonymous), for many threads, with atomics and copies.
    ///
    /// # Errors
    /// As there.
    pub fn anonymous_shared(&self, length: u64) -> Result<SharedMapping> {
        Ok(SharedMapping::new(self.view(self.swap_store(length)?, Use::Shared)?))
    }

    /// Opens a local file as a paged object for [`posix::mmap`](crate::posix::mmap()), to be read.
    ///
    /// Offset, length, reserve and advice are the call's; the rest of these options holds.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Example
    /// ```
    /// use omnimap::MapOptions;
    /// use omnimap::posix::{MapFlags, Prot, mmap, munmap};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = tempfile::NamedTempFile::new()?;
    /// # std::fs::write(file.path(), b"abc")?;
    /// let object = MapOptions::new().budget(1 << 20).open_object(file.path())?;
    /// // SAFETY: a new mapping at a place of the kernel's choice; it is read and unmapped here, and nowhere else.
    /// unsafe {
    ///     let bytes = mmap(std::ptr::null_mut(), 3, Prot::READ, MapFlags::PRIVATE, &object, 0)?;
    ///     assert_eq!(bytes.cast::<u8>().add(1).read(), b'b');
    ///     munmap(bytes, 3)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_object(&self, path: impl AsRef<Path>) -> Result<Arc<Object>> {
        self.object(self.open_store(path)?)
    }

    /// As [`open_object`](Self::open_object), to be stored to as well.
    ///
    /// # Errors
    /// As [`open_mut`](Self::open_mut).
    pub fn open_object_mut(&self, path: impl AsRef<Path>) -> Result<Arc<Object>> {
        self.paged_object(self.writable_file(path.as_ref())?, Rights::ReadWrite)
    }

    /// Makes any store a paged object, to be read.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn object(&self, store: Arc<dyn BackingStore>) -> Result<Arc<Object>> {
        self.paged_object(self.held_to_its_bytes(store)?, Rights::ReadOnly)
    }

    /// Makes a writable store a paged object, to be stored to as well.
    ///
    /// # Errors
    /// As [`map_mut`](Self::map_mut).
    pub fn object_mut(&self, store: Arc<dyn BackingStore>) -> Result<Arc<Object>> {
        self.paged_object(self.writable_store(store)?, Rights::ReadWrite)
    }

    /// Memory of its own as a paged object: zeros at first, under the budget, larger than RAM if need be.
    ///
    /// # Errors
    /// As [`anonymous`](Self::anonymous).
    pub fn anonymous_object(&self, length: u64) -> Result<Arc<Object>> {
        self.paged_object(self.swap_store(length)?, Rights::ReadWrite)
    }

    fn paged_object(&self, store: Arc<dyn BackingStore>, rights: Rights) -> Result<Arc<Object>> {
        let used_as = if rights == Rights::ReadOnly { Use::ReadOnly } else { Use::Shared };
        // Views at given addresses, and for other processes, need it.
        let cache = MapOptions { fault_mode: Some(FaultMode::Worker), ..self.clone() }.cache_to_use()?;
        let readahead_bytes_max = self.readahead_of(&*store);
        let (object, _) = self.open_in(&cache, store, used_as)?;
        Ok(Object::new(cache.pages, object, rights, readahead_bytes_max))
    }

    fn swap_store(&self, length: u64) -> Result<Arc<dyn BackingStore>> {
        Ok(Arc::new(SwapStore::new("anonymous memory", length, self.swap.clone())?))
    }

    fn writable_file(&self, path: &Path) -> Result<Arc<dyn BackingStore>> {
        let path = match self.open_to_write(path)? {
            ToWrite::File(path) => path,
            ToWrite::Object(object) => {
                refuse_packed(self.format, &*object)?;
                return self.held_to_its_bytes(object);
            }
        };
        let path = &*path;
        let file: Arc<dyn BackingStore> = Arc::new(FileStore::open_writable(path)?);
        refuse_packed(self.format, &*file)?;
        let file = self.held_to_its_bytes(file)?;
        if !self.atomic {
            journal::make_way(path)?;
            return Ok(file);
        }
        Ok(Arc::new(journal::open_file(file, path, self.journal.as_deref(), self.journal_options)?))
    }

    fn writable_store(&self, store: Arc<dyn BackingStore>) -> Result<Arc<dyn BackingStore>> {
        let store = self.held_to_its_bytes(store)?;
        match &self.journal {
            _ if !self.atomic || store.is_atomic() => Ok(store),
            Some(path) => Ok(Arc::new(journal::open_file(store, path, Some(path), self.journal_options)?)),
            None => Err(Error::NotAllowed {
                object: store.name().into(),
                reason: "an atomic mapping of a store that is no local file needs MapOptions::journal, a path",
            }),
        }
    }

    /// What the soundness of slices rests on: a store that does not promise its bytes is held to them.
    fn held_to_its_bytes(&self, store: Arc<dyn BackingStore>) -> Result<Arc<dyn BackingStore>> {
        let may_change =
            catch(|| store.writability() == Writability::ReadWrite || store.version().is_none())?;
        Ok(if self.verify || may_change { Arc::new(Verified::new(store)) } else { store })
    }

    pub(crate) fn cache_to_use(&self) -> Result<Cache> {
        if let Some(cache) = &self.cache {
            return Ok(cache.clone());
        }
        Cache::with_limits(Limits {
            budget_bytes: self.budget_bytes,
            workers_max: self.workers_max,
            fill_time_max: self.fill_time_max,
            dirty_bytes_max: self.dirty_bytes_max,
            dirty_time_max: self.dirty_time_max,
            write_back_bytes_per_second_max: self.write_back_bytes_per_second_max,
            // Views at given addresses need it.
            fault_mode: if self.reservation.is_some() { Some(FaultMode::Worker) } else { self.fault_mode },
        })
    }

    fn open_in(
        &self,
        cache: &Cache,
        store: Arc<dyn BackingStore>,
        used_as: Use,
    ) -> Result<(Arc<MemoryObject>, Option<Exclusive>)> {
        let (object, exclusive) = cache.pages.open_as(store, used_as)?;
        if !self.large_pages {
            object.refuse_large_pages();
        }
        Ok((object, exclusive))
    }

    /// What may be fetched ahead: more of what takes long to come.
    fn readahead_of(&self, store: &dyn BackingStore) -> u64 {
        let is_far = || {
            let preferred = catch(|| store.transfer()).unwrap_or_default().preferred_bytes;
            preferred > Transfer::default().preferred_bytes
        };
        self.readahead_bytes_max.unwrap_or_else(|| match is_far() {
            true => Self::FAR_READAHEAD_BYTES_MAX_DEFAULT,
            false => Self::READAHEAD_BYTES_MAX_DEFAULT,
        })
    }

    fn view(&self, store: Arc<dyn BackingStore>, used_as: Use) -> Result<MappedView> {
        let cache = self.cache_to_use()?;
        let readahead_bytes_max = self.readahead_of(&*store);
        let (object, exclusive) = self.open_in(&cache, store, used_as)?;
        let length = self.length.unwrap_or(object.len().saturating_sub(self.offset));
        if self.offset.checked_add(length).is_none_or(|end| end > object.len()) {
            let (offset, end) = (self.offset, object.len());
            return Err(Error::OutOfRange { object: object.name().into(), offset, length, end });
        }
        // What grows is the object's end: a mapping that ends before it shows no more than was asked for.
        let may_grow = used_as != Use::ReadOnly && self.offset + length == object.len();
        let reserved = if may_grow { length.max(self.reserve_bytes) } else { length };
        let location = self.location(object.name(), self.offset, reserved)?;
        let view = cache.pages.map_to(&object, self.offset, reserved, readahead_bytes_max, location)?;
        let view = view.with_exclusive(exclusive);
        advise(&view, 0..length, self.advice)?;
        if self.wishes.lock {
            crate::residency::lock(&view, 0..length)?;
        } else if self.wishes.populate {
            // Best effort: what cannot be fetched is told to whoever accesses it.
            let _ = view.prefetch(std::slice::from_ref(&(0..length)))?.wait();
        }
        Ok(view)
    }
}

fn refuse_packed(format: Format, object: &dyn BackingStore) -> Result<()> {
    if format.detect(object)? == Format::Zstd {
        return Err(Error::NotAllowed {
            object: object.name().into(),
            reason: "packed files cannot be stored to; unpack it, map it private, or ask for Format::Plain",
        });
    }
    Ok(())
}

impl Default for MapOptions {
    fn default() -> Self {
        Self::new()
    }
}
