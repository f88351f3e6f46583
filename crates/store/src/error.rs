//! What can go wrong between a store and its bytes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A [`StoreError`] or a value.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a store could not do what was asked.
///
/// The object's name is part of errors that arise at opening; later the caller knows it, and offsets are in the
/// message where the store's own differ from the caller's (compressed data).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object could not be opened.
    #[error("cannot open {name}: {source}")]
    Open {
        /// The object.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The object is of a kind, or in a format, that cannot be mapped.
    #[error("{name}: {reason}")]
    Unusable {
        /// The object.
        name: String,
        /// What it is, and what to do.
        reason: String,
    },
    /// The system refused a transfer.
    #[error("{action} of {length} bytes failed: {source}")]
    Io {
        /// What was tried: read, write, sync, …
        action: &'static str,
        /// Bytes asked for.
        length: u64,
        /// What the system answered.
        source: io::Error,
    },
    /// Fewer bytes came than the object has there.
    #[error(
        "{got} bytes came where {wanted} were asked for: the object is shorter than it was, or its store is faulty"
    )]
    Short {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// The object is no longer the version that was opened.
    #[error("changed since it was opened ({how}); open it again to see the new bytes")]
    Changed {
        /// What differs.
        how: String,
    },
    /// The bytes are not what they must be.
    #[error("damaged: {what}")]
    Corrupt {
        /// What does not match.
        what: String,
    },
    /// A write to a store that is not writable.
    #[error("the store is read-only")]
    ReadOnly,
    /// A write beyond the object's end.
    #[error("write of {length} bytes at {offset} reaches beyond the end of the object ({end})")]
    BeyondEnd {
        /// Where the write begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// The object's length.
        end: u64,
    },
    /// A transaction has more blocks than its journal has room for; what was written before stays.
    #[error(
        "the journal is full: at most {limit_bytes} bytes of it may be changed between two syncs; sync more often, or \
         raise the limit"
    )]
    JournalFull {
        /// The limit: bytes of the journal.
        limit_bytes: u64,
    },
    /// The store's code panicked.
    #[error("the store panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl StoreError {
    /// Whether the same request may succeed when it is made again without anybody's help.
    ///
    /// The stores here repeat what can be repeated at once (EINTR) themselves.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
            ),
            _ => false,
        }
    }

    /// The error number that a system call would answer in this case (errno(3)).
    pub fn errno(&self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            StoreError::Open { source, .. } | StoreError::Io { source, .. } => {
                return source.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            }
            StoreError::Unusable { .. } => Errno::NODEV,
            StoreError::Changed { .. } => Errno::STALE,
            StoreError::ReadOnly => Errno::ACCESS,
            StoreError::BeyondEnd { .. } => Errno::INVAL,
            StoreError::JournalFull { .. } => Errno::NOSPC,
            StoreError::Short { .. } | StoreError::Corrupt { .. } | StoreError::Panicked { .. } => Errno::IO,
        };
        errno.raw_os_error()
    }
}

/// Calls a store's code; a panic in it becomes an error.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // It may panic when it is dropped.
        std::mem::forget(panic);
        StoreError::Panicked { message: text.unwrap_or_else(|| "no message".to_owned()) }
    })
}

/// A thread of the parent held a lock of the store's when the process was forked.
pub(crate) fn left_locked(name: &str) -> StoreError {
    StoreError::Unusable {
        name: name.to_owned(),
        reason: "the process that is gone was using it when this one was forked".to_owned(),
    }
}
