//! P1: the engine, its stores and its policy on machines with pages of 4, 16 and 64 KiB.

use std::sync::Arc;

use omnimap_core::{CacheOptions, Error, MappedView, PageCache};
use omnimap_host::{Address, Use};
use omnimap_store::{BackingStore, MemoryStore};
use omnimap_testkit::{Outcome, Prng, SimulatedHost, explore, thread};

const PAGE_SIZES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];
const OBJECT_PAGES: u64 = 20;

/// An object of some pages and a part of one, mapped to be stored to.
struct Scene {
    host: Arc<SimulatedHost>,
    cache: Arc<PageCache>,
    view: MappedView,
    start: Address,
    page: u64,
}

impl Scene {
    fn new(page: u64, store: Arc<dyn BackingStore>) -> Scene {
        let budget = CacheOptions::BUDGET_PAGES_MIN * page;
        let host = Arc::new(SimulatedHost::new(page, budget));
        let mut options = CacheOptions::new(budget);
        options.workers_max = 2.try_into().unwrap();
        options.fillers_max = 2.try_into().unwrap();
        options.writers_max = 2.try_into().unwrap();
        let cache = PageCache::new(host.clone(), options).unwrap();
        let (object, _) = cache.open_as(store, Use::Shared).unwrap();
        let view = cache.map(&object, 0, OBJECT_PAGES * page, 4 * page).unwrap();
        let start = host.views()[0];
        Scene { host, cache, view, start, page }
    }

    fn at(&self, offset: u64) -> Address {
        Address(self.start.0 + offset as usize)
    }

    /// What a thread sees of a page that it touches.
    fn load(&self, offset: u64) -> Vec<u8> {
        match self.host.touch(self.at(offset)) {
            Outcome::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn store(&self, offset: u64, value: u8) {
        let outcome = self.host.store(self.at(offset), |byte| *byte = value);
        assert!(matches!(outcome, Outcome::Bytes(_)), "{outcome:?}");
    }

    fn end(self) {
        let Scene { host, cache, view, .. } = self;
        drop(view);
        assert!(host.views().is_empty());
        drop(cache);
    }
}

fn length(page: u64) -> u64 {
    OBJECT_PAGES * page - page / 3
}

/// All ways to use a mapping, in any order, beside an array.
fn compare(page: u64, seed: u64, store: Arc<dyn BackingStore>) {
    let mut random = Prng::new(seed);
    let mut expected = vec![0; store.len() as usize];
    store.read_at(0, &mut expected).unwrap();
    let scene = Scene::new(page, store.clone());
    // A model checker goes through it many times.
    for _ in 0..if cfg!(shuttle) { 60 } else { 400 } {
        let length = expected.len() as u64;
        let offset = random.below(length);
        let range = offset..length.min(offset + random.below(3 * page) + 1);
        let (from, to) = (range.start as usize, range.end as usize);
        let value = random.next_u64() as u8;
        match random.below(10) {
            0 | 1 => {
                let first = (offset - offset % page) as usize;
                let known = (first + page as usize).min(expected.len());
                let bytes = scene.load(offset);
                assert_eq!(bytes.len() as u64, page);
                assert_eq!(bytes[..known - first], expected[first..known]);
                assert!(bytes[known - first..].iter().all(|b| *b == 0), "M20: zeros behind the end");
            }
            2 | 3 => {
                scene.store(offset, value);
                expected[from] = value;
            }
            4 => {
                let mut bytes = vec![0; to - from];
                scene.view.read_at(offset, &mut bytes).unwrap();
                assert_eq!(bytes, expected[from..to]);
            }
            5 => {
                scene.view.write_at(offset, &vec![value; to - from]).unwrap();
                expected[from..to].fill(value);
            }
            6 => drop(scene.view.evict(range).unwrap()),
            7 => {
                if scene.view.lock_range(range.clone()).is_ok() {
                    let resident: u64 = scene
                        .view
                        .residency(range.clone())
                        .unwrap()
                        .iter()
                        .filter(|r| r.1)
                        .map(|(r, _)| r.end - r.start)
                        .sum();
                    assert_eq!(resident, range.end - range.start, "locked pages are there");
                }
                scene.view.unlock_range(0..length).unwrap();
            }
            8 => {
                scene.view.sync(range).unwrap();
                let mut bytes = vec![0; to - from];
                store.read_at(offset, &mut bytes).unwrap();
                assert_eq!(bytes, expected[from..to], "the store has what was synced");
            }
            _ => {
                let new = length / 2 + 1 + random.below(self::length(page) - length / 2);
                scene.view.set_object_len(new).unwrap();
                expected.resize(new as usize, 0);
            }
        }
        assert!(scene.host.resident_bytes() <= CacheOptions::BUDGET_PAGES_MIN * page);
    }
    scene.end();
}

#[test]
fn p1_all_ways_to_use_a_mapping_agree_with_an_array() {
    for page in PAGE_SIZES {
        for seed in if cfg!(shuttle) { 1..2 } else { 1..4 } {
            let bytes = (0..length(page)).map(omnimap_testkit::pattern).collect();
            explore_once(move || {
                compare(page, seed, Arc::new(MemoryStore::writable("memory", Vec::clone(&bytes))));
            });
        }
    }
}

/// Its stores have locks of their own, which a model checker does not know.
#[cfg(not(shuttle))]
#[test]
fn p1_swap_and_private_copies_have_blocks_of_their_own_size() {
    use omnimap_store::{PackOptions, PrivateStore, SwapOptions, SwapStore, ZstdStore, pack};

    let tight = || SwapOptions { compressed_bytes_max: 32 << 10, ..SwapOptions::default() };
    for page in PAGE_SIZES {
        compare(page, 1, Arc::new(SwapStore::new("swap", length(page), tight()).unwrap()));
        // Frames that are smaller than a page, larger, and no multiple of it.
        for frame in [5_000, 20_000, 100_000] {
            let bytes: Vec<u8> = (0..length(page)).map(omnimap_testkit::pattern).collect();
            let packed = packed(&bytes, frame);
            let base: Arc<dyn BackingStore> = Arc::new(packed);
            compare(page, frame as u64, Arc::new(PrivateStore::new(base, tight()).unwrap()));
        }
    }

    fn packed(bytes: &[u8], frame: usize) -> ZstdStore {
        let mut out = Vec::new();
        let options = PackOptions { chunk_bytes: frame.try_into().unwrap(), ..PackOptions::default() };
        pack(bytes, &mut out, &options, |_| ()).unwrap();
        ZstdStore::open(Arc::new(MemoryStore::new("packed", out))).unwrap()
    }
}

#[test]
fn p1_no_store_is_lost_whatever_a_page_is() {
    for page in PAGE_SIZES {
        explore(move || {
            let store = Arc::new(MemoryStore::writable("memory", vec![0; length(page) as usize]));
            let scene = Arc::new(Scene::new(page, store.clone()));
            let threads: Vec<_> = (0..3)
                .map(|first: u64| {
                    let scene = scene.clone();
                    thread::spawn(move || {
                        for i in 0..8 {
                            let offset = ((first + i * 3) % OBJECT_PAGES) * scene.page + first;
                            let outcome = scene.host.store(scene.at(offset), |byte| *byte += 1);
                            assert!(matches!(outcome, Outcome::Bytes(_)), "{outcome:?}");
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            let scene = Arc::into_inner(scene).expect("all threads have ended");
            scene.view.sync(0..scene.view.len()).unwrap();
            scene.end();
            let mut bytes = vec![0; length(page) as usize];
            store.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes.iter().map(|b| u64::from(*b)).sum::<u64>(), 24);
        });
    }
}

#[test]
fn p1_offsets_and_lengths_need_not_be_of_whole_pages() {
    for page in PAGE_SIZES {
        explore_once(move || {
            let scene =
                Scene::new(page, Arc::new(MemoryStore::writable("memory", vec![7; length(page) as usize])));
            for (offset, bytes) in [(1, 1), (page - 1, 2), (page + 1, page), (3 * page / 2, 5 * page)] {
                let part = scene.cache.map(scene.view.object(), offset, bytes, 0).unwrap();
                let mut into = vec![0; bytes as usize];
                part.read_at(0, &mut into).unwrap();
                assert!(into.iter().all(|b| *b == 7));
                assert!(matches!(part.read_at(1, &mut into), Err(Error::OutOfRange { .. })));
                let at = part.address().unwrap();
                assert_eq!(at.0 as u64 % page, offset % page);
            }
            scene.end();
        });
    }
}

#[test]
fn l01_locked_pages_stay_while_others_compete_and_go_with_their_mapping() {
    for page in PAGE_SIZES {
        explore(move || {
            let store = Arc::new(MemoryStore::writable("memory", vec![7; length(page) as usize]));
            let scene = Arc::new(Scene::new(page, store));
            let second = scene.cache.map(scene.view.object(), 0, 4 * page, 0).unwrap();
            let locking = thread::spawn(move || {
                for _ in 0..3 {
                    second.lock_range(0..2 * page).unwrap();
                    let runs = second.residency(0..2 * page).unwrap();
                    assert!(runs.iter().all(|(_, resident)| *resident), "{runs:?}");
                    second.lock_range(page..3 * page).unwrap();
                    second.unlock_range(0..page).unwrap();
                }
                // Still locked, when it is dropped.
            });
            let touching = {
                let scene = scene.clone();
                thread::spawn(move || {
                    for at in 0..OBJECT_PAGES {
                        assert_eq!(scene.load(at * scene.page)[0], 7);
                    }
                })
            };
            locking.join().unwrap();
            touching.join().unwrap();
            let scene = Arc::into_inner(scene).expect("all threads have ended");
            scene.view.lock_range(0..4 * page).expect("nobody has anything locked any more");
            scene.end();
        });
    }
}

/// Runs a scene once, or under a model checker some times.
fn explore_once(scene: impl Fn() + Send + Sync + 'static) {
    if cfg!(shuttle) { explore(scene) } else { scene() }
}
