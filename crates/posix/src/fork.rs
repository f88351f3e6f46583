//! fork(2): what a child gets of each mapping, before the call returns in it.
//!
//! | inheritance | kernel's mapping | paged, shared | paged, private |
//! |---|---|---|---|
//! | natural | the kernel's | the same memory, served by one process | copy on write |
//! | share | the same memory (a private one is made shared memory first) | as natural | made shared memory first |
//! | copy | the kernel's; of a shared one, its bytes at the fork | its bytes at the fork | as natural |
//! | none | nothing | nothing | nothing |
//! | zero | zeros | zeros | zeros |
//!
//! Handlers of pthread_atfork(3) do what the kernel does not. A child made by a bare clone(2) has no paged mappings: SIGSEGV, and
//! no zeros.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use omnimap_core::Span;
use omnimap_host::linux::{at_fork, calls};
use omnimap_host::{Address, Place, Sharing, SignalsBlocked, ViewRequest, die};

use crate::address_space::{Locked, space};
use crate::copied::Copied;
use crate::errno::{Errno, Result};
use crate::family::{Family, Held, Joining};
use crate::flags::Prot;
use crate::mapping::{Inheritance, Kind, Lock, Mapping};
use crate::mmap::protection_of;
use crate::object::Object;

/// Has the handlers called from now on.
pub(crate) fn care() {
    static ARE_REGISTERED: AtomicBool = AtomicBool::new(false);
    /// The process in which a thread registers them.
    static CLAIMED_IN: AtomicU32 = AtomicU32::new(0);
    // An allocator may come here again, by what is allocated below.
    if ARE_REGISTERED.load(Ordering::Acquire) || REGISTERS.get() {
        return;
    }
    let this = std::process::id();
    // Not a lock: a child that is forked meanwhile does it for itself. Twice does no harm.
    loop {
        let claimed = CLAIMED_IN.load(Ordering::Acquire);
        let take = |claimed| CLAIMED_IN.compare_exchange(claimed, this, Ordering::AcqRel, Ordering::Relaxed);
        if claimed != this && take(claimed).is_ok() {
            break;
        }
        if ARE_REGISTERED.load(Ordering::Acquire) {
            return;
        }
        std::thread::yield_now();
    }
    REGISTERS.set(true);
    // The handlers of an allocator must be there first: in a fork they come after ours, which allocate.
    drop(std::hint::black_box(Box::new(0_u8)));
    if at_fork(before, in_parent, in_child).is_err() {
        die("no memory for what fork has to do");
    }
    REGISTERS.set(false);
    ARE_REGISTERED.store(true, Ordering::Release);
}

/// What a thread that forks holds meanwhile: the child finds it consistent, and not locked by others.
struct Forking {
    /// Taken last, when nothing is allocated any more, and given back first.
    segments: Option<MutexGuard<'static, ()>>,
    space: Locked,
    family: Held,
    /// Mappings that the child gets a copy of.
    copies: Vec<Copied>,
    nonce: u64,
    /// Views are made while nobody else runs: no handler of the program's either. Given back last.
    signals: SignalsBlocked,
}

/// What a child gets of a mapping.
#[derive(PartialEq, Eq)]
enum Gets {
    Nothing,
    Zeros,
    /// Bytes of the moment.
    Copy,
    /// What its sharing says.
    TheSame,
}

impl Gets {
    fn of(mapping: &Mapping) -> Gets {
        match (mapping.inheritance, mapping.sharing) {
            (Inheritance::None, _) => Gets::Nothing,
            (Inheritance::Zero, _) => Gets::Zeros,
            (Inheritance::Copy, Sharing::Shared) => Gets::Copy,
            _ => Gets::TheSame,
        }
    }
}

thread_local! {
    static FORKING: RefCell<Option<Forking>> = const { RefCell::new(None) };
    /// Whether this thread is registering the handlers.
    static REGISTERS: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn before() {
    // Registered twice. And what is made for a thread at first is made here: nothing is allocated with the segments held.
    if FORKING.with_borrow(Option::is_some) {
        return;
    }
    let signals = SignalsBlocked::new();
    let (space, copies) = with_copies();
    let inherited = || {
        let same = space.mappings.iter().filter(|mapping| Gets::of(mapping) == Gets::TheSame);
        same.filter_map(Mapping::paged)
    };
    for object in inherited().filter(|object| object.family.get().is_none()) {
        if let Ok(family) = Family::own() {
            let _ = object.family.set(family);
        }
    }
    space.mappings.iter().filter(|m| comes_along(m)).for_each(|m| advise(m, libc::MADV_DOFORK));
    static FORKS: AtomicU64 = AtomicU64::new(0);
    let nonce = u64::from(std::process::id()) << 32 | FORKS.fetch_add(1, Ordering::Relaxed) & 0xFFFF_FFFF;
    let kept = inherited().filter(|object| object.is_served_here()).cloned().collect();
    let family = Held::new(nonce, kept);
    let segments = Some(crate::brk::moving());
    FORKING.set(Some(Forking { segments, space, family, copies, nonce, signals }));
}

/// The space, locked, and copies of what a child gets a copy of. Where there is no memory for one, it has nothing there.
fn with_copies() -> (Locked, Vec<Copied>) {
    let wanted = |space: &Locked| -> Vec<Mapping> {
        space.mappings.iter().filter(|mapping| Gets::of(mapping) == Gets::Copy).cloned().collect()
    };
    let mut space = space();
    loop {
        let copied = wanted(&space);
        drop(space);
        let copies = copied.iter().flat_map(|mapping| Copied::new(mapping, Sharing::Private)).collect();
        space = crate::address_space::space();
        // Others may have changed them meanwhile.
        let now = wanted(&space);
        if now.len() == copied.len() && now.iter().zip(&copied).all(|(a, b)| a.is_same(b)) {
            return (space, copies);
        }
    }
}

extern "C" fn in_parent() {
    let Some(mut forking) = FORKING.take() else { return };
    forking.segments = None;
    forking.space.mappings.iter().filter(|m| comes_along(m)).for_each(|m| advise(m, libc::MADV_DONTFORK));
}

extern "C" fn in_child() {
    let Some(mut forking) = FORKING.take() else { return };
    forking.segments = None;
    // Before anything else is mapped, by the allocator for one.
    forking.space.mappings.iter().for_each(reserve);
    forking.family.begin_child();
    let mut joining: Vec<(usize, Joining)> = Vec::new();
    let all: Vec<Mapping> = forking.space.mappings.iter().cloned().collect();
    let mut families: Vec<Arc<Family>> = Vec::new();
    forking.space.lock_future = None;
    for mapping in all {
        let outcome = match Gets::of(&mapping) {
            // The kernel has left it out, or was told otherwise by others.
            Gets::Nothing if mapping.paged().is_none() => forking.forget(&mapping),
            Gets::Nothing => forking.remove(&mapping),
            Gets::Zeros => forking.zero(&mapping),
            Gets::Copy => forking.copy(&mapping),
            Gets::TheSame => forking.inherit(&mapping, &mut joining, &mut families),
        };
        if outcome.is_err() {
            // Nothing is better than something else.
            let _ = forking.remove(&mapping);
        }
    }
    let nonce = forking.nonce;
    let _signals = forking.end();
    join(joining, nonce);
    for family in families {
        if !family.is_served_here() && family.watch().is_err() {
            die("a forked child has no thread to notice its parent's end by");
        }
    }
}

/// Whether the kernel copies a paged mapping for the child, with the pages that it has of its own.
fn comes_along(mapping: &Mapping) -> bool {
    mapping.paged().is_some() && mapping.sharing == Sharing::Private && Gets::of(mapping) == Gets::TheSame
}

fn advise(mapping: &Mapping, advice: i32) {
    let range = mapping.addresses();
    // SAFETY: about children alone.
    if unsafe { calls::madvise(Address(range.start), range.len(), advice) }.is_err() {
        die("a private mapping can be neither kept from children nor given to one");
    }
}

/// Takes the addresses of a view where the kernel has left nothing (MADV_DONTFORK).
fn reserve(mapping: &Mapping) {
    if mapping.paged().is_some() && !comes_along(mapping) {
        let range = mapping.addresses();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE;
        // SAFETY: replaces nothing.
        let taken = unsafe { calls::mmap(Address(range.start), range.len(), Prot::NONE.0, flags, -1, 0) };
        if taken.is_err() {
            die("addresses of a mapping were taken in a forked child, before its mappings were made");
        }
    }
}

impl Forking {
    /// Gives everything back but the signals, which who joins is not ready for.
    fn end(self) -> SignalsBlocked {
        self.signals
    }

    fn inherit(
        &mut self,
        mapping: &Mapping,
        joining: &mut Vec<(usize, Joining)>,
        families: &mut Vec<Arc<Family>>,
    ) -> Result<()> {
        // Locks are not inherited (mlock(2)).
        self.space.change(&mapping.addresses(), |mapping| mapping.lock = Lock::No);
        let Some(object) = mapping.paged() else { return Ok(()) };
        let family = object.family.get().ok_or(Errno::ENOMEM)?;
        let cache = Arc::as_ptr(&object.live().cache) as usize;
        if joining.iter().all(|(known, _)| *known != cache) {
            joining.push((cache, Joining::new(family.clone())?));
        }
        if families.iter().all(|known| !Arc::ptr_eq(known, family)) {
            families.push(family.clone());
        }
        let start = Address(mapping.addresses().start);
        let place = match mapping.sharing {
            // SAFETY: reserved for it.
            Sharing::Shared => unsafe { Place::over(start) },
            // SAFETY: it came along.
            Sharing::Private => unsafe { Place::there(start) },
        };
        let request = ViewRequest {
            offset: mapping.offset(),
            length: mapping.addresses().len() as u64,
            place,
            protection: protection_of(mapping.prot()),
            sharing: mapping.sharing,
        };
        let (_, joining) = joining.iter_mut().find(|(known, _)| *known == cache).expect("just made");
        joining.show(object, &request, start)
    }

    fn forget(&mut self, mapping: &Mapping) -> Result<()> {
        self.space.mappings.cut(mapping.addresses());
        Ok(())
    }

    fn remove(&mut self, mapping: &Mapping) -> Result<()> {
        let range = mapping.addresses();
        self.space.mappings.cut(range.clone());
        // SAFETY: the program said that the child has nothing there.
        Ok(unsafe { calls::munmap(Address(range.start), range.len()) }?)
    }

    fn zero(&mut self, mapping: &Mapping) -> Result<()> {
        let range = mapping.addresses();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the program said that the child has zeros there.
        unsafe { calls::mmap(Address(range.start), range.len(), mapping.prot().0, flags, -1, 0) }?;
        self.now_anonymous(&range);
        Ok(())
    }

    fn copy(&mut self, mapping: &Mapping) -> Result<()> {
        let range = mapping.addresses();
        let Some(made) = self.copies.iter().position(|copied| *copied.of() == range) else {
            return self.remove(mapping);
        };
        let copied = self.copies.swap_remove(made);
        let missing = copied.missing().to_vec();
        // SAFETY: the program said that the child has a copy there.
        unsafe { copied.replace(mapping.prot()) }?;
        self.now_anonymous(&range);
        // Nothing, rather than something else.
        for part in missing {
            self.remove(&mapping.part(range.start + part.start..range.start + part.end))?;
        }
        Ok(())
    }

    fn now_anonymous(&mut self, range: &Range<usize>) {
        self.space.change(range, |mapping| {
            mapping.kind = Kind::Anonymous;
            mapping.sharing = Sharing::Private;
            mapping.offset = 0;
            mapping.lock = Lock::No;
        });
    }
}

/// Joins with the views of each cache. What cannot be shared is removed: nothing is better than something else.
fn join(joining: Vec<(usize, Joining)>, fork: u64) {
    // Of what could not be shown there is nothing to be served.
    let joining: Vec<Joining> =
        joining.into_iter().map(|(_, joining)| joining).filter(|joining| !joining.is_empty()).collect();
    let last = joining.len().wrapping_sub(1);
    let mut asked = Vec::new();
    for (number, joining) in joining.into_iter().enumerate() {
        // Of all that ever join, no two have the same.
        let nonce =
            RandomState::new().hash_one((std::process::id(), fork, number, std::time::Instant::now()));
        let objects = joining.objects();
        // Until the last has joined, the parent keeps the objects of all.
        match joining.ask(nonce, if number == last { fork } else { 0 }) {
            Ok(one) => asked.push((one, objects)),
            Err(_) => unmap_all(&objects),
        }
    }
    for (one, objects) in asked {
        if one.wait().is_err() {
            unmap_all(&objects);
        }
    }
}

/// Removes all mappings of some objects.
fn unmap_all(objects: &[Arc<Object>]) {
    for mapping in crate::AddressSpace::mappings() {
        if mapping.paged().is_some_and(|object| objects.iter().any(|gone| Arc::ptr_eq(gone, object))) {
            let range = mapping.addresses();
            space().mappings.cut(range.clone());
            // SAFETY: nobody has touched them yet.
            let _ = unsafe { calls::munmap(Address(range.start), range.len()) };
        }
    }
}
