//! What goes through the queue, on a real file.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use omnimap_queue::{Read, Write, read_at, read_each, write_each};

const PAGE: usize = 4096;
const PAGES: usize = 300;

/// Memory that direct transfers take.
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

fn page(number: usize, round: u8) -> Page {
    Page(std::array::from_fn(|at| (number * 7 + at / 16) as u8 ^ round))
}

/// Beside the test, for a temporary directory may be memory; direct, where the file system has that.
fn file() -> File {
    let directory = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
    let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(&file);
    let opened = open(libc::O_DIRECT).or_else(|_| open(0)).unwrap();
    opened.set_len((PAGES * PAGE) as u64).unwrap();
    opened
}

fn write_all(file: &File, round: u8) {
    let pages: Vec<Page> = (0..PAGES).map(|number| page(number, round)).collect();
    let at = |number: usize| ((number * 7) % PAGES * PAGE) as u64;
    let writes: Vec<Write<'_>> =
        pages.iter().enumerate().map(|(n, page)| Write { offset: at(n), bytes: &page.0 }).collect();
    let mut told = vec![0; PAGES];
    write_each(file, &writes, |number, outcome| {
        outcome.unwrap();
        told[number] += 1;
    });
    assert!(told.iter().all(|times| *times == 1), "{told:?}");
}

fn check_all(file: &File, round: u8) {
    let mut found = page(0, 0);
    for number in 0..PAGES {
        let offset = ((number * 7) % PAGES * PAGE) as u64;
        assert_eq!(read_at(file, &mut found.0, offset).unwrap(), PAGE);
        assert!(found.0 == page(number, round).0, "page {number}");
    }
}

#[test]
fn reads_made_together_come_each_to_its_place() {
    let file = file();
    write_all(&file, 5);
    let mut pages: Vec<Page> = (0..PAGES + 1).map(|_| page(0, 0xFF)).collect();
    // The last is behind the end.
    let at = |number: usize| if number == PAGES { PAGES * PAGE } else { number * 7 % PAGES * PAGE } as u64;
    let mut reads: Vec<Read<'_>> =
        pages.iter_mut().enumerate().map(|(n, page)| Read { offset: at(n), into: &mut page.0 }).collect();
    let mut came = vec![None; PAGES + 1];
    read_each(&file, &mut reads, |number, outcome| {
        assert!(came[number].replace(outcome.unwrap()).is_none(), "{number} was told before");
    });
    for number in 0..PAGES {
        assert_eq!(came[number], Some(PAGE));
        assert!(pages[number].0 == page(number, 5).0, "page {number}");
    }
    assert_eq!(came[PAGES], Some(0));
}

#[test]
fn what_was_written_together_is_read() {
    let file = file();
    for round in 1..4 {
        write_all(&file, round);
        check_all(&file, round);
    }
    let mut beyond = page(0, 0);
    assert_eq!(read_at(&file, &mut beyond.0, (PAGES * PAGE) as u64).unwrap(), 0);
}

#[test]
fn threads_do_not_get_each_others_transfers() {
    thread::scope(|scope| {
        for round in 0..8 {
            scope.spawn(move || {
                let file = file();
                for again in 0..4 {
                    write_all(&file, round * 16 + again);
                    check_all(&file, round * 16 + again);
                }
            });
        }
    });
}

#[test]
fn each_write_is_told_its_own_failure() {
    let file = file();
    let pages = [page(1, 0), page(2, 0), page(3, 0)];
    // The second is no place in any file.
    let offsets = [0, u64::MAX / 2 - 1, PAGE as u64];
    let writes: Vec<Write<'_>> =
        pages.iter().zip(offsets).map(|(page, offset)| Write { offset, bytes: &page.0 }).collect();
    let mut told = [None, None, None];
    write_each(&file, &writes, |number, outcome| {
        assert!(told[number].replace(outcome.is_ok()).is_none(), "{number} was told before");
    });
    assert_eq!(told, [Some(true), Some(false), Some(true)]);
    let mut found = page(0, 0);
    assert_eq!(file.read_at(&mut found.0, PAGE as u64).unwrap(), PAGE);
    assert!(found.0 == pages[2].0);
}

#[test]
fn what_cannot_be_read_or_written_says_why() {
    let read_only = File::open("/dev/zero").unwrap();
    let page = page(1, 0);
    let writes = [Write { offset: 0, bytes: &page.0 }, Write { offset: 4096, bytes: &page.0 }];
    let mut told = 0;
    write_each(&read_only, &writes, |_, outcome| {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EBADF));
        told += 1;
    });
    assert_eq!(told, 2);
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(read_at(&write_only, &mut [0; 16], 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn no_space_is_told_and_not_a_short_write() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let page = page(1, 0);
    let writes = [Write { offset: 0, bytes: &page.0 }, Write { offset: 4096, bytes: &page.0 }];
    write_each(&full, &writes, |_, outcome| {
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    });
}

#[test]
fn a_forked_child_has_queues_of_its_own() {
    let file = file();
    write_all(&file, 9);
    check_all(&file, 9);
    // SAFETY: the child transfers, and ends without what the parent's test has to clean up.
    match unsafe { libc::fork() } {
        0 => {
            let works = std::panic::catch_unwind(|| {
                write_all(&file, 10);
                check_all(&file, 10);
            });
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(works.is_err())) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
    check_all(&file, 10);
}
