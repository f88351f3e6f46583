//! A plain file read in order through a mapping, cold.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use omnimap::machine::{KernelFile, drop_cached};
use omnimap::{Advice, MapOptions};
use omnimap_testkit::Prng;

use super::{Arguments, medians, rate};

const BUDGET_BYTES: u64 = 64 << 20;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let path = directory.path().join("plain");
    write_random(&path, arguments.file_bytes())?;
    let sum = |chunk: &[u8]| {
        chunk.as_chunks::<8>().0.iter().fold(0u64, |s, w| s.wrapping_add(u64::from_ne_bytes(*w)))
    };
    let mut sums = Vec::new();
    let ours = |advice: Advice| -> Result<(Duration, u64)> {
        drop_cached(&File::open(&path)?)?;
        let begin = Instant::now();
        let mapping = MapOptions::new().budget(BUDGET_BYTES).advice(advice).open(&path)?;
        let total = mapping.chunks(1 << 16).fold(0u64, |s, c| s.wrapping_add(sum(c)));
        Ok((begin.elapsed(), total))
    };
    let kernel = || -> Result<(Duration, u64)> {
        let file = File::open(&path)?;
        drop_cached(&file)?;
        let begin = Instant::now();
        let mapping = KernelFile::map(&file)?;
        let mut total = 0u64;
        let mut copy = vec![0; 1 << 14];
        let mut at = 0;
        while at < mapping.len() {
            let count = mapping.read_at(at, &mut copy);
            total = total.wrapping_add(sum(&copy[..count]));
            at += count as u64;
        }
        Ok((begin.elapsed(), total))
    };
    let sums_cell = std::cell::RefCell::new(&mut sums);
    let timed = |outcome: Result<(Duration, u64)>| {
        let (time, total) = outcome?;
        sums_cell.borrow_mut().push(total);
        Ok(time)
    };
    let [normal, advised, theirs] = medians(
        arguments.runs,
        [
            Box::new(|| timed(ours(Advice::Normal))),
            Box::new(|| timed(ours(Advice::Sequential))),
            Box::new(|| timed(kernel())),
        ],
    )?;
    ensure!(sums.windows(2).all(|w| w[0] == w[1]), "the contenders read different bytes");
    let ratio = |time: Duration| theirs.as_secs_f64() / time.as_secs_f64();
    println!(
        "sequential, {} MiB plain, cold, budget {} MiB: omnimap {:.0} MiB/s ({:.2} of the kernel's mapping), advised {:.0} \
         MiB/s ({:.2}), kernel {:.0} MiB/s with read_ahead_kb {}",
        arguments.file_bytes() >> 20,
        BUDGET_BYTES >> 20,
        rate(arguments.file_bytes(), normal),
        ratio(normal),
        rate(arguments.file_bytes(), advised),
        ratio(advised),
        rate(arguments.file_bytes(), theirs),
        read_ahead_kib(),
    );
    Ok(())
}

pub(super) fn write_random(path: &std::path::Path, bytes: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut random = Prng::new(1);
    for _ in 0..bytes / 8 {
        file.write_all(&random.next_u64().to_ne_bytes())?;
    }
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(())
}

fn read_ahead_kib() -> String {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let values: Vec<String> = devices
        .filter_map(|d| std::fs::read_to_string(d.path().join("queue/read_ahead_kb")).ok())
        .map(|v| v.trim().to_owned())
        .collect();
    values.first().cloned().unwrap_or_else(|| "?".to_owned())
}
