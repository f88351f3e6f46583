//! Where a [`Heap`](crate::Heap) has its memory from: pieces that somebody maps for it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// What a piece is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Small blocks are carved from it.
    Arena,
    /// One large block.
    Block,
}

/// Gives a piece of at least so many bytes.
pub(crate) type Source = Arc<dyn Fn(usize, Purpose) -> Option<Piece> + Send + Sync>;

/// Memory for a [`Heap`](crate::Heap): anything that lends its bytes, given up when the heap has no use for it.
///
/// The bytes are asked for once, and the owner is not touched again before it is dropped.
pub struct Piece {
    owner: NonNull<dyn Send>,
    bytes: NonNull<[u8]>,
    zeros: bool,
}

// SAFETY: the owner is `Send`, and the bytes are its own, lent exclusively.
unsafe impl Send for Piece {}

impl Piece {
    /// Takes memory over.
    pub fn new<M: AsMut<[u8]> + Send + 'static>(memory: M) -> Piece {
        let owner = NonNull::from(Box::leak(Box::new(memory)));
        // SAFETY: just made, and nobody else's. The borrow lasts until `drop` takes the owner back: nobody uses the owner
        // before, nor the bytes after.
        let lent: &'static mut M = unsafe { &mut *owner.as_ptr() };
        Piece { bytes: NonNull::from(lent.as_mut()), owner, zeros: false }
    }

    /// As [`new`](Self::new), for memory that is all zeros: nobody has to write them.
    pub fn zeros<M: AsMut<[u8]> + Send + 'static>(memory: M) -> Piece {
        let mut piece = Piece::new(memory);
        piece.zeros = true;
        piece
    }

    /// Its first bytes from a multiple of `align` on, if there are so many.
    pub(crate) fn aligned(&self, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        let start = self.bytes.cast::<u8>();
        let skipped = start.as_ptr().align_offset(align);
        let fits = skipped.checked_add(bytes).is_some_and(|end| end <= self.bytes.len());
        // SAFETY: `skipped` is inside the bytes.
        fits.then(|| unsafe { start.add(skipped) })
    }

    pub(crate) fn is_zeros(&self) -> bool {
        self.zeros
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: from `Box::leak`, and taken back once; nobody uses the bytes any more.
        drop(unsafe { Box::from_raw(self.owner.as_ptr()) });
    }
}

/// Asks for a piece that has `bytes` bytes at a multiple of `align`; gives it, and where they begin.
pub(crate) fn take(
    source: &Source,
    bytes: usize,
    align: usize,
    purpose: Purpose,
) -> Option<(NonNull<u8>, Piece)> {
    // Mappings begin at pages, so the first is nearly always good.
    for slack in [0, align] {
        let piece = source(bytes.checked_add(slack)?, purpose)?;
        if let Some(start) = piece.aligned(bytes, align) {
            return Some((start, piece));
        }
    }
    None
}

/// The pieces that are arenas, as dlmalloc asks for them.
pub(crate) struct Arenas {
    source: Source,
    /// By the address of what dlmalloc has of it, with how many bytes that are.
    taken: RefCell<BTreeMap<usize, (usize, Piece)>>,
    number: Cell<u32>,
}

/// What dlmalloc wants its arenas aligned to.
const ARENA_ALIGN: usize = 2 * size_of::<usize>();

impl Arenas {
    pub(crate) fn new(source: Source) -> Arenas {
        Arenas { source, taken: RefCell::default(), number: Cell::new(0) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.taken.borrow().values().map(|(_, piece)| piece.len()).sum()
    }
}

// SAFETY: pieces are exclusive, and each is handed out once; they stay until they are given back whole, or this is dropped.
unsafe impl dlmalloc::Allocator for Arenas {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let Some((start, piece)) = take(&self.source, size, ARENA_ALIGN, Purpose::Arena) else {
            return (ptr::null_mut(), 0, 0);
        };
        self.taken.borrow_mut().insert(start.as_ptr().addr(), (size, piece));
        // Neighbours with different flags are not joined, so that each is given back as it was taken. Bit 0 would say that
        // it is never given back.
        self.number.set(self.number.get().wrapping_add(2));
        (start.as_ptr(), size, self.number.get())
    }

    fn remap(&self, _start: *mut u8, _old: usize, _new: usize, _may_move: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _start: *mut u8, _old: usize, _new: usize) -> bool {
        false
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        let mut taken = self.taken.borrow_mut();
        if taken.get(&start.addr()).is_none_or(|(bytes, _)| *bytes != size) {
            return false;
        }
        taken.remove(&start.addr());
        true
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        omnimap_host::linux::page_bytes() as usize
    }
}
