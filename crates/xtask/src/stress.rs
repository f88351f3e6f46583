//! `cargo xtask stress`: many threads on few pages, for as long as one likes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use omnimap::{MapOptions, Mapping};
use omnimap_testkit::{Prng, pattern, pattern_store};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Threads that fault.
    #[arg(long, default_value_t = 64)]
    threads: u64,
    /// Pages of the budget.
    #[arg(long, default_value_t = 32)]
    pages: u64,
}

/// Pages of the object; twice those of the budget, if that is more.
const OBJECT_PAGES: u64 = 512;
/// Without any access for so long, something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);

impl Arguments {
    pub(crate) fn run(&self) -> Result<()> {
        let page = omnimap::machine::page_bytes();
        let object_pages = OBJECT_PAGES.max(2 * self.pages);
        let mapping =
            MapOptions::new().budget(self.pages * page).map(pattern_store(object_pages * page + 5))?;
        let (stop, accesses, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let above = std::thread::scope(|scope| -> Result<u64> {
            for seed in 0..self.threads {
                let (mapping, stop, accesses, wrong) = (&mapping, &stop, &accesses, &wrong);
                scope.spawn(move || {
                    let mut random = Prng::new(seed);
                    while !stop.load(Ordering::Relaxed) {
                        if !access(mapping, &mut random, page) {
                            wrong.fetch_add(1, Ordering::Relaxed);
                        }
                        accesses.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let outcome = self.watch(&mapping, &accesses);
            stop.store(true, Ordering::Relaxed);
            outcome
        })?;
        let stats = mapping.stats();
        println!("{} accesses by {} threads, {stats:?}", accesses.into_inner(), self.threads);
        ensure!(wrong.load(Ordering::Relaxed) == 0, "{} accesses saw wrong bytes", wrong.into_inner());
        ensure!(above == 0, "{above} samples were above the budget");
        println!("no wrong byte, no hang, never above the budget");
        Ok(())
    }

    /// Samples memory, and sees to it that something happens; gives the samples above the budget.
    fn watch(&self, mapping: &Mapping, accesses: &AtomicU64) -> Result<u64> {
        let begin = Instant::now();
        let (mut above, mut seen, mut seen_at) = (0, 0, Instant::now());
        while begin.elapsed() < Duration::from_secs(self.seconds) {
            let resident = mapping.kernel_resident_bytes()?;
            above += u64::from(resident > self.pages * mapping.page_bytes());
            let now = accesses.load(Ordering::Relaxed);
            if now != seen {
                (seen, seen_at) = (now, Instant::now());
            } else if seen_at.elapsed() > SILENCE_MAX {
                eprintln!("no access for {SILENCE_MAX:?} after {seen}: {:?}", mapping.stats());
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(above)
    }
}

/// One access of a random kind; whether it saw the right bytes.
fn access(mapping: &Mapping, random: &mut Prng, page: u64) -> bool {
    let length = mapping.len() as u64;
    // Half of them meet on a few pages.
    let at = if random.below(2) == 0 { random.below(8 * page) } else { random.below(length) };
    match random.below(16) {
        0..10 => mapping[at as usize] == pattern(at),
        10..14 => {
            let mut copy = vec![0; random.below(3 * page).min(length - at) as usize];
            mapping.read_at(at, &mut copy).is_ok() && (at..).zip(&copy).all(|(at, b)| *b == pattern(at))
        }
        // Refused when others have too many pins: that is no failure.
        14 => match mapping.pin(at..(at + 10).min(length)) {
            Ok(pinned) => (at..).zip(&*pinned).all(|(at, b)| *b == pattern(at)),
            Err(error) => matches!(error, omnimap::Error::PinLimit { .. }),
        },
        _ => {
            let end = (at + random.below(4 * page)).min(length);
            let advice =
                if random.below(2) == 0 { omnimap::Advice::DontNeed } else { omnimap::Advice::WillNeed };
            mapping.advise(at..end, advice).is_ok()
        }
    }
}
