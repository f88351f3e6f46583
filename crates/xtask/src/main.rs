//! The project's own commands: `cargo xtask help`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks")]

mod bench;
mod long;
mod model;
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
    /// Run the engine against many threads for a while.
    Stress(stress::Arguments),
    /// Run the engine under a scheduler that tries many interleavings (shuttle).
    Model(model::Arguments),
    /// Kill, cut power and count increments for some minutes: 1,000 kills, 100 million increments.
    Long,
    /// One contender of `bench writes`, in a process of its own.
    #[command(hide = true)]
    Writer(bench::Writer),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Tidy => tidy::run(&root()),
        Command::Bench(arguments) => arguments.run(),
        Command::Stress(arguments) => arguments.run(),
        Command::Model(arguments) => arguments.run(&root()),
        Command::Long => long::run(&root()),
        Command::Writer(writer) => writer.run(),
    }
}

/// The workspace's directory.
fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(&here).to_owned()
}
