//! The figures as text: docs/benchmarks.md.

use std::fmt::Write;

use super::contender::{Contender, KERNEL};
use super::results::{Outcome, Results, Row, Series};
use super::run::beside_budget;
use super::target::Verdict;
use super::task::Measurement;
use super::time_line::Traced;
use super::workload::Workload;

const HEAD: &str = "# Benchmarks

Made by `cargo xtask bench report`; not to be edited. The figures with every run of every contender are in \
[benchmarks.json](benchmarks.json).

";

/// The whole document.
pub(super) fn render(results: &Results) -> String {
    let mut text = HEAD.to_owned();
    if results.scale.quick {
        text.push_str(
            "**These figures are of a quick run, which shows that everything works, and not how fast it is.**\n\n",
        );
    }
    conditions(results, &mut text);
    verdicts(results, &mut text);
    for outcome in &results.workloads {
        workload(results, outcome, &mut text);
        if outcome.workload == Workload::Uniform && !results.time_lines.is_empty() {
            time_lines(&results.time_lines, &mut text);
        }
    }
    text.push_str("## Plots\n");
    for Series { name, title, description, .. } in &results.series {
        let _ = write!(text, "\n### {title}\n\n{description}\n\n![{title}](benchmarks/{name}.svg)\n");
    }
    text
}

fn conditions(results: &Results, text: &mut String) {
    let (machine, scale) = (&results.machine, &results.scale);
    let _ = writeln!(
        text,
        "## How they were made\n\n| | |\n|---|---|\n| command | `{}` |\n| date | {}; it took {} s |\n| kernel | Linux {} |\n\
         | processors | {}, {} |\n| memory | {} MiB |\n| disk | {} |\n| kernel's readahead | {} |\n| huge pages | {} |",
        results.command,
        results.date,
        results.seconds,
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.memory_bytes >> 20,
        machine.disk,
        machine.read_ahead_kib.map_or_else(|| "?".to_owned(), |kib| format!("{kib} KiB")),
        machine.huge_pages,
    );
    let limit = match (machine.cgroup_version, results.limit_bytes) {
        (Some(version), Some(bytes)) => {
            format!("{} MiB for every contender (memory cgroup, version {version})", bytes >> 20)
        }
        _ => "NONE: no memory cgroup could be made".to_owned(),
    };
    let _ = writeln!(
        text,
        "| file | {} MiB, incompressible |\n| budget | {} MiB |\n| limit of memory | {limit} |\n| runs | {}, the median counts |\n",
        scale.file_bytes >> 20,
        scale.budget_bytes >> 20,
        scale.runs,
    );
    let _ = writeln!(
        text,
        "Each run is a process of its own, contenders take turns, and before each run the file is dropped from the kernel's \
         cache. All read the same pages in the same order, and what they read is compared by a checksum. Omnimap is given a \
         budget and no advice; the kernel's mapping may use all of its cgroup, which is {} MiB larger than that budget, so \
         that what a process needs beside its pages has room; the pool has as many pages as fit in the budget, and reads \
         them with O_DIRECT. An access is one byte of a page.\n",
        beside_budget(scale.file_bytes) >> 20,
    );
    for note in &results.notes {
        let _ = writeln!(text, "- **{note}**");
    }
    if !results.notes.is_empty() {
        text.push('\n');
    }
}

fn verdicts(results: &Results, text: &mut String) {
    let met = results.verdicts.iter().filter(|verdict| verdict.met == Some(true)).count();
    let _ = writeln!(
        text,
        "## Targets\n\n{met} of {} are met. \"No engine\" is what the fault mode reaches where a fault is a read, a fill and \
         nothing else: what is missing there, the machine's signals, wakes and system calls take.\n\n\
         | workload | contender | target | measured | no engine | met |\n|---|---|---|---:|---:|---|",
        results.verdicts.len()
    );
    for verdict in &results.verdicts {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            verdict.workload.title(),
            verdict.contender.name(),
            verdict.target,
            measured(verdict),
            verdict.without_engine.map_or_else(String::new, number),
            met_word(verdict)
        );
    }
    text.push('\n');
}

fn workload(results: &Results, outcome: &Outcome, text: &mut String) {
    let workload = outcome.workload;
    let _ = write!(text, "## {}\n\n{}\n\n", workload.title(), workload.description());
    let any = |has: fn(&Measurement) -> bool| outcome.contenders.iter().any(|row| row.runs.iter().any(has));
    let (latencies, scanned) = (any(|run| run.latencies.is_some()), any(|run| run.scanned_pages.is_some()));
    let (disk, peak) = (any(|run| run.disk_bytes > 0), any(|run| run.peak_bytes.is_some()));
    let filled = workload == Workload::Packed;
    let kernel = KERNEL.into_iter().filter(|c| results.row(workload, *c).is_some()).collect::<Vec<_>>();
    let (unit, factor) = if workload.is_resident() { ("ns", 1e3) } else { ("µs", 1.0) };
    let mut head = vec!["contender".to_owned(), format!("{unit} an access"), "least–most".to_owned()];
    if workload.bytes_per_operation().is_some() {
        head.push("MiB/s".to_owned());
    }
    head.extend(kernel.iter().map(|c| format!("times as fast as the {}", c.name())));
    let columns = [
        (latencies, "median, 90, 99, 99.9 % (µs)"),
        (scanned, "scanned beside (MiB/s)"),
        (filled, "bytes decompressed for each used"),
        (disk, "MiB read"),
        (peak, "peak (MiB)"),
    ];
    head.extend(columns.iter().filter(|(shown, _)| *shown).map(|(_, name)| (*name).to_owned()));
    let _ = writeln!(text, "| {} |\n|---|{}", head.join(" | "), "---:|".repeat(head.len() - 1));
    for row in &outcome.contenders {
        let Some([median, least, most]) = row.spread(Measurement::microseconds) else {
            continue;
        };
        let mut cells = vec![
            row.contender.name().to_owned(),
            number(median * factor),
            format!("{}–{}", number(least * factor), number(most * factor)),
        ];
        if let Some(bytes) = workload.bytes_per_operation() {
            cells.push(format!("{:.0}", bytes as f64 / median * 1e6 / f64::from(1 << 20)));
        }
        let ratio = |other: &Contender| results.microseconds(workload, *other).map(|time| time / median);
        cells.extend(kernel.iter().map(|c| ratio(c).map_or_else(String::new, number)));
        let details = details(results, workload, row);
        cells.extend(columns.iter().zip(details).filter(|((shown, _), _)| *shown).map(|(_, cell)| cell));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
    let of_this: Vec<&Verdict> = results.verdicts.iter().filter(|v| v.workload == workload).collect();
    for verdict in &of_this {
        let (name, target) = (verdict.contender.name(), &verdict.target);
        let _ = writeln!(text, "- {name}: {target}: {} ({})", measured(verdict), met_word(verdict));
    }
    if !of_this.is_empty() {
        text.push('\n');
    }
}

fn time_lines(lines: &[Traced], text: &mut String) {
    text.push_str(
        "### Where the time of such a read goes\n\nOne more run of each, traced by the kernel, which makes it slower: medians of \
         each step, in µs. An access begins with the fault (of the pool, with the bytes of the one before). Where it is \
         not seen when the thread is told, or runs, that is part of the next step. System calls are those an access by all threads, \
         without those that only look for something (sched_yield, io_getevents, read).\n\n\
         | contender | until the disk is asked | until it has answered | until the thread is told | until that runs | until it \
         needs the next page | whole | system calls |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for Traced { contender, line } in lines {
        let name = contender.name();
        let cell = |value: Option<f64>| value.map_or_else(String::new, number);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} |",
            number(line.until_asked),
            number(line.disk),
            cell(line.until_told),
            cell(line.waking),
            number(line.rest),
            number(line.whole),
            number(line.calls)
        );
    }
    text.push('\n');
}

/// Of the run with the median time; in the order of the columns.
fn details(results: &Results, workload: Workload, row: &Row) -> [String; 5] {
    let median = row.median();
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    let latencies = median.and_then(|run| run.latencies).map(|l| {
        [l.of_500, l.of_900, l.of_990, l.of_999].map(|time| number(f64::from(time) / 1e3)).join(", ")
    });
    let scanned = median.and_then(|run| {
        let bytes = run.scanned_pages? as f64 * super::pages::PAGE_BYTES as f64;
        Some(format!("{:.0}", bytes / f64::from(1 << 20) / (run.nanoseconds as f64 / 1e9)))
    });
    let peak = row.spread(|run| run.peak_bytes.unwrap_or(0) as f64).map(|[_, _, most]| mib(most as u64));
    [
        latencies.unwrap_or_default(),
        scanned.unwrap_or_default(),
        results.bytes_per_byte(workload, row.contender).map_or_else(String::new, number),
        row.spread(|run| run.disk_bytes as f64).map_or_else(String::new, |[bytes, ..]| mib(bytes as u64)),
        peak.unwrap_or_default(),
    ]
}

fn measured(verdict: &Verdict) -> String {
    verdict.measured.map_or_else(|| "not measured".to_owned(), number)
}

fn met_word(verdict: &Verdict) -> &'static str {
    match verdict.met {
        Some(true) => "yes",
        Some(false) => "**no**",
        None => "?",
    }
}

/// With three digits that say something.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        assert_eq!([123.4, 12.34, 1.234, 0.01234].map(number), ["123", "12.3", "1.23", "0.0123"]);
    }
}
