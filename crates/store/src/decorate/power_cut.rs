//! Stores whose power is cut: every state in which a disk may be found afterwards.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Answers, BackingStore, Result, StoreError, Transfer, Writability};

/// What became of a change that was not synced when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It had reached the disk.
    Kept,
    /// Nothing of it had.
    Dropped,
    /// Of a write's bytes those from the first to the second number had.
    Torn(usize, usize),
}

/// How an operation fails, when it is told to ([`PowerSupply::fail_at`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Half of a write is done. After a sync, reads still show what it did not make durable, and no later sync does.
    Half,
    /// Nothing of a write is done. After a sync, reads show what was durable before.
    Forgotten,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

enum Event {
    Changed(Change),
    Synced,
    SyncFailed,
}

/// Where a change stands when the power goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Durable,
    Waiting,
    /// A sync that should have made it durable has failed; later ones do not see it (fsync(2)).
    Stuck,
}

struct Disk {
    at_first: Vec<u8>,
    now: Vec<u8>,
}

#[derive(Default)]
struct State {
    disks: Vec<Disk>,
    events: Vec<(usize, Event)>,
    /// Operations that were asked for, successful or not.
    operations: usize,
    fails: Option<(usize, Failure)>,
}

/// What several stores get their power from: one clock for all.
///
/// It keeps what the stores were told, and gives what would be on the disks had the power gone at any time: each change
/// that was not synced is there, or not, or in part, whatever is there of those before it. A change of length is there or
/// not; of a write beyond the length that is there, nothing is.
#[derive(Clone, Default)]
pub struct PowerSupply(Arc<Mutex<State>>);

/// A store in memory that forgets what was not synced, when its [`PowerSupply`] is cut.
pub struct PowerCut {
    name: String,
    supply: PowerSupply,
    disk: usize,
}

impl PowerSupply {
    /// With no stores yet.
    pub fn new() -> PowerSupply {
        PowerSupply::default()
    }

    /// Adds a store that holds `bytes`, durably.
    pub fn store(&self, name: impl Into<String>, bytes: Vec<u8>) -> Arc<PowerCut> {
        let mut state = self.lock();
        state.disks.push(Disk { at_first: bytes.clone(), now: bytes });
        Arc::new(PowerCut { name: name.into(), supply: self.clone(), disk: state.disks.len() - 1 })
    }

    /// The time: how many changes and syncs there have been.
    pub fn now(&self) -> usize {
        self.lock().events.len()
    }

    /// How many writes, changes of length and syncs were asked for.
    pub fn operations(&self) -> usize {
        self.lock().operations
    }

    /// Lets one operation fail with EIO, by its number from 0 on.
    pub fn fail_at(&self, operation: usize, failure: Failure) {
        self.lock().fails = Some((operation, failure));
    }

    /// Calls `look` with what may be on the disks after a cut at `time`: with everything that may be if that are no more
    /// than `images_max`, else with so many, chosen by `seed`.
    pub fn each_image(&self, time: usize, images_max: usize, seed: u64, mut look: impl FnMut(Vec<Vec<u8>>)) {
        // Copied, so that `look` may use the stores.
        let (at_first, changes) = {
            let state = self.lock();
            let changes: Vec<(usize, Change, Standing)> =
                state.changes_until(time).into_iter().map(|(d, c, s)| (d, c.clone(), s)).collect();
            (state.disks.iter().map(|disk| disk.at_first.clone()).collect::<Vec<_>>(), changes)
        };
        let choices: Vec<Vec<Fate>> =
            changes.iter().map(|(_, change, standing)| fates(change, *standing)).collect();
        let image = |fates: &[Fate]| {
            let mut disks = at_first.clone();
            for ((disk, change, _), fate) in changes.iter().zip(fates) {
                change.apply(*fate, &mut disks[*disk]);
            }
            disks
        };
        let all = choices.iter().try_fold(1usize, |n, c| n.checked_mul(c.len()).filter(|n| *n <= images_max));
        let mut random = Random(seed);
        for number in 0..all.unwrap_or(images_max) {
            let mut rest = number;
            let mut pick = |fates: &Vec<Fate>| {
                let index = if all.is_some() { rest % fates.len() } else { random.below(fates.len()) };
                rest /= fates.len();
                fates[index]
            };
            look(image(&choices.iter().map(&mut pick).collect::<Vec<Fate>>()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// All changes up to a time, and whether they are durable.
    fn changes_until(&self, time: usize) -> Vec<(usize, &Change, Standing)> {
        let mut changes: Vec<(usize, &Change, Standing)> = Vec::new();
        for (disk, event) in &self.events[..time.min(self.events.len())] {
            let becomes = match event {
                Event::Changed(change) => {
                    changes.push((*disk, change, Standing::Waiting));
                    continue;
                }
                Event::Synced => Standing::Durable,
                Event::SyncFailed => Standing::Stuck,
            };
            for (_, change, standing) in
                changes.iter_mut().filter(|(d, _, s)| d == disk && *s == Standing::Waiting)
            {
                // What the kernel drops are pages. A length is the file system's, which keeps it and tries again.
                if becomes == Standing::Durable || matches!(change, Change::Write { .. }) {
                    *standing = becomes;
                }
            }
        }
        changes
    }

    /// How the operation that is asked for fails, if it does.
    fn failure(&mut self) -> Option<Failure> {
        let number = self.operations;
        self.operations += 1;
        self.fails.take_if(|(at, _)| *at == number).map(|(_, failure)| failure)
    }

    fn change(&mut self, disk: usize, change: Change) {
        change.apply(Fate::Kept, &mut self.disks[disk].now);
        self.events.push((disk, Event::Changed(change)));
    }

    /// What reads show when the kernel has dropped what it could not write. It knows the length all the same.
    fn forget(&mut self, disk: usize) {
        let mut bytes = self.disks[disk].at_first.clone();
        for (_, change, standing) in
            self.changes_until(self.events.len()).iter().filter(|(d, _, _)| *d == disk)
        {
            if *standing == Standing::Durable || matches!(change, Change::SetLen(_)) {
                change.apply(Fate::Kept, &mut bytes);
            }
        }
        self.disks[disk].now = bytes;
    }
}

impl Change {
    fn apply(&self, fate: Fate, disk: &mut Vec<u8>) {
        match (self, fate) {
            (_, Fate::Dropped) => {}
            (Change::SetLen(length), _) => {
                let more = length.saturating_sub(disk.len());
                disk.truncate(*length);
                // Not `resize`, which is slow without optimization.
                disk.extend_from_slice(&vec![0; more]);
            }
            (Change::Write { offset, bytes }, fate) => {
                let (from, to) = if let Fate::Torn(from, to) = fate { (from, to) } else { (0, bytes.len()) };
                let to = to.min(bytes.len()).min(disk.len().saturating_sub(*offset));
                if from < to {
                    disk[offset + from..offset + to].copy_from_slice(&bytes[from..to]);
                }
            }
        }
    }
}

/// What may become of a change.
fn fates(change: &Change, standing: Standing) -> Vec<Fate> {
    if standing == Standing::Durable {
        return vec![Fate::Kept];
    }
    let mut fates = vec![Fate::Kept, Fate::Dropped];
    if let Change::Write { bytes, .. } = change
        && bytes.len() > 1
    {
        // A header's record is in the first bytes; a disk's sectors come in any order.
        let length = bytes.len();
        fates.extend([Fate::Torn(0, length.min(61)), Fate::Torn(0, (length / 2).next_multiple_of(512))]);
        fates.push(Fate::Torn((length / 3).next_multiple_of(512), length));
    }
    fates
}

fn failed(action: &'static str, length: usize) -> StoreError {
    let source = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
    StoreError::Io { action, length: length as u64, source }
}

impl BackingStore for PowerCut {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.supply.lock().disks[self.disk].now.len() as u64
    }

    /// One at a time and two blocks at most: the same history asks for the same operations each time.
    fn transfer(&self) -> Transfer {
        Transfer::new(8192, 1).answering(Answers::AtOnce)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let state = self.supply.lock();
        let bytes = &state.disks[self.disk].now;
        let start = offset.min(bytes.len() as u64) as usize;
        let count = into.len().min(bytes.len() - start);
        into[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.supply.lock();
        let (end, length) = (state.disks[self.disk].now.len() as u64, bytes.len() as u64);
        if offset.checked_add(length).is_none_or(|e| e > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        let failure = state.failure();
        let count = match failure {
            None => bytes.len(),
            Some(Failure::Half) => bytes.len() / 2,
            Some(Failure::Forgotten) => 0,
        };
        state.change(self.disk, Change::Write { offset: offset as usize, bytes: bytes[..count].to_vec() });
        failure.map_or(Ok(()), |_| Err(failed("write", bytes.len())))
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let mut state = self.supply.lock();
        if state.failure().is_some() {
            return Err(failed("truncate", length as usize));
        }
        state.change(self.disk, Change::SetLen(length as usize));
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.supply.lock();
        let failure = state.failure();
        let event = if failure.is_some() { Event::SyncFailed } else { Event::Synced };
        state.events.push((self.disk, event));
        match failure {
            None => return Ok(()),
            Some(Failure::Half) => {}
            Some(Failure::Forgotten) => state.forget(self.disk),
        }
        Err(failed("sync", 0))
    }
}

/// Numbers that look like chance and are the same each time (SplitMix64, Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % count.max(1) as u64) as usize
    }
}
