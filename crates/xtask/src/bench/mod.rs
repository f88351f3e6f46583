//! `cargo xtask bench`: interleaved runs, medians, ratios.

mod cat;
mod faults;
mod sequential;
mod sparse;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; everything, unless it is given.
    #[arg(value_enum)]
    what: Vec<What>,
    /// Runs of each contender; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Bytes of the files that are read.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Where files are put meanwhile: on the disk that is to be measured.
    #[arg(long, default_value = "target")]
    directory: PathBuf,
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
}

impl Arguments {
    pub(crate) fn run(&self) -> Result<()> {
        let wanted = |what| self.what.is_empty() || self.what.contains(&what);
        if wanted(What::Faults) {
            faults::run(self)?;
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
        Ok(())
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
