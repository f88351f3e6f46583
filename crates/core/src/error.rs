//! What an access, or the making of a mapping, can fail with.

use std::sync::Arc;
use std::time::Duration;

use omnimap_host::HostError;
use omnimap_store::StoreError;

/// An [`Error`] or a value.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done. Cheap to clone: all who wait for the same page get the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store did not give the bytes.
    #[error("{object}: offset {offset}: {source}")]
    Read {
        /// What was read.
        object: Arc<str>,
        /// The byte that was wanted first, in the object; an error of a whole page names its beginning.
        offset: u64,
        /// Why.
        source: Arc<StoreError>,
    },
    /// The store has not answered in time.
    #[error("{object}: offset {offset}: no answer from the store within {limit:?}")]
    TimedOut {
        /// What was read.
        object: Arc<str>,
        /// The first byte that was waited for.
        offset: u64,
        /// How long.
        limit: Duration,
    },
    /// All of the budget is pinned or being filled, and stayed so.
    #[error(
        "{object}: offset {offset}: no room within {limit:?}: all of the budget is pinned or being filled; use a larger \
         budget or fewer pins"
    )]
    NoRoom {
        /// What was read.
        object: Arc<str>,
        /// The first byte that was to be read.
        offset: u64,
        /// How long was waited.
        limit: Duration,
    },
    /// As `NoRoom`, where dirty pages are in the way that their store does not take.
    #[error("{object}: offset {offset}: no room within {limit:?}: what is dirty cannot be written: {cause}")]
    NoRoomUnwritable {
        /// What was accessed.
        object: Arc<str>,
        /// The first byte that was wanted.
        offset: u64,
        /// How long was waited.
        limit: Duration,
        /// Why it cannot be written.
        cause: Arc<Error>,
    },
    /// The store did not take bytes, or did not make them durable; they are in memory still, and dirty.
    #[error("{object}: offset {offset}: not written: {source}")]
    Write {
        /// What was written to.
        object: Arc<str>,
        /// The first byte that was to be written; 0 where it is not about any.
        offset: u64,
        /// Why.
        source: Arc<StoreError>,
    },
    /// The object cannot be stored to this way.
    #[error("{object}: {reason}")]
    NotAllowed {
        /// What it is about.
        object: Arc<str>,
        /// What is in the way, and what to do.
        reason: &'static str,
    },
    /// A range that is not inside the mapping or object.
    #[error("{object}: bytes {offset} to {offset}+{length} are not inside its {end} bytes")]
    OutOfRange {
        /// What was asked for a range.
        object: Arc<str>,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        length: u64,
        /// The length of what it should be inside of.
        end: u64,
    },
    /// More was to be pinned than the cache allows at a time.
    #[error(
        "{object}: pinning {wanted_bytes} more bytes would exceed the limit of {limit_bytes}, half of the budget; drop \
         pins or use a larger budget"
    )]
    PinLimit {
        /// What was to be pinned.
        object: Arc<str>,
        /// Bytes of the pages to be pinned.
        wanted_bytes: u64,
        /// Bytes that may be pinned in this cache.
        limit_bytes: u64,
    },
    /// A budget too small to work with.
    #[error("a budget of {bytes} bytes: at least {least_bytes} ({least_pages} pages) are needed")]
    BudgetTooSmall {
        /// The budget.
        bytes: u64,
        /// The least.
        least_bytes: u64,
        /// The same in pages.
        least_pages: u64,
    },
    /// The process is a forked child: the mapping lives in its parent.
    #[error("{object}: mapped before fork, and not inherited: map it again in this process")]
    Forked {
        /// What was mapped.
        object: Arc<str>,
    },
    /// The machine refused something.
    #[error("{object}: {source}")]
    Host {
        /// What it was for.
        object: Arc<str>,
        /// What it refused, and why.
        source: Arc<HostError>,
    },
    /// The object could not be opened.
    #[error(transparent)]
    Open(Arc<StoreError>),
}

impl Error {
    /// The error number that a system call would answer in this case (errno(3)).
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const ENOMEM: i32 = 12;
        const EACCES: i32 = 13;
        const EINVAL: i32 = 22;
        const ECHILD: i32 = 10;
        const EAGAIN: i32 = 11;
        const ETIMEDOUT: i32 = 110;
        match self {
            Error::Read { source, .. } | Error::Write { source, .. } | Error::Open(source) => {
                match source.errno() {
                    0 => EIO,
                    errno => errno,
                }
            }
            Error::TimedOut { .. } => ETIMEDOUT,
            Error::NoRoom { .. } | Error::NoRoomUnwritable { .. } => ENOMEM,
            Error::NotAllowed { .. } => EACCES,
            Error::OutOfRange { .. } | Error::BudgetTooSmall { .. } => EINVAL,
            Error::PinLimit { .. } => EAGAIN,
            Error::Forked { .. } => ECHILD,
            Error::Host { source, .. } => source.errno(),
        }
    }
}

impl From<StoreError> for Error {
    fn from(source: StoreError) -> Error {
        Error::Open(Arc::new(source))
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        let kind = std::io::Error::from_raw_os_error(error.errno()).kind();
        std::io::Error::new(kind, error)
    }
}
