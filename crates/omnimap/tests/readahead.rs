//! What is fetched ahead of readers, as the store sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use omnimap::MapOptions;
use omnimap::store::{Answers, BackingStore, MemoryStore, StoreError, Transfer};
use omnimap_testkit::{Prng, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// Read in order; what follows, at random.
const IN_ORDER: u64 = 32 * MIB;

/// Like a disk in what it says of itself; knows how far it was read in the first part.
struct Watched {
    bytes: MemoryStore,
    end: AtomicU64,
}

impl BackingStore for Watched {
    fn name(&self) -> &str {
        "watched"
    }
    fn len(&self) -> u64 {
        self.bytes.len()
    }
    fn transfer(&self) -> Transfer {
        Transfer::default().answering(Answers::Promptly)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, StoreError> {
        if offset < IN_ORDER {
            self.end.fetch_max(offset + into.len() as u64, Ordering::SeqCst);
        }
        self.bytes.read_at(offset, into)
    }
}

/// How far ahead of a reader that goes on in order the store was read at the most, once it had gone a while.
fn most_ahead(with_a_reader_at_random: bool) -> u64 {
    let store = Arc::new(Watched { bytes: pattern_store(2 * IN_ORDER), end: AtomicU64::new(0) });
    let mapping = MapOptions::new().budget(48 * MIB).map(store.clone()).unwrap();
    let page = mapping.page_bytes();
    let (mut random, mut most) = (Prng::new(1), 0);
    for at in (0..IN_ORDER).step_by(page as usize) {
        if with_a_reader_at_random && (at / page).is_multiple_of(8) {
            let page = random.below(IN_ORDER / page) * page;
            std::hint::black_box(mapping[(IN_ORDER + page) as usize]);
        }
        std::hint::black_box(mapping[at as usize]);
        if at >= MIB {
            most = most.max(store.end.load(Ordering::SeqCst).saturating_sub(at));
        }
    }
    most
}

#[test]
fn a_stream_is_kept_short_while_others_wait_for_pages_at_random() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    within(LIMIT, || {
        let alone = most_ahead(false);
        assert!(alone >= 2 * MIB, "alone it is {alone} bytes");
        // Who is kept from the processor for long is taken for gone.
        let beside: Vec<u64> =
            (0..5).map(|_| most_ahead(true)).take_while(|bytes| *bytes > MIB / 2).collect();
        assert!(beside.len() < 5, "beside another it is {beside:?} bytes");
    });
}
