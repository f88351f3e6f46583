//! `omnimap cat` of a packed file against `zstd -dc` of the same.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use omnimap::store::{PackOptions, pack};

use super::{Arguments, medians, rate};

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if Command::new("zstd").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("cat: SKIPPED: the zstd program is not installed");
        return Ok(());
    }
    let program = build()?;
    let directory = tempfile::tempdir_in(&arguments.directory)?;
    let packed = directory.path().join("packed.zst");
    let bytes = pack_toolchain(&packed, arguments.file_bytes())?;
    let cat: &dyn Fn() -> Result<Duration> = &|| {
        let budget = ["cat", "--budget", "64MiB"];
        drain(Command::new(&program).args(budget).arg(&packed), bytes)
    };
    let zstd: &dyn Fn() -> Result<Duration> = &|| drain(Command::new("zstd").arg("-dcq").arg(&packed), bytes);
    cat()?;
    zstd()?;
    let [ours, theirs] = medians(arguments.runs, [Box::new(cat), Box::new(zstd)])?;
    println!(
        "cat, {} MiB packed, budget 64 MiB: omnimap {:.0} MiB/s, zstd -dc {:.0} MiB/s, ratio {:.2}",
        bytes >> 20,
        rate(bytes, ours),
        rate(bytes, theirs),
        theirs.as_secs_f64() / ours.as_secs_f64()
    );
    Ok(())
}

fn build() -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--package", "omnimap-cli"])
        .status()?;
    ensure!(status.success(), "the command does not build");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(target.join("release/omnimap"))
}

/// Packs the Rust toolchain's files, as tar puts them in a row; gives the bytes before packing.
fn pack_toolchain(packed: &Path, bytes: u64) -> Result<u64> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = String::from_utf8(sysroot.stdout)?;
    let mut left = bytes;
    let mut output = Vec::new();
    while left > 0 {
        // Again and again, where it is smaller than what is asked for.
        let mut tar = Command::new("tar")
            .args(["-cf", "-", sysroot.trim()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let got = tar.stdout.take().context("piped")?.take(left).read_to_end(&mut output)? as u64;
        let _ = tar.kill();
        tar.wait()?;
        ensure!(got > 0, "tar gave nothing of {}", sysroot.trim());
        left -= got;
    }
    let mut file = BufWriter::new(File::create(packed)?);
    pack(&output[..], &mut file, &PackOptions::default(), |_| {})?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(bytes)
}

/// Reads all that a program writes.
fn drain(command: &mut Command, expected: u64) -> Result<Duration> {
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("piped")?;
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let status = child.wait()?;
    let time = begin.elapsed();
    ensure!(status.success() && bytes == expected, "{command:?}: {status}, {bytes} of {expected} bytes");
    Ok(time)
}
