//! `cargo xtask long`: the tests that kill, cut power and count increments, at length.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// Package, test binary and test; each takes minutes at the most.
const TESTS: [(&str, &str, &str); 8] = [
    ("omnimap", "kill", "y05_"),
    ("omnimap", "write", "m02_no_increment"),
    ("omnimap", "alloc", "a1_an_array_is_larger"),
    ("omnimap", "fuzz", ""),
    ("omnimap", "syscall", "fork_programs"),
    ("omnimap-store", "power_cut", ""),
    ("omnimap-store", "tier", "kills_"),
    ("omnimap", "remote", "writing::kills_"),
];

pub(crate) fn run(root: &Path) -> Result<()> {
    for (package, binary, test) in TESTS {
        let status = Command::new(env!("CARGO"))
            .current_dir(root)
            .args(["test", "--release", "--package", package, "--test", binary, test])
            .env("OMNIMAP_LONG", "1")
            .status()?;
        ensure!(status.success(), "{binary} failed");
    }
    Ok(())
}
