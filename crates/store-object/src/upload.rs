//! A new version of an object, if it is still the one that was opened.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::multipart::{MultipartStore, PartId};
use object_store::{
    Attribute, Attributes, GetOptions, ObjectMeta, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, UpdateVersion,
};
use omnimap_store::{Result, StoreError};
use tokio::task::spawn_blocking;

use crate::conditional::{CopySource, copy_part};
use crate::connect::S3;
use crate::failure::{self, Kind};
use crate::fetch::Source;
use crate::location::unusable;

/// The least that a part has, but the last (Amazon S3 multipart upload limits), and a bit.
const PART_BYTES_MIN: u64 = 8 << 20;
/// Fewer than the 10,000 that there may be.
const PARTS_MAX: u64 = 9_000;
/// What is uploaded in one piece where there is a choice.
pub(crate) const WHOLE_BYTES_MAX: u64 = 16 << 20;
/// And where there is none: it must be in memory.
pub(crate) const WHOLE_BYTES_MAX_ELSEWHERE: u64 = 512 << 20;
const PARTS_TOGETHER_MAX: u64 = 8;
/// What parts that are sent together take, but that one has to go.
const TOGETHER_BYTES_MAX: u64 = 64 << 20;
/// How a new version tells which sync made it; the name is one that all services take.
const MARK: &str = "omnimapsync";

/// What is uploaded: bytes that can be read at any place.
pub(crate) trait Contents: Send + Sync + 'static {
    fn len(&self) -> u64;
    /// All bytes of a range.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>>;
    /// Whether a range is as in the version that is replaced.
    fn is_unchanged(&self, range: Range<u64>) -> bool;
}

/// The version to be replaced, and the mark of the next.
#[derive(Clone)]
pub(crate) struct Replace {
    pub(crate) version: UpdateVersion,
    pub(crate) mark: String,
}

/// A version that was made.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) tag: String,
    pub(crate) version: Option<String>,
    pub(crate) length: u64,
}

impl Published {
    fn of_meta(meta: ObjectMeta) -> Option<Published> {
        Some(Published { tag: meta.e_tag?, version: meta.version, length: meta.size })
    }
}

/// Uploads the next version.
///
/// # Errors
/// [`StoreError::Changed`] if the object is another version by now.
pub(crate) async fn upload(
    source: Arc<Source>,
    contents: Arc<dyn Contents>,
    replace: Replace,
) -> Result<Published> {
    let length = contents.len();
    let outcome = match attributes(&source, &replace).await {
        Ok(attributes) => match &source.client.s3 {
            Some(s3) if length > WHOLE_BYTES_MAX => {
                in_parts(&source, s3.clone(), contents, &replace, attributes).await
            }
            _ if length <= WHOLE_BYTES_MAX_ELSEWHERE => whole(&source, contents, &replace, attributes).await,
            _ => {
                let reason = "an object of this service is replaced as a whole, which is limited to 512 MiB; export the \
                              changes (omnimap export), and upload the file with the service's own tool";
                return Err(unusable(&source.location.name, reason));
            }
        },
        Err(failed) => Err(failed),
    };
    let failed = match outcome {
        Ok(PutResult { e_tag: Some(tag), version, .. }) => return Ok(Published { tag, version, length }),
        // Asked for below.
        Ok(_) => {
            Failure::Store(StoreError::Changed { how: "the service does not tell its version".to_owned() })
        }
        Err(failed) => failed,
    };
    // The answer may have been lost, and the request made again.
    if let Ok(Some((mark, published))) = marked(&source).await
        && mark == replace.mark
    {
        return Ok(published);
    }
    Err(match failed {
        Failure::Store(error) => error,
        Failure::Service(error) => match failure::kind(&error) {
            Kind::OtherVersion | Kind::NotFound => other_version(),
            _ => failure::at_writing(&error, &source.location, length),
        },
    })
}

fn other_version() -> StoreError {
    StoreError::Changed { how: "the service has another version of it by now".to_owned() }
}

/// The mark of the object as it is, if a sync made it.
pub(crate) async fn marked(source: &Source) -> Result<Option<(String, Published)>, object_store::Error> {
    let answer =
        source.client.store.get_opts(&source.location.path, GetOptions::new().with_head(true)).await?;
    let mark = answer.attributes.get(&Attribute::Metadata(MARK.into())).map(|mark| mark.as_ref().to_owned());
    Ok(mark.and_then(|mark| Some((mark, Published::of_meta(answer.meta)?))))
}

/// What the object has beside its bytes (its type, what users noted …), with the mark.
async fn attributes(source: &Source, replace: &Replace) -> Result<Attributes, Failure> {
    let answer =
        source.client.store.get_opts(&source.location.path, GetOptions::new().with_head(true)).await?;
    // Found out before anything is uploaded, most likely.
    let bare = |tag: &Option<String>| tag.as_ref().map(|tag| tag.trim_matches('"').to_owned());
    if bare(&answer.meta.e_tag) != bare(&replace.version.e_tag) {
        return Err(Failure::Store(other_version()));
    }
    let mut attributes = answer.attributes;
    attributes.insert(Attribute::Metadata(MARK.into()), replace.mark.clone().into());
    Ok(attributes)
}

enum Failure {
    Service(object_store::Error),
    Store(StoreError),
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        Failure::Service(error)
    }
}

/// Reads without holding up the threads that talk to servers.
async fn read(contents: &Arc<dyn Contents>, range: Range<u64>) -> Result<Vec<u8>, Failure> {
    let contents = contents.clone();
    let read = spawn_blocking(move || contents.read(range)).await;
    let panicked = |_| StoreError::Panicked { message: "while what is uploaded was read".to_owned() };
    read.map_err(panicked).and_then(|outcome| outcome).map_err(Failure::Store)
}

async fn whole(
    source: &Source,
    contents: Arc<dyn Contents>,
    replace: &Replace,
    attributes: Attributes,
) -> Result<PutResult, Failure> {
    let bytes = read(&contents, 0..contents.len()).await?;
    let options =
        PutOptions { mode: PutMode::Update(replace.version.clone()), attributes, ..PutOptions::default() };
    Ok(source.client.store.put_opts(&source.location.path, PutPayload::from(bytes), options).await?)
}

/// How long the parts of an upload are, the last one aside.
pub(crate) fn part_bytes_of(length: u64) -> u64 {
    PART_BYTES_MIN.max(length.div_ceil(PARTS_MAX).next_multiple_of(1 << 20))
}

/// Parts of that size that are sent at the same time.
pub(crate) fn parts_together(part_bytes: u64) -> usize {
    (TOGETHER_BYTES_MAX / part_bytes).clamp(1, PARTS_TOGETHER_MAX) as usize
}

async fn in_parts(
    source: &Source,
    s3: Arc<S3>,
    contents: Arc<dyn Contents>,
    replace: &Replace,
    attributes: Attributes,
) -> Result<PutResult, Failure> {
    let path = &source.location.path;
    let length = contents.len();
    let part_bytes = part_bytes_of(length);
    let tag = replace.version.e_tag.as_deref().unwrap_or_default();
    let options = PutMultipartOptions { attributes, ..Default::default() };
    let id = s3.client.create_multipart_opts(path, options).await?;
    let work = async {
        let parts = (0..length.div_ceil(part_bytes)).map(|number| {
            let range = number * part_bytes..((number + 1) * part_bytes).min(length);
            part(source, &s3, &contents, tag, &id, number as usize, range)
        });
        let parts: Vec<PartId> =
            stream::iter(parts).buffered(parts_together(part_bytes)).try_collect().await?;
        s3.conditions.set(&id, tag);
        let completed = s3.client.complete_multipart(path, &id, parts).await;
        s3.conditions.forget(&id);
        Ok(completed?)
    };
    let outcome = work.await;
    if outcome.is_err() {
        // Parts that stay cost their owner money.
        if let Err(error) = s3.client.abort_multipart(path, &id).await {
            tracing::warn!(object = %source.location.name, upload = id, %error, "parts of an upload stay");
        }
    }
    outcome
}

async fn part(
    source: &Source,
    s3: &S3,
    contents: &Arc<dyn Contents>,
    tag: &str,
    id: &str,
    number: usize,
    range: Range<u64>,
) -> Result<PartId, Failure> {
    let path = &source.location.path;
    if contents.is_unchanged(range.clone()) {
        let from = CopySource { bucket: &s3.bucket, tag, range: range.clone() };
        match copy_part(&s3.client, &s3.http, path, id, number, from).await {
            Ok(part) => return Ok(part),
            // Not all services copy: then the bytes go over here.
            Err(error) => tracing::debug!(object = %source.location.name, number, %error, "part not copied"),
        }
    }
    let bytes = read(contents, range).await?;
    Ok(s3.client.put_part(path, &id.to_owned(), number, PutPayload::from(bytes)).await?)
}
