//! The kernel's own mappings, through the safe API.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use omnimap::kernel::Stack;
use omnimap::{Advice, Error, MapOptions, SyncMode};
use omnimap_testkit::{in_child, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Forks; the child does `work` and ends with its answer as the status. Gives that.
fn forked(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child looks at memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = work();
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let mut status = -1;
    // SAFETY: waits for our child, and writes to `status`.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    status == 0
}

#[test]
fn m02_a_shared_file_is_seen_by_all_and_reaches_the_disk() {
    within(LIMIT, || {
        let file = file(&vec![1; 3 * page() as usize]);
        let mut one = MapOptions::new().kernel_open_mut(file.path()).unwrap();
        let two = MapOptions::new().offset(page()).length(10).kernel_open(file.path()).unwrap();
        one.write_at(page() + 3, &[7]).unwrap();
        let mut bytes = [0; 10];
        two.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 1, 1, 7, 1, 1, 1, 1, 1, 1]);
        one.cells().unwrap()[0].store(9, Ordering::Relaxed);
        one.sync().unwrap();
        one.sync_range(0..page(), SyncMode::Start).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap()[..2], [9, 1]);
        assert!(two.cells().is_none(), "not writable");
        let mut two = two;
        assert!(matches!(two.write_at(0, &[1]), Err(Error::NotAllowed { .. })));
        assert!(matches!(two.read_at(5, &mut bytes), Err(Error::OutOfRange { end: 10, .. })));
    });
}

#[test]
fn m03_a_private_file_keeps_what_is_stored_to_itself() {
    within(LIMIT, || {
        let file = file(b"abc");
        let mut private = MapOptions::new().kernel_open_private(file.path()).unwrap();
        private.write_at(1, b"d").unwrap();
        let mut bytes = [0; 3];
        private.read_at(0, &mut bytes).unwrap();
        assert_eq!((&bytes, std::fs::read(file.path()).unwrap()), (b"adc", b"abc".to_vec()));
        assert!(private.cells().is_none(), "not shared");
    });
}

#[test]
fn e1_a_file_that_became_shorter_is_an_error_and_no_signal() {
    const NAME: &str = "e1_a_file_that_became_shorter_is_an_error_and_no_signal";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let bytes = vec![5; 4 * page() as usize];
    let file = file(&bytes);
    let mut mapping = MapOptions::new().kernel_open_mut(file.path()).unwrap();
    file.as_file().set_len(page() + 10).unwrap();
    let mut into = vec![0; 3 * page() as usize];
    let error = mapping.read_at(page(), &mut into).unwrap_err();
    assert!(matches!(error, Error::Read { offset, .. } if offset == 2 * page()), "{error}");
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    mapping.read_at(0, &mut into[..page() as usize + 10]).unwrap();
    assert!(into[..page() as usize + 10].iter().all(|b| *b == 5), "what is inside stays readable");
    let error = mapping.write_at(3 * page(), &[1]).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
    // M22: it grows again.
    file.as_file().set_len(4 * page()).unwrap();
    mapping.write_at(3 * page(), &[1]).unwrap();
    mapping.read_at(3 * page(), &mut into[..1]).unwrap();
    assert_eq!(into[0], 1);
}

#[test]
fn m25_a_device_is_mapped_and_what_is_none_is_refused() {
    within(LIMIT, || {
        let mut scratch = MapOptions::new().kernel_zero_device(MIB).unwrap();
        assert!(scratch.iter().all(|b| *b == 0));
        scratch.fill(3);
        let mut device = MapOptions::new().length(MIB).kernel_open_private("/dev/zero").unwrap();
        device.write_at(10, &[1, 2, 3]).unwrap();
        let mut bytes = [0; 4];
        device.read_at(10, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 0], "its own, not the device's");
        let directory = tempfile::tempdir().unwrap();
        let error = MapOptions::new().length(10).kernel_open(directory.path()).unwrap_err();
        assert_eq!(error.errno(), libc::ENODEV, "{error}");
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        let error = MapOptions::new().length(10).kernel_open(&fifo).unwrap_err();
        assert_eq!(error.errno(), libc::ENODEV, "and no wait for who writes to it: {error}");
        let empty = MapOptions::new().kernel_open(file(b"").path()).unwrap_err();
        assert_eq!(empty.errno(), libc::EINVAL, "M08: {empty}");
    });
}

#[test]
fn m05_shared_anonymous_memory_is_shared_with_children_and_private_is_not() {
    const NAME: &str = "m05_shared_anonymous_memory_is_shared_with_children_and_private_is_not";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let shared = MapOptions::new().kernel_anonymous_shared(2 * page()).unwrap();
    let mut private = MapOptions::new().kernel_anonymous(page()).unwrap();
    let mut wiped = MapOptions::new().wipe_on_fork(true).kernel_anonymous(page()).unwrap();
    private[0] = 1;
    wiped[0] = 1;
    let right = forked(|| {
        shared.atomic_u64(8).unwrap().fetch_add(5, Ordering::Relaxed);
        let seen = private[0] == 1 && wiped[0] == 0;
        private[0] = 2;
        seen
    });
    assert!(right, "the child has a copy, and zeros");
    assert_eq!(shared.atomic_u64(8).unwrap().load(Ordering::Relaxed), 5);
    assert_eq!((private[0], wiped[0]), (1, 1), "F02: the parent keeps its bytes");
    assert!(shared.atomic_u32(2).is_none() && shared.atomic_u64(2 * page()).is_none());
    assert!(MapOptions::new().wipe_on_fork(true).kernel_anonymous_shared(page()).is_err(), "as the kernel");
}

#[test]
fn m12_m15_wishes_for_large_pages_and_no_reserve_are_no_errors() {
    within(LIMIT, || {
        let mut options = MapOptions::new();
        options.huge(true).no_reserve(true);
        let mut memory = options.kernel_anonymous(4 * MIB + 5).unwrap();
        memory.fill(1);
        assert_eq!(memory.len() as u64, 4 * MIB + 5);
        // More than there is, of which little is used.
        let mut vast = options.kernel_anonymous(1 << 42).unwrap();
        vast[1 << 41] = 1;
        assert_eq!(vast[(1 << 41) - 1], 0);
        let small = file(&[7; 100]);
        assert!(options.kernel_open(small.path()).is_ok());
    });
}

#[test]
fn l05_l06_residency_is_told_and_advice_changes_no_byte() {
    within(LIMIT, || {
        let mut memory = MapOptions::new().kernel_anonymous(8 * page()).unwrap();
        memory[page() as usize..3 * page() as usize].fill(7);
        memory[5 * page() as usize] = 7;
        let found = memory.residency(100..8 * page() - 1).unwrap();
        assert_eq!(found.resident, [page()..3 * page(), 5 * page()..6 * page()]);
        for advice in [Advice::Normal, Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::DontNeed]
        {
            memory.advise(0..8 * page(), advice).unwrap();
            assert_eq!(memory.iter().filter(|b| **b == 7).count() as u64, 2 * page() + 1);
        }
        memory.discard(page() + 1..3 * page()).unwrap();
        let left = memory.residency(page()..3 * page()).unwrap();
        assert_eq!(left.resident_bytes(), page(), "whole pages alone");
        assert_eq!(memory[2 * page() as usize], 0);
        assert!(memory.discard(0..9 * page()).is_err());
        let backwards = std::ops::Range { start: 5, end: 4 };
        assert!(memory.advise(backwards, Advice::Normal).is_err());
    });
}

#[test]
fn u02_kernel_mappings_are_split_where_they_are() {
    within(LIMIT, || {
        let reservation = omnimap::Reservation::new(4 * page()).unwrap();
        let mut low = MapOptions::new().within(&reservation, 0).kernel_anonymous(4 * page() - 3).unwrap();
        low.fill(7);
        assert!(low.split_off(1).is_err() && low.split_off(4 * page()).is_err() && low.split_off(0).is_err());
        let mut high = low.split_off(page()).unwrap();
        assert_eq!(low.as_ptr_range().end, high.as_ptr());
        assert_eq!((low.len() as u64, high.len() as u64), (page(), 3 * page() - 3));
        drop(low);
        assert!(high.iter().all(|b| *b == 7));
        high.fill(8);
        let again = MapOptions::new().within(&reservation, 0).kernel_anonymous(page()).unwrap();
        assert!(again.iter().all(|b| *b == 0) && high.iter().all(|b| *b == 8));

        let file = file(&vec![1; 2 * page() as usize]);
        let mut first = MapOptions::new().kernel_open_mut(file.path()).unwrap();
        let mut second = first.split_off(page()).unwrap();
        second.write_at(0, &[9]).unwrap();
        drop(first);
        assert_eq!(std::fs::read(file.path()).unwrap()[page() as usize], 9);
        file.as_file().set_len(page()).unwrap();
        assert!(matches!(second.read_at(0, &mut [0]), Err(Error::Read { .. })));
    });
}

#[test]
fn m11_a_stack_grows_downwards_as_it_is_touched_and_shrinks() {
    within(LIMIT, || {
        let mut stack = Stack::new(64 * MIB).unwrap();
        assert_eq!((stack.len() as u64, stack.committed_bytes().unwrap()), (64 * MIB, 0));
        let top = stack.len();
        for depth in (1..=10 * MIB as usize).step_by(page() as usize) {
            stack[top - depth] = 1;
        }
        let deep = stack.committed_bytes().unwrap();
        assert!((10 * MIB..16 * MIB).contains(&deep), "{deep}");
        stack.shrink_to(MIB).unwrap();
        assert!(stack.committed_bytes().unwrap() <= MIB);
        assert_eq!((stack[top - 1], stack[top - 2 * MIB as usize]), (1, 0));
        assert!(stack.shrink_to(65 * MIB).is_err() && Stack::new(u64::MAX).is_err());
    });
}

#[test]
fn m11_below_a_stack_is_a_gap_that_cannot_be_touched() {
    const NAME: &str = "m11_below_a_stack_is_a_gap_that_cannot_be_touched";
    if let Some(output) = in_child(NAME, LIMIT) {
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
        return;
    }
    let mut stack = Stack::new(MIB).unwrap();
    stack[0] = 1;
    let top = stack.top();
    // SAFETY: none: it is what must not work.
    unsafe { top.wrapping_sub(MIB as usize + 1).write_volatile(1) };
    std::process::exit(0);
}
