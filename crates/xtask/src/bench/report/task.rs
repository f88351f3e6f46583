//! What a reader is asked to do, and what it answers: JSON between two processes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::sequence::Pattern;

/// One run of one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) contender: Contender,
    pub(super) path: PathBuf,
    /// How much of the file is mapped, from its beginning.
    pub(super) bytes: u64,
    pub(super) budget_bytes: u64,
    pub(super) pattern: Pattern,
    /// Accesses of each thread, timed.
    pub(super) operations: u64,
    pub(super) threads: u64,
    /// Accesses before, which are not timed; in front of them as much as the budget holds is read in the file's order.
    /// `None` for a cold start.
    pub(super) warm_operations: Option<u64>,
    /// How long those go on, again and again, at the least: whoever gathers what is in use into large pages takes some seconds.
    pub(super) warm_seconds: u64,
    /// What runs beside or before the accesses.
    pub(super) with: With,
    /// Whether the file is a seekable zstd.
    pub(super) packed: bool,
    /// Whether each access is timed by itself too.
    pub(super) latencies: bool,
    /// The cgroup.procs to be put into.
    pub(super) entrance: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum With {
    Nothing,
    /// Another thread that reads everything, again and again, in the file's order.
    Scan,
    /// A prefetch of all pages of the sequence, timed with the accesses.
    Prefetch,
}

/// What one run took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Measurement {
    pub(super) nanoseconds: u64,
    /// Accesses, of all threads.
    pub(super) operations: u64,
    /// Of all that was read, in order.
    pub(super) checksum: u64,
    /// Bytes that the process had read from the disk meanwhile, as the kernel counts them.
    pub(super) disk_bytes: u64,
    /// Bytes that the object's store gave meanwhile (Omnimap alone).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) filled_bytes: Option<u64>,
    /// Pages that were scanned beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scanned_pages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latencies: Option<Latencies>,
    /// The most memory that the process had, where a memory cgroup tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peak_bytes: Option<u64>,
}

/// Nanoseconds that so many in a thousand accesses took at the most.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Latencies {
    pub(super) of_500: u32,
    pub(super) of_900: u32,
    pub(super) of_990: u32,
    pub(super) of_999: u32,
    pub(super) max: u32,
}

impl Latencies {
    pub(super) fn of(mut nanoseconds: Vec<u32>) -> Option<Latencies> {
        nanoseconds.sort_unstable();
        let max = *nanoseconds.last()?;
        let of = |thousandth: usize| nanoseconds[(nanoseconds.len() - 1) * thousandth / 1000];
        Some(Latencies { of_500: of(500), of_900: of(900), of_990: of(990), of_999: of(999), max })
    }
}

impl Measurement {
    /// Microseconds of an access; of several threads, the time that passed for each.
    pub(super) fn microseconds(&self) -> f64 {
        self.nanoseconds as f64 / 1e3 / self.operations.max(1) as f64
    }
}
