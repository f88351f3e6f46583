//! What is done with the pages of a file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use anyhow::Result;
use omnimap::machine::{FilePages, evict_cached, page_bytes};

use super::figures::Figures;
use super::hold;
use super::selection::Unreadable;
use crate::size;

/// What a command does.
pub(super) enum Action {
    Look,
    Touch,
    Evict {
        /// After writing what is dirty.
        sync: bool,
    },
    Lock {
        /// What stays until the command ends.
        locked: Vec<FilePages>,
    },
}

impl Action {
    pub(super) fn name(&self) -> Option<&'static str> {
        match self {
            Action::Look => None,
            Action::Touch => Some("touched"),
            Action::Evict { .. } => Some("evicted"),
            Action::Lock { .. } => Some("locked"),
        }
    }
}

/// A part of a file, in bytes; up to its end, if no end is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    start: u64,
    end: Option<u64>,
}

impl Part {
    pub(super) const ALL: Part = Part { start: 0, end: None };

    /// Reads `4k-50k`, `100M-`, `-5M`, `5M` and `-`.
    pub(super) fn parse(text: &str) -> Result<Part, String> {
        let (start, end) = text.split_once('-').unwrap_or(("", text));
        let read = |text: &str| if text.trim().is_empty() { Ok(None) } else { size::parse(text).map(Some) };
        let part = Part { start: read(start)?.unwrap_or(0), end: read(end)? };
        if text.is_empty() || part.end.is_some_and(|end| end <= part.start) {
            return Err(format!("{text:?} is no range: write 4k-50k, 100M-, -5M or 5M"));
        }
        Ok(part)
    }

    /// The bytes of it in a file of some length, from a page's beginning on.
    fn of(self, bytes: u64) -> Range<u64> {
        let end = self.end.unwrap_or(u64::MAX).min(bytes);
        let start = self.start - self.start % page_bytes();
        start.min(end)..end
    }
}

/// Pages that are asked about at a time: a byte each.
const ASKED_PAGES: u64 = 1 << 20;

/// Does it to a file, and says what was in memory before and after.
pub(super) fn act(action: &mut Action, path: &Path, file: &File, bytes: u64, part: Part) -> Result<Figures> {
    let range = part.of(bytes);
    if range.is_empty() {
        return Ok(Figures::default());
    }
    let failed = |why: String| Unreadable { path: path.to_owned(), why };
    let pages =
        FilePages::map(file, range.start, range.end - range.start).map_err(|e| failed(e.to_string()))?;
    let look = || residency(&pages).map_err(|e| failed(e.to_string()));
    let before = look()?;
    let resident_before = count(&before);
    let hidden = is_hidden(path, file);
    let after = match action {
        Action::Look => before,
        Action::Touch => {
            touch(file, &range, |page| !hidden && before[page]).map_err(|e| failed(e.to_string()))?;
            look()?
        }
        Action::Evict { sync } => {
            if *sync {
                rustix::fs::fdatasync(file).map_err(|e| failed(format!("fdatasync: {e}")))?;
            }
            evict_cached(file, range).map_err(|e| failed(e.to_string()))?;
            look()?
        }
        Action::Lock { locked } => {
            hold::lock(&pages, path, locked)?;
            let after = look()?;
            locked.push(pages);
            after
        }
    };
    Ok(Figures { resident: count(&after), pages: after, resident_before, hidden })
}

fn residency(pages: &FilePages) -> Result<Vec<bool>> {
    let mut told = Vec::new();
    let mut at = 0;
    while at < pages.count() {
        told.extend(pages.resident(at..at + ASKED_PAGES)?);
        at += ASKED_PAGES;
    }
    Ok(told)
}

fn count(pages: &[bool]) -> u64 {
    pages.iter().filter(|resident| **resident).count() as u64
}

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// Reads the pages that are not in memory: unlike an access to a mapping, that ends with an error where it fails.
fn touch(file: &File, range: &Range<u64>, is_resident: impl Fn(usize) -> bool) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut at = range.start;
    while at < range.end {
        if is_resident(((at - range.start) / page_bytes()) as usize) {
            at += page_bytes();
            continue;
        }
        let wanted = buffer.len().min((range.end - at) as usize);
        match file.read_at(&mut buffer[..wanted], at)? {
            0 => return Ok(()), // It has become shorter.
            count => at += (count as u64).next_multiple_of(page_bytes()),
        }
    }
    Ok(())
}

/// Whether the kernel hides from us which pages of the file are in memory (mincore(2), since Linux 5.2): it says all.
fn is_hidden(path: &Path, file: &File) -> bool {
    let ours = rustix::process::geteuid();
    let is_owner = file.metadata().is_ok_and(|m| m.uid() == ours.as_raw());
    !ours.is_root()
        && !is_owner
        && rustix::fs::accessat(
            rustix::fs::CWD,
            path,
            rustix::fs::Access::WRITE_OK,
            rustix::fs::AtFlags::EACCESS,
        )
        .is_err()
}

#[cfg(test)]
mod tests {
    use super::{Part, page_bytes};

    #[test]
    fn ranges_are_read_as_vmtouch_reads_them() {
        let part = |start, end| Ok(Part { start, end });
        assert_eq!(Part::parse("4k-50k"), part(4096, Some(50 << 10)));
        assert_eq!(Part::parse("100M-2G"), part(100 << 20, Some(2 << 30)));
        assert_eq!(Part::parse("100M-"), part(100 << 20, None));
        assert_eq!(Part::parse("-5M"), part(0, Some(5 << 20)));
        assert_eq!(Part::parse("5M"), part(0, Some(5 << 20)));
        assert_eq!(Part::parse("-"), Ok(Part::ALL));
        for wrong in ["", "x", "5k-4k", "5k-5k", "1-2-3", "0"] {
            Part::parse(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_part_begins_at_a_page_and_ends_with_the_file() {
        let page = page_bytes();
        let part = Part { start: page + 1, end: Some(10 * page) };
        assert_eq!(part.of(100 * page), page..10 * page);
        assert_eq!(part.of(5 * page + 7), page..5 * page + 7);
        assert!(part.of(page).is_empty() && part.of(0).is_empty());
    }
}
