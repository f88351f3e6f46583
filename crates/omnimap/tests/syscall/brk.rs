//! brk(2), sbrk(2): a data segment.

use omnimap::posix::{DataSegment, Errno, Prot, brk, sbrk};

use crate::probe::{load, load_signal, store};
use crate::subject::{SIGSEGV, limit, page};
use crate::{on, on_alone};

on!(b01_growing_gives_zeros_and_shrinking_takes_them_away, [anonymous], |_s| {
    let segment = DataSegment::reserve(16 * page()).unwrap();
    let start = segment.start() as usize;
    // SAFETY: nothing is used behind the new ends but by probes.
    let by = |increment: isize| unsafe { segment.sbrk(increment) }.map(|at| at as usize);
    assert_eq!(by(0), Ok(start));
    assert_eq!(by(page() as isize + 10), Ok(start));
    assert_eq!(by(0), Ok(start + page() + 10));
    for at in [0, page(), 2 * page() - 1] {
        assert_eq!(load(start + at), Ok(0), "the end is rounded up to a page");
        store(start + at, 9).unwrap();
    }
    assert_eq!(load_signal(start + 2 * page()), SIGSEGV);
    assert_eq!(by(-(page() as isize)), Ok(start + page() + 10));
    assert_eq!(load(start), Ok(9));
    assert_eq!(load_signal(start + page()), SIGSEGV);
    assert_eq!(by(2 * page() as isize), Ok(start + 10));
    assert_eq!([page() - 1, page(), 2 * page() - 1].map(|at| load(start + at)), [Ok(0); 3], "zeros again");
});

on!(b01_shrinking_inside_a_page_that_may_not_be_written, [anonymous], |s| {
    let segment = DataSegment::reserve(4 * page()).unwrap();
    let start = segment.start() as usize;
    // SAFETY: as above.
    let by = |increment: isize| unsafe { segment.sbrk(increment) }.map(|at| at as usize);
    by(2 * page() as isize).unwrap();
    store(start + 100, 9).unwrap();
    s.mprotect(start, page(), Prot::READ).unwrap();
    assert_eq!(by(50 - 2 * page() as isize), Ok(start + 2 * page()));
    assert_eq!((by(0), load(start + 100)), (Ok(start + 50), Ok(9)));
    assert_eq!(load_signal(start + page()), SIGSEGV);
});

on!(b01_failure_changes_nothing, [anonymous], |_s| {
    let segment = DataSegment::reserve(4 * page()).unwrap();
    let start = segment.start() as usize;
    // SAFETY: as above.
    let to = |end: usize| unsafe { segment.brk(end as *mut _) };
    to(start + 2 * page()).unwrap();
    store(start + page(), 9).unwrap();
    for bad in [start - 1, start + 4 * page() + 1, 0, usize::MAX] {
        assert_eq!(to(bad), Err(Errno::ENOMEM));
    }
    // SAFETY: as above.
    let by = |increment: isize| unsafe { segment.sbrk(increment) }.map(|at| at as usize);
    assert_eq!(by(isize::MAX), Err(Errno::ENOMEM));
    assert_eq!(by(isize::MIN), Err(Errno::ENOMEM));
    assert_eq!((by(0), load(start + page())), (Ok(start + 2 * page()), Ok(9)));
    assert_eq!(DataSegment::reserve(0).err(), Some(Errno::EINVAL));
    assert_eq!(DataSegment::reserve(usize::MAX).err(), Some(Errno::ENOMEM));
});

on_alone!(b01_the_limit_of_data_is_enomem, [anonymous], |_s| {
    // SAFETY: nothing is used behind the new ends.
    let start = unsafe { sbrk(0) }.unwrap() as usize;
    limit(libc::RLIMIT_DATA, page() as u64);
    // SAFETY: as above.
    assert_eq!(unsafe { brk((start + 64 * page()) as *mut _) }, Err(Errno::ENOMEM));
    limit(libc::RLIMIT_DATA, u64::MAX);
    // SAFETY: as above.
    unsafe { brk((start + 64 * page()) as *mut _) }.unwrap();
    store(start + 63 * page(), 1).unwrap();
});

on!(b01_the_kernels_segment_does_the_same, [kernel], |_s| {
    // Asked and not moved: it is the C library's.
    // SAFETY: only asks.
    let end = unsafe { libc::sbrk(0) };
    // SAFETY: refused, as there are not so many addresses.
    let refused = unsafe { libc::brk(std::ptr::without_provenance_mut(usize::MAX - page())) };
    assert_eq!(refused, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOMEM));
    // SAFETY: only asks.
    assert!(unsafe { libc::sbrk(0) } >= end);
});
