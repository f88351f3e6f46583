//! minherit(2) of the BSDs: what is asked for is kept, cut and moved with its range; what a child gets is for fork's tests.

use omnimap::posix::{AddressSpace, Errno, Inheritance, Prot, minherit};

use crate::probe::load;
use crate::subject::{PRIVATE, SHARED, free_addresses, give_up_rights, is_locked, page, pattern};
use crate::{on, on_alone};

fn inheritance(address: usize) -> Option<Inheritance> {
    AddressSpace::at(address).map(|mapping| mapping.inheritance())
}

on!(f02_inheritance_is_set_by_the_page, [paged, anonymous, device], |s| {
    for flags in [SHARED, PRIVATE] {
        let (_thing, start) = s.memory(&pattern(4 * page()), flags);
        for what in [Inheritance::None, Inheritance::Zero, Inheritance::Copy, Inheritance::Share] {
            minherit((start + page()) as *mut _, page() + 1, what).unwrap();
            let found = [0, 1, 2, 3].map(|at| inheritance(start + at * page()).unwrap());
            assert_eq!(found, [Inheritance::Natural, what, what, Inheritance::Natural]);
        }
        s.mprotect(start, 4 * page(), Prot::READ).unwrap();
        s.munmap(start, 2 * page()).unwrap();
        assert_eq!(inheritance(start + 2 * page()), Some(Inheritance::Share));
        assert_eq!(inheritance(start), None);
    }
});

on!(f02_what_becomes_shared_stays_locked, [paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(3 * page()), PRIVATE);
    s.mlock(start, 2 * page()).unwrap();
    minherit((start + page()) as *mut _, 2 * page(), Inheritance::Share).unwrap();
    assert_eq!([0, 1, 2].map(|at| is_locked(start + at * page())), [true, true, false]);
    assert!(AddressSpace::at(start + page()).unwrap().is_locked());
    assert!(!AddressSpace::at(start + 2 * page()).unwrap().is_locked());
    s.munlock(start, 3 * page()).unwrap();
    assert!(!is_locked(start + page()));
});

on!(f02_bad_ranges_are_refused, [paged, anonymous, device], |s| {
    let (_thing, start) = s.memory(&pattern(3 * page()), SHARED);
    s.munmap(start + page(), page()).unwrap();
    let of = |at: usize, length| minherit(at as *mut _, length, Inheritance::None);
    assert_eq!(of(start + 1, page()), Err(Errno::EINVAL));
    assert_eq!(of(start, usize::MAX), Err(Errno::EINVAL));
    assert_eq!(of(start, 3 * page()), Err(Errno::ENOMEM));
    assert_eq!(of(free_addresses(page()), page()), Err(Errno::ENOMEM));
    assert_eq!(of(start, 0), Ok(()));
    assert_eq!(inheritance(start), Some(Inheritance::Natural), "nothing has changed");
});

on_alone!(f02_private_pages_that_are_not_in_memory_become_shared_without_rights, [paged], |s| {
    give_up_rights(s);
    let bytes = pattern(300 * page());
    let (_thing, start) = s.memory(&bytes, PRIVATE);
    minherit(start as *mut _, bytes.len(), Inheritance::Share).unwrap();
    for at in (0..300).map(|index| index * page() + 5) {
        assert_eq!(load(start + at), Ok(bytes[at]));
    }
});
