//! mmap(2): creating a mapping.

use omnimap::posix::{Errno, Inheritance, MapFlags, Prot, RemapFlags, Source};

use crate::child::fork;
use crate::probe::{load, load_signal, store, store_signal};
use crate::subject::{
    NOTHING, PRIVATE, RW, SHARED, SIGBUS, SIGSEGV, free_addresses, limit, limit_addresses, loaded, page,
    pattern,
};
use crate::{on, on_alone};

on!(m01_the_bytes_are_the_objects_from_the_offset_on, [kernel, paged, device], |s| {
    let bytes = pattern(5 * page());
    let object = s.object(&bytes);
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, 2 * page(), Prot::READ, flags, Some(&object), 2 * page() as i64).unwrap();
        assert_eq!(loaded(start, 2 * page()), bytes[2 * page()..4 * page()]);
        s.munmap(start, 2 * page()).unwrap();
    }
});

on!(m02_a_shared_store_is_seen_by_other_mappings_and_reaches_the_store, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let (a, b) = (s.map(3 * page(), SHARED, Some(&object)), s.map(3 * page(), SHARED, Some(&object)));
    store(a + page(), 200).unwrap();
    assert_eq!(load(b + page()), Ok(200));
    assert_eq!(object.bytes()[page()], 200);
    s.munmap(a, 3 * page()).unwrap();
    assert_eq!(object.stored()[page()], 200, "no later than at the unmap");
    s.munmap(b, 3 * page()).unwrap();
});

on!(m03_private_write_is_not_visible_to_others, [kernel, paged, device], |s| {
    let bytes = pattern(3 * page());
    for object in [s.object(&bytes), s.read_only(&bytes)] {
        let (a, b) = (s.map(3 * page(), PRIVATE, Some(&object)), s.map(3 * page(), PRIVATE, Some(&object)));
        store(a + page() + 1, 200).unwrap();
        assert_eq!(load(a + page() + 1), Ok(200));
        assert_eq!(load(a + page()), Ok(bytes[page()]), "the rest of the page was copied");
        assert_eq!(load(b + page() + 1), Ok(bytes[page() + 1]));
        assert_eq!(object.bytes(), bytes);
        s.munmap(a, 3 * page()).unwrap();
        s.munmap(b, 3 * page()).unwrap();
        assert_eq!(object.stored(), bytes);
    }
});

on!(m03_what_was_not_stored_to_privately_goes_on_being_shared, [kernel, paged, device], |s| {
    let object = s.object(&pattern(2 * page()));
    let (private, shared) =
        (s.map(2 * page(), PRIVATE, Some(&object)), s.map(2 * page(), SHARED, Some(&object)));
    load(private).unwrap();
    store(private + page(), 1).unwrap();
    store(shared, 200).unwrap();
    store(shared + page() + 1, 200).unwrap();
    assert_eq!(load(private), Ok(200));
    assert_ne!(load(private + page() + 1), Ok(200));
});

on!(m04_neither_shared_nor_private_is_einval, [kernel, paged, anonymous, device], |s| {
    let object = s.object(&pattern(page()));
    let of = |flags, thing| s.mmap(0, page(), Prot::READ, flags, thing, 0);
    assert_eq!(of(MapFlags(0), Some(&object)), Err(Errno::EINVAL));
    assert_eq!(of(MapFlags(0), NOTHING), Err(Errno::EINVAL));
    assert_eq!(of(SHARED | PRIVATE, NOTHING), Err(Errno::EINVAL));
});

on!(m20_zeros_behind_the_end_that_never_reach_the_object, [kernel, paged, device], |s| {
    let bytes = pattern(page() + 100);
    let object = s.object(&bytes);
    let start = s.map(4 * page(), SHARED, Some(&object));
    assert_eq!(loaded(start + page() + 100, page() - 100), vec![0; page() - 100]);
    store(start + page() + 100, 9).unwrap();
    assert_eq!(load_signal(start + 2 * page()), SIGBUS);
    assert_eq!(store_signal(start + 2 * page(), 1), SIGBUS);
    s.munmap(start, 4 * page()).unwrap();
    assert_eq!(object.bytes(), bytes);
    assert_eq!(object.stored(), bytes);
});

on!(m24_a_store_without_write_is_sigsegv, [kernel, paged, anonymous, device], |s| {
    let object = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, page(), Prot::READ, flags, Some(&object), 0).unwrap();
        assert_eq!(store_signal(start, 1), SIGSEGV);
        assert_eq!(load_signal(start), None);
        let none = s.mmap(0, page(), Prot::NONE, flags, Some(&object), 0).unwrap();
        assert_eq!(load_signal(none), SIGSEGV);
    }
});

on!(m18_a_descriptor_that_is_not_open_is_ebadf, [kernel, device], |s| {
    let of = |fd| s.mmap_source(0, page(), Prot::READ, SHARED, Source::Descriptor(fd), 0);
    assert_eq!(of(-1), Err(Errno::EBADF));
    assert_eq!(of(1 << 20), Err(Errno::EBADF));
});

on_alone!(a_view_is_as_any_other_after_one_that_there_was_no_room_for, [kernel, paged], |s| {
    let bytes = pattern(4 * page());
    let object = s.object(&bytes);
    limit_addresses(0);
    let refused = s.mmap(free_addresses(4 * page()), 4 * page(), RW, SHARED, Some(&object), 0);
    limit(libc::RLIMIT_AS, u64::MAX);
    assert_eq!(refused, Err(Errno::ENOMEM));
    let start = s.mmap(0, 4 * page(), RW, SHARED, Some(&object), 0).unwrap();
    assert_eq!(load(start), Ok(bytes[0]));
    let fixed = s.mmap(free_addresses(page()), page(), RW, SHARED | MapFlags::FIXED, Some(&object), 0);
    let asked = s.mincore(start, page(), &mut [0]);
    assert_eq!((fixed.map(drop), asked, s.munmap(start, 4 * page())), (Ok(()), Ok(()), Ok(())));
});

on!(bits_that_are_no_protection_are_ignored_by_what_comes_later_too, [kernel, paged, anonymous], |s| {
    let (thing, _) = s.memory(&pattern(2 * page()), SHARED);
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, 2 * page(), Prot(RW.0 | 0x100), flags, thing.as_ref(), 0).unwrap();
        store(start, 5).unwrap();
        let there = free_addresses(2 * page());
        let how = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        assert_eq!(s.mremap(start, 2 * page(), 2 * page(), how, there), Ok(there));
        assert_eq!(load(there), Ok(5));
        s.minherit(there, 2 * page(), Inheritance::Copy);
        fork(|| assert_eq!(load(there), Ok(5))).succeeds();
    }
});
