//! `omnimap sort`: sorts a file of records in place, in bounded memory, through a mapping that is stored to.
//!
//! ```text
//! file    [ piece | piece | piece | … | tail ]   1. each piece is sorted where it lies: now it is a run
//! file    [ b b b | b b b | b b b | … | b t  ]   2. runs are merged, many at a time, block by block, into blocks that
//!                                                   the merge has used up; which block is where is kept in memory
//! file    [ 0 1 2   3 4 5   6 7 8   …   n t  ]   3. the blocks are swapped to where they belong
//! ```
//!
//! The file needs no room beside it: what a merge has read and not yet written fits in a few blocks of memory. (Knuth, The
//! Art of Computer Programming, volume 3, 5.4.9, on disks whose blocks are allotted by the merge itself.) Each pass
//! reads and writes every byte about once, in blocks, whatever the bytes are; records with equal keys keep their order.
//!
//! # What holds when it is killed
//! Between two records of a pass, the records that are not in the file (those in memory) are as many as the places in it
//! that were used up. So the file can be made a permutation of its records at any time, by putting what is in memory into
//! these places: [`Saver`] says when, every so many bytes of changes, because what can be made durable at once is bounded.
//! If each such save is atomic, then the file holds exactly its records after a kill at any moment, and sorting it again
//! sorts it; only the order among records with equal keys may be lost then. Without, records may be there twice or not
//! at all.
//!
//! # Memory, of the budget
//! Three quarters are the mapping's. Of the last quarter, step 1 takes all for the order of a piece's records, and step 2
//! half for its blocks. Where the blocks are takes 8 bytes a block, beside the budget: 1/16384 of the file at 64 MiB.

mod merge;
mod pieces;
mod saver;

use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use omnimap::{Advice, Format, MapOptions, Mapping, MappingMut};

use self::saver::Saver;
use crate::{progress, size};

/// Sort a file of records of one size in place, ascending by their bytes or those of a key, in bounded memory.
///
/// Records with equal keys keep their order. A sort that is killed may leave a file that has lost records, unless it is
/// atomic.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file to sort.
    file: PathBuf,
    /// Bytes of a record.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    record_bytes: u64,
    /// Where in a record its key begins.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    key_offset: u64,
    /// Bytes of the key; up to the record's end, unless it is given.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    key_bytes: Option<u64>,
    /// The most memory that sorting takes, as 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// Keep the file whole at every moment: whenever the sort is killed, the file has all its records, and sorting again
    /// goes on from there. Changes go through a journal beside the file, and take about twice as long.
    #[arg(long)]
    atomic: bool,
    /// Only say whether the file is sorted; if not, the exit code is 1.
    #[arg(long)]
    check: bool,
    /// What the file's bytes mean: auto, plain, or zstd (to --check).
    #[arg(long, default_value = "auto")]
    format: Format,
}

/// Below this a merge has too few blocks.
const BUDGET_BYTES_MIN: u64 = 256 << 10;
/// A record is at most one in so many parts of the budget: a merge needs a few.
const RECORD_BUDGET_SHARE: u64 = 32;
/// A block, if the budget allows: large enough that a transfer of one is mostly the transfer.
const BLOCK_BYTES: Range<u64> = 16 << 10..256 << 10;
/// One in so many parts of the budget is a block, between these.
const BLOCK_BUDGET_SHARE: u64 = 512;
/// One in so many parts of the budget is for the blocks that a merge has in memory.
const MERGE_BUDGET_SHARE: u64 = 8;
/// Runs merged at a time, at the most: what is in memory must be written in one save.
const RUNS_MAX: u64 = 255;
/// A piece, at the most: it is written in one save too.
const PIECE_BYTES_MAX: u64 = 128 << 20;
/// Changes after which there is a save, if saves are atomic. With a piece, or what is in memory of a merge, and with pages
/// that are written twice in between, it is well below what one atomic sync can hold.
const SAVE_BYTES: u64 = 128 << 20;

/// Where in a record its key is.
#[derive(Debug, Clone)]
struct Layout {
    record_bytes: usize,
    key: Range<usize>,
}

impl Layout {
    fn key<'a>(&self, record: &'a [u8]) -> &'a [u8] {
        &record[self.key.clone()]
    }

    /// The key's first bytes as a number that orders as they do; all keys are equally long.
    fn prefix(&self, record: &[u8]) -> u64 {
        let key = self.key(record);
        let mut bytes = [0; 8];
        let count = key.len().min(8);
        bytes[..count].copy_from_slice(&key[..count]);
        u64::from_be_bytes(bytes)
    }

    /// Whether keys with the same prefix may differ.
    fn has_more_than_prefix(&self) -> bool {
        self.key.len() > 8
    }

    /// The record at a byte of the file.
    fn record<'a>(&self, data: &'a [u8], at: usize) -> &'a [u8] {
        &data[at..at + self.record_bytes]
    }
}

/// How the work is cut, in bytes; all are whole records, and pieces whole blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    block_bytes: usize,
    piece_bytes: usize,
    runs_max: usize,
}

impl Shape {
    fn new(budget: u64, record_bytes: usize) -> Shape {
        let record = record_bytes as u64;
        let block = (budget / BLOCK_BUDGET_SHARE).clamp(BLOCK_BYTES.start, BLOCK_BYTES.end);
        let ordered = budget / 4 / pieces::ENTRY_BYTES * record;
        let block = (block.min(budget / RECORD_BUDGET_SHARE).min(ordered) / record).max(1) * record;
        let runs = (budget / MERGE_BUDGET_SHARE / block).saturating_sub(1).clamp(2, RUNS_MAX);
        let piece = (budget / 2).min(ordered).min(PIECE_BYTES_MAX);
        let piece = (piece / block).max(1) * block;
        Shape { block_bytes: block as usize, piece_bytes: piece as usize, runs_max: runs as usize }
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    pieces: usize,
    merges: usize,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let layout = self.layout()?;
        if self.check {
            return self.run_check(&layout);
        }
        let mut mapping = self.writable_options().open_mut(&self.file)?;
        let records = self.count(mapping.len(), &layout)?;
        let bytes = mapping.len() as u64;
        let shape = Shape::new(self.budget, layout.record_bytes);
        let mut saver =
            if self.atomic { Saver::every(SAVE_BYTES, MappingMut::sync_atomic) } else { Saver::never() };
        let done = sort(&mut mapping, &layout, &shape, &mut saver)?;
        mapping.sync()?;
        let line = format!(
            "{}: {records} records ({}) sorted: {} pieces, {} merges",
            self.file.display(),
            size::show(bytes),
            done.pieces,
            done.merges
        );
        writeln!(io::stdout(), "{line}")?;
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> MapOptions {
        let mut options = MapOptions::new();
        options.budget(self.budget).format(self.format);
        options
    }

    fn writable_options(&self) -> MapOptions {
        let mut options = self.options();
        // Beside the mapping there are our own buffers.
        let mapped = self.budget - self.budget / 4;
        // A piece is stored to all over while it is sorted: what was written before the end would be written many times.
        options.budget(mapped).dirty_max(mapped).atomic(self.atomic);
        options
    }

    fn layout(&self) -> Result<Layout> {
        let record = self.record_bytes;
        if record == 0 {
            bail!("--record-bytes: a record has at least 1 byte");
        }
        if self.budget < BUDGET_BYTES_MIN {
            let least = size::show(BUDGET_BYTES_MIN);
            bail!("--budget: {} bytes are too few to sort; at least {least} are needed", self.budget);
        }
        if record > self.budget / RECORD_BUDGET_SHARE {
            let least = record.saturating_mul(RECORD_BUDGET_SHARE);
            bail!("--budget: records of {record} bytes need a budget of at least {least} bytes");
        }
        let length = self.key_bytes.unwrap_or(record.saturating_sub(self.key_offset));
        let end = self.key_offset.checked_add(length).filter(|end| length > 0 && *end <= record);
        let Some(end) = end else {
            let offset = self.key_offset;
            bail!(
                "--key-offset {offset}, --key-bytes {length}: a key has at least 1 byte and lies within the record's {record}"
            );
        };
        let whole = |n: u64| usize::try_from(n).context("a record is larger than an address can reach");
        Ok(Layout { record_bytes: whole(record)?, key: whole(self.key_offset)?..whole(end)? })
    }

    /// How many records there are, if they are whole.
    fn count(&self, bytes: usize, layout: &Layout) -> Result<usize> {
        let (record, name) = (layout.record_bytes, self.file.display());
        if !bytes.is_multiple_of(record) {
            let over = bytes % record;
            bail!(
                "{name}: its {bytes} bytes are no whole number of records of {record} bytes; {over} are left over"
            );
        }
        Ok(bytes / record)
    }

    fn run_check(&self, layout: &Layout) -> Result<ExitCode> {
        let mapping = self.options().advice(Advice::Sequential).open(&self.file)?;
        let records = self.count(mapping.len(), layout)?;
        let name = self.file.display();
        Ok(match first_disorder(&mapping, layout) {
            None => {
                writeln!(io::stdout(), "{name}: {records} records are in order")?;
                ExitCode::SUCCESS
            }
            Some(record) => {
                writeln!(io::stdout(), "{name}: record {record} is less than the one before it")?;
                ExitCode::FAILURE
            }
        })
    }
}

/// The first record, counted from 0, whose key is less than that of the one before it.
fn first_disorder(mapping: &Mapping, layout: &Layout) -> Option<usize> {
    /// Records between two looks at the bar.
    const STEP: usize = 4096;
    let bar = progress::bytes("checking", Some(mapping.len() as u64));
    let mut before: Option<&[u8]> = None;
    for (i, record) in mapping.chunks_exact(layout.record_bytes).enumerate() {
        let key = layout.key(record);
        if before.is_some_and(|before| key < before) {
            bar.finish_and_clear();
            return Some(i);
        }
        before = Some(key);
        if i % STEP == 0 {
            bar.set_position((i * layout.record_bytes) as u64);
        }
    }
    bar.finish_and_clear();
    None
}

/// Sorts a mapping; what is saved on the way is up to the saver, what is saved at the end to the caller.
fn sort(mapping: &mut MappingMut, layout: &Layout, shape: &Shape, saver: &mut Saver<'_>) -> Result<Done> {
    let bytes = mapping.len() as u64;
    if bytes == 0 {
        return Ok(Done::default());
    }
    let bar = progress::bytes("sorting pieces", Some(bytes));
    let mut runs = pieces::sort_all(mapping, layout, shape, saver, &bar)?;
    bar.finish_and_clear();
    let mut done = Done { pieces: mapping.len().div_ceil(shape.piece_bytes), merges: 0 };
    if runs.len() == 1 {
        return Ok(done);
    }
    // From here on it is read at many places in turn, and told which come next.
    mapping.advise(0..bytes, Advice::Random)?;
    let mut blocks = merge::Blocks::new(mapping.len(), shape.block_bytes);
    while runs.len() > 1 {
        let bar = progress::bytes("merging", Some(bytes));
        let mut merged = Vec::with_capacity(runs.len().div_ceil(shape.runs_max));
        for group in runs.chunks(shape.runs_max) {
            if group.len() > 1 {
                merge::merge(mapping, layout, &mut blocks, group, saver, &bar)?;
                done.merges += 1;
            }
            merged.push(group[0].start..group[group.len() - 1].end);
        }
        runs = merged;
        bar.finish_and_clear();
        saver.save(mapping)?;
    }
    let bar = progress::bytes("putting in place", Some(bytes));
    blocks.put_in_place(mapping, saver, &bar)?;
    bar.finish_and_clear();
    saver.save(mapping)?;
    Ok(done)
}

#[cfg(test)]
mod tests;
