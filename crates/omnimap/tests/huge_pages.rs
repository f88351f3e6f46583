//! Where the kernel makes 2 MiB of a memfd at the first byte that is written to it. Alone in its process, for it changes a
//! setting of the machine for a moment.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use omnimap::MapOptions;
use omnimap::posix::{MapFlags, Prot, Source, mmap, munmap};
use omnimap_testkit::{pattern, pattern_store, skip, skip_without_mappings, within};

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// The machine's setting, changed; as before when this is dropped.
struct Always(String);

impl Always {
    fn set() -> Option<Always> {
        let before = std::fs::read_to_string(SETTING).ok()?;
        let before = before.split(['[', ']']).nth(1)?.to_owned();
        std::fs::write(SETTING, "always").ok()?;
        Some(Always(before))
    }
}

impl Drop for Always {
    fn drop(&mut self) {
        std::fs::write(SETTING, &self.0).unwrap();
    }
}

#[test]
fn m01_pages_that_no_mapping_shows_bring_no_zeros_with_them() {
    if skip_without_mappings() {
        return;
    }
    if !Path::new(SETTING).exists() {
        return; // A kernel without huge pages.
    }
    let Some(_always) = Always::set() else {
        return skip(&format!("{SETTING} may be written by root alone"));
    };
    let page = omnimap::machine::page_bytes();
    let length = 8 << 20;
    within(Duration::from_secs(60), move || {
        let object = MapOptions::new().budget(16 << 20).object(Arc::new(pattern_store(length))).unwrap();
        let mut copy = vec![0; page as usize];
        object.read_at(5 * page, &mut copy).unwrap();
        assert!((5 * page..).zip(&copy).all(|(at, byte)| *byte == pattern(at)));
        for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
            let (null, bytes) = (std::ptr::null_mut(), length as usize);
            // SAFETY: a new mapping at a place of the kernel's choice.
            let Ok(start) = (unsafe { mmap(null, bytes, Prot::READ, flags, Source::Object(&object), 0) })
            else {
                continue; // Private ones need the fault mode worker.
            };
            // SAFETY: just mapped, readable, and unmapped below.
            let shown = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), bytes) };
            let wrong = (0..length).zip(shown).find(|(at, byte)| **byte != pattern(*at));
            assert_eq!(wrong.map(|(at, _)| at), None, "a byte that the store does not have");
            // SAFETY: nobody uses it any more.
            unsafe { munmap(start, bytes) }.unwrap();
        }
    });
}
