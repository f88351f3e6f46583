//! What cannot be seen from outside: damage, slots that are read while they are freed, numbers of transfers.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::place::Place;
use super::store::{SwapCounts, SwapOptions};
use super::{BLOCK_BYTES, Blocks};
use crate::StoreError;

const BLOCK: u64 = BLOCK_BYTES as u64;

fn blocks(compressed_bytes_max: u64, file_bytes_max: Option<u64>) -> Blocks {
    let options = SwapOptions { compressed_bytes_max, file_bytes_max, directory: None };
    Blocks::new(1 << 30, None, options).unwrap()
}

/// Bytes that do not compress, another sequence for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let word = |i: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed).to_le_bytes();
    (0..length.div_ceil(8) as u64).flat_map(word).take(length).collect()
}

fn read(blocks: &Blocks, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0xee; length];
    assert_eq!(blocks.read(offset, &mut bytes)?, length);
    Ok(bytes)
}

fn transfers(blocks: &Blocks) -> u64 {
    blocks.file.transfers.load(Ordering::Relaxed)
}

/// Every slot in use belongs to a block, every entry of the pool too, and can leave it.
fn assert_nothing_leaks(blocks: &Blocks) {
    let counts = blocks.counts();
    assert_eq!(u64::from(blocks.lock().slots.used()), counts.blocks_in_file);
    assert_eq!(counts.blocks_compressed == 0, counts.compressed_bytes == 0);
    assert_eq!(blocks.lock().pool.queued as u64, counts.blocks_compressed);
}

#[test]
fn damage_in_the_file_is_found() {
    let blocks = blocks(0, None);
    blocks.write(0, &noise(1, 3 * BLOCK_BYTES)).unwrap();
    let Place::InFile { slot, .. } = blocks.lock().index.get(1) else { panic!("it does not compress") };
    let mut damaged = crate::AlignedBytes::new(BLOCK_BYTES);
    blocks.file.read(slot, &mut damaged).unwrap();
    damaged[4095] ^= 1;
    blocks.file.write(slot, &damaged).unwrap();
    for (offset, length) in [(BLOCK, BLOCK_BYTES), (BLOCK + 7, 1), (0, 3 * BLOCK_BYTES)] {
        let error = read(&blocks, offset, length).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { what } if what.contains("at 4096")), "{error}");
    }
    assert!(matches!(blocks.write(BLOCK + 7, b"x"), Err(StoreError::Corrupt { .. })), "a part of it");
    read(&blocks, 0, BLOCK_BYTES).unwrap();
    read(&blocks, 2 * BLOCK, BLOCK_BYTES).unwrap();
    blocks.write(BLOCK, &noise(2, BLOCK_BYTES)).unwrap();
    assert_eq!(read(&blocks, BLOCK, BLOCK_BYTES).unwrap(), noise(2, BLOCK_BYTES), "written anew it is whole");
}

#[test]
fn damage_in_memory_is_found_before_and_after_the_move_to_the_file() {
    let blocks = blocks(16 << 10, None);
    blocks.write(0, &[7; BLOCK_BYTES]).unwrap();
    let mut state = blocks.lock();
    let Place::Compressed { entry, checksum } = state.index.get(0) else { panic!("it compresses") };
    state.index.set(0, Place::Compressed { entry, checksum: checksum ^ 1 });
    drop(state);
    assert!(matches!(read(&blocks, 0, 1), Err(StoreError::Corrupt { .. })));
    for block in 1..500 {
        blocks.write(block * BLOCK, &[block as u8 | 1; BLOCK_BYTES]).unwrap();
    }
    assert!(matches!(blocks.lock().index.get(0), Place::InFile { .. }));
    assert!(matches!(read(&blocks, 0, 1), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_reader_gets_the_block_it_looked_up_although_its_place_is_freed_and_used_again() {
    for (pool, old) in [(0, noise(1, 2 * BLOCK_BYTES)), (1 << 20, vec![7; 2 * BLOCK_BYTES])] {
        let blocks = blocks(pool, None);
        blocks.write(0, &old).unwrap();
        let (snapshot, _) = blocks.hold(0, 2 * BLOCK_BYTES);
        for round in 0..20 {
            blocks.write(0, &noise(round, 2 * BLOCK_BYTES)).unwrap();
            blocks.write(9 * BLOCK, &[round as u8 | 1; 2 * BLOCK_BYTES]).unwrap();
        }
        let mut bytes = vec![0; 2 * BLOCK_BYTES];
        blocks.fill(&snapshot, 0, &mut bytes).unwrap();
        assert_eq!(bytes, old);
        assert!(!snapshot.is_current(&blocks.lock()));
        drop(snapshot);
        assert_nothing_leaks(&blocks);
    }
}

#[test]
fn what_a_partial_write_rests_on_is_recognised() {
    let blocks = blocks(0, None);
    blocks.write(0, &noise(1, BLOCK_BYTES)).unwrap();
    let (snapshot, _) = blocks.hold(0, BLOCK_BYTES);
    blocks.write(0, &noise(2, BLOCK_BYTES)).unwrap();
    // The same bytes again: in the same slot, if that were free.
    blocks.write(0, &noise(1, BLOCK_BYTES)).unwrap();
    assert!(!snapshot.is_current(&blocks.lock()), "its slot was not reused while it was held");
}

#[test]
fn neighbours_are_one_transfer() {
    let blocks = blocks(0, None);
    let bytes = noise(3, 256 * BLOCK_BYTES);
    blocks.write(0, &bytes).unwrap();
    assert_eq!(transfers(&blocks), 1, "one write");
    assert_eq!(read(&blocks, 0, bytes.len()).unwrap(), bytes);
    assert_eq!(transfers(&blocks), 2, "one read");
    blocks.write(0, &bytes).unwrap();
    assert_eq!(transfers(&blocks), 3, "also when it is written again");
    assert_eq!(read(&blocks, 5, 100_000).unwrap(), bytes[5..100_005]);
    assert_eq!(transfers(&blocks), 4, "and of a part");
}

#[test]
fn blocks_of_the_pool_move_to_the_file_together_oldest_first() {
    let blocks = blocks(64 << 10, None);
    // Every other block first, so that the order of writing is not that of the blocks.
    let order: Vec<u64> = (0..2000).step_by(2).chain((0..2000).skip(1).step_by(2)).collect();
    for block in &order {
        blocks.write(block * BLOCK, &[*block as u8 | 1; BLOCK_BYTES]).unwrap();
    }
    let SwapCounts { blocks_compressed, blocks_in_file, .. } = blocks.counts();
    assert_eq!(blocks_compressed + blocks_in_file, 2000);
    assert!(blocks_compressed > 200, "{blocks_compressed} in memory");
    assert!(transfers(&blocks) * 50 < blocks_in_file, "{} writes of {blocks_in_file}", transfers(&blocks));
    let is_in_file = |block: &u64| matches!(blocks.lock().index.get(*block), Place::InFile { .. });
    assert!(order[..blocks_in_file as usize].iter().all(is_in_file), "the oldest");
    for block in 0..2000 {
        assert_eq!(read(&blocks, block * BLOCK, BLOCK_BYTES).unwrap(), [block as u8 | 1; BLOCK_BYTES]);
    }
    assert_nothing_leaks(&blocks);
}

#[test]
fn there_is_no_file_before_it_is_needed() {
    let blocks = blocks(1 << 20, None);
    blocks.write(0, &[0; 10 * BLOCK_BYTES]).unwrap();
    assert_eq!(blocks.counts(), SwapCounts::default(), "zeros are nothing");
    blocks.write(0, &[1; 10 * BLOCK_BYTES]).unwrap();
    assert!(!blocks.file.is_open());
    blocks.write(0, &noise(1, 1)).unwrap();
    assert!(!blocks.file.is_open());
    blocks.write(0, &noise(1, BLOCK_BYTES)).unwrap();
    assert!(blocks.file.is_open());
}

#[test]
fn failed_writes_leak_nothing() {
    let blocks = blocks(8 << 10, Some(16 * BLOCK));
    blocks.write(0, &noise(1, 10 * BLOCK_BYTES)).unwrap();
    for round in 0..10u8 {
        let outcome = blocks.write(100 * BLOCK, &noise(2, 10 * BLOCK_BYTES));
        assert!(matches!(outcome, Err(StoreError::Io { .. })), "{outcome:?}");
        for block in 200..300 {
            let _ = blocks.write(block * BLOCK, &[block as u8 | 1; BLOCK_BYTES]);
        }
        blocks.write(200 * BLOCK, &vec![0; (50 + usize::from(round)) * BLOCK_BYTES]).unwrap();
        assert_nothing_leaks(&blocks);
    }
    assert_eq!(read(&blocks, 0, 10 * BLOCK_BYTES).unwrap(), noise(1, 10 * BLOCK_BYTES));
}

#[test]
fn disk_space_goes_back_when_the_object_shrinks() {
    let blocks = blocks(0, None);
    blocks.write(0, &noise(1, 2048 * BLOCK_BYTES)).unwrap();
    let before = blocks.counts().file_bytes;
    assert!(before >= 2048 * BLOCK, "{before}");
    blocks.set_len(BLOCK).unwrap();
    let after = blocks.counts().file_bytes;
    assert!(after <= 257 * BLOCK, "{after}");
    assert_eq!(read(&blocks, 0, BLOCK_BYTES).unwrap(), noise(1, BLOCK_BYTES));
    assert_nothing_leaks(&blocks);
}

#[test]
fn a_directory_that_is_none_is_an_error_at_once() {
    for (path, number) in [("/no/such/directory", 2), ("/proc/self/maps", 20)] {
        let options = SwapOptions { directory: Some(Path::new(path).to_owned()), ..SwapOptions::default() };
        let error = Blocks::new(1, None, options).err().unwrap();
        assert!(error.to_string().contains(path), "{error}");
        assert_eq!(error.errno(), number);
    }
}
