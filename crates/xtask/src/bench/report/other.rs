//! Workloads that are measured elsewhere too, for this report.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::contender::{Contender, MECHANISM, OMNIMAP};
use super::results::{Outcome, Results, Row};
use super::run::Bench;
use super::task::Measurement;
use super::workload::Workload;
use crate::bench::faults::{self, Server};
use crate::bench::{writer, writes};

/// What a fault costs when the store has the bytes in memory (`bench faults`).
pub(super) fn faults(bench: &mut Bench, results: &mut Results, options: &Options) -> Result<()> {
    type Measure = fn(&[Server], usize) -> Result<Vec<Vec<Duration>>>;
    let workloads: [(_, &[Contender], Measure, _); 2] = [
        (Workload::FirstTouches, &[Contender::FillAlone], faults::first_touches, faults::TOUCHES),
        (Workload::FaultsEvicting, &[], faults::evicting, faults::ACCESSES.into()),
    ];
    for (workload, others, measure, operations) in workloads {
        if !options.wants(workload) {
            continue;
        }
        bench.step(workload.title());
        let mut servers: Vec<(Contender, Server)> = Vec::new();
        for contender in bench.able(&[&OMNIMAP[..], &MECHANISM, others].concat()) {
            servers.extend(contender.fault_server().map(|server| (contender, server)));
        }
        let (contenders, servers): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
        let run = |time: Duration| Measurement {
            nanoseconds: time.as_nanos() as u64,
            operations,
            ..Measurement::default()
        };
        let times = measure(&servers, bench.runs)?;
        let row = |(contender, times): (Contender, Vec<Duration>)| Row {
            contender,
            runs: times.into_iter().map(run).collect(),
        };
        let contenders = contenders.into_iter().zip(times).map(row).collect();
        results.workloads.push(Outcome { workload, contenders });
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
