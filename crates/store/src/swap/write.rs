//! Writing: prepare without the lock, publish all blocks of a run at once under it.

use std::sync::Arc;

use super::BLOCK_BYTES;
use super::blocks::{Blocks, State, Taken, no_slots, offset_of};
use super::place::{Place, checksum};
use super::pool::Pool;
use super::read::Snapshot;
use crate::aligned::is_aligned;
use crate::{AlignedBytes, Result};

/// Blocks that are handled together: 1 MiB, what a disk likes.
pub(super) const RUN_BLOCKS: usize = 256;

/// Compressed bytes above which a block goes to the file as it is: a quarter must be won.
const COMPRESSED_BYTES_MAX: usize = BLOCK_BYTES / 4 * 3;

/// How often room is made in the pool before a run goes to the file instead: others may take the room each time.
const ROUNDS_MAX: usize = 4;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A block as it is to be.
enum New {
    Zeros,
    Compressed {
        bytes: Arc<[u8]>,
        checksum: u32,
    },
    /// To be written to the file.
    Plain {
        checksum: u32,
    },
    /// Written to the file.
    InFile {
        slot: u32,
        checksum: u32,
    },
}

/// What a write will make of some blocks in a row, and of the length.
struct Change<'a> {
    first: u64,
    /// Aligned, whole blocks.
    contents: &'a [u8],
    new: Vec<New>,
    /// What it rests on: it must not be published when that has changed.
    rests_on: Vec<Snapshot<'a>>,
    resizes: u64,
    length: Option<u64>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Published,
    /// What it rested on has changed: somebody else got ahead.
    Overtaken,
}

impl Blocks {
    /// Writes all of `bytes`, which must lie inside the object.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.lock().check_inside(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let skip = (at % BLOCK_BYTES as u64) as usize;
            let count = (bytes.len() - done).min(RUN_BLOCKS * BLOCK_BYTES - skip);
            // Each time it is overtaken somebody else has published.
            while self.write_run(at, &bytes[done..done + count])? == Outcome::Overtaken {}
            done += count;
        }
        Ok(())
    }

    fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<Outcome> {
        let (resizes, length) = {
            let state = self.lock();
            state.check_inside(offset, bytes.len())?;
            (state.resizes, state.length)
        };
        let end = offset + bytes.len() as u64;
        let (first, last) = (offset / BLOCK_BYTES as u64, (end - 1) / BLOCK_BYTES as u64);
        let is_partial = |block: &u64| {
            let begin = offset_of(*block);
            offset > begin || end < begin.saturating_add(BLOCK_BYTES as u64).min(length)
        };
        let mut partial = vec![first, last];
        partial.dedup();
        partial.retain(is_partial);
        if is_aligned(offset, bytes) {
            return self.apply(Change::new(first, bytes, Vec::new(), resizes));
        }
        let mut contents = AlignedBytes::new((last - first + 1) as usize * BLOCK_BYTES);
        let mut rests_on = Vec::new();
        for block in partial {
            let (snapshot, count) = self.hold(offset_of(block), BLOCK_BYTES);
            let at = (block - first) as usize * BLOCK_BYTES;
            self.fill(&snapshot, 0, &mut contents[at..at + count])?;
            rests_on.push(snapshot);
        }
        contents[(offset - offset_of(first)) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.apply(Change::new(first, &contents, rests_on, resizes))
    }

    /// Makes the object longer or shorter; what was beyond the shorter end is gone for good.
    pub(crate) fn set_len(&self, length: u64) -> Result<()> {
        let is_shorter = length < self.len();
        while self.try_set_len(length)? == Outcome::Overtaken {}
        if is_shorter {
            self.give_back_idle();
        }
        Ok(())
    }

    fn try_set_len(&self, length: u64) -> Result<Outcome> {
        let (resizes, old) = {
            let state = self.lock();
            (state.resizes, state.length)
        };
        let (first, kept) = (length / BLOCK_BYTES as u64, (length % BLOCK_BYTES as u64) as usize);
        let mut tail = AlignedBytes::new(BLOCK_BYTES);
        let mut is_cut = false;
        let mut rests_on = Vec::new();
        if length < old && kept > 0 {
            let (snapshot, _) = self.hold(offset_of(first), BLOCK_BYTES);
            is_cut = snapshot.is_stored();
            if is_cut {
                self.fill(&snapshot, 0, &mut tail[..kept])?;
            }
            rests_on.push(snapshot);
        }
        let contents = if is_cut { &*tail } else { &[] };
        let change = Change::new(first, contents, rests_on, resizes);
        self.apply(Change { length: Some(length), ..change })
    }

    /// Gives the disk space of what is no longer used back to the file system.
    fn give_back_idle(&self) {
        let idle = self.lock().slots.take_idle();
        for range in idle {
            self.file.give_back(range.start, range.end - range.start);
            self.lock().slots.free_range(range);
        }
    }

    /// Puts the contents of a change where there is room, and publishes it.
    fn apply(&self, mut change: Change<'_>) -> Result<Outcome> {
        change.compress(self.bytes_max);
        let mut taken = vec![self.write_plain(&mut change)?];
        for round in 0.. {
            let mut state = self.lock();
            if !change.is_current(&state) {
                return Ok(Outcome::Overtaken);
            }
            let excess = state.excess(&change);
            if excess == 0 {
                state.publish(&change);
                taken.iter_mut().for_each(|taken| taken.slots.clear());
                break;
            }
            let leaving = match round {
                ..ROUNDS_MAX => state.pool.take_oldest(excess, RUN_BLOCKS),
                _ => Vec::new(),
            };
            drop(state);
            if leaving.is_empty() {
                // Others are emptying the pool; rather than wait for them:
                change.make_plain(u64::MAX);
                taken.push(self.write_plain(&mut change)?);
            } else {
                self.spill(leaving)?;
            }
        }
        Ok(Outcome::Published)
    }

    /// Writes what is plain to the file.
    fn write_plain(&self, change: &mut Change<'_>) -> Result<Taken<'_>> {
        let is_plain = |new: &New| matches!(new, New::Plain { .. });
        let count = change.new.iter().filter(|new| is_plain(new)).count();
        let taken = self.take_slots(count);
        if taken.slots.len() < count {
            return Err(no_slots(count));
        }
        if count == change.new.len() {
            self.write_slots(&taken.slots, change.contents)?;
        } else if count > 0 {
            let mut contents = AlignedBytes::new(count * BLOCK_BYTES);
            let plain = change.new.iter().zip(change.contents.chunks(BLOCK_BYTES));
            let plain = plain.filter(|(new, _)| is_plain(new));
            for (into, (_, block)) in contents.chunks_mut(BLOCK_BYTES).zip(plain) {
                into.copy_from_slice(block);
            }
            self.write_slots(&taken.slots, &contents)?;
        }
        let plain = change.new.iter_mut().filter(|new| is_plain(new));
        for (new, slot) in plain.zip(&taken.slots) {
            if let New::Plain { checksum } = *new {
                *new = New::InFile { slot: *slot, checksum };
            }
        }
        Ok(taken)
    }
}

impl<'a> Change<'a> {
    fn new(first: u64, contents: &'a [u8], rests_on: Vec<Snapshot<'a>>, resizes: u64) -> Change<'a> {
        Change { first, contents, new: Vec::new(), rests_on, resizes, length: None }
    }

    /// Finds out what the blocks will be, if so many bytes may be compressed ones.
    fn compress(&mut self, bytes_max: u64) {
        let mut scratch = vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)];
        let mut cost = 0;
        for block in self.contents.chunks(BLOCK_BYTES) {
            let new = match bytes_max {
                0 if block != ZEROS => New::Plain { checksum: checksum(block) },
                _ => New::of(block, &mut scratch),
            };
            if let New::Compressed { bytes, .. } = &new {
                cost += Pool::cost(bytes);
            }
            self.new.push(new);
        }
        self.make_plain(cost.saturating_sub(bytes_max));
    }

    /// Lets blocks go to the file instead of the pool, the first ones, until so many bytes need no room there.
    fn make_plain(&mut self, mut bytes: u64) {
        for new in &mut self.new {
            if bytes == 0 {
                break;
            }
            if let New::Compressed { bytes: compressed, checksum } = new {
                bytes = bytes.saturating_sub(Pool::cost(compressed));
                *new = New::Plain { checksum: *checksum };
            }
        }
    }

    fn is_current(&self, state: &State) -> bool {
        self.resizes == state.resizes && self.rests_on.iter().all(|snapshot| snapshot.is_current(state))
    }

    fn blocks(&self) -> impl Iterator<Item = (u64, &New)> {
        (self.first..).zip(&self.new)
    }
}

impl New {
    fn of(block: &[u8], scratch: &mut [u8]) -> New {
        if block == ZEROS {
            return New::Zeros;
        }
        let checksum = checksum(block);
        match lz4_flex::block::compress_into(block, scratch) {
            Ok(count) if count <= COMPRESSED_BYTES_MAX => {
                New::Compressed { bytes: Arc::from(&scratch[..count]), checksum }
            }
            _ => New::Plain { checksum },
        }
    }
}

impl State {
    /// Bytes that must leave the pool before a change can be published.
    fn excess(&self, change: &Change<'_>) -> u64 {
        let mut coming = 0;
        let mut going = 0;
        for (block, new) in change.blocks() {
            if let New::Compressed { bytes, .. } = new {
                coming += Pool::cost(bytes);
            }
            if let Place::Compressed { entry, .. } = self.index.get(block) {
                going += self.pool.get(entry).map_or(0, |bytes| Pool::cost(bytes));
            }
        }
        if coming == 0 { 0 } else { self.pool.excess(coming).saturating_sub(going) }
    }

    /// Lets a change be seen.
    fn publish(&mut self, change: &Change<'_>) {
        for (block, _) in change.blocks() {
            // First all of them, for the new ones need the room.
            State::release(&mut self.pool, &mut self.slots, self.index.get(block));
        }
        for (block, new) in change.blocks() {
            let place = match new {
                // What beneath shows zeros anyway is as good as not written.
                New::Zeros if offset_of(block) >= self.base_end => Place::Absent,
                New::Zeros => Place::Zeros,
                New::Compressed { bytes, checksum } => {
                    let entry = self.pool.insert(block, Arc::clone(bytes));
                    Place::Compressed { entry, checksum: *checksum }
                }
                New::InFile { slot, checksum } => Place::InFile { slot: *slot, checksum: *checksum },
                New::Plain { .. } => unreachable!("what is plain was written before"),
            };
            self.index.set(block, place);
        }
        if let Some(length) = change.length {
            self.resize(length);
        }
    }

    fn resize(&mut self, length: u64) {
        let State { index, pool, slots, .. } = self;
        if length < self.length {
            let first = length.div_ceil(BLOCK_BYTES as u64);
            index.clear_from(first, |place| State::release(pool, slots, place));
        }
        self.length = length;
        self.base_end = self.base_end.min(length);
        self.resizes += 1;
    }
}
