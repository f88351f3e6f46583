//! One contender of `bench report`, in a process of its own, so that its memory can be bounded and its I/O counted.

use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use omnimap::store::{BackingStore, FileStore, ZstdStore};
use omnimap::{Advice, FaultMode, MapOptions};

use super::contender::Contender;
use super::pages::{Cells, PAGE_BYTES, Pages, Shared, Slice, Stream};
use super::sequence;
use super::task::{Latencies, Measurement, Task, With};
use crate::bench::clock_pool::ClockPool;
use crate::bench::mechanism::Mechanism;
use crate::bench::memory_cgroup::join;
use crate::bench::writer::transferred;

/// Reads pages in a given order, and tells what it took.
#[derive(clap::Args)]
pub(crate) struct Reader {
    /// What to do, in JSON.
    task: String,
}

/// Of the sequences; the warm-up's differs.
const SEED: u64 = 17;
const WARM_SEED: u64 = 1_000_003;
/// Of a pool that threads share, for each of them.
const POOL_PARTS: u64 = 4;

impl Reader {
    pub(crate) fn run(&self) -> Result<()> {
        let task: Task = serde_json::from_str(&self.task)?;
        if let Some(entrance) = &task.entrance {
            join(entrance)?;
        }
        println!("{}", serde_json::to_string(&task.run()?)?);
        Ok(())
    }
}

impl Task {
    pub(super) fn run(&self) -> Result<Measurement> {
        if let Some(mode) = self.contender.fault_mode() {
            return self.through_omnimap(mode);
        }
        if let Some(advice) = self.contender.kernel_advice() {
            return self.through_kernel(advice);
        }
        if let Some(mode) = self.contender.mechanism_mode() {
            let store = Arc::new(FileStore::open(&self.path)?);
            let mechanism = Mechanism::new(mode, store, self.bytes, self.budget_bytes)?;
            return self.measure(vec![Slice(mechanism.bytes())], || Ok(()), |_| Ok(()));
        }
        match self.contender {
            Contender::FillAlone => bail!("fills alone read nothing"),
            Contender::Stream => {
                let store = FileStore::open(&self.path)?;
                ensure!(store.is_direct(), "the file system has no direct I/O");
                self.measure(vec![Stream::new(store)], || Ok(()), |_| Ok(()))
            }
            _ => self.through_pool(),
        }
    }

    fn through_omnimap(&self, mode: FaultMode) -> Result<Measurement> {
        let mapping = MapOptions::new()
            .budget(self.budget_bytes)
            .fault_mode(mode)
            .length(self.bytes)
            .open(&self.path)?;
        let handles = (0..self.handles()).map(|_| Slice(&mapping)).collect();
        let before = std::cell::Cell::new(0);
        let warmed = || {
            before.set(mapping.stats().bytes_filled);
            Ok(())
        };
        let prefetch = |ranges: &[Range<u64>]| {
            mapping.prefetch_many(ranges)?.wait()?;
            Ok(())
        };
        let measured = self.measure(handles, warmed, prefetch)?;
        let filled_bytes = Some(mapping.stats().bytes_filled - before.get());
        Ok(Measurement { filled_bytes, ..measured })
    }

    fn through_kernel(&self, advice: Advice) -> Result<Measurement> {
        // Writable, because only then are there cells.
        let mapping = MapOptions::new().length(self.bytes).kernel_open_mut(&self.path)?;
        let cells = mapping.cells().context("a shared mapping without cells")?;
        let handles = (0..self.handles()).map(|_| Cells(cells)).collect();
        let warmed = || Ok(mapping.advise(0..mapping.len(), advice)?);
        let prefetch = |ranges: &[Range<u64>]| {
            ranges.iter().try_for_each(|range| Ok(mapping.advise(range.clone(), Advice::WillNeed)?))
        };
        self.measure(handles, warmed, prefetch)
    }

    fn through_pool(&self) -> Result<Measurement> {
        let store = || -> Result<Box<dyn BackingStore>> {
            let file = FileStore::open(&self.path)?;
            Ok(if self.packed { Box::new(ZstdStore::open(Arc::new(file))?) } else { Box::new(file) })
        };
        let unable = |_: &[Range<u64>]| Ok(());
        if self.handles() == 1 {
            let mut pool = ClockPool::new(store()?, self.budget_bytes);
            return self.measure(vec![&mut pool], || Ok(()), unable);
        }
        let parts = self.handles() * POOL_PARTS;
        let part = |index| Ok(Mutex::new(ClockPool::part(store()?, self.budget_bytes / parts, index, parts)));
        let pool = (0..parts).map(part).collect::<Result<Vec<_>>>()?;
        let handles = (0..self.handles()).map(|_| Shared(&pool)).collect();
        self.measure(handles, || Ok(()), unable)
    }

    /// One for each thread.
    fn handles(&self) -> u64 {
        self.threads + u64::from(self.with == With::Scan)
    }

    /// Warms up, and times the accesses. `warmed` is called in between.
    fn measure(
        &self,
        mut handles: Vec<impl Pages>,
        warmed: impl FnOnce() -> Result<()>,
        prefetch: impl FnOnce(&[Range<u64>]) -> Result<()>,
    ) -> Result<Measurement> {
        let pages = self.bytes / PAGE_BYTES;
        let sequences: Vec<Vec<u32>> = (0..self.threads)
            .map(|thread| sequence::pages(self.pattern, SEED + thread, pages, self.operations))
            .collect();
        if let Some(operations) = self.warm_operations {
            let fitting = pages.min(self.budget_bytes / PAGE_BYTES);
            handles[0].fill(fitting as u32)?;
            // The file's order is no sign of the order to come: whoever guesses has to find out now.
            warmed()?;
            let sequence = sequence::pages(self.pattern, WARM_SEED, pages, operations);
            let enough = Instant::now() + Duration::from_secs(self.warm_seconds);
            loop {
                black_box(read(&mut handles[0], &sequence)?);
                if Instant::now() >= enough {
                    break;
                }
            }
        } else {
            warmed()?;
        }
        let (read_before, _) = transferred()?;
        let begin = Instant::now();
        if self.with == With::Prefetch {
            let page = |page: &u32| u64::from(*page) * PAGE_BYTES..(u64::from(*page) + 1) * PAGE_BYTES;
            prefetch(&sequences[0].iter().map(page).collect::<Vec<_>>())?;
        }
        let mut measured = self.timed(handles, &sequences)?;
        if self.with == With::Prefetch {
            measured.nanoseconds = begin.elapsed().as_nanos() as u64;
        }
        measured.disk_bytes = transferred()?.0 - read_before;
        Ok(measured)
    }

    fn timed(&self, handles: Vec<impl Pages>, sequences: &[Vec<u32>]) -> Result<Measurement> {
        let (barrier, stop) = (Barrier::new(handles.len()), AtomicBool::new(false));
        let times = Mutex::new(Vec::new());
        let mut handles = handles.into_iter();
        let (checksums, scanned) = std::thread::scope(|scope| {
            let mut readers = Vec::new();
            // In this order: with the handles first, the scanner's would be taken and dropped.
            for (sequence, mut handle) in sequences.iter().zip(handles.by_ref()) {
                let (barrier, stop, times) = (&barrier, &stop, &times);
                readers.push(scope.spawn(move || -> Result<u64> {
                    barrier.wait();
                    let begin = Instant::now();
                    let mut latencies = Vec::new();
                    let checksum = if self.latencies {
                        read_timed(&mut handle, sequence, &mut latencies)
                    } else {
                        read(&mut handle, sequence)
                    };
                    stop.store(true, Relaxed);
                    let time = (begin, Instant::now(), latencies);
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(time);
                    checksum
                }));
            }
            let scanner = handles.next().map(|mut handle| {
                let (barrier, stop, pages) = (&barrier, &stop, (self.bytes / PAGE_BYTES) as u32);
                // Behind what the warm-up has brought into memory, or who is slow would never leave that.
                let first = (self.budget_bytes / PAGE_BYTES) as u32 % pages;
                scope.spawn(move || {
                    barrier.wait();
                    let pages = (0..pages).cycle().skip(first as usize);
                    let mut turns = pages.take_while(|_| !stop.load(Relaxed));
                    // Loads from a slice whose bytes nobody wants would be left out.
                    turns.try_fold(0, |count, page| {
                        black_box(handle.touch(page)?);
                        Ok(count + 1)
                    })
                })
            });
            let read = readers.into_iter().map(joined).collect::<Result<Vec<u64>>>();
            let scanned = scanner.map(joined).transpose();
            anyhow::Ok((read?, scanned?))
        })?;
        let times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
        let begin = times.iter().map(|(begin, ..)| *begin).min().context("no threads")?;
        let end = times.iter().map(|(_, end, _)| *end).max().context("no threads")?;
        Ok(Measurement {
            nanoseconds: end.duration_since(begin).as_nanos() as u64,
            operations: self.threads * self.operations,
            // In whichever order they came.
            checksum: checksums.into_iter().fold(0, u64::wrapping_add),
            scanned_pages: scanned,
            latencies: Latencies::of(times.into_iter().flat_map(|(.., latencies)| latencies).collect()),
            ..Measurement::default()
        })
    }
}

fn joined(thread: ScopedJoinHandle<'_, Result<u64>>) -> Result<u64> {
    thread.join().ok().context("a reader panicked")?
}

/// Touches the pages, and gives a checksum that depends on their order.
fn read(handle: &mut impl Pages, sequence: &[u32]) -> Result<u64> {
    sequence.iter().try_fold(0, |sum, page| Ok(mixed(sum, handle.touch(*page)?)))
}

fn read_timed(handle: &mut impl Pages, sequence: &[u32], latencies: &mut Vec<u32>) -> Result<u64> {
    latencies.reserve_exact(sequence.len());
    let (mut sum, mut before) = (0, Instant::now());
    for page in sequence {
        sum = mixed(sum, handle.touch(*page)?);
        let now = Instant::now();
        latencies.push(u32::try_from(now.duration_since(before).as_nanos()).unwrap_or(u32::MAX));
        before = now;
    }
    Ok(sum)
}

fn mixed(sum: u64, byte: u8) -> u64 {
    sum.wrapping_mul(31).wrapping_add(u64::from(byte))
}
