//! A read-only mapping.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;

use omnimap_core::{Error, MappedView, Pattern, PinGuard, Prefetch, Result, Stats};

use crate::MapOptions;
use crate::residency::{Residency, lock, residency, split_off, unlock};

/// An object, or a part of it, as a read-only slice.
///
/// # Why the slice is sound
/// A `&[u8]` promises bytes that do not change while it lives. A kernel mapping of a file cannot promise that: anybody
/// may write to the file. Here the bytes lie in memory of our own (a memfd that nobody else can reach), so others
/// cannot change them. We change them in one way only: a page may be evicted, and filled again when it is touched. The
/// store promises that the same offset then gives the same bytes, or an error, by naming its version; where it does not,
/// checksums of what was read hold it to that ([`MapOptions::verify`]); and on an error the access fails, so that no other
/// bytes are seen. A page appears whole or not at all.
///
/// # Sharing
/// All methods take `&self`; any number of threads may read, prefetch and pin at once.
pub struct Mapping {
    view: MappedView,
}

/// What is known about the use of a range (posix_madvise(3)). It changes speed, never results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Advice {
    /// Nothing: streams are found out.
    #[default]
    Normal,
    /// It will be read at random places: nothing is fetched that was not asked for.
    Random,
    /// It will be read from the beginning to the end: much is fetched ahead at once.
    Sequential,
    /// It will be needed soon: fetching begins in the background, as far as the budget has room.
    WillNeed,
    /// It will not be needed soon: pages that lie in it as a whole are dropped, unless they are pinned.
    DontNeed,
}

impl Mapping {
    /// Maps a whole local file with [`MapOptions`] as they are by default.
    ///
    /// # Errors
    /// As [`MapOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Mapping> {
        MapOptions::new().open(path)
    }

    pub(crate) fn new(view: MappedView) -> Mapping {
        Mapping { view }
    }

    /// What the object is called: its path, its URL.
    pub fn name(&self) -> &str {
        self.view.object().name()
    }

    /// Copies bytes out, from `offset` bytes after the mapping's start on, until `into` is full.
    ///
    /// It touches no mapped address, so it raises no signal.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if that reaches beyond the mapping; [`Error::Read`] if the store fails;
    /// [`Error::TimedOut`], [`Error::NoRoom`] after the time limit. What `into` holds after an error is not defined.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.view.read_at(offset, into)
    }

    /// Brings a range into memory and keeps it there as long as the guard lives, which derefs to its bytes.
    ///
    /// Touching them cannot fail any more. A guard that was leaked keeps its pages for good.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); and [`Error::PinLimit`] if more than half of the budget would be pinned.
    pub fn pin(&self, range: Range<u64>) -> Result<PinGuard<'_>> {
        self.view.pin(range.start, length_of(&self.view, &range)?)
    }

    /// Begins to fetch a range in the background, as far as the budget has room. Comes back at once.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; what goes wrong later is told by [`Prefetch::wait`], or by awaiting it.
    pub fn prefetch(&self, range: Range<u64>) -> Result<Prefetch> {
        self.prefetch_many(&[range])
    }

    /// As [`prefetch`](Self::prefetch), for many ranges in one wave.
    ///
    /// # Errors
    /// As [`prefetch`](Self::prefetch).
    pub fn prefetch_many(&self, ranges: &[Range<u64>]) -> Result<Prefetch> {
        for range in ranges {
            length_of(&self.view, range)?;
        }
        self.view.prefetch(ranges)
    }

    /// Says what is known about the use of a range.
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

    /// Brings a range into memory and keeps it there, in whole pages, until it is [unlocked](Self::unlock) or the mapping is
    /// dropped (mlock(2)).
    ///
    /// Locks do not nest: one unlock undoes any number. Half of a budget can be locked or pinned at a time. The kernel
    /// locks the addresses too, so the limit of the process counts (RLIMIT_MEMLOCK).
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::PinLimit`]; [`Error::Host`] where the kernel does not allow it; [`Error::Read`] if
    /// the store fails. Nothing more is locked then than before.
    pub fn lock(&self, range: Range<u64>) -> Result<()> {
        lock(&self.view, range)
    }

    /// Lets the pages of a range go again (munlock(2)).
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn unlock(&self, range: Range<u64>) -> Result<()> {
        unlock(&self.view, range)
    }

    /// Makes two independent mappings of one, as [`Vec::split_off`]: keeps the first `at` bytes, where they are, and gives
    /// the rest, at new addresses. What is locked of the rest is not any more.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Host`] if there are no addresses; nothing has changed then.
    pub fn split_off(&mut self, at: u64) -> Result<Mapping> {
        Ok(Mapping { view: split_off(&mut self.view, at)? })
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

    /// Bytes of a page, the unit of residency.
    pub fn page_bytes(&self) -> u64 {
        self.view.cache().page_bytes()
    }
}

/// The length of a range, if it is inside a mapping.
pub(crate) fn length_of(view: &MappedView, range: &Range<u64>) -> Result<u64> {
    let inside = range.start <= range.end && range.end <= view.len();
    inside.then(|| range.end - range.start).ok_or_else(|| Error::OutOfRange {
        object: view.object().name().into(),
        offset: range.start,
        length: range.end.saturating_sub(range.start),
        end: view.len(),
    })
}

pub(crate) fn advise(view: &MappedView, range: Range<u64>, advice: Advice) -> Result<()> {
    length_of(view, &range)?;
    match advice {
        Advice::Normal => view.expect(range, Pattern::Normal),
        Advice::Random => view.expect(range, Pattern::Random),
        Advice::Sequential => view.expect(range, Pattern::Sequential),
        Advice::WillNeed => view.prefetch(&[range]).map(drop),
        Advice::DontNeed => view.evict(range).map(drop),
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.view.bytes()
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("name", &self.name())
            .field("len", &self.view.len())
            .finish_non_exhaustive()
    }
}
