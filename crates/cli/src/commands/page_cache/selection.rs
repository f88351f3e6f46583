//! Which files are meant.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use glob::Pattern;
use walkdir::{DirEntry, WalkDir};

use super::figures::Totals;
use crate::size;

#[derive(clap::Args)]
pub(super) struct Selection {
    /// Files, and directories with all that is below them.
    #[arg(required_unless_present = "batch")]
    files: Vec<PathBuf>,
    /// Read more names from a file, one a line; - is standard input.
    #[arg(short, long, value_name = "LIST")]
    batch: Option<PathBuf>,
    /// Names in LIST end with a zero byte (find -print0).
    #[arg(short = '0', long, requires = "batch")]
    null: bool,
    /// Follow symbolic links.
    #[arg(short, long)]
    follow: bool,
    /// Stay on the file system of each named directory.
    #[arg(short = 'F', long)]
    one_file_system: bool,
    /// Count a file that has several names once for each.
    #[arg(short = 'H', long)]
    hard_links: bool,
    /// Skip files that are larger.
    #[arg(short, long, value_name = "SIZE", value_parser = size::parse)]
    max_file_size: Option<u64>,
    /// Skip files and directories whose name matches: "*.log". May be given several times.
    #[arg(short, long, value_name = "PATTERN", value_parser = Pattern::new)]
    ignore: Vec<Pattern>,
    /// Take only files whose name matches. May be given several times.
    #[arg(short = 'I', long, value_name = "PATTERN", value_parser = Pattern::new)]
    only: Vec<Pattern>,
}

impl Selection {
    /// Calls `work` with each file and its length. What cannot be had is noted as a failure, and the next file is taken;
    /// an error of `work` ends it, unless it is one of an [`Unreadable`] file.
    pub(super) fn for_each(
        &self,
        totals: &mut Totals,
        mut work: impl FnMut(&Path, &File, u64, &mut Totals) -> Result<()>,
    ) -> Result<()> {
        let mut seen = HashSet::new();
        let mut names = self.files.clone();
        names.extend(self.batch()?);
        for name in names {
            let walk = WalkDir::new(&name)
                .follow_links(self.follow)
                .follow_root_links(self.follow)
                .same_file_system(self.one_file_system)
                .into_iter()
                .filter_entry(|entry| !matches(&self.ignore, entry.file_name()));
            for entry in walk {
                let Ok(entry) = entry.map_err(|error| totals.failures.push(describe(&error))) else {
                    continue;
                };
                let Some((file, bytes)) = self.open(&entry, &mut seen, totals) else { continue };
                match work(entry.path(), &file, bytes, totals) {
                    Err(error) if error.is::<Unreadable>() => totals.failures.push(format!("{error:#}")),
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn batch(&self) -> Result<Vec<PathBuf>> {
        let Some(list) = &self.batch else { return Ok(Vec::new()) };
        let name = || list.display().to_string();
        let input: Box<dyn Read> = if list.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(list).with_context(name)?)
        };
        let end = if self.null { 0 } else { b'\n' };
        let mut names = Vec::new();
        for name in BufReader::new(input).split(end) {
            let name = name.with_context(|| list.display().to_string())?;
            if !name.is_empty() {
                names.push(PathBuf::from(std::ffi::OsString::from_vec(name)));
            }
        }
        Ok(names)
    }

    /// Opens what is a file, counts what is not, and counts and leaves out what is not wanted.
    fn open(
        &self,
        entry: &DirEntry,
        seen: &mut HashSet<(u64, u64)>,
        totals: &mut Totals,
    ) -> Option<(File, u64)> {
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                totals.failures.push(describe(&error));
                return None;
            }
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            totals.directories += 1;
            return None;
        }
        if kind.is_symlink() {
            totals.links_skipped += 1;
            if entry.depth() == 0 {
                totals.failures.push(format!("{}: a symbolic link; -f follows it", entry.path().display()));
            }
            return None;
        }
        // A device in /dev is not what somebody means who names a directory.
        if !(kind.is_file() || kind.is_block_device() && entry.depth() == 0) {
            if entry.depth() == 0 {
                totals.failures.push(format!("{}: neither a file nor a directory", entry.path().display()));
            }
            return None;
        }
        if !self.only.is_empty() && !matches(&self.only, entry.file_name()) {
            return None;
        }
        if !self.hard_links && !seen.insert((metadata.dev(), metadata.ino())) {
            return None;
        }
        match open(entry.path(), &metadata) {
            Ok((_, bytes)) if self.max_file_size.is_some_and(|max| bytes > max) => {
                totals.large_skipped += 1;
                None
            }
            Ok(opened) => Some(opened),
            Err(error) => {
                totals.failures.push(format!("{}: {error}", entry.path().display()));
                None
            }
        }
    }
}

/// The name itself, not the path to it, as vmtouch and `find -name` have it.
fn matches(patterns: &[Pattern], name: &OsStr) -> bool {
    // Where it is the path that was given, as `a/b` or `.`.
    let name = Path::new(name).file_name().unwrap_or(name).to_string_lossy();
    patterns.iter().any(|pattern| pattern.matches(&name))
}

fn open(path: &Path, metadata: &Metadata) -> io::Result<(File, u64)> {
    let with = |flags: rustix::fs::OFlags| {
        // What was a file a moment ago may be a pipe now, which would wait for a writer.
        let flags = flags | rustix::fs::OFlags::NONBLOCK;
        File::options().read(true).custom_flags(flags.bits() as i32).open(path)
    };
    // Looking is not reading; but only the owner may say so (open(2), O_NOATIME).
    let quietly = with(rustix::fs::OFlags::NOATIME);
    let mut file = match quietly {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => {
            with(rustix::fs::OFlags::empty())?
        }
        other => other?,
    };
    let bytes = if metadata.file_type().is_block_device() {
        file.seek(SeekFrom::End(0))?
    } else {
        file.metadata()?.len()
    };
    Ok((file, bytes))
}

/// The path first, as in all our errors.
fn describe(error: &walkdir::Error) -> String {
    let path = error.path().map(|path| path.display().to_string()).unwrap_or_default();
    match (error.io_error(), error.loop_ancestor()) {
        (Some(io), _) => format!("{path}: {io}"),
        (None, Some(above)) => format!("{path}: a loop of symbolic links, to {}", above.display()),
        (None, None) => error.to_string(),
    }
}

/// A file about which something failed, so that the next one can be tried.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) why: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for Unreadable {}
