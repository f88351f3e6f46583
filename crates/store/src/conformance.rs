//! What every store must pass; for stores outside this crate too.
//!
//! The functions panic where the contract is broken, and say which part of it: call them from tests.

use crate::{AlignedBytes, BackingStore, StoreError, Writability};

/// Checks all reading, against `expected`, which gives the object's byte at an offset.
///
/// # Panics
/// Where the store breaks the contract of [`BackingStore`].
pub fn check_read(store: &dyn BackingStore, expected: impl Fn(u64) -> u8 + Sync) {
    let length = store.len();
    assert!(!store.name().is_empty(), "a store has a name");
    assert_eq!(store.is_empty(), length == 0, "is_empty agrees with len");
    check_range(store, &expected, 0, 0);
    for length_here in [1, 7, 512, 4096, 4097, 65536, 1 << 20] {
        for start in interesting_offsets(store) {
            check_range(store, &expected, start, length_here);
            check_range(store, &expected, start.saturating_sub(length_here as u64), length_here);
        }
    }
    check_chunks(store);
    check_parallel(store, &expected);
    assert_eq!(store.version(), store.version(), "the version stays while nobody writes");
    if store.writability() == Writability::ReadOnly {
        assert!(matches!(store.write_at(0, &[]), Err(StoreError::ReadOnly)), "a write to a read-only store");
        assert!(matches!(store.set_len(0), Err(StoreError::ReadOnly)), "set_len of a read-only store");
        assert!(matches!(store.sync(), Err(StoreError::ReadOnly)), "sync of a read-only store");
        assert_eq!(store.len(), length, "a refused set_len changes nothing");
    }
}

/// Checks writing on a writable store; what it held is gone afterwards.
///
/// # Panics
/// Where the store breaks the contract of [`BackingStore`].
pub fn check_write(store: &dyn BackingStore) {
    assert_eq!(store.writability(), Writability::ReadWrite, "check_write takes a writable store");
    let length: u64 = 3 * 65536 + 17;
    store.set_len(0).expect("shrink to nothing");
    store.set_len(length).expect("grow");
    assert_eq!(store.len(), length, "set_len changes len");
    let mut model = vec![0u8; length as usize];
    check_read(store, |at| model[at as usize]);
    for (i, (offset, bytes)) in
        [(0, 1), (1, 4096), (4096, 4096), (65535, 2), (8192, 65536), (length - 9, 9), (length, 0)]
            .into_iter()
            .enumerate()
    {
        let written: Vec<u8> = (0..bytes).map(|j| (i * 31 + j * 7 + 1) as u8).collect();
        store.write_at(offset, &written).expect("a write inside the object");
        model[offset as usize..][..bytes].copy_from_slice(&written);
        check_read(store, |at| model[at as usize]);
    }
    for (offset, bytes) in [(length, 1), (length - 1, 2), (u64::MAX - 1, 8)] {
        let outcome = store.write_at(offset, &vec![1; bytes]);
        assert!(
            matches!(outcome, Err(StoreError::BeyondEnd { .. })),
            "a write of {bytes} bytes at {offset} of {length}: {outcome:?}"
        );
    }
    check_read(store, |at| model[at as usize]);
    store.sync().expect("sync");
    let cut = length / 2 + 5;
    store.set_len(cut).expect("shrink");
    store.set_len(length).expect("grow again");
    model[cut as usize..].fill(0);
    check_read(store, |at| model[at as usize]);
}

fn interesting_offsets(store: &dyn BackingStore) -> Vec<u64> {
    let length = store.len();
    let mut offsets = vec![0, 1, 511, 4095, 4096, 4097, 65536, length / 3, length / 2];
    offsets.extend([length.saturating_sub(4097), length.saturating_sub(1)]);
    for at in [0, length / 2] {
        if at < length {
            let chunk = store.chunk_at(at);
            offsets.extend([chunk.start.saturating_sub(1), chunk.start, chunk.end - 1, chunk.end]);
        }
    }
    offsets.extend([length, length + 1, length + (1 << 40), u64::MAX - (1 << 21), u64::MAX]);
    offsets
}

fn check_range(store: &dyn BackingStore, expected: &impl Fn(u64) -> u8, offset: u64, length: usize) {
    // As a page cache reads, and as anybody may.
    let mut aligned = AlignedBytes::new(length);
    check_read_into(store, expected, offset, &mut aligned);
    check_read_into(store, expected, offset, &mut vec![0; length + 1][1..]);
}

fn check_read_into(store: &dyn BackingStore, expected: &impl Fn(u64) -> u8, offset: u64, bytes: &mut [u8]) {
    let length = bytes.len();
    let wanted = (length as u64).min(store.len().saturating_sub(offset)) as usize;
    let got = store.read_at(offset, bytes);
    let got = got.unwrap_or_else(|e| panic!("read of {length} bytes at {offset}: {e}"));
    assert_eq!(got, wanted, "a read of {length} bytes at {offset} of {} gives what is there", store.len());
    for (i, byte) in bytes[..wanted].iter().enumerate() {
        let at = offset + i as u64;
        assert_eq!(*byte, expected(at), "the byte at {at}, read with {length} bytes from {offset}");
    }
}

/// Chunks cover the object without gap or overlap.
fn check_chunks(store: &dyn BackingStore) {
    for at in interesting_offsets(store) {
        if at < store.len() {
            let chunk = store.chunk_at(at);
            assert!(chunk.contains(&at), "chunk {chunk:?} holds {at}");
            assert!(chunk.end <= store.len(), "chunk {chunk:?} ends inside the object ({})", store.len());
            assert_eq!(store.chunk_at(chunk.start), chunk, "all bytes of a chunk have the same chunk");
            assert_eq!(store.chunk_at(chunk.end - 1), chunk, "all bytes of a chunk have the same chunk");
        }
    }
}

fn check_parallel(store: &dyn BackingStore, expected: &(impl Fn(u64) -> u8 + Sync)) {
    const THREADS: u64 = 8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for i in 0..16u64 {
                    let offset = (i * THREADS + thread) * 7919 % store.len().max(1);
                    check_range(store, expected, offset, 3000);
                }
            });
        }
    });
}
