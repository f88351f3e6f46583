//! Runs contenders in turn, each in a process of its own, in a memory cgroup of its own.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use omnimap::machine::drop_cached;

use super::contender::Contender;
use super::results::Row;
use super::task::{Measurement, Task};
use crate::bench::memory_cgroup::MemoryCgroup;

/// What a process needs beside the budget: its heap, its page tables, what it has under way.
pub(super) fn beside_budget(file_bytes: u64) -> u64 {
    (48 << 20) + file_bytes / 256
}

pub(super) struct Bench {
    pub(super) begin: Instant,
    pub(super) runs: usize,
    /// Whose `reader` command is run.
    pub(super) program: PathBuf,
    /// What every process may have beside the budget.
    pub(super) beside_budget_bytes: u64,
    /// Below which cgroups are made; this process's own by default.
    pub(super) cgroup: Option<PathBuf>,
    /// Of the cgroups; `None` if there are none.
    pub(super) cgroup_version: Option<u8>,
    /// What could not be done, and why.
    pub(super) notes: Vec<String>,
}

impl Bench {
    /// Says what comes next.
    pub(super) fn step(&self, what: &str) {
        println!("{:5} s  {what}", self.begin.elapsed().as_secs());
    }

    /// Says something that readers of the figures must know, now and in the report.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            println!("NOTE: {note}");
            self.notes.push(note);
        }
    }

    /// Says that a run failed. Why is not for the report: it may name files of this machine.
    pub(super) fn failed(&mut self, what: &str, error: &anyhow::Error) {
        println!("{what}: {error:#}");
        self.note(format!("FAILED: {what}"));
    }

    /// Those that can take part.
    pub(super) fn able(&mut self, contenders: &[Contender]) -> Vec<Contender> {
        let mut able = contenders.to_vec();
        able.retain(|contender| match contender.obstacle(self.cgroup_version.is_some()) {
            Some(obstacle) => {
                self.note(format!("SKIPPED: {}: {obstacle}", contender.name()));
                false
            }
            None => true,
        });
        able
    }

    /// Runs the tasks in turn, A B A B …; all must have read the same.
    pub(super) fn compare(&mut self, what: &str, mut tasks: Vec<Task>) -> Result<Vec<Row>> {
        let able = self.able(&tasks.iter().map(|task| task.contender).collect::<Vec<_>>());
        tasks.retain(|task| able.contains(&task.contender));
        let mut rows: Vec<Row> =
            able.into_iter().map(|contender| Row { contender, runs: Vec::new() }).collect();
        for _ in 0..self.runs.max(1) {
            for (task, row) in tasks.iter().zip(&mut rows) {
                // One that fails is not to cost the figures of the others.
                match self.once(task) {
                    Ok(measurement) => row.runs.push(measurement),
                    Err(error) => self.failed(&format!("{what}, {}", task.contender.name()), &error),
                }
            }
        }
        rows.retain(|row| !row.runs.is_empty());
        let mut checksums = rows.iter().flat_map(|row| row.runs.iter().map(|run| run.checksum));
        let first = checksums.next();
        ensure!(checksums.all(|sum| Some(sum) == first), "{what}: the contenders read different bytes");
        Ok(rows)
    }

    /// One run of one contender, from a cold start.
    pub(super) fn once(&self, task: &Task) -> Result<Measurement> {
        drop_cached(&File::open(&task.path)?)?;
        let limit = task.budget_bytes + self.beside_budget_bytes;
        let cgroup =
            self.cgroup_version.map(|_| MemoryCgroup::make(self.cgroup.as_deref(), limit)).transpose()?;
        let task = Task { entrance: cgroup.as_ref().map(MemoryCgroup::entrance), ..task.clone() };
        let output = Command::new(&self.program)
            .arg("reader")
            .arg(serde_json::to_string(&task)?)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "{} under {} MiB (SIGKILL: too little)", output.status, limit >> 20);
        let measurement: Measurement = serde_json::from_slice(&output.stdout).context("a reader's answer")?;
        Ok(Measurement { peak_bytes: cgroup.and_then(|cgroup| cgroup.peak_bytes()), ..measurement })
    }
}
