//! An object that is made, or replaced, whatever is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use omnimap_store::{BackingStore, Result, StoreError};
use tokio::task::spawn_blocking;

use crate::connect::{Purpose, connect};
use crate::failure;
use crate::fetch::Source;
use crate::location::{Location, Service, unusable};
use crate::network::Network;
use crate::options::RemoteOptions;
use crate::upload::{PARTS_TOGETHER, WHOLE_BYTES_MAX, WHOLE_BYTES_MAX_ELSEWHERE, part_bytes_of};

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
    let location = Location::parse(url)?;
    let client = connect(&location, options, Purpose::Write)?;
    let source = Arc::new(Source::new(client, location, options.clone()));
    if source.location.service == Service::Web && contents.len() > WHOLE_BYTES_MAX_ELSEWHERE {
        let reason =
            "a web server takes an object as a whole, which is limited to 512 MiB here; use another program";
        return Err(unusable(&source.location.name, reason));
    }
    Network::get()?.wait(async move {
        if contents.len() <= WHOLE_BYTES_MAX || source.location.service == Service::Web {
            let bytes = read(&contents, 0, contents.len()).await?;
            let put = source.client.put(&source.location.path, PutPayload::from(bytes)).await;
            put.map_err(|error| failure::at_writing(&error, &source.location, contents.len()))?;
            told(contents.len());
            return Ok(());
        }
        let failed = |error| failure::at_writing(&error, &source.location, contents.len());
        let mut upload = source.client.put_multipart(&source.location.path).await.map_err(failed)?;
        let outcome = in_parts(&mut *upload, &source, &contents, &told).await;
        if outcome.is_err() {
            // Parts that stay cost their owner money.
            if let Err(error) = upload.abort().await {
                tracing::warn!(object = %source.location.name, %error, "parts of an upload stay");
            }
        }
        outcome
    })
}

async fn in_parts(
    upload: &mut dyn MultipartUpload,
    source: &Source,
    contents: &Arc<dyn BackingStore>,
    told: &(dyn Fn(u64) + Send + Sync),
) -> Result<()> {
    let length = contents.len();
    let part_bytes = part_bytes_of(length);
    let failed = |error| failure::at_writing(&error, &source.location, length);
    let sent = AtomicU64::new(0);
    let mut parts = Vec::new();
    let mut offset = 0;
    while offset < length {
        let count = part_bytes.min(length - offset);
        // Read first, part by part, so that there are not more of them in memory than are sent together.
        let bytes = read(contents, offset, count).await?;
        let part = upload.put_part(PutPayload::from(bytes));
        let sent = &sent;
        parts.push(async move {
            part.await.map_err(failed)?;
            told(sent.fetch_add(count, Ordering::Relaxed) + count);
            Ok::<(), StoreError>(())
        });
        offset += count;
        if parts.len() == PARTS_TOGETHER || offset == length {
            let together = stream::iter(parts.drain(..)).buffer_unordered(PARTS_TOGETHER);
            together.try_collect::<Vec<()>>().await?;
        }
    }
    upload.complete().await.map_err(failed)?;
    Ok(())
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
