//! What a child may ask of mappings that its parent serves.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use omnimap::posix::{Advice, Errno, Inheritance, MapFlags, Prot, RemapFlags, Source, SyncFlags};
use omnimap::store::{Decorator, Faulty, FileStore, MemoryStore, Misbehaviour};
use omnimap::{BackingStore, MapOptions};

use crate::child::{Child, Signal, fork};
use crate::probe::{load, store};
use crate::subject::{NOTHING, PRIVATE, RW, SHARED, free_addresses, loaded, page, pattern};
use crate::{on, on_alone};

on!(y01_a_child_syncs_what_the_object_grew_by_after_the_fork, [kernel, paged], |s| {
    let thing = s.object(&pattern(page()));
    let start = s.map(4 * page(), SHARED, Some(&thing));
    let grown = Signal::new();
    let child = fork(|| {
        grown.wait();
        store(start + 3 * page(), 201).unwrap();
        s.msync(start, 4 * page(), SyncFlags::SYNC).unwrap();
    });
    thing.set_len(4 * page() as u64);
    grown.give();
    child.succeeds();
    assert_eq!(thing.stored()[3 * page()], 201);
});

on!(y03_l06_a_child_may_invalidate_populate_and_page_out, [kernel, paged], |s| {
    let bytes = pattern(4 * page());
    let thing = s.object(&bytes);
    let start = s.map(4 * page(), SHARED, Some(&thing));
    let child = fork(|| {
        for advice in [Advice::POPULATE_READ, Advice::POPULATE_WRITE, Advice::PAGEOUT, Advice::WILLNEED] {
            assert_eq!(s.madvise(start, 4 * page(), advice), Ok(()), "{advice:?}");
        }
        store(start, 201).unwrap();
        assert_eq!(s.msync(start, 4 * page(), SyncFlags::SYNC | SyncFlags::INVALIDATE), Ok(()));
        assert_eq!((load(start), load(start + page())), (Ok(201), Ok(bytes[page()])));
    });
    child.succeeds();
    assert_eq!(thing.stored()[0], 201);
});

on!(y03_who_serves_it_invalidates_for_a_child, [paged], |s| {
    let store = Arc::new(MemoryStore::writable("changes", pattern(2 * page())));
    let object = MapOptions::new().budget(64 * page() as u64).object_mut(store.clone()).unwrap();
    let start = s.mmap_source(0, 2 * page(), RW, SHARED, Source::Object(&object), 0).unwrap();
    assert_eq!(load(start), Ok(pattern(1)[0]));
    store.write_at(0, &[202]).unwrap();
    fork(|| {
        assert_eq!(load(start), Ok(pattern(1)[0]), "it is in memory");
        s.msync(start, 2 * page(), SyncFlags::INVALIDATE).unwrap();
        assert_eq!(load(start), Ok(202));
    })
    .succeeds();
});

on!(m02_y04_what_a_child_unmaps_is_in_the_file, [kernel, paged], |s| {
    type Unmap = fn(&crate::subject::Subject, usize);
    let ways: [Unmap; 3] = [
        |s, start| s.munmap(start, 2 * page()).unwrap(),
        |s, start| _ = s.mmap(start, 2 * page(), RW, PRIVATE | MapFlags::FIXED, NOTHING, 0).unwrap(),
        |s, start| _ = s.mremap(start, 3 * page(), page(), RemapFlags(0), 0).unwrap(),
    ];
    for unmap in ways {
        let thing = s.object(&pattern(3 * page()));
        let start = s.map(3 * page(), SHARED, Some(&thing));
        let gone = Signal::new();
        let child = fork(|| {
            gone.wait();
            store(start + page(), 201).unwrap();
            unmap(s, start);
            assert_eq!(thing.stored()[page()], 201);
        });
        s.munmap(start, 3 * page()).unwrap();
        gone.give();
        child.succeeds();
    }
});

on!(f03_what_a_child_is_refused_changes_nothing, [paged], |s| {
    let bytes = pattern(4 * page());
    let thing = s.object(&bytes);
    let (shared, private) =
        (s.map(4 * page(), SHARED, Some(&thing)), s.map(4 * page(), PRIVATE, Some(&thing)));
    let child = fork(|| {
        let refused = Err(Errno::ECHILD);
        store(private, 201).unwrap();
        store(shared + page(), 202).unwrap();
        let (new, moves) = (free_addresses(4 * page()), RemapFlags::MAYMOVE | RemapFlags::FIXED);
        for flags in [moves, moves | RemapFlags::DONTUNMAP] {
            assert_eq!(s.mremap(private, 4 * page(), 4 * page(), flags, new), refused);
            assert_eq!(s.mremap(shared, 4 * page(), 4 * page(), flags, new), refused);
        }
        assert_eq!(s.mremap(private, page(), 2 * page(), RemapFlags::MAYMOVE, 0), refused);
        assert_eq!(s.remap_file_pages(shared, page(), 0, 3), refused.map(drop));
        let fixed = SHARED | MapFlags::FIXED;
        assert_eq!(s.mmap(shared, page(), Prot::READ, fixed, Some(&thing), 0), refused);
        assert_eq!(s.mmap(private, page(), Prot::READ, fixed, Some(&thing), 0), refused);
        assert_eq!([load(private), load(private + 2 * page())], [Ok(201), Ok(bytes[2 * page()])]);
        assert_eq!([load(shared), load(shared + page())], [Ok(bytes[0]), Ok(202)]);
        store(shared + 3 * page(), 203).unwrap();
    });
    child.succeeds();
    assert_eq!([load(shared + page()), load(shared + 3 * page())], [Ok(202), Ok(203)]);
});

/// A file that counts its syncs, of all processes.
struct Counted {
    path: PathBuf,
    file: FileStore,
    syncs: &'static AtomicU64,
}

impl Counted {
    fn open(path: PathBuf, syncs: &'static AtomicU64) -> Counted {
        Counted { file: FileStore::open_writable(&path).unwrap(), path, syncs }
    }
}

impl Decorator for Counted {
    fn inner(&self) -> &dyn BackingStore {
        &self.file
    }
    fn sync(&self) -> omnimap::store::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync()
    }
    fn reopen(&self) -> omnimap::store::Result<Arc<dyn BackingStore>> {
        Ok(Arc::new(Counted::open(self.path.clone(), self.syncs)))
    }
}

on!(y01_who_goes_on_syncs_what_a_dead_process_had_written, [paged], |s| {
    const PAGES: usize = 64;
    let path = s.path("counted");
    std::fs::write(&path, vec![0; PAGES * page()]).unwrap();
    // SAFETY: zeros, shared with children, for good.
    let syncs = unsafe { &*(s.map(page(), SHARED, None) as *const AtomicU64) };
    let (gone, report) = (Signal::new(), Signal::new());
    let parent = fork(|| {
        let counted = Arc::new(Counted::open(path.clone(), syncs));
        let object = MapOptions::new().budget(8 * page() as u64).object_mut(counted).unwrap();
        let start = s.mmap_source(0, PAGES * page(), RW, SHARED, Source::Object(&object), 0).unwrap();
        (0..PAGES).for_each(|at| store(start + at * page(), 7).unwrap());
        let _ = fork(|| {
            gone.wait();
            let absent = (0..PAGES).find(|at| !s.resident(start + at * page(), page())[0]).unwrap();
            s.msync(start + absent * page(), page(), SyncFlags::SYNC).unwrap();
            assert!(syncs.load(Ordering::SeqCst) > 0, "it may lie in the file's cache alone");
            report.give();
        });
        // SAFETY: ends the process.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    parent.ends();
    gone.give();
    report.wait();
});

/// What a file does not come back from.
#[derive(PartialEq)]
enum Call {
    Read,
    Sync,
}

/// A file that gets stuck in a call, once it was told so (1), and says when it is (2); opened again, it does not.
struct Stuck {
    path: PathBuf,
    file: FileStore,
    call: Call,
    told: &'static AtomicU64,
}

impl Stuck {
    fn open(path: PathBuf, call: Call, told: &'static AtomicU64) -> Arc<Stuck> {
        Arc::new(Stuck { file: FileStore::open_writable(&path).unwrap(), path, call, told })
    }

    fn come_to(&self, call: &Call) {
        while self.call == *call && self.told.load(Ordering::SeqCst) > 0 {
            self.told.store(2, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Decorator for Stuck {
    fn inner(&self) -> &dyn BackingStore {
        &self.file
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap::store::Result<usize> {
        self.come_to(&Call::Read);
        self.file.read_at(offset, into)
    }
    fn sync(&self) -> omnimap::store::Result<()> {
        self.come_to(&Call::Sync);
        self.file.sync()
    }
    fn reopen(&self) -> omnimap::store::Result<Arc<dyn BackingStore>> {
        Ok(Arc::new(FileStore::open_writable(&self.path)?))
    }
}

fn wait_until_stuck(told: &AtomicU64) {
    while told.load(Ordering::SeqCst) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn die() {
    // SAFETY: ends the process.
    unsafe { libc::raise(libc::SIGKILL) };
}

// Copying what is inherited waits for its pages, and may be what finds nobody to bring them.
on!(f02_f03_a_child_copies_what_it_inherited_when_its_parent_dies_meanwhile, [paged], |s| {
    let path = s.path("silent");
    std::fs::write(&path, pattern(4 * page())).unwrap();
    // SAFETY: zeros, shared with children, for good.
    let silent = unsafe { &*(s.map(page(), SHARED, None) as *const AtomicU64) };
    type Copy = fn(&crate::subject::Subject, usize);
    let copies: [(MapFlags, Copy); 2] = [
        (PRIVATE, |s, start| s.minherit(start, 4 * page(), Inheritance::Share)),
        (SHARED, |s, start| {
            s.minherit(start, 4 * page(), Inheritance::Copy);
            fork(|| assert_eq!(loaded(start, 4 * page()), pattern(4 * page()))).succeeds();
        }),
    ];
    for (flags, copy) in copies {
        silent.store(0, Ordering::SeqCst);
        let report = Signal::new();
        let parent = fork(|| {
            let file = Stuck::open(path.clone(), Call::Read, silent);
            let object = MapOptions::new().budget(64 * page() as u64).object(file).unwrap();
            let start = s.mmap_source(0, 4 * page(), Prot::READ, flags, Source::Object(&object), 0).unwrap();
            silent.store(1, Ordering::SeqCst);
            let _ = fork(|| {
                copy(s, start);
                assert_eq!(loaded(start, 4 * page()), pattern(4 * page()));
                report.give();
            });
            wait_until_stuck(silent);
            die();
        });
        parent.ends();
        report.wait();
    }
});

/// Whether an object of the kind is closed when its parent has let go of it, while a child lives on.
fn is_closed_beside(live_on: impl FnOnce(usize) -> Child) -> bool {
    let store = Arc::new(MemoryStore::new("inherited", pattern(4 * page())));
    let open = Arc::downgrade(&store);
    let object = MapOptions::new().budget(64 * page() as u64).object(store).unwrap();
    // SAFETY: a new mapping at a place of the kernel's choice, used by this test alone.
    let start = unsafe {
        omnimap::posix::mmap(std::ptr::null_mut(), 4 * page(), Prot::READ, SHARED, &object, 0).unwrap()
    };
    let child = live_on(start as usize);
    // SAFETY: made here.
    unsafe { omnimap::posix::munmap(start, 4 * page()) }.unwrap();
    drop(object);
    let deadline = Instant::now() + Duration::from_secs(15);
    while open.strong_count() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let closed = open.strong_count() == 0;
    child.kill();
    closed
}

fn live_on() {
    std::thread::sleep(Duration::from_secs(30));
}

on!(f02_what_a_child_is_not_given_is_closed_while_it_lives, [paged], |s| {
    assert!(is_closed_beside(|start| {
        s.minherit(start, 4 * page(), Inheritance::None);
        fork(live_on)
    }));
    assert!(!is_closed_beside(|_| fork(live_on)), "what it is given stays");
});

on!(f04_what_a_child_has_left_by_exec_is_closed_while_it_lives, [paged], |s| {
    assert!(is_closed_beside(|_| {
        fork(|| {
            let error = std::os::unix::process::CommandExt::exec(Command::new("sleep").arg("30"));
            panic!("{error}");
        })
    }));
    // Its own children do not keep it.
    assert!(is_closed_beside(|start| {
        fork(|| {
            s.minherit(start, 4 * page(), Inheritance::None);
            let _ = fork(live_on);
            let error = std::os::unix::process::CommandExt::exec(Command::new("sleep").arg("30"));
            panic!("{error}");
        })
    }));
});

// What a child leaves dirty is written at its end, and may take as long as it likes.
on!(f01_a_child_is_forked_while_what_another_has_left_is_being_written, [paged], |_s| {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::writable("slow", vec![0; 4 * page()]))));
    let object = MapOptions::new().budget(64 * page() as u64).object_mut(faulty.clone()).unwrap();
    // SAFETY: a new mapping at a place of the kernel's choice, used by this test alone.
    let start =
        unsafe { omnimap::posix::mmap(std::ptr::null_mut(), 4 * page(), RW, SHARED, &object, 0) }.unwrap();
    let start = start as usize;
    faulty.on_write(0..4 * page() as u64, Misbehaviour::Hold, 1);
    fork(|| store(start, 201).unwrap()).succeeds();
    assert!(faulty.wait_until_held(1, Duration::from_secs(20)));
    let begin = Instant::now();
    fork(|| assert_eq!(load(start), Ok(201))).succeeds();
    assert!(begin.elapsed() < Duration::from_secs(10), "it waited for the store");
    faulty.release();
});

// The sibling has, by its fork, the other end of what the child waits at.
on!(y01_a_childs_sync_ends_with_its_parent_although_a_sibling_lives, [paged], |s| {
    let path = s.path("endless");
    std::fs::write(&path, pattern(page())).unwrap();
    // SAFETY: zeros, shared with children, for good.
    let endless = unsafe { &*(s.map(page(), SHARED, None) as *const AtomicU64) };
    let report = Signal::new();
    let parent = fork(|| {
        let file = Stuck::open(path.clone(), Call::Sync, endless);
        let object = MapOptions::new().budget(64 * page() as u64).object_mut(file).unwrap();
        let start = s.mmap_source(0, page(), RW, SHARED, Source::Object(&object), 0).unwrap();
        endless.store(1, Ordering::SeqCst);
        let _ = fork(|| {
            store(start, 201).unwrap();
            let begin = Instant::now();
            let _ended_or_eio = s.msync(start, page(), SyncFlags::SYNC);
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
            report.give();
        });
        wait_until_stuck(endless);
        let _ = fork(live_on);
        die();
    });
    parent.ends();
    report.wait();
});

static STARTED_AT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn store_from_a_handler(_: i32) {
    let start = STARTED_AT.load(Ordering::SeqCst) as *mut u8;
    // SAFETY: a mapping of the test's.
    let before = unsafe { start.read_volatile() };
    // SAFETY: as above.
    unsafe { start.write_volatile(before + 1) };
}

extern "C" fn raise_in_a_child() {
    if STARTED_AT.load(Ordering::SeqCst) != 0 {
        // SAFETY: its handler is the test's.
        unsafe { libc::raise(libc::SIGUSR1) };
    }
}

extern "C" fn nothing() {}

// A child's handlers run in the order in which they were registered: this one before ours.
on_alone!(f01_a_signal_that_comes_while_a_child_is_made_finds_its_mappings, [kernel, paged], |s| {
    // SAFETY: handlers of the right kind, which do not unwind.
    unsafe { libc::pthread_atfork(Some(nothing), Some(nothing), Some(raise_in_a_child)) };
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGUSR1, store_from_a_handler as *const () as usize) };
    let thing = s.object(&pattern(page()));
    for flags in [SHARED, PRIVATE] {
        let start = s.map(page(), flags, Some(&thing));
        store(start, 100).unwrap();
        STARTED_AT.store(start, Ordering::SeqCst);
        fork(|| assert_eq!(load(start), Ok(101))).succeeds();
        STARTED_AT.store(0, Ordering::SeqCst);
        assert_eq!(load(start), Ok(if flags == SHARED { 101 } else { 100 }));
        if flags == SHARED {
            s.msync(start, page(), SyncFlags::SYNC).unwrap();
            assert_eq!(thing.stored()[0], 101);
        }
    }
});

on!(f01_a_child_that_closes_all_descriptors_is_served_still, [kernel, paged], |s| {
    let bytes = pattern(64 * page());
    let thing = s.object(&bytes);
    let start = s.map(64 * page(), SHARED, Some(&thing));
    let (closed, go) = (Signal::new(), Signal::new());
    let child = fork(|| {
        for descriptor in (3..1024).filter(|fd| !closed.has(*fd) && !go.has(*fd)) {
            // SAFETY: the child uses none of them.
            unsafe { libc::close(descriptor) };
        }
        closed.give();
        go.wait();
        assert_eq!(loaded(start, 64 * page()), bytes);
    });
    closed.wait();
    std::thread::sleep(Duration::from_millis(100));
    go.give();
    child.succeeds();
});
