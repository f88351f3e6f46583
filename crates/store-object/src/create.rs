//! An object that is made, or replaced, whatever is there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::multipart::{MultipartStore, PartId};
use object_store::{ObjectStoreExt, PutPayload};
use omnimap_store::{BackingStore, Result, StoreError};
use tokio::task::spawn_blocking;

use crate::connect::{Purpose, connect};
use crate::failure::{self, Kind};
use crate::fetch::{Failure, Source};
use crate::location::{Location, unusable};
use crate::network::Network;
use crate::options::RemoteOptions;
use crate::upload::{PARTS_TOGETHER, WHOLE_BYTES_MAX, WHOLE_BYTES_MAX_ELSEWHERE, part_bytes_of};
use crate::upload_note::{UnderWay, UploadNote, note_path};

/// Writes all bytes of a store to the object that a URL names, as a new one or over the one that is there; `told` is called with
/// the bytes that went, from the threads that send them.
///
/// More than 16 MiB go in parts, several at a time; then the object is there when the last of them is, and before not at all.
/// A web server has to take all of it by one PUT.
///
/// # Errors
/// If the bytes cannot be read, or the service refuses; then there is no new object, nor parts of one.
pub fn put(
    url: &str,
    options: &RemoteOptions,
    contents: Arc<dyn BackingStore>,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<()> {
    put_noting(url, options, contents, None, Box::new(told))
}

/// As [`put`], and an upload in parts that was interrupted goes on where it was: what the service has of it is noted in a file
/// below `notes`.
///
/// It goes on if the bytes come from the same version of the same source ([`BackingStore::version`]); else, and where the
/// service has thrown the parts away, it begins anew. What a service has of an upload that never goes on costs its owner money,
/// unless the bucket has a rule that ends incomplete uploads.
///
/// # Errors
/// As [`put`], but what may pass (a broken connection, a busy service, bytes that cannot be read just now) leaves the parts and
/// the note. Also if another process uploads to the same place with notes in the same directory.
pub fn put_resuming(
    url: &str,
    options: &RemoteOptions,
    contents: Arc<dyn BackingStore>,
    notes: &Path,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<()> {
    put_noting(url, options, contents, Some(notes), Box::new(told))
}

/// Is told how many bytes went.
type Told = Box<dyn Fn(u64) + Send + Sync>;

fn put_noting(
    url: &str,
    options: &RemoteOptions,
    contents: Arc<dyn BackingStore>,
    notes: Option<&Path>,
    told: Told,
) -> Result<()> {
    let location = Location::parse(url)?;
    let client = connect(&location, options, Purpose::Write)?;
    let source = Source::new(client, location, options.clone());
    let length = contents.len();
    if source.parts.is_none() && length > WHOLE_BYTES_MAX_ELSEWHERE {
        let reason =
            "a web server takes an object as a whole, which is limited to 512 MiB here; use another program";
        return Err(unusable(&source.location.name, reason));
    }
    let parts = source.parts.clone().filter(|_| length > WHOLE_BYTES_MAX);
    let (note, under_way) = match &parts {
        Some(_) => open_note(&source.location.name, &contents, notes)?,
        None => (None, None),
    };
    Network::get()?.wait(async move {
        let Some(parts) = parts else {
            let bytes = read(&contents, 0, length).await?;
            let put = source.client.put(&source.location.path, PutPayload::from(bytes)).await;
            put.map_err(|error| failure::at_writing(&error, &source.location, length))?;
            told(length);
            return Ok(());
        };
        let upload = Upload { source: &source, parts: &*parts, contents, note: Mutex::new(note), told };
        upload.run(under_way).await.map_err(|failed| match failed {
            Failure::Service(error) => failure::at_writing(&error, &source.location, length),
            other => other.into_store_error(&source.location, length),
        })
    })
}

/// The note of an upload that can go on another time.
fn open_note(
    object: &str,
    contents: &Arc<dyn BackingStore>,
    notes: Option<&Path>,
) -> Result<(Option<UploadNote>, Option<UnderWay>)> {
    // Of a source that names no version, nobody knows whether it is the same.
    let (Some(notes), Some(version)) = (notes, contents.version()) else { return Ok((None, None)) };
    let (name, length) = (contents.name(), contents.len());
    let of = format!("{object}\n{name}\n{version}\n{length} {}", part_bytes_of(length));
    match UploadNote::open(note_path(notes, object), &of) {
        Ok((note, under_way)) => Ok((Some(note), under_way)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(unusable(object, "another process is uploading to it; wait until that has ended"))
        }
        Err(error) => {
            tracing::warn!(object, %error, "an interrupted upload will not be able to go on");
            Ok((None, None))
        }
    }
}

/// An upload in parts.
struct Upload<'a> {
    source: &'a Source,
    parts: &'a dyn MultipartStore,
    contents: Arc<dyn BackingStore>,
    note: Mutex<Option<UploadNote>>,
    told: Told,
}

impl Upload<'_> {
    async fn run(&self, under_way: Option<UnderWay>) -> Result<(), Failure> {
        let mut gone = None;
        if let Some(UnderWay { id, parts, is_this }) = under_way {
            if is_this {
                match self.send(&id, parts).await {
                    // The service has thrown it away, or some of it. (Some refuse what they do not know.)
                    Err(Failure::Service(error)) if !may_pass(&error) || is_refused(&error) => {
                        tracing::debug!(object = %self.source.location.name, upload = id, error = failure::brief(&error),
                            "an upload does not go on");
                    }
                    outcome => return self.end(&id, outcome).await,
                }
            }
            gone = Some(id);
        }
        let id = self.parts.create_multipart(&self.source.location.path).await?;
        if let Some(gone) = gone {
            self.abandon(&gone).await;
        }
        self.note(|note| note.begin(&id));
        let outcome = self.send(&id, BTreeMap::new()).await;
        self.end(&id, outcome).await
    }

    /// Sends the parts that the service does not have, and lets it make the object of all.
    async fn send(&self, id: &String, mut there: BTreeMap<usize, PartId>) -> Result<(), Failure> {
        let length = self.contents.len();
        let part_bytes = part_bytes_of(length);
        let range = |number: usize| {
            let start = number as u64 * part_bytes;
            start..length.min(start + part_bytes)
        };
        let path = &self.source.location.path;
        let sent = AtomicU64::new(0);
        let tell = |number: usize| {
            let bytes = range(number).end - range(number).start;
            (self.told)(sent.fetch_add(bytes, Ordering::Relaxed) + bytes);
        };
        let count = length.div_ceil(part_bytes) as usize;
        there.retain(|number, _| *number < count);
        there.keys().for_each(|number| tell(*number));
        let (missing, tell) = ((0..count).filter(|number| !there.contains_key(number)), &tell);
        let more = missing.map(async |number| {
            let bytes = read(&self.contents, range(number).start, range(number).end - range(number).start);
            let bytes = bytes.await.map_err(Failure::Store)?;
            let part = self.parts.put_part(path, id, number, PutPayload::from(bytes)).await?;
            self.note(|note| note.add(number, &part));
            tell(number);
            Ok::<_, Failure>((number, part))
        });
        let more: Vec<_> = stream::iter(more).buffer_unordered(PARTS_TOGETHER).try_collect().await?;
        there.extend(more);
        self.parts.complete_multipart(path, id, there.into_values().collect()).await?;
        Ok(())
    }

    /// Leaves what can go on, and nothing else.
    async fn end(&self, id: &String, outcome: Result<(), Failure>) -> Result<(), Failure> {
        let goes_on = match &outcome {
            Ok(()) => false,
            Err(Failure::Service(error)) => may_pass(error),
            Err(Failure::Store(error)) => !matches!(error, StoreError::Changed { .. }),
            Err(Failure::Length { .. }) => true,
        };
        let mut note = self.note.lock().unwrap_or_else(PoisonError::into_inner).take();
        if goes_on && note.is_some() {
            return outcome;
        }
        if let Some(note) = note.take()
            && let Err(error) = note.remove()
        {
            tracing::warn!(object = %self.source.location.name, %error, "the note of an upload stays");
        }
        if outcome.is_err() {
            self.abandon(id).await;
        }
        outcome
    }

    /// Parts that stay cost their owner money.
    async fn abandon(&self, id: &String) {
        let path = &self.source.location.path;
        match self.parts.abort_multipart(path, id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(object = %self.source.location.name, upload = id, %error, "parts of an upload stay");
            }
        }
    }

    /// Without a note the upload goes well, too.
    fn note(&self, what: impl FnOnce(&mut UploadNote) -> io::Result<()>) {
        let mut note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = note.as_mut().map(what) {
            tracing::warn!(object = %self.source.location.name, %error, "a part of an upload cannot be noted");
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

/// Reads without holding up the threads that talk to servers.
async fn read(contents: &Arc<dyn BackingStore>, offset: u64, length: u64) -> Result<Vec<u8>> {
    let contents = contents.clone();
    let work = move || {
        let mut bytes = vec![0; length as usize];
        match contents.read_at(offset, &mut bytes)? as u64 {
            got if got == length => Ok(bytes),
            got => Err(StoreError::Short { wanted: length, got }),
        }
    };
    let panicked = |_| StoreError::Panicked { message: "while what is uploaded was read".to_owned() };
    spawn_blocking(work).await.map_err(panicked)?
}
