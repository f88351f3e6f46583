//! What a fault costs when the store has the bytes in memory.

use std::time::{Duration, Instant};

use anyhow::Result;
use omnimap::{Advice, MapOptions};
use omnimap_testkit::Prng;

use super::{Arguments, medians};

const OBJECT_BYTES: u64 = 256 << 20;
const BUDGET_BYTES: u64 = 32 << 20;
const ACCESSES: u32 = 50_000;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut bytes = vec![0u8; OBJECT_BYTES as usize];
    let mut random = Prng::new(3);
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next_u64().to_ne_bytes();
    }
    let store = std::sync::Arc::new(omnimap::store::MemoryStore::new("memory", bytes));
    let open = || MapOptions::new().budget(BUDGET_BYTES).advice(Advice::Random).map_shared(store.clone());
    let (raw, checked) = (open()?, open()?);
    let mut seed = 0;
    let mut sequence = || {
        seed += 1;
        Prng::new(seed)
    };
    let mut sequence_too = sequence();
    let [raw_time, checked_time] = medians(
        arguments.runs,
        [
            Box::new(|| {
                let mut random = sequence();
                let begin = Instant::now();
                for _ in 0..ACCESSES {
                    std::hint::black_box(raw[random.below(OBJECT_BYTES) as usize]);
                }
                Ok(begin.elapsed())
            }),
            Box::new(|| {
                let begin = Instant::now();
                for _ in 0..ACCESSES {
                    checked.read_at(sequence_too.below(OBJECT_BYTES), &mut [0])?;
                }
                Ok(begin.elapsed())
            }),
        ],
    )?;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ACCESSES);
    println!(
        "faults, memory store, one eighth in memory, evicting: raw {:.1} µs an access, checked {:.1} µs, raw waits half below \
         {:?}",
        each(raw_time),
        each(checked_time),
        raw.stats().waiting.below(0.5)
    );
    Ok(())
}
