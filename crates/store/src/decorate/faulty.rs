//! Makes a store misbehave, as told.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Decorator;
use crate::{Answers, BackingStore, Result, StoreError, Transfer};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It fails with EIO.
    Fail,
    /// Half of the bytes come, and the count says so.
    Short,
    /// It blocks for so long, and then goes on.
    Block(Duration),
    /// It blocks until [`Faulty::release`] lets one request go on.
    Hold,
    /// The store's code panics.
    Panic,
}

struct Rule {
    range: Range<u64>,
    misbehaviour: Misbehaviour,
    /// How many requests it still concerns.
    times: u64,
}

#[derive(Default)]
struct State {
    read_rules: Vec<Rule>,
    write_rules: Vec<Rule>,
    held: u64,
    released: u64,
}

/// Misbehaves by rules that name a range of the object and a number of times.
pub struct Faulty {
    inner: Arc<dyn BackingStore>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Faulty {
    /// Behaves well until told otherwise.
    pub fn new(inner: Arc<dyn BackingStore>) -> Faulty {
        Faulty { inner, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Lets the next `times` reads that touch `range` misbehave. Rules are tried in the order they were given.
    pub fn on_read(&self, range: Range<u64>, misbehaviour: Misbehaviour, times: u64) {
        self.lock().read_rules.push(Rule { range, misbehaviour, times });
    }

    /// Lets the next `times` writes that touch `range` misbehave.
    pub fn on_write(&self, range: Range<u64>, misbehaviour: Misbehaviour, times: u64) {
        self.lock().write_rules.push(Rule { range, misbehaviour, times });
    }

    /// Forgets all rules and lets everything go on that is held.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.read_rules.clear();
        state.write_rules.clear();
        state.released = state.released.max(state.held);
        self.changed.notify_all();
    }

    /// Lets one held request go on, now or when it comes.
    pub fn release(&self) {
        let mut state = self.lock();
        state.released = state.released.saturating_add(1);
        self.changed.notify_all();
    }

    /// Waits until so many requests have come that are, or were, held.
    pub fn wait_until_held(&self, count: u64, limit: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |s| s.held < count)
            .unwrap_or_else(PoisonError::into_inner);
        state.held >= count
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the rules say before a request; the length it may have.
    fn misbehave(
        &self,
        rules: impl Fn(&mut State) -> &mut Vec<Rule>,
        action: &'static str,
        offset: u64,
        length: usize,
    ) -> Result<usize> {
        let end = offset.saturating_add(length as u64);
        let mut state = self.lock();
        let rule =
            rules(&mut state).iter_mut().find(|r| r.times > 0 && r.range.start < end && offset < r.range.end);
        let Some(rule) = rule else { return Ok(length) };
        rule.times -= 1;
        match rule.misbehaviour {
            Misbehaviour::Fail => {
                let source = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
                Err(StoreError::Io { action, length: length as u64, source })
            }
            Misbehaviour::Short => {
                drop(state);
                // Half of what there is, not of what there is room for.
                let there = self.inner.len().saturating_sub(offset).min(length as u64);
                Ok(there as usize / 2)
            }
            Misbehaviour::Block(time) => {
                drop(state);
                std::thread::sleep(time);
                Ok(length)
            }
            Misbehaviour::Hold => {
                state.held += 1;
                let ticket = state.held;
                self.changed.notify_all();
                while state.released < ticket {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Ok(length)
            }
            Misbehaviour::Panic => {
                drop(state);
                panic!("as the rule says");
            }
        }
    }
}

impl Decorator for Faulty {
    fn transfer(&self) -> Transfer {
        self.inner.transfer().answering(Answers::Eventually).reading_together(NonZeroUsize::MIN)
    }

    fn inner(&self) -> &dyn BackingStore {
        &self.inner
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let count = self.misbehave(|s| &mut s.read_rules, "read", offset, into.len())?;
        self.inner.read_at(offset, &mut into[..count])
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let count = self.misbehave(|s| &mut s.write_rules, "write", offset, bytes.len())?;
        self.inner.write_at(offset, &bytes[..count])?;
        if count == bytes.len() {
            Ok(())
        } else {
            Err(StoreError::Short { wanted: bytes.len() as u64, got: count as u64 })
        }
    }
}
