//! The budget is hard, as seen from outside the bookkeeping.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use omnimap::store::{MemoryStore, Throttle, Throttled};
use omnimap::{Advice, MapOptions, Mapping};
use omnimap_testkit::{Prng, pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

/// The tests here look at the whole process: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn process_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    pages * omnimap::machine::page_bytes()
}

/// Runs `work` while memory is sampled; the greatest memory of the mapping, and of the process above its beginning.
fn sampled(mapping: &Arc<Mapping>, before: u64, work: impl FnOnce()) -> (u64, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, sampling) = (stop.clone(), mapping.clone());
    let sampler = std::thread::spawn(move || {
        let (mut resident, mut process) = (0, 0);
        while !stopped.load(Ordering::Relaxed) {
            resident = sampling.kernel_resident_bytes().unwrap().max(resident);
            process = process_bytes().max(process);
            std::thread::sleep(Duration::from_micros(200));
        }
        (resident, process)
    });
    work();
    stop.store(true, Ordering::Relaxed);
    let (resident, process) = sampler.join().unwrap();
    (resident, process.saturating_sub(before))
}

fn read_everything(mapping: &Mapping, threads: u64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = Prng::new(thread);
                for _ in 0..300 {
                    let at = random.below(mapping.len() as u64);
                    assert_eq!(mapping[at as usize], pattern(at));
                    let mut copy = vec![0; random.below(100_000).min(mapping.len() as u64 - at) as usize];
                    mapping.read_at(at, &mut copy).unwrap();
                    assert!((at..).zip(&copy).all(|(at, b)| *b == pattern(at)));
                    let end = (at + 200_000).min(mapping.len() as u64);
                    drop(mapping.prefetch(at..end).unwrap());
                }
            });
        }
    });
    assert!((0..).zip(mapping.iter()).all(|(at, b)| *b == pattern(at)));
}

#[test]
fn resident_bytes_never_exceed_the_budget() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    let page = omnimap::machine::page_bytes();
    let store = Arc::new(pattern_store(32 * MIB + 77));
    for (budget, threads) in [(16 * MIB, 2), (4 * MIB, 16), (MIB / 2, 16), (16 * page, 4), (8 * page, 4)] {
        let store = store.clone();
        within(LIMIT, move || {
            let before = process_bytes();
            let mapping = Arc::new(MapOptions::new().budget(budget).map_shared(store).unwrap());
            let (resident, process) = sampled(&mapping, before, || read_everything(&mapping, threads));
            assert!(resident <= budget, "{resident} bytes were resident, {budget} is the budget");
            assert!(resident > budget / 2, "only {resident} of {budget} were used: was it measured?");
            assert!(process <= budget + 48 * MIB, "the process grew by {process}, {budget} is the budget");
        });
    }
}

/// The kernel counts a page that is being made before it forgets one that was just dropped, unless one waits for the
/// other: looked at without a pause.
#[test]
fn the_kernels_count_is_never_above_the_budget_for_a_moment() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let budget = 8 * omnimap::machine::page_bytes();
        let mapping = MapOptions::new().budget(budget).map(pattern_store(16 * budget)).unwrap();
        let running = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut greatest = 0;
                while running.load(Ordering::Relaxed) {
                    greatest = mapping.kernel_resident_bytes().unwrap().max(greatest);
                }
                greatest
            });
            let readers: Vec<_> = (0..4)
                .map(|seed| {
                    let mapping = &mapping;
                    scope.spawn(move || {
                        let mut random = Prng::new(seed);
                        for _ in 0..8000 {
                            let at = random.below(mapping.len() as u64);
                            mapping.read_at(at, &mut [0]).unwrap();
                        }
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            running.store(false, Ordering::Relaxed);
            let greatest = sampler.join().unwrap();
            assert!(greatest <= budget, "{greatest} bytes, {budget} is the budget");
        });
    });
}

#[test]
fn a_slow_parallel_store_keeps_the_budget_and_is_kept_busy() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let counting = Arc::new(omnimap::store::Counting::new(Arc::new(pattern_store(16 * MIB))));
        let throttle =
            Throttle { latency: Duration::from_millis(30), bytes_per_second_max: 1 << 30, in_flight_max: 64 };
        let slow = Throttled::new(counting.clone(), throttle);
        let mapping = Arc::new(MapOptions::new().budget(4 * MIB).map(slow).unwrap());
        let (resident, _) = sampled(&mapping, 0, || {
            let page = mapping.page_bytes();
            let scattered: Vec<_> = (0..512).map(|i| i * 7 * page..i * 7 * page + 1).collect();
            mapping.prefetch_many(&scattered).unwrap().wait().unwrap();
            let reads = counting.counts().reads;
            for range in &scattered {
                assert_eq!(mapping[range.start as usize], pattern(range.start));
            }
            assert_eq!(counting.counts().reads, reads, "all was there");
        });
        assert!(resident <= 4 * MIB);
        assert!(counting.counts().in_flight_greatest <= 64);
    });
}

#[test]
fn a_10_tib_object_costs_what_is_touched() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        if let Err(error) = file.as_file().set_len(10 << 40) {
            omnimap_testkit::skip(&format!("a sparse file of 10 TiB: {error}"));
            return;
        }
        let page = omnimap::machine::page_bytes();
        let before = process_bytes();
        let mapping = MapOptions::new().budget(2000 * page).open(file.path()).unwrap();
        let mut random = Prng::new(1);
        for _ in 0..1000 {
            assert_eq!(mapping[random.below(10 << 40) as usize], 0);
        }
        let resident = mapping.kernel_resident_bytes().unwrap();
        assert!((900 * page..=1100 * page).contains(&resident), "{resident}");
        let beside = process_bytes().saturating_sub(before).saturating_sub(resident);
        assert!(beside < 16 * MIB, "{beside} bytes beside the pages");
        assert_eq!(mapping.residency(0..mapping.len() as u64).unwrap().resident_bytes(), resident);
    });
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_the_least() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    let page = omnimap::machine::page_bytes();
    let error = MapOptions::new().budget(8 * page - 1).map(pattern_store(MIB)).unwrap_err().to_string();
    assert!(error.contains(&(8 * page).to_string()), "{error}");
    MapOptions::new().budget(8 * page).map(pattern_store(MIB)).unwrap();
}

/// Descriptors and views of this process, once the threads of dropped caches are gone; those that are not are counted.
fn left_behind() -> (usize, usize, usize) {
    let mut threads = 0;
    // The kernel may take a moment to forget a thread, and a thread to let go of what it held.
    for _ in 0..500 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        threads = names.filter(|n| n.starts_with("omnimap-")).count();
        if threads == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let views = maps.lines().filter(|l| l.contains("memfd:omnimap:")).count();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), views, threads)
}

#[test]
fn nothing_is_left_behind_after_many_rounds() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(LIMIT, move || {
        // The first opens what stays open (the pagemap).
        drop(MapOptions::new().budget(MIB).map(pattern_store(4 * MIB)).map(|m| m.iter().count()));
        let before = left_behind();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 3 * MIB as usize]).unwrap();
        for i in 0..200 {
            let mapping = MapOptions::new().budget(MIB).open(file.path()).unwrap();
            assert_eq!(mapping[i], 1);
            drop(mapping.prefetch(0..MIB).unwrap());
        }
        drop(file);
        assert_eq!(left_behind(), before);
        assert_eq!((before.1, before.2), (0, 0), "no views and no threads");
    });
}

#[test]
fn what_just_fits_in_the_budget_is_not_evicted() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(LIMIT, || {
        let mapping = MapOptions::new().budget(8 * MIB).map(pattern_store(8 * MIB)).unwrap();
        for _ in 0..2 {
            read_everything(&mapping, 2);
        }
        let stats = mapping.stats();
        assert_eq!((stats.pages_evicted, mapping.kernel_resident_bytes().unwrap()), (0, 8 * MIB));
    });
}

/// So that the next fills need not evict first: whoever has no room evicts 64 pages at the most, and takes one of them.
#[test]
fn a_budget_that_did_not_suffice_has_a_reserve() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let _alone = alone();
    within(Duration::from_secs(60), || {
        let (budget, page) = (256 * MIB, omnimap::machine::page_bytes());
        let store = MemoryStore::new("ones", vec![1; (budget + MIB) as usize]);
        let mapping = MapOptions::new().budget(budget).advice(Advice::Random).map(store).unwrap();
        assert!(mapping.iter().step_by(page as usize).all(|byte| *byte == 1));
        while mapping.kernel_resident_bytes().unwrap() > budget - 64 * page {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}
