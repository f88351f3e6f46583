//! `cargo xtask model`: the engine on shuttle's threads, on the simulated machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// The directory for what is built with other flags, so that neither build throws the other's away.
const TARGET: &str = "target-model";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Schedules tried by each test.
    #[arg(long, default_value_t = 2000)]
    schedules: u64,
}

impl Arguments {
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        let status = Command::new(env!("CARGO"))
            .current_dir(root)
            .args([
                "test",
                "--release",
                "--package",
                "omnimap-testkit",
                "--test",
                "model",
                "--test",
                "write_model",
                "--test",
                "page_sizes",
                "--test",
                "resize_model",
                "--target-dir",
                TARGET,
            ])
            .env("RUSTFLAGS", "--cfg shuttle")
            .env("OMNIMAP_MODEL_SCHEDULES", self.schedules.to_string())
            .status()?;
        ensure!(
            status.success(),
            "the model found an interleaving that fails; its output tells how to replay it"
        );
        Ok(())
    }
}
