//! mlock(2), mlock2(2), munlock(2): what stays in memory.

use std::os::fd::AsRawFd;

use omnimap::posix::{AddressSpace, Advice, Errno, LockOn, MapFlags, Prot, RemapFlags};

use crate::probe::{load, store};
use crate::subject::{
    CAP_IPC_LOCK, Column, PRIVATE, RW, SHARED, Thing, free_addresses, give_up_rights, is_locked, limit,
    loaded, page, pattern, without_capability,
};
use crate::{on, on_alone};

on!(l01_lock_brings_the_range_in_and_keeps_it, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(6 * page());
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = s.memory(&bytes, flags);
        if let Some(thing) = &thing {
            thing.evict();
        }
        s.mlock(start + page(), 3 * page()).unwrap();
        assert_eq!(s.resident(start + page(), 3 * page()), [true; 3]);
        assert_eq!([0, 1, 3, 4].map(|at| is_locked(start + at * page())), [false, true, true, false]);
        if let Some(thing) = &thing {
            thing.evict();
        }
        assert_eq!(s.resident(start + page(), 3 * page()), [true; 3], "a lock keeps it");
        assert_eq!(loaded(start, 6 * page()), bytes);
        s.munlock(start, 6 * page()).unwrap();
        assert!(!is_locked(start + page()));
    }
});

on!(l01_what_was_unlocked_can_leave_again, [paged], |s| {
    let object = s.object(&pattern(4 * page()));
    let start = s.map(4 * page(), SHARED, Some(&object));
    s.mlock(start, 4 * page()).unwrap();
    object.evict();
    assert_eq!(s.resident(start, 4 * page()), [true; 4]);
    s.munlock(start, 2 * page()).unwrap();
    object.evict();
    assert_eq!(s.resident(start, 4 * page()), [false, false, true, true]);
});

on!(l01_the_start_is_rounded_down_and_the_end_up, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(4 * page()), SHARED);
    s.mlock(start + page() + 7, page()).unwrap();
    assert_eq!([0, 1, 2, 3].map(|at| is_locked(start + at * page())), [false, true, true, false]);
    s.munlock(start + 2 * page() - 1, 1).unwrap();
    assert_eq!([1, 2].map(|at| is_locked(start + at * page())), [false, true]);
    s.mlock(start, 0).unwrap();
    assert!(!is_locked(start));
});

on!(l01_locks_do_not_nest, [kernel, paged, anonymous, device], |s| {
    let (thing, start) = s.memory(&pattern(2 * page()), SHARED);
    for _ in 0..3 {
        s.mlock(start, 2 * page()).unwrap();
    }
    s.munlock(start, 2 * page()).unwrap();
    assert!(!is_locked(start));
    if let (Some(thing), true) = (&thing, s.is_paged()) {
        thing.evict();
        assert_eq!(s.resident(start, 2 * page()), [false; 2]);
    }
    s.munlock(start, 2 * page()).unwrap();
});

on!(l02_a_page_locked_in_two_mappings_stays_while_either_does, [paged], |s| {
    let object = s.object(&pattern(2 * page()));
    let (a, b) = (s.map(2 * page(), SHARED, Some(&object)), s.map(2 * page(), SHARED, Some(&object)));
    s.mlock(a, page()).unwrap();
    s.mlock(b, 2 * page()).unwrap();
    s.munlock(a, page()).unwrap();
    object.evict();
    assert_eq!(s.resident(b, 2 * page()), [true; 2]);
    s.munmap(b, page()).unwrap();
    object.evict();
    assert_eq!(s.resident(a, 2 * page()), [false, true]);
});

on!(l03_copy_on_write_of_a_locked_page_is_locked, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(page());
    let (thing, start) = s.memory(&bytes, PRIVATE);
    s.mlock(start, page()).unwrap();
    store(start, 9).unwrap();
    assert!(is_locked(start));
    if let Some(thing) = &thing {
        thing.evict();
        assert_eq!(thing.bytes(), bytes);
    }
    assert_eq!((load(start), load(start + 1)), (Ok(9), Ok(bytes[1])));
    assert_eq!(s.resident(start, page()), [true]);
});

on!(l01_no_access_is_enomem_and_a_hole_too, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(4 * page()), flags);
        s.mprotect(start, page(), Prot::NONE).unwrap();
        assert_eq!(s.mlock(start, page()), Err(Errno::ENOMEM));
        assert!(is_locked(start), "yet it counts as locked");
        s.munlock(start, page()).unwrap();
        s.munmap(start + 2 * page(), page()).unwrap();
        assert_eq!(s.mlock(start + page(), 3 * page()), Err(Errno::ENOMEM));
        assert_eq!([1, 3].map(|at| is_locked(start + at * page())), [true, false], "up to the hole");
        assert_eq!(s.munlock(start + page(), 3 * page()), Err(Errno::ENOMEM));
        assert!(!is_locked(start + page()));
    }
    assert_eq!(s.mlock(free_addresses(page()), page()), Err(Errno::ENOMEM));
});

on!(l01_bad_arguments, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(page()), SHARED);
    assert_eq!(s.mlock2(start, page(), LockOn(2)), Err(Errno::EINVAL));
    for length in [usize::MAX - page(), usize::MAX - start + 1] {
        let (locked, unlocked) = (s.mlock(start, length), s.munlock(start, length));
        assert_eq!((locked, unlocked), (Err(Errno::EINVAL), Err(Errno::EINVAL)), "{length:x}");
    }
    assert_eq!(s.mlock(start, usize::MAX), Ok(()), "rounded up to nothing");
    assert!(!is_locked(start));
});

on!(l01_onfault_counts_before_any_touch_and_brings_none, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let thing = (!s.is_anonymous()).then(|| s.object(&pattern(3 * page())));
        if let Some(thing) = &thing {
            thing.evict();
        }
        let start = s.map(3 * page(), flags, thing.as_ref());
        s.mlock2(start, 3 * page(), LockOn::ONFAULT).unwrap();
        assert!(is_locked(start));
        assert_eq!(s.resident(start, 3 * page()), [false; 3]);
        load(start + page()).unwrap();
        assert!(s.resident(start, 3 * page())[1]);
        if let (Some(thing), true) = (&thing, s.is_paged()) {
            thing.evict();
            assert_eq!(s.resident(start, 3 * page()), [false, true, false], "locked as they come");
        }
        s.mlock(start, 3 * page()).unwrap();
        assert_eq!(s.resident(start, 3 * page()), [true; 3]);
    }
});

on!(l02_a_lock_goes_along_where_a_mapping_is_moved, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(2 * page()), flags);
        s.mlock(start, 2 * page()).unwrap();
        let new = free_addresses(2 * page());
        let how = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        s.mremap(start, 2 * page(), 2 * page(), how, new).unwrap();
        assert!(is_locked(new) && is_locked(new + page()));
        s.munlock(new, 2 * page()).unwrap();
        assert!(!is_locked(new));
    }
});

on!(l06_dontneed_of_something_locked_is_einval, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(2 * page()), flags);
        store(start, 9).unwrap();
        s.mlock(start, page()).unwrap();
        assert_eq!(s.madvise(start, 2 * page(), Advice::DONTNEED), Err(Errno::EINVAL));
        assert_eq!(load(start), Ok(9));
        s.munlock(start, page()).unwrap();
        s.madvise(start, 2 * page(), Advice::DONTNEED).unwrap();
    }
});

on_alone!(l01_a_limit_of_0_is_eperm, [kernel, paged, anonymous, device], |s| {
    let (thing, start) = s.memory(&pattern(2 * page()), SHARED);
    without_capability(CAP_IPC_LOCK);
    limit(libc::RLIMIT_MEMLOCK, 0);
    assert_eq!(s.mlock(start, page()), Err(Errno::EPERM));
    assert_eq!(s.mlock2(start, page(), LockOn::ONFAULT), Err(Errno::EPERM));
    assert!(!is_locked(start));
    assert!(s.column == Column::Kernel || !AddressSpace::at(start).unwrap().is_locked(), "and none is noted");
    assert_eq!(s.munlock(start, page()), Ok(()));
    let made = s.mmap(0, page(), RW, SHARED | MapFlags::LOCKED, thing.as_ref(), 0);
    assert_eq!(made, Err(Errno::EPERM));
    let over = s.mmap(start, page(), RW, SHARED | MapFlags::LOCKED | MapFlags::FIXED, thing.as_ref(), 0);
    assert_eq!(over, Err(Errno::EPERM));
    assert_eq!(load(start), Ok(pattern(1)[0]), "what it was to replace is there");
});

on_alone!(l01_a_limit_that_is_too_small, [kernel, paged, anonymous, device], |s| {
    let (thing, start) = s.memory(&pattern(8 * page()), SHARED);
    without_capability(CAP_IPC_LOCK);
    limit(libc::RLIMIT_MEMLOCK, 3 * page() as u64);
    assert_eq!(s.mlock(start, 4 * page()), Err(Errno::ENOMEM));
    assert!(!is_locked(start), "none, then");
    s.mlock(start, 2 * page()).unwrap();
    s.mlock(start, 3 * page()).unwrap();
    let made = s.mmap(0, page(), RW, SHARED | MapFlags::LOCKED, thing.as_ref(), 0);
    assert_eq!(made, Err(Errno::EAGAIN));
    s.munlock(start, 8 * page()).unwrap();
    let made = s.mmap(0, 2 * page(), RW, SHARED | MapFlags::LOCKED, thing.as_ref(), 0).unwrap();
    let grown = s.mremap(made, 2 * page(), 8 * page(), RemapFlags::MAYMOVE, 0);
    assert_eq!(grown, Err(Errno::EAGAIN));
    assert!(is_locked(made), "it is as it was");
    store(made, 4).unwrap();
    s.munmap(made, 2 * page()).unwrap();
});

on!(l01_the_budgets_own_limit_is_enomem_and_leaves_nothing_locked, [paged], |s| {
    let object: Thing = s.object(&pattern(60 * page()));
    let start = s.map(60 * page(), SHARED, Some(&object));
    assert_eq!(s.mlock(start, 60 * page()), Err(Errno::ENOMEM), "half of 64 pages");
    assert!(!is_locked(start));
    s.mlock(start, 20 * page()).unwrap();
    let made = s.mmap(0, 30 * page(), RW, SHARED | MapFlags::LOCKED, Some(&object), 20 * page() as i64);
    assert_eq!(made, Err(Errno::EAGAIN));
    object.evict();
    assert_eq!(s.resident(start, 21 * page())[19..], [true, false]);
    let fixed = SHARED | MapFlags::LOCKED | MapFlags::FIXED;
    let over = s.mmap(start + 20 * page(), 30 * page(), RW, fixed, Some(&object), 25 * page() as i64);
    assert_eq!(over, Err(Errno::EAGAIN));
    assert_eq!(load(start + 20 * page()), Ok(pattern(21 * page())[20 * page()]), "what it was to replace");
    let over = s.mmap(start, 10 * page(), RW, fixed, Some(&object), 25 * page() as i64).unwrap();
    assert!(is_locked(over));
    object.evict();
    assert_eq!(s.resident(start, 21 * page()), [[true; 20].as_slice(), &[false]].concat());
    s.munmap(start, 20 * page()).unwrap();
    s.mlock(start + 20 * page(), 32 * page()).expect("what is unmapped is not locked");
});

on_alone!(l01_what_is_locked_as_it_comes_can_be_brought_without_rights, [kernel, paged], |s| {
    give_up_rights(s);
    // As much as the budget lets.
    let (_thing, start) = s.memory(&pattern(32 * page()), SHARED);
    s.mlock2(start, 32 * page(), LockOn::ONFAULT).unwrap();
    s.mlock(start, 32 * page()).unwrap();
    assert_eq!(s.resident(start, 32 * page()), [true; 32]);
});

on_alone!(l01_limits_come_before_a_range_that_wraps, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(page()), SHARED);
    without_capability(CAP_IPC_LOCK);
    let length = usize::MAX - page();
    limit(libc::RLIMIT_MEMLOCK, 64 << 10);
    assert_eq!(s.mlock(start, length), Err(Errno::ENOMEM));
    limit(libc::RLIMIT_MEMLOCK, 0);
    assert_eq!(s.mlock(start, length), Err(Errno::EPERM));
    assert_eq!(s.munlock(start, length), Err(Errno::EINVAL));
});

on_alone!(a_lock_stays_when_another_fails_and_there_are_no_descriptors, [kernel, paged], |s| {
    let object = s.object(&pattern(4 * page()));
    let start = s.map(4 * page(), SHARED, Some(&object));
    s.munmap(start + 3 * page(), page()).unwrap();
    s.mlock(start, 2 * page()).unwrap();
    // Those that are open stay good: poll(2) looks at the limit, too.
    let free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    limit(libc::RLIMIT_NOFILE, free as u64);
    let answer = s.mlock(start, 4 * page());
    limit(libc::RLIMIT_NOFILE, 1024);
    assert_eq!(answer, Err(Errno::ENOMEM));
    assert!(is_locked(start));
    object.evict();
    assert_eq!(s.resident(start, 2 * page()), [true; 2]);
});
