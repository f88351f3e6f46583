//! The store of anonymous memory, from outside.

use std::sync::atomic::{AtomicBool, Ordering};

use omnimap_store::conformance::{check_read, check_write};
use omnimap_store::{BackingStore, Result, StoreError, SwapOptions, SwapStore};

mod common;
use common::{BLOCK, BLOCK_BYTES, Random, noise};

/// Pools that hold nothing, a little, everything.
const POOLS: [u64; 3] = [0, 16 << 10, 64 << 20];

fn swap(length: u64, compressed_bytes_max: u64, file_bytes_max: Option<u64>) -> SwapStore {
    SwapStore::new("swap", length, SwapOptions { compressed_bytes_max, directory: None, file_bytes_max })
        .unwrap()
}

fn read(store: &dyn BackingStore, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; length];
    let got = store.read_at(offset, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

#[test]
fn every_pool_passes_the_suite() {
    for pool in POOLS {
        let store = swap(0, pool, None);
        check_read(&store, |_| 0);
        check_write(&store);
        assert!(store.version().is_none());
        store.set_len(0).unwrap();
        let counts = store.counts();
        assert_eq!((counts.blocks_compressed, counts.blocks_in_file), (0, 0));
    }
}

#[test]
fn lengths_at_the_end_of_numbers() {
    let store = swap(u64::MAX, 1 << 20, None);
    store.write_at(u64::MAX - 3, b"end").unwrap();
    assert_eq!(read(&store, u64::MAX - 4, 10).unwrap(), b"\0end");
    assert_eq!(read(&store, u64::MAX, 10).unwrap(), b"");
    assert!(matches!(store.write_at(u64::MAX - 3, &[1; 4]), Err(StoreError::BeyondEnd { .. })));
    store.set_len(u64::MAX - 2).unwrap();
    store.set_len(u64::MAX).unwrap();
    assert_eq!(read(&store, u64::MAX - 4, 10).unwrap(), b"\0e\0\0");
}

#[test]
fn zeros_cost_nothing() {
    let store = swap(1 << 40, 1 << 20, None);
    store.write_at(0, &vec![0; 1 << 20]).unwrap();
    assert_eq!(store.counts(), Default::default());
    store.write_at(5000, &noise(1, 100_000)).unwrap();
    assert_ne!(store.counts(), Default::default());
    store.write_at(0, &vec![0; 1 << 20]).unwrap();
    let counts = store.counts();
    assert_eq!((counts.blocks_zero, counts.blocks_compressed, counts.blocks_in_file), (0, 0, 0));
    assert_eq!(counts.compressed_bytes, 0);
}

#[test]
fn random_operations_do_as_a_vector_does() {
    for pool in POOLS {
        let mut random = Random(pool + 1);
        let store = swap(100_000, pool, None);
        let mut model = vec![0u8; 100_000];
        for _ in 0..4000 {
            let offset = random.below(model.len() as u64 + 1);
            let length = random.length().min(model.len() - offset as usize);
            match random.below(20) {
                0 => {
                    let length = random.below(400_000);
                    store.set_len(length).unwrap();
                    model.resize(length as usize, 0);
                }
                1..12 => {
                    let bytes = random.bytes(length);
                    store.write_at(offset, &bytes).unwrap();
                    model[offset as usize..][..length].copy_from_slice(&bytes);
                }
                _ => {
                    let bytes = read(&store, offset, length).unwrap();
                    assert!(bytes == model[offset as usize..][..length], "{length} bytes at {offset}");
                }
            }
            assert!(store.counts().compressed_bytes <= pool);
        }
        assert!(read(&store, 0, model.len()).unwrap() == model);
    }
}

/// Each thread has bytes of its own, whose ends share blocks with those of its neighbours.
#[test]
fn threads_that_write_beside_each_other_lose_nothing() {
    const THREADS: u64 = 4;
    const OWN_BYTES: u64 = 50_001;
    for pool in POOLS {
        let store = swap(THREADS * OWN_BYTES, pool, None);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random(thread + 77);
                    let begin = thread * OWN_BYTES;
                    let mut model = vec![0u8; OWN_BYTES as usize];
                    for _ in 0..1500 {
                        // The ends, where the neighbours are, often.
                        let at = match random.below(4) {
                            0 => random.below(3000),
                            1 => OWN_BYTES - random.below(3000),
                            _ => random.below(OWN_BYTES),
                        };
                        let length = random.length().min((OWN_BYTES - at) as usize);
                        let own = at as usize..at as usize + length;
                        if random.below(2) == 0 {
                            let bytes = random.bytes(length);
                            store.write_at(begin + at, &bytes).unwrap();
                            model[own].copy_from_slice(&bytes);
                        } else {
                            let bytes = read(store, begin + at, length).unwrap();
                            assert!(bytes == model[own], "{length} bytes at {at} of thread {thread}");
                        }
                        assert!(store.counts().compressed_bytes <= pool);
                    }
                });
            }
        });
    }
}

/// A block that says which one it is and which version; some compress, some do not.
fn stamped(block: u64, version: u64) -> Vec<u8> {
    let mut bytes = match version % 3 {
        0 => noise(block * 1_000_000 + version, BLOCK_BYTES),
        _ => vec![version as u8; BLOCK_BYTES],
    };
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    bytes
}

#[test]
fn a_read_beside_a_write_gives_one_whole_version_of_the_right_block() {
    const BLOCKS: u64 = 24;
    for pool in POOLS {
        let store = swap(BLOCKS * BLOCK, pool, None);
        for block in 0..BLOCKS {
            store.write_at(block * BLOCK, &stamped(block, 1)).unwrap();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|thread| {
                    let (store, done) = (&store, &done);
                    scope.spawn(move || {
                        let mut random = Random(thread);
                        let mut reads = 0;
                        while !done.load(Ordering::Relaxed) || reads < 100 {
                            let first = random.below(BLOCKS);
                            let count = (1 + random.below(6)).min(BLOCKS - first);
                            let bytes = read(store, first * BLOCK, count as usize * BLOCK_BYTES).unwrap();
                            for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
                                let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                                assert!(bytes == stamped(block, version), "block {block}, {version}");
                            }
                            reads += 1;
                        }
                    })
                })
                .collect();
            let writers: Vec<_> = (0..3)
                .map(|thread| {
                    let store = &store;
                    scope.spawn(move || {
                        let mut random = Random(100 + thread);
                        for i in 0..3000 {
                            let first = random.below(BLOCKS);
                            let count = (1 + random.below(4)).min(BLOCKS - first);
                            let bytes: Vec<u8> =
                                (first..first + count).flat_map(|b| stamped(b, i * 3 + thread)).collect();
                            store.write_at(first * BLOCK, &bytes).unwrap();
                        }
                    })
                })
                .collect();
            let written: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::Relaxed);
            assert!(written.iter().all(std::result::Result::is_ok));
            assert!(readers.into_iter().all(|reader| reader.join().is_ok()));
        });
        let counts = store.counts();
        assert_eq!(counts.blocks_compressed + counts.blocks_in_file, BLOCKS);
        assert!(counts.compressed_bytes <= pool);
    }
}

#[test]
fn a_write_beside_a_shrink_leaves_nothing_behind_the_end() {
    for pool in [0, 1 << 20] {
        let store = swap(10 * BLOCK, pool, None);
        for round in 0..300u64 {
            let cut = 2 * BLOCK + round * 11;
            std::thread::scope(|scope| {
                let store = &store;
                scope.spawn(move || {
                    for i in 0..4 {
                        match store.write_at(BLOCK, &stamped(round, i).repeat(8)) {
                            Ok(()) | Err(StoreError::BeyondEnd { .. }) => {}
                            Err(e) => panic!("{e}"),
                        }
                    }
                });
                store.set_len(cut).unwrap();
            });
            store.set_len(10 * BLOCK).unwrap();
            let behind = read(&store, cut, (10 * BLOCK - cut) as usize).unwrap();
            assert!(behind.iter().all(|byte| *byte == 0), "round {round}");
        }
    }
}

#[test]
fn slots_are_used_again() {
    const BLOCKS: usize = 4096;
    // Room for what is there and what is under way, not for a second copy.
    let store = swap(BLOCKS as u64 * BLOCK, 0, Some((BLOCKS as u64 + 256) * BLOCK));
    for round in 0..50 {
        let bytes = noise(round, 256 * BLOCK_BYTES);
        for offset in (0..BLOCKS as u64 * BLOCK).step_by(bytes.len()) {
            store.write_at(offset, &bytes).unwrap();
        }
    }
    let counts = store.counts();
    assert_eq!(counts.blocks_in_file, BLOCKS as u64);
    assert!(counts.file_bytes <= (BLOCKS as u64 + 256 + 64) * BLOCK, "{}", counts.file_bytes);
}

#[test]
fn scattered_slots_are_used_again() {
    const BLOCKS: u64 = 1024;
    let store = swap(BLOCKS * BLOCK, 0, None);
    let mut random = Random(5);
    for round in 0..20 * BLOCKS {
        let count = (1 + random.below(8)).min(BLOCKS);
        let first = random.below(BLOCKS - count + 1);
        store.write_at(first * BLOCK, &noise(round, count as usize * BLOCK_BYTES)).unwrap();
    }
    let counts = store.counts();
    let slack = BLOCKS / 8 + 256 + 64;
    assert!(counts.file_bytes <= (counts.blocks_in_file + slack) * BLOCK, "{counts:?}");
}

#[test]
fn memory_stays_bounded_while_threads_write() {
    const POOL: u64 = 100_000;
    let store = swap(1 << 30, POOL, None);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..200u64 {
                    let offset = (thread * 200 + i) * 16 * BLOCK;
                    store.write_at(offset, &vec![i as u8 | 1; 16 * BLOCK_BYTES]).unwrap();
                    let counts = store.counts();
                    assert!(counts.compressed_bytes <= POOL, "{counts:?}");
                }
            });
        }
    });
    let counts = store.counts();
    assert_eq!(counts.blocks_compressed + counts.blocks_in_file, 4 * 200 * 16);
    assert!(counts.compressed_bytes > POOL / 2, "and is made use of: {counts:?}");
}

#[test]
fn a_full_file_fails_the_write_and_nothing_else() {
    let old: Vec<u8> = (0..8).flat_map(|block| stamped(block, 3)).collect();
    for pool in [0, 4096] {
        let store = swap(100 * BLOCK, pool, Some(10 * BLOCK));
        store.write_at(0, &old).unwrap();
        // New blocks, the same ones, and more than there can ever be.
        for (block, count) in [(50, 3), (0, 3), (0, 8), (20, 80)] {
            let error = store.write_at(block * BLOCK, &noise(9, count * BLOCK_BYTES)).unwrap_err();
            assert!(matches!(error, StoreError::Io { .. }), "{error}");
            assert_eq!(error.errno(), rustix::io::Errno::NOSPC.raw_os_error());
            assert!(read(&store, 0, old.len()).unwrap() == old, "the old bytes are there");
        }
        assert_eq!(read(&store, 20 * BLOCK, 10).unwrap(), [0; 10], "and the new ones are not");
        store.write_at(50 * BLOCK, &noise(1, 2 * BLOCK_BYTES)).unwrap();
        store.write_at(0, &[0; 4 * BLOCK_BYTES]).unwrap();
        store.write_at(60 * BLOCK, &noise(2, 4 * BLOCK_BYTES)).unwrap();
        assert_eq!(read(&store, 60 * BLOCK, 4 * BLOCK_BYTES).unwrap(), noise(2, 4 * BLOCK_BYTES));
    }
}

#[test]
fn a_full_pool_before_a_full_file_loses_nothing() {
    let store = swap(1 << 20, 8 << 10, Some(2 * BLOCK));
    let mut written = Vec::new();
    for block in 0..256 {
        match store.write_at(block * BLOCK, &stamped(block, 1)) {
            Ok(()) => written.push(block),
            Err(e) => assert_eq!(e.errno(), rustix::io::Errno::NOSPC.raw_os_error(), "{e}"),
        }
    }
    assert!((20..200).contains(&written.len()), "{}", written.len());
    for block in &written {
        assert!(read(&store, block * BLOCK, BLOCK_BYTES).unwrap() == stamped(*block, 1));
        store.write_at(block * BLOCK, &stamped(*block, 4)).unwrap();
        assert!(read(&store, block * BLOCK, BLOCK_BYTES).unwrap() == stamped(*block, 4));
    }
}
