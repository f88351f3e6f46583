//! Workloads that are measured elsewhere too, for this report.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::contender::{Contender, OMNIMAP};
use super::results::{Outcome, Results, Row};
use super::run::Bench;
use super::task::Measurement;
use super::workload::Workload;
use crate::bench::{faults, writer, writes};

/// What a fault costs when the store has the bytes in memory (`bench faults`).
pub(super) fn faults(bench: &mut Bench, results: &mut Results, options: &Options) -> Result<()> {
    let contenders = bench.able(&OMNIMAP);
    let modes: Vec<_> = contenders.iter().filter_map(|contender| contender.fault_mode()).collect();
    let rows = |times: Vec<Vec<Duration>>, operations: u64| {
        let run = |time: Duration| Measurement {
            nanoseconds: time.as_nanos() as u64,
            operations,
            ..Measurement::default()
        };
        let row = |(contender, times): (&Contender, Vec<Duration>)| Row {
            contender: *contender,
            runs: times.into_iter().map(run).collect(),
        };
        contenders.iter().zip(times).map(row).collect()
    };
    if options.wants(Workload::FirstTouches) {
        bench.step(Workload::FirstTouches.title());
        let (times, pages) = faults::first_touches(&modes, bench.runs)?;
        let outcome = Outcome { workload: Workload::FirstTouches, contenders: rows(times, pages) };
        results.workloads.push(outcome);
    }
    if options.wants(Workload::FaultsEvicting) {
        bench.step(Workload::FaultsEvicting.title());
        let (times, _) = faults::evicting(&modes, bench.runs)?;
        let contenders = rows(times, u64::from(faults::ACCESSES));
        results.workloads.push(Outcome { workload: Workload::FaultsEvicting, contenders });
    }
    Ok(())
}

/// Random stores and a sync (`bench writes`), with the limit of the others here.
pub(super) fn writes(bench: &mut Bench, results: &mut Results, options: &Options, path: &Path) -> Result<()> {
    const CONTENDERS: [(Contender, writer::Contender); 7] = [
        (Contender::Worker, writer::Contender::Omnimap),
        (Contender::InThread, writer::Contender::OmnimapInThread),
        (Contender::Trap, writer::Contender::OmnimapTrap),
        (Contender::Kernel, writer::Contender::Kernel),
        (Contender::KernelRandom, writer::Contender::KernelRandom),
        (Contender::KernelSequential, writer::Contender::KernelSequential),
        (Contender::Pool, writer::Contender::Pool),
    ];
    if !options.wants(Workload::Writes) {
        return Ok(());
    }
    bench.step(Workload::Writes.title());
    let able = bench.able(&CONTENDERS.map(|(contender, _)| contender));
    let operations = results.scale.operations(160_000);
    let writing = writes::Bench {
        path: path.to_owned(),
        bytes: results.scale.file_bytes,
        budget_bytes: results.scale.budget_bytes,
        beside_budget_bytes: Some(bench.beside_budget_bytes),
        operations,
        cgroup: bench.cgroup.clone(),
    };
    let mut rows: Vec<Row> = able.iter().map(|c| Row { contender: *c, runs: Vec::new() }).collect();
    let mut nonce = 0;
    for _ in 0..bench.runs {
        for row in &mut rows {
            let Some((contender, writer)) = CONTENDERS.iter().find(|(c, _)| *c == row.contender) else {
                continue;
            };
            nonce += 1;
            let run = writing.once(*writer, nonce, bench.cgroup_version.is_some());
            match run.and_then(|run| writing.check(nonce).map(|()| run)) {
                Ok((cost, peak)) => row.runs.push(Measurement {
                    nanoseconds: cost.time.as_nanos() as u64,
                    operations,
                    disk_bytes: cost.read_bytes,
                    peak_bytes: bench.cgroup_version.map(|_| peak),
                    ..Measurement::default()
                }),
                Err(error) => bench.failed(&format!("writes, {}", contender.name()), &error),
            }
        }
    }
    rows.retain(|row| !row.runs.is_empty());
    results.workloads.push(Outcome { workload: Workload::Writes, contenders: rows });
    Ok(())
}
