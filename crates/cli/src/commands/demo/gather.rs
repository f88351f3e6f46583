//! Gathering real bytes that the machine has.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress;

/// Bytes that have a checksum of their own.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// A SHA-256.
pub(super) type Sum = [u8; 32];

/// What was gathered.
pub(super) struct Gathered {
    pub(super) bytes: u64,
    pub(super) files: usize,
    pub(super) origin: String,
    /// Of each block, taken from the files on the way and not from what was written.
    pub(super) sums: Vec<Sum>,
}

/// Writes the bytes of files below `sources` into one, until there are `wanted`.
pub(super) fn gather(sources: &[PathBuf], wanted: u64, into: &Path) -> Result<Gathered> {
    let sources = if sources.is_empty() { default_sources() } else { sources.to_vec() };
    let bar = progress::bytes("gathering", Some(wanted));
    let file = File::create(into).with_context(|| into.display().to_string())?;
    let mut writer =
        Summing { output: BufWriter::new(file), block: Vec::with_capacity(BLOCK_BYTES), sums: Vec::new() };
    let (mut bytes, mut files) = (0, 0);
    for source in &sources {
        visit(source, &mut |path| {
            if bytes >= wanted {
                return Ok(false);
            }
            let copied = copy(path, wanted - bytes, &mut writer)?;
            files += usize::from(copied > 0);
            bytes += copied;
            bar.set_position(bytes);
            Ok(bytes < wanted)
        })
        .with_context(|| format!("gathering into {}", into.display()))?;
    }
    bar.finish_and_clear();
    let (file, sums) = writer.finish()?;
    file.sync_all()?;
    let origin = sources.iter().map(|s| s.display().to_string()).collect::<Vec<_>>().join(", ");
    Ok(Gathered { bytes, files, origin, sums })
}

fn default_sources() -> Vec<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc).args(["--print", "sysroot"]).output();
    let sysroot = asked.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    let mut sources: Vec<PathBuf> = sysroot.into_iter().map(|s| PathBuf::from(s.trim())).collect();
    sources.extend(["/usr/lib", "/usr/share", "/usr/bin", "/usr/local"].map(PathBuf::from));
    sources.retain(|s| s.is_dir());
    sources
}

/// Calls `work` with each regular file below `path`, by name, until it says no. Links are not followed.
fn visit(path: &Path, work: &mut impl FnMut(&Path) -> io::Result<bool>) -> io::Result<bool> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(true) };
    if metadata.is_file() {
        return work(path);
    }
    if !metadata.is_dir() {
        return Ok(true);
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(true) };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort_unstable();
    for path in paths {
        if !visit(&path, work)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies at most `most` bytes of a file; what cannot be read is left out.
fn copy(path: &Path, most: u64, writer: &mut impl Write) -> io::Result<u64> {
    let Ok(file) = File::open(path) else { return Ok(0) };
    let mut file = file.take(most);
    let mut piece = vec![0; BLOCK_BYTES];
    let mut copied = 0;
    while let Ok(count @ 1..) = file.read(&mut piece) {
        writer.write_all(&piece[..count])?;
        copied += count as u64;
    }
    Ok(copied)
}

/// Writes, and takes the checksum of each block.
struct Summing {
    output: BufWriter<File>,
    block: Vec<u8>,
    sums: Vec<Sum>,
}

impl Summing {
    fn end_block(&mut self) {
        self.sums.push(Sha256::digest(&self.block).into());
        self.block.clear();
    }

    fn finish(mut self) -> Result<(File, Vec<Sum>)> {
        if !self.block.is_empty() {
            self.end_block();
        }
        Ok((self.output.into_inner()?, self.sums))
    }
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.output.write(bytes)?;
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(part);
            if self.block.len() == BLOCK_BYTES {
                self.end_block();
            }
            rest = after;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
