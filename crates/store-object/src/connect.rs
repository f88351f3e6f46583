//! From a URL and settings to a client of the service.

use std::env;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use omnimap_store::Result;
use url::Position;

use crate::conditional::Conditions;
use crate::location::{Location, Service, unusable};
use crate::options::RemoteOptions;
use crate::profile;

/// Where a setting comes from; the later ones override.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Here,
    Environment,
    User,
}

type Settings = Vec<(From, String, String)>;

/// Speaks to a service.
pub(crate) struct Client {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) s3: Option<Arc<S3>>,
}

/// What is said to S3 alone.
pub(crate) struct S3 {
    pub(crate) client: Arc<AmazonS3>,
    pub(crate) bucket: String,
    pub(crate) conditions: Conditions,
    pub(crate) http: HttpClient,
}

pub(crate) fn connect(location: &Location, options: &RemoteOptions) -> Result<Client> {
    let settings = settings(location, options);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: options.read_time_max,
    };
    let wrong = |error: object_store::Error| unusable(&location.name, &error.to_string());
    // What comes before the path alone: the path is that of the object.
    let bucket = &location.url[..Position::BeforePath];
    let store: Arc<dyn ObjectStore> = match location.service {
        Service::S3 => {
            let conditions = Conditions::default();
            let builder = AmazonS3Builder::new()
                .with_retry(retry)
                .with_url(bucket)
                .with_http_connector(conditions.clone());
            let set = |b: AmazonS3Builder, key: AmazonS3ConfigKey, value| b.with_config(key, value);
            let client = Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?);
            let direct = ClientOptions::new().with_allow_http(true).with_timeout(options.request_time_max);
            let http = ReqwestConnector::default().connect(&direct).map_err(wrong)?;
            let bucket = location.url.host_str().unwrap_or_default().to_owned();
            let s3 = S3 { client: client.clone(), bucket, conditions, http };
            return Ok(Client { store: client, s3: Some(Arc::new(s3)) });
        }
        Service::Google => {
            let builder = GoogleCloudStorageBuilder::new().with_retry(retry).with_url(bucket);
            let set = |b: GoogleCloudStorageBuilder, key: GoogleConfigKey, value| b.with_config(key, value);
            Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?)
        }
        Service::Azure => {
            let builder = MicrosoftAzureBuilder::new().with_retry(retry).with_url(bucket);
            let set = |b: MicrosoftAzureBuilder, key: AzureConfigKey, value| b.with_config(key, value);
            Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?)
        }
        Service::Web => {
            // A query, with a signature perhaps, goes with each request.
            let mut base = location.url.clone();
            base.set_path("");
            base.set_fragment(None);
            let builder = HttpBuilder::new().with_retry(retry).with_url(base);
            let set = |b: HttpBuilder, key: ClientConfigKey, value| b.with_config(key, value);
            Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?)
        }
    };
    Ok(Client { store, s3: None })
}

fn settings(location: &Location, options: &RemoteOptions) -> Settings {
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis().max(1));
    let mut settings: Settings = vec![
        (From::Here, "timeout".to_owned(), milliseconds(options.request_time_max)),
        (From::Here, "read_timeout".to_owned(), milliseconds(options.stall_time_max)),
        (From::Here, "connect_timeout".to_owned(), milliseconds(options.stall_time_max)),
    ];
    if location.service == Service::S3 {
        settings.extend(profile::settings().into_iter().map(|(n, v)| (From::Environment, n, v)));
    }
    let prefix = match location.service {
        Service::S3 => "AWS_",
        Service::Google => "GOOGLE_",
        Service::Azure => "AZURE_",
        Service::Web => "",
    };
    // Keys of the environment are a pair, or a triple: none of them is mixed with those of a profile.
    if env::var_os("AWS_ACCESS_KEY_ID").is_some() {
        settings.retain(|(_, name, _)| !["aws_secret_access_key", "aws_session_token"].contains(&&name[..]));
    }
    for (name, value) in env::vars_os().filter(|_| !prefix.is_empty()) {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && name.starts_with(prefix)
        {
            settings.push((From::Environment, name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    settings.extend(options.settings.iter().map(|(n, v)| (From::User, n.clone(), v.clone())));
    // Somebody who names an endpoint without encryption wants it.
    let is_plain =
        |(_, name, value): &(From, String, String)| name.contains("endpoint") && value.starts_with("http://");
    if location.url.scheme() == "http" || settings.iter().any(is_plain) {
        settings.insert(0, (From::Here, "allow_http".to_owned(), "true".to_owned()));
    }
    settings
}

/// Gives the settings to a builder. The environment may have some for other programs; what the user says must be known.
fn apply<B, K: FromStr>(
    location: &Location,
    mut builder: B,
    settings: Settings,
    set: impl Fn(B, K, String) -> B,
) -> Result<B> {
    for (from, name, value) in settings {
        match name.parse::<K>() {
            Ok(key) => builder = set(builder, key, value),
            Err(_) if from != From::User => {}
            Err(_) => {
                let reason = format!("there is no setting {name:?} for this kind of URL");
                return Err(unusable(&location.name, &reason));
            }
        }
    }
    Ok(builder)
}
