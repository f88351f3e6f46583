//! What a child may ask of mappings that its parent serves.

use omnimap::posix::{Advice, Errno, MapFlags, Prot, RemapFlags, SyncFlags};

use crate::child::{Signal, fork};
use crate::on;
use crate::probe::{load, store};
use crate::subject::{PRIVATE, SHARED, free_addresses, page, pattern};

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
