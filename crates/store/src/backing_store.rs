//! The contract of a store.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::{Result, StoreError};

/// Where an object's bytes come from and go to.
///
/// # The contract
/// **Bytes and length.** An object is `len()` bytes. [`read_at`](Self::read_at) gives all that was asked for up to
/// the object's end; a read that begins at or after the end gives 0. Less is never right: a store that cannot give
/// everything answers with an error. The length changes by [`set_len`](Self::set_len) alone.
///
/// **Version.** As long as nobody writes *through the store*, the same offset gives the same bytes or an error.
/// A store whose object others can change finds that out at each read, *after* the bytes have come, and answers
/// [`StoreError::Changed`]; one that cannot find out must say so in its documentation, and can be put behind
/// [`Verified`](crate::Verified).
///
/// **Chunks.** [`chunk_at`](Self::chunk_at) tells what the store must produce at the least to give one byte: a zstd
/// frame, a ranged request that is worth its latency, a device's block. Readers that take whole chunks waste
/// nothing. [`transfer`](Self::transfer) tells how much is worth asking for at a time, and how many requests may be
/// under way together.
///
/// **Concurrency.** All methods may be called from any number of threads at once. Calls for different ranges do not
/// wait for each other, up to `transfer().in_flight_max`. A call may block for as long as the medium takes; the
/// caller holds no lock meanwhile. A store that has a time limit of its own answers with an error after it.
///
/// A store that reads through a mapping must not do so through one of the cache that it serves: each fill would hold room
/// that the other waits for. A cache of its own is right.
///
/// **Errors.** An error concerns this request only; the next may succeed, and the store must be ready for it.
/// [`StoreError::is_transient`] says whether it makes sense to ask again without anybody's help. Panics are caught
/// by the caller and count as errors.
///
/// **Writing.** Only if [`writability`](Self::writability) says so. A write stays inside the object (grow it
/// first). After [`write_at`](Self::write_at) returned, reads through the store see the bytes; after
/// [`sync`](Self::sync) returned, they survive a power cut. If `write_at` fails, the range may hold the old bytes,
/// the new ones or any mixture. If `sync` fails, nothing written since the last successful one may be assumed
/// durable, and it must be written again before the next `sync`: the kernel may have dropped it (fsync(2) errors are
/// reported once).
///
/// # Example
/// ```
/// use omnimap_store::{BackingStore, Result};
///
/// /// The numbers from 0, eight bytes each.
/// struct Numbers(u64);
///
/// impl BackingStore for Numbers {
///     fn name(&self) -> &str {
///         "numbers"
///     }
///     fn len(&self) -> u64 {
///         self.0 * 8
///     }
///     fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
///         let count = into.len().min(self.len().saturating_sub(offset) as usize);
///         for (byte, at) in into[..count].iter_mut().zip(offset..) {
///             *byte = (at / 8).to_le_bytes()[(at % 8) as usize];
///         }
///         Ok(count)
///     }
/// }
///
/// omnimap_store::conformance::check_read(&Numbers(1000), |at| (at / 8).to_le_bytes()[(at % 8) as usize]);
/// ```
pub trait BackingStore: Send + Sync {
    /// What a person would call the object: a path, a URL. Goes into every error.
    fn name(&self) -> &str;

    /// The object's length in bytes.
    fn len(&self) -> u64;

    /// Whether the object has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How transfers are best made.
    fn transfer(&self) -> Transfer {
        Transfer::default()
    }

    /// The chunk around a byte of the object: what is produced at the least. It ends inside the object and is the same
    /// for each of its bytes; beyond the end the answer has no meaning. The default has no chunks.
    fn chunk_at(&self, offset: u64) -> Range<u64> {
        offset..offset.saturating_add(1)
    }

    /// Which version of the object this is. `Some` is a promise: as long as this store lives, what it gives at an offset
    /// never changes. Without it, readers that need that keep checksums ([`Verified`](crate::Verified)).
    fn version(&self) -> Option<Version> {
        None
    }

    /// Reads `into.len()` bytes, or what is left of the object; returns how many.
    ///
    /// Page-aligned buffers whose length is whole pages ([`AlignedBytes`](crate::AlignedBytes)) may save a copy.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize>;

    /// Reads as [`read_at`](Self::read_at) does, for a thread that waits for nothing else: `meanwhile` may be called any number of
    /// times before the bytes are there, with how long the read has taken by then. It takes a few microseconds at the most.
    ///
    /// The default does not call it, and a store that sleeps until its bytes are there cannot.
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        let _ = meanwhile;
        self.read_at(offset, into)
    }

    /// Whether the object can be written.
    fn writability(&self) -> Writability {
        Writability::ReadOnly
    }

    /// Writes all of `bytes`, which must lie inside the object.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let _ = (offset, bytes);
        Err(StoreError::ReadOnly)
    }

    /// Makes several reads, each as [`read_at`](Self::read_at) does, and calls `came` with the number and the outcome of each:
    /// once, in any order. They are made in any order too.
    ///
    /// The default makes one after the other. A store that has a queue, or is far away, may do better.
    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        read_in_turn(reads, came, |offset, into| self.read_at(offset, into));
    }

    /// Makes several writes that do not overlap, each as [`write_at`](Self::write_at) does, and calls `written` with the
    /// number and the outcome of each: once, in any order. They are made in any order too.
    ///
    /// The default makes one after the other. A store to which many small writes are dearer than one may do better.
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        for (number, write) in writes.iter().enumerate() {
            written(number, self.write_at(write.offset, write.bytes));
        }
    }

    /// Makes the object longer, with zeros, or shorter.
    fn set_len(&self, length: u64) -> Result<()> {
        let _ = length;
        Err(StoreError::ReadOnly)
    }

    /// Makes everything written so far durable, as fsync(2).
    fn sync(&self) -> Result<()> {
        Err(StoreError::ReadOnly)
    }

    /// Whether [`sync`](Self::sync) is all or nothing: what was written (and how the length was changed) since the last
    /// successful one reaches the object together or not at all, and before it not at all.
    fn is_atomic(&self) -> bool {
        false
    }

    /// Whether the bytes go with the store: what nobody can look at any more need not be written to it.
    fn is_temporary(&self) -> bool {
        false
    }

    /// Takes the object as it is now, after others have changed it and [`StoreError::Changed`] told so: later reads give
    /// the new bytes, and later writes are no conflict. Its length is asked anew.
    fn refresh(&self) -> Result<()> {
        Ok(())
    }

    /// Opens the object anew, for a forked child that goes on with it when its parent is gone. A version that is
    /// promised stays the same; of a writable object it is the present one.
    ///
    /// Called in the child, where other threads of the parent may have left locks behind: none is waited for.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the bytes, or what it takes to find them, lay in the memory of the parent: the default.
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        Err(StoreError::Unusable {
            name: self.name().to_owned(),
            reason: "its bytes lay in the memory of a process that is gone".to_owned(),
        })
    }
}

impl<S: BackingStore + ?Sized> BackingStore for Arc<S> {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn transfer(&self) -> Transfer {
        (**self).transfer()
    }
    fn chunk_at(&self, offset: u64) -> Range<u64> {
        (**self).chunk_at(offset)
    }
    fn version(&self) -> Option<Version> {
        (**self).version()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        (**self).read_at(offset, into)
    }
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        (**self).read_awaited(offset, into, meanwhile)
    }
    fn writability(&self) -> Writability {
        (**self).writability()
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        (**self).write_at(offset, bytes)
    }
    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        (**self).read_each(reads, came);
    }
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        (**self).write_each(writes, written);
    }
    fn set_len(&self, length: u64) -> Result<()> {
        (**self).set_len(length)
    }
    fn sync(&self) -> Result<()> {
        (**self).sync()
    }
    fn is_atomic(&self) -> bool {
        (**self).is_atomic()
    }
    fn is_temporary(&self) -> bool {
        (**self).is_temporary()
    }
    fn refresh(&self) -> Result<()> {
        (**self).refresh()
    }
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        (**self).reopen()
    }
}

/// Makes several reads one after the other.
pub(crate) fn read_in_turn(
    reads: &mut [ReadAt<'_>],
    came: &mut dyn FnMut(usize, Result<usize>),
    read_at: impl Fn(u64, &mut [u8]) -> Result<usize>,
) {
    for (number, read) in reads.iter_mut().enumerate() {
        came(number, read_at(read.offset, read.into));
    }
}

/// One of several reads that are made together ([`BackingStore::read_each`]).
#[derive(Debug)]
pub struct ReadAt<'a> {
    /// Where, in bytes from the object's start.
    pub offset: u64,
    /// What is to be filled.
    pub into: &'a mut [u8],
}

/// One of several writes that are made together ([`BackingStore::write_each`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteAt<'a> {
    /// Where it begins in the object, in bytes.
    pub offset: u64,
    /// What is written there.
    pub bytes: &'a [u8],
}

/// How transfers with a store are best made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes above which a larger request brings little: 1 MiB for a disk, 8 MiB for a bucket.
    pub preferred_bytes: NonZeroUsize,
    /// Requests that may be under way together and still help each other.
    pub in_flight_max: NonZeroUsize,
    /// How long a request may take.
    pub answers: Answers,
    /// Reads of [`read_each`](BackingStore::read_each) that are under way together; 1 if it makes one after the other.
    pub reads_together_max: NonZeroUsize,
}

/// How long a store may take to answer.
///
/// One that answers at once or promptly may be asked by the very thread that needs the bytes, while that touches a page (in
/// a signal handler, in some fault modes): it must not need a lock or a thread-local cell that such a thread may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// From memory, without waiting for anything.
    AtOnce,
    /// As long as a local disk takes: whoever wants bytes asks for them himself.
    Promptly,
    /// Any time, or none: whoever wants bytes lets another thread ask, and waits as long as he is willing to.
    Eventually,
}

impl Default for Transfer {
    /// As a local disk, 1 MiB and 32 in flight; but nothing is promised about time.
    fn default() -> Self {
        const { Transfer::new(1 << 20, 32) }
    }
}

impl Transfer {
    /// Both numbers, where 0 counts as 1; nothing is promised about time.
    pub const fn new(preferred_bytes: usize, in_flight_max: usize) -> Transfer {
        const fn at_least_one(n: usize) -> NonZeroUsize {
            match NonZeroUsize::new(n) {
                Some(n) => n,
                None => NonZeroUsize::MIN,
            }
        }
        Transfer {
            preferred_bytes: at_least_one(preferred_bytes),
            in_flight_max: at_least_one(in_flight_max),
            answers: Answers::Eventually,
            reads_together_max: NonZeroUsize::MIN,
        }
    }

    /// The same, from a store of which more is known.
    pub const fn answering(self, answers: Answers) -> Transfer {
        Transfer { answers, ..self }
    }

    /// The same, of a store that makes several reads together.
    pub const fn reading_together(self, reads_together_max: NonZeroUsize) -> Transfer {
        Transfer { reads_together_max, ..self }
    }
}

/// Names one version of an object: equal versions have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// A version by any text that changes whenever the bytes do: an ETag, inode and times, a digest.
    pub fn new(text: impl Into<Arc<str>>) -> Version {
        Version(text.into())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a store can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writability {
    /// Writing answers [`StoreError::ReadOnly`].
    ReadOnly,
    /// It can be read and written.
    ReadWrite,
}
