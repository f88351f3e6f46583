//! A file's times: when they must have changed, and when they must not.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use omnimap::posix::{Prot, SyncFlags};

use crate::on;
use crate::probe::{load, store};
use crate::subject::{PRIVATE, SHARED, Thing, page, pattern};

/// Gives a file old times, and an object on it as the file is then.
fn aged(s: &crate::subject::Subject, thing: Thing) -> Thing {
    let path = thing.path().to_owned();
    drop(thing);
    let past = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_accessed(past).set_modified(past)).unwrap();
    s.open(&path, omnimap::posix::Rights::ReadWrite)
}

/// When it was read and changed, in seconds, and its status in nanoseconds.
fn times(path: &Path) -> (i64, i64, i128) {
    let found = std::fs::metadata(path).unwrap();
    (found.atime(), found.mtime(), i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()))
}

const OLD: i64 = 1_000_000_000;

on!(m23_a_shared_store_is_a_modification_no_later_than_the_sync, [kernel, paged, device], |s| {
    for flags in [SyncFlags::SYNC, SyncFlags::SYNC | SyncFlags::INVALIDATE] {
        let object = aged(s, s.object(&pattern(2 * page())));
        let before = times(object.path());
        let start = s.map(2 * page(), SHARED, Some(&object));
        std::thread::sleep(std::time::Duration::from_millis(15)); // More than a tick of the clock that stamps files.
        store(start, 200).unwrap();
        s.msync(start, 2 * page(), flags).unwrap();
        let after = times(object.path());
        assert!(after.1 > OLD && after.2 > before.2, "{before:?} {after:?}");
        s.munmap(start, 2 * page()).unwrap();
    }
});

on!(m23_a_shared_store_is_a_modification_no_later_than_the_unmap, [kernel, paged, device], |s| {
    let object = aged(s, s.object(&pattern(2 * page())));
    let start = s.map(2 * page(), SHARED, Some(&object));
    store(start, 200).unwrap();
    s.munmap(start, 2 * page()).unwrap();
    assert!(times(object.path()).1 > OLD);
});

on!(m23_what_was_read_was_accessed_no_later_than_the_unmap, [kernel, paged, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let object = aged(s, s.object(&pattern(2 * page())));
        // It is as old as its modification, so that relatime marks it too. To open a paged object is to read it already.
        assert!(times(object.path()).0 == OLD || s.is_paged());
        let start = s.mmap(0, 2 * page(), Prot::READ, flags, Some(&object), 0).unwrap();
        load(start).unwrap();
        s.munmap(start, 2 * page()).unwrap();
        assert!(times(object.path()).0 > OLD, "{flags:?}");
    }
});

on!(m23_no_store_is_no_modification, [kernel, paged, device], |s| {
    let object = aged(s, s.object(&pattern(2 * page())));
    let before = times(object.path());
    let (shared, private) =
        (s.map(2 * page(), SHARED, Some(&object)), s.map(2 * page(), PRIVATE, Some(&object)));
    store(private, 1).unwrap();
    load(shared).unwrap();
    s.msync(shared, 2 * page(), SyncFlags::SYNC).unwrap();
    s.munmap(shared, 2 * page()).unwrap();
    s.munmap(private, 2 * page()).unwrap();
    assert_eq!((times(object.path()).1, times(object.path()).2), (before.1, before.2));
});
