//! Blocks in memory that several processes share.
//!
//! ```text
//! word   0      1      2     3     8 …                 136 …
//!        magic  bytes  next  root  heads of the lists  [header, payload …] [header, payload …]  … unused
//! ```
//! Everything is told by offsets, so each process may have the memory at an address of its own. A block's header holds
//! its size class, and whether it is used. Free blocks of a class are a list whose head has a count in its upper half,
//! which each change adds to, so that a head that was replaced and came back is not taken for the same (Treiber's stack).
//! No process ever waits for another; one that is killed in the middle loses the block that it was about.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use omnimap_host::as_u64;

const MAGIC: u64 = u64::from_le_bytes(*b"omniheap");
const WORD_BYTES: u64 = 8;
/// Blocks begin, and end, at multiples of this.
const UNIT_BYTES: u64 = 16;
const UNIT_WORDS: u64 = UNIT_BYTES / WORD_BYTES;
/// Units have numbers of 32 bits: 64 GiB.
const WORDS_MAX: u64 = (u32::MAX as u64) * UNIT_WORDS;

const TOTAL: u64 = 1;
const NEXT: u64 = 2;
const ROOT: u64 = 3;
const HEADS: u64 = 8;
const CLASSES: u64 = 128;
const FIRST: u64 = HEADS + CLASSES;

/// Says that a word is a header, and of what; the class is in the low half.
const USED: u64 = 0x05ed_b10c << 32;
const FREE: u64 = 0xf4ee_b10c << 32;
const HALF: u64 = 0xffff_ffff;

/// An allocator in memory that several processes share, and with all of its state in there.
///
/// Blocks are known by their offset in the memory, which means the same in every process. They are borrowed as atomics: any
/// number of threads and processes may use a block at once, and one that uses a block that another has freed sees
/// values that it did not expect, and nothing worse. Up to 64 GiB of the memory are used.
///
/// Sizes are rounded up, by a quarter at most, and a block that was freed is used again for its size class alone.
///
/// # Example
/// ```
/// use std::sync::atomic::{AtomicU8, Ordering};
/// use omnimap_alloc::SharedHeap;
///
/// // Here a static; elsewhere a shared mapping's cells.
/// #[repr(align(8))]
/// struct Memory([AtomicU8; 4096]);
/// static MEMORY: Memory = Memory([const { AtomicU8::new(0) }; 4096]);
///
/// let heap = SharedHeap::create(&MEMORY.0).unwrap();
/// let counter = heap.allocate(8).unwrap();
/// heap.root().store(counter, Ordering::Release);
///
/// // Another process finds it by the root.
/// let heap = SharedHeap::open(&MEMORY.0).unwrap();
/// let counter = heap.root().load(Ordering::Acquire);
/// heap.words(counter).unwrap()[0].fetch_add(1, Ordering::Relaxed);
/// assert!(heap.free(counter));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SharedHeap<'a> {
    words: &'a [AtomicU64],
}

impl<'a> SharedHeap<'a> {
    /// Makes the memory a heap with nothing in it; `None` if it does not begin at a multiple of 8, or is too small.
    ///
    /// Nobody else may use it meanwhile.
    pub fn create(cells: &'a [AtomicU8]) -> Option<SharedHeap<'a>> {
        let words = words_of(cells)?;
        words[0].store(0, Ordering::Relaxed);
        for word in &words[1..FIRST as usize] {
            word.store(0, Ordering::Relaxed);
        }
        words[TOTAL as usize].store(words.len() as u64, Ordering::Relaxed);
        words[NEXT as usize].store(FIRST, Ordering::Relaxed);
        words[0].store(MAGIC, Ordering::Release);
        Some(SharedHeap { words })
    }

    /// Takes memory that [`create`](Self::create) has made a heap; `None` if it has not, or it was of another size.
    pub fn open(cells: &'a [AtomicU8]) -> Option<SharedHeap<'a>> {
        let words = words_of(cells)?;
        let made = words[0].load(Ordering::Acquire) == MAGIC
            && words[TOTAL as usize].load(Ordering::Relaxed) == words.len() as u64;
        made.then_some(SharedHeap { words })
    }

    /// A number by which processes find what they share: the offset of a block, for example. 0 at first.
    pub fn root(&self) -> &'a AtomicU64 {
        &self.words[ROOT as usize]
    }

    /// A block of `bytes` at least, at a multiple of 8; its offset, or `None` if there is no room. What is in it is not
    /// defined.
    pub fn allocate(&self, bytes: u64) -> Option<u64> {
        let class = class_of(bytes.checked_add(WORD_BYTES)?)?;
        let header = self.take_free(class).or_else(|| self.take_unused(class))?;
        Some((header + 1) * WORD_BYTES)
    }

    /// Gives a block back; `false` if there is none at this offset, or it was given back already.
    pub fn free(&self, offset: u64) -> bool {
        let Some((header, class)) = self.block_at(offset) else { return false };
        let used = &self.words[header as usize];
        if used.compare_exchange(USED | class, FREE | class, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let head = &self.words[(HEADS + class) as usize];
        let link = &self.words[header as usize + 1];
        let mut old = head.load(Ordering::Relaxed);
        loop {
            link.store(old & HALF, Ordering::Relaxed);
            match head.compare_exchange_weak(
                old,
                next_count(old) | (header / UNIT_WORDS),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
    }

    /// A block as numbers of 64 bits; `None` if there is none at this offset. It may be longer than was asked for.
    pub fn words(&self, offset: u64) -> Option<&'a [AtomicU64]> {
        let (header, class) = self.block_at(offset)?;
        self.words.get(header as usize + 1..(header + words_in(class)) as usize)
    }

    /// The header of the used block whose payload begins at an offset, and its class.
    fn block_at(&self, offset: u64) -> Option<(u64, u64)> {
        let header = (offset / WORD_BYTES).checked_sub(1)?;
        if !offset.is_multiple_of(WORD_BYTES) || header < FIRST || !header.is_multiple_of(UNIT_WORDS) {
            return None;
        }
        let word = self.words.get(header as usize)?.load(Ordering::Acquire);
        let class = word & HALF;
        (word & !HALF == USED && class < CLASSES).then_some((header, class))
    }

    fn take_free(&self, class: u64) -> Option<u64> {
        let head = &self.words[(HEADS + class) as usize];
        let mut old = head.load(Ordering::Acquire);
        loop {
            let header = (old & HALF) * UNIT_WORDS;
            if header == 0 {
                return None;
            }
            // Another may have taken it, and written to it: then the head is not `old` any more.
            let link = self.words.get(header as usize + 1)?.load(Ordering::Relaxed);
            let new = next_count(old) | (link & HALF);
            match head.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.words[header as usize].store(USED | class, Ordering::Release);
                    return Some(header);
                }
                Err(now) => old = now,
            }
        }
    }

    fn take_unused(&self, class: u64) -> Option<u64> {
        let end = self.words.len() as u64;
        let take = |at: u64| at.checked_add(words_in(class)).filter(|next| *next <= end);
        let header =
            self.words[NEXT as usize].fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).ok()?;
        self.words.get(header as usize)?.store(USED | class, Ordering::Release);
        Some(header)
    }
}

fn words_of(cells: &[AtomicU8]) -> Option<&[AtomicU64]> {
    let whole = cells.len() - cells.len() % UNIT_BYTES as usize;
    let words = as_u64(&cells[..whole])?;
    let words = &words[..words.len().min(WORDS_MAX as usize)];
    (words.len() as u64 > FIRST).then_some(words)
}

/// The upper half of a head, one further.
fn next_count(head: u64) -> u64 {
    (head & !HALF).wrapping_add(HALF + 1)
}

/// The class of blocks that have room for so many bytes, header included: each 16 bytes up to 128, then four classes from one
/// power of two to the next.
fn class_of(bytes: u64) -> Option<u64> {
    let units = bytes.div_ceil(UNIT_BYTES).max(1);
    if units <= 8 {
        return Some(units - 1);
    }
    // The step is a quarter of the power of two below; `steps` is from 5 to 8.
    let shift = (units - 1).ilog2() - 2;
    let steps = units.div_ceil(1 << shift);
    let class = 8 + 4 * u64::from(shift - 1) + (steps - 5);
    (class < CLASSES).then_some(class)
}

/// Words of a block of a class.
fn words_in(class: u64) -> u64 {
    let units = if class < 8 { class + 1 } else { (5 + (class - 8) % 4) << ((class - 8) / 4 + 1) };
    units * UNIT_WORDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_blocks_are_at_most_a_quarter_larger_than_asked_for() {
        for bytes in (1..5000).chain((13..36).flat_map(|p| (1 << p) - 3..(1 << p) + 3)) {
            let class = class_of(bytes).unwrap();
            let got = words_in(class) * WORD_BYTES;
            assert!(got >= bytes, "{bytes} in {got}");
            assert!(got <= (bytes + bytes / 4).next_multiple_of(UNIT_BYTES), "{bytes} in {got}");
            assert!(
                class == 0 || words_in(class - 1) * WORD_BYTES < bytes,
                "{bytes}: one class less would do"
            );
        }
        assert_eq!(class_of(u64::MAX), None);
    }
}
