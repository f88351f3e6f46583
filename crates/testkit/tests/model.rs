//! The engine on the simulated machine: many interleavings, every rule asserted, every thread accounted for.
//!
//! With ordinary threads this is a small test; `cargo xtask model` runs it under shuttle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use omnimap_core::{CacheOptions, Error, MappedView, PageCache};
use omnimap_host::Address;
use omnimap_store::{Answers, BackingStore, Result, StoreError, Transfer};
use omnimap_testkit::{Outcome, Prng, SimulatedHost, explore, pattern, thread};

const PAGE: u64 = 16;
const BUDGET_PAGES: u64 = CacheOptions::BUDGET_PAGES_MIN;
const OBJECT_PAGES: u64 = 24;
const LENGTH: u64 = OBJECT_PAGES * PAGE - 5;
const TOGETHER: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).unwrap();

/// Gives the pattern; others may run while it does. Fails as long as it is told to.
struct Store {
    chunk_pages: u64,
    answers: Answers,
    fails: AtomicBool,
    /// Page 0 does not come as long as this holds.
    holds: AtomicBool,
}

impl BackingStore for Store {
    fn name(&self) -> &str {
        "model"
    }
    fn len(&self) -> u64 {
        LENGTH
    }
    fn transfer(&self) -> Transfer {
        Transfer::new(4 * PAGE as usize, 4).answering(self.answers).reading_together(TOGETHER)
    }
    fn chunk_at(&self, offset: u64) -> std::ops::Range<u64> {
        let chunk = self.chunk_pages * PAGE;
        let start = offset / chunk * chunk;
        start..(start + chunk).min(LENGTH)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        thread::yield_now();
        while offset == 0 && self.holds.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Corrupt { what: "as told".to_owned() });
        }
        let count = into.len().min((LENGTH - offset) as usize);
        for (at, byte) in (offset..).zip(&mut into[..count]) {
            *byte = pattern(at);
        }
        Ok(count)
    }
    /// Takes so long that whoever waits is woken before.
    fn read_awaited(
        &self,
        offset: u64,
        into: &mut [u8],
        meanwhile: &mut dyn FnMut(Duration),
    ) -> Result<usize> {
        for _ in 0..2 {
            meanwhile(Duration::from_secs(1));
            thread::yield_now();
        }
        self.read_at(offset, into)
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
    fn new(chunk_pages: u64) -> Scene {
        Self::with(chunk_pages, Answers::Eventually)
    }

    fn with(chunk_pages: u64, answers: Answers) -> Scene {
        let host = Arc::new(SimulatedHost::new(PAGE, BUDGET_PAGES * PAGE));
        let mut options = CacheOptions::new(BUDGET_PAGES * PAGE);
        options.workers_max = 3.try_into().unwrap();
        options.fillers_max = 2.try_into().unwrap();
        let cache = PageCache::new(host.clone(), options).unwrap();
        let store = Arc::new(Store {
            chunk_pages,
            answers,
            fails: AtomicBool::new(false),
            holds: AtomicBool::new(false),
        });
        let object = cache.open(store.clone()).unwrap();
        let view = Arc::new(cache.map(&object, 0, LENGTH, 8 * PAGE).unwrap());
        let start = host.views()[0];
        Scene { host, cache, store, view, start }
    }

    /// What a thread sees that touches a page through a pointer.
    fn touch(&self, page: u64) -> Outcome {
        self.host.touch(Address(self.start.0 + (page * PAGE) as usize))
    }

    fn expect_page(&self, page: u64) {
        let bytes = page * PAGE..(page + 1) * PAGE;
        let expected = bytes.map(|at| if at < LENGTH { pattern(at) } else { 0 }).collect();
        assert_eq!(self.touch(page), Outcome::Bytes(expected));
    }

    fn expect_read(&self, offset: u64, length: u64) {
        let length = length.min(LENGTH - offset);
        let mut bytes = vec![0; length as usize];
        self.view.read_at(offset, &mut bytes).unwrap();
        assert!((offset..).zip(&bytes).all(|(at, b)| *b == pattern(at)), "{offset}+{length}: {bytes:?}");
    }

    /// When all is dropped, nothing is left.
    fn end(self) {
        let Scene { host, cache, store: _, view, start: _ } = self;
        let view = Arc::into_inner(view).expect("the last user");
        drop(view);
        assert!(host.views().is_empty(), "unmapped when the mapping is dropped");
        // A thread of the cache may still hold the object for a moment.
        while cache.stats().pages_resident > 0 {
            thread::yield_now();
        }
        drop(cache);
        assert_eq!(host.resident_bytes(), 0, "no memory is left behind");
    }
}

/// Runs each piece of work on a thread of its own.
fn together(scene: Scene, work: Vec<Work>) {
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
    Arc::into_inner(scene).expect("all threads have ended").end();
}

#[test]
fn raw_readers_see_right_bytes_while_pages_are_evicted() {
    explore(|| {
        let reader = |seed| -> Work {
            Box::new(move |scene: &Scene| {
                let mut random = Prng::new(seed);
                for _ in 0..8 {
                    scene.expect_page(random.below(OBJECT_PAGES));
                }
            })
        };
        together(Scene::new(1), vec![reader(1), reader(2), reader(3)]);
    });
}

#[test]
fn raw_and_checked_readers_meet_on_the_same_pages() {
    explore(|| {
        together(
            Scene::new(2),
            vec![
                Box::new(|scene| (0..6).for_each(|page| scene.expect_page(page))),
                Box::new(|scene| (0..6).for_each(|page| scene.expect_read(page * PAGE + 3, 2 * PAGE))),
                Box::new(|scene| (0..6).rev().for_each(|page| scene.expect_page(page))),
            ],
        );
    });
}

#[test]
fn long_checked_reads_do_not_wait_for_each_others_pins() {
    explore(|| {
        let reader = |offset| -> Work { Box::new(move |scene: &Scene| scene.expect_read(offset, 16 * PAGE)) };
        together(Scene::new(1), vec![reader(0), reader(5 * PAGE + 1), reader(7 * PAGE)]);
    });
}

#[test]
fn eviction_by_hand_races_with_readers_and_prefetch() {
    explore(|| {
        together(
            Scene::new(1),
            vec![
                Box::new(|scene| {
                    for _ in 0..3 {
                        scene.view.evict(0..LENGTH).unwrap();
                    }
                }),
                Box::new(|scene| (0..6).for_each(|page| scene.expect_page(page))),
                Box::new(|scene| {
                    let prefetch = scene.view.prefetch(&[0..4 * PAGE, 8 * PAGE..9 * PAGE]).unwrap();
                    prefetch.wait().unwrap();
                    scene.expect_read(0, 2 * PAGE);
                }),
            ],
        );
    });
}

#[test]
fn prefetches_that_want_more_than_may_be_on_its_way_end_and_count_each_page_once() {
    explore(|| {
        let prefetch = |page: u64| -> Work {
            Box::new(move |scene: &Scene| {
                let prefetch =
                    scene.view.prefetch(std::slice::from_ref(&(page * PAGE..(page + 6) * PAGE))).unwrap();
                let came = prefetch.wait().unwrap();
                assert_eq!(came.bytes + came.bytes_left_out, 6 * PAGE, "{came:?}");
            })
        };
        let reader: Work = Box::new(|scene| (10..16).for_each(|page| scene.expect_page(page)));
        together(Scene::new(1), vec![prefetch(0), prefetch(4), reader]);
    });
}

#[test]
fn pins_hold_their_pages_and_leave_room_for_others() {
    explore(|| {
        let pinner = |page: u64| -> Work {
            Box::new(move |scene: &Scene| {
                for _ in 0..2 {
                    match scene.view.pin(page * PAGE, 3 * PAGE) {
                        Ok(pin) => {
                            (page..page + 3).for_each(|p| scene.expect_page(p));
                            assert_eq!(
                                scene.view.evict(page * PAGE..(page + 3) * PAGE).unwrap(),
                                0,
                                "pinned"
                            );
                            drop(pin);
                        }
                        Err(error) => assert!(matches!(error, Error::PinLimit { .. }), "{error}"),
                    }
                }
            })
        };
        let reader: Work = Box::new(|scene| (6..16).for_each(|page| scene.expect_page(page)));
        together(Scene::new(1), vec![pinner(0), pinner(2), reader]);
    });
}

#[test]
fn a_page_of_a_large_one_is_evicted_alone() {
    static MADE: AtomicU64 = AtomicU64::new(0);
    explore(|| {
        let scene = Scene::new(1);
        for page in [1, 2, 0, 3] {
            // What is read ahead may take the place of one again.
            [2, 0, 3, 1].into_iter().for_each(|page| scene.expect_page(page));
            MADE.fetch_add(scene.view.object().collapse_range(0..4 * PAGE), Ordering::Relaxed);
            scene.view.evict(page * PAGE..(page + 1) * PAGE).unwrap();
            // With a hole there can be none.
            MADE.fetch_add(scene.view.object().collapse_range(0..4 * PAGE), Ordering::Relaxed);
            (0..4).for_each(|page| scene.expect_page(page));
        }
        // Others want all the room that there is.
        (4..OBJECT_PAGES).for_each(|page| scene.expect_page(page));
        scene.end();
    });
    assert!(MADE.load(Ordering::Relaxed) > 0, "no large page was ever made");
}

#[test]
fn large_pages_are_made_and_given_up_while_pages_are_read_and_evicted() {
    explore(|| {
        let reader = |seed| -> Work {
            Box::new(move |scene: &Scene| {
                let mut random = Prng::new(seed);
                for _ in 0..6 {
                    scene.expect_page(random.below(12));
                    scene.expect_read(random.below(8) * PAGE, 2 * PAGE);
                }
            })
        };
        let collapser: Work = Box::new(|scene| {
            for first in [0, 4, 0, 8] {
                (first..first + 4).for_each(|page| scene.expect_page(page));
                scene.view.object().collapse_range(0..LENGTH);
            }
        });
        let evictor: Work = Box::new(|scene| {
            for page in [1, 6, 3] {
                scene.view.evict(page * PAGE..(page + 1) * PAGE).unwrap();
            }
            scene.view.object().refuse_large_pages();
        });
        together(Scene::new(1), vec![reader(1), reader(2), collapser, evictor]);
    });
}

/// Half of the budget is pinned, and more fills are under way than the other half has room for.
fn crowd(answers: Answers) {
    explore(move || {
        let scene = Scene::with(2, answers);
        let raw = |seed| -> Work {
            Box::new(move |scene: &Scene| {
                let mut random = Prng::new(seed);
                (0..4).for_each(|_| scene.expect_page(4 + random.below(OBJECT_PAGES - 4)));
            })
        };
        let checked: Work = Box::new(|scene| {
            scene.expect_read(4 * PAGE, 5 * PAGE);
            scene.expect_read(6 * PAGE, 5 * PAGE);
        });
        let pinned: Work = Box::new(|scene| {
            let pin = scene.view.pin(0, 4 * PAGE).unwrap();
            scene.expect_read(5 * PAGE, 6 * PAGE);
            scene.expect_page(20);
            drop(pin);
            scene.expect_page(9);
        });
        together(scene, vec![pinned, raw(1), raw(2), raw(3), checked]);
    });
}

#[test]
fn a_crowd_gets_through_a_narrow_budget() {
    crowd(Answers::Eventually);
}

#[test]
fn a_crowd_gets_through_when_readers_fill_for_themselves() {
    crowd(Answers::Promptly);
}

#[test]
fn a_crowd_gets_through_when_the_leader_fills() {
    crowd(Answers::AtOnce);
}

#[test]
fn pages_that_are_all_in_use_are_evicted_when_nothing_else_is_left() {
    explore(|| {
        let scene = Scene::new(1);
        scene.host.pretend_all_is_in_use();
        let reader = |seed| -> Work {
            Box::new(move |scene: &Scene| {
                let mut random = Prng::new(seed);
                (0..12).for_each(|_| scene.expect_page(random.below(OBJECT_PAGES)));
            })
        };
        together(scene, vec![reader(1), reader(2)]);
    });
}

#[test]
fn a_failing_store_costs_no_budget() {
    explore(|| {
        let scene = Scene::new(2);
        let failing: Work = Box::new(|scene| {
            for page in 0..6 {
                scene.store.fails.store(true, Ordering::SeqCst);
                let _ = scene.view.read_at(page * PAGE, &mut [0; 3]);
                let _ = scene.touch(page);
                scene.store.fails.store(false, Ordering::SeqCst);
            }
        });
        let touching: Work = Box::new(|scene| (0..6).for_each(|page| drop(scene.touch(page + 1))));
        together(scene, vec![failing, touching]);
    });
}

#[test]
fn a_slow_fill_delays_no_other_page() {
    explore(|| {
        let scene = Scene::new(1);
        scene.store.holds.store(true, Ordering::SeqCst);
        let slow: Work = Box::new(|scene| scene.expect_page(0));
        let others: Work = Box::new(|scene| {
            scene.expect_page(5);
            scene.expect_read(7 * PAGE, 3);
            scene.expect_page(20);
            scene.store.holds.store(false, Ordering::SeqCst);
        });
        together(scene, vec![slow, others]);
    });
}

#[test]
fn failures_are_told_and_later_accesses_try_again() {
    explore(|| {
        let scene = Scene::new(2);
        scene.store.fails.store(true, Ordering::SeqCst);
        together(
            scene,
            vec![
                Box::new(|scene| {
                    for page in 0..3 {
                        // It may heal before the access is made.
                        if let Outcome::Failed(why) = scene.touch(page) {
                            assert!(why.contains("model: offset") && why.contains("as told"), "{why}");
                        }
                    }
                }),
                Box::new(|scene| {
                    let _ = scene.view.read_at(PAGE, &mut [0; 5]);
                    scene.store.fails.store(false, Ordering::SeqCst);
                }),
                Box::new(|scene| {
                    while !matches!(scene.touch(1), Outcome::Bytes(_)) {
                        thread::yield_now();
                    }
                }),
            ],
        );
    });
}

#[test]
fn a_view_that_is_dropped_lets_its_waiters_go() {
    explore(|| {
        let Scene { host, cache, store, view, start } = Scene::new(1);
        let touching = host.clone();
        let toucher = thread::spawn(move || {
            for page in 0..4 {
                let outcome = touching.touch(Address(start.0 + (page * PAGE) as usize));
                assert!(matches!(outcome, Outcome::Bytes(_) | Outcome::Unmapped), "{outcome:?}");
            }
        });
        thread::yield_now();
        drop(view);
        assert!(host.views().is_empty());
        toucher.join().unwrap();
        drop((cache, store));
        assert_eq!(host.resident_bytes(), 0);
    });
}

#[test]
fn two_views_of_one_object_share_its_pages() {
    explore(|| {
        let scene = Scene::new(1);
        let object = scene.view.object().clone();
        let second = scene.cache.map(&object, 4 * PAGE, 8 * PAGE, 0).unwrap();
        let start = *scene.host.views().last().unwrap();
        let host = scene.host.clone();
        let reader = thread::spawn(move || {
            for page in 0..6 {
                let outcome = host.touch(Address(start.0 + (page * PAGE) as usize));
                let expected = ((page + 4) * PAGE..(page + 5) * PAGE).map(pattern).collect();
                assert_eq!(outcome, Outcome::Bytes(expected));
            }
        });
        (3..12).for_each(|page| scene.expect_page(page));
        reader.join().unwrap();
        drop((second, object));
        scene.end();
    });
}
