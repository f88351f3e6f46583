//! All mappings that were made through these calls, by address.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnimap_core::{AddressMap, GivenUp, Span};
use omnimap_host::linux::calls;
use omnimap_host::{Address, Place};

use crate::errno::Result;
use crate::family::SyncKind;
use crate::flags::{LockAll, Prot};
use crate::mapping::Mapping;

/// The mappings of this process that were made through these calls.
pub struct AddressSpace;

impl AddressSpace {
    /// All of them, in the order of their addresses, as they are now. Neighbours that are alike are one.
    pub fn mappings() -> Vec<Mapping> {
        space().mappings.iter().cloned().collect()
    }

    /// The one that has an address.
    pub fn at(address: usize) -> Option<Mapping> {
        space().mappings.at(address).cloned()
    }
}

/// What is known of the process's addresses.
#[derive(Default)]
pub(crate) struct Space {
    pub(crate) mappings: AddressMap<Mapping>,
    /// How what is mapped from now on is locked (`MCL_FUTURE`).
    pub(crate) lock_future: Option<LockAll>,
}

static SPACE: Mutex<Option<Space>> = Mutex::new(None);

/// The space, locked: whoever changes what addresses mean holds it meanwhile. Nobody reads mappings under it: a process
/// that goes on with what a parent served needs it before it brings a page.
pub(crate) struct Locked(MutexGuard<'static, Option<Space>>);

pub(crate) fn space() -> Locked {
    crate::fork::care();
    let mut guard = SPACE.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_default();
    Locked(guard)
}

impl std::ops::Deref for Locked {
    type Target = Space;
    fn deref(&self) -> &Space {
        self.0.as_ref().expect("made when it was locked")
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Space {
        self.0.as_mut().expect("made when it was locked")
    }
}

impl Space {
    /// Notes a new mapping, where nothing is noted.
    pub(crate) fn insert(&mut self, mapping: Mapping) {
        let addresses = mapping.addresses();
        self.mappings.insert(mapping);
        self.join_around(&addresses);
    }

    /// Forgets what was in a range that is about to be unmapped or replaced; the engine serves no faults there any more.
    pub(crate) fn give_up(&mut self, range: &Range<usize>) -> Leaving {
        let mut leaving = Leaving::nothing();
        for gone in self.mappings.cut(range.clone()) {
            if let Some(object) = gone.paged() {
                leaving.parts.push(object.live().cache.give_up(gone.addresses()));
            }
            leaving.mappings.push(gone);
        }
        leaving
    }

    /// Lets the kernel cut the mappings of paged views at the ends of a range, all or none; what is inside may not be
    /// accessed any more.
    pub(crate) fn cut_views(&self, range: &Range<usize>) -> Result<()> {
        let is_whole = |m: &&Mapping| range.start <= m.addresses.start && m.addresses.end <= range.end;
        let cut = self.mappings.overlapping(range).filter(|m| m.paged().is_some() && !is_whole(m));
        let mut parts: Vec<Mapping> = Vec::new();
        for mapping in cut {
            let inside = range.start.max(mapping.addresses.start)..range.end.min(mapping.addresses.end);
            let part = mapping.part(inside);
            if let Err(error) = part.protect(Prot::NONE) {
                // Taking it back joins what was cut: the kernel needs nothing for that.
                for done in &parts {
                    let _ = done.protect(done.prot);
                }
                return Err(error);
            }
            parts.push(part);
        }
        Ok(())
    }

    /// Changes what is known of the mappings in a range.
    pub(crate) fn change(&mut self, range: &Range<usize>, mut change: impl FnMut(&mut Mapping)) {
        for mut part in self.mappings.cut(range.clone()) {
            change(&mut part);
            self.mappings.insert(part);
        }
        self.join_around(range);
    }

    /// Makes neighbours that are alike one, in a range and at its ends.
    fn join_around(&mut self, range: &Range<usize>) {
        let around = range.start.saturating_sub(1)..range.end.saturating_add(1);
        let mut joined: Vec<Mapping> = Vec::new();
        let mut any = false;
        for next in self.mappings.overlapping(&around) {
            match joined.last_mut() {
                Some(last) if last.addresses.end == next.addresses.start && last.goes_on_with(next) => {
                    last.addresses.end = next.addresses.end;
                    any = true;
                }
                _ => joined.push(next.clone()),
            }
        }
        if any {
            let all = joined[0].addresses.start..joined[joined.len() - 1].addresses.end;
            self.mappings.cut(all);
            joined.into_iter().for_each(|mapping| self.mappings.insert(mapping));
        }
    }

    /// Whether a paged object is mapped somewhere in a range.
    pub(crate) fn has_paged(&self, range: &Range<usize>) -> bool {
        self.mappings.overlapping(range).any(|mapping| mapping.paged().is_some())
    }

    /// Whether something is mapped in a range that was not mapped through these calls.
    pub(crate) fn has_others(&self, range: &Range<usize>) -> bool {
        let page = crate::range::page_bytes();
        let unknown = range.clone().step_by(page).filter(|at| self.mappings.at(*at).is_none());
        // SAFETY: only asks.
        unknown
            .into_iter()
            .any(|at| unsafe { calls::mincore(Address(at), page, &mut [0]) } != Err(libc::ENOMEM))
    }

    /// Where a call came to a mapping that refused it: it is made again for each one of the range, which must do no harm,
    /// and what is before the first that refuses has been changed.
    pub(crate) fn done_until(
        &self,
        range: &Range<usize>,
        mut again: impl FnMut(Range<usize>) -> bool,
    ) -> usize {
        let mut done = range.start;
        let known = self.mappings.parts(range).into_iter().map(|part| part.addresses());
        let ends = known.flat_map(|part| [part.start, part.end]).chain([range.end]);
        for end in ends {
            if done < end && !again(done..end) {
                break;
            }
            done = end;
        }
        done
    }

    /// The first address of a range that nothing is mapped at, by whomever.
    pub(crate) fn first_hole(&self, range: &Range<usize>) -> Option<usize> {
        let page = crate::range::page_bytes();
        let mut at = range.start;
        while at < range.end {
            if let Some(mapping) = self.mappings.at(at) {
                at = mapping.addresses.end;
                continue;
            }
            // SAFETY: only asks.
            if unsafe { calls::mincore(Address(at), page, &mut [0]) } == Err(libc::ENOMEM) {
                return Some(at);
            }
            at += page;
        }
        None
    }
}

/// Addresses of which the engine has let go, until nothing is mapped there any more.
#[must_use]
pub(crate) struct Leaving {
    mappings: Vec<Mapping>,
    parts: Vec<GivenUp>,
}

impl Leaving {
    pub(crate) fn nothing() -> Leaving {
        Leaving { mappings: Vec::new(), parts: Vec::new() }
    }

    /// What was there is unmapped or replaced. Not to be called with the space locked: it may wait for stores.
    ///
    /// A store that does not take what it is given is told about by the next sync of its object.
    #[allow(clippy::wrong_self_convention, reason = "it is told, and not asked")]
    pub(crate) fn is_gone(mut self) {
        self.mappings.iter_mut().for_each(Mapping::release_lock);
        for part in self.parts {
            let _told_by_the_next_sync = part.is_unmapped();
        }
        for mapping in self.mappings {
            // What may have been stored through it, of an object that another process serves.
            let object = mapping.paged().filter(|object| !object.is_served_here());
            if let Some((object, bytes)) = object.zip(mapping.stored()) {
                let _told_by_the_next_sync = object.sync_range(bytes, SyncKind::Write);
            }
        }
    }

    /// Lets it be moved as it is: nothing there can be accessed.
    pub(crate) fn may_be_moved(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| Ok(part.may_be_moved()?))
    }

    /// The kernel has refused to unmap or replace it: what is there still is served again. What the kernel did unmap is
    /// gone; and threads that wait for a page go on when they are told that all is.
    pub(crate) fn stays(&mut self, space: &mut Space) {
        for mut mapping in std::mem::take(&mut self.mappings) {
            let range = mapping.addresses();
            let is_there = space.first_hole(&range).is_none();
            let is_served = match mapping.paged().filter(|object| object.is_served_here()) {
                Some(object) if is_there => {
                    // SAFETY: nobody has unmapped it.
                    let place_there = unsafe { Place::there(Address(range.start)) };
                    mapping.place(object, place_there).is_ok()
                }
                _ => is_there,
            };
            if is_served {
                space.insert(mapping);
            } else if mapping.paged().is_some() {
                mapping.release_lock();
                // SAFETY: the caller was about to unmap it.
                let _ = unsafe { calls::munmap(Address(range.start), range.len()) };
            }
        }
    }
}
