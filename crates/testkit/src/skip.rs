//! Skipping what a machine does not allow, loudly.

use std::io::Write;
use std::sync::OnceLock;

use omnimap_host::FaultMode;
use omnimap_host::linux::{Origin, probe};

/// Says that the test that runs here is skipped, and why; past the capture of the test runner, which would hide it.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {why}", thread.name().unwrap_or("a test"));
}

/// Whether mappings cannot be made here at all; the test is skipped then.
pub fn skip_without_mappings() -> bool {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    // Asked without opening a host, which would install the signal handler before a test's own.
    let refused = REFUSED.get_or_init(|| {
        let probed = probe(std::path::Path::new("."));
        let bad = probed.findings.iter().filter(|f| !f.good).map(|f| format!("{}: {}", f.name, f.found));
        (!probed.usable()).then(|| bad.collect::<Vec<_>>().join("; "))
    });
    if let Some(why) = refused {
        skip(why);
    }
    refused.is_some()
}

/// Whether the kernel's own accesses are not served here; the test is skipped then.
pub fn skip_without_kernel_faults() -> bool {
    if skip_without_mappings() {
        return true;
    }
    let probe = probe(std::path::Path::new("."));
    let missing = probe.fault_mode != Some(FaultMode::Worker) || probe.origin == Some(Origin::UserModeOnly);
    if missing {
        skip(
            "system calls on pages that are not in memory need /dev/userfaultfd or vm.unprivileged_userfaultfd=1, and the \
             fault mode worker",
        );
    }
    missing
}
