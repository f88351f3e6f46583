//! Views at addresses that somebody else manages: placed, cut and left, as mmap(2) and munmap(2) do.
//!
//! The kernel mapping itself goes by the hand of whoever manages the addresses: he says what he is about to unmap or to
//! replace ([`PageCache::give_up`]), does it, and says that it is done ([`GivenUp::is_unmapped`]).

use std::ops::Range;
use std::sync::Arc;

use omnimap_host::{Address, Sharing, ViewRequest};

use crate::address_map::Span;
use crate::address_space::Placed;
use crate::cache::{Inner, PageCache};
use crate::error::{Error, Result};
use crate::mapped_view::MappedView;
use crate::object::MemoryObject;
use crate::readahead::Pattern;
use crate::sync::lock;

impl PageCache {
    /// The checked ways to use an object, with no addresses.
    pub fn without_addresses(
        self: &Arc<Self>,
        object: &Arc<MemoryObject>,
        readahead_bytes_max: u64,
    ) -> MappedView {
        let reader = self.inner.reader(readahead_bytes_max);
        MappedView::new(self.clone(), object.clone(), None, 0, u64::MAX, reader)
    }

    /// Makes a view as it is asked for; it stays until its addresses are given up. Gives where it is.
    ///
    /// The range may reach beyond the object's end: accesses to whole pages there raise SIGBUS.
    ///
    /// # Errors
    /// [`Error::Host`] if the machine refuses: nothing has changed then, but for what the view was to replace.
    ///
    /// # Panics
    /// If the object is of another cache.
    pub fn place_as(
        self: &Arc<Self>,
        object: &Arc<MemoryObject>,
        request: &ViewRequest,
        readahead_bytes_max: u64,
    ) -> Result<Address> {
        let inner = &self.inner;
        assert!(Arc::ptr_eq(&object.cache, inner), "an object is mapped through the cache that opened it");
        if !inner.made_in.is_current() {
            return Err(Error::Forked { object: object.name.clone() });
        }
        self.start_workers(object)?;
        let view = object.memory.map_as(request).map_err(|e| object.host_error(e))?;
        let address = view.start();
        let end = request.offset.saturating_add(request.length);
        let pages = inner.page.pages_of(request.offset..end);
        self.serve(object, view, pages, &inner.reader(readahead_bytes_max))?;
        Ok(address)
    }

    /// Leaves addresses to the caller, who is about to unmap them or to map something else there.
    pub fn give_up(&self, addresses: Range<usize>) -> GivenUp {
        if !self.inner.made_in.is_current() {
            // A child's views are served elsewhere, where nothing has to be known of it.
            return GivenUp { cache: self.inner.clone(), parts: Vec::new() };
        }
        let parts = self.inner.space.cut(addresses.clone());
        for part in &parts {
            let mine = part.addresses();
            part.object.remove_views(mine.clone());
            let start = part.shown.view.start().0;
            part.shown.view.give_up((mine.start - start) as u64..(mine.end - start) as u64);
        }
        GivenUp { cache: self.inner.clone(), parts }
    }

    /// Says how addresses will be read from now on.
    pub fn expect_at(&self, addresses: &Range<usize>, pattern: Pattern) {
        if !self.inner.made_in.is_current() {
            return;
        }
        for part in self.inner.space.parts(addresses) {
            lock(&part.reader.streams).expect(part.shown.pages, pattern);
        }
    }
}

/// Addresses that were given up, and what has to be done when nothing is mapped there any more.
/// Dropping it without that leaves threads that wait.
#[must_use = "threads may wait in the range"]
pub struct GivenUp {
    cache: Arc<Inner>,
    parts: Vec<Placed>,
}

impl GivenUp {
    /// Lets the range be moved as it is, by mremap(2): nothing in it can be accessed (PROT_NONE), and it is
    /// [placed](PageCache::place_as) again afterwards.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn may_be_moved(&self) -> Result<()> {
        for part in &self.parts {
            let (mine, start) = (part.addresses(), part.shown.view.start().0);
            let range = (mine.start - start) as u64..(mine.end - start) as u64;
            part.shown.view.end_faults(range).map_err(|e| part.object.host_error(e))?;
        }
        Ok(())
    }

    /// Goes on with the threads that wait for a page of the range, and writes back what was stored to it through a shared
    /// view (without making it durable), for nobody may look at it again.
    ///
    /// # Errors
    /// If the store did not take something: it stays dirty, and the next sync of the object tells too.
    pub fn is_unmapped(self) -> Result<()> {
        let mut outcome = Ok(());
        for part in &self.parts {
            let mine = part.addresses();
            if let Err(error) = self.cache.faults.wake(Address(mine.start), mine.len() as u64) {
                tracing::warn!(object = part.object.name(), %error, "waiting threads were not woken");
            }
            if part.shown.view.sharing() == Sharing::Shared {
                outcome = outcome.and(part.object.write_unmapped(part.shown.pages));
            }
        }
        outcome
    }
}
