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

/// Another S3 server, which is asked the same.
const SECOND_OPINION: &str = "moto";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these test binaries; moto is another S3 server.
    #[arg(value_parser = TESTS.map(|(_, binary, _)| binary).into_iter().chain([SECOND_OPINION]).collect::<Vec<_>>())]
    only: Vec<String>,
}

impl Arguments {
    pub(crate) fn run(&self, root: &Path) -> Result<()> {
        let is_wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|only| only == name);
        for (package, binary, test) in TESTS.into_iter().filter(|(_, binary, _)| is_wanted(binary)) {
            long(root, package, binary, test)?;
        }
        if is_wanted(SECOND_OPINION) { second_opinion(root) } else { Ok(()) }
    }
}

fn long(root: &Path, package: &str, binary: &str, test: &str) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--release", "--package", package, "--test", binary, test])
        .env("OMNIMAP_LONG", "1")
        .status()?;
    ensure!(status.success(), "{binary} failed");
    Ok(())
}

/// Objects on another S3 server, moto, which pip installs into the target directory.
fn second_opinion(root: &Path) -> Result<()> {
    let place = root.join("target/moto");
    let program = place.join("bin/moto_server");
    let run = |command: &mut Command| -> Result<()> {
        let status = command.current_dir(root).status()?;
        ensure!(status.success(), "{command:?} failed");
        Ok(())
    };
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
        run(Command::new(place.join("bin/pip")).args(["install", "--quiet", "moto[server]"]))?;
    }
    let test = ["test", "--release", "--package", "omnimap", "--test", "remote", "--", "--ignored", "moto::"];
    run(Command::new(env!("CARGO")).args(test).env("OMNIMAP_MOTO", program))
}
