//! Where the figures come from.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

/// What decides about the figures. Nothing in it names the machine.
#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) memory_bytes: u64,
    /// The kind of disk, and the file system on it.
    pub(super) disk: String,
    pub(super) read_ahead_kib: Option<u64>,
    pub(super) huge_pages: String,
    pub(super) cgroup_version: Option<u8>,
}

impl Machine {
    /// Looks around; the disk is the one of a directory.
    pub(super) fn here(directory: &Path, cgroup_version: Option<u8>) -> Machine {
        Machine {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: field("/proc/meminfo", "MemTotal")
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or(0)
                << 10,
            disk: disk(directory),
            read_ahead_kib: read_ahead_file(directory).and_then(|path| line(path).parse().ok()),
            huge_pages: ["enabled", "shmem_enabled"]
                .map(|name| line(format!("/sys/kernel/mm/transparent_hugepage/{name}")))
                .join("; shmem "),
            cgroup_version,
        }
    }
}

/// How much the kernel reads ahead on a disk, set for as long as this lives.
///
/// Another process sets it back, so that this is done when this one is killed too.
pub(super) struct ReadAhead {
    restorer: Child,
}

impl ReadAhead {
    pub(super) fn set(directory: &Path, kib: u64) -> Result<ReadAhead> {
        let path = read_ahead_file(directory).context("the disk of the files has no read_ahead_kb")?;
        let before = fs::read_to_string(&path)?;
        let mut file = fs::File::options().write(true).open(&path)?;
        // It reads until this process closes the pipe, or ends. Of the terminal's signals it gets none.
        let restorer = Command::new("sh")
            .args(["-c", "read -r _; echo \"$2\" > \"$1\"", "sh"])
            .arg(&path)
            .arg(before.trim())
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let set = ReadAhead { restorer };
        file.write_all(kib.to_string().as_bytes())?;
        Ok(set)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        drop(self.restorer.stdin.take());
        match self.restorer.wait() {
            Ok(status) if status.success() => {}
            failed => eprintln!("the kernel's readahead could not be set back: {failed:?}"),
        }
    }
}

/// The day, as 2026-02-28.
pub(super) fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year}-{month:02}-{day:02}")
}

/// The date of a day since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the day of a leap year is the last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The first line of a file, or a question mark.
fn line(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.lines().next().map(|line| line.trim().to_owned()))
        .unwrap_or_else(|| "?".to_owned())
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
    value.map_or_else(|| "?".to_owned(), |value| value.trim().to_owned())
}

/// Numbers of the device that a directory is on (makedev(3)).
fn device(directory: &Path) -> Option<(u64, u64)> {
    let device = fs::metadata(directory).ok()?.dev();
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    Some((major, (device & 0xff) | (device >> 12 & !0xff & 0xffff_ffff)))
}

fn read_ahead_file(directory: &Path) -> Option<PathBuf> {
    let (major, minor) = device(directory)?;
    Some(PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"))).filter(|path| path.exists())
}

fn disk(directory: &Path) -> String {
    let Some((major, minor)) = device(directory) else {
        return "?".to_owned();
    };
    let number = format!("{major}:{minor}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc_pid_mountinfo(5): the device is the third field, the file system follows a dash.
    let file_system = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&number))
        .and_then(|line| line.split(" - ").nth(1)?.split(' ').next());
    let block = PathBuf::from(format!("/sys/dev/block/{number}"));
    // A partition's queue is its disk's.
    let queue = [block.join("queue"), block.join("../queue")].into_iter().find(|path| path.exists());
    let name = fs::canonicalize(&block).unwrap_or(block);
    let name = name.to_string_lossy();
    let kind = match queue.map(|queue| line(queue.join("rotational"))).as_deref() {
        _ if name.contains("/virtio") => "a virtual disk (virtio)",
        _ if name.contains("/nvme") => "NVMe",
        Some("0") => "a solid-state disk",
        Some("1") => "a rotating disk",
        _ => "no block device",
    };
    format!("{kind}, {}", file_system.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_454), (2026, 1, 1));
    }
}
