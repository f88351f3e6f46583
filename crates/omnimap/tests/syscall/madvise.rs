//! madvise(2), posix_madvise(3): advice.

use omnimap::posix::{AddressSpace, Advice, Errno, Inheritance, MapFlags, Prot, posix_madvise};

use crate::on;
use crate::probe::{load, load_signal, store};
use crate::subject::{
    Column, NOTHING, PRIVATE, RW, SHARED, SIGBUS, SIGSEGV, forked, free_addresses, loaded, map_as_others,
    page, pattern,
};

const HINTS: [Advice; 10] = [
    Advice::NORMAL,
    Advice::RANDOM,
    Advice::SEQUENTIAL,
    Advice::WILLNEED,
    Advice::COLD,
    Advice::PAGEOUT,
    Advice::POPULATE_READ,
    Advice::POPULATE_WRITE,
    Advice::DONTDUMP,
    Advice::DODUMP,
];

on!(l06_hints_change_no_byte, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(8 * page());
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&bytes, flags);
        let mut expected = bytes.clone();
        expected[3 * page()] = 200;
        store(start + 3 * page(), 200).unwrap();
        for advice in HINTS {
            assert_eq!(s.madvise(start + page(), 6 * page(), advice), Ok(()), "{advice:?}");
            assert_eq!(s.madvise(start, 0, advice), Ok(()), "{advice:?}");
            assert_eq!(loaded(start, 8 * page()), expected, "{advice:?}");
        }
    }
});

on!(l06_dontneed_drops_private_pages_and_keeps_shared_ones, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(4 * page());
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = s.memory(&bytes, flags);
        (0..4).for_each(|at| store(start + at * page(), 200).unwrap());
        s.madvise(start + page(), page() + 1, Advice::DONTNEED).unwrap();
        let dropped = if thing.is_some() { bytes[page()] } else { 0 };
        let expected = if flags == PRIVATE { [200, dropped, 0, 200] } else { [200; 4] };
        let second = if thing.is_some() { bytes[2 * page()] } else { 0 };
        let expected = if flags == PRIVATE { [expected[0], expected[1], second, 200] } else { expected };
        assert_eq!([0, 1, 2, 3].map(|at| load(start + at * page()).unwrap()), expected, "{flags:?}");
        s.mprotect(start, page(), Prot::NONE).unwrap();
        s.madvise(start, page(), Advice::DONTNEED).unwrap();
    }
});

on!(l06_dontneed_in_a_child_is_the_childs_alone, [kernel, anonymous], |s| {
    let (thing, start) = s.memory(&pattern(page()), PRIVATE);
    store(start, 200).unwrap();
    let seen = forked(|| {
        // SAFETY: as the test's own calls; the child has one thread, and takes no lock.
        unsafe { libc::madvise(start as *mut _, page(), libc::MADV_DONTNEED) };
        load(start).unwrap_or(99)
    });
    let dropped = thing.map_or(0, |_| pattern(1)[0]);
    assert_eq!((seen, load(start)), (dropped, Ok(200)));
});

on!(l06_dontneed_drops_exactly_the_named_bytes_of_huge_pages, [kernel, anonymous], |s| {
    const HUGE: usize = 2 << 20;
    let base = s.map(5 * HUGE, PRIVATE, None).next_multiple_of(HUGE);
    s.madvise(base, 4 * HUGE, Advice::HUGEPAGE).unwrap();
    for pages in [1, 2, 3] {
        for (before, after) in [(page(), 0), (0, page()), (page(), page())] {
            (base..base + 4 * HUGE).step_by(page()).for_each(|at| store(at, 1).unwrap());
            let (start, end) = (base + before, base + pages * HUGE - after);
            s.madvise(start, end - start, Advice::DONTNEED).unwrap();
            for at in (base..base + 4 * HUGE).step_by(page()) {
                assert_eq!(load(at), Ok(u8::from(!(start..end).contains(&at))), "{:x}", at - base);
            }
        }
    }
});

on!(l06_free_is_for_private_anonymous_memory_alone, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(2 * page());
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = s.memory(&bytes, flags);
        let answer = s.madvise(start, 2 * page(), Advice::FREE);
        if thing.is_none() && flags == PRIVATE {
            assert_eq!(answer, Ok(()));
            assert!([0, bytes[0]].contains(&load(start).unwrap()));
        } else {
            assert_eq!(answer, Err(Errno::EINVAL));
            assert_eq!(loaded(start, 2 * page()), bytes);
        }
    }
});

on!(l06_remove_leaves_zeros_in_the_object, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(4 * page());
    let (thing, start) = s.memory(&bytes, SHARED);
    store(start + page(), 200).unwrap();
    s.madvise(start + page(), 2 * page(), Advice::REMOVE).unwrap();
    let expected = [&bytes[..page()], &vec![0; 2 * page()], &bytes[3 * page()..]].concat();
    assert_eq!(loaded(start, 4 * page()), expected);
    if let Some(thing) = thing {
        assert_eq!(thing.bytes(), expected);
        s.munmap(start, 4 * page()).unwrap();
        assert_eq!(thing.stored(), expected);
    }
});

on!(l06_remove_is_refused_where_stores_do_not_reach_the_object, [kernel, paged, device], |s| {
    let bytes = pattern(2 * page());
    let (object, read_only) = (s.object(&bytes), s.read_only(&bytes));
    let private = s.map(2 * page(), PRIVATE, Some(&object));
    assert_eq!(s.madvise(private, page(), Advice::REMOVE), Err(Errno::EACCES));
    let read = s.mmap(0, 2 * page(), Prot::READ, SHARED, Some(&read_only), 0).unwrap();
    assert_eq!(s.madvise(read, page(), Advice::REMOVE), Err(Errno::EACCES));
    let shared = s.map(2 * page(), SHARED, Some(&object));
    s.mlock(shared, page()).unwrap();
    assert_eq!(s.madvise(shared, page(), Advice::REMOVE), Err(Errno::EINVAL));
    assert_eq!(object.bytes(), bytes);
    // Protection has nothing to do with it.
    s.munlock(shared, page()).unwrap();
    s.mprotect(shared, 2 * page(), Prot::READ).unwrap();
    assert_eq!(s.madvise(shared, page(), Advice::REMOVE), Ok(()));
    assert_eq!(load(shared), Ok(0));
});

on!(l06_willneed_and_populate_bring_the_range, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let thing = (!s.is_anonymous()).then(|| s.object(&pattern(6 * page())));
        if let Some(thing) = &thing {
            thing.evict();
        }
        let start = s.map(6 * page(), flags, thing.as_ref());
        s.madvise(start, 3 * page(), Advice::POPULATE_READ).unwrap();
        assert_eq!(s.resident(start, 3 * page()), [true; 3]);
        s.madvise(start + 3 * page(), page(), Advice::POPULATE_WRITE).unwrap();
        assert!(s.resident(start, 6 * page())[3]);
        s.madvise(start + 4 * page(), 2 * page(), Advice::WILLNEED).unwrap();
        load(start + 5 * page()).unwrap();
    }
});

on!(l06_populate_tells_what_cannot_be_accessed, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, 3 * page(), Prot::READ, flags, Some(&object), 0).unwrap();
        assert_eq!(s.madvise(start, 3 * page(), Advice::POPULATE_READ), Err(Errno::EFAULT), "behind the end");
        assert_eq!(s.madvise(start, page(), Advice::POPULATE_READ), Ok(()));
        assert_eq!(s.madvise(start, page(), Advice::POPULATE_WRITE), Err(Errno::EINVAL), "no stores");
        s.mprotect(start, page(), Prot::NONE).unwrap();
        assert_eq!(s.madvise(start, page(), Advice::POPULATE_READ), Err(Errno::EINVAL));
        assert_eq!(load_signal(start + page()), SIGBUS);
    }
});

on!(l06_bad_ranges_and_advice, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(4 * page()), SHARED);
    s.munmap(start + 2 * page(), page()).unwrap();
    for advice in [Advice::NORMAL, Advice::RANDOM, Advice::SEQUENTIAL, Advice::WILLNEED, Advice::DONTNEED] {
        assert_eq!(s.madvise(start + 1, page(), advice), Err(Errno::EINVAL), "{advice:?}");
        assert_eq!(s.madvise(start, usize::MAX, advice), Err(Errno::EINVAL), "{advice:?}");
        assert_eq!(s.madvise(start, usize::MAX - start + 1, advice), Err(Errno::EINVAL), "{advice:?}");
        assert_eq!(s.madvise(start, 4 * page(), advice), Err(Errno::ENOMEM), "{advice:?}: a hole");
        assert_eq!(s.madvise(start + 2 * page(), page(), advice), Err(Errno::ENOMEM), "{advice:?}");
    }
    for advice in
        [Advice::POPULATE_READ, Advice::POPULATE_WRITE, Advice::COLD, Advice::PAGEOUT, Advice::REMOVE]
    {
        assert_eq!(s.madvise(start, 4 * page(), advice), Err(Errno::ENOMEM), "{advice:?}: a hole");
        assert_eq!(s.madvise(start + 1, page(), advice), Err(Errno::EINVAL), "{advice:?}");
    }
    assert_eq!(s.madvise(start, page(), Advice(77)), Err(Errno::EINVAL));
    assert_eq!(s.madvise(start, 0, Advice(77)), Err(Errno::EINVAL));
    if s.is_paged() {
        for guard in [102, 103] {
            assert_eq!(s.madvise(start, page(), Advice(guard)), Err(Errno::EINVAL));
        }
    }
});

on!(l06_what_lies_behind_a_hole_is_done, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page());
    let (thing, start) = s.memory(&bytes, PRIVATE);
    store(start + 2 * page(), 200).unwrap();
    s.munmap(start + page(), page()).unwrap();
    assert_eq!(s.madvise(start, 3 * page(), Advice::DONTNEED), Err(Errno::ENOMEM));
    let expected = if thing.is_some() { bytes[2 * page()] } else { 0 };
    assert_eq!(load(start + 2 * page()), Ok(expected));
    assert_eq!(load_signal(start + page()), SIGSEGV);
});

on!(l06_posix_madvise_never_loses_a_byte, [paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(3 * page()), flags);
        store(start, 200).unwrap();
        let of = |at: usize, advice| posix_madvise(at as *mut _, 3 * page(), advice);
        for advice in [Advice::NORMAL, Advice::RANDOM, Advice::SEQUENTIAL, Advice::WILLNEED, Advice::DONTNEED]
        {
            assert_eq!(of(start, advice), Ok(()));
            assert_eq!(of(start + 1, advice), Err(Errno::EINVAL));
            assert_eq!(of(free_addresses(3 * page()), advice), Err(Errno::ENOMEM));
        }
        assert_eq!(of(start, Advice::REMOVE), Err(Errno::EINVAL));
        assert_eq!(load(start), Ok(200));
    }
});

on!(x5_a_generators_state_is_wiped_in_the_child, [kernel, anonymous], |s| {
    let start = s.map(2 * page(), PRIVATE, None);
    store(start, 99).unwrap();
    store(start + page(), 98).unwrap();
    s.madvise(start, page(), Advice::WIPEONFORK).unwrap();
    let seen = forked(|| load(start).unwrap_or(99) + load(start + page()).unwrap_or(0));
    assert_eq!((seen, load(start)), (98, Ok(99)));
    s.madvise(start, page(), Advice::KEEPONFORK).unwrap();
    assert_eq!(forked(|| load(start).unwrap_or(0)), 99);
});

on!(l06_wipeonfork_is_for_private_anonymous_memory_alone, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        let start = s.map(page(), flags, Some(&object));
        assert_eq!(s.madvise(start, page(), Advice::WIPEONFORK), Err(Errno::EINVAL));
        for advice in [Advice::DONTFORK, Advice::DOFORK] {
            assert_eq!(s.madvise(start, page(), advice), Ok(()));
            assert_eq!(s.madvise(start, 0, advice), Ok(()));
            assert_eq!(s.madvise(start + 1, page(), advice), Err(Errno::EINVAL));
            assert_eq!(s.madvise(start, usize::MAX - page(), advice), Err(Errno::EINVAL));
        }
    }
    let shared = s.map(page(), SHARED | MapFlags::NORESERVE, None);
    assert_eq!(s.madvise(shared, page(), Advice::WIPEONFORK), Err(Errno::EINVAL));
});

on!(remove_reaches_what_others_mapped, [kernel, paged], |s| {
    let object = s.object(&pattern(page()));
    let start = free_addresses(4 * page());
    s.mmap(start, page(), RW, SHARED | MapFlags::FIXED, Some(&object), 0).unwrap();
    map_as_others(start + page(), page(), libc::MAP_SHARED);
    store(start + page(), 7).unwrap();
    assert_eq!(s.madvise(start, 2 * page(), Advice::REMOVE), Ok(()));
    assert_eq!([0, 1].map(|at| load(start + at * page())), [Ok(0); 2]);
    store(start + page(), 7).unwrap();
    assert_eq!(
        s.madvise(start, 3 * page(), Advice::REMOVE),
        Err(Errno::ENOMEM),
        "nothing is mapped behind it"
    );
    assert_eq!(load(start + page()), Ok(0));
    map_as_others(start + 2 * page(), page(), libc::MAP_PRIVATE);
    assert_eq!(s.madvise(start, 3 * page(), Advice::REMOVE), Err(Errno::EINVAL), "private memory");
});

on!(advice_about_children_counts_up_to_the_mapping_that_refuses_it, [kernel, anonymous], |s| {
    let start = free_addresses(3 * page());
    for (at, flags) in [(0, PRIVATE), (1, SHARED), (2, PRIVATE)] {
        s.mmap(start + at * page(), page(), RW, flags | MapFlags::FIXED, NOTHING, 0).unwrap();
        store(start + at * page(), 7).unwrap();
    }
    assert_eq!(s.madvise(start, 3 * page(), Advice::WIPEONFORK), Err(Errno::EINVAL));
    let seen = [0, 1, 2].map(|at| forked(|| load(start + at * page()).unwrap_or(99)));
    assert_eq!(seen, [0, 7, 7]);
    if s.column == Column::Anonymous {
        let noted = [0, 1, 2].map(|at| AddressSpace::at(start + at * page()).unwrap().inheritance());
        assert_eq!(noted, [Inheritance::Zero, Inheritance::Natural, Inheritance::Natural]);
    }
});
