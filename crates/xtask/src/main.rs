//! The project's own commands: `cargo xtask help`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks")]

mod bench;
mod conformance;
mod hit_ratio;
mod long;
mod model;
mod modes;
mod stress;
mod tidy;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Command {
    /// Check what the compiler does not: layers, lengths, words.
    Tidy,
    /// Measure, and print ratios.
    Bench(bench::Arguments),
    /// Replay traces of page accesses through the engine's replacement and through others, the optimum among them.
    HitRatio(hit_ratio::Arguments),
    /// Run the engine against many threads for a while.
    Stress(stress::Arguments),
    /// Run the engine under a scheduler that tries many interleavings (shuttle).
    Model(model::Arguments),
    /// Run the tests and write docs/conformance.md: which statement of the contract is tested, and how it goes.
    Conformance(conformance::Arguments),
    /// Run the tests that map under each way of serving faults (`OMNIMAP_FAULT_MODE`).
    Modes(modes::Arguments),
    /// Kill, cut power, count increments and compare with the kernel for some minutes: 1,000 kills, 100 million increments, a
    /// million operations.
    Long(long::Arguments),
    /// One contender of `bench writes`, in a process of its own.
    #[command(hide = true)]
    Writer(bench::Writer),
    /// One contender of `bench report`, in a process of its own.
    #[command(hide = true)]
    Reader(bench::Reader),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Tidy => tidy::run(&root()),
        Command::Bench(arguments) => arguments.run(&root()),
        Command::HitRatio(arguments) => arguments.run(),
        Command::Stress(arguments) => arguments.run(),
        Command::Model(arguments) => arguments.run(&root()),
        Command::Conformance(arguments) => arguments.run(&root()),
        Command::Modes(arguments) => arguments.run(&root()),
        Command::Long(arguments) => arguments.run(&root()),
        Command::Writer(writer) => writer.run(),
        Command::Reader(reader) => reader.run(),
    }
}

/// The workspace's directory.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(&here).to_owned()
}
