//! `cargo xtask modes`: the tests that map, under each way of serving faults.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// As `FaultMode` has them; what a machine does not allow, fails.
const MODES: [&str; 3] = ["worker", "in-thread", "trap"];

/// Modules of tests that take long and map little: what they are about is the same in each mode.
const ALL_ONE: [&str; 2] = ["uploads::", "writing::"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these.
    #[arg(value_parser = MODES)]
    modes: Vec<String>,
}

impl Arguments {
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        for mode in MODES.iter().filter(|mode| self.modes.is_empty() || self.modes.iter().any(|m| m == *mode))
        {
            println!("fault mode {mode}");
            let status = Command::new(env!("CARGO"))
                .current_dir(root)
                .args(["test", "--package", "omnimap", "--tests", "--"])
                .args(ALL_ONE.iter().flat_map(|module| ["--skip", module]))
                .env("OMNIMAP_FAULT_MODE", mode)
                .status()?;
            ensure!(status.success(), "a test fails in fault mode {mode}");
        }
        Ok(())
    }
}
