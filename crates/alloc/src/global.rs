//! The allocator of a whole program.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;
use omnimap_host::linux::page_bytes;

use crate::LARGE_BYTES_MIN_DEFAULT;
use crate::kernel::{self, KernelPages};

/// What arenas grow by at the least: fewer calls than dlmalloc's own 64 KiB.
const ARENA_BYTES: usize = 1 << 20;

/// The arenas of all [`MappedAllocator`]s of the process, behind one lock.
static ARENAS: Mutex<Dlmalloc<KernelPages>> = Mutex::new(
    const {
        let mut arenas = Dlmalloc::new_with_allocator(KernelPages);
        assert!(arenas.set_granularity(ARENA_BYTES));
        arenas
    },
);

/// The allocator of a whole program, over the kernel's anonymous mappings (`#[global_allocator]`).
///
/// Small blocks come from arenas, which all threads share behind one lock; a block of
/// [`LARGE_BYTES_MIN_DEFAULT`] bytes or more, or as many as [`with_large_bytes_min`](Self::with_large_bytes_min) says, is a mapping of its own, made
/// without the lock and unmapped when it is freed. Large blocks grow by moving page tables, not bytes (mremap(2)).
///
/// It works from the first instruction on, and in every thread: it uses neither thread-local storage nor any other
/// allocator.
///
/// # Fork
/// The lock is held across fork(3), so a child finds the arenas whole and may allocate, whatever the other threads of its
/// parent were doing. After a bare clone(2), or vfork(2), it may not.
///
/// # Paged objects
/// They are no global allocator: the threads that fetch pages allocate, and would wait for themselves. See
/// [`Heap`](crate::Heap).
///
/// # Example
/// ```
/// use omnimap_alloc::MappedAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: MappedAllocator = MappedAllocator::new();
///
/// let bytes = vec![7_u8; 1 << 20]; // A mapping of its own.
/// assert_eq!(bytes.iter().map(|b| u64::from(*b)).sum::<u64>(), 7 << 20);
/// ```
#[derive(Debug)]
pub struct MappedAllocator {
    large_bytes_min: usize,
}

impl MappedAllocator {
    /// One that maps blocks of [`LARGE_BYTES_MIN_DEFAULT`] bytes and more one by one.
    pub const fn new() -> MappedAllocator {
        Self::with_large_bytes_min(LARGE_BYTES_MIN_DEFAULT)
    }

    /// One that maps blocks of `bytes` and more one by one.
    pub const fn with_large_bytes_min(bytes: usize) -> MappedAllocator {
        MappedAllocator { large_bytes_min: bytes }
    }

    fn is_large(&self, bytes: usize) -> bool {
        bytes >= self.large_bytes_min
    }

    /// As the trait's `realloc` is defined: by a new block, and a copy.
    ///
    /// # Safety
    /// As `GlobalAlloc::realloc`.
    unsafe fn copy(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        // SAFETY: `new_size` is not 0, says the caller.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks have so many bytes, and the new one is not a part of the old one.
            unsafe { ptr::copy_nonoverlapping(old, new, layout.size().min(new_size)) };
            // SAFETY: the old block is the caller's, who gives it up.
            unsafe { self.dealloc(old, layout) };
        }
        new
    }
}

impl Default for MappedAllocator {
    fn default() -> MappedAllocator {
        MappedAllocator::new()
    }
}

// SAFETY: a block is either a mapping of its own or dlmalloc's, which one its layout tells, and its layout is the same when
// it is freed. Both are aligned as asked for and nobody else's. Nothing here unwinds: the lock is had poisoned or not.
unsafe impl GlobalAlloc for MappedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_large(layout.size()) {
            return kernel::map(layout.size(), layout.align()).map_or(ptr::null_mut(), NonNull::as_ptr);
        }
        // SAFETY: any size and a power of two.
        unsafe { arenas().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.is_large(layout.size()) {
            // SAFETY: the caller's promise; new mappings are zeros.
            return unsafe { self.alloc(layout) };
        }
        // SAFETY: as in `alloc`.
        unsafe { arenas().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.is_large(layout.size()) {
            // SAFETY: a mapping of its own, of so many bytes in whole pages, given up by the caller.
            unsafe { kernel::unmap(block, layout.size()) };
        } else {
            // SAFETY: from the arenas, with this layout.
            unsafe { arenas().free(block, layout.size(), layout.align()) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match (self.is_large(layout.size()), self.is_large(new_size)) {
            // SAFETY: from the arenas, with this layout.
            (false, false) => unsafe { arenas().realloc(block, layout.size(), layout.align(), new_size) },
            (true, true) => {
                let may_move = layout.align() <= page_bytes() as usize;
                // SAFETY: a mapping of its own; the caller forgets the old address if it gets another.
                let moved = unsafe { kernel::remap(block, layout.size(), new_size, may_move) };
                // SAFETY: the caller's promise.
                moved.map_or_else(|| unsafe { self.copy(block, layout, new_size) }, NonNull::as_ptr)
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.copy(block, layout, new_size) },
        }
    }
}

fn arenas() -> MutexGuard<'static, Dlmalloc<KernelPages>> {
    static PREPARED: AtomicBool = AtomicBool::new(false);
    // Read first: a write by every allocation would move the cache line between the processors.
    if !PREPARED.load(Ordering::Relaxed) && !PREPARED.swap(true, Ordering::Relaxed) {
        // SAFETY: handlers of the signature asked for, which do not unwind. It allocates, if at all, by the C library's
        // allocator. If it fails, a child of a process with several threads may wait for ever for a lock.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
    }
    ARENAS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock, held by the thread that forks.
struct HeldByFork(UnsafeCell<Option<MutexGuard<'static, Dlmalloc<KernelPages>>>>);

// SAFETY: it is written only by who has just taken the lock, and taken out by the same thread, or its copy in the child.
unsafe impl Sync for HeldByFork {}

static HELD_BY_FORK: HeldByFork = HeldByFork(UnsafeCell::new(None));

extern "C" fn before_fork() {
    let guard = arenas();
    // SAFETY: we have the lock, so nobody else is here or in `after_fork`.
    unsafe { HELD_BY_FORK.0.get().write(Some(guard)) };
}

extern "C" fn after_fork() {
    // SAFETY: this thread has the lock since `before_fork`.
    let guard = unsafe { HELD_BY_FORK.0.get().replace(None) };
    drop(guard);
}
