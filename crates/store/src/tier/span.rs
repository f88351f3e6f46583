//! The file of one span: which of its pages are there, and their bytes.
//!
//! ```text
//!    0  magic and format version, key of the object, number of the span
//! 4096  256 entries of 16 bytes, one for each page: checksum (8), slot (4), zeros (4); all zeros: not there
//! 8192  slots of 4096 bytes, in the order in which pages came
//! ```
//! Pages are written before their entries, by one process at a time (flock); readers lock nothing.

use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Locked, open_own};

pub(super) const PAGE_BYTES: u64 = 4096;
pub(super) const SPAN_PAGES: u64 = 256;
pub(super) const SPAN_BYTES: u64 = PAGE_BYTES * SPAN_PAGES;
const ENTRIES_AT: u64 = 4096;
const ENTRY_BYTES: usize = 16;
/// Bytes of a file that has no pages.
pub(super) const HEAD_BYTES: u64 = ENTRIES_AT + SPAN_PAGES * ENTRY_BYTES as u64;
/// With pages that came again, because they were damaged, a file is no longer than this.
const SLOTS_MAX: u64 = 2 * SPAN_PAGES;
/// A use is noted so exactly.
const USED_EXACTLY: Duration = Duration::from_secs(60);

/// An open file of a span.
pub(super) struct Span {
    file: File,
    key: u128,
    number: u64,
    entries: Vec<Entry>,
    /// Of one that is written to.
    _lock: Option<Locked>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    checksum: u64,
    slot: u32,
}

impl Span {
    /// The span, if there is a file of it, as it is now.
    pub(super) fn open(path: &Path, key: u128, number: u64) -> Option<Span> {
        Span::read(File::open(path).ok()?, key, number).ok().flatten()
    }

    /// The span to be written to, which others cannot write to meanwhile; a file that is no span is made one.
    pub(super) fn open_to_write(path: &Path, key: u128, number: u64) -> io::Result<Span> {
        let file = open_own(path)?;
        let lock = Locked::new(file.try_clone()?)?;
        let again = file.try_clone()?;
        let span = match Span::read(file, key, number)? {
            Some(span) if span.slots()? < SLOTS_MAX => span,
            _ => {
                again.set_len(0)?;
                again.write_all_at(&identity(key, number), 0)?;
                again.set_len(HEAD_BYTES)?;
                let entries = vec![Entry { checksum: 0, slot: 0 }; SPAN_PAGES as usize];
                Span { file: again, key, number, entries, _lock: None }
            }
        };
        Ok(Span { _lock: Some(lock), ..span })
    }

    fn read(file: File, key: u128, number: u64) -> io::Result<Option<Span>> {
        let mut head = vec![0; HEAD_BYTES as usize];
        match file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let expected = identity(key, number);
        if head[..expected.len()] != expected {
            return Ok(None);
        }
        let entry = |bytes: &[u8]| Entry {
            checksum: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
            slot: u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")),
        };
        let entries = head[ENTRIES_AT as usize..].chunks_exact(ENTRY_BYTES).map(entry).collect();
        Ok(Some(Span { file, key, number, entries, _lock: None }))
    }

    fn slots(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(HEAD_BYTES).div_ceil(PAGE_BYTES))
    }

    /// Whether it has no pages.
    pub(super) fn is_new(&self) -> bool {
        self.slots().is_ok_and(|slots| slots == 0)
    }

    /// Whether there is an entry of a page; its bytes may be damaged still.
    pub(super) fn has(&self, page: u64) -> bool {
        self.entries[page as usize].checksum != 0
    }

    /// The bytes of a page of the span, if they are there and right.
    pub(super) fn get(&self, page: u64, into: &mut [u8; PAGE_BYTES as usize]) -> bool {
        let Entry { checksum, slot } = self.entries[page as usize];
        if checksum == 0 || u64::from(slot) >= 2 * SLOTS_MAX {
            return false;
        }
        let at = HEAD_BYTES + u64::from(slot) * PAGE_BYTES;
        self.file.read_exact_at(into, at).is_ok() && self.checksum(page, into) == checksum
    }

    /// Adds pages that follow each other; of the object's last one what is behind the end is zeros.
    pub(super) fn put(&mut self, first: u64, pages: &[u8]) -> io::Result<()> {
        let slot = self.slots()?;
        self.file.write_all_at(pages, HEAD_BYTES + slot * PAGE_BYTES)?;
        let mut entries = Vec::new();
        for (n, page) in (0..).zip(pages.chunks_exact(PAGE_BYTES as usize)) {
            let entry = Entry { checksum: self.checksum(first + n, page), slot: (slot + n) as u32 };
            self.entries[(first + n) as usize] = entry;
            entries.extend(entry.checksum.to_le_bytes());
            entries.extend(entry.slot.to_le_bytes());
            entries.extend([0; 4]);
        }
        self.file.write_all_at(&entries, ENTRIES_AT + first * ENTRY_BYTES as u64)
    }

    /// Notes that it was used; what was used longest ago goes first.
    pub(super) fn note_use(&self) {
        let now = SystemTime::now();
        let used = self.file.metadata().and_then(|meta| meta.modified());
        let long_ago = used.is_ok_and(|used| now.duration_since(used).is_ok_and(|time| time > USED_EXACTLY));
        if long_ago {
            // A file that was opened to be read can be told only by its owner, who it was opened by most likely.
            let _ = self.file.set_times(FileTimes::new().set_modified(now));
        }
    }

    fn checksum(&self, page: u64, bytes: &[u8]) -> u64 {
        let place = self.number.wrapping_mul(SPAN_PAGES).wrapping_add(page);
        let seed = (self.key as u64) ^ ((self.key >> 64) as u64) ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // Zero says that there is none.
        xxh3_64_with_seed(bytes, seed).max(1)
    }
}

fn identity(key: u128, number: u64) -> Vec<u8> {
    [b"omnispan\x01\0\0\0\0\0\0\0".as_slice(), &key.to_le_bytes(), &number.to_le_bytes()].concat()
}
