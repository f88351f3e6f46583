//! msync(2): in step with the object.

use omnimap::posix::{Errno, Prot, SyncFlags};

use crate::on;
use crate::probe::{load, store};
use crate::subject::{PRIVATE, RW, SHARED, free_addresses, loaded, page, pattern};

const SYNC: SyncFlags = SyncFlags::SYNC;
const ASYNC: SyncFlags = SyncFlags::ASYNC;
const INVALIDATE: SyncFlags = SyncFlags::INVALIDATE;

on!(y01_sync_brings_what_is_dirty_to_the_store, [kernel, paged, device], |s| {
    let object = s.object(&pattern(4 * page()));
    let start = s.map(4 * page(), SHARED, Some(&object));
    (0..4).for_each(|at| store(start + at * page(), 200).unwrap());
    s.msync(start + page(), page() + 1, SYNC).unwrap();
    let stored = object.stored();
    assert_eq!([stored[page()], stored[2 * page()]], [200, 200], "the length is rounded up");
    s.msync(start, 4 * page(), SYNC).unwrap();
    assert_eq!(object.stored()[3 * page()], 200);
    store(start, 201).unwrap();
    s.msync(start, 4 * page(), SYNC).unwrap();
    assert_eq!(object.stored()[0], 201, "again after it was clean");
});

on!(y01_across_mappings_with_a_hole_the_rest_is_done, [kernel, paged, device], |s| {
    let object = s.object(&pattern(4 * page()));
    let start = s.map(4 * page(), SHARED, Some(&object));
    [0, 3].iter().for_each(|at| store(start + at * page(), 200).unwrap());
    s.munmap(start + page(), page()).unwrap();
    assert_eq!(s.msync(start, 4 * page(), SYNC), Err(Errno::ENOMEM));
    let stored = object.stored();
    assert_eq!([stored[0], stored[3 * page()]], [200, 200]);
});

on!(y02_async_needs_nothing_more_to_be_seen_by_a_read, [kernel, paged, device], |s| {
    let object = s.object(&pattern(2 * page()));
    let start = s.map(2 * page(), SHARED, Some(&object));
    store(start, 200).unwrap();
    s.msync(start, 2 * page(), ASYNC).unwrap();
    assert_eq!(object.bytes()[0], 200);
    // It has begun, and needs nobody to wait for it.
    while object.stored()[0] != 200 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
});

on!(y03_invalidate_shows_what_the_store_has, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let start = s.map(3 * page(), SHARED, Some(&object));
    assert!(load(start).is_ok() && load(start + page()).is_ok());
    object.write_behind(1, &[200]);
    s.msync(start, 3 * page(), SYNC | INVALIDATE).unwrap();
    assert_eq!(load(start + 1), Ok(200));
    store(start + page(), 201).unwrap();
    s.msync(start, 3 * page(), INVALIDATE).unwrap();
    assert_eq!(load(start + page()), Ok(201), "what was stored here is not lost");
});

on!(y03_sync_with_async_and_unknown_flags_are_einval, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(page()), SHARED);
    assert_eq!(s.msync(start, page(), SYNC | ASYNC), Err(Errno::EINVAL));
    assert_eq!(s.msync(start, page(), SYNC | ASYNC | INVALIDATE), Err(Errno::EINVAL));
    assert_eq!(s.msync(start, page(), SyncFlags(8)), Err(Errno::EINVAL));
    assert_eq!(s.msync(start + 1, page(), SYNC), Err(Errno::EINVAL));
    assert_eq!(s.msync(start, usize::MAX - 2 * page(), SYNC), Err(Errno::ENOMEM));
    let wraps = usize::MAX - start + 1;
    assert_eq!(s.msync(start, wraps, SYNC), Err(Errno::ENOMEM));
    assert_eq!(s.msync(start, wraps, SYNC | ASYNC), Err(Errno::EINVAL), "flags come first");
    assert_eq!(s.msync(start, usize::MAX, SYNC), Ok(()), "rounded up to nothing");
    assert_eq!(s.msync(start, page(), SyncFlags(0)), Ok(()), "Linux has no need of flags");
});

on!(y03_an_unmapped_page_is_enomem_and_no_length_is_nothing, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(3 * page()), SHARED);
    s.munmap(start + page(), page()).unwrap();
    let free = free_addresses(page());
    for flags in [SYNC, ASYNC, INVALIDATE, SyncFlags(0)] {
        assert_eq!(s.msync(start, 3 * page(), flags), Err(Errno::ENOMEM));
        assert_eq!(s.msync(free, page(), flags), Err(Errno::ENOMEM));
        assert_eq!(s.msync(free, 0, flags), Ok(()));
    }
});

on!(y03_every_kind_of_mapping_syncs, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        for prot in [Prot::READ, RW, Prot::NONE] {
            let bytes = pattern(2 * page());
            let (_thing, start) = s.memory(&bytes, flags);
            s.mprotect(start, 2 * page(), prot).unwrap();
            for how in [SYNC, ASYNC, INVALIDATE, SYNC | INVALIDATE, ASYNC | INVALIDATE] {
                s.msync(start, 2 * page(), how).unwrap();
                s.msync(start, 2 * page() - 1, how).unwrap();
            }
            if prot != Prot::NONE {
                assert_eq!(loaded(start, 2 * page()), bytes);
            }
        }
    }
});

on!(y03_invalidate_of_something_locked_is_ebusy, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(3 * page()), flags);
        s.mlock(start + page(), page()).unwrap();
        for how in [SYNC, ASYNC, SyncFlags(0)] {
            assert_eq!(s.msync(start, 3 * page(), how | INVALIDATE), Err(Errno::EBUSY));
            assert_eq!(s.msync(start, page(), how | INVALIDATE), Ok(()));
            assert_eq!(s.msync(start, 3 * page(), how), Ok(()));
        }
        s.munlock(start, 3 * page()).unwrap();
        s.msync(start, 3 * page(), INVALIDATE).unwrap();
    }
});

on!(y01_private_stores_are_not_synced, [kernel, paged, device], |s| {
    let bytes = pattern(page());
    let object = s.object(&bytes);
    let start = s.map(page(), PRIVATE, Some(&object));
    store(start, 200).unwrap();
    s.msync(start, page(), SYNC | INVALIDATE).unwrap();
    assert_eq!(load(start), Ok(200));
    assert_eq!(object.stored(), bytes);
});
