//! What a store does not take is told, and not lost.

use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use omnimap::posix::{MapFlags, Prot, mmap, munmap};
use omnimap::store::{
    Counting, Decorator, Faulty, FileStore, MemoryStore, Misbehaviour, StoreError, Throttle, Throttled,
    Writability, WriteAt,
};
use omnimap::{BackingStore, Error, MapOptions, MappingMut, SyncMode};
use omnimap_testkit::{Prng, skip_without_mappings, within};

const LIMIT: Duration = Duration::from_secs(120);

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

/// Keeps what was written apart from what is durable. A sync that fails forgets what it should have made durable, as the
/// kernel does, and the next one says that all is well.
struct Lying {
    length: u64,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
    /// Requests until one fails.
    countdown: Option<u64>,
    failed: u64,
}

impl Lying {
    fn new(length: u64, countdown: Option<u64>) -> Lying {
        let bytes = vec![0; length as usize];
        let state = State { durable: bytes.clone(), bytes, pending: Vec::new(), countdown, failed: 0 };
        Lying { length, state: Mutex::new(state) }
    }

    fn durable(&self) -> Vec<u8> {
        self.state.lock().unwrap().durable.clone()
    }
}

impl State {
    fn fails(&mut self) -> bool {
        let Some(left) = &mut self.countdown else { return false };
        let now = *left == 0;
        *left = left.wrapping_sub(1);
        if now {
            self.countdown = None;
            self.failed += 1;
        }
        now
    }
}

fn no_space(action: &'static str) -> StoreError {
    StoreError::Io { action, length: 0, source: io::Error::from_raw_os_error(28) }
}

impl BackingStore for Lying {
    fn name(&self) -> &str {
        "lying"
    }
    fn len(&self) -> u64 {
        self.length
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap::store::Result<usize> {
        let state = self.state.lock().unwrap();
        let count = into.len().min((self.length - offset) as usize);
        into[..count].copy_from_slice(&state.bytes[offset as usize..][..count]);
        Ok(count)
    }
    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> omnimap::store::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.fails() {
            return Err(no_space("write"));
        }
        state.bytes[offset as usize..][..from.len()].copy_from_slice(from);
        state.pending.push((offset, from.to_vec()));
        Ok(())
    }
    fn sync(&self) -> omnimap::store::Result<()> {
        let mut state = self.state.lock().unwrap();
        let pending = std::mem::take(&mut state.pending);
        if state.fails() {
            return Err(no_space("sync"));
        }
        for (offset, bytes) in pending {
            state.durable[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

/// Whatever request fails, a sync that says Ok has made everything durable, and one that can does in the end.
#[test]
fn e1_a_failure_at_any_single_write_or_sync_is_told_or_harmless() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let mut countdown = 0;
        loop {
            let store = Arc::new(Lying::new(64 * page() - 100, Some(countdown)));
            history(&store, countdown);
            let failed = store.state.lock().unwrap().failed;
            if failed == 0 {
                break; // The history has no more requests.
            }
            countdown += 1;
        }
        assert!(countdown > 40, "only {countdown} requests could fail");
    });
}

fn history(store: &Arc<Lying>, seed: u64) {
    let mut mapping = MapOptions::new().budget(16 * page()).map_mut(store.clone()).unwrap();
    let mut expected = vec![0u8; mapping.len()];
    let mut random = Prng::new(seed / 7);
    for _ in 0..5 {
        for _ in 0..20 {
            let at = random.below(expected.len() as u64) as usize;
            let byte = random.next_u64() as u8;
            mapping[at] = byte;
            expected[at] = byte;
        }
        if mapping.sync().is_ok() {
            assert!(store.durable() == expected, "request {seed} failed, and the sync said nothing");
        }
        assert!(*mapping == *expected, "request {seed} failed, and bytes were lost");
    }
    // At most one more sync has something to tell.
    let told = mapping.sync();
    if told.is_err() {
        mapping.sync().unwrap();
    }
    assert!(
        store.durable() == expected,
        "request {seed} failed, and the next syncs did not mend it: {told:?}"
    );
}

/// Whose first sync waits until it may fail.
struct Held {
    inner: Lying,
    entered: Barrier,
    released: Barrier,
    syncs: AtomicU64,
}

impl Decorator for Held {
    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }
    fn sync(&self) -> omnimap::store::Result<()> {
        if self.syncs.fetch_add(1, Ordering::Relaxed) == 0 {
            self.entered.wait();
            self.released.wait();
            self.inner.state.lock().unwrap().countdown = Some(0);
        }
        self.inner.sync()
    }
}

#[test]
fn e1_what_is_written_while_a_sync_fails_is_written_again() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let store = Arc::new(Held {
            inner: Lying::new(16 * page(), None),
            entered: Barrier::new(2),
            released: Barrier::new(2),
            syncs: AtomicU64::new(0),
        });
        let mapping = MapOptions::new().map_shared_mut(store.clone()).unwrap();
        mapping.write_at(0, &[1]).unwrap();
        std::thread::scope(|scope| {
            let fails = scope.spawn(|| mapping.sync());
            store.entered.wait();
            mapping.write_at(9 * page(), &[2]).unwrap();
            mapping.sync_range(9 * page()..10 * page(), SyncMode::Start).unwrap();
            while mapping.dirty_bytes() > 0 {
                std::thread::yield_now();
            }
            store.released.wait();
            fails.join().unwrap().unwrap_err();
        });
        mapping.sync().unwrap();
        let durable = store.inner.durable();
        assert_eq!((durable[0], durable[9 * page() as usize]), (1, 2));
    });
}

#[test]
fn e1_a_failed_write_back_is_told_by_the_next_sync_and_cleared_by_one_that_succeeds() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let memory = Arc::new(MemoryStore::writable("index.bin", vec![0; (64 * page()) as usize]));
        let faulty = Arc::new(Faulty::new(memory.clone()));
        let mut mapping = MapOptions::new().map_mut(faulty.clone()).unwrap();
        faulty.on_write(0..u64::MAX, Misbehaviour::Fail, 1);
        mapping[(3 * page()) as usize] = 1;
        mapping.sync_range(0..64 * page(), SyncMode::Start).unwrap();
        while mapping.stats().write_backs_failed == 0 {
            std::thread::yield_now();
        }
        assert_eq!(mapping[(3 * page()) as usize], 1, "readable still");
        let told = mapping.sync().unwrap_err();
        let text = told.to_string();
        assert!(
            text.contains("index.bin") && text.contains(&(3 * page()).to_string()) && text.contains("write"),
            "{text}"
        );
        assert_eq!(told.errno(), 5);
        mapping.sync().unwrap();
        let mut byte = [0];
        memory.read_at(3 * page(), &mut byte).unwrap();
        assert_eq!(byte, [1]);
    });
}

/// A store that takes nothing any more: what is in memory stays, and what there is no room for is an error.
#[test]
fn e1_no_room_because_nothing_can_be_written_is_an_error_and_heals() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let memory = Arc::new(MemoryStore::writable("full", vec![0; (256 * page()) as usize]));
        let faulty = Arc::new(Faulty::new(memory.clone()));
        let mut options = MapOptions::new();
        let shared = options
            .budget(16 * page())
            .fill_time_max(Duration::from_secs(3))
            .map_shared_mut(faulty.clone())
            .unwrap();
        faulty.on_write(0..u64::MAX, Misbehaviour::Fail, u64::MAX);
        let mut written = 0;
        let error = loop {
            match shared.write_at(written * page(), &[1; 8]) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoRoomUnwritable { .. }), "{error}");
        assert!((8..=16).contains(&written), "{written} pages");
        for i in 0..written {
            assert_eq!(
                shared.read::<u64>(i * page()).unwrap(),
                0x0101_0101_0101_0101,
                "page {i} is readable"
            );
        }
        faulty.heal();
        for i in written..256 {
            shared.write_at(i * page(), &[1; 8]).unwrap();
        }
        let _told = shared.sync();
        shared.sync().unwrap();
        for i in 0..256 {
            let mut bytes = [0; 8];
            memory.read_at(i * page(), &mut bytes).unwrap();
            assert_eq!(bytes, [1; 8], "page {i}");
        }
    });
}

#[test]
fn a_store_that_panics_or_writes_half_loses_nothing() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        for misbehaviour in [Misbehaviour::Panic, Misbehaviour::Short] {
            let memory = Arc::new(MemoryStore::writable("half", vec![0; (8 * page()) as usize]));
            let faulty = Arc::new(Faulty::new(memory.clone()));
            let mut mapping = MapOptions::new().map_mut(faulty.clone()).unwrap();
            mapping.fill(7);
            faulty.on_write(0..u64::MAX, misbehaviour, 1);
            mapping.sync().unwrap_err();
            assert!(mapping.iter().all(|byte| *byte == 7));
            mapping.sync().unwrap();
            let mut bytes = vec![0; (8 * page()) as usize];
            memory.read_at(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    });
}

/// Stores everything, and is careless in what it says of writes that are made together.
struct Careless {
    memory: MemoryStore,
    says: Says,
    /// Calls that are answered as they should be, after the first.
    calls: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    Nothing,
    /// And then panics.
    TheFirst,
    /// Of writes that there are not, too, and of each first that it succeeded and then that it failed.
    TooMuch,
}

impl BackingStore for Careless {
    fn name(&self) -> &str {
        "careless"
    }
    fn len(&self) -> u64 {
        self.memory.len()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> omnimap::store::Result<usize> {
        self.memory.read_at(offset, into)
    }
    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> omnimap::store::Result<()> {
        self.memory.write_at(offset, from)
    }
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, omnimap::store::Result<()>)) {
        if self.calls.fetch_add(1, Ordering::SeqCst) > 0 {
            return self.memory.write_each(writes, written);
        }
        match self.says {
            Says::Nothing => {}
            Says::TheFirst => {
                self.memory.write_at(writes[0].offset, writes[0].bytes).unwrap();
                written(0, Ok(()));
                panic!("as it does");
            }
            Says::TooMuch => {
                self.memory.write_each(writes, written);
                (0..writes.len() + 2).for_each(|number| written(number, Err(no_space("write"))));
            }
        }
    }
    fn sync(&self) -> omnimap::store::Result<()> {
        Ok(())
    }
}

#[test]
fn e1_what_a_store_does_not_say_of_a_write_counts_as_its_failure() {
    if skip_without_mappings() {
        return;
    }
    for says in [Says::Nothing, Says::TheFirst, Says::TooMuch] {
        within(LIMIT, move || {
            let memory = MemoryStore::writable("careless", vec![0; (64 * page()) as usize]);
            let store = Arc::new(Careless { memory, says, calls: AtomicU64::new(0) });
            let mut mapping = MapOptions::new().map_mut(store.clone()).unwrap();
            for index in [3, 5, 8] {
                mapping[(index * page()) as usize] = index as u8;
            }
            let (told, dirty) = (mapping.sync(), mapping.dirty_bytes() / page());
            let expected = match says {
                Says::Nothing => (true, 3),
                Says::TheFirst => (true, 2),
                Says::TooMuch => (false, 0),
            };
            assert_eq!((told.is_err(), dirty), expected, "{says:?}: {told:?}");
            mapping.sync().unwrap();
            assert_eq!(mapping.dirty_bytes(), 0);
            for index in [3, 5, 8] {
                let mut byte = [0];
                store.read_at(index * page(), &mut byte).unwrap();
                assert_eq!(byte, [index as u8], "{says:?}");
            }
        });
    }
}

#[test]
fn resize_through_the_mapping() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("grows");
    std::fs::write(&path, b"start").unwrap();
    within(LIMIT, move || {
        let mut mapping = MapOptions::new().budget(32 * page()).open_mut(&path).unwrap();
        mapping.resize(100 * page() + 7).unwrap();
        assert_eq!(mapping.len() as u64, 100 * page() + 7);
        assert!(mapping[5..].iter().all(|byte| *byte == 0));
        mapping.fill(3);
        mapping.resize(2 * page() + 5).unwrap();
        assert_eq!(mapping.len() as u64, 2 * page() + 5);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * page() + 5);
        mapping.resize(50 * page()).unwrap();
        let kept = (2 * page() + 5) as usize;
        assert!(mapping[..kept].iter().all(|byte| *byte == 3), "what was left stays");
        assert!(mapping[kept..].iter().all(|byte| *byte == 0), "what was cut off comes back as zeros");
        mapping[(40 * page()) as usize] = 9;
        mapping.sync().unwrap();
        drop(mapping);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, 50 * page());
        assert!(
            bytes[..kept].iter().all(|b| *b == 3) && bytes[kept] == 0 && bytes[(40 * page()) as usize] == 9
        );

        let shared = MapOptions::new().reserve(64 * page()).open_shared_mut(&path).unwrap();
        let threads = std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..1000u64).all(|i| shared.write(i % 40 * page(), &i).is_ok()));
            for i in 0..20 {
                shared.resize((45 + i % 2 * 15) * page()).unwrap();
            }
            writer.join().unwrap()
        });
        assert!(threads && shared.len() == 60 * page());
        assert!(shared.cells()[55 * page() as usize].load(std::sync::atomic::Ordering::Relaxed) == 0);
    });
}

#[test]
fn a_shrunk_object_takes_its_dirty_pages_and_its_budget_along() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let inner = Arc::new(MemoryStore::writable("cut", vec![0; (64 * page()) as usize]));
        let store = Arc::new(Counting::new(inner));
        let mut mapping = MapOptions::new().budget(64 * page()).map_mut(store.clone()).unwrap();
        mapping.fill(1);
        mapping.resize(10 * page()).unwrap();
        assert!(mapping.dirty_bytes() <= 10 * page());
        assert!(mapping.kernel_resident_bytes().unwrap() <= 10 * page());
        mapping.sync().unwrap();
        assert_eq!(store.len(), 10 * page());
        mapping.resize(64 * page()).unwrap();
        mapping[(50 * page()) as usize] = 1;
        let sum: u64 = mapping.iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(sum, 10 * page() + 1);
    });
}

#[test]
fn snapshots_stay_while_writing_goes_on() {
    if skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let length = 200 * page() + 9;
        let store = Arc::new(MemoryStore::writable("live", vec![1; length as usize]));
        let mut mapping = MapOptions::new().budget(48 * page()).map_mut(store).unwrap();
        let mut random = Prng::new(5);
        let mut models: Vec<(omnimap::Mapping, Vec<u8>)> = Vec::new();
        let mut now = vec![1u8; length as usize];
        for round in 0..6 {
            for _ in 0..150 {
                let at = random.below(length) as usize;
                now[at] = random.next_u64() as u8;
                mapping[at] = now[at];
            }
            mapping.write_at(length - 9, &[round; 9]).unwrap();
            now[length as usize - 9..].fill(round);
            models.push((mapping.snapshot().unwrap(), now.clone()));
            if round == 3 {
                mapping.sync().unwrap();
                models.remove(0);
            }
            for (snapshot, then) in &models {
                for _ in 0..100 {
                    let at = random.below(length) as usize;
                    assert_eq!(snapshot[at], then[at], "round {round}, at {at}");
                }
            }
        }
        assert!(matches!(mapping.resize(5), Err(Error::NotAllowed { .. })));
        drop(mapping);
        for (snapshot, then) in &models {
            assert!(**snapshot == **then, "a snapshot outlives its mapping");
        }
    });
}

#[test]
fn a_mapping_that_is_leaked_is_written_at_exit() {
    if skip_without_mappings() {
        return;
    }
    let name = "a_mapping_that_is_leaked_is_written_at_exit";
    let path = std::env::temp_dir().join("omnimap-exit-test");
    match omnimap_testkit::in_child(name, LIMIT) {
        None => {
            std::fs::write(&path, vec![0; 10_000]).unwrap();
            let mut mapping = MappingMut::open(&path).unwrap();
            mapping[9_999] = 42;
            std::mem::forget(mapping);
            std::process::exit(0);
        }
        Some(output) => {
            assert!(output.status.success(), "{output:?}");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!((bytes.len(), bytes[9_999]), (10_000, 42));
        }
    }
}

/// A write-back that has begun when the object gets shorter does not bring back what is cut off.
#[test]
fn m21_a_page_that_is_cut_while_it_is_written_back_stays_cut() {
    if skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut");
    std::fs::write(&path, vec![1; 2 * page() as usize]).unwrap();
    within(LIMIT, move || {
        let file = Arc::new(FileStore::open_writable(&path).unwrap());
        let (latency, bytes_per_second_max) = (Duration::from_millis(100), u64::MAX);
        let slow = Throttled::new(file, Throttle { latency, bytes_per_second_max, in_flight_max: 4 });
        let object = MapOptions::new().budget(32 * page()).object_mut(Arc::new(slow)).unwrap();
        object.write_at(0, &vec![7; 2 * page() as usize]).unwrap();
        let room = page() / 2;
        let length = 2 * page() as usize;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start =
            unsafe { mmap(null_mut(), length, Prot::READ, MapFlags::SHARED, &object, 0) }.unwrap() as usize;
        std::thread::scope(|scope| {
            // Writes what is dirty; nobody waits for it but this thread.
            // SAFETY: made above, and used by nobody.
            scope.spawn(move || unsafe { munmap(start as *mut _, length) }.unwrap());
            std::thread::sleep(Duration::from_millis(30)); // It is at its write, most likely.
            object.set_len(page() + room).unwrap();
        });
        assert_eq!(std::fs::metadata(&path).unwrap().len(), page() + room);
        object.set_len(2 * page()).unwrap();
        object.sync().unwrap();
        let stored = std::fs::read(&path).unwrap();
        assert!(stored[..(page() + room) as usize].iter().all(|byte| *byte == 7));
        assert!(stored[(page() + room) as usize..].iter().all(|byte| *byte == 0));
    });
}
