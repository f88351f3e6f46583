//! Where the view of a mapping is to be.

use std::sync::Arc;

use omnimap_host::{Addresses, Place, View};

use crate::mapped_view::MappedView;

/// Where the view of a mapping is to be.
pub enum Location {
    /// Where a place says.
    At(Place),
    /// At addresses that were set aside, and go back when the mapping is dropped.
    In(Box<dyn Addresses>),
}

impl Default for Location {
    fn default() -> Location {
        Location::At(Place::anywhere())
    }
}

impl MappedView {
    /// Where the view was made.
    pub(crate) fn with_location(mut self, location: Location) -> MappedView {
        self.location = location;
        self
    }

    /// Drops a view that was taken out; addresses that were set aside for it go back.
    pub(crate) fn leave(&mut self, view: Arc<dyn View>) {
        let (start, bytes) = (view.start(), view.length());
        drop(view);
        if let Location::In(addresses) = std::mem::take(&mut self.location) {
            drop(addresses);
            // A thread that came by a raw pointer and waits in the range would wait for ever: let it find nothing there.
            let _ = self.object.cache.faults.wake(start, bytes);
        }
    }
}
