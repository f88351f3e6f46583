//! `omnimap demo`

mod gather;
mod passes;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use omnimap::MapOptions;
use omnimap::machine::{KernelFile, drop_cached};
use omnimap::store::{PackOptions, pack};

use crate::{progress, size};
use gather::Gathered;
use passes::{Blocks, Figures};

/// Map real bytes of this machine, plain and packed, under an eighth of their size, and check every one.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Bytes to gather.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "512MiB")]
    bytes: u64,
    /// The budget; an eighth of what was gathered, unless it is given.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    budget: Option<u64>,
    /// Threads that read at random.
    #[arg(long, default_value_t = 4)]
    threads: u64,
    /// Where the gathered bytes are put meanwhile (twice their size).
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Directories to gather from, instead of the Rust toolchain and /usr.
    #[arg(long = "from")]
    sources: Vec<PathBuf>,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let parent = self.directory.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new()
            .prefix("omnimap-demo")
            .tempdir_in(&parent)
            .with_context(|| format!("{}: give another with --directory", parent.display()))?;
        let (plain, packed) = (directory.path().join("plain"), directory.path().join("packed.zst"));

        let gathered = gather::gather(&self.sources, self.bytes, &plain)?;
        if gathered.bytes == 0 {
            bail!("found no bytes to gather; name a directory with --from");
        }
        let budget = self.budget.unwrap_or(gathered.bytes / 8);
        let mut output = io::stdout().lock();
        let sized = size::show(gathered.bytes);
        writeln!(output, "gathered {sized} from {} files below {}", gathered.files, gathered.origin)?;
        if gathered.bytes < self.bytes {
            writeln!(output, "that is all there is: {} were wanted", size::show(self.bytes))?;
        }
        let packed_bytes = pack_file(&plain, &packed, gathered.bytes)?;
        writeln!(output, "packed into {} (zstd, seekable)", size::show(packed_bytes))?;
        writeln!(output, "budget {}, {} threads read at random\n", size::show(budget), self.threads)?;

        let mut rows = Vec::new();
        for (name, path) in [("plain", &plain), ("packed", &packed)] {
            drop_cached(&File::open(path)?)?;
            let mapping = MapOptions::new().budget(budget).open(path)?;
            rows.push((name, self.read(&mapping, &gathered, name)?));
        }
        drop_cached(&File::open(&plain)?)?;
        let kernel = KernelFile::map(&File::open(&plain)?)?;
        rows.push(("kernel's own", self.read(&kernel, &gathered, "kernel's own")?));
        print_table(&mut output, &rows, gathered.bytes, budget)?;
        verdict(&mut output, &rows, budget)
    }

    fn read(&self, blocks: &dyn Blocks, gathered: &Gathered, name: &'static str) -> Result<Figures> {
        passes::read(blocks, gathered, self.threads, name).with_context(|| format!("reading {name}"))
    }
}

fn pack_file(plain: &Path, packed: &Path, length: u64) -> Result<u64> {
    let bar = progress::bytes("packing", Some(length));
    let file = File::create(packed)?;
    let done =
        pack(File::open(plain)?, BufWriter::new(&file), &PackOptions::default(), |at| bar.set_position(at))?;
    file.sync_all()?;
    bar.finish_and_clear();
    Ok(done.packed_bytes)
}

fn print_table(output: &mut impl Write, rows: &[(&str, Figures)], bytes: u64, budget: u64) -> io::Result<()> {
    let head = [
        "mapping",
        "size",
        "budget",
        "resident",
        "process",
        "faults",
        "fills",
        "in order",
        "at random",
        "SHA-256",
    ];
    let mut table = vec![head.map(str::to_owned)];
    for (name, figures) in rows {
        let shown = |value: Option<u64>| value.map_or("-".to_owned(), size::show);
        let count = |value: Option<u64>| value.map_or("-".to_owned(), |n| n.to_string());
        table.push([
            (*name).to_owned(),
            size::show(bytes),
            if figures.resident_bytes.is_some() { size::show(budget) } else { "none".to_owned() },
            shown(figures.resident_bytes),
            size::show(figures.process_bytes),
            count(figures.faults),
            count(figures.fills),
            format!("{}/s", size::show(figures.in_order_bytes_per_second)),
            format!("{}/s", size::show(figures.at_random_bytes_per_second)),
            if figures.wrong_blocks == 0 {
                "equal".to_owned()
            } else {
                format!("{} DIFFER", figures.wrong_blocks)
            },
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in &table {
        for (cell, width) in row.iter().zip(&widths) {
            write!(output, "{cell:>width$}  ")?;
        }
        writeln!(output)?;
    }
    writeln!(
        output,
        "\nresident: the most memory that the mapping had, as the kernel counts it; process: the most that the"
    )?;
    writeln!(output, "process grew by meanwhile. Rates include SHA-256 of every byte read.")
}

fn verdict(output: &mut impl Write, rows: &[(&str, Figures)], budget: u64) -> Result<ExitCode> {
    let wrong = rows.iter().any(|(_, figures)| figures.wrong_blocks > 0);
    let above = rows.iter().any(|(_, figures)| figures.resident_bytes.is_some_and(|r| r > budget));
    let verdict = match (wrong, above) {
        (false, false) => "\nEvery byte is equal to its source, and the budget was kept.",
        (true, _) => "\nBYTES DIFFER from their source.",
        (false, true) => "\nThe BUDGET WAS EXCEEDED.",
    };
    writeln!(output, "{verdict}")?;
    Ok(if wrong || above { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
