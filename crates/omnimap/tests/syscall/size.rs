//! The object's end, behind which there is nothing, and what happens when it moves; bytes by other doors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use omnimap::posix::{Errno, MapFlags, Prot, SyncFlags};
use omnimap::store::{Decorator, MemoryStore};
use omnimap::{BackingStore, Cache, MapOptions};

use crate::on;
use crate::probe::{Raised, load, load_signal, store, store_signal};
use crate::subject::{PRIVATE, RW, SHARED, SIGBUS, Subject, Thing, loaded, page, pattern};

/// Truncates a file that a paged object was opened from, behind its back, or the object itself elsewhere.
fn truncate_behind_its_back(thing: &Thing, length: u64) {
    std::fs::OpenOptions::new().write(true).open(thing.path()).unwrap().set_len(length).unwrap();
}

on!(m20_an_empty_object_can_be_mapped_and_does_not_grow, [kernel, paged, device], |s| {
    let object = s.object(&[]);
    for flags in [SHARED, PRIVATE] {
        let start = s.map(2 * page(), flags, Some(&object));
        assert_eq!(load_signal(start), SIGBUS);
        assert_eq!(store_signal(start + page(), 1), SIGBUS);
        s.munmap(start, 2 * page()).unwrap();
    }
    assert!(object.stored().is_empty());
});

on!(m20_sigbus_says_where, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page() / 2));
    for flags in [SHARED, PRIVATE] {
        for prot in [Prot::READ, Prot::WRITE, RW] {
            let start = s.mmap(0, 3 * page(), prot, flags, Some(&object), 0).unwrap();
            assert_eq!(load(start + page() - 1), Ok(0), "the page that holds the end");
            let address = start + page() + 17;
            let raised = Raised { signal: libc::SIGBUS, code: libc::BUS_ADRERR, address };
            assert_eq!(load(address), Err(raised), "{flags:?} {prot:?}");
            if prot != Prot::READ {
                assert_eq!(store(address, 1), Err(raised));
                assert_eq!(store(start + page() - 1, 0), Ok(()));
            }
        }
    }
});

on!(m20_an_offset_behind_the_end_can_be_mapped, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page() / 2));
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, page(), RW, flags, Some(&object), 10 * page() as i64).unwrap();
        assert_eq!(load_signal(start), SIGBUS);
    }
    object.set_len(11 * page() as u64);
    let start = s.mmap(0, page(), RW, SHARED, Some(&object), 10 * page() as i64).unwrap();
    assert_eq!(load(start), Ok(0));
});

on!(m20_stores_to_the_tail_do_not_come_back_when_the_object_grows, [kernel, paged, device], |s| {
    let half = page() / 2;
    let object = s.object(&pattern(half));
    let start = s.map(page(), SHARED, Some(&object));
    store(start + half, 66).unwrap();
    s.msync(start, page(), SyncFlags::SYNC).unwrap();
    s.munmap(start, page()).unwrap();
    assert_eq!(object.bytes(), pattern(half));
    assert_eq!(object.stored(), pattern(half));
    object.evict();
    object.set_len(page() as u64);
    assert_eq!(object.bytes()[half..], vec![0; half]);
});

on!(m21_behind_a_new_end_is_sigbus_and_before_it_nothing_changes, [kernel, paged, device], |s| {
    let bytes = pattern(4 * page());
    for flags in [SHARED, PRIVATE] {
        for dirty in [false, true] {
            let object = s.object(&bytes);
            let start = s.map(4 * page(), flags, Some(&object));
            (0..4).for_each(|at| assert!(load(start + at * page()).is_ok()));
            if dirty {
                (0..4).for_each(|at| store(start + at * page(), 201).unwrap());
            }
            object.set_len((page() + page() / 2) as u64);
            assert_eq!(load(start), Ok(if dirty { 201 } else { bytes[0] }));
            assert_eq!(load(start + page() + 5), Ok(bytes[page() + 5]));
            // A privately written page keeps what it has; a shared one is cut.
            let copied = dirty && flags == PRIVATE;
            let cut = if copied { bytes[2 * page() - 1] } else { 0 };
            assert_eq!(load(start + 2 * page() - 1), Ok(cut));
            for at in [2, 3] {
                assert_eq!(load_signal(start + at * page()), SIGBUS, "{flags:?} {dirty}");
                assert_eq!(store_signal(start + at * page(), 1), SIGBUS);
            }
            s.munmap(start, 4 * page()).unwrap();
        }
    }
});

on!(m21_what_was_cut_off_comes_back_as_zeros, [kernel, paged, device], |s| {
    for dirty in [false, true] {
        for flags in [SHARED, PRIVATE] {
            let object = s.object(&pattern(2 * page()));
            let start = s.map(2 * page(), flags, Some(&object));
            assert!(load(start).is_ok());
            if dirty {
                store(start, 5).unwrap();
                store(start + page(), 5).unwrap();
            }
            object.set_len(0);
            assert_eq!(load_signal(start), SIGBUS);
            object.set_len(2 * page() as u64);
            assert_eq!(loaded(start, 2 * page()), vec![0; 2 * page()]);
            s.msync(start, 2 * page(), SyncFlags::SYNC).unwrap();
            s.munmap(start, 2 * page()).unwrap();
            assert_eq!(object.stored(), vec![0; 2 * page()], "the dirty page does not come back");
        }
    }
});

on!(m21_a_cut_in_the_middle_of_a_page_leaves_zeros_behind_it, [kernel, paged, device], |s| {
    for dirty in [false, true] {
        let bytes = pattern(page());
        let object = s.object(&bytes);
        let start = s.map(page(), SHARED, Some(&object));
        if dirty {
            store(start, 9).unwrap();
        }
        object.set_len(page() as u64 / 2);
        object.set_len(page() as u64);
        assert_eq!(load(start), Ok(if dirty { 9 } else { bytes[0] }));
        assert_eq!(load(start + page() / 2 - 1), Ok(bytes[page() / 2 - 1]));
        assert_eq!(loaded(start + page() / 2, page() / 2), vec![0; page() / 2]);
    }
});

on!(m21_a_file_truncated_by_others, [kernel, paged, device], |s| {
    let bytes = pattern(4 * page());
    let object = s.object(&bytes);
    let start = s.map(4 * page(), SHARED, Some(&object));
    assert_eq!(load(start), Ok(bytes[0]));
    truncate_behind_its_back(&object, page() as u64);
    assert_eq!(load(start), Ok(bytes[0]), "what is still inside");
    // Of a paged object, what is in memory stays as it was seen (E4); what is not cannot be had.
    let behind =
        if s.is_paged() { evicted(&object, start + 2 * page()) } else { load_signal(start + 2 * page()) };
    assert_eq!(behind, SIGBUS);
});

fn evicted(object: &Thing, address: usize) -> Option<i32> {
    if let Thing::Paged(object, _) = object {
        object.evict().unwrap();
    }
    load_signal(address)
}

on!(m22_what_becomes_part_of_the_object_is_accessible, [kernel, paged, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let object = s.object(&pattern(page() / 2));
        let start = s.map(4 * page(), flags, Some(&object));
        assert_eq!(load_signal(start + 2 * page()), SIGBUS);
        object.set_len(3 * page() as u64);
        assert_eq!(load(start + page() - 1), Ok(0));
        assert_eq!(load(start + 2 * page()), Ok(0));
        store(start + 2 * page(), 7).unwrap();
        assert_eq!(load_signal(start + 3 * page()), SIGBUS);
        s.munmap(start, 4 * page()).unwrap();
        assert_eq!(object.stored()[2 * page()], if flags == SHARED { 7 } else { 0 });
    }
});

on!(m22_a_store_to_the_second_half_after_it_grew_is_in_the_file, [kernel, paged, device], |s| {
    let half = page() / 2;
    let object = s.object(&pattern(half));
    let start = s.map(page(), SHARED, Some(&object));
    store(start, 201).unwrap();
    object.set_len(page() as u64);
    store(start + half + 3, 202).unwrap();
    s.munmap(start, page()).unwrap();
    let stored = object.stored();
    assert_eq!((stored.len(), stored[0], stored[half + 3]), (page(), 201, 202));
});

on!(m02_writes_by_the_other_door_are_seen_at_once, [kernel, paged, device], |s| {
    let object = s.object(&pattern(4 * page()));
    let (shared, private) =
        (s.map(2 * page(), SHARED, Some(&object)), s.map(2 * page(), PRIVATE, Some(&object)));
    assert!(load(shared).is_ok() && load(private).is_ok());
    let swapped = [vec![7; page()], vec![8; page()]].concat();
    object.write(0, &swapped);
    assert_eq!(loaded(shared, 2 * page()), swapped);
    assert_eq!(loaded(private, 2 * page()), swapped, "nothing was copied yet");
    object.write(0, &vec![9; page() + page() / 2]);
    assert_eq!(load(shared + page() + page() / 2 - 1), Ok(9));
    assert_eq!(load(shared + page() + page() / 2), Ok(8));
    // Past what is mapped.
    object.write(page() as u64, &vec![10; 2 * page()]);
    assert_eq!(load(shared + page()), Ok(10));
    assert_eq!(object.bytes()[3 * page() - 1], 10);
});

on!(m02_a_large_mapping_loses_no_edges, [kernel, paged, device], |s| {
    let pages = 150; // More than the budget.
    let object = s.object(&vec![0; pages * page()]);
    let start = s.map(pages * page(), SHARED, Some(&object));
    let bytes = pattern(pages * page());
    for at in (0..bytes.len()).step_by(page() / 4) {
        store(start + at, bytes[at]).unwrap();
        store(start + at + page() / 4 - 1, bytes[at + page() / 4 - 1]).unwrap();
    }
    s.munmap(start, pages * page()).unwrap();
    let stored = object.stored();
    for at in (0..bytes.len()).step_by(page() / 4) {
        assert_eq!(stored[at], bytes[at], "{at}");
        assert_eq!(stored[at + page() / 4 - 1], bytes[at + page() / 4 - 1], "{at}");
    }
});

/// read(2) or write(2) on a pipe, of a byte at an address.
fn through_a_pipe(address: usize, into: bool) -> Result<u8, Errno> {
    let mut ends = [0; 2];
    // SAFETY: fills two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) }, 0);
    let mut byte = 77_u8;
    let answer = if into {
        // SAFETY: the byte is ours.
        assert_eq!(unsafe { libc::write(ends[1], (&raw const byte).cast(), 1) }, 1);
        // SAFETY: the kernel checks the address.
        unsafe { libc::read(ends[0], address as *mut _, 1) }
    } else {
        // SAFETY: the kernel checks the address.
        unsafe { libc::write(ends[1], address as *const _, 1) }
    };
    let answer = if answer == 1 {
        Ok(())
    } else {
        Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap()))
    };
    if answer.is_ok() && !into {
        // SAFETY: the byte is ours.
        assert_eq!(unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) }, 1);
    }
    for end in ends {
        // SAFETY: opened here.
        unsafe { libc::close(end) };
    }
    answer.map(|()| byte)
}

on!(e1_the_kernel_as_the_one_who_accesses_gets_efault, [kernel, paged, device], |s| {
    let bytes = pattern(page() / 2);
    for flags in [SHARED, PRIVATE] {
        let object = s.object(&bytes);
        object.evict();
        let start = s.map(2 * page(), flags, Some(&object));
        assert_eq!(through_a_pipe(start, false), Ok(bytes[0]), "a page that is not in memory");
        assert_eq!(through_a_pipe(start + 1, true), Ok(77));
        assert_eq!(load(start + 1), Ok(77));
        assert_eq!(through_a_pipe(start + page(), false), Err(Errno::EFAULT));
        assert_eq!(through_a_pipe(start + page(), true), Err(Errno::EFAULT));
        let read_only = s.mmap(0, page(), Prot::READ, flags, Some(&object), 0).unwrap();
        assert_eq!(through_a_pipe(read_only, true), Err(Errno::EFAULT));
    }
});

on!(i1_the_same_object_read_and_written_from_its_own_mapping, [kernel, paged, device], |s| {
    let bytes = pattern(2 * page());
    let object = s.object(&bytes);
    object.evict();
    let start = s.map(2 * page(), SHARED, Some(&object));
    // SAFETY: mapped, and nothing else touches it; the bytes are read and written by the object's other door.
    let second = unsafe { std::slice::from_raw_parts_mut((start + page()) as *mut u8, page()) };
    match &object {
        Thing::File(file, _) => {
            use std::os::unix::fs::FileExt;
            assert_eq!(file.read_at(second, 0).unwrap(), page());
            assert_eq!(file.write_at(second, page() as u64).unwrap(), page());
        }
        Thing::Paged(paged, _) => {
            paged.read_at(0, second).unwrap();
            paged.write_at(page() as u64, second).unwrap();
        }
    }
    assert_eq!(loaded(start + page(), page()), bytes[..page()]);
    s.munmap(start, 2 * page()).unwrap();
    assert_eq!(object.stored()[page()..], bytes[..page()]);
});

on!(i1_two_openings_of_one_object_are_one, [kernel, device], |s| {
    let object = s.object(&pattern(page()));
    let other: Thing = s.open(object.path(), omnimap::posix::Rights::ReadWrite);
    let (a, b) = (s.map(page(), SHARED, Some(&object)), s.map(page(), SHARED, Some(&other)));
    store(a, 200).unwrap();
    assert_eq!(load(b), Ok(200));
});

on!(m01_an_object_longer_than_the_budget_is_read_whole, [kernel, paged, device], |s| {
    check_long(s, SHARED);
    check_long(s, PRIVATE);
});

fn check_long(s: &Subject, flags: MapFlags) {
    let bytes = pattern(200 * page());
    let object = s.object(&bytes);
    let start = s.mmap(0, 200 * page(), Prot::READ, flags, Some(&object), 0).unwrap();
    for at in (0..bytes.len()).step_by(509) {
        assert_eq!(load(start + at), Ok(bytes[at]), "{at}");
    }
    s.munmap(start, 200 * page()).unwrap();
}

/// A store that takes its time to change its length.
struct SlowEnd(MemoryStore);

impl Decorator for SlowEnd {
    fn inner(&self) -> &dyn BackingStore {
        &self.0
    }

    fn set_len(&self, length: u64) -> omnimap::store::Result<()> {
        std::thread::sleep(Duration::from_micros(20));
        self.0.set_len(length)
    }
}

#[test]
fn m21_an_object_shrinks_while_others_take_its_room() {
    omnimap_testkit::within(Duration::from_secs(60), || {
        let (bytes, whole) = (pattern(32 * page()), 32 * page() as u64);
        let cache = Cache::new(48 * page() as u64).unwrap();
        let mut options = MapOptions::new();
        options.cache(&cache);
        let shrinks = options.object_mut(Arc::new(SlowEnd(MemoryStore::writable("shrinks", bytes)))).unwrap();
        let other = options.object(Arc::new(MemoryStore::new("other", pattern(64 * page())))).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        other.read_at(0, &mut vec![0; 64 * page()]).unwrap();
                    }
                });
            }
            for _ in 0..5000 {
                shrinks.set_len(whole).unwrap();
                shrinks.read_at(0, &mut vec![0; 32 * page()]).unwrap();
                shrinks.set_len(page() as u64 + 7).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}
