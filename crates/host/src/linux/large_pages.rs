//! What the kernel says about huge pages (`Documentation/admin-guide/mm/transhuge.rst`).

use std::path::Path;
use std::sync::OnceLock;

const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Larger ones (of machines with larger small pages) take too long to be split.
const BYTES_MAX: usize = 32 << 20;

/// Bytes of a large page, if memory can be shown by such. Where the kernel makes them by itself, views are kept out of that,
/// and have none.
pub(super) fn large_page_bytes() -> Option<usize> {
    static BYTES: OnceLock<Option<usize>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string(Path::new(SETTINGS).join("hpage_pmd_size")).ok()?;
        let bytes: usize = text.trim().parse().ok()?;
        let is_allowed =
            shared_memory_setting().is_some_and(|chosen| chosen != "deny") && !kernel_collapses();
        (bytes.is_power_of_two() && bytes <= BYTES_MAX && is_allowed).then_some(bytes)
    })
}

/// Whether the kernel makes large pages of a memfd by itself.
pub(super) fn kernel_collapses() -> bool {
    static COLLAPSES: OnceLock<bool> = OnceLock::new();
    *COLLAPSES.get_or_init(|| {
        shared_memory_setting().is_some_and(|chosen| ["always", "within_size", "force"].contains(&&*chosen))
    })
}

/// What is chosen for shared memory; `None` where nothing can be.
pub(super) fn shared_memory_setting() -> Option<String> {
    let text = std::fs::read_to_string(Path::new(SETTINGS).join("shmem_enabled")).ok()?;
    text.split(['[', ']']).nth(1).map(str::to_owned)
}
