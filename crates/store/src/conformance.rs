//! What every store must pass; for stores outside this crate too.
//!
//! The functions panic where the contract is broken, and say which part of it: call them from tests.

use crate::{AlignedBytes, BackingStore, ReadAt, Result, StoreError, Writability, WriteAt};

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
    check_read_each(store, &expected);
    check_chunks(store);
    check_parallel(store, &expected);
    assert_eq!(store.version(), store.version(), "the version stays while nobody writes");
    if store.writability() == Writability::ReadOnly {
        assert!(matches!(store.write_at(0, &[]), Err(StoreError::ReadOnly)), "a write to a read-only store");
        let together = write_together(store, &[(0, vec![]), (0, vec![])]);
        let refused = together.iter().all(|outcome| matches!(outcome, Err(StoreError::ReadOnly)));
        assert!(refused, "writes to a read-only store: {together:?}");
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
    check_write_each(store, &mut model);
    store.sync().expect("sync");
    let cut = length / 2 + 5;
    store.set_len(cut).expect("shrink");
    store.set_len(length).expect("grow again");
    model[cut as usize..].fill(0);
    check_read(store, |at| model[at as usize]);
}

/// Checks writes that are made together: of whole blocks and of parts, of neighbours and of what lies apart, of a block that
/// several share; and one of them alone fails.
fn check_write_each(store: &dyn BackingStore, model: &mut [u8]) {
    let length = model.len() as u64;
    let together: [&[(u64, usize)]; 6] = [
        &[],
        &[(20480, 4096)],
        &[(4096, 4096), (8192, 4096), (40960, 8192), (65536, 4096), (length - 17, 17)],
        &[(131072, 4096), (65536, 8192), (0, 4096)],
        &[(0, 10), (10, 20), (100, 4000), (5000, 1), (12000, 300), (12288, 0), (16384, 4096)],
        &[(8192, 4096), (length - 1, 2), (length, 1), (u64::MAX - 1, 8), (12288, 100), (length, 0)],
    ];
    for (i, ranges) in together.into_iter().enumerate() {
        let byte = |offset: u64, j: usize| (i * 37 + j * 5) as u8 ^ (offset >> 3) as u8;
        let bytes = |offset, count| (0..count).map(|j| byte(offset, j)).collect();
        let writes: Vec<(u64, Vec<u8>)> = ranges.iter().map(|&(at, count)| (at, bytes(at, count))).collect();
        for ((offset, bytes), outcome) in writes.iter().zip(write_together(store, &writes)) {
            let fits = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= length);
            let right =
                if fits { outcome.is_ok() } else { matches!(outcome, Err(StoreError::BeyondEnd { .. })) };
            assert!(right, "of {ranges:?} the write at {offset} of {length}: {outcome:?}");
            if fits {
                model[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        check_range(store, &|at| model[at as usize], 0, length as usize);
    }
}

/// Makes several writes together; the outcome of each.
fn write_together(store: &dyn BackingStore, writes: &[(u64, Vec<u8>)]) -> Vec<Result<()>> {
    let mut outcomes: Vec<Option<Result<()>>> = writes.iter().map(|_| None).collect();
    // As the engine writes.
    let buffers: Vec<AlignedBytes> = writes.iter().map(|(_, bytes)| AlignedBytes::from(&bytes[..])).collect();
    let writes: Vec<WriteAt<'_>> =
        writes.iter().zip(&buffers).map(|(&(offset, _), buffer)| WriteAt { offset, bytes: buffer }).collect();
    store.write_each(&writes, &mut |number, outcome| {
        let before = outcomes[number].replace(outcome);
        assert!(before.is_none(), "the outcome of write {number} of {} is told once", writes.len());
    });
    let told = |(number, outcome): (usize, Option<Result<()>>)| {
        outcome.unwrap_or_else(|| panic!("the outcome of write {number} of {} is told", writes.len()))
    };
    outcomes.into_iter().enumerate().map(told).collect()
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
    for awaited in [false, true] {
        bytes[..wanted].fill(0);
        let got = if awaited {
            store.read_awaited(offset, bytes, &mut |_| {})
        } else {
            store.read_at(offset, bytes)
        };
        let got = got.unwrap_or_else(|e| panic!("read of {length} bytes at {offset}: {e}"));
        assert_eq!(
            got,
            wanted,
            "a read of {length} bytes at {offset} of {} gives what is there",
            store.len()
        );
        for (i, byte) in bytes[..wanted].iter().enumerate() {
            let at = offset + i as u64;
            assert_eq!(*byte, expected(at), "the byte at {at}, read with {length} bytes from {offset}");
        }
    }
}

/// Reads that are made together: of whole blocks, of parts of them, and over the end.
fn check_read_each(store: &dyn BackingStore, expected: &impl Fn(u64) -> u8) {
    let length = store.len();
    let blocks: Vec<(u64, usize)> = (0..70).map(|i| (i * 5 % 64 * 4096, 4096)).collect();
    let odd =
        [(0, 10), (4096, 4096), (length / 2 + 1, 5000), (length.saturating_sub(3), 4096), (length + 7, 1)];
    for reads in [&[][..], &blocks[..1], &blocks, &odd] {
        // As the engine reads.
        let mut buffers: Vec<AlignedBytes> =
            reads.iter().map(|(_, count)| AlignedBytes::new(*count)).collect();
        let mut told: Vec<Option<usize>> = vec![None; reads.len()];
        let mut together: Vec<ReadAt<'_>> =
            reads.iter().zip(&mut buffers).map(|(&(offset, _), into)| ReadAt { offset, into }).collect();
        store.read_each(&mut together, &mut |number, outcome| {
            let got = outcome.unwrap_or_else(|e| panic!("read {number} of {reads:?}: {e}"));
            assert!(told[number].replace(got).is_none(), "the outcome of read {number} is told once");
        });
        for ((&(offset, count), bytes), got) in reads.iter().zip(&buffers).zip(told) {
            let wanted = (count as u64).min(length.saturating_sub(offset)) as usize;
            assert_eq!(got, Some(wanted), "a read of {count} bytes at {offset} of {length}, with others");
            let right = |(i, byte): (usize, &u8)| *byte == expected(offset + i as u64);
            assert!(bytes[..wanted].iter().enumerate().all(right), "the bytes at {offset}, read with others");
        }
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
