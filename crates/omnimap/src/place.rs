//! Where mappings are, and what is wished for besides.

use std::sync::Arc;

use omnimap_core::{Error, Location, Result};
use omnimap_host::linux::{Part, page_bytes};
use omnimap_host::{HostError, Place};

use crate::MapOptions;

/// Addresses that are set aside, for mappings to be placed in later; cheap to clone.
///
/// It takes no memory. Nobody else maps anything there, so placing a mapping at an address of one's own choice harms
/// nobody ([`MapOptions::within`]). A mapping that is dropped gives its part back; the addresses stay as long as the
/// reservation, or a mapping within it, does.
///
/// # Example
/// ```
/// use omnimap::{MapOptions, Reservation, store::MemoryStore};
///
/// # fn main() -> omnimap::Result<()> {
/// // Two stores, one behind the other.
/// let page = omnimap::machine::page_bytes();
/// let reservation = Reservation::new(2 * page)?;
/// let store = |byte| MemoryStore::new("bytes", vec![byte; page as usize]);
/// let one = MapOptions::new().within(&reservation, 0).map(store(1))?;
/// let two = MapOptions::new().within(&reservation, page).map(store(2))?;
/// assert_eq!(one.as_ptr_range().end, two.as_ptr());
///
/// assert!(MapOptions::new().within(&reservation, page).map(store(3)).is_err(), "taken");
/// drop(two);
/// MapOptions::new().within(&reservation, page).map(store(3))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Reservation {
    inner: omnimap_host::linux::Reservation,
}

impl Reservation {
    /// Sets whole pages of addresses aside.
    ///
    /// # Errors
    /// [`Error::Host`] where there are not so many.
    pub fn new(bytes: u64) -> Result<Reservation> {
        let inner = omnimap_host::linux::Reservation::new(bytes).map_err(|e| refused("reservation", e))?;
        Ok(Reservation { inner })
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.inner.start().0
    }

    /// Its bytes, in whole pages.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

impl MapOptions {
    /// Brings all of it into memory at once, as far as the budget (or the machine) has room (`MAP_POPULATE`, mmap(2)).
    pub fn populate(&mut self, yes: bool) -> &mut Self {
        self.wishes.populate = yes;
        self
    }

    /// Keeps all of it in memory (`MAP_LOCKED`, mmap(2)), as [`Mapping::lock`](crate::Mapping::lock); it is an error if that
    /// cannot be.
    pub fn lock(&mut self, yes: bool) -> &mut Self {
        self.wishes.lock = yes;
        self
    }

    /// Asks for large pages (`MADV_HUGEPAGE`, madvise(2)): where there are none, nothing happens. For [`kernel`](crate::kernel)
    /// memory; for paged objects see [`large_pages`](Self::large_pages).
    pub fn huge(&mut self, yes: bool) -> &mut Self {
        self.wishes.huge = yes;
        self
    }

    /// Whether ranges of a paged object that is only read are shown by large pages (`MADV_COLLAPSE`, madvise(2)) while all of a
    /// range (2 MiB, mostly) is in memory and in use, and nobody wants room; they are, unless this is said. Random reads of
    /// what is in memory are faster then. Of an object that is stored to, never: stores are noticed page by page.
    pub fn large_pages(&mut self, yes: bool) -> &mut Self {
        self.large_pages = yes;
        self
    }

    /// Sets no swap aside (`MAP_NORESERVE`, mmap(2)): that memory runs out is told at an access. For [`kernel`](crate::kernel) memory;
    /// paged objects set nothing aside.
    pub fn no_reserve(&mut self, yes: bool) -> &mut Self {
        self.wishes.no_reserve = yes;
        self
    }

    /// Takes addresses below 2 GiB (`MAP_32BIT`, mmap(2)). Ignored [within](Self::within) a reservation.
    pub fn below_2gib(&mut self, yes: bool) -> &mut Self {
        self.wishes.below_2gib = yes;
        self
    }

    /// Lets a forked child find zeros instead of what is stored (`MADV_WIPEONFORK`, madvise(2)). For private anonymous
    /// [`kernel`](crate::kernel) memory alone.
    pub fn wipe_on_fork(&mut self, yes: bool) -> &mut Self {
        self.wishes.wipe_on_fork = yes;
        self
    }

    /// Places it in a reservation, `offset` bytes after that one's beginning, which is at a page. Two mappings cannot overlap.
    ///
    /// With an [`offset`](Self::offset) in the object that is not at a page, the mapping's first byte is as far behind one.
    pub fn within(&mut self, reservation: &Reservation, offset: u64) -> &mut Self {
        self.reservation = Some((reservation.clone(), offset));
        self
    }

    /// Where a view of some bytes of an object is to be.
    pub(crate) fn location(&self, object: &str, offset: u64, length: u64) -> Result<Location> {
        if length == 0 {
            return Ok(Location::default());
        }
        Ok(match self.part(object, (offset % page_bytes()).saturating_add(length))? {
            Some(part) => Location::In(Box::new(part)),
            None if self.wishes.below_2gib => Location::At(Place::low()),
            None => Location::default(),
        })
    }

    /// A part of the reservation, if there is one.
    pub(crate) fn part(&self, object: &str, bytes: u64) -> Result<Option<Part>> {
        let part = self.reservation.as_ref().map(|(reservation, at)| reservation.inner.part(*at, bytes));
        part.transpose().map_err(|e| refused(object, e))
    }
}

pub(crate) fn refused(object: &str, source: HostError) -> Error {
    Error::Host { object: object.into(), source: Arc::new(source) }
}
