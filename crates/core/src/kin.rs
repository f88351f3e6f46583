//! Views in forked children, and objects that a child goes on with when its parent is gone.
//!
//! One process serves an object: it has the pages' states, fills, evicts, writes back. Children show the same memory; their
//! faults come to the same [`FaultStream`](omnimap_host::FaultStream), with addresses that say whose they are. A page that is in the memory is the
//! truth, one that is not is in the store: so whoever goes on needs nothing of what the one before him knew.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use omnimap_host::{Address, Counted, Host, Memory, ViewRequest};
use omnimap_store::{BackingStore, catch};

use crate::address_map::Span;
use crate::address_space::Shown;
use crate::budget::Taken;
use crate::cache::{CacheOptions, PageCache};
use crate::error::Result;
use crate::object::MemoryObject;
use crate::page_state::Transition;
use crate::page_table::Mark;
use crate::replacement::CachedPage;
use crate::sync::lock;
use crate::units::PageRange;

impl PageCache {
    /// Whether it was made in this process, and not in a parent.
    pub fn is_here(&self) -> bool {
        self.inner.made_in.is_current()
    }

    /// What it was made with.
    pub fn options(&self) -> CacheOptions {
        self.inner.options
    }

    /// Serves a forked child, which has passed the userfaultfd of its views; gives its number.
    ///
    /// # Errors
    /// If the machine refuses.
    pub fn add_kin(&self, userfaultfd: OwnedFd) -> Result<u16> {
        self.inner
            .host
            .add_kin(userfaultfd)
            .map_err(|e| crate::Error::Host { object: "a forked child".into(), source: Arc::new(e) })
    }

    /// The child is gone: so are its views.
    pub fn remove_kin(&self, kin: u16) {
        let first = Address(0).of_kin(kin).0;
        let given_up = self.give_up(first..first | (usize::MAX >> 16));
        self.inner.host.remove_kin(kin);
        // What it has stored is told about by the next sync, if the store does not take it.
        let _told_later = given_up.is_unmapped();
    }

    /// Notes a view that a child has made of an object, before the child may touch it. The place of the request is an
    /// address of the child.
    ///
    /// # Errors
    /// If the machine refuses.
    pub fn view_of_kin(
        self: &Arc<Self>,
        object: &Arc<MemoryObject>,
        request: &ViewRequest,
        start: Address,
        readahead_bytes_max: u64,
    ) -> Result<()> {
        let view = object.memory.view_of_kin(request, start).map_err(|e| object.host_error(e))?;
        self.start_workers(object)?;
        let pages = self.inner.page.pages_of(request.offset..request.offset.saturating_add(request.length));
        let addresses =
            Shown { view: view.clone(), page: self.inner.page, base: pages.start, pages }.addresses();
        // A child that has exec'd and forked again, or whose number came round.
        drop(self.give_up(addresses));
        self.serve(object, view, pages, &self.inner.reader(readahead_bytes_max))
    }

    /// An object over a memory that the process which made it has left, with what is in it.
    ///
    /// What is resident of a writable object counts as dirty: what the other knew of it is not known.
    ///
    /// # Errors
    /// If the machine does not tell what is there.
    pub fn inherit(
        &self,
        store: Arc<dyn BackingStore>,
        length: u64,
        memory: Arc<dyn Memory>,
    ) -> Result<Arc<MemoryObject>> {
        let name = catch(|| Arc::<str>::from(store.name()))?;
        let object = self.register(name, store, length, memory);
        object.take_stock()?;
        // Nor what it had written, and not yet made durable.
        object.pages().writes.length_unsynced = object.memory.used_as().is_writable();
        if let Some(each) = self.inner.large_page_pages() {
            let pages = &mut *object.pages();
            pages.large.suspect(&pages.table, each);
        }
        Ok(object)
    }

    /// A cache as another one, on another machine.
    ///
    /// # Errors
    /// As [`PageCache::new`].
    pub fn anew(&self, host: Arc<dyn Host>) -> Result<Arc<PageCache>> {
        PageCache::new(host, self.inner.options)
    }

    /// Lets everybody who waits in a range try again.
    pub fn wake_all(&self, start: Address, bytes: u64) {
        if let Err(error) = self.inner.faults.wake(start, bytes) {
            tracing::warn!(%start, %error, "waiting threads were not woken");
        }
    }
}

impl MemoryObject {
    /// The memory itself, for a child to map.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    /// Finds out what is in a memory that another has filled.
    fn take_stock(&self) -> Result<()> {
        let page = self.cache.page;
        let writable = self.memory.used_as().is_writable();
        for bytes in self.memory.present().map_err(|e| self.host_error(e))? {
            let mut range = page.pages_of(bytes).intersect(self.all_pages());
            while !range.is_empty() {
                // A part at a time: what may be filling is bounded.
                let Taken { pages: taken, replenish, .. } = self.cache.budget.take(range.count());
                if replenish {
                    self.cache.submit_replenishing();
                }
                if taken == 0 {
                    // More than the budget, which cannot be: what is clean could be dropped.
                    let rest = page.bytes_of(range);
                    if writable {
                        return Err(self.no_room(rest.start));
                    }
                    self.memory
                        .punch(rest.start, rest.end - rest.start, Counted::Exactly)
                        .map_err(|e| self.host_error(e))?;
                    break;
                }
                self.cache.budget.arrived(taken);
                let part = PageRange::new(range.start.0, range.start.0 + taken);
                range.start = part.end;
                let mut pages = self.pages();
                for page in part.iter() {
                    pages.table.apply(page, Transition::BeginFill);
                    if writable {
                        self.note_dirty(&mut pages);
                    }
                    let filled = if writable { Transition::FilledForStore } else { Transition::Filled };
                    pages.table.apply(page, filled);
                    pages.table.set(page, Mark::Queued, true);
                    lock(&self.cache.replacement).arrived(CachedPage { object: self.id, page });
                }
            }
        }
        Ok(())
    }
}
