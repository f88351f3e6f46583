//! munmap(2): removing mappings.

use omnimap::posix::{Errno, MapFlags, Prot};
use omnimap_testkit::skip;

use crate::probe::{Raised, load, load_signal, store};
use crate::subject::{
    NOTHING, PRIVATE, RW, SHARED, SIGSEGV, Subject, free_addresses, is_locked, limit, limit_addresses,
    loaded, map_as_others, page, pattern,
};
use crate::{on, on_alone};

on!(u01_an_unaligned_address_and_a_length_of_0_are_einval, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(2 * page());
    let (_thing, start) = s.memory(&bytes, SHARED);
    assert_eq!(s.munmap(start + 1, page()), Err(Errno::EINVAL));
    assert_eq!(s.munmap(start, 0), Err(Errno::EINVAL));
    assert_eq!(s.munmap(start, usize::MAX), Err(Errno::EINVAL), "wraps when it is rounded");
    assert_eq!(s.munmap(start, usize::MAX - start + 1), Err(Errno::EINVAL), "wraps");
    assert_eq!(s.munmap(start, 1 << 47), Err(Errno::EINVAL), "outside what can be mapped");
    assert_eq!(loaded(start, 2 * page()), bytes);
});

on!(u01_the_length_is_rounded_up, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(3 * page()), SHARED);
    s.munmap(start, page() + 1).unwrap();
    assert_eq!(load_signal(start + page()), SIGSEGV);
    assert_eq!(load_signal(start + 2 * page()), None);
});

on!(u02_a_hole_in_the_middle_leaves_both_ends, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(6 * page());
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&bytes, flags);
        s.mprotect(start, 6 * page(), Prot::READ).unwrap();
        s.munmap(start + 2 * page(), 2 * page()).unwrap();
        for at in 0..6 {
            let expected = if (2..4).contains(&at) { SIGSEGV } else { None };
            assert_eq!(load_signal(start + at * page()), expected, "page {at}");
        }
        assert_eq!(load(start + 5 * page()), Ok(bytes[5 * page()]));
        s.munmap(start, 6 * page()).unwrap();
        assert_eq!(load_signal(start), SIGSEGV);
        assert_eq!(load_signal(start + 5 * page()), SIGSEGV);
    }
});

on!(u02_head_tail_several_and_none, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(4 * page());
    for flags in [SHARED, PRIVATE] {
        let (thing, _) = s.memory(&bytes, SHARED);
        let start = free_addresses(20 * page());
        let fixed = flags | MapFlags::FIXED;
        for at in [0, 6, 12] {
            s.mmap(start + at * page(), 4 * page(), RW, fixed, thing.as_ref(), 0).unwrap();
            (0..4).for_each(|i| store(start + (at + i) * page(), (at + i) as u8 + 1).unwrap());
        }
        // The tail of the first, the second with the holes around it, and the head of the third.
        s.munmap(start + 3 * page(), 10 * page()).unwrap();
        for at in 0..16 {
            let there = (0..3).contains(&at) || (13..16).contains(&at);
            assert_eq!(load_signal(start + at * page()).is_none(), there, "{at}");
        }
        if flags == PRIVATE {
            assert_eq!(load(start + 2 * page()), Ok(3));
            assert_eq!(load(start + 15 * page()), Ok(16));
        }
        s.munmap(start + 3 * page(), 10 * page()).unwrap();
        s.munmap(start, 20 * page()).unwrap();
        s.munmap(start, 20 * page()).unwrap();
    }
});

on!(u03_access_after_unmap_is_sigsegv_and_the_object_is_untouched, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(2 * page());
    let (thing, start) = s.memory(&bytes, SHARED);
    s.munmap(start, 2 * page()).unwrap();
    let raised = Raised { signal: libc::SIGSEGV, code: 1, address: start + 9 };
    assert_eq!(load(start + 9), Err(raised), "SEGV_MAPERR");
    if let Some(thing) = thing {
        assert_eq!(thing.bytes(), bytes);
        let again = s.map(2 * page(), SHARED, Some(&thing));
        assert_eq!(loaded(again, 2 * page()), bytes);
    }
});

on!(u03_private_changes_are_gone, [kernel, paged, device], |s| {
    let bytes = pattern(page());
    let object = s.object(&bytes);
    let start = s.map(page(), PRIVATE, Some(&object));
    store(start, 200).unwrap();
    s.munmap(start, page()).unwrap();
    let again = s.mmap(start, page(), RW, PRIVATE | MapFlags::FIXED, Some(&object), 0).unwrap();
    assert_eq!(load(again), Ok(bytes[0]));
});

on!(l02_unmapping_and_replacing_take_a_lock_away, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(4 * page()), flags);
        s.mlock(start, 4 * page()).unwrap();
        s.munmap(start + page(), page()).unwrap();
        assert_eq!([0, 2, 3].map(|at| is_locked(start + at * page())), [true; 3]);
        s.mmap(start + 2 * page(), page(), RW, PRIVATE | MapFlags::FIXED, NOTHING, 0).unwrap();
        assert!(!is_locked(start + 2 * page()));
        assert!(is_locked(start + 3 * page()));
        s.munmap(start, 4 * page()).unwrap();
    }
});

on!(y04_the_last_unmap_writes_what_is_dirty, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let (a, b) = (s.map(3 * page(), SHARED, Some(&object)), s.map(3 * page(), SHARED, Some(&object)));
    store(a, 200).unwrap();
    store(b + page(), 201).unwrap();
    s.munmap(a, 3 * page()).unwrap();
    s.munmap(b, 3 * page()).unwrap();
    assert_eq!([object.stored()[0], object.stored()[page()]], [200, 201]);
});

/// Descriptors, threads and mappings of this process, and its resident memory in KiB.
fn belongings() -> ([usize; 3], usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    ([count("/proc/self/fd"), count("/proc/self/task"), maps], resident)
}

on_alone!(u03_ten_thousand_rounds_leave_nothing_behind, [kernel, paged, anonymous, device], |s| {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(8 * page())));
    let round = |i: usize| {
        let flags = if i.is_multiple_of(2) { SHARED } else { PRIVATE };
        let start = s.map(8 * page(), flags, thing.as_ref());
        store(start + i % 8 * page(), i as u8).unwrap();
        // In two parts, and some of it moved.
        if i.is_multiple_of(8) {
            s.mprotect(start + 2 * page(), page(), Prot::READ).unwrap();
        }
        s.munmap(start + 3 * page(), page()).unwrap();
        s.munmap(start, 8 * page()).unwrap();
    };
    // What is made once, is made, and the allocator has what it needs.
    (0..2_000).for_each(round);
    let (before, resident) = belongings();
    (0..10_000).for_each(round);
    let (after, resident_after) = belongings();
    // The C library may have made or given back an arena of its own.
    assert_eq!(before[..2], after[..2], "descriptors, threads");
    assert!(after[2] <= before[2] + 2, "{} mappings, and {} before", after[2], before[2]);
    assert!(resident_after < resident + 1024, "{resident_after} KiB, and {resident} before");
    assert!(!s.is_paged() || omnimap::posix::AddressSpace::mappings().is_empty());
});

// The first call that has to know where the addresses end is made where no more can be mapped.
on_alone!(what_is_mapped_goes_when_there_is_no_room_for_more, [kernel, anonymous], |s| {
    let mut made = Vec::with_capacity(100_000);
    limit_addresses(8 << 20);
    let refused = loop {
        match s.mmap(0, page(), RW, PRIVATE, NOTHING, 0) {
            Ok(at) => made.push(at),
            Err(error) => break error,
        }
    };
    let then = s.munmap(made[made.len() - 1], page());
    limit(libc::RLIMIT_AS, u64::MAX);
    assert_eq!((refused, then, s.munmap(made[0], page())), (Errno::ENOMEM, Ok(()), Ok(())));
});

/// The number of mseal(2), which is the same on all processors.
const MSEAL: libc::c_long = 462;

/// A view, and behind it what the kernel does not unmap; nothing where it has no such call (mseal(2), Linux 6.10).
fn beside_what_is_sealed(s: &Subject, bytes: &[u8]) -> Option<usize> {
    // SAFETY: of no bytes.
    if unsafe { libc::syscall(MSEAL, 0_usize, 0_usize, 0_usize) } != 0 {
        skip("mseal(2) needs Linux 6.10");
        return None;
    }
    let object = s.object(bytes);
    let start = free_addresses(bytes.len() + page());
    s.mmap(start, bytes.len(), RW, SHARED | MapFlags::FIXED, Some(&object), 0).unwrap();
    map_as_others(start + bytes.len(), page(), libc::MAP_PRIVATE);
    // SAFETY: of a mapping of the test's own.
    let sealed = unsafe { libc::syscall(MSEAL, start + bytes.len(), page(), 0) };
    assert_eq!(sealed, 0, "{}", std::io::Error::last_os_error());
    store(start, 9).unwrap();
    Some(start)
}

on!(what_the_kernel_does_not_unmap_stays_as_it_was, [kernel, paged], |s| {
    let bytes = pattern(3 * page());
    let Some(start) = beside_what_is_sealed(s, &bytes) else { return };
    s.mlock(start, page()).unwrap();
    assert_eq!(s.munmap(start, 4 * page()), Err(Errno::EPERM));
    assert_eq!(s.munmap(start + page(), 3 * page()), Err(Errno::EPERM));
    let made = s.mmap(start, 4 * page(), RW, PRIVATE | MapFlags::FIXED, NOTHING, 0);
    assert_eq!(made, Err(Errno::EPERM));
    assert_eq!([0, 2].map(|at| load(start + at * page())), [9, bytes[2 * page()]].map(Ok));
    assert!(is_locked(start));
    store(start + page(), 8).unwrap();
    s.munmap(start, 3 * page()).unwrap();
});

on!(a_view_that_the_kernel_does_not_make_replaces_nothing, [kernel, paged], |s| {
    let bytes = pattern(3 * page());
    let Some(start) = beside_what_is_sealed(s, &bytes) else { return };
    let other = s.object(&pattern(4 * page()));
    let made = s.mmap(start, 4 * page(), RW, SHARED | MapFlags::FIXED, Some(&other), 0);
    assert_eq!(made, Err(Errno::EPERM));
    assert_eq!([0, 2].map(|at| load(start + at * page())), [9, bytes[2 * page()]].map(Ok));
});
