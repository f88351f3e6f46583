//! shm_open(3), shm_unlink(3): memory that processes share by a name, or by a descriptor.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use omnimap::posix::{self, Errno, Source};

use crate::probe::{load, store};
use crate::subject::{Column, RW, SHARED, Subject, forked, limit, loaded, page};
use crate::{on, on_alone};

fn open(s: &Subject, name: &CString, flags: i32) -> Result<OwnedFd, Errno> {
    if s.column != Column::Kernel {
        return posix::shm_open(name, flags, 0o600);
    }
    // SAFETY: the name ends with a NUL.
    let fd = unsafe { libc::shm_open(name.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap()));
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn unlink(s: &Subject, name: &CString) -> Result<(), Errno> {
    if s.column != Column::Kernel {
        return posix::shm_unlink(name);
    }
    // SAFETY: the name ends with a NUL.
    let answer = unsafe { libc::shm_unlink(name.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap())) }
}

fn name(s: &Subject, what: &str) -> CString {
    CString::new(format!("/omnimap-{what}-{}-{:?}", std::process::id(), s.column)).unwrap()
}

const NEW: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

on!(i1_memory_shared_by_name, [kernel, device], |s| {
    let name = name(s, "by-name");
    assert_eq!(open(s, &name, libc::O_RDWR).err(), Some(Errno::ENOENT));
    let first = open(s, &name, NEW).unwrap();
    assert_eq!(open(s, &name, NEW).err(), Some(Errno::EEXIST));
    File::from(first.try_clone().unwrap()).set_len(2 * page() as u64).unwrap();
    let second = open(s, &name, libc::O_RDWR).unwrap();
    let of = |fd: &OwnedFd| {
        s.mmap_source(0, 2 * page(), RW, SHARED, Source::Descriptor(fd.as_raw_fd()), 0).unwrap()
    };
    let (a, b) = (of(&first), of(&second));
    assert_eq!(loaded(a, 2 * page()), vec![0; 2 * page()]);
    store(a + page(), 42).unwrap();
    assert_eq!(load(b + page()), Ok(42));
    unlink(s, &name).unwrap();
    assert_eq!(unlink(s, &name), Err(Errno::ENOENT));
    drop((first, second));
    store(b, 43).unwrap();
    assert_eq!(load(a), Ok(43), "who has it mapped keeps it");
});

on!(i1_bad_names, [kernel, device], |s| {
    for bad in ["", "/", "/a/b", "/.."] {
        let bad = CString::new(bad).unwrap();
        assert!(open(s, &bad, NEW).is_err(), "{bad:?}");
    }
    let long = CString::new(format!("/{}", "a".repeat(300))).unwrap();
    let refused = open(s, &long, NEW).err();
    assert!(matches!(refused, Some(Errno::ENAMETOOLONG | Errno::EINVAL)), "{refused:?}");
});

on!(i1_two_processes_wait_for_and_wake_each_other, [kernel, device], |s| {
    let name = name(s, "futex");
    let fd = open(s, &name, NEW).unwrap();
    unlink(s, &name).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(page() as u64).unwrap();
    let start = s.mmap_source(0, page(), RW, SHARED, Source::Descriptor(fd.as_raw_fd()), 0).unwrap();
    // SAFETY: mapped, aligned, and used as an atomic alone.
    let word = unsafe { AtomicU32::from_ptr(start as *mut u32) };
    let futex = |operation: i32, value: u32| {
        // SAFETY: a word that stays mapped.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                operation,
                value,
                std::ptr::null::<libc::timespec>(),
            )
        }
    };
    let turn = |mine: u32, rounds: u32| {
        for round in 0..rounds {
            let wanted = 2 * round + mine;
            loop {
                let now = word.load(Ordering::Acquire);
                if now == wanted {
                    break;
                }
                futex(libc::FUTEX_WAIT, now);
            }
            word.store(wanted + 1, Ordering::Release);
            futex(libc::FUTEX_WAKE, 1);
        }
    };
    // SAFETY: the child uses the shared word alone, and ends.
    let child = unsafe { libc::fork() };
    turn(u32::from(child == 0), 1000);
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: waits for the child just made.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!(word.load(Ordering::Acquire), 2000);
    assert_eq!(forked(|| 3), 3);
});

on_alone!(m18_no_descriptor_left_is_emfile, [kernel, device], |s| {
    let name = name(s, "emfile");
    limit(libc::RLIMIT_NOFILE, 0);
    assert_eq!(open(s, &name, NEW).err(), Some(Errno::EMFILE));
});
