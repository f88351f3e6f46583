//! What of a mapping is in memory, and stays there.

use std::ops::Range;
use std::sync::Arc;

use omnimap_core::{Error, MappedView, Result};
use omnimap_host::{Address, HostError, linux};

use crate::mapping::length_of;

/// What of a range is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residency {
    /// The parts that are, in order, in bytes from the mapping's start; whole pages, cut to the range.
    pub resident: Vec<Range<u64>>,
    /// Bytes of the range.
    pub bytes: u64,
}

impl Residency {
    /// Bytes of the range that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.resident.iter().map(|part| part.end - part.start).sum()
    }
}

pub(crate) fn residency(view: &MappedView, range: Range<u64>) -> Result<Residency> {
    let bytes = length_of(view, &range)?;
    let runs = view.residency(range)?;
    Ok(Residency { resident: runs.into_iter().filter(|(_, r)| *r).map(|(run, _)| run).collect(), bytes })
}

/// Locks a range of a mapping: here, and in the kernel.
pub(crate) fn lock(view: &MappedView, range: Range<u64>) -> Result<()> {
    length_of(view, &range)?;
    let new = view.lock_range(range)?;
    let outcome = new.iter().try_for_each(|part| of_addresses(view, part, linux::lock));
    if outcome.is_err() {
        for part in new {
            unlock(view, part)?;
        }
    }
    outcome
}

/// Takes it back.
pub(crate) fn unlock(view: &MappedView, range: Range<u64>) -> Result<()> {
    length_of(view, &range)?;
    view.unlock_range(range.clone())?;
    of_addresses(view, &range, linux::unlock)
}

/// Makes two of one; the kernel does not count what was locked of the rest any more, whose addresses stay.
pub(crate) fn split_off(view: &mut MappedView, at: u64) -> Result<MappedView> {
    let length = view.len();
    let rest = view.split_off(at)?;
    if let Some(first) = view.address() {
        let page = view.cache().page_bytes() as usize;
        let [start, end] = [at, length].map(|at| (first.0 + at as usize).next_multiple_of(page));
        // Of no consequence but for the limit, if there cannot be one mapping more.
        let _ = linux::unlock(Address(start), end - start);
    }
    Ok(rest)
}

/// Calls `work` with the addresses of a range, in whole pages.
fn of_addresses(
    view: &MappedView,
    range: &Range<u64>,
    work: impl FnOnce(Address, usize) -> Result<(), HostError>,
) -> Result<()> {
    let Some(first) = view.address().filter(|_| !range.is_empty()) else { return Ok(()) };
    let page = view.cache().page_bytes() as usize;
    let (start, end) = (first.0 + range.start as usize, first.0 + range.end as usize);
    let start = start - start % page;
    work(Address(start), end.next_multiple_of(page) - start)
        .map_err(|e| Error::Host { object: view.object().name().into(), source: Arc::new(e) })
}
