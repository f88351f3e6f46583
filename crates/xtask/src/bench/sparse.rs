//! A huge object that is touched here and there.

use std::fs::File;
use std::time::Instant;

use anyhow::Result;
use omnimap::MapOptions;
use omnimap_testkit::Prng;

use super::Arguments;

const OBJECT_BYTES: u64 = 10 << 40;
const TOUCHED_PAGES: u64 = 1000;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let path = directory.path().join("sparse");
    File::create(&path)?.set_len(OBJECT_BYTES)?;
    let page = omnimap::machine::page_bytes();
    let before = process_bytes(page);
    let begin = Instant::now();
    let mapping = MapOptions::new().budget(2 * TOUCHED_PAGES * page).open(&path)?;
    let mut random = Prng::new(7);
    let nonzero = (0..TOUCHED_PAGES).filter(|_| mapping[random.below(OBJECT_BYTES) as usize] != 0).count();
    let time = begin.elapsed();
    let grown = process_bytes(page).saturating_sub(before).saturating_sub(mapping.kernel_resident_bytes()?);
    println!(
        "sparse, 10 TiB, {TOUCHED_PAGES} random pages: {:.3} s, {:.1} MiB of memory above the pages, {nonzero} wrong bytes",
        time.as_secs_f64(),
        grown as f64 / f64::from(1 << 20)
    );
    Ok(())
}

fn process_bytes(page: u64) -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * page
}
