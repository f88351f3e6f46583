//! Which pages of a range are in the page tables: PAGEMAP_SCAN, or /proc/self/pagemap where the kernel is older.
//!
//! Source: kernel `Documentation/admin-guide/mm/pagemap.rst`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::userfaultfd::ioctl_read_write;
use crate::error::During;
use crate::{Address, ProcessId, Result};

#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_max: u64,
    pages_max: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PresentPart {
    start: u64,
    end: u64,
    categories: u64,
}

/// Linux 6.7.
const PAGEMAP_SCAN: libc::Ioctl = ioctl_read_write(b'f', 16, size_of::<ScanArgument>());
const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Bit 63 of an entry of /proc/pid/pagemap.
const ENTRY_PRESENT: u64 = 1 << 63;
/// Parts taken by one scan.
const PARTS: usize = 64;
/// Entries read at a time where there is no scan.
const ENTRIES: usize = 256;

/// Calls `found` with each part (absolute addresses) of the range whose pages are present.
pub(super) fn present(
    start: Address,
    bytes: u64,
    page_bytes: u64,
    mut found: impl FnMut(Range<u64>),
) -> Result<()> {
    static NO_SCAN: AtomicBool = AtomicBool::new(false);
    let range = start.0 as u64..start.0 as u64 + bytes;
    let file = pagemap().during("open(/proc/self/pagemap)")?;
    if !NO_SCAN.load(Ordering::Relaxed) {
        match scan(&file, range.clone(), &mut found) {
            Ok(()) => return Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                NO_SCAN.store(true, Ordering::Relaxed);
            }
            Err(e) => return Err(e).during("ioctl(PAGEMAP_SCAN)"),
        }
    }
    read_entries(&file, range, page_bytes, &mut found).during("pread(/proc/self/pagemap)")
}

type Opened = Option<(ProcessId, Arc<File>)>;
static OPENED: Mutex<Opened> = Mutex::new(None);

/// Keeps others out while the process is forked: the child has none of their threads, and finds the lock free.
pub(super) fn hold() -> MutexGuard<'static, Opened> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pagemap of this process: a descriptor that was opened before a fork goes on showing the parent's.
fn pagemap() -> io::Result<Arc<File>> {
    let mut opened = hold();
    if let Some((process, file)) = &*opened
        && process.is_current()
    {
        return Ok(file.clone());
    }
    let file = Arc::new(File::open("/proc/self/pagemap")?);
    *opened = Some((ProcessId::current(), file.clone()));
    Ok(file)
}

fn scan(file: &File, range: Range<u64>, found: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut parts = [PresentPart::default(); PARTS];
    let mut from = range.start;
    while from < range.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start: from,
            end: range.end,
            regions: parts.as_mut_ptr() as u64,
            regions_max: PARTS as u64,
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_PRESENT,
            ..Default::default()
        };
        // SAFETY: the argument is the struct that the request declares; the kernel writes it and at most `regions_max`
        // regions, which `parts` has room for.
        let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for part in &parts[..(count as usize).min(PARTS)] {
            found(part.start..part.end);
        }
        if argument.walk_end <= from {
            return Ok(());
        }
        from = argument.walk_end;
    }
    Ok(())
}

fn read_entries(
    file: &File,
    range: Range<u64>,
    page_bytes: u64,
    found: &mut impl FnMut(Range<u64>),
) -> io::Result<()> {
    const ENTRY_BYTES: usize = size_of::<u64>();
    let mut raw = [0u8; ENTRIES * ENTRY_BYTES];
    let mut page = range.start / page_bytes;
    let last = range.end.div_ceil(page_bytes);
    while page < last {
        let count = (last - page).min(ENTRIES as u64) as usize;
        let entries = &mut raw[..count * ENTRY_BYTES];
        file.read_exact_at(entries, page * ENTRY_BYTES as u64)?;
        for (i, entry) in entries.as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
            if u64::from_ne_bytes(*entry) & ENTRY_PRESENT != 0 {
                let at = (page + i as u64) * page_bytes;
                found(at..at + page_bytes);
            }
        }
        page += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Both ways of asking must give the same answer, for every older kernel takes the second.
    #[test]
    fn scan_and_entries_agree() {
        let page = crate::linux::page_bytes();
        let pages = 300;
        // SAFETY: a fresh anonymous mapping replaces nothing.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                (pages * page) as usize,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        }
        .unwrap();
        // SAFETY: inside the mapping just made; keeps the pages small, so that each is present on its own.
        unsafe { rustix::mm::madvise(start, (pages * page) as usize, rustix::mm::Advice::LinuxNoHugepage) }
            .unwrap();
        let mut touched = Vec::new();
        for i in (0..pages).filter(|i| i % 3 == 0 || *i > 280) {
            let byte = start.cast::<u8>().wrapping_add((i * page) as usize);
            // SAFETY: inside the mapping just made.
            unsafe { byte.write_volatile(1) };
            touched.push(i);
        }
        let range = start as u64..start as u64 + pages * page;
        let file = pagemap().unwrap();
        let pages_of = |parts: Vec<Range<u64>>| -> Vec<u64> {
            parts.iter().flat_map(|r| (r.start - range.start) / page..(r.end - range.start) / page).collect()
        };
        let mut scanned = Vec::new();
        match scan(&file, range.clone(), &mut |r| scanned.push(r)) {
            Ok(()) => assert_eq!(pages_of(scanned), touched, "PAGEMAP_SCAN"),
            Err(e) => {
                // Past the test runner's capture, which would hide it.
                writeln!(io::stderr(), "SKIPPED: PAGEMAP_SCAN: {e}; the pagemap file alone is tested")
                    .unwrap();
            }
        }
        let mut read = Vec::new();
        read_entries(&file, range.clone(), page, &mut |r| read.push(r)).unwrap();
        assert_eq!(pages_of(read), touched, "/proc/self/pagemap");
    }
}
