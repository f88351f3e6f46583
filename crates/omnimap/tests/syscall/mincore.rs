//! mincore(2): what is in memory.

use omnimap::posix::Errno;

use crate::on;
use crate::probe::{load, store};
use crate::subject::{PRIVATE, SHARED, free_addresses, page, pattern};

on!(l05_one_byte_a_page_whose_low_bit_says_resident, [kernel, paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let thing = (!s.is_anonymous()).then(|| s.object(&pattern(5 * page())));
        if let Some(thing) = &thing {
            thing.evict();
        }
        let start = s.map(5 * page(), flags, thing.as_ref());
        // The kernel may read ahead of a load, and we may too; what nobody touched is not there yet.
        assert_eq!(s.resident(start, 5 * page()), [false; 5]);
        store(start + 4 * page(), 1).unwrap();
        load(start + page()).unwrap();
        let resident = s.resident(start, 4 * page() + page() / 2);
        assert_eq!((resident.len(), resident[1], resident[4]), (5, true, true), "the length is rounded up");
    }
});

on!(l05_evicted_is_not_resident_in_any_mapping, [kernel, paged, device], |s| {
    let object = s.object(&pattern(3 * page()));
    let (a, b) = (s.map(3 * page(), SHARED, Some(&object)), s.map(3 * page(), PRIVATE, Some(&object)));
    load(a).unwrap();
    assert!(s.resident(b, 3 * page())[0], "touched through another mapping");
    s.munmap(a, 3 * page()).unwrap();
    if s.is_paged() {
        object.evict();
        assert_eq!(s.resident(b, 3 * page()), [false; 3]);
        store(b, 1).unwrap();
        object.evict();
        assert!(s.resident(b, 3 * page())[0], "a page of its own");
    }
});

on!(l05_bad_ranges, [kernel, paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(4 * page()), SHARED);
    s.munmap(start + 2 * page(), page()).unwrap();
    assert!(load(start).is_ok() && load(start + page()).is_ok());
    let mut vector = [9; 8];
    assert_eq!(s.mincore(start + 1, page(), &mut vector), Err(Errno::EINVAL));
    assert_eq!(s.mincore(start + 1, 0, &mut vector), Err(Errno::EINVAL));
    assert_eq!(s.mincore(start, 4 * page(), &mut vector), Err(Errno::ENOMEM));
    assert_eq!(s.mincore(free_addresses(page()), page(), &mut vector), Err(Errno::ENOMEM));
    assert_eq!(s.mincore(start, usize::MAX, &mut []), Err(Errno::ENOMEM));
    assert_eq!(s.mincore(start, usize::MAX - start + 1, &mut []), Err(Errno::ENOMEM));
    assert_eq!(s.mincore(start, 0, &mut []), Ok(()));
    let mut short = [9; 2];
    assert_eq!(s.mincore(start, 4 * page(), &mut short), Err(Errno::ENOMEM), "told as far as the hole");
    assert_eq!(short.map(|byte| byte & 1), [1, 1]);
    assert_eq!(s.mincore(start, 1 << 47, &mut short), Err(Errno::ENOMEM));
    let mut vector = [9; 8];
    s.mincore(start, page() + 1, &mut vector).unwrap();
    assert_eq!(vector.map(|byte| byte & 1)[..2], [1, 1]);
    assert_eq!(vector[2..], [9; 6], "not one more is written");
});

// Of the kernel it is memory behind the vector that would be written to.
on!(l05_a_vector_that_is_too_short_is_efault, [paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(4 * page()), SHARED);
    for pages in 0..4 {
        assert_eq!(s.mincore(start, 4 * page(), &mut vec![9; pages]), Err(Errno::EFAULT), "{pages}");
    }
});
