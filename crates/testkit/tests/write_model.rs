//! Writing on the simulated machine: stores, eviction, write-back, sync and snapshots in many interleavings.
//!
//! With ordinary threads this is a small test; `cargo xtask model` runs it under shuttle.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use omnimap_core::{CacheOptions, MappedView, PageCache};
use omnimap_host::{Address, Use};
use omnimap_store::{Answers, BackingStore, Result, StoreError, Transfer, Writability, WriteAt};
use omnimap_testkit::{Outcome, SimulatedHost, explore, thread};

const PAGE: u64 = 16;
const BUDGET_PAGES: u64 = CacheOptions::BUDGET_PAGES_MIN;
const OBJECT_PAGES: u64 = 20;
const LENGTH: u64 = OBJECT_PAGES * PAGE - 5;

/// Bytes in memory; others may run in every call. Fails as long as it is told to.
struct Store {
    bytes: Mutex<Vec<u8>>,
    /// What was durable at the last sync.
    durable: Mutex<Vec<u8>>,
    atomic: bool,
    fails: AtomicBool,
    syncs: AtomicU64,
}

impl Store {
    fn new(atomic: bool) -> Store {
        let bytes = vec![0; LENGTH as usize];
        Store {
            bytes: Mutex::new(bytes.clone()),
            durable: Mutex::new(bytes),
            atomic,
            fails: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
        }
    }

    fn check(&self) -> Result<()> {
        thread::yield_now();
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Corrupt { what: "as told".to_owned() });
        }
        Ok(())
    }

    fn durable(&self) -> Vec<u8> {
        self.durable.lock().unwrap().clone()
    }
}

impl BackingStore for Store {
    fn name(&self) -> &str {
        "model"
    }
    fn len(&self) -> u64 {
        LENGTH
    }
    fn transfer(&self) -> Transfer {
        Transfer::new(4 * PAGE as usize, 4).answering(Answers::Promptly)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.check()?;
        let bytes = self.bytes.lock().unwrap();
        let count = into.len().min(bytes.len() - offset as usize);
        into[..count].copy_from_slice(&bytes[offset as usize..][..count]);
        Ok(count)
    }
    /// Takes so long that whoever waits is woken before.
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        meanwhile(Duration::from_secs(1));
        thread::yield_now();
        self.read_at(offset, into)
    }
    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.check()?;
        assert!(offset + from.len() as u64 <= LENGTH, "nothing is written behind the end");
        self.bytes.lock().unwrap()[offset as usize..][..from.len()].copy_from_slice(from);
        thread::yield_now();
        Ok(())
    }
    fn write_each(&self, writes: &[WriteAt<'_>], written: &mut dyn FnMut(usize, Result<()>)) {
        // Where it is atomic, as a journal does: nothing is told before everything is written.
        let mut outcomes: Vec<(usize, Result<()>)> = Vec::new();
        for (number, write) in writes.iter().enumerate() {
            let outcome = self.write_at(write.offset, write.bytes);
            if self.atomic {
                outcomes.push((number, outcome));
            } else {
                written(number, outcome);
            }
        }
        outcomes.into_iter().rev().for_each(|(number, outcome)| written(number, outcome));
    }
    fn sync(&self) -> Result<()> {
        self.check()?;
        *self.durable.lock().unwrap() = self.bytes.lock().unwrap().clone();
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn is_atomic(&self) -> bool {
        self.atomic
    }
}

struct Scene {
    host: Arc<SimulatedHost>,
    cache: Arc<PageCache>,
    store: Arc<Store>,
    view: Arc<MappedView>,
    start: Address,
}

type Work = Box<dyn FnOnce(&Scene) + Send>;

impl Scene {
    fn new(atomic: bool) -> Scene {
        let host = Arc::new(SimulatedHost::new(PAGE, BUDGET_PAGES * PAGE));
        let mut options = CacheOptions::new(BUDGET_PAGES * PAGE);
        options.workers_max = 3.try_into().unwrap();
        options.fillers_max = 2.try_into().unwrap();
        options.writers_max = 2.try_into().unwrap();
        let cache = PageCache::new(host.clone(), options).unwrap();
        let store = Arc::new(Store::new(atomic));
        let (object, _) = cache.open_as(store.clone(), Use::Shared).unwrap();
        let view = Arc::new(cache.map(&object, 0, LENGTH, 4 * PAGE).unwrap());
        let start = host.views()[0];
        Scene { host, cache, store, view, start }
    }

    fn address(&self, page: u64, byte: u64) -> Address {
        Address(self.start.0 + (page * PAGE + byte) as usize)
    }

    fn increment(&self, page: u64, byte: u64) {
        let outcome = self.host.store(self.address(page, byte), |b| *b += 1);
        assert!(matches!(outcome, Outcome::Bytes(_)), "{outcome:?}");
    }

    fn load(&self, page: u64, byte: u64) -> u8 {
        match self.host.touch(self.address(page, byte)) {
            Outcome::Bytes(bytes) => bytes[byte as usize],
            other => panic!("{other:?}"),
        }
    }

    /// When all is dropped, nothing is left; gives what the store holds.
    fn end(self) -> Vec<u8> {
        let Scene { host, cache, store, view, start: _ } = self;
        let view = Arc::into_inner(view).expect("the last user");
        drop(view);
        assert!(host.views().is_empty(), "unmapped when the mapping is dropped");
        while cache.stats().pages_resident > 0 {
            thread::yield_now();
        }
        drop(cache);
        assert_eq!(host.resident_bytes(), 0, "no memory is left behind");
        store.bytes.lock().unwrap().clone()
    }
}

/// Runs each piece of work on a thread of its own; gives what the store holds when all is over.
fn together(scene: Scene, work: Vec<Work>) -> Vec<u8> {
    let scene = Arc::new(scene);
    let threads: Vec<_> = work
        .into_iter()
        .map(|work| {
            let scene = scene.clone();
            thread::spawn(move || work(&scene))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    Arc::into_inner(scene).expect("all threads have ended").end()
}

#[test]
fn no_increment_is_lost() {
    explore(|| {
        let writer = |first: u64| -> Work {
            Box::new(move |scene: &Scene| {
                (0..10).for_each(|i| scene.increment((first + i * 3) % OBJECT_PAGES, 1));
            })
        };
        let bytes = together(Scene::new(false), vec![writer(0), writer(1), writer(0)]);
        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
        assert_eq!(sum, 30);
    });
}

#[test]
fn stores_race_with_sync_and_eviction_of_the_same_page() {
    explore(|| {
        let writer = || -> Work { Box::new(|scene: &Scene| (0..6).for_each(|i| scene.increment(i % 2, 3))) };
        let bytes = together(
            Scene::new(false),
            vec![
                writer(),
                writer(),
                Box::new(|scene| {
                    for _ in 0..3 {
                        scene.view.sync(0..LENGTH).unwrap();
                        scene.view.evict(0..LENGTH).unwrap();
                    }
                }),
            ],
        );
        assert_eq!((bytes[3], bytes[PAGE as usize + 3]), (6, 6));
    });
}

#[test]
fn what_was_stored_before_a_sync_is_durable_after_it() {
    explore(|| {
        together(
            Scene::new(false),
            vec![
                Box::new(|scene| {
                    for i in 1..4 {
                        scene.increment(2, 0);
                        scene.view.sync(2 * PAGE..3 * PAGE).unwrap();
                        assert!(scene.store.durable()[2 * PAGE as usize] >= i);
                    }
                }),
                Box::new(|scene| (0..4).for_each(|_| scene.increment(2, 1))),
                Box::new(|scene| (0..2).for_each(|_| scene.view.sync(0..LENGTH).unwrap())),
            ],
        );
    });
}

#[test]
fn checked_and_raw_stores_to_one_page_are_both_kept() {
    explore(|| {
        let bytes = together(
            Scene::new(false),
            vec![
                Box::new(|scene| {
                    for i in 1..5 {
                        scene.view.write_at(PAGE + 2, &[i; 4]).unwrap();
                        scene.view.evict(0..LENGTH).unwrap();
                    }
                }),
                Box::new(|scene| (0..4).for_each(|_| scene.increment(1, 9))),
                Box::new(|scene| (0..2).for_each(|_| scene.view.sync(0..LENGTH).unwrap())),
            ],
        );
        let page = &bytes[PAGE as usize..];
        assert_eq!((&page[2..6], page[9]), (&[4u8; 4][..], 4));
    });
}

/// The first page is always stored to before the second: no moment has the second ahead.
#[test]
fn y05_an_atomic_sync_is_of_one_moment() {
    explore(|| {
        together(
            Scene::new(true),
            vec![
                Box::new(|scene| {
                    for _ in 0..4 {
                        scene.increment(3, 0);
                        scene.increment(11, 0);
                    }
                }),
                Box::new(|scene| {
                    for _ in 0..3 {
                        scene.view.sync(0..LENGTH).unwrap();
                        let durable = scene.store.durable();
                        let (first, second) = (durable[3 * PAGE as usize], durable[11 * PAGE as usize]);
                        assert!(
                            first == second || first == second + 1,
                            "{first} and {second} are of no moment"
                        );
                    }
                }),
                // Makes others go.
                Box::new(|scene| (0..6).for_each(|page| assert_eq!(scene.load(page + 12, 5), 0))),
            ],
        );
    });
}

#[test]
fn a_snapshot_is_of_one_moment_and_stays() {
    explore(|| {
        together(
            Scene::new(false),
            vec![
                Box::new(|scene| {
                    for _ in 0..4 {
                        scene.increment(3, 0);
                        scene.increment(11, 0);
                    }
                }),
                Box::new(|scene| {
                    let object = scene.view.snapshot().unwrap();
                    let view = scene.cache.map(&object, 0, LENGTH, 0).unwrap();
                    let look = || {
                        let (mut first, mut second) = ([0], [0]);
                        view.read_at(11 * PAGE, &mut second).unwrap();
                        view.read_at(3 * PAGE, &mut first).unwrap();
                        (first[0], second[0])
                    };
                    let (first, second) = look();
                    assert!(first == second || first == second + 1, "{first} and {second} are of no moment");
                    view.evict(0..LENGTH).unwrap();
                    scene.view.sync(0..LENGTH).unwrap();
                    assert_eq!(look(), (first, second), "and stays");
                }),
            ],
        );
    });
}

#[test]
fn a_store_that_fails_for_a_while_loses_nothing() {
    explore(|| {
        let scene = Scene::new(false);
        for page in 0..3 {
            scene.increment(page, 0);
        }
        scene.store.fails.store(true, Ordering::SeqCst);
        assert!(scene.view.sync(0..LENGTH).is_err());
        assert_eq!(scene.load(1, 0), 1, "readable still");
        scene.increment(1, 0);
        scene.store.fails.store(false, Ordering::SeqCst);
        scene.view.sync(0..LENGTH).unwrap();
        let bytes = scene.end();
        assert_eq!((bytes[0], bytes[PAGE as usize], bytes[2 * PAGE as usize]), (1, 2, 1));
    });
}

#[test]
fn a_store_to_what_failed_elsewhere_does_not_wait_for_who_maps() {
    explore(|| {
        let scene = Scene::new(false);
        let object = scene.view.object().clone();
        let again = scene.cache.map(&object, 0, LENGTH, 0).unwrap();
        scene.store.fails.store(true, Ordering::SeqCst);
        let failed = scene.host.store(scene.address(1, 0), |byte| *byte += 1);
        assert!(matches!(failed, Outcome::Failed(_)), "{failed:?}");
        scene.store.fails.store(false, Ordering::SeqCst);
        let there = Address(again.address().unwrap().0 + PAGE as usize);
        let maps = {
            let (cache, object) = (scene.cache.clone(), object.clone());
            thread::spawn(move || drop(cache.map(&object, 0, LENGTH, 0).unwrap()))
        };
        let stored = scene.host.store(there, |byte| *byte += 1);
        assert!(matches!(stored, Outcome::Bytes(_)), "{stored:?}");
        maps.join().unwrap();
        assert_eq!(scene.load(1, 0), 1, "there again");
        drop((again, object));
        assert_eq!(scene.end()[PAGE as usize], 1);
    });
}
