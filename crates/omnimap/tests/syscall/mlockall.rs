//! mlockall(2), munlockall(2).

use omnimap::posix::{Errno, LockAll, MapFlags};

use crate::on_alone;
use crate::probe::load;
use crate::subject::{
    CAP_IPC_LOCK, PRIVATE, RW, SHARED, is_locked, limit, loaded, page, pattern, without_capability,
};

on_alone!(l04_current_is_what_is_mapped_now, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page());
    let (thing, start) = s.memory(&bytes, SHARED);
    if let Some(thing) = &thing {
        thing.evict();
    }
    s.mlockall(LockAll::CURRENT).unwrap();
    assert!(is_locked(start));
    assert_eq!(s.resident(start, 3 * page()), [true; 3]);
    let later = s.mmap(0, page(), RW, SHARED, thing.as_ref(), 0).unwrap();
    assert!(!is_locked(later));
    s.munlockall().unwrap();
    assert!(!is_locked(start));
    assert_eq!(loaded(start, 3 * page()), bytes);
});

on_alone!(l04_future_is_what_is_mapped_later, [kernel, paged, anonymous, device], |s| {
    let bytes = pattern(3 * page());
    let (thing, start) = s.memory(&bytes, SHARED);
    s.mlockall(LockAll::FUTURE).unwrap();
    assert!(!is_locked(start));
    if let Some(thing) = &thing {
        thing.evict();
    }
    for flags in [SHARED, PRIVATE] {
        let later = s.mmap(0, 3 * page(), RW, flags, thing.as_ref(), 0).unwrap();
        assert!(is_locked(later));
        assert_eq!(s.resident(later, 3 * page()), [true; 3]);
        assert_eq!(load(later + page()), Ok(thing.as_ref().map_or(0, |_| bytes[page()])));
    }
    s.munlockall().unwrap();
    let after = s.mmap(0, page(), RW, SHARED, thing.as_ref(), 0).unwrap();
    assert!(!is_locked(after));
});

on_alone!(l04_onfault_brings_nothing, [kernel, paged, anonymous, device], |s| {
    let thing = (!s.is_anonymous()).then(|| s.object(&pattern(3 * page())));
    if let Some(thing) = &thing {
        thing.evict();
    }
    let start = s.map(3 * page(), SHARED, thing.as_ref());
    s.mlockall(LockAll::CURRENT | LockAll::FUTURE | LockAll::ONFAULT).unwrap();
    let later = s.map(3 * page(), SHARED, thing.as_ref());
    for start in [start, later] {
        assert!(is_locked(start));
        assert_eq!(s.resident(start, 3 * page()), [false; 3]);
    }
    load(later + page()).unwrap();
    assert!(s.resident(later, 3 * page())[1]);
    s.munlockall().unwrap();
    assert!(!is_locked(start) && !is_locked(later));
});

on_alone!(l04_bad_flags_and_limits, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(page()), SHARED);
    for flags in [LockAll(0), LockAll(8), LockAll::CURRENT | LockAll(8), LockAll::ONFAULT] {
        assert_eq!(s.mlockall(flags), Err(Errno::EINVAL), "{flags:?}");
    }
    without_capability(CAP_IPC_LOCK);
    limit(libc::RLIMIT_MEMLOCK, page() as u64);
    assert_eq!(s.mlockall(LockAll::CURRENT), Err(Errno::ENOMEM));
    limit(libc::RLIMIT_MEMLOCK, 0);
    assert_eq!(s.mlockall(LockAll::CURRENT), Err(Errno::EPERM));
    assert!(!is_locked(start));
    assert_eq!(s.munlockall(), Ok(()));
});

on_alone!(l04_future_that_is_too_much_is_eagain, [kernel, paged, anonymous, device], |s| {
    let (thing, _) = s.memory(&pattern(4 * page()), SHARED);
    without_capability(CAP_IPC_LOCK);
    limit(libc::RLIMIT_MEMLOCK, 4 * page() as u64);
    s.mlockall(LockAll::FUTURE).unwrap();
    // The test's own thread takes what it needs; none of it is as large as this.
    let made = s.mmap(0, 5 * page(), RW, SHARED, thing.as_ref(), 0);
    assert_eq!(made, Err(Errno::EAGAIN));
    let flags = SHARED | MapFlags::POPULATE;
    assert_eq!(s.mmap(0, 5 * page(), RW, flags, thing.as_ref(), 0), Err(Errno::EAGAIN));
    s.munlockall().unwrap();
    s.mmap(0, 5 * page(), RW, SHARED, thing.as_ref(), 0).unwrap();
});
