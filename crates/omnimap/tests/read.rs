//! Reading through the slice and the checked calls.

use std::time::Duration;

use omnimap::MapOptions;
use omnimap_testkit::{pattern, pattern_store, within};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn m01_a_slice_shows_the_objects_bytes() {
    within(LIMIT, || {
        let mapping = MapOptions::new().budget(1 << 20).map(pattern_store((8 << 20) + 100)).unwrap();
        assert_eq!(mapping.len(), (8 << 20) + 100);
        for (at, byte) in mapping.iter().enumerate() {
            assert_eq!(*byte, pattern(at as u64), "at {at}");
        }
        let stats = mapping.stats();
        eprintln!("{stats:?}");
        assert!(mapping.kernel_resident_bytes().unwrap() <= 1 << 20);
    });
}
