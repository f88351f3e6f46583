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
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::Result;

/// An address in this process, or in one of its kin: a forked child whose views of our memory we serve.
///
/// The upper 16 bits, which no address of a program has, are the number of the process; 0 is this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub usize);

impl Address {
    const KIN_SHIFT: u32 = usize::BITS - 16;

    /// The same address in a process of kin.
    #[must_use]
    pub fn of_kin(self, kin: u16) -> Address {
        Address(self.in_process() | usize::from(kin) << Self::KIN_SHIFT)
    }

    /// The number of the process.
    pub fn kin(self) -> u16 {
        (self.0 >> Self::KIN_SHIFT) as u16
    }

    /// What that process takes for it.
    pub fn in_process(self) -> usize {
        self.0 & (usize::MAX >> 16)
    }
}

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

/// How [`Memory::resident_bytes`], and whoever looks from outside, may see pages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// At once: no pages are added to this memory meanwhile.
    Exactly,
    /// A moment later, for at most [`MISCOUNTED_PAGES_MAX`] pages of all memories of a host together; pages are added
    /// meanwhile.
    Roughly,
}

/// Pages dropped that may be counted still, in all memories of a host together.
pub const MISCOUNTED_PAGES_MAX: u64 = 32;

/// What accesses an address range allows (`PROT_*`, mmap(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protection {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instructions may be fetched.
    pub execute: bool,
}

impl Protection {
    /// No access at all.
    pub const NONE: Protection = Protection { read: false, write: false, execute: false };
    /// Loads.
    pub const READ: Protection = Protection { read: true, ..Protection::NONE };
    /// Loads and stores.
    pub const READ_WRITE: Protection = Protection { write: true, ..Protection::READ };
}

/// Who sees the stores through a view (`MAP_SHARED` and `MAP_PRIVATE`, mmap(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Every shared view, and the store.
    Shared,
    /// This view alone: the kernel copies a page when it is first stored to.
    Private,
}

/// Where an address range is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub(crate) At);

/// The kinds of [`Place`]; those that replace something can only be made by promising that nobody minds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Anywhere,
    Low,
    Near(Address),
    Empty(Address),
    Over(Address),
    There(Address),
}

impl Place {
    /// Where the machine likes.
    pub fn anywhere() -> Place {
        Place(At::Anywhere)
    }

    /// Below 2 GiB (`MAP_32BIT`).
    pub fn low() -> Place {
        Place(At::Low)
    }

    /// At an address if that is free, else anywhere.
    pub fn near(address: Address) -> Place {
        Place(At::Near(address))
    }

    /// At an address, where nothing may be yet (`MAP_FIXED_NOREPLACE`).
    pub fn empty_at(address: Address) -> Place {
        Place(At::Empty(address))
    }

    /// At an address, in the place of whatever is there (`MAP_FIXED`).
    ///
    /// # Safety
    /// Nothing in the range is used by code that does not know of it.
    pub unsafe fn over(address: Address) -> Place {
        Place(At::Over(address))
    }

    /// At an address where the very same is mapped already, with no access allowed, and is to be taken over: a private view
    /// that was moved or inherited, with the pages that it has copied.
    ///
    /// # Safety
    /// There is a mapping of this memory, of this offset, length and sharing, that nobody else unmaps.
    pub unsafe fn there(address: Address) -> Place {
        Place(At::There(address))
    }
}

/// A view that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewRequest {
    /// Where in the memory it begins, in bytes; page-aligned.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its addresses.
    pub place: Place,
    /// What accesses it allows.
    pub protection: Protection,
    /// Who sees stores through it.
    pub sharing: Sharing,
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

/// Who resolves faults in the threads that raised them.
pub trait FaultServer: Send + Sync {
    /// Resolves a fault, or sees to it that it will be: then the stream is told, as for a fault that was
    /// [taken](FaultStream::take). Does not unwind.
    ///
    /// Called in the handler of the signal that the access raised, with all signals blocked: it must not wait for long.
    fn serve(self: Arc<Self>, fault: Fault);
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

    /// Lets threads that can serve the faults that they raise: until the stream is closed, and where it is for threads to do
    /// ([`FaultMode`](crate::FaultMode)).
    fn serve_with(&self, server: Weak<dyn FaultServer>) {
        let _nobody_can = server;
    }

    /// Lets all threads that wait for a page in the range try again; harmless where nobody waits.
    fn wake(&self, start: Address, bytes: u64) -> Result<()>;

    /// As [`wake`](Self::wake), where the object has no such pages: the accesses raise SIGBUS.
    fn refuse(&self, start: Address, bytes: u64) -> Result<()>;
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

    /// So many pages more (or fewer) than before are in memory and not in the store: for who looks at the process from
    /// outside.
    fn note_dirty(&self, pages: i64) {
        let _nobody_looks = pages;
    }

    /// How its bytes may be borrowed.
    fn used_as(&self) -> Use;

    /// Copies resident bytes out; holes read as zeros, so the caller sees to it that there are none.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Makes a hole: the pages vanish from every view at once and their memory is free.
    fn punch(&self, offset: u64, bytes: u64, counted: Counted) -> Result<()>;

    /// Bytes of memory that the object has now, as the kernel counts them (not as we do).
    fn resident_bytes(&self) -> Result<u64>;

    /// Makes an address range that shows `length` bytes from `offset` (page-aligned), and lets it be stored to if the
    /// memory's [`Use`] says so. It may reach beyond the end: accesses there raise SIGBUS until the memory is longer.
    ///
    /// Faults in it arrive at the host's [`FaultStream`] from the first moment on. Stores are trapped only where
    /// [`View::trap_stores`] or a later [`fill`](Self::fill) says so: a writable view must not be touched before
    /// that was said of what is resident.
    fn map(&self, offset: u64, length: u64) -> Result<Arc<dyn View>> {
        let write = self.used_as().is_writable();
        self.map_as(&ViewRequest {
            offset,
            length,
            place: Place::anywhere(),
            protection: Protection { write, ..Protection::READ },
            sharing: Sharing::Shared,
        })
    }

    /// As [`map`](Self::map), at addresses, with a protection and in a way of sharing that are asked for.
    ///
    /// A private view may allow stores whatever the memory's [`Use`] is: they do not reach the memory.
    fn map_as(&self, request: &ViewRequest) -> Result<Arc<dyn View>>;

    /// A view that a process of kin has made (see [`Host::add_kin`]): the place of the request has no meaning, for it is at
    /// `start`, an address of that process.
    ///
    /// # Errors
    /// If the machine has no kin, or no such one.
    fn view_of_kin(&self, request: &ViewRequest, start: Address) -> Result<Arc<dyn View>>;

    /// What is there, whoever filled it: ranges in bytes, of whole pages.
    fn present(&self) -> Result<Vec<Range<u64>>>;

    /// The descriptor of the memory, for a forked child to map it by.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// A range of addresses that shows a [`Memory`]; unmapped when dropped.
///
/// Ranges are in bytes from the view's start and whole pages.
pub trait View: Send + Sync {
    /// Where it starts; page-aligned.
    fn start(&self) -> Address;

    /// Its length in bytes, as it was asked for (the mapping itself is whole pages).
    fn length(&self) -> u64;

    /// Who sees stores through it. Stores to a private one are never trapped, and its touches cannot be forgotten.
    fn sharing(&self) -> Sharing;

    /// Leaves a range to the caller, who unmaps or replaces it at once: it is not part of the view any more.
    fn give_up(&self, range: Range<u64>);

    /// Reports no faults of a range any more, which was [given up](Self::give_up) and cannot be accessed: it is to be moved.
    ///
    /// A mapping that is moved next to one like it becomes one with that, and the kernel then takes the whole of it out of
    /// what is reported (`mremap_userfaultfd_prep`). One that is not reported is not like it.
    fn end_faults(&self, range: Range<u64>) -> Result<()>;

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

    /// To be called when the stores are trapped that have to be: a view whose address others know already (in the place of
    /// another) lets none through before.
    ///
    /// # Errors
    /// As mprotect(2).
    fn admit_stores(&self) -> Result<()> {
        Ok(())
    }

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

    /// Shows a range by one large page ([`Host::large_page_bytes`]), if it can. All of it is resident, and stays so
    /// meanwhile.
    ///
    /// Unless the answer is [`Collapsed::Not`], the memory has one large page there, whatever shows it: it can only be
    /// [punched](Memory::punch) as a whole from then on.
    fn collapse(&self, range: Range<u64>) -> Collapsed {
        let _this_machine_has_none = range;
        Collapsed::Not
    }
}

/// What became of a [`View::collapse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collapsed {
    /// Nothing was done: the view is not aligned for it.
    Not,
    /// The memory may have a large page now, and the view may be shown by small ones.
    Perhaps,
    /// One large page is shown.
    Done,
}

/// Addresses that are set aside for one view, and go back to where they are from when this is dropped.
pub trait Addresses: Send + Sync {
    /// Makes a view there, of as many pages as there are; as [`Memory::map_as`], but for the place.
    ///
    /// The view has to be gone when this is dropped, or its addresses are lost.
    fn map(&mut self, memory: &dyn Memory, request: &ViewRequest) -> Result<Arc<dyn View>>;
}

/// A machine.
pub trait Host: Send + Sync {
    /// Bytes of a large page, if the machine has such: a power of two, of many pages.
    fn large_page_bytes(&self) -> Option<u64> {
        None
    }

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

    /// The faults of all views made through this host, and of those of its kin.
    fn faults(&self) -> Arc<dyn FaultStream>;

    /// Serves the faults of a forked child as well, whose views are registered with the userfaultfd that it has passed;
    /// gives the number by which its addresses are known ([`Address::of_kin`]).
    ///
    /// # Errors
    /// If the machine has no kin.
    fn add_kin(&self, userfaultfd: OwnedFd) -> Result<u16>;

    /// A child is gone, and so are its views.
    fn remove_kin(&self, kin: u16);
}
