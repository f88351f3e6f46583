//! A program whose allocator takes its memory from `sbrk`: what allocates inside our calls comes back to us.

use std::alloc::{GlobalAlloc, Layout};
use std::time::Duration;

use omnimap::posix::{self, MapFlags, Prot, Source};
use omnimap_testkit::within;

/// Gives memory, and takes none back.
struct FromSbrk;

// SAFETY: each range is given out once, is aligned, and is as long as was asked for.
unsafe impl GlobalAlloc for FromSbrk {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = layout.size() + layout.align();
        // SAFETY: nothing lies behind the end.
        match unsafe { posix::sbrk(bytes as isize) } {
            Ok(start) => start.cast::<u8>().wrapping_add(start.cast::<u8>().align_offset(layout.align())),
            Err(_) => std::ptr::null_mut(),
        }
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: FromSbrk = FromSbrk;

#[test]
fn an_allocator_may_take_its_memory_from_sbrk() {
    within(Duration::from_secs(60), || {
        let map = || {
            let (prot, flags) = (Prot::READ | Prot::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping at a place of the kernel's choice.
            let start = unsafe { posix::mmap(std::ptr::null_mut(), 4096, prot, flags, Source::Anonymous, 0) };
            // SAFETY: just mapped, and used by nobody else.
            unsafe { start.unwrap().cast::<u8>().write_volatile(7) };
            // SAFETY: made above.
            unsafe { posix::munmap(start.unwrap(), 4096) }.unwrap();
        };
        map();
        // SAFETY: the child does what a child may do here: that is the test.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: a limit for the child.
                unsafe { libc::alarm(30) };
                map();
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(vec![7; 10_000].len() != 10_000)) };
            }
            child => {
                map();
                let mut status = 0;
                // SAFETY: waits for the child.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
    });
}
