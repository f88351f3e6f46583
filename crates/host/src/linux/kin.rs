//! Forked children that show our memory: their faults, served by us, and their views.
//!
//! A child registers its views with a userfaultfd of its own and passes us that descriptor. Whoever holds one can serve
//! it, also for the memory of another process.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::event::epoll;

use super::userfaultfd::Userfaultfd;
use super::view::together;
use super::view_list::ViewList;
use crate::error::During;
use crate::{Address, Exclusive, Fault, Result, Sharing, Stores, View, ViewRequest};

/// The children of one host.
pub(super) struct Kin {
    /// Readable when one of them has a fault.
    epoll: OwnedFd,
    members: RwLock<Vec<(u16, Arc<Userfaultfd>)>>,
    count: AtomicUsize,
    numbers: AtomicU16,
}

impl Kin {
    pub(super) fn new() -> Result<Kin> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll_create")?;
        Ok(Kin { epoll, members: RwLock::default(), count: AtomicUsize::new(0), numbers: AtomicU16::new(0) })
    }

    /// Serves the faults of a child from now on; gives the number by which its addresses are known.
    pub(super) fn add(&self, userfaultfd: OwnedFd) -> Result<u16> {
        let member = Arc::new(Userfaultfd::of_kin(userfaultfd));
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        let number = loop {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if number != 0 && members.iter().all(|(taken, _)| *taken != number) {
                break number;
            }
        };
        let data = epoll::EventData::new_u64(number.into());
        epoll::add(&self.epoll, &*member, data, epoll::EventFlags::IN).during("epoll_ctl")?;
        members.push((number, member));
        self.count.store(members.len(), Ordering::Release);
        Ok(number)
    }

    pub(super) fn member(&self, number: u16) -> Option<Arc<Userfaultfd>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.iter().find(|(n, _)| *n == number).map(|(_, member)| member.clone())
    }

    /// The child is gone.
    pub(super) fn remove(&self, number: u16) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = members.iter().position(|(n, _)| *n == number) {
            let (_, member) = members.swap_remove(at);
            // Closing it takes it out as well, if nobody uses it any more.
            let _ = epoll::delete(&self.epoll, &*member);
        }
        self.count.store(members.len(), Ordering::Release);
    }

    /// Takes a fault of any child.
    pub(super) fn take(&self) -> Result<Option<Fault>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(None);
        }
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        for (number, member) in members.iter() {
            if let Some(fault) = member.take()? {
                return Ok(Some(Fault { address: fault.address.of_kin(*number), ..fault }));
            }
        }
        Ok(None)
    }

    pub(super) fn wake(&self, number: u16, start: Address, bytes: u64) -> Result<()> {
        self.member(number).map_or(Ok(()), |member| member.wake(start, bytes))
    }
}

impl AsFd for Kin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A view in a child. The child maps and unmaps it; what we do to addresses that it has unmapped does nothing.
pub(super) struct KinView {
    start: Address,
    length: u64,
    page_bytes: u64,
    sharing: Sharing,
    faults: Arc<Userfaultfd>,
    siblings: Arc<ViewList>,
}

impl KinView {
    pub(super) fn new(
        request: &ViewRequest,
        start: Address,
        page_bytes: u64,
        faults: Arc<Userfaultfd>,
        siblings: Arc<ViewList>,
    ) -> KinView {
        let length = request.length.next_multiple_of(page_bytes);
        if request.sharing == Sharing::Shared {
            siblings.add(request.offset..request.offset + length, start, faults.clone());
        }
        KinView { start, length, page_bytes, sharing: request.sharing, faults, siblings }
    }

    fn locate(&self, range: &Range<u64>) -> (Address, u64) {
        let start = range.start.min(self.length);
        let end = range.end.next_multiple_of(self.page_bytes).clamp(start, self.length);
        (Address(self.start.0 + start as usize), end - start)
    }
}

const NOT_OURS: &str = "the bytes of another process cannot be borrowed";

impl View for KinView {
    fn start(&self) -> Address {
        self.start
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn sharing(&self) -> Sharing {
        self.sharing
    }

    fn give_up(&self, range: Range<u64>) {
        let (start, bytes) = self.locate(&range);
        self.siblings.remove(start.0..start.0 + bytes as usize);
    }

    /// Children move nothing that they have inherited (ECHILD).
    fn end_faults(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        panic!("{NOT_OURS}")
    }

    fn bytes_mut<'a>(&'a self, _: &'a mut Exclusive) -> &'a mut [u8] {
        panic!("{NOT_OURS}")
    }

    fn bytes_of<'a>(&'a self, _: &'a Exclusive) -> &'a [u8] {
        panic!("{NOT_OURS}")
    }

    fn cells(&self) -> &[AtomicU8] {
        panic!("{NOT_OURS}")
    }

    fn trap_stores(&self, ranges: &[Range<u64>]) -> Result<()> {
        together(ranges, self.page_bytes, |part| {
            let (start, bytes) = self.locate(&part);
            self.faults.protect(start, bytes, Stores::Trap)
        })
    }

    fn let_stores(&self, range: Range<u64>) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        self.faults.protect(start, bytes, Stores::Let)
    }

    fn fail(&self, range: Range<u64>, _why: &str) -> Result<()> {
        let (start, bytes) = self.locate(&range);
        if self.sharing == Sharing::Shared {
            self.faults.protect(start, bytes, Stores::Let)?;
        }
        self.faults.poison(start, bytes, self.page_bytes)
    }

    fn clear_failure(&self, _range: Range<u64>) -> Result<()> {
        Ok(()) // The child's own handler does, at the next access after one that was told.
    }

    fn forget_touches(&self, _ranges: &[Range<u64>]) -> Result<()> {
        Ok(()) // Page tables of another process can be looked at, and not changed.
    }

    fn touched(&self, _range: Range<u64>, _parts: &mut Vec<Range<u64>>) -> Result<()> {
        Ok(())
    }
}

impl Drop for KinView {
    fn drop(&mut self) {
        self.siblings.remove(self.start.0..self.start.0 + self.length as usize);
    }
}
