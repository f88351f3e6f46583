//! An object of a bucket or a web server, to be read.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use object_store::{GetOptions, ObjectStoreExt, UpdateVersion};
use omnimap_store::{Answers, BackingStore, ReadAt, Result, StoreError, Transfer, Version};
use tokio::time::timeout;

use crate::connect::{Client, Purpose, connect};
use crate::failure::{self, Kind};
use crate::fetch::{Failure, Source};
use crate::location::{Location, Service, hash, unusable};
use crate::merge::{Request, merge};
use crate::network::Network;
use crate::options::RemoteOptions;
use crate::upload::Published;
use crate::version::Pinned;

/// Larger requests bring little where several are under way; smaller ones cost as much as their latency.
const PREFERRED_BYTES: usize = 2 << 20;
/// How often an object is asked for again when a connection breaks at its opening.
const REPEATS_MAX: u32 = 3;

/// One version of an object of S3, Google Cloud Storage, Azure or a web server. Read-only.
///
/// The version is that of the opening: every request carries it as a condition (`If-Match`, RFC 9110, 13.1.1), and every
/// answer is compared with it. An object that was replaced meanwhile is [`StoreError::Changed`]. Of a server that names no
/// versions (neither ETag nor Last-Modified) nothing is mapped.
///
/// A request that can be made again (the connection broke, the server is busy) is made again, at growing and random
/// distances, for as long as [`RemoteOptions::read_time_max`] allows.
///
/// # Example
/// ```no_run
/// use omnimap_store::BackingStore;
/// use omnimap_store_object::{RemoteOptions, RemoteStore};
///
/// # fn main() -> omnimap_store::Result<()> {
/// let store = RemoteStore::open("s3://bucket/key", &RemoteOptions::new())?;
/// let mut bytes = [0; 100];
/// store.read_at(store.len() - 100, &mut bytes)?;
/// # Ok(())
/// # }
/// ```
pub struct RemoteStore {
    source: Arc<Source>,
    pinned: Arc<Pinned>,
    head: Bytes,
    network: Arc<Network>,
}

/// What a [`RemoteStore`] asked its server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RemoteCounts {
    /// Requests, not counting those that the HTTP client made again by itself.
    pub requests: u64,
    /// Requests that were made again, or twice.
    pub repeats: u64,
    /// Bytes of the object that came, wanted or not.
    pub bytes_fetched: u64,
}

impl RemoteStore {
    /// Opens an object by its URL, with one request.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the service does not answer, or refuses; [`StoreError::Unusable`] if the URL or a setting is
    /// wrong, or the server knows no ranges or no versions. They say what to do.
    pub fn open(url: &str, options: &RemoteOptions) -> Result<RemoteStore> {
        let location = Location::parse(url)?;
        let client = connect(&location, options, Purpose::Read)?;
        RemoteStore::open_at(location, client, options)
    }

    fn open_at(location: Location, client: Client, options: &RemoteOptions) -> Result<RemoteStore> {
        let network = Network::get()?;
        let source = Arc::new(Source::new(client, location, options.clone()));
        let asked = source.clone();
        let limit = options.read_time_max;
        let (pinned, head) = network.wait(async move {
            timeout(limit, open(&asked)).await.unwrap_or_else(|_| {
                let text = format!("no answer within {limit:?}");
                let source = std::io::Error::new(std::io::ErrorKind::TimedOut, text);
                Err(StoreError::Open { name: asked.location.name.clone(), source })
            })
        })?;
        if !pinned.is_version() {
            let reason = "its server names no versions (neither ETag nor Last-Modified), so nobody could tell when it is \
                          replaced; download it, and map the file";
            return Err(unusable(&source.location.name, reason));
        }
        Ok(RemoteStore { source, pinned: Arc::new(pinned), head, network })
    }

    /// What was asked for until now.
    pub fn counts(&self) -> RemoteCounts {
        let figures = &self.source.figures;
        RemoteCounts {
            requests: figures.requests.load(Ordering::Relaxed),
            repeats: figures.repeats.load(Ordering::Relaxed),
            bytes_fetched: figures.bytes_fetched.load(Ordering::Relaxed),
        }
    }

    /// The version that was opened, as the server named it.
    pub fn server_version(&self) -> String {
        self.pinned.shown()
    }

    /// Whether a new version can be written under the condition that this one is still there.
    pub(crate) fn may_be_replaced(&self) -> bool {
        self.source.location.service != Service::Web && self.pinned.strong_tag().is_some()
    }

    /// What a version that is to replace this one has to name.
    pub(crate) fn replaceable(&self) -> Option<UpdateVersion> {
        let tag = self.pinned.strong_tag()?;
        Some(UpdateVersion { e_tag: Some(tag.to_owned()), version: self.pinned.generation() })
    }

    /// A client for writing the object.
    pub(crate) fn writer(&self) -> Result<Arc<Source>> {
        let Source { location, options, .. } = &*self.source;
        let client = connect(location, options, Purpose::Write)?;
        Ok(Arc::new(Source::new(client, location.clone(), options.clone())))
    }

    /// The version that was published in the place of this one, over the same connections.
    pub(crate) fn replaced_by(&self, new: Published) -> RemoteStore {
        RemoteStore {
            source: self.source.clone(),
            pinned: Arc::new(self.pinned.replaced_by(new)),
            head: Bytes::new(),
            network: self.network.clone(),
        }
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The object as it is now, over the same connections.
    pub(crate) fn reopen_present(&self, options: &RemoteOptions) -> Result<RemoteStore> {
        let Source { client, location, .. } = &*self.source;
        RemoteStore::open_at(location.clone(), client.clone(), options)
    }

    /// What of `length` bytes at `offset` is inside the object.
    fn inside(&self, offset: u64, length: usize) -> Range<u64> {
        let end = offset.saturating_add(length as u64).min(self.len());
        offset.min(end)..end
    }

    /// Copies what came with the opening, if that is all of the range.
    fn copy_of_head(&self, range: &Range<u64>, into: &mut [u8]) -> bool {
        let Some(bytes) = self.head.get(range.start as usize..range.end as usize) else { return false };
        into[..bytes.len()].copy_from_slice(bytes);
        true
    }
}

/// Asks for an object's first bytes, and learns what it is.
async fn open(source: &Source) -> Result<(Pinned, Bytes)> {
    let mut repeats = 0;
    loop {
        source.figures.requests.fetch_add(1, Ordering::Relaxed);
        match try_open(source).await {
            Ok(opened) => return Ok(opened),
            Err(Failure::Service(error))
                if failure::kind(&error) == Kind::Broken && repeats < REPEATS_MAX =>
            {
                repeats += 1;
                source.figures.repeats.fetch_add(1, Ordering::Relaxed);
            }
            Err(Failure::Service(error)) => return Err(failure::at_opening(&error, &source.location)),
            Err(other) => return Err(other.into_store_error(&source.location, source.options.head_bytes)),
        }
    }
}

async fn try_open(source: &Source) -> Result<(Pinned, Bytes), Failure> {
    let Source { client: Client { store: client, .. }, location, options, .. } = source;
    let mut wanted = options.head_bytes;
    if wanted == 0 {
        match client.head(&location.path).await {
            Ok(meta) => return Ok((Pinned::of(meta), Bytes::new())),
            // A URL may be signed for GET alone; not all servers have HEAD.
            Err(error) if matches!(failure::kind(&error), Kind::Refused | Kind::NotFound | Kind::Other) => {
                wanted = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    match client.get_opts(&location.path, GetOptions::new().with_range(Some(0..wanted))).await {
        Ok(answer) => {
            let pinned = Pinned::of(answer.meta.clone());
            let range = 0..pinned.length().min(wanted);
            let head = source.collect(answer, &range).await?;
            Ok((pinned, head))
        }
        // Nothing has no first byte; some servers refuse that, and some give the whole of nothing.
        Err(error) if matches!(failure::kind(&error), Kind::NoSuchRange | Kind::NoRanges) => {
            match client.get_opts(&location.path, GetOptions::new()).await?.meta {
                empty if empty.size == 0 => Ok((Pinned::of(empty), Bytes::new())),
                _ => Err(Failure::Store(failure::no_ranges(location))),
            }
        }
        Err(error) => Err(error.into()),
    }
}

impl BackingStore for RemoteStore {
    fn name(&self) -> &str {
        &self.source.location.name
    }

    fn len(&self) -> u64 {
        self.pinned.length()
    }

    fn transfer(&self) -> Transfer {
        let requests = self.source.options.requests_max;
        Transfer::new(PREFERRED_BYTES, requests.get())
            .answering(Answers::Eventually)
            .reading_together(requests)
    }

    fn version(&self) -> Option<Version> {
        // An ETag is of one resource only (RFC 9110, 8.8.3), and the name may leave out what tells two of them apart.
        let Source { location, client: Client { service, .. }, .. } = &*self.source;
        let tag = self.pinned.strong_tag()?;
        let place = hash(&format!("{} {service}", location.identity));
        Some(Version::new(format!("{tag}, {} bytes, {place:016x}", self.len())))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        let range = self.inside(offset, into.len());
        let count = (range.end - range.start) as usize;
        if count == 0 || self.copy_of_head(&range, into) {
            return Ok(count);
        }
        let bytes = self.network.wait(self.source.clone().fetch(self.pinned.clone(), range))?;
        into[..count].copy_from_slice(&bytes);
        Ok(count)
    }

    fn read_each(&self, reads: &mut [ReadAt<'_>], came: &mut dyn FnMut(usize, Result<usize>)) {
        let mut wanted: Vec<Range<u64>> = Vec::with_capacity(reads.len());
        for (number, read) in reads.iter_mut().enumerate() {
            let range = self.inside(read.offset, read.into.len());
            if range.is_empty() || self.copy_of_head(&range, read.into) {
                came(number, Ok((range.end - range.start) as usize));
                wanted.push(0..0);
            } else {
                wanted.push(range);
            }
        }
        if !self.network.is_current() {
            for (number, _) in wanted.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
                came(number, self.read_at(reads[number].offset, reads[number].into));
            }
            return;
        }
        let (sender, receiver) = mpsc::channel();
        for Request { range, reads } in merge(&wanted) {
            let (sender, fetch) =
                (sender.clone(), self.source.clone().fetch(self.pinned.clone(), range.clone()));
            self.network.spawn(async move { drop(sender.send((range.start, reads, fetch.await))) });
        }
        drop(sender);
        let mut missing: Vec<bool> = wanted.iter().map(|range| !range.is_empty()).collect();
        for (start, numbers, outcome) in receiver {
            for number in numbers {
                missing[number] = false;
                let range = &wanted[number];
                let count = (range.end - range.start) as usize;
                came(
                    number,
                    match &outcome {
                        Ok(bytes) => {
                            let from = (range.start - start) as usize;
                            reads[number].into[..count].copy_from_slice(&bytes[from..from + count]);
                            Ok(count)
                        }
                        Err(error) => Err(again(error)),
                    },
                );
            }
        }
        for (number, _) in missing.into_iter().enumerate().filter(|(_, missing)| *missing) {
            came(
                number,
                Err(StoreError::Panicked { message: "a request ended without an outcome".to_owned() }),
            );
        }
    }

    /// The same version, over connections of the process that calls.
    fn reopen(&self) -> Result<Arc<dyn BackingStore>> {
        let source = &self.source;
        let client = connect(&source.location, &source.options, Purpose::Read)?;
        let new = Source::new(client, source.location.clone(), source.options.clone());
        Ok(Arc::new(RemoteStore {
            source: Arc::new(new),
            pinned: self.pinned.clone(),
            head: self.head.clone(),
            network: Network::get()?,
        }))
    }
}

/// An error that several reads share.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Changed { how } => StoreError::Changed { how: how.clone() },
        StoreError::Unusable { name, reason } => {
            StoreError::Unusable { name: name.clone(), reason: reason.clone() }
        }
        StoreError::Short { wanted, got } => StoreError::Short { wanted: *wanted, got: *got },
        StoreError::Io { action, length, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            StoreError::Io { action, length: *length, source }
        }
        other => {
            StoreError::Io { action: "request", length: 0, source: std::io::Error::other(other.to_string()) }
        }
    }
}
