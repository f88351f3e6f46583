//! What is measured: patterns, sizes, and the targets.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::contender::{Contender, KERNEL, OMNIMAP};
use super::pages::PAGE_BYTES;
use super::sequence::Pattern;
use super::task::{Task, With};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    ResidentSequential,
    ResidentRandom,
    FirstTouches,
    FaultsEvicting,
    Uniform,
    UniformThreads,
    Zipf,
    ZipfBesideScan,
    Sequential,
    Backward,
    Strided,
    OneByOne,
    Prefetched,
    Packed,
    Writes,
}

/// Those that a [`reader`](super::reader) runs, in the order in which they are shown.
pub(super) const READ: [Workload; 12] = [
    Workload::ResidentSequential,
    Workload::ResidentRandom,
    Workload::Uniform,
    Workload::UniformThreads,
    Workload::Zipf,
    Workload::ZipfBesideScan,
    Workload::Sequential,
    Workload::Backward,
    Workload::Strided,
    Workload::OneByOne,
    Workload::Prefetched,
    Workload::Packed,
];

/// Before accesses to what is wholly in memory are timed: what is in use is gathered into large pages by then.
const WARM_SECONDS: u64 = 6;

/// Sizes that are the same for all workloads.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Scale {
    pub(super) file_bytes: u64,
    pub(super) budget_bytes: u64,
    pub(super) runs: usize,
    /// Instead of what each workload has by default.
    pub(super) operations: Option<u64>,
    pub(super) quick: bool,
}

impl Scale {
    /// How many accesses there are, of so many by default.
    pub(super) fn operations(&self, default: u64) -> u64 {
        self.operations.unwrap_or(if self.quick { (default / 20).max(100) } else { default })
    }
}

impl Workload {
    pub(super) fn title(self) -> &'static str {
        match self {
            Workload::ResidentSequential => "Resident, in order",
            Workload::ResidentRandom => "Resident, at random",
            Workload::FirstTouches => "Fault service, first touches",
            Workload::FaultsEvicting => "Fault service, evicting",
            Workload::Uniform => "Uniform random, 1 thread",
            Workload::UniformThreads => "Uniform random, 4 threads",
            Workload::Zipf => "Zipf 0.99, 1 thread",
            Workload::ZipfBesideScan => "Zipf 0.99 beside a scan",
            Workload::Sequential => "Sequential scan",
            Workload::Backward => "Backward scan",
            Workload::Strided => "Strided scan",
            Workload::OneByOne => "Scattered pages, one by one",
            Workload::Prefetched => "Scattered pages, prefetched",
            Workload::Packed => "Packed, zipf 0.99",
            Workload::Writes => "Random writes and a sync",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Workload::ResidentSequential => {
                "An object of half the budget, all of it in memory and in use for some seconds, a byte of each page in order."
            }
            Workload::ResidentRandom => {
                "An object of half the budget, all of it in memory and in use for some seconds, a byte of any page."
            }
            Workload::FirstTouches => {
                "A store that has the bytes in memory; each page is touched once, in no order, and there is room."
            }
            Workload::FaultsEvicting => {
                "A store that has the bytes in memory, eight times the budget; any byte, so that seven of eight accesses fault, \
                 and each fault evicts."
            }
            Workload::Uniform => "Any page of the file; the budget is full when the time begins.",
            Workload::UniformThreads => "The same by four threads; the time that passes for each access.",
            Workload::Zipf => {
                "Few pages often; five times as many accesses have been made when the time begins, so that what is in memory was \
                 chosen."
            }
            Workload::ZipfBesideScan => {
                "Few pages often, with another thread that reads the whole file in order, again and again; the time of the first. \
                 The budget is full when it begins."
            }
            Workload::Sequential => "A byte of each page, in order, cold.",
            Workload::Backward => "A byte of each page, from the file's end on, cold.",
            Workload::Strided => "A byte of every fifth page, in order, cold.",
            Workload::OneByOne => "Scattered pages, each fetched when it is touched, cold.",
            Workload::Prefetched => {
                "The same pages, asked for at once (`prefetch_many`; of the kernel, madvise(WILLNEED) for each) and then touched; \
                 the time of both."
            }
            Workload::Packed => {
                "As zipf, in a seekable zstd file with chunks of 16 KiB. A page that is touched counts as used. The kernel cannot \
                 map it."
            }
            Workload::Writes => "Stores of 64 bytes at random places, and a sync, cold.",
        }
    }

    /// Bytes that an access stands for, where a rate says more than a time.
    pub(super) fn bytes_per_operation(self) -> Option<u64> {
        matches!(self, Workload::Sequential | Workload::Backward).then_some(PAGE_BYTES)
    }

    /// Whether nothing is fetched, and nanoseconds count.
    pub(super) fn is_resident(self) -> bool {
        matches!(self, Workload::ResidentSequential | Workload::ResidentRandom)
    }

    fn contenders(self) -> Vec<Contender> {
        let (kernel, others): (&[Contender], &[Contender]) = match self {
            Workload::Sequential => (&KERNEL, &[Contender::Pool, Contender::Stream]),
            // The pool fetches nothing before it is asked for.
            Workload::Prefetched => (&KERNEL, &[]),
            Workload::Packed => (&[], &[Contender::Pool]),
            Workload::Uniform => {
                (&KERNEL, &[Contender::Pool, Contender::WorkerAlone, Contender::InThreadAlone])
            }
            _ => (&KERNEL, &[Contender::Pool]),
        };
        [&OMNIMAP[..], kernel, others].concat()
    }

    /// What each contender is to do. Of the files, `plain` is incompressible.
    pub(super) fn tasks(self, scale: &Scale, plain: &Path, packed: &Path) -> Vec<Task> {
        let file_pages = scale.file_bytes / PAGE_BYTES;
        let half = (scale.budget_bytes / 2).min(scale.file_bytes) / PAGE_BYTES;
        let scanned = |default: u64| file_pages.min(if scale.quick { default / 32 } else { default });
        let (pattern, pages, operations, warm) = match self {
            Workload::ResidentSequential => {
                (Pattern::Forward, half, scale.operations(40_000_000), Some(2 * half))
            }
            Workload::ResidentRandom => {
                (Pattern::Uniform, half, scale.operations(20_000_000), Some(2 * half))
            }
            Workload::Uniform => (Pattern::Uniform, file_pages, scale.operations(30_000), Some(5_000)),
            Workload::UniformThreads => {
                (Pattern::Uniform, file_pages, scale.operations(40_000) / 4, Some(5_000))
            }
            // What is in memory when the time begins has been chosen by use, no longer by the fill before.
            Workload::Zipf => {
                let operations = scale.operations(80_000);
                (Pattern::Zipf, file_pages, operations, Some(5 * operations))
            }
            Workload::ZipfBesideScan => {
                (Pattern::Zipf, file_pages, scale.operations(30_000), Some(scale.operations(30_000) / 2))
            }
            Workload::Sequential => (Pattern::Forward, file_pages, scanned(256 << 10), None),
            Workload::Backward => (Pattern::Backward, file_pages, scanned(128 << 10), None),
            Workload::Strided => (Pattern::Strided, file_pages, scanned(320 << 10) / 5, None),
            Workload::OneByOne | Workload::Prefetched => {
                (Pattern::Uniform, file_pages, scale.operations(4096).min(4096), None)
            }
            _ => (Pattern::Zipf, file_pages, scale.operations(100_000), Some(scale.operations(100_000) / 2)),
        };
        let task = |contender| Task {
            contender,
            path: if self == Workload::Packed { packed } else { plain }.to_owned(),
            bytes: pages * PAGE_BYTES,
            budget_bytes: scale.budget_bytes,
            pattern,
            operations,
            threads: if self == Workload::UniformThreads { 4 } else { 1 },
            warm_operations: warm,
            warm_seconds: if self.is_resident() && !scale.quick { WARM_SECONDS } else { 0 },
            with: match self {
                Workload::ZipfBesideScan => With::Scan,
                Workload::Prefetched => With::Prefetch,
                _ => With::Nothing,
            },
            packed: self == Workload::Packed,
            latencies: self == Workload::Uniform,
            entrance: None,
        };
        self.contenders().into_iter().map(task).collect()
    }
}
