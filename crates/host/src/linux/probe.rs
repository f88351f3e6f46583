//! What this machine allows, found out by trying.

use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use super::large_pages::shared_memory_setting;
use super::truncate::truncate;
use super::userfaultfd::{Features, Origin, Userfaultfd};
use super::{guarded, host, page_bytes, pagemap};
use crate::{Address, FaultMode};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a few words.
    pub name: &'static str,
    /// Whether Omnimap has what it wants here.
    pub good: bool,
    /// What was found.
    pub found: String,
    /// What to do about it, where it is not good.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, good: true, found: found.into(), remedy: None }
    }

    fn bad(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { name, good: false, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// All findings.
#[derive(Debug, Clone)]
pub struct Probe {
    /// In the order in which a person would ask.
    pub findings: Vec<Finding>,
    /// By which way userfaultfd can be had, if at all.
    pub origin: Option<Origin>,
    /// How faults will be served, where nothing else is asked for, if mappings can be made.
    pub fault_mode: Option<FaultMode>,
}

impl Probe {
    /// Whether mappings can be made here.
    pub fn usable(&self) -> bool {
        self.fault_mode.is_some()
    }
}

const USERFAULTFD: &str = "userfaultfd";
const FEATURE_POISON: &str = "userfaultfd POISON";

/// Looks at the machine; `directory` is where O_DIRECT is tried.
pub fn probe(directory: &Path) -> Probe {
    let mut findings = vec![kernel(), page_sizes()];
    let supported = Userfaultfd::supported();
    let origin = supported.as_ref().ok().map(|(origin, _)| *origin);
    match supported {
        Ok((origin, features)) => findings.extend(userfaultfd(origin, features)),
        Err(e) => findings.push(Finding::bad(
            USERFAULTFD,
            e.to_string(),
            "as root: chmod o+rw /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1; in a container: allow \
             userfaultfd in the seccomp profile, or pass the device in",
        )),
    }
    findings.push(guard_pages());
    findings.push(page_scan());
    findings.push(collapse());
    findings.push(shared_huge_pages());
    findings.push(direct_io(directory));
    findings.extend(limits());
    let mode = host::default_mode();
    findings.insert(2, fault_mode(&mode));
    Probe { findings, origin, fault_mode: mode.ok() }
}

fn fault_mode(mode: &crate::Result<FaultMode>) -> Finding {
    const NAME: &str = "fault mode";
    match mode {
        Ok(FaultMode::Worker) => Finding::good(NAME, "worker"),
        Ok(mode) => Finding {
            remedy: Some(
                "works; but a system call on a page that is not in memory answers EFAULT: bring it in first (pin), or \
                 read_at and write_at"
                    .into(),
            ),
            ..Finding::good(NAME, mode.to_string())
        },
        Err(error) => Finding::bad(
            NAME,
            error.to_string(),
            "any of: userfaultfd; guard pages (Linux 6.15 on x86-64); another OMNIMAP_FAULT_MODE, where one is set",
        ),
    }
}

fn guard_pages() -> Finding {
    const NAME: &str = "guard pages";
    match guarded::supported() {
        Ok(()) => Finding::good(NAME, "mappings can be made without userfaultfd (fault mode trap)"),
        Err(error) => Finding::bad(
            NAME,
            error.to_string(),
            "only needed where userfaultfd is refused; use Linux 6.15 or later",
        ),
    }
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    Finding::good(
        "kernel",
        format!("{} {} {}", text(name.sysname()), text(name.release()), text(name.machine())),
    )
}

fn page_sizes() -> Finding {
    let mut huge: Vec<u64> = std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    huge.sort_unstable();
    Finding::good("page sizes", format!("{} KiB; huge: {huge:?} KiB", page_bytes() / 1024))
}

fn userfaultfd(origin: Origin, features: Features) -> Vec<Finding> {
    let names: Vec<_> =
        Features::NAMES.iter().filter(|(_, f)| features.contains(*f)).map(|(n, _)| *n).collect();
    let first = match origin {
        Origin::Device => Finding::good(USERFAULTFD, "by /dev/userfaultfd"),
        Origin::Syscall => Finding::good(USERFAULTFD, "by userfaultfd(2)"),
        Origin::UserModeOnly => Finding {
            remedy: Some(
                "works; but a system call on a page that is not resident answers EFAULT. For those too: give this \
                 user /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
                    .into(),
            ),
            ..Finding::good(USERFAULTFD, "by userfaultfd(2), user-mode faults only")
        },
    };
    let poison = if features.contains(Features::POISON) {
        Finding::good(FEATURE_POISON, "a failed page raises SIGBUS")
    } else {
        Finding::bad(FEATURE_POISON, "missing", "use Linux 6.6 or later")
    };
    vec![first, Finding::good("userfaultfd features", names.join(" ")), poison]
}

fn page_scan() -> Finding {
    let here = [0u8; 1];
    let page = page_bytes();
    let address = Address((&raw const here as usize) & !(page as usize - 1));
    let mut seen = false;
    match pagemap::present(address, page, page, |_| seen = true) {
        Ok(()) if seen => Finding::good("pagemap", "tells which pages were used"),
        Ok(()) => {
            Finding::bad("pagemap", "does not show a page that is there", "eviction is first in, first out")
        }
        Err(e) => {
            Finding::bad("pagemap", e.to_string(), "mount /proc; without it eviction is first in, first out")
        }
    }
}

fn collapse() -> Finding {
    const HUGE_BYTES: usize = 2 << 20;
    const NAME: &str = "MADV_COLLAPSE";
    let remedy = "only speed is lost; Linux 6.1 with transparent huge pages has it";
    let attempt = || -> rustix::io::Result<()> {
        let fd = rustix::fs::memfd_create("omnimap:probe", MemfdFlags::CLOEXEC)?;
        truncate(&fd, HUGE_BYTES as u64)?;
        rustix::io::pwrite(&fd, &[1], 0)?;
        let reserved = 2 * HUGE_BYTES;
        // SAFETY: new mapping at a place of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE)?
        };
        let aligned = (start as usize).next_multiple_of(HUGE_BYTES) as *mut _;
        // SAFETY: replaces part of the reservation just made, which nobody uses.
        let mapped = unsafe {
            rustix::mm::mmap(aligned, HUGE_BYTES, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, &fd, 0)
        };
        const MADV_COLLAPSE: i32 = 25;
        let outcome = mapped.and_then(|at| {
            // SAFETY: inside the mapping just made; collapsing changes no bytes.
            match unsafe { libc::madvise(at, HUGE_BYTES, MADV_COLLAPSE) } {
                0 => Ok(()),
                _ => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                    .unwrap_or(rustix::io::Errno::INVAL)),
            }
        });
        // SAFETY: ours, unused.
        unsafe { rustix::mm::munmap(start, reserved)? };
        outcome
    };
    match attempt() {
        Ok(()) => Finding::good(NAME, "works on a memfd"),
        Err(e) => Finding::bad(NAME, e.to_string(), remedy),
    }
}

/// With `always` or `within_size` the kernel gives a memfd 2 MiB at the first byte, past any budget.
fn shared_huge_pages() -> Finding {
    const NAME: &str = "huge pages of shared memory";
    let Some(chosen) = shared_memory_setting() else {
        return Finding::good(NAME, "not configurable here");
    };
    if matches!(chosen.as_str(), "always" | "within_size" | "force") {
        Finding::bad(
            NAME,
            chosen,
            "budgets can be overshot; as root: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        )
    } else {
        Finding::good(NAME, chosen)
    }
}

fn direct_io(directory: &Path) -> Finding {
    const NAME: &str = "O_DIRECT";
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Finding::good(NAME, format!("works in {}", directory.display())),
        Err(e) => Finding::bad(
            NAME,
            format!("{}: {e}", directory.display()),
            "files there are read through the kernel's cache, which is told to drop them again",
        ),
    }
}

fn limits() -> Vec<Finding> {
    let text = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let files = getrlimit(Resource::Nofile).current;
    let locked = getrlimit(Resource::Memlock).current;
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    vec![
        if files.is_some_and(|n| n < 256) {
            Finding::bad(
                "open files",
                text(files),
                "raise it: ulimit -n 1024; each object needs two descriptors",
            )
        } else {
            Finding::good("open files", text(files))
        },
        Finding::good("locked memory, bytes", text(locked)),
        Finding::good("mappings of a process", maps.trim()),
    ]
}
