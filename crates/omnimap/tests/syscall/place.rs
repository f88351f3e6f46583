//! mmap(2): where a mapping is put.

use std::sync::atomic::{AtomicUsize, Ordering};

use omnimap::posix::{Errno, MapFlags, Prot, Source, SyncFlags};

use crate::on;
use crate::probe::{load, load_signal, store};
use crate::subject::{
    NOTHING, PRIVATE, RW, SHARED, SIGSEGV, free_addresses, loaded, page, pattern, without_capability,
};

on!(m06_null_leaves_the_address_to_the_system, [kernel, anonymous], |s| {
    let (a, b) =
        (s.mmap_source(0, page(), RW, PRIVATE, Source::Anonymous, 0).unwrap(), s.map(page(), PRIVATE, None));
    assert!(a != 0 && a.is_multiple_of(page()) && a != b);
    store(a, 1).unwrap();
    assert_eq!((load(a), load(b)), (Ok(1), Ok(0)));
});

on!(m06_a_hint_is_rounded_and_never_replaces, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(4 * page());
    let (thing, start) = s.memory(&bytes, PRIVATE);
    let free = free_addresses(page());
    let hinted = s.mmap(free + 5, page(), RW, PRIVATE, thing.as_ref(), 0).unwrap();
    assert_eq!(hinted, free, "free, and so taken");
    for _ in 0..200 {
        let other = s.mmap(start + page() + 1, page(), RW, PRIVATE, NOTHING, 0).unwrap();
        assert!(other + page() <= start || start + 4 * page() <= other);
        s.munmap(other, page()).unwrap();
    }
    assert_eq!(loaded(start, 4 * page()), bytes);
    let low = s.mmap(1, page(), RW, PRIVATE, thing.as_ref(), 0).unwrap();
    assert_ne!(low, 0, "the page of address 0 is not given");
});

on!(m07_fixed_replaces_the_range_and_nothing_else, [kernel, paged, anonymous, device], |s| {
    for (below, above) in [(PRIVATE, PRIVATE), (SHARED, SHARED), (PRIVATE, SHARED), (SHARED, PRIVATE)] {
        let bytes = pattern(5 * page());
        let (thing, start) = s.memory(&bytes, below);
        let fixed = above | MapFlags::FIXED;
        for (at, source) in [(1, thing.as_ref()), (3, NOTHING)] {
            let made = s.mmap(start + at * page(), page(), RW, fixed, source, 0).unwrap();
            assert_eq!(made, start + at * page());
        }
        let first = thing.as_ref().map_or(0, |_| bytes[0]);
        assert_eq!(load(start + page()), Ok(first));
        assert_eq!(load(start + 3 * page()), Ok(0));
        for kept in [0, 2, 4] {
            assert_eq!(loaded(start + kept * page(), page()), bytes[kept * page()..(kept + 1) * page()]);
        }
        s.munmap(start, 5 * page()).unwrap();
        for at in 0..5 {
            assert_eq!(load_signal(start + at * page()), SIGSEGV);
        }
    }
});

on!(m07_fixed_works_where_nothing_is_and_across_mappings, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(2 * page());
    let (thing, _) = s.memory(&bytes, SHARED);
    let start = free_addresses(8 * page());
    let fixed = PRIVATE | MapFlags::FIXED;
    for at in [0, 2, 4] {
        s.mmap(start + at * page(), 2 * page(), RW, fixed, thing.as_ref(), 0).unwrap();
        store(start + at * page(), 99).unwrap();
    }
    // From the middle of the first over the second and beyond.
    s.mmap(start + page(), 4 * page(), RW, fixed, NOTHING, 0).unwrap();
    assert_eq!(load(start), Ok(99));
    assert_eq!(loaded(start + page(), 4 * page()), vec![0; 4 * page()]);
    assert_eq!(load(start + 5 * page()), Ok(thing.as_ref().map_or(0, |_| bytes[page()])));
});

on!(m07_fixed_that_is_refused_leaves_what_was_there, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page());
    let (_thing, start) = s.memory(&bytes, SHARED);
    let read_only = s.read_only(&pattern(page()));
    let fixed = SHARED | MapFlags::FIXED;
    let bad = s.mmap_source(start, page(), RW, fixed, Source::Descriptor(-1), 0);
    assert_eq!(bad, Err(Errno::EBADF));
    assert_eq!(s.mmap(start, page(), RW, fixed, Some(&read_only), 0), Err(Errno::EACCES));
    assert_eq!(s.mmap(start, 0, RW, fixed, NOTHING, 0), Err(Errno::EINVAL));
    assert_eq!(s.mmap(start, page(), RW, MapFlags::FIXED, NOTHING, 0), Err(Errno::EINVAL));
    assert_eq!(s.mmap(start, page(), Prot::READ, fixed, Some(&read_only), 1), Err(Errno::EINVAL));
    assert_eq!(loaded(start, 3 * page()), bytes);
    store(start, 7).unwrap();
    assert_eq!(load(start), Ok(7));
});

on!(m07_an_unaligned_address_and_address_0_are_refused, [kernel, paged, anonymous, device], |s| {
    let (thing, _) = s.memory(&pattern(page()), SHARED);
    let free = free_addresses(2 * page());
    for how in [MapFlags::FIXED, MapFlags::FIXED_NOREPLACE] {
        let made = s.mmap(free + 1, page(), RW, PRIVATE | how, thing.as_ref(), 0);
        assert_eq!(made, Err(Errno::EINVAL), "{how:?}");
    }
    const CAP_SYS_RAWIO: u32 = 17;
    without_capability(CAP_SYS_RAWIO);
    for how in [MapFlags::FIXED, MapFlags::FIXED_NOREPLACE] {
        assert_eq!(s.mmap(0, page(), RW, PRIVATE | how, thing.as_ref(), 0), Err(Errno::EPERM), "{how:?}");
    }
});

on!(m07_fixed_noreplace_is_eexist_where_something_is, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page());
    let (thing, _) = s.memory(&bytes, SHARED);
    let start = free_addresses(5 * page());
    let fresh = PRIVATE | MapFlags::FIXED_NOREPLACE;
    let made = s.mmap(start + page(), 3 * page(), RW, fresh, thing.as_ref(), 0);
    assert_eq!(made, Ok(start + page()));
    store(start + 2 * page(), 77).unwrap();
    for (at, pages) in [(0, 2), (3, 2), (1, 3), (2, 1), (0, 5)] {
        for flags in [fresh, fresh | MapFlags::FIXED] {
            for source in [thing.as_ref(), NOTHING] {
                let made = s.mmap(start + at * page(), pages * page(), RW, flags, source, 0);
                assert_eq!(made, Err(Errno::EEXIST), "{at} {pages}");
            }
        }
    }
    assert_eq!(load(start + 2 * page()), Ok(77));
    for at in [0, 4] {
        assert_eq!(
            s.mmap(start + at * page(), page(), RW, fresh, thing.as_ref(), 0),
            Ok(start + at * page())
        );
    }
});

on!(m07_what_was_stored_to_a_replaced_shared_mapping_reaches_the_store, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let start = s.map(3 * page(), SHARED, Some(&object));
    (0..3).for_each(|at| store(start + at * page(), 200).unwrap());
    s.mmap(start, page(), RW, PRIVATE | MapFlags::FIXED, NOTHING, 0).unwrap();
    s.mmap(start + page(), page(), RW, PRIVATE | MapFlags::FIXED, Some(&object), 0).unwrap();
    assert_eq!([object.stored()[0], object.stored()[page()]], [200, 200]);
    s.munmap(start, 3 * page()).unwrap();
    assert_eq!(object.stored()[2 * page()], 200);
});

on!(m10_32bit_is_below_2_gib_and_ignored_with_fixed, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(4 * page());
    let (thing, _) = s.memory(&bytes, SHARED);
    for flags in [SHARED, PRIVATE] {
        let low = s.mmap(0, 4 * page(), RW, flags | MapFlags::BELOW_2GIB, thing.as_ref(), 0).unwrap();
        assert!(low + 4 * page() <= 1 << 31, "{low:x}");
        if thing.is_some() {
            assert_eq!(loaded(low, 4 * page()), bytes);
        }
        let free = free_addresses(page());
        let fixed = flags | MapFlags::BELOW_2GIB | MapFlags::FIXED;
        assert_eq!(s.mmap(free, page(), RW, fixed, thing.as_ref(), 0), Ok(free));
    }
});

on!(m11_growsdown_grows_to_a_guard_gap, [kernel, anonymous], |s| {
    let base = free_addresses(2048 * page());
    let top = base + 1024 * page();
    let flags = PRIVATE | MapFlags::GROWSDOWN | MapFlags::FIXED;
    s.mmap(top, page(), RW, flags, NOTHING, 0).unwrap();
    store(top - page(), 5).unwrap();
    store(top - 3 * page(), 6).unwrap();
    assert_eq!(load(top - 2 * page()), Ok(0));
    // What lies 300 pages below keeps a gap of 256 pages (mmap(2); stack_guard_gap).
    s.mmap(top - 300 * page(), page(), RW, PRIVATE | MapFlags::FIXED, NOTHING, 0).unwrap();
    store(top - 40 * page(), 7).unwrap();
    assert_eq!(load_signal(top - 100 * page()), SIGSEGV);
    s.munmap(top - 300 * page(), 301 * page()).unwrap();
    assert_eq!(load_signal(top - 3 * page()), SIGSEGV, "what it has grown by is unmapped too");
});

on!(m11_growsdown_of_an_object_is_einval, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        let made = s.mmap(0, page(), RW, flags | MapFlags::GROWSDOWN, Some(&object), 0);
        assert_eq!(made, Err(Errno::EINVAL));
    }
});

on!(p1_lengths_are_whole_pages_of_the_systems_size, [kernel, paged, anonymous, device], |s| {
    // SAFETY: only asks.
    assert_eq!(page() as i64, unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    let (thing, _) = s.memory(&pattern(2 * page()), SHARED);
    let start = free_addresses(3 * page());
    s.mmap(start, 1, RW, PRIVATE | MapFlags::FIXED, thing.as_ref(), 0).unwrap();
    assert_eq!(load_signal(start + page() - 1), None, "the length is rounded up");
    assert_eq!(load_signal(start + page()), SIGSEGV);
    s.mmap(start, page() + 1, RW, PRIVATE | MapFlags::FIXED, thing.as_ref(), 0).unwrap();
    assert_eq!(load_signal(start + 2 * page() - 1), None);
    assert_eq!(load_signal(start + 2 * page()), SIGSEGV);
    s.munmap(start, page() + 1).unwrap();
    assert_eq!(load_signal(start + page()), SIGSEGV);
});

on!(m07_stores_beside_a_replacement_by_the_same_reach_the_object, [kernel, paged], |s| {
    const PAGES: usize = 16;
    const ROUNDS: usize = 40;
    let object = s.object(&vec![0; PAGES * page()]);
    let start = s.map(PAGES * page(), SHARED, Some(&object));
    let round = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=ROUNDS {
                while round.load(Ordering::SeqCst) < number {
                    std::hint::spin_loop();
                }
                for at in 0..PAGES {
                    // What is not there for a moment is SIGSEGV; on the kernel's mapping nothing is.
                    while store(start + at * page(), number as u8).is_err() {}
                }
                done.store(number, Ordering::SeqCst);
            }
        });
        for number in 1..=ROUNDS {
            round.store(number, Ordering::SeqCst);
            while done.load(Ordering::SeqCst) < number {
                let there = s.mmap(start, PAGES * page(), RW, SHARED | MapFlags::FIXED, Some(&object), 0);
                assert_eq!(there, Ok(start));
            }
            s.msync(start, PAGES * page(), SyncFlags::SYNC).unwrap();
            let stored = object.stored();
            (0..PAGES).for_each(|at| assert_eq!(stored[at * page()], number as u8, "page {at}"));
        }
    });
});
