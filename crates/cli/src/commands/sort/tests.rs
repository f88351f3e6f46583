//! Sorting on small shapes: every save finds a permutation, whatever the number of pieces.

use std::cell::Cell;
use std::sync::Arc;

use omnimap::store::{Counting, MemoryStore};
use omnimap::{Format, MapOptions};
use omnimap_testkit::Prng;

use super::saver::Saver;
use super::{Arguments, Layout, Shape, sort};

/// Records with few different keys of 3 bytes, and then what tells them apart.
fn records(count: usize, record_bytes: usize, keys: u64) -> Vec<u8> {
    let mut prng = Prng::new(count as u64);
    let mut bytes = Vec::with_capacity(count * record_bytes);
    for i in 0..count {
        let mut record = vec![0; record_bytes];
        record[..3].copy_from_slice(&prng.below(keys).to_be_bytes()[5..]);
        record[3..7].copy_from_slice(&(i as u32).to_be_bytes());
        bytes.extend(record);
    }
    bytes
}

fn sorted(bytes: &[u8], layout: &Layout) -> Vec<u8> {
    let mut records: Vec<&[u8]> = bytes.chunks_exact(layout.record_bytes).collect();
    records.sort_by_key(|record| layout.key(record));
    records.concat()
}

#[test]
fn the_shape_keeps_to_the_budget_and_to_whole_records() {
    for budget in [256 << 10, 1 << 20, 64 << 20, 3_000_001, 1 << 34] {
        for record in [1, 2, 7, 16, 100, 4096, 8000] {
            let shape = Shape::new(budget, record);
            let (block, piece) = (shape.block_bytes as u64, shape.piece_bytes as u64);
            assert!(shape.block_bytes.is_multiple_of(record) && piece.is_multiple_of(block), "{shape:?}");
            assert!(shape.runs_max >= 2 && (shape.runs_max as u64 + 1) * block <= budget / 8, "{shape:?}");
            assert!(
                piece <= budget / 2 && piece / record as u64 * super::pieces::ENTRY_BYTES <= budget / 4,
                "{shape:?}"
            );
        }
    }
}

/// With all sizes near their limits: one run more than are merged at a time, blocks that are short by a record, …
#[test]
fn the_mapping_is_a_permutation_at_every_save_and_sorted_at_the_end() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    const RECORD: usize = 24;
    for (key, keys) in [(0..3, 50), (0..3, 1), (0..24, 1 << 24), (2..14, 3)] {
        for runs_max in [2, 3, 7] {
            for count in [1, 2, 39, 40, 41, 79, 80, 81, 120, 999, 1000, 1001, 2000, 4001] {
                let layout = Layout { record_bytes: RECORD, key: key.clone() };
                let shape = Shape { block_bytes: 10 * RECORD, piece_bytes: 40 * RECORD, runs_max };
                let bytes = records(count, RECORD, keys);
                let whole = Layout { record_bytes: RECORD, key: 0..RECORD };
                let all = sorted(&bytes, &whole);
                let saves = Cell::new(0);
                let mut saver = Saver::every(777, |mapping| {
                    saves.set(saves.get() + 1);
                    assert!(sorted(mapping, &whole) == all, "save {} of {count} records", saves.get());
                    Ok(())
                });
                let store = MemoryStore::writable("records", bytes.clone());
                let mut mapping = MapOptions::new().budget(256 << 10).map_mut(store).unwrap();
                sort(&mut mapping, &layout, &shape, &mut saver).unwrap();
                drop(saver);
                let equal = mapping[..] == sorted(&bytes, &layout);
                assert!(equal, "{count} records, key {key:?} of {keys}, {runs_max} runs");
                assert!(saves.get() >= 1 && (keys == 1 || saves.get() >= count / 1000), "{}", saves.get());
            }
        }
    }
}

#[test]
fn what_is_sorted_is_not_written() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let layout = Layout { record_bytes: 24, key: 0..24 };
    let shape = Shape { block_bytes: 240, piece_bytes: 960, runs_max: 2 };
    let store = MemoryStore::writable("records", sorted(&records(1001, 24, 1 << 24), &layout));
    let mut mapping = MapOptions::new().budget(256 << 10).map_mut(store).unwrap();
    let done = sort(&mut mapping, &layout, &shape, &mut Saver::never()).unwrap();
    assert_eq!((done.pieces, done.merges, mapping.dirty_bytes()), (26, 0, 0));
}

#[test]
fn each_pass_writes_each_byte_about_once() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let arguments = Arguments {
        file: "records".into(),
        record_bytes: 64,
        key_offset: 0,
        key_bytes: None,
        budget: 2 << 20,
        atomic: false,
        check: false,
        format: Format::Plain,
    };
    let (layout, shape) = (arguments.layout().unwrap(), Shape::new(arguments.budget, 64));
    let bytes = records((8 << 20) / 64, 64, 1 << 24);
    let length = bytes.len() as u64;
    let store = Arc::new(Counting::new(Arc::new(MemoryStore::writable("records", bytes))));
    let mut mapping = arguments.writable_options().map_mut(store.clone()).unwrap();
    let done = sort(&mut mapping, &layout, &shape, &mut Saver::never()).unwrap();
    mapping.sync().unwrap();
    assert_eq!((done.pieces, done.merges), (8, 1));
    let written = store.counts().bytes_written;
    assert!((2 * length..4 * length).contains(&written), "{written} bytes for three passes over {length}");
}
