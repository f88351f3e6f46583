//! `cargo xtask bench`: interleaved runs, medians, ratios.

mod atomic;
mod cat;
mod clock_pool;
mod faults;
mod mechanism;
mod memory_cgroup;
mod remote;
mod report;
mod sequential;
mod sparse;
mod views;
mod writer;
mod writes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

pub(crate) use report::Reader;
pub(crate) use writer::Writer;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; everything but the report, unless it is given.
    #[arg(value_enum)]
    what: Vec<What>,
    /// Runs of each contender; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of the files; 1 GiB unless it is given, and 4 GiB for the writes and the report.
    #[arg(long)]
    bytes: Option<u64>,
    /// Bytes of memory that the writes and the report's contenders have; 512 MiB unless it is given.
    #[arg(long)]
    budget: Option<u64>,
    /// How many writes there are in a run, 300,000 unless it is given; of the report, accesses in a run of each workload but the scans.
    #[arg(long)]
    operations: Option<u64>,
    /// The memory cgroup below which contenders are put into others; this process's own unless it is given.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Where files are put meanwhile: on the disk that is to be measured.
    #[arg(long, default_value = "target")]
    directory: PathBuf,
    #[command(flatten, next_help_heading = "Options of the report")]
    report: report::Options,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// `omnimap cat` of a packed file against `zstd -dc`.
    Cat,
    /// A plain file read in order, cold, against the kernel's mapping.
    Sequential,
    /// A 10 TiB sparse file of which 1,000 pages are touched.
    Sparse,
    /// A page that is in the store's memory already.
    Faults,
    /// Random stores to a file larger than the memory, and a sync, against the kernel's mapping and a buffer pool.
    Writes,
    /// A sync of scattered pages that is all or nothing, against one that is not.
    Atomic,
    /// Mapping and unmapping a view of an open object, with up to 30,000 others, and opening an object.
    Views,
    /// An object of an S3 server behind 30 ms and 100 MB/s, against a parallel downloader. Takes 4 minutes.
    Remote,
    /// All workloads on Omnimap, the kernel's mapping and a buffer pool; writes docs/benchmarks.md. Takes an hour.
    Report,
}

impl Arguments {
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        let wanted = |what| self.what.is_empty() || self.what.contains(&what);
        if wanted(What::Faults) {
            faults::run(self)?;
        }
        if wanted(What::Views) {
            views::run(self, root)?;
        }
        if wanted(What::Sparse) {
            sparse::run(self)?;
        }
        if wanted(What::Sequential) {
            sequential::run(self)?;
        }
        if wanted(What::Cat) {
            cat::run(self)?;
        }
        if wanted(What::Remote) {
            remote::run(root)?;
        }
        if wanted(What::Atomic) {
            atomic::run(self)?;
        }
        if wanted(What::Writes) {
            writes::run(self)?;
        }
        // It writes into docs, so nobody gets it who did not ask.
        if self.what.contains(&What::Report) {
            report::run(self, root)?;
        }
        Ok(())
    }

    /// Bytes of the files, where nothing else is said.
    fn file_bytes(&self) -> u64 {
        self.bytes.unwrap_or(1 << 30)
    }
}

/// Runs the contenders in turn, A B A B …, and gives the median time of each.
fn medians<const N: usize>(
    runs: usize,
    mut contenders: [Box<dyn FnMut() -> Result<Duration> + '_>; N],
) -> Result<[Duration; N]> {
    let mut times: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..runs.max(1) {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            times.push(contender()?);
        }
    }
    Ok(times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    }))
}

/// MiB a second.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}
