//! What the engine needs of a machine, as traits.
//!
//! One [`Host`] serves one page cache: it has one stream of faults, and makes [`Memory`] (an object's resident
//! bytes) and [`View`]s (address ranges that show that memory).
//!
//! # What the engine promises in return
//! [`View::bytes`] is safe to call because of three rules that the engine keeps, and that nothing in this crate
//! can check:
//! 1. a byte is filled only into a page that holds nothing ([`Memory::fill`] after creation or [`Memory::punch`]);
//! 2. a page that was once filled and punched is filled again only with the same bytes;
//! 3. no thread of the engine reads a view.
//!
//! Under them the bytes that a `&[u8]` shows never change, only appear.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
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
    /// `offset` and the length of `bytes` are whole pages; what is behind the object's end must be zeros.
    fn fill(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Copies resident bytes out; holes read as zeros, so the caller sees to it that there are none.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Makes a hole: the pages vanish from every view at once and their memory is free.
    fn punch(&self, offset: u64, bytes: u64) -> Result<()>;

    /// Bytes of memory that the object has now, as the kernel counts them (not as we do).
    fn resident_bytes(&self) -> Result<u64>;

    /// Makes an address range that shows `length` bytes from `offset` (page-aligned), read-only.
    ///
    /// Faults in it arrive at the host's [`FaultStream`] from the first moment on.
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
    fn bytes(&self) -> &[u8];

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

    /// Makes memory for an object of `length` bytes, all holes.
    ///
    /// `name` is for people who look at the process from outside.
    fn create_memory(&self, name: &str, length: u64) -> Result<Arc<dyn Memory>>;

    /// The faults of all views made through this host.
    fn faults(&self) -> Arc<dyn FaultStream>;
}
