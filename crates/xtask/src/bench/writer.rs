//! One contender of `bench writes`, in a process of its own, so that its memory can be bounded and its I/O counted.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use omnimap::{Advice, FaultMode, MapOptions};
use omnimap_testkit::Prng;

use super::clock_pool::ClockPool;
use super::memory_cgroup::join;

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Bytes that are stored at a time, at a multiple of as many.
pub(super) const STORE_BYTES: u64 = 64;

/// Stores at random places, and a sync.
#[derive(clap::Args)]
pub(crate) struct Writer {
    #[arg(value_enum)]
    contender: Contender,
    path: PathBuf,
    #[arg(long)]
    budget: u64,
    #[arg(long)]
    operations: u64,
    /// Makes the values differ from those of other runs.
    #[arg(long)]
    nonce: u64,
    /// The cgroup.procs to be put into.
    #[arg(long)]
    entrance: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Contender {
    Omnimap,
    OmnimapInThread,
    OmnimapTrap,
    Kernel,
    KernelRandom,
    KernelSequential,
    Pool,
}

/// What one run took.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    /// Everything, from opening to the end of the sync.
    pub(super) time: Duration,
    /// The sync alone.
    pub(super) sync: Duration,
    /// Bytes that the process had read from and written to the disk, as the kernel counts them.
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

impl Cost {
    /// From what a [`Writer`] prints.
    pub(super) fn parse(text: &str) -> Result<Cost> {
        let numbers: Vec<u64> = text.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let &[time, sync, read_bytes, written_bytes] = &numbers[..] else {
            anyhow::bail!("a writer printed {text:?}");
        };
        let (time, sync) = (Duration::from_nanos(time), Duration::from_nanos(sync));
        Ok(Cost { time, sync, read_bytes, written_bytes })
    }
}

impl Writer {
    pub(crate) fn run(&self) -> Result<()> {
        if let Some(entrance) = &self.entrance {
            join(entrance)?;
        }
        let (read_before, written_before) = transferred()?;
        let begin = Instant::now();
        let sync = match self.contender {
            Contender::Omnimap => self.through_omnimap(FaultMode::Worker),
            Contender::OmnimapInThread => self.through_omnimap(FaultMode::InThread),
            Contender::OmnimapTrap => self.through_omnimap(FaultMode::Trap),
            Contender::Kernel => self.through_kernel(Advice::Normal),
            Contender::KernelRandom => self.through_kernel(Advice::Random),
            Contender::KernelSequential => self.through_kernel(Advice::Sequential),
            Contender::Pool => self.through_pool(),
        }?;
        let time = sync.end.duration_since(begin);
        let (read, written) = transferred()?;
        let (read, written) = (read - read_before, written - written_before);
        println!("{} {} {read} {written}", time.as_nanos(), sync.time.as_nanos());
        Ok(())
    }

    fn through_omnimap(&self, mode: FaultMode) -> Result<Sync> {
        let mut mapping = MapOptions::new().budget(self.budget).fault_mode(mode).open_mut(&self.path)?;
        for operation in operations(mapping.len() as u64, self.operations) {
            let at = operation.offset() as usize;
            mapping[at..at + STORE_BYTES as usize].copy_from_slice(&operation.value(self.nonce));
        }
        Sync::timed(|| Ok(mapping.sync()?))
    }

    fn through_kernel(&self, advice: Advice) -> Result<Sync> {
        let mapping = MapOptions::new().advice(advice).kernel_open_mut(&self.path)?;
        let cells = mapping.cells().context("a shared mapping without cells")?;
        for operation in operations(mapping.len(), self.operations) {
            let cells = &cells[operation.offset() as usize..];
            for (cell, byte) in cells.iter().zip(operation.value(self.nonce)) {
                cell.store(byte, Relaxed);
            }
        }
        Sync::timed(|| Ok(mapping.sync()?))
    }

    fn through_pool(&self) -> Result<Sync> {
        let mut pool = ClockPool::open(&self.path, self.budget)?;
        for operation in operations(length(&self.path)?, self.operations) {
            let page = pool.page_mut(operation.page)?;
            page[operation.within_page as usize..][..STORE_BYTES as usize]
                .copy_from_slice(&operation.value(self.nonce));
        }
        Sync::timed(|| pool.sync())
    }
}

/// When a sync ended, and what it took. Taken before anything is unmapped.
struct Sync {
    time: Duration,
    end: Instant,
}

impl Sync {
    fn timed(sync: impl FnOnce() -> Result<()>) -> Result<Sync> {
        let begin = Instant::now();
        sync()?;
        let end = Instant::now();
        Ok(Sync { time: end.duration_since(begin), end })
    }
}

/// A store of [`STORE_BYTES`].
pub(super) struct Operation {
    number: u64,
    pub(super) page: u64,
    pub(super) within_page: u64,
}

impl Operation {
    fn offset(&self) -> u64 {
        self.page * PAGE_BYTES + self.within_page
    }

    /// What is stored: of each operation, and of each run, something else.
    pub(super) fn value(&self, nonce: u64) -> [u8; STORE_BYTES as usize] {
        let mut random = Prng::new((nonce << 40) | self.number);
        let mut value = [0; STORE_BYTES as usize];
        for word in value.as_chunks_mut::<8>().0 {
            *word = random.next_u64().to_ne_bytes();
        }
        value
    }
}

/// The operations, which are at the same places in every run and for every contender.
pub(super) fn operations(file_bytes: u64, count: u64) -> impl Iterator<Item = Operation> {
    let mut random = Prng::new(11);
    (0..count).map(move |number| {
        let page = random.below(file_bytes / PAGE_BYTES);
        let within_page = random.below(PAGE_BYTES / STORE_BYTES) * STORE_BYTES;
        Operation { number, page, within_page }
    })
}

fn length(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// Bytes that this process has read and written so far (proc_pid_io(5)): of a mapping, what it made dirty.
pub(super) fn transferred() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/io").context("/proc/self/io")?;
    let figure = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("/proc/self/io has no {name}"))?.trim().parse()?)
    };
    Ok((figure("read_bytes:")?, figure("write_bytes:")?))
}
