//! Merging runs within the file, block by block.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::Range;

use indicatif::ProgressBar;
use omnimap::{MappingMut, Result};

use super::Layout;
use super::saver::Saver;

/// Which block of the order is where in the file. The last one may be shorter than the others, and stays where it is.
pub(super) struct Blocks {
    /// The place of each block.
    places: Vec<usize>,
    block_bytes: usize,
    file_bytes: usize,
}

impl Blocks {
    /// All blocks are where they belong.
    pub(super) fn new(file_bytes: usize, block_bytes: usize) -> Blocks {
        Blocks { places: (0..file_bytes.div_ceil(block_bytes)).collect(), block_bytes, file_bytes }
    }

    /// The bytes of a place.
    fn bytes_at(&self, place: usize) -> Range<usize> {
        let start = place * self.block_bytes;
        start..self.file_bytes.min(start + self.block_bytes)
    }

    /// Begins to fetch a place, which will be needed soon.
    fn fetch(&self, mapping: &MappingMut, place: usize) -> Result<()> {
        let bytes = self.bytes_at(place);
        mapping.prefetch(bytes.start as u64..bytes.end as u64).map(drop)
    }

    /// Swaps the blocks to where they belong, along the cycles: the file holds all its records at any moment.
    pub(super) fn put_in_place(
        &mut self,
        mapping: &mut MappingMut,
        saver: &mut Saver<'_>,
        bar: &ProgressBar,
    ) -> Result<()> {
        for first in 0..self.places.len() {
            let mut to = first;
            loop {
                let from = std::mem::replace(&mut self.places[to], to);
                bar.inc(self.bytes_at(to).len() as u64);
                // What belongs to the first place of a cycle has come to its last one.
                if from == first {
                    break;
                }
                self.fetch(mapping, self.places[from])?;
                let (low, high) = (self.bytes_at(to.min(from)), self.bytes_at(to.max(from)));
                let (before, after) = mapping.split_at_mut(high.start);
                before[low].swap_with_slice(&mut after[..high.len()]);
                to = from;
                if saver.note(2 * self.block_bytes) {
                    saver.save(mapping)?;
                }
            }
        }
        Ok(())
    }
}

/// How far a run was read.
struct Cursor {
    /// The blocks that were not begun.
    left: Range<usize>,
    /// Where the block that is being read lies, and what of it was not read.
    place: usize,
    bytes: Range<usize>,
}

/// The next record of a run, in the heap.
#[derive(Clone, Copy)]
struct Head {
    prefix: u64,
    run: usize,
}

/// Where a merge stops to have something done.
enum Event {
    /// A block of this run was read to its end.
    Read(usize),
    /// A block is full, to be written.
    Full,
    /// All was read.
    End,
}

/// A merge under way.
struct Merge<'a> {
    layout: &'a Layout,
    cursors: Vec<Cursor>,
    /// A heap: the least is first.
    heads: Vec<Head>,
    /// Full blocks that have no place yet, oldest first; and the one that is being filled.
    full: VecDeque<Vec<u8>>,
    filling: Vec<u8>,
    spare: Vec<Vec<u8>>,
    /// Places of whole blocks that were read to their end.
    free: Vec<usize>,
    /// The place of each block of the result.
    written: Vec<usize>,
}

/// Merges runs that follow each other into one, which has the places that they had; of records with equal keys, those of
/// the earlier run come first.
///
/// A place to write to is always there in time: of each of `n` runs less than a block is read but not free, so that as soon
/// as `n` blocks are in memory some block is free.
pub(super) fn merge(
    mapping: &mut MappingMut,
    layout: &Layout,
    blocks: &mut Blocks,
    runs: &[Range<usize>],
    saver: &mut Saver<'_>,
    bar: &ProgressBar,
) -> Result<()> {
    let mut merge = Merge::begin(mapping, layout, blocks, runs)?;
    if let Err(error) = merge.run(mapping, blocks, saver, bar) {
        // What is in memory would be lost; that the file cannot be written is told already.
        let _ = merge.put_back(mapping, blocks);
        return Err(error);
    }
    debug_assert!(merge.full.is_empty(), "all places are free in the end");
    blocks.places[runs[0].start..runs[runs.len() - 1].end].copy_from_slice(&merge.written);
    Ok(())
}

impl<'a> Merge<'a> {
    fn begin(
        mapping: &MappingMut,
        layout: &'a Layout,
        blocks: &Blocks,
        runs: &[Range<usize>],
    ) -> Result<Merge<'a>> {
        let mut merge = Merge {
            layout,
            cursors: Vec::with_capacity(runs.len()),
            heads: Vec::with_capacity(runs.len()),
            full: VecDeque::with_capacity(runs.len() + 1),
            filling: Vec::with_capacity(blocks.block_bytes),
            spare: Vec::new(),
            free: Vec::new(),
            written: Vec::with_capacity(runs[runs.len() - 1].end - runs[0].start),
        };
        for run in runs {
            blocks.fetch(mapping, blocks.places[run.start])?;
        }
        for (i, run) in runs.iter().enumerate() {
            let place = blocks.places[run.start];
            let bytes = blocks.bytes_at(place);
            let prefix = layout.prefix(layout.record(mapping, bytes.start));
            merge.cursors.push(Cursor { left: run.start + 1..run.end, place, bytes });
            merge.heads.push(Head { prefix, run: i });
            merge.fetch_next(mapping, blocks, i)?;
        }
        for i in (0..merge.heads.len() / 2).rev() {
            merge.sift_down(mapping, i);
        }
        Ok(merge)
    }

    /// Merges all there is.
    fn run(
        &mut self,
        mapping: &mut MappingMut,
        blocks: &Blocks,
        saver: &mut Saver<'_>,
        bar: &ProgressBar,
    ) -> Result<()> {
        loop {
            match self.go_on(mapping, blocks.block_bytes) {
                Event::Read(run) => self.next_block(mapping, blocks, run)?,
                Event::Full => {
                    bar.inc(blocks.block_bytes as u64);
                    let spare = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(blocks.block_bytes));
                    self.full.push_back(std::mem::replace(&mut self.filling, spare));
                }
                Event::End => break,
            }
            if self.write_full(mapping, blocks, saver)? {
                self.put_back(mapping, blocks)?;
                saver.save(mapping)?;
            }
        }
        if !self.filling.is_empty() {
            // The file's last block, which is short: its place is the one that fits.
            let place = blocks.places.len() - 1;
            mapping.write_at(blocks.bytes_at(place).start as u64, &self.filling)?;
            bar.inc(self.filling.len() as u64);
            self.written.push(place);
        }
        Ok(())
    }

    /// Takes records in order until something is to be done.
    fn go_on(&mut self, data: &[u8], block_bytes: usize) -> Event {
        let record_bytes = self.layout.record_bytes;
        loop {
            let is_full = self.filling.len() == block_bytes;
            let Some(&Head { run, .. }) = self.heads.first() else {
                return if is_full { Event::Full } else { Event::End };
            };
            // This first: a block that was read is known to be free whenever something is put back.
            if self.cursors[run].bytes.is_empty() {
                return Event::Read(run);
            }
            if is_full {
                return Event::Full;
            }
            let bytes = &mut self.cursors[run].bytes;
            self.filling.extend_from_slice(&data[bytes.start..bytes.start + record_bytes]);
            bytes.start += record_bytes;
            if bytes.start < bytes.end {
                self.heads[0].prefix = self.layout.prefix(&data[bytes.start..][..record_bytes]);
                self.sift_down(data, 0);
            }
        }
    }

    /// The run that is first has no more in its block: goes on to its next one.
    fn next_block(&mut self, mapping: &MappingMut, blocks: &Blocks, run: usize) -> Result<()> {
        let cursor = &mut self.cursors[run];
        if blocks.bytes_at(cursor.place).len() == blocks.block_bytes {
            self.free.push(cursor.place);
        }
        if let Some(block) = cursor.left.next() {
            cursor.place = blocks.places[block];
            cursor.bytes = blocks.bytes_at(cursor.place);
            let start = cursor.bytes.start;
            self.heads[0].prefix = self.layout.prefix(self.layout.record(mapping, start));
            self.fetch_next(mapping, blocks, run)?;
        } else {
            self.heads.swap_remove(0);
        }
        self.sift_down(mapping, 0);
        Ok(())
    }

    fn fetch_next(&self, mapping: &MappingMut, blocks: &Blocks, run: usize) -> Result<()> {
        let left = &self.cursors[run].left;
        if left.is_empty() { Ok(()) } else { blocks.fetch(mapping, blocks.places[left.start]) }
    }

    /// Writes full blocks, oldest first, as far as there are places. Returns whether it is time to save.
    fn write_full(
        &mut self,
        mapping: &mut MappingMut,
        blocks: &Blocks,
        saver: &mut Saver<'_>,
    ) -> Result<bool> {
        let mut is_time = false;
        // The place that was read last is the most likely to be in memory still.
        while let (Some(block), Some(place)) = (self.full.front(), self.free.last()) {
            mapping.write_at(blocks.bytes_at(*place).start as u64, block)?;
            self.written.extend(self.free.pop());
            if let Some(mut block) = self.full.pop_front() {
                block.clear();
                self.spare.push(block);
            }
            is_time |= saver.note(blocks.block_bytes);
        }
        Ok(is_time)
    }

    /// Puts what is in memory into the places that were read, which are exactly as large, so that the file holds all its
    /// records. The merge goes on as if nothing had happened: nothing reads these places before they are written to again.
    fn put_back(&self, mapping: &mut MappingMut, blocks: &Blocks) -> Result<()> {
        let whole = self.free.iter().map(|place| blocks.bytes_at(*place));
        let begun = self.cursors.iter().filter_map(|cursor| {
            let bytes = blocks.bytes_at(cursor.place);
            let is_free = cursor.bytes.is_empty() && bytes.len() == blocks.block_bytes;
            (!is_free).then_some(bytes.start..cursor.bytes.start)
        });
        let mut places = whole.chain(begun);
        let mut place = 0..0;
        for mut block in self.full.iter().chain([&self.filling]).map(Vec::as_slice) {
            while !block.is_empty() {
                if place.is_empty() {
                    let Some(next) = places.next() else { unreachable!("there is room for what was read") };
                    place = next;
                    continue;
                }
                let (part, rest) = block.split_at(block.len().min(place.len()));
                mapping.write_at(place.start as u64, part)?;
                place.start += part.len();
                block = rest;
            }
        }
        Ok(())
    }

    /// Puts the head at an index of the heap where it belongs.
    fn sift_down(&mut self, data: &[u8], mut at: usize) {
        loop {
            let mut child = 2 * at + 1;
            if child >= self.heads.len() {
                return;
            }
            if child + 1 < self.heads.len() && self.is_less(data, child + 1, child) {
                child += 1;
            }
            if !self.is_less(data, child, at) {
                return;
            }
            self.heads.swap(child, at);
            at = child;
        }
    }

    fn is_less(&self, data: &[u8], one: usize, other: usize) -> bool {
        let (one, other) = (self.heads[one], self.heads[other]);
        let key = |head: Head| self.layout.key(self.layout.record(data, self.cursors[head.run].bytes.start));
        let mut order = one.prefix.cmp(&other.prefix);
        if order == Ordering::Equal && self.layout.has_more_than_prefix() {
            order = key(one).cmp(key(other));
        }
        order.then(one.run.cmp(&other.run)) == Ordering::Less
    }
}
