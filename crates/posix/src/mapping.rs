//! What is known of a mapping that was made through these calls.

use std::ops::Range;
use std::sync::Arc;

use omnimap_core::Span;
use omnimap_core::units::PageRange;
use omnimap_host::linux::calls;
use omnimap_host::{Address, Place, Sharing, ViewRequest};

use crate::errno::Result;
use crate::flags::{Advice, LockOn, Prot};
use crate::madvise::advise_again;
use crate::mmap::protection_of;
use crate::object::{Object, Rights};
use crate::range::page_bytes;

/// What a mapping shows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Kind {
    /// Memory of the kernel's, zeros at first.
    Anonymous,
    /// A file, a device or shared memory that the kernel maps.
    Kernel,
    /// A paged object.
    Paged(Arc<Object>),
}

/// What a child created by fork gets of a mapping (minherit(2) of the BSDs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Inheritance {
    /// What its sharing says: the same memory if it is shared, a copy if it is private.
    #[default]
    Natural,
    /// The same memory (`INHERIT_SHARE`).
    Share,
    /// A copy of this moment (`INHERIT_COPY`).
    Copy,
    /// Nothing: SIGSEGV (`INHERIT_NONE`).
    None,
    /// Zeros (`INHERIT_ZERO`).
    Zero,
}

/// Whether a mapping is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Lock {
    #[default]
    No,
    Yes,
    /// Pages are as they come (`MLOCK_ONFAULT`).
    OnFault,
}

impl Lock {
    /// Of mlock2(2).
    pub(crate) fn flags(self) -> LockOn {
        if self == Lock::OnFault { LockOn::ONFAULT } else { LockOn::default() }
    }
}

/// Neighbouring addresses that were mapped alike.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub(crate) addresses: Range<usize>,
    pub(crate) kind: Kind,
    /// Where in the object it begins, in bytes. Shared anonymous memory is an object each time: its bytes have numbers
    /// that no other has.
    pub(crate) offset: u64,
    pub(crate) prot: Prot,
    pub(crate) sharing: Sharing,
    pub(crate) inheritance: Inheritance,
    pub(crate) lock: Lock,
    /// How it will be read: `NORMAL`, `RANDOM` or `SEQUENTIAL`.
    pub(crate) advice: Advice,
}

impl Mapping {
    /// Where it is.
    pub fn addresses(&self) -> Range<usize> {
        self.addresses.clone()
    }

    /// What it shows.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Where in the object it begins, in bytes.
    pub fn offset(&self) -> u64 {
        if matches!(self.kind, Kind::Anonymous) { 0 } else { self.offset }
    }

    /// What accesses it allows.
    pub fn prot(&self) -> Prot {
        self.prot
    }

    /// Whether stores are seen by others.
    pub fn is_shared(&self) -> bool {
        self.sharing == Sharing::Shared
    }

    /// What a child gets of it.
    pub fn inheritance(&self) -> Inheritance {
        self.inheritance
    }

    /// How it will be read, as madvise(2) was told: `NORMAL`, `RANDOM` or `SEQUENTIAL`.
    pub fn advice(&self) -> Advice {
        self.advice
    }

    /// Whether it is locked, or locks its pages as they come.
    pub fn is_locked(&self) -> bool {
        self.lock != Lock::No
    }

    /// The paged object that it shows.
    pub(crate) fn paged(&self) -> Option<&Arc<Object>> {
        match &self.kind {
            Kind::Paged(object) => Some(object),
            _ => None,
        }
    }

    /// The paged object, if it shows one shared.
    pub(crate) fn paged_shared(&self) -> Option<&Arc<Object>> {
        self.paged().filter(|_| self.sharing == Sharing::Shared)
    }

    /// Whether stores may not be allowed: they would reach an object that was opened read-only.
    pub(crate) fn may_not_write(&self) -> bool {
        self.paged_shared().is_some_and(|object| object.rights == Rights::ReadOnly)
    }

    /// The bytes of a paged object that may have been stored through it.
    pub(crate) fn stored(&self) -> Option<Range<u64>> {
        self.paged_shared().filter(|object| object.rights == Rights::ReadWrite).map(|_| self.bytes())
    }

    /// The bytes of the object that it shows.
    pub(crate) fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.addresses.len() as u64
    }

    /// The pages of the object that it shows.
    pub(crate) fn pages(&self) -> PageRange {
        PageRange::new(self.bytes().start / page_bytes() as u64, self.bytes().end / page_bytes() as u64)
    }

    /// Those of its bytes that the object has now.
    pub(crate) fn bytes_inside(&self, object: &Object) -> Range<u64> {
        let end = self.bytes().end.min(object.len());
        self.offset.min(end)..end
    }

    /// Makes a view of an object as the mapping says, at a place.
    pub(crate) fn place(&self, object: &Arc<Object>, at: Place) -> Result<Address> {
        let length = self.addresses.len();
        let request = ViewRequest {
            offset: self.offset,
            length: length as u64,
            place: at,
            protection: protection_of(self.prot),
            sharing: self.sharing,
        };
        let made =
            object.live().cache.place_as(&object.live().object, &request, object.readahead_bytes_max)?;
        advise_again(&Mapping { addresses: made.0..made.0 + length, ..self.clone() }, object);
        Ok(made)
    }

    /// Lets the kernel allow other accesses; what is known of it stays.
    pub(crate) fn protect(&self, prot: Prot) -> Result<()> {
        // SAFETY: a range of ours, of which the caller is about to change the meaning, or takes a change back.
        Ok(unsafe { calls::mprotect(Address(self.addresses.start), self.addresses.len(), prot.0) }?)
    }

    /// Gives back what a lock of a paged object took. The kernel's part of it goes by itself.
    pub(crate) fn release_lock(&mut self) {
        if let (Some(object), true) = (self.paged(), self.lock != Lock::No) {
            object.live().bytes.unlock(self.pages());
        }
        self.lock = Lock::No;
    }

    /// Whether the next one, which begins where this ends, only goes on with it.
    pub(crate) fn goes_on_with(&self, next: &Mapping) -> bool {
        let same_object = match (&self.kind, &next.kind) {
            (Kind::Anonymous, Kind::Anonymous) => !self.is_shared() || self.bytes().end == next.offset,
            (Kind::Paged(a), Kind::Paged(b)) => Arc::ptr_eq(a, b) && self.bytes().end == next.offset,
            // It is not known whether it is the same file.
            _ => false,
        };
        same_object && self.is_mapped_like(next)
    }

    /// Whether another one is at the same addresses, shows the same, and is mapped in the same way, as far as is known.
    pub(crate) fn is_same(&self, other: &Mapping) -> bool {
        let same_object = match (&self.kind, &other.kind) {
            (Kind::Paged(a), Kind::Paged(b)) => Arc::ptr_eq(a, b),
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        };
        let at = |mapping: &Mapping| (mapping.addresses.clone(), mapping.offset);
        same_object && at(self) == at(other) && self.is_mapped_like(other)
    }

    /// Whether another one is mapped in the same way, whatever they show.
    pub(crate) fn is_mapped_like(&self, next: &Mapping) -> bool {
        (self.prot, self.sharing, self.inheritance, self.lock, self.advice)
            == (next.prot, next.sharing, next.inheritance, next.lock, next.advice)
    }
}

impl Span for Mapping {
    fn addresses(&self) -> Range<usize> {
        self.addresses.clone()
    }

    fn part(&self, range: Range<usize>) -> Mapping {
        let skipped = (range.start - self.addresses.start) as u64;
        let is_plain = matches!(self.kind, Kind::Anonymous) && !self.is_shared();
        let offset = if is_plain { 0 } else { self.offset + skipped };
        Mapping { addresses: range, offset, ..self.clone() }
    }
}
