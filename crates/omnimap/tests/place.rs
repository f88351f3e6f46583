//! Where mappings are, and what is kept in memory of them.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use omnimap::posix;
use omnimap::store::{Counting, Faulty, MemoryStore, Misbehaviour};
use omnimap::{Advice, Cache, Error, MapOptions, Mapping, Reservation};
use omnimap_testkit::{in_child, pattern, pattern_store, skip, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

/// What the kernel has at an address: the permissions, as proc_pid_maps(5) has them.
fn access_at(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&address).then(|| words.next().map(str::to_owned))?
    })
}

fn is_pattern(mapping: &Mapping) -> bool {
    mapping.iter().zip(0..).all(|(byte, at)| *byte == pattern(at))
}

/// Views at given addresses need messages of faults, and the kernel locks no guard pages: other fault modes refuse both.
fn skip_in_other_modes() -> bool {
    let forced = std::env::var("OMNIMAP_FAULT_MODE").is_ok_and(|mode| mode != "worker");
    if forced {
        skip("placing and locking are for the fault mode worker");
    }
    forced
}

#[test]
fn m07_mappings_are_where_they_were_asked_to_be_in_a_reservation() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let reservation = Reservation::new(16 * MIB).unwrap();
        let base = reservation.address();
        assert_eq!(access_at(base).as_deref(), Some("---p"));
        let mut options = MapOptions::new();
        options.budget(MIB);
        let read = options.within(&reservation, 0).map(pattern_store(4 * MIB)).unwrap();
        let store = MemoryStore::writable("store", vec![0; 4 * MIB as usize]);
        let mut written = options.within(&reservation, 4 * MIB).map_mut(store).unwrap();
        let cells = options.within(&reservation, 8 * MIB).anonymous_shared(MIB).unwrap();
        let mut kernel = options.within(&reservation, 10 * MIB).kernel_anonymous(MIB).unwrap();
        written.fill(7);
        kernel.fill(9);
        cells.cells()[5].store(3, Ordering::Relaxed);
        let starts = [
            read.as_ptr().addr(),
            written.as_ptr().addr(),
            cells.cells().as_ptr().addr(),
            kernel.as_ptr().addr(),
        ];
        assert_eq!(starts, [0, 4, 8, 10].map(|mib: usize| base + (mib << 20)));
        assert!(is_pattern(&read) && written.iter().all(|b| *b == 7) && kernel.iter().all(|b| *b == 9));
        assert_eq!(cells.cells()[5].load(Ordering::Relaxed), 3);

        for (at, bytes) in [(0, MIB), (3 * MIB, MIB), (4 * MIB - page(), page() + 1), (10 * MIB, page())] {
            let error = options.within(&reservation, at).anonymous(bytes).expect_err("taken");
            assert!(matches!(error, Error::Host { .. }) && error.errno() == libc::EEXIST, "{error}");
            assert_eq!(options.kernel_anonymous(bytes).unwrap_err().errno(), libc::EEXIST);
        }
        for (at, bytes) in [(1, 10), (16 * MIB, 1), (16 * MIB - page(), page() + 1), (u64::MAX - 5, 10)] {
            assert_eq!(options.within(&reservation, at).anonymous(bytes).unwrap_err().errno(), libc::EINVAL);
        }
        let shifted = options.within(&reservation, 12 * MIB).offset(100).map(pattern_store(MIB)).unwrap();
        assert_eq!(shifted.as_ptr().addr(), base + (12 << 20) + 100);
        assert_eq!(shifted[0], pattern(100));
    });
}

#[test]
fn m07_addresses_go_back_to_their_reservation() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let reservation = Reservation::new(4 * MIB).unwrap();
        let base = reservation.address();
        let cache = Cache::new(MIB).unwrap();
        for round in 0..20 {
            let mut options = MapOptions::new();
            options.cache(&cache);
            let first = options.within(&reservation, 0).map(pattern_store(2 * MIB)).unwrap();
            let second = options.within(&reservation, 2 * MIB).kernel_anonymous(2 * MIB).unwrap();
            assert!(is_pattern(&first));
            drop(first);
            assert_eq!(access_at(base).as_deref(), Some("---p"), "round {round}: nobody's, and not a hole");
            drop(second);
            assert_eq!(access_at(base + (2 << 20)).as_deref(), Some("---p"));
        }

        // It stays while a mapping within does.
        let mapping = MapOptions::new().within(&reservation, MIB).map(pattern_store(MIB)).unwrap();
        drop(reservation);
        assert_eq!(access_at(base).as_deref(), Some("---p"));
        assert!(is_pattern(&mapping));
        let alone = mapping.as_ptr().addr();
        drop(mapping);
        assert_eq!(access_at(alone), None, "then it goes");
    });
}

#[test]
fn m07_a_mapping_that_is_refused_leaves_its_reservation_whole() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let reservation = Reservation::new(MIB).unwrap();
        let mut options = MapOptions::new();
        options.within(&reservation, 0);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 100]).unwrap();
        // The kernel cannot map from the middle of a page.
        assert!(options.clone().offset(1).length(10).kernel_open(file.path()).is_err());
        assert_eq!(access_at(reservation.address()).as_deref(), Some("---p"));
        assert!(options.clone().offset(1).length(10).map(pattern_store(5)).is_err());
        assert_eq!(access_at(reservation.address()).as_deref(), Some("---p"));
        let other = options.within(&reservation, 4 * page()).kernel_open(file.path()).unwrap();
        assert_eq!(other.as_ptr().addr() as u64, reservation.address() as u64 + 4 * page());
    });
}

#[test]
fn m07_a_mapping_that_grows_out_of_its_reservation_moves() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let reservation = Reservation::new(MIB).unwrap();
        let store = MemoryStore::writable("store", vec![7; page() as usize]);
        let mut mapping = MapOptions::new().within(&reservation, 0).map_mut(store).unwrap();
        assert_eq!(mapping.as_ptr().addr(), reservation.address());
        mapping.resize(2 * MIB).unwrap();
        assert_eq!(mapping[page() as usize - 1], 7);
        assert_eq!(access_at(reservation.address()).as_deref(), Some("---p"));
        MapOptions::new().within(&reservation, 0).anonymous(MIB).unwrap();
    });
}

#[test]
fn m10_addresses_below_2_gib() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let mut options = MapOptions::new();
        options.below_2gib(true).budget(MIB);
        let paged = options.map(pattern_store(MIB)).unwrap();
        let kernel = options.kernel_anonymous(MIB).unwrap();
        assert!(is_pattern(&paged));
        for end in [paged.as_ptr_range().end, kernel.as_ptr_range().end] {
            assert!(end.addr() <= 2 << 30, "{end:?}");
        }
        assert!(MapOptions::new().anonymous(MIB).unwrap().as_ptr().addr() > 4 << 30, "nothing else is");
    });
}

#[test]
fn m14_populate_brings_all_that_the_budget_allows() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let mapping = MapOptions::new().populate(true).budget(8 * MIB).map(pattern_store(2 * MIB)).unwrap();
        assert_eq!(mapping.residency(0..2 * MIB).unwrap().resident_bytes(), 2 * MIB);
        assert!(is_pattern(&mapping));
        assert_eq!(mapping.stats().faults_filled, 0);
        let larger = MapOptions::new().populate(true).budget(MIB).map(pattern_store(4 * MIB)).unwrap();
        assert!(larger.kernel_resident_bytes().unwrap() <= MIB);
        let kernel = MapOptions::new().populate(true).kernel_anonymous(MIB).unwrap();
        assert_eq!(kernel.residency(0..MIB).unwrap().resident_bytes(), MIB);
        let lazy = MapOptions::new().kernel_anonymous(MIB).unwrap();
        assert_eq!(lazy.residency(0..MIB).unwrap().resident_bytes(), 0);
    });
}

/// More of them than are brought under one lock.
#[test]
fn many_pages_that_are_there_stay_while_they_are_locked_and_go_afterwards() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let mapping = MapOptions::new().budget(8 * MIB).map(pattern_store(8 * MIB)).unwrap();
        let many = 4 * MIB - 3 * page();
        let left_after_advice = || {
            mapping.advise(0..8 * MIB, Advice::DontNeed).unwrap();
            mapping.kernel_resident_bytes().unwrap()
        };
        assert!(is_pattern(&mapping));
        mapping.lock(0..many).unwrap();
        assert_eq!(left_after_advice(), many);
        mapping.unlock(0..many).unwrap();
        assert_eq!(left_after_advice(), 0);
    });
}

#[test]
fn l01_locked_pages_stay_and_one_unlock_undoes_all() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Counting::new(Arc::new(pattern_store(8 * MIB))));
        let mapping = MapOptions::new().budget(MIB).readahead_max(0).map_shared(store.clone()).unwrap();
        let locked = MIB..MIB + MIB / 4;
        for _ in 0..3 {
            mapping.lock(locked.clone()).unwrap();
        }
        assert_eq!(mapping.residency(locked.clone()).unwrap().resident_bytes(), MIB / 4);
        mapping.lock(MIB - page()..MIB + page()).unwrap();
        assert!(is_pattern(&mapping));
        let reads = store.counts().bytes_read;
        let bytes = &mapping[locked.start as usize..locked.end as usize];
        assert!(bytes.iter().zip(locked.start..).all(|(b, at)| *b == pattern(at)));
        assert_eq!(store.counts().bytes_read, reads, "they were there all the time");

        let error = mapping.lock(4 * MIB..5 * MIB).unwrap_err();
        assert!(matches!(error, Error::PinLimit { .. }), "{error}");
        assert!(matches!(mapping.lock(0..9 * MIB), Err(Error::OutOfRange { .. })));
        mapping.unlock(locked.clone()).unwrap();
        mapping.unlock(0..8 * MIB).unwrap();
        assert!(is_pattern(&mapping));
        // A scan does not drive them out: as long as they were locked they were as good as used.
        mapping.advise(locked.clone(), Advice::DontNeed).unwrap();
        assert_eq!(mapping.residency(locked).unwrap().resident_bytes(), 0, "they can go");
        mapping.lock(4 * MIB..4 * MIB + MIB / 2).unwrap();
    });
}

#[test]
fn e1_what_cannot_be_read_is_not_locked() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(8 * MIB))));
        let mapping = MapOptions::new().budget(MIB).map_shared(store.clone()).unwrap();
        store.on_read(MIB / 4..MIB / 4 + 1, Misbehaviour::Fail, u64::MAX);
        for _ in 0..10 {
            let error = mapping.lock(0..MIB / 2).unwrap_err();
            assert!(matches!(error, Error::Read { .. }), "{error}");
        }
        let mut options = MapOptions::new();
        assert!(matches!(
            options.budget(MIB).lock(true).map(pattern_store(MIB)),
            Err(Error::PinLimit { .. })
        ));
        store.heal();
        mapping.lock(0..MIB / 2).expect("nothing was left locked");
        assert!(is_pattern(&mapping));
    });
}

#[test]
fn l02_a_lock_goes_with_its_mapping_and_a_page_stays_while_another_has_it() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let store = MemoryStore::writable("store", vec![7; 4 * MIB as usize]);
        let mut first = MapOptions::new().budget(MIB).map_shared_mut(store).unwrap();
        let second = first.split_off(MIB - page()).unwrap();
        let third = {
            // The page at the cut, and more, in both.
            first.lock(MIB / 2..MIB - page()).unwrap();
            second.lock(0..page()).unwrap();
            second
        };
        drop(first);
        let half = MIB / 2 - page();
        third.lock(MIB..MIB + half).expect("what the first had is free again");
        assert!(third.lock(2 * MIB..2 * MIB + page()).is_err(), "and no more than that");
        drop(third);
    });
}

#[test]
fn m13_locked_memory_counts_in_the_kernel_and_against_its_limit() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    const NAME: &str = "m13_locked_memory_counts_in_the_kernel_and_against_its_limit";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let locked = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    assert_eq!(locked(), 0);
    let mut options = MapOptions::new();
    options.budget(8 * MIB);
    let mapping = options.map(pattern_store(2 * MIB)).unwrap();
    mapping.lock(100..MIB + 5).unwrap();
    assert_eq!(locked(), MIB + page());
    mapping.unlock(0..MIB).unwrap();
    assert_eq!(locked(), page());
    mapping.unlock(0..2 * MIB).unwrap();
    let mut first = options.map(pattern_store(2 * MIB)).unwrap();
    first.lock(0..2 * MIB).unwrap();
    let second = first.split_off(MIB - 1).unwrap();
    assert_eq!(locked(), MIB, "what is split off is not locked any more");
    drop((first, second));
    let kernel = options.lock(true).kernel_anonymous(MIB).unwrap();
    let paged = options.map(pattern_store(MIB)).unwrap();
    assert_eq!(locked(), 2 * MIB);
    drop((kernel, paged));
    assert_eq!(locked(), 0);

    let limit = libc::rlimit { rlim_cur: 16 * page(), rlim_max: 16 * page() };
    // SAFETY: reads a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
    // Whoever may do anything may lock anything.
    // SAFETY: only gives rights up.
    if unsafe { libc::geteuid() } == 0 {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
    }
    mapping.lock(0..16 * page()).unwrap();
    let error = mapping.lock(MIB..MIB + page()).unwrap_err();
    assert!(matches!(error, Error::Host { .. }), "{error}");
    mapping.unlock(0..16 * page()).unwrap();
    mapping.lock(MIB..MIB + page()).expect("nothing was left locked by what was refused");
    mapping.unlock(0..2 * MIB).unwrap();
    assert!(options.kernel_anonymous(MIB).is_err(), "as mmap(2): EAGAIN");
    assert_eq!(locked(), 0);
}

#[test]
fn u02_a_mapping_is_split_in_two_that_go_their_own_ways() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    within(LIMIT, || {
        let mut first = MapOptions::new().budget(MIB).map(pattern_store(4 * MIB)).unwrap();
        let start = first.as_ptr();
        assert!(first.split_off(4 * MIB + 1).is_err());
        let mut second = first.split_off(1_000_001).unwrap();
        let third = second.split_off(10).unwrap();
        assert_eq!((first.len(), second.len()), (1_000_001, 10));
        assert_eq!((first.as_ptr(), third.len() as u64), (start, 4 * MIB - 1_000_011));
        assert!(matches!(first.read_at(1_000_000, &mut [0; 2]), Err(Error::OutOfRange { .. })));
        assert!(is_pattern(&first));
        drop(first);
        assert!(second.iter().zip(1_000_001..).all(|(b, at)| *b == pattern(at)));
        assert!(third.iter().zip(1_000_011..).all(|(b, at)| *b == pattern(at)));

        let store = Arc::new(MemoryStore::writable("store", vec![0; MIB as usize]));
        let mut low = MapOptions::new().map_shared_mut(store).unwrap();
        let high = low.split_off(MIB / 2).unwrap();
        low.cells()[7].store(1, Ordering::Relaxed);
        high.cells()[7].store(2, Ordering::Relaxed);
        assert_eq!(low.cells().len(), MIB as usize / 2);
        drop(low);
        let mut bytes = [0];
        high.read_at(7, &mut bytes).unwrap();
        assert_eq!(bytes, [2]);
        high.sync().unwrap();
    });
}

#[test]
fn u03_addresses_that_went_back_are_sigsegv() {
    if skip_without_mappings() || skip_in_other_modes() {
        return;
    }
    const NAME: &str = "u03_addresses_that_went_back_are_sigsegv";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
        return;
    }
    let reservation = Reservation::new(MIB).unwrap();
    let mapping = MapOptions::new().within(&reservation, 0).map(pattern_store(MIB)).unwrap();
    let byte = &raw const mapping[5];
    assert_eq!(mapping[5], pattern(5));
    drop(mapping);
    // SAFETY: none: it is what must not work.
    unsafe { byte.read_volatile() };
    std::process::exit(0);
}

#[test]
fn e1_what_no_mapping_shows_is_read_when_there_can_be_no_more_mappings() {
    if skip_without_mappings() {
        return;
    }
    const NAME: &str = "e1_what_no_mapping_shows_is_read_when_there_can_be_no_more_mappings";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let cache = Cache::new(8 * MIB).unwrap();
    let object = || MapOptions::new().cache(&cache).object(Arc::new(pattern_store(8 * MIB))).unwrap();
    let (before, object) = (object(), object());
    // Where the kernel makes huge pages of a memfd by itself, what no mapping can be had for is refused.
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let is_refused = ["[always]", "[within_size]", "[force]"]
        .iter()
        .any(|s| setting.as_ref().is_ok_and(|t| t.contains(s)));
    let read = |object: &omnimap::posix::Object, at: u64| {
        let mut bytes = [0; 100];
        match object.read_at(at, &mut bytes) {
            Ok(()) => assert!((at..).zip(&bytes).all(|(at, byte)| *byte == pattern(at))),
            Err(error) => assert!(is_refused, "{error}"),
        }
    };
    read(&before, 0); // What is made once, is made.
    // A private mapping is not filled through itself; and is not to be had in other fault modes.
    let (null, bytes) = (std::ptr::null_mut(), 8 * MIB as usize);
    let map = |object| {
        let (prot, flags) = (posix::Prot::READ, posix::MapFlags::PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { posix::mmap(null, bytes, prot, flags, posix::Source::Object(object), 0) };
        // SAFETY: mapped just now, for good.
        start.map(|start| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) })
    };
    let (used, private) = (map(&before), map(&object));
    assert!(used.is_ok_and(|bytes| bytes[MIB as usize] == pattern(MIB)) || private.is_err());
    let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let length = (2 * limit * page()) as usize;
    let (null, flags) = (std::ptr::null_mut(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(null, length, libc::PROT_READ, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let protect = |at: usize, length: usize| {
        // SAFETY: pages of it, which nobody uses.
        unsafe { libc::mprotect(start.wrapping_byte_add(at), length, libc::PROT_NONE) == 0 }
    };
    let refused = (0..length).step_by(2 * page() as usize).find(|at| !protect(*at, page() as usize));
    assert!(refused.is_some(), "{limit} mappings were not the limit");
    // That may have left room for a single one, and two neighbours that are shared never become one.
    let more = || {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice.
        unsafe { libc::mmap(std::ptr::null_mut(), page() as usize, prot, flags, -1, 0) != libc::MAP_FAILED }
    };
    assert!((0..limit).any(|_| !more()));
    (0..8).for_each(|number| read(&object, number * MIB));
    if let (Ok(bytes), false) = (private, is_refused) {
        // Not many: the C library has no more memory either.
        assert!((5..8).map(|number| number * MIB + 300_000).all(|at| bytes[at as usize] == pattern(at)));
    }
}
