//! Figures of this process's objects, in memory in which other processes can look (`docs/maps.md`).
//!
//! Owns: a memfd that lasts as long as the process, and slots in it. Only what the kernel does not tell is there. No locks,
//! no waiting: each word is an atomic, written by whoever has the slot.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};

use super::page_bytes;
use super::truncate::truncate;
use crate::Result;
use crate::error::During;
use crate::process::ProcessId;

/// What the memory is called: it is found by that in `/proc/PID/fd`.
pub(super) const NAME: &str = "omnimap-figures";

/// The words of the header; the slots follow.
const MAGIC: u64 = u64::from_ne_bytes(*b"omnifigs");
const VERSION: u64 = 1;
const HEADER_WORDS: usize = 8;
/// The words of a slot: a cache line, so that objects do not slow each other down.
const SLOT_WORDS: usize = 8;
const INODE: usize = 0;
const DEVICE: usize = 1;
const DIRTY_PAGES: usize = 2;
const KIND: usize = 3;
const SLOTS: usize = 4096;
const WORDS: usize = HEADER_WORDS + SLOTS * SLOT_WORDS;
const WORD_BYTES: usize = size_of::<u64>();

/// Stands in place of the inode while the rest of a slot is written.
const CLAIMED: u64 = u64::MAX;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// Pages come from a store, and go.
    Paged,
    /// The kernel's own: shared memory.
    Kernel,
}

/// A slot, which is free again when this is dropped.
pub(super) struct Published {
    slot: &'static [AtomicU64],
    made_in: ProcessId,
}

impl Published {
    /// Takes a slot for the object behind a descriptor; none if that cannot be had: then nobody outside sees its figures.
    pub(super) fn new(object: &File, kind: ObjectKind) -> Option<Published> {
        let metadata = object.metadata().ok()?;
        let table = table()?;
        let mut slots = table.words[HEADER_WORDS..].chunks_exact(SLOT_WORDS);
        let slot = slots.find(|slot| {
            slot[INODE].compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })?;
        slot[DEVICE].store(metadata.dev(), Ordering::Relaxed);
        slot[DIRTY_PAGES].store(0, Ordering::Relaxed);
        slot[KIND].store(kind.number(), Ordering::Relaxed);
        slot[INODE].store(metadata.ino(), Ordering::Release);
        Some(Published { slot, made_in: ProcessId::current() })
    }

    /// Adds to its dirty pages, or takes away.
    pub(super) fn add_dirty(&self, pages: i64) {
        self.slot[DIRTY_PAGES].fetch_add(pages as u64, Ordering::Relaxed);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // In a forked child, it is the parent's still.
        if self.made_in.is_current() {
            self.slot[INODE].store(0, Ordering::Release);
        }
    }
}

impl ObjectKind {
    fn number(self) -> u64 {
        match self {
            ObjectKind::Paged => 1,
            ObjectKind::Kernel => 2,
        }
    }

    fn of_number(number: u64) -> Option<ObjectKind> {
        [ObjectKind::Paged, ObjectKind::Kernel].into_iter().find(|kind| kind.number() == number)
    }
}

/// The memory of one process, mapped for good.
struct Table {
    words: &'static [AtomicU64],
    file: File,
    made_in: ProcessId,
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

/// This process's own table, made when it is first needed; a forked child makes another.
///
/// Without a lock, for a child may have been forked while another thread was here.
fn table() -> Option<&'static Table> {
    if let Some(table) = existing() {
        return Some(table);
    }
    let before = TABLE.load(Ordering::Acquire);
    let made = Box::into_raw(Box::new(Table::make().ok()?));
    if TABLE.compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: made by `Box::into_raw` above, and nobody else has seen it. Its memory stays mapped, and is not found.
        drop(unsafe { Box::from_raw(made) });
    }
    existing()
}

fn existing() -> Option<&'static Table> {
    // SAFETY: null, or from `Box::into_raw`, and never freed once it is here.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() };
    table.filter(|table| table.made_in.is_current())
}

impl Table {
    fn make() -> Result<Table> {
        let bytes = WORDS * WORD_BYTES;
        let file = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC).during("memfd_create")?);
        truncate(&file, bytes as u64).during("ftruncate(memfd)")?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0) }
                .during("mmap")?;
        let start = NonNull::new(start).ok_or(rustix::io::Errno::NOMEM).during("mmap")?;
        // SAFETY: mapped for good, page-aligned, WORDS words long, and used as atomics by everybody.
        let words = unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<AtomicU64>(), WORDS) };
        let header = [MAGIC, VERSION, (SLOT_WORDS * WORD_BYTES) as u64, SLOTS as u64, page_bytes()];
        for (word, value) in words.iter().zip(header) {
            word.store(value, Ordering::Relaxed);
        }
        // Before this, nobody believes it. Not inherited by fork, and gone with the process: so others know whose figures these are.
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).during("fcntl(F_SETLK)")?;
        Ok(Table { words, file, made_in: ProcessId::current() })
    }
}

/// The figures of a process, as they were a moment ago.
pub(super) struct Snapshot {
    words: Vec<u64>,
}

/// What is published of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ObjectFigures {
    pub(super) kind: ObjectKind,
    pub(super) dirty_bytes: u64,
}

impl Snapshot {
    /// This process's own; opening and closing it as others' would lose the lock (fcntl(2)).
    pub(super) fn own() -> Option<(Snapshot, u64)> {
        let table = existing()?;
        let inode = table.file.metadata().ok()?.ino();
        Some((Snapshot::read(&table.file)?, inode))
    }

    /// Reads what another process has published; nothing, if that is not as we know it.
    ///
    /// It is read, and not mapped, for the other process can make it shorter.
    pub(super) fn read(file: &File) -> Option<Snapshot> {
        let mut bytes = vec![0; WORDS * WORD_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let (words, _) = bytes.as_chunks::<WORD_BYTES>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let known = [MAGIC, VERSION, (SLOT_WORDS * WORD_BYTES) as u64, SLOTS as u64];
        words.starts_with(&known).then_some(Snapshot { words })
    }

    /// What it says of an object.
    pub(super) fn of(&self, device: u64, inode: u64) -> Option<ObjectFigures> {
        let mut slots = self.words[HEADER_WORDS..].chunks_exact(SLOT_WORDS);
        let slot = slots.find(|slot| inode != 0 && slot[INODE] == inode && slot[DEVICE] == device)?;
        let kind = ObjectKind::of_number(slot[KIND])?;
        Some(ObjectFigures { kind, dirty_bytes: slot[DIRTY_PAGES].saturating_mul(self.words[4]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> File {
        memfd_create("test", MemfdFlags::CLOEXEC).unwrap().into()
    }

    fn figures(file: &File) -> Option<ObjectFigures> {
        let metadata = file.metadata().unwrap();
        Snapshot::own().unwrap().0.of(metadata.dev(), metadata.ino())
    }

    #[test]
    fn what_is_published_can_be_read_until_it_is_dropped() {
        let file = memory();
        let published = Published::new(&file, ObjectKind::Paged).unwrap();
        published.add_dirty(7);
        published.add_dirty(-2);
        let expected = ObjectFigures { kind: ObjectKind::Paged, dirty_bytes: 5 * page_bytes() };
        assert_eq!(figures(&file), Some(expected));
        drop(published);
        assert_eq!(figures(&file), None);
        let again = Published::new(&file, ObjectKind::Kernel).unwrap();
        assert_eq!(figures(&file), Some(ObjectFigures { kind: ObjectKind::Kernel, dirty_bytes: 0 }));
        drop(again);
    }

    #[test]
    fn what_is_not_as_we_know_it_is_not_believed() {
        let file = memory();
        assert!(Snapshot::read(&file).is_none(), "too short");
        file.set_len((WORDS * WORD_BYTES) as u64).unwrap();
        assert!(Snapshot::read(&file).is_none(), "no header");
        let header = [MAGIC, VERSION + 1, 64, SLOTS as u64];
        for (at, word) in (0..).zip(header) {
            file.write_all_at(&word.to_ne_bytes(), at * 8).unwrap();
        }
        assert!(Snapshot::read(&file).is_none(), "another version");
        file.write_all_at(&VERSION.to_ne_bytes(), 8).unwrap();
        assert!(Snapshot::read(&file).unwrap().of(1, 2).is_none());
    }
}
