//! Allocators over mappings.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use omnimap::alloc::{Box, SharedHeap, Vec};
use omnimap::{Cache, MapOptions};
use omnimap_testkit::{Prng, within};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn is_long() -> bool {
    std::env::var("OMNIMAP_LONG").is_ok_and(|v| v == "1")
}

#[test]
fn a1_an_array_is_larger_than_its_budget() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    // Everywhere, under 1 GiB; or a word of every MiB, under less than those pages.
    let (budget, step, limit) = if is_long() { (1024 * MIB, 1, 3600) } else { (16 * MIB, 1 << 17, 120) };
    within(Duration::from_secs(limit), move || {
        let cache = Cache::new(budget).unwrap();
        let heap = MapOptions::new().cache(&cache).heap().unwrap();
        let mut array = heap.zeroed_slice::<u64>(16 << 30 >> 3).unwrap();
        let value = |at: usize| (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for at in (0..array.len()).step_by(step) {
            array[at] = value(at);
        }
        assert!(cache.stats().pages_evicted > 0, "it did not fit");
        for at in (0..array.len()).step_by(step) {
            assert_eq!(array[at], value(at));
        }
        assert!(cache.stats().pages_resident * cache.page_bytes() <= budget);
        drop(array);
        assert_eq!(heap.mapped_bytes(), 0, "its mapping is gone");
        assert_eq!(cache.stats().pages_resident, 0, "and so are its pages");
    });
}

#[test]
fn a1_collections_under_a_budget_keep_what_is_in_them() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let heap = MapOptions::new().budget(2 * MIB).heap().unwrap();
        thread::scope(|scope| {
            for seed in 1..4 {
                let heap = heap.clone();
                scope.spawn(move || {
                    let mut random = Prng::new(seed);
                    let mut small = std::vec::Vec::new();
                    let mut vectors: Vec<Vec<u64, _>, _> = Vec::new_in(heap.clone());
                    for n in 0..200 {
                        small.push(Box::new_in([n; 100], heap.clone()));
                        let mut vector = Vec::new_in(heap.clone());
                        vector.extend(n..n + random.below(10_000));
                        vectors.push(vector);
                    }
                    for (vector, n) in vectors.iter().zip(0..) {
                        assert!(vector.iter().zip(n..).all(|(a, b)| *a == b));
                    }
                    assert!(small.iter().zip(0..).all(|(block, n)| **block == [n; 100]));
                });
            }
        });
    });
}

#[test]
fn a1_a_heap_in_a_file_is_found_again() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * MIB).unwrap();
        let options = {
            let mut options = MapOptions::new();
            options.budget(MIB);
            options
        };
        let mapping = options.open_shared_mut(file.path()).unwrap();
        let heap = SharedHeap::create(mapping.cells()).unwrap();
        // A list of offsets, the newest first.
        for n in 0..1000 {
            let node = heap.allocate(16 + n).unwrap();
            let words = heap.words(node).unwrap();
            words[0].store(heap.root().load(Ordering::Acquire), Ordering::Relaxed);
            words[1].store(n, Ordering::Relaxed);
            heap.root().store(node, Ordering::Release);
        }
        mapping.sync().unwrap();
        drop(mapping);

        let mapping = options.open_shared_mut(file.path()).unwrap();
        let heap = SharedHeap::open(mapping.cells()).unwrap();
        let mut found = BTreeSet::new();
        let mut node = heap.root().load(Ordering::Acquire);
        while node != 0 {
            let words = heap.words(node).unwrap();
            found.insert(words[1].load(Ordering::Relaxed));
            let next = words[0].load(Ordering::Relaxed);
            assert!(heap.free(node));
            node = next;
        }
        assert!(found.into_iter().eq(0..1000));
    });
}
