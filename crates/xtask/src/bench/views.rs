//! What a view costs to map and unmap: an example of the library, for the calls are unsafe.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::Arguments;

pub(super) fn run(arguments: &Arguments, root: &Path) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["run", "--release", "--quiet", "--package", "omnimap", "--example", "views", "--"])
        .arg(&arguments.directory)
        .status()?;
    ensure!(status.success(), "the example failed");
    Ok(())
}
