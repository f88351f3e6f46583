//! What a process has mapped through us, seen from outside: `/proc/PID/smaps`, and what it publishes (`docs/maps.md`).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::figures::{self, ObjectFigures, ObjectKind, Snapshot};
use super::{memory, page_bytes};
use crate::Sharing;

/// A mapping, and what is known about it from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappedRange {
    /// Where it is.
    pub addresses: Range<u64>,
    /// What is mapped: its path, its URL, as far as it is not too long for the kernel.
    pub object: String,
    /// Which byte of the object it begins with.
    pub offset: u64,
    /// What kind of object; `None` if the process does not say.
    pub kind: Option<ObjectKind>,
    /// What may be done to it, as `rw-`.
    pub protection: String,
    /// Who sees stores through it, as the kernel has it.
    pub sharing: Sharing,
    /// Bytes of it that are in memory, whoever looked at them, in whole pages; `None` if that cannot be found out.
    pub resident_bytes: Option<u64>,
    /// Bytes that mlock(2) keeps in memory, as the kernel counts them: a page that is mapped twice is half of one in each.
    pub locked_bytes: u64,
    /// Bytes of the whole object, in whole pages, that its store does not have; `None` if the process does not say, or
    /// there is no store.
    pub dirty_bytes: Option<u64>,
    /// Bytes that it has to itself: copied when they were stored to through a private view.
    pub private_bytes: u64,
}

/// The mappings that a process has made through us, by address. Empty for one that has made none.
///
/// # Errors
/// As reading `/proc/PID/smaps`: ENOENT if there is no such process, EACCES if it is somebody else's (proc(5)).
pub fn mapped_ranges(process: u32) -> io::Result<Vec<MappedRange>> {
    let directory = PathBuf::from(format!("/proc/{process}"));
    // Short, where the other is long and costs a walk through all pages.
    if !maps_something(process)? {
        return Ok(Vec::new());
    }
    let descriptors = Descriptors::of(&directory, process)?;
    let text = fs::read_to_string(directory.join("smaps"))?;
    Ok(ranges(&text).filter_map(|range| descriptors.describe(range)).collect())
}

/// Whether a process has something mapped that was made through us, by itself or by a parent.
///
/// # Errors
/// As reading `/proc/PID/maps`: ENOENT if there is no such process, EACCES if it is somebody else's (proc(5)).
pub fn maps_something(process: u32) -> io::Result<bool> {
    Ok(fs::read_to_string(format!("/proc/{process}/maps"))?.contains("/memfd:omnimap"))
}

/// The processes that have mapped something through us, as far as we may look at them.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn mapping_processes() -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process: &u32| maps_something(*process).is_ok_and(|maps| maps))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// A part of smaps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Smaps<'a> {
    addresses: Range<u64>,
    permissions: &'a str,
    offset: u64,
    device: u64,
    inode: u64,
    path: &'a str,
    locked_bytes: u64,
    anonymous_bytes: u64,
}

/// Each mapping in an smaps file that shows a file.
fn ranges(text: &str) -> impl Iterator<Item = Smaps<'_>> {
    let mut lines = text.lines().peekable();
    std::iter::from_fn(move || {
        let mut range = loop {
            if let Some(range) = header(lines.next()?) {
                break range;
            }
        };
        while let Some(line) = lines.next_if(|line| header(line).is_none()) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let kib = || value.trim().strip_suffix(" kB")?.parse::<u64>().ok();
            match name {
                "Locked" => range.locked_bytes = kib().unwrap_or(0) << 10,
                "Anonymous" => range.anonymous_bytes = kib().unwrap_or(0) << 10,
                _ => {}
            }
        }
        Some(range)
    })
    .filter(|range| !range.path.is_empty())
}

/// `7f0d3c000000-7f0d3c400000 rw-s 00000000 00:01 1037    /memfd:omnimap:index.bin (deleted)`
fn header(line: &str) -> Option<Smaps<'_>> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start_matches(' ');
        word
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = word().split_once('-')?;
    let addresses = hex(start)?..hex(end)?;
    let (permissions, offset, device, inode) = (word(), word(), word(), word());
    let (major, minor) = device.split_once(':')?;
    Some(Smaps {
        addresses,
        permissions,
        offset: hex(offset)?,
        device: rustix::fs::makedev(hex(major)? as u32, hex(minor)? as u32),
        inode: inode.parse().ok()?,
        path: rest,
        ..Smaps::default()
    })
}

/// What a process has open.
struct Descriptors {
    /// Where in /proc an object can be reached.
    objects: HashMap<(u64, u64), PathBuf>,
    /// What is published about objects: by the process itself first, then by those that it was forked from and that may
    /// serve what it has inherited.
    figures: Vec<Snapshot>,
    is_this_process: bool,
}

impl Descriptors {
    fn of(directory: &Path, process: u32) -> io::Result<Descriptors> {
        let is_this_process = process == std::process::id();
        let own = is_this_process.then(Snapshot::own).flatten();
        let own_inode = own.as_ref().map(|(_, inode)| *inode);
        let mut found = Descriptors {
            objects: HashMap::new(),
            figures: own.into_iter().map(|(figures, _)| figures).collect(),
            is_this_process,
        };
        for entry in fs::read_dir(directory.join("fd"))? {
            let Ok(path) = entry.map(|entry| entry.path()) else { continue };
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !metadata.file_type().is_file() {
                continue;
            }
            let is_figures = fs::read_link(&path)
                .is_ok_and(|link| link.to_str() == Some(&format!("/memfd:{} (deleted)", figures::NAME)));
            if !is_figures {
                found.objects.insert((metadata.dev(), metadata.ino()), path);
            } else if own_inode != Some(metadata.ino())
                && let Some((figures, owner)) = read_figures(&path)
            {
                let at = if owner == process { 0 } else { found.figures.len() };
                found.figures.insert(at, figures);
            }
        }
        Ok(found)
    }

    /// What is known about a range; nothing, if it shows nothing of ours.
    fn describe(&self, range: Smaps<'_>) -> Option<MappedRange> {
        let name = range.path.strip_prefix("/memfd:").and_then(|name| name.strip_suffix(" (deleted)"));
        if name == Some(figures::NAME) {
            return None;
        }
        let known = self.figures.iter().find_map(|figures| figures.of(range.device, range.inode));
        let by_name = name.and_then(|name| {
            [(memory::PAGED_PREFIX, ObjectKind::Paged), (memory::SHARED_PREFIX, ObjectKind::Kernel)]
                .into_iter()
                .find_map(|(prefix, kind)| Some((name.strip_prefix(prefix)?, kind)))
        });
        if known.is_none() && by_name.is_none() {
            return None;
        }
        let kind = known.map(|k: ObjectFigures| k.kind).or(by_name.map(|(_, kind)| kind));
        Some(MappedRange {
            object: by_name.map_or(range.path, |(name, _)| name).to_owned(),
            kind,
            protection: range.permissions.get(..3)?.to_owned(),
            sharing: if range.permissions.ends_with('p') { Sharing::Private } else { Sharing::Shared },
            resident_bytes: self.resident(&range).ok().flatten(),
            locked_bytes: range.locked_bytes,
            dirty_bytes: known.filter(|_| kind == Some(ObjectKind::Paged)).map(|k| k.dirty_bytes),
            private_bytes: range.anonymous_bytes,
            addresses: range.addresses,
            offset: range.offset,
        })
    }

    /// Bytes of a range's part of its object that are in memory: what is no hole of it.
    fn resident(&self, range: &Smaps<'_>) -> io::Result<Option<u64>> {
        let Some(path) = self.objects.get(&(range.device, range.inode)) else { return Ok(None) };
        let metadata = fs::metadata(path)?;
        let shown = range.offset..range.offset + (range.addresses.end - range.addresses.start);
        let whole = shown.start == 0 && shown.end >= metadata.len();
        if self.is_this_process && !whole {
            // To open and close our own objects would take away what locks the program has on them (fcntl(2)).
            return Ok(None);
        }
        if !is_memory(path)? {
            return Ok(None);
        }
        if whole {
            return Ok(Some(memory::bytes_of(&metadata)));
        }
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        parts_in_memory(&file, shown, metadata.len()).map(Some)
    }
}

/// Reads a table, if somebody lives who writes to it, and says who.
fn read_figures(path: &Path) -> Option<(Snapshot, u32)> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
    let owner = holder.pid.map_or(0, |pid: Pid| pid.as_raw_nonzero().get() as u32);
    Some((Snapshot::read(&file)?, owner))
}

/// Whether it is in memory that we look at, and not on a disk.
fn is_memory(path: &Path) -> io::Result<bool> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    Ok(rustix::fs::statfs(path)?.f_type as u64 == TMPFS_MAGIC)
}

/// Bytes of a range of a sparse file, in whole pages, that are no hole. The descriptor is not shared with anybody.
fn parts_in_memory(file: &File, range: Range<u64>, length: u64) -> io::Result<u64> {
    let end = range.end.min(length.next_multiple_of(page_bytes()));
    let mut bytes = 0;
    let mut at = range.start;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            other => other?,
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.next_multiple_of(page_bytes());
        bytes += hole.min(end).saturating_sub(data.min(end));
        at = hole.max(at + 1);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
558152203000-558152205000 r--p 00001000 fe:00 247030                     /usr/bin/cat
Size:                  8 kB
Anonymous:             4 kB
Locked:                0 kB
VmFlags: rd mr mw me
7f0d3c000000-7f0d3c400000 rw-s 00200000 00:01 1037                       /memfd:omnimap:a b: c (deleted)
Anonymous:             0 kB
Locked:               12 kB
7f0d3d000000-7f0d3d400000 rw-p 00000000 00:00 0
Anonymous:             8 kB
";

    #[test]
    fn smaps_is_read_by_mapping() {
        let found: Vec<_> = ranges(TEXT).collect();
        assert_eq!(found.len(), 2, "what shows no file is left out: {found:?}");
        assert_eq!(
            (found[0].path, found[0].anonymous_bytes, found[0].inode),
            ("/usr/bin/cat", 4096, 247_030)
        );
        let expected = Smaps {
            addresses: 0x7f0d_3c00_0000..0x7f0d_3c40_0000,
            permissions: "rw-s",
            offset: 0x20_0000,
            device: 1,
            inode: 1037,
            path: "/memfd:omnimap:a b: c (deleted)",
            locked_bytes: 12 << 10,
            anonymous_bytes: 0,
        };
        assert_eq!(found[1], expected);
        for line in ["", "Size: 8 kB", "VmFlags: rd", "x-y z", "1-2", "a-b c d e f"] {
            assert_eq!(header(line), None, "{line:?}");
        }
    }

    #[test]
    fn l05_what_is_no_hole_is_in_memory() {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
        let page = page_bytes();
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memory);
        file.set_len(20 * page - 5).unwrap();
        let (null, length) = (std::ptr::null_mut(), 20 * page as usize);
        // SAFETY: a new mapping at a place of the kernel's choice, for good.
        let start = unsafe { mmap(null, length, ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }.unwrap();
        // SAFETY: no huge page for one that is touched; changes no byte. A kernel that has none refuses.
        let _ = unsafe { madvise(start, length, Advice::LinuxNoHugepage) };
        for at in [2, 3, 7, 19] {
            // SAFETY: a byte of it, which nobody else uses.
            unsafe { start.cast::<u8>().wrapping_add(at * page as usize).write_volatile(1) };
        }
        let pages = |from: u64, to: u64| {
            parts_in_memory(&file, from * page..to * page, 20 * page - 5).unwrap() / page
        };
        assert_eq!([pages(0, 20), pages(0, 100), pages(3, 7), pages(3, 8), pages(4, 7)], [4, 4, 1, 2, 0]);
        assert_eq!((pages(8, 20), pages(19, 20), pages(30, 40)), (1, 1, 0));
    }
}
