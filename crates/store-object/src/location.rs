//! URLs: what they name, and what of them may be shown.

use std::path::PathBuf;

use object_store::path::Path;
use omnimap_store::{Result, StoreError};
use url::Url;

/// Which service keeps an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    S3,
    Google,
    Azure,
    Web,
}

/// Where an object is.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) service: Service,
    pub(crate) url: Url,
    /// Within the bucket, or the web server.
    pub(crate) path: Path,
    /// As people may see it: without a password or a signature.
    pub(crate) name: String,
    /// Tells it from other objects, whoever asks: all of the URL but passwords and signatures.
    pub(crate) identity: String,
}

/// What a query has to say who may ask, and for how long, in lower case; and what the names of such begin with.
const SIGNATURES: [&str; 22] = [
    "sig",
    "se",
    "sp",
    "sv",
    "sr",
    "st",
    "spr",
    "skoid",
    "sktid",
    "skt",
    "ske",
    "sks",
    "skv",
    "signature",
    "expires",
    "key-pair-id",
    "policy",
    "awsaccesskeyid",
    "googleaccessid",
    "token",
    "access_token",
    "x-id",
];
const SIGNATURE_PREFIXES: [&str; 2] = ["x-amz-", "x-goog-"];

/// The path that a `file://` URL names; nothing, for other texts.
///
/// # Errors
/// If it names a file of another machine.
pub fn local_path(text: &str) -> Result<Option<PathBuf>> {
    let Some(("file", _)) = text.split_once("://") else { return Ok(None) };
    let url = parse(text)?;
    match url.to_file_path() {
        Ok(path) => Ok(Some(path)),
        Err(()) => Err(unusable(text, "a file URL of this machine has three slashes, as file:///etc/hosts")),
    }
}

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Location> {
        let url = parse(text)?;
        let name = shown(&url);
        let host = url.host_str().unwrap_or_default();
        let service = match url.scheme() {
            _ if host.is_empty() => return Err(unusable(&name, "the URL has no bucket or host")),
            "s3" | "s3a" => Service::S3,
            "gs" => Service::Google,
            "az" | "azure" | "abfs" | "abfss" | "adl" => Service::Azure,
            "http" | "https" => Service::Web,
            _ => {
                let known = "not a URL that can be mapped: s3, gs, az, http, https and file can";
                return Err(unusable(&name, known));
            }
        };
        if service != Service::Web && url.query().is_some() {
            return Err(unusable(&name, "a ? of a key is written %3F in a URL, and a # %23"));
        }
        let identity = identity(&url);
        if service == Service::Web {
            // Asked for as it is written, down to what is encoded.
            return Ok(Location { service, url, path: Path::default(), name, identity });
        }
        let path = Path::from_url_path(url.path())
            .map_err(|error| unusable(&name, &format!("a key that cannot be asked for: {error}")))?;
        if path.as_ref().is_empty() {
            return Err(unusable(&name, "the URL names a bucket and no object of it"));
        }
        if url.path().ends_with('/') {
            return Err(unusable(&name, "a key that ends in a slash cannot be asked for"));
        }
        Ok(Location { service, url, path, name, identity })
    }
}

fn parse(text: &str) -> Result<Url> {
    // What cannot be read may hold a password anywhere.
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    Url::parse(text).map_err(|error| unusable(&format!("{scheme}://…"), &format!("no URL: {error}")))
}

/// Signatures stand in the query, passwords before the host.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_password(None);
    if shown.query().is_some() {
        shown.set_query(Some("…"));
    }
    shown.set_fragment(None);
    shown.to_string().replace("?%E2%80%A6", "?…")
}

fn identity(url: &Url) -> String {
    let is_signature = |name: &str| {
        let name = name.to_ascii_lowercase();
        SIGNATURES.contains(&name.as_str())
            || SIGNATURE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut identity = url.clone();
    let _ = (identity.set_password(None), identity.set_username(""));
    identity.set_fragment(None);
    let query: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(name, _)| !is_signature(name))
        .map(|(n, v)| (n.into(), v.into()))
        .collect();
    identity.set_query(None);
    if !query.is_empty() {
        identity.query_pairs_mut().extend_pairs(query);
    }
    identity.into()
}

/// FNV-1a: a name on disk has to be the same with each compiler.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(crate) fn unusable(name: &str, reason: &str) -> StoreError {
    StoreError::Unusable { name: name.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_shown() {
        let signed = Location::parse("https://me:word@host/a/b.bin?X-Amz-Signature=abc#part").unwrap();
        assert_eq!(signed.name, "https://me@host/a/b.bin?…");
        let wrong = Location::parse("https://me:pa/ss@host/x?sig=secret").unwrap_err().to_string();
        assert!(!wrong.contains("ss@") && !wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn what_tells_objects_apart_is_the_same_whoever_signs() {
        let identity = |url: &str| Location::parse(url).unwrap().identity;
        let one = identity("https://h/dl?id=1&X-Amz-Signature=a&sig=b");
        assert_eq!(one, identity("https://me:word@h/dl?id=1&X-Amz-Signature=c"));
        assert_ne!(one, identity("https://h/dl?id=2&X-Amz-Signature=a"));
        assert_ne!(identity("https://h/a%2Fb"), identity("https://h/a/b"));
    }

    #[test]
    fn urls_that_name_no_object_say_so() {
        for (text, reason) in [
            ("s3://bucket", "names a bucket and no object"),
            ("s3://bucket/", "names a bucket and no object"),
            ("s3:///key", "no bucket or host"),
            ("s3://bucket/a?b", "%3F"),
            ("s3://bucket/a/", "ends in a slash"),
            ("ftp://host/file", "s3, gs, az, http, https and file"),
        ] {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn keys_are_what_the_url_encodes() {
        let location = Location::parse("s3://bucket/a%20b/%C3%BC%23").unwrap();
        assert_eq!((location.service, location.path.as_ref()), (Service::S3, "a b/ü#"));
    }

    #[test]
    fn file_urls_are_paths() {
        assert_eq!(local_path("file:///tmp/a%20b").unwrap(), Some("/tmp/a b".into()));
        assert_eq!(local_path("s3://bucket/key").unwrap(), None);
        assert!(local_path("file://elsewhere/tmp").unwrap_err().to_string().contains("three slashes"));
    }
}
