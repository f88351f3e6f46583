//! Private copies: the base shows where nothing was written, and is never written.

use std::sync::Arc;

use omnimap_store::conformance::{check_read, check_write};
use omnimap_store::{
    BackingStore, Counting, Faulty, MemoryStore, Misbehaviour, PrivateStore, Result, StoreError, SwapOptions,
    Writability,
};

mod common;
use common::{BLOCK, BLOCK_BYTES, Random, noise};

const POOLS: [u64; 3] = [0, 16 << 10, 64 << 20];

fn options(compressed_bytes_max: u64) -> SwapOptions {
    SwapOptions { compressed_bytes_max, ..SwapOptions::default() }
}

/// A writable base, so that a write that went through would be seen.
fn base(length: usize) -> (Vec<u8>, Arc<MemoryStore>) {
    let bytes = noise(42, length);
    (bytes.clone(), Arc::new(MemoryStore::writable("base", bytes)))
}

fn read(store: &dyn BackingStore, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; length];
    let got = store.read_at(offset, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

#[test]
fn every_pool_passes_the_suite_and_the_base_stays() {
    for pool in POOLS {
        for length in if pool == 0 { [70_000].as_slice() } else { &[0, 5, 300_000] } {
            let (bytes, memory) = base(*length);
            let counting = Arc::new(Counting::new(memory));
            let store = PrivateStore::new(counting.clone(), options(pool)).unwrap();
            assert_eq!((store.name(), store.len()), ("base", *length as u64));
            assert_eq!(store.transfer(), counting.transfer());
            assert_eq!((store.writability(), store.version()), (Writability::ReadWrite, None));
            check_read(&store, |at| bytes[at as usize]);
            check_write(&store);
            let counts = counting.counts();
            assert_eq!((counts.writes, counts.syncs), (0, 0));
            assert_eq!(counting.len(), *length as u64, "its length stays too");
            check_read(&counting, |at| bytes[at as usize]);
        }
    }
}

#[test]
fn zeros_hide_the_base() {
    let (bytes, memory) = base(10 * BLOCK_BYTES);
    let store = PrivateStore::new(memory, options(1 << 20)).unwrap();
    store.write_at(BLOCK, &[0; 2 * BLOCK_BYTES]).unwrap();
    assert_eq!(read(&store, BLOCK, 2 * BLOCK_BYTES).unwrap(), [0; 2 * BLOCK_BYTES]);
    assert_eq!(store.counts().blocks_zero, 2);
    assert_eq!(read(&store, 0, BLOCK_BYTES).unwrap(), bytes[..BLOCK_BYTES]);
    store.write_at(BLOCK, &bytes[BLOCK_BYTES..3 * BLOCK_BYTES]).unwrap();
    assert_eq!(read(&store, 0, bytes.len()).unwrap(), bytes);
    assert_eq!(store.counts().blocks_zero, 0);
}

#[test]
fn what_was_cut_off_is_zeros_for_good() {
    for pool in POOLS {
        let (mut bytes, memory) = base(10 * BLOCK_BYTES);
        let store = PrivateStore::new(memory, options(pool)).unwrap();
        store.write_at(7 * BLOCK, &[0; 5000]).unwrap();
        bytes[7 * BLOCK_BYTES..][..5000].fill(0);
        for cut in [9 * BLOCK + 5, 7 * BLOCK + 100, 4 * BLOCK, 3 * BLOCK + 1, 0] {
            store.set_len(cut).unwrap();
            assert_eq!(store.len(), cut);
            store.set_len(20 * BLOCK).unwrap();
            bytes.truncate(cut as usize);
            bytes.resize(20 * BLOCK_BYTES, 0);
            check_read(&store, |at| bytes[at as usize]);
            store.write_at(cut + 10, b"beyond").unwrap();
            bytes[cut as usize + 10..][..6].copy_from_slice(b"beyond");
            check_read(&store, |at| bytes[at as usize]);
        }
    }
}

#[test]
fn random_operations_do_as_a_vector_does() {
    for pool in POOLS {
        let mut random = Random(pool + 2);
        let (mut model, memory) = base(300_000);
        let original = model.clone();
        let store = PrivateStore::new(memory.clone(), options(pool)).unwrap();
        for _ in 0..3000 {
            let offset = random.below(model.len() as u64 + 1);
            let length = random.length().min(model.len() - offset as usize);
            match random.below(100) {
                0 => {
                    // Rarely by much, or the base would soon be hidden.
                    let length = (model.len() as u64 + random.below(20_000)).saturating_sub(10_000);
                    store.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
                1..30 => {
                    let bytes = random.bytes(length / 4);
                    store.write_at(offset, &bytes).unwrap();
                    model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                _ => {
                    let bytes = read(&store, offset, length).unwrap();
                    assert!(bytes == model[offset as usize..][..length], "{length} bytes at {offset}");
                }
            }
        }
        assert!(read(&*memory, 0, original.len()).unwrap() == original);
    }
}

#[test]
fn a_failing_base_fails_untouched_blocks_alone() {
    let (bytes, memory) = base(10 * BLOCK_BYTES);
    let faulty = Arc::new(Faulty::new(memory));
    let store = PrivateStore::new(faulty.clone(), options(1 << 20)).unwrap();
    store.write_at(2 * BLOCK, &noise(7, 2 * BLOCK_BYTES)).unwrap();
    faulty.on_read(0..u64::MAX, Misbehaviour::Fail, u64::MAX);
    assert_eq!(read(&store, 2 * BLOCK, 2 * BLOCK_BYTES).unwrap(), noise(7, 2 * BLOCK_BYTES));
    store.write_at(2 * BLOCK + 5, b"part").unwrap();
    store.write_at(5 * BLOCK, &[1; BLOCK_BYTES]).unwrap();
    assert!(matches!(read(&store, 0, 1), Err(StoreError::Io { .. })));
    assert!(matches!(read(&store, BLOCK, 2 * BLOCK_BYTES), Err(StoreError::Io { .. })));
    assert!(matches!(store.write_at(5, b"part"), Err(StoreError::Io { .. })), "its rest cannot be had");
    faulty.heal();
    assert_eq!(read(&store, 0, BLOCK_BYTES).unwrap(), bytes[..BLOCK_BYTES], "which changed nothing");
    faulty.on_read(0..BLOCK, Misbehaviour::Short, 1);
    assert!(matches!(read(&store, 0, BLOCK_BYTES), Err(StoreError::Short { .. })));
}

#[test]
fn whole_blocks_are_written_without_the_base() {
    let (_, memory) = base(10 * BLOCK_BYTES + 100);
    let counting = Arc::new(Counting::new(memory));
    let store = PrivateStore::new(counting.clone(), options(1 << 20)).unwrap();
    store.write_at(0, &noise(1, 3 * BLOCK_BYTES)).unwrap();
    store.write_at(10 * BLOCK, &[1; 100]).unwrap();
    assert_eq!(counting.counts().reads, 0, "the last block is whole although it is short");
    read(&store, 0, 3 * BLOCK_BYTES).unwrap();
    assert_eq!(counting.counts().reads, 0);
    read(&store, 0, 10 * BLOCK_BYTES + 100).unwrap();
    assert_eq!(counting.counts().reads, 1, "and the rest is one read");
    assert_eq!(counting.counts().bytes_read, 7 * BLOCK);
}
