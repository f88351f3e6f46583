//! The heap over pieces, and the one in shared memory.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use omnimap_alloc::{AllocError, Allocator, Box, Heap, Piece, Purpose, SharedHeap, Vec};
use omnimap_testkit::{Prng, within};

const LIMIT: Duration = Duration::from_secs(120);
type StdVec<T> = std::vec::Vec<T>;

/// Memory that is counted while it is there.
struct Counted {
    bytes: StdVec<u8>,
    there: Arc<AtomicUsize>,
}

impl AsMut<[u8]> for Counted {
    fn as_mut(&mut self) -> &mut [u8] {
        // Not aligned to anything, to see that the heap does that.
        &mut self.bytes[1..]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.there.fetch_sub(1, Ordering::Relaxed);
    }
}

fn counted() -> (Heap, Arc<AtomicUsize>) {
    let there = Arc::new(AtomicUsize::new(0));
    let counter = there.clone();
    let heap = Heap::new(1 << 20, move |bytes, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        Some(Piece::new(Counted { bytes: vec![0xaa; bytes + 1], there: counter.clone() }))
    });
    (heap, there)
}

#[test]
fn a1_large_blocks_are_pieces_that_go_when_they_are_freed() {
    within(LIMIT, || {
        let (heap, there) = counted();
        let small: StdVec<_> = (0..100_u64).map(|n| Box::new_in(n, heap.clone())).collect();
        // It is taken in vain when it is not aligned as it has to be, and given back at once.
        assert_eq!(there.load(Ordering::Relaxed), 1, "one arena");
        let large = heap.zeroed_slice::<u64>(1 << 16).unwrap();
        assert_eq!(there.load(Ordering::Relaxed), 2);
        assert!(large.iter().all(|n| *n == 0), "zeros, whatever the piece had");
        assert!(heap.mapped_bytes() >= (1 << 20) + (8 << 16));
        drop(large);
        assert_eq!(there.load(Ordering::Relaxed), 1);
        assert!(small.iter().zip(0..).all(|(there, n)| **there == n));
        drop(heap);
        assert_eq!(there.load(Ordering::Relaxed), 1, "blocks keep it");
        drop(small);
        assert_eq!(there.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a1_arenas_with_nothing_in_them_are_given_back() {
    within(LIMIT, || {
        let (heap, there) = counted();
        let blocks: StdVec<Vec<u8, Heap>> = (0..200)
            .map(|n| {
                let mut block = Vec::new_in(heap.clone());
                block.resize(100_000, n as u8);
                block
            })
            .collect();
        let many = there.load(Ordering::Relaxed);
        assert!(many > 15, "{many} arenas of 1 MiB for 20 MB");
        assert!(blocks.iter().enumerate().all(|(n, block)| block.iter().all(|b| *b == n as u8)));
        drop(blocks);
        heap.release();
        assert!(there.load(Ordering::Relaxed) <= 2, "{} arenas left", there.load(Ordering::Relaxed));
    });
}

#[test]
fn a1_collections_grow_and_shrink_in_it_from_many_threads() {
    within(LIMIT, || {
        let (heap, there) = counted();
        thread::scope(|scope| {
            for seed in 1..5 {
                let heap = heap.clone();
                scope.spawn(move || {
                    let mut random = Prng::new(seed);
                    let mut blocks: StdVec<Vec<u64, Heap>> = StdVec::new();
                    for _ in 0..2000 {
                        let at = random.below(20) as usize;
                        if at >= blocks.len() {
                            blocks.push(Vec::new_in(heap.clone()));
                            continue;
                        }
                        let block = &mut blocks[at];
                        if random.below(4) == 0 {
                            block.truncate(block.len() / 2);
                            block.shrink_to_fit();
                        } else {
                            let (from, more) = (block.len() as u64, random.below(8000));
                            block.extend(from..from + more);
                        }
                        assert!(block.iter().zip(0..).all(|(n, at)| *n == at));
                    }
                });
            }
        });
        drop(heap);
        assert_eq!(there.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a1_where_no_piece_is_to_be_had_there_is_an_error() {
    within(LIMIT, || {
        let heap = Heap::new(1 << 20, |bytes, purpose| {
            (purpose == Purpose::Arena).then(|| Piece::zeros(vec![0; bytes]))
        });
        assert!(matches!(heap.zeroed_slice::<u64>(1 << 20), Err(AllocError)));
        assert!(matches!(heap.zeroed_slice::<u64>(usize::MAX / 9), Err(AllocError)));
        assert_eq!(heap.zeroed_slice::<u64>(10).unwrap()[9], 0);
        assert!(heap.zeroed_slice::<u64>(0).unwrap().is_empty());
        let none = Heap::new(1 << 20, |_, _| None);
        assert!(none.allocate(std::alloc::Layout::new::<u64>()).is_err());
    });
}

fn cells(bytes: usize) -> &'static [AtomicU8] {
    // A vector of words begins at a multiple of 8; leaked, for threads.
    let words: &'static mut [u64] = vec![0; bytes / 8].leak();
    let bytes: &'static [AtomicU8] = {
        // SAFETY: bytes in atomics, of memory that is used through this alone from now on.
        unsafe { std::slice::from_raw_parts(words.as_mut_ptr().cast(), bytes) }
    };
    bytes
}

#[test]
fn a1_blocks_in_shared_memory_are_apart_and_used_again() {
    within(LIMIT, || {
        let memory = cells(4 << 20);
        SharedHeap::create(memory).unwrap();
        let made = Mutex::new(HashSet::new());
        thread::scope(|scope| {
            for seed in 1..5_u64 {
                let made = &made;
                scope.spawn(move || {
                    // Each as another process would.
                    let heap = SharedHeap::open(memory).unwrap();
                    let mut random = Prng::new(seed);
                    let mut mine: StdVec<u64> = StdVec::new();
                    for round in 0..20_000 {
                        if mine.len() > 30 || random.below(3) == 0 && !mine.is_empty() {
                            let at = mine.swap_remove(random.below(mine.len() as u64) as usize);
                            let words = heap.words(at).unwrap();
                            assert!(words.iter().all(|w| w.load(Ordering::Relaxed) == seed << 32 | at));
                            assert!(made.lock().unwrap().remove(&at), "it was mine");
                            assert!(heap.free(at));
                            continue;
                        }
                        let at =
                            heap.allocate(random.below(2000)).expect("room: what is freed is used again");
                        assert!(made.lock().unwrap().insert(at), "{at} is another's, in round {round}");
                        heap.words(at)
                            .unwrap()
                            .iter()
                            .for_each(|w| w.store(seed << 32 | at, Ordering::Relaxed));
                        mine.push(at);
                    }
                });
            }
        });
    });
}

#[test]
fn a1_a_head_that_was_replaced_and_came_back_is_not_taken_for_the_same() {
    within(LIMIT, || {
        let memory = cells(64 << 10);
        SharedHeap::create(memory).unwrap();
        thread::scope(|scope| {
            for seed in 1..5_u64 {
                scope.spawn(move || {
                    // Few blocks, of one class, all the time: a thread is often stopped between reading a link and taking
                    // the block, and finds the same head again.
                    let heap = SharedHeap::open(memory).unwrap();
                    for round in 0..200_000 {
                        let mine = [(); 3].map(|()| heap.allocate(8).expect("12 blocks are enough"));
                        let value = seed << 32 | round;
                        let words = mine.map(|at| &heap.words(at).unwrap()[0]);
                        words.iter().for_each(|w| w.store(value, Ordering::Relaxed));
                        assert!(
                            words.iter().all(|w| w.load(Ordering::Relaxed) == value),
                            "nobody else has it"
                        );
                        assert!(mine.iter().all(|at| heap.free(*at)));
                    }
                });
            }
        });
    });
}

#[test]
fn a1_what_is_no_block_in_shared_memory_is_not_freed() {
    within(LIMIT, || {
        let memory = cells(8192);
        assert!(SharedHeap::open(memory).is_none(), "not made yet");
        assert!(SharedHeap::create(&memory[1..]).is_none(), "not aligned");
        assert!(SharedHeap::create(&memory[..1000]).is_none(), "too small");
        let heap = SharedHeap::create(memory).unwrap();
        assert!(SharedHeap::open(&memory[..4096]).is_none(), "of another size");
        let block = heap.allocate(100).unwrap();
        assert!(heap.words(block).unwrap().len() * 8 >= 100);
        for wrong in [0, 1, 8, block - 8, block + 1, block + 16, 8192, u64::MAX] {
            assert!(!heap.free(wrong) && heap.words(wrong).is_none(), "{wrong}");
        }
        assert!(heap.free(block) && !heap.free(block), "once");
        assert_eq!(heap.allocate(100), Some(block));
        assert_eq!((heap.allocate(8192), heap.allocate(u64::MAX)), (None, None));
        while heap.allocate(1).is_some() {}
        assert_eq!(heap.root().load(Ordering::Relaxed), 0);
    });
}
