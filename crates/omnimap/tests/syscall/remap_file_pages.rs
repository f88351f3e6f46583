//! remap_file_pages(2): other pages of the same object.

use omnimap::posix::{Advice, Errno, Prot};

use crate::child::fork;
use crate::on;
use crate::probe::{load, load_signal, store};
use crate::subject::{PRIVATE, SHARED, SIGSEGV, free_addresses, loaded, page, pattern};

on!(r02_other_pages_of_the_object_in_a_shared_mapping, [kernel, paged, device], |s| {
    let bytes = pattern(8 * page());
    let object = s.object(&bytes);
    let start = s.map(4 * page(), SHARED, Some(&object));
    store(start, 200).unwrap();
    s.remap_file_pages(start, page(), 0, 5).unwrap();
    s.remap_file_pages(start + page(), 2 * page(), 0, 6).unwrap();
    assert_eq!(loaded(start, page()), bytes[5 * page()..6 * page()]);
    assert_eq!(loaded(start + page(), 2 * page()), bytes[6 * page()..]);
    assert_eq!(load(start + 3 * page()), Ok(bytes[3 * page()]));
    store(start, 201).unwrap();
    assert_eq!(object.bytes()[5 * page()], 201);
    s.remap_file_pages(start, page(), 0, 0).unwrap();
    assert_eq!(load(start), Ok(200));
    s.munmap(start, 4 * page()).unwrap();
    assert_eq!([object.stored()[0], object.stored()[5 * page()]], [200, 201]);
});

on!(r02_bad_arguments, [kernel, paged, device], |s| {
    let bytes = pattern(4 * page());
    let object = s.object(&bytes);
    let (shared, private) =
        (s.map(4 * page(), SHARED, Some(&object)), s.map(4 * page(), PRIVATE, Some(&object)));
    assert_eq!(s.remap_file_pages(private, page(), 0, 1), Err(Errno::EINVAL));
    assert_eq!(s.remap_file_pages(shared, page(), 1, 1), Err(Errno::EINVAL), "a protection");
    assert_eq!(s.remap_file_pages(shared, 0, 0, 1), Err(Errno::EINVAL));
    assert_eq!(s.remap_file_pages(free_addresses(page()), page(), 0, 1), Err(Errno::EINVAL));
    assert_eq!(s.remap_file_pages(shared, 5 * page(), 0, 1), Err(Errno::EINVAL), "more than is mapped");
    assert_eq!(s.remap_file_pages(shared, page(), 0, usize::MAX), Err(Errno::EINVAL));
    let read_only = s.read_only(&bytes);
    let read = s.mmap(0, 4 * page(), Prot::READ, SHARED, Some(&read_only), 0).unwrap();
    assert_eq!(s.remap_file_pages(read, page(), 0, 1), Err(Errno::EINVAL), "opened to be read");
    assert_eq!(loaded(shared, 4 * page()), bytes);
});

on!(a_child_gets_what_was_remapped_of_what_it_was_not_to_get, [kernel, paged, device], |s| {
    let bytes = pattern(4 * page());
    let object = s.object(&bytes);
    let start = s.map(2 * page(), SHARED, Some(&object));
    s.madvise(start, 2 * page(), Advice::DONTFORK).unwrap();
    s.remap_file_pages(start, page(), 0, 3).unwrap();
    fork(|| {
        assert_eq!(load(start), Ok(bytes[3 * page()]));
        assert_eq!(load_signal(start + page()), SIGSEGV);
    })
    .succeeds();
});
