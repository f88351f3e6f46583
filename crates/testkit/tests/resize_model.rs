//! Resizing on the simulated machine, while others read the page that the new end cuts.
//!
//! With ordinary threads this is a small test; `cargo xtask model` runs it under shuttle.

use std::sync::Arc;
use std::sync::Mutex;

use omnimap_core::{CacheOptions, MappedView, PageCache};
use omnimap_host::{Address, Use};
use omnimap_store::{Answers, BackingStore, Result, StoreError, Transfer, Writability};
use omnimap_testkit::{Outcome, SimulatedHost, explore, thread};

const PAGE: u64 = 16;
const LENGTH: u64 = 8 * PAGE - 3;
/// An end within the third page.
const CUT: u64 = 2 * PAGE + 5;

/// Bytes in memory, all ones at first; others may run in every call.
struct Store {
    bytes: Mutex<Vec<u8>>,
    resizes: bool,
}

impl BackingStore for Store {
    fn name(&self) -> &str {
        "model"
    }
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn transfer(&self) -> Transfer {
        Transfer::new(PAGE as usize, 4).answering(Answers::Promptly)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        thread::yield_now();
        let count = {
            let bytes = self.bytes.lock().unwrap();
            let there = bytes.get(offset as usize..).unwrap_or_default();
            let count = into.len().min(there.len());
            into[..count].copy_from_slice(&there[..count]);
            count
        };
        thread::yield_now();
        Ok(count)
    }
    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<()> {
        thread::yield_now();
        self.bytes.lock().unwrap()[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, length: u64) -> Result<()> {
        thread::yield_now();
        thread::yield_now();
        if !self.resizes {
            return Err(StoreError::Corrupt { what: "as told".to_owned() });
        }
        self.bytes.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }
}

/// A mapping on a machine, and the address of its third page.
type Scene = (Arc<SimulatedHost>, Arc<MappedView>, Address);

fn scene(resizes: bool) -> Scene {
    let budget = CacheOptions::BUDGET_PAGES_MIN * PAGE;
    let host = Arc::new(SimulatedHost::new(PAGE, budget));
    let mut options = CacheOptions::new(budget);
    options.workers_max = 2.try_into().unwrap();
    options.fillers_max = 2.try_into().unwrap();
    let cache = PageCache::new(host.clone(), options).unwrap();
    let store = Arc::new(Store { bytes: Mutex::new(vec![1; LENGTH as usize]), resizes });
    let (object, _) = cache.open_as(store, Use::Shared).unwrap();
    let view = Arc::new(cache.map(&object, 0, LENGTH, 0).unwrap());
    let third = Address(host.views()[0].0 + 2 * PAGE as usize);
    (host, view, third)
}

/// What an object looks like at its third page when `resize` is done, during which others read that page and evict it.
fn third_page(resizes: bool, resize: fn(&MappedView)) -> Vec<u8> {
    let (host, view, third) = scene(resizes);
    let load = move |host: &SimulatedHost| match host.touch(third) {
        Outcome::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    let others: Vec<_> = (0..2)
        .map(|_| {
            let (view, host) = (view.clone(), host.clone());
            thread::spawn(move || {
                for _ in 0..3 {
                    assert_eq!(load(&host)[..5], [1; 5]);
                    view.evict(2 * PAGE..CUT).unwrap();
                }
            })
        })
        .collect();
    resize(&view);
    others.into_iter().for_each(|thread| thread.join().unwrap());
    view.evict(0..view.len()).unwrap();
    load(&host)
}

#[test]
fn what_is_cut_off_does_not_come_back_with_a_page_that_was_on_its_way() {
    explore(|| {
        let bytes = third_page(true, |view| {
            view.set_object_len(CUT).unwrap();
            view.set_object_len(LENGTH).unwrap();
        });
        assert_eq!(bytes, [[1; 5].as_slice(), &[0; 11]].concat());
    });
}

#[test]
fn an_object_that_its_store_does_not_make_shorter_stays_whole() {
    explore(|| {
        let bytes = third_page(false, |view| {
            view.set_object_len(CUT).unwrap_err();
        });
        assert_eq!(bytes, [1; 16]);
    });
}

#[test]
fn a_page_that_was_to_be_cut_off_has_its_bytes_when_it_was_not() {
    explore(|| {
        let (host, view, third) = scene(false);
        let reader = {
            let host = host.clone();
            // Meanwhile it is behind the end.
            thread::spawn(move || drop(host.touch(third)))
        };
        view.set_object_len(2 * PAGE).unwrap_err();
        reader.join().unwrap();
        match host.touch(third) {
            Outcome::Bytes(bytes) => assert_eq!(bytes, [1; 16]),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_snapshot_has_all_of_the_object_or_is_of_the_shorter_one() {
    explore(|| {
        let (_host, view, _) = scene(true);
        let shorter = {
            let view = view.clone();
            // Refused, if there is a snapshot by then.
            thread::spawn(move || drop(view.set_object_len(2 * PAGE)))
        };
        let object = view.snapshot().unwrap();
        let snapshot = view.cache().map(&object, 0, object.len(), 0).unwrap();
        shorter.join().unwrap();
        let mut bytes = vec![0; snapshot.len() as usize];
        snapshot.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1), "{bytes:?}");
    });
}
