//! What is on its way to or from a store, while something else happens.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use omnimap::store::{
    Answers, Counting, Decorator, Faulty, FileStore, MemoryStore, Misbehaviour, StoreError, Transfer, Version,
};
use omnimap::{Advice, BackingStore, Error, MapOptions};
use omnimap_testkit::{pattern, pattern_store, skip_without_kernel_faults, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(300);
const MIB: u64 = 1 << 20;

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

/// Has the bytes of a read, and brings them when it is let.
struct Late {
    file: FileStore,
    reads: AtomicU64,
    let_go: Mutex<bool>,
    changed: Condvar,
}

impl Decorator for Late {
    fn inner(&self) -> &dyn BackingStore {
        &self.file
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap::store::Result<usize> {
        let got = self.file.read_at(offset, into);
        self.reads.fetch_add(1, Ordering::SeqCst);
        let held = self.let_go.lock().unwrap();
        drop(self.changed.wait_while(held, |let_go| !*let_go).unwrap());
        got
    }
}

#[test]
fn bytes_of_before_that_were_under_way_do_not_come_after_an_invalidation() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 4 * page() as usize]).unwrap();
        let store = Arc::new(Late {
            file: FileStore::open_writable(file.path()).unwrap(),
            reads: AtomicU64::new(0),
            let_go: Mutex::new(false),
            changed: Condvar::new(),
        });
        let mapping = MapOptions::new().map_shared_mut(store.clone()).unwrap();
        let ahead = mapping.prefetch(0..page()).unwrap();
        while store.reads.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        std::fs::write(file.path(), vec![2; 4 * page() as usize]).unwrap();
        std::thread::scope(|scope| {
            let invalidating = scope.spawn(|| mapping.invalidate(0..mapping.len()));
            std::thread::sleep(SOON);
            *store.let_go.lock().unwrap() = true;
            store.changed.notify_all();
            invalidating.join().unwrap().unwrap();
        });
        ahead.wait().unwrap();
        assert_eq!(mapping.read::<u8>(0).unwrap(), 2);
    });
}

#[test]
fn who_cuts_off_does_not_wait_for_who_wants_room_behind_the_new_end() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        // The budget is all dirty, of pages before or behind the cut, and for a while it is not tried to write them again.
        for first in [0, 900] {
            let zeros = MemoryStore::writable("zeros", vec![0; 1024 * page() as usize]);
            let store = Arc::new(Faulty::new(Arc::new(zeros)));
            store.on_write(0..1024 * page(), Misbehaviour::Fail, u64::MAX);
            let mapping = MapOptions::new()
                .budget(16 * page())
                .dirty_max(16 * page())
                .fill_time_max(LIMIT / 4)
                .map_shared_mut(store.clone())
                .unwrap();
            (first..first + 16).for_each(|at| mapping.write_at(at * page(), &[1]).unwrap());
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| mapping.write_at(1019 * page(), &[2]));
                while mapping.stats().write_backs_failed == 0 {
                    std::thread::yield_now();
                }
                store.heal();
                let begin = Instant::now();
                mapping.resize(512 * page()).unwrap();
                assert!(begin.elapsed() < LIMIT / 8, "{:?}", begin.elapsed());
                writing.join().unwrap().unwrap_err();
            });
        }
    });
}

#[test]
fn no_time_limit_is_a_limit() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let mapping = MapOptions::new()
            .fill_time_max(Duration::MAX)
            .map(MemoryStore::new("sevens", vec![7; 10_000]))
            .unwrap();
        let mut bytes = [0; 10];
        mapping.read_at(0, &mut bytes).unwrap();
        assert_eq!((bytes, mapping[9_999]), ([7; 10], 7));
    });
}

#[test]
fn a_prefetch_of_what_cannot_be_read_ends_soon() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Faulty::new(Arc::new(pattern_store(2 * MIB))));
        store.on_read(0..2 * MIB, Misbehaviour::Fail, u64::MAX);
        let counted = Arc::new(Counting::new(store));
        let mapping = MapOptions::new().map_shared(counted.clone()).unwrap();
        let error = mapping.prefetch(0..2 * MIB).unwrap().wait().unwrap_err();
        assert!(
            matches!(&error, Error::Read { source, .. } if matches!(**source, StoreError::Io { .. })),
            "{error}"
        );
        let reads = counted.counts().reads;
        assert!(reads < 300, "{reads} reads of {} pages", 2 * MIB / page());
    });
}

#[test]
fn a_sync_does_not_wait_for_what_is_written_at_a_bounded_rate() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = MemoryStore::writable("zeros", vec![0; 4 << 20]);
        let mapping = MapOptions::new()
            .dirty_max(64 << 10)
            .write_back_rate_max(100 << 10)
            .map_shared_mut(Arc::new(store))
            .unwrap();
        mapping.write_at(0, &vec![1; 2 << 20]).unwrap();
        std::thread::sleep(SOON);
        let begin = Instant::now();
        mapping.sync().unwrap();
        // At that rate it would be 20 s.
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    });
}

#[test]
fn the_background_writes_no_faster_than_it_may() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        const RATE: u64 = 2 * MIB;
        let store = Arc::new(Counting::new(Arc::new(MemoryStore::writable("zeros", vec![0; 16 << 20]))));
        let mapping = MapOptions::new()
            .dirty_max(64 << 10)
            .write_back_rate_max(RATE)
            .map_shared_mut(store.clone())
            .unwrap();
        let begin = Instant::now();
        // Apart, so that each write is a short one.
        (0..2048).for_each(|at| mapping.write_at(2 * at * page(), &[1]).unwrap());
        while begin.elapsed() < 3 * SOON {
            let written = store.counts().bytes_written;
            let most = RATE as f64 * begin.elapsed().as_secs_f64() + 32.0 * page() as f64;
            assert!(written as f64 <= most, "{written} bytes in {:?}", begin.elapsed());
            std::thread::sleep(SOON / 30);
        }
        let written = store.counts().bytes_written;
        assert!(written > RATE / 10, "{written}");
    });
}

/// A disk on which every read takes so long that whoever waits is woken before its end.
struct Attended {
    bytes: MemoryStore,
    /// Whether it promises its bytes: if not, they are checked on their way.
    promises: bool,
}

impl BackingStore for Attended {
    fn name(&self) -> &str {
        "attended"
    }
    fn len(&self) -> u64 {
        self.bytes.len()
    }
    fn transfer(&self) -> Transfer {
        Transfer::default().answering(Answers::Promptly)
    }
    fn version(&self) -> Option<Version> {
        self.bytes.version().filter(|_| self.promises)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap::store::Result<usize> {
        self.bytes.read_at(offset, into)
    }
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> omnimap::store::Result<usize> {
        meanwhile(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(5));
        self.bytes.read_at(offset, into)
    }
}

/// How often this thread has slept.
fn sleeps() -> i64 {
    // SAFETY: all zeros are a valid structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: only writes the structure.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }, 0);
    usage.ru_nvcsw
}

#[test]
fn who_is_woken_before_its_page_is_there_waits_for_it() {
    const FAULTS: u64 = 20;
    if skip_without_kernel_faults() {
        return;
    }
    let check = |promises| {
        let store = Attended { bytes: pattern_store(4 * FAULTS * page()), promises };
        let mapping = MapOptions::new().advice(Advice::Random).map(Arc::new(store)).unwrap();
        let before = sleeps();
        for at in (0..FAULTS).map(|index| 2 * index * page() + 7) {
            assert_eq!(mapping[at as usize], pattern(at));
        }
        let sleeps = sleeps() - before;
        assert!(sleeps >= 2 * FAULTS as i64 - 5, "{sleeps} sleeps: nobody was woken early");
        // The kernel's own accesses are woken as well (copy_from_user).
        let mut file = tempfile::tempfile().unwrap();
        let cold = (2 * FAULTS * page()) as usize..mapping.len();
        file.write_all(&mapping[cold.clone()]).unwrap();
        let mut copy = vec![0; cold.len()];
        file.read_exact_at(&mut copy, 0).unwrap();
        assert!((cold.start as u64..).zip(&copy).all(|(at, byte)| *byte == pattern(at)));
    };
    within(LIMIT, move || [true, false].into_iter().for_each(check));
}
