//! Pins, prefetch, advice, residency, figures.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use omnimap::store::{Counting, Faulty, MemoryStore, Misbehaviour, Throttle, Throttled};
use omnimap::{Advice, BackingStore, Cache, Error, MapOptions, Mapping};
use omnimap_testkit::{pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn counted(budget: u64) -> (Arc<Counting>, Mapping) {
    let store = Arc::new(Counting::new(Arc::new(pattern_store(8 * MIB))));
    let mapping = MapOptions::new().budget(budget).map_shared(store.clone()).unwrap();
    (store, mapping)
}

fn is_pattern(bytes: &[u8], offset: u64) -> bool {
    (offset..).zip(bytes).all(|(at, b)| *b == pattern(at))
}

#[test]
fn pinned_bytes_stay_whatever_else_is_read() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = counted(MIB);
        // Nothing that nobody asked for is on its way when reads are counted.
        mapping.advise(0..8 * MIB, Advice::Random).unwrap();
        let pinned = mapping.pin(100_000..500_000).unwrap();
        assert!(mapping.iter().enumerate().all(|(at, b)| *b == pattern(at as u64)));
        mapping.advise(0..8 * MIB, Advice::DontNeed).unwrap();
        let reads = store.counts().reads;
        assert_eq!(pinned.len(), 400_000);
        assert!(is_pattern(&pinned, 100_000));
        assert_eq!(store.counts().reads, reads, "without the store");
        drop(pinned);
        mapping.advise(0..8 * MIB, Advice::DontNeed).unwrap();
        assert_eq!(mapping.kernel_resident_bytes().unwrap(), 0, "unpinned, they can go");
    });
}

/// More of them than are pinned, or given back, at a time.
#[test]
fn many_pages_that_are_there_stay_while_they_are_pinned_and_go_afterwards() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (_, mapping) = counted(8 * MIB);
        let many = 4 * MIB - 3 * mapping.page_bytes();
        // What was read may be on its way still, for who brings it: that stays.
        let leaves = |bytes| loop {
            mapping.advise(0..8 * MIB, Advice::DontNeed).unwrap();
            let left = mapping.kernel_resident_bytes().unwrap();
            assert!(left >= bytes, "{left}");
            if left == bytes {
                break;
            }
        };
        assert!(is_pattern(&mapping, 0));
        let pinned = mapping.pin(0..many).unwrap();
        leaves(many);
        drop(pinned);
        leaves(0);
    });
}

/// A store that is best asked for much at a time, and answers 16 requests at a time.
fn wide(inner: impl BackingStore + 'static, latency: Duration) -> Throttled {
    let bytes_per_second_max = (16.0 * MIB as f64 / latency.as_secs_f64()) as u64;
    Throttled::new(Arc::new(inner), Throttle { latency, bytes_per_second_max, in_flight_max: 16 })
}

#[test]
fn a_prefetch_brings_what_the_budget_can_hold_although_not_all_may_be_on_its_way_at_once() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = wide(pattern_store(8 * MIB), Duration::from_millis(50));
        let mapping = MapOptions::new().budget(5 * MIB).map(store).unwrap();
        let wanted = 7 * MIB / 2;
        let came = mapping.prefetch(0..wanted).unwrap().wait().unwrap();
        assert_eq!((came.bytes, came.bytes_left_out), (wanted, 0));
        assert_eq!(mapping.residency(0..wanted).unwrap().resident_bytes(), wanted);
    });
}

#[test]
fn a_prefetch_beside_others_that_hang_brings_what_it_can_and_ends() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = omnimap::machine::page_bytes();
        let cache = Cache::new(256 * page).unwrap();
        let hanging = Arc::new(Faulty::new(Arc::new(wide(pattern_store(8 * MIB), Duration::from_millis(1)))));
        hanging.on_read(0..u64::MAX, Misbehaviour::Hold, u64::MAX);
        let other = MapOptions::new().cache(&cache).map_shared(hanging.clone()).unwrap();
        let mapping = MapOptions::new()
            .cache(&cache)
            .map(wide(pattern_store(8 * MIB), Duration::from_millis(1)))
            .unwrap();
        // Half of the budget may be on its way: three quarters of that are, and then all.
        let first = other.prefetch(0..96 * page).unwrap();
        assert!(hanging.wait_until_held(2, LIMIT));
        let came = mapping.prefetch(0..64 * page).unwrap().wait().unwrap();
        assert_eq!((came.bytes, came.bytes_left_out), (64 * page, 0));
        assert_eq!(mapping.residency(0..64 * page).unwrap().resident_bytes(), 64 * page);
        let second = other.prefetch(128 * page..160 * page).unwrap();
        assert!(hanging.wait_until_held(3, LIMIT));
        let came = mapping.prefetch(64 * page..128 * page).unwrap().wait().unwrap();
        assert_eq!((came.bytes, came.bytes_left_out), (0, 64 * page));
        hanging.heal();
        (0..3).for_each(|_| hanging.release());
        assert_eq!(first.wait().unwrap().bytes + second.wait().unwrap().bytes, 128 * page);
    });
}

#[test]
fn a_prefetch_counts_what_came_and_what_there_was_no_room_for() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = omnimap::machine::page_bytes();
        let cache = Cache::new(256 * page).unwrap();
        let full =
            Arc::new(Faulty::new(Arc::new(MemoryStore::writable("full", vec![0; 236 * page as usize]))));
        full.on_write(0..u64::MAX, Misbehaviour::Fail, u64::MAX);
        let dirty = MapOptions::new().cache(&cache).map_shared_mut(full.clone()).unwrap();
        dirty.write_at(0, &vec![1; 236 * page as usize]).unwrap();
        let mapping = MapOptions::new()
            .cache(&cache)
            .map(wide(pattern_store(8 * MIB), Duration::from_millis(1)))
            .unwrap();
        let came = mapping.prefetch(0..60 * page).unwrap().wait().unwrap();
        assert_eq!((came.bytes, came.bytes_left_out), (20 * page, 40 * page));
        assert_eq!(mapping.residency(0..60 * page).unwrap().resident_bytes(), 20 * page);
        full.heal();
    });
}

#[test]
fn more_than_half_of_the_budget_cannot_be_pinned() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (_, mapping) = counted(MIB);
        let first = mapping.pin(0..MIB / 2).unwrap();
        let error = mapping.pin(MIB..MIB + 1).err().unwrap();
        assert!(matches!(error, Error::PinLimit { limit_bytes, .. } if limit_bytes == MIB / 2), "{error}");
        assert_eq!(mapping[5 * MIB as usize], pattern(5 * MIB), "others go on");
        drop(first);
        mapping.pin(MIB..MIB + 1).unwrap();
    });
}

#[test]
fn a_pin_that_fails_leaves_nothing_pinned() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
        let mapping = MapOptions::new().budget(MIB).map_shared(store.clone()).unwrap();
        store.on_read(MIB / 4..MIB / 4 + 1, Misbehaviour::Fail, u64::MAX);
        for _ in 0..10 {
            assert!(mapping.pin(0..MIB / 2).is_err());
        }
        mapping.advise(0..8 * MIB, Advice::DontNeed).unwrap();
        assert_eq!(mapping.kernel_resident_bytes().unwrap(), 0);
        store.heal();
        assert!(is_pattern(&mapping.pin(0..MIB / 2).unwrap(), 0));
    });
}

#[test]
fn prefetched_bytes_are_there_without_a_fault() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = counted(4 * MIB);
        let ranges: Vec<_> = (0..64).map(|i| i * 100_000..i * 100_000 + 5000).collect();
        let fetched = mapping.prefetch_many(&ranges).unwrap().wait().unwrap();
        assert!(fetched.bytes >= 64 * 5000 && fetched.bytes_left_out == 0, "{fetched:?}");
        let reads = store.counts().reads;
        for range in &ranges {
            assert!(is_pattern(&mapping[range.start as usize..range.end as usize], range.start));
        }
        assert_eq!(store.counts().reads, reads);
        assert_eq!(mapping.stats().faults_filled, 0);
    });
}

/// A file on a disk is asked for several pages at a time.
#[test]
fn scattered_pages_of_a_file_are_prefetched() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let bytes: Vec<u8> = (0..8 * MIB).map(pattern).collect();
        // Not in a temporary directory, which may be memory.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::write(&file, &bytes).unwrap();
        let mapping = MapOptions::new().budget(8 * MIB).open(file.path()).unwrap();
        let page = mapping.page_bytes();
        let pages: Vec<u64> = (0..400).map(|number| number * 1237 % (8 * MIB / page)).collect();
        let ranges: Vec<_> = pages.iter().map(|at| at * page..(at + 1) * page).collect();
        let mut distinct = pages.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let fetched = mapping.prefetch_many(&ranges).unwrap().wait().unwrap();
        assert_eq!((fetched.bytes, fetched.bytes_left_out), (distinct.len() as u64 * page, 0));
        for at in ranges.into_iter().flat_map(|range| [range.start, range.end - 1]) {
            assert_eq!(mapping[at as usize], pattern(at), "byte {at}");
        }
        let stats = mapping.stats();
        assert_eq!(
            stats.bytes_filled, fetched.bytes,
            "nothing else was fetched, and nothing twice: {stats:?}"
        );
    });
}

#[test]
fn a_prefetch_larger_than_the_budget_brings_what_has_room() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (_, mapping) = counted(MIB);
        let fetched = mapping.prefetch(0..8 * MIB).unwrap().wait().unwrap();
        assert!(fetched.bytes > 0 && fetched.bytes <= MIB, "{fetched:?}");
        assert_eq!(fetched.bytes + fetched.bytes_left_out, 8 * MIB);
    });
}

#[test]
fn a_prefetch_of_the_same_bytes_again_and_again_counts_them_once() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = counted(4 * MIB);
        let page = mapping.page_bytes();
        let again: Vec<_> = (0..100).map(|i| i % 7 * page..MIB).collect();
        let fetched = mapping.prefetch_many(&again).unwrap().wait().unwrap();
        assert_eq!((fetched.bytes, fetched.bytes_left_out), (MIB, 0));
        assert_eq!(store.counts().bytes_read, MIB);
    });
}

#[test]
fn a_prefetch_can_be_awaited() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(MIB))));
        let mapping = MapOptions::new().budget(MIB).map_shared(store.clone()).unwrap();
        store.on_read(0..MIB, Misbehaviour::Hold, 1);
        let mut prefetch = pin!(mapping.prefetch(0..10).unwrap());
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(prefetch.as_mut().poll(&mut context).is_pending());
        store.release();
        while !woken.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert!(matches!(prefetch.poll(&mut context), Poll::Ready(Ok(_))));
    });
}

#[test]
fn one_bad_chunk_spoils_no_other_of_a_prefetch() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
        let mapping = MapOptions::new().budget(4 * MIB).map_shared(store.clone()).unwrap();
        let page = mapping.page_bytes();
        store.on_read(7 * page..7 * page + 1, Misbehaviour::Fail, u64::MAX);
        let error = mapping.prefetch(0..MIB).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::Read { offset, .. } if offset == 7 * page), "{error}");
        assert_eq!(mapping.residency(0..MIB).unwrap().resident_bytes(), MIB - page);
    });
}

#[test]
fn urgent_reads_overtake_a_long_prefetch() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
        let mut options = MapOptions::new();
        let mapping = options.budget(4 * MIB).workers_max(1.try_into().unwrap()).map_shared(store).unwrap();
        let scattered: Vec<_> = (0..400).map(|i| i * 20_000..i * 20_000 + 1).collect();
        let prefetch = mapping.prefetch_many(&scattered).unwrap();
        let mut bytes = [0; 10];
        mapping.read_at(7 * MIB, &mut bytes).unwrap();
        assert!(is_pattern(&bytes, 7 * MIB));
        prefetch.wait().unwrap();
    });
}

#[test]
fn l05_residency_says_what_is_in_memory() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (_, mapping) = counted(4 * MIB);
        let page = mapping.page_bytes();
        mapping.advise(0..8 * MIB, Advice::Random).unwrap();
        for index in [0, 5, 6, 100] {
            assert_eq!(mapping[(index * page) as usize + 9], pattern(index * page + 9));
        }
        let residency = mapping.residency(0..8 * MIB).unwrap();
        assert_eq!(residency.resident, [0..page, 5 * page..7 * page, 100 * page..101 * page]);
        assert_eq!((residency.resident_bytes(), residency.bytes), (4 * page, 8 * MIB));
        // Cut to the range that was asked for.
        assert_eq!(mapping.residency(10..20).unwrap().resident.first(), Some(&(10..20)));
        assert!(mapping.residency(8 * MIB..8 * MIB + 1).is_err());
    });
}

#[test]
fn l06_advice_changes_speed_and_not_results() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        for advice in [Advice::Normal, Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::DontNeed]
        {
            let (store, mapping) = counted(MIB);
            mapping.advise(0..8 * MIB, advice).unwrap();
            assert!(is_pattern(&mapping, 0), "{advice:?}");
            let reads = store.counts().reads;
            let pages = 8 * MIB / mapping.page_bytes();
            match advice {
                Advice::Random => assert_eq!(reads, pages, "page by page"),
                _ => assert!(reads < pages / 8, "{advice:?}: {reads} reads"),
            }
        }
        let (_, mapping) = counted(MIB);
        let reversed = std::ops::Range { start: 5, end: 4 };
        assert!(mapping.advise(reversed, Advice::Normal).is_err());
    });
}

#[test]
fn figures_tell_what_happened() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let (store, mapping) = counted(MIB);
        assert!(is_pattern(&mapping, 0));
        mapping.read_at(0, &mut [0; 100]).unwrap();
        let stats = mapping.stats();
        assert_eq!(stats.bytes_filled, store.counts().bytes_read);
        assert!(stats.faults_filled > 0 && stats.pages_evicted > 0 && stats.fills_ahead > 0, "{stats:?}");
        assert!(stats.checked_pages_waited + stats.checked_pages_resident == 1, "{stats:?}");
        assert!(stats.waiting.count() >= stats.faults_filled);
        assert_eq!(stats.pages_resident * mapping.page_bytes(), mapping.kernel_resident_bytes().unwrap());
    });
}

#[test]
fn a_store_of_the_users_own_can_be_mapped() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    struct Squares;
    impl BackingStore for Squares {
        fn name(&self) -> &str {
            "squares"
        }
        fn len(&self) -> u64 {
            8 << 20
        }
        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, omnimap::StoreError> {
            let count = into.len().min(self.len().saturating_sub(offset) as usize);
            for (byte, at) in into[..count].iter_mut().zip(offset..) {
                *byte = ((at / 8).pow(2) >> (at % 8 * 8)) as u8;
            }
            Ok(count)
        }
    }
    within(LIMIT, || {
        let mapping = MapOptions::new().budget(MIB).map(Squares).unwrap();
        for (n, square) in (0u64..).zip(mapping.as_chunks::<8>().0) {
            assert_eq!(u64::from_le_bytes(*square), n * n);
        }
    });
}

#[test]
fn w1_the_windows_calls_have_their_counterparts() {
    let table = std::fs::read_to_string("../../docs/windows.md").unwrap();
    for call in ["CreateFileMapping", "MapViewOfFile", "VirtualAlloc", "VirtualProtect", "VirtualLock"] {
        let row = table.lines().find(|line| line.starts_with('|') && line.contains(call));
        assert!(row.is_some(), "{call}");
    }
}
