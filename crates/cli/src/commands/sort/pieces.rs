//! Sorting what fits in memory, where it lies.

use std::ops::Range;

use indicatif::ProgressBar;
use omnimap::{MappingMut, Result, SyncMode};

use super::saver::Saver;
use super::{Layout, Shape};

/// Where a record was, and the beginning of its key: most comparisons need no more, and no look at the record.
#[derive(Debug, Clone, Copy)]
struct Entry {
    prefix: u64,
    record: u32,
}

/// Bytes of memory for each record of a piece.
pub(super) const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// Sorts each piece by itself. Returns the runs, in blocks; pieces that follow each other in order are one run, so that
/// nothing is left to do for a file that was sorted before.
pub(super) fn sort_all(
    mapping: &mut MappingMut,
    layout: &Layout,
    shape: &Shape,
    saver: &mut Saver<'_>,
    bar: &ProgressBar,
) -> Result<Vec<Range<usize>>> {
    let mut entries = Vec::new();
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    while start < mapping.len() {
        let end = mapping.len().min(start + shape.piece_bytes);
        let changed = sort_piece(&mut mapping[start..end], layout, &mut entries);
        let follows = start > 0 && {
            let last = layout.key(layout.record(mapping, start - layout.record_bytes));
            last <= layout.key(layout.record(mapping, start))
        };
        let blocks = start / shape.block_bytes..end.div_ceil(shape.block_bytes);
        match runs.last_mut() {
            Some(run) if follows => run.end = blocks.end,
            _ => runs.push(blocks),
        }
        // Now that it will not change again, and while the next one is read. (Nothing begins where a sync is atomic.)
        mapping.sync_range(start as u64..end as u64, SyncMode::Start)?;
        if saver.note(changed) {
            saver.save(mapping)?;
        }
        bar.inc((end - start) as u64);
        start = end;
    }
    saver.save(mapping)?;
    Ok(runs)
}

/// Sorts a piece; records with equal keys keep their order. Returns how many bytes were stored to.
fn sort_piece(piece: &mut [u8], layout: &Layout, entries: &mut Vec<Entry>) -> usize {
    entries.clear();
    let records = piece.chunks_exact(layout.record_bytes);
    entries.reserve_exact(records.len());
    entries.extend(
        records.enumerate().map(|(i, record)| Entry { prefix: layout.prefix(record), record: i as u32 }),
    );
    if entries.is_sorted_by_key(|entry| entry.prefix) && !layout.has_more_than_prefix() {
        return 0;
    }
    let bytes = layout.record_bytes;
    let key = |entry: &Entry| layout.key(layout.record(piece, entry.record as usize * bytes));
    // The record's number makes no two equal, so that a sort that takes no memory is as good as a stable one.
    if layout.has_more_than_prefix() {
        entries.sort_unstable_by(|a, b| {
            let by_prefix = a.prefix.cmp(&b.prefix);
            by_prefix.then_with(|| key(a).cmp(key(b))).then(a.record.cmp(&b.record))
        });
    } else {
        entries.sort_unstable_by_key(|entry| (entry.prefix, entry.record));
    }
    reorder(piece, bytes, entries)
}

/// Moves each record to the place of the entry that names it, along the cycles. Returns how many bytes were stored to.
fn reorder(piece: &mut [u8], bytes: usize, entries: &mut [Entry]) -> usize {
    let mut held = vec![0; bytes];
    let mut moved = 0;
    for first in 0..entries.len() {
        if entries[first].record as usize == first {
            continue;
        }
        held.copy_from_slice(&piece[first * bytes..][..bytes]);
        let mut to = first;
        loop {
            let from = std::mem::replace(&mut entries[to].record, to as u32) as usize;
            moved += bytes;
            if from == first {
                piece[to * bytes..][..bytes].copy_from_slice(&held);
                break;
            }
            piece.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
            to = from;
        }
    }
    moved
}
