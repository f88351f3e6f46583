//! An allocator for a part of a program, over pieces that are mapped for it.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allocator_api2::alloc::{AllocError, Allocator};
use allocator_api2::boxed::Box;
use dlmalloc::Dlmalloc;
use zerocopy::FromBytes;

use crate::LARGE_BYTES_MIN_DEFAULT;
use crate::pieces::{Arenas, Piece, Purpose, Source, take};

/// How many frees of blocks that are not small there are between two looks for arenas with nothing in them.
const FREES_BETWEEN_RELEASES: usize = 256;

/// An allocator for a part of a program, over memory that is mapped as it is needed; cheap to clone.
///
/// `Vec`, `Box` and every collection that takes an [`Allocator`] (of the crate `allocator-api2`, as hashbrown's do)
/// can live in it, from any thread. Small blocks are carved from arenas; a block of [`LARGE_BYTES_MIN_DEFAULT`] bytes or
/// more, or as many as [`with_large_bytes_min`](Self::with_large_bytes_min) says, is a piece of its own, given back when it is freed.
///
/// The memory stays as long as anything is in it, and goes with the last clone. In a child made by fork there is as much
/// of it as the pieces survive that.
///
/// # Example
/// ```
/// use omnimap_alloc::{Heap, Piece, Vec};
///
/// // Pieces may be anything that lends bytes; a paged object under a budget, for example.
/// let heap = Heap::new(1 << 20, |bytes, _| Some(Piece::zeros(vec![0; bytes])));
/// let mut squares = Vec::new_in(heap.clone());
/// squares.extend((0..1000_u64).map(|n| n * n));
/// assert_eq!(squares[999], 998_001);
///
/// let zeros = heap.zeroed_slice::<u32>(1 << 20)?;
/// assert!(zeros.iter().all(|n| *n == 0));
/// # Ok::<(), omnimap_alloc::AllocError>(())
/// ```
#[derive(Clone)]
pub struct Heap {
    inner: Arc<Inner>,
}

struct Inner {
    large_bytes_min: usize,
    source: Source,
    arenas: Mutex<Dlmalloc<Arenas>>,
    /// The pieces of large blocks, by the blocks' addresses.
    large: Mutex<BTreeMap<usize, Piece>>,
}

impl Heap {
    /// A heap whose pieces `source` gives: of so many bytes at the least, each for one [`Purpose`].
    ///
    /// Arenas are of `arena_bytes`, rounded up to a power of two.
    pub fn new(
        arena_bytes: usize,
        source: impl Fn(usize, Purpose) -> Option<Piece> + Send + Sync + 'static,
    ) -> Heap {
        Self::with_large_bytes_min(LARGE_BYTES_MIN_DEFAULT, arena_bytes, source)
    }

    /// As [`new`](Self::new), with blocks of `large_bytes_min` and more in pieces of their own.
    pub fn with_large_bytes_min(
        large_bytes_min: usize,
        arena_bytes: usize,
        source: impl Fn(usize, Purpose) -> Option<Piece> + Send + Sync + 'static,
    ) -> Heap {
        let source: Source = Arc::new(source);
        let mut arenas = Dlmalloc::new_with_allocator(Arenas::new(source.clone()));
        // More than that is not asked for; less is refused, and stays as it is.
        const ARENA_BYTES_MAX: usize = 1 << (usize::BITS - 4);
        arenas.set_granularity(arena_bytes.clamp(1, ARENA_BYTES_MAX).next_power_of_two());
        arenas.set_max_release_check_rate(FREES_BETWEEN_RELEASES);
        let (arenas, large) = (Mutex::new(arenas), Mutex::default());
        Heap { inner: Arc::new(Inner { large_bytes_min, source, arenas, large }) }
    }

    /// `length` values, all of whose bytes are zeros. Nothing is written where a piece is zeros already.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn zeroed_slice<T: FromBytes>(&self, length: usize) -> Result<Box<[T], Heap>, AllocError> {
        let layout = Layout::array::<T>(length).map_err(|_| AllocError)?;
        let block = if self.inner.is_large(layout) {
            let (start, zeros) = self.inner.allocate_large(layout)?;
            if !zeros {
                // SAFETY: a new block of so many bytes.
                unsafe { ptr::write_bytes(start.as_ptr(), 0, layout.size()) };
            }
            start
        } else {
            self.allocate_zeroed(layout)?.cast()
        };
        let values = NonNull::slice_from_raw_parts(block.cast::<T>(), length);
        // SAFETY: a block of this heap's, with the layout of so many values. Its bytes are initialised (a piece is lent as
        // bytes), and whatever they are, they are values (`FromBytes`).
        Ok(unsafe { Box::from_raw_in(values.as_ptr(), self.clone()) })
    }

    /// Bytes of the pieces that there are now.
    pub fn mapped_bytes(&self) -> usize {
        let large: usize = self.inner.large().values().map(Piece::len).sum();
        large + self.inner.arenas().allocator().bytes()
    }

    /// Gives arenas back in which nothing is; all but the first. Done by itself now and then.
    pub fn release(&self) {
        // SAFETY: gives back what nothing is in.
        unsafe { self.inner.arenas().trim(0) };
    }
}

impl Inner {
    fn is_large(&self, layout: Layout) -> bool {
        layout.size() >= self.large_bytes_min && layout.size() > 0
    }

    fn arenas(&self) -> MutexGuard<'_, Dlmalloc<Arenas>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn large(&self) -> MutexGuard<'_, BTreeMap<usize, Piece>> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece for one block, and whether it is zeros.
    fn allocate_large(&self, layout: Layout) -> Result<(NonNull<u8>, bool), AllocError> {
        // Without the lock: it may take as long as mapping does.
        let taken = take(&self.source, layout.size(), layout.align(), Purpose::Block);
        let (start, piece) = taken.ok_or(AllocError)?;
        let zeros = piece.is_zeros();
        self.large().insert(start.as_ptr().addr(), piece);
        Ok((start, zeros))
    }
}

fn sized(start: *mut u8, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
    let start = NonNull::new(start).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(start, layout.size()))
}

// SAFETY: a block is a piece of its own or dlmalloc's, which one its layout tells. Both are aligned, nobody else's, and stay
// until they are freed or `inner` is dropped, which all clones have together.
unsafe impl Allocator for Heap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return sized(ptr::without_provenance_mut(layout.align()), layout);
        }
        if self.inner.is_large(layout) {
            return self.inner.allocate_large(layout).and_then(|(start, _)| sized(start.as_ptr(), layout));
        }
        // SAFETY: any size and a power of two.
        let start = unsafe { self.inner.arenas().malloc(layout.size(), layout.align()) };
        sized(start, layout)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
        } else if self.inner.is_large(layout) {
            let piece = self.inner.large().remove(&block.as_ptr().addr());
            drop(piece); // Without the lock.
        } else {
            // SAFETY: from the arenas, with this layout.
            unsafe { self.inner.arenas().free(block.as_ptr(), layout.size(), layout.align()) };
        }
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { self.resize(block, old, new) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        unsafe { self.resize(block, old, new) }
    }
}

impl Heap {
    /// # Safety
    /// As [`Allocator::grow`] and [`Allocator::shrink`].
    unsafe fn resize(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let in_arenas = |layout: Layout| layout.size() > 0 && !self.inner.is_large(layout);
        if in_arenas(old) && in_arenas(new) && old.align() == new.align() {
            // SAFETY: from the arenas, with this layout.
            let moved =
                unsafe { self.inner.arenas().realloc(block.as_ptr(), old.size(), old.align(), new.size()) };
            return sized(moved, new);
        }
        let moved = self.allocate(new)?;
        let bytes = old.size().min(new.size());
        // SAFETY: both blocks have so many bytes, and the new one is no part of the old one.
        unsafe { ptr::copy_nonoverlapping(block.as_ptr(), moved.as_ptr().cast(), bytes) };
        // SAFETY: the caller gives it up.
        unsafe { self.deallocate(block, old) };
        Ok(moved)
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("mapped_bytes", &self.mapped_bytes()).finish_non_exhaustive()
    }
}
