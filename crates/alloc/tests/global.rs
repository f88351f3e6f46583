//! This test program's own allocator is the one that is tested.

use std::alloc::{GlobalAlloc, Layout};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use omnimap_alloc::{LARGE_BYTES_MIN_DEFAULT, MappedAllocator};
use omnimap_testkit::{Prng, in_child, within};

#[global_allocator]
static ALLOCATOR: MappedAllocator = MappedAllocator::new();

const LIMIT: Duration = Duration::from_secs(120);

fn page() -> usize {
    omnimap_host::linux::page_bytes() as usize
}

/// A block with a value in each byte, checked when it goes.
struct Block {
    start: *mut u8,
    layout: Layout,
    value: u8,
}

// SAFETY: the block is its own.
unsafe impl Send for Block {}

impl Block {
    fn new(size: usize, align: usize, zeroed: bool, value: u8) -> Block {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the size is not 0.
        let zeros = |layout| unsafe { ALLOCATOR.alloc_zeroed(layout) };
        // SAFETY: as above.
        let any = |layout| unsafe { ALLOCATOR.alloc(layout) };
        let start = if zeroed { zeros(layout) } else { any(layout) };
        assert!(!start.is_null() && start.addr().is_multiple_of(align), "{start:?} for {layout:?}");
        let mut block = Block { start, layout, value };
        if zeroed {
            assert!(block.bytes().iter().all(|b| *b == 0), "zeros were asked for, {layout:?}");
        }
        block.bytes().fill(value);
        block
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours, initialised or not: nothing but bytes is made of it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }

    fn resize(&mut self, size: usize) {
        let kept = size.min(self.layout.size());
        // SAFETY: ours, with this layout; the new size is not 0.
        self.start = unsafe { ALLOCATOR.realloc(self.start, self.layout, size) };
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        assert!(!self.start.is_null() && self.start.addr().is_multiple_of(self.layout.align()));
        let value = self.value;
        assert!(self.bytes()[..kept].iter().all(|b| *b == value), "moved with its bytes");
        self.bytes().fill(value);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let value = self.value;
        assert!(thread::panicking() || self.bytes().iter().all(|b| *b == value), "nobody else wrote to it");
        // SAFETY: ours, with this layout.
        unsafe { ALLOCATOR.dealloc(self.start, self.layout) };
    }
}

fn random_size(random: &mut Prng) -> usize {
    let bits = random.below(20);
    1 + random.below(1 << bits) as usize
}

#[test]
fn a1_blocks_of_all_sizes_and_alignments_are_apart_and_keep_their_bytes() {
    within(LIMIT, || {
        let threads: Vec<_> = (0..4_u64)
            .map(|seed| {
                thread::spawn(move || {
                    let mut random = Prng::new(seed + 1);
                    let mut blocks: Vec<Block> = Vec::new();
                    for round in 0..4000 {
                        let (size, align) = (random_size(&mut random), 1 << random.below(15));
                        match random.below(3) {
                            0 if !blocks.is_empty() => {
                                let at = random.below(blocks.len() as u64) as usize;
                                blocks[at].resize(size);
                            }
                            1 if blocks.len() > 40 => {
                                let at = random.below(blocks.len() as u64) as usize;
                                blocks.swap_remove(at);
                            }
                            _ => blocks.push(Block::new(size, align, round % 3 == 0, round as u8)),
                        }
                        blocks.truncate(100);
                    }
                    blocks
                })
            })
            .collect();
        // Freed by another thread than made them.
        threads.into_iter().for_each(|t| drop(t.join().unwrap()));
    });
}

/// Whether something is mapped at an address.
fn is_mapped(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap())
            .contains(&address)
    })
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * page()
}

#[test]
fn a1_large_blocks_are_mappings_that_go_when_they_are_freed() {
    const NAME: &str = "a1_large_blocks_are_mappings_that_go_when_they_are_freed";
    // In a process of its own: other tests map and unmap.
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let before = resident_bytes();
    for align in [1, 1 << 16] {
        // Small ones that stay in between, so that no two large ones are neighbours in one arena.
        let mut blocks: Vec<Block> = (0..50).map(|n| Block::new(1 << 20, align, false, n)).collect();
        assert!(resident_bytes() > before + (45 << 20));
        let addresses: Vec<usize> = blocks.iter().map(|block| block.start.addr()).collect();
        assert!(addresses.iter().all(|at| at.is_multiple_of(page())), "a mapping begins at a page");
        blocks.clear();
        let left: Vec<_> = addresses.iter().filter(|at| is_mapped(**at + page())).collect();
        assert!(left.is_empty(), "still mapped: {left:x?}");
        assert!(resident_bytes() < before + (5 << 20), "{before} before, {} now", resident_bytes());
    }
}

#[test]
fn a1_the_threshold_is_settable() {
    within(LIMIT, || {
        let layout = |size| Layout::from_size_align(size, 1).unwrap();
        for (allocator, large) in [
            (MappedAllocator::new(), LARGE_BYTES_MIN_DEFAULT),
            (MappedAllocator::with_large_bytes_min(10_000), 10_000),
        ] {
            for (size, is_page) in [(large, true), (large - 1, false)] {
                // SAFETY: not 0 bytes; freed with the same layout.
                let start = unsafe { allocator.alloc(layout(size)) };
                assert_eq!(start.addr().is_multiple_of(page()), is_page, "{size} of {large}");
                // SAFETY: as above.
                unsafe { allocator.dealloc(start, layout(size)) };
            }
        }
    });
}

#[test]
fn a1_sizes_that_cannot_be_are_refused() {
    within(LIMIT, || {
        let layout = Layout::from_size_align(isize::MAX as usize - 4095, 1).unwrap();
        // SAFETY: not 0 bytes.
        assert!(unsafe { ALLOCATOR.alloc(layout) }.is_null());
        let mut block = Block::new(1 << 20, 1, false, 7);
        // SAFETY: the block's own layout; it stays if that fails.
        assert!(unsafe { ALLOCATOR.realloc(block.start, block.layout, layout.size()) }.is_null());
        assert!(block.bytes().iter().all(|b| *b == 7));
    });
}

#[test]
fn a1_a_forked_child_allocates_whatever_other_threads_were_doing() {
    const NAME: &str = "a1_a_forked_child_allocates_whatever_other_threads_were_doing";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let done = done.clone();
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    drop(vec![1_u8; 100]);
                }
            })
        })
        .collect();
    for _ in 0..300 {
        // SAFETY: the child allocates, which this is about, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: async-signal-safe: ends a child that waits for ever.
            unsafe { libc::alarm(20) };
            let blocks: Vec<Vec<u8>> = (1..200).map(|n| vec![n; usize::from(n) * 20]).collect();
            let right = blocks.iter().zip(1..).all(|(block, n)| block.iter().all(|b| *b == n));
            // SAFETY: async-signal-safe.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = -1;
        // SAFETY: waits for our child, and writes to `status`.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0, "it waited for a lock that nobody gives back, or found the arenas broken");
    }
    done.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn a1_a_program_runs_on_it_from_the_beginning_to_the_end() {
    let here = std::env::current_exe().unwrap();
    let example: PathBuf = here.ancestors().nth(2).unwrap().join("examples/global_allocator");
    assert!(example.exists(), "{}: cargo build -p omnimap-alloc --examples", example.display());
    let output = within(LIMIT, move || Command::new(example).output().unwrap());
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shown.lines().filter(|line| line.ends_with(": true")).count(), 4, "{shown}");
}
