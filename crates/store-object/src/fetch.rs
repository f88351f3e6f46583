//! One range of an object, in spite of what servers and networks do.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::{GetOptions, GetResult};
use omnimap_store::{Result, StoreError};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::connect::Client;
use crate::failure::{self, Kind};
use crate::location::Location;
use crate::options::RemoteOptions;
use crate::version::Pinned;

/// How often a read begins anew after a connection broke. (That a server is busy is waited out by the client below.)
const REPEATS_MAX: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Where the bytes of one version of an object come from.
pub(crate) struct Source {
    pub(crate) client: Client,
    pub(crate) location: Location,
    pub(crate) options: RemoteOptions,
    pub(crate) figures: Figures,
    /// Requests that may begin.
    places: Semaphore,
}

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) requests: AtomicU64,
    pub(crate) repeats: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
}

impl Source {
    pub(crate) fn new(client: Client, location: Location, options: RemoteOptions) -> Source {
        let places = Semaphore::new(options.requests_max.get().min(Semaphore::MAX_PERMITS));
        Source { client, location, options, figures: Figures::default(), places }
    }

    /// The bytes of a range that is inside the object.
    pub(crate) async fn fetch(self: Arc<Self>, pinned: Arc<Pinned>, range: Range<u64>) -> Result<Bytes> {
        let work = async {
            let _place = self.places.acquire().await;
            match self.options.hedge_after {
                None => self.repeat(&pinned, &range).await,
                Some(patience) => self.hedge(&pinned, &range, patience).await,
            }
        };
        match timeout(self.options.read_time_max, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out(range.end - range.start)),
        }
    }

    fn timed_out(&self, length: u64) -> StoreError {
        let text = format!("no answer within {:?}, with all repetitions", self.options.read_time_max);
        StoreError::Io {
            action: "request",
            length,
            source: std::io::Error::new(std::io::ErrorKind::TimedOut, text),
        }
    }

    /// Asks a second time when the first is slow, if there is a place for that, and takes what comes first; an error of one
    /// waits for the other.
    async fn hedge(&self, pinned: &Pinned, range: &Range<u64>, patience: Duration) -> Result<Bytes> {
        let first = self.repeat(pinned, range);
        tokio::pin!(first);
        tokio::select! {
            outcome = &mut first => return outcome,
            () = sleep(patience) => {}
        }
        let Ok(_place) = self.places.try_acquire() else { return first.await };
        self.figures.repeats.fetch_add(1, Ordering::Relaxed);
        let second = self.repeat(pinned, range);
        tokio::pin!(second);
        tokio::select! {
            outcome = &mut first => match outcome {
                Ok(bytes) => Ok(bytes),
                Err(error) => second.await.map_err(|_| error),
            },
            outcome = &mut second => match outcome {
                Ok(bytes) => Ok(bytes),
                Err(_) => first.await,
            },
        }
    }

    /// Begins anew when a connection broke, or bytes came that are not those of the range.
    async fn repeat(&self, pinned: &Pinned, range: &Range<u64>) -> Result<Bytes> {
        let mut pause = FIRST_PAUSE;
        let mut repeats = 0;
        loop {
            let error = match self.ask(pinned, range).await {
                Err(error) if repeats < REPEATS_MAX && may_be_repeated(&error) => error,
                Err(error) => return Err(error.into_store_error(&self.location, range.end - range.start)),
                Ok(bytes) => return Ok(bytes),
            };
            repeats += 1;
            self.figures.repeats.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(object = %self.location.name, ?range, repeats, error = error.brief(), "request made again");
            sleep(pause.mul_f64(0.5 + jitter())).await;
            pause *= 2;
        }
    }

    async fn ask(&self, pinned: &Pinned, range: &Range<u64>) -> Result<Bytes, Failure> {
        self.figures.requests.fetch_add(1, Ordering::Relaxed);
        let options = pinned.condition(GetOptions::new().with_range(Some(range.clone())));
        let answer = self.client.store.get_opts(&self.location.path, options).await?;
        pinned.check(&Pinned::of(answer.meta.clone())).map_err(Failure::Store)?;
        self.collect(answer, range).await
    }

    /// All bytes of an answer, which must be those of the range.
    pub(crate) async fn collect(&self, answer: GetResult, range: &Range<u64>) -> Result<Bytes, Failure> {
        let wanted = (range.end - range.start) as usize;
        let mut stream = answer.into_stream();
        let mut parts = BytesMut::new();
        let mut only = Bytes::new();
        let mut got = 0;
        while let Some(part) = stream.next().await {
            let part = part?;
            got += part.len();
            self.figures.bytes_fetched.fetch_add(part.len() as u64, Ordering::Relaxed);
            if got > wanted {
                break;
            }
            if got == wanted && parts.is_empty() {
                only = part;
            } else {
                parts.reserve(wanted - parts.len());
                parts.extend_from_slice(&part);
            }
        }
        if got != wanted {
            return Err(Failure::Length { wanted: wanted as u64, got: got as u64 });
        }
        Ok(if parts.is_empty() { only } else { parts.freeze() })
    }
}

/// Why one request gave no bytes.
#[derive(Debug)]
pub(crate) enum Failure {
    Service(object_store::Error),
    Store(StoreError),
    Length { wanted: u64, got: u64 },
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        Failure::Service(error)
    }
}

impl Failure {
    /// Without what may be secret in a URL.
    fn brief(&self) -> String {
        match self {
            Failure::Service(error) => failure::brief(error),
            Failure::Store(error) => error.to_string(),
            Failure::Length { wanted, got } => format!("{got} bytes of {wanted}"),
        }
    }

    pub(crate) fn into_store_error(self, location: &Location, length: u64) -> StoreError {
        match self {
            Failure::Service(error) => failure::at_reading(&error, location, length),
            Failure::Store(error) => error,
            Failure::Length { wanted, got } => StoreError::Short { wanted, got },
        }
    }
}

fn may_be_repeated(failure: &Failure) -> bool {
    match failure {
        Failure::Service(error) => {
            matches!(failure::kind(error), Kind::Broken | Kind::TimedOut | Kind::Other)
        }
        Failure::Store(_) => false,
        Failure::Length { .. } => true,
    }
}

/// A number from 0 to 1 that differs from thread to thread and from time to time, so that not all come back together.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
