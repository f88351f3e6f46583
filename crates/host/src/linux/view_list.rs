//! Which views show a memfd, so that it can be filled through one and the others' stores are trapped.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::userfaultfd::Userfaultfd;
use crate::{Address, Result, Stores};

/// The shared views of one memfd, in this process and in its kin.
#[derive(Default)]
pub(super) struct ViewList {
    views: RwLock<BTreeMap<Address, Listed>>,
}

/// A shared view: the bytes of the memfd that it shows, and who serves it.
#[derive(Clone)]
struct Listed {
    shown: Range<u64>,
    faults: Arc<Userfaultfd>,
    /// Nobody has its address.
    is_hidden: bool,
}

/// What became of a fill.
pub(super) struct Filled {
    /// So many bytes are there.
    pub(super) bytes: usize,
    /// It went through a view that nobody has the address of.
    pub(super) was_hidden: bool,
}

impl ViewList {
    /// Puts bytes into holes, as far as the view shows them through which it is done; `None` without one. With
    /// [`Stores::Trap`], no store to them goes through in any view.
    pub(super) fn fill(&self, offset: u64, bytes: &[u8], stores: Stores) -> Option<Result<Filled>> {
        // One look at the list for all: a view that comes between could be left out of what is trapped.
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        // Never through one of kin: a child unmaps it without a word, and may have mapped something else there.
        let is_ours = |start: &Address| start.kin() == 0;
        let showing =
            || views.iter().filter(|(start, listed)| is_ours(start) && listed.shown.contains(&offset));
        let (start, listed) = showing().find(|(_, listed)| !listed.is_hidden).or_else(|| showing().next())?;
        let count = bytes.len().min((listed.shown.end - offset) as usize);
        let filled = || {
            // Before the pages are there, or a store would go through.
            trap(&views, offset..offset + count as u64, stores, Some(start))?;
            let address = start.0 + (offset - listed.shown.start) as usize;
            listed.faults.copy(Address(address), &bytes[..count], stores)?;
            Ok(Filled { bytes: count, was_hidden: listed.is_hidden })
        };
        Some(filled())
    }

    /// Calls `work`, which makes these bytes resident, if no view of this process shows the first of them; none comes until
    /// it returns. With [`Stores::Trap`], no store to them goes through in any view.
    pub(super) fn unless_shown<T>(
        &self,
        bytes: Range<u64>,
        stores: Stores,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<Result<T>> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let is_shown =
            views.iter().any(|(start, listed)| start.kin() == 0 && listed.shown.contains(&bytes.start));
        if is_shown { None } else { Some(trap(&views, bytes, stores, None).and_then(|()| work())) }
    }

    pub(super) fn add(&self, shown: Range<u64>, start: Address, faults: Arc<Userfaultfd>) {
        let listed = Listed { shown, faults, is_hidden: false };
        self.views.write().unwrap_or_else(PoisonError::into_inner).insert(start, listed);
    }

    /// Nobody has the address of a view: it is filled through last, and no store through it has to be trapped.
    pub(super) fn hide(&self, start: Address) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = views.get_mut(&start) {
            listed.is_hidden = true;
        }
    }

    /// Takes addresses out, of one view.
    pub(super) fn remove(&self, gone: Range<usize>) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        let first = views.range(..Address(gone.start)).next_back().map(|(start, _)| *start);
        let inside = views.range(Address(gone.start)..Address(gone.end)).map(|(s, _)| *s);
        let inside: Vec<Address> = first.into_iter().chain(inside).collect();
        for start in inside {
            let Some(listed) = views.remove(&start) else { continue };
            let Range { start: from, end: to } = listed.shown;
            let end = start.0 + (to - from) as usize;
            if start.0 < gone.start {
                let kept = (gone.start.min(end) - start.0) as u64;
                views.insert(start, Listed { shown: from..from + kept, ..listed.clone() });
            }
            if end > gone.end {
                let shown = to - (end - gone.end) as u64..to;
                views.insert(Address(gone.end), Listed { shown, ..listed });
            }
        }
    }
}

/// Traps stores to bytes in each view that somebody has the address of, but for one, if they are to be trapped.
fn trap(
    views: &BTreeMap<Address, Listed>,
    bytes: Range<u64>,
    stores: Stores,
    but: Option<&Address>,
) -> Result<()> {
    if stores != Stores::Trap {
        return Ok(());
    }
    for (start, Listed { shown, faults, .. }) in views.iter().filter(|(_, listed)| !listed.is_hidden) {
        let (from, to) = (shown.start.max(bytes.start), shown.end.min(bytes.end));
        if Some(start) != but && from < to {
            faults.protect(Address(start.0 + (from - shown.start) as usize), to - from, stores)?;
        }
    }
    Ok(())
}
