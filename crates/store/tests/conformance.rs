//! Every store and every decorator passes the suite.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use omnimap_store::conformance::{check_read, check_write};
use omnimap_store::{
    BackingStore, Counting, Faulty, FileStore, Format, MemoryStore, PackOptions, Throttle, Throttled,
    Verified, Writability, ZstdStore, open, pack,
};

const LENGTHS: [u64; 7] = [0, 1, 4095, 4096, 70_000, 300_001, 1 << 20];

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8 & 0x1F
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(byte).collect()
}

fn memory(length: u64) -> Arc<dyn BackingStore> {
    Arc::new(MemoryStore::new("memory", bytes(length)))
}

fn packed(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let mut packed = Vec::new();
    let options = PackOptions { chunk_bytes: NonZeroUsize::new(chunk).unwrap(), ..Default::default() };
    pack(bytes, &mut packed, &options, |_| {}).unwrap();
    packed
}

fn file(bytes: &[u8], directory: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in(directory).unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Where direct I/O works, and where it may not.
fn directories() -> Vec<String> {
    let target = std::env::var("CARGO_TARGET_TMPDIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").to_owned());
    [target, "/dev/shm".to_owned()].into_iter().filter(|d| std::path::Path::new(d).is_dir()).collect()
}

#[test]
fn memory_conforms() {
    for length in LENGTHS {
        check_read(&*memory(length), byte);
    }
    check_write(&MemoryStore::writable("memory", vec![1; 10]));
}

#[test]
fn files_conform_direct_and_buffered() {
    for directory in directories() {
        for length in LENGTHS {
            let file = file(&bytes(length), &directory);
            let direct = FileStore::open(file.path()).unwrap();
            if directory != "/dev/shm" && !direct.is_direct() {
                // Past the test runner's capture, which would hide it.
                writeln!(std::io::stderr(), "SKIPPED: direct reads: {directory} does not have them").unwrap();
            }
            check_read(&direct, byte);
            let buffered = FileStore::from_file("buffered", file.reopen().unwrap()).unwrap();
            assert!(!buffered.is_direct());
            check_read(&buffered, byte);
        }
        let file = file(b"old", &directory);
        let store = FileStore::open_writable(file.path()).unwrap();
        assert_eq!(store.writability(), Writability::ReadWrite);
        check_write(&store);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), store.len());
    }
}

#[test]
fn seekable_zstd_conforms_for_chunks_that_are_no_pages() {
    for length in LENGTHS {
        for chunk in [1000, 4096, 65536, 100_000] {
            let inner = Arc::new(MemoryStore::new("packed", packed(&bytes(length), chunk)));
            check_read(&ZstdStore::open(inner).unwrap(), byte);
        }
    }
}

#[test]
fn seekable_zstd_over_a_file_is_found_by_its_magic() {
    let file = file(&packed(&bytes(300_001), 16 << 10), &directories()[0]);
    let store = open(file.path(), Format::Auto).unwrap();
    assert_eq!(store.len(), 300_001);
    check_read(&*store, byte);
    let plain = open(file.path(), Format::Plain).unwrap();
    assert_eq!(plain.len(), std::fs::metadata(file.path()).unwrap().len());
}

#[test]
fn decorators_conform() {
    for length in LENGTHS {
        check_read(&Counting::new(memory(length)), byte);
        check_read(&Verified::new(memory(length)), byte);
        check_read(&Faulty::new(memory(length)), byte);
        let stacked = Verified::new(Arc::new(Counting::new(Arc::new(Faulty::new(memory(length))))));
        check_read(&stacked, byte);
    }
    let writable = || Arc::new(MemoryStore::writable("memory", vec![1; 10]));
    check_write(&Counting::new(writable()));
    check_write(&Verified::new(writable()));
    check_write(&Faulty::new(writable()));
}

#[test]
fn a_slow_parallel_store_conforms() {
    let throttle =
        Throttle { latency: Duration::from_micros(50), bytes_per_second_max: 4 << 30, in_flight_max: 64 };
    check_read(&Throttled::new(memory(300_001), throttle), byte);
}

#[test]
fn a_shared_store_conforms() {
    check_read(&memory(4096), byte);
}

/// The suite must find what it is for: each of these breaks the contract in one way.
mod faults_are_found {
    use super::*;
    use omnimap_store::{Decorator, Result, WriteAt};
    use std::ops::Range;

    struct Wrong {
        inner: Arc<dyn BackingStore>,
        change: fn(u64, &mut [u8], usize) -> usize,
    }
    impl Decorator for Wrong {
        fn inner(&self) -> &dyn BackingStore {
            &self.inner
        }
        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
            let got = self.inner.read_at(offset, into)?;
            Ok((self.change)(offset, into, got))
        }
    }

    fn is_found(change: fn(u64, &mut [u8], usize) -> usize) -> bool {
        let store = Wrong { inner: memory(70_000), change };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_read(&store, byte))).is_err()
    }

    #[test]
    fn wrong_bytes_short_reads_and_reads_past_the_end() {
        assert!(!is_found(|_, _, got| got), "a right store passes");
        assert!(is_found(|at, into, got| {
            if at == 4096 && got > 0 {
                into[got - 1] ^= 1;
            }
            got
        }));
        assert!(is_found(|_, _, got| got.saturating_sub(usize::from(got > 60_000))));
        assert!(is_found(|at, into, got| if at >= 70_000 { into.len() } else { got }));
    }

    type WriteEach = fn(&dyn BackingStore, &[WriteAt<'_>], &mut dyn FnMut(usize, Result<()>));

    struct Together(Arc<dyn BackingStore>, WriteEach);
    impl Decorator for Together {
        fn inner(&self) -> &dyn BackingStore {
            &self.0
        }
        fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
            (self.1)(&self.0, writes, written);
        }
    }

    #[test]
    fn writes_that_are_made_together_and_are_not_made_or_not_told() {
        let is_found = |write_each: WriteEach| {
            let store = Together(Arc::new(MemoryStore::writable("memory", vec![0; 10])), write_each);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_write(&store))).is_err()
        };
        assert!(!is_found(|store, writes, written| store.write_each(writes, written)));
        assert!(is_found(|_, writes, written| (0..writes.len()).for_each(|number| written(number, Ok(())))));
        assert!(is_found(|store, writes, _| store.write_each(writes, &mut |_, _| ())));
        assert!(is_found(|store, writes, written| {
            let last = writes.len().max(1) - 1;
            store.write_each(writes, &mut |number, outcome| written(last - number, outcome));
        }));
        assert!(is_found(|store, writes, written| {
            store.write_each(writes, written);
            if !writes.is_empty() {
                written(0, Ok(()));
            }
        }));
    }

    #[test]
    fn chunks_that_overlap() {
        struct Overlapping(Arc<dyn BackingStore>);
        impl BackingStore for Overlapping {
            fn name(&self) -> &str {
                "overlapping"
            }
            fn len(&self) -> u64 {
                self.0.len()
            }
            fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
                self.0.read_at(offset, into)
            }
            fn chunk_at(&self, offset: u64) -> Range<u64> {
                offset..(offset + 10).min(self.len())
            }
        }
        let found = std::panic::catch_unwind(|| check_read(&Overlapping(memory(70_000)), byte));
        assert!(found.is_err());
    }
}
