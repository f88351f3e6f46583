//! Random stores to a file that is larger than the memory there is for it, and a sync: cold.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use omnimap::machine::drop_cached;
use omnimap::store::{AlignedBytes, BackingStore, FileStore};
use omnimap_testkit::Prng;

use super::Arguments;
use super::memory_cgroup::MemoryCgroup;
use super::writer::{Contender, Cost, Operation, PAGE_BYTES, STORE_BYTES, operations};

const FILE_BYTES: u64 = 4 << 30;
const BUDGET_BYTES: u64 = 512 << 20;
const OPERATIONS: u64 = 300_000;
/// Pages that were stored to, and as many of all pages, that are looked at after each run.
const CHECKED_PAGES: u64 = 4096;

const CONTENDERS: [(Contender, &str); 5] = [
    (Contender::Omnimap, "omnimap"),
    (Contender::OmnimapInThread, "omnimap, in-thread"),
    (Contender::Kernel, "kernel's mapping"),
    (Contender::KernelRandom, "kernel's mapping, RANDOM"),
    (Contender::Pool, "buffer pool, direct I/O"),
];

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let bytes = arguments.bytes.unwrap_or(FILE_BYTES) / PAGE_BYTES * PAGE_BYTES;
    let bench = Bench {
        path: directory.path().join("written"),
        bytes,
        budget_bytes: arguments.budget.unwrap_or(BUDGET_BYTES),
        beside_budget_bytes: None,
        operations: arguments.operations.unwrap_or(OPERATIONS),
        cgroup: arguments.cgroup.clone(),
    };
    ensure!(bytes > 0, "a file of no pages");
    let cgroup_version = match MemoryCgroup::make(arguments.cgroup.as_deref(), 64 << 20) {
        Ok(cgroup) => Some(cgroup.version()),
        Err(error) => {
            println!(
                "writes: SKIPPED: the kernel's mapping. It has no budget without a memory cgroup, and none can be made: \
                 {error:#} (see --cgroup). THE OTHERS RUN UNBOUNDED but for their own budget."
            );
            None
        }
    };
    write_pages(&bench.path, bytes)?;
    let mut costs: [Vec<(Cost, u64)>; CONTENDERS.len()] = Default::default();
    let mut nonce = 0;
    for _ in 0..arguments.runs.max(1) {
        for ((contender, name), costs) in CONTENDERS.into_iter().zip(&mut costs) {
            let needs_cgroup = matches!(contender, Contender::Kernel | Contender::KernelRandom);
            if needs_cgroup && cgroup_version.is_none() {
                continue;
            }
            nonce += 1;
            costs.push(bench.once(contender, nonce, cgroup_version.is_some()).context(name)?);
            bench.check(nonce).context(name)?;
        }
    }
    bench.print(&costs, arguments.runs, cgroup_version);
    Ok(())
}

pub(super) struct Bench {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) budget_bytes: u64,
    /// What a process may have beside the budget; as much as it needs, unless it is given.
    pub(super) beside_budget_bytes: Option<u64>,
    pub(super) operations: u64,
    /// Below which cgroups are made.
    pub(super) cgroup: Option<PathBuf>,
}

impl Bench {
    /// One run of one contender; what it took, and the most memory that it had.
    pub(super) fn once(&self, contender: Contender, nonce: u64, bounded: bool) -> Result<(Cost, u64)> {
        drop_cached(&File::open(&self.path)?)?;
        let limit = self.budget_bytes + self.beside_budget_bytes.unwrap_or(beside_budget(contender));
        let cgroup = bounded.then(|| MemoryCgroup::make(self.cgroup.as_deref(), limit)).transpose()?;
        let name = clap::ValueEnum::to_possible_value(&contender).context("a contender without a name")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("writer").arg(name.get_name()).arg(&self.path);
        for (option, value) in
            [("--budget", self.budget_bytes), ("--operations", self.operations), ("--nonce", nonce)]
        {
            command.arg(option).arg(value.to_string());
        }
        if let Some(cgroup) = &cgroup {
            command.arg("--entrance").arg(cgroup.entrance());
        }
        let output = command.stderr(std::process::Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{} under {} MiB (SIGKILL: too little)", output.status, limit >> 20);
        let peak = cgroup.and_then(|cgroup| cgroup.peak_bytes()).unwrap_or(0);
        Ok((Cost::parse(&String::from_utf8(output.stdout)?)?, peak))
    }

    /// Whether the file holds what the last run had to write, and where it had to write nothing, what was there before.
    pub(super) fn check(&self, nonce: u64) -> Result<()> {
        // Read from the disk, and not from what the kernel has cached.
        let store = FileStore::open(&self.path)?;
        let mut by_page: HashMap<u64, Vec<Operation>> = HashMap::new();
        for operation in operations(self.bytes, self.operations) {
            by_page.entry(operation.page).or_default().push(operation);
        }
        let stride = (self.operations / CHECKED_PAGES).max(1) as usize;
        let touched = operations(self.bytes, self.operations).step_by(stride).map(|o| o.page);
        let mut random = Prng::new(nonce);
        let anywhere = (0..CHECKED_PAGES).map(|_| random.below(self.bytes / PAGE_BYTES));
        let mut found = AlignedBytes::new(PAGE_BYTES as usize);
        for page in touched.chain(anywhere) {
            let mut expected = original_page(page);
            for operation in by_page.get(&page).into_iter().flatten() {
                expected[operation.within_page as usize..][..STORE_BYTES as usize]
                    .copy_from_slice(&operation.value(nonce));
            }
            store.read_at(page * PAGE_BYTES, &mut found)?;
            ensure!(found[..] == expected[..], "page {page} does not hold what was to be written");
        }
        Ok(())
    }

    fn print(&self, costs: &[Vec<(Cost, u64)>], runs: usize, cgroup_version: Option<u8>) {
        let Bench { budget_bytes: budget, operations, .. } = self;
        println!(
            "writes, {} MiB incompressible, budget {} MiB, {operations} random stores of {STORE_BYTES} bytes and a sync, cold, \
             {runs} runs; {}:",
            self.bytes >> 20,
            budget >> 20,
            match cgroup_version {
                Some(version) => format!(
                    "memory cgroups (v{version}) of {} MiB, omnimap {}",
                    (budget + beside_budget(Contender::Kernel)) >> 20,
                    (budget + beside_budget(Contender::Omnimap)) >> 20
                ),
                None => "NO memory cgroups".to_owned(),
            }
        );
        let ours = median(&costs[0], |(cost, _)| cost.time.as_secs_f64());
        for ((_, name), costs) in CONTENDERS.iter().zip(costs).filter(|(_, costs)| !costs.is_empty()) {
            let time = median(costs, |(cost, _)| cost.time.as_secs_f64());
            let each = 1e6 / *operations as f64;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            println!(
                "  {name:24} {:8.1} µs an operation (of it the sync {:6.1}), {:6.2} of omnimap's time, {:6.0} MiB read, \
                 {:6.0} written, peak {:5.0} MiB",
                time * each,
                median(costs, |(cost, _)| cost.sync.as_secs_f64()) * each,
                time / ours,
                median(costs, |(cost, _)| mib(cost.read_bytes)),
                median(costs, |(cost, _)| mib(cost.written_bytes)),
                median(costs, |(_, peak)| mib(*peak)),
            );
        }
    }
}

/// What a process may have beside the budget: its heap, its tables, and the checksums of what it has read (32 bytes a page
/// at the most, by [`omnimap::MapOptions::verify`]).
fn beside_budget(contender: Contender) -> u64 {
    let ours = matches!(contender, Contender::Omnimap | Contender::OmnimapInThread | Contender::OmnimapTrap);
    if ours { 96 << 20 } else { 32 << 20 }
}

fn median(costs: &[(Cost, u64)], figure: impl Fn(&(Cost, u64)) -> f64) -> f64 {
    let mut figures: Vec<f64> = costs.iter().map(figure).collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

pub(super) fn write_pages(path: &Path, bytes: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for page in 0..bytes / PAGE_BYTES {
        file.write_all(&original_page(page))?;
    }
    file.flush()?;
    Ok(file.get_ref().sync_all()?)
}

/// What a page holds before anything is stored to it.
fn original_page(page: u64) -> [u8; PAGE_BYTES as usize] {
    let mut random = Prng::new(page);
    let mut bytes = [0; PAGE_BYTES as usize];
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = random.next_u64().to_ne_bytes();
    }
    bytes
}
