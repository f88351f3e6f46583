//! All views of one cache, by address.

use std::ops::Range;
use std::sync::Arc;

use omnimap_host::{Address, Sharing, View};

use crate::address_map::{AddressMap, Span};
use crate::object::MemoryObject;
use crate::readahead::Streams;
use crate::sync::{Mutex, RwLock, read, write};
use crate::units::{PageIndex, PageRange, PageSize};

/// What readers of a view did so far, and how far ahead of them to read.
pub(crate) struct Reader {
    pub(crate) streams: Mutex<Streams>,
    pub(crate) window_pages_max: u64,
}

/// A view, or what is left of one, and the pages that it shows.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) view: Arc<dyn View>,
    pub(crate) page: PageSize,
    /// The page of the object that the view, when it was whole, began with.
    pub(crate) base: PageIndex,
    /// The pages of the object that it shows.
    pub(crate) pages: PageRange,
}

impl Shown {
    /// The page of the object that is shown at an offset in the view.
    pub(crate) fn page_at(&self, offset: u64) -> PageIndex {
        PageIndex(self.base.0 + offset / self.page.bytes())
    }

    /// The bytes of the view that show some of its pages.
    pub(crate) fn bytes_of(&self, pages: PageRange) -> Range<u64> {
        self.page.bytes_of(PageRange::new(pages.start.0 - self.base.0, pages.end.0 - self.base.0))
    }
}

impl Span for Shown {
    fn addresses(&self) -> Range<usize> {
        let (start, bytes) = (self.view.start().0, self.bytes_of(self.pages));
        start + bytes.start as usize..start + bytes.end as usize
    }

    fn part(&self, range: Range<usize>) -> Shown {
        let start = self.view.start().0;
        let bytes = (range.start - start) as u64..(range.end - start) as u64;
        let inside = self.page.pages_of(bytes);
        let pages = PageRange::new(self.base.0 + inside.start.0, self.base.0 + inside.end.0);
        Shown { pages, ..self.clone() }
    }
}

/// What is shown at some addresses, and of which object.
#[derive(Clone)]
pub(crate) struct Placed {
    pub(crate) shown: Shown,
    pub(crate) object: Arc<MemoryObject>,
    pub(crate) reader: Arc<Reader>,
}

impl Span for Placed {
    fn addresses(&self) -> Range<usize> {
        self.shown.addresses()
    }

    fn part(&self, range: Range<usize>) -> Placed {
        Placed { shown: self.shown.part(range), ..self.clone() }
    }
}

/// The views. A view is used only under the lock, so that nothing is done to addresses that were unmapped and are
/// somebody else's now.
#[derive(Default)]
pub(crate) struct AddressSpace {
    views: RwLock<AddressMap<Placed>>,
}

/// What an address shows.
pub(crate) struct Located {
    pub(crate) object: Arc<MemoryObject>,
    pub(crate) page: PageIndex,
    /// Where the page begins.
    pub(crate) address: Address,
    pub(crate) view_pages: PageRange,
    pub(crate) sharing: Sharing,
    pub(crate) reader: Arc<Reader>,
}

impl AddressSpace {
    pub(crate) fn insert(&self, placed: Placed) {
        write(&self.views).insert(placed);
    }

    /// Takes addresses out; gives what was there.
    pub(crate) fn cut(&self, range: Range<usize>) -> Vec<Placed> {
        write(&self.views).cut(range)
    }

    /// What is at some addresses, in their order.
    pub(crate) fn parts(&self, range: &Range<usize>) -> Vec<Placed> {
        read(&self.views).parts(range)
    }

    /// Finds what an address shows.
    pub(crate) fn locate(&self, address: Address) -> Option<Located> {
        let views = read(&self.views);
        let Placed { shown, object, reader } = views.at(address.0)?;
        let offset = (address.0 - shown.view.start().0) as u64;
        Some(Located {
            object: object.clone(),
            page: shown.page_at(offset),
            address: Address(address.0 - (offset % shown.page.bytes()) as usize),
            view_pages: shown.pages,
            sharing: shown.view.sharing(),
            reader: reader.clone(),
        })
    }

    /// Calls `work` with what is placed at an address, and the address as an offset in its view, if there is anything.
    pub(crate) fn with_view(&self, address: Address, work: impl FnOnce(&Placed, u64)) {
        let views = read(&self.views);
        if let Some(placed) = views.at(address.0) {
            work(placed, (address.0 - placed.shown.view.start().0) as u64);
        }
    }
}
