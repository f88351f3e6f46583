//! Reading through the slice and the checked calls.

use std::time::Duration;

use omnimap::{Cache, Error, MapOptions, Mapping};
use omnimap_testkit::{Prng, pattern, pattern_store, within};
use sha2::{Digest, Sha256};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn check(bytes: &[u8], offset: u64) {
    for (at, byte) in (offset..).zip(bytes) {
        assert_eq!(*byte, pattern(at), "at {at}");
    }
}

#[test]
fn m01_a_slice_shows_the_objects_bytes() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let mapping = MapOptions::new().budget(MIB).map(pattern_store(8 * MIB + 100)).unwrap();
        assert_eq!(mapping.len() as u64, 8 * MIB + 100);
        check(&mapping, 0);
        assert!(mapping.kernel_resident_bytes().unwrap() <= MIB);
    });
}

#[test]
fn m01_offset_and_length_are_bytes() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = omnimap::machine::page_bytes();
        for (offset, length) in
            [(0, 1), (1, 1), (page - 1, 2), (page, page), (3 * page + 17, 5 * page), (MIB - 1, 1), (MIB, 0)]
        {
            let mapping =
                MapOptions::new().budget(MIB).offset(offset).length(length).map(pattern_store(MIB)).unwrap();
            assert_eq!(mapping.len() as u64, length, "{offset}+{length}");
            check(&mapping, offset);
            let mut copy = vec![0; length as usize];
            mapping.read_at(0, &mut copy).unwrap();
            check(&copy, offset);
        }
    });
}

#[test]
fn m08_a_range_outside_the_object_is_refused() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    for (offset, length) in
        [(MIB + 1, 0), (MIB, 1), (0, MIB + 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)]
    {
        let refused = MapOptions::new().offset(offset).length(length).map(pattern_store(MIB));
        assert!(matches!(refused, Err(Error::OutOfRange { .. })), "{offset}+{length}: {refused:?}");
    }
}

#[test]
fn m20_the_last_partial_page_ends_in_zeros() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let page = omnimap::machine::page_bytes();
        let mapping = MapOptions::new().map(pattern_store(page + 10)).unwrap();
        check(&mapping, 0);
        // What lies behind the slice is in the page too; only a raw pointer reaches it.
        let beyond = mapping.as_ptr().wrapping_add(mapping.len());
        for i in 0..(page - 10) as usize {
            let byte = beyond.wrapping_add(i);
            // SAFETY: inside the last page, which is mapped and was just read.
            assert_eq!(unsafe { byte.read_volatile() }, 0);
        }
    });
}

#[test]
fn an_empty_object_is_an_empty_slice() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let mapping = MapOptions::new().map(pattern_store(0)).unwrap();
    assert!(mapping.is_empty());
    mapping.read_at(0, &mut []).unwrap();
    assert!(mapping.pin(0..0).unwrap().is_empty());
    mapping.prefetch(0..0).unwrap().wait().unwrap();
    assert_eq!(mapping.residency(0..0).unwrap().resident_bytes(), 0);
    assert!(matches!(mapping.read_at(0, &mut [0]), Err(Error::OutOfRange { .. })));
}

#[test]
fn m19_the_file_may_be_unlinked_and_renamed() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&path, (0..4 * MIB).map(pattern).collect::<Vec<_>>()).unwrap();
        let mapping = MapOptions::new().budget(MIB).open(&path).unwrap();
        check(&mapping[..MIB as usize], 0);
        std::fs::rename(&path, &other).unwrap();
        check(&mapping[MIB as usize..2 * MIB as usize], MIB);
        std::fs::remove_file(&other).unwrap();
        check(&mapping, 0);
    });
}

/// Sequential from several threads, and random, with SHA-256 over all, for all budgets that the issue names.
#[test]
fn every_byte_is_right_for_every_budget_and_number_of_threads() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    const BYTES: u64 = 4 * MIB + 1234;
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    let packed = directory.path().join("packed");
    let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
    std::fs::write(&plain, &bytes).unwrap();
    let options = omnimap::store::PackOptions::default();
    omnimap::store::pack(&bytes[..], std::fs::File::create(&packed).unwrap(), &options, |_| {}).unwrap();
    let expected = Sha256::digest(&bytes);
    let page = omnimap::machine::page_bytes();
    for path in [&plain, &packed] {
        for budget in [BYTES / 2, BYTES / 8, BYTES / 64, 16 * page] {
            for threads in [1, 2, 16] {
                let mapping = MapOptions::new().budget(budget).open(path).unwrap();
                within(LIMIT, move || {
                    read_all(&mapping, threads);
                    assert_eq!(Sha256::digest(&*mapping), expected);
                    assert!(mapping.kernel_resident_bytes().unwrap() <= budget);
                });
            }
        }
    }
}

fn read_all(mapping: &Mapping, threads: u64) {
    let length = mapping.len() as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = Prng::new(thread);
                for _ in 0..200 {
                    let at = random.below(length);
                    assert_eq!(mapping[at as usize], pattern(at), "raw, at {at}");
                    let mut copy = vec![0; random.below(10_000).min(length - at) as usize];
                    mapping.read_at(at, &mut copy).unwrap();
                    check(&copy, at);
                }
            });
        }
    });
}

#[test]
fn mappings_share_the_budget_of_a_cache() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let cache = Cache::new(MIB).unwrap();
        let mappings: Vec<Mapping> =
            (0..5).map(|_| MapOptions::new().cache(&cache).map(pattern_store(2 * MIB)).unwrap()).collect();
        for mapping in &mappings {
            check(mapping, 0);
            let resident: u64 = mappings.iter().map(|m| m.kernel_resident_bytes().unwrap()).sum();
            assert!(resident <= MIB, "{resident}");
        }
        drop(mappings);
        // A thread that was reading ahead may hold an object for a moment; that it lets go is what `within` is for.
        while cache.stats().pages_resident > 0 {
            std::thread::yield_now();
        }
    });
}
