//! What a fault costs when the store has the bytes in memory, in each fault mode.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use omnimap::store::MemoryStore;
use omnimap::{Advice, Cache, FaultMode, MapOptions, Mapping};
use omnimap_testkit::Prng;

use super::Arguments;
use super::mechanism::fill_alone;

const OBJECT_BYTES: u64 = 256 << 20;
const BUDGET_BYTES: u64 = 32 << 20;
/// In a run of [`evicting`].
pub(super) const ACCESSES: u32 = 50_000;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let names = FaultMode::ALL.map(|mode| mode.to_string());
    let (times, checked) = evicting(&FaultMode::ALL, arguments.runs)?;
    println!("faults, memory store, one eighth in memory, evicting, an access:");
    print(
        names.iter().map(String::as_str).chain(["checked"]),
        [times, vec![checked]].concat(),
        ACCESSES.into(),
    );
    let (times, pages) = first_touches(&FaultMode::ALL, arguments.runs)?;
    println!("faults, memory store, first touches, an access:");
    let alone = (0..arguments.runs.max(1)).map(|_| fill_alone(pages)).collect::<Result<_>>()?;
    print(names.iter().map(String::as_str).chain(["fill alone"]), [times, vec![alone]].concat(), pages);
    Ok(())
}

fn print<'a>(names: impl Iterator<Item = &'a str>, times: Vec<Vec<Duration>>, accesses: u64) {
    for (name, mut times) in names.zip(times) {
        times.sort_unstable();
        let time = times[times.len() / 2];
        println!("  {name:10} {:6.2} µs", time.as_secs_f64() * 1e6 / accesses as f64);
    }
}

/// Random accesses to what does not fit: what each run took in each mode, and by checked accesses in the first of them.
pub(super) fn evicting(modes: &[FaultMode], runs: usize) -> Result<(Vec<Vec<Duration>>, Vec<Duration>)> {
    let mut bytes = vec![0u8; OBJECT_BYTES as usize];
    let mut random = Prng::new(3);
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next_u64().to_ne_bytes();
    }
    let store = Arc::new(MemoryStore::new("memory", bytes));
    let open = |mode: &FaultMode| {
        MapOptions::new()
            .budget(BUDGET_BYTES)
            .fault_mode(*mode)
            .advice(Advice::Random)
            .map_shared(store.clone())
    };
    let mappings = modes.iter().map(open).collect::<omnimap::Result<Vec<Mapping>>>()?;
    let accesses = |access: &dyn Fn(&Mapping, u64) -> Result<()>, mapping: &Mapping, seed: u64| {
        let mut random = Prng::new(seed);
        let begin = Instant::now();
        for _ in 0..ACCESSES {
            access(mapping, random.below(OBJECT_BYTES))?;
        }
        anyhow::Ok(begin.elapsed())
    };
    let raw = |mapping: &Mapping, offset: u64| {
        black_box(mapping[offset as usize]);
        Ok(())
    };
    let checked = |mapping: &Mapping, offset: u64| Ok(mapping.read_at(offset, &mut [0])?);
    let (mut times, mut checked_times) = (vec![Vec::new(); modes.len()], Vec::new());
    for seed in 1..=runs.max(1) as u64 {
        for (mapping, times) in mappings.iter().zip(&mut times) {
            times.push(accesses(&raw, mapping, seed)?);
        }
        if let Some(mapping) = mappings.first() {
            checked_times.push(accesses(&checked, mapping, seed)?);
        }
    }
    Ok((times, checked_times))
}

/// Each page once, in an order that is no stream: by a stride that is odd, where there are 2^n.
pub(super) fn scattered(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages).map(move |index| index * 2_731 % pages)
}

/// What a fault costs alone, where there is room: what each run took in each mode, and how many faults it had.
pub(super) fn first_touches(modes: &[FaultMode], runs: usize) -> Result<(Vec<Vec<Duration>>, u64)> {
    let store = Arc::new(MemoryStore::new("memory", vec![1; BUDGET_BYTES as usize]));
    let mut pages = 1;
    let mut touches = |mode| -> Result<Duration> {
        // A cache of its own: of the others' pages there are none to be evicted.
        let cache = Cache::with_fault_mode(2 * BUDGET_BYTES, mode)?;
        let mapping = MapOptions::new().cache(&cache).advice(Advice::Random).map_shared(store.clone())?;
        let page_bytes = mapping.page_bytes() as usize;
        pages = mapping.len() / page_bytes;
        let begin = Instant::now();
        for page in scattered(pages as u64) {
            black_box(mapping[page as usize * page_bytes]);
        }
        Ok(begin.elapsed())
    };
    let mut times = vec![Vec::new(); modes.len()];
    for _ in 0..runs.max(1) {
        for (mode, times) in modes.iter().zip(&mut times) {
            times.push(touches(*mode)?);
        }
    }
    Ok((times, pages as u64))
}
