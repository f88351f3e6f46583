//! The `omnimap` command.
#![forbid(unsafe_code)]

mod commands;
mod progress;
mod size;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Memory-map anything, under a memory budget.
#[derive(Parser)]
#[command(name = "omnimap", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pack(commands::pack::Arguments),
    Cat(commands::cat::Arguments),
    Cp(commands::copy::Arguments),
    Sort(commands::sort::Arguments),
    View(commands::view::Arguments),
    Patch(commands::patch::Arguments),
    Stat(commands::stat::Arguments),
    Diff(commands::diff::Arguments),
    Export(commands::export::Arguments),
    Maps(commands::maps::Arguments),
    Resident(commands::page_cache::Resident),
    Touch(commands::page_cache::Touch),
    Evict(commands::page_cache::Evict),
    Lock(commands::page_cache::Lock),
    Recover(commands::recover::Arguments),
    Doctor(commands::doctor::Arguments),
    Demo(commands::demo::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page (roff): omnimap man | man -l -
    Man,
}

/// What a shell shows for a program that died of SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Pack(arguments) => arguments.run(),
        Command::Cat(arguments) => arguments.run(),
        Command::Cp(arguments) => arguments.run(),
        Command::Sort(arguments) => arguments.run(),
        Command::View(arguments) => arguments.run(),
        Command::Patch(arguments) => arguments.run(),
        Command::Stat(arguments) => arguments.run(),
        Command::Diff(arguments) => arguments.run(),
        Command::Export(arguments) => arguments.run(),
        Command::Maps(arguments) => arguments.run(),
        Command::Resident(arguments) => arguments.run(),
        Command::Touch(arguments) => arguments.run(),
        Command::Evict(arguments) => arguments.run(),
        Command::Lock(arguments) => arguments.run(),
        Command::Recover(arguments) => arguments.run(),
        Command::Doctor(arguments) => arguments.run(),
        Command::Demo(arguments) => arguments.run(),
        Command::Completions { shell } => completions(shell),
        Command::Man => man(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            // With standard error closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "omnimap: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line; most of our errors name their cause themselves.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "omnimap", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn man() -> anyhow::Result<ExitCode> {
    let mut page = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands() {
        let full = format!("omnimap-{}", subcommand.get_name());
        clap_mangen::Man::new(subcommand.clone().name(full)).render(&mut page)?;
    }
    io::stdout().write_all(&page)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
