//! What is plotted: a cost against a size.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use omnimap::store::MemoryStore;
use omnimap::{Cache, FaultMode, MapOptions, Mapping};
use omnimap_testkit::Prng;

use super::contender::{Contender, OMNIMAP};
use super::pages::PAGE_BYTES;
use super::results::{Line, Outcome, Row, Series};
use super::run::Bench;
use super::sequence::Pattern;
use super::task::{Measurement, Task, With};
use super::workload::Scale;

/// Who is shown where showing all would take too long.
const SHOWN: [Contender; 4] =
    [Contender::Worker, Contender::InThread, Contender::KernelRandom, Contender::Pool];

/// From the runs of a workload that timed each access.
pub(super) fn latency(outcome: &Outcome) -> Series {
    let line = |row: &Row| {
        let of = row.median()?.latencies?;
        let points = [(2.0, of.of_500), (10.0, of.of_900), (100.0, of.of_990), (1000.0, of.of_999)];
        let points = points.map(|(x, nanoseconds)| (x, f64::from(nanoseconds) / 1e3)).to_vec();
        Some(Line { name: row.contender.name().to_owned(), points })
    };
    Series {
        name: "latency",
        title: "Uniform random, 1 thread: how long the slowest accesses take",
        description: "Percentiles of the run with the median time, each access timed by itself.".to_owned(),
        x: "one access in so many takes longer (2: the median; 100: the 99th percentile)",
        y: "µs",
        lines: outcome.contenders.iter().filter_map(line).collect(),
    }
}

/// Zipf, with budgets from a 64th of the file to all of it.
pub(super) fn budget(bench: &mut Bench, scale: &Scale, path: &Path) -> Result<Series> {
    bench.step("plot: budgets");
    let points = [64, 32, 16, 8, 4, 2, 1].map(|part| {
        let budget_bytes = scale.file_bytes / part;
        let task = Task { budget_bytes, ..plain(scale, path, Pattern::Zipf, scale.operations(16_000)) };
        (1.0 / part as f64, task)
    });
    Ok(Series {
        name: "budget",
        title: "Zipf 0.99, 1 thread: throughput against the budget",
        description: "At 1 the whole file is in memory.".to_owned(),
        x: "budget, as a part of the file",
        y: "thousand accesses a second",
        lines: lines(bench, &SHOWN, &points, |run| 1e3 / run.microseconds())?,
    })
}

/// Uniform, by more and more threads.
pub(super) fn threads(bench: &mut Bench, scale: &Scale, path: &Path) -> Result<Series> {
    bench.step("plot: threads");
    let points = [1, 2, 4, 8].map(|threads| {
        let operations = scale.operations(16_000) / threads;
        (threads as f64, Task { threads, ..plain(scale, path, Pattern::Uniform, operations) })
    });
    Ok(Series {
        name: "threads",
        title: "Uniform random: throughput against the number of threads",
        description: format!("With a budget of {} MiB.", scale.budget_bytes >> 20),
        x: "threads",
        y: "thousand accesses a second",
        lines: lines(bench, &SHOWN, &points, |run| 1e3 / run.microseconds())?,
    })
}

/// Uniform, in sparse files of several sizes, all larger than the budget: what a fault costs without a disk.
pub(super) fn object_size(bench: &mut Bench, scale: &Scale, beside: &Path) -> Result<Series> {
    bench.step("plot: sizes");
    let (budget_bytes, mut points) = (scale.file_bytes / 128, Vec::new());
    for part in [64, 16, 4, 1] {
        let bytes = scale.file_bytes / part / PAGE_BYTES * PAGE_BYTES;
        let path = beside.with_file_name(format!("sparse-{part}"));
        File::create(&path)?.set_len(bytes)?;
        let task = plain(scale, &path, Pattern::Uniform, scale.operations(30_000));
        points.push(((bytes >> 20) as f64, Task { bytes, budget_bytes, ..task }));
    }
    let contenders = [&OMNIMAP[..], &[Contender::KernelRandom]].concat();
    Ok(Series {
        name: "object-size",
        title: "Uniform random in a sparse file: cost against the object's size",
        description: format!(
            "What an access costs without a disk. The budget is {} KiB; the kernel's mapping has its cgroup, {} KiB, in which \
             small objects fit whole.",
            budget_bytes >> 10,
            (budget_bytes + bench.beside_budget_bytes) >> 10
        ),
        x: "object (MiB)",
        y: "µs an access",
        lines: lines(bench, &contenders, &points, Measurement::microseconds)?,
    })
}

/// A task over the whole file, without a contender yet.
fn plain(scale: &Scale, path: &Path, pattern: Pattern, operations: u64) -> Task {
    Task {
        contender: Contender::Pool,
        path: path.to_owned(),
        bytes: scale.file_bytes,
        budget_bytes: scale.budget_bytes,
        pattern,
        operations,
        threads: 1,
        warm_operations: Some(operations / 2),
        warm_seconds: 0,
        with: With::Nothing,
        packed: false,
        latencies: false,
        entrance: None,
    }
}

/// Runs all contenders at each point.
fn lines(
    bench: &mut Bench,
    contenders: &[Contender],
    points: &[(f64, Task)],
    figure: impl Fn(&Measurement) -> f64,
) -> Result<Vec<Line>> {
    let mut lines: Vec<(Contender, Line)> = contenders
        .iter()
        .map(|contender| (*contender, Line { name: contender.name().to_owned(), points: Vec::new() }))
        .collect();
    for (x, task) in points {
        let tasks = contenders.iter().map(|contender| Task { contender: *contender, ..task.clone() });
        let what = format!("plot, {:?} at {x}", task.pattern);
        for row in bench.compare(&what, tasks.collect())? {
            let line = lines.iter_mut().find(|(contender, _)| *contender == row.contender);
            let y = row.spread(&figure).map(|[median, ..]| median);
            if let (Some((_, line)), Some(y)) = (line, y) {
                line.points.push((*x, y));
            }
        }
    }
    Ok(lines.into_iter().map(|(_, line)| line).filter(|line| !line.points.is_empty()).collect())
}

/// Pages of all the mappings together.
const MAPPED_PAGES: u64 = 80_000;

/// The cost of a fault while more and more mappings are open, which share a budget of an eighth of their bytes.
pub(super) fn mappings(bench: &mut Bench, scale: &Scale, _: &Path) -> Result<Series> {
    bench.step("plot: mappings");
    let store = Arc::new(MemoryStore::new("memory", vec![0; (MAPPED_PAGES * PAGE_BYTES) as usize]));
    let mut lines = Vec::new();
    for contender in bench.able(&OMNIMAP) {
        let mode = contender.fault_mode().context("a contender without a fault mode")?;
        let mut points = Vec::new();
        for count in [1, 100, 10_000] {
            let accesses = scale.operations(20_000);
            let mut times = Vec::new();
            for _ in 0..bench.runs.max(1) {
                match with_mappings(&store, mode, count, accesses) {
                    Ok(time) => times.push(time),
                    Err(error) => bench.failed(&format!("{count} mappings, {}", contender.name()), &error),
                }
            }
            times.sort_unstable();
            if let Some(time) = times.get(times.len() / 2) {
                points.push((count as f64, time.as_secs_f64() * 1e6 / accesses as f64));
            }
        }
        lines.push(Line { name: contender.name().to_owned(), points });
    }
    Ok(Series {
        name: "mappings",
        title: "Cost of an access, seven of eight of them faults, against the number of mappings",
        description:
            "A store that has the bytes in memory; the mappings share the budget, and each has its object."
                .to_owned(),
        x: "open mappings, 80,000 pages together",
        y: "µs an access",
        lines,
    })
}

fn with_mappings(store: &Arc<MemoryStore>, mode: FaultMode, count: u64, accesses: u64) -> Result<Duration> {
    let cache = Cache::with_fault_mode(MAPPED_PAGES * PAGE_BYTES / 8, mode)?;
    let pages = MAPPED_PAGES / count;
    let map = |index| {
        let (offset, length) = (index * pages * PAGE_BYTES, pages * PAGE_BYTES);
        MapOptions::new().cache(&cache).offset(offset).length(length).map_shared(store.clone())
    };
    let mappings = (0..count).map(map).collect::<omnimap::Result<Vec<Mapping>>>()?;
    let mut random = Prng::new(5);
    let mut touch = || {
        let page = random.below(MAPPED_PAGES);
        black_box(mappings[(page / pages) as usize][(page % pages * PAGE_BYTES) as usize]);
    };
    // Until the budget is full.
    (0..MAPPED_PAGES / 4).for_each(|_| touch());
    let begin = Instant::now();
    (0..accesses).for_each(|_| touch());
    Ok(begin.elapsed())
}
