//! What a user can say about requests and connections.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

/// How an object of a bucket or a web server is asked for.
///
/// Where the service is, and who asks, is taken from the environment as the tools of each service do it (`AWS_*`,
/// `GOOGLE_*`, `AZURE_*`, and the files of the AWS command line with `AWS_PROFILE`); [`set`](Self::set) overrides it.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use omnimap_store_object::RemoteOptions;
///
/// let mut options = RemoteOptions::new();
/// options.set("aws_endpoint", "http://localhost:9000").request_time_max(Duration::from_secs(5));
/// ```
#[derive(Clone)]
pub struct RemoteOptions {
    pub(crate) requests_max: NonZeroUsize,
    pub(crate) request_time_max: Duration,
    pub(crate) stall_time_max: Duration,
    pub(crate) read_time_max: Duration,
    pub(crate) hedge_after: Option<Duration>,
    pub(crate) head_bytes: u64,
    pub(crate) settings: Vec<(String, String)>,
}

impl RemoteOptions {
    /// The defaults: 128 requests at a time, each at most 30 s, 10 s of silence, 45 s for all repetitions together.
    pub fn new() -> RemoteOptions {
        RemoteOptions {
            requests_max: const { NonZeroUsize::new(128).unwrap() },
            request_time_max: Duration::from_secs(30),
            stall_time_max: Duration::from_secs(10),
            read_time_max: Duration::from_secs(45),
            hedge_after: None,
            head_bytes: 64 << 10,
            settings: Vec::new(),
        }
    }

    /// The most requests for one object that are under way together.
    pub fn requests_max(&mut self, requests: NonZeroUsize) -> &mut Self {
        self.requests_max = requests;
        self
    }

    /// How long one request that reads may take, from its beginning to its last byte. (One of an upload may take 10 minutes.)
    pub fn request_time_max(&mut self, time: Duration) -> &mut Self {
        self.request_time_max = time;
        self
    }

    /// How long a server may be silent in the middle of an answer.
    pub fn stall_time_max(&mut self, time: Duration) -> &mut Self {
        self.stall_time_max = time;
        self
    }

    /// How long a read may take with all repetitions of its request; then it fails.
    pub fn read_time_max(&mut self, time: Duration) -> &mut Self {
        self.read_time_max = time;
        self
    }

    /// Makes a request a second time when it was not answered within `time`, and takes what comes first: at the price of some
    /// more requests, the slowest of many become faster (Dean and Barroso, The Tail at Scale, 2013). Off by default.
    pub fn hedge_after(&mut self, time: impl Into<Option<Duration>>) -> &mut Self {
        self.hedge_after = time.into();
        self
    }

    /// What the request that opens an object brings of its beginning, so that headers and magic numbers cost no second one;
    /// 64 KiB by default. With 0 no bytes are asked for.
    pub fn head_bytes(&mut self, bytes: u64) -> &mut Self {
        self.head_bytes = bytes;
        self
    }

    /// Sets what the environment would set: a name in small letters as `aws_endpoint`, `aws_region`, `aws_access_key_id`,
    /// `aws_secret_access_key`, `aws_virtual_hosted_style_request`, `aws_skip_signature`, `google_service_account`,
    /// `azure_storage_account_name`, `allow_http`, `proxy_url` …, as the crate `object_store` names them.
    ///
    /// A name that the service of an object does not know is an error when it is opened.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.settings.push((name.into().to_ascii_lowercase(), value.into()));
        self
    }
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Without the values of settings, which may be secret.
impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<&str> = self.settings.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RemoteOptions")
            .field("requests_max", &self.requests_max)
            .field("request_time_max", &self.request_time_max)
            .field("stall_time_max", &self.stall_time_max)
            .field("read_time_max", &self.read_time_max)
            .field("hedge_after", &self.hedge_after)
            .field("head_bytes", &self.head_bytes)
            .field("settings", &settings)
            .finish()
    }
}
