//! Sees to it that a store gives the same bytes twice, and those that were written.

mod flights;
mod sums;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use self::flights::{Flight, Flights, Purpose};
use self::sums::Sums;
use super::Decorator;
use crate::backing_store::read_in_turn;
use crate::error::left_locked;
use crate::{BackingStore, ReadAt, Result, StoreError, Transfer, Writability, WriteAt};

/// Remembers a checksum of every block that was read or written, and refuses a block that comes back different.
///
/// For stores that cannot tell whether their object was changed. 9 to 10 bytes of memory for each block that was ever
/// read or written, where they lie together; up to about 100 for one that is alone among 64.
///
/// A write remembers the blocks that it covers, and forgets those that it covers in part: nobody knows the rest of
/// them. So does one that fails, with all its blocks. The object's last block ends where the object does.
///
/// Transfers run in parallel, as far as the inner store lets them. A block that is read while somebody writes it may
/// come old, new or mixed, so it is neither compared nor remembered; nor is one that two write at the same time. During
/// [`set_len`](BackingStore::set_len) and [`refresh`](BackingStore::refresh) that goes for all blocks. The
/// latter forgets everything, if it succeeds.
pub struct Verified {
    inner: Arc<dyn BackingStore>,
    /// Never held while the inner store works.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sums: Sums,
    flights: Flights,
}

impl Verified {
    /// Bytes of a block.
    pub const BLOCK_BYTES: u64 = 4096;

    /// Trusts what is read first.
    pub fn new(inner: Arc<dyn BackingStore>) -> Verified {
        Verified { inner, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others of a transfer, until `UnderWay` is dropped or landed.
    fn begin(&self, purpose: Purpose, blocks: Range<u64>) -> UnderWay<'_> {
        let id = self.state().flights.begin(purpose, blocks);
        UnderWay { store: self, id: Some(id) }
    }

    /// Remembers the blocks that a write to an object of `length` bytes has covered.
    fn remember(flight: UnderWay<'_>, write: WriteAt<'_>, length: u64) {
        let WriteAt { offset, bytes } = write;
        let covered = covered(offset, bytes.len(), length);
        let sums = sums_of(offset + covered.start as u64, &bytes[covered]);
        flight.land(|flight, known| {
            known.forget(flight.blocks.clone());
            for (block, sum) in sums.into_iter().filter(|(block, _)| flight.was_alone_at(*block)) {
                known.set(block, sum);
            }
        });
    }

    /// Compares blocks that have come with those known, and remembers what is new.
    fn check(&self, flight: UnderWay<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        let sums = sums_of(offset, bytes);
        flight.land(|flight, known| {
            for (block, sum) in sums.into_iter().filter(|(block, _)| flight.was_alone_at(*block)) {
                match known.get(block) {
                    None => known.set(block, sum),
                    Some(before) if before == sum => {}
                    Some(_) => {
                        let at = block * Self::BLOCK_BYTES;
                        let how = format!("the bytes at {at} are not those read or written before");
                        return Err(StoreError::Changed { how });
                    }
                }
            }
            Ok(())
        })
    }
}

/// A transfer that others know of. When it is dropped, without having landed, a change leaves nothing known of its
/// blocks: it failed, or the store's code panicked.
struct UnderWay<'a> {
    store: &'a Verified,
    id: Option<u64>,
}

impl UnderWay<'_> {
    /// Ends the transfer and does what is to be done before another can begin.
    fn land<T>(mut self, work: impl FnOnce(&Flight, &mut Sums) -> T) -> T {
        let mut state = self.store.state();
        let state = &mut *state;
        let id = self.id.take().expect("it lands once");
        work(&state.flights.end(id), &mut state.sums)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut state = self.store.state();
        let flight = state.flights.end(id);
        if flight.purpose == Purpose::Write {
            state.sums.forget(flight.blocks);
        }
    }
}

impl Decorator for Verified {
    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }

    fn transfer(&self) -> Transfer {
        self.inner.transfer()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        Decorator::read_awaited(self, offset, into, &mut |_| {})
    }

    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        // Before the length is asked for: it says where the last block ends.
        let flight = self.begin(Purpose::Read, blocks_touched(offset, into.len()));
        let length = self.inner.len();
        let end = length.min(offset.saturating_add(into.len() as u64));
        if end <= offset {
            return Ok(0);
        }
        let whole = |at: u64| at.is_multiple_of(Self::BLOCK_BYTES);
        if whole(offset) && (whole(end) || end == length) {
            let got = self.inner.read_awaited(offset, into, meanwhile)?;
            // A short answer is its caller's business; what came of the last block is no block.
            let checked =
                if offset + got as u64 == end { got } else { got - got % Self::BLOCK_BYTES as usize };
            self.check(flight, offset, &into[..checked.min(into.len())])?;
            return Ok(got);
        }
        let start = offset - offset % Self::BLOCK_BYTES;
        let stop = end.next_multiple_of(Self::BLOCK_BYTES).min(length);
        let mut blocks = vec![0; (stop - start) as usize];
        let got = self.inner.read_awaited(start, &mut blocks, meanwhile)? as u64;
        if start + got != stop {
            return Err(StoreError::Short { wanted: stop - start, got });
        }
        self.check(flight, start, &blocks)?;
        let wanted = (end - offset) as usize;
        into[..wanted].copy_from_slice(&blocks[(offset - start) as usize..][..wanted]);
        Ok(wanted)
    }

    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        let whole = |read: &ReadAt<'_>| {
            let end = read.offset.saturating_add(read.into.len() as u64);
            [read.offset, end].iter().all(|at| at.is_multiple_of(Self::BLOCK_BYTES))
                && end <= self.inner.len()
        };
        if !reads.iter().all(whole) {
            return read_in_turn(reads, came, |offset, into| Decorator::read_at(self, offset, into));
        }
        let begin =
            |read: &ReadAt<'_>| self.begin(Purpose::Read, blocks_touched(read.offset, read.into.len()));
        let flights: Vec<UnderWay<'_>> = reads.iter().map(begin).collect();
        let mut outcomes: Vec<Option<Result<usize>>> = reads.iter().map(|_| None).collect();
        self.inner.read_each(reads, &mut |number, outcome| outcomes[number] = Some(outcome));
        for (number, ((flight, read), outcome)) in flights.into_iter().zip(reads).zip(outcomes).enumerate() {
            // One that was not told has no bytes.
            let outcome = outcome.unwrap_or(Ok(0)).and_then(|got| {
                let checked = got.min(read.into.len());
                let checked = checked - checked % Self::BLOCK_BYTES as usize;
                self.check(flight, read.offset, &read.into[..checked])?;
                Ok(got)
            });
            came(number, outcome);
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let flight = self.begin(Purpose::Write, blocks_touched(offset, bytes.len()));
        let length = self.inner.len();
        self.inner.write_at(offset, bytes)?;
        Self::remember(flight, WriteAt { offset, bytes }, length);
        Ok(())
    }

    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        let begin = |write: &WriteAt<'_>| {
            Some(self.begin(Purpose::Write, blocks_touched(write.offset, write.bytes.len())))
        };
        let mut flights: Vec<Option<UnderWay<'_>>> = writes.iter().map(begin).collect();
        let length = self.inner.len();
        self.inner.write_each(writes, &mut |number, outcome| {
            if let Some(flight) = flights.get_mut(number).and_then(Option::take)
                && outcome.is_ok()
            {
                Self::remember(flight, writes[number], length);
            }
            written(number, outcome);
        });
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _flight = self.begin(Purpose::ChangeAll, 0..u64::MAX);
        // Asked after the beginning: whatever others make of the length from here on, nobody remembers a last block.
        let first = self.inner.len().min(length) / Self::BLOCK_BYTES;
        self.state().sums.forget(first..u64::MAX);
        self.inner.set_len(length)
    }

    fn refresh(&self) -> Result<()> {
        let flight = self.begin(Purpose::ChangeAll, 0..u64::MAX);
        self.inner.refresh()?;
        flight.land(|_, known| *known = Sums::default());
        Ok(())
    }

    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        let inner = self.inner.reopen()?;
        let known = match self.inner.writability() {
            // What the parent wrote meanwhile is not known here.
            Writability::ReadWrite => Sums::default(),
            Writability::ReadOnly => {
                let state = self.state.try_lock().map_err(|_| left_locked(self.inner.name()))?;
                state.sums.clone()
            }
        };
        let state = Mutex::new(State { sums: known, ..State::default() });
        Ok(Arc::new(Verified { inner, state }))
    }
}

/// The blocks that hold a byte of a range. A length of 0 touches none.
fn blocks_touched(offset: u64, length: usize) -> Range<u64> {
    let first = offset / Verified::BLOCK_BYTES;
    if length == 0 {
        return first..first;
    }
    first..offset.saturating_add(length as u64).div_ceil(Verified::BLOCK_BYTES)
}

/// The part of `length_written` bytes at `offset` that is whole blocks of an object of `length` bytes.
///
/// ```text
/// object   |-------|-------|-------|---|
/// written      ============|=======|===        covered: all but the first four
/// ```
fn covered(offset: u64, length_written: usize, length: u64) -> Range<usize> {
    let end = offset.saturating_add(length_written as u64);
    let first = offset.checked_next_multiple_of(Verified::BLOCK_BYTES).unwrap_or(u64::MAX);
    let last = if end == length { end } else { end - end % Verified::BLOCK_BYTES };
    if first >= last {
        return 0..0;
    }
    (first - offset) as usize..(last - offset) as usize
}

/// The blocks that begin at `offset`, each with its sum.
fn sums_of(offset: u64, bytes: &[u8]) -> Vec<(u64, u64)> {
    let blocks = bytes.chunks(Verified::BLOCK_BYTES as usize);
    (offset / Verified::BLOCK_BYTES..).zip(blocks.map(xxh3_64)).collect()
}
