//! An upload in parts, which may have been begun another time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use omnimap_store::{BackingStore, StoreError};

use crate::create::{Told, read};
use crate::failure::{self, Kind};
use crate::fetch::{Failure, Source};
use crate::upload::{part_bytes_of, parts_together};
use crate::upload_note::{UnderWay, UploadNote};

pub(crate) struct Upload<'a> {
    source: &'a Source,
    parts: &'a dyn MultipartStore,
    contents: Arc<dyn BackingStore>,
    note: Mutex<Option<UploadNote>>,
    told: Told,
    /// The service has taken a part.
    was_taken: AtomicBool,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        source: &'a Source,
        parts: &'a dyn MultipartStore,
        contents: Arc<dyn BackingStore>,
        note: Option<UploadNote>,
        told: Told,
    ) -> Upload<'a> {
        let (note, was_taken) = (Mutex::new(note), AtomicBool::new(false));
        Upload { source, parts, contents, note, told, was_taken }
    }

    /// Goes on with what is under way, if it is of these bytes and the service has it still; else begins anew.
    pub(crate) async fn run(&self, under_way: Option<UnderWay>) -> Result<(), Failure> {
        let mut gone = None;
        if let Some(UnderWay { id, parts, is_this }) = under_way {
            if is_this {
                match self.send(&id, parts).await {
                    Err(Failure::Service(error)) if self.is_gone(&error) => {
                        let error = failure::brief(&error);
                        tracing::debug!(object = %self.source.location.name, upload = id, error, "does not go on");
                    }
                    outcome => return self.end(&id, outcome).await,
                }
            }
            gone = Some(id);
        }
        let created = self.parts.create_multipart(&self.source.location.path).await;
        let id = match created {
            Ok(id) => id,
            Err(error) => {
                if gone.is_none() {
                    self.forget();
                }
                return Err(error.into());
            }
        };
        if let Some(gone) = gone {
            self.abandon(&gone).await;
        }
        if !self.note(|note| note.begin(&id)) {
            self.forget();
        }
        let outcome = self.send(&id, BTreeMap::new()).await;
        self.end(&id, outcome).await
    }

    /// Ends what is under way: the object was made another way.
    pub(crate) async fn leave(&self, under_way: Option<UnderWay>) {
        let is_gone = match under_way {
            Some(under_way) => self.abandon(&under_way.id).await,
            None => true,
        };
        if is_gone {
            self.forget();
        }
    }

    fn part_range(&self, number: usize) -> Range<u64> {
        let (length, part_bytes) = (self.contents.len(), part_bytes_of(self.contents.len()));
        let start = number as u64 * part_bytes;
        start..length.min(start + part_bytes)
    }

    /// Sends the parts that the service does not have, and lets it make the object of all.
    async fn send(&self, id: &String, mut there: BTreeMap<usize, PartId>) -> Result<(), Failure> {
        let path = &self.source.location.path;
        let part_bytes = part_bytes_of(self.contents.len());
        let count = self.contents.len().div_ceil(part_bytes) as usize;
        there.retain(|number, _| *number < count);
        let sent = AtomicU64::new(0);
        let tell = |number: usize| {
            let bytes = self.part_range(number).end - self.part_range(number).start;
            (self.told)(sent.fetch_add(bytes, Ordering::Relaxed) + bytes);
        };
        there.keys().for_each(|number| tell(*number));
        let (missing, tell) = ((0..count).filter(|number| !there.contains_key(number)), &tell);
        let more = missing.map(async |number| {
            let range = self.part_range(number);
            let bytes = read(&self.contents, range.start, range.end - range.start).await;
            let bytes = PutPayload::from(bytes.map_err(Failure::Store)?);
            let part = self.parts.put_part(path, id, number, bytes).await?;
            self.was_taken.store(true, Ordering::Relaxed);
            self.note(|note| note.add(number, &part));
            tell(number);
            Ok::<_, Failure>((number, part))
        });
        let more: Vec<_> =
            stream::iter(more).buffer_unordered(parts_together(part_bytes)).try_collect().await?;
        there.extend(more);
        self.parts.complete_multipart(path, id, there.into_values().collect()).await?;
        Ok(())
    }

    /// Leaves what can go on, and nothing else.
    async fn end(&self, id: &String, outcome: Result<(), Failure>) -> Result<(), Failure> {
        let may_pass = match &outcome {
            Ok(()) => false,
            Err(Failure::Service(error)) => self::may_pass(error),
            Err(Failure::Store(error)) => matches!(error, StoreError::Io { .. } | StoreError::Short { .. }),
            Err(Failure::Length { .. }) => true,
        };
        let can_go_on = {
            let note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
            may_pass && note.as_ref().is_some_and(UploadNote::tells_of_what)
        };
        // What cannot be ended now can be another time.
        if can_go_on || (outcome.is_err() && !self.abandon(id).await) {
            return outcome;
        }
        self.forget();
        outcome
    }

    /// Whether it can be that the service has thrown away what was sent another time, or some of it.
    fn is_gone(&self, error: &object_store::Error) -> bool {
        // Some refuse what they do not know.
        !may_pass(error) || (is_refused(error) && !self.was_taken.load(Ordering::Relaxed))
    }

    /// Parts that stay cost their owner money. Whether they are gone.
    async fn abandon(&self, id: &String) -> bool {
        match self.parts.abort_multipart(&self.source.location.path, id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => true,
            Err(error) => {
                let error = failure::brief(&error);
                tracing::warn!(object = %self.source.location.name, upload = id, error, "parts of an upload stay");
                false
            }
        }
    }

    /// Notes something; `false` if that failed, without which the upload goes well, too.
    fn note(&self, what: impl FnOnce(&mut UploadNote) -> io::Result<()>) -> bool {
        let mut note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Err(error)) = note.as_mut().map(what) else { return true };
        tracing::warn!(object = %self.source.location.name, %error, "an upload cannot be noted");
        false
    }

    /// There is nothing to go on with.
    fn forget(&self) {
        let note = self.note.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = note.map(UploadNote::remove) {
            tracing::warn!(object = %self.source.location.name, %error, "the note of an upload stays");
        }
    }
}

/// Whether the same request may be granted later.
fn may_pass(error: &object_store::Error) -> bool {
    is_refused(error)
        || matches!(failure::kind(error), Kind::TimedOut | Kind::NoServer | Kind::Broken | Kind::Busy)
}

/// Credentials may have run out.
fn is_refused(error: &object_store::Error) -> bool {
    failure::kind(error) == Kind::Refused
}
