//! From a URL and settings to a client of the service.

use std::env;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use omnimap_store::Result;
use percent_encoding::percent_decode_str;
use url::Position;

use crate::conditional::Conditions;
use crate::location::{Location, Service, unusable};
use crate::options::RemoteOptions;
use crate::profile;

/// Where a setting comes from; the later ones override.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    Here,
    Profile,
    Environment,
    User,
}

/// Names that say one thing together, which is taken from one place. The first of each has to be there.
const TOGETHER: [&[&str]; 4] = [
    &[
        "aws_access_key_id",
        "access_key_id",
        "aws_secret_access_key",
        "secret_access_key",
        "aws_session_token",
        "session_token",
        "aws_token",
        "token",
    ],
    &["aws_endpoint_url_s3", "aws_endpoint", "aws_endpoint_url", "endpoint", "endpoint_url"],
    &["aws_region", "region"],
    &["aws_default_region", "default_region"],
];

type Settings = Vec<(From, String, String)>;

/// Speaks to a service.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Which service it is, beyond what the URL says.
    pub(crate) service: String,
    pub(crate) s3: Option<Arc<S3>>,
    /// Uploads in parts, which buckets take and web servers do not.
    pub(crate) parts: Option<Arc<dyn MultipartStore>>,
}

/// What is said to S3 alone.
pub(crate) struct S3 {
    pub(crate) client: Arc<AmazonS3>,
    pub(crate) bucket: String,
    pub(crate) conditions: Conditions,
    pub(crate) http: HttpClient,
}

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    /// Requests have long bodies, and some take the service long.
    Write,
}

/// How long one request of an upload may take.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(600);

pub(crate) fn connect(location: &Location, options: &RemoteOptions, purpose: Purpose) -> Result<Client> {
    // A program that has chosen another keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = settings(location, options, purpose);
    let tells = |name: &str| ["endpoint", "account_name", "base_url"].iter().any(|part| name.contains(part));
    let service = settings.iter().filter(|(_, name, _)| tells(name)).map(|(_, _, value)| value.as_str());
    let service = service.collect::<Vec<_>>().join(" ");
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: if purpose == Purpose::Read { options.read_time_max } else { UPLOAD_TIME_MAX },
    };
    let wrong = |error: object_store::Error| unusable(&location.name, &error.to_string());
    // What comes before the path alone: the path is that of the object.
    let bucket = &location.url[..Position::BeforePath];
    let (store, parts): (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>) = match location.service {
        Service::S3 => {
            let conditions = Conditions::default();
            let builder = AmazonS3Builder::new()
                .with_retry(retry)
                .with_url(bucket)
                .with_http_connector(conditions.clone());
            let set = |b: AmazonS3Builder, key: AmazonS3ConfigKey, value| b.with_config(key, value);
            let client = Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?);
            let direct = ClientOptions::new().with_allow_http(true).with_timeout(UPLOAD_TIME_MAX);
            let http = ReqwestConnector::default().connect(&direct).map_err(wrong)?;
            let bucket = location.url.host_str().unwrap_or_default().to_owned();
            let s3 = S3 { client: client.clone(), bucket, conditions, http };
            return Ok(Client {
                store: client.clone(),
                service,
                s3: Some(Arc::new(s3)),
                parts: Some(client),
            });
        }
        Service::Google => {
            let builder = GoogleCloudStorageBuilder::new().with_retry(retry).with_url(bucket);
            let set = |b: GoogleCloudStorageBuilder, key: GoogleConfigKey, value| b.with_config(key, value);
            let client = Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?);
            (client.clone(), Some(client))
        }
        Service::Azure => {
            let builder = MicrosoftAzureBuilder::new().with_retry(retry).with_url(bucket);
            let set = |b: MicrosoftAzureBuilder, key: AzureConfigKey, value| b.with_config(key, value);
            let client = Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?);
            (client.clone(), Some(client))
        }
        Service::Web => {
            // All of it, a query with a signature perhaps, goes with each request; who asks, in a header.
            let mut base = location.url.clone();
            let _ = (base.set_password(None), base.set_username(""));
            base.set_fragment(None);
            let client = ClientOptions::new().with_default_headers(authorization(location));
            let builder = HttpBuilder::new().with_retry(retry).with_url(base).with_client_options(client);
            let set = |b: HttpBuilder, key: ClientConfigKey, value| b.with_config(key, value);
            (Arc::new(apply(location, builder, settings, set)?.build().map_err(wrong)?), None)
        }
    };
    Ok(Client { store, service, s3: None, parts })
}

/// Basic authentication (RFC 7617), if the URL has a name or a password.
fn authorization(location: &Location) -> HeaderMap {
    let decode = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let (name, password) = (location.url.username(), location.url.password());
    let mut headers = HeaderMap::new();
    if !name.is_empty() || password.is_some() {
        let mut text = decode(name);
        text.push(b':');
        text.extend(decode(password.unwrap_or_default()));
        if let Ok(mut value) = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(text))) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
    headers
}

fn settings(location: &Location, options: &RemoteOptions, purpose: Purpose) -> Settings {
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis().max(1));
    let limit = |name: &str, time| (From::Here, name.to_owned(), milliseconds(time));
    let mut settings: Settings = vec![limit("connect_timeout", options.stall_time_max)];
    match purpose {
        Purpose::Read => settings.extend([
            limit("timeout", options.request_time_max),
            limit("read_timeout", options.stall_time_max),
        ]),
        // A server is silent for as long as it is being sent to.
        Purpose::Write => settings.push(limit("timeout", UPLOAD_TIME_MAX)),
    }
    if location.service == Service::S3 {
        settings.extend(profile::settings().into_iter().map(|(n, v)| (From::Profile, n, v)));
    }
    let prefix = match location.service {
        Service::S3 => "AWS_",
        Service::Google => "GOOGLE_",
        Service::Azure => "AZURE_",
        Service::Web => "",
    };
    for (name, value) in env::vars_os().filter(|_| !prefix.is_empty()) {
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && name.starts_with(prefix)
        {
            settings.push((From::Environment, name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    settings.extend(options.settings.iter().map(|(n, v)| (From::User, n.clone(), v.clone())));
    from_one_place(&mut settings);
    // Somebody who names an endpoint without encryption wants it.
    let is_plain = |(_, name, value): &(From, String, String)| {
        ["endpoint", "base_url"].iter().any(|part| name.contains(part)) && value.starts_with("http://")
    };
    if location.url.scheme() == "http" || settings.iter().any(is_plain) {
        settings.insert(0, (From::Here, "allow_http".to_owned(), "true".to_owned()));
    }
    settings
}

/// Of settings that belong together, those of the last place that has them.
fn from_one_place(settings: &mut Settings) {
    // A default region of a later place is before the region of an earlier one, as in Amazon's own tools.
    let of = |settings: &Settings, names: &[&str]| {
        let place =
            |(from, name, _): &(From, String, String)| names.contains(&name.as_str()).then_some(*from);
        settings.iter().filter_map(place).max()
    };
    if of(settings, TOGETHER[3]) > of(settings, TOGETHER[2]) {
        settings.retain(|(_, name, _)| !TOGETHER[2].contains(&name.as_str()));
        for (_, name, _) in settings.iter_mut().filter(|(_, name, _)| TOGETHER[3].contains(&name.as_str())) {
            "aws_region".clone_into(name);
        }
    }
    for names in TOGETHER {
        // Of keys, a place counts if it has a key, and not a token alone.
        let deciding = if names[0] == "aws_access_key_id" { &names[..2] } else { names };
        if let Some(place) = of(settings, deciding) {
            settings.retain(|(from, name, _)| *from == place || !names.contains(&name.as_str()));
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(settings: &[(From, &str, &str)]) -> Vec<String> {
        let mut settings =
            settings.iter().map(|(from, n, v)| (*from, (*n).to_owned(), (*v).to_owned())).collect();
        from_one_place(&mut settings);
        settings.into_iter().map(|(_, name, value)| format!("{name} {value}")).collect()
    }

    #[test]
    fn keys_are_not_mixed_with_those_of_another_place() {
        let profile = (From::Profile, "aws_session_token", "old");
        let user = [(From::User, "aws_access_key_id", "id"), (From::User, "aws_secret_access_key", "key")];
        assert_eq!(
            taken(&[profile, user[0], user[1]]),
            ["aws_access_key_id id", "aws_secret_access_key key"]
        );
        let token = (From::Environment, "aws_session_token", "left over");
        let keys = (From::Profile, "aws_access_key_id", "id");
        assert_eq!(taken(&[keys, token]), ["aws_access_key_id id"]);
    }

    #[test]
    fn what_the_program_says_is_before_any_name_of_the_environment() {
        let environment = (From::Environment, "aws_endpoint_url_s3", "theirs");
        assert_eq!(taken(&[environment, (From::User, "aws_endpoint", "mine")]), ["aws_endpoint mine"]);
        let region = (From::Profile, "aws_region", "a");
        assert_eq!(taken(&[region, (From::Environment, "aws_default_region", "b")]), ["aws_region b"]);
    }
}
