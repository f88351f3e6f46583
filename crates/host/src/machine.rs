//! What the engine needs of a machine, as traits.
//!
//! One [`Host`] serves one page cache: it has one stream of faults, and makes [`Memory`] (an object's resident
//! bytes) and [`View`]s (address ranges that show that memory).
//!
//! # What the engine promises in return
//! [`View::bytes`] and [`View::bytes_mut`] are safe to call because of three rules that the engine keeps, and that
//! nothing in this crate can check:
//! 1. a byte is filled only into a page that holds nothing ([`Memory::fill`] after creation or [`Memory::punch`]);
//! 2. a page that was filled and punched is filled again only with the bytes that it had last;
//! 3. no thread of the engine reads or writes a view.
//!
//! Under them the bytes that a slice shows never change but by its holder's stores, only appear. That no bytes are
//! borrowed in two ways is seen to here: what may be borrowed is settled when the memory is made ([`Use`]).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::Result;

/// An address in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub usize);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What an access was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A store to a page that is there, and whose stores are trapped.
    WriteTrapped,
}

/// How the bytes of a memory are going to be borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// As `&[u8]`, by anybody.
    ReadOnly,
    /// As `&mut [u8]`, by whoever has the memory's one [`Exclusive`].
    Exclusive,
    /// As atomic cells, by anybody.
    Shared,
}

impl Use {
    /// Whether views can be stored to.
    pub fn is_writable(self) -> bool {
        self != Use::ReadOnly
    }
}

/// The right to borrow the bytes of a memory mutably: there is one for each memory, and it fits no other.
#[derive(Debug)]
pub struct Exclusive {
    id: u64,
}

impl Exclusive {
    /// For machines: once for each memory made for [`Use::Exclusive`], with the number by which to know it again.
    pub fn new() -> (Exclusive, u64) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        (Exclusive { id }, id)
    }

    /// Whether it is the one that was made with this number.
    pub fn is(&self, id: u64) -> bool {
        self.id == id
    }
}

/// What becomes of the stores to a page through writable views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stores {
    /// The first faults ([`Access::WriteTrapped`]), until [`View::let_stores`].
    Trap,
    /// They go through.
    Let,
}

/// A thread that touched a page that is not there, and waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The address touched; somewhere in the missing page.
    pub address: Address,
    /// What the thread was about to do.
    pub access: Access,
}

/// Why [`FaultStream::wait`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There are faults to read, or another thread was faster.
    Ready,
    /// Nothing happened in the time given.
    TimedOut,
    /// [`FaultStream::close`] was called: the caller stops.
    Closed,
}

/// The faults of all views of one host, read by any number of threads.
pub trait FaultStream: Send + Sync {
    /// Takes a fault that nobody else has taken, if there is one.
    fn take(&self) -> Result<Option<Fault>>;

    /// Whether there is a fault to be taken.
    fn is_pending(&self) -> bool;

    /// Sleeps until there may be a fault, at most `limit`.
    fn wait(&self, limit: Duration) -> Result<Waited>;

    /// Makes every present and later [`wait`](Self::wait) return [`Waited::Closed`].
    fn close(&self);

    /// Lets all threads that wait for a page in the range try again; harmless where nobody waits.
    fn wake(&self, start: Address, bytes: u64) -> Result<()>;
}

/// The resident bytes of one object: sparse, every page present or a hole.
pub trait Memory: Send + Sync {
    /// Puts bytes into holes. Each page appears, whole, in every view at once.
    ///
    /// `offset` and the length of `bytes` are whole pages; what is behind the object's end must be zeros. With
    /// [`Stores::Trap`] no store goes through in any view; with [`Stores::Let`] some views may trap all the same.
    fn fill(&self, offset: u64, bytes: &[u8], stores: Stores) -> Result<()>;

    /// Overwrites resident bytes, whether stores are trapped or not.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes it longer, with holes, or shorter; the rest of the last page reads as zeros then.
    fn set_len(&self, length: u64) -> Result<()>;

    /// How its bytes may be borrowed.
    fn used_as(&self) -> Use;

    /// Copies resident bytes out; holes read as zeros, so the caller sees to it that there are none.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Makes a hole: the pages vanish from every view at once and their memory is free.
    fn punch(&self, offset: u64, bytes: u64) -> Result<()>;

    /// Bytes of memory that the object has now, as the kernel counts them (not as we do).
    fn resident_bytes(&self) -> Result<u64>;

    /// Makes an address range that shows `length` bytes from `offset` (page-aligned), and lets it be stored to if the
    /// memory's [`Use`] says so. It may reach beyond the end: accesses there raise SIGBUS until the memory is longer.
    ///
    /// Faults in it arrive at the host's [`FaultStream`] from the first moment on. Stores are trapped only where
    /// [`View::trap_stores`] or a later [`fill`](Self::fill) says so: a writable view must not be touched before
    /// that was said of what is resident.
    fn map(&self, offset: u64, length: u64) -> Result<Arc<dyn View>>;
}

/// A range of addresses that shows a [`Memory`]; unmapped when dropped.
///
/// Ranges are in bytes from the view's start and whole pages.
pub trait View: Send + Sync {
    /// Where it starts; page-aligned.
    fn start(&self) -> Address;

    /// Its length in bytes, as it was asked for (the mapping itself is whole pages).
    fn length(&self) -> u64;

    /// The bytes. Touching one that is not resident faults, and may raise SIGBUS.
    ///
    /// # Panics
    /// If the memory was not made for [`Use::ReadOnly`].
    fn bytes(&self) -> &[u8];

    /// The bytes, for the holder of the memory's one [`Exclusive`] (another's gets a panic).
    ///
    /// # Panics
    /// If the memory was not made for [`Use::Exclusive`].
    fn bytes_mut<'a>(&'a self, exclusive: &'a mut Exclusive) -> &'a mut [u8];

    /// As [`bytes_mut`](Self::bytes_mut), to be read.
    ///
    /// # Panics
    /// If the memory was not made for [`Use::Exclusive`].
    fn bytes_of<'a>(&'a self, exclusive: &'a Exclusive) -> &'a [u8];

    /// The bytes as cells that any number of threads may load and store.
    ///
    /// # Panics
    /// If the memory was not made for [`Use::Shared`].
    fn cells(&self) -> &[AtomicU8];

    /// Lets the next store to each page fault, whether the page is there or not. Stores that were made before it
    /// returns have been made, later ones wait: there is none in between.
    ///
    /// Many ranges at a time; what lies between near ones may be trapped with them.
    fn trap_stores(&self, ranges: &[Range<u64>]) -> Result<()>;

    /// Takes [`trap_stores`](Self::trap_stores) back, and wakes who waits for that.
    fn let_stores(&self, range: Range<u64>) -> Result<()>;

    /// Makes accesses to the pages fail with SIGBUS, after a line on standard error that says `why`.
    ///
    /// Only for pages that are holes. Lasts until [`clear_failure`](Self::clear_failure), or until an access
    /// after one that was told so: that one faults anew.
    fn fail(&self, range: Range<u64>, why: &str) -> Result<()>;

    /// Takes [`fail`](Self::fail) back.
    fn clear_failure(&self, range: Range<u64>) -> Result<()>;

    /// Takes pages out of the page tables, so that [`touched`](Self::touched) tells which were used since.
    ///
    /// Many ranges at a time, for each costs an interrupt of the other processors when it comes alone.
    fn forget_touches(&self, ranges: &[Range<u64>]) -> Result<()>;

    /// Appends the parts of the range that were touched since they were filled or forgotten.
    fn touched(&self, range: Range<u64>, parts: &mut Vec<Range<u64>>) -> Result<()>;
}

/// A machine.
pub trait Host: Send + Sync {
    /// Bytes of a page; a power of two.
    fn page_bytes(&self) -> u64;

    /// Makes memory for an object of `length` bytes, all holes; with the right to its bytes if it is for
    /// [`Use::Exclusive`].
    ///
    /// `name` is for people who look at the process from outside.
    fn create_memory(
        &self,
        name: &str,
        length: u64,
        used_as: Use,
    ) -> Result<(Arc<dyn Memory>, Option<Exclusive>)>;

    /// The faults of all views made through this host.
    fn faults(&self) -> Arc<dyn FaultStream>;
}
