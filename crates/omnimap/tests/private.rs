//! Memory that is nobody else's: private copies, and anonymous memory larger than its budget.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use omnimap::store::{Counting, MemoryStore, PackOptions, SwapOptions, SwapStore, pack};
use omnimap::{BackingStore, Error, MapOptions};
use omnimap_testkit::{Prng, pattern, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(120);

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

fn tight() -> SwapOptions {
    SwapOptions { compressed_bytes_max: 64 << 10, ..SwapOptions::default() }
}

#[test]
fn m03_a_private_write_is_not_visible_to_others_and_never_reaches_the_store() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let length = 300 * page() + 33;
        let bytes: Vec<u8> = (0..length).map(pattern).collect();
        let base = Arc::new(Counting::new(Arc::new(MemoryStore::writable("base", bytes.clone()))));
        let mut options = MapOptions::new();
        options.budget(32 * page()).swap(tight());
        let mut one = options.map_private(base.clone()).unwrap();
        let mut two = options.map_private(base.clone()).unwrap();
        let (mut model_one, mut model_two) = (bytes.clone(), bytes.clone());
        let mut random = Prng::new(11);
        for _ in 0..3000 {
            let at = random.below(length) as usize;
            assert_eq!((one[at], two[at]), (model_one[at], model_two[at]));
            one[at] = random.next_u64() as u8;
            model_one[at] = one[at];
            let at = random.below(length) as usize;
            two[at] = random.next_u64() as u8;
            model_two[at] = two[at];
        }
        one.sync().unwrap();
        assert!(*one == *model_one && *two == *model_two);
        drop((one, two));
        assert_eq!((base.counts().writes, base.counts().syncs), (0, 0), "the store was left alone");
    });
}

#[test]
fn m03_a_packed_file_can_be_changed_privately() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("packed.zst");
    let length = 200 * page();
    let plain: Vec<u8> = (0..length).map(pattern).collect();
    let mut file = std::fs::File::create(&path).unwrap();
    pack(&mut &plain[..], &mut file, &PackOptions::default(), |_| ()).unwrap();
    let before = std::fs::read(&path).unwrap();
    within(LIMIT, move || {
        assert!(matches!(MapOptions::new().open_mut(&path), Err(Error::NotAllowed { .. })));
        let mut mapping = MapOptions::new().budget(16 * page()).open_private(&path).unwrap();
        for i in 0..200 {
            mapping[(i * page() + 7) as usize] = 1;
        }
        for at in (0..length).step_by(97) {
            let expected = if at % page() == 7 { 1 } else { plain[at as usize] };
            assert_eq!(mapping[at as usize], expected, "at {at}");
        }
        drop(mapping);
        assert!(std::fs::read(&path).unwrap() == before);
    });
}

#[test]
fn m05_anonymous_memory_is_zeros_and_larger_than_its_budget() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let words = 4 << 20 >> 3;
        let budget = 64 * page();
        let shared = MapOptions::new().budget(budget).swap(tight()).anonymous_shared(words * 8).unwrap();
        assert_eq!(shared.read::<u64>(words * 4).unwrap(), 0);
        let value = |i: u64| {
            i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (if (i / 4096).is_multiple_of(2) { 0 } else { 48 })
        };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let shared = &shared;
                scope.spawn(move || {
                    for i in (thread..words).step_by(4) {
                        shared.atomic_u64(i * 8).unwrap().store(value(i), Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(shared.kernel_resident_bytes().unwrap() <= budget);
        for i in 0..words {
            assert_eq!(shared.atomic_u64(i * 8).unwrap().load(Ordering::Relaxed), value(i), "word {i}");
        }
    });
}

#[test]
fn m05_an_array_larger_than_its_budget_can_be_sorted() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let length = 512 * page();
        let mut array = MapOptions::new().budget(64 * page()).swap(tight()).anonymous(length).unwrap();
        let mut random = Prng::new(2);
        array.iter_mut().for_each(|byte| *byte = random.next_u64() as u8);
        let mut counts = [0u64; 256];
        array.iter().for_each(|byte| counts[*byte as usize] += 1);
        array.sort_unstable();
        assert!(array.is_sorted());
        array.iter().for_each(|byte| counts[*byte as usize] -= 1);
        assert_eq!(counts, [0; 256]);
    });
}

#[test]
fn m15_a_swap_that_is_full_is_told_and_loses_nothing() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let swap = SwapOptions {
            compressed_bytes_max: 0,
            file_bytes_max: Some(64 * page()),
            ..SwapOptions::default()
        };
        let mut options = MapOptions::new();
        options.budget(32 * page()).swap(swap).fill_time_max(Duration::from_secs(3));
        let shared = options.anonymous_shared(512 * page()).unwrap();
        let mut random = Prng::new(4);
        let mut pages = Vec::new();
        let error = loop {
            let bytes: Vec<u8> = (0..page()).map(|_| random.next_u64() as u8).collect();
            match shared.write_at(pages.len() as u64 * page(), &bytes) {
                Ok(()) => pages.push(bytes),
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), 12, "{error}");
        assert!(error.to_string().contains("cannot be written"), "{error}");
        assert!((64..=96).contains(&pages.len()), "{} pages", pages.len());
        for (i, expected) in pages.iter().enumerate().rev().take(8) {
            let mut bytes = vec![0; page() as usize];
            shared.read_at(i as u64 * page(), &mut bytes).unwrap();
            assert!(bytes == *expected, "page {i}");
        }
    });
}

#[test]
fn a_snapshot_of_anonymous_memory_keeps_more_than_memory_holds() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let length = 2000 * page();
        let mut array = MapOptions::new().budget(64 * page()).anonymous(length).unwrap();
        for i in 0..2000 {
            array[(i * page()) as usize..][..8].copy_from_slice(&i.to_ne_bytes());
        }
        let snapshot = array.snapshot().unwrap();
        array.fill(0xff);
        for i in 0..2000u64 {
            assert_eq!(snapshot[(i * page()) as usize..][..8], i.to_ne_bytes(), "page {i}");
        }
        assert!(array.iter().all(|byte| *byte == 0xff));
    });
}

#[test]
fn y04_what_goes_with_its_store_is_not_written_when_its_mapping_goes() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let written = |store: Arc<dyn BackingStore>| {
            let counting = Arc::new(Counting::new(store));
            let mut mapping = MapOptions::new().map_mut(counting.clone()).unwrap();
            mapping.fill(7);
            drop(mapping);
            counting.counts().bytes_written
        };
        let length = 100 * page();
        assert_eq!(written(Arc::new(SwapStore::new("swap", length, tight()).unwrap())), 0);
        assert_eq!(written(Arc::new(MemoryStore::writable("base", vec![0; length as usize]))), length);
    });
}
