//! `omnimap maps`

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use omnimap::machine::{MappedRange, ObjectKind, Sharing, mapped_ranges, mapping_processes};
use serde_json::json;

use crate::size;

/// List what processes have mapped through Omnimap, and how much of it is in memory, locked, dirty and private.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The processes; all that may be looked at, unless some are given.
    #[arg(value_name = "PID")]
    processes: Vec<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut found = Vec::new();
        if self.processes.is_empty() {
            // Those that end meanwhile are not there.
            for process in mapping_processes().context("/proc")? {
                found.extend(mapped_ranges(process).ok().map(|ranges| (process, ranges)));
            }
        }
        for process in &self.processes {
            let ranges = mapped_ranges(*process).map_err(|error| explain(*process, &error))?;
            found.push((*process, ranges));
        }
        found.retain(|(process, ranges)| !ranges.is_empty() || self.processes.contains(process));
        let mut output = io::stdout().lock();
        if self.json {
            print_json(&mut output, &found)?;
        } else {
            print_lines(&mut output, &found)?;
        }
        output.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn explain(process: u32, error: &io::Error) -> anyhow::Error {
    let what_to_do = match error.kind() {
        io::ErrorKind::NotFound => return anyhow::anyhow!("there is no process {process}"),
        io::ErrorKind::PermissionDenied => "; it can be looked at by its owner and by root",
        _ => "",
    };
    anyhow::anyhow!("process {process}: {error}{what_to_do}")
}

/// What the kernel calls it: the first 15 bytes of the program's name.
fn command(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn sharing(range: &MappedRange) -> &'static str {
    match range.sharing {
        Sharing::Shared => "shared",
        Sharing::Private => "private",
    }
}

fn kind(range: &MappedRange) -> Option<&'static str> {
    range.kind.map(|kind| match kind {
        ObjectKind::Paged => "paged",
        ObjectKind::Kernel => "kernel",
    })
}

fn print_json(output: &mut impl Write, found: &[(u32, Vec<MappedRange>)]) -> io::Result<()> {
    let mappings = |ranges: &[MappedRange]| -> Vec<_> {
        ranges
            .iter()
            .map(|range| {
                json!({
                    "start": range.addresses.start,
                    "end": range.addresses.end,
                    "object": range.object,
                    "offset": range.offset,
                    "kind": kind(range),
                    "protection": range.protection,
                    "sharing": sharing(range),
                    "resident_bytes": range.resident_bytes,
                    "locked_bytes": range.locked_bytes,
                    "dirty_bytes": range.dirty_bytes,
                    "private_bytes": range.private_bytes,
                })
            })
            .collect()
    };
    let processes: Vec<_> = found
        .iter()
        .map(|(process, ranges)| {
            json!({ "process": process, "command": command(*process), "mappings": mappings(ranges) })
        })
        .collect();
    writeln!(output, "{:#}", json!({ "processes": processes }))
}

fn print_lines(output: &mut impl Write, found: &[(u32, Vec<MappedRange>)]) -> io::Result<()> {
    let shown = |bytes: Option<u64>| bytes.map_or("-".to_owned(), size::show);
    for (process, ranges) in found {
        writeln!(output, "{process} {}", command(*process))?;
        let addresses =
            |range: &MappedRange| format!("{:x}-{:x}", range.addresses.start, range.addresses.end);
        let width = ranges.iter().map(|range| addresses(range).len()).max().unwrap_or(0);
        if !ranges.is_empty() {
            writeln!(
                output,
                "{:width$} {:4} {:7} {:6} {:>9} {:>9} {:>9} {:>9}  object",
                "addresses", "prot", "sharing", "kind", "resident", "locked", "dirty", "private"
            )?;
        }
        for range in ranges {
            let from = if range.offset == 0 { String::new() } else { format!(" +{:#x}", range.offset) };
            writeln!(
                output,
                "{:width$} {:4} {:7} {:6} {:>9} {:>9} {:>9} {:>9}  {}{from}",
                addresses(range),
                range.protection,
                sharing(range),
                kind(range).unwrap_or("-"),
                shown(range.resident_bytes),
                size::show(range.locked_bytes),
                shown(range.dirty_bytes),
                size::show(range.private_bytes),
                range.object,
            )?;
        }
    }
    Ok(())
}
