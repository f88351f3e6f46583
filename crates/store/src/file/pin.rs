//! Holds a file to the version that is known, and lets our own writes move it.

use std::fs::{File, Metadata};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::identity::Identity;
use crate::{Result, StoreError, Version};

/// The version of a file that is known, and how others changed it, if they did.
///
/// ```text
/// own changes    0 → 1     compare: if others were there, refuse
///                1 ↔ n     nothing: what moves the times may be ourselves
///                1 → 0     know the file as it is now
/// a read's end   at 0      compare
///                at 1, n   nothing
/// ```
/// While the count is 0 and the lock is held, nothing of ours changes the file: whatever differs then, others did.
pub(super) struct Pin {
    /// Held for a look at the file, never for a transfer.
    state: Mutex<State>,
}

struct State {
    /// The one that was opened, or refreshed to.
    version: Version,
    known: Identity,
    /// How others were seen to have changed the file. It stays so until it is refreshed.
    changed: Option<String>,
    /// Our own changes under way.
    own_changes: usize,
    /// Whether one of those, or of those that were under way together with them, changes the length.
    resized: bool,
}

/// What a change of our own changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Bytes inside the object.
    Bytes,
    /// The object's length.
    Length,
}

/// A change of our own that is under way until this is dropped.
pub(super) struct OwnChange<'a> {
    pin: &'a Pin,
    file: &'a File,
}

impl Pin {
    /// Knows a file as it is, and says how it is.
    pub(super) fn new(file: &File) -> io::Result<(Pin, Metadata)> {
        let (known, metadata) = Identity::with_metadata(file)?;
        let version = known.version();
        let state = State { version, known, changed: None, own_changes: 0, resized: false };
        Ok((Pin { state: Mutex::new(state) }, metadata))
    }

    /// The same version, if nobody is just looking at it; without what changes of our own are under way.
    pub(super) fn copy(&self) -> Option<Pin> {
        let State { version, known, changed, .. } = &*self.state.try_lock().ok()?;
        let (version, known, changed) = (version.clone(), known.clone(), changed.clone());
        Some(Pin { state: Mutex::new(State { version, known, changed, own_changes: 0, resized: false }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version that was opened, or refreshed to.
    pub(super) fn version(&self) -> Version {
        self.state().version.clone()
    }

    /// Answers whether others have changed the file, as far as that can be told now. For after a read.
    pub(super) fn check(&self, file: &File) -> Result<()> {
        // Without the lock, so that reads do not wait for each other. By now it may be out of date.
        let metadata = file.metadata().map_err(look_failed)?;
        let mut state = self.state();
        state.check_unchanged()?;
        if state.own_changes > 0 || state.known.is_same(&metadata) {
            return Ok(());
        }
        state.follow(file)
    }

    /// Begins a change of our own, unless others have changed the file before.
    pub(super) fn begin_change<'a>(&'a self, file: &'a File, change: Change) -> Result<OwnChange<'a>> {
        let mut state = self.state();
        state.check_unchanged()?;
        if state.own_changes == 0 {
            if !state.known.is_same(&file.metadata().map_err(look_failed)?) {
                state.follow(file)?;
            }
            state.resized = false;
        }
        state.own_changes += 1;
        state.resized |= change == Change::Length;
        Ok(OwnChange { pin: self, file })
    }

    /// Knows the file as it is now, whoever changed it; its size.
    pub(super) fn refresh(&self, file: &File) -> Result<u64> {
        let mut state = self.state();
        state.known = Identity::now(file).map_err(look_failed)?;
        state.version = state.known.version();
        state.changed = None;
        Ok(state.known.size)
    }
}

impl State {
    fn check_unchanged(&self) -> Result<()> {
        match &self.changed {
            Some(how) => Err(StoreError::Changed { how: how.clone() }),
            None => Ok(()),
        }
    }

    /// Looks at a file that is not as it is known: a new name is known from now on, new bytes are a change.
    fn follow(&mut self, file: &File) -> Result<()> {
        match self.known.follow(file).map_err(look_failed)? {
            Ok(now) => {
                self.known = now;
                Ok(())
            }
            Err(how) => {
                self.changed = Some(how);
                self.check_unchanged()
            }
        }
    }
}

impl Drop for OwnChange<'_> {
    fn drop(&mut self) {
        let mut state = self.pin.state();
        state.own_changes -= 1;
        if state.own_changes > 0 {
            return;
        }
        // If the look fails, what is known stays behind, and the next comparison answers that the file was written to:
        // better than to take something unseen for ours.
        let Ok(now) = Identity::now(self.file) else { return };
        if !state.resized && now.size != state.known.size {
            // Writes stay inside the object: this was somebody else.
            state.changed = Some(state.known.other_size(&now));
        }
        state.known = state.known.settle(now, self.file);
    }
}

fn look_failed(source: io::Error) -> StoreError {
    StoreError::Io { action: "stat", length: 0, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> (File, Pin) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let (pin, _) = Pin::new(&file).unwrap();
        (file, pin)
    }

    #[test]
    fn a_burst_ends_with_its_last_change() {
        let (file, pin) = file(b"1234");
        let first = pin.begin_change(&file, Change::Bytes).unwrap();
        let second = pin.begin_change(&file, Change::Bytes).unwrap();
        drop(first);
        file.write_all_at(b"x", 1).unwrap();
        pin.check(&file).unwrap();
        pin.begin_change(&file, Change::Bytes).unwrap();
        drop(second);
        pin.check(&file).unwrap();
        file.write_all_at(b"x", 1).unwrap();
        assert!(pin.check(&file).is_err(), "outside of it, that is somebody else");
        assert!(pin.begin_change(&file, Change::Bytes).is_err());
        assert_eq!(pin.state().own_changes, 0, "what is refused is not under way");
    }

    #[test]
    fn another_size_at_the_end_of_a_burst_is_seen_unless_the_burst_made_it() {
        for (change, seen) in [(Change::Bytes, true), (Change::Length, false)] {
            let (file, pin) = file(b"1234");
            let ours = pin.begin_change(&file, change).unwrap();
            file.set_len(2).unwrap();
            drop(ours);
            let outcome = pin.check(&file);
            assert_eq!(outcome.is_err(), seen, "{change:?}: {outcome:?}");
            assert_eq!(pin.begin_change(&file, change).is_err(), seen, "{change:?}");
            assert_eq!(pin.refresh(&file).unwrap(), 2);
            pin.check(&file).unwrap();
            // Each burst is judged by itself.
            let ours = pin.begin_change(&file, Change::Bytes).unwrap();
            file.set_len(3).unwrap();
            drop(ours);
            assert!(pin.check(&file).is_err(), "{change:?}");
        }
    }
}
