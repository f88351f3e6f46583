//! What tells one version of a file from another.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::Version;

/// What a file's version is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// The rest explains changes of ctime that change no byte.
    links: u64,
    owner_and_mode: (u32, u32, u32),
    path: Option<PathBuf>,
}

/// Looks at a file that changes between any two of them before that is an error. Some renames are as fast as a look.
const LOOKS_MAX: usize = 64;

/// How long a trace and the change time that it explains may come after one another, in looks. vfs_rename() lets the
/// file system do its part, which sets the time, and moves the name (d_move) when that is done; link(2) sets the time
/// first as well; setattr_copy() sets the mode first.
const TRACE_WAIT: Duration = Duration::from_millis(1);
const TRACE_LOOKS_MAX: usize = 50;

impl Identity {
    /// The file as it is.
    pub(super) fn now(file: &File) -> io::Result<Identity> {
        Ok(Self::with_metadata(file)?.0)
    }

    /// As [`now`](Self::now); path and times are of the same moment, or the next look follows a change that was none.
    pub(super) fn with_metadata(file: &File) -> io::Result<(Identity, Metadata)> {
        let mut metadata = file.metadata()?;
        for _ in 0..LOOKS_MAX {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
            let again = file.metadata()?;
            let identity = Identity {
                device: again.dev(),
                inode: again.ino(),
                size: again.size(),
                mtime: (again.mtime(), again.mtime_nsec()),
                ctime: (again.ctime(), again.ctime_nsec()),
                links: again.nlink(),
                owner_and_mode: (again.uid(), again.gid(), again.mode()),
                path,
            };
            if identity.is_same(&metadata) {
                return Ok((identity, again));
            }
            metadata = again;
        }
        Err(io::Error::other("it is renamed or changed all the time"))
    }

    /// Whether a file has not been changed in any way since.
    pub(super) fn is_same(&self, metadata: &Metadata) -> bool {
        self.ctime == (metadata.ctime(), metadata.ctime_nsec()) && self.size == metadata.size()
    }

    /// The identity to go on with if the bytes must still be those of `self`; else how they changed.
    ///
    /// The change time alone moves for many reasons: a rename, an unlink, a new owner. Those leave a trace that
    /// explains it. Where there is none, somebody may have written and then put the modification time back.
    ///
    /// # Errors
    /// If the file cannot be looked at.
    pub(super) fn follow(&self, file: &File) -> io::Result<Result<Identity, String>> {
        let mut now = Identity::now(file)?;
        for _ in 0..TRACE_LOOKS_MAX {
            if self.differs(&now) || !self.moved_without_trace(&now) {
                break;
            }
            std::thread::sleep(TRACE_WAIT);
            now = Identity::now(file)?;
        }
        Ok(if now.size != self.size {
            Err(self.other_size(&now))
        } else if self.differs(&now) {
            Err("it was written to".to_owned())
        } else if self.moved_without_trace(&now) {
            Err("its change time moved, and neither a rename nor a new owner or mode explains it".to_owned())
        } else {
            Ok(self.settle(now, file))
        })
    }

    /// The identity to go on with after `now` was taken for what becomes of `self`: the change time of a new trace may
    /// come after it.
    pub(super) fn settle(&self, mut now: Identity, file: &File) -> Identity {
        let mut before = self.clone();
        for _ in 0..TRACE_LOOKS_MAX {
            if before.has_trace_of(&now) {
                break;
            }
            std::thread::sleep(TRACE_WAIT);
            match Identity::now(file) {
                Ok(later) if !now.differs(&later) => before = std::mem::replace(&mut now, later),
                // Somebody writes: that is for the next comparison to find out.
                _ => break,
            }
        }
        now
    }

    fn differs(&self, now: &Identity) -> bool {
        now.size != self.size || now.mtime != self.mtime
    }

    fn moved_without_trace(&self, now: &Identity) -> bool {
        now.ctime != self.ctime && self.has_trace_of(now)
    }

    fn has_trace_of(&self, now: &Identity) -> bool {
        now.links == self.links && now.owner_and_mode == self.owner_and_mode && now.path == self.path
    }

    /// How the file changed, if its size did.
    pub(super) fn other_size(&self, now: &Identity) -> String {
        format!("it had {} bytes and has {}", self.size, now.size)
    }

    /// The name of this version.
    pub(super) fn version(&self) -> Version {
        let Identity { device, inode, size, mtime, ctime, .. } = self;
        Version::new(format!("{device}:{inode}:{size}:{}.{:09}:{}.{:09}", mtime.0, mtime.1, ctime.0, ctime.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A file whose mode was seen to be another, and whose change time moves only after that.
    fn mode_before_time() -> (File, Identity, Identity) {
        let file = tempfile::tempfile().unwrap();
        let seen = Identity::now(&file).unwrap();
        let (owner, group, mode) = seen.owner_and_mode;
        let before = Identity { owner_and_mode: (owner, group, mode ^ 1), ..seen.clone() };
        // What the stamps of older kernels can tell.
        std::thread::sleep(Duration::from_millis(12));
        file.set_permissions(file.metadata().unwrap().permissions()).unwrap();
        (file, before, seen)
    }

    #[test]
    fn a_change_time_that_comes_after_its_trace_is_taken_with_it() {
        let (file, before, seen) = mode_before_time();
        assert!(!seen.is_same(&file.metadata().unwrap()), "the time has moved");
        assert!(seen.follow(&file).unwrap().is_err(), "and nothing explains that any more");
        assert!(before.settle(seen, &file).is_same(&file.metadata().unwrap()));
        assert!(before.follow(&file).unwrap().unwrap().is_same(&file.metadata().unwrap()));
    }

    #[test]
    fn what_somebody_writes_meanwhile_is_not_taken() {
        let (file, before, seen) = mode_before_time();
        file.write_all_at(b"x", 0).unwrap();
        assert!(before.settle(seen, &file).follow(&file).unwrap().is_err());
    }
}
