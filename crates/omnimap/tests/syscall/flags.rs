//! mmap(2): what may be mapped, and how.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use omnimap::posix::{AddressSpace, Advice, Errno, MapFlags, Prot, Source};

use crate::probe::{load, load_signal, store, store_signal};
use crate::subject::{
    Column, NOTHING, PRIVATE, RW, SHARED, SIGSEGV, forked, is_locked, loaded, page, pattern, protection,
};
use crate::{on, on_alone};

on!(m05_anonymous_memory_is_zeros_whatever_the_descriptor_is, [kernel, anonymous], |s| {
    for flags in [SHARED, PRIVATE] {
        for (fd, offset) in [(-1, 0), (12_345, 0), (-7, 16 * page() as i64)] {
            let flags = flags | MapFlags::ANON;
            let start = s.mmap_source(0, 3 * page(), RW, flags, Source::Descriptor(fd), offset).unwrap();
            assert_eq!(loaded(start, 3 * page()), vec![0; 3 * page()]);
            store(start + page(), 1).unwrap();
            s.munmap(start, 3 * page()).unwrap();
        }
    }
    assert_eq!(MapFlags::ANON, MapFlags::ANONYMOUS);
});

on!(m05_shared_anonymous_memory_is_shared_with_children, [kernel, anonymous], |s| {
    let (shared, private) = (s.map(page(), SHARED, None), s.map(page(), PRIVATE, None));
    store(private, 1).unwrap();
    let seen = forked(|| {
        let before = load(private).unwrap_or(99);
        let _ = (store(shared, 42), store(private, 43));
        before
    });
    assert_eq!((seen, load(shared), load(private)), (1, Ok(42), Ok(1)));
});

on!(x4_a_parent_and_a_child_count_in_one_page, [kernel, anonymous], |s| {
    use std::sync::atomic::{AtomicU32, Ordering};
    let start = s.map(page(), SHARED, None);
    // SAFETY: mapped, aligned, and used as an atomic alone.
    let counter = unsafe { AtomicU32::from_ptr(start as *mut u32) };
    // SAFETY: the child counts and ends.
    let child = unsafe { libc::fork() };
    (0..100_000).for_each(|_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: waits for the child just made.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!(counter.load(Ordering::Relaxed), 200_000);
});

on!(m09_protection_does_not_contradict_how_the_object_was_opened, [kernel, paged, device], |s| {
    let object = s.read_only(&pattern(page()));
    for prot in [Prot::WRITE, RW] {
        assert_eq!(s.mmap(0, page(), prot, SHARED, Some(&object), 0), Err(Errno::EACCES));
        assert_eq!(s.mmap(0, page(), prot, MapFlags::SHARED_VALIDATE, Some(&object), 0), Err(Errno::EACCES));
        let private = s.mmap(0, page(), prot, PRIVATE, Some(&object), 0).unwrap();
        store(private, 9).unwrap();
        assert_eq!(load(private), Ok(9));
    }
});

on!(m09_what_is_not_open_for_reading_is_not_mapped, [kernel, device], |s| {
    let path = s.path("write-only");
    std::fs::write(&path, pattern(page())).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for prot in [Prot::NONE, Prot::READ, Prot::WRITE, RW] {
        for flags in [SHARED, PRIVATE] {
            let made = s.mmap_source(0, page(), prot, flags, Source::Descriptor(file.as_raw_fd()), 0);
            assert_eq!(made, Err(Errno::EACCES), "{prot:?} {flags:?}");
        }
    }
});

on!(m09_an_append_only_file_is_not_mapped_shared_and_writable, [kernel, device], |s| {
    const SET_FLAGS: libc::c_ulong = 0x4008_6602;
    const APPEND: libc::c_long = 0x20;
    let path = s.path("append-only");
    std::fs::write(&path, pattern(page())).unwrap();
    let plain = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: FS_IOC_SETFLAGS reads an integer.
    if unsafe { libc::ioctl(plain.as_raw_fd(), SET_FLAGS, &APPEND) } != 0 {
        return; // This file system has no such files.
    }
    let file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    let source = || Source::Descriptor(file.as_raw_fd());
    let made = s.mmap_source(0, page(), RW, SHARED, source(), 0);
    let private = s.mmap_source(0, page(), RW, PRIVATE, source(), 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::ioctl(plain.as_raw_fd(), SET_FLAGS, &libc::c_long::default()) }, 0);
    assert_eq!(made, Err(Errno::EACCES));
    assert_eq!(store(private.unwrap(), 1), Ok(()));
});

/// Whether what may only be executed cannot be read: where the processor has protection keys (pkeys(7)).
fn has_execute_only() -> bool {
    // SAFETY: a new mapping at a place of the kernel's choice, unmapped below.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            page(),
            libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    let signal = load_signal(start as usize);
    // SAFETY: made above.
    assert_eq!(unsafe { libc::munmap(start, page()) }, 0);
    signal.is_some()
}

on!(m09_every_union_of_protections_works, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(page());
    let unreadable: &[i32] = if has_execute_only() { &[0, 4] } else { &[0] };
    let (thing, _) = s.memory(&bytes, SHARED);
    for flags in [SHARED, PRIVATE] {
        for bits in 0..8 {
            let start = s.mmap(0, page(), Prot(bits), flags, thing.as_ref(), 0).unwrap();
            let letter = |bit: i32, letter| if bits & bit != 0 { letter } else { '-' };
            let kind = if flags == SHARED { 's' } else { 'p' };
            let all = [letter(1, 'r'), letter(2, 'w'), letter(4, 'x'), kind];
            assert_eq!(protection(start), Some(all.iter().collect()));
            // On x86-64 what can be written can be read, and mostly what can be executed.
            let signal = if unreadable.contains(&bits) { SIGSEGV } else { None };
            assert_eq!(load_signal(start), signal, "{bits}");
            assert_eq!(store_signal(start, 3), if bits & 2 == 0 { SIGSEGV } else { None }, "{bits}");
            s.munmap(start, page()).unwrap();
        }
    }
});

on!(m09_write_alone_can_be_read_first, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(page());
    for flags in [SHARED, PRIVATE] {
        let (thing, _) = s.memory(&bytes, SHARED);
        let start = s.mmap(0, page(), Prot::WRITE, flags, thing.as_ref(), 0).unwrap();
        assert_eq!(load(start), Ok(thing.as_ref().map_or(0, |_| bytes[0])));
        store(start, 3).unwrap();
        assert_eq!(load(start), Ok(3));
    }
});

#[cfg(target_arch = "x86_64")]
on!(m09_what_may_be_executed_runs_and_nothing_else, [kernel, paged, anonymous, device], |s| {
    let mut code = vec![0x90; page()];
    code[..6].copy_from_slice(&[0xb8, 42, 0, 0, 0, 0xc3]); // mov eax, 42; ret
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&code, flags);
        s.mprotect(start, page(), Prot::READ | Prot::EXEC).unwrap();
        // SAFETY: a function without arguments, written above.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(start) };
        assert_eq!(function(), 42);
        s.mprotect(start, page(), Prot::READ).unwrap();
        let ended = {
            // SAFETY: the child runs the code, and dies of it.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: nothing of ours is to answer for it.
                unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
                function();
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            status
        };
        assert!(libc::WIFSIGNALED(ended) && libc::WTERMSIG(ended) == libc::SIGSEGV, "{ended:x}");
    }
});

on!(m12_huge_pages, [kernel, anonymous], |s| {
    let reserved = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let made = s.mmap(0, 2 << 20, RW, PRIVATE | MapFlags::HUGETLB, NOTHING, 0);
    if reserved.trim() == "0" {
        assert_eq!(made, Err(Errno::ENOMEM), "none is reserved");
    }
    let start = s.map(4 << 20, PRIVATE, None);
    s.madvise(start, 4 << 20, Advice::HUGEPAGE).unwrap();
    store(start + (3 << 20), 1).unwrap();
    assert_eq!(load(start + (2 << 20)), Ok(0));
    s.madvise(start, 4 << 20, Advice::NOHUGEPAGE).unwrap();
});

on!(m12_huge_page_advice_never_fails_and_huge_pages_of_an_object_are_einval, [kernel, paged, device], |s| {
    let bytes = pattern(4 * page());
    let object = s.object(&bytes);
    for flags in [SHARED, PRIVATE] {
        let huge = flags | MapFlags::HUGETLB;
        assert_eq!(s.mmap(0, 4 * page(), RW, huge, Some(&object), 0), Err(Errno::EINVAL));
        let start = s.map(4 * page(), flags, Some(&object));
        s.madvise(start, 4 * page(), Advice::HUGEPAGE).unwrap();
        s.madvise(start, 4 * page(), Advice::NOHUGEPAGE).unwrap();
        assert_eq!(loaded(start, 4 * page()), bytes);
    }
});

on!(m13_locked_is_resident_and_locked, [kernel, paged, anonymous, device], |s| {
    let (thing, _) = s.memory(&pattern(4 * page()), SHARED);
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, 4 * page(), RW, flags | MapFlags::LOCKED, thing.as_ref(), 0).unwrap();
        assert!(is_locked(start));
        let noted = || AddressSpace::at(start).map(|mapping| mapping.is_locked());
        assert!(noted().is_none_or(|noted| noted), "where it is ours");
        assert_eq!(s.resident(start, 4 * page()), [true; 4]);
        s.munlock(start, 4 * page()).unwrap();
        assert!(!is_locked(start) && !noted().is_some_and(|noted| noted));
        s.munmap(start, 4 * page()).unwrap();
    }
});

on!(m14_populate_reads_ahead_and_minds_no_end, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page() + page() / 2);
    let thing = (!s.is_anonymous()).then(|| s.object(&bytes));
    for flags in [SHARED, PRIVATE] {
        let start = s.mmap(0, 8 * page(), RW, flags | MapFlags::POPULATE, thing.as_ref(), 0).unwrap();
        assert_eq!(s.resident(start, 4 * page()), [true; 4]);
        assert_eq!(load(start + page()), Ok(thing.as_ref().map_or(0, |_| bytes[page()])));
        let nonblock = flags | MapFlags::POPULATE | MapFlags::NONBLOCK;
        let again = s.mmap(0, 4 * page(), RW, nonblock, thing.as_ref(), 0).unwrap();
        assert_eq!(load(again + page()), Ok(thing.as_ref().map_or(0, |_| bytes[page()])));
    }
});

on!(m14_populate_shows_what_is_there_already, [kernel, paged], |s| {
    let thing = s.object(&pattern(4 * page()));
    let before = s.map(4 * page(), SHARED, Some(&thing));
    (0..4).for_each(|at| assert!(load(before + at * page()).is_ok()));
    let start = s.mmap(0, 4 * page(), Prot::READ, SHARED | MapFlags::POPULATE, Some(&thing), 0).unwrap();
    let mut entries = [0; 32];
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entries, (start / page() * 8) as u64).unwrap();
    let present = entries.as_chunks::<8>().0.iter().map(|entry| u64::from_ne_bytes(*entry) >> 63);
    assert_eq!(present.collect::<Vec<_>>(), [1; 4]);
});

on!(m05_a_private_kind_that_is_new_is_known_and_goes, [anonymous], |s| {
    // MAP_DROPPABLE, since Linux 6.11.
    let flags = MapFlags(8) | MapFlags::ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let kernels = unsafe { libc::mmap(std::ptr::null_mut(), page(), RW.0, flags.0, -1, 0) };
    let made = s.mmap(0, page(), RW, flags, None, 0);
    assert_eq!(made.is_ok(), kernels != libc::MAP_FAILED, "{made:?}");
    if let Ok(start) = made {
        assert!(AddressSpace::at(start).is_some());
        s.munmap(start, page()).unwrap();
        assert_eq!(load_signal(start), SIGSEGV);
    }
});

on!(m14_nonblock_reads_nothing, [kernel, paged, anonymous, device], |s| {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(4 * page())));
    if let Some(thing) = &thing {
        thing.evict();
    }
    let flags = PRIVATE | MapFlags::POPULATE | MapFlags::NONBLOCK;
    let start = s.mmap(0, 4 * page(), RW, flags, thing.as_ref(), 0).unwrap();
    assert_eq!(s.resident(start, 4 * page()), [false; 4]);
});

on!(m15_noreserve_is_zeros_and_writable, [kernel, paged, anonymous, device], |s| {
    let pages = 60;
    for flags in [SHARED, PRIVATE] {
        let thing = (!s.is_anonymous()).then(|| s.object(&vec![0; pages * page()]));
        let start = s.mmap(0, pages * page(), RW, flags | MapFlags::NORESERVE, thing.as_ref(), 0).unwrap();
        for at in (start..start + pages * page()).step_by(page()) {
            assert_eq!(load(at), Ok(0));
            store(at, 1).unwrap();
        }
    }
});

on!(m16_uninitialized_is_accepted, [kernel, paged, anonymous, device], |s| {
    let (thing, _) = s.memory(&pattern(page()), SHARED);
    let start = s.mmap(0, page(), RW, PRIVATE | MapFlags::UNINITIALIZED, thing.as_ref(), 0).unwrap();
    assert_eq!(load(start), Ok(thing.as_ref().map_or(0, |_| pattern(page())[0])));
    store(start, 1).unwrap();
});

on!(m17_old_flags_are_ignored, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(page());
    let (thing, _) = s.memory(&bytes, SHARED);
    let old = MapFlags::DENYWRITE | MapFlags::EXECUTABLE | MapFlags::FILE | MapFlags::STACK;
    let start = s.mmap(0, page(), RW, SHARED | old, thing.as_ref(), 0).unwrap();
    assert_eq!(load(start), Ok(thing.as_ref().map_or(0, |_| bytes[0])));
    if let Some(thing) = &thing {
        thing.write(0, &[201]);
        assert_eq!(load(start), Ok(201), "writers are not kept out");
    }
});

on!(m17_unknown_flags_are_ignored_unless_they_are_validated, [kernel, paged, device], |s| {
    let object = s.object(&pattern(page()));
    let unknown = MapFlags(1 << 22);
    assert!(s.mmap(0, page(), RW, SHARED | unknown, Some(&object), 0).is_ok());
    assert!(s.mmap(0, page(), RW, PRIVATE | unknown, Some(&object), 0).is_ok());
    let validated = MapFlags::SHARED_VALIDATE;
    assert_eq!(s.mmap(0, page(), RW, validated | unknown, Some(&object), 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(s.mmap(0, page(), RW, validated | MapFlags::SYNC, Some(&object), 0), Err(Errno::EOPNOTSUPP));
    let fresh = validated | MapFlags::FIXED_NOREPLACE;
    let free = crate::subject::free_addresses(page());
    assert_eq!(s.mmap(free, page(), RW, fresh, Some(&object), 0), Err(Errno::EOPNOTSUPP), "as old as it is");
    assert!(s.mmap(0, page(), RW, validated, Some(&object), 0).is_ok());
});

on!(m18_what_cannot_be_mapped, [kernel, device], |s| {
    let mut ends = [0; 2];
    // SAFETY: fills two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: just made, and nobody else's.
    let [reading, writing] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let of = |fd: i32| s.mmap_source(0, page(), Prot::READ, PRIVATE, Source::Descriptor(fd), 0);
    assert_eq!(of(reading.as_raw_fd()), Err(Errno::ENODEV));
    assert_eq!(of(writing.as_raw_fd()), Err(Errno::EACCES));
    assert_eq!(of(File::open(s.path("")).unwrap().as_raw_fd()), Err(Errno::ENODEV));
    assert_eq!(of(File::open("/dev/random").unwrap().as_raw_fd()), Err(Errno::ENODEV));
    let path = OpenOptions::new();
    let mut path_only = path.clone();
    std::os::unix::fs::OpenOptionsExt::custom_flags(path_only.read(true), libc::O_PATH);
    assert_eq!(of(path_only.open(s.path("")).unwrap().as_raw_fd()), Err(Errno::EBADF));
});

on_alone!(m18_exec_on_a_noexec_file_system_is_eperm, [kernel, device], |s| {
    let directory = s.path("mounted");
    std::fs::create_dir(&directory).unwrap();
    let target = std::ffi::CString::new(directory.to_str().unwrap()).unwrap();
    let (tmpfs, flags) = (c"tmpfs", libc::MS_NOEXEC);
    // SAFETY: this thread alone sees the mount.
    let alone = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0
        // SAFETY: the names end with NULs.
        && unsafe {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null())
        } == 0
        // SAFETY: as above.
        && unsafe {
            libc::mount(tmpfs.as_ptr(), target.as_ptr(), tmpfs.as_ptr(), flags, std::ptr::null())
        } == 0;
    if !alone {
        return; // Not for this user.
    }
    let path = directory.join("file");
    std::fs::write(&path, pattern(page())).unwrap();
    let file = File::open(&path).unwrap();
    let of = |prot| s.mmap_source(0, page(), prot, PRIVATE, Source::Descriptor(file.as_raw_fd()), 0);
    assert_eq!(of(Prot::READ | Prot::EXEC), Err(Errno::EPERM));
    let start = of(Prot::READ).unwrap();
    assert_eq!(s.mprotect(start, page(), Prot::READ | Prot::EXEC), Err(Errno::EACCES));
    assert_eq!(load_signal(start), None);
});

on_alone!(m18_too_many_mappings_are_enomem_and_all_goes_on, [kernel, paged, anonymous, device], |s| {
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let (thing, _) = s.memory(&pattern(3 * page()), SHARED);
    // Anonymous pages that differ from their neighbours take one mapping each.
    let base = free_addresses_of(most);
    let fixed = PRIVATE | MapFlags::FIXED;
    let mut at = 0;
    let refused = loop {
        let prot = if at % 2 == 0 { Prot::READ } else { RW };
        match plain(base + at * page(), prot, fixed) {
            Ok(()) => at += 1,
            Err(errno) => break errno,
        }
        assert!(at <= most);
    };
    assert_eq!(refused, Errno::ENOMEM);
    // Room for one, and no more: a view is one, with no half of it left behind.
    let before = maps();
    assert_eq!(s.mmap(0, page(), RW, SHARED, thing.as_ref(), 0), Err(Errno::ENOMEM));
    assert_eq!(maps(), before);
    // SAFETY: made here.
    assert_eq!(unsafe { libc::munmap(base as *mut _, at * page()) }, 0);
    let start = s.mmap(0, 3 * page(), RW, SHARED, thing.as_ref(), 0).unwrap();
    store(start + page(), 4).unwrap();
    assert_eq!(load(start + page()), Ok(4));
});

fn free_addresses_of(pages: usize) -> usize {
    crate::subject::free_addresses(pages * page())
}

fn plain(address: usize, prot: Prot, flags: MapFlags) -> Result<(), Errno> {
    let flags = (flags | MapFlags::ANONYMOUS).0;
    // SAFETY: where nothing is.
    let made = unsafe { libc::mmap(address as *mut _, page(), prot.0, flags, -1, 0) };
    if made == libc::MAP_FAILED {
        Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap()))
    } else {
        Ok(())
    }
}

fn maps() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

on!(m19_closing_the_descriptor_and_unlinking_change_nothing, [kernel, paged, device], |s| {
    let bytes = pattern(3 * page());
    for flags in [SHARED, PRIVATE] {
        let object = s.object(&bytes);
        let start = s.map(3 * page(), flags, Some(&object));
        std::fs::remove_file(object.path()).unwrap();
        drop(object);
        assert_eq!(loaded(start, 3 * page()), bytes);
        store(start + page(), 9).unwrap();
        assert_eq!(load(start + page()), Ok(9));
        s.munmap(start, 3 * page()).unwrap();
    }
});

on!(m19_the_last_unmap_lets_the_object_go, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let path = object.path().to_owned();
    let start = s.map(3 * page(), SHARED, Some(&object));
    load(start).unwrap();
    drop(object);
    s.munmap(start, 2 * page()).unwrap();
    s.munmap(start + 2 * page(), page()).unwrap();
    if s.column != Column::Kernel {
        // The space of an unlinked file is the file system's again only when no descriptor is left.
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let left = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|to| *to == path).count();
        assert_eq!(left, 0);
    }
});
