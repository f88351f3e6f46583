//! What can go wrong between us and the kernel.

use std::io;

/// A [`HostError`] or a value.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

/// A request that the machine refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A system call failed.
    #[error("{call}: {source}{}", advice(source))]
    Call {
        /// The call, and what it was for.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No way to create a userfaultfd is open to this process.
    #[error(
        "no userfaultfd: /dev/userfaultfd: {device}; userfaultfd(2): {syscall}. Give this user access to \
         /dev/userfaultfd, or set vm.unprivileged_userfaultfd=1, or allow the call in the container's seccomp profile"
    )]
    NoUserfaultfd {
        /// Why the device could not be used.
        device: io::Error,
        /// Why the system call could not be used.
        syscall: io::Error,
    },
    /// The kernel's userfaultfd lacks something that the engine cannot do without.
    #[error("userfaultfd lacks {missing}; Linux {since} or later has it")]
    MissingFeature {
        /// The feature's name in `linux/userfaultfd.h`.
        missing: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },
    /// Guard pages cannot be had for shared memory, which [`FaultMode::Trap`](crate::FaultMode::Trap) needs.
    #[error("no guard pages for shared memory (madvise): {source}; Linux 6.15 on x86-64 has them")]
    NoGuards {
        /// What the kernel answered.
        source: io::Error,
    },
    /// The environment asks for a fault mode that there is none of.
    #[error("OMNIMAP_FAULT_MODE: {0}")]
    FaultMode(#[from] crate::UnknownFaultMode),
}

/// What to do about limits of the process.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of open files (ulimit -n): a mapping needs three",
        Some(libc::ENFILE) => "; the system's table of open files is full (sysctl fs.file-max)",
        Some(libc::EAGAIN) => "; raise the limit of processes and threads (ulimit -u, or the container's)",
        Some(libc::ENOMEM) => {
            "; raise the limit of address space (ulimit -v) or of mappings (sysctl vm.max_map_count)"
        }
        _ => "",
    }
}

impl HostError {
    /// Whether the kernel had no memory, or no more mappings, for it.
    pub fn is_out_of_memory(&self) -> bool {
        self.errno() == libc::ENOMEM
    }

    /// The error number, for callers that must answer with one.
    pub fn errno(&self) -> i32 {
        match self {
            HostError::Call { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            HostError::NoUserfaultfd { syscall, .. } => syscall.raw_os_error().unwrap_or(libc::EPERM),
            HostError::MissingFeature { .. } => libc::EOPNOTSUPP,
            HostError::NoGuards { source } => source.raw_os_error().unwrap_or(libc::EOPNOTSUPP),
            HostError::FaultMode(_) => libc::EINVAL,
        }
    }
}

/// Names the call that failed.
pub(crate) trait During<T> {
    fn during(self, call: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, call: &'static str) -> Result<T> {
        self.map_err(|e| HostError::Call { call, source: e.into() })
    }
}
