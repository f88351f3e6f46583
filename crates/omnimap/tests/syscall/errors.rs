//! Bad input to mmap(2): the kernel's errors, and nothing changes. Other calls' are in their own files.

use omnimap::posix::{Errno, MapFlags, Prot, Source};

use crate::probe::{load, store};
use crate::subject::{
    CAP_IPC_LOCK, NOTHING, PRIVATE, RW, SHARED, Thing, free_addresses, limit, loaded, page, pattern,
    without_capability,
};
use crate::{on, on_alone};

on!(m08_an_offset_that_is_not_aligned_and_no_length_are_einval, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        for offset in [1, page() as i64 - 1, page() as i64 + 1, -1] {
            assert_eq!(s.mmap(0, page(), RW, flags, Some(&object), offset), Err(Errno::EINVAL), "{offset}");
        }
        assert_eq!(s.mmap(0, 0, RW, flags, Some(&object), 0), Err(Errno::EINVAL));
        assert_eq!(s.mmap(0, 0, RW, flags, NOTHING, 0), Err(Errno::EINVAL));
    }
});

on!(m08_a_length_that_cannot_fit_is_never_a_wrapped_range, [kernel, paged, anonymous, device], |s| {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(page())));
    for flags in [SHARED, PRIVATE] {
        for length in [usize::MAX, usize::MAX - page() + 2, usize::MAX - page() + 1, 1 << 62, 1 << 48] {
            let made = s.mmap(0, length, Prot::READ, flags, thing.as_ref(), 0);
            // An object's pages have numbers, of which there are not so many (EOVERFLOW).
            assert!(matches!(made, Err(Errno::ENOMEM | Errno::EOVERFLOW)), "{length:x}: {made:?}");
            let (start, there) = (free_addresses(page()), MapFlags::FIXED);
            assert!(s.mmap(start, length, Prot::READ, flags | there, thing.as_ref(), 0).is_err());
        }
        let made = s.mmap(0, usize::MAX, Prot::READ, flags, thing.as_ref(), 0);
        assert_eq!(made, Err(Errno::ENOMEM));
        let top = usize::MAX - 2 * page() + 1;
        let made = s.mmap(top, page(), RW, flags | MapFlags::FIXED, thing.as_ref(), 0);
        assert_eq!(made, Err(Errno::ENOMEM));
    }
});

on!(m08_offsets_at_the_end_of_what_can_be_counted, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    let bytes = page() as i64;
    for flags in [SHARED, PRIVATE] {
        let of = |offset| s.mmap(0, page(), RW, flags, Some(&object), offset);
        for offset in [-bytes, -2 * bytes, i64::MIN, i64::MAX - bytes + 1] {
            assert_eq!(of(offset), Err(Errno::EOVERFLOW), "{offset:x}");
        }
    }
});

on!(m08_errors_are_found_in_the_kernels_order, [kernel, paged, device], |s| {
    let bytes = pattern(2 * page());
    let (object, read_only) = (s.object(&bytes), s.read_only(&bytes));
    let there = s.map(2 * page(), PRIVATE, Some(&object));
    let fresh = MapFlags::FIXED_NOREPLACE;
    // What is there is found before what is asked for is looked at.
    assert_eq!(s.mmap(there, page(), RW, fresh, Some(&object), 0), Err(Errno::EEXIST));
    assert_eq!(s.mmap(there, page(), RW, fresh | SHARED, Some(&read_only), 0), Err(Errno::EEXIST));
    assert_eq!(s.mmap(there + 1, page(), RW, fresh, Some(&object), 0), Err(Errno::EINVAL));
    assert_eq!(s.mmap(0, 0, RW, SHARED, Some(&read_only), 1), Err(Errno::EINVAL));
    assert_eq!(s.mmap(0, page(), RW, SHARED | MapFlags::GROWSDOWN, Some(&read_only), 0), Err(Errno::EACCES));
    assert_eq!(s.mmap(0, page(), RW, SHARED | MapFlags::HUGETLB, Some(&read_only), 0), Err(Errno::EINVAL));
    assert_eq!(s.mmap(0, usize::MAX, RW, SHARED, Some(&read_only), 0), Err(Errno::ENOMEM));
    assert_eq!(s.mmap(0, page(), RW, SHARED, Some(&read_only), -(page() as i64)), Err(Errno::EOVERFLOW));
    for (flags, offset) in [(MapFlags(0), 0), (SHARED, -(page() as i64)), (SHARED, 0)] {
        assert_eq!(s.mmap(0, 1 << 48, RW, flags, Some(&read_only), offset), Err(Errno::ENOMEM), "no room");
    }
    assert_eq!(s.mmap_source(0, 0, RW, MapFlags(0), Source::Descriptor(-1), 0), Err(Errno::EBADF));
    assert_eq!(s.mmap_source(0, 0, RW, MapFlags(0), Source::Descriptor(-1), 1), Err(Errno::EINVAL));
    assert_eq!(loaded(there, 2 * page()), bytes);
});

on_alone!(m18_no_address_space_is_enomem, [kernel, paged, anonymous, device], |s| {
    let thing: Option<Thing> = (!s.is_anonymous()).then(|| s.object(&vec![0; 16 * page()]));
    let start = s.map(16 * page(), SHARED, thing.as_ref());
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').next().unwrap().parse().unwrap();
    // More than the arenas of threads that begin meanwhile (64 MiB each).
    let room = 1 << 19;
    limit(libc::RLIMIT_AS, ((pages + room) * page()) as u64);
    let too_much = s.mmap(0, 2 * room * page(), RW, SHARED, thing.as_ref(), 0);
    assert_eq!(too_much, Err(Errno::ENOMEM));
    let fits = s.mmap(0, room / 2 * page(), RW, SHARED, thing.as_ref(), 0);
    limit(libc::RLIMIT_AS, u64::MAX);
    assert!(fits.is_ok(), "{fits:?}");
    store(start, 1).unwrap();
    assert_eq!(load(start), Ok(1));
});

on_alone!(m08_limits_of_locked_memory_come_before_rights, [kernel, paged, device], |s| {
    let read_only = s.read_only(&pattern(page()));
    without_capability(CAP_IPC_LOCK);
    limit(libc::RLIMIT_MEMLOCK, 0);
    let locked = SHARED | MapFlags::LOCKED;
    assert_eq!(s.mmap(0, page(), RW, locked, Some(&read_only), 0), Err(Errno::EPERM));
});
