//! Devices, and scratch memory.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use omnimap::posix::{Prot, Source};

use crate::on;
use crate::probe::{load, load_signal, store};
use crate::subject::{PRIVATE, RW, SHARED, SIGSEGV, forked, free_addresses, loaded, page};

fn zero() -> File {
    OpenOptions::new().read(true).write(true).open("/dev/zero").unwrap()
}

on!(m25_dev_zero_gives_zeros, [kernel, device], |s| {
    let file = zero();
    let source = || Source::Descriptor(file.as_raw_fd());
    for flags in [SHARED, PRIVATE] {
        let length = page() + page() / 2;
        let of = || s.mmap_source(free_addresses(length), length, RW, flags, source(), 0).unwrap();
        let (a, b) = (of(), of());
        assert_eq!(loaded(a, length), vec![0; length]);
        store(a, 9).unwrap();
        assert_eq!((load(a), load(b)), (Ok(9), Ok(0)), "two mappings never share pages");
        let seen = forked(|| {
            let seen = load(a).unwrap_or(99);
            let _ = store(a, 10);
            seen
        });
        assert_eq!((seen, load(a)), (9, Ok(if flags == SHARED { 10 } else { 9 })));
        s.munmap(a, length).unwrap();
        assert_eq!(load_signal(a), SIGSEGV);
    }
});

on!(x3_scratch_memory_from_dev_zero, [kernel, device], |s| {
    let file = zero();
    let start = s.mmap_source(0, 16 * page(), RW, PRIVATE, Source::Descriptor(file.as_raw_fd()), 0).unwrap();
    drop(file);
    for at in 0..16 {
        assert_eq!(load(start + at * page()), Ok(0));
        store(start + at * page(), at as u8).unwrap();
    }
    assert!((0..16).all(|at| load(start + at * page()) == Ok(at as u8)));
    s.munmap(start, 16 * page()).unwrap();
});

on!(m25_a_device_with_a_mapping_of_its_own_is_passed_through, [kernel, device], |s| {
    // struct io_uring_params is 120 bytes; IORING_OFF_SQES is where the entries are.
    const ENTRIES_OFFSET: i64 = 0x1000_0000;
    let mut parameters = [0_u8; 120];
    // SAFETY: io_uring_setup(2) fills the parameters.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    if fd < 0 {
        let mut perf = perf_event();
        return perf.take().map_or((), |fd| ring_of_perf(s, &fd));
    }
    // SAFETY: just made, and nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let source = || Source::Descriptor(ring.as_raw_fd());
    let (a, b) = (
        s.mmap_source(0, page(), RW, SHARED, source(), ENTRIES_OFFSET).unwrap(),
        s.mmap_source(0, page(), RW, SHARED, source(), ENTRIES_OFFSET).unwrap(),
    );
    store(a, 17).unwrap();
    assert_eq!(load(b), Ok(17), "the ring's own memory");
    s.munmap(a, page()).unwrap();
    s.munmap(b, page()).unwrap();
});

/// An event that counts nothing much, where the system allows that.
fn perf_event() -> Option<OwnedFd> {
    // struct perf_event_attr, version 0: type PERF_TYPE_SOFTWARE, size 64, config PERF_COUNT_SW_DUMMY, excludes the kernel.
    let mut attributes = [0_u8; 64];
    attributes[0] = 1;
    attributes[4] = 64;
    attributes[8] = 9;
    attributes[40] = 0b0110_0000;
    // SAFETY: perf_event_open(2) reads the attributes.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) };
    // SAFETY: just made, and nobody else's.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn ring_of_perf(s: &crate::subject::Subject, fd: &OwnedFd) {
    let source = || Source::Descriptor(fd.as_raw_fd());
    let start = s.mmap_source(0, 3 * page(), Prot::READ, SHARED, source(), 0).unwrap();
    assert!(load(start).is_ok());
    s.munmap(start, 3 * page()).unwrap();
}
