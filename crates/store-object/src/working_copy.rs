//! An object of a bucket, to be written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use omnimap_store::{BackingStore, Result, StoreError, Transfer, Writability};

use crate::changes::{BLOCK_BYTES, Changes, Layer, State, Syncing};
use crate::failure;
use crate::fetch::Source;
use crate::kept::directory_of;
use crate::location::unusable;
use crate::options::RemoteOptions;
use crate::remote::RemoteStore;
use crate::upload::{Contents, Published, Replace, marked, upload};

/// An object of S3, Google Cloud Storage or Azure whose changes are collected in a local directory, and become a new version
/// when they are synced.
///
/// [`sync`](BackingStore::sync) is all or nothing: it uploads under the condition that the object is still the version that was
/// opened. If it is another, that is [`StoreError::Changed`], nothing is overwritten, and the changes stay in the directory,
/// where [`kept`](Self::kept) finds them. On S3 large objects go up in parts, and those without a change are copied by the
/// service itself (UploadPartCopy). What no sync has published is given up when the store is dropped, or the process ends.
///
/// A sync that was interrupted is finished, or found to be in conflict, when the object is opened again with the same directory.
pub struct WorkingCopy {
    name: String,
    options: RemoteOptions,
    changes: Changes,
    present: RwLock<Present>,
    /// Held shared by whoever writes to the newest generation, so that a sync can begin another.
    writing: RwLock<()>,
    /// Held while a block is made of what was there and what is written.
    in_parts: Mutex<()>,
    /// One sync, or change of the length, at a time; and the marks of those that seemed to fail since the last one that did not.
    syncing: Mutex<Vec<String>>,
    /// Whether a new version may be about to replace the one that is read from.
    publishing: Mutex<bool>,
    published: Condvar,
    /// Uploads.
    writer: Arc<Source>,
}

/// So many syncs may have failed since one did not; of those before, it is not asked any more whether they did.
const MARKS_MAX: usize = 64;

/// How the object looks now: the newest changes before those on their way before the version that was opened.
struct Present {
    base: Arc<RemoteStore>,
    /// Bytes of the version that was opened that still count.
    base_bytes: u64,
    length: u64,
    is_resized: bool,
    newest: Layer,
    /// What is being published, or could not be.
    under_way: Option<Layer>,
}

/// Where the bytes of a range are.
enum Place {
    File(Arc<File>),
    Base(Arc<RemoteStore>),
    Zeros,
}

impl WorkingCopy {
    /// Opens an object to be changed; what is changed is kept below `changes` until it is published.
    ///
    /// # Errors
    /// As [`RemoteStore::open`]; [`StoreError::Unusable`] if the service has no conditional writes or no strong ETags, another
    /// process has the object open like this, or the directory has changes to another version of it: save them by
    /// `omnimap export`, and forget them by `omnimap diff --discard`.
    pub fn open(url: &str, options: &RemoteOptions, changes: &Path) -> Result<WorkingCopy> {
        let base = Arc::new(RemoteStore::open(url, options)?);
        let name = base.name().to_owned();
        if !base.may_be_replaced() {
            let reason = "it cannot be replaced under the condition that nobody else has: that takes an object of S3, Google \
                          Cloud Storage or Azure with an ETag";
            return Err(unusable(&name, reason));
        }
        let directory = directory_of(changes, &name);
        let opened =
            |source| StoreError::Open { name: format!("{name}, changes in {}", directory.display()), source };
        let (changes, left) = Changes::open(&directory).map_err(opened)?;
        let next = left.as_ref().map_or(0, |(_, layer)| layer.generation + 1);
        let newest = changes.begin(next, base.len()).map_err(opened)?;
        let (length, writer) = (base.len(), base.writer()?);
        let present =
            Present { base, base_bytes: length, length, is_resized: false, newest, under_way: None };
        let copy = WorkingCopy {
            name,
            options: options.clone(),
            changes,
            present: RwLock::new(present),
            writing: RwLock::default(),
            in_parts: Mutex::default(),
            syncing: Mutex::default(),
            publishing: Mutex::default(),
            published: Condvar::new(),
            writer,
        };
        if let Some((state, layer)) = left {
            copy.take_up(state, layer)?;
        }
        Ok(copy)
    }

    /// Goes on with a sync that was interrupted.
    fn take_up(&self, state: State, layer: Layer) -> Result<()> {
        let base = self.present().base.clone();
        let Some(Syncing { marks, generation }) = state.syncing else { return Ok(()) };
        let found = self.mark()?;
        if let Some((mark, _)) = &found
            && Some(mark) == marks.last()
        {
            // It had been published, and only the answer was lost.
            let ended = self.changes.end_sync(&self.open_state(), generation + 1);
            return ended.map_err(|source| local("sync", 0, source));
        }
        let is_ours = found.is_some_and(|(mark, _)| marks.contains(&mark));
        if state.version != base.server_version() && !is_ours {
            let reason = format!(
                "{} has changes to another version of it ({}, and now it is {}): save them by `omnimap export`, and forget \
                 them by `omnimap diff --discard`",
                self.changes.directory.display(),
                state.version,
                base.server_version()
            );
            return Err(unusable(&self.name, &reason));
        }
        {
            let mut present = self.present_mut();
            present.length = state.length;
            present.base_bytes = state.base_bytes.min(base.len());
            present.is_resized = true;
            present.under_way = Some(layer);
        }
        *lock(&self.syncing) = marks;
        self.sync()
    }

    /// The mark that the object has now.
    fn mark(&self) -> Result<Option<(String, Published)>> {
        let source = self.writer.clone();
        let base = self.present().base.clone();
        base.network().wait(async move {
            marked(&source).await.map_err(|error| failure::at_opening(&error, &source.location))
        })
    }

    /// Reads; once more, if that failed because a sync has replaced the version that was read from meanwhile.
    fn read_anew<T>(
        &self,
        find: impl Fn(&Present) -> T,
        mut read: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        loop {
            let (base, found) = {
                let present = self.present();
                (present.base.clone(), find(&present))
            };
            match read(found) {
                Err(StoreError::Changed { how }) => {
                    let publishing = lock(&self.publishing);
                    let limit = self.options.read_time_max;
                    drop(self.published.wait_timeout_while(publishing, limit, |publishing| *publishing));
                    if Arc::ptr_eq(&base, &self.present().base) {
                        return Err(StoreError::Changed { how });
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn present(&self) -> RwLockReadGuard<'_, Present> {
        self.present.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn present_mut(&self) -> RwLockWriteGuard<'_, Present> {
        self.present.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody from writing.
    fn hold_writes(&self) -> RwLockWriteGuard<'_, ()> {
        self.writing.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the directory says when nothing is under way.
    fn open_state(&self) -> State {
        let base = self.present().base.clone();
        State {
            name: self.name.clone(),
            version: base.server_version(),
            version_bytes: base.len(),
            base_bytes: base.len(),
            length: base.len(),
            syncing: None,
        }
    }

    /// Writes whole blocks; of the object's last one what is behind its end is not given. Writes are held off by nobody.
    fn write_blocks(&self, first: u64, bytes: &[u8]) -> Result<()> {
        let data = self.present().newest.data.clone();
        data.write_all_at(bytes, first * BLOCK_BYTES)
            .map_err(|source| local("write", bytes.len(), source))?;
        let last = first + (bytes.len() as u64).div_ceil(BLOCK_BYTES);
        self.present_mut().newest.blocks.add(first..last);
        Ok(())
    }

    /// Writes a part of one block.
    fn write_in_block(&self, offset: u64, bytes: &[u8], length: u64) -> Result<()> {
        let _turn = lock(&self.in_parts);
        let block = offset / BLOCK_BYTES;
        let start = block * BLOCK_BYTES;
        let mut whole = vec![0; ((start + BLOCK_BYTES).min(length) - start) as usize];
        let range = start..start + whole.len() as u64;
        self.read_anew(
            |present| present.places(range.clone()),
            |places| read_places(places, start, &mut whole),
        )?;
        whole[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.write_blocks(block, &whole)
    }

    /// Brings what could not be published into the newest generation, which then has all changes. What the state names stays as
    /// it is. Nobody may write meanwhile.
    fn absorb(&self) -> Result<()> {
        let (newest, under_way) = {
            let present = self.present();
            let Some(under_way) = present.under_way.clone() else { return Ok(()) };
            (present.newest.clone(), under_way)
        };
        let length = self.len();
        let mut bytes = Vec::new();
        for run in under_way.blocks.iter() {
            for (part, _) in newest.blocks.split(run).into_iter().filter(|(_, is_newer)| !is_newer) {
                for block in part {
                    let start = block * BLOCK_BYTES;
                    bytes.resize((start + BLOCK_BYTES).min(length).saturating_sub(start) as usize, 0);
                    let copied = under_way
                        .data
                        .read_exact_at(&mut bytes, start)
                        .and_then(|()| newest.data.write_all_at(&bytes, start));
                    copied.map_err(|source| local("copying changes", bytes.len(), source))?;
                    self.present_mut().newest.blocks.add(block..block + 1);
                }
            }
        }
        self.present_mut().under_way = None;
        Ok(())
    }

    /// Makes the newest generation the one that is under way, durably, and begins another; nothing, if nothing has changed.
    fn freeze(&self, marks: &mut Vec<String>) -> Result<Option<Frozen>> {
        let failed = |source| local("sync", 0, source);
        // Most of it before anybody has to wait.
        let data = self.present().newest.data.clone();
        data.sync_data().map_err(failed)?;
        let _nobody_writes = self.hold_writes();
        self.absorb()?;
        let (state, frozen) = {
            let mut present = self.present_mut();
            if !present.is_resized && present.newest.blocks.is_empty() {
                return Ok(None);
            }
            let Some(version) = present.base.replaceable() else {
                return Err(unusable(&self.name, "its service names no strong ETag any more"));
            };
            let mark = format!("{:016x}{:016x}", random(), random());
            marks.push(mark.clone());
            marks.drain(..marks.len().saturating_sub(MARKS_MAX));
            let next = self.changes.begin(present.newest.generation + 1, present.length).map_err(failed)?;
            // From now on nothing is written to it, whatever fails below.
            let layer = std::mem::replace(&mut present.newest, next);
            present.under_way = Some(layer.clone());
            let state = State {
                name: self.name.clone(),
                version: present.base.server_version(),
                version_bytes: present.base.len(),
                base_bytes: present.base_bytes,
                length: present.length,
                syncing: Some(Syncing { generation: layer.generation, marks: marks.clone() }),
            };
            let (base, base_bytes, length) = (present.base.clone(), present.base_bytes, present.length);
            (state, Frozen { base, base_bytes, length, layer, replace: Replace { version, mark } })
        };
        self.changes.begin_sync(&state, &frozen.layer).map_err(failed)?;
        if let Err(error) = self.changes.remove_before(frozen.layer.generation) {
            tracing::debug!(object = self.name, %error, "older changes stay until it is opened again");
        }
        Ok(Some(frozen))
    }

    /// Uploads; over a version that an earlier sync of this copy made, and seemed to fail, once more.
    fn publish(&self, mut frozen: Frozen, marks: &[String]) -> Result<Published> {
        let base = frozen.base.clone();
        let send = |frozen: &Frozen| {
            let contents: Arc<dyn Contents> = Arc::new(frozen.clone());
            base.network().wait(upload(self.writer.clone(), contents, frozen.replace.clone()))
        };
        match send(&frozen) {
            Err(StoreError::Changed { how }) => match self.mark() {
                Ok(Some((mark, ours))) if marks.contains(&mark) => {
                    frozen.base_bytes = frozen.base_bytes.min(ours.length);
                    frozen.base = Arc::new(frozen.base.replaced_by(ours));
                    frozen.replace.version = frozen.base.replaceable().unwrap_or(frozen.replace.version);
                    send(&frozen)
                }
                _ => Err(StoreError::Changed { how }),
            },
            outcome => outcome,
        }
    }
}

/// The object as it is to be published.
#[derive(Clone)]
struct Frozen {
    base: Arc<RemoteStore>,
    base_bytes: u64,
    length: u64,
    layer: Layer,
    replace: Replace,
}

impl Present {
    /// Where the bytes of a range inside the object are.
    fn places(&self, range: Range<u64>) -> Vec<(Range<u64>, Place)> {
        let mut layers = vec![&self.newest];
        layers.extend(&self.under_way);
        places(&layers, &self.base, self.base_bytes, range)
    }
}

/// Where the bytes of a range are: in the first of the layers that has them, or in the version that was opened.
fn places(
    layers: &[&Layer],
    base: &Arc<RemoteStore>,
    base_bytes: u64,
    range: Range<u64>,
) -> Vec<(Range<u64>, Place)> {
    let Some((layer, below)) = layers.split_first() else {
        let middle = base_bytes.clamp(range.start, range.end);
        let parts = [(range.start..middle, Place::Base(base.clone())), (middle..range.end, Place::Zeros)];
        return parts.into_iter().filter(|(part, _)| !part.is_empty()).collect();
    };
    let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
    let mut found = Vec::new();
    for (blocks, is_here) in layer.blocks.split(blocks) {
        let part = (blocks.start * BLOCK_BYTES).max(range.start)..(blocks.end * BLOCK_BYTES).min(range.end);
        if is_here {
            found.push((part, Place::File(layer.data.clone())));
        } else {
            found.extend(places(below, base, base_bytes, part));
        }
    }
    found
}

/// Reads what begins at `start`.
fn read_places(places: Vec<(Range<u64>, Place)>, start: u64, into: &mut [u8]) -> Result<()> {
    for (range, place) in places {
        let part = &mut into[(range.start - start) as usize..(range.end - start) as usize];
        match place {
            Place::Zeros => part.fill(0),
            Place::File(data) => {
                data.read_exact_at(part, range.start).map_err(|source| local("read", part.len(), source))?;
            }
            Place::Base(base) => match base.read_at(range.start, part)? {
                got if got == part.len() => {}
                got => return Err(StoreError::Short { wanted: part.len() as u64, got: got as u64 }),
            },
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn local(action: &'static str, length: usize, source: io::Error) -> StoreError {
    StoreError::Io { action, length: length as u64, source }
}

impl Contents for Frozen {
    fn len(&self) -> u64 {
        self.length
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let places = places(&[&self.layer], &self.base, self.base_bytes, range.clone());
        read_places(places, range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn is_unchanged(&self, range: Range<u64>) -> bool {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        range.end <= self.base_bytes && self.layer.blocks.split(blocks).iter().all(|(_, changed)| !changed)
    }
}

impl BackingStore for WorkingCopy {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.present().length
    }

    fn transfer(&self) -> Transfer {
        self.present().base.transfer().reading_together(std::num::NonZeroUsize::MIN)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let wanted = into.len() as u64;
        let mut count = 0;
        let find = |present: &Present| {
            let end = offset.saturating_add(wanted).min(present.length);
            let range = offset.min(end)..end;
            (present.places(range.clone()), range)
        };
        self.read_anew(find, |(places, range)| {
            count = (range.end - range.start) as usize;
            read_places(places, range.start, &mut into[..count])
        })?;
        Ok(count)
    }

    fn writability(&self) -> Writability {
        Writability::ReadWrite
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let _not_while_a_sync_begins = self.write_shared();
        let end = self.len();
        let length = bytes.len() as u64;
        if offset.checked_add(length).is_none_or(|last| last > end) {
            return Err(StoreError::BeyondEnd { offset, length, end });
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let in_block = at % BLOCK_BYTES;
            let to_end = (end - at).min(rest.len() as u64);
            // The object's last block is whole where the object ends.
            let whole = if at + to_end == end { to_end } else { to_end / BLOCK_BYTES * BLOCK_BYTES };
            let count = if in_block == 0 && whole > 0 { whole } else { (BLOCK_BYTES - in_block).min(to_end) };
            let (part, after) = rest.split_at(count as usize);
            if in_block == 0 && whole > 0 {
                self.write_blocks(at / BLOCK_BYTES, part)?;
            } else {
                self.write_in_block(at, part, end)?;
            }
            at += count;
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let _turn = lock(&self.syncing);
        let _nobody_writes = self.hold_writes();
        self.absorb()?;
        let mut present = self.present_mut();
        let shorter = length.min(present.length);
        // What is cut off, and what a last block has behind its end, is zeros when the object gets longer again.
        let data = &present.newest.data;
        let resized = data.set_len(shorter).and_then(|()| data.set_len(length));
        resized.map_err(|source| local("resizing the changes", 0, source))?;
        present.newest.blocks.cut(shorter.div_ceil(BLOCK_BYTES));
        present.base_bytes = present.base_bytes.min(length);
        present.length = length;
        present.is_resized = true;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut marks = lock(&self.syncing);
        let Some(frozen) = self.freeze(&mut marks)? else { return Ok(()) };
        let newest = frozen.layer.generation + 1;
        *lock(&self.publishing) = true;
        let outcome = self.publish(frozen, &marks);
        if let Ok(new) = &outcome {
            // The next condition is that of the new version.
            let mut present = self.present_mut();
            present.base = Arc::new(present.base.replaced_by(new.clone()));
            present.base_bytes = present.length;
            present.is_resized = false;
            present.under_way = None;
        }
        *lock(&self.publishing) = false;
        self.published.notify_all();
        outcome.map_err(|error| match error {
            StoreError::Changed { how } => StoreError::Changed {
                how: format!(
                    "{how}; nothing was overwritten, and what was stored here is kept in {}: save it by `omnimap export`",
                    self.changes.directory.display()
                ),
            },
            other => other,
        })?;
        marks.clear();
        self.changes.end_sync(&self.open_state(), newest).map_err(|source| local("sync", 0, source))
    }

    fn refresh(&self) -> Result<()> {
        let _turn = lock(&self.syncing);
        let _nobody_writes = self.hold_writes();
        let base = self.present().base.clone();
        let mut options = self.options.clone();
        options.head_bytes(0);
        let now = Arc::new(base.reopen_present(&options)?);
        let mut present = self.present_mut();
        if now.server_version() == base.server_version() {
            return Ok(());
        }
        if present.is_resized || present.under_way.is_some() || !present.newest.blocks.is_empty() {
            let how = "and there are changes to the version before, which no sync has published".to_owned();
            return Err(StoreError::Changed { how });
        }
        let length = now.len();
        present.newest.data.set_len(length).map_err(|source| local("resizing the changes", 0, source))?;
        (present.base, present.base_bytes, present.length) = (now, length, length);
        Ok(())
    }

    fn is_atomic(&self) -> bool {
        true
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
