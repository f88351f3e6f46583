//! fork(2): what a child has of its parent's mappings.

use std::sync::Arc;
use std::time::Duration;

use omnimap::MapOptions;
use omnimap::posix::{self, AddressSpace, Advice, Errno, Inheritance, LockAll, MapFlags, Prot, SyncFlags};
use omnimap::store::{Faulty, MemoryStore, Misbehaviour};

use crate::child::{Child, Signal, fork};
use crate::probe::{load, load_signal, store};
use crate::subject::{Column, NOTHING, RW, Subject, Thing, page, pattern};
use crate::{on, on_alone};

const SHARED: MapFlags = MapFlags::SHARED;
const PRIVATE: MapFlags = MapFlags::PRIVATE;
const PAGES: usize = 200;

/// Anonymous memory has the bytes stored to it; everything else has them from its object.
fn mapped(s: &Subject, flags: MapFlags) -> (usize, Vec<u8>, Option<Thing>) {
    let bytes = pattern(PAGES * page());
    let thing = s.has_objects().then(|| s.object(&bytes));
    let start = s.map(PAGES * page(), flags, thing.as_ref());
    if thing.is_none() {
        (0..PAGES).for_each(|i| store(start + i * page(), bytes[i * page()]).unwrap());
    }
    (start, bytes, thing)
}

/// The first byte of each page.
fn firsts(start: usize) -> Vec<u8> {
    (0..PAGES).map(|i| load(start + i * page()).unwrap()).collect()
}

fn firsts_of(bytes: &[u8]) -> Vec<u8> {
    (0..PAGES).map(|i| bytes[i * page()]).collect()
}

on!(f01_shared_is_coherent_both_ways, [kernel, paged, anonymous, device], |s| {
    let (start, bytes, _thing) = mapped(s, SHARED);
    let (go, done) = (Signal::new(), Signal::new());
    let child = fork(|| {
        assert_eq!(firsts(start), firsts_of(&bytes));
        store(start + page(), 201).unwrap();
        done.give();
        go.wait();
        assert_eq!(load(start + 2 * page()), Ok(202));
        assert_eq!(load(start + 150 * page() + 1), Ok(203));
    });
    done.wait();
    assert_eq!(load(start + page()), Ok(201));
    store(start + 2 * page(), 202).unwrap();
    store(start + 150 * page() + 1, 203).unwrap();
    go.give();
    child.succeeds();
});

on!(f01_private_is_copied_both_ways, [kernel, paged, anonymous, device], |s| {
    let (start, bytes, _thing) = mapped(s, PRIVATE);
    store(start + page() + 1, 200).unwrap();
    let (go, done) = (Signal::new(), Signal::new());
    let child = fork(|| {
        assert_eq!(load(start + page() + 1), Ok(200), "stored before the fork");
        store(start + page() + 1, 201).unwrap();
        store(start + 3 * page(), 201).unwrap();
        done.give();
        go.wait();
        assert_eq!(load(start + 2 * page()), Ok(bytes[2 * page()]), "stored by the parent after the fork");
        assert_eq!(load(start + page() + 1), Ok(201));
    });
    done.wait();
    assert_eq!(load(start + page() + 1), Ok(200));
    assert_eq!(load(start + 3 * page()), Ok(bytes[3 * page()]));
    store(start + 2 * page(), 202).unwrap();
    go.give();
    child.succeeds();
});

on!(f01_a_child_and_its_parent_store_while_pages_are_evicted, [kernel, paged], |s| {
    let (start, _, thing) = mapped(s, SHARED);
    let rounds = 20;
    let write_all = |which: usize| {
        for round in 0..rounds {
            for i in 0..PAGES {
                store(start + i * page() + which, (round * 7 + i) as u8).unwrap();
            }
        }
    };
    let child = fork(|| write_all(1));
    write_all(2);
    child.succeeds();
    let bytes = thing.unwrap().bytes();
    for i in 0..PAGES {
        let last = ((rounds - 1) * 7 + i) as u8;
        assert_eq!((bytes[i * page() + 1], bytes[i * page() + 2]), (last, last), "page {i}");
    }
});

on!(f03_a_child_has_the_bytes_when_its_parent_exits_or_is_killed, [kernel, paged, anonymous, device], |s| {
    for (flags, killed) in [(SHARED, false), (SHARED, true), (PRIVATE, false), (PRIVATE, true)] {
        let (gone, report) = (Signal::new(), Signal::new());
        let parent: Child = fork(|| {
            let (start, mut bytes, _thing) = mapped(s, flags);
            (0..PAGES).step_by(3).for_each(|i| store(start + i * page(), 7).unwrap());
            (0..PAGES).step_by(3).for_each(|i| bytes[i * page()] = 7);
            let _ = fork(|| {
                gone.wait();
                assert_eq!(firsts(start), firsts_of(&bytes));
                store(start, 8).unwrap();
                assert_eq!(
                    (load(start), firsts(start)[1..].to_vec()),
                    (Ok(8), firsts_of(&bytes)[1..].to_vec())
                );
                report.give();
            });
            if killed {
                // SAFETY: ends the process.
                unsafe { libc::raise(libc::SIGKILL) };
            }
        });
        parent.ends();
        gone.give();
        report.wait();
    }
});

on!(f03_a_chain_of_forks_goes_on_when_each_parent_dies, [kernel, paged], |s| {
    let report = Signal::new();
    let first = fork(|| {
        let (start, bytes, _thing) = mapped(s, SHARED);
        chain(5, start, &bytes, &report);
    });
    first.ends();
    report.wait();
});

fn chain(left: usize, start: usize, bytes: &[u8], report: &Signal) {
    store(start + left * page() + 1, left as u8 + 100).unwrap();
    if left == 0 {
        assert_eq!(firsts(start), firsts_of(bytes));
        (0..=5).for_each(|i| assert_eq!(load(start + i * page() + 1), Ok(i as u8 + 100)));
        report.give();
        return;
    }
    let _ = fork(|| {
        // SAFETY: only asks.
        let parent = unsafe { libc::getppid() };
        std::thread::sleep(std::time::Duration::from_millis(10));
        let _ = parent;
        chain(left - 1, start, bytes, report);
    });
    // SAFETY: ends the process.
    unsafe { libc::raise(libc::SIGKILL) };
}

on!(f03_what_the_parent_unmaps_stays_the_childs, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (start, bytes, thing) = mapped(s, flags);
        let go = Signal::new();
        let child = fork(|| {
            go.wait();
            assert_eq!(firsts(start), firsts_of(&bytes));
        });
        s.munmap(start, PAGES * page()).unwrap();
        drop(thing);
        go.give();
        child.succeeds();
    }
});

on!(f03_what_a_child_unmaps_stays_the_parents, [kernel, paged, anonymous, device], |s| {
    let (start, bytes, _thing) = mapped(s, SHARED);
    let child = fork(|| {
        s.munmap(start + page(), 10 * page()).unwrap();
        assert_eq!(load_signal(start + page()), Some(libc::SIGSEGV));
        assert_eq!(load(start + 11 * page()), Ok(bytes[11 * page()]));
    });
    child.succeeds();
    assert_eq!(firsts(start), firsts_of(&bytes));
    s.mprotect(start, page(), Prot::READ).unwrap();
});

on!(f03_the_journal_stays_its_parents_when_a_child_drops_the_object, [paged], |s| {
    let path = s.path("atomic");
    std::fs::write(&path, pattern(page())).unwrap();
    let journal = omnimap::store::journal::path_for(&path);
    let mut object = Some(MapOptions::new().atomic(true).open_object_mut(&path).unwrap());
    assert!(journal.exists());
    fork(|| drop(object.take())).succeeds();
    assert!(journal.exists());
    drop(object);
    assert!(!journal.exists());
});

on!(f03_what_a_child_stores_where_it_unmapped_what_follows_is_kept, [kernel, paged], |s| {
    for kept in 8..48 {
        let (start, _, thing) = mapped(s, SHARED);
        let go = Signal::new();
        let child = fork(|| {
            go.wait();
            s.munmap(start + kept * page(), (PAGES - kept) * page()).unwrap();
            // In order: what is read ahead crosses the end of what is still mapped.
            (0..kept).for_each(|i| assert!(load(start + i * page()).is_ok()));
            (0..kept).for_each(|i| store(start + i * page(), 77).unwrap());
            s.msync(start, kept * page(), SyncFlags::SYNC).unwrap();
        });
        s.munmap(start, PAGES * page()).unwrap();
        go.give();
        child.succeeds();
        let thing = thing.unwrap();
        thing.evict();
        let bytes = thing.bytes();
        (0..kept).for_each(|i| assert_eq!(bytes[i * page()], 77, "page {i} of {kept}"));
    }
});

on!(f03_what_a_child_maps_where_it_unmapped_has_its_own_bytes, [kernel, paged], |s| {
    let (start, bytes, _thing) = mapped(s, SHARED);
    let other: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    let (mapped, read) = (Signal::new(), Signal::new());
    let first = fork(|| {
        s.munmap(start, PAGES * page()).unwrap();
        let thing = s.object(&other);
        assert_eq!(s.mmap(start, PAGES * page(), RW, SHARED | MapFlags::FIXED, Some(&thing), 0), Ok(start));
        mapped.give();
        read.wait();
        assert_eq!(firsts(start), firsts_of(&other));
    });
    let second = fork(|| {
        mapped.wait();
        assert_eq!(firsts(start), firsts_of(&bytes));
        read.give();
    });
    s.munmap(start, PAGES * page()).unwrap();
    second.succeeds();
    first.succeeds();
});

on!(f02_each_page_is_inherited_as_it_was_said, [paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (start, bytes, _thing) = mapped(s, flags);
        let inherits = |at: usize, how| s.minherit(start + at * page(), page(), how);
        inherits(1, Inheritance::None);
        inherits(3, Inheritance::Zero);
        inherits(5, Inheritance::Copy);
        inherits(7, Inheritance::Share);
        let (go, done) = (Signal::new(), Signal::new());
        let child = fork(|| {
            let grandchild = fork(|| {
                assert_eq!(
                    load_signal(start + page()),
                    Some(libc::SIGSEGV),
                    "what was said is inherited too"
                );
                assert_eq!(load(start + 3 * page()), Ok(0));
            });
            grandchild.succeeds();
            assert_eq!(load_signal(start + page()), Some(libc::SIGSEGV));
            assert_eq!(load(start + 3 * page()), Ok(0));
            for at in [5, 7] {
                assert_eq!(load(start + at * page()), Ok(bytes[at * page()]));
                store(start + at * page(), 99).unwrap();
            }
            store(start + 3 * page(), 99).unwrap();
            done.give();
            go.wait();
            assert_eq!(load(start + 5 * page()), Ok(99), "a copy");
            assert_eq!(load(start + 7 * page()), Ok(98), "shared");
            assert_eq!(load(start), Ok(bytes[0]));
        });
        done.wait();
        assert_eq!(load(start + page()), Ok(bytes[page()]));
        assert_eq!(load(start + 3 * page()), Ok(bytes[3 * page()]), "the parent keeps its bytes");
        assert_eq!(load(start + 5 * page()), Ok(bytes[5 * page()]));
        assert_eq!(load(start + 7 * page()), Ok(99));
        store(start + 5 * page(), 98).unwrap();
        store(start + 7 * page(), 98).unwrap();
        go.give();
        child.succeeds();
    }
});

on!(f03_a_child_that_no_handler_knows_has_no_views_rather_than_zeros, [paged], |s| {
    for (flags, advised) in [(SHARED, false), (PRIVATE, false), (PRIVATE, true)] {
        let (start, bytes, _thing) = mapped(s, flags);
        if advised {
            s.madvise(start, PAGES * page(), Advice::DOFORK).unwrap();
        }
        // SAFETY: as fork(2), but for the handlers; the child looks at two addresses and ends.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            let none = [0, 150].iter().all(|at| load_signal(start + at * page()) == Some(libc::SIGSEGV));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!none)) };
        }
        Child::of(pid as libc::pid_t).succeeds();
        assert_eq!(firsts(start), firsts_of(&bytes));
    }
});

on!(f03_behind_the_end_is_sigbus_in_a_child_too, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page() + 7));
    let start = s.map(4 * page(), SHARED, Some(&object));
    let child = fork(|| {
        assert_eq!(load(start + page() + 7), Ok(0));
        for _ in 0..3 {
            assert_eq!(load_signal(start + 2 * page()), Some(libc::SIGBUS));
        }
    });
    child.succeeds();
});

on!(y01_a_child_syncs_what_it_shares, [kernel, paged, device], |s| {
    let (start, _, thing) = mapped(s, SHARED);
    let child = fork(|| {
        store(start + 9, 77).unwrap();
        s.msync(start, PAGES * page(), SyncFlags::SYNC).unwrap();
    });
    child.succeeds();
    assert_eq!(thing.unwrap().stored()[9], 77);
});

on!(f01_what_a_child_maps_in_the_middle_leaves_the_rest_shared, [kernel, paged], |s| {
    let (start, _, thing) = mapped(s, SHARED);
    let (go, done) = (Signal::new(), Signal::new());
    // So few that they are dirty together, and trapped together when they are written.
    let (pages, hole) = (PAGES - 20..PAGES, PAGES - 10);
    let at = |page_number: usize| start + page_number * page() + 5;
    let child = fork(|| {
        pages.clone().for_each(|i| store(at(i), 1).unwrap());
        let fixed = MapFlags::PRIVATE | MapFlags::FIXED;
        s.mmap(start + hole * page(), page(), Prot::READ | Prot::WRITE, fixed, NOTHING, 0).unwrap();
        store(at(hole), 2).unwrap();
        done.give();
        go.wait();
        // Written meanwhile, so that these stores must be noticed.
        pages.clone().filter(|i| *i != hole).for_each(|i| store(at(i), 3).unwrap());
    });
    done.wait();
    s.msync(start, PAGES * page(), SyncFlags::SYNC).unwrap();
    go.give();
    child.succeeds();
    s.msync(start, PAGES * page(), SyncFlags::SYNC).unwrap();
    let stored = thing.unwrap().stored();
    for i in pages {
        assert_eq!(stored[i * page() + 5], if i == hole { 1 } else { 3 }, "page {i}");
    }
});

on!(f03_a_copy_that_a_child_leaves_its_own_child_has_the_bytes, [paged, anonymous, device], |s| {
    let (start, bytes, _thing) = mapped(s, SHARED);
    let child = fork(|| {
        s.minherit(start, PAGES * page(), Inheritance::Copy);
        let grandchild = fork(|| {
            assert_eq!(firsts(start), firsts_of(&bytes));
            store(start, 99).unwrap();
        });
        grandchild.succeeds();
        assert_eq!(load(start), Ok(bytes[0]));
    });
    child.succeeds();
});

on!(f02_what_cannot_be_read_is_not_made_shared_memory, [paged, anonymous, device], |s| {
    let (start, bytes, _thing) = mapped(s, PRIVATE);
    store(start + page(), 77).unwrap();
    s.mprotect(start + page(), page(), Prot::NONE).unwrap();
    let shared = omnimap::posix::minherit(start as *mut _, 3 * page(), Inheritance::Share);
    assert_eq!(shared, Err(Errno::EACCES));
    s.mprotect(start + page(), page(), Prot::READ).unwrap();
    assert_eq!((load(start + page()), load(start)), (Ok(77), Ok(bytes[0])));
});

on!(f02_advice_to_keep_does_not_take_back_advice_to_leave_out, [kernel, anonymous], |s| {
    let start = s.map(2 * page(), PRIVATE, NOTHING);
    s.madvise(start, page(), Advice::DONTFORK).unwrap();
    s.madvise(start, 2 * page(), Advice::KEEPONFORK).unwrap();
    let noted = AddressSpace::at(start).map(|mapping| mapping.inheritance());
    assert!(s.column == Column::Kernel || noted == Some(Inheritance::None), "{noted:?}");
    let child = fork(|| {
        assert_eq!(load_signal(start), Some(libc::SIGSEGV));
        assert_eq!(load(start + page()), Ok(0));
    });
    child.succeeds();
});

on!(f02_advice_to_wipe_does_not_take_back_advice_to_leave_out, [kernel, anonymous], |s| {
    let start = s.map(2 * page(), PRIVATE, NOTHING);
    store(start, 1).unwrap();
    s.madvise(start, page(), Advice::DONTFORK).unwrap();
    s.madvise(start, page(), Advice::WIPEONFORK).unwrap();
    fork(|| assert_eq!(load_signal(start), Some(libc::SIGSEGV))).succeeds();
    s.madvise(start, page(), Advice::DOFORK).unwrap();
    fork(|| assert_eq!(load(start), Ok(0), "both are kept")).succeeds();
});

on!(e2_e3_a_page_that_fails_in_a_child_is_sigbus_and_comes_later, [paged], |_s| {
    let store = MemoryStore::new("fails", pattern(8 * page()));
    let faulty = Arc::new(Faulty::new(Arc::new(store)));
    let failing = 3 * page() as u64..4 * page() as u64;
    faulty.on_read(failing, Misbehaviour::Fail, u64::MAX);
    let object =
        MapOptions::new().budget(64 * page() as u64).readahead_max(0).object(faulty.clone()).unwrap();
    for flags in [SHARED, PRIVATE] {
        // SAFETY: a new mapping at a place of the kernel's choice, used by this test alone.
        let start = unsafe { posix::mmap(std::ptr::null_mut(), 8 * page(), Prot::READ, flags, &object, 0) }
            .unwrap() as usize;
        let (healed, failed) = (Signal::new(), Signal::new());
        let child = fork(|| {
            assert_eq!(load(start), Ok(pattern(1)[0]), "others come");
            assert_eq!(load_signal(start + 3 * page()), Some(libc::SIGBUS));
            failed.give();
            healed.wait();
            assert_eq!(load(start + 3 * page()), Ok(pattern(4 * page())[3 * page()]));
        });
        failed.wait();
        faulty.heal();
        healed.give();
        child.succeeds();
        object.evict().unwrap();
        faulty.on_read(3 * page() as u64..4 * page() as u64, Misbehaviour::Fail, u64::MAX);
    }
});

on!(f03_what_went_with_the_parent_is_sigbus_and_never_zeros, [paged], |_s| {
    let (gone, report) = (Signal::new(), Signal::new());
    let parent = fork(|| {
        // What is resident counts as dirty and cannot be written: a page that is lost waits for room as well.
        let object = MapOptions::new()
            .budget(32 * page() as u64)
            .fill_time_max(Duration::from_secs(1))
            .anonymous_object((PAGES * page()) as u64)
            .unwrap();
        let (prot, length) = (Prot::READ | Prot::WRITE, PAGES * page());
        // SAFETY: a new mapping at a place of the kernel's choice, used by this test alone.
        let start =
            unsafe { posix::mmap(std::ptr::null_mut(), length, prot, SHARED, &object, 0) }.unwrap() as usize;
        (0..PAGES).for_each(|i| store(start + i * page(), i as u8 | 1).unwrap());
        let _ = fork(|| {
            gone.wait();
            let mut right = 0;
            let mut lost = 0;
            // Those stored to last are resident. Of the others a few will do: each takes its time.
            for i in (0..PAGES).rev().take_while(|i| *i >= PAGES - 40).chain([0]) {
                match load(start + i * page()) {
                    Ok(byte) => {
                        assert_eq!(byte, i as u8 | 1, "page {i}");
                        right += 1;
                    }
                    Err(raised) => {
                        assert_eq!(raised.signal, libc::SIGBUS, "page {i}");
                        lost += 1;
                    }
                }
            }
            assert!(right > 0 && lost > 0, "{right} and {lost}");
            report.give();
        });
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    parent.ends();
    gone.give();
    report.wait();
});

// Whatever was mapped: the child has none of the threads that map.
on_alone!(f03_a_child_of_threads_that_map_and_move_ends_may_do_so_too, [anonymous, device], |s| {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(page())));
    let segment = posix::DataSegment::reserve(1 << 20).unwrap();
    let at = |bytes: usize| segment.start().wrapping_byte_add(bytes);
    let forked = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for which in 0..2 {
            let (thing, segment, forked) = (thing.as_ref(), &segment, &forked);
            let start = segment.start() as usize;
            scope.spawn(move || {
                while !forked.load(std::sync::atomic::Ordering::Relaxed) {
                    // A lock is not fair: who forks must come to have it, too.
                    std::thread::sleep(Duration::from_micros(10));
                    if which == 0 {
                        let start = s.map(page(), SHARED, thing);
                        s.munmap(start, page()).unwrap();
                    } else {
                        // SAFETY: nothing is used there.
                        unsafe { segment.brk((start + 5 * page()) as *mut _) }.unwrap();
                        // SAFETY: nothing is used there.
                        unsafe { segment.brk(start as *mut _) }.unwrap();
                    }
                }
            });
        }
        let children = (0..100).map(|_| {
            fork(|| {
                s.map(page(), SHARED, thing.as_ref());
                // SAFETY: nothing is used there.
                unsafe { segment.brk(at(page())) }.unwrap();
            })
        });
        children.for_each(Child::succeeds);
        forked.store(true, std::sync::atomic::Ordering::Relaxed);
    });
});

on_alone!(l05_locks_of_the_future_are_not_inherited, [kernel, anonymous], |s| {
    s.mlockall(LockAll::FUTURE).unwrap();
    fork(|| {
        let start = s.map(page(), PRIVATE, NOTHING);
        assert!(!crate::subject::is_locked(start));
        assert!(AddressSpace::at(start).is_none_or(|mapping| !mapping.is_locked()));
    })
    .succeeds();
    s.munlockall().unwrap();
});

on!(a_child_gets_what_the_kernel_was_told_to_give_it, [kernel, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(page()), PRIVATE);
    store(start, 7).unwrap();
    s.madvise(start, page(), Advice::DONTFORK).unwrap();
    // SAFETY: about children alone.
    assert_eq!(unsafe { libc::madvise(start as *mut _, page(), libc::MADV_DOFORK) }, 0);
    fork(|| assert_eq!(load(start), Ok(7))).succeeds();
});
