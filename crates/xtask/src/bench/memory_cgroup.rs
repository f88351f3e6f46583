//! Memory cgroups: how the kernel's mapping is given a budget.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A memory cgroup of ours; it is removed when this is dropped.
///
/// Page cache and memfd pages count as well as heap, where the process in it was the first to touch them.
pub(super) struct MemoryCgroup {
    directory: PathBuf,
    version: u8,
}

impl MemoryCgroup {
    /// Makes one below another: below this process's own by default, so that what bounds this process bounds it too.
    pub(super) fn make(below: Option<&Path>, limit_bytes: u64) -> Result<MemoryCgroup> {
        let below = below.map_or_else(own, |path| Ok(path.to_owned()))?;
        let directory = below.join(format!("omnimap-bench-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let version = if directory.join("memory.limit_in_bytes").exists() { 1 } else { 2 };
        let made = MemoryCgroup { directory, version };
        let limit = made.directory.join(if version == 1 { "memory.limit_in_bytes" } else { "memory.max" });
        if !limit.exists() {
            bail!("{} has no memory controller (see its cgroup.subtree_control)", below.display());
        }
        fs::write(&limit, limit_bytes.to_string()).with_context(|| format!("writing {}", limit.display()))?;
        Ok(made)
    }

    /// 1 or 2. In version 1, only the machine's own limits slow down those who make pages dirty, not the cgroup's.
    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// The file by which a process joins ([`join`]).
    pub(super) fn entrance(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// The most memory that was in use.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        let name = if self.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.directory.join(name)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // It is busy for a moment after its last process has ended.
        for _ in 0..50 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind: it cannot be removed", self.directory.display());
    }
}

/// Puts this process into a cgroup. What it has in memory already is not counted there.
pub(super) fn join(entrance: &Path) -> Result<()> {
    // 0 is the writer itself (cgroups(7)).
    fs::write(entrance, "0").with_context(|| format!("joining {}", entrance.display()))
}

/// The memory cgroup that this process is in.
fn own() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let one = lines().find(|(controllers, _)| controllers.split(',').any(|c| c == "memory"));
    let (mount, path) = match one {
        Some((_, path)) => ("/sys/fs/cgroup/memory", path),
        None => ("/sys/fs/cgroup", lines().find(|(c, _)| c.is_empty()).context("no cgroups here")?.1),
    };
    let own = Path::new(mount).join(path.trim_start_matches('/'));
    // A container may see its own cgroup as the root, and read the path that it has outside.
    Ok(if own.is_dir() { own } else { PathBuf::from(mount) })
}
