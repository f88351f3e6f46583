//! What was measured, as it is written to benchmarks.json.

use serde::Serialize;

use super::contender::Contender;
use super::machine::Machine;
use super::pages::PAGE_BYTES;
use super::target::Verdict;
use super::task::Measurement;
use super::time_line::Traced;
use super::workload::{Scale, Workload};

#[derive(Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) date: String,
    pub(super) command: String,
    /// What all of it took.
    pub(super) seconds: u64,
    pub(super) scale: Scale,
    /// Bytes of the memory cgroup that each run had, if it had one.
    pub(super) limit_bytes: Option<u64>,
    pub(super) workloads: Vec<Outcome>,
    /// Of uniform reads.
    pub(super) time_lines: Vec<Traced>,
    pub(super) series: Vec<Series>,
    pub(super) verdicts: Vec<Verdict>,
    /// What could not be done, and why.
    pub(super) notes: Vec<String>,
}

/// One workload.
#[derive(Serialize)]
pub(super) struct Outcome {
    pub(super) workload: Workload,
    pub(super) contenders: Vec<Row>,
}

/// All runs of one contender.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) contender: Contender,
    pub(super) runs: Vec<Measurement>,
}

/// A plot: lines, and the points of each.
#[derive(Serialize)]
pub(super) struct Series {
    /// Of the file, without its ending.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What the reader must know beside the axes.
    pub(super) description: String,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) lines: Vec<Line>,
}

#[derive(Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Row {
    /// The run whose time is the median.
    pub(super) fn median(&self) -> Option<&Measurement> {
        let mut runs: Vec<&Measurement> = self.runs.iter().collect();
        runs.sort_by(|a, b| a.microseconds().total_cmp(&b.microseconds()));
        runs.get(runs.len() / 2).copied()
    }

    /// The median, the least and the most of something.
    pub(super) fn spread(&self, figure: impl Fn(&Measurement) -> f64) -> Option<[f64; 3]> {
        let mut figures: Vec<f64> = self.runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        Some([*figures.get(figures.len() / 2)?, *figures.first()?, *figures.last()?])
    }
}

impl Results {
    pub(super) fn row(&self, workload: Workload, contender: Contender) -> Option<&Row> {
        let outcome = self.workloads.iter().find(|outcome| outcome.workload == workload)?;
        outcome.contenders.iter().find(|row| row.contender == contender)
    }

    pub(super) fn microseconds(&self, workload: Workload, contender: Contender) -> Option<f64> {
        Some(self.row(workload, contender)?.spread(Measurement::microseconds)?[0])
    }

    /// Bytes from the store for each byte of a page that was touched.
    pub(super) fn bytes_per_byte(&self, workload: Workload, contender: Contender) -> Option<f64> {
        let median = self.row(workload, contender)?.median()?;
        Some(median.filled_bytes? as f64 / (median.operations * PAGE_BYTES) as f64)
    }
}
