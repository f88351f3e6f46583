//! An object of a bucket: the server and the link to it are those of the tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

pub(crate) fn run(root: &Path) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--release", "--package", "omnimap", "--test", "remote"])
        .args(["--", "--ignored", "figures::figures", "--nocapture"])
        .status()?;
    ensure!(status.success(), "the figures could not be taken");
    Ok(())
}
