//! mremap(2): shorter, longer, elsewhere.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use omnimap::MapOptions;
use omnimap::posix::{Errno, MapFlags, Prot, RemapFlags, Source};
use omnimap::store::{Faulty, MemoryStore, Misbehaviour};

use crate::on;
use crate::probe::{load, load_signal, store, store_signal};
use crate::subject::{
    NOTHING, PRIVATE, RW, SHARED, SIGBUS, SIGSEGV, Subject, Thing, free_addresses, is_locked, loaded, page,
    pattern,
};

const IN_PLACE: RemapFlags = RemapFlags(0);
const MAYMOVE: RemapFlags = RemapFlags::MAYMOVE;
const FIXED: RemapFlags = RemapFlags(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
const DONTUNMAP: RemapFlags = RemapFlags(libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP);

/// Some pages of memory, mapped at the second of an arena of 40.
fn in_arena(s: &Subject, pages: usize, flags: MapFlags) -> (Option<Thing>, usize) {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(8 * page())));
    let start = free_addresses(40 * page()) + page();
    let made = s.mmap(start, pages * page(), RW, flags | MapFlags::FIXED, thing.as_ref(), 0);
    assert_eq!(made, Ok(start));
    if thing.is_none() {
        let bytes = pattern(pages * page());
        (0..pages * page()).for_each(|i| store(start + i, bytes[i]).unwrap());
    }
    (thing, start)
}

on!(r01_shrinking_in_place_leaves_the_rest, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        for how in [IN_PLACE, MAYMOVE] {
            let (_thing, start) = in_arena(s, 6, flags);
            store(start + page(), 200).unwrap();
            assert_eq!(s.mremap(start, 6 * page(), 2 * page(), how, 0), Ok(start));
            assert_eq!(load(start + page()), Ok(200));
            assert_eq!(load_signal(start + 2 * page()), SIGSEGV);
            assert_eq!(load_signal(start + 5 * page()), SIGSEGV);
        }
        // A part of a larger mapping: what lies behind stays.
        let (_thing, start) = in_arena(s, 6, flags);
        assert_eq!(s.mremap(start + page(), 3 * page(), page(), IN_PLACE, 0), Ok(start + page()));
        let there = [0, 1, 2, 3, 4, 5].map(|at| load_signal(start + at * page()).is_none());
        assert_eq!(there, [true, true, false, false, true, true]);
        assert_eq!(load(start + 5 * page()), Ok(pattern(6 * page())[5 * page()]));
    }
});

on!(r01_shrinking_across_two_protections, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 4, flags);
        s.mprotect(start + 2 * page(), 2 * page(), Prot::READ).unwrap();
        assert_eq!(s.mremap(start, 4 * page(), 3 * page(), IN_PLACE, 0), Ok(start));
        let stores = [0, 1, 2].map(|at| store_signal(start + at * page(), 1));
        assert_eq!(stores, [None, None, SIGSEGV]);
        assert_eq!(load_signal(start + 3 * page()), SIGSEGV);
    }
});

on!(r01_growing_in_place, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = in_arena(s, 2, flags);
        store(start + page(), 200).unwrap();
        assert_eq!(s.mremap(start, 2 * page(), 4 * page(), IN_PLACE, 0), Ok(start));
        assert_eq!(load(start + page()), Ok(200));
        if thing.is_some() {
            assert_eq!(loaded(start + 2 * page(), 2 * page()), pattern(8 * page())[2 * page()..4 * page()]);
            store(start + 3 * page(), 201).unwrap();
            assert_eq!(load(start + 3 * page()), Ok(201));
        } else if flags == PRIVATE {
            assert_eq!(load(start + 2 * page()), Ok(0));
        } else {
            assert_eq!(load_signal(start + 2 * page()), SIGBUS, "shared memory keeps its length");
        }
        assert_eq!(load_signal(start + 4 * page()), SIGSEGV);
        // The head of a mapping does not grow into its tail.
        assert_eq!(s.mremap(start, page(), 2 * page(), IN_PLACE, 0), Err(Errno::ENOMEM));
        s.munmap(start, 4 * page()).unwrap();
    }
});

on!(r01_no_room_is_enomem_and_nothing_changes, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 2, flags);
        let fixed = PRIVATE | MapFlags::FIXED;
        s.mmap(start + 3 * page(), page(), RW, fixed, NOTHING, 0).unwrap();
        store(start, 200).unwrap();
        assert_eq!(s.mremap(start, 2 * page(), 4 * page(), IN_PLACE, 0), Err(Errno::ENOMEM));
        assert_eq!((load(start), load_signal(start + 2 * page())), (Ok(200), SIGSEGV));
        store(start + 3 * page(), 7).unwrap();
        let moved = s.mremap(start, 2 * page(), 4 * page(), MAYMOVE, 0).unwrap();
        assert_ne!(moved, start);
        assert_eq!(load(moved), Ok(200));
        assert_eq!(load_signal(start), SIGSEGV);
        assert_eq!(load(start + 3 * page()), Ok(7), "the neighbour");
    }
});

on!(
    r01_private_pages_and_the_objects_move_along_and_the_tail_is_new,
    [kernel, paged, anonymous, device],
    |s| {
        let (thing, start) = in_arena(s, 3, PRIVATE);
        store(start + page(), 200).unwrap();
        let new = free_addresses(6 * page());
        assert_eq!(s.mremap(start, 3 * page(), 5 * page(), FIXED, new), Ok(new));
        let bytes = pattern(8 * page());
        assert_eq!(
            [load(new), load(new + page()), load(new + page() + 1)],
            [bytes[0], 200, bytes[page() + 1]].map(Ok)
        );
        assert_eq!(load(new + 4 * page()), Ok(if thing.is_some() { bytes[4 * page()] } else { 0 }));
        assert_eq!(load_signal(start + page()), SIGSEGV);
        if let Some(thing) = &thing {
            assert_eq!(thing.bytes(), bytes);
            thing.evict();
            assert_eq!([load(new), load(new + page())], [bytes[0], 200].map(Ok), "evicted and back");
        }
    }
);

on!(r01_a_shared_mapping_moves_and_stays_shared, [kernel, paged, device], |s| {
    let (thing, start) = in_arena(s, 3, SHARED);
    let thing = thing.unwrap();
    store(start + page(), 200).unwrap();
    let new = free_addresses(6 * page());
    assert_eq!(s.mremap(start + page(), 2 * page(), 3 * page(), FIXED, new), Ok(new));
    assert_eq!((load(new), load_signal(start), load_signal(start + page())), (Ok(200), None, SIGSEGV));
    store(new + 2 * page(), 201).unwrap();
    assert_eq!(thing.bytes()[3 * page()], 201);
    s.munmap(new, 3 * page()).unwrap();
    s.munmap(start, page()).unwrap();
    assert_eq!([thing.stored()[page()], thing.stored()[3 * page()]], [200, 201]);
});

// The kernel makes one mapping of neighbours that are alike, and what a move does to that, it does to both.
on!(r01_pages_that_return_to_their_neighbours_leave_those_as_they_are, [kernel, paged, device], |s| {
    let (thing, start) = in_arena(s, 4, PRIVATE);
    let thing = thing.unwrap();
    let bytes = pattern(8 * page());
    s.mprotect(start, 4 * page(), Prot::NONE).unwrap();
    let aside = free_addresses(page());
    assert_eq!(s.mremap(start + 2 * page(), page(), page(), FIXED, aside), Ok(aside));
    assert_eq!(s.mremap(aside, page(), page(), FIXED, start + 2 * page()), Ok(start + 2 * page()));
    s.mprotect(start, 4 * page(), RW).unwrap();
    thing.evict();
    for at in (0..4).map(|index| index * page() + 1) {
        assert_eq!(load(start + at), Ok(bytes[at]));
        assert_eq!(store(start + at, 200), Ok(()));
    }
    assert_eq!(thing.bytes(), bytes);
});

on!(r01_protection_moves_along, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        for prot in [Prot::READ, Prot::NONE] {
            let (_thing, start) = in_arena(s, 2, flags);
            s.mprotect(start, 2 * page(), prot).unwrap();
            let new = free_addresses(2 * page());
            assert_eq!(s.mremap(start, 2 * page(), 2 * page(), FIXED, new), Ok(new));
            assert_eq!(load_signal(new), if prot == Prot::NONE { SIGSEGV } else { None });
            assert_eq!(store_signal(new, 1), SIGSEGV);
            s.mprotect(new, 2 * page(), RW).unwrap();
            assert_eq!(load(new + page()), Ok(pattern(2 * page())[page()]));
        }
    }
});

on!(r01_fixed_replaces_what_is_there, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 2, flags);
        let (_other, there) = in_arena(s, 4, SHARED);
        store(start, 200).unwrap();
        assert_eq!(s.mremap(start, 2 * page(), 2 * page(), FIXED, there + page()), Ok(there + page()));
        let bytes = pattern(4 * page());
        let found = [0, 1, 2, 3].map(|at| load(there + at * page()).unwrap());
        assert_eq!(found, [bytes[0], 200, bytes[page()], bytes[3 * page()]]);
        assert_eq!(load_signal(start), SIGSEGV);
        // Onto memory of another kind, and shorter.
        let plain = s.map(3 * page(), PRIVATE, None);
        assert_eq!(s.mremap(there + page(), 2 * page(), page(), FIXED, plain + page()), Ok(plain + page()));
        assert_eq!([0, 1, 2].map(|at| load(plain + at * page())), [Ok(0), Ok(200), Ok(0)]);
        assert_eq!(
            [1, 2].map(|at| load_signal(there + at * page())),
            [SIGSEGV; 2],
            "the source's tail is gone"
        );
    }
});

on!(r01_anonymous_memory_moves_onto_an_object, [kernel, paged, device], |s| {
    let (thing, there) = in_arena(s, 4, SHARED);
    store(there + page(), 199).unwrap();
    let plain = s.map(2 * page(), PRIVATE, None);
    store(plain, 200).unwrap();
    assert_eq!(s.mremap(plain, 2 * page(), 2 * page(), FIXED, there + page()), Ok(there + page()));
    let bytes = pattern(4 * page());
    let found = [0, 1, 2, 3].map(|at| load(there + at * page()).unwrap());
    assert_eq!(found, [bytes[0], 200, 0, bytes[3 * page()]]);
    assert_eq!(thing.unwrap().stored()[page()], 199, "what was stored to what was replaced");
});

on!(r01_dontunmap_leaves_the_range_without_its_private_pages, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (thing, start) = in_arena(s, 2, flags);
        store(start, 200).unwrap();
        let new = s.mremap(start, 2 * page(), 2 * page(), DONTUNMAP, 0).unwrap();
        assert_ne!(new, start);
        assert_eq!(load(new), Ok(200));
        let first = if flags == SHARED { 200 } else { thing.as_ref().map_or(0, |_| pattern(1)[0]) };
        assert_eq!(load(start), Ok(first));
        assert_eq!(s.mremap(new, 2 * page(), 3 * page(), DONTUNMAP, 0), Err(Errno::EINVAL));
        assert_eq!(s.mremap(new, 2 * page(), page(), DONTUNMAP, 0), Err(Errno::EINVAL));
        s.mlock(new, 2 * page()).unwrap();
        let other = free_addresses(2 * page());
        let how = DONTUNMAP | RemapFlags::FIXED;
        assert_eq!(s.mremap(new, 2 * page(), 2 * page(), how, other), Ok(other));
        assert_eq!(load(other), Ok(200));
        assert_eq!((is_locked(new), is_locked(other)), (false, true), "a lock goes along");
        s.munmap(new, 2 * page()).unwrap();
    }
});

on!(r01_an_old_length_of_0_is_a_second_mapping_of_a_shared_one, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = in_arena(s, 3, SHARED);
    assert_eq!(s.mremap(start, 0, page(), IN_PLACE, 0), Err(Errno::ENOMEM));
    let second = s.mremap(start + page(), 0, 2 * page(), MAYMOVE, 0).unwrap();
    store(second, 200).unwrap();
    assert_eq!(load(start + page()), Ok(200));
    let there = free_addresses(page());
    assert_eq!(s.mremap(start, 0, page(), FIXED, there), Ok(there));
    assert_eq!(load(there), Ok(pattern(1)[0]));
    let (_thing, private) = in_arena(s, 1, PRIVATE);
    assert_eq!(s.mremap(private, 0, page(), MAYMOVE, 0), Err(Errno::EINVAL));
});

on!(r01_bad_arguments, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 4, flags);
        let free = free_addresses(4 * page());
        let of = |old: usize, length, new_length, how, new| s.mremap(old, length, new_length, how, new);
        let two = 2 * page();
        assert_eq!(of(start + 1, two, two, MAYMOVE, 0), Err(Errno::EINVAL));
        assert_eq!(of(start, two, 0, MAYMOVE, 0), Err(Errno::EINVAL));
        assert_eq!(of(start, two, two, RemapFlags(64), 0), Err(Errno::EINVAL));
        assert_eq!(of(start, two, two, RemapFlags::FIXED, free), Err(Errno::EINVAL));
        assert_eq!(of(start, two, two, RemapFlags::DONTUNMAP, free), Err(Errno::EINVAL));
        assert_eq!(of(start, two, two, FIXED, free + 1), Err(Errno::EINVAL));
        assert_eq!(of(start, two, two, FIXED, start), Err(Errno::EINVAL), "onto itself");
        assert_eq!(of(start, two, two, FIXED, start + page()), Err(Errno::EINVAL), "overlapping");
        assert_eq!(of(start, two, 3 * page(), FIXED, start - page()), Err(Errno::EINVAL), "overlapping");
        assert_eq!(of(start, two, two, FIXED, usize::MAX - page() + 1), Err(Errno::EINVAL));
        assert_eq!(of(start, two, usize::MAX, MAYMOVE, 0), Err(Errno::EINVAL), "rounded up to nothing");
        assert_eq!(of(start, two, 1 << 50, MAYMOVE, 0), Err(Errno::EINVAL));
        assert_eq!(of(start, 5 * page(), 6 * page(), MAYMOVE, 0), Err(Errno::EFAULT), "more than there is");
        assert_eq!(of(free, page(), two, MAYMOVE, 0), Err(Errno::EFAULT), "a hole");
        assert_eq!(of(start, 1 << 50, two, MAYMOVE, 0), Err(Errno::EINVAL), "more than there can be");
        assert_eq!(loaded(start, 4 * page()), pattern(4 * page()), "nothing has changed");
        store(start + 3 * page(), 1).unwrap();
        // Rounded up to nothing, which makes a second mapping.
        let second = of(start, usize::MAX, page(), MAYMOVE, 0);
        assert_eq!(
            second.map(load),
            if flags == SHARED { Ok(Ok(pattern(1)[0])) } else { Err(Errno::EINVAL) }
        );
    }
});

on!(r01_a_source_of_two_mappings, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 4, flags);
        s.mprotect(start + 2 * page(), 2 * page(), Prot::READ).unwrap();
        let new = s.map(6 * page(), PRIVATE, None);
        store(new, 77).unwrap();
        assert_eq!(s.mremap(start, 4 * page(), 5 * page(), MAYMOVE, 0), Err(Errno::EFAULT));
        assert_eq!(s.mremap(start, 4 * page(), 3 * page(), FIXED, new), Err(Errno::EFAULT));
        assert_eq!(loaded(start, 4 * page()), pattern(4 * page()));
        assert_eq!(load(new), Ok(77), "nothing is unmapped");
    }
});

on!(r01_several_mappings_are_moved_as_they_are, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 4, flags);
        store(start + page(), 200).unwrap();
        s.mprotect(start + 2 * page(), 2 * page(), Prot::READ).unwrap();
        let new = free_addresses(4 * page());
        let moved = s.mremap(start, 4 * page(), 4 * page(), FIXED, new);
        if moved == Err(Errno::EFAULT) && !s.is_paged() {
            return; // A kernel before 6.17.
        }
        assert_eq!(moved, Ok(new));
        assert_eq!(load(new + page()), Ok(200));
        assert_eq!([1, 2].map(|at| store_signal(new + at * page(), 1)), [None, SIGSEGV]);
        assert_eq!([0, 3].map(|at| load_signal(start + at * page())), [SIGSEGV; 2]);
    }
});

on!(r01_locked_pages_stay_locked_when_they_grow, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 2, flags);
        s.mlock(start, 2 * page()).unwrap();
        assert_eq!(s.mremap(start, 2 * page(), 4 * page(), IN_PLACE, 0), Ok(start));
        assert!(is_locked(start) && is_locked(start + 3 * page()));
        let moved = s.mremap(start, 4 * page(), 6 * page(), MAYMOVE, 0).unwrap();
        assert!(is_locked(moved) && is_locked(moved + 5 * page()));
        s.munlock(moved, 6 * page()).unwrap();
        assert!(!is_locked(moved));
    }
});

on!(r01_what_is_moved_may_be_of_several_kinds_with_holes, [kernel, paged, anonymous, device], |s| {
    let (thing, start) = in_arena(s, 2, SHARED);
    let fixed = MapFlags::FIXED | PRIVATE;
    s.mmap(start + 2 * page(), page(), RW, fixed, NOTHING, 0).unwrap();
    s.mmap(start + 4 * page(), 2 * page(), RW, fixed, thing.as_ref(), 0).unwrap();
    [1, 2, 5].iter().for_each(|at| store(start + at * page(), 200 + *at as u8).unwrap());
    let new = free_addresses(6 * page());
    let moved = s.mremap(start, 6 * page(), 6 * page(), FIXED, new);
    if moved == Err(Errno::EFAULT) && !s.is_paged() {
        return; // A kernel before 6.17.
    }
    assert_eq!(moved, Ok(new));
    assert_eq!([1, 2, 5].map(|at| load(new + at * page())), [Ok(201), Ok(202), Ok(205)]);
    assert_eq!(load_signal(new + 3 * page()), SIGSEGV);
    assert_eq!([0, 2, 4].map(|at| load_signal(start + at * page())), [SIGSEGV; 3]);
    // In the middle of memory of the kernel's there may be an object: it goes with the tail.
    let mixed = s.map(4 * page(), PRIVATE, None);
    s.mmap(mixed + 2 * page(), page(), RW, MapFlags::FIXED | SHARED, thing.as_ref(), 0).unwrap();
    store(mixed, 7).unwrap();
    assert_eq!(s.mremap(mixed, 4 * page(), page(), IN_PLACE, 0), Ok(mixed));
    assert_eq!([0, 1, 2, 3].map(|at| load_signal(mixed + at * page())), [None, SIGSEGV, SIGSEGV, SIGSEGV]);
});

on!(r01_moving_and_getting_shorter_over_several, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = in_arena(s, 4, flags);
        store(start + page(), 200).unwrap();
        s.mprotect(start + 2 * page(), 2 * page(), Prot::READ).unwrap();
        let new = free_addresses(4 * page());
        // What stays is inside the first mapping.
        assert_eq!(s.mremap(start, 4 * page(), 2 * page(), FIXED, new), Ok(new));
        assert_eq!((load(new + page()), load_signal(new + 2 * page())), (Ok(200), SIGSEGV));
        assert_eq!([0, 2, 3].map(|at| load_signal(start + at * page())), [SIGSEGV; 3]);
    }
});

// What the kernel was refused raised no signal, and nothing has taken it back.
on!(e3_r01_a_page_that_failed_comes_when_its_private_mapping_has_moved, [paged], |s| {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::new("fails", pattern(4 * page())))));
    let object =
        MapOptions::new().budget(64 * page() as u64).readahead_max(0).object(faulty.clone()).unwrap();
    let start = s.mmap_source(0, 4 * page(), RW, PRIVATE, Source::Object(&object), 0).unwrap();
    faulty.on_read(page() as u64..2 * page() as u64, Misbehaviour::Fail, u64::MAX);
    store(start, 201).unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    // SAFETY: asks the kernel to read there, which finds out whether it can.
    let written = unsafe { libc::write(writer.as_raw_fd(), (start + page()) as *const _, 1) };
    let error = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((written, error), (-1, Some(libc::EFAULT)));
    faulty.heal();
    let there = free_addresses(4 * page());
    assert_eq!(s.mremap(start, 4 * page(), 4 * page(), FIXED, there), Ok(there));
    assert_eq!([load(there), load(there + page())], [Ok(201), Ok(pattern(2 * page())[page()])]);
});
