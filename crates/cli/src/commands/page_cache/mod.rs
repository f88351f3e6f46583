//! `omnimap resident`, `touch`, `evict` and `lock`: the kernel's page cache of files, a file at a time.
//!
//! The habits (what is skipped, what is counted, how ranges are written) are those of vmtouch(8).

mod figures;
mod hold;
mod pages;
mod picture;
mod selection;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use figures::Totals;
use pages::{Action, Part};
use selection::Selection;

/// Say how much of files is in the kernel's page cache.
#[derive(clap::Args)]
pub(crate) struct Resident {
    #[command(flatten)]
    common: Common,
}

/// Bring files into the kernel's page cache.
#[derive(clap::Args)]
pub(crate) struct Touch {
    #[command(flatten)]
    common: Common,
}

/// Drop files from the kernel's page cache, but for pages that are dirty, locked or mapped by somebody.
#[derive(clap::Args)]
pub(crate) struct Evict {
    #[command(flatten)]
    common: Common,
    /// Write what is dirty first, so that it can be dropped too.
    #[arg(long)]
    sync: bool,
}

/// Bring files into memory and keep them there until a signal ends the command (mlock(2)).
#[derive(clap::Args)]
pub(crate) struct Lock {
    #[command(flatten)]
    common: Common,
    /// Come back when all is locked; a process in the background keeps it.
    #[arg(short, long)]
    daemon: bool,
    /// Where to write the number of the process that keeps the locks; the file goes when the process ends.
    #[arg(short = 'P', long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// The process in the background, as --daemon starts it: standard input is where to say that all is locked.
    #[arg(long, hide = true)]
    detached: bool,
}

#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    selection: Selection,
    /// The part of each file: 4k-50k, 100M-, -5M; a single size is that much from the beginning. Whole pages of it.
    #[arg(short = 'p', long = "pages", value_name = "RANGE", value_parser = Part::parse, allow_hyphen_values = true)]
    part: Option<Part>,
    /// Show each file, with a picture of its pages: O in memory, o in part, space not.
    #[arg(short, long)]
    verbose: bool,
    /// No totals, no warnings.
    #[arg(short, long, conflicts_with_all = ["verbose", "json"])]
    quiet: bool,
    /// Print JSON: the totals, and with --verbose the files.
    #[arg(long)]
    json: bool,
}

impl Resident {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.common.run(&mut Action::Look)
    }
}

impl Touch {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.common.run(&mut Action::Touch)
    }
}

impl Evict {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.common.run(&mut Action::Evict { sync: self.sync })
    }
}

impl Lock {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.daemon && !self.detached {
            return hold::in_background();
        }
        if self.detached {
            hold::leave_terminal();
        }
        let mut action = Action::Lock { locked: Vec::new() };
        let code = self.common.run(&mut action)?;
        if matches!(&action, Action::Lock { locked } if locked.is_empty()) {
            return Ok(code); // Nothing to stay for.
        }
        hold::until_signal(self.pid_file.as_deref(), self.detached)?;
        Ok(code)
    }
}

impl Common {
    fn run(&self, action: &mut Action) -> Result<ExitCode> {
        let begin = Instant::now();
        let mut totals = Totals::new(action.name());
        let mut output = io::stdout().lock();
        self.selection.for_each(&mut totals, |path, file, bytes, totals| {
            let part = self.part.unwrap_or(Part::ALL);
            let figures = pages::act(action, path, file, bytes, part)?;
            if self.verbose && !self.json {
                picture::print(&mut output, path, &figures)?;
            }
            totals.add(path, &figures, self.json && self.verbose);
            if !self.quiet && figures.hidden {
                warn(&format!(
                    "{}: the kernel tells only its owner which pages are in memory (mincore(2)); to you it says all",
                    path.display()
                ));
            }
            Ok(())
        })?;
        if !self.quiet {
            totals.failures.iter().for_each(|failure| warn(failure));
            totals.print(&mut output, begin.elapsed(), self.json)?;
        }
        output.flush()?;
        Ok(if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn warn(text: &str) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "omnimap: {text}");
}
