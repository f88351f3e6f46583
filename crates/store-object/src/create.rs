//! An object that is made, or replaced, whatever is there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use object_store::{ObjectStoreExt, PutPayload};
use omnimap_store::{BackingStore, Result, StoreError};
use tokio::task::spawn_blocking;

use crate::connect::{Purpose, connect};
use crate::failure;
use crate::fetch::{Failure, Source};
use crate::location::{Location, hash, unusable};
use crate::network::Network;
use crate::options::RemoteOptions;
use crate::upload::{WHOLE_BYTES_MAX, WHOLE_BYTES_MAX_ELSEWHERE, part_bytes_of};
use crate::upload_note::{UnderWay, UploadNote, note_path};
use crate::upload_parts::Upload;

/// Writes all bytes of a store to the object that a URL names, as a new one or over the one that is there; `told` is called with
/// the bytes that went, from the threads that send them.
///
/// More than 16 MiB go in parts, several at a time; then the object is there when the last of them is, and before not at all.
/// A web server has to take all of it by one PUT.
///
/// # Errors
/// If the bytes cannot be read, or the service refuses; then there is no new object, and the service is told to throw away the
/// parts of one (Azure does so after a week).
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
/// It goes on if the bytes come from the same version of the same source ([`BackingStore::version`]); else the parts are thrown
/// away, and it begins anew. So it does where the service has thrown them away, or the answer to the last request was lost. What a
/// service has of an upload that nobody goes on with costs its owner money, unless a rule of the bucket ends it.
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
pub(crate) type Told = Box<dyn Fn(u64) + Send + Sync>;

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
    if source.client.parts.is_none() && length > WHOLE_BYTES_MAX_ELSEWHERE {
        let reason =
            "a web server takes an object as a whole, which is limited to 512 MiB here; use another program";
        return Err(unusable(&source.location.name, reason));
    }
    let is_whole = length <= WHOLE_BYTES_MAX || source.client.parts.is_none();
    let (note, under_way) = match (notes, &source.client.parts) {
        (Some(notes), Some(_)) => open_note(&source, &*contents, is_whole, notes)?,
        _ => (None, None),
    };
    Network::get()?.wait(async move {
        let outcome = match &source.client.parts {
            Some(parts) if !is_whole => {
                Upload::new(&source, &**parts, contents, note, told).run(under_way).await
            }
            parts => {
                let outcome = whole(&source, &contents, &told).await;
                if let Some(parts) = parts
                    && (outcome.is_ok() || under_way.is_none())
                {
                    Upload::new(&source, &**parts, contents, note, told).leave(under_way).await;
                }
                outcome
            }
        };
        outcome.map_err(|failed| match failed {
            Failure::Service(error) => failure::at_writing(&error, &source.location, length),
            other => other.into_store_error(&source.location, length),
        })
    })
}

async fn whole(source: &Source, contents: &Arc<dyn BackingStore>, told: &Told) -> Result<(), Failure> {
    let bytes = read(contents, 0, contents.len()).await.map_err(Failure::Store)?;
    source.client.store.put(&source.location.path, PutPayload::from(bytes)).await?;
    told(contents.len());
    Ok(())
}

/// The note of uploads to one place, and the one that is under way.
fn open_note(
    source: &Source,
    contents: &dyn BackingStore,
    is_whole: bool,
    notes: &Path,
) -> Result<(Option<UploadNote>, Option<UnderWay>)> {
    let object = &source.location.name;
    // One URL may name objects of several services.
    let place = format!("{object} {:016x}", hash(&source.client.service));
    // Of a source that names no version, nobody knows whether it is the same; but what is under way can be ended.
    let of = contents.version().filter(|_| !is_whole).map(|version| {
        let (name, length) = (contents.name(), contents.len());
        format!("{place}\n{name}\n{version}\n{length} {}", part_bytes_of(length))
    });
    match UploadNote::open(note_path(notes, &place), of.as_deref()) {
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

/// Reads without holding up the threads that talk to servers.
pub(crate) async fn read(contents: &Arc<dyn BackingStore>, offset: u64, length: u64) -> Result<Vec<u8>> {
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
