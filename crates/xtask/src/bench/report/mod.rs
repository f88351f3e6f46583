//! `cargo xtask bench report`: every workload on every contender, and docs/benchmarks.md with the figures.
//!
//! Each run is a [`reader`] in a process and a memory cgroup of its own; [`Bench`] takes turns and compares checksums,
//! [`workload`] says what is measured, [`target`] what is to be reached, [`document`] and [`plot`] write it down.

mod contender;
mod document;
mod machine;
mod other;
mod pages;
mod plot;
mod reader;
mod results;
mod run;
mod sequence;
mod series;
mod target;
mod task;
#[cfg(test)]
mod tests;
mod time_line;
mod workload;

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use omnimap::store::{PackOptions, pack};
use omnimap_testkit::Prng;

use super::memory_cgroup::MemoryCgroup;
use super::{Arguments, writes};
use machine::{Machine, ReadAhead};
use pages::PAGE_BYTES;
use results::{Outcome, Results};
use run::{Bench, beside_budget};
use workload::{READ, Scale, Workload};

pub(crate) use reader::Reader;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Makes the report small: files of 64 MiB, a budget of 8 MiB, one run. It is written to target/benchmarks.
    #[arg(long)]
    quick: bool,
    /// Where the report is written: docs, unless it is quick.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Only these workloads of the report, and no plots that need others.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// What the kernel reads ahead meanwhile, in KiB: what it has by default on most machines. Set back afterwards; 0 leaves it.
    #[arg(long, default_value_t = 128)]
    read_ahead_kib: u64,
}

const CHUNK_BYTES: NonZeroUsize = NonZeroUsize::new(16 << 10).unwrap();

pub(super) fn run(arguments: &Arguments, root: &Path) -> Result<()> {
    let options = &arguments.report;
    let scale = scale(arguments)?;
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let mut bench = Bench {
        begin: Instant::now(),
        runs: scale.runs,
        beside_budget_bytes: beside_budget(scale.file_bytes),
        program: std::env::current_exe()?,
        cgroup: arguments.cgroup.clone(),
        cgroup_version: None,
        notes: Vec::new(),
    };
    match MemoryCgroup::make(bench.cgroup.as_deref(), 64 << 20) {
        Ok(cgroup) => bench.cgroup_version = Some(cgroup.version()),
        Err(error) => {
            println!("no memory cgroup: {error:#} (see --cgroup)");
            bench.note(
                "NO MEMORY CGROUP CAN BE MADE: only contenders with a budget of their own run.".to_owned(),
            );
        }
    }
    let read_ahead =
        (options.read_ahead_kib > 0).then(|| ReadAhead::set(directory.path(), options.read_ahead_kib));
    if let Some(Err(error)) = &read_ahead {
        println!("read_ahead_kb cannot be set: {error:#}");
        bench.note("The kernel's readahead could not be set, and is what it was.".to_owned());
    }
    let mut results = Results {
        machine: Machine::here(directory.path(), bench.cgroup_version),
        date: machine::today(),
        command: command(arguments),
        seconds: 0,
        limit_bytes: bench.cgroup_version.map(|_| scale.budget_bytes + bench.beside_budget_bytes),
        scale,
        workloads: Vec::new(),
        time_lines: Vec::new(),
        series: Vec::new(),
        verdicts: Vec::new(),
        notes: Vec::new(),
    };
    let default_output = || root.join(if options.quick { "target/benchmarks" } else { "docs" });
    let output = options.output.clone().unwrap_or_else(default_output);
    // After each step, for it takes long: what was measured is not lost if the rest cannot be.
    let mut save = |bench: &Bench, results: &mut Results| {
        results.seconds = bench.begin.elapsed().as_secs();
        let targets = target::targets();
        let wanted = targets.iter().filter(|target| options.wants(target.workload));
        results.verdicts = wanted.map(|target| target.verdict(results)).collect();
        results.notes.clone_from(&bench.notes);
        write(results, &output)
    };
    measure(&mut bench, &mut results, options, directory.path(), &mut save)?;
    drop(read_ahead);
    tell(&results, &output)
}

/// What is done with the figures so far.
type Save<'a> = dyn FnMut(&Bench, &mut Results) -> Result<()> + 'a;

impl Options {
    fn wants(&self, workload: Workload) -> bool {
        self.only.is_empty() || self.only.contains(&workload)
    }
}

fn scale(arguments: &Arguments) -> Result<Scale> {
    let quick = arguments.report.quick;
    let (bytes, budget) = if quick { (64 << 20, 8 << 20) } else { (4 << 30, 512 << 20) };
    let bytes = arguments.bytes.unwrap_or(bytes) / PAGE_BYTES * PAGE_BYTES;
    let scale = Scale {
        file_bytes: bytes,
        budget_bytes: arguments.budget.unwrap_or(budget),
        runs: if quick { 1 } else { arguments.runs.max(1) },
        operations: arguments.operations,
        quick,
    };
    ensure!(bytes >= 1 << 20, "a file of less than 1 MiB");
    ensure!(bytes / PAGE_BYTES <= u64::from(u32::MAX), "a file of more pages than 32 bits count");
    Ok(scale)
}

/// As it can be given again; without paths, which are the machine's.
fn command(arguments: &Arguments) -> String {
    let mut command = "cargo xtask bench report".to_owned();
    if arguments.report.quick {
        command += " --quick";
    }
    let given = [
        ("bytes", arguments.bytes),
        ("budget", arguments.budget),
        ("operations", arguments.operations),
        ("runs", (arguments.runs != 5).then_some(arguments.runs as u64)),
        ("read-ahead-kib", Some(arguments.report.read_ahead_kib).filter(|kib| *kib != 128)),
    ];
    for (name, value) in given {
        command += &value.map_or_else(String::new, |value| format!(" --{name} {value}"));
    }
    for workload in arguments.report.only.iter().filter_map(clap::ValueEnum::to_possible_value) {
        command += &format!(" --only {}", workload.get_name());
    }
    command
}

fn measure(
    bench: &mut Bench,
    results: &mut Results,
    options: &Options,
    directory: &Path,
    save: &mut Save<'_>,
) -> Result<()> {
    let scale = results.scale.clone();
    let (plain, packed) = (directory.join("plain"), directory.join("packed.zst"));
    bench.step(&format!("writing files of {} MiB", scale.file_bytes >> 20));
    writes::write_pages(&plain, scale.file_bytes)?;
    if options.wants(Workload::Packed) {
        write_packed(&packed, scale.file_bytes)?;
    }
    for workload in READ.into_iter().filter(|workload| options.wants(*workload)) {
        bench.step(workload.title());
        let rows = bench.compare(workload.title(), workload.tasks(&scale, &plain, &packed))?;
        results.workloads.push(Outcome { workload, contenders: rows });
        if workload == Workload::Uniform {
            bench.step("Where the time of a read goes");
            results.time_lines = time_line::trace(bench, workload.tasks(&scale, &plain, &packed));
        }
        save(bench, results)?;
    }
    other::faults(bench, results, options)?;
    // After all others, for they change the file.
    other::writes(bench, results, options, &plain)?;
    save(bench, results)?;
    if let Some(uniform) = results.workloads.iter().find(|outcome| outcome.workload == Workload::Uniform) {
        results.series.push(series::latency(uniform));
    }
    if options.only.is_empty() {
        for plot in [series::budget, series::threads, series::mappings, series::object_size] {
            results.series.push(plot(bench, &scale, &plain)?);
            save(bench, results)?;
        }
    }
    save(bench, results)
}

/// Text that packs to about a third.
fn write_packed(path: &Path, bytes: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let options = PackOptions { chunk_bytes: CHUNK_BYTES, level: 1, ..PackOptions::default() };
    pack(Words { random: Prng::new(23), left: bytes as usize }, &mut file, &options, |_| {})?;
    file.flush()?;
    Ok(file.get_ref().sync_all()?)
}

/// Words of eight letters out of some hundreds.
struct Words {
    random: Prng,
    left: usize,
}

impl Read for Words {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = into.len().min(self.left);
        for word in into[..count].chunks_mut(8) {
            let letters = Prng::new(1 + self.random.below(256)).next_u64().to_ne_bytes();
            word.copy_from_slice(&letters[..word.len()]);
        }
        self.left -= count;
        Ok(count)
    }
}

fn write(results: &Results, output: &Path) -> Result<()> {
    let plots = output.join("benchmarks");
    fs::create_dir_all(&plots).with_context(|| format!("making {}", plots.display()))?;
    for series in &results.series {
        fs::write(plots.join(series.name).with_extension("svg"), plot::render(series))?;
    }
    let json = serde_json::to_string_pretty(results)? + "\n";
    fs::write(output.join("benchmarks.json"), json)?;
    Ok(fs::write(output.join("benchmarks.md"), document::render(results))?)
}

/// Says what was not reached.
///
/// # Errors
/// If runs failed.
fn tell(results: &Results, output: &Path) -> Result<()> {
    for verdict in results.verdicts.iter().filter(|verdict| verdict.met != Some(true)) {
        let (workload, contender) = (verdict.workload.title(), verdict.contender.name());
        println!("not met: {workload}, {contender}: {}: {:?}", verdict.target, verdict.measured);
    }
    println!("{}: {} workloads", output.display(), results.workloads.len());
    let failed = results.notes.iter().filter(|note| note.starts_with("FAILED")).count();
    ensure!(failed == 0, "{failed} kinds of runs failed; the notes of the report say which");
    Ok(())
}
