//! mprotect(2): changing what accesses are allowed.

use std::os::fd::AsRawFd;

use omnimap::posix::{AddressSpace, Errno, MapFlags, Prot, RemapFlags, Source};

use crate::probe::{Raised, load, load_signal, store, store_signal};
use crate::subject::{
    NOTHING, PRIVATE, RW, SHARED, SIGSEGV, free_addresses, loaded, page, pattern, protection,
};
use crate::{on, on_alone};

on!(t01_never_more_than_the_object_allows, [kernel, paged, device], |s| {
    let object = s.read_only(&pattern(2 * page()));
    let start = s.mmap(0, 2 * page(), Prot::READ, SHARED, Some(&object), 0).unwrap();
    assert_eq!(s.mprotect(start, page(), RW), Err(Errno::EACCES));
    assert_eq!(store_signal(start, 1), SIGSEGV);
    s.mprotect(start, page(), Prot::NONE).unwrap();
    assert_eq!(load_signal(start), SIGSEGV);
    assert_eq!(load_signal(start + page()), None);
    s.mprotect(start, page(), Prot::READ).unwrap();
    assert_eq!(load_signal(start), None);
});

on!(t01_exactly_the_given_protection_for_exactly_the_range, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(5 * page());
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&bytes, flags);
        for (prot, letters) in [(Prot::READ, "r--"), (Prot::NONE, "---"), (Prot::WRITE, "-w-"), (RW, "rw-")] {
            s.mprotect(start + page(), 2 * page() + 1, prot).unwrap();
            for at in 0..5 {
                let expected = if (1..4).contains(&at) { letters } else { "rw-" };
                let found = protection(start + at * page()).unwrap();
                assert!(found.starts_with(expected), "{at} {prot:?}: {found}");
            }
            assert_eq!(store_signal(start, 1), None);
            assert_eq!(load_signal(start + page()).is_some(), prot == Prot::NONE);
            assert_eq!(store_signal(start + 4 * page(), 1), None);
            let may_store = prot == RW || prot == Prot::WRITE;
            assert_eq!(store_signal(start + 3 * page(), bytes[3 * page()]).is_none(), may_store);
        }
        assert_eq!(loaded(start + page(), 3 * page()), bytes[page()..4 * page()]);
    }
});

on!(t01_a_hole_is_enomem_and_pages_before_it_have_changed, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(5 * page()), flags);
        s.munmap(start + 2 * page(), page()).unwrap();
        assert_eq!(s.mprotect(start, 5 * page(), Prot::READ), Err(Errno::ENOMEM));
        for (at, stores) in [(0, SIGSEGV), (1, SIGSEGV), (3, None), (4, None)] {
            assert_eq!(store_signal(start + at * page(), 1), stores, "{at}");
        }
        // Whatever is known of it afterwards is what the kernel has.
        s.mprotect(start, page(), RW).unwrap();
        store(start, 2).unwrap();
        assert_eq!(s.mprotect(start + 2 * page(), page(), RW), Err(Errno::ENOMEM), "a hole alone");
    }
});

on!(t01_pages_before_one_that_is_refused_have_changed, [kernel, paged, device], |s| {
    let (object, read_only) = (s.object(&pattern(2 * page())), s.read_only(&pattern(2 * page())));
    let start = free_addresses(4 * page());
    let fixed = SHARED | MapFlags::FIXED;
    s.mmap(start, 2 * page(), Prot::READ, fixed, Some(&object), 0).unwrap();
    s.mmap(start + 2 * page(), 2 * page(), Prot::READ, fixed, Some(&read_only), 0).unwrap();
    assert_eq!(s.mprotect(start, 4 * page(), RW), Err(Errno::EACCES));
    assert_eq!([0, 1, 2, 3].map(|at| store_signal(start + at * page(), 1)), [None, None, SIGSEGV, SIGSEGV]);
});

on!(t01_what_changed_before_the_kernels_own_mapping_refused_is_known, [paged], |s| {
    let object = s.object(&pattern(2 * page()));
    let path = s.path("read-only");
    std::fs::write(&path, pattern(2 * page())).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let start = free_addresses(4 * page());
    let fixed = SHARED | MapFlags::FIXED;
    s.mmap(start, 2 * page(), Prot::READ, fixed, Some(&object), 0).unwrap();
    let descriptor = Source::Descriptor(file.as_raw_fd());
    s.mmap_source(start + 2 * page(), 2 * page(), Prot::READ, fixed, descriptor, 0).unwrap();
    assert_eq!(s.mprotect(start, 4 * page(), RW), Err(Errno::EACCES));
    assert_eq!([0, 1, 2, 3].map(|at| store_signal(start + at * page(), 1)), [None, None, SIGSEGV, SIGSEGV]);
    let noted = |at| AddressSpace::at(start + at * page()).map(|mapping| mapping.prot());
    assert_eq!([noted(1), noted(2)], [Some(RW), Some(Prot::READ)]);
});

on!(t01_across_mappings_of_several_kinds, [kernel, paged, anonymous, device], |s| {
    let (thing, _) = s.memory(&pattern(2 * page()), SHARED);
    let start = free_addresses(6 * page());
    let fixed = MapFlags::FIXED;
    s.mmap(start, 2 * page(), RW, SHARED | fixed, thing.as_ref(), 0).unwrap();
    s.mmap(start + 2 * page(), 2 * page(), RW, PRIVATE | fixed, NOTHING, 0).unwrap();
    s.mmap(start + 4 * page(), 2 * page(), RW, PRIVATE | fixed, thing.as_ref(), 0).unwrap();
    s.mprotect(start + page(), 4 * page(), Prot::READ).unwrap();
    let stores = [0, 1, 2, 3, 4, 5].map(|at| store_signal(start + at * page(), 1).is_none());
    assert_eq!(stores, [true, false, false, false, false, true]);
});

on!(t01_bad_ranges, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(2 * page()), SHARED);
    assert_eq!(s.mprotect(start + 1, page(), Prot::READ), Err(Errno::EINVAL));
    assert_eq!(s.mprotect(start, usize::MAX, Prot::READ), Err(Errno::ENOMEM));
    assert_eq!(s.mprotect(start, usize::MAX - start, Prot::READ), Err(Errno::ENOMEM));
    assert_eq!(s.mprotect(start, 0, Prot::READ), Ok(()));
    assert_eq!(s.mprotect(start + 1, 0, Prot::READ), Err(Errno::EINVAL));
    assert_eq!(s.mprotect(start, page(), Prot(0x4000)), Err(Errno::EINVAL));
    assert_eq!(store_signal(start, 1), None, "nothing has changed");
});

on!(t01_no_access_keeps_the_bytes, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = s.memory(&pattern(page()), flags);
        store(start, 200).unwrap();
        s.mprotect(start, page(), Prot::NONE).unwrap();
        let raised = Raised { signal: libc::SIGSEGV, code: 2, address: start };
        assert_eq!(load(start), Err(raised), "SEGV_ACCERR");
        if let Some(thing) = &thing {
            thing.evict();
        }
        s.mprotect(start, page(), RW).unwrap();
        assert_eq!(load(start), Ok(200));
    }
    let none = s.mmap(0, page(), Prot::NONE, PRIVATE, NOTHING, 0).unwrap();
    s.mprotect(none, page(), RW).unwrap();
    store(none, 1).unwrap();
});

on_alone!(what_changed_before_there_were_too_many_mappings_stays_changed, [kernel, paged], |s| {
    let object = s.object(&pattern(8 * page()));
    let start = free_addresses(8 * page());
    let fixed = SHARED | MapFlags::FIXED;
    s.mmap(start, 2 * page(), RW, fixed, Some(&object), 0).unwrap();
    s.mmap(start + 2 * page(), 4 * page(), RW, fixed, Some(&object), 4 * page() as i64).unwrap();
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let base = free_addresses(most * page());
    let count = (0..most).take_while(|at| {
        let prot = if at % 2 == 0 { Prot::READ } else { RW };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing.
        let made = unsafe { libc::mmap((base + at * page()) as *mut _, page(), prot.0, flags, -1, 0) };
        made != libc::MAP_FAILED
    });
    let count = count.count();
    let answer = s.mprotect(start, 4 * page(), Prot::READ);
    // SAFETY: made here.
    assert_eq!(unsafe { libc::munmap(base as *mut _, count * page()) }, 0);
    assert_eq!(answer, Err(Errno::ENOMEM), "the second would have to be cut");
    let there = free_addresses(2 * page());
    let how = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    assert_eq!(s.mremap(start, 2 * page(), 2 * page(), how, there), Ok(there));
    assert_eq!(store_signal(there, 1), SIGSEGV);
});
