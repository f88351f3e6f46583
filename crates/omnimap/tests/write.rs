//! Stores through mappings: they are seen, they reach the store, none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use omnimap::store::{Counting, Decorator, FileStore, MemoryStore};
use omnimap::{Advice, BackingStore, Cache, Error, MapOptions, MappingMut, SyncMode};
use omnimap_testkit::{Prng, in_child, pattern, pattern_store, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(120);

fn bytes_of(store: &dyn BackingStore) -> Vec<u8> {
    let mut bytes = vec![0; store.len() as usize];
    store.read_at(0, &mut bytes).unwrap();
    bytes
}

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

#[test]
fn x2_patch_a_byte_of_a_file() {
    if skip_without_mappings() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"abc").unwrap();
    let path = file.path().to_owned();
    within(LIMIT, move || {
        let mut mapping = MappingMut::open(&path).unwrap();
        mapping[1] = b'd';
        drop(mapping);
        assert_eq!(std::fs::read(&path).unwrap(), b"adc");
    });
}

/// What is copied may be a mapping too, of the same cache: nothing is held while its pages come.
#[test]
fn checked_copies_go_from_mapping_to_mapping_whatever_the_budget() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        for budget_pages in [8, 16, 256] {
            let (length, piece) = (1024 * page(), 64 * page());
            let cache = Cache::new(budget_pages * page()).unwrap();
            let mut options = MapOptions::new();
            options.cache(&cache);
            let from = options.map(pattern_store(length)).unwrap();
            let to = options.map_shared_mut(MemoryStore::writable("to", vec![0; length as usize])).unwrap();
            let mut private = options.map_private(pattern_store(length)).unwrap();
            for at in (0..length).step_by(piece as usize) {
                // Clean pages of what is written to, which are to go.
                to.read_at(0, &mut vec![0; piece as usize]).unwrap();
                to.write_at(at, &from[at as usize..(at + piece) as usize]).unwrap();
                let behind = (length - at - piece) as usize;
                from.read_at(at, &mut private[behind..behind + piece as usize]).unwrap();
            }
            let mut bytes = vec![0; length as usize];
            to.read_at(0, &mut bytes).unwrap();
            assert!((0..).zip(&bytes).all(|(at, byte)| *byte == pattern(at)));
            for at in (0..length).step_by(1000) {
                let copied = length - piece - at / piece * piece + at % piece;
                assert_eq!(private[copied as usize], pattern(at));
            }
        }
    });
}

/// A slice larger than the budget, sorted in place: every store survives eviction, and reaches the store.
#[test]
fn m02_stores_survive_eviction_and_reach_the_store() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let pages = 1024;
        let store = Arc::new(MemoryStore::writable("numbers", (0..pages * page()).map(pattern).collect()));
        let mut expected = bytes_of(&*store);
        let budget = 64 * page();
        let mut mapping = MapOptions::new().budget(budget).map_mut(store.clone()).unwrap();
        let mut random = Prng::new(1);
        for _ in 0..20_000 {
            let at = random.below(pages * page()) as usize;
            let byte = random.next_u64() as u8;
            assert_eq!(mapping[at], expected[at], "at {at}");
            mapping[at] = byte;
            expected[at] = byte;
            assert!(mapping.kernel_resident_bytes().unwrap() <= budget);
        }
        assert!(*mapping == *expected, "through the mapping");
        mapping.sync().unwrap();
        assert_eq!(mapping.dirty_bytes(), 0);
        assert!(bytes_of(&*store) == expected, "in the store");
    });
}

/// Many threads, an object of 8 budgets, eviction and write-back all the time.
#[test]
fn m02_no_increment_is_lost_under_eviction() {
    if skip_without_mappings() {
        return;
    }
    let increments = if std::env::var_os("OMNIMAP_LONG").is_some() { 100_000_000 } else { 400_000 };
    increments_are_all_there(increments, Duration::from_secs(3600));
}

fn increments_are_all_there(increments: u64, limit: Duration) {
    const THREADS: u64 = 4;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("counters");
    let budget = 64 * page();
    let length = 8 * budget;
    std::fs::File::create(&path).unwrap().set_len(length).unwrap();
    within(limit, move || {
        let shared = MapOptions::new().budget(budget).open_shared_mut(&path).unwrap();
        let counters = length / 8;
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let shared = &shared;
                scope.spawn(move || {
                    let mut random = Prng::new(thread + 7);
                    let mut left = increments / THREADS;
                    while left > 0 {
                        // A few on one page, so that most are not faults.
                        let first = random.below(counters - 64);
                        for i in 0..left.min(1 + random.below(64)) {
                            let at = (first + i % 64) * 8;
                            shared.atomic_u64(at).unwrap().fetch_add(1, Ordering::Relaxed);
                            left -= 1;
                        }
                    }
                });
            }
            let shared = &shared;
            scope.spawn(move || {
                for _ in 0..20 {
                    shared.sync().unwrap();
                    shared.advise(0..length, Advice::DontNeed).unwrap();
                    assert!(shared.kernel_resident_bytes().unwrap() <= budget);
                }
            });
        });
        let sum = |shared: &omnimap::SharedMapping| -> u64 {
            (0..counters).map(|i| shared.read::<u64>(i * 8).unwrap()).sum()
        };
        let wanted = increments / THREADS * THREADS;
        assert_eq!(sum(&shared), wanted, "through the mapping");
        shared.sync().unwrap();
        drop(shared);
        let reopened = MapOptions::new().budget(budget).open_shared_mut(&path).unwrap();
        assert_eq!(sum(&reopened), wanted, "in the file");
    });
}

#[test]
fn y01_sync_writes_what_is_dirty_and_nothing_else() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let inner = Arc::new(MemoryStore::writable("counted", vec![0; (256 * page()) as usize]));
        let store = Arc::new(Counting::new(inner));
        let mut mapping = MapOptions::new().map_mut(store.clone()).unwrap();
        let sum: u64 = mapping.iter().map(|b| u64::from(*b)).sum();
        assert_eq!(sum, 0);
        mapping.sync().unwrap();
        assert_eq!((store.counts().writes, store.counts().syncs), (0, 0), "nothing was stored to");
        mapping[(17 * page()) as usize] = 1;
        mapping[(100 * page()) as usize] = 2;
        mapping[(101 * page()) as usize] = 3;
        mapping.sync().unwrap();
        let counts = store.counts();
        assert_eq!((counts.bytes_written, counts.writes, counts.syncs), (3 * page(), 2, 1));
        mapping.sync().unwrap();
        assert_eq!(store.counts(), counts, "again nothing");
        mapping[(17 * page()) as usize] = 1;
        drop(mapping);
        assert_eq!(store.counts().bytes_written, 4 * page(), "at drop");
    });
}

#[test]
fn y02_start_sync_does_not_wait_and_writes() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(MemoryStore::writable("started", vec![0; (64 * page()) as usize]));
        let mut mapping = MapOptions::new().map_mut(store.clone()).unwrap();
        mapping[5] = 5;
        let length = mapping.len() as u64;
        mapping.sync_range(0..length, SyncMode::Start).unwrap();
        while bytes_of(&*store)[5] != 5 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn m20_bytes_behind_the_end_never_reach_the_object() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("odd");
    std::fs::write(&path, vec![7; page() as usize + 100]).unwrap();
    within(LIMIT, move || {
        let mut mapping = MapOptions::new().open_mut(&path).unwrap();
        let length = mapping.len();
        mapping[length - 1] = 9;
        mapping.sync().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length as u64);
        assert!(matches!(mapping.write_at(length as u64 - 1, &[1, 2]), Err(Error::OutOfRange { .. })));
        drop(mapping);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), bytes[length - 1], bytes[0]), (length, 9, 7));
    });
}

#[test]
fn checked_writes_and_raw_reads_agree() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let length = 300 * page() + 17;
        let store = Arc::new(MemoryStore::writable("checked", (0..length).map(pattern).collect()));
        let mut expected = bytes_of(&*store);
        let mut mapping = MapOptions::new().budget(32 * page()).map_mut(store.clone()).unwrap();
        let mut random = Prng::new(3);
        for _ in 0..2000 {
            let at = random.below(length);
            let count = random.below(5 * page()).min(length - at) as usize;
            let bytes: Vec<u8> = (0..count).map(|_| random.next_u64() as u8).collect();
            mapping.write_at(at, &bytes).unwrap();
            expected[at as usize..at as usize + count].copy_from_slice(&bytes);
            let look = random.below(length) as usize;
            assert_eq!(mapping[look], expected[look]);
        }
        mapping.sync().unwrap();
        assert!(bytes_of(&*store) == expected);
    });
}

#[test]
fn the_background_writes_what_is_too_much_or_too_old() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store =
            Arc::new(Counting::new(Arc::new(MemoryStore::writable("b", vec![0; (256 * page()) as usize]))));
        let mut mapping = MapOptions::new().dirty_max(16 * page()).map_mut(store.clone()).unwrap();
        for i in 0..64 {
            mapping[(i * page()) as usize] = 1;
        }
        while store.counts().bytes_written < 32 * page() {
            std::thread::yield_now();
        }
        drop(mapping);
        let store =
            Arc::new(Counting::new(Arc::new(MemoryStore::writable("b", vec![0; (256 * page()) as usize]))));
        let mut mapping =
            MapOptions::new().dirty_time_max(Duration::from_millis(20)).map_mut(store.clone()).unwrap();
        mapping[0] = 1;
        while store.counts().bytes_written < page() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_read_only_store_is_refused_before_anything_is_stored() {
    if skip_without_mappings() {
        return;
    }
    let refused = MapOptions::new().map_mut(MemoryStore::new("fixed", vec![1; 100]));
    assert!(matches!(refused, Err(Error::NotAllowed { .. })), "{refused:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [1; 10]).unwrap();
    assert!(MapOptions::new().map_mut(FileStore::open(file.path()).unwrap()).is_err());
}

#[test]
fn readers_and_writers_of_shared_cells_meet() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(MemoryStore::writable("cells", vec![0; (512 * page()) as usize]));
        let shared = MapOptions::new().budget(32 * page()).map_shared_mut(store.clone()).unwrap();
        let total = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (shared, total) = (&shared, &total);
                scope.spawn(move || {
                    let mut random = Prng::new(thread);
                    for _ in 0..2000 {
                        let at = random.below(512 * page() / 4) * 4;
                        shared.atomic_u32(at).unwrap().fetch_add(1, Ordering::SeqCst);
                        total.fetch_add(1, Ordering::SeqCst);
                        if random.below(8) == 0 {
                            let at = random.below(511 * page());
                            shared.read_at(at, &mut [0; 100]).unwrap();
                        }
                    }
                });
            }
        });
        shared.sync().unwrap();
        let bytes = bytes_of(&*store);
        let words: u64 = bytes.as_chunks::<4>().0.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum();
        assert_eq!(words, total.into_inner());
        assert!(shared.atomic_u32(2).is_none() && shared.atomic_u64(512 * page()).is_none());
    });
}

#[test]
fn y03_what_others_wrote_is_not_written_over_unless_one_says_so() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("both");
    std::fs::write(&path, vec![1; 4 * page() as usize]).unwrap();
    within(LIMIT, move || {
        let shared = MapOptions::new().open_shared_mut(&path).unwrap();
        assert_eq!(shared.read::<u8>(2 * page()).unwrap(), 1);
        shared.write(0, &7u8).unwrap();
        let mut theirs = vec![1; 4 * page() as usize];
        theirs[0] = 9;
        theirs[2 * page() as usize] = 9;
        std::fs::write(&path, &theirs).unwrap();
        let refused = shared.sync().unwrap_err();
        assert!(refused.to_string().contains("changed"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap()[0], 9, "theirs is there still");
        shared.invalidate(0..shared.len()).unwrap();
        assert_eq!(shared.read::<u8>(2 * page()).unwrap(), 9, "what they wrote is seen");
        shared.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[0], 7, "and ours is written, as was said");
    });
}

#[test]
fn e4_a_version_is_not_given_up_while_a_snapshot_of_it_is_in_use() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(MemoryStore::writable("version", vec![1; 4 * page() as usize]));
        let mapping = MapOptions::new().map_shared_mut(store).unwrap();
        let snapshot = mapping.snapshot().unwrap();
        assert!(matches!(mapping.invalidate(0..mapping.len()), Err(Error::NotAllowed { .. })));
        assert!(snapshot.iter().all(|byte| *byte == 1));
        drop(snapshot);
        // What was read ahead of it may be on its way for a moment.
        while let Err(error) = mapping.invalidate(0..mapping.len()) {
            assert!(matches!(error, Error::NotAllowed { .. }), "{error}");
            std::thread::yield_now();
        }
    });
}

#[test]
fn m02_what_was_written_by_calls_alone_reaches_the_store() {
    if skip_without_mappings() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"abc").unwrap();
    let path = file.path().to_owned();
    within(LIMIT, move || {
        let object = MapOptions::new().open_object_mut(&path).unwrap();
        object.write_at(1, b"d").unwrap();
        drop(object);
        assert_eq!(std::fs::read(&path).unwrap(), b"adc");
    });
}

/// Threads of this process that write for the engine, or have.
fn writers() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "omnimap-write").count()
}

/// In a process of its own, whose threads are counted.
#[test]
fn nothing_is_begun_in_the_background_for_pages_that_only_a_sync_may_write() {
    const NAME: &str = "nothing_is_begun_in_the_background_for_pages_that_only_a_sync_may_write";
    if skip_without_mappings() {
        return;
    }
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), vec![0; 256 * page() as usize]).unwrap();
    let mut mapping = MapOptions::new().budget(256 * page()).atomic(true).open_mut(file.path()).unwrap();
    // 62 percent of the budget; half of it may be dirty.
    for number in 0..160 {
        mapping.write_at(number * page(), &vec![1; page() as usize]).unwrap();
    }
    for number in 0..160 {
        mapping[(number * page()) as usize] = 2;
        mapping.write_at(number * page() + 1, &[3]).unwrap();
    }
    assert_eq!(writers(), 0, "there is nothing to do for them");
    mapping.sync().unwrap();
    assert!(writers() > 0, "and now there was");
}

/// Takes any length.
struct Endless(MemoryStore, AtomicU64);

impl Decorator for Endless {
    fn inner(&self) -> &dyn BackingStore {
        &self.0
    }

    fn set_len(&self, length: u64) -> omnimap::store::Result<()> {
        self.1.store(length, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn what_there_are_no_addresses_for_does_not_grow() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store =
            Arc::new(Endless(MemoryStore::writable("sevens", vec![7; 10_000]), AtomicU64::new(10_000)));
        let mut mapping = MapOptions::new().map_mut(store.clone()).unwrap();
        mapping[9_999] = 8;
        let error = mapping.resize(1 << 60).unwrap_err();
        assert!(matches!(error, Error::Host { .. }), "{error}");
        assert_eq!((store.1.load(Ordering::SeqCst), mapping.len()), (10_000, 10_000));
        assert_eq!((mapping[0], mapping[9_999]), (7, 8));
    });
}

#[test]
fn a_reserve_shows_no_more_than_was_asked_for() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = || MemoryStore::writable("sevens", vec![7; 8 * page() as usize]);
        for reserve in [0, 4 * page(), 16 * page()] {
            let mapping = MapOptions::new().length(page()).reserve(reserve).map_mut(store()).unwrap();
            assert_eq!(mapping.len() as u64, page(), "{reserve}");
            let end = MapOptions::new()
                .offset(7 * page())
                .length(page())
                .reserve(reserve)
                .map_mut(store())
                .unwrap();
            assert_eq!(end.len() as u64, page(), "{reserve}");
        }
    });
}
