//! Brings a committed transaction from the journal to the object.

use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use super::record::{BLOCK_BYTES, Entry, Lengths, slot_offset};
use crate::{AlignedBytes, BackingStore, Result, StoreError, WriteAt, catch};

/// Bytes that are in memory at a time.
const BATCH_BYTES: u64 = 32 << 20;

/// Bytes that are read from the journal at a time.
const READ_BYTES: u64 = 1 << 20;

/// The most writes that are handed to the object together.
const WRITTEN_TOGETHER_MAX: usize = 32;

/// Transfers, or writes handed over together, that are under way at a time, where the store takes so many.
const IN_FLIGHT_MAX: usize = 8;

/// Makes the object what the transaction says, and durable.
///
/// Doing so again, wholly or after a part was done, changes nothing: the bytes that it cuts off and does not write are
/// zeros both times.
///
/// # Errors
/// Those of the stores, and [`StoreError::Corrupt`] if a slot no longer holds its block.
pub(super) fn apply(
    object: &dyn BackingStore,
    journal: &dyn BackingStore,
    entries: &[Entry],
    lengths: Lengths,
) -> Result<()> {
    // Cut even if the length is right: it may have been set before, and the cut before it been lost.
    if lengths.least < object.len() {
        object.set_len(lengths.least)?;
    }
    if lengths.last != object.len() {
        object.set_len(lengths.last)?;
    }
    for batch in batches(entries) {
        let mut bytes = AlignedBytes::new(batch.len() * BLOCK_BYTES as usize);
        if let Some(block) = gather(journal, &batch, &mut bytes)? {
            return Err(mismatch(block));
        }
        scatter(object, &batch, &bytes, lengths.last)?;
    }
    object.sync()
}

/// The first block, in the order of the object, whose slot does not hold what the entry says.
pub(super) fn first_mismatch(journal: &dyn BackingStore, entries: &[Entry]) -> Result<Option<u64>> {
    for batch in batches(entries) {
        let mut bytes = AlignedBytes::new(batch.len() * BLOCK_BYTES as usize);
        if let Some(block) = gather(journal, &batch, &mut bytes)? {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

/// The error for a slot that has other bytes than were written there.
pub(super) fn mismatch(block: u64) -> StoreError {
    StoreError::Corrupt {
        what: format!(
            "the journal does not hold what was written to it for the {BLOCK_BYTES} bytes at {}; write them again",
            block * BLOCK_BYTES
        ),
    }
}

/// Parts of a transaction that fit in memory: each is read in the journal's order and written in the object's.
///
/// Not the object's order throughout: a transaction of scattered pages would then be read page by page.
fn batches(entries: &[Entry]) -> impl Iterator<Item = Vec<Entry>> {
    let mut by_slot = entries.to_vec();
    by_slot.sort_unstable_by_key(|e| e.slot);
    let mut rest = by_slot.into_iter();
    std::iter::from_fn(move || {
        let mut batch: Vec<Entry> = rest.by_ref().take((BATCH_BYTES / BLOCK_BYTES) as usize).collect();
        batch.sort_unstable_by_key(|e| e.block);
        (!batch.is_empty()).then_some(batch)
    })
}

/// Reads the blocks of `batch` into `bytes`, one after the other; gives the first that is not what it should be.
fn gather(journal: &dyn BackingStore, batch: &[Entry], bytes: &mut [u8]) -> Result<Option<u64>> {
    let mut places: Vec<(Entry, &mut [u8])> =
        batch.iter().copied().zip(bytes.chunks_mut(BLOCK_BYTES as usize)).collect();
    places.sort_unstable_by_key(|(entry, _)| entry.slot);
    let reads = runs(places, READ_BYTES, |before, after| before.0.slot + 1 == after.0.slot);
    let wrong = Mutex::new(None);
    in_parallel(reads, in_flight(journal), |mut read| {
        let Some((first, _)) = read.first() else { return Ok(()) };
        let mut slots = AlignedBytes::new(read.len() * BLOCK_BYTES as usize);
        read_whole(journal, slot_offset(first.slot), &mut slots)?;
        for ((entry, place), slot) in read.iter_mut().zip(slots.chunks(BLOCK_BYTES as usize)) {
            if xxh3_64(slot) == entry.sum {
                place.copy_from_slice(slot);
            } else {
                let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                *wrong = Some(wrong.unwrap_or(entry.block).min(entry.block));
            }
        }
        Ok(())
    })?;
    Ok(wrong.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Writes the blocks of `batch`, which are in `bytes`, to an object of `length` bytes.
fn scatter(object: &dyn BackingStore, batch: &[Entry], bytes: &[u8], length: u64) -> Result<()> {
    let numbered: Vec<(usize, Entry)> = batch.iter().copied().enumerate().collect();
    let bytes_max = object.transfer().preferred_bytes.get() as u64;
    let runs = runs(numbered, bytes_max, |before, after| before.1.block + 1 == after.1.block);
    let write = |run: &Vec<(usize, Entry)>| {
        let (number, first) = *run.first()?;
        let offset = first.block * BLOCK_BYTES;
        let count = (run.len() as u64 * BLOCK_BYTES).min(length.saturating_sub(offset)) as usize;
        Some(WriteAt { offset, bytes: &bytes[number * BLOCK_BYTES as usize..][..count] })
    };
    let writes: Vec<WriteAt<'_>> = runs.iter().filter_map(write).collect();
    // Few are spread over all threads: not every store makes several together.
    let together = writes.len().div_ceil(in_flight(object)).clamp(1, WRITTEN_TOGETHER_MAX);
    in_parallel(writes.chunks(together).collect(), in_flight(object), |together| {
        let mut failure = None;
        object.write_each(together, &mut |_, outcome| {
            if let Err(error) = outcome {
                failure.get_or_insert(error);
            }
        });
        failure.map_or(Ok(()), Err)
    })
}

fn in_flight(store: &dyn BackingStore) -> usize {
    store.transfer().in_flight_max.get().min(IN_FLIGHT_MAX)
}

/// Cuts a list of blocks where neighbours do not follow one another, and where so many bytes are together.
fn runs<T>(blocks: Vec<T>, bytes_max: u64, follows: impl Fn(&T, &T) -> bool) -> Vec<Vec<T>> {
    let blocks_max = (bytes_max / BLOCK_BYTES).max(1) as usize;
    let mut runs: Vec<Vec<T>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.len() < blocks_max && run.last().is_some_and(|last| follows(last, &block)) => {
                run.push(block);
            }
            _ => runs.push(vec![block]),
        }
    }
    runs
}

/// Reads all that is asked for.
pub(super) fn read_whole(store: &dyn BackingStore, offset: u64, into: &mut [u8]) -> Result<()> {
    let got = store.read_at(offset, into)?;
    if got == into.len() {
        return Ok(());
    }
    Err(StoreError::Short { wanted: into.len() as u64, got: got as u64 })
}

/// Does all jobs, so many at a time; after an error no more are begun.
fn in_parallel<J: Send>(jobs: Vec<J>, in_flight: usize, work: impl Fn(J) -> Result<()> + Sync) -> Result<()> {
    let threads = in_flight.min(jobs.len());
    let jobs = Mutex::new(jobs.into_iter());
    let failure = Mutex::new(None);
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        while let Some(job) = next() {
            if let Err(error) = catch(|| work(job)).and_then(|done| done) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                while next().is_some() {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let thread = std::thread::Builder::new().name("omnimap-apply".to_owned());
            // With fewer threads it takes longer, and nothing is wrong.
            if thread.spawn_scoped(scope, worker).is_err() {
                break;
            }
        }
        worker();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
