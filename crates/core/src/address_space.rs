//! All views of one cache, by address.

use std::collections::BTreeMap;
use std::sync::Arc;

use omnimap_host::{Address, View};

use crate::object::MemoryObject;
use crate::readahead::Streams;
use crate::sync::{Mutex, RwLock, read, write};
use crate::units::{PageIndex, PageRange};

/// What readers of a view did so far, and how far ahead of them to read.
pub(crate) struct Reader {
    pub(crate) streams: Mutex<Streams>,
    pub(crate) window_pages_max: u64,
}

/// A view and what it shows.
pub(crate) struct Placed {
    pub(crate) view: Arc<dyn View>,
    pub(crate) object: Arc<MemoryObject>,
    /// The pages of the object that it shows.
    pub(crate) pages: PageRange,
    pub(crate) reader: Arc<Reader>,
}

impl Placed {
    /// The page of the object that is shown at an offset in the view.
    pub(crate) fn page_at(&self, offset: u64) -> PageIndex {
        PageIndex(self.pages.start.0 + offset / self.object.cache.page.bytes())
    }
}

/// The views. A view is used only under the lock, so that nothing is done to addresses that were unmapped and are
/// somebody else's now.
#[derive(Default)]
pub(crate) struct AddressSpace {
    views: RwLock<BTreeMap<Address, Placed>>,
}

/// What an address shows.
pub(crate) struct Located {
    pub(crate) object: Arc<MemoryObject>,
    pub(crate) page: PageIndex,
    /// Where the page begins.
    pub(crate) address: Address,
    pub(crate) view_pages: PageRange,
    pub(crate) reader: Arc<Reader>,
}

impl AddressSpace {
    pub(crate) fn insert(&self, placed: Placed) {
        write(&self.views).insert(placed.view.start(), placed);
    }

    pub(crate) fn remove(&self, start: Address) -> Option<Placed> {
        write(&self.views).remove(&start)
    }

    /// Finds what an address shows.
    pub(crate) fn locate(&self, address: Address) -> Option<Located> {
        let views = read(&self.views);
        let (placed, offset) = find(&views, address)?;
        let index = offset / placed.object.cache.page.bytes();
        Some(Located {
            object: placed.object.clone(),
            page: PageIndex(placed.pages.start.0 + index),
            address: Address(placed.view.start().0 + (index * placed.object.cache.page.bytes()) as usize),
            view_pages: placed.pages,
            reader: placed.reader.clone(),
        })
    }

    /// Calls `work` with what is placed at an address, and the address as an offset in it, if there is anything.
    pub(crate) fn with_view(&self, address: Address, work: impl FnOnce(&Placed, u64)) {
        let views = read(&self.views);
        if let Some((placed, offset)) = find(&views, address) {
            work(placed, offset);
        }
    }
}

fn find(views: &BTreeMap<Address, Placed>, address: Address) -> Option<(&Placed, u64)> {
    let (start, placed) = views.range(..=address).next_back()?;
    let offset = (address.0 - start.0) as u64;
    (offset < placed.pages.count() * placed.object.cache.page.bytes()).then_some((placed, offset))
}
